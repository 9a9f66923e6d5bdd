"""Random search in the budget: the baseline that every other attack must beat."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax.attacks._budget import Budget, check_counts, clip, make_budget
from jacfuse_jax.attacks._compiled import run_compiled
from jacfuse_jax.attacks._goal import LogProbFn
from jacfuse_jax.attacks._samples import select


def random_search(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    labels: ArrayLike,
    key: jax.Array,
    *,
    epsilon: Mapping[str, ArrayLike],
    norm: Literal["linf", "l2"] = "linf",
    num_queries: int = 1000,
    valid_range: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    targets: ArrayLike | None = None,
) -> dict[str, Any]:
    """Random search: x' = clip(x + epsilon u), u drawn independently for every query.

    u is a random corner of the cube for linf and uniform on the sphere for l2; all named modalities
    move at once. Returned is, for every sample, whichever of the clean input and all draws has the
    largest `losses.margin`; with targets, the largest log p(target) - max_{k != target} log p_k.
    With the same key the first queries of a longer search are those of a shorter one. In many
    dimensions a random direction hardly moves the margin: an attack that does not beat this one is
    broken, and a prediction that this one breaks has no robustness.

    Args:
      log_prob_fn: maps inputs to (B, K) log-probabilities; sample b may depend on sample b only.
      inputs: {modality: (B, ...)}; modalities without a budget may be any pytree.
      labels: (B,), integer; true classes, or predicted ones.
      key: PRNG key of the draws.
      epsilon: {modality: radius} in units of the input, traced or not, each a scalar or (B,), a
        radius a sample; modalities not named are left untouched.
      norm: "linf" or "l2", per modality over all entries of a sample.
      num_queries: evaluations of log_prob_fn besides that of the clean input, at least 1; static.
      valid_range: {modality: (low, high)} of valid entries, scalars or arrays; None: unbounded.
      targets: (B,), integer; classes that the samples are driven to, one that is the label
        included; None: any but the label.

    Returns:
      The inputs with the named modalities perturbed; a sample whose margin never rises, or is NaN,
      is returned as it is.

    Raises:
      TypeError: a perturbed modality is not float32 or float64, or labels or targets are not
        integer.
      ValueError: unknown norm or modality, an epsilon that is not finite and >= 0 or of another
        shape, a label or target that is no class, num_queries < 1, or fewer than 2 classes.
    """
    check_counts(num_queries=num_queries)
    budget = make_budget(log_prob_fn, inputs, labels, epsilon, norm, valid_range, targets)
    perturbed = run_compiled(
        _random_search, log_prob_fn, inputs, budget, key, norm=norm, num_queries=num_queries
    )
    return {**inputs, **perturbed}


def _random_search(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    budget: Budget,
    key: jax.Array,
    *,
    norm: str,
    num_queries: int,
) -> dict[str, jax.Array]:
    """The modalities that `random_search` perturbs."""

    def loss_fn(x: dict[str, jax.Array]) -> jax.Array:
        return budget.goal.margin(log_prob_fn({**inputs, **x}))

    def query(carry: tuple[Any, Any], index: jax.Array) -> tuple[tuple[Any, Any], None]:
        best, best_loss = carry
        x = clip(_draw(jax.random.fold_in(key, index), budget, norm), budget)
        return keep_larger(best, best_loss, x, loss_fn(x)), None

    carry = (budget.clean, loss_fn(budget.clean))
    (best, _), _ = jax.lax.scan(query, carry, jnp.arange(num_queries))
    return best


def keep_larger(
    best: dict[str, jax.Array], best_loss: jax.Array, x: dict[str, jax.Array], loss: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Replaces every sample whose loss, (B,), has risen; never by one whose loss is NaN."""
    stronger = loss > best_loss
    return select(stronger, (x, loss), (best, best_loss))


def _draw(key: jax.Array, budget: Budget, norm: str) -> dict[str, jax.Array]:
    """A random corner of the cube, or a random point of the sphere, around every sample."""
    drawn: dict[str, jax.Array] = {}
    for index, (name, clean) in enumerate(sorted(budget.clean.items())):
        modality_key = jax.random.fold_in(key, index)
        if norm == "linf":
            delta = jax.random.rademacher(modality_key, clean.shape, clean.dtype)
        else:
            delta = jax.random.normal(modality_key, clean.shape, clean.dtype)
            delta /= jnp.sqrt((delta**2).sum(tuple(range(1, delta.ndim)), keepdims=True))
        drawn[name] = clean + budget.epsilon[name] * delta
    return drawn
