"""Accuracy that is certified against any corruption of one modality."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jacfuse_jax import certificates
from jacfuse_jax.evaluation.intervals import bootstrap_interval
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.fusion import Cascade, Contaminated, Statistical
from jacfuse_jax.selection import BASELINES
from jacfuse_jax.selection._choose import choose_index

CertifiedRule = Statistical | Contaminated | Cascade


class Row(NamedTuple):
    """One line of certified.csv.

    Attributes:
      corrupted: the modality that may say anything.
      method: "statistical", "contaminated" or "cascade".
      contamination: of contaminated fusion.
      confidence: of cascades.
      selected: whether validation data chose it.
      clean: accuracy on clean test rows, with its 95% bootstrap interval over groups.
      certified: share of test rows that are right whatever the modality says, likewise.
    """

    dataset: str
    seed: int
    corrupted: str
    method: str
    contamination: float | None
    confidence: float | None
    selected: bool
    clean: float
    clean_low: float
    clean_high: float
    certified: float
    certified_low: float
    certified_high: float
    num_examples: int


class Outcome(NamedTuple):
    """Rows that are right, and right and certified; (N,) each."""

    clean: NDArray[np.bool_]
    certified: NDArray[np.bool_]


def measure(
    dataset: str,
    seed: int,
    corrupted: str,
    *,
    validation: Rows,
    test: Rows,
    class_prior: jax.Array,
    contaminations: Sequence[float],
    confidences: Sequence[float],
    share: float,
) -> list[Row]:
    """Certifies statistical fusion, contaminated fusion and cascades.

    Args:
      dataset: its name, for the rows.
      seed: likewise.
      corrupted: the modality that may say anything, which the rules believe perturbed.
      validation: clean; parameters are chosen by it.
      test: clean.
      class_prior: (K,).
      contaminations: of contaminated fusion.
      confidences: of cascades.
      share: of inputs whose modality says anything; parameters of every rule are chosen by
        (1 - share) clean + share certified, as `jacfuse_jax.selection.choose` does.

    Returns:
      A row for every rule.
    """
    rules: list[CertifiedRule] = [
        Statistical(),
        *(Contaminated(e) for e in contaminations),
        *(Cascade(c) for c in confidences),
    ]
    measure_fn = partial(_measure, class_prior=class_prior, corrupted=corrupted)
    outcomes = {rule: measure_fn(rule, validation) for rule in dict.fromkeys((*rules, *BASELINES))}
    selected = {
        choose([rule for rule in rules if rule.kind == kind], outcomes, share, validation.groups)
        for kind in dict.fromkeys(rule.kind for rule in rules)
    }
    rows: list[Row] = []
    for rule in rules:
        outcome = measure_fn(rule, test)
        clean, certified = (bootstrap_interval(values, test.groups) for values in outcome)
        rows.append(
            Row(
                dataset,
                seed,
                corrupted,
                rule.kind,
                rule.parameters.get("contamination"),
                rule.parameters.get("confidence"),
                rule in selected,
                *(float(clean.mean), float(clean.low), float(clean.high)),
                *(float(certified.mean), float(certified.low), float(certified.high)),
                len(test.labels),
            )
        )
    return rows


def _measure(rule: CertifiedRule, rows: Rows, *, class_prior: jax.Array, corrupted: str) -> Outcome:
    logits = {m: jnp.asarray(o.logits) for m, o in rows.outputs["standard"].items()}
    found = _certify(rule, logits, class_prior, corrupted=corrupted, perturbed=corrupted)
    is_correct = np.asarray(found.label) == rows.labels
    return Outcome(is_correct, is_correct & np.asarray(found.certified))


_certify = jax.jit(certificates.certify_modality, static_argnames=("corrupted", "perturbed"))


def choose(
    rules: Sequence[CertifiedRule],
    outcomes: Mapping[CertifiedRule, Outcome],
    share: float,
    groups: NDArray[Any],
) -> CertifiedRule:
    """The rule of some that is worth most, see `jacfuse_jax.selection.choose`.

    Args:
      rules: at least one, simple ones first.
      outcomes: of these and of `selection.BASELINES`.
      share: of inputs whose modality says anything.
      groups: see `intervals.bootstrap_interval`.
    """

    def values(rule: CertifiedRule) -> NDArray[np.float64]:
        return (1 - share) * outcomes[rule].clean + share * outcomes[rule].certified

    of_rules = np.stack([values(rule) for rule in rules], axis=1)
    expected = of_rules.mean(axis=0)
    lead = bootstrap_interval(of_rules[:, [int(expected.argmax())]] - of_rules, groups)
    clean = np.array([outcomes[rule].clean.mean() for rule in rules])
    least = max(float(values(rule).mean()) for rule in BASELINES)
    return rules[choose_index(np.asarray(lead.low), expected, clean, least)]
