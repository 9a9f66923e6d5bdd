"""Rows that lack modalities have the result of those that they have."""

import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import bounds, certificates, detection, fusion
from jacfuse_jax.evaluation import baselines, rules
from jacfuse_jax.linalg import spectrum_from_kernel
from tests.fusion import test_rules

RNG = np.random.default_rng(1)
K, H = 4, 6
NAMES = ("audio", "image", "text")
PERTURBED = ("audio", "text")
PATTERNS = list(itertools.product([False, True], repeat=3))
B = 5 * len(PATTERNS)
LOGITS = {name: 2 * RNG.normal(size=(B, K)) for name in NAMES}
PRIOR = RNG.dirichlet(np.full(K, 5.0))
GRAMS = {m: spectrum_from_kernel(jnp.asarray(RNG.normal(size=(H, K)))) for m in NAMES}
PRESENT = {m: np.repeat([p[i] for p in PATTERNS], 5) for i, m in enumerate(NAMES)}
# What stands where nothing is must not matter.
HOLED = {m: np.where(PRESENT[m][:, None], z, np.nan) for m, z in LOGITS.items()}
MEAN_SQUARE = RNG.normal(size=(K, K))
MEAN_SQUARE = MEAN_SQUARE @ MEAN_SQUARE.T
TEMPERATURES = dict(zip(NAMES, (0.7, 1.0, 1.6), strict=True))
ERRORS = dict(zip(NAMES, (0.1, 0.2, 0.05), strict=True))
RULES = [
    *(rule for rule in test_rules.RULES if not isinstance(rule, fusion.TrimmedMean)),
    baselines.Calibrated(TEMPERATURES),
    baselines.ProbEn(TEMPERATURES),
    baselines.DropSuspect(),
    baselines.DempsterShafer(TEMPERATURES, ERRORS),
    baselines.EnergyWeighted(),
    rules.FixedRobust(0.2, jnp.asarray(MEAN_SQUARE)),
    rules.Trained("pgd"),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


def patterns():
    """Which rows have the same modalities, and which these are."""
    for number, pattern in enumerate(PATTERNS):
        rows = slice(5 * number, 5 * number + 5)
        names = tuple(m for m, has in zip(NAMES, pattern, strict=True) if has)
        yield rows, names


def of(rows, names):
    """Logits of these rows and modalities alone, and which of them are perturbed."""
    return {m: LOGITS[m][rows] for m in names}, tuple(m for m in PERTURBED if m in names)


def fuse(rule, logits: Any = HOLED, present: Any = PRESENT):
    return fusion.fuse(rule, logits, PRIOR, perturbed=PERTURBED, grams=GRAMS, present=present)


@every_rule
def test_every_pattern_of_absence_is_fused_as_what_is_left(rule):
    found = np.asarray(fuse(rule))
    for rows, names in patterns():
        expected = np.tile(np.log(PRIOR), (5, 1))
        if names:
            logits, perturbed = of(rows, names)
            expected = fusion.fuse(rule, logits, PRIOR, perturbed=perturbed, grams=GRAMS)
        np.testing.assert_allclose(found[rows], expected, rtol=1e-11, atol=1e-12, err_msg=names)


def test_every_rule_that_takes_missing_rows_is_tested():
    takers = {rule for rule in rules.RULES if rule.takes_missing}
    checks = {rules.Unimodal, baselines.TrimmedMean, *rules.INPUT_CHECKS}  # below
    assert {type(rule) for rule in RULES} | checks == takers


@pytest.mark.parametrize("check", rules.INPUT_CHECKS)
def test_an_input_check_ends_as_a_cascade(check):
    np.testing.assert_array_equal(fuse(check(0.6)), fuse(fusion.Cascade(0.6)))


def test_what_a_modality_alone_does_not_say_is_the_prior():
    found = np.asarray(fuse(rules.Unimodal("image")))
    has = PRESENT["image"]
    expected = jax.nn.log_softmax(LOGITS["image"])
    np.testing.assert_allclose(found[has], expected[has], rtol=1e-12)
    np.testing.assert_allclose(found[~has], np.tile(np.log(PRIOR), (B // 2, 1)), rtol=1e-12)


def test_of_two_left_or_one_the_trimmed_mean_is_the_mean():
    found = np.asarray(fuse(baselines.TrimmedMean()))
    for rows, names in patterns():
        if not names:
            continue
        logits, _ = of(rows, names)
        if len(names) == 3:
            expected = fusion.fuse(baselines.TrimmedMean(), logits, PRIOR, perturbed=())
        else:
            log_probs = [jax.nn.log_softmax(z) for z in logits.values()]
            expected = jax.nn.log_softmax(np.mean(log_probs, axis=0))
        np.testing.assert_allclose(found[rows], expected, rtol=1e-12)


@every_rule
def test_gradients_in_what_is_missing_are_zero_and_finite_in_what_is_left(rule):
    def total(logits):
        return (fuse(rule, logits) * jnp.arange(K, dtype=float)[None]).sum()

    for name, gradient in jax.jit(jax.grad(total))(HOLED).items():
        has = PRESENT[name]
        assert not np.asarray(gradient)[~has].any()
        assert np.isfinite(gradient).all()


@pytest.mark.slow
@every_rule
def test_presence_is_data_under_jit_and_vmap(rule):
    @jax.jit
    @jax.vmap
    def fuse_row(logits, present):
        def row(tree):
            return jax.tree.map(lambda x: x[None], tree)

        return fuse(rule, row(logits), row(present))[0]

    np.testing.assert_allclose(fuse_row(HOLED, PRESENT), fuse(rule), rtol=1e-10, atol=1e-11)


@pytest.mark.slow
@every_rule
def test_everything_present_changes_nothing(rule):
    everything = {m: np.ones(B, bool) for m in NAMES}
    whole = fuse(rule, LOGITS, None)
    np.testing.assert_allclose(fuse(rule, LOGITS, everything), whole, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(fuse(rule, LOGITS, {}), whole, rtol=1e-13, atol=1e-13)


def test_half_precision_and_an_empty_batch_keep_their_dtype():
    half = {m: jnp.asarray(z, jnp.bfloat16) for m, z in HOLED.items()}
    for rule in (fusion.Mean(), fusion.Robust(0.2), fusion.Cascade(0.6)):
        found = fuse(rule, half)
        assert found.dtype == jnp.bfloat16
        assert not jnp.isnan(found).any()
        empty = {m: z[:0] for m, z in LOGITS.items()}
        assert fuse(rule, empty, {m: has[:0] for m, has in PRESENT.items()}).shape == (0, K)


@pytest.mark.parametrize(
    ("present", "error", "message"),
    [
        ({"video": np.ones(B, bool)}, ValueError, "present names 'video', but the modalities are"),
        ({"audio": np.ones(B)}, TypeError, r"present\['audio'\] must be bool, got float"),
        (
            {"audio": np.ones(B - 1, bool)},
            ValueError,
            r"present\['audio'\] must have shape \(40,\)",
        ),
        (np.ones(B, bool), TypeError, r"present must be \{modality: \(B,\) bool\}, got ndarray"),
    ],
)
def test_wrong_presence_is_refused(present, error, message):
    for rule in (fusion.Mean(), fusion.Statistical(), fusion.Robust(0.2), fusion.Cascade(0.6)):
        with pytest.raises(error, match=message):
            fuse(rule, LOGITS, present)


def test_rules_without_a_prior_need_one_for_rows_without_modalities():
    for function in (fusion.mean_fusion, fusion.max_fusion, fusion.product_fusion):
        with pytest.raises(ValueError, match="present needs class_prior"):
            function(HOLED, present=PRESENT)


@pytest.mark.slow
class TestSensitivity:
    OPTIONS: ClassVar[Any] = {"perturbed": PERTURBED, "gamma": 0.2}

    def by_pattern(self, function, found):
        for rows, names in patterns():
            logits, perturbed = of(rows, names)
            if names:
                options = {**self.OPTIONS, "perturbed": perturbed}
                yield rows, function(logits, GRAMS, PRIOR, **options)
            else:
                yield rows, jax.tree.map(lambda x: np.zeros_like(x[:5]), found)

    @pytest.mark.parametrize("num_iterations", [1, 4])
    def test_norm_of_the_jacobian(self, num_iterations):
        def function(*args, **options):
            return fusion.robust_fusion(*args, num_iterations=num_iterations, **options)

        found = function(HOLED, GRAMS, PRIOR, present=PRESENT, **self.OPTIONS)
        for rows, expected in self.by_pattern(function, found):
            np.testing.assert_allclose(
                found.jacobian_norm[rows], expected.jacobian_norm, rtol=1e-10, atol=1e-12
            )
        assert found.converged[:5].all()

    def test_bound_on_the_bias(self):
        found = bounds.bias_bound(HOLED, GRAMS, PRIOR, present=PRESENT, **self.OPTIONS)
        for rows, expected in self.by_pattern(bounds.bias_bound, found):
            np.testing.assert_allclose(found[rows], expected, rtol=1e-6, atol=1e-12)

    @pytest.mark.parametrize("function", [bounds.frozen_jacobian, bounds.total_jacobian])
    def test_jacobians(self, function):
        found = function(HOLED, GRAMS, PRIOR, present=PRESENT, **self.OPTIONS)
        for rows, expected in itertools.islice(self.by_pattern(function, found), 1, 8, 2):
            for name, of_modality in found.items():
                there = expected.get(name, np.zeros((5, K, K)))
                np.testing.assert_allclose(of_modality[rows], there, rtol=1e-9, atol=1e-11)


class TestCertificates:
    RULES = (
        *(fusion.Statistical(), fusion.Scaled(0.0), fusion.Scaled(0.3), fusion.Contaminated(0.4)),
        *(fusion.Contaminated(0.2, 0.5), fusion.Cascade(0.5, 1.0, 0.3)),
    )
    corruptions = pytest.mark.parametrize(
        "corrupted", ["audio", "image", ("audio", "text"), ("image", "text"), 1, 2]
    )

    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.label)
    @corruptions
    def test_what_is_left_is_certified(self, rule, corrupted):
        found = certificates.certify_modality(
            rule, HOLED, PRIOR, corrupted=corrupted, perturbed=PERTURBED, present=PRESENT
        )
        for rows, names in patterns():
            logits, perturbed = of(rows, names)
            if isinstance(corrupted, int):
                left = min(corrupted, len(names))  # fewer are no more than what is there
            else:
                asked = (corrupted,) if isinstance(corrupted, str) else corrupted
                left = tuple(m for m in asked if m in names)
            if not left:  # nothing to corrupt
                assert found.certified[rows].all()
                continue
            expected = certificates.certify_modality(
                rule, logits, PRIOR, corrupted=left, perturbed=perturbed
            )
            np.testing.assert_array_equal(found.label[rows], expected.label)
            np.testing.assert_array_equal(found.certified[rows], expected.certified)
            np.testing.assert_allclose(found.margin[rows], expected.margin, rtol=1e-9, atol=1e-11)

    @pytest.mark.slow
    @pytest.mark.parametrize("rule", [*RULES[:5], fusion.Robust(0.2)], ids=lambda rule: rule.label)
    def test_radii(self, rule):
        options: Any = {"corrupted": "audio", "lipschitz": 2.0, "grams": GRAMS}
        options["perturbed"] = ("audio",) if isinstance(rule, fusion.Robust) else PERTURBED
        found = certificates.certified_radius(rule, HOLED, PRIOR, present=PRESENT, **options)
        for rows, names in patterns():
            if "audio" not in names:
                assert np.isinf(found[rows]).all()
                continue
            logits, _ = of(rows, names)
            options["perturbed"] = tuple(m for m in options["perturbed"] if m in names)
            expected = certificates.certified_radius(rule, logits, PRIOR, **options)
            np.testing.assert_allclose(found[rows], expected, rtol=1e-6)
            options["perturbed"] = ("audio",) if isinstance(rule, fusion.Robust) else PERTURBED

    def test_accuracy_counts_rows_that_lack_something(self):
        labels = RNG.integers(K, size=B)
        options: Any = {"corrupted": "audio", "perturbed": PERTURBED, "present": PRESENT}
        rule = fusion.Contaminated(0.4)
        found = certificates.certify_modality(rule, HOLED, PRIOR, **options)
        accuracy = certificates.certified_accuracy(rule, HOLED, labels, PRIOR, **options)
        is_right = np.asarray(found.label) == labels
        np.testing.assert_allclose(accuracy.clean, is_right.mean())
        np.testing.assert_allclose(accuracy.certified, (is_right & found.certified).mean())


@pytest.fixture(scope="module")
def detector():
    labels = RNG.integers(K, size=200)
    logits = {m: RNG.normal(size=(200, K)) + 3 * np.eye(K)[labels] for m in NAMES}
    return detection.fit_detector(logits, labels, PRIOR)


@pytest.mark.slow
class TestDetection:
    @pytest.mark.parametrize("prevalence", [0.0, 0.3, 1.0])
    def test_what_is_left_is_judged(self, detector, prevalence):
        found = detection.detect(HOLED, detector, PRIOR, prevalence=prevalence, present=PRESENT)
        for rows, names in patterns():
            if not names:
                assert not np.asarray(found.log_unperturbed[rows]).any()
                continue
            logits, _ = of(rows, names)
            expected = detection.detect(logits, detector, PRIOR, prevalence=prevalence)
            np.testing.assert_allclose(
                found.log_unperturbed[rows], expected.log_unperturbed, rtol=1e-9, atol=1e-12
            )
            for name in NAMES:
                there = expected.log_perturbed.get(name, np.full(5, -np.inf))
                np.testing.assert_allclose(
                    found.log_perturbed[name][rows], there, rtol=1e-9, atol=1e-12
                )

    @pytest.mark.parametrize("rule", [fusion.Robust(0.2), fusion.Contaminated(0.3)])
    def test_what_is_left_is_fused(self, detector, rule):
        found = detection.detected_fusion(
            rule, HOLED, detector, PRIOR, grams=GRAMS, present=PRESENT
        )
        for rows, names in patterns():
            expected = np.tile(np.log(PRIOR), (5, 1))
            if names:
                logits, _ = of(rows, names)
                expected = detection.detected_fusion(rule, logits, detector, PRIOR, grams=GRAMS)
            np.testing.assert_allclose(found[rows], expected, rtol=1e-10, atol=1e-12)
