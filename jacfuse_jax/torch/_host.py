"""Functions of NumPy arrays as operations of JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback


class HostFn:
    """A function of pytrees of NumPy arrays (B, ...) with one batch, as an operation of JAX.

    `jax.vmap` makes it one longer batch. The callbacks are methods of one object, so that programs
    traced twice are the same.

    On CPU arrays are read and written where XLA has them. `jax.pure_callback` would have them
    copied by threads that, where several devices run at once, all wait for these copies: programs
    on arrays above 100 KiB hang.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn

    def __call__(self, results: Any, *operands: Any) -> Any:
        """`fn(*operands)`, a pytree of arrays as `results`, of shapes and dtypes."""
        # A scalar, which `jax.vmap` gives the axes that it adds.
        added = jnp.zeros(())
        on_cpu = buffer_callback(self._write, results, vmap_method="broadcast_all")

        def elsewhere(*operands: Any) -> Any:
            return jax.pure_callback(self._compute, results, *operands, vmap_method="broadcast_all")

        computed = jax.lax.platform_dependent(added, *operands, cpu=on_cpu, default=elsewhere)
        # Chosen by the operands, so that `jax.shard_map` knows that what is computed varies over
        # devices as they do; both choices being the same, XLA makes nothing of it.
        chosen = jnp.stack([(x == x).any() for x in jax.tree.leaves(operands)]).any()
        return jax.tree.map(lambda x: jnp.where(chosen, x, x), computed)

    def _compute(self, added: Any, *operands: Any) -> list[np.ndarray]:
        """The results as they are flattened, from arrays with added axes."""
        arrays = jax.tree.map(np.asarray, operands)
        num_added = np.ndim(added)
        batch_shape = jax.tree.leaves(arrays)[0].shape[: num_added + 1]
        flat = jax.tree.map(
            lambda x: x.reshape(np.prod(batch_shape, dtype=int), *x.shape[num_added + 1 :]), arrays
        )
        computed = jax.tree.leaves(self._fn(*flat))
        return [x.reshape(*batch_shape, *x.shape[1:]) for x in computed]

    def _write(self, _: Any, results: Any, added: Any, *operands: Any) -> None:
        """The same into the memory of the results."""
        computed = self._compute(np.asarray(added), *operands)
        for memory, result in zip(jax.tree.leaves(results), computed, strict=True):
            np.asarray(memory)[...] = result
