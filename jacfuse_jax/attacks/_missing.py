"""The attacker who chooses which entries are missing: a gradient attack on the l0 budget."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_mapping, check_modalities, nan_like
from jacfuse_jax._devices import beside
from jacfuse_jax.attacks._budget import check_attacked, check_counts, check_per_sample
from jacfuse_jax.attacks._compiled import run_compiled
from jacfuse_jax.attacks._goal import Goal, LogProbFn
from jacfuse_jax.attacks._search import keep_larger


def adversarial_missing(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    labels: ArrayLike,
    key: jax.Array,
    *,
    fraction: Mapping[str, ArrayLike],
    fill_value: Mapping[str, ArrayLike],
    num_steps: int = 20,
    targets: ArrayLike | None = None,
) -> dict[str, Any]:
    """Adversarial missing entries: x'_i = fill_i for at most k = round(fraction * D) entries i.

    Greedy on the first-order rise of `losses.margin`, g_i (fill_i - x_i) with g its gradient at the
    entries chosen so far: round t of num_steps fills up to ceil(t k / num_steps) entries with the
    largest positive rises, and takes none back. Returned is, for every sample, whichever of the
    clean input, one random choice of k entries and all rounds has the largest margin. Exact for two
    linear classes; elsewhere a lower bound on what the attacker can do, loose where filling an
    entry is far from linear: then more rounds help, up to one an entry.

    Args:
      log_prob_fn: maps inputs to (B, K) log-probabilities; sample b may depend on sample b only.
      inputs: {modality: (B, ...)}; modalities without a fraction may be any pytree.
      labels: (B,), integer; true classes, or predicted ones.
      key: PRNG key of the random choice.
      fraction: {modality: share} of the D entries of a sample, in [0, 1], traced or not, each a
        scalar or (B,), a share a sample; modalities not named are left untouched.
      fill_value: {modality: value} that missing entries read, a scalar or an array that broadcasts
        to (B, ...); one for every modality in fraction.
      num_steps: gradient evaluations, at least 1; static.
      targets: (B,), integer; classes that the samples are driven to, one that is the label
        included: the margin is then log p(target) - max_{k != target} log p_k; None: any but the
        label.

    Returns:
      The inputs with entries of the named modalities filled; a sample whose margin never rises, or
      is NaN, is returned as it is.

    Raises:
      TypeError: a perturbed modality is not float32 or float64, or labels or targets are not
        integer.
      ValueError: unknown modality, one without a fill value, a fraction that is not in [0, 1] or of
        another shape, a label or target that is no class, num_steps < 1, or fewer than 2 classes.

    References:
      Papernot, McDaniel, Jha, Fredrikson, Celik, Swami, "The Limitations of Deep Learning in
      Adversarial Settings", 2016 (greedy choice of entries by first-order scores).
    """
    check_counts(num_steps=num_steps)
    check_mapping("fraction", fraction, "share")
    check_mapping("fill_value", fill_value, "value")
    check_modalities("fill_value", tuple(fill_value), inputs)
    clean, goal = check_attacked(log_prob_fn, inputs, labels, targets, "fraction", tuple(fraction))
    filled: dict[str, jax.Array] = {}
    count: dict[str, jax.Array] = {}
    for name, x in clean.items():
        if name not in fill_value:
            raise ValueError(f"fill_value must name {name!r}, as fraction does")
        filled[name] = jnp.broadcast_to(jnp.asarray(fill_value[name], x.dtype), x.shape)
        share = check_per_sample(f"fraction[{name!r}]", fraction[name], x, high=1)
        clean[name] = nan_like(x, share)
        count[name] = jnp.round(share * math.prod(x.shape[1:])).astype(int)
    perturbed = run_compiled(
        _adversarial_missing,
        log_prob_fn,
        inputs,
        clean,
        filled,
        count,
        goal,
        key,
        num_steps=num_steps,
    )
    return {**inputs, **perturbed}


def _adversarial_missing(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    clean: dict[str, jax.Array],
    filled: dict[str, jax.Array],
    count: dict[str, jax.Array],
    goal: Goal,
    key: jax.Array,
    *,
    num_steps: int,
) -> dict[str, jax.Array]:
    """The modalities that `adversarial_missing` perturbs."""

    def loss_fn(x: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        loss = goal.margin(log_prob_fn({**inputs, **x}))
        return loss.sum(), loss

    def fill(missing: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return jax.tree.map(jnp.where, missing, filled, clean)

    def extend(carry: Any, step: jax.Array) -> tuple[Any, None]:
        missing, best, best_loss = carry
        x = fill(missing)
        gradient, loss = jax.grad(loss_fn, has_aux=True)(x)
        best, best_loss = keep_larger(best, best_loss, x, loss)

        def choose(
            missing: jax.Array, g: jax.Array, x: jax.Array, filled: jax.Array, count: jax.Array
        ) -> jax.Array:
            rise = g * (filled - x)
            rise = jnp.where(missing, jnp.inf, jnp.where(jnp.isnan(rise), 0, rise))
            allowed = -(-count * step // num_steps)
            return (rise > 0) & (_ranks(rise) < allowed)

        missing = jax.tree.map(choose, missing, gradient, x, filled, count)
        return (missing, best, best_loss), None

    best, best_loss = clean, loss_fn(clean)[1]
    random = fill(_draw(key, clean, count))
    best, best_loss = keep_larger(best, best_loss, random, loss_fn(random)[1])
    missing = {name: jnp.zeros_like(x, bool) for name, x in clean.items()}
    (missing, best, best_loss), _ = jax.lax.scan(
        extend, (missing, best, best_loss), jnp.arange(1, num_steps + 1)
    )
    x = fill(missing)
    best, _ = keep_larger(best, best_loss, x, loss_fn(x)[1])
    return best


def _ranks(x: jax.Array) -> jax.Array:
    """The rank of every entry within its sample, 0 for the largest; ties in order of position."""
    order = jnp.argsort(-x.reshape(len(x), math.prod(x.shape[1:])), axis=1)
    return jnp.argsort(order, axis=1).reshape(x.shape)


def _draw(
    key: jax.Array, clean: dict[str, jax.Array], count: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Uniformly random entries, `count` a sample."""
    keys = jax.random.split(key, len(clean))
    return {
        name: _ranks(beside(jax.random.uniform(modality_key, x.shape), x)) < count[name]
        for modality_key, (name, x) in zip(keys, sorted(clean.items()), strict=True)
    }
