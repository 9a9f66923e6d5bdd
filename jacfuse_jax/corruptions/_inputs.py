"""What corruptions share: checks of the input, valid ranges, fill values, random bands."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_floating, check_scalar, check_valid_range, nan_like
from jacfuse_jax._devices import beside

ValidRange = tuple[ArrayLike, ArrayLike]


def check_batch(x: ArrayLike) -> jax.Array:
    """Returns a batch (B, ...) as an array; raises on other shapes and dtypes."""
    array = jnp.asarray(x)
    check_floating("x", array)
    if not array.ndim:
        raise ValueError("x must have shape (B, ...), got a scalar")
    return array


def check_fraction(fraction: ArrayLike, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns x and the fraction in its dtype; raises unless it is a scalar in [0, 1].

    Where a traced one is not, x becomes NaN: no random number is less than NaN.
    """
    scalar = check_scalar("fraction", fraction, x.dtype, high=1)
    return nan_like(x, scalar), scalar


def clip(x: jax.Array, valid_range: ValidRange | None) -> jax.Array:
    """Clips to the valid range, if there is one."""
    if valid_range is None:
        return x
    return jnp.clip(x, *check_valid_range("valid_range", valid_range, x))


def fill(x: jax.Array, where: jax.Array, fill_value: ArrayLike) -> jax.Array:
    """Entries of x read the fill value where the mask, which broadcasts against x, says so."""
    return jnp.where(beside(where, x), beside(broadcast("fill_value", fill_value, x), x), x)


def broadcast(name: str, array: ArrayLike, x: jax.Array) -> jax.Array:
    """Broadcasts to the shape and dtype of x; raises ValueError where that cannot be."""
    array = jnp.asarray(array, x.dtype)
    try:
        return jnp.broadcast_to(array, x.shape)
    except ValueError:
        raise ValueError(
            f"{name} must broadcast against x, got shapes {array.shape} and {x.shape}"
        ) from None


def per_sample_shape(x: jax.Array) -> tuple[int, ...]:
    """Shape (B, 1, ..., 1) of one number per sample."""
    return (x.shape[0],) + (1,) * (x.ndim - 1)


def random_band(key: jax.Array, num_samples: int, length: int, width: jax.Array) -> jax.Array:
    """Mask (B, length) of `width` adjacent positions per sample, all placements equally likely.

    The width is a whole number in floating point, at most `length`. With the same key a wider band
    contains a narrower one: per step of the width the start moves back by at most one.
    """
    room = length - width
    start = jnp.floor(jax.random.uniform(key, (num_samples, 1), width.dtype) * (room + 1))
    start = jnp.minimum(start, room)  # the product can round up
    position = jnp.arange(length, dtype=width.dtype)[None]
    return (position >= start) & (position < start + width)
