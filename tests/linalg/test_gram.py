import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.test_util import check_grads

from jacfuse_jax.linalg import (
    GramSpectrum,
    gram_spectrum,
    recalibrate,
    recalibration_matrix,
    spectrum_from_kernel,
)
from tests import reference

GAMMAS = (0.9, 0.5, 0.1, 1e-2, 1e-3, 1e-6)
LOGIT_SCALES = (0.1, 1.0, 5.0, 20.0, 50.0)


def strength_of(gamma):
    return (1 - gamma) / gamma


def random_system(rng, num_classes, logit_scale, batch_size):
    """Logits and probabilities, the last sample one-hot."""
    logits = logit_scale * rng.normal(size=(batch_size, num_classes))
    probs = scipy.special.softmax(logits, axis=-1)
    probs[-1] = np.eye(num_classes)[rng.integers(num_classes)]
    return logits, probs


def random_kernel(rng, num_features, num_classes, smallest=0.1):
    """A kernel with singular values from one down to `smallest`."""
    rank = min(num_features, num_classes)
    left = np.linalg.qr(rng.normal(size=(num_features, rank)))[0]
    right = np.linalg.qr(rng.normal(size=(num_classes, rank)))[0]
    return left * np.geomspace(1, smallest, rank) @ right.T


def error_to_largest_entry(actual, expected, *inputs):
    """Largest error of a sample, relative to the largest entry of its result and inputs."""
    axes = tuple(range(1, np.ndim(expected)))
    size = np.abs(expected).max(axes)
    for array in inputs:
        size = np.maximum(size, np.abs(array).max(-1))
    return (np.abs(np.asarray(actual, np.float64) - expected).max(axes) / size).max()


@pytest.mark.parametrize("num_classes", [2, 10, 50, 309])
def test_matches_scipys_solution_of_the_sylvester_form(num_classes):
    rng = np.random.default_rng(num_classes)
    kernel = random_kernel(rng, num_classes + 3, num_classes)
    spectrum = spectrum_from_kernel(kernel)
    few = num_classes > 100  # SciPy takes a second a sample there; see the eigenbases below
    for gamma in (0.9, 1e-3) if few else GAMMAS[:-1]:
        for scale in (5.0,) if few else LOGIT_SCALES:
            logits, probs = random_system(rng, num_classes, scale, 2 if few else 4)
            R = np.stack(
                [
                    reference.recalibration_matrix_by_sylvester(
                        p, kernel.T @ kernel, strength_of(gamma)
                    )
                    for p in probs
                ]
            )
            expected = np.einsum("bij,bj->bi", R, logits)
            actual = recalibrate(logits, probs, spectrum, strength_of(gamma))
            assert error_to_largest_entry(actual, expected) <= 1e-9
            matrix = recalibration_matrix(probs, spectrum, strength_of(gamma))
            assert error_to_largest_entry(matrix, R) <= 1e-9


@pytest.mark.parametrize("num_features", [3, 7])
def test_solves_the_definition_for_singular_gram_matrices_too(num_features):
    rng = np.random.default_rng(num_features)
    kernel = rng.normal(size=(num_features, 6))
    spectrum = spectrum_from_kernel(kernel)
    for gamma in GAMMAS:
        _, probs = random_system(rng, 6, 1.0, 4)
        R = np.asarray(recalibration_matrix(probs, spectrum, strength_of(gamma)))
        for p, matrix in zip(probs, R, strict=True):
            J = reference.softmax_jacobian(p)
            A, G = strength_of(gamma) * J @ J, kernel.T @ kernel
            residual = np.abs(A @ matrix @ G + matrix - np.eye(6)).max()
            size = np.linalg.norm(A) * np.linalg.norm(matrix) * np.linalg.norm(G) + 1
            assert residual <= 10 * 6 * np.finfo(float).eps * size


@pytest.mark.parametrize("num_classes", [2, 10, 50, 309])
@pytest.mark.parametrize("singular", [False, True])
def test_float32_agrees_with_float64_for_the_same_spectrum(num_classes, singular):
    rng = np.random.default_rng(num_classes)
    num_features = max(1, num_classes // 2) if singular else 2 * num_classes
    spectrum = spectrum_from_kernel(random_kernel(rng, num_features, num_classes))
    spectrum32 = GramSpectrum(*(array.astype(jnp.float32) for array in spectrum))
    spectrum64 = GramSpectrum(*(array.astype(jnp.float64) for array in spectrum32))
    solve = jax.jit(recalibrate)
    for gamma in GAMMAS:
        for scale in LOGIT_SCALES:
            logits, probs = (
                array.astype(np.float32) for array in random_system(rng, num_classes, scale, 16)
            )
            low = np.asarray(solve(logits, probs, spectrum32, strength_of(gamma)))
            high = np.asarray(
                solve(
                    logits.astype(np.float64),
                    probs.astype(np.float64),
                    spectrum64,
                    strength_of(gamma),
                )
            )
            assert low.dtype == np.float32
            assert np.isfinite(low).all()
            assert np.isfinite(high).all()
            assert np.abs(low - high).max() <= 1e-5 * np.abs(high).max()
            # Sample by sample the logits belong to the scale: as gamma -> 0 the result tends to
            # their mean, whose digits in float32 are those of the largest logit.
            assert error_to_largest_entry(low, high, logits) <= 4e-6


def test_large_problem_matches_the_two_eigenbases():
    rng = np.random.default_rng(0)
    kernel = random_kernel(rng, 100, 309)
    for gamma, scale in itertools.product(GAMMAS, LOGIT_SCALES):
        logits, probs = random_system(rng, 309, scale, 2)
        strength = strength_of(gamma)
        R = [reference.recalibration_matrix_by_eigh(p, kernel.T @ kernel, strength) for p in probs]
        expected = np.einsum("bij,bj->bi", np.stack(R), logits)
        actual = recalibrate(logits, probs, spectrum_from_kernel(kernel), strength_of(gamma))
        assert error_to_largest_entry(actual, expected) <= 1e-9


def test_limits(dtype):
    rng = np.random.default_rng(0)
    spectrum = spectrum_from_kernel(rng.normal(size=(12, 5)).astype(dtype))
    logits, probs = (array.astype(dtype) for array in random_system(rng, 5, 1.0, 3))
    tolerance = 10 * 5 * np.finfo(dtype).eps
    np.testing.assert_allclose(recalibrate(logits, probs, spectrum, 0.0), logits, atol=tolerance)
    one_hot = np.eye(5, dtype=dtype)[:3]
    np.testing.assert_allclose(
        recalibrate(logits, one_hot, spectrum, 1e6), logits, atol=tolerance * np.abs(logits).max()
    )
    dropped = recalibration_matrix(probs[:-1], spectrum, 1e12)
    np.testing.assert_allclose(dropped, np.full((2, 5, 5), 0.2), atol=max(1e-6, tolerance))


@pytest.mark.parametrize("strength", [1e-30, 1e20, 1e30, 3e38])
def test_extreme_strengths_stay_finite_and_keep_the_column_sums(strength, dtype):
    rng = np.random.default_rng(1)
    spectrum = spectrum_from_kernel(rng.normal(size=(12, 5)).astype(dtype))
    _, probs = random_system(rng, 5, 5.0, 4)
    R = np.asarray(recalibration_matrix(probs.astype(dtype), spectrum, strength))
    np.testing.assert_allclose(R.sum(axis=1), 1, atol=10 * 5 * np.finfo(dtype).eps)


def test_minimises_the_objective():
    rng = np.random.default_rng(2)
    kernel = rng.normal(size=(7, 4))
    p = scipy.special.softmax(rng.normal(size=4))
    J, gamma = reference.softmax_jacobian(p), 0.1

    def objective(R):
        return (1 - gamma) * jnp.sum((J @ R @ kernel.T) ** 2) + gamma * jnp.sum(
            (R - jnp.eye(4)) ** 2
        )

    R = recalibration_matrix(p, spectrum_from_kernel(kernel), strength_of(gamma))
    np.testing.assert_allclose(jax.grad(objective)(R), 0, atol=1e-13)


def test_batch_matches_loop_and_chunks_and_per_sample_spectra(dtype):
    rng = np.random.default_rng(3)
    kernels = rng.normal(size=(7, 9, 5)).astype(dtype)
    logits, probs = (array.astype(dtype) for array in random_system(rng, 5, 2.0, 7))
    own = jax.vmap(spectrum_from_kernel)(kernels)
    loop = np.stack(
        [
            recalibrate(logits[b], probs[b], GramSpectrum(*(x[b] for x in own)), 9.0)
            for b in range(7)
        ]
    )
    tolerance = 10 * 5 * np.finfo(dtype).eps
    for batch_size in (None, 1, 3, 7, 100):
        batched = recalibrate(logits, probs, own, 9.0, batch_size=batch_size)
        np.testing.assert_allclose(batched, loop, rtol=tolerance, atol=tolerance)
    shared = spectrum_from_kernel(kernels[0])
    repeated = GramSpectrum(*(jnp.stack([x] * 7) for x in shared))
    np.testing.assert_allclose(
        jax.jit(recalibrate)(logits, probs, shared, 9.0),
        recalibrate(logits, probs, repeated, 9.0),
        rtol=tolerance,
        atol=tolerance,
    )


def test_permuting_classes_permutes_the_result():
    rng = np.random.default_rng(4)
    kernel = rng.normal(size=(9, 5))
    logits, probs = random_system(rng, 5, 2.0, 3)
    order = rng.permutation(5)
    direct = recalibrate(logits, probs, spectrum_from_kernel(kernel), 9.0)
    permuted = recalibrate(
        logits[:, order], probs[:, order], spectrum_from_kernel(kernel[:, order]), 9.0
    )
    np.testing.assert_allclose(permuted, direct[:, order], atol=1e-13)


def test_nan_stays_in_its_sample():
    rng = np.random.default_rng(5)
    spectrum = spectrum_from_kernel(rng.normal(size=(9, 5)))
    logits, probs = random_system(rng, 5, 2.0, 4)
    broken_logits, broken_probs = logits.copy(), probs.copy()
    broken_logits[1, 2], broken_probs[2, 0] = np.nan, np.inf
    expected = np.asarray(recalibrate(logits, probs, spectrum, 9.0))
    actual = np.asarray(recalibrate(broken_logits, broken_probs, spectrum, 9.0))
    assert np.isnan(actual[1:3]).any(axis=1).all()
    np.testing.assert_array_equal(actual[[0, 3]], expected[[0, 3]])


@pytest.mark.parametrize("num_features", [3, 5, 8])
def test_derivatives_match_finite_differences(num_features):
    rng = np.random.default_rng(6)
    spectrum = spectrum_from_kernel(rng.normal(size=(num_features, 5)))
    logits, probs = random_system(rng, 5, 1.0, 2)

    def fn(logits, probs, spectrum, strength):
        return recalibrate(logits, probs, spectrum, strength)

    args = (logits, probs, spectrum, 9.0)
    check_grads(fn, args, order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-6)


class TestSpectra:
    @pytest.mark.parametrize("shape", [(9, 4), (4, 4), (2, 4), (1, 2)])
    def test_both_ways_rebuild_the_gram_matrix(self, shape, dtype):
        kernel = np.random.default_rng(0).normal(size=shape).astype(dtype)
        gram = kernel.T @ kernel
        tolerance = 10 * shape[1] * np.finfo(dtype).eps * np.linalg.norm(gram)
        for g, V in (spectrum_from_kernel(kernel), gram_spectrum(gram)):
            assert g.dtype == V.dtype == dtype
            assert V.shape == gram.shape
            np.testing.assert_allclose(V * g @ V.T, gram, atol=tolerance)
            np.testing.assert_allclose(V.T @ V, np.eye(shape[1]), atol=tolerance)
            assert (g >= 0).all()

    def test_missing_rank_gives_exact_zeros(self, dtype):
        kernel = np.random.default_rng(0).normal(size=(3, 8)).astype(dtype)
        assert np.count_nonzero(spectrum_from_kernel(kernel).eigenvalues) == 3
        assert np.count_nonzero(gram_spectrum(kernel.T @ kernel).eigenvalues) == 3

    def test_kernel_knows_small_eigenvalues_that_the_gram_matrix_lost(self):
        kernel = random_kernel(np.random.default_rng(0), 8, 4, smallest=1e-3)
        exact = np.geomspace(1, 1e-6, 4)
        kernel32 = kernel.astype(np.float32)
        from_kernel = np.asarray(spectrum_from_kernel(kernel32).eigenvalues)
        np.testing.assert_allclose(from_kernel, exact, rtol=1e-3)
        from_gram = np.asarray(gram_spectrum(kernel32.T @ kernel32).eigenvalues)
        assert abs(from_gram[0] / exact[-1] - 1) > 10 * abs(from_kernel[-1] / exact[-1] - 1)

    def test_batched_gram_matrices_keep_nan_apart(self):
        grams = np.stack([np.eye(3), np.full((3, 3), np.nan), 2 * np.eye(3)])
        spectrum = gram_spectrum(grams)
        np.testing.assert_allclose(spectrum.eigenvalues[0], 1)
        np.testing.assert_allclose(spectrum.eigenvalues[2], 2)
        assert np.isnan(spectrum.eigenvalues[1]).all()


class TestMisuse:
    def test_shapes(self):
        spectrum = gram_spectrum(np.eye(3))
        z = np.ones((4, 3))
        with pytest.raises(ValueError, match=r"got \(4, 3\) and \(3,\)"):
            recalibrate(z, z[0], spectrum, 1.0)
        with pytest.raises(ValueError, match=r"spectrum must have shapes \(2,\)"):
            recalibrate(z[:, :2], z[:, :2], spectrum, 1.0)
        with pytest.raises(ValueError, match=r"strength must be a scalar, got shape \(4,\)"):
            recalibrate(z, z, spectrum, np.ones(4))
        for strength in (-1.0, np.nan, np.inf):
            with pytest.raises(ValueError, match=r"strength must lie in \[0, inf\)"):
                recalibrate(z, z, spectrum, strength)
        with pytest.raises(ValueError, match="batch_size must be at least 1, got -1"):
            recalibrate(z, z, spectrum, 1.0, batch_size=-1)
        with pytest.raises(ValueError, match=r"gram must have shape .* got \(3, 2\)"):
            gram_spectrum(np.ones((3, 2)))
        with pytest.raises(ValueError, match=r"kernel must have shape \(H, K\), got \(3,\)"):
            spectrum_from_kernel(np.ones(3))

    def test_dtypes(self):
        spectrum = gram_spectrum(np.eye(3))
        with pytest.raises(TypeError, match="logits must be float32 or float64, got int"):
            recalibrate(np.ones((2, 3), int), np.ones((2, 3)), spectrum, 1.0)
        with pytest.raises(TypeError, match="kernel must be .* got float16"):
            spectrum_from_kernel(np.ones((2, 2), np.float16))
