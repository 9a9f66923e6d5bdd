"""Checks of static misuse: they raise at trace time, with the offending value in the text."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from jacfuse_jax._arrays import AnyArray, as_array, known_array

# How far the sum of a prior may be from one: what rounding to a few digits does.
_PRIOR_TOLERANCE = 1e-3


def check_floating(name: str, array: jax.Array) -> None:
    """Raises TypeError unless `array` is float32 or float64."""
    if array.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"{name} must be float32 or float64, got {array.dtype}; cast it first")


def in_full_precision(name: str, array: jax.Array) -> jax.Array:
    """Returns bfloat16 and float16 as float32; raises TypeError unless `array` is floating."""
    if array.dtype in (jnp.bfloat16, jnp.float16):
        return array.astype(jnp.float32)
    check_floating(name, array)
    return array


def check_mapping(name: str, mapping: Any, of: str) -> None:
    """Raises TypeError unless the argument maps names of modalities to something."""
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{name} must be {{modality: {of}}}, got {type(mapping).__name__}")


def check_scalar(
    name: str,
    number: ArrayLike,
    dtype: Any,
    *,
    high: float = float("inf"),
    positive: bool = False,
) -> jax.Array:
    """Returns `number` as a scalar of `dtype`; raises unless it is finite and in [0, high].

    `positive` excludes zero, and what `dtype` cannot tell from zero. A traced number out of range
    becomes NaN.
    """
    shape = jnp.shape(number)
    if shape:
        raise ValueError(f"{name} must be a scalar, got shape {shape}; use jax.vmap")
    return check_numbers(name, number, dtype, high=high, positive=positive)


def check_numbers(
    name: str,
    numbers: AnyArray | Sequence[float],
    dtype: Any,
    *,
    high: float = float("inf"),
    positive: bool = False,
) -> jax.Array:
    """The same for an array of any shape."""
    array = known_array(numbers, dtype)
    low = float(jnp.finfo(dtype).tiny) if positive else 0.0
    if isinstance(array, Tracer):
        is_valid = (array >= low) & (array <= high) & jnp.isfinite(array)
        return jnp.where(is_valid, array, jnp.nan)
    concrete = np.asarray(array)
    if not np.all((concrete >= low) & (concrete <= high) & np.isfinite(concrete)):  # NaN fails
        interval = f"{'(' if positive else '['}0, {high:g}{')' if np.isinf(high) else ']'}"
        raise ValueError(f"{name} must lie in {interval}, got {numbers}")
    return array


def nan_like(x: jax.Array, *parameters: jax.Array) -> jax.Array:
    """`x`, NaN where a traced parameter is: where that alone would leave `x` as it is."""
    for parameter in parameters:
        if isinstance(parameter, Tracer):
            x = jnp.where(jnp.isnan(parameter), jnp.nan, x)
    return x


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
    """Returns the logits as arrays of one dtype; raises unless all are (B, K) alike.

    Half precision becomes float32: `in_dtype_of` gives results their dtype back.
    """
    check_mapping("logits", logits, "(B, K)")
    if not logits:
        raise ValueError("logits must hold at least one modality, got none")
    arrays = {
        name: in_full_precision(f"logits[{name!r}]", as_array(array))
        for name, array in logits.items()
    }
    for name, array in arrays.items():
        if array.ndim != 2:
            raise ValueError(f"logits[{name!r}] must have shape (B, K), got {array.shape}")
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"all modalities must share one shape (B, K), got {shapes}")
    dtype = max((array.dtype for array in arrays.values()), key=lambda dtype: dtype.itemsize)
    return {name: array.astype(dtype) for name, array in arrays.items()}


def check_labels(
    name: str,
    labels: AnyArray,
    num_samples: int,
    num_classes: int,
    *,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Returns classes (B,) as int32; raises unless they are integers in 0 ... K - 1.

    A traced label out of range becomes K, where `pick` finds NaN. Where a mask (B,) is zero they
    are not looked at, and become 0.
    """
    array = known_array(labels)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be integer, got {array.dtype}")
    if array.shape != (num_samples,):
        raise ValueError(
            f"{name} must have shape ({num_samples},), one class a sample, got {array.shape}"
        )
    if isinstance(array, Tracer) or isinstance(mask, Tracer):
        array = array if mask is None else jnp.where(mask != 0, array, 0)
        is_valid = (array >= 0) & (array < num_classes)
        return jnp.where(is_valid, array, num_classes).astype(jnp.int32)
    concrete = np.asarray(array)
    if mask is not None:
        concrete = np.where(np.asarray(mask) != 0, concrete, 0)
    wrong = np.flatnonzero((concrete < 0) | (concrete >= num_classes))
    if len(wrong):
        raise ValueError(
            f"{name} must lie in 0 ... {num_classes - 1}, got {concrete[wrong[0]]} in row "
            f"{wrong[0]}"
        )
    return jnp.asarray(concrete, jnp.int32)


def pick(rows: jax.Array, classes: jax.Array) -> jax.Array:
    """The entry of each row (B, K) at its class (B,); NaN for class K."""
    picked = jnp.take_along_axis(rows, classes[:, None], axis=-1, mode="fill", fill_value=jnp.nan)
    return picked[:, 0]


def check_labelled(
    logits: Mapping[str, AnyArray], labels: AnyArray
) -> tuple[dict[str, jax.Array], jax.Array, jnp.dtype]:
    """Returns logits as `check_logits`, labels as `check_labels`, and the dtype of the logits."""
    arrays = check_logits(logits)
    first = next(iter(arrays.values()))
    if not len(first):
        raise ValueError("logits must hold at least one sample, got none")
    return arrays, check_labels("labels", labels, *first.shape), first.dtype


def check_class_prior(class_prior: AnyArray, num_classes: int, dtype: Any) -> jax.Array:
    """Returns the prior in `dtype`, normalised; raises unless it is (K,), positive, of sum one.

    A traced one that is not becomes NaN.
    """
    prior = known_array(class_prior, dtype)
    if prior.shape != (num_classes,):
        raise ValueError(
            f"class_prior must have shape ({num_classes},), one entry a class, got {prior.shape}"
        )
    tiny = float(jnp.finfo(dtype).tiny)
    if isinstance(prior, Tracer):
        total = prior.sum()
        is_valid = (prior >= tiny).all() & (jnp.abs(total - 1) <= _PRIOR_TOLERANCE)
        return jnp.where(is_valid, prior / total, jnp.nan)
    concrete = np.asarray(prior)
    if not np.all((concrete >= tiny) & np.isfinite(concrete)):
        raise ValueError(f"class_prior must be positive and finite, got {class_prior}")
    total = concrete.astype(float).sum()
    if not abs(total - 1) <= _PRIOR_TOLERANCE:
        raise ValueError(f"class_prior must sum to one, got a sum of {total:g}; divide by it")
    return jnp.asarray(concrete / total, dtype)


def check_inputs(
    logits: Mapping[str, AnyArray], class_prior: AnyArray
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Returns the logits as arrays of one shape and dtype, and the logarithm of the prior."""
    arrays, prior = check_with_prior(logits, class_prior)
    return arrays, jnp.log(prior)


def check_with_prior(
    logits: Mapping[str, AnyArray], class_prior: AnyArray
) -> tuple[dict[str, jax.Array], jax.Array]:
    """The same with the prior itself."""
    arrays = check_logits(logits)
    first = next(iter(arrays.values()))
    return arrays, check_class_prior(class_prior, first.shape[-1], first.dtype)


def check_valid_range(name: str, valid_range: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns low and high in the dtype and with the axes of `x`; raises unless low <= high.

    A traced low above its high, and high with it, become NaN.
    """
    if not isinstance(valid_range, tuple | list) or len(valid_range) != 2:
        raise ValueError(f"{name} must be (low, high), got {valid_range}")
    low, high = (_with_axes_of(name, known_array(bound, x.dtype), x) for bound in valid_range)
    if isinstance(low, Tracer) or isinstance(high, Tracer):
        return jnp.where(low <= high, low, jnp.nan), jnp.where(low <= high, high, jnp.nan)
    if not np.all(low <= high):
        raise ValueError(f"{name} must be (low, high) with low <= high, got {valid_range}")
    return jnp.asarray(low), jnp.asarray(high)


def _with_axes_of(name: str, array: jax.Array, x: jax.Array) -> Any:
    """The array with axes of length one in front; raises unless it broadcasts against `x`.

    One that is known becomes NumPy's, which `jax.jit` does not trace.
    """
    shape = (1,) * (x.ndim - array.ndim) + array.shape
    if len(shape) > x.ndim or any(n not in (1, m) for n, m in zip(shape, x.shape, strict=True)):
        raise ValueError(
            f"{name} must broadcast against the input, got shapes {array.shape} and {x.shape}"
        )
    return (array if isinstance(array, Tracer) else np.asarray(array)).reshape(shape)


def check_modalities(argument: str, names: Any, known: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns `names` as a tuple; raises ValueError when one of them is not a key of `known`."""
    names = (names,) if isinstance(names, str) else names
    if not isinstance(names, tuple | list):
        raise TypeError(f"{argument} must be a name or a tuple of names, got {names!r}")
    names = tuple(names)
    for name in names:
        if name not in known:
            raise ValueError(f"{argument} names {name!r}, but the modalities are {sorted(known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{argument} names a modality twice: {names}")
    return names
