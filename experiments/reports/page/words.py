"""What a run found, in sentences: nothing is said that its files do not say."""

from collections.abc import Sequence

from experiments.reports.page.choices import DROPPING, Baseline, Choice, choices_of, stated
from experiments.reports.page.estimates import Estimate, interval, listed, percent, points
from experiments.reports.page.files import Line, Run, estimate, label_of


def question(run: Run) -> str:
    """What a run asks.

    Args:
      run: read.
    """
    if run.chosen:
        names = listed(run.chosen.get("modalities", ["one modality"]), "or")
        return (
            f"One of the classifiers of {names} may fail. How much accuracy is lost, which fusion "
            "rule loses least, and what does it cost while nothing fails?"
        )
    if not run.results:
        names = listed(dict.fromkeys(line["corrupted"] for line in run.certified), "or")
        return (
            f"One modality, {names}, may say anything at all. How many test rows stay right "
            "whatever it says?"
        )
    perturbed = dict.fromkeys(
        line["perturbed"] for line in run.results if line["threat_model"] not in ("both", "either")
    )
    names = listed(perturbed or dict.fromkeys(line["perturbed"] for line in run.results), "or")
    return (
        f"The input of {names} is perturbed. How much accuracy is lost, which fusion rule loses "
        "least, and what does it cost while nothing is perturbed?"
    )


def finding(run: Run) -> list[str]:
    """The main finding, a paragraph for every perturbed modality.

    Args:
      run: read.
    """
    chosen = stated(run, choices_of(run))
    paragraphs = [_of_choice(run, choice) for choice in chosen]
    if run.results and not chosen:
        paragraphs += _without_choice(run)
    return paragraphs + _certified(run)


def explanation(run: Run) -> str:
    """What brackets and worth in the finding are.

    Args:
      run: read.
    """
    if len(run.seeds) > 1:
        text = f"Brackets are the lowest and the highest of {len(run.seeds)} seeds, figures means"
        return f"{text}; of what is certified, 95% intervals." if run.certified else f"{text}."
    if run.chosen:
        against = {entry["against"] for entry in run.chosen["chosen"]}
        worst = "any prediction" if against == {"anything"} else "the worst of the simulated faults"
        return (
            f"Worst cases are {worst}. Rules were chosen by the rows that judge them here, so that "
            "a little less is to be expected of others. Brackets are 95% intervals."
        )
    if not run.envelope:
        return "Brackets are 95% intervals over groups of rows that depend on each other."
    return (
        "A rule is worth (1 − share) × accuracy on clean rows + share × accuracy in the worst case "
        "over all attacks. Brackets are 95% intervals over groups of rows that depend on each "
        "other; those of differences are paired."
    )


def _of_choice(run: Run, choice: Choice) -> str:
    """What a chosen rule is worth, and against what."""
    share = f"{100 * choice.share:g}%"
    verb, rows = ("fails", "on these rows") if run.chosen else ("is attacked", "on test rows")
    chosen = "labelled rows chose" if run.chosen else "validation rows chose"
    perturbed = choice.perturbed
    if run.chosen and perturbed.startswith("any "):
        perturbed += " of the modalities"
    parts = [
        f"Where {perturbed} {verb} in {share} of inputs, {chosen} {choice.label}.",
        f"It is worth {percent(choice.worth.mean)} {interval(choice.worth)} {rows}".rstrip()
        + _against(choice)
        + ".",
        _best(choice),
    ]
    return " ".join(part for part in parts if part).replace("  ", " ")


def _against(choice: Choice) -> str:
    """What that is against simple rules, in points."""
    texts = [
        f"{points(b.advantage.mean)} {interval(b.advantage, signed=True)}".rstrip()
        + f" against {_called(name, b, choice)}"
        for name, b in choice.baselines.items()
        if (b.label,) != choice.labels
    ]
    return f"; in points, {listed(texts)}" if texts else ""


def _best(choice: Choice) -> str:
    """Says so where a simple rule is worth as much."""
    same = [name for name, b in choice.baselines.items() if (b.label,) == choice.labels]
    others = {name: b for name, b in choice.baselines.items() if name not in same}
    name = max(others, key=lambda each: others[each].worth, default="")
    if name and others[name].advantage.mean < 0:
        called = _called(name, others[name], choice)
        doubt = _doubt(choice, others[name].advantage)
        best = f"Best of these is {called}, at {percent(others[name].worth)}"
        return f"{best}, though {doubt}." if doubt else f"{best}."
    if same:
        return f"That is {same[0]} itself: those rows tell of nothing that is worth more."
    doubtful = {
        _called(name, b, choice): doubt
        for name, b in others.items()
        if b.advantage.low is not None and (doubt := _doubt(choice, b.advantage))
    }
    if not doubtful:
        return ""
    (doubt,) = set(doubtful.values())
    return f"It is not told apart from {listed(doubtful, 'or')}: {doubt}."


def _doubt(choice: Choice, difference: Estimate) -> str:
    """Why two rules are not told apart; nothing where they are."""
    if difference.low is None or difference.high is None:
        return "no interval of the difference is known"
    if difference.low > 0 or difference.high < 0:
        return ""
    if len(choice.seeds) > 1:
        return "seeds do not agree on which is better"
    return "the interval of the difference contains zero"


def _called(name: str, baseline: Baseline, choice: Choice) -> str:
    """A simple rule in a sentence."""
    if name == DROPPING:
        return f"dropping {choice.perturbed}"
    parameters = baseline.label.partition(" ")[2]
    return f"{name} ({parameters})" if parameters else name


def _without_choice(run: Run) -> list[str]:
    """What stands out where nothing was chosen, with the reason to doubt it."""
    paragraphs: list[str] = []
    for perturbed in dict.fromkeys(x["perturbed"] for x in run.summary):
        scenario = [x for x in run.summary if x["perturbed"] == perturbed]
        scenario = [x for x in scenario if x["threat_model"] == scenario[0]["threat_model"]]
        lines = [x for x in scenario if x["seed"] == run.seeds[0] and x["worst"]]
        lines = [x for x in lines if not x["method"].startswith("unimodal")]
        if not lines:
            continue
        best = max(lines, key=lambda line: float(line["worst"]))
        text = (
            f"Of the rules measured with {perturbed} perturbed, {label_of(best)} has the best "
            f"worst case, {percent(float(best['worst']))} {_ends(best)}"
        ).rstrip()
        for line in lines:
            if line["method"] == "statistical" and line is not best:
                text += f"; statistical fusion has {percent(float(line['worst']))} {_ends(line)}"
        paragraphs.append(f"{text}.")
    if not paragraphs:
        return ["Nothing was attacked: the tables have accuracy on clean and on corrupted rows."]
    chosen = "What a rule chosen on validation rows is worth was not measured"
    if not any(line["selected"] == "True" for line in run.summary):
        chosen = "Nothing was chosen on validation rows (--num_select)"
    return [*paragraphs, f"{chosen}, and the best of many on test rows looks better than it is."]


def _ends(line: Line) -> str:
    return interval(estimate(line, "worst"))


def _certified(run: Run) -> list[str]:
    """What holds whatever a modality says."""
    paragraphs: list[str] = []
    for corrupted in dict.fromkeys(line["corrupted"] for line in run.certified):
        lines = [x for x in run.certified if x["corrupted"] == corrupted]
        chosen = [x for x in lines if x["selected"] == "True" and x["method"] != "statistical"]
        best = max(chosen, key=lambda line: float(line["certified"]), default=lines[0])
        sure, clean = estimate(best, "certified"), estimate(best, "clean")
        if sure.mean == 0:
            text = f"No chosen rule keeps a test row right whatever {corrupted} says."
        else:
            text = (
                f"Whatever {corrupted} says, {label_of(best)} is right on {percent(sure.mean)} "
                f"{interval(sure)} of test rows; on clean ones on {percent(clean.mean)} "
                f"{interval(clean)}."
            )
        paragraphs.append(text + _beside(lines, best))
    return paragraphs


def _beside(lines: Sequence[Line], best: Line) -> str:
    """Statistical fusion beside what is certified best."""
    for line in lines:
        if line["method"] == "statistical" and line is not best:
            clean, sure = estimate(line, "clean"), estimate(line, "certified")
            return (
                f" Statistical fusion is right on {percent(clean.mean)} of clean rows, and on "
                f"{percent(sure.mean)} whatever {line['corrupted']} says."
            )
    return ""
