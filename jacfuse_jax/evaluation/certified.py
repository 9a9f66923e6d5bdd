"""Accuracy that is certified against any corruption of one modality."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jacfuse_jax import certificates
from jacfuse_jax.evaluation import selection
from jacfuse_jax.evaluation.intervals import bootstrap_interval
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.fusion import Cascade, Contaminated, Statistical

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


class _Outcome(NamedTuple):
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
    max_clean_loss: float,
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
      max_clean_loss: accuracy on validation rows that chosen parameters may lose against
        statistical fusion.

    Returns:
      A row for every rule.
    """
    rules: list[CertifiedRule] = [
        Statistical(),
        *(Contaminated(e) for e in contaminations),
        *(Cascade(c) for c in confidences),
    ]
    measure_fn = partial(_measure, class_prior=class_prior, corrupted=corrupted)
    selected = _select({rule: measure_fn(rule, validation) for rule in rules}, max_clean_loss)
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


def _measure(
    rule: CertifiedRule, rows: Rows, *, class_prior: jax.Array, corrupted: str
) -> _Outcome:
    logits = {m: jnp.asarray(o.logits) for m, o in rows.outputs["standard"].items()}
    found = _certify(rule, logits, class_prior, corrupted=corrupted, perturbed=corrupted)
    is_correct = np.asarray(found.label) == rows.labels
    return _Outcome(is_correct, is_correct & np.asarray(found.certified))


_certify = jax.jit(certificates.certify_modality, static_argnames=("corrupted", "perturbed"))


def _select(
    outcomes: Mapping[CertifiedRule, _Outcome], max_clean_loss: float
) -> set[CertifiedRule]:
    """Of every kind, the rule that certifies most of those that are accurate enough."""
    clean = {rule: outcome.clean.mean() for rule, outcome in outcomes.items()}
    certified = {rule: outcome.certified.mean() for rule, outcome in outcomes.items()}
    least = clean[Statistical()] - max_clean_loss - selection.ROUNDING
    return {
        selection.choose([rule for rule in outcomes if rule.kind == kind], clean, certified, least)
        for kind in dict.fromkeys(rule.kind for rule in outcomes)
    }
