"""Scaling by powers of two, which rounds nothing, and norms that neither overflow nor underflow."""

import jax
import jax.numpy as jnp


def power_of_two_scale(x: jax.Array) -> jax.Array:
    """A power of two near the largest entry of matrices (..., m, n); one for zero matrices."""
    size = jnp.maximum(jnp.abs(x.real), jnp.abs(x.imag)).max(axis=(-2, -1), initial=0)
    info = jnp.finfo(size.dtype)
    scale = jax.lax.reduce_precision(size, exponent_bits=info.nexp, mantissa_bits=0)
    return jnp.where(size > 0, jnp.clip(scale, info.tiny, info.max / 4), 1)


def frobenius_norm(x: jax.Array) -> jax.Array:
    """||X||_F of matrices (..., m, n)."""
    scale = power_of_two_scale(x)
    scaled = x / scale[..., None, None].astype(x.dtype)
    return scale * jnp.sqrt((jnp.abs(scaled) ** 2).sum(axis=(-2, -1)))
