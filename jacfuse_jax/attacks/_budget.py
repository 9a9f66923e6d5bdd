"""What every attack needs: budgets, projections, random starts, and the loss to raise."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_floating, check_modalities, check_scalar

LogProbFn = Callable[[dict[str, Any]], jax.Array]
Norm = Literal["linf", "l2"]


class Budget(NamedTuple):
    """The perturbed modalities, their radii and their valid ranges."""

    clean: dict[str, jax.Array]
    epsilon: dict[str, jax.Array]
    valid_range: dict[str, tuple[jax.Array, jax.Array]]


def make_budget(
    inputs: Mapping[str, Any],
    epsilon: Mapping[str, ArrayLike],
    norm: str,
    valid_range: Mapping[str, tuple[ArrayLike, ArrayLike]] | None,
) -> Budget:
    """Checks the arguments that every attack shares."""
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm must be 'linf' or 'l2', got {norm!r}")
    valid_range = valid_range or {}
    names = check_modalities("epsilon", tuple(epsilon), inputs)
    check_modalities("valid_range", tuple(valid_range), inputs)
    budget = Budget({}, {}, {})
    for name in names:
        clean = budget.clean[name] = jnp.asarray(inputs[name])
        check_floating(f"inputs[{name!r}]", clean)
        budget.epsilon[name] = check_scalar(f"epsilon[{name!r}]", epsilon[name], clean.dtype)
        if name in valid_range:
            low, high = (jnp.asarray(bound, clean.dtype) for bound in valid_range[name])
            budget.valid_range[name] = (low, high)
    return budget


def make_loss_fn(
    log_prob_fn: LogProbFn, inputs: Mapping[str, Any], labels: ArrayLike
) -> Callable[[dict[str, jax.Array]], tuple[jax.Array, jax.Array]]:
    """The loss -log p(label) as a function of the perturbed modalities: its sum, and (B,)."""

    def loss_fn(perturbed: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        log_probs = log_prob_fn({**inputs, **perturbed})
        loss = -jnp.take_along_axis(log_probs, jnp.asarray(labels)[:, None], axis=-1)[:, 0]
        return loss.sum(), loss

    return loss_fn


def step(
    x: dict[str, jax.Array],
    gradient: dict[str, jax.Array],
    step_size: dict[str, jax.Array],
    norm: str,
) -> dict[str, jax.Array]:
    """Moves by step_size in the steepest direction of the norm; not at all without a gradient."""

    def move(x: jax.Array, g: jax.Array, length: jax.Array) -> jax.Array:
        axes = tuple(range(1, g.ndim))
        g = jnp.where(jnp.isfinite(g).all(axes, keepdims=True), g, 0)
        if norm == "linf":
            return x + length * jnp.sign(g)
        # Scaled by its largest entry first, so that tiny gradients do not vanish when squared.
        largest = jnp.abs(g).max(axes, keepdims=True)
        g = g / jnp.where(largest > 0, largest, 1)
        norms = jnp.sqrt((g**2).sum(axes, keepdims=True))
        return x + length * g / jnp.where(norms > 0, norms, 1)

    return jax.tree.map(move, x, gradient, step_size)


def project(x: dict[str, jax.Array], budget: Budget, norm: str) -> dict[str, jax.Array]:
    """Euclidean projection of every sample onto the ball around the clean input."""

    def project(x: jax.Array, clean: jax.Array, radius: jax.Array) -> jax.Array:
        delta = x - clean
        if norm == "linf":
            return clean + jnp.clip(delta, -radius, radius)
        return clean + jax.vmap(lambda d: optax.projections.projection_l2_ball(d, radius))(delta)

    return jax.tree.map(project, x, budget.clean, budget.epsilon)


def clip(x: dict[str, jax.Array], budget: Budget) -> dict[str, jax.Array]:
    """Clips to the valid range, but never moves an entry that started outside it further in."""
    clipped = dict(x)
    for name, (low, high) in budget.valid_range.items():
        clean = budget.clean[name]
        clipped[name] = jnp.clip(x[name], jnp.minimum(low, clean), jnp.maximum(high, clean))
    return clipped


def random_start(key: jax.Array, budget: Budget, norm: str) -> dict[str, jax.Array]:
    """A point of the ball: uniform for linf, uniform direction and radius for l2."""
    start: dict[str, jax.Array] = {}
    for index, (name, clean) in enumerate(sorted(budget.clean.items())):
        key_direction, key_radius = jax.random.split(jax.random.fold_in(key, index))
        if norm == "linf":
            delta = jax.random.uniform(key_direction, clean.shape, clean.dtype, -1, 1)
        else:
            delta = jax.random.normal(key_direction, clean.shape, clean.dtype)
            norms = jnp.sqrt((delta**2).sum(tuple(range(1, delta.ndim)), keepdims=True))
            radius = jax.random.uniform(key_radius, norms.shape, clean.dtype)
            delta = delta * radius / norms
        start[name] = clean + budget.epsilon[name] * delta
    return start


def per_sample(mask: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes (B,) so that it broadcasts against (B, ...)."""
    return mask.reshape(-1, *(1,) * (like.ndim - 1))
