"""Rules that bound what a modality may say: all of them are cascades, learned or not."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jacfuse_jax._checks import check_modalities, check_numbers, check_scalar
from jacfuse_jax.fusion import Cascade, Contaminated, LearnedCascade, Rule, Scaled, Statistical
from jacfuse_jax.fusion._contaminated import tempered_log_ratios
from jacfuse_jax.fusion._gate import compare

BoundedRule = Statistical | Scaled | Contaminated | Cascade | LearnedCascade
_NO_CASCADE = {"confidence": 1.0, "tempering": 1.0, "contamination": 0.0}
R = TypeVar("R", bound=Rule)


class Bounded(NamedTuple):
    """What a rule makes of the modalities that it believes perturbed; see `fusion.cascade_fusion`.

    Attributes:
      perturbed: names of these; none of statistical fusion, which heeds no belief.
      e: their contamination.
      t: their tempering.
      decides_fn: maps log-probabilities (B, K) of the others to where these decide alone, (B,), by
        more than some eps of rounding; (log_trusted, slack).
    """

    perturbed: tuple[str, ...]
    e: jax.Array
    t: jax.Array
    decides_fn: Callable[[jax.Array, float], jax.Array]

    @classmethod
    def of(cls, rule: BoundedRule, perturbed: tuple[str, ...], dtype: jnp.dtype) -> "Bounded":
        """Of a rule whose numbers are checked."""
        if isinstance(rule, LearnedCascade):
            zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)

            def is_worth_more(log_trusted: jax.Array, slack: float) -> jax.Array:
                margin, size = compare(rule.gate, jnp.asarray(rule.share), log_trusted)
                return margin > slack * size

            return cls(perturbed, zero, one, is_worth_more)
        given = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
        if isinstance(rule, Scaled):
            given = {"tempering": rule.scale}
        cascade = Cascade(**{**_NO_CASCADE, **given})
        numbers = (cascade.contamination, cascade.tempering, cascade.confidence)
        e, t, c = (jnp.asarray(number, dtype) for number in numbers)

        def is_confident(log_trusted: jax.Array, slack: float) -> jax.Array:
            return jnp.exp(log_trusted.max(axis=-1)) > c + slack

        return cls(() if isinstance(rule, Statistical) else perturbed, e, t, is_confident)

    def log_ratios(
        self, logits: Mapping[str, jax.Array], log_prior: jax.Array
    ) -> dict[str, jax.Array]:
        """What every modality adds to log prior where all are asked, (B, K)."""
        return tempered_log_ratios(logits, log_prior, self.perturbed, self.e, self.t)


def check_perturbed(
    perturbed: str | tuple[str, ...] | None, logits: Mapping[str, jax.Array]
) -> tuple[str, ...]:
    """The names of the modalities believed perturbed; None stands for all."""
    return tuple(logits) if perturbed is None else check_modalities("perturbed", perturbed, logits)


def check_numbers_of(rule: R, dtype: jnp.dtype, *, batched: bool = False) -> R:
    """The rule with arrays of the dtype for its numbers; raises unless all lie in [0, 1].

    They are scalars or, of a batch of rules, may be (C,) of one C.
    """
    fields = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    # Weights of a gate, of any sign.
    weights = {
        name: tuple(jnp.asarray(weight, dtype) for weight in value)
        for name, value in fields.items()
        if isinstance(value, tuple)
    }
    values = {name: value for name, value in fields.items() if name not in weights}
    shapes = {name: jnp.shape(value) for name, value in values.items()}
    if not batched:
        check = check_scalar
    elif len({shape for shape in shapes.values() if shape}) > 1 or any(
        len(shape) > 1 for shape in shapes.values()
    ):
        raise ValueError(f"numbers of a rule must be scalars or all (C,), got shapes {shapes}")
    else:
        check = check_numbers
    numbers = {name: check(name, value, dtype, high=1) for name, value in values.items()}
    return dataclasses.replace(rule, **numbers, **weights)
