"""Parameters of the fusion rules, and the rule, chosen on validation data by the share of attacks.

If a share s of inputs is attacked, a rule is worth (1 - s) clean + s robust. Choices are those of
`jacfuse_jax.selection`, with attacked rows in the place of faults.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jacfuse_jax import fusion
from jacfuse_jax.evaluation.baselines import DropSuspect
from jacfuse_jax.evaluation.chains import PerturbFn
from jacfuse_jax.evaluation.evidence import Evidence
from jacfuse_jax.evaluation.plan import SEVERITIES, Contest, target_of
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.evaluation.rules import Head, Trained, Unimodal
from jacfuse_jax.evaluation.steps import StepStore, run_steps
from jacfuse_jax.evaluation.targets import OWN, Step, Target
from jacfuse_jax.evaluation.threat_models import DETECT
from jacfuse_jax.evaluation.trial import Trial, unfitted_cascade
from jacfuse_jax.fusion import LearnedCascade, Rule

SHARES = (0.02, 0.05, 0.1, 0.2, 0.5, 0.8)
"""Of attacked inputs, for which choices are made beside the one for the stated share."""
_STATISTICAL = fusion.Statistical()
_NOT_CHOSEN = (Unimodal, Head, Trained)  # of which nothing is chosen: other classifiers, or fewer


class Score(NamedTuple):
    """A rule on validation rows.

    Attributes:
      believed: modalities that the rule believes perturbed, or "detect".
      rule: that is judged.
      clean: accuracy on all clean validation rows.
      robust: accuracy on the attacked ones, in the worst case over targets, sample by sample; mean
        over severities and over the believed modalities, or all, perturbed one at a time; None of
        rules that were not attacked, since even what was found on others rules them out.
      selected: whether its parameters stand for the rule.
    """

    believed: str
    rule: Rule
    clean: float
    robust: float | None
    selected: bool


class BestRule(NamedTuple):
    """The rule for a share of attacks, of all rules and parameters.

    Attributes:
      believed: modalities that it believes perturbed, or "detect".
      share: of attacked inputs.
      rule: that is chosen.
      clean: accuracy on clean validation rows.
      robust: as in `Score`.
      expected: (1 - share) clean + share robust.
      low: lower end of its 95% interval over groups of the rows that it was chosen by: a little
        optimistic.
      high: upper end.
      baselines: {rule: what is expected of it}: statistical fusion, scaled fusion with the scale
        chosen for this share, and trusted modalities alone, where some are trusted.
      num_candidates: rules and parameters that were compared.
    """

    believed: str
    share: float
    rule: Rule
    clean: float
    robust: float
    expected: float
    low: float
    high: float
    baselines: dict[Rule, float]
    num_candidates: int


class Selection(NamedTuple):
    """What `select` finds.

    Attributes:
      contests: {belief: its rules, those without parameters included}.
      scores: of all rules that may be chosen.
      best: the rule for every belief and share.
    """

    contests: dict[tuple[str, ...], Contest]
    scores: list[Score]
    best: list[BestRule]


def select(
    beliefs: Sequence[tuple[str, ...]],
    rules: Sequence[Rule],
    perturb_fn: PerturbFn,
    rows: Rows,
    evidence: Evidence,
    *,
    attack: str,
    num_attack: int,
    share: float,
    store: StepStore,
    seed: int,
    learned: bool = False,
) -> Selection:
    """Chooses the parameters of every rule, and of all rules one, for every belief.

    A rule is worth (1 - share) clean + share robust, see `Score`. Of all parameters of a rule whose
    difference to the best has a paired 95% interval over groups that contains zero, those of the
    highest clean accuracy; of equal ones the first. Parameters that are worth less than statistical
    fusion, or than trusted modalities alone, are not taken if others are worth as much. In the same
    way one is chosen of all rules and parameters. Test data are not looked at.

    What attacks find is tried on every rule. Attacked are the modalities' own classifiers,
    statistical fusion, and of the others those on which a choice rests: the rule that seems worth
    most by what was found so far, until that is one that was attacked itself; and then the one that
    would be chosen, likewise. To attack all of them would change a choice by what is found on one
    rule and hurts another one, and where an interval ends at zero almost exactly.

    For other shares, `SHARES`, one is chosen of all rules, too, and scaled fusion to compare it
    with; these are evaluated beside the chosen ones.

    Args:
      beliefs: sets of modalities believed perturbed, or `DETECT`.
      rules: with all combinations of their parameters, simple ones first.
      perturb_fn: see `perturb.make_perturb_fn`.
      rows: validation rows.
      evidence: what fusion knows.
      attack: of `names.ATTACKS`.
      num_attack: the first so many rows are attacked.
      share: of inputs that are attacked, in [0, 1].
      store: where the steps are kept.
      seed: of the attacks.
      learned: adds a `fusion.LearnedCascade` for every share, fitted to these rows, where some
        modality is trusted; it is judged on rows that it was not fitted to, by the first grouping.

    Returns:
      What is evaluated, and why.

    Raises:
      ValueError: rows are of fewer than two groups, or, for learned cascades, attacked rows of
        fewer than two beside those of any fold.
    """
    modalities = tuple(rows.outputs["standard"])
    suspects = {b: modalities if b == DETECT else b for b in beliefs}
    entering = [rule for rule in rules if not isinstance(rule, _NOT_CHOSEN)]
    entering += [rule for rule in (_STATISTICAL, DropSuspect()) if rule not in entering]
    other_shares = [s for s in SHARES if s != share]
    unfitted = unfitted_cascade(len(evidence.class_prior))

    def steps_on(modality: str, targets: Sequence[Target]) -> list[Step]:
        return [Step((modality,), attack, s, target) for s in SEVERITIES for target in targets]

    # All that may be attacked, so that one program serves all rounds.
    of_modality = {
        modality: [OWN, Target(_STATISTICAL)]
        + [
            target_of(rule, believed)
            for believed in beliefs
            if modality in suspects[believed]
            for rule in [*entering, *([unfitted] if learned else [])]
        ]
        for modality in dict.fromkeys(m for names in suspects.values() for m in names)
    }
    possible = [
        step
        for modality, targets in of_modality.items()
        for step in steps_on(modality, list(dict.fromkeys(targets)))
    ]

    done: set[tuple[str, Target | None]] = set()

    def attack_all(wanted: Sequence[Step]) -> None:
        done.update((step.attacked[0], step.target) for step in wanted)
        run_steps(
            list(dict.fromkeys([*possible, *wanted])),
            perturb_fn,
            rows,
            num_attack=num_attack,
            store=store,
            seed=seed,
            only=frozenset(wanted),
        )

    def mark_attacked(believed: tuple[str, ...], trial: Trial) -> None:
        """Of rules without parameters, other beliefs may have had the attacks."""
        for rule in trial.rules:
            if all((m, target_of(rule, believed)) in done for m in trial.suspects):
                trial.attacked.add(rule)

    found = [step for m in of_modality for step in steps_on(m, [OWN, Target(_STATISTICAL)])]
    attack_all(found)
    trials = {
        believed: Trial(believed, suspects[believed], entering, rows, num_attack, evidence)
        for believed in beliefs
    }
    for believed, trial in trials.items():
        trial.observe(found, store)
        if learned and trial.has_trusted:
            trial.add_learned([share, *other_shares], found, store)
        mark_attacked(believed, trial)
    while True:
        chosen = {
            believed: _choose(trial, rules, share, other_shares)
            for believed, trial in trials.items()
            if _judged(trial, rules)
        }
        wanted = [
            step
            for believed, of_belief in chosen.items()
            for modality in suspects[believed]
            for step in steps_on(modality, [target_of(r, believed) for r in of_belief.doubtful])
        ]
        if not wanted:
            break
        attack_all(wanted)
        for believed, trial in trials.items():
            trial.observe(wanted, store)
            mark_attacked(believed, trial)
    found_of = {b: _report(trials[b], rules, of_belief) for b, of_belief in chosen.items()}
    unchosen = Contest(list(rules), frozenset())  # where nothing can be chosen
    return Selection(
        {b: found_of[b][0] if b in found_of else unchosen for b in beliefs},
        [score for _, scores, _ in found_of.values() for score in scores],
        [of_share for *_, best in found_of.values() for of_share in best],
    )


class _Chosen(NamedTuple):
    """What is chosen by what was found so far.

    Attributes:
      of_rules: of every rule with parameters one, for the stated share.
      scaled: {share: scaled fusion}, where there is any.
      of_all: {share: the rule}.
      doubtful: rules on which a choice rests, and which were not attacked themselves.
    """

    of_rules: list[Rule]
    scaled: dict[float, Rule]
    of_all: dict[float, Rule]
    doubtful: list[Rule]


def _choose(
    trial: Trial, rules: Sequence[Rule], share: float, other_shares: Sequence[float]
) -> _Chosen:
    """Chooses parameters of every rule for a share, and of all rules one for every share."""
    judged = _judged(trial, rules)
    by_name: dict[str, list[Rule]] = {}
    for rule in judged:
        if rule.searched:
            by_name.setdefault(rule.name, []).append(rule)
    shares = (share, *other_shares)
    scaled = by_name.get(fusion.Scaled.kind)
    questions = [(of_name, share) for of_name in by_name.values()]
    questions += [(scaled, s) for s in shares] if scaled else []
    questions += [(judged, s) for s in shares]
    answers = trial.choose(questions)
    chosen = [rule for rule, _ in answers]
    num_names = len(by_name)
    return _Chosen(
        chosen[:num_names],
        dict(zip(shares, chosen[num_names:], strict=False)) if scaled else {},
        dict(zip(shares, chosen[-len(shares) :], strict=True)),
        list(dict.fromkeys(rule for _, in_doubt in answers for rule in in_doubt)),
    )


def _judged(trial: Trial, rules: Sequence[Rule]) -> list[Rule]:
    """Rules that may be chosen: without the baselines that nobody asked for."""
    return [r for r in trial.rules if r in rules or isinstance(r, LearnedCascade)]


def _report(
    trial: Trial, rules: Sequence[Rule], chosen: _Chosen
) -> tuple[Contest, list[Score], list[BestRule]]:
    """What a trial has found: which rules are evaluated, their scores, the best of each share."""
    judged = _judged(trial, rules)
    believed = "+".join(trial.believed)
    scores = [
        Score(
            believed,
            rule,
            trial.clean(rule),
            trial.robust(rule) if rule in trial.attacked else None,
            rule in chosen.of_rules,
        )
        for rule in judged
    ]

    def best_of(share: float, rule: Rule) -> BestRule:
        baselines = trial.baselines + ([chosen.scaled[share]] if chosen.scaled else [])
        return BestRule(
            believed,
            share,
            rule,
            trial.clean(rule),
            trial.robust(rule),
            *trial.expected(rule, share),
            {baseline: trial.expected(baseline, share)[0] for baseline in baselines},
            len(judged),
        )

    best = [best_of(share, rule) for share, rule in sorted(chosen.of_all.items())]
    kept = {*chosen.of_rules, *chosen.scaled.values(), *chosen.of_all.values()}
    fitted = [rule for rule in trial.rules if isinstance(rule, LearnedCascade)]
    evaluated = [rule for rule in [*rules, *fitted] if not rule.searched or rule in kept]
    return Contest(evaluated, frozenset(chosen.of_rules)), scores, best
