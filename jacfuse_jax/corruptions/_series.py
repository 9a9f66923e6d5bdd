"""Corruptions of series (B, T, C): T time steps of C channels, such as axes of an accelerometer.

Amounts are in standard deviations of the training inputs, of which every channel has its own.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._arrays import known_array
from jacfuse_jax._checks import check_numbers, check_scalar
from jacfuse_jax._devices import beside, on_each_device
from jacfuse_jax.corruptions._inputs import (
    ValidRange,
    check_batch,
    check_fraction,
    clip,
    fill,
    random_band,
)

_MAX_GAPS = 4


def rotation(
    key: jax.Array,
    x: ArrayLike,
    *,
    angle_degrees: ArrayLike,
    valid_range: ValidRange | None = None,
) -> jax.Array:
    """Rotates, x' = cos(a) x + sin(a) n x x + (1 - cos(a)) (n . x) n, by the angle a about n.

    A sensor that was put on askew. The direction n is uniform on the sphere, one per sample, so all
    time steps and all triples of channels (an accelerometer, a gyroscope) turn alike. Channels must
    be in units that the axes of a triple share: one that was standardised per channel is no vector.

    Args:
      key: PRNG key; the same key gives the same directions n.
      x: (B, T, C), float32 or float64, C = 3, 6, ...: x, y, z of every sensor in turn.
      angle_degrees: a, in [0, 180], traced or not.
      valid_range: (low, high) to clip to, scalars or arrays that broadcast against `x`; None: no
        clipping, so that the length of every vector stays.

    Returns:
      The rotated series, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: x is not a series, C is no multiple of 3, the angle lies outside [0, 180], or
        low <= high fails.
    """
    x = _check_series(x)
    num_samples, num_steps, num_channels = x.shape
    if num_channels % 3:
        raise ValueError(f"rotation needs channels in triples, got {num_channels} of them")
    angle = check_scalar("angle_degrees", angle_degrees, x.dtype, high=180) * (math.pi / 180)
    direction = jax.random.normal(key, (num_samples, 1, 1, 3), x.dtype)
    direction = beside(direction / jnp.linalg.norm(direction, axis=-1, keepdims=True), x)

    def rotate(samples: tuple[jax.Array, jax.Array], angle: jax.Array) -> jax.Array:
        x, n = samples
        v = x.reshape(len(x), num_steps, num_channels // 3, 3)
        along = (v * n).sum(axis=-1, keepdims=True) * n
        # 1 - cos(a) without cancellation
        turned = jnp.cos(angle) * v + jnp.sin(angle) * jnp.cross(n, v)
        return (turned + 2 * jnp.sin(angle / 2) ** 2 * along).reshape(x.shape)

    return clip(on_each_device(rotate, (x, direction), angle), valid_range)


def dead_axis(
    key: jax.Array, x: ArrayLike, *, fraction: ArrayLike, fill_value: ArrayLike = 0.0
) -> jax.Array:
    """Replaces whole channels, floor(fraction C + u) of a sample, u ~ U[0, 1), by a fill value.

    That is fraction C on average, and an integer next to it in every sample; all sets of channels
    of one size are equally likely.

    Args:
      key: PRNG key; the same key removes the same channels, and a larger fraction a superset.
      x: (B, T, C), float32 or float64.
      fraction: share of the channels, in [0, 1], traced or not.
      fill_value: what a dead channel reads, a scalar or an array that broadcasts against `x`.

    Returns:
      The series with channels missing, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: x is not a series, or fraction lies outside [0, 1].
    """
    x = _check_series(x)
    x, fraction = check_fraction(fraction, x)
    num_samples, _, num_channels = x.shape
    key_number, key_order = jax.random.split(key)
    number = _round_randomly(key_number, num_samples, fraction * num_channels)
    order = jax.random.uniform(key_order, (num_samples, num_channels), x.dtype)
    rank = jnp.argsort(jnp.argsort(order, axis=-1), axis=-1)
    return fill(x, (rank.astype(x.dtype) < number)[:, None], fill_value)


def stuck_value(key: jax.Array, x: ArrayLike, *, fraction: ArrayLike) -> jax.Array:
    """Repeats the value of one channel from a random time s on, x'_t = x_min(t, s).

    s is the integer nearest to (1 - u^(1 / fraction - 1)) (T - 1), u ~ U[0, 1): at random, and
    `fraction` of the time after it on average. Which channel of a sample is stuck is uniform.

    Args:
      key: PRNG key; with the same key the same channels are stuck, from earlier on for a larger
        fraction.
      x: (B, T, C), float32 or float64.
      fraction: mean share of the time, in [0, 1], traced or not; 0 changes nothing, 1 repeats the
        first value throughout.

    Returns:
      The series with a channel stuck, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: x is not a series, or fraction lies outside [0, 1].
    """
    x = _check_series(x)
    x, fraction = check_fraction(fraction, x)
    num_samples, num_steps, num_channels = x.shape
    key_time, key_channel = jax.random.split(key)
    share = jax.random.uniform(key_time, (num_samples, 1, 1), x.dtype) ** (1 / fraction - 1)
    start = jnp.round((1 - share) * (num_steps - 1))
    channel = jax.random.randint(key_channel, (num_samples, 1, 1), 0, num_channels)
    is_stuck = channel == jnp.arange(num_channels)[None, None]
    step = jnp.arange(num_steps, dtype=x.dtype)[None, :, None]
    value = jnp.where(beside(step == start, x), x, 0).sum(axis=1, keepdims=True)
    return jnp.where(beside(is_stuck & (step > start), x), value, x)


def saturation(x: ArrayLike, *, limit: ArrayLike, mean: ArrayLike, stddev: ArrayLike) -> jax.Array:
    """Saturates, x' = clip(x, mean - limit stddev, mean + limit stddev), channel by channel.

    Args:
      x: (B, T, C), float32 or float64.
      limit: in standard deviations, not negative, traced or not; 0 leaves the mean alone.
      mean: (C,), of the training inputs.
      stddev: (C,), of the training inputs, not negative.

    Returns:
      The clipped series, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: x is not a series, limit is not a finite scalar >= 0, stddev is negative, or mean
        or stddev is not (C,).
    """
    x = _check_series(x)
    mean = _per_channel("mean", known_array(mean, x.dtype), x)
    reach = check_scalar("limit", limit, x.dtype) * _check_stddev(stddev, x)
    return jnp.clip(x, mean - reach, mean + reach)


def drift(
    key: jax.Array,
    x: ArrayLike,
    *,
    offset: ArrayLike,
    stddev: ArrayLike,
    valid_range: ValidRange | None = None,
) -> jax.Array:
    """Drifts linearly, x'_t = clip(x_t + s (t + 1) / T offset stddev), s = +-1 at random.

    A sensor that warms up: the error grows to its full size at the last step, t = T - 1.

    Args:
      key: PRNG key of the signs, one per sample and channel; the same key gives the same signs.
      x: (B, T, C), float32 or float64.
      offset: at the last step, in standard deviations, not negative, traced or not.
      stddev: (C,), of the training inputs, not negative.
      valid_range: (low, high) to clip to, scalars or arrays that broadcast against `x`; None: no
        clipping.

    Returns:
      The drifting series, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: x is not a series, offset is not a finite scalar >= 0, stddev is negative or not
        (C,), or low <= high fails.
    """
    x = _check_series(x)
    num_samples, num_steps, num_channels = x.shape
    reach = check_scalar("offset", offset, x.dtype) * _check_stddev(stddev, x)
    sign = jax.random.rademacher(key, (num_samples, 1, num_channels), x.dtype)
    ramp = (jnp.arange(num_steps, dtype=x.dtype)[None, :, None] + 1) / num_steps
    return clip(x + beside(sign, x) * (ramp * reach), valid_range)


def dropouts(
    key: jax.Array,
    x: ArrayLike,
    *,
    fraction: ArrayLike,
    fill_value: ArrayLike | None = None,
) -> jax.Array:
    """Loses all channels in gaps, one at a random place in each quarter of the time.

    A gap takes floor(fraction n + u) of the n steps of its quarter, u ~ U[0, 1): the stated share
    on average. Gaps that touch are one. A series of less than four steps has a gap a step.

    Args:
      key: PRNG key; the same key loses the same steps, and a larger fraction a superset.
      x: (B, T, C), float32 or float64.
      fraction: share of the time steps, in [0, 1], traced or not.
      fill_value: what a lost entry reads, a scalar or an array that broadcasts against `x`; None
        holds the last value before the gap, and in a gap at the very start the first one of all.

    Returns:
      The series with gaps, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: x is not a series, or fraction lies outside [0, 1].
    """
    x = _check_series(x)
    x, fraction = check_fraction(fraction, x)
    num_samples, num_steps, _ = x.shape
    num_gaps = min(_MAX_GAPS, num_steps)
    edges = [part * num_steps // num_gaps for part in range(num_gaps + 1)]
    gaps: list[jax.Array] = []
    for part, low, high in zip(jax.random.split(key, num_gaps), edges, edges[1:], strict=False):
        key_width, key_place = jax.random.split(part)
        width = _round_randomly(key_width, num_samples, fraction * (high - low))
        width = jnp.minimum(width, high - low)  # the sum can round up
        gaps.append(random_band(key_place, num_samples, high - low, width))
    is_lost = beside(jnp.concatenate(gaps, axis=1), x)
    if fill_value is not None:
        return fill(x, is_lost[:, :, None], fill_value)

    def hold(samples: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, is_lost = samples
        step = jnp.broadcast_to(jnp.arange(num_steps)[None], is_lost.shape)
        source = jax.lax.cummax(jnp.where(is_lost, 0, step), axis=1)
        return jnp.take_along_axis(x, source[:, :, None], axis=1)

    return on_each_device(hold, (x, is_lost))


def _round_randomly(key: jax.Array, num_samples: int, number: jax.Array) -> jax.Array:
    """Whole numbers (B, 1) next to `number`, and `number` on average."""
    return jnp.floor(number + jax.random.uniform(key, (num_samples, 1), number.dtype))


def _check_series(x: ArrayLike) -> jax.Array:
    """Returns series as an array; raises unless they are floating, (B, T, C), T, C >= 1."""
    array = check_batch(x)
    if array.ndim != 3 or 0 in array.shape[1:]:
        raise ValueError(f"x must have shape (B, T, C) with T, C >= 1, got {array.shape}")
    return array


def _check_stddev(stddev: ArrayLike, x: jax.Array) -> jax.Array:
    """Returns standard deviations (1, 1, C); raises unless they are (C,), finite and >= 0."""
    return _per_channel("stddev", check_numbers("stddev", stddev, x.dtype), x)


def _per_channel(name: str, array: jax.Array, x: jax.Array) -> jax.Array:
    """Returns numbers (C,) as (1, 1, C); raises ValueError on other shapes."""
    if array.shape != x.shape[2:]:
        raise ValueError(
            f"{name} must have shape ({x.shape[2]},), one number a channel, got {array.shape}"
        )
    return array[None, None]
