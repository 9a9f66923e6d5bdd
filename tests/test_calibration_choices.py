import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import calibration, certificates
from tests import reference
from tests.fusion import rules

NAMES = ("image", "audio")
K = 4

choose_gamma = jax.jit(calibration.choose_gamma, static_argnames="perturbed")
choose_contamination = jax.jit(calibration.choose_contamination, static_argnames="perturbed")


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


def spectra(kernels):
    return {m: jax.device_get(rules.kernel_spectrum(kernel)) for m, kernel in kernels.items()}


class TestChooseGamma:
    def test_minimises_the_expected_likelihood_of_the_mixture(self, dtype):
        logits, kernels, labels, prior = make_problem(dtype)
        grams = spectra(kernels)
        gammas = np.array([1.0, 0.3, 0.1, 0.01])
        key = jax.random.key(3)
        choice = choose_gamma(
            logits,
            grams,
            labels,
            prior,
            key,
            perturbed="image",
            corrupted_share=0.3,
            gammas=gammas,
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
        assert choice.gamma == np.asarray(choice.gammas)[np.argmin(expected)]
        assert choice.gamma.dtype == choice.nll.dtype == dtype

    def test_more_corruption_asks_for_a_smaller_gamma(self):
        logits, kernels, labels, prior = make_problem(num_rows=2000)
        grams = spectra(kernels)
        chosen = [
            float(
                choose_gamma(
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
        grams = spectra(kernels)

        @jax.jit
        def choose(gammas):
            return calibration.choose_gamma(
                logits, grams, labels, prior, jax.random.key(0), perturbed="image", gammas=gammas
            ).gamma

        # Traced: what is known to be out of range is refused.
        assert choose(jnp.array([-1.0, 0.5])) == 0.5
        assert np.isnan(choose(jnp.array([-1.0, 2.0])))

    def test_misuse(self):
        logits, kernels, labels, prior = make_problem(num_rows=20)
        grams = spectra(kernels)
        key = jax.random.key(0)
        with pytest.raises(ValueError, match=r"corrupted_share must lie in \[0, 1\], got 2"):
            calibration.choose_gamma(
                logits, grams, labels, prior, key, perturbed="image", corrupted_share=2.0
            )
        with pytest.raises(ValueError, match=r"gammas must lie in \(0, 1\], got \(-1.0, 0.5\)"):
            calibration.choose_gamma(
                logits, grams, labels, prior, key, perturbed="image", gammas=(-1.0, 0.5)
            )
        with pytest.raises(ValueError, match=r"labels must have shape \(20,\), one class a sample"):
            calibration.choose_gamma(logits, grams, labels[:3], prior, key, perturbed="image")


class TestChooseContamination:
    @pytest.mark.parametrize("max_clean_loss", [0.01, 0.0, 0.05])
    def test_certifies_most_within_the_loss(self, max_clean_loss, dtype):
        logits, _, labels, prior = make_problem(dtype, num_rows=1000)
        choice = choose_contamination(
            logits, labels, prior, perturbed="image", max_clean_loss=max_clean_loss
        )
        statistical = np.asarray(rules.statistical_fusion(logits, prior)).argmax(axis=-1) == labels
        allowed = statistical.sum() - max_clean_loss * 1000
        certified_accuracy = jax.jit(
            certificates.certified_accuracy, static_argnames=("corrupted", "perturbed")
        )
        best, best_certified = None, -1
        for e in np.asarray(choice.contaminations):
            clean, certified = certified_accuracy(
                logits,
                labels,
                prior,
                contaminations=e[None],
                corrupted="image",
                perturbed="image",
            )
            count = round(1000 * float(certified.item()))
            if round(1000 * float(clean.item())) >= allowed - 1e-6 and count > best_certified:
                best, best_certified = e, count
        assert choice.contamination == best
        assert choice.contamination.dtype == dtype

    def test_takes_the_most_accurate_where_none_is_accurate_enough(self):
        logits, _, labels, prior = make_problem(num_rows=1000, image=9.0, audio=0.2)
        choice = choose_contamination(
            logits,
            labels,
            prior,
            perturbed="image",
            max_clean_loss=0.0,
            contaminations=(0.8, 0.9, 0.99),
        )
        statistical = np.asarray(rules.statistical_fusion(logits, prior)).argmax(axis=-1) == labels
        clean = np.asarray(choice.clean)
        assert clean.max() < statistical.mean() - 0.01
        assert choice.contamination == np.asarray(choice.contaminations)[clean.argmax()]

    def test_works_under_jit(self):
        logits, _, labels, prior = make_problem()
        inside = choose_contamination(logits, labels, prior, perturbed="image")
        outside = calibration.choose_contamination(logits, labels, prior, perturbed="image")
        jax.tree.map(np.testing.assert_array_equal, inside, outside)
