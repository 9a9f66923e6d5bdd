"""Arrays (B, ...) sample by sample."""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")


def per_sample(numbers: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes (B,) so that it broadcasts against (B, ...)."""
    return numbers.reshape(-1, *(1,) * (like.ndim - 1))


def select(mask: jax.Array, chosen: T, other: T) -> T:
    """The samples of `chosen` where the (B,) mask holds and of `other` elsewhere, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(per_sample(mask, a), a, b), chosen, other)


def perturbation_norm(x: jax.Array, clean: jax.Array, norm: str) -> jax.Array:
    """The norm of x - clean, (B,)."""
    delta = jnp.abs(x - clean).reshape(len(clean), math.prod(clean.shape[1:]))
    return delta.max(axis=1) if norm == "linf" else jnp.sqrt((delta**2).sum(axis=1))
