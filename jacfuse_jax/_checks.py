"""Checks of static misuse: they raise at trace time, with the offending value in the text."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike


@runtime_checkable
class SupportsDLPack(Protocol):
    """An array of another framework that can share its memory."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """The memory, in a capsule."""
        ...

    def __dlpack_device__(self) -> tuple[Any, int]:
        """Where the memory is."""
        ...


AnyArray: TypeAlias = ArrayLike | SupportsDLPack


def as_array(array: AnyArray) -> jax.Array:
    """Returns the array as JAX's own; memory is shared where alignment and strides allow it."""
    # NumPy's memory is shared, too; its own protocol would refuse read-only arrays.
    if isinstance(array, jax.Array | np.ndarray) or not isinstance(array, SupportsDLPack):
        return jnp.asarray(array)
    try:
        # Strides are no matter to NumPy, and what is on the host goes where its arrays go.
        return jnp.asarray(np.from_dlpack(array))
    except (BufferError, RuntimeError):  # on an accelerator, or in a dtype that NumPy lacks
        return jax.dlpack.from_dlpack(array)


def check_floating(name: str, array: jax.Array) -> None:
    """Raises TypeError unless `array` is float32 or float64."""
    if array.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"{name} must be float32 or float64, got {array.dtype}; cast it first")


def check_scalar(
    name: str,
    number: ArrayLike,
    dtype: Any,
    *,
    high: float = float("inf"),
    positive: bool = False,
) -> jax.Array:
    """Returns `number` as a scalar of `dtype`; raises unless it is finite and in [0, high].

    `positive` excludes zero, and what `dtype` cannot tell from zero. A traced number passes.
    """
    scalar = jnp.asarray(number, dtype)
    if scalar.ndim:
        raise ValueError(f"{name} must be a scalar, got shape {scalar.shape}; use jax.vmap")
    if not isinstance(number, Tracer):
        concrete = np.asarray(number).astype(dtype)
        low_enough = concrete >= (jnp.finfo(dtype).tiny if positive else 0)
        if not (low_enough and concrete <= high and np.isfinite(concrete)):  # NaN fails
            interval = f"{'(' if positive else '['}0, {high:g}{')' if np.isinf(high) else ']'}"
            raise ValueError(f"{name} must lie in {interval}, got {number}")
    return scalar


def check_choice(name: str, choice: str, known: tuple[str, ...]) -> None:
    """Raises ValueError unless the choice is a known one."""
    if choice not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {choice!r}")


def check_kernel(kernel: AnyArray) -> jax.Array:
    """Returns the kernel of a linear layer as an array; raises unless it is a floating (H, K)."""
    array = as_array(kernel)
    check_floating("kernel", array)
    if array.ndim != 2:
        raise ValueError(f"kernel must have shape (H, K), got {array.shape}")
    return array


def check_matrices(name: str, matrices: ArrayLike) -> jax.Array:
    """Returns matrices (..., m, n), real or complex; raises on other shapes and dtypes."""
    array = jnp.asarray(matrices)
    if array.dtype not in (jnp.float32, jnp.float64, jnp.complex64, jnp.complex128):
        raise TypeError(
            f"{name} must be float32, float64, complex64 or complex128, got {array.dtype}; cast it "
            "first"
        )
    if array.ndim < 2 or 0 in array.shape[-2:]:
        raise ValueError(f"{name} must have shape (..., m, n) with m, n >= 1, got {array.shape}")
    return array


def check_square(name: str, matrices: ArrayLike) -> jax.Array:
    """Returns matrices (..., n, n), real or complex; raises on other shapes and dtypes."""
    array = check_matrices(name, matrices)
    if array.shape[-1] != array.shape[-2]:
        raise ValueError(f"{name} must have shape (..., n, n), got {array.shape}")
    return array


def check_batch_size(batch_size: int | None) -> None:
    """Raises ValueError unless the batch size is None or at least one."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def check_logits(logits: Mapping[str, AnyArray]) -> dict[str, jax.Array]:
    """Returns the logits as arrays of one dtype; raises unless all are (B, K) alike."""
    if not logits:
        raise ValueError("logits must hold at least one modality, got none")
    arrays = {name: as_array(array) for name, array in logits.items()}
    for name, array in arrays.items():
        check_floating(f"logits[{name!r}]", array)
        if array.ndim != 2:
            raise ValueError(f"logits[{name!r}] must have shape (B, K), got {array.shape}")
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"all modalities must share one shape (B, K), got {shapes}")
    dtype = jnp.result_type(*arrays.values())
    return {name: array.astype(dtype) for name, array in arrays.items()}


def check_labelled(
    logits: Mapping[str, AnyArray], labels: AnyArray
) -> tuple[dict[str, jax.Array], jax.Array, jnp.dtype]:
    """Returns logits as `check_logits`, labels and dtype; raises unless there is a label a row."""
    arrays, labels = check_logits(logits), as_array(labels)
    first = next(iter(arrays.values()))
    if labels.shape != first.shape[:1] or not len(first):
        raise ValueError(
            f"labels must have shape {first.shape[:1]}, at least one, got {labels.shape}"
        )
    return arrays, labels, first.dtype


def check_class_prior(class_prior: AnyArray, num_classes: int, dtype: Any) -> jax.Array:
    """Returns the prior in `dtype`; raises unless it is a positive (K,) vector."""
    with jax.ensure_compile_time_eval():  # what is known is checked under jax.jit, too
        prior = as_array(class_prior)
    if prior.shape != (num_classes,):
        raise ValueError(
            f"class_prior must have shape ({num_classes},), one entry a class, got {prior.shape}"
        )
    if not isinstance(prior, Tracer):
        concrete = np.asarray(prior).astype(dtype)
        if not np.all((concrete >= jnp.finfo(dtype).tiny) & np.isfinite(concrete)):
            raise ValueError(f"class_prior must be positive and finite, got {class_prior}")
    return prior.astype(dtype)


def check_modalities(
    argument: str, names: str | tuple[str, ...], known: Mapping[str, Any]
) -> tuple[str, ...]:
    """Returns `names` as a tuple; raises ValueError when one of them is not a key of `known`."""
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in known:
            raise ValueError(f"{argument} names {name!r}, but the modalities are {sorted(known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{argument} names a modality twice: {names}")
    return names
