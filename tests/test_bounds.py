from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import bounds, fusion, linalg
from tests import reference

NAMES = ("image", "audio", "video")
K, H = 5, 7


def make_problem(dtype="float64", num_rows=8, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = {m: (scale * rng.normal(size=(num_rows, K))).astype(dtype) for m in NAMES}
    kernels = {m: rng.normal(size=(H, K)).astype(dtype) for m in NAMES}
    grams = {m: linalg.spectrum_from_kernel(kernel) for m, kernel in kernels.items()}
    return logits, kernels, grams, rng.dirichlet(np.full(K, 3.0)).astype(dtype)


def norm_at(probs, kernel, gamma, at=None):
    """||J R W^T||_F with R solved at `probs` and J at `at`, both (B, K), in closed form."""
    spectrum = linalg.spectrum_from_kernel(kernel)
    R = linalg.recalibration_matrix(probs, spectrum, (1 - gamma) / gamma)
    at = probs if at is None else at
    J = jnp.eye(K) * at[:, None] - at[:, :, None] * at[:, None]
    return jnp.linalg.norm(J @ R @ kernel.T, axis=(-2, -1))


class TestAPrioriBound:
    def test_values(self):
        np.testing.assert_allclose(bounds.a_priori_bound(0.1, 10), np.sqrt(0.1 * 9 / 0.9) / 2, 1e-6)
        np.testing.assert_allclose(
            bounds.a_priori_bound(np.float64(0.5), 3, lipschitz=4.0), 2 * np.sqrt(2), 1e-12
        )
        assert bounds.a_priori_bound(1.0, 5) == np.inf
        assert bounds.a_priori_bound(jnp.float32(0.1), 5).dtype == jnp.float32

    def test_hundred_thousand_draws_stay_below(self):
        """Kernels, gammas and predictions of all scales, one-hot and uniform ones among them."""

        @jax.jit
        def ratios(key):
            keys = jax.random.split(key, 5)
            kernel = jax.random.normal(keys[0], (H, K)) * 10 ** jax.random.uniform(
                keys[1], (), minval=-3.0, maxval=3.0
            )
            gamma = 10 ** jax.random.uniform(keys[2], (), minval=-6.0, maxval=-1e-3)
            scale = 10 ** jax.random.uniform(keys[3], (1000, 1), minval=-2.0, maxval=2.0)
            probs = jax.nn.softmax(scale * jax.random.normal(keys[4], (1000, K)))
            return norm_at(probs, kernel, gamma) / bounds.a_priori_bound(gamma, K)

        largest = [float(ratios(key).max()) for key in jax.random.split(jax.random.key(0), 100)]
        assert max(largest) <= 1 + 1e-9
        assert max(largest) > 0.8

    def test_ascent_comes_close_and_does_not_get_past(self):
        """Gradient ascent over prediction and kernel: the bound is tight for aligned ones."""

        @jax.jit
        def step(z, kernel):
            def objective(z, kernel):
                return norm_at(jax.nn.softmax(z)[None], kernel, 0.1)[0]

            value, gradients = jax.value_and_grad(objective, argnums=(0, 1))(z, kernel)
            return value, z + 2 * gradients[0], kernel + 2 * gradients[1]

        bound = float(bounds.a_priori_bound(0.1, K))
        best = 0.0
        for seed in range(3):
            rng = np.random.default_rng(seed)
            z, kernel = jnp.asarray(rng.normal(size=K)), jnp.asarray(rng.normal(size=(H, K)))
            for _ in range(1500):
                value, z, kernel = step(z, kernel)
                best = max(best, float(value))
        assert 0.99 * bound < best <= bound * (1 + 1e-12)

    @pytest.mark.parametrize("num_iterations", [1, 3])
    def test_holds_at_the_final_prediction_only_up_to_its_last_change(self, num_iterations):
        rng = np.random.default_rng(1)
        exceeded = []
        for gamma in (0.5, 0.1, 0.01, 1e-4):
            logits, kernels, grams, prior = make_problem(num_rows=500, seed=int(1 / gamma))
            logits = {m: z * rng.uniform(0.1, 5, size=(500, 1)) for m, z in logits.items()}

            def probs_after(count, logits=logits, grams=grams, prior=prior, gamma=gamma):
                if not count:
                    return jnp.exp(fusion.statistical_fusion(logits, prior))
                out = fusion.robust_fusion(
                    logits, grams, prior, perturbed="image", gamma=gamma, num_iterations=count
                )
                return jnp.exp(out.log_probs)

            last, final = probs_after(num_iterations - 1), probs_after(num_iterations)
            norms = norm_at(last, kernels["image"], gamma, at=final)
            bound = bounds.a_priori_bound(gamma, K)
            change = jnp.linalg.norm(final - last, axis=-1)
            slack = 3 * change * np.linalg.norm(kernels["image"])
            assert (norms <= (bound + slack) * (1 + 1e-9)).all()
            exceeded.append(float((norms / bound).max()))
        assert max(exceeded) > 1.5  # by far, as the docstring says

    def test_misuse(self):
        with pytest.raises(ValueError, match=r"gamma must lie in \(0, 1\], got 0"):
            bounds.a_priori_bound(0.0, 5)
        with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
            bounds.a_priori_bound(0.1, 0)


class TestBiasBound:
    def distance(self, logits, grams, prior, gamma, perturbed):
        robust = fusion.robust_fusion(logits, grams, prior, perturbed=perturbed, gamma=gamma)
        plain = fusion.statistical_fusion(logits, prior)
        return jnp.linalg.norm(jnp.exp(robust.log_probs) - jnp.exp(plain), axis=-1)

    @pytest.mark.parametrize("perturbed", ["image", NAMES])
    def test_hundred_thousand_draws_stay_below(self, perturbed):
        @jax.jit
        def ratios(key):
            keys = jax.random.split(key, 5)
            sizes = 10 ** jax.random.uniform(keys[0], (2,), minval=-2.0, maxval=1.0)
            gamma = 10 ** jax.random.uniform(keys[1], (), minval=-4.0, maxval=-0.01)
            prior = jax.random.dirichlet(keys[2], jnp.ones(K)) + 1e-3
            logits, grams = {}, {}
            for index, name in enumerate(NAMES):
                draws = jax.random.split(keys[3 + index])
                scale = jnp.where(jnp.arange(1000) % 2, 1.0, 10.0)[:, None]
                logits[name] = scale * jax.random.normal(draws[0], (1000, K))
                kernel = sizes[index] * jax.random.normal(draws[1], (H, K))
                grams[name] = linalg.spectrum_from_kernel(kernel)
            options: Any = {"perturbed": perturbed, "gamma": gamma}
            bound = bounds.bias_bound(logits, grams, prior, **options)
            # Differences of probabilities are known to rounding, bounds may be far below that.
            return (self.distance(logits, grams, prior, gamma, perturbed) - 1e-14) / bound

        largest = [float(ratios(key).max()) for key in jax.random.split(jax.random.key(1), 100)]
        assert max(largest) <= 1 + 1e-9
        assert max(largest) > 0.2

    def test_ascent_does_not_get_past(self):
        @jax.jit
        def step(z, kernel):
            def ratio(z, kernel):
                logits = {"image": z[:1], "audio": z[1:]}
                grams = {"image": linalg.gram_spectrum(kernel.T @ kernel)}
                held = jax.tree.map(jax.lax.stop_gradient, grams)
                prior = jnp.full(K, 1 / K)
                bound = bounds.bias_bound(logits, held, prior, perturbed="image", gamma=0.1)
                return (self.distance(logits, held, prior, 0.1, "image") / bound)[0]

            value, gradient = jax.value_and_grad(ratio)(z, kernel)
            return value, z + 0.3 * gradient / jnp.linalg.norm(gradient)

        best = 0.0
        for seed in range(4):
            rng = np.random.default_rng(seed)
            z, kernel = jnp.asarray(rng.normal(size=(2, K))), jnp.asarray(rng.normal(size=(H, K)))
            for _ in range(400):
                value, z = step(z, kernel)
                best = max(best, float(value))
        assert 0.3 < best <= 1

    def test_vanishes_with_certainty_and_without_recalibration(self, dtype):
        logits, _, grams, prior = make_problem(dtype)
        options: Any = {"perturbed": "image", "gamma": 0.1}
        sure = {**logits, "audio": logits["audio"] + 60 * np.eye(K, dtype=dtype)[0]}
        bound = bounds.bias_bound(sure, grams, prior, **options)
        assert bound.dtype == dtype
        assert (bound < 1e-15).all()
        assert (bounds.bias_bound(logits, grams, prior, **options) > 1e-6).all()
        assert (bounds.bias_bound(logits, grams, prior, perturbed="image", gamma=1.0) == 0).all()


@pytest.mark.parametrize("num_iterations", [1, 2])
class TestJacobians:
    def test_frozen_is_the_product_at_the_final_prediction(self, num_iterations, dtype):
        logits, kernels, grams, prior = make_problem(dtype)
        gram = {m: kernel.T.astype(float) @ kernel for m, kernel in kernels.items()}
        found = bounds.frozen_jacobian(
            logits, grams, prior, perturbed=NAMES, gamma=0.2, num_iterations=num_iterations
        )
        p = {0: reference.statistical_fusion(logits, prior)}
        for count in (1, 2):
            p[count], norms = reference.robust_fusion(logits, gram, prior, NAMES, 0.2, count)
            if count == num_iterations:
                break
        for name in NAMES:
            assert found[name].dtype == dtype
            for row in range(8):
                R = reference.recalibration_matrix(p[num_iterations - 1][row], gram[name], 4)
                expected = reference.softmax_jacobian(p[num_iterations][row]) @ R
                np.testing.assert_allclose(
                    found[name][row], expected, atol=100 * np.finfo(dtype).eps
                )
        frobenius = bounds.jacobian_norms(found, grams).frobenius
        np.testing.assert_allclose(frobenius, norms, rtol=2e-4 if dtype == "float32" else 1e-9)
        out = fusion.robust_fusion(
            logits, grams, prior, perturbed=NAMES, gamma=0.2, num_iterations=num_iterations
        )
        np.testing.assert_allclose(
            frobenius, out.jacobian_norm, rtol=2e-4 if dtype == "float32" else 1e-9
        )

    def test_total_matches_central_differences(self, num_iterations):
        logits, _, grams, prior = make_problem()
        options: Any = {"perturbed": "image", "gamma": 0.2, "num_iterations": num_iterations}
        found = bounds.total_jacobian(logits, grams, prior, **options)
        chunked = bounds.total_jacobian(logits, grams, prior, batch_size=3, **options)
        step = 1e-6
        fuse = jax.jit(lambda z: fusion.robust_fusion(z, grams, prior, **options).log_probs)
        for name in NAMES:
            np.testing.assert_allclose(chunked[name], found[name], rtol=1e-12, atol=1e-14)
            for k in range(K):
                ends = []
                for sign in (1, -1):
                    moved = {**logits, name: logits[name] + sign * step * np.eye(K)[k]}
                    ends.append(fuse(moved))
                expected = (np.exp(ends[0]) - np.exp(ends[1])) / (2 * step)
                np.testing.assert_allclose(found[name][:, :, k], expected, atol=1e-8)
        frozen = bounds.frozen_jacobian(logits, grams, prior, **options)
        assert np.abs(frozen["image"] - found["image"]).max() > 0.01


class TestNorms:
    def test_are_those_of_the_jacobians_side_by_side(self, dtype):
        rng = np.random.default_rng(0)
        _, kernels, grams, _ = make_problem(dtype)
        jacobians = {m: rng.normal(size=(6, K, K)).astype(dtype) for m in NAMES}
        found = jax.jit(bounds.jacobian_norms)(jacobians, grams)
        joined = np.concatenate(
            [jacobians[m].astype(float) @ kernels[m].T.astype(float) for m in NAMES], axis=-1
        )
        tolerance = 1e-5 if dtype == "float32" else 1e-12
        np.testing.assert_allclose(
            found.frobenius, np.linalg.norm(joined, axis=(-2, -1)), rtol=tolerance
        )
        np.testing.assert_allclose(
            found.spectral, np.linalg.norm(joined, ord=2, axis=(-2, -1)), rtol=tolerance
        )
        assert found.frobenius.dtype == found.spectral.dtype == dtype
        matrices = {m: kernels[m].T @ kernels[m] for m in NAMES}
        by_matrix = bounds.jacobian_norms(jacobians, matrices)
        np.testing.assert_allclose(by_matrix.spectral, found.spectral, rtol=tolerance)

    def test_nan_stays_in_its_sample(self):
        _, _, grams, _ = make_problem()
        jacobians = np.random.default_rng(0).normal(size=(4, K, K))
        jacobians[2, 0, 0] = np.nan
        found = bounds.jacobian_norms({"image": jacobians}, grams)
        for norm in found:
            np.testing.assert_array_equal(np.isnan(norm), [False, False, True, False])

    def test_misuse(self):
        _, _, grams, _ = make_problem()
        with pytest.raises(ValueError, match="at least one modality, got none"):
            bounds.jacobian_norms({}, grams)
        with pytest.raises(ValueError, match="jacobians names 'smell'"):
            bounds.jacobian_norms({"smell": np.zeros((1, K, K))}, grams)
        with pytest.raises(ValueError, match=r"must have shape \(B, K, K\), got \(5, 5\)"):
            bounds.jacobian_norms({"image": np.zeros((K, K))}, grams)


class TestSpectralNorm:
    @pytest.mark.parametrize("shape", [(3, 4), (40, 7), (200, 200), (1, 1)])
    def test_is_slightly_above_the_largest_singular_value(self, shape, dtype):
        matrix = np.random.default_rng(0).normal(size=shape).astype(dtype)
        found = bounds.spectral_norm(
            lambda x: matrix @ x, shape[1:], jax.random.key(0), dtype=jnp.dtype(dtype)
        )
        assert found.dtype == dtype
        exact = np.linalg.norm(matrix.astype(float), ord=2)
        assert exact <= found <= 1.03 * exact

    def test_holds_where_the_largest_singular_values_are_close(self):
        rng = np.random.default_rng(1)
        for seed in range(20):
            left, right = (np.linalg.qr(rng.normal(size=(60, 60)))[0] for _ in range(2))
            matrix = jnp.asarray(left @ np.diag(1 - np.linspace(0, 0.01, 60)) @ right)
            found = bounds.spectral_norm(
                lambda x, matrix=matrix: matrix @ x,
                (60,),
                jax.random.key(seed),
                num_iterations=50,
                dtype=jnp.float64,
            )
            assert found >= 1

    def test_convolutions_of_several_axes_and_zero(self):
        kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)))

        def convolve(x):
            return jax.scipy.signal.convolve(x, kernel, mode="same")

        columns = [convolve(basis.reshape(6, 5)).ravel() for basis in np.eye(30)]
        found = bounds.spectral_norm(convolve, (6, 5), jax.random.key(0), dtype=jnp.float64)
        exact = np.linalg.norm(np.stack(columns), ord=2)
        assert exact <= found <= 1.03 * exact
        assert bounds.spectral_norm(lambda x: 0 * x, (4,), jax.random.key(0)) == 0

    def test_misuse(self):
        with pytest.raises(ValueError, match="num_iterations must be at least 50, got 3"):
            bounds.spectral_norm(lambda x: x, (4,), jax.random.key(0), num_iterations=3)
