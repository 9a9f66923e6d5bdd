import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import calibration, certificates, fusion, linalg
from tests import reference

NAMES = ("image", "audio")
K = 4


def make_problem(dtype="float64", num_rows=400, image=2.0, audio=3.0, seed=0):
    """Logits of two modalities, right more often than not, as Gaussian class models give them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(K, size=num_rows)
    logits = {}
    for name, strength in (("image", image), ("audio", audio)):
        x = np.eye(K)[labels] + rng.normal(size=(num_rows, K)) / np.sqrt(strength)
        logits[name] = (strength * x).astype(dtype)
    kernels = {m: rng.normal(size=(6, K)).astype(dtype) for m in NAMES}
    return logits, kernels, labels, np.full(K, 1 / K).astype(dtype)


class TestChooseGamma:
    def test_minimises_the_expected_likelihood_of_the_mixture(self, dtype):
        logits, kernels, labels, prior = make_problem(dtype)
        grams = {m: linalg.spectrum_from_kernel(kernel) for m, kernel in kernels.items()}
        gammas = np.array([1.0, 0.3, 0.1, 0.01])
        key = jax.random.key(3)
        choice = calibration.choose_gamma(
            logits,
            grams,
            labels,
            prior,
            key,
            perturbed="image",
            corrupted_share=0.3,
            gammas=jnp.asarray(gammas),
        )
        order = np.asarray(jax.random.permutation(key, len(labels)))
        gram = {m: kernel.T.astype(float) @ kernel for m, kernel in kernels.items()}
        rows = np.arange(len(labels))
        expected = []
        for gamma in gammas:
            nll = [
                -np.log(
                    reference.robust_fusion(z, gram, prior, ("image",), gamma)[0][rows, labels]
                ).mean()
                for z in (logits, {**logits, "image": logits["image"][order]})
            ]
            expected.append(0.7 * nll[0] + 0.3 * nll[1])
        np.testing.assert_allclose(choice.nll, expected, rtol=1e-4 if dtype == "float32" else 1e-9)
        assert choice.gamma == choice.gammas[int(np.argmin(expected))]
        assert choice.gamma.dtype == choice.nll.dtype == dtype

    def test_more_corruption_asks_for_a_smaller_gamma(self):
        logits, kernels, labels, prior = make_problem(num_rows=2000)
        grams = {m: linalg.spectrum_from_kernel(kernel) for m, kernel in kernels.items()}
        chosen = [
            float(
                calibration.choose_gamma(
                    logits,
                    grams,
                    labels,
                    prior,
                    jax.random.key(0),
                    perturbed="image",
                    corrupted_share=share,
                ).gamma
            )
            for share in (0.0, 0.3, 1.0)
        ]
        assert chosen[0] > chosen[1] > chosen[2]
        assert chosen[0] == 1

    def test_nan_never_wins(self):
        logits, kernels, labels, prior = make_problem(num_rows=20)
        grams = {m: linalg.spectrum_from_kernel(kernel) for m, kernel in kernels.items()}
        choice = calibration.choose_gamma(
            logits,
            grams,
            labels,
            prior,
            jax.random.key(0),
            perturbed="image",
            gammas=jnp.asarray([-1.0, 0.5]),
        )
        assert choice.gamma == 0.5

    def test_misuse(self):
        logits, kernels, labels, prior = make_problem(num_rows=20)
        grams = {m: linalg.spectrum_from_kernel(kernel) for m, kernel in kernels.items()}
        key = jax.random.key(0)
        with pytest.raises(ValueError, match=r"corrupted_share must lie in \[0, 1\], got 2"):
            calibration.choose_gamma(
                logits, grams, labels, prior, key, perturbed="image", corrupted_share=2.0
            )
        with pytest.raises(ValueError, match=r"labels must have shape \(20,\), at least one"):
            calibration.choose_gamma(logits, grams, labels[:3], prior, key, perturbed="image")


class TestChooseContamination:
    @pytest.mark.parametrize("max_clean_loss", [0.0, 0.01, 0.05])
    def test_certifies_most_within_the_loss(self, max_clean_loss, dtype):
        logits, _, labels, prior = make_problem(dtype, num_rows=1000)
        choice = calibration.choose_contamination(
            logits, labels, prior, perturbed="image", max_clean_loss=max_clean_loss
        )
        statistical = fusion.statistical_fusion(logits, prior).argmax(axis=-1) == labels
        allowed = float(statistical.sum()) - max_clean_loss * 1000
        best, best_certified = None, -1
        for e in choice.contaminations:
            clean, certified = certificates.certified_accuracy(
                logits,
                labels,
                prior,
                contaminations=e[None],
                corrupted="image",
                perturbed="image",
            )
            count = round(1000 * float(certified[0]))
            if round(1000 * float(clean[0])) >= allowed - 1e-6 and count > best_certified:
                best, best_certified = e, count
        assert choice.contamination == best
        assert choice.contamination.dtype == dtype

    def test_takes_the_most_accurate_where_none_is_accurate_enough(self):
        logits, _, labels, prior = make_problem(num_rows=1000, image=9.0, audio=0.2)
        choice = calibration.choose_contamination(
            logits,
            labels,
            prior,
            perturbed="image",
            max_clean_loss=0.0,
            contaminations=(0.8, 0.9, 0.99),
        )
        statistical = fusion.statistical_fusion(logits, prior).argmax(axis=-1) == labels
        assert choice.clean.max() < statistical.mean() - 0.01
        assert choice.contamination == choice.contaminations[int(choice.clean.argmax())]

    def test_works_under_jit(self):
        logits, _, labels, prior = make_problem()
        choose = jax.jit(calibration.choose_contamination, static_argnames="perturbed")
        inside = choose(logits, labels, prior, perturbed="image")
        outside = calibration.choose_contamination(logits, labels, prior, perturbed="image")
        jax.tree.map(np.testing.assert_array_equal, inside, outside)
