"""Fusion of contaminated likelihoods: modalities whose influence is bounded, whatever they say."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import (
    AnyArray,
    as_array,
    check_class_prior,
    check_floating,
    check_modalities,
    check_scalar,
)
from jacfuse_jax.fusion.static import check_inputs


def contaminated_log_probs(
    logits: AnyArray, class_prior: AnyArray, *, contamination: ArrayLike
) -> jax.Array:
    """Log-probabilities of a modality that says nothing about a share of its samples.

    log p~ = log((1 - e) softmax(z) + e prior): the posterior if, with probability e, the input is
    replaced by one that does not depend on the class. Whatever z, the log-ratio
    log p~_k - log prior_k lies in [log e, log((1 - e) / prior_k + e)].

    They may take the place of logits in any fusion rule, `robust_fusion` included.

    Args:
      logits: z, (B, K), float32 or float64.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      contamination: e in [0, 1], a scalar, traced or not. 0 gives log softmax(z), 1 the prior.

    Returns:
      (B, K), normalised, in the dtype of the logits.

    Raises:
      TypeError: logits are not float32 or float64.
      ValueError: shapes disagree, a prior is not positive, or e lies outside [0, 1].

    References:
      Huber, "Robust Estimation of a Location Parameter", 1964 (the contamination model).
    """
    array = as_array(logits)
    check_floating("logits", array)
    if array.ndim != 2:
        raise ValueError(f"logits must have shape (B, K), got {array.shape}")
    log_prior = jnp.log(check_class_prior(class_prior, array.shape[1], array.dtype))
    e = check_scalar("contamination", contamination, array.dtype, high=1)
    return _contaminate(array, log_prior, e)


def contaminate_modalities(
    logits: Mapping[str, AnyArray],
    class_prior: AnyArray,
    *,
    contamination: ArrayLike,
    perturbed: str | tuple[str, ...],
) -> dict[str, jax.Array]:
    """The logits, with `contaminated_log_probs` in the place of those of perturbed modalities.

    What `robust_fusion` is given where it recalibrates contaminated likelihoods.

    Args:
      logits: {modality: (B, K)}, float32 or float64, at least one modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      contamination: e in [0, 1], a scalar, traced or not.
      perturbed: name or names of the modalities believed perturbed; static.

    Returns:
      {modality: (B, K)}, in the dtype of the logits.

    Raises:
      TypeError: logits are not float32 or float64.
      ValueError: shapes disagree, a modality is unknown, a prior is not positive, or e lies outside
        [0, 1].
    """
    arrays, log_prior = check_inputs(logits, class_prior)
    names = check_modalities("perturbed", perturbed, arrays)
    e = check_scalar("contamination", contamination, log_prior.dtype, high=1)
    return {
        name: _contaminate(z, log_prior, e) if name in names else z for name, z in arrays.items()
    }


def contaminated_fusion(
    logits: Mapping[str, AnyArray],
    class_prior: AnyArray,
    *,
    contamination: ArrayLike,
    tempering: ArrayLike = 1.0,
    perturbed: str | tuple[str, ...] | None = None,
) -> jax.Array:
    """Statistical fusion of modalities with bounded influence.

        log p = log prior + sum_m t_m (log p~_m - log prior),     normalised over k,
        p~_m = (1 - e_m) softmax(z_m) + e_m prior,

    with e_m = contamination and t_m = tempering for perturbed modalities, e_m = 0 and t_m = 1 for
    the others. A perturbed modality moves the log-odds of two classes by at most
    t (log((1 - e) / min prior + e) - log e), whatever its input: see `contaminated_log_probs`.

    contamination = 0 is scaled fusion, contamination = 1 or tempering = 0 drops the modality.

    Args:
      logits: {modality: (B, K)}, float32 or float64, at least one modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      contamination: e in [0, 1], a scalar, traced or not.
      tempering: t in [0, 1], a scalar, traced or not.
      perturbed: name or names of the modalities believed perturbed; static. None: all of them.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not float32 or float64.
      ValueError: shapes disagree, a modality is unknown, a prior is not positive, or contamination
        or tempering lies outside [0, 1].

    References:
      Derived here, from the contamination model of Huber, "Robust Estimation of a Location
      Parameter", 1964.
    """
    arrays, log_prior = check_inputs(logits, class_prior)
    names = tuple(arrays) if perturbed is None else check_modalities("perturbed", perturbed, arrays)
    e = check_scalar("contamination", contamination, log_prior.dtype, high=1)
    t = check_scalar("tempering", tempering, log_prior.dtype, high=1)
    log_ratios = tempered_log_ratios(arrays, log_prior, names, e, t)
    return jax.nn.log_softmax(sum(log_ratios.values(), start=log_prior))


def tempered_log_ratios(
    logits: Mapping[str, jax.Array],
    log_prior: jax.Array,
    perturbed: tuple[str, ...],
    e: jax.Array,
    t: jax.Array,
) -> dict[str, jax.Array]:
    """t_m (log p~_m - log prior), (B, K), of every modality; see `contaminated_fusion`."""
    return {
        name: t * (_contaminate(z, log_prior, e) - log_prior)
        if name in perturbed
        else jax.nn.log_softmax(z) - log_prior
        for name, z in logits.items()
    }


def _contaminate(z: jax.Array, log_prior: jax.Array, e: jax.Array) -> jax.Array:
    """log((1 - e) softmax(z) + e prior), exact for e = 0 and e = 1."""
    return jnp.logaddexp(jnp.log1p(-e) + jax.nn.log_softmax(z), jnp.log(e) + log_prior)
