"""Corruptions of any input: images, audio, feature vectors."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_scalar
from jacfuse_jax.corruptions._inputs import (
    ValidRange,
    check_batch,
    check_fraction,
    clip,
    fill,
    per_sample_shape,
)


def gaussian_noise(
    key: jax.Array,
    x: ArrayLike,
    *,
    stddev: ArrayLike,
    valid_range: ValidRange | None = None,
) -> jax.Array:
    """Adds independent Gaussian noise, x' = clip(x + stddev n), n ~ N(0, 1).

    Args:
      key: PRNG key; the same key gives the same noise.
      x: (B, ...), float32 or float64.
      stddev: standard deviation in units of the input, not negative, traced or not.
      valid_range: (low, high) to clip to, scalars or arrays that broadcast against `x`; None: no
        clipping.

    Returns:
      The noisy input, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: stddev is not a finite scalar >= 0, or low <= high fails.
    """
    x = check_batch(x)
    stddev = check_scalar("stddev", stddev, x.dtype)
    return clip(x + stddev * jax.random.normal(key, x.shape, x.dtype), valid_range)


def missing(
    key: jax.Array, x: ArrayLike, *, fraction: ArrayLike, fill_value: ArrayLike = 0.0
) -> jax.Array:
    """Replaces entries, each with probability `fraction` and independently, by a fill value.

    Args:
      key: PRNG key; the same key removes the same entries, and a larger fraction a superset.
      x: (B, ...), float32 or float64.
      fraction: in [0, 1], traced or not.
      fill_value: what a missing entry reads, a scalar or an array that broadcasts against `x`.

    Returns:
      The input with entries missing, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: fraction lies outside [0, 1].
    """
    x = check_batch(x)
    x, fraction = check_fraction(fraction, x)
    return fill(x, jax.random.uniform(key, x.shape, x.dtype) < fraction, fill_value)


def bias(
    key: jax.Array,
    x: ArrayLike,
    *,
    offset: ArrayLike,
    valid_range: ValidRange | None = None,
) -> jax.Array:
    """Offsets all entries of a sample alike, x'_b = clip(x_b + s_b offset), s_b = +-1 at random.

    A systematic error of a sensor: it does not average out over the entries of a sample.

    Args:
      key: PRNG key of the signs, one per sample; the same key gives the same signs.
      x: (B, ...), float32 or float64.
      offset: size in units of the input, not negative, traced or not.
      valid_range: (low, high) to clip to, scalars or arrays that broadcast against `x`; None: no
        clipping.

    Returns:
      The input with an offset, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: offset is not a finite scalar >= 0, or low <= high fails.
    """
    x = check_batch(x)
    offset = check_scalar("offset", offset, x.dtype)
    sign = jax.random.rademacher(key, per_sample_shape(x), x.dtype)
    return clip(x + sign * offset, valid_range)


def missing_modality(
    key: jax.Array, x: ArrayLike, *, fraction: ArrayLike, fill_value: ArrayLike = 0.0
) -> jax.Array:
    """Replaces whole samples, each with probability `fraction` and independently, by a fill value.

    Args:
      key: PRNG key; the same key removes the same samples, and a larger fraction a superset.
      x: (B, ...), float32 or float64.
      fraction: in [0, 1], traced or not; 1 removes the modality from every sample.
      fill_value: what a missing entry reads, a scalar or an array that broadcasts against `x`.

    Returns:
      The input with samples missing, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: fraction lies outside [0, 1].
    """
    x = check_batch(x)
    x, fraction = check_fraction(fraction, x)
    return fill(x, jax.random.uniform(key, per_sample_shape(x), x.dtype) < fraction, fill_value)


def mismatched_pair(key: jax.Array, x: ArrayLike, *, fraction: ArrayLike) -> jax.Array:
    """Trades inputs between samples, x'_b = x_pi(b), while labels and other modalities stay.

    pi permutes n samples drawn at random in one cycle, so that each of them gets the input of
    another one, and fixes the rest; n is the integer nearest to fraction B, but 2 in place of 1,
    as one sample alone has nobody to trade with. The batch as a whole keeps its inputs, so that no
    statistic of the modality itself can reveal the corruption.

    The only corruption in which samples meet. Inputs are traded within a batch: apply it to a whole
    split at once, where batches are padded or sorted by class. The other sample may be of the same
    class, so the share of wrong classes is about fraction (1 - 1 / K) for K balanced ones.

    Args:
      key: PRNG key; the same key moves the same samples, and a larger fraction a superset.
      x: (B, ...), float32 or float64, B >= 2.
      fraction: in [0, 1], traced or not.

    Returns:
      The rows of `x` in another order, in its shape and dtype.

    Raises:
      TypeError: not float32 or float64.
      ValueError: fraction lies outside [0, 1], or B < 2.
    """
    x = check_batch(x)
    x, fraction = check_fraction(fraction, x)
    num_samples = x.shape[0]
    if num_samples < 2:
        raise ValueError(f"x must hold at least 2 samples to trade inputs, got {num_samples}")
    num_moved = jnp.round(fraction * num_samples).astype(int)
    num_moved = jnp.where(num_moved == 1, 2, num_moved)
    order = jax.random.permutation(key, num_samples)
    place = jnp.arange(num_samples)
    following = jnp.where(place + 1 < num_moved, place + 1, 0)
    source = jnp.where(place < num_moved, following, place)
    return x[jnp.zeros_like(order).at[order].set(order[source])]
