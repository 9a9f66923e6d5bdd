"""An attack that shares nothing with `jacfuse_jax.attacks`: targets, steps and restarts by hand.

For every class other than the label, signed gradient steps with momentum on log p(class) -
log p(label), first from the clean input or from what the smaller budget found, then from a random
point; step sizes fall from a quarter of the budget to a hundredth of it. Budgets are nested.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

LogProbFn = Callable[[jax.Array, Any], jax.Array]


def withstands(
    log_prob_fn: LogProbFn,
    x: NDArray[Any],
    given: Any,
    labels: NDArray[Any],
    *,
    epsilons: Sequence[float],
    valid_range: tuple[float, float],
    num_targets: int = 9,
    num_steps: int = 150,
    seed: int = 0,
    batch_size: int = 50,
) -> NDArray[np.bool_]:
    """Which rows stay right within each linf budget, (len(epsilons), N).

    Args:
      log_prob_fn: maps (x (B, ...), given) to log-probabilities (B, K).
      x: (N, ...), clean.
      given: whatever else it takes, a tree of (N, ...).
      labels: (N,).
      epsilons: increasing.
      valid_range: of the entries of x.
      num_targets: classes to aim at, the likeliest wrong ones of the clean input.
      num_steps: of each target and start.
      seed: of the random starts.
      batch_size: rows at a time.
    """
    predict = jax.jit(log_prob_fn)
    log_probs = np.concatenate(
        [
            np.asarray(predict(*take(rows, batch_size, x, given)))[: len(rows)]
            for rows in chunks(np.arange(len(labels)), batch_size)
        ]
    )
    right = log_probs.argmax(axis=1) == labels
    is_label = np.arange(log_probs.shape[1]) == labels[:, None]
    ranked = np.where(is_label, -np.inf, log_probs).argsort(axis=1)[:, ::-1]
    starts = [np.array(x) for _ in range(num_targets)]
    key = jax.random.key(seed)
    results: list[NDArray[np.bool_]] = []
    for epsilon in epsilons:
        for number in range(num_targets):
            for random in (False, True):
                # What is lost is lost: no other start or larger budget has to be tried.
                for rows in chunks(np.flatnonzero(right), batch_size):
                    key, noise_key = jax.random.split(key)
                    clean, start, others, of_label, targets = take(
                        rows, batch_size, x, starts[number], given, labels, ranked[:, number]
                    )
                    if random:
                        noise = jax.random.uniform(noise_key, clean.shape, clean.dtype, -1, 1)
                        start = clean + epsilon * noise
                    found, fooled = _climb(
                        log_prob_fn,
                        clean,
                        start,
                        others,
                        of_label,
                        targets,
                        epsilon,
                        valid_range,
                        num_steps,
                    )
                    right[rows] &= ~np.asarray(fooled)[: len(rows)]
                    if not random:
                        starts[number][rows] = np.asarray(found)[: len(rows)]
        results.append(right.copy())
    return np.stack(results)


def chunks(rows: NDArray[Any], size: int) -> list[NDArray[Any]]:
    """The rows in parts of at most that size."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def take(rows: NDArray[Any], size: int, *trees: Any) -> Any:
    """These rows of every tree, the first ones once more up to that size."""
    padded = np.resize(rows, size)
    return jax.tree.map(lambda array: jnp.asarray(np.asarray(array)[padded]), trees)


@partial(jax.jit, static_argnames=("log_prob_fn", "valid_range", "num_steps"))
def _climb(
    log_prob_fn: LogProbFn,
    clean: jax.Array,
    start: jax.Array,
    given: Any,
    labels: jax.Array,
    targets: jax.Array,
    epsilon: jax.Array,
    valid_range: tuple[float, float],
    num_steps: int,
) -> tuple[jax.Array, jax.Array]:
    """The points of highest loss, and whether any point on the way is misclassified."""
    rows = jnp.arange(len(labels))

    def lead(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        log_probs = log_prob_fn(x, given)
        leads = log_probs[rows, targets] - log_probs[rows, labels]
        return leads.sum(), (leads, log_probs.argmax(axis=1) != labels)

    def clip(x: jax.Array) -> jax.Array:
        low = jnp.maximum(clean - epsilon, jnp.minimum(clean, valid_range[0]))
        high = jnp.minimum(clean + epsilon, jnp.maximum(clean, valid_range[1]))
        return jnp.clip(x, low, high)

    def wide(mask: jax.Array) -> jax.Array:
        return mask.reshape(-1, *(1,) * (clean.ndim - 1))

    def step(state: Any, share: jax.Array) -> tuple[Any, None]:
        x, momentum, best, best_lead, fooled = state
        gradient, (leads, is_wrong) = jax.grad(lead, has_aux=True)(x)
        better = leads > best_lead
        best = jnp.where(wide(better), x, best)
        size = jnp.abs(gradient).mean(axis=tuple(range(1, x.ndim)), keepdims=True)
        momentum = 0.75 * momentum + gradient / jnp.maximum(size, 1e-30)
        moved = clip(x + share * epsilon * jnp.sign(momentum))
        return (moved, momentum, best, jnp.maximum(leads, best_lead), fooled | is_wrong), None

    x = clip(start)
    nothing = jnp.full(len(labels), -jnp.inf, clean.dtype)
    state = (x, jnp.zeros_like(x), x, nothing, jnp.zeros(len(labels), bool))
    shares = jnp.asarray(np.geomspace(0.25, 0.01, num_steps), clean.dtype)
    (x, _, best, best_lead, fooled), _ = jax.lax.scan(step, state, shares)
    _, (leads, is_wrong) = lead(x)
    return jnp.where(wide(leads > best_lead), x, best), fooled | is_wrong
