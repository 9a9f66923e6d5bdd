"""The fast gradient method and projected gradient descent."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax.attacks._budget import (
    LogProbFn,
    Norm,
    clip,
    make_budget,
    make_loss_fn,
    per_sample,
    project,
    random_start,
    step,
)


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
    relative_step_size: float | None = None,
    valid_range: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
) -> dict[str, Any]:
    """Projected gradient descent on log p(label) inside the budget, from a random start.

    x <- project(x + step_size direction(grad)), direction as in `fgm`, projection onto the ball of
    radius epsilon around the input and then onto the valid range. Returned is, for every sample,
    whichever of the clean input and all iterates has the highest loss.

    Args:
      log_prob_fn: maps inputs to (B, K) log-probabilities; sample b may depend on sample b only.
      inputs: {modality: (B, ...)}; modalities without a budget may be any pytree.
      labels: (B,), integer; true classes, or predicted ones.
      key: PRNG key of the random start.
      epsilon: {modality: radius} in units of the input, a scalar each, traced or not; modalities
        not named are left untouched.
      norm: "linf" or "l2", per modality over all entries of a sample.
      num_steps: gradient evaluations, at least 1; static.
      relative_step_size: step length as a share of epsilon; None: 2.5 / num_steps, so that the
        steps together can cross the ball.
      valid_range: {modality: (low, high)} of valid entries, scalars or arrays; None: unbounded.

    Returns:
      The inputs with the named modalities perturbed.

    Raises:
      TypeError: a perturbed modality is not float32 or float64.
      ValueError: unknown norm or modality, an epsilon that is not a finite scalar >= 0, or
        num_steps < 1.

    References:
      Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to
      Adversarial Attacks", 2018.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    budget = make_budget(inputs, epsilon, norm, valid_range)
    loss_fn = make_loss_fn(log_prob_fn, inputs, labels)
    share = 2.5 / num_steps if relative_step_size is None else relative_step_size
    step_size = {name: share * radius for name, radius in budget.epsilon.items()}

    def keep_stronger(best: Any, best_loss: jax.Array, x: Any, loss: jax.Array) -> Any:
        stronger = loss > best_loss  # False for NaN: such an iterate is never kept
        best = jax.tree.map(
            lambda old, new: jnp.where(per_sample(stronger, new), new, old), best, x
        )
        return best, jnp.where(stronger, loss, best_loss)

    def iterate(carry: Any, _: None) -> tuple[Any, None]:
        x, best, best_loss = carry
        gradient, loss = jax.grad(loss_fn, has_aux=True)(x)
        best, best_loss = keep_stronger(best, best_loss, x, loss)
        x = clip(project(step(x, gradient, step_size, norm), budget, norm), budget)
        return (x, best, best_loss), None

    start = clip(random_start(key, budget, norm), budget)
    carry = (start, budget.clean, loss_fn(budget.clean)[1])
    (x, best, best_loss), _ = jax.lax.scan(iterate, carry, length=num_steps)
    best, _ = keep_stronger(best, best_loss, x, loss_fn(x)[1])
    return {**inputs, **best}
