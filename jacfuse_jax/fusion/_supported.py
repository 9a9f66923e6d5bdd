"""Functions that take some rules and not others."""

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jacfuse_jax.fusion._rule import Rule, fuse
from jacfuse_jax.linalg import GramSpectrum

R = TypeVar("R", bound=Rule)


def check_supported(rule: object, supported: tuple[type[R], ...], what: str) -> R:
    """Returns the rule; raises unless its class is one of these, since others may do anything.

    Args:
      rule: any.
      supported: classes; subclasses of theirs are others.
      what: of the rules, for the text: "that can be certified".

    Returns:
      The rule.

    Raises:
      TypeError: it is no rule.
      ValueError: it is another one.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a rule of jacfuse_jax.fusion, got {type(rule).__name__}")
    for one in supported:
        if type(rule) is one:
            return rule
    names = ", ".join(one.__name__ for one in supported)
    raise ValueError(f"rules {what} are {names}, got {type(rule).__name__}")


def check_parameters(rule: Rule, num_classes: int, modalities: tuple[str, ...]) -> None:
    """Raises ValueError where a parameter is out of range, which compiled programs cannot.

    Args:
      rule: with its parameters.
      num_classes: K.
      modalities: names of all; some rules need more than two.
    """
    dtype = jnp.result_type(float)
    first, size = modalities[0], num_classes
    spectrum = GramSpectrum(
        jax.ShapeDtypeStruct((size,), dtype),  # pyright: ignore[reportArgumentType] only shapes
        jax.ShapeDtypeStruct((size, size), dtype),  # pyright: ignore[reportArgumentType]
    )
    apply = partial(fuse, rule, class_prior=np.full(size, 1 / size), perturbed=first)
    rows = dict.fromkeys(modalities, jax.ShapeDtypeStruct((1, size), dtype))
    jax.eval_shape(lambda logits, gram: apply(logits, grams={first: gram}), rows, spectrum)
