"""When trusted modalities decide alone: a rule that is fitted to a share of attacked inputs.

If a share s of inputs has suspect modalities that say anything, then per sample, given what the
trusted ones say, deciding by them alone is worth P(trusted right), and asking the suspects is worth

    (1 - s) P(fused right) + s P(fused right if attacked),

whose last term is zero against an attacker who may say anything. All three are functions of the
fused posterior p_T of the trusted modalities alone, so that no suspect moves the gate: each is

    P = sigmoid(w . (x, 1)),   x = (the five largest log p_T, from -20 on; one-hot argmax_k p_T(k)),

the class for at most 20 classes only. See `selection.fit_gate`, which fits w. Derived here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._simplex import mark_likeliest

Weights = tuple[ArrayLike, ...]
_NUM_SORTED = 5
_LEAST_LOG_PROB = -20.0
_MOST_MARKED = 20  # classes, of which the likeliest is told


class Gate(NamedTuple):
    """Weights (D + 1,) of the probabilities that a gate compares; the last is the constant's.

    Attributes:
      alone: of that the trusted modalities are right.
      fused: of that all modalities are right, nothing being attacked.
      attacked: of that all modalities are right, the suspects being attacked; empty: never.
    """

    alone: Weights
    fused: Weights
    attacked: Weights = ()


def num_weights(num_classes: int) -> int:
    """D + 1, for K classes."""
    return min(_NUM_SORTED, num_classes) + (num_classes <= _MOST_MARKED) * num_classes + 1


def gate_features(log_trusted: jax.Array) -> jax.Array:
    """(x, 1) of rows (B, K) of log p_T, (B, D + 1)."""
    num_classes = log_trusted.shape[-1]
    # Sorted, since `jax.lax.top_k` would gather rows from all devices.
    largest = jnp.sort(log_trusted, axis=-1, descending=True)[..., :_NUM_SORTED]
    parts = [jnp.maximum(largest, _LEAST_LOG_PROB)]
    if num_classes <= _MOST_MARKED:
        parts.append(mark_likeliest(log_trusted).astype(log_trusted.dtype))
    return jnp.concatenate([*parts, jnp.ones_like(parts[0][..., :1])], axis=-1)


def compare(gate: Gate, share: jax.Array, log_trusted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """By how much deciding alone is worth more, (B,), and how large terms of its logits are."""
    features = gate_features(log_trusted)

    def prob(weights: Weights) -> tuple[jax.Array, jax.Array]:
        w = jnp.stack([jnp.asarray(weight, features.dtype) for weight in weights])
        terms = features * w[None]
        return jax.nn.sigmoid(terms.sum(axis=-1)), jnp.abs(terms).sum(axis=-1)

    zero = jnp.zeros_like(features[..., 0])
    (alone, *_), (fused, *_), (attacked, *_) = parts = [
        prob(weights) if weights else (zero, zero) for weights in gate
    ]
    size = sum((size for _, size in parts), start=1 + zero)
    return alone - (1 - share) * fused - share * attacked, size


def check_gate(gate: Gate, num_classes: int) -> None:
    """Raises ValueError unless the weights are those of K classes."""
    expected = num_weights(num_classes)
    for name, weights in gate._asdict().items():
        if len(weights) != expected and not (name == "attacked" and not weights):
            raise ValueError(
                f"{name} must have {expected} weights for {num_classes} classes, got "
                f"{len(weights)}; see selection.fit_gate"
            )
