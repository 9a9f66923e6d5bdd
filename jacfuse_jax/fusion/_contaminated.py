"""Fusion of contaminated likelihoods: modalities whose influence is bounded, whatever they say."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._arrays import AnyArray, as_array, in_dtype_of
from jacfuse_jax._checks import (
    check_class_prior,
    check_modalities,
    check_scalar,
    in_full_precision,
)
from jacfuse_jax._likelihoods import log_ratio, temper
from jacfuse_jax._presence import Present, check_available
from jacfuse_jax._simplex import says_nothing

_LARGEST = 80.0  # logarithm of a weight that neither dtype overflows at


def contaminated_log_probs(
    logits: AnyArray, class_prior: AnyArray, *, contamination: ArrayLike
) -> jax.Array:
    """Log-probabilities of a modality that says nothing about a share of its samples.

    log p~ = log((1 - e) softmax(z) + e prior): the posterior if, with probability e, the input is
    replaced by one that does not depend on the class. Whatever z, the log-ratio
    log p~_k - log prior_k lies in [log e, log((1 - e) / prior_k + e)].

    They may take the place of logits in any fusion rule, `robust_fusion` included.

    Args:
      logits: z, (B, K), floating.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      contamination: e in [0, 1], a scalar, traced or not. 0 gives log softmax(z), 1 the prior.

    Returns:
      (B, K), normalised, in the dtype of the logits.

    Raises:
      TypeError: logits are not floating.
      ValueError: shapes disagree, a prior is not positive or does not sum to one, or e lies outside
        [0, 1].

    References:
      Huber, "Robust Estimation of a Location Parameter", 1964 (the contamination model).
    """
    array = in_full_precision("logits", as_array(logits))
    if array.ndim != 2:
        raise ValueError(f"logits must have shape (B, K), got {array.shape}")
    log_prior = jnp.log(check_class_prior(class_prior, array.shape[1], array.dtype))
    e = check_scalar("contamination", contamination, array.dtype, high=1)
    return in_dtype_of({"": logits}, _contaminate(array, log_prior, e))


def contaminate_modalities(
    logits: Mapping[str, AnyArray],
    class_prior: AnyArray,
    *,
    contamination: ArrayLike,
    perturbed: str | tuple[str, ...],
    present: Present | None = None,
) -> dict[str, jax.Array]:
    """The logits, with `contaminated_log_probs` in the place of those of perturbed modalities.

    What `robust_fusion` is given where it recalibrates contaminated likelihoods.

    Args:
      logits: {modality: (B, K)}, floating, at least one modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      contamination: e in [0, 1], a scalar, traced or not.
      perturbed: name or names of the modalities believed perturbed; static.
      present: see `statistical_fusion`; what a row lacks reads log prior.

    Returns:
      {modality: (B, K)}, in the dtype of the logits.

    Raises:
      TypeError: logits are not floating, or presence is not bool.
      ValueError: shapes disagree, a modality is unknown, a prior is not positive or does not sum to
        one, or e lies outside [0, 1].
    """
    arrays, log_prior, _ = check_available(logits, class_prior, present)
    names = check_modalities("perturbed", perturbed, arrays)
    e = check_scalar("contamination", contamination, log_prior.dtype, high=1)
    return {
        name: in_dtype_of(logits, _contaminate(z, log_prior, e) if name in names else z)
        for name, z in arrays.items()
    }


def contaminated_fusion(
    logits: Mapping[str, AnyArray],
    class_prior: AnyArray,
    *,
    contamination: ArrayLike,
    tempering: ArrayLike = 1.0,
    perturbed: str | tuple[str, ...] | None = None,
    present: Present | None = None,
) -> jax.Array:
    """Statistical fusion of modalities with bounded influence.

        log p = log prior + sum_m t_m (log p~_m - log prior),     normalised over k,
        p~_m = (1 - e_m) softmax(z_m) + e_m prior,

    with e_m = contamination and t_m = tempering for perturbed modalities, e_m = 0 and t_m = 1 for
    the others. A perturbed modality moves the log-odds of two classes by at most
    t (log((1 - e) / min prior + e) - log e), whatever its input: see `contaminated_log_probs`.

    contamination = 0 is scaled fusion, contamination = 1 or tempering = 0 drops the modality.

    Args:
      logits: {modality: (B, K)}, floating, at least one modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      contamination: e in [0, 1], a scalar, traced or not.
      tempering: t in [0, 1], a scalar, traced or not.
      perturbed: name or names of the modalities believed perturbed; static. None: all of them.
      present: see `statistical_fusion`.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not floating, or presence is not bool.
      ValueError: shapes disagree, a modality is unknown, a prior is not positive or does not sum to
        one, or contamination or tempering lies outside [0, 1].

    References:
      Derived here, from the contamination model of Huber, "Robust Estimation of a Location
      Parameter", 1964.
    """
    arrays, log_prior, _ = check_available(logits, class_prior, present)
    names = tuple(arrays) if perturbed is None else check_modalities("perturbed", perturbed, arrays)
    e = check_scalar("contamination", contamination, log_prior.dtype, high=1)
    t = check_scalar("tempering", tempering, log_prior.dtype, high=1)
    log_ratios = tempered_log_ratios(arrays, log_prior, names, e, t)
    fused = jax.nn.log_softmax(sum(log_ratios.values(), start=log_prior[None]))
    return in_dtype_of(logits, fused)


def tempered_log_ratios(
    logits: Mapping[str, jax.Array],
    log_prior: jax.Array,
    perturbed: tuple[str, ...],
    e: jax.Array,
    t: jax.Array,
) -> dict[str, jax.Array]:
    """t_m (log p~_m - log prior), (B, K), of every modality; see `contaminated_fusion`."""
    return {
        name: temper(_contaminate(z, log_prior, e) - log_prior[None], t)
        if name in perturbed
        else log_ratio(z, log_prior)
        for name, z in logits.items()
    }


def _contaminate(z: jax.Array, log_prior: jax.Array, e: jax.Array) -> jax.Array:
    """log((1 - e) softmax(z) + e prior) of rows (B, K); the prior of a row that says nothing."""
    log_prior = jnp.broadcast_to(log_prior[None], z.shape)
    # A second choice, after the softmax, would cost attacks the smallest gradients in float32.
    log_q = jax.nn.log_softmax(jnp.where(says_nothing(z), log_prior, z))
    return log_mixture(log_q, log_prior, e)


@jax.custom_jvp
def log_mixture(log_q: jax.Array, log_prior: jax.Array, e: jax.Array) -> jax.Array:
    """log((1 - e) q + e prior), exact for e = 0 and e = 1; arrays of one shape, e a scalar."""
    return jnp.logaddexp(jnp.log1p(-e) + log_q, jnp.log(e) + log_prior)


@log_mixture.defjvp
def _(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> Any:
    """By weights of q and prior in the mixture: through log e, e = 0 and 1 would give NaN."""
    log_q, log_prior, e = primals
    log_mixed = log_mixture(log_q, log_prior, e)
    # What q = 0 and e = 0 have no weight in is -inf, and stays so.
    weight_q, weight_prior = (
        jnp.exp(jnp.where(log_mixed == -jnp.inf, -jnp.inf, jnp.minimum(x - log_mixed, _LARGEST)))
        for x in (log_q, log_prior)
    )
    d_q, d_prior, d_e = tangents
    moved = (1 - e) * weight_q * d_q + e * weight_prior * d_prior
    return log_mixed, moved + (weight_prior - weight_q) * d_e
