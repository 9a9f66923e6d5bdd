"""Fixed rules: the same for every sample, whatever its Jacobian."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._arrays import AnyArray, in_dtype_of
from jacfuse_jax._checks import check_inputs, check_logits, check_modalities, check_scalar
from jacfuse_jax._likelihoods import fuse_independent, log_ratio, temper


def mean_fusion(logits: Mapping[str, AnyArray]) -> jax.Array:
    """Averages the probabilities of the modalities, log p = log((1/M) sum_m softmax(z_m)).

    A bounded rule: one modality moves a probability by 1/M at most. Underconfident when modalities
    agree.

    Args:
      logits: {modality: (B, K)}, floating, at least one modality.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not floating.
      ValueError: shapes disagree.
    """
    log_probs = jnp.stack([jax.nn.log_softmax(z) for z in check_logits(logits).values()])
    return in_dtype_of(logits, jax.nn.logsumexp(log_probs, axis=0) - math.log(len(log_probs)))


def max_fusion(logits: Mapping[str, AnyArray]) -> jax.Array:
    """Takes the largest probability of any modality, p ~ max_m softmax(z_m), normalised.

    The most confident modality decides: a saturated wrong one cannot be outvoted.

    Args:
      logits: {modality: (B, K)}, floating, at least one modality.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not floating.
      ValueError: shapes disagree.

    References:
      Kittler, Hatef, Duin, Matas, "On Combining Classifiers", 1998.
    """
    log_probs = jnp.stack([jax.nn.log_softmax(z) for z in check_logits(logits).values()])
    return in_dtype_of(logits, jax.nn.log_softmax(log_probs.max(axis=0)))


def product_fusion(logits: Mapping[str, AnyArray]) -> jax.Array:
    """Multiplies probabilities without regard to the prior, p ~ prod_m softmax(z_m), normalised.

    `statistical_fusion` for a uniform prior; for others it counts the prior M times.

    Args:
      logits: {modality: (B, K)}, floating, at least one modality.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not floating.
      ValueError: shapes disagree.

    References:
      Kittler, Hatef, Duin, Matas, "On Combining Classifiers", 1998.
    """
    arrays = check_logits(logits)
    first = next(iter(arrays.values()))
    return in_dtype_of(logits, fuse_independent(arrays, jnp.zeros(first.shape[-1], first.dtype)))


def statistical_fusion(logits: Mapping[str, AnyArray], class_prior: AnyArray) -> jax.Array:
    """Fuses modalities that are independent given the class.

    log p(k) = sum_m log softmax(z_m)_k - (M - 1) log prior_k, normalised over k. Overconfident when
    modalities share information.

    Args:
      logits: {modality: (B, K)}, floating, at least one modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not floating.
      ValueError: shapes disagree, or a prior is not positive or does not sum to one.
    """
    return in_dtype_of(logits, fuse_independent(*check_inputs(logits, class_prior)))


def scaled_fusion(
    logits: Mapping[str, AnyArray],
    class_prior: AnyArray,
    *,
    perturbed: str | tuple[str, ...],
    scale: ArrayLike,
) -> jax.Array:
    """Statistical fusion with the perturbed modalities' likelihood ratios raised to a power.

    log p(k) = log prior_k + sum_m t_m (log softmax(z_m)_k - log prior_k), normalised over k, where
    t_m = scale for perturbed modalities and 1 for the others. scale = 1 is statistical fusion,
    scale = 0 drops the modality. The influence of a perturbed modality shrinks but stays unbounded.

    Args:
      logits: {modality: (B, K)}, floating, at least one modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      perturbed: name or names of the modalities believed perturbed; static.
      scale: in [0, 1], a scalar, traced or not.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not floating.
      ValueError: shapes disagree, a modality is unknown, a prior is not positive or does not sum to
        one, or the scale lies outside [0, 1].
    """
    arrays, log_prior = check_inputs(logits, class_prior)
    names = check_modalities("perturbed", perturbed, arrays)
    scale = check_scalar("scale", scale, log_prior.dtype, high=1)
    log_ratios = {name: log_ratio(z, log_prior) for name, z in arrays.items()}
    tempered = (temper(r, scale) if name in names else r for name, r in log_ratios.items())
    return in_dtype_of(logits, jax.nn.log_softmax(sum(tempered, start=log_prior[None])))
