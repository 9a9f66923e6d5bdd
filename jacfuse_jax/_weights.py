"""Weights of samples: what counts twice counts as two samples do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jacfuse_jax._arrays import AnyArray
from jacfuse_jax._checks import check_numbers


def check_weights(weights: AnyArray | None, num_samples: int, dtype: Any) -> jax.Array | None:
    """Returns weights (N,) in `dtype`, or None; raises unless finite, at least 0, not all 0.

    Traced ones that are not make results NaN.
    """
    if weights is None:
        return None
    array = check_numbers("weights", weights, dtype)
    if array.shape != (num_samples,):
        raise ValueError(
            f"weights must have shape ({num_samples},), one a sample, got {array.shape}"
        )
    if not isinstance(array, Tracer) and not np.asarray(array).any():
        raise ValueError("weights must not all be zero")
    return array


def weighted_mean(x: jax.Array, weights: jax.Array | None) -> jax.Array:
    """sum_n w_n x_n / sum_n w_n, the mean without weights; x (N,) may be NaN where w is zero."""
    if weights is None:
        return x.mean()
    return jnp.where(weights == 0, 0, weights * x).sum() / weights.sum()


def rows_by_weight(weights: jax.Array) -> jax.Array:
    """Ascending indices (N,) of samples, each N w_n / sum w times, rounded up or down."""
    num_samples = len(weights)
    cumulative = jnp.cumsum(weights)
    # Half a step from both ends, so that equal weights give every index once.
    shares = (jnp.arange(num_samples, dtype=weights.dtype) + 0.5) / num_samples
    return jnp.searchsorted(cumulative, shares * cumulative[-1], side="right")
