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

# One program serves all strengths.
solve = jax.jit(recalibrate, static_argnames="batch_size")
solve_matrix = jax.jit(recalibration_matrix)
kernel_spectrum, matrix_spectrum = jax.jit(spectrum_from_kernel), jax.jit(gram_spectrum)

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


@pytest.mark.parametrize("num_classes", [10, 2, 50, 309])
def test_matches_scipys_solution_of_the_sylvester_form(num_classes):
    rng = np.random.default_rng(num_classes)
    kernel = random_kernel(rng, num_classes + 3, num_classes)
    spectrum = kernel_spectrum(kernel)
    few = num_classes > 100  # SciPy takes a second a sample there; see the eigenbases below
    for gamma in (1e-3,) if few else GAMMAS[:-1]:
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
            actual = solve(logits, probs, spectrum, strength_of(gamma))
            assert error_to_largest_entry(actual, expected) <= 1e-9
            matrix = solve_matrix(probs, spectrum, strength_of(gamma))
            assert error_to_largest_entry(matrix, R) <= 1e-9


@pytest.mark.parametrize("num_features", [3, 7])
def test_solves_the_definition_for_singular_gram_matrices_too(num_features):
    rng = np.random.default_rng(num_features)
    kernel = rng.normal(size=(num_features, 6))
    spectrum = kernel_spectrum(kernel)
    for gamma in GAMMAS:
        _, probs = random_system(rng, 6, 1.0, 4)
        R = np.asarray(solve_matrix(probs, spectrum, strength_of(gamma)))
        for p, matrix in zip(probs, R, strict=True):
            J = reference.softmax_jacobian(p)
            A, G = strength_of(gamma) * J @ J, kernel.T @ kernel
            residual = np.abs(A @ matrix @ G + matrix - np.eye(6)).max()
            size = np.linalg.norm(A) * np.linalg.norm(matrix) * np.linalg.norm(G) + 1
            assert residual <= 10 * 6 * np.finfo(float).eps * size


@pytest.mark.parametrize("num_classes", [10, 2, 50, 309])
def test_float32_agrees_with_float64_for_the_same_spectrum(num_classes):
    rng = np.random.default_rng(num_classes)
    for num_features in (2 * num_classes, max(1, num_classes // 2)):  # the latter are singular
        spectrum = kernel_spectrum(random_kernel(rng, num_features, num_classes))
        spectrum32 = jax.tree.map(lambda array: np.asarray(array, np.float32), spectrum)
        spectrum64 = jax.tree.map(lambda array: array.astype(np.float64), spectrum32)
        for gamma, scale in itertools.product(GAMMAS, LOGIT_SCALES):
            logits, probs = (
                array.astype(np.float32) for array in random_system(rng, num_classes, scale, 16)
            )
            wide = logits.astype(np.float64), probs.astype(np.float64)
            low = np.asarray(solve(logits, probs, spectrum32, strength_of(gamma)))
            high = np.asarray(solve(*wide, spectrum64, strength_of(gamma)))
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
    spectrum = kernel_spectrum(kernel)
    strengths = [strength_of(gamma) for gamma in GAMMAS]
    for scale in LOGIT_SCALES:
        logits, probs = random_system(rng, 309, scale, 2)
        expected = reference.recalibrated_by_eigh(logits, probs, kernel.T @ kernel, strengths)
        for strength, of_strength in zip(strengths, expected, strict=True):
            actual = solve(logits, probs, spectrum, strength)
            assert error_to_largest_entry(actual, of_strength) <= 1e-9


def test_limits(dtype):
    rng = np.random.default_rng(0)
    spectrum = kernel_spectrum(rng.normal(size=(12, 5)).astype(dtype))
    logits, probs = (array.astype(dtype) for array in random_system(rng, 5, 1.0, 4))
    tolerance = 10 * 5 * np.finfo(dtype).eps
    np.testing.assert_allclose(solve(logits, probs, spectrum, 0.0), logits, atol=tolerance)
    one_hot = np.eye(5, dtype=dtype)[:4]
    np.testing.assert_allclose(
        solve(logits, one_hot, spectrum, 1e6), logits, atol=tolerance * np.abs(logits).max()
    )
    dropped = np.asarray(solve_matrix(probs, spectrum, 1e12))[:-1]  # the last is one-hot
    np.testing.assert_allclose(dropped, np.full((3, 5, 5), 0.2), atol=max(1e-6, tolerance))


@pytest.mark.parametrize("strength", [1e30, 1e-30, 1e20, 3e38])
def test_extreme_strengths_stay_finite_and_keep_the_column_sums(strength, dtype):
    rng = np.random.default_rng(1)
    spectrum = kernel_spectrum(rng.normal(size=(12, 5)).astype(dtype))
    _, probs = random_system(rng, 5, 5.0, 4)
    R = np.asarray(solve_matrix(probs.astype(dtype), spectrum, strength))
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

    # Outside of jit.
    R = recalibration_matrix(p, spectrum_from_kernel(kernel), strength_of(gamma))
    np.testing.assert_allclose(jax.jit(jax.grad(objective))(R), 0, atol=1e-13)


def test_batch_matches_loop_and_chunks_and_per_sample_spectra():
    rng = np.random.default_rng(3)
    kernels = rng.normal(size=(7, 9, 5)).astype(np.float32)
    logits, probs = (array.astype(np.float32) for array in random_system(rng, 5, 2.0, 7))
    own = jax.device_get(jax.jit(jax.vmap(spectrum_from_kernel))(kernels))
    loop = np.stack(
        [solve(logits[b], probs[b], GramSpectrum(*(x[b] for x in own)), 9.0) for b in range(7)]
    )
    tolerance = 10 * 5 * float(np.finfo(np.float32).eps)
    for batch_size in (None, 1, 3, 100):
        batched = solve(logits, probs, own, 9.0, batch_size=batch_size)
        np.testing.assert_allclose(batched, loop, rtol=tolerance, atol=tolerance)
    # Outside of jit, and shared.
    shared = GramSpectrum(*(x[0] for x in own))
    repeated = jax.tree.map(lambda x: np.stack([x] * 7), shared)
    np.testing.assert_allclose(
        recalibrate(logits, probs, shared, 9.0),
        solve(logits, probs, repeated, 9.0),
        rtol=tolerance,
        atol=tolerance,
    )


def test_permuting_classes_permutes_the_result():
    rng = np.random.default_rng(4)
    kernel = rng.normal(size=(12, 5))
    logits, probs = random_system(rng, 5, 2.0, 4)
    order = rng.permutation(5)
    direct = np.asarray(solve(logits, probs, kernel_spectrum(kernel), 9.0))
    permuted = solve(logits[:, order], probs[:, order], kernel_spectrum(kernel[:, order]), 9.0)
    np.testing.assert_allclose(permuted, direct[:, order], atol=1e-13)


def test_nan_stays_in_its_sample():
    rng = np.random.default_rng(5)
    spectrum = kernel_spectrum(rng.normal(size=(12, 5)))
    logits, probs = random_system(rng, 5, 2.0, 4)
    broken_logits, broken_probs = logits.copy(), probs.copy()
    broken_logits[1, 2], broken_probs[2, 0] = np.nan, np.inf
    expected = np.asarray(solve(logits, probs, spectrum, 9.0))
    actual = np.asarray(solve(broken_logits, broken_probs, spectrum, 9.0))
    assert np.isnan(actual[1:3]).any(axis=1).all()
    np.testing.assert_array_equal(actual[[0, 3]], expected[[0, 3]])


def test_derivatives_match_finite_differences():
    for num_features in (3, 5, 8):
        rng = np.random.default_rng(6)
        spectrum = jax.device_get(kernel_spectrum(rng.normal(size=(num_features, 5))))
        args = (*random_system(rng, 5, 1.0, 2), spectrum, 9.0)
        check_grads(solve, args, order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-6)


class TestSpectra:
    @pytest.mark.parametrize("shape", [(9, 4), (4, 4), (2, 4), (1, 2)])
    def test_both_ways_rebuild_the_gram_matrix(self, shape, dtype):
        kernel = np.random.default_rng(0).normal(size=shape).astype(dtype)
        gram = kernel.T @ kernel
        tolerance = 10 * shape[1] * np.finfo(dtype).eps * np.linalg.norm(gram)
        for g, V in jax.device_get((kernel_spectrum(kernel), matrix_spectrum(gram))):
            assert g.dtype == V.dtype == dtype
            assert V.shape == gram.shape
            np.testing.assert_allclose(V * g @ V.T, gram, atol=tolerance)
            np.testing.assert_allclose(V.T @ V, np.eye(shape[1]), atol=tolerance)
            assert (g >= 0).all()

    def test_missing_rank_gives_exact_zeros(self, dtype):
        kernel = np.random.default_rng(0).normal(size=(2, 4)).astype(dtype)
        assert np.count_nonzero(kernel_spectrum(kernel).eigenvalues) == 2
        assert np.count_nonzero(matrix_spectrum(kernel.T @ kernel).eigenvalues) == 2

    def test_kernel_knows_small_eigenvalues_that_the_gram_matrix_lost(self):
        kernel = random_kernel(np.random.default_rng(0), 9, 4, smallest=1e-3)
        exact = np.geomspace(1, 1e-6, 4)
        kernel32 = kernel.astype(np.float32)
        from_kernel = np.asarray(kernel_spectrum(kernel32).eigenvalues)
        np.testing.assert_allclose(from_kernel, exact, rtol=1e-3)
        from_gram = np.asarray(matrix_spectrum(kernel32.T @ kernel32).eigenvalues)
        assert abs(from_gram[0] / exact[-1] - 1) > 10 * abs(from_kernel[-1] / exact[-1] - 1)

    def test_batched_gram_matrices_keep_nan_apart(self):
        grams = np.stack([np.eye(3), np.full((3, 3), np.nan), 2 * np.eye(3)])
        eigenvalues = np.asarray(gram_spectrum(grams).eigenvalues)  # outside of jit
        np.testing.assert_allclose(eigenvalues[0], 1)
        np.testing.assert_allclose(eigenvalues[2], 2)
        assert np.isnan(eigenvalues[1]).all()


class TestMisuse:
    def test_shapes(self):
        spectrum = GramSpectrum(jnp.ones(3), jnp.eye(3))
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
        spectrum = GramSpectrum(jnp.ones(3), jnp.eye(3))
        with pytest.raises(TypeError, match="logits must be float32 or float64, got int"):
            recalibrate(np.ones((2, 3), int), np.ones((2, 3)), spectrum, 1.0)
        with pytest.raises(TypeError, match="kernel must be .* got float16"):
            spectrum_from_kernel(np.ones((2, 2), np.float16))
