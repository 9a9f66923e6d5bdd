"""HopSkipJump: an attack that sees nothing but the predicted class."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_mapping
from jacfuse_jax._devices import beside
from jacfuse_jax.attacks._budget import Budget, clip, make_budget
from jacfuse_jax.attacks._compiled import run_compiled
from jacfuse_jax.attacks._goal import LogProbFn
from jacfuse_jax.attacks._samples import per_sample, perturbation_norm

DecisionFn = Callable[[jax.Array], jax.Array]


def hop_skip_jump(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    labels: ArrayLike,
    key: jax.Array,
    *,
    epsilon: Mapping[str, ArrayLike],
    valid_range: Mapping[str, tuple[ArrayLike, ArrayLike]],
    norm: Literal["linf", "l2"] = "l2",
    num_iterations: int = 20,
    num_draws: int = 100,
    num_halvings: int = 20,
    num_starts: int = 100,
    targets: ArrayLike | None = None,
) -> dict[str, Any]:
    """HopSkipJump: walks along the decision boundary to the misclassified point nearest by.

    Uniform draws from the valid range are tried until one is misclassified, and a binary search
    towards the input brings it to the boundary. Every iteration j estimates the normal of the
    boundary there, v ~ mean_i (phi(x + delta u_i) - mean phi) u_i with phi = 1 where misclassified
    and -1 elsewhere, u_i random unit vectors and delta the distance over the number of entries;
    goes from the boundary along v (sign v for linf) by distance / sqrt(j), halved until
    misclassified; and returns to the boundary by binary search.

    It needs no gradients and no log-probabilities, only their largest, so that it tells a robust
    prediction from one that hides its gradients. In float32 the estimate loses accuracy where delta
    falls below the spacing of the entries: inputs of more than about 10^5 of them.

    Departs from the paper in this: the binary searches take fixed numbers of steps; delta follows
    the distance of the boundary point, not of the point before the last binary search; the nearest
    of all iterates counts, not the last; it is moved 0.1 percent outward where the budget allows.

    Args:
      log_prob_fn: maps inputs to (B, K) log-probabilities, of which the attack uses the argmax; one
        with NaN counts as classified correctly. Sample b may depend on sample b only.
      inputs: {modality: (B, ...)}; modalities without a budget may be any pytree.
      labels: (B,), integer; true classes, or predicted ones.
      key: PRNG key of the starts and of the estimates.
      epsilon: {modality: radius} of a single modality, in units of the input, traced or not, a
        scalar or (B,), a radius a sample; the other modalities are left untouched.
      valid_range: {modality: (low, high)} of valid entries, finite, scalars or arrays.
      norm: "linf" or "l2", over all entries of a sample.
      num_iterations: estimates of the normal, at least 1; static.
      num_draws: evaluations in the first estimate, at least 1, sqrt(j) times as many in the j-th;
        static.
      num_halvings: evaluations in a binary search, and in a search for a step, at least 1; static.
      num_starts: evaluations in search of a start, at least 1; static.
      targets: (B,), integer; "misclassified" then means classified as the target, which uniform
        draws may never be; None: as any class but the label.

    Returns:
      The inputs with the named modality perturbed where the nearest misclassified point lies within
      the budget; a sample with none there, without a start, or misclassified from the beginning, is
      returned as it is.

    Raises:
      TypeError: the perturbed modality is not float32 or float64, or labels or targets are not
        integer.
      ValueError: unknown norm or modality, several perturbed modalities, one without a valid range,
        an epsilon that is not finite and >= 0 or of another shape, a label or target that is no
        class, or a number of evaluations < 1.

    References:
      Chen, Jordan, Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", 2020.
    """
    if min(num_iterations, num_draws, num_halvings, num_starts) < 1:
        raise ValueError(
            "num_iterations, num_draws, num_halvings and num_starts must be at least 1, got "
            f"{num_iterations}, {num_draws}, {num_halvings} and {num_starts}"
        )
    check_mapping("epsilon", epsilon, "radius")
    check_mapping("valid_range", valid_range, "(low, high)")
    if len(epsilon) != 1:
        raise ValueError(
            f"epsilon must name one modality, got {sorted(epsilon)}; distances do not add up"
        )
    (name,) = epsilon
    if name not in valid_range:
        raise ValueError(f"valid_range must name {name!r}, since starts are drawn from it")
    budget = make_budget(
        log_prob_fn, inputs, labels, epsilon, norm, {name: valid_range[name]}, targets
    )
    if not all(isinstance(x, Tracer) or np.isfinite(x).all() for x in valid_range[name]):
        raise ValueError(
            f"valid_range[{name!r}] must be finite, since starts are drawn from it, got "
            f"{valid_range[name]}"
        )
    perturbed = run_compiled(
        _hop_skip_jump,
        log_prob_fn,
        inputs,
        budget,
        key,
        norm=norm,
        num_iterations=num_iterations,
        num_draws=num_draws,
        num_halvings=num_halvings,
        num_starts=num_starts,
    )
    return {**inputs, name: perturbed}


def _hop_skip_jump(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    budget: Budget,
    key: jax.Array,
    *,
    norm: str,
    num_iterations: int,
    num_draws: int,
    num_halvings: int,
    num_starts: int,
) -> jax.Array:
    """The modality that `hop_skip_jump` perturbs."""
    ((name, clean),) = budget.clean.items()
    low, high = budget.valid_range[name]
    radius = budget.epsilon[name].reshape(-1)

    def is_fooled(x: jax.Array) -> jax.Array:
        log_probs = log_prob_fn({**inputs, name: x})
        return budget.goal.is_reached(log_probs) & ~jnp.isnan(log_probs).any(axis=-1)

    def clip_array(x: jax.Array) -> jax.Array:
        return clip({name: x}, budget)[name]

    def start(index: jax.Array, x: jax.Array) -> jax.Array:
        draw = jax.random.uniform(jax.random.fold_in(key, index), clean.shape, clean.dtype)
        draw = beside(draw, clean)
        draw = low + (high - low) * draw
        wanted = is_fooled(draw) & (x == clean).all(axes) & ~fooled_from_the_beginning
        return jnp.where(per_sample(wanted, draw), draw, x)

    def iterate(carry: Any, step: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        x, nearest = carry
        j, count = step
        distance = perturbation_norm(x, clean, norm)
        delta = jnp.where(j == 1, (high - low).max() / 10, distance / math.prod(clean.shape[1:]))
        draw_key = jax.random.fold_in(key, num_starts + j)
        normal = _estimate_normal(is_fooled, clip_array, draw_key, x, delta, count, norm)
        direction = jnp.sign(normal) if norm == "linf" else normal
        length = distance / jnp.sqrt(j).astype(clean.dtype)
        x = _step(is_fooled, clip_array, x, direction, length, num_halvings)
        x = _return_to_boundary(is_fooled, clean, x, norm, num_halvings)
        nearer = perturbation_norm(x, clean, norm) < perturbation_norm(nearest, clean, norm)
        return (x, jnp.where(per_sample(nearer, x), x, nearest)), None

    # A sample without a start stays where it is in all that follows: its distance is zero.
    axes = tuple(range(1, clean.ndim))
    fooled_from_the_beginning = is_fooled(clean)
    x = jax.lax.fori_loop(0, num_starts, start, clean)
    x = _return_to_boundary(is_fooled, clean, x, norm, num_halvings)
    j = np.arange(1, num_iterations + 1)
    counts = np.floor(num_draws * np.sqrt(j)).astype(int)
    steps = (jnp.asarray(j), jnp.asarray(counts))
    nearest: jax.Array = jax.lax.scan(iterate, (x, x), steps)[0][1]
    # On the boundary rounding decides the class: a hair beyond, it is the same wherever evaluated.
    beyond = clip_array(clean + 1.001 * (nearest - clean))
    safe = is_fooled(beyond) & (perturbation_norm(beyond, clean, norm) <= radius)
    within = perturbation_norm(nearest, clean, norm) <= radius
    adversarial = jnp.where(per_sample(within, clean), nearest, clean)
    return jnp.where(per_sample(safe, clean), beyond, adversarial)


def _unit(x: jax.Array) -> jax.Array:
    """Scales every sample to a Euclidean norm of one; zeros stay."""
    axes = tuple(range(1, x.ndim))
    largest = jnp.abs(x).max(axes, keepdims=True)  # tiny differences do not vanish when squared
    x = x / jnp.where(largest > 0, largest, 1)
    norms = jnp.sqrt((x**2).sum(axes, keepdims=True))
    return x / jnp.where(norms > 0, norms, 1)


def _estimate_normal(
    is_fooled: DecisionFn,
    clip_array: DecisionFn,
    key: jax.Array,
    x: jax.Array,
    delta: jax.Array,
    count: jax.Array,
    norm: str,
) -> jax.Array:
    """The direction from x, on the boundary, into the misclassified side, from `count` draws."""
    draw_fn = jax.random.uniform if norm == "linf" else jax.random.normal

    def draw(index: jax.Array, sums: Any) -> Any:
        noise = draw_fn(jax.random.fold_in(key, index), x.shape, x.dtype)
        noise = _unit(2 * noise - 1 if norm == "linf" else noise)
        moved = clip_array(x + per_sample(delta, x) * noise)
        sign = jnp.where(is_fooled(moved), 1, -1).astype(x.dtype)
        terms = (sign, moved - x, per_sample(sign, x) * (moved - x))
        return jax.tree.map(jnp.add, sums, terms)

    zeros = (jnp.zeros_like(x, shape=len(x)), jnp.zeros_like(x), jnp.zeros_like(x))
    sign_sum, move_sum, signed_sum = jax.lax.fori_loop(0, count, draw, zeros)
    # The mean is a baseline that lowers the variance; without both signs it would leave nothing.
    num_signs = count.astype(x.dtype)
    both_signs = per_sample(jnp.abs(sign_sum) < num_signs, x)
    baseline = jnp.where(both_signs, per_sample(sign_sum / num_signs, x), 0)
    return _unit(signed_sum - baseline * move_sum)


def _step(
    is_fooled: DecisionFn,
    clip_array: DecisionFn,
    x: jax.Array,
    direction: jax.Array,
    length: jax.Array,
    num_halvings: int,
) -> jax.Array:
    """The longest of the halved steps that ends misclassified; none if no step does."""

    def halve(index: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        stepped, done = carry
        moved = clip_array(
            x + per_sample(length * jnp.exp2(-jnp.asarray(index, x.dtype)), x) * direction
        )
        success = is_fooled(moved) & ~done
        return jnp.where(per_sample(success, x), moved, stepped), done | success

    return jax.lax.fori_loop(0, num_halvings, halve, (x, jnp.zeros_like(x, bool, shape=len(x))))[0]


def _return_to_boundary(
    is_fooled: DecisionFn, clean: jax.Array, x: jax.Array, norm: str, num_halvings: int
) -> jax.Array:
    """The misclassified end of a binary search between the clean input and x.

    Along the straight line for l2, and for linf along the projections of x onto ever smaller cubes,
    whose distance from the clean input is known.
    """
    distance = per_sample(perturbation_norm(x, clean, norm), x)

    def bisect(_: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        low, high, nearest = carry
        middle = (low + high) / 2
        share = per_sample(middle, x)
        if norm == "linf":
            moved = clean + jnp.clip(x - clean, -share * distance, share * distance)
        else:
            moved = clean + share * (x - clean)
        fooled = is_fooled(moved)
        nearest = jnp.where(per_sample(fooled, x), moved, nearest)
        return jnp.where(fooled, low, middle), jnp.where(fooled, middle, high), nearest

    ends = (jnp.zeros_like(x, shape=len(x)), jnp.ones_like(x, shape=len(x)))
    return jax.lax.fori_loop(0, num_halvings, bisect, (*ends, x))[2]
