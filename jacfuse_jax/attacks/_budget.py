"""What every attack needs: budgets, projections, random starts, and the loss to raise."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.typing import ArrayLike

from jacfuse_jax._checks import (
    check_choice,
    check_floating,
    check_labels,
    check_mapping,
    check_modalities,
    check_scalar,
    check_valid_range,
    nan_like,
)
from jacfuse_jax.attacks.losses import cross_entropy, dlr, margin

LogProbFn = Callable[[dict[str, Any]], jax.Array]
LossFn = Callable[[jax.Array, jax.Array], jax.Array]
LossName = Literal["cross_entropy", "margin", "dlr"]
Norm = Literal["linf", "l2"]
T = TypeVar("T")


class Budget(NamedTuple):
    """The perturbed modalities, their radii and their valid ranges; the labels (B,)."""

    clean: dict[str, jax.Array]
    epsilon: dict[str, jax.Array]
    valid_range: dict[str, tuple[jax.Array, jax.Array]]
    labels: jax.Array


class Candidate(NamedTuple):
    """Perturbed modalities, (B,) losses, and (B,) whether the most likely class is wrong."""

    x: dict[str, jax.Array]
    loss: jax.Array
    misclassified: jax.Array


def make_budget(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    labels: ArrayLike,
    epsilon: Mapping[str, ArrayLike],
    norm: str,
    valid_range: Mapping[str, tuple[ArrayLike, ArrayLike]] | None,
) -> Budget:
    """Checks the arguments that every attack shares."""
    check_choice("norm", norm, ("linf", "l2"))
    check_mapping("epsilon", epsilon, "radius")
    clean, classes = check_attacked(log_prob_fn, inputs, labels, "epsilon", tuple(epsilon))
    radii = {
        name: check_scalar(f"epsilon[{name!r}]", epsilon[name], x.dtype)
        for name, x in clean.items()
    }
    ranges = _check_ranges(valid_range, inputs, clean)
    for name in clean:  # no point that is NaN would be taken in place of the clean input
        clean[name] = nan_like(clean[name], radii[name], *ranges.get(name, ()))
    return Budget(clean, radii, ranges, classes)


def check_attacked(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    labels: ArrayLike,
    argument: str,
    names: tuple[str, ...],
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Returns the named modalities and the labels; raises unless an attack can start from them.

    A sample whose traced label is no class becomes NaN, and so does all that follows from it.
    """
    check_mapping("inputs", inputs, "(B, ...)")
    clean: dict[str, jax.Array] = {}
    for name in check_modalities(argument, names, inputs):
        clean[name] = jnp.asarray(inputs[name])
        check_floating(f"inputs[{name!r}]", clean[name])
    shape = jax.eval_shape(lambda perturbed: log_prob_fn({**inputs, **perturbed}), clean).shape
    if len(shape) != 2:
        raise ValueError(f"log_prob_fn must return shape (B, K), got {shape}")
    classes = check_labels("labels", labels, *shape)
    if isinstance(classes, Tracer):
        is_class = classes < shape[1]
        clean = {name: jnp.where(per_sample(is_class, x), x, jnp.nan) for name, x in clean.items()}
    return clean, classes


def _check_ranges(
    valid_range: Mapping[str, tuple[ArrayLike, ArrayLike]] | None,
    inputs: Mapping[str, Any],
    clean: dict[str, jax.Array],
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The valid ranges of the perturbed modalities, which broadcast against them."""
    valid_range = {} if valid_range is None else valid_range
    check_mapping("valid_range", valid_range, "(low, high)")
    check_modalities("valid_range", tuple(valid_range), inputs)
    return {
        name: check_valid_range(f"valid_range[{name!r}]", valid_range[name], x)
        for name, x in clean.items()
        if name in valid_range
    }


def choose_loss(loss: LossName | LossFn) -> LossFn:
    """The loss of that name; a callable is returned as it is."""
    if callable(loss):
        return loss
    known: dict[str, LossFn] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}
    check_choice("loss", loss, tuple(known))
    return known[loss]


def make_loss_fn(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    labels: jax.Array,
    loss: LossFn = cross_entropy,
) -> Callable[[dict[str, jax.Array]], tuple[jax.Array, Candidate]]:
    """The loss as a function of the perturbed modalities: its sum to differentiate, and the rest.

    The sum gives every sample the cotangent 1, so that NaN in one reaches no other.
    """

    def loss_fn(perturbed: dict[str, jax.Array]) -> tuple[jax.Array, Candidate]:
        log_probs = log_prob_fn({**inputs, **perturbed})
        losses = loss(log_probs, labels)
        if losses.shape != labels.shape:
            raise ValueError(
                f"loss must return shape {labels.shape}, one number a sample, got {losses.shape}"
            )
        is_wrong = log_probs.argmax(axis=-1).astype(labels.dtype) != labels
        return losses.sum(), Candidate(perturbed, losses, is_wrong & ~jnp.isnan(losses))

    return loss_fn


def keep_stronger(
    best: Candidate,
    new: Candidate,
    *,
    misclassified_first: bool,
    freeze_misclassified: bool = False,
) -> Candidate:
    """The candidate of higher loss, sample by sample; one whose loss is NaN is never taken.

    Optionally what is misclassified beats what is not, and is itself never replaced.
    """
    stronger = new.loss > best.loss
    if misclassified_first:
        equals = new.misclassified == best.misclassified
        stronger = jnp.where(equals, stronger, new.misclassified)
    if freeze_misclassified:
        stronger &= ~best.misclassified
    return select(stronger, new, best)


def step(
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


def project(x: dict[str, jax.Array], budget: Budget, norm: str) -> dict[str, jax.Array]:
    """Euclidean projection of every sample onto the ball, then entry by entry onto the range."""

    def project(x: jax.Array, clean: jax.Array, radius: jax.Array) -> jax.Array:
        if norm == "linf":
            return clean + optax.projections.projection_linf_ball(x - clean, radius)
        # Onto the unit ball: optax squares the radius, and 0 / 0 follows where that is zero.
        delta = (x - clean) / jnp.where(radius > 0, radius, 1)
        return clean + radius * jax.vmap(optax.projections.projection_l2_ball)(delta)

    return clip(jax.tree.map(project, x, budget.clean, budget.epsilon), budget)


def clip(x: dict[str, jax.Array], budget: Budget) -> dict[str, jax.Array]:
    """Clips to the valid range, but never moves an entry that started outside it further in."""
    clipped = dict(x)
    for name, (low, high) in budget.valid_range.items():
        clean = budget.clean[name]
        clipped[name] = jnp.clip(x[name], jnp.minimum(low, clean), jnp.maximum(high, clean))
    return clipped


def over_restarts(
    run: Callable[[Candidate, jax.Array], Candidate],
    best: Candidate,
    key: jax.Array,
    num_restarts: int,
) -> Candidate:
    """Hands the best candidate from run to run; the first has `key`, more repeat those of fewer."""
    if num_restarts == 1:  # without a loop around it, the run is half the work to compile
        return run(best, key)
    # `random_start` folds the numbers of modalities into its key: one more of them comes first.
    parent = jax.random.fold_in(key, len(best.x))
    later = jax.vmap(partial(jax.random.fold_in, parent))(jnp.arange(num_restarts - 1))
    keys = jnp.concatenate([key[None], later])
    return jax.lax.scan(lambda best, key: (run(best, key), None), best, keys)[0]


def random_start(key: jax.Array, budget: Budget, norm: str) -> dict[str, jax.Array]:
    """A point of the ball and range: uniform for linf, uniform direction and radius for l2."""
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
    return clip(start, budget)


def select(mask: jax.Array, chosen: T, other: T) -> T:
    """The samples of `chosen` where the (B,) mask holds and of `other` elsewhere, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(per_sample(mask, a), a, b), chosen, other)


def check_counts(**counts: int) -> None:
    """Raises ValueError unless every count is at least one."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def per_sample(mask: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes (B,) so that it broadcasts against (B, ...)."""
    return mask.reshape(-1, *(1,) * (like.ndim - 1))
