"""What an attacker differentiates in place of a rule that checks its inputs."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jacfuse_jax.evaluation.subspaces import Subspace, residual, stay_inside

Through = Literal["", "inside", "outside", "averaged", "averaged_anew"]
"""How an attack gets through a check, see `get_through`."""
NUM_DRAWS = 4
"""Of the noise that predictions are averaged over."""

Inputs = Mapping[str, jax.Array]
LogProbFn = Callable[[Inputs], jax.Array]


class Bounds(NamedTuple):
    """Between which entries of one modality are perturbed, both (B, ...)."""

    low: jax.Array
    high: jax.Array


def linf_bounds(clean: jax.Array, epsilon: Any, valid_range: tuple[float, float]) -> Bounds:
    """The ball of radius epsilon within a valid range, which clean entries may be outside of."""
    low, high = (jnp.asarray(end, clean.dtype) for end in valid_range)
    return Bounds(
        jnp.maximum(clean - epsilon, jnp.minimum(clean, low)),
        jnp.minimum(clean + epsilon, jnp.maximum(clean, high)),
    )


def get_through(
    through: Through,
    log_prob_fn: LogProbFn,
    subspaces: Mapping[str, Subspace],
    bounds: Mapping[str, Bounds],
    labels: Any,
    key: jax.Array,
) -> tuple[LogProbFn, Callable[[Inputs], Inputs]]:
    """The function that an attack on a rule with a check differentiates.

    Args:
      through: "": the rule as it is; "inside": the rule of inputs that are brought back inside of
        what the check lets pass; "outside": how far inputs are outside, which triggers the check;
        "averaged": the mean of the rule's probabilities over noise as large as the check lets pass,
        drawn once; "averaged_anew": over noise that is drawn for every input anew.
      log_prob_fn: maps {perturbed modality: (B, ...)} to log-probabilities (B, K) of the rule.
      subspaces: of the perturbed modalities.
      bounds: of the perturbed modalities.
      labels: (B,).
      key: of the noise.

    Returns:
      What to attack, and what to make of the inputs that are found.
    """
    if through == "inside":

        def come_inside(x: Inputs) -> Inputs:
            return {m: stay_inside(subspaces[m], array, *bounds[m]) for m, array in x.items()}

        return lambda x: log_prob_fn(come_inside(x)), come_inside
    if through == "outside":
        return lambda x: _leave(log_prob_fn, subspaces, labels, x), lambda x: x
    if through:
        is_anew = through == "averaged_anew"
        return lambda x: _average(log_prob_fn, subspaces, x, key, is_anew), lambda x: x
    return log_prob_fn, lambda x: x


def _leave(
    log_prob_fn: LogProbFn, subspaces: Mapping[str, Subspace], labels: Any, x: Inputs
) -> jax.Array:
    """The label loses by how far all inputs are outside."""
    shape = jax.eval_shape(log_prob_fn, x).shape
    distance = sum(residual(subspaces[m], array) for m, array in x.items())
    is_label = jnp.arange(shape[1])[None] == jnp.asarray(labels)[:, None]
    return jnp.where(is_label, 1 - jnp.asarray(distance)[:, None], 0)


def _average(
    log_prob_fn: LogProbFn,
    subspaces: Mapping[str, Subspace],
    x: Inputs,
    key: jax.Array,
    is_anew: bool,
) -> jax.Array:
    """Log of the mean probabilities under noise."""
    if is_anew:  # what the inputs are tells one step of an attack from another
        total = sum(array.sum(dtype=jnp.float32) for array in x.values())
        bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(total), jnp.uint32)
        key = jax.random.fold_in(key, bits)

    def draw(number: jax.Array) -> jax.Array:
        noisy = {}
        for index, (m, array) in enumerate(x.items()):
            noise_key = jax.random.fold_in(jax.random.fold_in(key, number), index)
            # The norm of the noise is about the threshold.
            scale = jnp.asarray(subspaces[m].threshold, array.dtype)
            scale /= math.sqrt(math.prod(array.shape[1:]))
            noisy[m] = array + scale * jax.random.normal(noise_key, array.shape, array.dtype)
        return log_prob_fn(noisy)

    # One after the other in a loop: unrolled, they take as many times as long to compile.
    draws = jax.lax.map(draw, jnp.arange(NUM_DRAWS))
    return jax.nn.logsumexp(draws, axis=0) - math.log(NUM_DRAWS)
