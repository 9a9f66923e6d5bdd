"""Matrix products in full precision, also where accelerators round the factors by default."""

import jax
import jax.numpy as jnp


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """X Y, as `jnp.matmul`."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def project(x: jax.Array, point: jax.Array, basis: jax.Array) -> jax.Array:
    """The closest points of an affine subspace, m + V V^T (x - m), in the shape and dtype of x.

    Args:
      x: (B, ...), D entries each.
      point: m, (D,).
      basis: V, (D, r), orthonormal.
    """
    point, basis = (jnp.asarray(array, x.dtype) for array in (point, basis))
    kept = product(x.reshape(len(x), -1) - point[None], basis)
    return (point[None] + product(kept, basis.T)).reshape(x.shape)
