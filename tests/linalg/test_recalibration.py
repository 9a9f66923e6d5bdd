"""Batches with many classes, which are solved by matrix products that samples share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.test_util import check_grads

from jacfuse_jax.linalg import GramSpectrum, recalibrate, spectrum_from_kernel
from tests import reference

NUM_CLASSES = 100


_solve = jax.jit(recalibrate)


def make_system(batch_size, dtype, logit_scale=3.0, num_features=120, seed=0):
    """Logits, probabilities and a spectrum with eigenvalues up to about 4."""
    rng = np.random.default_rng(seed)
    logits = (logit_scale * rng.normal(size=(batch_size, NUM_CLASSES))).astype(dtype)
    kernel = rng.normal(size=(num_features, NUM_CLASSES)) / num_features**0.5
    return (
        logits,
        scipy.special.softmax(logits, axis=-1),
        spectrum_from_kernel(kernel.astype(dtype)),
    )


def error(actual, expected, logits):
    """Largest error, relative to the largest entry of a sample's result and logits."""
    size = np.maximum(np.abs(expected).max(axis=-1), np.abs(logits).max(axis=-1))
    return (np.abs(np.asarray(actual, np.float64) - expected).max(axis=-1) / size).max()


def num_likely(probs, spectrum, strength):
    return (32 * strength * np.max(spectrum.eigenvalues) * probs**2 > 1).sum(axis=-1).max()


def one_by_one(logits, probs, spectrum, strength):
    """R z of every sample for itself, in float64: that is without shared products."""
    z, p, *wide = (jnp.asarray(array, jnp.float64) for array in (logits, probs, *spectrum))
    pairs = zip(z, p, strict=True)
    return np.stack([_solve(*pair, GramSpectrum(*wide), float(strength)) for pair in pairs])


@pytest.mark.parametrize("strength", [0.0, 1e-3, 1.0, 9.0, 99.0])
def test_matches_two_eigenbases(strength):
    logits, probs, spectrum = make_system(20, np.float64)
    g, V = spectrum
    matrices = [reference.recalibration_matrix_by_eigh(p, V * g @ V.T, strength) for p in probs]
    expected = np.einsum("bij,bj->bi", matrices, logits)
    assert error(recalibrate(logits, probs, spectrum, strength), expected, logits) <= 1e-12


@pytest.mark.parametrize("num_features", [60, 120])
@pytest.mark.parametrize("logit_scale", [0.1, 3.0, 50.0])
def test_matches_single_samples(logit_scale, num_features, dtype):
    logits, probs, spectrum = make_system(20, dtype, logit_scale, num_features)
    probs[3] = np.eye(NUM_CLASSES)[7]
    probs[4] = 1 / NUM_CLASSES  # no class is more likely than another
    for strength in np.asarray([0, 1e-3, 1, 9, 99, 1e6], dtype):
        actual = _solve(logits, probs, spectrum, strength)
        assert actual.dtype == dtype
        expected = one_by_one(logits, probs, spectrum, strength)
        assert error(actual, expected, logits) <= 20 * np.finfo(dtype).eps


def test_any_number_of_likely_classes_gives_the_same_answer(dtype):
    logits, probs, spectrum = make_system(40, dtype)
    strengths = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
    counts = [num_likely(probs, spectrum, strength) for strength in strengths]
    assert counts[0] <= 5 < counts[2] <= 12 < counts[-1]
    for strength in strengths:
        expected = one_by_one(logits, probs, spectrum, strength)
        actual = _solve(logits, probs, spectrum, strength)
        assert error(actual, expected, logits) <= 20 * np.finfo(dtype).eps


@pytest.mark.parametrize("batch_size", [None, 1, 7, 39, 1000])
def test_blocks_may_have_any_size(batch_size, dtype):
    logits, probs, spectrum = make_system(701, dtype)  # blocks of 655 samples by default
    whole = recalibrate(logits, probs, spectrum, 1.0, batch_size=701)
    actual = recalibrate(logits, probs, spectrum, 1.0, batch_size=batch_size)
    assert error(actual, np.asarray(whole, np.float64), logits) <= 20 * np.finfo(dtype).eps
    order = np.random.default_rng(1).permutation(701)
    permuted = recalibrate(logits[order], probs[order], spectrum, 1.0, batch_size=batch_size)
    assert error(permuted, np.asarray(actual)[order], logits[order]) <= 20 * np.finfo(dtype).eps


def test_vmap_over_strengths_is_a_loop(dtype):
    logits, probs, spectrum = make_system(20, dtype)
    strengths = jnp.asarray([0.1, 9.0, 1000.0], dtype)
    mapped = jax.vmap(lambda c: recalibrate(logits, probs, spectrum, c))(strengths)
    for strength, actual in zip(strengths, mapped, strict=True):
        looped = recalibrate(logits, probs, spectrum, strength)
        assert error(actual, np.asarray(looped, np.float64), logits) <= 20 * np.finfo(dtype).eps


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_sample(value):
    logits, probs, spectrum = make_system(20, np.float32)
    broken_logits, broken_probs = logits.copy(), probs.copy()
    broken_logits[1, 2], broken_probs[2, 0] = value, value
    expected = np.asarray(recalibrate(logits, probs, spectrum, 1.0))
    actual = np.asarray(recalibrate(broken_logits, broken_probs, spectrum, 1.0))
    assert np.isnan(actual[1:3]).any(axis=1).all()
    intact = np.setdiff1d(np.arange(20), [1, 2])
    np.testing.assert_array_equal(actual[intact], expected[intact])


def test_spectrum_of_zeros_changes_nothing(dtype):
    logits, probs, spectrum = make_system(20, dtype)
    zero = GramSpectrum(jnp.zeros_like(spectrum.eigenvalues), spectrum.eigenvectors)
    tolerance = 10 * np.finfo(dtype).eps * np.abs(logits).max()
    np.testing.assert_allclose(recalibrate(logits, probs, zero, 9.0), logits, atol=tolerance)


def test_derivatives_match_finite_differences():
    logits, probs, spectrum = make_system(16, np.float64)
    # As functions of few directions, since rounding adds up over all.
    rng = np.random.default_rng(1)
    directions = [rng.normal(size=np.shape(x)) for x in (logits, probs, *spectrum)]

    def fn(steps, strength):
        moved = [
            x + step * direction
            for x, step, direction in zip(
                (logits, probs, *spectrum), steps, directions, strict=True
            )
        ]
        return recalibrate(moved[0], moved[1], GramSpectrum(moved[2], moved[3]), strength)

    args = ([jnp.zeros(())] * 4, jnp.asarray(1.0))
    check_grads(fn, args, order=1, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5, eps=1e-6)
