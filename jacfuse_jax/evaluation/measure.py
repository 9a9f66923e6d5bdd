"""Evaluation of every threat model, perturbation, severity and method on one split.

Whatever an attack on one target finds is tried on every method: a method's "ensemble" row is its
worst case, sample by sample, over the attacks on all targets.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from jacfuse_jax import metrics
from jacfuse_jax.evaluation.evidence import Evidence
from jacfuse_jax.evaluation.methods import Method, Observed
from jacfuse_jax.evaluation.names import ATTACKS, GRIDS, LINF_ATTACKS
from jacfuse_jax.evaluation.plan import SEVERITIES, Contest, Contests, steps_of, target_of
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.evaluation.steps import StepStore
from jacfuse_jax.evaluation.targets import OWN, Target, applies
from jacfuse_jax.evaluation.threat_models import Scenario
from jacfuse_jax.evaluation.worst_case import is_correct, predict_all, worst_case

ENSEMBLE = "ensemble"
WORST_ATTACK = "worst_attack"
_BOOTSTRAP_SEED = 0


class Row(NamedTuple):
    """One line of results.csv; None is written as an empty field.

    Attributes:
      threat_model: of `threat_models.THREAT_MODELS`.
      perturbed: the perturbed modality or modalities.
      perturbation: of `PERTURBATIONS`, or "worst_attack", the worst case over the linf attacks.
      attack_target: "unimodal" where the attacker differentiated the perturbed modality's own
        classifier (a transfer attack), the row's method where it differentiated that, "ensemble"
        for the worst case over all targets, sample by sample; None without an attack.
      gamma: parameter of the method, None where it has none, like the next four.
      scale: as above.
      contamination: as above.
      tempering: as above.
      confidence: as above.
      selected: whether validation data chose these parameters; None where nothing was chosen.
      ci_low: lower end of the accuracy's 95% interval, the wider of the bootstrap over groups of
        dependent rows and Wilson's.
      ci_high: upper end.
    """

    dataset: str
    seed: int
    threat_model: str
    perturbed: str
    perturbation: str
    severity: int
    attack_target: str | None
    method: str
    gamma: float | None
    scale: float | None
    contamination: float | None
    tempering: float | None
    confidence: float | None
    selected: bool | None
    accuracy: float
    ci_low: float
    ci_high: float
    nll: float
    brier: float
    ece: float
    num_examples: int


Outcomes = dict[tuple[str, str, str, int, Method], NDArray[np.bool_]]
"""Correct rows (N,) by threat model, perturbed, perturbation, severity, method: the worst case."""


class _Outcome(NamedTuple):
    """Log-probabilities (N, K) of one method, to become a row."""

    method: Method
    attack_target: str | None
    log_probs: NDArray[Any]


def evaluate(
    dataset: str,
    seed: int,
    scenarios: Sequence[Scenario],
    contests: Contests,
    rows: Rows,
    evidence: Evidence,
    store: StepStore,
    *,
    perturbations: Sequence[str],
    num_attack: int,
) -> tuple[list[Row], Outcomes]:
    """Evaluates scenario x perturbation x severity x method.

    Corruptions are of all rows, where they apply to the modalities; attacks of the first
    `num_attack`, against each target of `plan.targets_of`.

    Args:
      dataset: its name, for the rows.
      seed: of this part of the run.
      scenarios: threat models on modalities.
      contests: {believed modalities: methods} of all scenarios.
      rows: clean.
      evidence: what fusion knows.
      store: where `steps.run_steps` kept all of `plan.list_steps`.
      perturbations: of `names.PERTURBATIONS`.
      num_attack: rows that are attacked.

    Returns:
      The rows in a fixed order, and for every worst case which rows were correct.
    """
    results: list[Row] = []
    outcomes: Outcomes = {}
    attacked_rows = rows.first(num_attack)
    for scenario in tqdm(scenarios, desc="measure", disable=None):
        contest = contests[scenario.believed]
        worst: dict[int, list[_Outcome]] = {severity: [] for severity in SEVERITIES}
        for perturbation in (*perturbations, WORST_ATTACK):
            used = attacked_rows if perturbation in (*ATTACKS, WORST_ATTACK) else rows
            for severity in (0,) if perturbation == "clean" else SEVERITIES:
                if perturbation == WORST_ATTACK:
                    found = worst[severity]
                else:
                    targets, observations = _observe(
                        scenario, perturbation, severity, scenarios, contests, used, store
                    )
                    found = [
                        outcome
                        for method in contest.of(scenario)
                        for outcome in _outcomes(
                            method, scenario.believed, targets, observations, used, evidence
                        )
                    ]
                if not found:
                    continue
                correct = np.stack([is_correct(o.log_probs, used.labels) for o in found], axis=1)
                results += _make_rows(
                    dataset, seed, scenario, contest, perturbation, severity, found, used, correct
                )
                for outcome, column in zip(found, correct.T, strict=True):
                    if outcome.attack_target in (None, ENSEMBLE):
                        key = (scenario.threat_model, scenario.perturbed, perturbation, severity)
                        outcomes[*key, outcome.method] = column
                if perturbation in LINF_ATTACKS:
                    ensembles = [o for o in found if o.attack_target == ENSEMBLE]
                    worst[severity] = _worse_of(worst[severity], ensembles, used.labels)
    return results, outcomes


def _observe(
    scenario: Scenario,
    perturbation: str,
    severity: int,
    scenarios: Sequence[Scenario],
    contests: Contests,
    rows: Rows,
    store: StepStore,
) -> tuple[list[Target | None], list[Observed]]:
    """What each attack on the modalities of a scenario gave, or its one corruption or none."""
    if perturbation == "clean":
        return [None], [rows.observed()]
    steps = [
        step
        for attacked in scenario.alternatives
        if all(applies(perturbation, alternative) for alternative in scenario.alternatives)
        for step in steps_of(attacked, perturbation, severity, scenarios, contests)
    ]
    return [step.target for step in steps], [store[step] for step in steps]


def _outcomes(
    method: Method,
    believed: tuple[str, ...],
    targets: Sequence[Target | None],
    observations: Sequence[Observed],
    rows: Rows,
    evidence: Evidence,
) -> Iterator[_Outcome]:
    """Predictions of a method under one perturbation: the worst of each kind of target."""
    if not targets:
        return
    log_probs = predict_all(method, believed, observations, rows, evidence)
    own = target_of(method, believed)
    kinds: list[tuple[str | None, list[Target | None]]] = [(None, [None])]
    if targets[0] is not None:
        kinds = [
            (OWN.method.rule, [OWN]),
            (method.rule, [own]),
            (ENSEMBLE, list(targets)),
        ]
    for attack_target, kind in kinds:
        chosen = [index for index, target in enumerate(targets) if target in kind]
        if chosen:
            yield _Outcome(method, attack_target, worst_case(log_probs[chosen], rows.labels))


def _worse_of(before: list[_Outcome], new: list[_Outcome], labels: NDArray[Any]) -> list[_Outcome]:
    """Sample by sample the worse of two outcomes of each method."""
    if not before:
        return new
    return [
        a._replace(log_probs=worst_case([a.log_probs, b.log_probs], labels))
        for a, b in zip(before, new, strict=True)
    ]


@jax.jit
def _sums(log_probs: jax.Array, labels: jax.Array) -> metrics.ClassificationSums:
    return metrics.classification_sums(log_probs, labels)


def _make_rows(
    dataset: str,
    seed: int,
    scenario: Scenario,
    contest: Contest,
    perturbation: str,
    severity: int,
    found: Sequence[_Outcome],
    rows: Rows,
    correct: NDArray[np.bool_],
) -> Iterator[Row]:
    """Measures outcomes of one perturbation; `correct` is (N, len(found))."""
    interval = metrics.bootstrap_interval(correct, _BOOTSTRAP_SEED, groups=rows.groups)
    for outcome, low, high in zip(found, interval.low, interval.high, strict=True):
        measured = metrics.finalise(_sums(jnp.asarray(outcome.log_probs), rows.labels))
        measured = measured._replace(
            ci_low=min(float(low), measured.ci_low), ci_high=max(float(high), measured.ci_high)
        )
        method = outcome.method
        has_choice = bool(contest.selected) and method.rule in GRIDS
        yield Row(
            dataset=dataset,
            seed=seed,
            threat_model=scenario.threat_model,
            perturbed=scenario.perturbed,
            perturbation=perturbation,
            severity=severity,
            attack_target=outcome.attack_target,
            method=method.rule,
            **method.parameters._asdict(),
            selected=method in contest.selected if has_choice else None,
            **measured._asdict(),
        )
