"""Batches with many classes, which are solved by matrix products that samples share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.test_util import check_grads

from jacfuse_jax.linalg import (
    GramSpectrum,
    _recalibration,
    recalibrate,
    spectrum_from_kernel,
)
from tests import reference
from tests.linalg.equations import jit_derivatives

# Classes enough for matrix products.
NUM_CLASSES = {"float32": 100, "float64": 260}
STRENGTHS = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)


# One program serves all strengths.
_solve = jax.jit(recalibrate, static_argnames="batch_size")
_spectrum = jax.jit(spectrum_from_kernel)


def make_system(batch_size, dtype, logit_scale=3.0, relative_rank=1.2):
    """Logits, probabilities and a spectrum with eigenvalues up to about 4."""
    rng = np.random.default_rng(0)
    num_classes = NUM_CLASSES[dtype]
    num_features = int(relative_rank * num_classes)
    logits = (logit_scale * rng.normal(size=(batch_size, num_classes))).astype(dtype)
    kernel = (rng.normal(size=(num_features, num_classes)) / num_features**0.5).astype(dtype)
    return logits, scipy.special.softmax(logits, axis=-1), jax.device_get(_spectrum(kernel))


def error(actual, expected, logits):
    """Largest error, relative to the largest entry of a sample's result and logits."""
    size = np.maximum(np.abs(expected).max(axis=-1), np.abs(logits).max(axis=-1))
    return (np.abs(np.asarray(actual, np.float64) - expected).max(axis=-1) / size).max()


def programs(probs, spectrum, strengths):
    """How a batch is solved: 0, 1 by products with few or more likely classes, 2 densely."""
    num_classes = probs.shape[-1]
    largest = np.max(spectrum.eigenvalues)
    counts = [(32 * c * largest * probs**2 > 1).sum(axis=-1).max() for c in strengths]
    return [int(count > num_classes // 20) + int(count > num_classes // 8) for count in counts]


@jax.jit
def _solve_one_by_one(logits, probs, spectrum, strength):
    return jax.lax.map(lambda zp: recalibrate(zp[0], zp[1], spectrum, strength), (logits, probs))


def one_by_one(logits, probs, spectrum, strength):
    """R z of every sample for itself, in float64: that is without shared products."""
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (logits, probs, spectrum))
    return np.asarray(_solve_one_by_one(*wide, float(strength)))


def test_matches_two_eigenbases():
    logits, probs, spectrum = make_system(20, "float64")
    g, V = spectrum
    strengths = (0.0, 1e-3, 1.0, 9.0, 99.0)
    expected = reference.recalibrated_by_eigh(logits, probs, V * g @ V.T, strengths)
    for strength, of_strength in zip(strengths, expected, strict=True):
        actual = _solve(logits, probs, spectrum, strength)
        assert error(actual, of_strength, logits) <= 1e-12
    outside_of_jit = recalibrate(logits, probs, spectrum, strengths[-1])
    assert error(outside_of_jit, expected[-1], logits) <= 1e-12


@pytest.mark.parametrize("relative_rank", [1.2, 0.6])
@pytest.mark.parametrize("logit_scale", [3.0, 0.1, 50.0])
def test_matches_single_samples(logit_scale, relative_rank, dtype):
    logits, probs, spectrum = make_system(20, dtype, logit_scale, relative_rank)
    num_classes = NUM_CLASSES[dtype]
    probs[3] = np.eye(num_classes)[7]
    probs[4] = 1 / num_classes  # no class is more likely than another
    for strength in (0.0, 1e-3, 1.0, 9.0, 99.0, 1e6):
        actual = _solve(logits, probs, spectrum, strength)
        assert actual.dtype == dtype
        expected = one_by_one(logits, probs, spectrum, np.asarray(strength, dtype))
        assert error(actual, expected, logits) <= 12 * np.finfo(dtype).eps


def test_any_number_of_likely_classes_gives_the_same_answer(dtype):
    logits, probs, spectrum = make_system(20, dtype)
    assert set(programs(probs, spectrum, STRENGTHS)) == {0, 1, 2}
    for strength in STRENGTHS:
        expected = one_by_one(logits, probs, spectrum, np.asarray(strength, dtype))
        actual = _solve(logits, probs, spectrum, strength)
        assert error(actual, expected, logits) <= 12 * np.finfo(dtype).eps


@pytest.mark.parametrize(
    ("batch_size", "dtype"),
    [(None, "float32"), (1, "float32"), (7, "float32"), (None, "float64"), (1000, "float32")],
)
def test_blocks_may_have_any_size(batch_size, dtype):
    logits, probs, spectrum = make_system(701, dtype)  # 656 or 252 samples a block by default
    whole = _solve(logits, probs, spectrum, 1.0, batch_size=701)
    actual = _solve(logits, probs, spectrum, 1.0, batch_size=batch_size)
    assert error(actual, np.asarray(whole, np.float64), logits) <= 12 * np.finfo(dtype).eps
    order = np.random.default_rng(1).permutation(701)
    permuted = _solve(logits[order], probs[order], spectrum, 1.0, batch_size=batch_size)
    assert error(permuted, np.asarray(actual)[order], logits[order]) <= 12 * np.finfo(dtype).eps


def test_vmap_over_strengths_is_a_loop():
    logits, probs, spectrum = make_system(20, "float32")
    strengths = (0.1, 9.0, 1000.0)
    mapped = jax.jit(jax.vmap(lambda c: recalibrate(logits, probs, spectrum, c)))(
        np.asarray(strengths, np.float32)
    )
    for strength, actual in zip(strengths, np.asarray(mapped), strict=True):
        looped = _solve(logits, probs, spectrum, strength)
        assert error(actual, np.asarray(looped, np.float64), logits) <= 12 * np.finfo("f4").eps


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_sample(value):
    logits, probs, spectrum = make_system(20, "float32")
    broken_logits, broken_probs = logits.copy(), probs.copy()
    broken_logits[1, 2], broken_probs[2, 0] = value, value
    expected = np.asarray(_solve(logits, probs, spectrum, 1.0))
    actual = np.asarray(_solve(broken_logits, broken_probs, spectrum, 1.0))
    assert np.isnan(actual[1:3]).any(axis=1).all()
    intact = np.setdiff1d(np.arange(20), [1, 2])
    np.testing.assert_array_equal(actual[intact], expected[intact])


def test_spectrum_of_zeros_changes_nothing(dtype):
    logits, probs, spectrum = make_system(20, dtype)
    zero = GramSpectrum(np.zeros_like(spectrum.eigenvalues), spectrum.eigenvectors)
    tolerance = 10 * np.finfo(dtype).eps * np.abs(logits).max()
    np.testing.assert_allclose(_solve(logits, probs, zero, 9.0), logits, atol=tolerance)


def test_few_likely_classes_need_no_dense_solve_and_many_do(monkeypatch, dtype):
    logits, probs, spectrum = make_system(23, dtype)  # a size that nothing was compiled for
    by_program = dict(zip(programs(probs, spectrum, STRENGTHS), STRENGTHS, strict=True))

    def poisoned(sample_fn, batch_size, batched, *shared):
        del sample_fn, batch_size, shared
        (logits, _), _ = batched
        return jnp.full_like(logits, jnp.nan)

    monkeypatch.setattr(_recalibration, "map_local_samples", poisoned)
    for program, strength in by_program.items():
        solved = np.asarray(recalibrate(logits, probs, spectrum, strength))
        assert np.isnan(solved).all() if program == 2 else np.isfinite(solved).all()
    assert set(by_program) == {0, 1, 2}


def test_calls_of_one_shape_compile_once(caplog):
    logits, probs, spectrum = make_system(21, "float32")
    recalibrate(logits, probs, spectrum, 1.0)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        recalibrate(logits, probs, spectrum, 2.0)
    assert not [record for record in caplog.records if "solve" in record.message]


def test_negative_traced_strength_gives_nan():
    for batch_size in (2, 20):
        logits, probs, spectrum = make_system(batch_size, "float32")
        assert np.isnan(_solve(logits, probs, spectrum, -1.0)).all()


@pytest.mark.parametrize(
    "transform",
    [
        jax.value_and_grad,
        lambda fn: jax.jacfwd(jax.grad(fn)),
        lambda fn: jax.grad(jax.checkpoint(fn)),
        lambda fn: lambda strength: jax.linearize(fn, strength)[1](1.0),
    ],
)
def test_derivatives_are_those_of_single_samples(transform):
    logits, probs, spectrum = make_system(20, "float64")

    def batch(strength):
        return (recalibrate(logits, probs, spectrum, strength) ** 2).sum()

    def single(strength):
        solve = jax.vmap(functools.partial(recalibrate, spectrum=spectrum, strength=strength))
        return (solve(logits, probs) ** 2).sum()

    actual, expected = (jit_derivatives(transform(fn))(1.0) for fn in (batch, single))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11), actual, expected)


def test_derivative_in_the_logits_alone_is_finite_for_any_strength():
    # R z is linear in z, whereas its derivative in the strength overflows.
    logits, probs, spectrum = make_system(20, "float32")

    @jax.jit
    def derivative(z):
        return jax.jvp(lambda z: recalibrate(z, probs, spectrum, 1e25), (z,), (z,))

    value, tangent = derivative(logits)
    np.testing.assert_allclose(tangent, value, rtol=1e-5, atol=1e-4)


def test_derivatives_match_finite_differences():
    logits, probs, spectrum = make_system(16, "float64")
    # As functions of few directions, since rounding adds up over all.
    rng = np.random.default_rng(1)
    directions = [rng.normal(size=np.shape(x)) for x in (logits, probs, *spectrum)]

    @jax.jit
    def fn(steps, strength):
        moved = [
            x + step * direction
            for x, step, direction in zip(
                (logits, probs, *spectrum), steps, directions, strict=True
            )
        ]
        return recalibrate(moved[0], moved[1], GramSpectrum(moved[2], moved[3]), strength)

    args = ([np.zeros(())] * 4, np.asarray(1.0))
    check_grads(fn, args, order=1, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5, eps=1e-6)
