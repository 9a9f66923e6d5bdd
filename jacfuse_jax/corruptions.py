"""Random corruptions of inputs, of five graded severities each."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_floating, check_scalar

# The parameter of each corruption at severities 1 to 5.
GAUSSIAN_NOISE_STDDEV = (0.1, 0.2, 0.4, 0.6, 0.8)
MISSING_FRACTION = (0.1, 0.3, 0.5, 0.7, 0.9)


def gaussian_noise(
    key: jax.Array,
    x: ArrayLike,
    *,
    stddev: ArrayLike,
    valid_range: tuple[ArrayLike, ArrayLike] | None = None,
) -> jax.Array:
    """Adds independent Gaussian noise, x' = clip(x + stddev n), n ~ N(0, 1).

    Args:
      key: PRNG key; the same key gives the same noise.
      x: (B, ...), float32 or float64.
      stddev: standard deviation in units of the input, not negative, traced or not;
        `GAUSSIAN_NOISE_STDDEV` lists five severities for inputs of range about one.
      valid_range: (low, high) to clip to, scalars or arrays; None: no clipping.

    Returns:
      The noisy input, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: stddev is not a finite scalar >= 0.
    """
    x = jnp.asarray(x)
    check_floating("x", x)
    stddev = check_scalar("stddev", stddev, x.dtype)
    noisy = x + stddev * jax.random.normal(key, x.shape, x.dtype)
    if valid_range is None:
        return noisy
    low, high = (jnp.asarray(bound, x.dtype) for bound in valid_range)
    return jnp.clip(noisy, low, high)


def missing(
    key: jax.Array, x: ArrayLike, *, fraction: ArrayLike, fill_value: ArrayLike = 0.0
) -> jax.Array:
    """Replaces entries, each with probability `fraction` and independently, by a fill value.

    Args:
      key: PRNG key; the same key removes the same entries, and a larger fraction a superset.
      x: (B, ...), float32 or float64.
      fraction: in [0, 1], traced or not; `MISSING_FRACTION` lists five severities.
      fill_value: what a missing entry reads, a scalar or an array that broadcasts against `x`.

    Returns:
      The input with entries missing, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: fraction lies outside [0, 1].
    """
    x = jnp.asarray(x)
    check_floating("x", x)
    fraction = check_scalar("fraction", fraction, x.dtype, high=1)
    is_missing = jax.random.uniform(key, x.shape, x.dtype) < fraction
    return jnp.where(is_missing, jnp.asarray(fill_value, x.dtype), x)
