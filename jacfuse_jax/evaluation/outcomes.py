"""Predictions of a rule for rows perturbed in several ways, and the worst of them."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jacfuse_jax import fusion
from jacfuse_jax._batching import pad_rows
from jacfuse_jax.certificates import certify_modality
from jacfuse_jax.evaluation.baselines import DropSuspect
from jacfuse_jax.evaluation.evidence import Evidence, Observed
from jacfuse_jax.evaluation.input_checks import InputCheck
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.evaluation.rules import predict
from jacfuse_jax.evaluation.threat_models import DETECT
from jacfuse_jax.fusion import Rule

_predict = jax.jit(predict, static_argnames="believed")
_MOST_ROWS = 4096  # at a time, so that numbers of perturbations share programs
CERTIFIED = (
    *(fusion.Statistical, fusion.Scaled, fusion.Contaminated, fusion.Cascade),
    *(fusion.LearnedCascade, DropSuspect, InputCheck),
)
"""Rules that have a certificate, if only of nothing."""
_certify = jax.jit(certify_modality, static_argnames=("corrupted", "perturbed"))


def predict_all(
    rule: Rule,
    believed: tuple[str, ...],
    observations: Sequence[Observed],
    rows: Rows,
    evidence: Evidence,
) -> NDArray[Any]:
    """Log-probabilities (T, N, K) of a rule for T perturbations of the same rows.

    Args:
      rule: whose predictions.
      believed: modalities that it believes perturbed.
      observations: of the perturbed modalities; those missing in one are taken from the rows.
      rows: clean.
      evidence: what fusion knows.
    """
    whole = [merge(observed, rows) for observed in observations]
    stacked = jax.tree.map(lambda *arrays: np.concatenate(arrays), *whole)
    num_rows = len(whole) * len(rows.labels)
    log_probs = [
        np.asarray(
            _predict(
                rule,
                jax.tree.map(lambda array, at=at: pad_rows(array[at : at + _MOST_ROWS]), stacked),
                evidence=evidence,
                believed=believed,
            )
        )
        for at in range(0, num_rows, _MOST_ROWS)
    ]
    return np.concatenate(log_probs)[:num_rows].reshape(len(whole), len(rows.labels), -1)


def merge(observed: Observed, rows: Rows) -> Observed:
    """What is observed, with what was not perturbed taken from the rows.

    Args:
      observed: of the perturbed modalities.
      rows: clean.
    """
    clean_logits = {
        regime: {modality: output.logits for modality, output in of_regime.items()}
        for regime, of_regime in rows.outputs.items()
    }
    return Observed(
        {regime: {**z, **observed.logits[regime]} for regime, z in clean_logits.items()},
        observed.heads,
        {**rows.grams, **observed.grams},
        {**rows.residuals, **observed.residuals},
    )


def certified_rows(
    rule: Rule,
    believed: tuple[str, ...],
    corrupted: tuple[str, ...],
    rows: Rows,
    evidence: Evidence,
) -> NDArray[np.bool_]:
    """Which rows, (N,), a rule gets right whatever the corrupted modalities say.

    Args:
      rule: nothing is certified of one that `certificates.certify_modality` does not take.
      believed: modalities that it believes perturbed.
      corrupted: modalities.
      rows: clean.
      evidence: what fusion knows.
    """
    if not isinstance(rule, CERTIFIED) or not believed or believed == DETECT:
        return np.zeros(len(rows.labels), bool)
    if isinstance(rule, InputCheck) and not set(believed) <= set(corrupted):
        return np.zeros(len(rows.labels), bool)  # a check of clean inputs is no cascade
    if isinstance(rule, DropSuspect | InputCheck):
        rule = fusion.Cascade(rule.confidence)  # whose certificate covers whatever is left
    certificate = _certify(
        rule,
        {modality: output.logits for modality, output in rows.outputs["standard"].items()},
        evidence.class_prior,
        corrupted=corrupted,
        perturbed=believed,
    )
    return np.asarray(certificate.certified) & (np.asarray(certificate.label) == rows.labels)


def worst_of(candidates: Any, labels: NDArray[Any]) -> NDArray[Any]:
    """Of T predictions for every sample the one that is worst for its label.

    Wrong ones and NaN come before right ones, then the largest margin of a wrong class decides.

    Args:
      candidates: T x (N, K), log-probabilities.
      labels: (N,).

    Returns:
      (N, K).
    """
    stacked = np.asarray(candidates)
    is_label = np.arange(stacked.shape[-1]) == labels[:, None]
    return stacked[lead_of(stacked, ~is_label).argmax(axis=0), np.arange(len(labels))]


def lead_of(log_probs: NDArray[Any], goal: NDArray[np.bool_]) -> NDArray[Any]:
    """By how much the classes of an attacker's goal are ahead of all others, (..., N).

    Positive where the most likely class is one of them: where two are level, argmax decides.
    Infinite for NaN.

    Args:
      log_probs: (..., N, K).
      goal: (N, K), some classes of each row, not all.
    """
    lead = np.where(goal, log_probs, -np.inf).max(axis=-1)
    lead -= np.where(goal, -np.inf, log_probs).max(axis=-1)
    reached = goal[np.arange(len(goal)), log_probs.argmax(axis=-1)]
    lead = np.where(reached & (lead <= 0), np.finfo(lead.dtype).tiny, lead)
    return np.where(np.isnan(log_probs).any(axis=-1), np.inf, lead)


def is_correct(log_probs: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the most likely class of each row is its label, (N,); rows with NaN are wrong.

    Args:
      log_probs: (N, K).
      labels: (N,).
    """
    return (log_probs.argmax(axis=-1) == labels) & ~np.isnan(log_probs).any(axis=-1)
