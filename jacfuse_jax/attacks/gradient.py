"""The fast gradient method and projected gradient descent."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_choice
from jacfuse_jax.attacks._budget import (
    Candidate,
    LogProbFn,
    LossFn,
    LossName,
    Norm,
    check_counts,
    choose_loss,
    clip,
    keep_stronger,
    make_budget,
    make_loss_fn,
    over_restarts,
    project,
    random_start,
    step,
)
from jacfuse_jax.attacks.losses import cross_entropy


def fgm(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    labels: ArrayLike,
    *,
    epsilon: Mapping[str, ArrayLike],
    norm: Norm = "linf",
    valid_range: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
) -> dict[str, Any]:
    """Fast gradient method: one step of length epsilon up the loss -log p(label).

    x' = clip(x + epsilon sign(grad)) for linf (FGSM), x' = clip(x + epsilon grad / ||grad||_2) for
    l2. A sample whose gradient vanishes or is not finite is returned as it is.

    Args:
      log_prob_fn: maps inputs to (B, K) log-probabilities; sample b may depend on sample b only.
      inputs: {modality: (B, ...)}; modalities without a budget may be any pytree.
      labels: (B,), integer; true classes, or predicted ones.
      epsilon: {modality: radius} in units of the input, a scalar each, traced or not; modalities
        not named are left untouched.
      norm: "linf" or "l2", per modality over all entries of a sample.
      valid_range: {modality: (low, high)} of valid entries, scalars or arrays; None: unbounded.

    Returns:
      The inputs with the named modalities perturbed.

    Raises:
      TypeError: a perturbed modality is not float32 or float64.
      ValueError: unknown norm or modality, or an epsilon that is not a finite scalar >= 0.

    References:
      Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", 2015.
    """
    budget = make_budget(inputs, epsilon, norm, valid_range)
    gradient, _ = jax.grad(make_loss_fn(log_prob_fn, inputs, labels), has_aux=True)(budget.clean)
    adversarial = step(budget.clean, gradient, budget.epsilon, norm)
    return {**inputs, **clip(adversarial, budget)}


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
    relative_step_size: float | None = None,
    step_schedule: Literal["constant", "cosine"] = "constant",
    loss: LossName | LossFn = "cross_entropy",
    early_stop: bool = False,
    valid_range: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
) -> dict[str, Any]:
    """Projected gradient ascent on the loss inside the budget, from random starts.

    x <- project(x + step_size direction(grad)), direction as in `fgm`, projection onto the ball of
    radius epsilon around the input and then onto the valid range. Returned is, for every sample,
    whichever of the clean input and all iterates has the highest loss; under a loss other than
    cross-entropy those that are misclassified (argmax is not the label) come before the others.

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
      relative_step_size: mean step length as a share of epsilon; None: 2.5 / num_steps, so that the
        steps together can cross the ball.
      step_schedule: "constant", or "cosine": step k = 0, 1, ... is 1 + cos(pi (k + 1/2) /
        num_steps) times the mean.
      loss: "cross_entropy", "margin" or "dlr" (see `losses`), or a function of (B, K)
        log-probabilities and (B,) labels that returns (B,) losses.
      early_stop: a sample that is misclassified is frozen: returned is the clean input if it is
        misclassified, or else the first such iterate. It saves no time, as shapes are static.
      valid_range: {modality: (low, high)} of valid entries, scalars or arrays; None: unbounded.

    Returns:
      The inputs with the named modalities perturbed.

    Raises:
      TypeError: a perturbed modality is not float32 or float64.
      ValueError: unknown norm, modality, loss or schedule, too few classes for the loss, an
        epsilon that is not a finite scalar >= 0, or num_steps or num_restarts < 1.

    References:
      Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to
      Adversarial Attacks", 2018.
    """
    check_counts(num_steps=num_steps, num_restarts=num_restarts)
    check_choice("step_schedule", step_schedule, ("constant", "cosine"))
    budget = make_budget(inputs, epsilon, norm, valid_range)
    raised = choose_loss(loss)
    loss_fn = make_loss_fn(log_prob_fn, inputs, labels, raised)
    keep = partial(
        keep_stronger,
        misclassified_first=early_stop or raised is not cross_entropy,
        freeze_misclassified=early_stop,
    )
    share = 2.5 / num_steps if relative_step_size is None else relative_step_size
    factors = jnp.ones(num_steps)
    if step_schedule == "cosine":
        factors += jnp.cos(jnp.pi * (jnp.arange(num_steps) + 0.5) / num_steps)

    def iterate(carry: Any, factor: jax.Array) -> tuple[Any, None]:
        x, best = carry
        gradient, new = jax.grad(loss_fn, has_aux=True)(x)
        best = keep(best, new)
        step_size = {
            name: share * factor.astype(radius.dtype) * radius
            for name, radius in budget.epsilon.items()
        }
        return (project(step(x, gradient, step_size, norm), budget, norm), best), None

    def run(best: Candidate, key: jax.Array) -> Candidate:
        carry = (random_start(key, budget, norm), best)
        (x, best), _ = jax.lax.scan(iterate, carry, factors)
        return keep(best, loss_fn(x)[1])

    best = over_restarts(run, loss_fn(budget.clean)[1], key, num_restarts)
    return {**inputs, **best.x}
