"""What is attacked as images: videos, sequences and feature vectors in their layout."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jacfuse_jax.attacks._budget import Budget


def as_images(budget: Budget) -> Budget:
    """The budget with all arrays as (B, H, W, C)."""
    images = budget._replace(clean={}, epsilon={}, valid_range={})
    for name, clean in budget.clean.items():
        images.clean[name] = _as_image(clean)
        radius = budget.epsilon[name]
        images.epsilon[name] = _as_image(radius) if radius.ndim else radius
        if name in budget.valid_range:
            low, high = budget.valid_range[name]
            images.valid_range[name] = (
                _as_image(jnp.broadcast_to(low, clean.shape)),
                _as_image(jnp.broadcast_to(high, clean.shape)),
            )
    return images


def shaped_like(inputs: Mapping[str, Any], images: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Undoes `as_images`."""
    shaped: dict[str, jax.Array] = {}
    for name, image in images.items():
        shape = jnp.shape(inputs[name])
        if len(shape) == 5:
            frames = image.reshape(*image.shape[:3], shape[1], shape[4])
            shaped[name] = jnp.moveaxis(frames, 3, 1)
        else:
            shaped[name] = image.reshape(shape)
    return shaped


def _as_image(x: jax.Array) -> jax.Array:
    """(B, ...) to (B, H, W, C)."""
    if x.ndim == 4:
        return x
    if x.ndim == 5:
        x = jnp.moveaxis(x, 1, 3)
        return x.reshape(*x.shape[:3], x.shape[3] * x.shape[4])
    if x.ndim == 3:
        return x[:, None]
    return x.reshape(x.shape[0], 1, math.prod(x.shape[1:]), 1)
