"""Corruptions of images (B, H, W, C) and of videos (B, T, H, W, C)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_scalar, check_valid_range
from jacfuse_jax._devices import beside, on_each_device
from jacfuse_jax.corruptions._inputs import (
    ValidRange,
    check_batch,
    check_fraction,
    clip,
    fill,
    random_band,
)

# Above it the noise is below 1e-3 of the range, and counts come close to what float32, in which
# JAX draws them, can tell apart.
_MAX_PHOTONS = 1e6


def shot_noise(
    key: jax.Array, x: ArrayLike, *, photons: ArrayLike, valid_range: ValidRange
) -> jax.Array:
    """Counts photons, u' = min(Poisson(photons u) / photons, 1), u = (x - low) / (high - low).

    Few photons make bright pixels noisy and leave black ones black. Mean u and variance u / photons
    but for the cut at 1, which darkens the brightest pixels. Entries outside the valid range are
    clipped to it first; NaN stays NaN.

    Args:
      key: PRNG key of JAX's default kind (threefry); the same key gives the same noise.
      x: (B, H, W, C) or (B, T, H, W, C), float32 or float64.
      photons: expected count of an entry that reads `high`, in (0, 1e6], traced or not.
      valid_range: (low, high), scalars or arrays that broadcast against `x`.

    Returns:
      low + (high - low) u', in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: x is neither images nor videos, photons lies outside its interval, or low <= high
        fails.
    """
    x = _check_images(x)
    photons = check_scalar("photons", photons, x.dtype, high=_MAX_PHOTONS, positive=True)
    low, high = check_valid_range("valid_range", valid_range, x)
    span = high - low
    share = jnp.clip((x - low) / jnp.where(span > 0, span, 1), 0, 1)
    # One key a sample: JAX redraws counts that it has accepted for as long as others of the same
    # draw are rejected, so samples drawn together would depend on each other.
    keys = jax.random.split(key, x.shape[0])
    kind = jax.random.key_impl(key)

    def draw(samples: tuple[jax.Array, jax.Array]) -> jax.Array:
        keys, mean = samples
        counts = jax.vmap(jax.random.poisson)(jax.random.wrap_key_data(keys, impl=kind), mean)
        return counts.astype(mean.dtype)

    counts = on_each_device(draw, (jax.random.key_data(keys), photons * share))
    noisy = jnp.minimum(low + span * (counts / photons), high)
    return jnp.where(jnp.isnan(x), x, noisy)


def impulse_noise(
    key: jax.Array, x: ArrayLike, *, fraction: ArrayLike, valid_range: ValidRange
) -> jax.Array:
    """Sets entries to an end of the valid range: low and high with probability fraction / 2 each.

    Args:
      key: PRNG key; the same key hits the same entries, and a larger fraction a superset.
      x: (B, H, W, C) or (B, T, H, W, C), float32 or float64; channels are hit independently.
      fraction: in [0, 1], traced or not.
      valid_range: (low, high), scalars or arrays that broadcast against `x`.

    Returns:
      The image with salt and pepper, in the shape and dtype of `x`; other entries as they were.

    Raises:
      TypeError: not float32 or float64.
      ValueError: x is neither images nor videos, fraction lies outside [0, 1], or low <= high
        fails.
    """
    x = _check_images(x)
    x, fraction = check_fraction(fraction, x)
    low, high = check_valid_range("valid_range", valid_range, x)
    u = beside(jax.random.uniform(key, x.shape, x.dtype), x)
    return jnp.where(u < fraction / 2, low, jnp.where(u >= 1 - fraction / 2, high, x))


def gaussian_blur(x: ArrayLike, *, stddev: ArrayLike, radius: int = 12) -> jax.Array:
    """Convolves rows and columns with w_i ~ exp(-i^2 / (2 stddev^2)), |i| <= radius, sum_i w_i = 1.

    Borders are mirrored about the outer edge of the last pixel (d c b a | a b c d). The kernel is
    cut at the radius, whatever the stddev: one above radius / 4 loses more than 1e-4 of its weight
    there and blurs less than it says. An average of neighbours, so it leaves the range of the image
    by rounding at most.

    Args:
      x: (B, H, W, C) or (B, T, H, W, C), float32 or float64; channels are blurred separately.
      stddev: in pixels, not negative, traced or not; 0 changes nothing.
      radius: of the kernel in pixels, at least 1; static. The default serves a stddev up to 3.

    Returns:
      The blurred image, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: x is neither images nor videos, stddev is not a finite scalar >= 0, or radius < 1.
    """
    x = _check_images(x)
    stddev = check_scalar("stddev", stddev, x.dtype)
    if radius < 1:
        raise ValueError(f"radius must be at least 1, got {radius}")
    i = jnp.arange(-radius, radius + 1, dtype=x.dtype)
    weights = jnp.exp(-(i**2) / jnp.maximum(2 * stddev**2, jnp.finfo(x.dtype).tiny))
    weights = weights / weights.sum()

    def blur(x: jax.Array, weights: jax.Array) -> jax.Array:
        return _convolve(_convolve(x, weights, axis=-3), weights, axis=-2)

    return on_each_device(blur, x, weights)


def occlusion(
    key: jax.Array, x: ArrayLike, *, fraction: ArrayLike, fill_value: ArrayLike = 0.0
) -> jax.Array:
    """Covers one square per sample, inside the image and uniformly placed, in all channels.

    Its side is the integer nearest to sqrt(fraction H W), but at most min(H, W): a square cannot
    cover more of an oblong image. All frames of a video are covered in the same place.

    Args:
      key: PRNG key; the same key covers the same pixels, and a larger fraction a superset.
      x: (B, H, W, C) or (B, T, H, W, C), float32 or float64.
      fraction: share of the area, in [0, 1], traced or not.
      fill_value: what a covered entry reads, a scalar or an array that broadcasts against `x`.

    Returns:
      The image with a square missing, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: x is neither images nor videos, or fraction lies outside [0, 1].

    References:
      DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.
    """
    x = _check_images(x)
    x, fraction = check_fraction(fraction, x)
    num_samples, *_, height, width, _ = x.shape
    side = jnp.minimum(jnp.round(jnp.sqrt(fraction * (height * width))), min(height, width))
    key_rows, key_columns = jax.random.split(key)
    rows = random_band(key_rows, num_samples, height, side)
    columns = random_band(key_columns, num_samples, width, side)
    covered = rows[:, :, None, None] & columns[:, None, :, None]
    return fill(x, covered if x.ndim == 4 else covered[:, None], fill_value)


def contrast(x: ArrayLike, *, factor: ArrayLike) -> jax.Array:
    """Lowers the contrast, x' = m + factor (x - m), with m the mean over the entries of a sample.

    An average of x and m, so it leaves the range of the image by rounding at most.

    Args:
      x: (B, H, W, C) or (B, T, H, W, C), float32 or float64.
      factor: share of the contrast that is kept, in [0, 1], traced or not.

    Returns:
      The flatter image, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: x is neither images nor videos, or factor lies outside [0, 1].
    """
    x = _check_images(x)
    factor = check_scalar("factor", factor, x.dtype, high=1)
    mean = x.mean(axis=tuple(range(1, x.ndim)), keepdims=True)
    return mean + factor * (x - mean)


def brightness(x: ArrayLike, *, offset: ArrayLike, valid_range: ValidRange) -> jax.Array:
    """Brightens, x' = clip(x + offset); see `bias` for an offset of random sign.

    Args:
      x: (B, H, W, C) or (B, T, H, W, C), float32 or float64.
      offset: in units of the input, not negative, traced or not.
      valid_range: (low, high) to clip to, scalars or arrays that broadcast against `x`.

    Returns:
      The brighter image, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: x is neither images nor videos, offset is not a finite scalar >= 0, or low <= high
        fails.
    """
    x = _check_images(x)
    return clip(x + check_scalar("offset", offset, x.dtype), valid_range)


def _check_images(x: ArrayLike) -> jax.Array:
    """Returns images or videos as an array; raises unless they are floating, of 4 or 5 axes."""
    array = check_batch(x)
    if array.ndim not in (4, 5):
        raise ValueError(f"x must have shape (B, H, W, C) or (B, T, H, W, C), got {array.shape}")
    return array


def _convolve(x: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """Correlates along one axis with 2 r + 1 symmetric weights, borders mirrored."""
    radius = weights.shape[0] // 2
    lines = jnp.moveaxis(x, axis, -1)
    padded = jnp.pad(lines, [(0, 0)] * (x.ndim - 1) + [(radius, radius)], mode="symmetric")
    blurred = jax.lax.conv_general_dilated(
        padded.reshape(-1, 1, padded.shape[-1]),
        weights[None, None],
        window_strides=(1,),
        padding="VALID",
        precision=jax.lax.Precision.HIGHEST,
    )
    return jnp.moveaxis(blurred.reshape(lines.shape), -1, axis)
