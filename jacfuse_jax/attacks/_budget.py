"""What every attack needs: budgets, steps and projections."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.typing import ArrayLike

from jacfuse_jax._checks import (
    check_choice,
    check_floating,
    check_labels,
    check_mapping,
    check_modalities,
    check_numbers,
    check_valid_range,
    nan_like,
)
from jacfuse_jax._devices import beside
from jacfuse_jax.attacks._goal import Goal, LogProbFn
from jacfuse_jax.attacks._samples import per_sample

Norm = Literal["linf", "l2"]


class Budget(NamedTuple):
    """The perturbed modalities, their radii and valid ranges, and what the attack is after.

    A radius is a scalar, or has one entry a sample, (B, 1, ...).
    """

    clean: dict[str, jax.Array]
    epsilon: dict[str, jax.Array]
    valid_range: dict[str, tuple[jax.Array, jax.Array]]
    goal: Goal


def make_budget(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    labels: ArrayLike,
    epsilon: Mapping[str, ArrayLike],
    norm: str,
    valid_range: Mapping[str, tuple[ArrayLike, ArrayLike]] | None,
    targets: ArrayLike | None = None,
) -> Budget:
    """Checks the arguments that every attack shares."""
    check_choice("norm", norm, ("linf", "l2"))
    check_mapping("epsilon", epsilon, "radius")
    clean, goal = check_attacked(log_prob_fn, inputs, labels, targets, "epsilon", tuple(epsilon))
    radii = {
        name: check_per_sample(f"epsilon[{name!r}]", epsilon[name], x) for name, x in clean.items()
    }
    ranges = _check_ranges(valid_range, inputs, clean)
    for name in clean:  # no point that is NaN would be taken in place of the clean input
        clean[name] = nan_like(clean[name], radii[name], *ranges.get(name, ()))
    return Budget(clean, radii, ranges, goal)


def check_attacked(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    labels: ArrayLike,
    targets: ArrayLike | None,
    argument: str,
    names: tuple[str, ...],
) -> tuple[dict[str, jax.Array], Goal]:
    """Returns the named modalities and the goal; raises unless an attack can start from them.

    A sample whose traced label or target is no class becomes NaN, and so does all that follows.
    """
    check_mapping("inputs", inputs, "(B, ...)")
    clean: dict[str, jax.Array] = {}
    for name in check_modalities(argument, names, inputs):
        clean[name] = jnp.asarray(inputs[name])
        check_floating(f"inputs[{name!r}]", clean[name])
    shape = jax.eval_shape(lambda perturbed: log_prob_fn({**inputs, **perturbed}), clean).shape
    if len(shape) != 2:
        raise ValueError(f"log_prob_fn must return shape (B, K), got {shape}")
    goal = Goal(check_labels("labels", labels, *shape))
    if targets is not None:
        goal = goal._replace(targets=check_labels("targets", targets, *shape))
    for classes in goal:
        if isinstance(classes, Tracer):
            is_class = classes < shape[1]
            clean = {
                name: jnp.where(per_sample(is_class, x), x, jnp.nan) for name, x in clean.items()
            }
    return clean, goal


def check_per_sample(
    name: str, numbers: ArrayLike, x: jax.Array, *, high: float = float("inf")
) -> jax.Array:
    """Returns a scalar as it is and (B,) as (B, 1, ...), in the dtype of `x`.

    Raises unless all are finite and in [0, high]; traced ones that are not become NaN.
    """
    shape = jnp.shape(numbers)
    if shape not in ((), x.shape[:1]):
        raise ValueError(
            f"{name} must be a scalar or of shape ({len(x)},), one number a sample, got shape "
            f"{shape}"
        )
    checked = check_numbers(name, numbers, x.dtype, high=high)
    return per_sample(beside(checked, x), x) if shape else checked


def spoil_where_nan(budget: Budget, parameter: jax.Array) -> Budget:
    """The budget with NaN for inputs where a traced parameter is NaN."""
    clean = {name: nan_like(x, parameter) for name, x in budget.clean.items()}
    return budget._replace(clean=clean)


def _check_ranges(
    valid_range: Mapping[str, tuple[ArrayLike, ArrayLike]] | None,
    inputs: Mapping[str, Any],
    clean: dict[str, jax.Array],
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The valid ranges of the perturbed modalities, which broadcast against them."""
    valid_range = {} if valid_range is None else valid_range
    check_mapping("valid_range", valid_range, "(low, high)")
    check_modalities("valid_range", tuple(valid_range), inputs)
    return {
        name: check_valid_range(f"valid_range[{name!r}]", valid_range[name], x)
        for name, x in clean.items()
        if name in valid_range
    }


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
    """Euclidean projection of every sample onto the ball, then entry by entry onto the range."""

    def project(x: jax.Array, clean: jax.Array, radius: jax.Array) -> jax.Array:
        if norm == "linf":
            return clean + optax.projections.projection_linf_ball(x - clean, radius)
        # Onto the unit ball: optax squares the radius, and 0 / 0 follows where that is zero.
        delta = (x - clean) / jnp.where(radius > 0, radius, 1)
        return clean + radius * jax.vmap(optax.projections.projection_l2_ball)(delta)

    return clip(jax.tree.map(project, x, budget.clean, budget.epsilon), budget)


def clip(x: dict[str, jax.Array], budget: Budget) -> dict[str, jax.Array]:
    """Clips to the valid range, but never moves an entry that started outside it further in."""
    clipped = dict(x)
    for name, (low, high) in budget.valid_range.items():
        clean = budget.clean[name]
        clipped[name] = jnp.clip(x[name], jnp.minimum(low, clean), jnp.maximum(high, clean))
    return clipped


def check_counts(**counts: int) -> None:
    """Raises ValueError unless every count is at least one."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
