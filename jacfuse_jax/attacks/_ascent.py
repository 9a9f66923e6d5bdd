"""One run of Auto-PGD, from one start."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jacfuse_jax.attacks._budget import Budget, Norm, project, step
from jacfuse_jax.attacks._goal import Candidate, keep_stronger
from jacfuse_jax.attacks._samples import per_sample, select


class _Point(NamedTuple):
    """Perturbed modalities with the loss and its gradient there."""

    x: dict[str, jax.Array]
    loss: jax.Array
    gradient: dict[str, jax.Array]


class _Checkpoint(NamedTuple):
    """(B,) each: the highest loss at the last checkpoint, whether it halved, and rises since."""

    highest_loss: jax.Array
    halved: jax.Array
    num_rises: jax.Array


class _State(NamedTuple):
    """What one step hands to the next; loss_before and relative_step are (B,)."""

    x: dict[str, jax.Array]
    highest: _Point
    best: Candidate
    x_before: dict[str, jax.Array]
    loss_before: jax.Array
    relative_step: jax.Array
    checkpoint: _Checkpoint


def ascend(
    loss_fn: Any,
    start: dict[str, jax.Array],
    best: Candidate,
    budget: Budget,
    norm: Norm,
    num_steps: int,
    relative_step_size: jax.Array,
) -> Candidate:
    """One run from one start; returns the best of `best` and all iterates.

    The first step has the length relative_step_size times epsilon.
    """
    checkpoints = checkpoints_of(num_steps)
    is_checkpoint = np.isin(np.arange(num_steps), checkpoints)
    window = np.zeros(num_steps, np.int32)
    window[checkpoints[1:]] = np.diff(checkpoints)
    is_first = np.arange(num_steps) == 0

    def iterate(state: _State, schedule: Any) -> tuple[_State, None]:
        is_checkpoint, window, is_first = schedule
        gradient, new = jax.grad(loss_fn, has_aux=True)(state.x)
        best = keep_stronger(state.best, new, success_first=True)
        point = _Point(new.x, new.loss, gradient)
        highest = select(point.loss > state.highest.loss, point, state.highest)
        last = state.checkpoint
        has_risen = (point.loss > state.loss_before).astype(jnp.int32)
        last = last._replace(num_rises=last.num_rises + has_risen)

        oscillates = 4 * last.num_rises < 3 * window
        stalls = ~last.halved & (highest.loss == last.highest_loss)
        halve = is_checkpoint & (oscillates | stalls)
        point = select(halve, highest, point)
        relative_step = jnp.where(halve, state.relative_step / 2, state.relative_step)

        x = _move(point, state.x_before, relative_step, is_first, budget, norm)
        return _State(
            x=x,
            highest=highest,
            best=best,
            x_before=point.x,
            loss_before=point.loss,
            relative_step=relative_step,
            checkpoint=select(
                is_checkpoint,
                _Checkpoint(highest.loss, halve, jnp.zeros_like(last.num_rises)),
                last,
            ),
        ), None

    lowest = jnp.full_like(best.loss, -jnp.inf)
    state = _State(
        x=start,
        highest=_Point(start, lowest, jax.tree.map(jnp.zeros_like, start)),
        best=best,
        x_before=start,
        loss_before=-lowest,  # the first evaluation is no rise
        relative_step=jnp.full_like(best.loss, relative_step_size, jnp.float32),
        # As if it had halved, so that the start, which is a checkpoint, does not.
        checkpoint=_Checkpoint(lowest, lowest < 0, jnp.zeros_like(lowest, jnp.int32)),
    )
    state, _ = jax.lax.scan(iterate, state, (is_checkpoint, window, is_first))
    return keep_stronger(state.best, loss_fn(state.x)[1], success_first=True)


def _move(
    point: _Point,
    x_before: dict[str, jax.Array],
    relative_step: jax.Array,
    is_first: jax.Array,
    budget: Budget,
    norm: Norm,
) -> dict[str, jax.Array]:
    """The gradient step mixed with the last move; the first step is the gradient's alone."""

    def mix(x: jax.Array, z: jax.Array, before: jax.Array) -> jax.Array:
        return jnp.where(is_first, z, x + 0.75 * (z - x) + 0.25 * (x - before))

    step_size = {
        name: per_sample(relative_step, point.x[name]).astype(radius.dtype) * radius
        for name, radius in budget.epsilon.items()
    }
    z = project(step(point.x, point.gradient, step_size, norm), budget, norm)
    moved = project(jax.tree.map(mix, point.x, z, x_before), budget, norm)
    finite = jnp.ones_like(relative_step, bool)
    for gradient in point.gradient.values():
        finite &= jnp.isfinite(gradient).all(axis=tuple(range(1, gradient.ndim)))
    return select(finite, moved, point.x)


def checkpoints_of(num_steps: int) -> list[int]:
    """The steps ceil(p_j num_steps), p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06) from 0, 0.22.

    In whole per cent, as rounding errors would move the ceiling.
    """
    percent = [0, 22]
    while percent[-1] < 100:
        percent.append(percent[-1] + max(percent[-1] - percent[-2] - 3, 6))
    steps = {-(-p * num_steps // 100) for p in percent}
    return sorted(s for s in steps if s < num_steps)
