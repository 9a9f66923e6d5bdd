"""Where a run begins: at random in the budget, or where the caller says."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacfuse_jax._arrays import known_array
from jacfuse_jax._checks import check_mapping
from jacfuse_jax._devices import beside
from jacfuse_jax.attacks._budget import Budget, clip, project
from jacfuse_jax.attacks._goal import Candidate
from jacfuse_jax.attacks._samples import perturbation_norm, select

Arrays = dict[str, jax.Array]


def check_initial(initial: Mapping[str, ArrayLike] | None, budget: Budget) -> Arrays | None:
    """The arrays where the first run starts; raises unless they are like the perturbed inputs."""
    if initial is None:
        return None
    check_mapping("initial", initial, "(B, ...)")
    if set(initial) != set(budget.clean):
        raise ValueError(
            f"initial must name the modalities with a budget, {sorted(budget.clean)}, got "
            f"{sorted(initial)}"
        )
    arrays: Arrays = {}
    for name, clean in budget.clean.items():
        array = known_array(initial[name], clean.dtype)
        if array.shape != clean.shape:
            raise ValueError(
                f"initial[{name!r}] must have shape {clean.shape}, as the input has, got "
                f"{array.shape}"
            )
        arrays[name] = beside(array, clean)
    return arrays


def over_restarts(
    run: Callable[[Candidate, Arrays], Candidate],
    best: Candidate,
    key: jax.Array,
    num_restarts: int,
    *,
    budget: Budget,
    norm: str,
    initial: Arrays | None,
) -> Candidate:
    """Hands the best candidate from run to run, each with a start of its own.

    The first starts at `initial` or else has `key`; more repeat those of fewer.
    """
    given = None if initial is None else _start_at(initial, budget, norm)

    def start(key: jax.Array, is_first: Any) -> Arrays:
        drawn = random_start(key, budget, norm)
        if given is None:
            return drawn
        return jax.tree.map(lambda x, y: jnp.where(is_first, x, y), given, drawn)

    if num_restarts == 1:  # without a loop around it, the run is half the work to compile
        return run(best, random_start(key, budget, norm) if given is None else given)
    # `random_start` folds the numbers of modalities into its key: one more of them comes first.
    parent = jax.random.fold_in(key, len(best.x))
    later = jax.vmap(partial(jax.random.fold_in, parent))(jnp.arange(num_restarts - 1))
    keys = jnp.concatenate([key[None], later])
    is_first = None if given is None else np.arange(num_restarts) == 0
    starts = (keys, is_first)
    return jax.lax.scan(lambda best, xs: (run(best, start(*xs)), None), best, starts)[0]


def _start_at(x: Arrays, budget: Budget, norm: str) -> Arrays:
    """Projects as `project`, but leaves what is in the budget as it is, to the last digit."""
    start = project(x, budget, norm)
    for name, clean in budget.clean.items():
        is_within = perturbation_norm(x[name], clean, norm) <= budget.epsilon[name].reshape(-1)
        start[name] = select(is_within, x[name], start[name])
    return clip(start, budget)


def random_start(key: jax.Array, budget: Budget, norm: str) -> Arrays:
    """A point of the ball and range: uniform for linf, uniform direction and radius for l2."""
    start: Arrays = {}
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
    return clip(start, budget)
