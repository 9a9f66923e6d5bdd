"""The fast gradient method and projected gradient descent."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_choice, check_scalar
from jacfuse_jax.attacks._budget import (
    Budget,
    Norm,
    check_counts,
    clip,
    make_budget,
    project,
    spoil_where_nan,
    step,
)
from jacfuse_jax.attacks._compiled import run_compiled
from jacfuse_jax.attacks._goal import (
    Candidate,
    LogProbFn,
    LossFn,
    LossName,
    choose_loss,
    keep_stronger,
    make_loss_fn,
)
from jacfuse_jax.attacks._starts import check_initial, over_restarts
from jacfuse_jax.attacks.losses import cross_entropy


def fgm(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    labels: ArrayLike,
    *,
    epsilon: Mapping[str, ArrayLike],
    norm: Norm = "linf",
    valid_range: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    targets: ArrayLike | None = None,
) -> dict[str, Any]:
    """Fast gradient method: one step of length epsilon up the loss -log p(label).

    x' = clip(x + epsilon sign(grad)) for linf (FGSM), x' = clip(x + epsilon grad / ||grad||_2) for
    l2. A sample whose gradient vanishes or is not finite is returned as it is. With targets the
    loss is log p(target).

    Args:
      log_prob_fn: maps inputs to (B, K) log-probabilities; sample b may depend on sample b only.
      inputs: {modality: (B, ...)}; modalities without a budget may be any pytree.
      labels: (B,), integer; true classes, or predicted ones.
      epsilon: {modality: radius} in units of the input, traced or not, each a scalar or (B,), a
        radius a sample; modalities not named are left untouched.
      norm: "linf" or "l2", per modality over all entries of a sample.
      valid_range: {modality: (low, high)} of valid entries, scalars or arrays; None: unbounded.
      targets: (B,), integer; classes that the samples are driven to, one that is the label
        included; None: any but the label.

    Returns:
      The inputs with the named modalities perturbed.

    Raises:
      TypeError: a perturbed modality is not float32 or float64, or labels or targets are not
        integer.
      ValueError: unknown norm or modality, an epsilon that is not finite and >= 0 or of another
        shape, or a label or target that is no class.

    References:
      Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", 2015.
    """
    budget = make_budget(log_prob_fn, inputs, labels, epsilon, norm, valid_range, targets)
    return {**inputs, **run_compiled(_fgm, log_prob_fn, inputs, budget, norm=norm)}


def _fgm(
    log_prob_fn: LogProbFn, inputs: Mapping[str, Any], budget: Budget, *, norm: Norm
) -> dict[str, jax.Array]:
    """The modalities that `fgm` perturbs."""
    loss = choose_loss("cross_entropy", budget.goal)
    loss_fn = make_loss_fn(log_prob_fn, inputs, budget.goal, loss)
    gradient, _ = jax.grad(loss_fn, has_aux=True)(budget.clean)
    return clip(step(budget.clean, gradient, budget.epsilon, norm), budget)


def pgd(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    labels: ArrayLike,
    key: jax.Array,
    *,
    epsilon: Mapping[str, ArrayLike],
    norm: Norm = "linf",
    num_steps: int = 20,
    num_restarts: int = 1,
    relative_step_size: ArrayLike | None = None,
    step_schedule: Literal["constant", "cosine"] = "constant",
    loss: LossName | LossFn = "cross_entropy",
    early_stop: bool = False,
    valid_range: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    targets: ArrayLike | None = None,
    initial: Mapping[str, ArrayLike] | None = None,
) -> dict[str, Any]:
    """Projected gradient ascent on the loss inside the budget, from random starts.

    x <- project(x + step_size direction(grad)), direction as in `fgm`, projection onto the ball of
    radius epsilon around the input and then onto the valid range. Returned is, for every sample,
    whichever of the clean input and all iterates has the highest loss; under a loss other than
    cross-entropy those that are misclassified (argmax is not the label) come before the others.

    With targets, under every loss, those classified as the target come first, and the losses are
    log p(target) for "cross_entropy", log p(target) - max_{k != target} log p_k for "margin" and
    `losses.targeted_dlr` for "dlr", that is minus `losses.dlr` where the target is the label.

    Args:
      log_prob_fn: maps inputs to (B, K) log-probabilities; sample b may depend on sample b only.
      inputs: {modality: (B, ...)}; modalities without a budget may be any pytree.
      labels: (B,), integer; true classes, or predicted ones.
      key: PRNG key of the random starts.
      epsilon: {modality: radius} in units of the input, traced or not, each a scalar or (B,), a
        radius a sample; modalities not named are left untouched.
      norm: "linf" or "l2", per modality over all entries of a sample.
      num_steps: gradient evaluations a restart, at least 1; static.
      num_restarts: random starts, one after another in the memory of one; the first is that of a
        single start, so more are never weaker; static.
      relative_step_size: mean step length as a share of epsilon; None: 2.5 / num_steps, so that the
        steps together can cross the ball.
      step_schedule: "constant", or "cosine": step k = 0, 1, ... is 1 + cos(pi (k + 1/2) /
        num_steps) times the mean.
      loss: "cross_entropy", "margin" or "dlr" (see `losses`), or a function of (B, K)
        log-probabilities and (B,) labels that returns (B,) losses, to be raised; with targets it is
        one of log-probabilities, labels and targets, as `losses.targeted_dlr` is.
      early_stop: a sample that is misclassified, or classified as its target, is frozen: returned
        is the clean input if it is that already, or else the first such iterate. It saves no time,
        as shapes are static.
      valid_range: {modality: (low, high)} of valid entries, scalars or arrays; None: unbounded.
      targets: (B,), integer; classes that the samples are driven to, one that is the label
        included; None: any but the label.
      initial: {modality: (B, ...)} where the first run starts instead of at random, for all
        modalities in epsilon; projected first, unless in the budget and range already. A candidate
        itself, so that what an attack has found with a smaller epsilon is not lost.

    Returns:
      The inputs with the named modalities perturbed.

    Raises:
      TypeError: a perturbed modality is not float32 or float64, or labels or targets are not
        integer.
      ValueError: unknown norm, modality, loss or schedule, too few classes for the loss, an
        epsilon that is not finite and >= 0 or of another shape, an initial without or with another
        modality or of another shape, a label or target that is no class, or num_steps or
        num_restarts < 1.

    References:
      Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to
      Adversarial Attacks", 2018.
    """
    check_counts(num_steps=num_steps, num_restarts=num_restarts)
    check_choice("step_schedule", step_schedule, ("constant", "cosine"))
    budget = make_budget(log_prob_fn, inputs, labels, epsilon, norm, valid_range, targets)
    share = 2.5 / num_steps
    if relative_step_size is not None:
        share = check_scalar("relative_step_size", relative_step_size, jnp.result_type(float))
        budget = spoil_where_nan(budget, share)
    perturbed = run_compiled(
        _pgd,
        log_prob_fn,
        inputs,
        budget,
        key,
        jnp.asarray(share, float),
        check_initial(initial, budget),
        norm=norm,
        num_steps=num_steps,
        num_restarts=num_restarts,
        step_schedule=step_schedule,
        loss=choose_loss(loss, budget.goal),
        early_stop=early_stop,
    )
    return {**inputs, **perturbed}


def _pgd(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    budget: Budget,
    key: jax.Array,
    share: jax.Array,
    initial: dict[str, jax.Array] | None,
    *,
    norm: Norm,
    num_steps: int,
    num_restarts: int,
    step_schedule: str,
    loss: LossFn,
    early_stop: bool,
) -> dict[str, jax.Array]:
    """The modalities that `pgd` perturbs."""
    loss_fn = make_loss_fn(log_prob_fn, inputs, budget.goal, loss)
    keep = partial(
        keep_stronger,
        success_first=early_stop or loss is not cross_entropy,
        freeze_success=early_stop,
    )
    factors = jnp.ones(num_steps)
    if step_schedule == "cosine":
        factors += np.cos(np.pi * (np.arange(num_steps) + 0.5) / num_steps).astype(factors.dtype)

    def iterate(carry: Any, factor: jax.Array) -> tuple[Any, None]:
        x, best = carry
        gradient, new = jax.grad(loss_fn, has_aux=True)(x)
        best = keep(best, new)
        step_size = {
            name: (share * factor).astype(radius.dtype) * radius
            for name, radius in budget.epsilon.items()
        }
        return (project(step(x, gradient, step_size, norm), budget, norm), best), None

    def run(best: Candidate, start: dict[str, jax.Array]) -> Candidate:
        (x, best), _ = jax.lax.scan(iterate, (start, best), factors)
        return keep(best, loss_fn(x)[1])

    best = loss_fn(budget.clean)[1]
    return over_restarts(run, best, key, num_restarts, budget=budget, norm=norm, initial=initial).x
