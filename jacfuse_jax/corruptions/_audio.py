"""Corruptions of raw audio (B, T) and of spectrograms (B, T, F, C).

Where an axis matters it is an argument: AV-MNIST, for one, has its spectrograms as (B, F, T, C).
Ratios in dB are of the entries as they are. In a log-spectrogram, whose entries are levels already,
a louder recording is an offset: see `bias`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from jacfuse_jax._devices import beside, on_each_device
from jacfuse_jax.corruptions._inputs import (
    ValidRange,
    check_batch,
    check_fraction,
    clip,
    fill,
    random_band,
)


def white_noise(
    key: jax.Array,
    x: ArrayLike,
    *,
    snr_db: ArrayLike,
    valid_range: ValidRange | None = None,
) -> jax.Array:
    """Adds Gaussian noise of power P(n) = P(x) / 10^(snr_db / 10), P the mean square of a sample.

    The noise of every sample is scaled to that very power, so its measured signal-to-noise ratio is
    the stated one, before clipping. The mean counts as signal. A silent sample stays silent.

    Args:
      key: PRNG key; the same key gives the same noise, up to its power.
      x: (B, ...), float32 or float64: raw audio or spectrograms.
      snr_db: signal-to-noise ratio in dB, finite, of either sign, traced or not.
      valid_range: (low, high) to clip to, scalars or arrays that broadcast against `x`; None: no
        clipping.

    Returns:
      The noisy input, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: snr_db is not a finite scalar, or low <= high fails.
    """
    x = check_batch(x)
    return clip(_add_noise(x, jax.random.normal(key, x.shape, x.dtype), snr_db), valid_range)


def pink_noise(
    key: jax.Array,
    x: ArrayLike,
    *,
    snr_db: ArrayLike,
    axis: int = 1,
    valid_range: ValidRange | None = None,
) -> jax.Array:
    """Adds noise whose power falls as 1 / f along time, scaled per sample as in `white_noise`.

    Gaussian white noise is filtered by f^(-1/2) in the Fourier domain, which removes its mean; the
    noise is periodic over the T time steps, and independent for every other index.

    Args:
      key: PRNG key; the same key gives the same noise, up to its power.
      x: (B, ...), float32 or float64: raw audio or spectrograms.
      snr_db: signal-to-noise ratio in dB, finite, of either sign, traced or not.
      axis: of time, at least 1, with T >= 2; static.
      valid_range: (low, high) to clip to, scalars or arrays that broadcast against `x`; None: no
        clipping.

    Returns:
      The noisy input, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: snr_db is not a finite scalar, the axis is none of a sample or has less than two
        entries, or low <= high fails.

    References:
      Timmer, Koenig, "On generating power law noise", 1995.
    """
    x = check_batch(x)
    _check_axis(axis, x)
    num_steps = x.shape[axis]
    if num_steps < 2:
        raise ValueError(f"pink noise needs at least 2 time steps, got {num_steps}")
    frequency = np.arange(1, num_steps // 2 + 1)
    amplitude = jnp.asarray(np.concatenate([[0], frequency**-0.5]), x.dtype)
    white = beside(jnp.moveaxis(jax.random.normal(key, x.shape, x.dtype), axis, -1), x)

    def colour(white: jax.Array, amplitude: jax.Array) -> jax.Array:
        spectrum = jnp.fft.rfft(white)
        amplitude = amplitude.reshape((1,) * (white.ndim - 1) + amplitude.shape)
        return jnp.fft.irfft(amplitude.astype(spectrum.dtype) * spectrum, num_steps)

    pink = on_each_device(colour, white, amplitude)
    return clip(_add_noise(x, jnp.moveaxis(pink, -1, axis), snr_db), valid_range)


def time_mask(
    key: jax.Array,
    x: ArrayLike,
    *,
    fraction: ArrayLike,
    axis: int = 1,
    fill_value: ArrayLike = 0.0,
) -> jax.Array:
    """Masks adjacent time steps, one band per sample of the width nearest to fraction T.

    SpecAugment with the width, there random, as the severity; the place is uniform.

    Args:
      key: PRNG key; the same key masks the same band, and a larger fraction a superset.
      x: (B, ...), float32 or float64: raw audio or spectrograms.
      fraction: share of the time steps, in [0, 1], traced or not.
      axis: of time, at least 1; static.
      fill_value: what a masked entry reads, a scalar or an array that broadcasts against `x`.

    Returns:
      The input with a band missing, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: fraction lies outside [0, 1], or the axis is none of a sample.

    References:
      Park, Chan, Zhang, Chiu, Zoph, Cubuk, Le, "SpecAugment: A Simple Data Augmentation Method for
      Automatic Speech Recognition", 2019.
    """
    return _mask_band(key, x, fraction, axis, fill_value)


def frequency_mask(
    key: jax.Array,
    x: ArrayLike,
    *,
    fraction: ArrayLike,
    axis: int = 2,
    fill_value: ArrayLike = 0.0,
) -> jax.Array:
    """Masks adjacent frequencies, one band per sample of the width nearest to fraction F.

    `time_mask` along the other axis of a spectrogram; the same key gives related places, so split
    it where both are applied.

    Args:
      key: PRNG key; the same key masks the same band, and a larger fraction a superset.
      x: (B, T, F, ...), float32 or float64.
      fraction: share of the frequencies, in [0, 1], traced or not.
      axis: of frequency, at least 1; static.
      fill_value: what a masked entry reads, a scalar or an array that broadcasts against `x`.

    Returns:
      The spectrogram with a band missing, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: fraction lies outside [0, 1], or the axis is none of a sample.

    References:
      Park, Chan, Zhang, Chiu, Zoph, Cubuk, Le, "SpecAugment: A Simple Data Augmentation Method for
      Automatic Speech Recognition", 2019.
    """
    return _mask_band(key, x, fraction, axis, fill_value)


def gain(x: ArrayLike, *, gain_db: ArrayLike, valid_range: ValidRange | None = None) -> jax.Array:
    """Changes the level, x' = clip(10^(gain_db / 20) x).

    Args:
      x: (B, ...), float32 or float64: raw audio, or spectrograms of amplitudes.
      gain_db: in dB, finite, traced or not; negative: quieter, as in `SEVERITIES`.
      valid_range: (low, high) to clip to, scalars or arrays that broadcast against `x`; None: no
        clipping.

    Returns:
      The scaled input, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: gain_db is not a finite scalar, or low <= high fails.
    """
    x = check_batch(x)
    return clip(_amplitude("gain_db", gain_db, x) * x, valid_range)


def clipping(x: ArrayLike, *, fraction: ArrayLike) -> jax.Array:
    """Overdrives, x' = clip(x, -c, c), with c = fraction max |x| over the entries of a sample.

    Args:
      x: (B, ...), float32 or float64: raw audio, zero at rest.
      fraction: share of the peak that is left, in [0, 1], traced or not.

    Returns:
      The clipped input, in the shape and dtype of `x`.

    Raises:
      TypeError: not float32 or float64.
      ValueError: fraction lies outside [0, 1].
    """
    x = check_batch(x)
    x, fraction = check_fraction(fraction, x)
    bound = fraction * jnp.abs(x).max(axis=tuple(range(1, x.ndim)), keepdims=True)
    return jnp.clip(x, -bound, bound)


def _add_noise(x: jax.Array, noise: jax.Array, snr_db: ArrayLike) -> jax.Array:
    """Adds noise, scaled per sample to the stated ratio of mean squares."""

    def rms(array: jax.Array) -> jax.Array:
        return jnp.sqrt((array**2).mean(axis=tuple(range(1, x.ndim)), keepdims=True))

    return x + noise * (rms(x) / (rms(noise) * _amplitude("snr_db", snr_db, x)))


def _mask_band(
    key: jax.Array, x: ArrayLike, fraction: ArrayLike, axis: int, fill_value: ArrayLike
) -> jax.Array:
    """Fills one band per sample along an axis."""
    x = check_batch(x)
    x, fraction = check_fraction(fraction, x)
    _check_axis(axis, x)
    length = x.shape[axis]
    band = random_band(key, x.shape[0], length, jnp.round(fraction * length))
    others = tuple(other for other in range(1, x.ndim) if other != axis)
    return fill(x, jnp.expand_dims(band, others), fill_value)


def _amplitude(name: str, decibels: ArrayLike, x: jax.Array) -> jax.Array:
    """The ratio of amplitudes 10^(decibels / 20); raises unless it is a finite scalar."""
    scalar = jnp.asarray(decibels, x.dtype)
    if scalar.ndim:
        raise ValueError(f"{name} must be a scalar, got shape {scalar.shape}; use jax.vmap")
    if not isinstance(decibels, Tracer) and not np.isfinite(np.asarray(decibels)):
        raise ValueError(f"{name} must be finite, got {decibels}")
    return 10 ** (scalar / 20)


def _check_axis(axis: int, x: jax.Array) -> None:
    """Raises ValueError unless the axis is one of a sample."""
    if not 1 <= axis < x.ndim:
        raise ValueError(f"axis must be in 1 .. {x.ndim - 1}, one of a sample, got {axis}")
