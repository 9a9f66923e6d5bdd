"""Functions that every device applies to its own part of a batch.

Loops over chunks of a batch, loops whose length depends on its samples and choices made for all of
them are, to XLA's partitioner, about the whole batch: where that is sharded, it gathers what might
have stayed where it is. `on_each_device` says that samples stand for themselves. It binds one
primitive, whose rules yield the same primitive with another function:

    jvp         of the arguments and their tangents
    transpose   of what is known and the cotangents; that of an argument which all samples share is
                a sum over the batch, the one thing for which devices talk to each other
    vmap        with one more batch axis

Every argument and result names its leading axes that may be sharded: ("batch",) to begin with, ()
of what is shared, ("batch", 1) after a `jax.vmap`. A result without an axis that arguments have is
a sum over it.

On a mesh of automatic axes the function is compiled for local shapes, by means of
`jax.experimental.custom_partitioning`; on explicit axes it runs under `jax.shard_map`; on one
device, and under `jax.shard_map` of the caller's own, it is inlined. In one file, since the rules
of one primitive refer to each other.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule, custom_partitioning
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType, NamedSharding, PartitionSpec

_Function = Callable[..., Sequence[jax.Array]]
_Axes = tuple[Any, ...]  # names of leading axes


def on_each_device(fn: Callable[..., Any], batched: Any, *shared: Any) -> Any:
    """`fn(batched, *shared)`, by every device for its own part of the batch.

    Args:
      fn: must not mix samples, nor close over arrays. Its results have the batch axis in front;
        those that are differentiated are floating.
      batched: a pytree of arrays (B, ...), at least one.
      shared: pytrees of arrays that all samples share.
    """
    args, structure = jax.tree.flatten((batched, *shared))
    num_batched = jax.tree.structure(batched).num_leaves
    of_result: Any = None

    def flat_fn(*args: jax.Array) -> list[jax.Array]:
        nonlocal of_result
        results, of_result = jax.tree.flatten(fn(*structure.unflatten(args)))
        return results

    axes = [("batch",)] * num_batched + [()] * (len(args) - num_batched)
    results = _bind(flat_fn, args, axes, None)
    return jax.tree.unflatten(of_result, results)


def beside(array: jax.Array, x: jax.Array) -> jax.Array:
    """The array, (B, ...), where the samples of x, (B, ...), are.

    What is drawn for a batch belongs to no device; with explicit axes, where types say so, it
    cannot be chosen from together with what does.
    """
    sharding = jax.typeof(x).sharding
    axes = sharding.spec[0] if sharding.spec else None
    if axes is None:
        return array
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec(axes)))


def _bind(
    fn: _Function, args: Sequence[Any], in_axes: Sequence[_Axes], out_axes: Sequence[_Axes] | None
) -> list[jax.Array]:
    """Calls `fn` on each device; None stands for results that have all axes."""
    shardings = [jax.typeof(x).sharding for x in args]
    mesh_axes = _mesh_axes(shardings, in_axes)
    if mesh_axes:
        mesh = next(s.mesh for s in shardings if not s.mesh.empty)
        return _on_explicit_mesh(fn, args, in_axes, out_axes, mesh, mesh_axes)
    call = jax.make_jaxpr(functools.partial(_partitioned, fn, in_axes, out_axes))(*args)
    out_axes = out_axes or [max(in_axes, key=len)] * len(call.out_avals)
    return _per_device.bind(
        *args, fn=fn, call=call, in_axes=tuple(in_axes), out_axes=tuple(out_axes)
    )


def _mesh_axes(shardings: Sequence[Any], axes: Sequence[_Axes]) -> dict[Any, Any]:
    """What each named axis is sharded over, for those that are; the first that says so counts."""
    found: dict[Any, Any] = {}
    taken = set[str]()
    for sharding, names in zip(shardings, axes, strict=True):
        for name, mesh_axes in zip(names, sharding.spec, strict=False):
            new = axis_names(mesh_axes)
            if new and name not in found and taken.isdisjoint(new):
                found[name] = mesh_axes
                taken.update(new)
    return found


def axis_names(mesh_axes: Any) -> tuple[str, ...]:
    """Names of mesh axes of one entry of a `PartitionSpec`."""
    return (mesh_axes,) if isinstance(mesh_axes, str) else tuple(mesh_axes or ())


def _spec(axes: _Axes, mesh_axes: Mapping[Any, Any]) -> PartitionSpec:
    return PartitionSpec(*(mesh_axes.get(name) for name in axes))


def _sum_over_devices(
    results: Sequence[jax.Array], out_axes: Sequence[_Axes], mesh_axes: Mapping[Any, Any]
) -> list[jax.Array]:
    """Adds up what devices have found of results that lack an axis which is sharded."""
    summed: list[jax.Array] = []
    for result, axes in zip(results, out_axes, strict=True):
        lacking = [axis_names(found) for name, found in mesh_axes.items() if name not in axes]
        flat = [*itertools.chain(*lacking)]
        summed.append(jax.lax.psum(result, flat) if flat else result)
    return summed


def _on_explicit_mesh(
    fn: _Function,
    args: Sequence[jax.Array],
    in_axes: Sequence[_Axes],
    out_axes: Sequence[_Axes] | None,
    mesh: Any,
    mesh_axes: Mapping[Any, Any],
) -> list[jax.Array]:
    """The same where types tell how the batch is sharded."""
    in_specs = [_spec(axes, mesh_axes) for axes in in_axes]
    whole = _spec(max(in_axes, key=len), mesh_axes)
    out_specs = [_spec(axes, mesh_axes) for axes in out_axes] if out_axes else whole

    def local(*args: jax.Array) -> list[jax.Array]:
        results = list(fn(*args))
        return _sum_over_devices(results, out_axes, mesh_axes) if out_axes else results

    placed = [
        jax.sharding.reshard(x, NamedSharding(mesh, spec))
        for x, spec in zip(args, in_specs, strict=True)
    ]
    return jax.shard_map(
        local, mesh=mesh, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False
    )(*placed)


def _partitioned(
    fn: _Function, in_axes: Sequence[_Axes], out_axes: Sequence[_Axes] | None, *args: jax.Array
) -> list[jax.Array]:
    """Calls `fn` so that XLA's partitioner compiles it for the local shapes of each device."""
    whole = max(in_axes, key=len)

    def sharding_rule(mesh: Any, operands: Sequence[Any], results: Sequence[Any]) -> Any:
        del mesh
        others = (f"whole{i}" for i in itertools.count())

        def mapping(axes: _Axes, array: Any) -> ArrayMapping:
            names = [f"axis{name}" for name in axes]
            return ArrayMapping(*names, *itertools.islice(others, len(array.shape) - len(axes)))

        mappings = [
            tuple(mapping(axes, x) for axes, x in zip(group, arrays, strict=True))
            for group, arrays in (
                (in_axes, operands),
                (out_axes or [whole] * len(results), results),
            )
        ]
        kept_whole = [x for group in mappings for m in group for x in m if x.startswith("whole")]
        return SdyShardingRule(*mappings, need_replication_factors=tuple(kept_whole))

    def partition(mesh: Any, operands: Sequence[Any], results: Sequence[Any]) -> Any:
        axes_of_results = out_axes or [whole] * len(results)
        arrays, axes = [*operands, *results], [*in_axes, *axes_of_results]
        mesh_axes = _mesh_axes([x.sharding for x in arrays], axes)
        sizes = {
            name: n
            for x, names in zip(arrays, axes, strict=True)
            for name, n in zip(names, x.shape, strict=False)
        }
        mesh_axes = {
            name: found
            for name, found in mesh_axes.items()
            if sizes[name] % math.prod(mesh.shape[axis] for axis in axis_names(found)) == 0
        }

        def local(*args: jax.Array) -> list[jax.Array]:
            return _sum_over_devices(fn(*args), axes_of_results, mesh_axes)

        placed = [NamedSharding(mesh, _spec(names, mesh_axes)) for names in axes]
        return mesh, local, placed[len(operands) :], tuple(placed[: len(operands)])

    call = custom_partitioning(lambda *args: list(fn(*args)))
    call.def_partition(partition, sharding_rule=sharding_rule)
    return call(*args)


_per_device = Primitive("on_each_device")
_per_device.multiple_results = True


@_per_device.def_impl
def _run(*args: jax.Array, call: ClosedJaxpr, **_: Any) -> list[jax.Array]:
    return jaxpr_as_fun(call)(*args)


mlir.register_lowering(_per_device, mlir.lower_fun(_run, multiple_results=True))


@_per_device.def_abstract_eval
def _(*_: Any, call: ClosedJaxpr, **__: Any) -> list[Any]:
    return call.out_avals


def _jvp(
    primals: Sequence[jax.Array],
    tangents: Sequence[Any],
    *,
    fn: _Function,
    in_axes: Sequence[_Axes],
    out_axes: Sequence[_Axes],
    **_: Any,
) -> tuple[list[jax.Array], list[jax.Array]]:
    moving = [i for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]

    def tangent_fn(*args: jax.Array) -> list[jax.Array]:
        primals, tangents = args[: len(in_axes)], args[len(in_axes) :]

        def moved(*values: jax.Array) -> list[jax.Array]:
            return list(fn(*_replaced(primals, moving, values)))

        return jax.jvp(moved, [primals[i] for i in moving], list(tangents))[1]

    results = _bind(fn, primals, in_axes, out_axes)
    args = [*primals, *(tangents[i] for i in moving)]
    return results, _bind(tangent_fn, args, [*in_axes, *(in_axes[i] for i in moving)], out_axes)


ad.primitive_jvps[_per_device] = _jvp


def _replaced(values: Sequence[Any], positions: Sequence[int], others: Sequence[Any]) -> list[Any]:
    """The values, with others in these positions."""
    replaced = list(values)
    for position, other in zip(positions, others, strict=True):
        replaced[position] = other
    return replaced


def _transpose(
    cotangents: Sequence[Any],
    *args: Any,
    fn: _Function,
    in_axes: Sequence[_Axes],
    out_axes: Sequence[_Axes],
    **_: Any,
) -> list[Any]:
    linear = [i for i, x in enumerate(args) if ad.is_undefined_primal(x)]
    known = [i for i in range(len(args)) if i not in linear]
    live = [i for i, cotangent in enumerate(cotangents) if type(cotangent) is not ad.Zero]
    new_in_axes = [*(in_axes[i] for i in known), *(out_axes[i] for i in live)]

    def transposed_fn(*values: jax.Array) -> list[jax.Array]:
        sizes = {
            name: size
            for axes, x in zip(new_in_axes, values, strict=True)
            for name, size in zip(axes, x.shape, strict=False)
        }

        def linear_fn(*moved: jax.Array) -> list[jax.Array]:
            full = _replaced(_replaced(args, known, values[: len(known)]), linear, moved)
            results = fn(*full)
            return [results[i] for i in live]

        def of_local_shape(i: int) -> Any:
            aval, local = args[i].aval, tuple(sizes[name] for name in in_axes[i])
            shape = local + aval.shape[len(local) :]
            if AxisType.Explicit in aval.sharding.mesh.axis_types:
                return jax.ShapeDtypeStruct(shape, aval.dtype)
            return aval.update(shape=shape)  # varies over the same axes of the caller's shard_map

        transpose = jax.linear_transpose(linear_fn, *map(of_local_shape, linear))
        return list(transpose(list(values[len(known) :])))

    new_args = [*(args[i] for i in known), *(cotangents[i] for i in live)]
    results = _bind(transposed_fn, new_args, new_in_axes, [in_axes[i] for i in linear])
    return _replaced([None] * len(args), linear, results)


ad.primitive_transposes[_per_device] = _transpose


def _batch(
    args: Sequence[Any],
    dims: Sequence[int | None],
    *,
    fn: _Function,
    in_axes: Sequence[_Axes],
    out_axes: Sequence[_Axes],
    **_: Any,
) -> tuple[list[jax.Array], list[int]]:
    mapped = [i for i, dim in enumerate(dims) if dim is not None]
    whole = max(in_axes, key=len)
    position = len(whole)
    name = len({name for axes in in_axes for name in axes})  # a new one
    moved = [
        x if dim is None else jnp.moveaxis(x, dim, len(axes))
        for x, dim, axes in zip(args, dims, in_axes, strict=True)
    ]
    batch = [i for i, axes in enumerate(in_axes) if axes == whole]
    is_longer_batch = {*mapped} <= {*batch} and all(axes == whole for axes in out_axes)
    if is_longer_batch:
        # One long batch, of which chunks may be made, instead of one more axis.
        size = next(moved[i].shape[position] for i in mapped)
        for i in {*batch} - {*mapped}:
            x = jnp.expand_dims(moved[i], position)
            moved[i] = jnp.broadcast_to(x, (*x.shape[:position], size, *x.shape[position + 1 :]))
        mapped = batch

        def long_fn(*args: jax.Array) -> list[jax.Array]:
            shape = args[batch[0]].shape[: position + 1]
            flat = [jax.lax.collapse(args[i], position - 1, position + 1) for i in batch]
            results = fn(*_replaced(args, batch, flat))
            return [x.reshape(*shape, *x.shape[position:]) for x in results]

        batched_fn: _Function = long_fn
    else:
        positions = [len(axes) if i in mapped else None for i, axes in enumerate(in_axes)]
        batched_fn = jax.vmap(fn, positions, [len(axes) for axes in out_axes])

    new_in_axes = [(*axes, name) if i in mapped else axes for i, axes in enumerate(in_axes)]
    new_out_axes = [(*axes, name) for axes in out_axes]
    results = _bind(batched_fn, moved, new_in_axes, new_out_axes)
    return results, [len(axes) for axes in out_axes]


batching.primitive_batchers[_per_device] = _batch
