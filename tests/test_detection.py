from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats
from sklearn.covariance import oas

from jacfuse_jax import detection, fusion
from jacfuse_jax.calibration import fit_temperature
from jacfuse_jax.linalg import GramSpectrum
from tests.fusion import rules

NAMES = ("image", "audio", "text")

_fit_detector, _detect = jax.jit(detection.fit_detector), jax.jit(detection.detect)


def fit_detector(logits, labels, prior):
    """As NumPy arrays."""
    return jax.device_get(_fit_detector(logits, labels, prior))


def detect(logits, detector, prior, prevalence=0.5):
    """As NumPy arrays."""
    return jax.device_get(_detect(logits, detector, prior, prevalence=prevalence))


def make_logits(rng, num_samples, num_classes, names=NAMES, noise=1.0):
    labels = rng.integers(num_classes, size=num_samples)
    mixing = np.linalg.qr(rng.normal(size=2 * [num_classes]))[0] * rng.uniform(0.5, 2, num_classes)
    logits = {
        name: 3 * (labels[:, None] == np.arange(num_classes))
        + noise * rng.normal(size=(num_samples, num_classes)) @ mixing
        for name in names
    }
    return logits, labels


def fitted(seed=0, num_samples=400, num_classes=5, names=NAMES):
    rng = np.random.default_rng(seed)
    logits, labels = make_logits(rng, num_samples, num_classes, names)
    prior = rng.dirichlet(np.full(num_classes, 5.0))
    return logits, labels, prior, fit_detector(logits, labels, prior)


class TestFit:
    def test_means_covariance_and_temperature(self):
        logits, labels, prior, _ = fitted()
        detector = detection.fit_detector(logits, labels, prior)  # outside of jit
        for name, z in logits.items():
            center, whitening, class_means, temperature = (np.asarray(x) for x in detector[name])
            means = np.stack([z[labels == k].mean(axis=0) for k in range(5)])
            # As many independent residuals as there are samples beyond the means.
            complement = scipy.linalg.null_space((labels == np.arange(5)[:, None]).astype(float))
            covariance, shrinkage = oas(complement.T @ z, assume_centered=True)
            assert 0 < shrinkage < 0.1
            np.testing.assert_allclose(center, z.mean(axis=0), atol=1e-12)
            np.testing.assert_allclose(
                whitening @ whitening.T, np.linalg.inv(covariance), rtol=1e-9, atol=1e-12
            )
            np.testing.assert_allclose(class_means, (means - center) @ whitening, atol=1e-10)
            assert temperature == fit_temperature(z, labels)

    def test_few_samples_of_many_classes(self):
        rng = np.random.default_rng(3)
        logits, labels = make_logits(rng, 700, 309, ("image",))
        logits = {name: z.astype(np.float32) for name, z in logits.items()}
        prior = np.full(309, 1 / 309)
        detector = fit_detector(logits, labels, prior)
        seen, absent = labels[0], next(k for k in range(309) if k not in labels)
        assert np.isfinite(detector["image"].whitening).all()
        assert detector["image"].whitening.dtype == np.float32
        np.testing.assert_array_equal(detector["image"].class_means[absent], 0)
        assert np.abs(detector["image"].class_means[seen]).max() > 0.1
        found = detect(logits, detector, prior)
        assert np.isfinite(found.deviation["image"]).all()

    def test_misuse(self):
        logits, labels, prior, _ = fitted()
        with pytest.raises(ValueError, match=r"labels must have shape \(400,\)"):
            detection.fit_detector(logits, labels[:-1], prior)
        with pytest.raises(ValueError, match=r"class_prior must have shape \(5,\)"):
            detection.fit_detector(logits, labels, prior[:-1])
        with pytest.raises(TypeError, match="float32 or float64"):
            detection.fit_detector({"image": labels[:, None] * np.ones(5, int)}, labels, prior)


def reference_scores(logits, detector, prior, prevalence):
    """Unnormalised posteriors, (B, 1 + M), from densities of SciPy, in plain probabilities."""
    names = list(logits)
    num_classes = len(prior)
    columns = []
    probs = {
        name: scipy.special.softmax(logits[name] / float(detector[name].temperature), axis=1)
        for name in names
    }

    def agreement(of):
        total = np.zeros(len(logits[names[0]]))
        for k in range(num_classes):
            total += prior[k] * np.prod([probs[n][:, k] / prior[k] for n in of], axis=0)
        return total

    columns.append((1 - prevalence) * agreement(names))
    for name in names:
        center, whitening, class_means, _ = (np.asarray(x) for x in detector[name])
        covariance: Any = np.linalg.inv(whitening @ whitening.T)
        means = class_means @ np.linalg.inv(whitening) + center
        gauss = sum(
            prior[k] * scipy.stats.multivariate_normal.pdf(logits[name], means[k], covariance)
            for k in range(num_classes)
        )
        cauchy = sum(
            prior[k] * scipy.stats.multivariate_t.pdf(logits[name], means[k], covariance, df=1)
            for k in range(num_classes)
        )
        others = agreement([n for n in names if n != name])
        columns.append(prevalence / len(names) * others * (0.5 + 0.5 * cauchy / gauss))
    return np.stack(columns, axis=1)


def posterior_of(found):
    perturbed = [found.log_perturbed[name] for name in NAMES if name in found.log_perturbed]
    return np.stack([found.log_unperturbed, *perturbed], axis=1)


class TestDetect:
    @pytest.mark.parametrize("names", [NAMES, NAMES[:2], NAMES[:1]], ids=len)
    @pytest.mark.parametrize("prevalence", [0.5, 0.01])
    def test_is_the_posterior_of_the_stated_model(self, names, prevalence):
        _, _, prior, detector = fitted(names=names)
        logits, _ = make_logits(np.random.default_rng(1), 60, 5, names, noise=2.0)
        scores = reference_scores(logits, detector, prior, prevalence)
        found = detect(logits, detector, prior, prevalence=prevalence)
        expected = np.log(scores / scores.sum(axis=1, keepdims=True))
        np.testing.assert_allclose(posterior_of(found), expected, rtol=1e-8, atol=1e-8)

    @pytest.mark.parametrize("num_classes", [2, 10])
    def test_posteriors_are_frequencies_where_the_model_is_true(self, num_classes):
        # Logits that are exact posteriors of Gaussians; a perturbed modality says what it says of
        # another sample, or a Cauchy variate about a class.
        rng = np.random.default_rng(5)
        prior = np.full(num_classes, 1 / num_classes)
        means = 1.5 * np.eye(num_classes)

        def observe(labels, cauchy):
            noise = rng.normal(size=(len(labels), num_classes))
            width = np.where(cauchy, np.sqrt(rng.chisquare(1, size=len(labels))), 1)
            x = means[labels] + noise / width[:, None]
            return x @ means.T - (means**2).sum(axis=1) / 2

        def draw(num_samples, perturbed):
            labels = rng.integers(num_classes, size=num_samples)
            logits = {}
            for index, name in enumerate(NAMES):
                is_moved = perturbed == index
                says = np.where(is_moved, rng.integers(num_classes, size=num_samples), labels)
                logits[name] = observe(says, is_moved & (rng.random(num_samples) < 0.5))
            return logits, labels

        detector = fit_detector(*draw(50_000, np.full(50_000, -1)), prior)
        truth = np.where(rng.random(40_000) < 0.4, rng.integers(3, size=40_000), -1)
        logits, _ = draw(40_000, truth)
        probs = np.exp(posterior_of(detect(logits, detector, prior, prevalence=0.4)))
        checked = 0
        for column, value in enumerate([-1, 0, 1, 2]):
            p, hit = probs[:, column], truth == value
            for low in np.arange(0, 1, 0.1):
                inside = (p >= low) & (p < low + 0.1 + 1e-9)
                if inside.sum() < 300:
                    continue
                spread = np.sqrt((p[inside] * (1 - p[inside])).sum()) / inside.sum()
                # Four standard errors, and what the estimated means and temperatures may be off.
                assert abs(p[inside].mean() - hit[inside].mean()) < 4 * spread + 0.01
                checked += 1
        assert checked >= 15
        assert probs[truth == 0, 1].mean() > 2 * probs[truth == -1, 1].mean()

    def test_of_three_the_odd_one_out_is_accused(self):
        _, _, _, detector = fitted()
        prior = np.full(5, 0.2)
        agree = np.array([[6.0, 0, 0, 0, 0]])
        other = np.array([[0.0, 6, 0, 0, 0]])
        for odd in NAMES:
            logits = {name: other if name == odd else agree for name in NAMES}
            found = detect(logits, detector, prior)
            accused = max(NAMES, key=lambda name: float(found.log_perturbed[name][0]))
            assert accused == odd
            assert all((found.disagreement[name] > 0) == (name == odd) for name in NAMES)

    def test_two_that_disagree_are_accused_alike_but_for_what_is_unusual(self):
        _, _, prior, detector = fitted(names=NAMES[:2])
        logits = {"image": np.array([[6.0, 0, 0, 0, 0]]), "audio": np.array([[0.0, 6, 0, 0, 0]])}
        found = detect(logits, detector, prior)
        np.testing.assert_allclose(found.disagreement["image"], found.disagreement["audio"])
        logits["audio"] = 10 * logits["audio"]
        found = detect(logits, detector, prior)
        assert found.log_perturbed["audio"] > found.log_perturbed["image"] + 5

    def test_more_unusual_logits_are_more_suspect(self):
        _, _, prior, detector = fitted(names=NAMES[:1])
        direction = np.random.default_rng(2).normal(size=5)
        sizes = np.geomspace(10, 1e6, 20)
        found = detect({"image": sizes[:, None] * direction}, detector, prior)
        assert (np.diff(found.deviation["image"]) > 0).all()
        assert np.isfinite(found.deviation["image"]).all()

    def test_classes_may_be_listed_in_any_order(self):
        logits, labels, prior, detector = fitted()
        order = np.random.default_rng(4).permutation(5)
        moved = {name: z[:, order] for name, z in logits.items()}
        detector_moved = fit_detector(moved, np.argsort(order)[labels], prior[order])
        np.testing.assert_allclose(
            posterior_of(detect(moved, detector_moved, prior[order])),
            posterior_of(detect(logits, detector, prior)),
            atol=1e-9,
        )

    def test_float32_agrees_with_float64(self):
        logits, labels, prior, detector = fitted(num_classes=50, num_samples=1000)
        expected = posterior_of(detect(logits, detector, prior))
        logits = {name: z.astype(np.float32) for name, z in logits.items()}
        detector = fit_detector(logits, labels, prior)
        found = detect(logits, detector, prior)
        assert found.log_unperturbed.dtype == np.float32
        np.testing.assert_allclose(posterior_of(found), expected, rtol=1e-4, atol=1e-3)

    def test_not_a_number_stays_with_its_sample(self):
        logits, _, prior, detector = fitted()
        expected = posterior_of(detect(logits, detector, prior))
        for wrong in (np.nan, np.inf):
            damaged = {**logits, "audio": logits["audio"].copy()}
            damaged["audio"][3, 1] = wrong
            found = posterior_of(detect(damaged, detector, prior))
            assert np.isnan(found[3]).all()
            np.testing.assert_allclose(
                np.delete(found, 3, axis=0), np.delete(expected, 3, axis=0), rtol=1e-12
            )

    def test_misuse(self):
        logits, _, prior, detector = fitted()
        with pytest.raises(ValueError, match="'text'"):
            detection.detect(logits, {n: detector[n] for n in NAMES[:2]}, prior)
        with pytest.raises(ValueError, match=r"prevalence must lie in \[0, 1\], got 1.5"):
            detection.detect(logits, detector, prior, prevalence=1.5)


def fuse(logits, detector, prior, prevalence=0.5):
    """`detected_fusion` of contaminated likelihoods."""
    return detection.detected_fusion(
        fusion.Contaminated(0.5), logits, detector, prior, prevalence=prevalence
    )


detected_fusion = jax.jit(fuse)


class TestDetectedFusion:
    def test_averages_predictions_over_what_may_be_perturbed(self):
        logits, _, prior, detector = fitted()
        found = detect(logits, detector, prior, prevalence=0.3)
        expected = np.exp(found.log_unperturbed)[:, None] * np.exp(
            rules.statistical_fusion(logits, prior)
        )
        for name in NAMES:
            of_rule = rules.contaminated_fusion(logits, prior, contamination=0.5, perturbed=(name,))
            expected += np.exp(found.log_perturbed[name])[:, None] * np.exp(of_rule)
        log_probs = detected_fusion(logits, detector, prior, 0.3)
        assert log_probs.dtype == np.float64
        np.testing.assert_allclose(np.exp(log_probs), expected, atol=1e-12)
        np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, rtol=1e-12)

    @pytest.mark.parametrize(
        "rule",
        [
            fusion.Cascade(0.7, 0.5),
            fusion.Mean(),
            fusion.Robust(0.1),
            fusion.ContaminatedRobust(0.2, 0.1),
        ],
        ids=lambda rule: rule.kind,
    )
    def test_takes_every_rule(self, rule):
        logits, _, prior, detector = fitted()
        num_classes = len(prior)
        spectrum = GramSpectrum(jnp.ones(num_classes), jnp.eye(num_classes))
        grams = dict.fromkeys(NAMES, spectrum)
        found = detect(logits, detector, prior)
        fuse_rule = jax.jit(fusion.fuse, static_argnames="perturbed")
        expected = np.exp(found.log_unperturbed)[:, None] * np.exp(
            rules.statistical_fusion(logits, prior)
        )
        for name in NAMES:
            of_rule = fuse_rule(rule, logits, prior, perturbed=name, grams=grams)
            expected += np.exp(found.log_perturbed[name])[:, None] * np.exp(of_rule)
        log_probs = jax.jit(detection.detected_fusion)(rule, logits, detector, prior, grams=grams)
        np.testing.assert_allclose(np.exp(log_probs), expected, atol=1e-12)
        if rule.needs_grams:
            with pytest.raises(ValueError, match="needs grams"):
                detection.detected_fusion(rule, logits, detector, prior)

    def test_without_perturbations_it_is_statistical_fusion(self):
        logits, _, prior, detector = fitted()
        log_probs = detected_fusion(logits, detector, prior, 0.0)
        np.testing.assert_allclose(log_probs, rules.statistical_fusion(logits, prior), atol=1e-12)

    def test_compiles_vectorises_and_differentiates(self):
        logits, _, prior, detector = fitted()
        logits = {name: z.astype(np.float32) for name, z in logits.items()}
        expected = fuse(logits, detector, prior)
        assert expected.dtype == np.float32
        compiled = detected_fusion(logits, detector, prior)
        np.testing.assert_allclose(compiled, expected, rtol=1e-4, atol=1e-5)

        @jax.jit
        @jax.vmap
        def fuse_alone(sample):
            return fuse({name: z[None] for name, z in sample.items()}, detector, prior)[0]

        np.testing.assert_allclose(fuse_alone(logits), expected, rtol=1e-4, atol=1e-5)
        gradients = jax.jit(jax.grad(lambda z: fuse(z, detector, prior)[:, 0].sum()))(logits)
        for gradient in map(np.asarray, gradients.values()):
            assert np.isfinite(gradient).all()
            assert np.abs(gradient).max() > 0

    @pytest.mark.parametrize("attacked", NAMES[:2])
    def test_lies_between_being_told_and_being_told_wrong(self, attacked):
        rng = np.random.default_rng(7)
        logits, labels, _, detector = fitted(num_samples=4000, names=NAMES[:2])
        prior = np.full(5, 0.2)
        # Logits of another class, larger than usual.
        moved = {**logits, attacked: 3 * logits[attacked][rng.permutation(4000)]}
        other = next(name for name in NAMES[:2] if name != attacked)

        def accuracy(log_probs):
            return float((np.argmax(log_probs, axis=1) == labels).mean())

        told, wrong = (
            accuracy(rules.contaminated_fusion(moved, prior, contamination=0.5, perturbed=(name,)))
            for name in (attacked, other)
        )
        found = accuracy(detected_fusion(moved, detector, prior))
        assert wrong + 0.1 < found <= told + 0.02
