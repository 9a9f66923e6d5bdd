"""Fixed rules: the same for every sample, whatever its Jacobian."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._arrays import AnyArray, in_dtype_of
from jacfuse_jax._checks import check_modalities, check_scalar
from jacfuse_jax._likelihoods import fuse_independent, log_ratio, temper
from jacfuse_jax._presence import Present, check_available, stack_log_probs


def mean_fusion(
    logits: Mapping[str, AnyArray],
    class_prior: AnyArray | None = None,
    *,
    present: Present | None = None,
) -> jax.Array:
    """Averages the probabilities of the modalities, log p = log((1/M) sum_m softmax(z_m)).

    A bounded rule: one modality moves a probability by 1/M at most. Underconfident when modalities
    agree.

    Args:
      logits: {modality: (B, K)}, floating, at least one modality.
      class_prior: (K,), what rows without any modality give; needed with `present`.
      present: {modality: (B,), bool}, which rows have it; those not named are in all rows. What a
        row lacks is not looked at.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not floating, or presence is not bool.
      ValueError: shapes disagree, `present` names an unknown modality or comes without a prior.
    """
    log_probs, counts, _ = stack_log_probs(logits, class_prior, present)
    log_sum = jax.nn.logsumexp(jnp.where(counts, log_probs, -jnp.inf), axis=0)
    return in_dtype_of(logits, log_sum - jnp.log(counts.sum(axis=0).astype(log_sum.dtype)))


def max_fusion(
    logits: Mapping[str, AnyArray],
    class_prior: AnyArray | None = None,
    *,
    present: Present | None = None,
) -> jax.Array:
    """Takes the largest probability of any modality, p ~ max_m softmax(z_m), normalised.

    The most confident modality decides: a saturated wrong one cannot be outvoted.

    Args:
      logits: {modality: (B, K)}, floating, at least one modality.
      class_prior: (K,), what rows without any modality give; needed with `present`.
      present: {modality: (B,), bool}, which rows have it; those not named are in all rows. What a
        row lacks is not looked at.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not floating, or presence is not bool.
      ValueError: shapes disagree, `present` names an unknown modality or comes without a prior.

    References:
      Kittler, Hatef, Duin, Matas, "On Combining Classifiers", 1998.
    """
    log_probs, counts, _ = stack_log_probs(logits, class_prior, present)
    largest = jnp.where(counts, log_probs, -jnp.inf).max(axis=0)
    return in_dtype_of(logits, jax.nn.log_softmax(largest))


def product_fusion(
    logits: Mapping[str, AnyArray],
    class_prior: AnyArray | None = None,
    *,
    present: Present | None = None,
) -> jax.Array:
    """Multiplies probabilities without regard to the prior, p ~ prod_m softmax(z_m), normalised.

    `statistical_fusion` for a uniform prior; for others it counts the prior M times.

    Args:
      logits: {modality: (B, K)}, floating, at least one modality.
      class_prior: (K,), what rows without any modality give; needed with `present`.
      present: {modality: (B,), bool}, which rows have it; those not named are in all rows. What a
        row lacks is not looked at.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not floating, or presence is not bool.
      ValueError: shapes disagree, `present` names an unknown modality or comes without a prior.

    References:
      Kittler, Hatef, Duin, Matas, "On Combining Classifiers", 1998.
    """
    log_probs, counts, _ = stack_log_probs(logits, class_prior, present)
    return in_dtype_of(logits, jax.nn.log_softmax(jnp.where(counts, log_probs, 0).sum(axis=0)))


def statistical_fusion(
    logits: Mapping[str, AnyArray],
    class_prior: AnyArray,
    *,
    present: Present | None = None,
) -> jax.Array:
    """Fuses modalities that are independent given the class.

    log p(k) = sum_m log softmax(z_m)_k - (M - 1) log prior_k, normalised over k. Overconfident when
    modalities share information.

    Args:
      logits: {modality: (B, K)}, floating, at least one modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels. Rows
        without any modality give it back.
      present: {modality: (B,), bool}, which rows have it; those not named are in all rows. What a
        row lacks is not looked at.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not floating, or presence is not bool.
      ValueError: shapes disagree, `present` names an unknown modality, or a prior is not positive
        or does not sum to one.
    """
    arrays, log_prior, _ = check_available(logits, class_prior, present)
    return in_dtype_of(logits, fuse_independent(arrays, log_prior))


def scaled_fusion(
    logits: Mapping[str, AnyArray],
    class_prior: AnyArray,
    *,
    perturbed: str | tuple[str, ...],
    scale: ArrayLike,
    present: Present | None = None,
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
      present: {modality: (B,), bool}, which rows have it; those not named are in all rows. What a
        row lacks is not looked at.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not floating, or presence is not bool.
      ValueError: shapes disagree, a modality is unknown, a prior is not positive or does not sum to
        one, or the scale lies outside [0, 1].
    """
    arrays, log_prior, _ = check_available(logits, class_prior, present)
    names = check_modalities("perturbed", perturbed, arrays)
    scale = check_scalar("scale", scale, log_prior.dtype, high=1)
    log_ratios = {name: log_ratio(z, log_prior) for name, z in arrays.items()}
    tempered = (temper(r, scale) if name in names else r for name, r in log_ratios.items())
    return in_dtype_of(logits, jax.nn.log_softmax(sum(tempered, start=log_prior[None])))
