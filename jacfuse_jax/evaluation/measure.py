"""Measures every threat model, perturbation, severity and rule on one split.

Whatever an attack on one target finds is tried on every rule: a rule's "ensemble" row is its worst
case, sample by sample, over the attacks on all targets. Budgets are nested: what was found with a
smaller one counts for a larger one.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from jacfuse_jax import metrics
from jacfuse_jax.evaluation.evidence import Evidence, Observed
from jacfuse_jax.evaluation.intervals import bootstrap_interval
from jacfuse_jax.evaluation.names import ATTACKS, LINF_ATTACKS
from jacfuse_jax.evaluation.outcomes import (
    CERTIFIED,
    certified_rows,
    is_correct,
    predict_all,
    worst_of,
)
from jacfuse_jax.evaluation.plan import SEVERITIES, Contest, Plan, target_of
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.evaluation.rules import PARAMETERS, EachAlone
from jacfuse_jax.evaluation.steps import StepStore
from jacfuse_jax.evaluation.targets import OWN, Step, Target
from jacfuse_jax.evaluation.threat_models import Scenario
from jacfuse_jax.fusion import Rule

ENSEMBLE = "ensemble"
WORST_ATTACK = "worst_attack"


class Row(NamedTuple):
    """One measurement.

    Attributes:
      threat_model: of `threat_models.THREAT_MODELS`.
      perturbed: the perturbed modality or modalities.
      perturbation: of `PERTURBATIONS`, or "worst_attack", the worst case over the linf attacks.
      attack_target: "unimodal" where the attacker differentiated the perturbed modality's own
        classifier (a transfer attack), the row's rule where it went on to differentiate that,
        "ensemble" for the worst case over all targets, sample by sample; None without an attack.
      rule: what is measured.
      selected: whether validation data chose its parameters; None where nothing was chosen.
      ci_low: lower end of the accuracy's 95% interval, the wider of the bootstrap over groups of
        dependent rows and Wilson's.
      ci_high: upper end.
      macro_accuracy: mean of the accuracies within classes.
      certified: share of the rows that are right whatever the perturbed modalities say, of ensemble
        rows of rules with such a certificate: no attack can leave less.
    """

    dataset: str
    seed: int
    threat_model: str
    perturbed: str
    perturbation: str
    severity: int
    attack_target: str | None
    rule: Rule
    selected: bool | None
    accuracy: float
    ci_low: float
    ci_high: float
    nll: float
    brier: float
    ece: float
    macro_accuracy: float
    num_examples: int
    certified: float | None


Outcomes = dict[tuple[str, str, str, int, Rule], NDArray[np.bool_]]
"""Correct rows (N,) by threat model, perturbed, perturbation, severity, rule: the worst case."""


def flatten(line: Any) -> dict[str, Any]:
    """A line of a table as columns: its rule is "method", its name, and a column a parameter.

    Args:
      line: a named tuple with a field `rule`.

    Returns:
      {column: value}; None for parameters that the rule does not have.
    """
    columns: dict[str, Any] = {}
    for name, value in line._asdict().items():
        if name == "rule":
            columns["method"] = value.name
            columns |= {parameter: value.parameters.get(parameter) for parameter in PARAMETERS}
        else:
            columns[name] = value
    return columns


class _Outcome(NamedTuple):
    """Log-probabilities (N, K) of one rule, to become a row."""

    rule: Rule
    attack_target: str | None
    log_probs: NDArray[Any]
    certified: float | None = None


def evaluate(
    plan: Plan,
    rows: Rows,
    evidence: Evidence,
    store: StepStore,
    *,
    num_attack: int,
    dataset: str,
    seed: int,
) -> tuple[list[Row], Outcomes]:
    """Measures scenario x perturbation x severity x rule.

    Corruptions are of all rows, where they apply to the modalities; attacks of the first
    `num_attack`, against each target of the plan.

    Args:
      plan: what was perturbed.
      rows: clean.
      evidence: what fusion knows.
      store: where `steps.run_steps` kept the plan's steps; each is read once.
      num_attack: rows that are attacked.
      dataset: its name, for the results.
      seed: likewise.

    Returns:
      The rows in a fixed order, and for every worst case which rows were correct.
    """
    results: dict[Scenario, list[Row]] = {scenario: [] for scenario in plan.scenarios}
    outcomes: Outcomes = {}
    worst: dict[tuple[Scenario, int], list[_Outcome]] = {}
    nested: dict[tuple[Scenario, str], list[_Outcome]] = {}
    attacked_rows = rows.first(num_attack)
    certified = {
        (scenario, rule): share
        for scenario in plan.scenarios
        for rule in plan.contests[scenario.believed].of(scenario)
        for share in [_certified(rule, scenario, attacked_rows, evidence)]
    }

    def record(
        scenario: Scenario, perturbation: str, severity: int, found: Sequence[_Outcome], used: Rows
    ) -> None:
        correct = np.stack([is_correct(o.log_probs, used.labels) for o in found], axis=1)
        contest = plan.contests[scenario.believed]
        key = (scenario.threat_model, scenario.perturbed, perturbation, severity)
        results[scenario] += _make_rows((dataset, seed, *key), contest, found, used, correct)
        for outcome, column in zip(found, correct.T, strict=True):
            if outcome.attack_target in (None, ENSEMBLE):
                outcomes[*key, outcome.rule] = column

    conditions = [
        (perturbation, severity)
        for perturbation in plan.perturbations
        for severity in ((0,) if perturbation == "clean" else SEVERITIES)
    ]
    for perturbation, severity in tqdm(conditions, desc="measure", disable=None):
        used = attacked_rows if perturbation in ATTACKS else rows
        observed: dict[Step, Observed] = {}
        for scenario in plan.scenarios:
            targets: list[Target | None] = [None]
            observations = [rows.observed()]
            if perturbation != "clean":
                steps = plan.steps_of(scenario, perturbation, severity)
                observed |= {step: store[step] for step in steps if step not in observed}
                targets = [step.target for step in steps]
                observations = [observed[step] for step in steps]
            found = [
                outcome
                for rule in plan.contests[scenario.believed].of(scenario)
                for outcome in _outcomes(
                    rule, scenario.believed, targets, observations, used, evidence
                )
            ]
            if not found:
                continue
            if perturbation in ATTACKS:
                found = _worse_of(nested.get((scenario, perturbation), []), found, used.labels)
                nested[scenario, perturbation] = found
                found = [
                    o._replace(certified=certified[scenario, o.rule])
                    if o.attack_target == ENSEMBLE
                    else o
                    for o in found
                ]
            record(scenario, perturbation, severity, found, used)
            if perturbation in LINF_ATTACKS:
                ensembles = [o for o in found if o.attack_target == ENSEMBLE]
                before = worst.get((scenario, severity), [])
                worst[scenario, severity] = _worse_of(before, ensembles, used.labels)
    for (scenario, severity), found in sorted(worst.items(), key=lambda item: item[0][1]):
        record(scenario, WORST_ATTACK, severity, found, attacked_rows)
    return [row for of_scenario in results.values() for row in of_scenario], outcomes


def _outcomes(
    rule: Rule,
    believed: tuple[str, ...],
    targets: Sequence[Target | None],
    observations: Sequence[Observed],
    rows: Rows,
    evidence: Evidence,
) -> Iterator[_Outcome]:
    """Predictions of a rule under one perturbation: the worst of each kind of target."""
    if not targets:
        return
    log_probs = predict_all(rule, believed, observations, rows, evidence)
    own = target_of(rule, believed)
    kinds: list[tuple[str | None, list[Target | None]]] = [(None, [None])]
    if targets[0] is not None:
        transferred: list[Target | None] = [
            target for target in targets if target and isinstance(target.rule, EachAlone)
        ]
        kinds = [(OWN.rule.name, transferred), (ENSEMBLE, list(targets))]
        if own in targets:  # the attack on a rule leaves out what these have lost for it
            kinds.insert(1, (rule.name, [*transferred, own]))
    for attack_target, kind in kinds:
        chosen = [index for index, target in enumerate(targets) if target in kind]
        yield _Outcome(rule, attack_target, worst_of(log_probs[chosen], rows.labels))


def _certified(rule: Rule, scenario: Scenario, rows: Rows, evidence: Evidence) -> float | None:
    """The share of rows that a rule gets right whatever a scenario's modalities say."""
    if not isinstance(rule, CERTIFIED):
        return None
    certified = [
        certified_rows(rule, scenario.believed, corrupted, rows, evidence)
        for corrupted in scenario.alternatives
    ]
    return float(np.all(certified, axis=0).mean())


def _worse_of(before: list[_Outcome], new: list[_Outcome], labels: NDArray[Any]) -> list[_Outcome]:
    """Sample by sample the worse of two outcomes of each rule."""
    if not before:
        return new
    return [
        a._replace(log_probs=worst_of([a.log_probs, b.log_probs], labels))
        for a, b in zip(before, new, strict=True)
    ]


@jax.jit
def _sums(log_probs: jax.Array, labels: jax.Array) -> metrics.ClassificationSums:
    return metrics.classification_sums(log_probs, labels)


def _make_rows(
    key: tuple[str, int, str, str, str, int],
    contest: Contest,
    found: Sequence[_Outcome],
    rows: Rows,
    correct: NDArray[np.bool_],
) -> Iterator[Row]:
    """Measures outcomes of one perturbation; `correct` is (N, len(found))."""
    interval = bootstrap_interval(correct, rows.groups)
    for outcome, low, high in zip(found, interval.low, interval.high, strict=True):
        measured = metrics.finalise(_sums(jnp.asarray(outcome.log_probs), rows.labels))
        measured = measured._replace(
            ci_low=min(float(low), measured.ci_low), ci_high=max(float(high), measured.ci_high)
        )
        has_choice = bool(contest.selected) and bool(outcome.rule.searched)
        yield Row(
            *key,
            attack_target=outcome.attack_target,
            rule=outcome.rule,
            selected=outcome.rule in contest.selected if has_choice else None,
            certified=outcome.certified,
            **measured._asdict(),
        )
