"""Parameters of the fusion rules, chosen on validation data."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from jacfuse_jax import metrics
from jacfuse_jax.evaluation.evidence import Evidence
from jacfuse_jax.evaluation.methods import Method
from jacfuse_jax.evaluation.names import GRIDS
from jacfuse_jax.evaluation.perturb import PerturbFn
from jacfuse_jax.evaluation.plan import Contest, target_of
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.evaluation.steps import StepStore, run_steps
from jacfuse_jax.evaluation.targets import OWN, Step, Target
from jacfuse_jax.evaluation.threat_models import DETECT
from jacfuse_jax.evaluation.worst_case import is_correct, predict_all, worst_case

_SEVERITIES = (2, 3, 4, 5)
# Combinations that lose more clean accuracy than may be chosen, by this share of that loss, are
# attacked all the same: they show the trade-off.
_TRADE_OFF = 2.0
ROUNDING = 1e-9  # of a difference of accuracies
T = TypeVar("T")
_STATISTICAL = Method("statistical")


class Score(NamedTuple):
    """One line of selection.csv.

    Attributes:
      believed: modalities that the method believes perturbed, or "detect".
      method: label of the method.
      clean: accuracy on all clean validation rows.
      robust: accuracy on the attacked ones, in the worst case over targets, sample by sample; mean
        over severities 2 to 5 and over the believed modalities, or all, perturbed one at a time;
        None where too much clean accuracy is lost.
      selected: whether it is the method that stands for its rule.
    """

    believed: str
    method: str
    clean: float
    robust: float | None
    selected: bool


def select(
    beliefs: Sequence[tuple[str, ...]],
    methods: Sequence[Method],
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
      methods: all combinations of parameters of all rules.
      perturb_fn: see `perturbations.make_perturb_fn`.
      rows: validation rows.
      evidence: what fusion knows.
      attack: of `perturbations.ATTACKS`.
      num_attack: the first so many rows are attacked.
      max_clean_loss: in [0, 1].
      store: where the steps are kept.
      seed: of the attacks.

    Returns:
      {belief: its methods, those of rules without parameters included}, and all scores.
    """
    attacked_rows = rows.first(num_attack)

    def suspects(believed: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(rows.outputs["standard"]) if believed == DETECT else believed

    def clean_accuracy(method: Method, believed: tuple[str, ...]) -> float:
        log_probs = predict_all(method, believed, [rows.observed()], rows, evidence)[0]
        return float(is_correct(log_probs, rows.labels).mean())

    tunable = [method for method in methods if method.rule in GRIDS]
    least = clean_accuracy(_STATISTICAL, ()) - max_clean_loss - ROUNDING
    least_attacked = least - _TRADE_OFF * max_clean_loss
    modalities = list(dict.fromkeys(m for believed in beliefs for m in suspects(believed)))
    clean = {
        (believed, method): clean_accuracy(method, believed)
        for believed in dict.fromkeys([*beliefs, *((modality,) for modality in modalities)])
        for method in tunable
    }
    steps = {
        modality: [
            Step((modality,), attack, severity, target)
            for severity in _SEVERITIES
            for target in [
                OWN,
                Target(_STATISTICAL),
                *(
                    target_of(method, (modality,))
                    for method in tunable
                    if clean[(modality,), method] >= least_attacked
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

    def robust_accuracy(method: Method, believed: tuple[str, ...]) -> float:
        accuracies: list[float] = []
        for modality in suspects(believed):
            for severity in _SEVERITIES:
                found = observations[modality, severity]
                log_probs = predict_all(method, believed, found, attacked_rows, evidence)
                worst = worst_case(log_probs, attacked_rows.labels)
                accuracies.append(float(is_correct(worst, attacked_rows.labels).mean()))
        return float(np.mean(accuracies))

    contests: dict[tuple[str, ...], Contest] = {}
    scores: list[Score] = []
    for believed in beliefs:
        robust = {
            method: robust_accuracy(method, believed)
            for method in tunable
            if clean[believed, method] >= least_attacked
        }
        clean_of = {method: clean[believed, method] for method in tunable}
        selected = {
            choose([method for method in tunable if method.rule == rule], clean_of, robust, least)
            for rule in dict.fromkeys(method.rule for method in tunable)
        }
        front = _fronts(believed, clean, robust)
        kept = [
            method
            for method in methods
            if method.rule not in GRIDS or method in selected or method in front
        ]
        contests[believed] = Contest(kept, frozenset(selected))
        scores += [
            Score(
                "+".join(believed),
                method.label,
                clean[believed, method],
                robust.get(method),
                method in selected,
            )
            for method in tunable
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
    clean: dict[tuple[tuple[str, ...], Method], float],
    robust: dict[Method, float],
) -> set[Method]:
    """The combinations that no other of the same rule beats in clean and robust accuracy."""
    fronts: set[Method] = set()
    for rule in dict.fromkeys(method.rule for method in robust):
        of_rule = [method for method in robust if method.rule == rule]
        front = metrics.pareto_front(
            [clean[believed, method] for method in of_rule], [robust[m] for m in of_rule]
        )
        fronts |= {of_rule[index] for index in front}
    return fronts
