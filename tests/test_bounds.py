import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import bounds, fusion, linalg
from tests import reference
from tests.fusion import rules

NAMES = ("image", "audio", "video")
K, H = 5, 7

_STATIC = ("perturbed", "num_iterations", "batch_size")
frozen_jacobian = jax.jit(bounds.frozen_jacobian, static_argnames=_STATIC[:2])
total_jacobian = jax.jit(bounds.total_jacobian, static_argnames=_STATIC)
bias_bound = jax.jit(bounds.bias_bound, static_argnames="perturbed")
jacobian_norms = jax.jit(bounds.jacobian_norms)


def make_problem(dtype="float64", num_rows=8, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = {m: (scale * rng.normal(size=(num_rows, K))).astype(dtype) for m in NAMES}
    kernels = {m: rng.normal(size=(H, K)).astype(dtype) for m in NAMES}
    grams = {m: jax.device_get(rules.kernel_spectrum(kernel)) for m, kernel in kernels.items()}
    return logits, kernels, grams, rng.dirichlet(np.full(K, 3.0)).astype(dtype)


@jax.jit
def norm_at(probs, kernel, gamma, at=None):
    """||J R W^T||_F with R solved at `probs` and J at `at`, both (B, K), in closed form."""
    spectrum = linalg.spectrum_from_kernel(kernel)
    R = linalg.recalibration_matrix(probs, spectrum, (1 - gamma) / gamma)
    at = probs if at is None else at
    J = jnp.eye(K)[None] * at[:, None] - at[:, :, None] * at[:, None]
    return jnp.linalg.norm(J @ R @ kernel.T, axis=(-2, -1))


def largest_of_a_hundred(ratios, seed):
    """The largest of ratios(key), (1000,), over a hundred keys; NaN if one is."""
    keys = jax.random.split(jax.random.key(seed), 100)
    return float(jax.jit(lambda keys: jax.lax.map(ratios, keys).max())(keys))


class TestAPrioriBound:
    def test_values(self):
        np.testing.assert_allclose(bounds.a_priori_bound(0.1, 10), np.sqrt(0.1 * 9 / 0.9) / 2, 1e-6)
        np.testing.assert_allclose(
            bounds.a_priori_bound(np.float64(0.5), 3, lipschitz=4.0), 2 * np.sqrt(2), 1e-12
        )
        assert bounds.a_priori_bound(1.0, 5) == np.inf
        assert bounds.a_priori_bound(jnp.float32(0.1), 5).dtype == jnp.float32
        with jax.enable_x64(False):
            assert bounds.a_priori_bound(np.float64(0.1), 5).dtype == jnp.float32

    def test_hundred_thousand_draws_stay_below(self):
        """Kernels, gammas and predictions of all scales, one-hot and uniform ones among them."""

        def ratios(key):
            keys = jax.random.split(key, 5)
            kernel = jax.random.normal(keys[0], (H, K)) * 10 ** jax.random.uniform(
                keys[1], (), minval=-3.0, maxval=3.0
            )
            gamma = 10 ** jax.random.uniform(keys[2], (), minval=-6.0, maxval=-1e-3)
            scale = 10 ** jax.random.uniform(keys[3], (1000, 1), minval=-2.0, maxval=2.0)
            probs = jax.nn.softmax(scale * jax.random.normal(keys[4], (1000, K)))
            return norm_at(probs, kernel, gamma) / bounds.a_priori_bound(gamma, K)

        assert 0.8 < largest_of_a_hundred(ratios, seed=0) <= 1 + 1e-9

    def test_ascent_comes_close_and_does_not_get_past(self):
        """Gradient ascent over prediction and kernel: the bound is tight for aligned ones."""

        def objective(z, kernel):
            return norm_at(jax.nn.softmax(z)[None], kernel, 0.1)[0]

        def step(state, _):
            value, gradients = jax.value_and_grad(objective, argnums=(0, 1))(*state)
            return jax.tree.map(lambda x, dx: x + 2 * dx, state, gradients), value

        bound = float(bounds.a_priori_bound(0.1, K))
        rng = np.random.default_rng(0)
        starts = rng.normal(size=(3, K)), rng.normal(size=(3, H, K))
        ascend = jax.jit(jax.vmap(lambda *start: jax.lax.scan(step, start, length=1500)[1]))
        assert 0.99 * bound < np.max(ascend(*starts)) <= bound * (1 + 1e-12)

    def test_holds_at_the_final_prediction_only_up_to_its_last_change(self):
        rng = np.random.default_rng(1)
        exceeded = np.zeros((4, 2))
        for index, gamma in enumerate((0.5, 0.1, 0.01, 1e-4)):
            logits, kernels, grams, prior = make_problem(num_rows=500, seed=int(1 / gamma))
            logits = {m: z * rng.uniform(0.1, 5, size=(500, 1)) for m, z in logits.items()}
            fuse = functools.partial(
                rules.robust_fusion, logits, grams, prior, perturbed=("image",), gamma=gamma
            )
            probs = [np.exp(rules.statistical_fusion(logits, prior))]
            probs += [np.exp(fuse(num_iterations=count).log_probs) for count in (1, 2, 3)]
            bound = float(bounds.a_priori_bound(gamma, K))
            for column, num_iterations in enumerate((1, 3)):
                last, final = probs[num_iterations - 1], probs[num_iterations]
                norms = np.asarray(norm_at(last, kernels["image"], gamma, final))
                change = np.linalg.norm(final - last, axis=-1)
                slack = 3 * change * np.linalg.norm(kernels["image"])
                assert (norms <= (bound + slack) * (1 + 1e-9)).all()
                exceeded[index, column] = (norms / bound).max()
        assert (exceeded.max(axis=0) > 1.5).all()  # by far, as the docstring says

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
        def ratios(key):
            keys = jax.random.split(key, 6)
            sizes = 10 ** jax.random.uniform(keys[0], (3,), minval=-2.0, maxval=1.0)
            gamma = 10 ** jax.random.uniform(keys[1], (), minval=-4.0, maxval=-0.01)
            prior = jax.random.exponential(keys[2], (K,))
            prior = (prior / prior.sum() + 1e-3) / (1 + 1e-3 * K)
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

        assert 0.2 < largest_of_a_hundred(ratios, seed=1) <= 1 + 1e-9

    def test_ascent_does_not_get_past(self):
        def ascend(z, kernel):
            grams = {"image": linalg.gram_spectrum(kernel.T @ kernel)}
            prior = jnp.full(K, 1 / K)

            def ratio(z):
                logits = {"image": z[:1], "audio": z[1:]}
                bound = bounds.bias_bound(logits, grams, prior, perturbed="image", gamma=0.1)
                return (self.distance(logits, grams, prior, 0.1, "image") / bound)[0]

            def step(z, _):
                value, gradient = jax.value_and_grad(ratio)(z)
                return z + 0.3 * gradient / jnp.linalg.norm(gradient), value

            return jax.lax.scan(step, z, length=400)[1]

        rng = np.random.default_rng(0)
        values = jax.jit(jax.vmap(ascend))(rng.normal(size=(4, 2, K)), rng.normal(size=(4, H, K)))
        assert 0.3 < np.max(values) <= 1

    def test_vanishes_with_certainty_and_without_recalibration(self, dtype):
        logits, _, grams, prior = make_problem(dtype)
        sure = {**logits, "audio": logits["audio"] + 60 * np.eye(K, dtype=dtype)[0]}
        bound = bias_bound(sure, grams, prior, perturbed="image", gamma=0.1)
        assert bound.dtype == dtype
        assert np.max(bound) < 1e-15
        assert np.min(bias_bound(logits, grams, prior, perturbed="image", gamma=0.1)) > 1e-6
        assert np.max(bias_bound(logits, grams, prior, perturbed="image", gamma=1.0)) == 0


class TestJacobians:
    @pytest.mark.parametrize(
        ("num_iterations", "dtype"), [(1, "float32"), (2, "float32"), (2, "float64")]
    )
    def test_frozen_is_the_product_at_the_final_prediction(self, num_iterations, dtype):
        logits, kernels, grams, prior = make_problem(dtype)
        gram = {m: kernel.T.astype(float) @ kernel for m, kernel in kernels.items()}
        found = frozen_jacobian(
            logits, grams, prior, perturbed=NAMES, gamma=0.2, num_iterations=num_iterations
        )
        p = {0: reference.statistical_fusion(logits, prior)}
        for count in (1, 2):
            p[count], norms = reference.robust_fusion(logits, gram, prior, NAMES, 0.2, count)
            if count == num_iterations:
                break
        for name in NAMES:
            jac = np.asarray(found[name])
            assert jac.dtype == dtype
            for row in range(8):
                R = reference.recalibration_matrix(p[num_iterations - 1][row], gram[name], 4)
                expected = reference.softmax_jacobian(p[num_iterations][row]) @ R
                np.testing.assert_allclose(jac[row], expected, atol=100 * np.finfo(dtype).eps)
        frobenius = jacobian_norms(found, grams).frobenius
        np.testing.assert_allclose(frobenius, norms, rtol=2e-4 if dtype == "float32" else 1e-9)
        out = rules.robust_fusion(
            logits, grams, prior, perturbed=NAMES, gamma=0.2, num_iterations=num_iterations
        )
        np.testing.assert_allclose(
            frobenius, out.jacobian_norm, rtol=2e-4 if dtype == "float32" else 1e-9
        )

    @pytest.mark.parametrize("num_iterations", [1, 2])
    def test_total_matches_central_differences(self, num_iterations):
        logits, _, grams, prior = make_problem()
        options: Any = {"perturbed": "image", "gamma": 0.2, "num_iterations": num_iterations}
        found = jax.device_get(total_jacobian(logits, grams, prior, **options))
        step = 1e-6
        for name in NAMES:
            for k in range(K):
                ends = []
                for sign in (1, -1):
                    moved = {**logits, name: logits[name] + sign * step * np.eye(K)[k]}
                    ends.append(np.exp(rules.robust_fusion(moved, grams, prior, **options)[0]))
                expected = (ends[0] - ends[1]) / (2 * step)
                np.testing.assert_allclose(found[name][:, :, k], expected, atol=1e-8)
        frozen = frozen_jacobian(logits, grams, prior, **options)
        assert np.abs(frozen["image"] - found["image"]).max() > 0.01

    def test_total_is_the_same_in_chunks(self):
        logits, _, grams, prior = make_problem()
        options: Any = {"perturbed": "image", "gamma": 0.2, "num_iterations": 1}
        whole = total_jacobian(logits, grams, prior, **options)
        chunked = total_jacobian(logits, grams, prior, batch_size=3, **options)
        for name in NAMES:
            np.testing.assert_allclose(chunked[name], whole[name], rtol=1e-12, atol=1e-14)


def test_nothing_need_be_compiled():
    """Outside of jit."""
    logits, _, grams, prior = make_problem()
    options: Any = {"perturbed": "image", "gamma": 0.2}
    for compiled, fn in (
        (frozen_jacobian, bounds.frozen_jacobian),
        (total_jacobian, bounds.total_jacobian),
        (bias_bound, bounds.bias_bound),
    ):
        expected = compiled(logits, grams, prior, **options)
        actual = fn(logits, grams, prior, **options)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-14), actual, expected)
    jacobians = bounds.frozen_jacobian(logits, grams, prior, **options)
    np.testing.assert_allclose(
        bounds.jacobian_norms(jacobians, grams), jacobian_norms(jacobians, grams), rtol=1e-12
    )


class TestNorms:
    def test_are_those_of_the_jacobians_side_by_side(self, dtype):
        rng = np.random.default_rng(0)
        _, kernels, grams, _ = make_problem(dtype)
        jacobians = {m: rng.normal(size=(6, K, K)).astype(dtype) for m in NAMES}
        found = jacobian_norms(jacobians, grams)
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
        by_matrix = jacobian_norms(jacobians, matrices)
        np.testing.assert_allclose(by_matrix.spectral, found.spectral, rtol=tolerance)

    def test_nan_stays_in_its_sample(self):
        _, _, grams, _ = make_problem()
        jacobians = np.random.default_rng(0).normal(size=(4, K, K))
        jacobians[2, 0, 0] = np.nan
        found = jacobian_norms({"image": jacobians}, {"image": grams["image"]})
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


@functools.partial(jax.jit, static_argnames="num_iterations")
def spectral_norm(matrix, key, num_iterations=500):
    return bounds.spectral_norm(
        lambda x: matrix @ x,
        matrix.shape[1:],
        key,
        num_iterations=num_iterations,
        dtype=matrix.dtype,
    )


class TestSpectralNorm:
    @pytest.mark.parametrize("shape", [(40, 7), (3, 4), (200, 200), (1, 1)])
    def test_is_slightly_above_the_largest_singular_value(self, shape, dtype):
        matrix = np.random.default_rng(0).normal(size=shape).astype(dtype)
        found = spectral_norm(matrix, jax.random.key(0))
        assert found.dtype == dtype
        exact = np.linalg.norm(matrix.astype(float), ord=2)
        assert exact <= float(found) <= 1.03 * exact

    def test_holds_for_a_start_as_unlucky_as_one_in_a_billion(self):
        n, key = 60, jax.random.key(0)
        start = np.array(jax.random.normal(key, (n,), jnp.float64))
        start /= np.linalg.norm(start)
        other = np.random.default_rng(1).normal(size=n)
        other -= (other @ start) * start
        other /= np.linalg.norm(other)

        def norm_of(cosine, rest):
            """Where the norm is 1, all other singular values are `rest`."""
            top = cosine * start + np.sqrt(1 - cosine**2) * other
            matrix = rest * np.eye(n) + (1 - rest) * np.outer(top, top)
            return float(spectral_norm(matrix, key, num_iterations=50))

        # Of uniform directions, |cosine| < t has the probability sqrt(2 n / pi) t for small t.
        one_in_a_billion = 1e-9 / np.sqrt(2 * n / np.pi)
        for rest in (0.3, 0.7, 0.75, 0.78, 0.8, 0.82, 0.85, 0.9, 0.99, 0.9999):
            assert 1 <= norm_of(one_in_a_billion, rest) <= 1.3
        # The test can fail: power iteration finds nothing of what it starts without.
        assert norm_of(1e-13, 0.78) < 1

    def test_convolutions_of_several_axes_and_zero(self):
        kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)))

        def convolve(x):
            return jax.scipy.signal.convolve(x, kernel, mode="same")

        columns = jax.jit(jax.vmap(convolve))(np.eye(30).reshape(30, 6, 5))
        found = bounds.spectral_norm(convolve, (6, 5), jax.random.key(0), dtype=jnp.float64)
        exact = np.linalg.norm(np.reshape(columns, (30, 30)), ord=2)
        assert exact <= float(found) <= 1.03 * exact
        assert bounds.spectral_norm(lambda x: 0 * x, (4,), jax.random.key(0)) == 0

    def test_misuse(self):
        with pytest.raises(ValueError, match="num_iterations must be at least 50, got 3"):
            bounds.spectral_norm(lambda x: x, (4,), jax.random.key(0), num_iterations=3)
