import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import calibration, certificates, fusion
from tests import reference
from tests.fusion import rules

NAMES = ("image", "audio")
ROBUST = fusion.Robust(0.1)
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
            fusion.Robust(0.7),  # whatever it was
            logits,
            labels,
            prior,
            key,
            perturbed="image",
            grams=grams,
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
        assert choice.rule == fusion.Robust(choice.gamma)

    def test_the_rest_of_the_rule_is_heeded(self):
        logits, kernels, labels, prior = make_problem(num_rows=50)
        grams = spectra(kernels)
        arguments = (labels, prior, jax.random.key(3))
        options: Any = {"perturbed": "image", "grams": grams, "gammas": np.array([0.3, 0.01])}
        rule = fusion.ContaminatedRobust(0.4, np.nan)
        found = choose_gamma(rule, logits, *arguments, **options)
        posterior = np.exp(np.asarray(jax.nn.log_softmax(logits["image"])))
        mixed = {**logits, "image": np.log(0.6 * posterior + 0.4 * prior)}
        expected = choose_gamma(fusion.Robust(0.1), mixed, *arguments, **options)
        np.testing.assert_allclose(found.nll, expected.nll, rtol=1e-10)
        assert found.rule == fusion.ContaminatedRobust(0.4, expected.gamma)
        iterated = fusion.Robust(0.1, num_iterations=3, solver="eigh")
        found = choose_gamma(iterated, logits, *arguments, **options)
        once = choose_gamma(fusion.Robust(0.1), logits, *arguments, **options)
        assert (np.abs(found.nll - once.nll) > 1e-6).any()
        assert found.rule == fusion.Robust(found.gamma, num_iterations=3, solver="eigh")

    def test_more_corruption_asks_for_a_smaller_gamma(self):
        logits, kernels, labels, prior = make_problem(num_rows=2000)
        grams = spectra(kernels)
        chosen = [
            float(
                choose_gamma(
                    fusion.Robust(0.1),
                    logits,
                    labels,
                    prior,
                    jax.random.key(0),
                    perturbed="image",
                    grams=grams,
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
                fusion.Robust(0.1),
                *(logits, labels, prior, jax.random.key(0)),
                perturbed="image",
                grams=grams,
                gammas=gammas,
            ).gamma

        # Traced: what is known to be out of range is refused.
        assert choose(jnp.array([-1.0, 0.5])) == 0.5
        assert np.isnan(choose(jnp.array([-1.0, 2.0])))

    def test_misuse(self):
        logits, kernels, labels, prior = make_problem(num_rows=20)
        grams = spectra(kernels)

        def call(rule: Any = ROBUST, labels=labels, **options):
            calibration.choose_gamma(
                rule,
                *(logits, labels, prior, jax.random.key(0)),
                perturbed="image",
                grams=grams,
                **options,
            )

        with pytest.raises(ValueError, match=r"corrupted_share must lie in \[0, 1\], got 2"):
            call(corrupted_share=2.0)
        with pytest.raises(ValueError, match=r"gammas must lie in \(0, 1\], got \(-1.0, 0.5\)"):
            call(gammas=(-1.0, 0.5))
        with pytest.raises(ValueError, match=r"labels must have shape \(20,\), one class a sample"):
            call(labels=labels[:3])
        message = "rules that have a gamma are Robust, ContaminatedRobust, got Contaminated"
        with pytest.raises(ValueError, match=message):
            call(fusion.Contaminated(0.1))
        with pytest.raises(ValueError, match=r"contamination must lie in \[0, 1\], got 2.0"):
            call(fusion.ContaminatedRobust(2.0, 0.1))


class TestChooseContamination:
    @pytest.mark.parametrize("attack_share", [0.0, 0.1, 0.4, 1.0])
    def test_is_worth_most_for_the_share(self, attack_share, dtype):
        logits, _, labels, prior = make_problem(dtype, num_rows=1000)
        choice = choose_contamination(
            fusion.Contaminated(0.0),
            *(logits, labels, prior),
            perturbed="image",
            attack_share=attack_share,
        )
        certified_accuracy = jax.jit(
            certificates.certified_accuracy, static_argnames=("corrupted", "perturbed")
        )
        worths = []
        for e in np.asarray(choice.contaminations):
            found = certified_accuracy(
                fusion.Contaminated(e),
                logits,
                labels,
                prior,
                corrupted="image",
                perturbed="image",
            )
            clean, certified = (round(1000 * float(x.item())) for x in found)
            worths.append((1 - attack_share) * clean + attack_share * certified)
        # Counted in rows, equal ones are equal; the first is taken.
        best = np.asarray(choice.contaminations)[np.argmax(np.round(worths, 6))]
        assert choice.contamination == best
        assert choice.contamination.dtype == dtype
        assert choice.rule == fusion.Contaminated(choice.contamination)

    def test_works_under_jit(self):
        logits, _, labels, prior = make_problem()
        arguments = (fusion.Contaminated(0.0), logits, labels, prior)
        inside = choose_contamination(*arguments, perturbed="image")
        outside = calibration.choose_contamination(*arguments, perturbed="image")
        jax.tree.map(np.testing.assert_array_equal, inside, outside)

    @pytest.mark.parametrize(
        "rule",
        [
            fusion.Contaminated(0.0, tempering=0.6),
            fusion.Cascade(0.9, contamination=1.0),
            fusion.Cascade(0.9, tempering=0.6),
            fusion.ContaminatedRobust(0.0, 0.03),
        ],
    )
    def test_the_rest_of_the_rule_is_heeded(self, rule):
        logits, _, labels, prior = make_problem(num_rows=200)
        candidates = np.array([0.1, 0.5, 0.9])
        choice = choose_contamination(
            rule, logits, labels, prior, perturbed="image", contaminations=candidates
        )
        tried = fusion.Contaminated(0.0) if isinstance(rule, fusion.ContaminatedRobust) else rule
        batch = dataclasses.replace(tried, contamination=candidates)
        expected = jax.jit(
            certificates.certified_accuracy, static_argnames=("corrupted", "perturbed")
        )(batch, logits, labels, prior, corrupted="image", perturbed="image")
        np.testing.assert_array_equal(choice.clean, expected.clean)
        np.testing.assert_array_equal(choice.certified, expected.certified)
        assert choice.rule == dataclasses.replace(rule, contamination=choice.contamination)

    def test_other_rules_are_refused(self):
        logits, _, labels, prior = make_problem(num_rows=20)
        message = "have a contamination are Contaminated, Cascade, ContaminatedRobust, got Robust"
        with pytest.raises(ValueError, match=message):
            calibration.choose_contamination(
                fusion.Robust(0.1),  # pyright: ignore
                *(logits, labels, prior),
                perturbed="image",
            )
