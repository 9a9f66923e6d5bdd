"""Gradient attacks on a prediction function, with a budget per modality.

An attack sees one function from inputs to log-probabilities and differentiates it: given a fused
prediction it goes through the fusion rule, solve included. All are pure and work under `jax.jit`;
budgets may be traced, so one compiled attack serves every epsilon.

A prediction that is saturated in its dtype (p(label) = 1 after rounding) has a gradient of exactly
zero: there the attack fails without the prediction being robust. An accuracy under such an attack
that exceeds the one under a transferred attack is a sign of it; the worse of both counts.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_floating, check_modalities, check_scalar

LogProbFn = Callable[[dict[str, Any]], jax.Array]
Norm = Literal["linf", "l2"]


class _Budget(NamedTuple):
    """The perturbed modalities, their radii and their valid ranges."""

    clean: dict[str, jax.Array]
    epsilon: dict[str, jax.Array]
    valid_range: dict[str, tuple[jax.Array, jax.Array]]


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
    budget = _make_budget(inputs, epsilon, norm, valid_range)
    gradient, _ = jax.grad(_summed_loss(log_prob_fn, inputs, labels), has_aux=True)(budget.clean)
    adversarial = _step(budget.clean, gradient, budget.epsilon, norm)
    return {**inputs, **_clip(adversarial, budget)}


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
    budget = _make_budget(inputs, epsilon, norm, valid_range)
    summed_loss = _summed_loss(log_prob_fn, inputs, labels)
    share = 2.5 / num_steps if relative_step_size is None else relative_step_size
    step_size = {name: share * radius for name, radius in budget.epsilon.items()}

    def keep_stronger(best: Any, best_loss: jax.Array, x: Any, loss: jax.Array) -> Any:
        stronger = loss > best_loss  # False for NaN: such an iterate is never kept
        best = jax.tree.map(
            lambda old, new: jnp.where(_per_sample(stronger, new), new, old), best, x
        )
        return best, jnp.where(stronger, loss, best_loss)

    def iterate(carry: Any, _: None) -> tuple[Any, None]:
        x, best, best_loss = carry
        gradient, loss = jax.grad(summed_loss, has_aux=True)(x)
        best, best_loss = keep_stronger(best, best_loss, x, loss)
        x = _clip(_project(_step(x, gradient, step_size, norm), budget, norm), budget)
        return (x, best, best_loss), None

    start = _clip(_random_start(key, budget, norm), budget)
    carry = (start, budget.clean, summed_loss(budget.clean)[1])
    (x, best, best_loss), _ = jax.lax.scan(iterate, carry, length=num_steps)
    best, _ = keep_stronger(best, best_loss, x, summed_loss(x)[1])
    return {**inputs, **best}


def _make_budget(
    inputs: Mapping[str, Any],
    epsilon: Mapping[str, ArrayLike],
    norm: str,
    valid_range: Mapping[str, tuple[ArrayLike, ArrayLike]] | None,
) -> _Budget:
    """Checks the arguments that every attack shares."""
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm must be 'linf' or 'l2', got {norm!r}")
    valid_range = valid_range or {}
    names = check_modalities("epsilon", tuple(epsilon), inputs)
    check_modalities("valid_range", tuple(valid_range), inputs)
    budget = _Budget({}, {}, {})
    for name in names:
        clean = budget.clean[name] = jnp.asarray(inputs[name])
        check_floating(f"inputs[{name!r}]", clean)
        budget.epsilon[name] = check_scalar(f"epsilon[{name!r}]", epsilon[name], clean.dtype)
        if name in valid_range:
            low, high = (jnp.asarray(bound, clean.dtype) for bound in valid_range[name])
            budget.valid_range[name] = (low, high)
    return budget


def _summed_loss(
    log_prob_fn: LogProbFn, inputs: Mapping[str, Any], labels: ArrayLike
) -> Callable[[dict[str, jax.Array]], tuple[jax.Array, jax.Array]]:
    """The loss -log p(label) as a function of the perturbed modalities: its sum, and (B,)."""

    def summed_loss(perturbed: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        log_probs = log_prob_fn({**inputs, **perturbed})
        loss = -jnp.take_along_axis(log_probs, jnp.asarray(labels)[:, None], axis=-1)[:, 0]
        return loss.sum(), loss

    return summed_loss


def _step(
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


def _project(x: dict[str, jax.Array], budget: _Budget, norm: str) -> dict[str, jax.Array]:
    """Euclidean projection of every sample onto the ball around the clean input."""

    def project(x: jax.Array, clean: jax.Array, radius: jax.Array) -> jax.Array:
        delta = x - clean
        if norm == "linf":
            return clean + jnp.clip(delta, -radius, radius)
        return clean + jax.vmap(lambda d: optax.projections.projection_l2_ball(d, radius))(delta)

    return jax.tree.map(project, x, budget.clean, budget.epsilon)


def _clip(x: dict[str, jax.Array], budget: _Budget) -> dict[str, jax.Array]:
    """Clips to the valid range, but never moves an entry that started outside it further in."""
    clipped = dict(x)
    for name, (low, high) in budget.valid_range.items():
        clean = budget.clean[name]
        clipped[name] = jnp.clip(x[name], jnp.minimum(low, clean), jnp.maximum(high, clean))
    return clipped


def _random_start(key: jax.Array, budget: _Budget, norm: str) -> dict[str, jax.Array]:
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


def _per_sample(mask: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes (B,) so that it broadcasts against (B, ...)."""
    return mask.reshape(-1, *(1,) * (like.ndim - 1))
