"""On eight devices every device computes what it has, and tells nobody."""

import re
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jacfuse_jax import bounds, fusion, jacobians, linalg
from tests.public_calls import CALLS, make_data

BATCHED = (
    "logits", "inputs", "labels", "targets", "matrices", "jacobian", "log_probs", "images", "audio",
    "series",
)  # fmt: skip
STATIC = ("seed", "share", "shares")
# What is about a whole batch, or about none.
OTHERS = {
    "a_priori_bound", "certified_accuracy", "choose_contamination", "choose_gamma", "fit_detector",
    "fit_temperature", "gram_from_head", "mismatched_pair", "spectral_norm", "spectrum_from_kernel",
}  # fmt: skip
COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|all-to-all|collective-\w+|reduce-scatter)(?:-start)?\("
)
# Every device draws what is random for its own samples, under `jax.shard_map`.
DRAWS = {
    "adversarial_missing", "apgd", "bias", "dead_axis", "drift", "dropouts", "frequency_mask",
    "gaussian_noise", "hop_skip_jump", "impulse_noise", "missing", "missing_modality", "occlusion",
    "pgd", "pink_noise", "random_search", "rotation", "shot_noise", "square", "stuck_value",
    "time_mask", "white_noise",
}  # fmt: skip


def mesh_of(how):
    axis_type = AxisType.Explicit if how == "explicit" else AxisType.Auto
    devices = jax.devices("cpu")[:8]
    return jax.make_mesh((8,), ("devices",), axis_types=(axis_type,), devices=devices)


def collectives_of(program):
    """What devices say to each other in a compiled program."""
    text = program.as_text()
    assert text is not None
    return COLLECTIVE.findall(text)


def run_sharded(how, fn, batched, shared):
    """Results, and the collectives of the program."""
    mesh = mesh_of(how)
    if how == "shard_map":
        fn_of_devices = jax.shard_map(
            fn, mesh=mesh, in_specs=(P("devices"), P()), out_specs=P("devices")
        )
    else:
        fn_of_devices = fn
    placed = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in ((batched, P("devices")), (shared, P()))
    ]
    program = jax.jit(fn_of_devices).lower(*placed).compile()
    return program(*placed), collectives_of(program)


@pytest.fixture(scope="module")
def of_one_device():
    """What a function, by its name, gives on one device."""
    found = {}

    def run(name, fn, batched, shared):
        if name not in found:
            found[name] = jax.jit(fn)(batched, shared)
        return found[name]

    return run


def check_sharded(how, fn, batched, shared, expected, *, is_random=False):
    actual, collectives = run_sharded(how, fn, batched, shared)
    assert not collectives
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert x.sharding.spec[0] == "devices"
        assert x.shape == y.shape
        if not is_random:
            rtol = 1e-5 if x.dtype in (np.float32, np.complex64) else 1e-11
            sizes = np.abs(y)
            size = sizes[np.isfinite(sizes)].max(initial=0)
            np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * size)


HOW = ["automatic", "explicit", "shard_map"]


@pytest.mark.parametrize("how", [*HOW[:2], pytest.param(HOW[2], marks=pytest.mark.extended)])
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(call, id=name)
        for module, calls in CALLS.items()
        for name, call in calls.items()
        if not module.__name__.endswith("metrics") and name not in OTHERS
    ],
)
def test_no_public_function_of_samples_makes_devices_talk(how, call, request, of_one_device):
    data = vars(make_data(0, batch_size=16))
    batched = {name: data[name] for name in BATCHED}
    shared = {name: x for name, x in data.items() if name not in BATCHED and name not in STATIC}
    static = {name: data[name] for name in STATIC}

    def fn(batched, shared):
        return call(types.SimpleNamespace(**batched, **shared, **static))

    name = request.node.callspec.id.partition("-")[0]
    expected = of_one_device(name, fn, batched, shared)
    is_random = how == "shard_map" and name in DRAWS
    check_sharded(how, fn, batched, shared, expected, is_random=is_random)


def system(num_classes, num_samples, *, own=False):
    """Logits of two modalities, and a Gram spectrum in float32."""
    rng = np.random.default_rng(0)
    shape = (num_samples, num_classes)
    logits = {name: rng.normal(size=shape).astype(np.float32) for name in "ab"}
    kernels = rng.normal(size=(num_samples if own else 1, num_classes, num_classes))
    grams = jax.vmap(linalg.gram_spectrum)(np.float32(kernels @ kernels.swapaxes(1, 2)))
    return logits, grams if own else jax.tree.map(lambda x: x[0], grams)


def fused(logits, spectrum, gamma: Any = 0.1):
    num_classes = logits["a"].shape[-1]
    prior = jnp.full(num_classes, 1 / num_classes, jnp.float32)
    out = fusion.robust_fusion(logits, {"a": spectrum}, prior, perturbed="a", gamma=gamma)
    return out.log_probs


def recalibrated(logits, spectrum):
    return linalg.recalibrate(logits["a"], jax.nn.softmax(logits["b"]), spectrum, 2.0)


def gradient(fn):
    def gradient_fn(batched, shared):
        return jax.grad(lambda batched: (fn(batched, shared) ** 2).sum())(batched)

    return gradient_fn


def squares(num_matrices, size, count, *, hermitian=False):
    matrices = np.random.default_rng(0).normal(size=(count, num_matrices, size, size))
    return list(matrices @ matrices.swapaxes(-1, -2) if hermitian else matrices)


def solve(method, *, one_b=False):
    def solve_fn(matrices, shared):
        a, *rest = matrices
        b, c = (shared, *rest) if one_b else rest
        return linalg.solve_generalized(a, b, c, method=method)

    return solve_fn


def per_sample(samples, shared):
    return jacobians.per_sample_jacobian(lambda z: jnp.tanh(shared @ z), samples, batch_size=1)


def total(logits, spectrum):
    prior = jnp.full(3, 1 / 3, jnp.float32)
    return bounds.total_jacobian(
        logits, {"a": spectrum}, prior, perturbed="a", gamma=0.1, batch_size=1
    )


def for_each_gamma(logits, spectrum):
    gammas = jnp.array([0.1, 0.5], jnp.float32)
    return jax.vmap(lambda gamma: fused(logits, spectrum, gamma), out_axes=1)(gammas)


def one_by_one(logits, spectrum):
    return jax.vmap(lambda z: fused(jax.tree.map(lambda x: x[None], z), spectrum)[0])(logits)


# Batches of several chunks on every device, and what the table above has not.
MORE = {
    "robust": (fused, *system(128, 8 * 80)),
    "robust, gradient": (gradient(fused), *system(128, 8 * 80)),
    "robust, for each gamma": (for_each_gamma, *system(10, 16)),
    "robust, a Gram matrix a sample": (
        lambda batched, _: fused(*batched),
        system(10, 16, own=True),
        (),
    ),
    "robust, one by one": (one_by_one, *system(10, 16)),
    "recalibrate by products": (recalibrated, *system(100, 8 * 700)),
    "recalibrate by products, gradient": (gradient(recalibrated), *system(100, 8 * 20)),
    "schur": (lambda a, _: linalg.schur(a[0]), squares(8 * 130, 3, 1), ()),
    "bartels_stewart": (solve("bartels_stewart"), squares(8 * 130, 3, 3), ()),
    "several blocks": (solve("bartels_stewart"), squares(16, 65, 3), ()),
    "one B for all": (solve("auto", one_b=True), squares(16, 3, 2), squares(1, 3, 1)[0][0]),
    "auto": (solve("auto"), squares(16, 3, 3), ()),
    "auto, gradient": (gradient(solve("auto")), squares(16, 3, 3, hermitian=True), ()),
    "per_sample_jacobian": (per_sample, np.ones((16, 3)), np.ones((2, 3))),
    "total_jacobian": (total, *system(3, 16)),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", MORE)
def test_chunks_gradients_and_other_methods_do_not_either(how, name, of_one_device):
    check_sharded(how, *MORE[name], of_one_device("more: " + name, *MORE[name]))


@pytest.mark.parametrize("how", HOW)
def test_gradients_in_what_samples_share_are_summed_once(how):
    logits, spectrum = system(10, 64)

    def loss(logits, spectrum):
        return (fused(logits, spectrum) ** 2).sum()

    mesh = mesh_of(how)
    placed = jax.device_put(logits, NamedSharding(mesh, P("devices")))
    spectrum = jax.device_put(spectrum, NamedSharding(mesh, P()))

    def loss_of_devices(logits, spectrum):
        return jax.lax.psum(loss(logits, spectrum), "devices")

    if how == "shard_map":
        sharded = jax.shard_map(
            loss_of_devices, mesh=mesh, in_specs=(P("devices"), P()), out_specs=P()
        )
    else:
        sharded = loss
    program = jax.jit(jax.grad(sharded, argnums=1)).lower(placed, spectrum).compile()
    assert set(collectives_of(program)) == {"all-reduce"}
    expected = jax.jit(jax.grad(loss, argnums=1))(logits, spectrum)
    for x, y in zip(program(placed, spectrum), expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4 * np.abs(y).max())


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_batch_over_two_axes(axis_type):
    mesh = jax.make_mesh(
        (4, 2), ("hosts", "cards"), axis_types=(axis_type,) * 2, devices=jax.devices("cpu")[:8]
    )
    logits, spectrum = system(10, 64)
    spec = P(("hosts", "cards"))
    placed = jax.device_put(logits, NamedSharding(mesh, spec))
    program = jax.jit(gradient(fused)).lower(placed, spectrum).compile()
    assert not collectives_of(program)
    found = program(placed, spectrum)
    assert found["a"].sharding.spec[0] == spec[0]
    expected = jax.jit(gradient(fused))(logits, spectrum)
    np.testing.assert_allclose(found["a"], expected["a"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_samples", [12, 3])
def test_a_batch_that_devices_cannot_share_evenly(num_samples):
    logits, spectrum = system(10, num_samples)
    mesh = mesh_of("automatic")

    @jax.jit
    def fn(logits, spectrum):
        logits = jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P("devices"))), logits
        )
        return jax.grad(lambda s: (fused(logits, s) ** 2).sum())(spectrum)

    expected = jax.jit(jax.grad(lambda s: (fused(logits, s) ** 2).sum()))(spectrum)
    for x, y in zip(fn(logits, spectrum), expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4 * np.abs(y).max())
