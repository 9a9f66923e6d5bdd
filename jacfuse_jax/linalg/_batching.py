"""How a batch is cut up on CPUs and on accelerators; kernels with the batch index last."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jacfuse_jax._devices import axis_names, on_each_device

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


def map_in_chunks(sample_fn: Callable[[Any], Any], samples: Any, batch_size: int) -> Any:
    """`jax.lax.map` by every device for its own samples; `sample_fn` may close over arrays."""
    sharding = jax.typeof(jax.tree.leaves(samples)[0]).sharding
    if AxisType.Manual in sharding.mesh.axis_types:  # under `jax.shard_map`
        return jax.lax.map(sample_fn, samples, batch_size=batch_size)
    if sharding.spec and sharding.spec[0] is not None:
        return _map_explicit(sample_fn, samples, batch_size, sharding.mesh, sharding.spec[0])
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), samples)
    program, result = jax.make_jaxpr(sample_fn, return_shape=True)(one)
    structure = jax.tree.structure(result)

    def local(samples: Any, constants: list[jax.Array]) -> Any:
        of_sample = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, constants))
        return jax.lax.map(
            lambda sample: structure.unflatten(of_sample(*jax.tree.leaves(sample))),
            samples,
            batch_size=batch_size,
        )

    return on_each_device(local, samples, program.consts)


def _map_explicit(
    sample_fn: Callable[[Any], Any], samples: Any, batch_size: int, mesh: Any, axes: Any
) -> Any:
    """The same on explicit axes: a loop over the places that samples have on their devices."""
    num_devices = math.prod(mesh.shape[name] for name in axis_names(axes))
    sharded = NamedSharding(mesh, PartitionSpec(axes))

    def apart(x: jax.Array) -> jax.Array:
        shape = (num_devices, len(x) // num_devices, *x.shape[1:])
        return x.reshape(shape, out_sharding=sharded).swapaxes(0, 1)

    def together(x: jax.Array) -> jax.Array:
        shape = (x.shape[0] * x.shape[1], *x.shape[2:])
        return x.swapaxes(0, 1).reshape(shape, out_sharding=sharded)

    mapped = jax.lax.map(jax.vmap(sample_fn), jax.tree.map(apart, samples), batch_size=batch_size)
    return jax.tree.map(together, mapped)


def over_batch(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Turns a kernel on arrays (..., B) into a function of arrays (B, ...).

    In the kernel every scalar step is then a vector step over the batch. CPUs get the batch in
    chunks of equal size, padded with zeros; accelerators get it whole, every device its part.
    `jax.vmap` of the result extends the batch instead of adding an axis. The kernel must not mix
    batch elements.
    """

    def whole(arrays: tuple[jax.Array, ...]) -> Any:
        last = kernel(*(jnp.moveaxis(x, 0, -1) for x in arrays))
        return jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), last)

    def chunked(arrays: tuple[jax.Array, ...]) -> Any:
        batch = arrays[0].shape[0]
        num_chunks = -(-batch // _CPU_CHUNK)
        if num_chunks <= 1:
            return whole(arrays)
        size = -(-batch // num_chunks)

        def split(x: jax.Array) -> jax.Array:
            padding = ((0, num_chunks * size - batch), *((0, 0),) * (x.ndim - 1))
            return jnp.pad(x, padding).reshape(num_chunks, size, *x.shape[1:])

        chunks = jax.lax.map(whole, tuple(split(x) for x in arrays))
        return jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2)[:batch], chunks)

    def apply(arrays: tuple[jax.Array, ...]) -> Any:
        return jax.lax.platform_dependent(arrays, cpu=chunked, default=whole)

    return lambda *arrays: on_each_device(apply, arrays)
