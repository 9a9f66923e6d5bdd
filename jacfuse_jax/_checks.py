"""Checks of static misuse: they raise at trace time, with the offending value in the text."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike


def check_floating(name: str, array: jax.Array) -> None:
    """Raises TypeError unless `array` is float32 or float64."""
    if array.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"{name} must be float32 or float64, got {array.dtype}; cast it first")


def check_in_interval(
    name: str, number: ArrayLike, *, low: float, high: float, low_open: bool = False
) -> None:
    """Raises ValueError when a concrete `number` lies outside the interval; passes traced ones."""
    concrete = concrete_or_none(number)
    if concrete is None:
        return
    above = concrete > low if low_open else concrete >= low
    if not np.all(above & (concrete <= high)):  # written so that NaN fails
        bracket = "(" if low_open else "["
        raise ValueError(f"{name} must lie in {bracket}{low:g}, {high:g}], got {number}")


def check_logits(logits: Mapping[str, ArrayLike]) -> dict[str, jax.Array]:
    """Returns the logits as arrays of one dtype; raises unless all are (B, K) alike."""
    if not logits:
        raise ValueError("logits must hold at least one modality, got none")
    arrays = {name: jnp.asarray(array) for name, array in logits.items()}
    for name, array in arrays.items():
        check_floating(f"logits[{name!r}]", array)
        if array.ndim != 2:
            raise ValueError(f"logits[{name!r}] must have shape (B, K), got {array.shape}")
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"all modalities must share one shape (B, K), got {shapes}")
    dtype = jnp.result_type(*arrays.values())
    return {name: array.astype(dtype) for name, array in arrays.items()}


def check_class_prior(class_prior: ArrayLike, num_classes: int, dtype: Any) -> jax.Array:
    """Returns the prior in `dtype`; raises unless it is a positive (K,) vector."""
    prior = jnp.asarray(class_prior)
    if prior.shape != (num_classes,):
        raise ValueError(
            f"class_prior must have shape ({num_classes},), one entry a class, got {prior.shape}"
        )
    concrete = concrete_or_none(class_prior)
    if concrete is not None and not np.all((concrete > 0) & np.isfinite(concrete)):
        raise ValueError(f"class_prior must be positive and finite, got {concrete}")
    return prior.astype(dtype)


def check_modalities(argument: str, names: str | tuple[str, ...], known: Mapping[str, Any]):
    """Returns `names` as a tuple; raises ValueError when one of them is not a key of `known`."""
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in known:
            raise ValueError(f"{argument} names {name!r}, but the modalities are {sorted(known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{argument} names a modality twice: {names}")
    return names


def concrete_or_none(array: ArrayLike) -> np.ndarray[Any, Any] | None:
    """The value as NumPy, or None while it is being traced."""
    return None if isinstance(array, Tracer) else np.asarray(array)
