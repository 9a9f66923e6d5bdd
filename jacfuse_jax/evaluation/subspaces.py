"""Subspaces that clean inputs lie close to, for rules that check what they are given."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jacfuse_jax import _precision

_NUM_ROUNDS = 3  # of alternating projections
# What is outside comes this far inside, since bounds push it out again.
_TARGET = 0.9


class Subspace(NamedTuple):
    """An affine subspace of inputs of D entries, and how far clean ones are from it.

    Attributes:
      point: m, (D,).
      basis: V, (D, r), orthonormal.
      threshold: residuals ||x - m - V V^T (x - m)||_2 above it are not those of clean inputs;
        a positive scalar.
    """

    point: Any
    basis: Any
    threshold: Any


def project(subspace: Subspace, x: jax.Array) -> jax.Array:
    """The closest points of the subspace, in the shape of x, (B, ...)."""
    return _precision.project(x, subspace.point, subspace.basis)


def residual(subspace: Subspace, x: jax.Array) -> jax.Array:
    """Distances from the subspace in units of its threshold, (B,): above one is outside."""
    left = (x - project(subspace, x)).reshape(len(x), -1)
    squared = (left**2).sum(axis=-1)
    # The derivative of a root at zero is infinite.
    is_zero = squared == 0
    norm = jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squared)))
    return norm / jnp.asarray(subspace.threshold, x.dtype)


def stay_inside(subspace: Subspace, x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Inputs between bounds that are close to x and no further from the subspace than clean ones.

    Alternating projections onto both; where they have no point in common, or have not met after a
    few rounds, bounds come first. Derivatives are those of the projections onto the subspace, and
    pass bounds as they are, so that an attack at a bound still has a gradient.

    Args:
      subspace: that inputs are checked against.
      x: (B, ...).
      low: bounds, (B, ...).
      high: likewise.

    Returns:
      In the shape of x.
    """
    inside = x
    for _ in range(_NUM_ROUNDS):
        kept = project(subspace, inside)
        distance = residual(subspace, inside)
        shrink = jnp.where(distance > 1, _TARGET / jnp.maximum(distance, 1), 1)
        shrink = jax.lax.stop_gradient(shrink).reshape(-1, *(1,) * (x.ndim - 1))
        inside = kept + shrink * (inside - kept)
        inside = _clip(inside, low, high)
    return inside


@jax.custom_jvp
def _clip(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Clips, with the derivative of what is not clipped."""
    return jnp.clip(x, low, high)


@_clip.defjvp
def _clip_jvp(primals: Any, tangents: Any) -> Any:
    return _clip(*primals), tangents[0]
