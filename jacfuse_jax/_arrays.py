"""Arrays of any framework, as JAX's, in the dtype that is computed in."""

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


def known_array(array: Any, dtype: Any = None) -> jax.Array:
    """Returns the array in `dtype`; what is known is not traced, and can be checked, in jax.jit."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(array)):
        return jnp.asarray(array, dtype)
    with jax.ensure_compile_time_eval():
        return jnp.asarray(array if isinstance(array, list | tuple) else as_array(array), dtype)


def in_dtype_of(logits: Mapping[str, AnyArray], log_probs: jax.Array) -> jax.Array:
    """The log-probabilities in half precision where all logits are, and of the same kind."""
    # By name, which torch begins with its own: logits need not be converted again.
    names = {str(getattr(array, "dtype", "")).rpartition(".")[2] for array in logits.values()}
    is_half = len(names) == 1 and names <= {"bfloat16", "float16"}
    return log_probs.astype(names.pop()) if is_half else log_probs
