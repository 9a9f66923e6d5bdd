"""Tables of a run: each cell a text, an interval and what it is sorted by."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.reports.page.choices import BASELINES, Choice
from experiments.reports.page.estimates import Estimate, interval, points
from experiments.reports.page.scenarios import Measured, Scenario
from jacfuse_jax.evaluation.measure import WORST_ATTACK
from jacfuse_jax.evaluation.names import CORRUPTIONS
from jacfuse_jax.evaluation.targets import STRENGTHS

_MANY = 3  # corruptions that have columns of their own
_EPSILONS = STRENGTHS["apgd"]
_MEANS = {
    "clean": "clean",
    "corruptions": "corruptions",
    "transfer": "transfer",
    "adaptive": "adaptive",
    "worst": "worst case",
    "certified": "certified",
}


class Cell(NamedTuple):
    """What stands in a place of a table.

    Attributes:
      text: empty where nothing applies.
      note: beside it, smaller: an interval, or what a rule was chosen for.
      key: that the column is sorted by, where that is not the text.
    """

    text: str
    note: str = ""
    key: float | None = None


class Table(NamedTuple):
    """A table.

    Attributes:
      title: above it.
      caption: what the cells are.
      columns: {header: whether it is of numbers}.
      rows: a cell a column.
      is_long: whether it is folded at first.
    """

    title: str
    caption: str
    columns: dict[str, bool]
    rows: list[list[Cell]]
    is_long: bool = False


def accuracy_table(scenario: Scenario, chosen: Mapping[str, Sequence[str]]) -> Table:
    """Accuracy of all rules in one scenario.

    Args:
      scenario: of the run.
      chosen: {label of a rule that is chosen: for which shares}.
    """
    rules = scenario.shown
    names = list(dict.fromkeys(name for rule in rules for name in rule.curves))
    corruptions = [name for name in CORRUPTIONS if name in names]
    measured = {name for rule in rules for name in rule.means}
    own = corruptions if len(corruptions) <= _MANY else []
    headers = [title for name, title in _MEANS.items() if name in measured]
    columns: dict[str, dict[str, Cell]] = {"rule": {}}
    for title in headers:
        if title == "corruptions" and own:
            columns |= {name.replace("_", " "): {} for name in own}
        else:
            columns[title] = {}
    if WORST_ATTACK in names:
        columns |= {f"ε = {epsilon:g}": {} for epsilon in _EPSILONS}
    columns["calibration error"] = {}
    for rule in rules:
        shares = chosen.get(rule.label, ())
        note = f"chosen for {', '.join(shares)}" if shares else ""
        cells = {"rule": Cell(rule.label, note)}
        cells |= {_MEANS[name]: share_cell(mean) for name, mean in rule.means.items()}
        cells |= {name.replace("_", " "): share_cell(_mean_of(rule, name)) for name in own}
        for severity, accuracy in rule.curves.get(WORST_ATTACK, {}).items():
            cells[f"ε = {_EPSILONS[severity - 1]:g}"] = share_cell(accuracy)
        if rule.ece is not None:
            cells["calibration error"] = Cell(f"{rule.ece:.3f}", key=rule.ece)
        for title, column in columns.items():
            column[rule.label] = cells.get(title, Cell(""))
    attacked = f", {scenario.num_attacked} of them attacked" if scenario.num_attacked else ""
    return Table(
        f"{scenario.perturbed} perturbed, threat model {scenario.threat_model}",
        f"Accuracy in %, {scenario.num_rows} test rows{attacked}; means over severities, in "
        "brackets intervals. Transfer: attacks on the modality's own classifier; adaptive: on the "
        "rule itself; worst case: of both, sample by sample. The calibration error is that of "
        "clean rows.",
        {title: title != "rule" for title in columns},
        [[column[rule.label] for column in columns.values()] for rule in rules],
    )


def worth_table(choices: Sequence[Choice], perturbed: str) -> Table:
    """What was chosen for every share of attacks.

    Args:
      choices: one a seed.
      perturbed: the modality.
    """
    chosen = [choice for choice in choices if choice.perturbed == perturbed]
    has_seeds = len({seed for choice in chosen for seed in choice.seeds}) > 1
    names = [n for n in BASELINES if any(n in choice.baselines for choice in chosen)]
    rows: list[list[Cell]] = []
    for choice in chosen:
        cells = [Cell(f"{100 * choice.share:g}%", key=choice.share)]
        if has_seeds:
            cells.append(Cell(choice.seeds[0], key=float(choice.seeds[0])))
        cells += [Cell(choice.label), share_cell(choice.worth)]
        rows.append(cells + [advantage_cell(choice, name) for name in names])
    return Table(
        f"{perturbed}: the chosen rule for every share",
        "Worth in %, (1 − share) clean + share worst case, and by how many points that is more "
        "than simple rules have; in brackets 95% intervals, where they are known.",
        {
            "share": True,
            **({"seed": True} if has_seeds else {}),
            "chosen rule": False,
            "worth": True,
            **{f"against {name}": True for name in names},
        },
        rows,
    )


def share_cell(share: Estimate) -> Cell:
    """A share in percent with its interval.

    Args:
      share: of rows.
    """
    return Cell(f"{100 * share.mean:.1f}", interval(share), share.mean)


def advantage_cell(choice: Choice, name: str) -> Cell:
    """How much more a chosen rule is worth than a simple one.

    Args:
      choice: of the rule.
      name: of the simple one.
    """
    baseline = choice.baselines.get(name)
    if baseline is None:
        return Cell("")
    if (baseline.label,) == choice.labels:
        return Cell("the same rule", key=0.0)
    advantage = baseline.advantage
    return Cell(points(advantage.mean), interval(advantage, signed=True), advantage.mean)


def _mean_of(rule: Measured, perturbation: str) -> Estimate:
    """Mean over severities, without an interval, which no file has."""
    accuracies = [x.mean for x in rule.curves[perturbation].values()]
    return Estimate(sum(accuracies) / len(accuracies))
