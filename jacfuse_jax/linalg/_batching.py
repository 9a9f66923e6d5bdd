"""Kernels with the batch index last, offered to callers with the batch index first."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Matrices that CPUs work on at a time: enough that a scalar step is a long vector step, few enough
# to stay in cache. Best of 16 ... 1024 for 10 x 10 to 100 x 100 matrices on CPU.
_CPU_CHUNK = 128


def over_batch(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Turns a kernel on arrays (..., B) into a function of arrays (B, ...).

    In the kernel every scalar step is then a vector step over the batch. CPUs get the batch in
    chunks of equal size, padded with zeros; accelerators get it whole. `jax.vmap` of the result
    extends the batch instead of adding an axis. The kernel must not mix batch elements.
    """

    def whole(*arrays: jax.Array) -> Any:
        last = kernel(*(jnp.moveaxis(x, 0, -1) for x in arrays))
        return jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), last)

    def chunked(*arrays: jax.Array) -> Any:
        batch = arrays[0].shape[0]
        num_chunks = -(-batch // _CPU_CHUNK)
        if num_chunks <= 1:
            return whole(*arrays)
        size = -(-batch // num_chunks)

        def split(x: jax.Array) -> jax.Array:
            padding = ((0, num_chunks * size - batch), *((0, 0),) * (x.ndim - 1))
            return jnp.pad(x, padding).reshape(num_chunks, size, *x.shape[1:])

        chunks = jax.lax.map(lambda xs: whole(*xs), tuple(split(x) for x in arrays))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:batch], chunks)

    @jax.custom_batching.custom_vmap
    def apply(*arrays: jax.Array) -> Any:
        return jax.lax.platform_dependent(*arrays, cpu=chunked, default=whole)

    @apply.def_vmap
    def _(axis_size: int, in_batched: list[bool], *arrays: jax.Array) -> tuple[Any, Any]:
        full = (
            x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
            for x, batched in zip(arrays, in_batched, strict=True)
        )
        out = apply(*(x.reshape(-1, *x.shape[2:]) for x in full))
        out = jax.tree.map(lambda x: x.reshape(axis_size, -1, *x.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return apply
