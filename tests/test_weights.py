"""Weights of samples: integers repeat rows, and what weighs nothing is not there."""

from typing import Any

import jax
import numpy as np
import pytest

from jacfuse_jax import calibration, certificates, fusion
from tests import reference
from tests.fusion import rules

K = 4
NUM_ROWS = 60
IMAGE: Any = {"perturbed": "image"}

fit_temperature = jax.jit(calibration.fit_temperature)
choose_gamma = jax.jit(calibration.choose_gamma, static_argnames="perturbed")
choose_contamination = jax.jit(calibration.choose_contamination, static_argnames="perturbed")
certified_accuracy = jax.jit(
    certificates.certified_accuracy, static_argnames=("corrupted", "perturbed")
)


def make_problem(dtype="float64"):
    """Logits of two modalities, labels, prior, and integer weights of 60 in all, some of them 0."""
    rng = np.random.default_rng(0)
    labels = rng.integers(K, size=NUM_ROWS)
    logits = {
        name: (strength * (np.eye(K)[labels] + rng.normal(size=(NUM_ROWS, K)))).astype(dtype)
        for name, strength in (("image", 1.0), ("audio", 1.5))
    }
    weights = rng.multinomial(NUM_ROWS, np.full(NUM_ROWS, 1 / NUM_ROWS))
    return logits, labels, np.array([0.1, 0.2, 0.3, 0.4]).astype(dtype), weights


def repeated(weights, logits, labels):
    return {name: z.repeat(weights, axis=0) for name, z in logits.items()}, labels.repeat(weights)


def spoilt(logits, weights):
    """The same logits, where the weight is zero NaN."""
    return {name: np.where(weights[:, None] == 0, np.nan, z) for name, z in logits.items()}


class TestFitTemperature:
    def test_integers_repeat_rows(self, dtype):
        logits, labels, _, weights = make_problem(dtype)
        of_repeated, their_labels = repeated(weights, logits, labels)
        expected = fit_temperature(of_repeated["image"], their_labels)
        for scale in (1, 0.01):
            actual = fit_temperature(logits["image"], labels, weights=scale * weights)
            assert actual.dtype == dtype
            np.testing.assert_allclose(actual, expected, rtol=200 * np.finfo(dtype).eps)
        assert abs(expected / fit_temperature(logits["image"], labels) - 1) > 0.01

    def test_rows_without_weight_may_be_anything(self):
        logits, labels, _, weights = make_problem()
        expected = fit_temperature(logits["image"], labels, weights=weights)
        z = np.where(weights[:, None] == 0, np.nan, logits["image"])
        y = np.where(weights == 0, -1, labels)
        assert calibration.fit_temperature(z, y, weights=weights) == expected
        assert fit_temperature(z, y, weights=weights) == expected


class TestChooseGamma:
    @pytest.mark.parametrize("share", [0.0, 0.3])
    def test_integers_repeat_rows_and_those_that_are_lent(self, share, dtype):
        logits, labels, prior, weights = make_problem(dtype)
        kernels = {m: np.random.default_rng(1).normal(size=(6, K)) for m in logits}
        gammas, key = np.array([0.5, 0.01]), jax.random.key(3)
        choice = choose_gamma(
            fusion.Robust(1.0),
            *(spoilt(logits, weights), labels, prior, key),
            **IMAGE,
            grams={m: rules.kernel_spectrum(kernels[m].astype(dtype)) for m in kernels},
            corrupted_share=share,
            gammas=gammas,
            weights=weights,
        )
        # As many rows as they weigh: each is lent as often as it is repeated.
        lent = np.arange(NUM_ROWS).repeat(weights)[np.asarray(jax.random.permutation(key, 60))]
        grams = {m: kernel.T @ kernel for m, kernel in kernels.items()}
        rows = np.arange(NUM_ROWS).repeat(weights)
        nll = []
        for gamma in gammas:
            for z in (logits, {**logits, "image": logits["image"][lent]}):
                fused, _ = reference.robust_fusion(z, grams, prior, ("image",), gamma)
                nll.append(-np.log(fused[rows, labels[rows]]).mean())
        expected = (1 - share) * np.array(nll[::2]) + share * np.array(nll[1::2])
        np.testing.assert_allclose(choice.nll, expected, rtol=1e-4 if dtype == "float32" else 1e-9)

    def test_equal_weights_change_nothing(self):
        logits, labels, prior, _ = make_problem()
        grams = {"image": rules.kernel_spectrum(np.eye(K))}
        arguments: Any = (fusion.Robust(1.0), logits, labels, prior, jax.random.key(0))
        plain = choose_gamma(*arguments, **IMAGE, grams=grams)
        weighted = choose_gamma(*arguments, **IMAGE, grams=grams, weights=np.full(60, 0.3))
        np.testing.assert_allclose(weighted.nll, plain.nll, rtol=1e-14)
        assert weighted.gamma == plain.gamma


class TestChooseContamination:
    @pytest.mark.parametrize("rule", [fusion.Contaminated(0.0), fusion.Cascade(0.8)])
    def test_integers_repeat_rows(self, rule, dtype):
        logits, labels, prior, weights = make_problem(dtype)
        expected = choose_contamination(
            rule, *repeated(weights, logits, labels), prior, **IMAGE, attack_share=0.3
        )
        actual = choose_contamination(
            rule,
            *(spoilt(logits, weights), labels, prior),
            **IMAGE,
            attack_share=0.3,
            weights=weights,
        )
        np.testing.assert_allclose(actual.clean, expected.clean, rtol=4 * np.finfo(dtype).eps)
        np.testing.assert_allclose(
            actual.certified, expected.certified, rtol=4 * np.finfo(dtype).eps
        )
        assert actual.contamination == expected.contamination
        unweighted = choose_contamination(rule, logits, labels, prior, **IMAGE)
        assert np.abs(actual.clean - unweighted.clean).max() > 0.01

    def test_the_lightest_sample_counts(self):
        # Statistical fusion is right about both; bounding the image loses the second.
        logits = {"image": np.array([[9.0, 0.0], [9.0, 0.0]]), "audio": np.array([[2.0, 0.0]] * 2)}
        logits["audio"][1] = [0.0, 1.0]
        arguments: Any = (fusion.Contaminated(0.0), logits, np.array([0, 0]), np.full(2, 0.5))
        options: Any = {"attack_share": 0.0, "contaminations": np.array([0.0, 0.9]), **IMAGE}
        choice = choose_contamination(*arguments, **options, weights=np.array([0.01, 1.0]))
        np.testing.assert_allclose(choice.clean, [1, 0.01 / 1.01], rtol=1e-14)
        np.testing.assert_allclose(choice.certified, [0, 0.01 / 1.01], rtol=1e-14)
        assert choice.contamination == 0
        options |= {"attack_share": 0.5}
        assert choose_contamination(*arguments, **options, weights=[1, 0]).contamination == 0.9


class TestCertifiedAccuracy:
    def test_integers_repeat_rows(self):
        logits, labels, prior, weights = make_problem()
        options: Any = {"corrupted": "image", "perturbed": "image"}
        for rule in (fusion.Contaminated(0.6), fusion.Contaminated(np.array([0.3, 0.8]))):
            actual = certified_accuracy(rule, logits, labels, prior, **options, weights=weights)
            z, y = repeated(weights, logits, labels)
            expected = certified_accuracy(rule, z, y, prior, **options)
            for found, of_repeated in zip(actual, expected, strict=True):
                np.testing.assert_allclose(found, of_repeated, rtol=1e-14)
            assert np.all(np.asarray(actual.certified) > 0)


CALLS: dict[str, Any] = {
    "fit_temperature": lambda z, y, _, w: calibration.fit_temperature(z["image"], y, weights=w),
    "choose_gamma": lambda z, y, prior, w: (
        calibration.choose_gamma(
            fusion.Robust(1.0),
            *(z, y, prior, jax.random.key(0)),
            **IMAGE,
            grams={"image": rules.kernel_spectrum(np.eye(K))},
            weights=w,
        ).gamma
    ),
    "choose_contamination": lambda z, y, prior, w: (
        calibration.choose_contamination(
            fusion.Contaminated(0.0), z, y, prior, **IMAGE, weights=w
        ).contamination
    ),
    "certified_accuracy": lambda z, y, prior, w: (
        certificates.certified_accuracy(
            fusion.Contaminated(0.5), z, y, prior, corrupted="image", weights=w
        ).clean
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_misuse(call):
    *problem, weights = make_problem()
    with pytest.raises(ValueError, match=r"weights must have shape \(60,\), one a .* got \(3,\)"):
        call(*problem, weights[:3])
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"weights must lie in \[0, inf\), got"):
            call(*problem, np.where(np.arange(60) == 5, wrong, 1.0))
    with pytest.raises(ValueError, match="weights must not all be zero"):
        call(*problem, np.zeros(60))


def test_traced_ones_out_of_range_give_nan():
    *problem, weights = make_problem()

    @jax.jit
    def measure_all(weights):
        return [call(*problem, weights) for call in CALLS.values()]

    for wrong in (np.where(np.arange(60) == 5, -1.0, 1.0), np.zeros(60)):
        assert np.isnan(measure_all(wrong)).all()
    assert np.isfinite(measure_all(weights.astype(float))).all()
