"""Derivatives and batches of what each device does for itself, against those of `jax.vmap`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jacfuse_jax._devices import on_each_device

RNG = np.random.default_rng(0)
Z, V = RNG.normal(size=(16, 3)), RNG.normal(size=(3, 3))


def of_sample(z, v):
    return jnp.tanh(jnp.outer(z, z) + v) @ jnp.exp(-z)


def reference(z, v):
    return jax.vmap(of_sample, (0, None))(z, v)


def in_chunks(z, v):
    def local(z, v):
        return jax.lax.map(jax.checkpoint(lambda x: of_sample(x, v)), z, batch_size=2)

    return on_each_device(local, z, v)


def loss(fn):
    return lambda z, v: (fn(z, v) ** 2).sum()


def slope(fn, argument):
    """The derivative of a sum of cubes of derivatives."""

    def cubes(z, v):
        return (jax.grad(loss(fn), argument)(z, v) ** 3).sum()

    return cubes


def one(fn):
    """The function of one sample, as a batch of one."""
    return lambda z, v: fn(z[None], v)[0]


TRANSFORMS = {
    "value": lambda fn: fn,
    "jvp": lambda fn: lambda z, v: jax.jvp(fn, (z, v), (z, v)),
    "linearize": lambda fn: lambda z, v: jax.linearize(fn, z, v)[1](v[:1] + z, v),
    "gradient": lambda fn: jax.grad(loss(fn)),
    "gradient in what is shared": lambda fn: jax.grad(loss(fn), 1),
    "checkpoint": lambda fn: jax.grad(jax.checkpoint(loss(fn)), (0, 1)),
    "jacfwd": lambda fn: jax.jacfwd(fn, 1),
    "forward over reverse": lambda fn: (
        lambda z, v: jax.jvp(lambda z: jax.grad(loss(fn))(z, v), (z,), (z,))
    ),
    "reverse over reverse": lambda fn: jax.grad(slope(fn, 0)),
    "mixed": lambda fn: jax.grad(slope(fn, 0), 1),
    "in what is shared, twice": lambda fn: jax.grad(slope(fn, 1), 1),
    "vmap": lambda fn: lambda z, v: jax.vmap(fn, (1, None), 1)(jnp.stack([z, 2 * z], 1), v),
    "vmap of what is shared": lambda fn: (
        lambda z, v: jax.vmap(fn, (None, 0), 1)(z, jnp.stack([v, 2 * v]))
    ),
    "vmap twice": lambda fn: (
        lambda z, v: jax.vmap(
            jax.vmap(fn, (1, None), 1), (None, 0), 1
        )(jnp.stack([z, 2 * z], 1), jnp.stack([v, 2 * v, 3 * v]))
    ),
    "vmap of what is shared, then of samples": lambda fn: (
        lambda z, v: jax.vmap(
            jax.vmap(fn, (None, 0), 1), (1, None), 1
        )(jnp.stack([z, 2 * z], 1), jnp.stack([v, 2 * v, 3 * v]))
    ),
    "vmap of gradients": lambda fn: (
        lambda z, v: jax.vmap(jax.grad(loss(fn), (0, 1)), (1, 0), (1, 0))(
            jnp.stack([z, 2 * z], 1), jnp.stack([v, 2 * v])
        )
    ),
    "one by one": lambda fn: lambda z, v: jax.vmap(one(fn), (0, None))(z, v),
    "gradients one by one": lambda fn: (
        lambda z, v: jax.vmap(jax.grad(loss(one(fn)), (0, 1)), (0, None))(z, v)
    ),
    "Hessians one by one": lambda fn: (
        lambda z, v: jax.vmap(jax.hessian(loss(one(fn))), (0, None))(z, v)
    ),
}  # fmt: skip


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_derivatives_and_batches(transform):
    transformed = TRANSFORMS[transform]
    expected = jax.jit(transformed(reference))(Z, V)
    check = jax.jit(transformed(in_chunks))
    results = [check(Z, V)]
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        devices = jax.devices("cpu")[:8]
        mesh = jax.make_mesh((8,), ("devices",), axis_types=(axis_type,), devices=devices)
        z = jax.device_put(Z, NamedSharding(mesh, P("devices")))
        v = jax.device_put(V, NamedSharding(mesh, P()))
        if transform.startswith("vmap") and axis_type == AxisType.Explicit:
            continue  # JAX 0.9 cannot batch an explicitly sharded array along another axis.
        results.append(check(z, v))
    for result in results:
        for x, y in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-11 * np.abs(y).max())


def test_a_batch_of_none_and_of_one():
    for size in (0, 1):
        assert in_chunks(jnp.asarray(Z[:size]), V).shape == (size, 3)
    assert jax.grad(loss(in_chunks), 1)(jnp.asarray(Z[:0]), jnp.asarray(V)).shape == (3, 3)
