"""What fusion is told: of the classifiers by labelled data, of samples by the classifiers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jacfuse_jax import calibration, detection, fusion
from jacfuse_jax.linalg import GramSpectrum, spectrum_from_kernel


class Evidence(NamedTuple):
    """What fusion knows of the classifiers beside what they say of a sample.

    Attributes:
      grams: {modality: spectrum of the Gram matrix of its last linear layer}.
      class_prior: (K,), class frequencies of the training labels.
      temperatures: {modality: temperature fitted on validation data}.
      mean_squared_jacobian: (K, K), mean of J^2 over validation data, with J = diag(p) - p p^T at
        the statistical fusion p.
      detector: {modality: what its logits are compared with}.
      error_rates: {modality: share of the validation rows whose label is not its likeliest class}.
    """

    grams: dict[str, GramSpectrum]
    class_prior: jax.Array
    temperatures: dict[str, jax.Array]
    mean_squared_jacobian: jax.Array
    detector: dict[str, detection.Reference]
    error_rates: dict[str, jax.Array]


class Observed(NamedTuple):
    """What classifiers say of a batch.

    Attributes:
      logits: {regime of training: {modality: (B, K)}}, "standard" among the regimes.
      heads: {trained head: log-probabilities (B, K)}.
      grams: {modality: (B, K, K)}, of the Jacobians of the standard logits in the input; empty
        where the last linear layer's serve all samples.
      residuals: {modality: (B,)}, distances of inputs from what clean ones lie close to, see
        `subspaces.residual`; empty where no rule checks them.
    """

    logits: dict[str, dict[str, Any]]
    heads: dict[str, Any]
    grams: dict[str, Any]
    residuals: dict[str, Any]


def fit_evidence(
    kernels: Mapping[str, Any], logits: Mapping[str, Any], labels: Any, class_prior: jax.Array
) -> Evidence:
    """Fits what fusion knows of classifiers to rows that they were not trained on.

    Args:
      kernels: {modality: (H, K)}, of the last linear layers.
      logits: {modality: (N, K)}, of clean rows.
      labels: (N,).
      class_prior: (K,).

    Returns:
      The evidence.
    """
    probs = jnp.exp(fusion.statistical_fusion(logits, class_prior))
    return Evidence(
        {name: spectrum_from_kernel(kernel) for name, kernel in kernels.items()},
        class_prior,
        {name: calibration.fit_temperature(z, labels) for name, z in logits.items()},
        _mean_squared_jacobian(probs),
        jax.jit(detection.fit_detector)(logits, labels, class_prior),
        {name: _error_rate(z, labels) for name, z in logits.items()},
    )


def _error_rate(logits: Any, labels: Any) -> jax.Array:
    """The share of rows that are classified wrongly, in the dtype of the logits."""
    is_wrong = np.asarray(logits).argmax(axis=-1) != np.asarray(labels)
    return jnp.asarray(is_wrong.mean(), jnp.asarray(logits).dtype)


def _mean_squared_jacobian(probs: jax.Array) -> jax.Array:
    """mean_b J_b^2, (K, K), of J = diag(p) - p p^T, without a K x K matrix for every row."""
    p = np.asarray(probs, np.float64)  # as terms cancel
    q = p**2
    crossed = q.T @ p
    inner = (q.sum(axis=1, keepdims=True) * p).T @ p  # p^T p times p p^T
    mean = np.diag(q.mean(axis=0)) + (inner - crossed - crossed.T) / len(p)
    return jnp.asarray(mean, probs.dtype)
