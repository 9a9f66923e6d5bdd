"""How a batch is cut up on CPUs and on accelerators; kernels with the batch index last."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Matrices that CPUs work on at a time: enough that a scalar step is a long vector step, few enough
# to stay in cache. Best of 16 ... 1024 for 10 x 10 to 100 x 100 matrices on CPU.
_CPU_CHUNK = 128


class Chunks(NamedTuple):
    """How much of a batch is solved at a time.

    Attributes:
      matrix_entries: of one K x K array of all samples of a chunk.
      block_entries: of the logits (samples x K) of a block whose samples share matrix products.
    """

    matrix_entries: int
    block_entries: int


# What is computed from a chunk stays in cache: at K = 309, 10 samples at a time were eight times
# faster than all at once.
_CPU_CHUNKS = Chunks(2**20, 2**16)
# Few launches of large kernels: at K = 309 three times faster on an H100. An array of a chunk takes
# 256 MiB in float32, the largest of a block 2.5 GiB.
_ACCELERATOR_CHUNKS = Chunks(2**26, 2**24)


def with_chunks(solve_fn: Callable[..., Any], batch_size: int | Chunks | None, *arrays: Any) -> Any:
    """Calls `solve_fn(batch_size, *arrays)`; None becomes the chunks that fit the platform."""
    if batch_size is not None:
        return solve_fn(batch_size, *arrays)
    return jax.lax.platform_dependent(
        *arrays,
        cpu=functools.partial(solve_fn, _CPU_CHUNKS),
        default=functools.partial(solve_fn, _ACCELERATOR_CHUNKS),
    )


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
        return jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2)[:batch], chunks)

    @jax.custom_batching.custom_vmap
    def apply(*arrays: jax.Array) -> Any:
        return jax.lax.platform_dependent(*arrays, cpu=chunked, default=whole)

    @apply.def_vmap
    def _(axis_size: int, in_batched: list[bool], *arrays: jax.Array) -> tuple[Any, Any]:
        full = [
            x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
            for x, batched in zip(arrays, in_batched, strict=True)
        ]
        out = apply(*(jax.lax.collapse(x, 0, 2) for x in full))
        out = jax.tree.map(lambda x: x.reshape(*full[0].shape[:2], *x.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return apply
