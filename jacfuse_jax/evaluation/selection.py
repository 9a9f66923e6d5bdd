"""Parameters of the fusion rules, chosen on validation data."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from jacfuse_jax import fusion, metrics
from jacfuse_jax.evaluation.chains import PerturbFn
from jacfuse_jax.evaluation.evidence import Evidence
from jacfuse_jax.evaluation.outcomes import is_correct, predict_all, worst_of
from jacfuse_jax.evaluation.plan import Contest, target_of
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.evaluation.steps import StepStore, run_steps
from jacfuse_jax.evaluation.targets import OWN, Step, Target
from jacfuse_jax.evaluation.threat_models import DETECT
from jacfuse_jax.fusion import Rule

_SEVERITIES = (2, 3, 4, 5)
# Combinations that lose more clean accuracy than may be chosen, by this share of that loss, are
# attacked all the same: they show the trade-off.
_TRADE_OFF = 2.0
ROUNDING = 1e-9  # of a difference of accuracies
T = TypeVar("T")
_STATISTICAL = fusion.Statistical()


class Score(NamedTuple):
    """A rule on validation rows.

    Attributes:
      believed: modalities that the rule believes perturbed, or "detect".
      rule: that is judged.
      clean: accuracy on all clean validation rows.
      robust: accuracy on the attacked ones, in the worst case over targets, sample by sample; mean
        over severities 2 to 5 and over the believed modalities, or all, perturbed one at a time;
        None where too much clean accuracy is lost.
      selected: whether its parameters stand for the rule.
    """

    believed: str
    rule: Rule
    clean: float
    robust: float | None
    selected: bool


def select(
    beliefs: Sequence[tuple[str, ...]],
    rules: Sequence[Rule],
    perturb_fn: PerturbFn,
    rows: Rows,
    evidence: Evidence,
    *,
    attack: str,
    num_attack: int,
    max_clean_loss: float,
    store: StepStore,
    seed: int,
) -> tuple[dict[tuple[str, ...], Contest], list[Score]]:
    """Chooses the parameters of every rule for every belief.

    Of the combinations whose clean accuracy is at most `max_clean_loss` below that of statistical
    fusion, the one with the highest robust accuracy, see `Score`; where there is none, the one with
    the highest clean accuracy. The attacks are those on statistical fusion, on the modality's own
    classifier and on every combination that knows which modality is perturbed and loses less than
    three times that clean accuracy. Test data are not looked at.

    Combinations on the Pareto front of clean and robust accuracy of their rule are kept beside the
    chosen ones, to show the trade-off.

    Args:
      beliefs: sets of modalities believed perturbed, or `DETECT`.
      rules: with all combinations of their parameters.
      perturb_fn: see `perturbations.make_perturb_fn`.
      rows: validation rows.
      evidence: what fusion knows.
      attack: of `perturbations.ATTACKS`.
      num_attack: the first so many rows are attacked.
      max_clean_loss: in [0, 1].
      store: where the steps are kept.
      seed: of the attacks.

    Returns:
      {belief: its rules, those without parameters included}, and all scores.
    """
    attacked_rows = rows.first(num_attack)

    def suspects(believed: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(rows.outputs["standard"]) if believed == DETECT else believed

    def clean_accuracy(rule: Rule, believed: tuple[str, ...]) -> float:
        log_probs = predict_all(rule, believed, [rows.observed()], rows, evidence)[0]
        return float(is_correct(log_probs, rows.labels).mean())

    tunable = [rule for rule in rules if rule.searched]
    least = clean_accuracy(_STATISTICAL, ()) - max_clean_loss - ROUNDING
    least_attacked = least - _TRADE_OFF * max_clean_loss
    modalities = list(dict.fromkeys(m for believed in beliefs for m in suspects(believed)))
    clean = {
        (believed, rule): clean_accuracy(rule, believed)
        for believed in dict.fromkeys([*beliefs, *((modality,) for modality in modalities)])
        for rule in tunable
    }
    steps = {
        modality: [
            Step((modality,), attack, severity, target)
            for severity in _SEVERITIES
            for target in [
                OWN,
                Target(_STATISTICAL),
                *(
                    target_of(rule, (modality,))
                    for rule in tunable
                    if clean[(modality,), rule] >= least_attacked
                ),
            ]
        ]
        for modality in modalities
    }
    run_steps(
        [step for of_modality in steps.values() for step in of_modality],
        perturb_fn,
        rows,
        num_attack=num_attack,
        store=store,
        seed=seed,
    )

    observations = {
        (modality, severity): [store[step] for step in steps[modality] if step.severity == severity]
        for modality in modalities
        for severity in _SEVERITIES
    }

    def robust_accuracy(rule: Rule, believed: tuple[str, ...]) -> float:
        accuracies: list[float] = []
        for modality in suspects(believed):
            withstands = np.ones(len(attacked_rows.labels), bool)
            for severity in _SEVERITIES:  # what a smaller budget found counts for a larger one
                found = observations[modality, severity]
                log_probs = predict_all(rule, believed, found, attacked_rows, evidence)
                worst = worst_of(log_probs, attacked_rows.labels)
                withstands &= is_correct(worst, attacked_rows.labels)
                accuracies.append(float(withstands.mean()))
        return float(np.mean(accuracies))

    contests: dict[tuple[str, ...], Contest] = {}
    scores: list[Score] = []
    for believed in beliefs:
        robust = {
            rule: robust_accuracy(rule, believed)
            for rule in tunable
            if clean[believed, rule] >= least_attacked
        }
        clean_of = {rule: clean[believed, rule] for rule in tunable}
        selected = {
            choose([rule for rule in tunable if rule.name == name], clean_of, robust, least)
            for name in dict.fromkeys(rule.name for rule in tunable)
        }
        front = _fronts(believed, clean, robust)
        kept = [rule for rule in rules if not rule.searched or rule in selected or rule in front]
        contests[believed] = Contest(kept, frozenset(selected))
        scores += [
            Score(
                "+".join(believed),
                rule,
                clean[believed, rule],
                robust.get(rule),
                rule in selected,
            )
            for rule in tunable
        ]
    return contests, scores


def choose(
    candidates: Sequence[T], clean: Mapping[T, float], robust: Mapping[T, float], least: float
) -> T:
    """The most robust candidate of those that are accurate enough, or else the most accurate.

    Args:
      candidates: at least one; of equal ones the first is taken.
      clean: accuracy of each.
      robust: of those at least that are accurate enough.
      least: accuracy that is enough.
    """
    feasible = [candidate for candidate in candidates if clean[candidate] >= least]
    return max(feasible or candidates, key=(robust if feasible else clean).__getitem__)


def _fronts(
    believed: tuple[str, ...],
    clean: dict[tuple[tuple[str, ...], Rule], float],
    robust: dict[Rule, float],
) -> set[Rule]:
    """The combinations that no other of the same rule beats in clean and robust accuracy."""
    fronts: set[Rule] = set()
    for name in dict.fromkeys(rule.name for rule in robust):
        of_rule = [rule for rule in robust if rule.name == name]
        front = metrics.pareto_front(
            [clean[believed, rule] for rule in of_rule], [robust[rule] for rule in of_rule]
        )
        fronts |= {of_rule[index] for index in front}
    return fronts
