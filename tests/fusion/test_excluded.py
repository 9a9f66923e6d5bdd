"""What rules make of probabilities of zero, and of rows that say nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import calibration, certificates, fusion
from tests.fusion import rules
from tests.fusion.three_samples import GRAMS, LOGITS, PRIOR, K, rng

EXCLUDED = {**LOGITS, "image": np.where(np.eye(3, K) > 0, -np.inf, LOGITS["image"])}


class TestExcludedClasses:
    """A logit of -inf is a probability of zero; a row that says nothing is the prior, or NaN."""

    def test_gamma_one_is_statistical_fusion(self):
        expected = np.asarray(rules.statistical_fusion(EXCLUDED, PRIOR))
        assert (np.isneginf(expected) == (np.eye(3, K) > 0)).all()
        fused = rules.robust_fusion(EXCLUDED, GRAMS, PRIOR, perturbed="image", gamma=1.0)
        np.testing.assert_allclose(fused.log_probs, expected, rtol=1e-12)

    def test_recalibration_does_without_the_class(self):
        fused = rules.robust_fusion(EXCLUDED, GRAMS, PRIOR, perturbed="image", gamma=0.1)
        g, V = GRAMS["image"]
        for row in range(3):
            p = np.exp(np.asarray(rules.statistical_fusion(EXCLUDED, PRIOR))[row])
            J = np.diag(p) - np.outer(p, p)
            system = np.eye(K**2) + 9 * np.kron(J @ J, V @ np.diag(g) @ V.T)
            R = np.linalg.solve(system, np.eye(K).ravel()).reshape(K, K)
            z = EXCLUDED["image"][row]
            others = np.isfinite(z)
            moved = R @ np.where(others, z, z[others].min())
            scores = moved + EXCLUDED["audio"][row] - np.log(PRIOR)
            expected = np.exp(scores) * others / (np.exp(scores) * others).sum()
            np.testing.assert_allclose(np.exp(fused.log_probs[row]), expected, atol=1e-12)
            norm = np.linalg.norm(
                (np.diag(expected) - np.outer(expected, expected)) @ R @ V @ np.diag(g**0.5)
            )
            np.testing.assert_allclose(fused.jacobian_norm[row], norm, rtol=1e-9)

    def test_a_dropped_modality_may_say_anything(self):
        audio = np.asarray(rules.statistical_fusion({"audio": LOGITS["audio"]}, PRIOR))
        for said in (-np.inf, np.inf, np.nan):
            strange = {**LOGITS, "image": np.where(np.eye(3, K) > 0, said, LOGITS["image"])}
            for fused in (
                rules.scaled_fusion(strange, PRIOR, perturbed="image", scale=0.0),
                rules.contaminated_fusion(
                    strange, PRIOR, perturbed="image", contamination=0.0, tempering=0.0
                ),
            ):
                np.testing.assert_allclose(fused, audio, rtol=1e-12)

    @pytest.mark.parametrize("said", [np.nan, np.inf, -np.inf])
    def test_a_distrusted_row_that_says_nothing_counts_as_the_prior(self, said):
        silent = {**LOGITS, "image": np.full((3, K), said)}
        audio = np.asarray(rules.statistical_fusion({"audio": LOGITS["audio"]}, PRIOR))
        for fused in (
            rules.contaminated_fusion(silent, PRIOR, perturbed="image", contamination=0.3),
            rules.cascade_fusion(
                silent, PRIOR, perturbed="image", confidence=0.9, contamination=0.3
            ),
        ):
            np.testing.assert_allclose(fused, audio, rtol=1e-12)
        assert np.isnan(rules.statistical_fusion(silent, PRIOR)).all()
        options: Any = {"contamination": 0.3, "perturbed": "audio"}
        assert np.isnan(rules.contaminated_fusion(silent, PRIOR, **options)).all()

    def test_radii_of_an_excluding_modality_are_zero_or_right(self):
        options: Any = {"contamination": 0.1, "perturbed": "image"}
        radius, robust = (
            certificates.certified_radius(
                rule, EXCLUDED, PRIOR, corrupted="image", perturbed="image", grams=GRAMS
            )
            for rule in (fusion.Contaminated(0.1), fusion.Robust(0.1))
        )
        label = np.asarray(rules.contaminated_fusion(EXCLUDED, PRIOR, **options)).argmax(1)
        for k in range(K):
            to_k = (np.eye(K)[k] - np.eye(K)[label]) / 2**0.5
            moved = EXCLUDED["image"] + 0.999 * np.asarray(radius)[:, None] * to_k
            fused = rules.contaminated_fusion({**EXCLUDED, "image": moved}, PRIOR, **options)
            np.testing.assert_array_equal(np.asarray(fused).argmax(1), label)
        np.testing.assert_array_equal(robust, 0)

    def test_temperature(self):
        z = rng.normal(size=(50, K))
        y = rng.integers(K, size=50)
        y[:10] = z[:10].argmax(axis=1)
        T = float(calibration.fit_temperature(z, y))
        for scale in (1e-20, 1e6):
            np.testing.assert_allclose(calibration.fit_temperature(scale * z, y), scale * T, 1e-9)
        # A class that all rows exclude takes no part; a label that is excluded is impossible.
        without = np.concatenate([z, np.full((50, 1), -np.inf)], axis=1)
        np.testing.assert_allclose(calibration.fit_temperature(without, y), T, rtol=1e-9)
        assert np.isnan(calibration.fit_temperature(without, np.where(y == 0, K, y)))


class TestGradientsInTheContamination:
    @pytest.mark.parametrize("leading", [1.0, 60.0, 200.0])
    def test_are_finite_at_the_ends_and_those_of_differences(self, leading, dtype):
        image = np.array([[leading, 0.0, -leading, 1.0]], dtype)
        logits = {"image": image, "audio": LOGITS["audio"][:1].astype(dtype)}

        @jax.jit
        def log_probs(e):
            return fusion.contaminated_fusion(logits, PRIOR, contamination=e, perturbed="image")[0]

        jacobian = jax.jit(jax.jacfwd(log_probs))
        for e in (0.0, 1.0, 0.3):
            assert np.isfinite(jacobian(jnp.asarray(e, dtype))).all()
        if leading == 1 and dtype == "float64":
            for e, step in ((0.0, 1e-7), (1.0, -1e-7), (0.3, 1e-7)):
                difference = (np.asarray(log_probs(e + step)) - np.asarray(log_probs(e))) / step
                np.testing.assert_allclose(jacobian(e), difference, rtol=1e-5)
