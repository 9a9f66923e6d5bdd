"""Auto-PGD: projected gradient ascent with momentum that sets its own step sizes."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_choice
from jacfuse_jax.attacks._budget import (
    Budget,
    Candidate,
    LogProbFn,
    LossFn,
    LossName,
    Norm,
    check_counts,
    choose_loss,
    keep_stronger,
    make_budget,
    make_loss_fn,
    over_restarts,
    per_sample,
    project,
    random_start,
    select,
    step,
)
from jacfuse_jax.attacks._compiled import run_compiled
from jacfuse_jax.attacks.losses import mask_label, targeted_dlr


def apgd(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    labels: ArrayLike,
    key: jax.Array,
    *,
    epsilon: Mapping[str, ArrayLike],
    norm: Norm = "linf",
    num_steps: int = 100,
    num_restarts: int = 1,
    loss: Literal["cross_entropy", "margin", "dlr", "targeted_dlr"] = "cross_entropy",
    num_targets: int = 3,
    valid_range: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
) -> dict[str, Any]:
    """Auto-PGD: gradient ascent on the loss with momentum and a step size per sample.

    z <- project(x + step_size direction(grad)),
    x <- project(x + 3/4 (z - x) + 1/4 (x - x_before)), direction and projection as in `pgd`.

    step_size starts at 2 epsilon. At the steps 0, 22, 41, 57, 70, 80, 87, 93 and 99 per cent of
    num_steps it is halved, and the sample goes back to its point of highest loss, where since the
    last of these checkpoints (1) less than 3/4 of the steps raised the loss, or (2) neither the
    step size nor the highest loss changed. A sample whose gradient is not finite stays where it is
    until then.

    Returned is, for every sample, whichever of the clean input and all iterates is misclassified
    (argmax is not the label) and has the highest loss; the highest loss alone if none is.

    Args:
      log_prob_fn: maps inputs to (B, K) log-probabilities; sample b may depend on sample b only.
      inputs: {modality: (B, ...)}; modalities without a budget may be any pytree.
      labels: (B,), integer; true classes, or predicted ones.
      key: PRNG key of the random starts.
      epsilon: {modality: radius} in units of the input, a scalar each, traced or not; modalities
        not named are left untouched.
      norm: "linf" or "l2", per modality over all entries of a sample.
      num_steps: gradient evaluations a restart, at least 1; static.
      num_restarts: random starts, one after another in the memory of one; the first is that of a
        single start, so more are never weaker; static.
      loss: "cross_entropy", "margin", "dlr" or "targeted_dlr", see `losses`; the last runs once for
        each target and keeps the best.
      num_targets: wrong classes that "targeted_dlr" aims at, those most likely for the clean input,
        at most K - 1; static, unused by other losses.
      valid_range: {modality: (low, high)} of valid entries, scalars or arrays; None: unbounded.

    Returns:
      The inputs with the named modalities perturbed.

    Raises:
      TypeError: a perturbed modality is not float32 or float64.
      ValueError: unknown norm, modality or loss, too few classes for the loss or num_targets, an
        epsilon that is not a finite scalar >= 0, or a count < 1.

    References:
      Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks", 2020.
    """
    check_counts(num_steps=num_steps, num_restarts=num_restarts, num_targets=num_targets)
    check_choice("loss", loss, ("cross_entropy", "margin", "dlr", "targeted_dlr"))
    budget = make_budget(log_prob_fn, inputs, labels, epsilon, norm, valid_range)
    perturbed = run_compiled(
        _apgd,
        log_prob_fn,
        inputs,
        budget,
        key,
        norm=norm,
        num_steps=num_steps,
        num_restarts=num_restarts,
        loss=loss,
        num_targets=num_targets,
    )
    return {**inputs, **perturbed}


def _apgd(
    log_prob_fn: LogProbFn,
    inputs: dict[str, Any],
    budget: Budget,
    key: jax.Array,
    *,
    norm: Norm,
    num_steps: int,
    num_restarts: int,
    loss: LossName | Literal["targeted_dlr"],
    num_targets: int,
) -> dict[str, jax.Array]:
    """The modalities that `apgd` perturbs."""

    def clean_candidate(loss: LossFn) -> Candidate:
        return make_loss_fn(log_prob_fn, inputs, budget.labels, loss)(budget.clean)[1]

    def strengthen(best: Candidate, loss: LossFn) -> Candidate:
        loss_fn = make_loss_fn(log_prob_fn, inputs, budget.labels, loss)

        def run(best: Candidate, key: jax.Array) -> Candidate:
            start = random_start(key, budget, norm)
            return _ascend(loss_fn, start, best, budget, norm, num_steps)

        return over_restarts(run, best, key, num_restarts)

    if loss != "targeted_dlr":
        raised = choose_loss(loss)
        return strengthen(clean_candidate(raised), raised).x

    targets = _likely_targets(log_prob_fn({**inputs}), budget.labels, num_targets)

    def aim_at(target: jax.Array) -> LossFn:
        return lambda log_probs, labels: targeted_dlr(log_probs, labels, target)

    # The first target is the likeliest: at the clean input its loss is the highest of all targets.
    best = clean_candidate(aim_at(targets[0]))
    best, _ = jax.lax.scan(
        lambda best, target: (strengthen(best, aim_at(target)), None), best, targets
    )
    return best.x


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


def _ascend(
    loss_fn: Any,
    start: dict[str, jax.Array],
    best: Candidate,
    budget: Budget,
    norm: Norm,
    num_steps: int,
) -> Candidate:
    """One run from one start; returns the best of `best` and all iterates."""
    checkpoints = _checkpoints(num_steps)
    is_checkpoint = np.isin(np.arange(num_steps), checkpoints)
    window = np.zeros(num_steps, np.int32)
    window[checkpoints[1:]] = np.diff(checkpoints)
    is_first = np.arange(num_steps) == 0

    def iterate(state: _State, schedule: Any) -> tuple[_State, None]:
        is_checkpoint, window, is_first = schedule
        gradient, new = jax.grad(loss_fn, has_aux=True)(state.x)
        best = keep_stronger(state.best, new, misclassified_first=True)
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
        relative_step=jnp.full_like(best.loss, 2.0, jnp.float32),
        # As if it had halved, so that the start, which is a checkpoint, does not.
        checkpoint=_Checkpoint(lowest, lowest < 0, jnp.zeros_like(lowest, jnp.int32)),
    )
    state, _ = jax.lax.scan(iterate, state, (is_checkpoint, window, is_first))
    return keep_stronger(state.best, loss_fn(state.x)[1], misclassified_first=True)


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


def _checkpoints(num_steps: int) -> list[int]:
    """The steps ceil(p_j num_steps), p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06) from 0, 0.22.

    In whole per cent, as rounding errors would move the ceiling.
    """
    percent = [0, 22]
    while percent[-1] < 100:
        percent.append(percent[-1] + max(percent[-1] - percent[-2] - 3, 6))
    steps = {-(-p * num_steps // 100) for p in percent}
    return sorted(s for s in steps if s < num_steps)


def _likely_targets(log_probs: jax.Array, labels: jax.Array, num_targets: int) -> jax.Array:
    """(num_targets, B): the most likely classes other than the label, likeliest first."""
    if num_targets >= log_probs.shape[-1]:
        raise ValueError(
            f"num_targets must be less than the number of classes {log_probs.shape[-1]}, got "
            f"{num_targets}"
        )
    return jax.lax.top_k(mask_label(log_probs, labels), num_targets)[1].T
