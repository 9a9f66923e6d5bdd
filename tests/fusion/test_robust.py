from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.test_util import check_grads

from jacfuse_jax import fusion
from jacfuse_jax.linalg import GramSpectrum, recalibration_matrix
from tests import reference
from tests.fusion import rules


class Problem:
    """Random logits of three modalities; the kernels of two of them."""

    def __init__(self, num_classes=5, batch_size=4, dtype="float64", seed=0, logit_scale=2.0):
        rng = np.random.default_rng(seed)
        names = ("image", "audio", "video")
        shape = (batch_size, num_classes)
        self.logits = {m: (logit_scale * rng.normal(size=shape)).astype(dtype) for m in names}
        self.prior = rng.dirichlet(np.full(num_classes, 5.0)).astype(dtype)
        kernels = {m: rng.normal(size=(num_classes + 2, num_classes)) for m in names[:2]}
        self.grams = {m: kernel.T @ kernel for m, kernel in kernels.items()}
        self.spectra = {
            m: jax.device_get(rules.kernel_spectrum(kernel.astype(dtype)))
            for m, kernel in kernels.items()
        }

    def robust(
        self, perturbed: Any = "image", gamma: Any = 0.1, logits=None, spectra=None, **kwargs: Any
    ):
        """As NumPy arrays."""
        logits, spectra = logits or self.logits, spectra or self.spectra
        grams = {m: spectra[m] for m in np.atleast_1d(perturbed)}
        out = rules.robust_fusion(
            logits, grams, self.prior, perturbed=perturbed, gamma=gamma, **kwargs
        )
        return jax.device_get(out)


def tolerance(dtype):
    return 200 * np.finfo(dtype).eps


class TestStaticRules:
    def test_mean_averages_probabilities(self, dtype):
        problem = Problem(dtype=dtype)
        probs = [scipy.special.softmax(z.astype(float), axis=-1) for z in problem.logits.values()]
        fused = rules.mean_fusion(problem.logits)
        assert fused.dtype == dtype
        np.testing.assert_allclose(np.exp(fused), np.mean(probs, axis=0), rtol=tolerance(dtype))

    def test_statistical_multiplies_posteriors_over_the_prior(self, dtype):
        problem = Problem(dtype=dtype)
        fused = rules.statistical_fusion(problem.logits, problem.prior)
        assert fused.dtype == dtype
        expected = reference.statistical_fusion(problem.logits, problem.prior)
        np.testing.assert_allclose(np.exp(fused), expected, rtol=tolerance(dtype))

    def test_statistical_is_exact_where_its_assumption_holds(self):
        rng = np.random.default_rng(0)
        prior = rng.dirichlet(np.ones(3))
        likelihoods = {m: rng.dirichlet(np.ones(4), size=3) for m in ("a", "b")}  # p(x | class)
        joint = prior[:, None, None] * likelihoods["a"][:, :, None] * likelihoods["b"][:, None, :]
        expected = joint / joint.sum(axis=0)
        posteriors = {
            m: prior[:, None] * table / (prior @ table) for m, table in likelihoods.items()
        }
        x, y = np.indices((4, 4)).reshape(2, -1)  # all observations
        logits = {"a": np.log(posteriors["a"][:, x]).T, "b": np.log(posteriors["b"][:, y]).T}
        fused = np.exp(rules.statistical_fusion(logits, prior))
        np.testing.assert_allclose(fused, expected[:, x, y].T, rtol=1e-12)

    @pytest.mark.parametrize("shift", [-100.0, 3.0, 1e4])
    def test_constant_added_to_one_modality_changes_nothing(self, shift):
        problem = Problem()
        shifted = {**problem.logits, "audio": problem.logits["audio"] + shift}
        np.testing.assert_allclose(
            rules.statistical_fusion(shifted, problem.prior),
            rules.statistical_fusion(problem.logits, problem.prior),
            atol=1e-15 * (abs(shift) + 1) * 20,
        )

    def test_scaled_spans_from_dropping_the_modality_to_statistical(self):
        problem = Problem()

        def scaled(scale):
            return rules.scaled_fusion(
                problem.logits, problem.prior, perturbed=("image",), scale=scale
            )

        rest = {m: z for m, z in problem.logits.items() if m != "image"}
        np.testing.assert_allclose(
            scaled(0.0), rules.statistical_fusion(rest, problem.prior), atol=1e-13
        )
        np.testing.assert_allclose(
            scaled(1.0), rules.statistical_fusion(problem.logits, problem.prior), atol=1e-13
        )
        posterior = scipy.special.softmax(problem.logits["image"], axis=-1)
        ratio = (posterior / problem.prior) ** 0.3
        expected = ratio * reference.statistical_fusion(rest, problem.prior)
        expected /= expected.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(np.exp(scaled(0.3)), expected, rtol=1e-12)

    def test_one_modality_is_returned_normalised(self, dtype):
        problem = Problem(dtype=dtype)
        logits = {"image": problem.logits["image"]}
        expected = scipy.special.log_softmax(logits["image"], axis=-1)
        fused = rules.mean_fusion(logits), rules.statistical_fusion(logits, problem.prior)
        for actual in fused:
            np.testing.assert_allclose(actual, expected, atol=tolerance(dtype))


class TestRobust:
    # All pairs of these.
    @pytest.mark.parametrize(
        ("num_classes", "perturbed", "num_iterations"),
        [
            (5, ("image",), 4),
            (5, ("image", "audio"), 1),
            (2, ("image",), 1),
            (2, ("image", "audio"), 4),
            (12, ("image",), 1),
            (12, ("image", "audio"), 4),
        ],
    )
    def test_matches_dense_solves_sample_by_sample(self, num_classes, perturbed, num_iterations):
        problem = Problem(num_classes)
        for gamma in (0.9, 0.1, 1e-3, 1e-6):
            out = problem.robust(perturbed, gamma, num_iterations=num_iterations)
            probs, norms = reference.robust_fusion(
                problem.logits, problem.grams, problem.prior, perturbed, gamma, num_iterations
            )
            np.testing.assert_allclose(np.exp(out.log_probs), probs, rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(out.jacobian_norm, norms, rtol=1e-6, atol=1e-9)

    def test_float32_agrees_with_float64(self):
        low, high = Problem(dtype="float32").robust(), Problem(dtype="float64").robust()
        assert low.log_probs.dtype == low.jacobian_norm.dtype == np.float32
        np.testing.assert_allclose(low.log_probs, high.log_probs, rtol=1e-4, atol=1e-4)

    def test_gamma_one_is_statistical_fusion(self, dtype):
        problem = Problem(dtype=dtype)
        statistical = rules.statistical_fusion(problem.logits, problem.prior)
        np.testing.assert_allclose(
            problem.robust(gamma=1.0).log_probs, statistical, atol=tolerance(dtype)
        )

    def test_gamma_to_zero_silences_the_modality(self):
        problem = Problem(logit_scale=1.0)
        total = problem.logits["audio"] + problem.logits["video"] - 2 * np.log(problem.prior)
        expected = scipy.special.log_softmax(total, axis=-1)
        for gamma in (1e-14, 1e-300):
            np.testing.assert_allclose(problem.robust(gamma=gamma).log_probs, expected, atol=1e-6)

    def test_gamma_to_zero_keeps_what_the_features_cannot_reach(self):
        problem = Problem(logit_scale=1.0)
        kernel = np.random.default_rng(0).normal(size=(2, 5))
        rows = np.linalg.qr(kernel.T)[0]  # a basis of the range of G
        z = problem.logits["image"]
        unreachable = z - z @ rows @ rows.T
        total = problem.logits["audio"] + problem.logits["video"] - 2 * np.log(problem.prior)
        expected = scipy.special.log_softmax(total + unreachable, axis=-1)
        out = problem.robust(gamma=1e-14, spectra={"image": rules.kernel_spectrum(kernel)})
        np.testing.assert_allclose(out.log_probs, expected, atol=1e-6)

    def test_certain_predictions_are_left_alone(self, dtype):
        problem = Problem(dtype=dtype)
        problem.logits["audio"][:, 1] += 1e4
        statistical = rules.statistical_fusion(problem.logits, problem.prior)
        out = problem.robust(gamma=1e-3)
        size = np.abs(statistical).max()
        np.testing.assert_allclose(out.log_probs, statistical, atol=tolerance(dtype) * size)
        np.testing.assert_array_equal(out.jacobian_norm, 0)
        assert out.converged.all()

    def test_smaller_gamma_lowers_the_frozen_jacobian_norm(self):
        problem = Problem()
        p = reference.statistical_fusion(problem.logits, problem.prior)[0]
        J = reference.softmax_jacobian(p)
        recalibrate = jax.jit(recalibration_matrix)
        norms = []
        for gamma in (0.9, 0.5, 0.1, 0.01):
            R = np.asarray(recalibrate(p, problem.spectra["image"], (1 - gamma) / gamma))
            norms.append(np.trace(J @ R @ problem.grams["image"] @ R.T @ J))
        assert (np.diff(norms) < 0).all()

    def test_iterations_converge_and_say_so(self):
        problem = Problem(logit_scale=1.0)
        assert not problem.robust(gamma=0.1).converged.all()
        many = problem.robust(gamma=0.5, num_iterations=60, atol=1e-9)
        assert many.converged.all()
        more = problem.robust(gamma=0.5, num_iterations=61)
        np.testing.assert_allclose(more.log_probs, many.log_probs, atol=1e-8)

    def test_permuting_classes_permutes_the_result(self):
        problem = Problem()
        expected = problem.robust()
        order = np.array([3, 0, 4, 1, 2])
        logits = {m: z[:, order] for m, z in problem.logits.items()}
        g, V = problem.spectra["image"]
        problem.prior = problem.prior[order]
        permuted = problem.robust(logits=logits, spectra={"image": GramSpectrum(g, V[order])})
        np.testing.assert_allclose(permuted.log_probs, expected.log_probs[:, order], atol=1e-12)
        np.testing.assert_allclose(permuted.jacobian_norm, expected.jacobian_norm, rtol=1e-11)

    def test_batch_is_a_loop_over_samples_in_any_order(self):
        problem = Problem(batch_size=7)
        expected = problem.robust().log_probs
        order = np.random.default_rng(0).permutation(7)
        shuffled = {m: z[order] for m, z in problem.logits.items()}
        for batch_size in (None, 1, 3):
            actual = problem.robust(logits=shuffled, batch_size=batch_size).log_probs
            np.testing.assert_allclose(actual, expected[order], atol=tolerance(float))
        for b in range(7):
            single = problem.robust(logits={m: z[b : b + 1] for m, z in problem.logits.items()})
            np.testing.assert_allclose(single.log_probs[0], expected[b], atol=tolerance(float))

    def test_one_compiled_function_serves_every_gamma(self):
        problem = Problem()
        traces = []

        @jax.jit
        def fuse(gamma):
            traces.append(gamma)
            return fusion.robust_fusion(
                problem.logits, problem.spectra, problem.prior, perturbed="image", gamma=gamma
            ).log_probs

        gammas = np.array([1.0, 0.5, 0.01])
        separate = np.stack([fuse(g) for g in gammas])
        assert len(traces) == 1
        np.testing.assert_allclose(jax.vmap(fuse)(gammas), separate, atol=1e-13)
        # Nor need it be compiled: numbers, outside of jit.
        for gamma, expected in zip((1.0, 0.01), separate[[0, 2]], strict=True):
            out = fusion.robust_fusion(
                problem.logits, problem.spectra, problem.prior, perturbed="image", gamma=gamma
            )
            np.testing.assert_allclose(out.log_probs, expected, atol=1e-13)

    def test_traced_gamma_out_of_range_gives_nan(self):
        problem = Problem()
        for gamma in (0.0, -0.1, 1.1, np.nan):
            assert np.isnan(problem.robust(gamma=gamma).log_probs).all()

    def test_per_sample_spectra(self):
        problem = Problem()
        scale = np.array([1.0, 2.0, 0.5, 3.0])
        g, V = problem.spectra["image"]
        own = {"image": GramSpectrum(scale[:, None] * g, jax.device_put(np.stack([V] * 4)))}
        out = problem.robust(spectra=own)
        for b in range(4):
            probs, norms = reference.robust_fusion(
                {m: z[b : b + 1] for m, z in problem.logits.items()},
                {"image": scale[b] * problem.grams["image"]},
                problem.prior,
                ("image",),
                0.1,
            )
            np.testing.assert_allclose(np.exp(out.log_probs[b]), probs[0], rtol=1e-9)
            np.testing.assert_allclose(out.jacobian_norm[b], norms[0], rtol=1e-9)

    def test_nan_stays_in_its_sample(self):
        problem = Problem()
        expected = problem.robust()
        problem.logits["image"][1, 2] = np.nan
        problem.logits["audio"][2, 0] = np.inf
        out = problem.robust()
        assert np.isnan(out.log_probs[1:3]).all()
        assert np.isnan(out.jacobian_norm[1:3]).all()
        assert not out.converged[1:3].any()
        for b in (0, 3):
            np.testing.assert_array_equal(out.log_probs[b], expected.log_probs[b])

    @pytest.mark.parametrize("num_iterations", [2, pytest.param(1, marks=pytest.mark.extended)])
    def test_gradients_in_every_array_match_finite_differences(self, num_iterations):
        problem = Problem(num_classes=4, batch_size=2, logit_scale=1.0)
        singular = rules.kernel_spectrum(np.random.default_rng(0).normal(size=(2, 4)))
        spectra = {"image": problem.spectra["image"], "audio": jax.device_get(singular)}

        @jax.jit
        def fuse(logits, spectra, prior, gamma):
            out = fusion.robust_fusion(
                logits,
                spectra,
                prior,
                perturbed=("image", "audio"),
                gamma=gamma,
                num_iterations=num_iterations,
            )
            return out.log_probs, out.jacobian_norm

        args = (problem.logits, spectra, problem.prior, 0.3)
        check_grads(fuse, args, order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-6)

    def test_gradients_stay_finite_where_the_jacobian_vanishes(self):
        problem = Problem(dtype="float32")
        problem.logits["audio"][:, 1] += 1e4

        @jax.jit
        @jax.grad
        def gradient(logits):
            out = fusion.robust_fusion(
                logits, problem.spectra, problem.prior, perturbed="image", gamma=0.01
            )
            return out.log_probs.sum() + out.jacobian_norm.sum()

        for z in gradient(problem.logits).values():
            assert np.isfinite(z).all()

    @pytest.mark.parametrize(("batch_size", "num_classes"), [(1, 2), (1, 309), (0, 5)])
    def test_odd_sizes(self, batch_size, num_classes):
        out = Problem(num_classes, batch_size).robust()
        assert out.log_probs.shape == (batch_size, num_classes)
        assert np.isfinite(out.log_probs).all()
        np.testing.assert_allclose(np.exp(out.log_probs).sum(axis=-1), 1, rtol=1e-12)


class TestMisuse:
    """Of values that are known, outside of jit."""

    @staticmethod
    def robust(problem, perturbed: Any = "image", gamma: Any = 0.1, **kwargs: Any):
        return fusion.robust_fusion(
            problem.logits,
            problem.spectra,
            problem.prior,
            perturbed=perturbed,
            gamma=gamma,
            **kwargs,
        )

    def test_values(self):
        problem = Problem()
        for gamma in (0.0, -1.0, 1.5, float("nan")):
            with pytest.raises(ValueError, match=rf"gamma must lie in \(0, 1\], got {gamma}"):
                self.robust(problem, gamma=gamma)
            with pytest.raises(ValueError, match=r"gamma must lie in \(0, 1\]"):
                jax.jit(lambda gamma=gamma: self.robust(problem, gamma=gamma))()
        with pytest.raises(ValueError, match=r"scale must lie in \[0, 1\], got 2"):
            fusion.scaled_fusion(problem.logits, problem.prior, perturbed="image", scale=2.0)
        with pytest.raises(ValueError, match=r"gamma must lie in \(0, 1\], got 1e-40"):
            self.robust(Problem(dtype="float32"), gamma=1e-40)
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            self.robust(problem, batch_size=0)
        with pytest.raises(ValueError, match=r"scale must be a scalar, got shape \(2,\)"):
            fusion.scaled_fusion(problem.logits, problem.prior, perturbed="image", scale=np.ones(2))
        with pytest.raises(ValueError, match="num_iterations must be at least 1, got 0"):
            self.robust(problem, num_iterations=0)
        for bad in (0.0, -0.1, np.nan, 1e-320):
            prior = problem.prior.copy()
            prior[1] = bad
            with pytest.raises(ValueError, match="class_prior must be positive and finite"):
                fusion.statistical_fusion(problem.logits, prior)

    def test_names(self):
        problem = Problem()
        with pytest.raises(ValueError, match="perturbed names 'smell', but the modalities are"):
            self.robust(problem, "smell")
        with pytest.raises(ValueError, match="perturbed names 'video', but the modalities are"):
            self.robust(problem, "video")  # no Gram spectrum for it
        with pytest.raises(ValueError, match="perturbed names a modality twice"):
            self.robust(problem, ("image", "image"))

    def test_shapes(self):
        problem = Problem()
        with pytest.raises(ValueError, match="must hold at least one modality"):
            fusion.mean_fusion({})
        with pytest.raises(ValueError, match=r"logits\['a'\] must have shape \(B, K\), got \(3,\)"):
            fusion.mean_fusion({"a": np.ones(3)})
        with pytest.raises(ValueError, match=r"'b': \(2, 4\)"):
            fusion.mean_fusion({"a": np.ones((2, 3)), "b": np.ones((2, 4))})
        with pytest.raises(ValueError, match=r"class_prior must have shape \(5,\).* got \(4,\)"):
            fusion.statistical_fusion(problem.logits, np.full(4, 0.25))
        with pytest.raises(ValueError, match=r"gamma must be a scalar, got shape \(2,\)"):
            self.robust(problem, gamma=np.array([0.1, 0.2]))
        problem.spectra["image"] = GramSpectrum(jnp.ones(4), jnp.eye(4))
        with pytest.raises(ValueError, match=r"grams\['image'\] must have shapes \(5,\)"):
            self.robust(problem)

    def test_dtypes(self):
        with pytest.raises(TypeError, match=r"logits\['a'\] must be float32 or float64, got int64"):
            fusion.mean_fusion({"a": np.ones((2, 3), int)})
