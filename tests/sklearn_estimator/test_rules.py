import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
import scipy.special
from jax.tree_util import register_dataclass
from sklearn.linear_model import RidgeClassifier

from jacfuse_jax import fusion, linalg
from jacfuse_jax.fusion import Cascade, Contaminated, ContaminatedRobust, Robust, Scaled
from jacfuse_jax.sklearn import RobustLateFusion
from tests import reference
from tests.sklearn_estimator.halves import (
    HALVES,
    PLAIN,
    changed,
    expected_grams,
    expected_logits,
    frequencies,
    given,
    linear,
    robust,
)


@pytest.mark.parametrize(
    "params",
    [
        PLAIN,
        {"perturbed": (), "calibrate": False},
        {**robust(1.0), "calibrate": False},
        {**given(Scaled(1.0)), "calibrate": False},
        {**given(Contaminated(0.0)), "calibrate": False},
    ],
)
def test_statistical_fusion(train, fitted, inputs, params):
    model = RobustLateFusion(fitted, columns=HALVES, cv="prefit", **params).fit(*train)
    expected = reference.statistical_fusion(expected_logits(fitted, inputs), frequencies(train[1]))
    np.testing.assert_allclose(model.predict_proba(inputs), expected, rtol=1e-11, atol=1e-15)
    np.testing.assert_array_equal(model.predict(inputs), expected.argmax(axis=1))


@pytest.mark.parametrize(
    ("perturbed", "names"),
    [("left", ("left",)), (["right"], ("right",)), (None, ("left", "right"))],
)
def test_robust_fusion(train, fitted, inputs, perturbed, names):
    model = RobustLateFusion(
        fitted, columns=HALVES, perturbed=perturbed, **robust(0.03), calibrate=False, cv="prefit"
    ).fit(*train)
    expected, _ = reference.robust_fusion(
        expected_logits(fitted, inputs),
        expected_grams(fitted),
        frequencies(train[1]),
        names,
        gamma=0.03,
    )
    np.testing.assert_allclose(model.predict_proba(inputs), expected, rtol=1e-9, atol=1e-12)


def test_linear_classifiers_are_recalibrated_as_by_their_own_logits(train, inputs):
    X, y = train
    classifiers = {name: linear().fit(X[:, HALVES[name]], y) for name in HALVES}
    model = RobustLateFusion(
        classifiers, columns=HALVES, **robust(0.01), calibrate=False, cv="prefit"
    ).fit(X, y)
    # Not log-probabilities, which differ from these by a constant, but z = W^T h + b.
    logits = {
        name: clf.decision_function(inputs[:, HALVES[name]]) for name, clf in classifiers.items()
    }
    grams = {name: clf.coef_ @ clf.coef_.T for name, clf in classifiers.items()}
    expected, _ = reference.robust_fusion(logits, grams, frequencies(y), tuple(HALVES), gamma=0.01)
    np.testing.assert_allclose(model.predict_proba(inputs), expected, rtol=1e-9, atol=1e-12)


def test_contaminated_robust_fusion(train, fitted, inputs):
    prior = frequencies(train[1])
    model = RobustLateFusion(
        fitted,
        columns=HALVES,
        perturbed="left",
        **given(ContaminatedRobust(0.3, 0.1)),
        calibrate=False,
        cv="prefit",
    ).fit(*train)
    logits = expected_logits(fitted, inputs)
    logits["left"] = np.log(0.7 * np.exp(logits["left"]) + 0.3 * prior)
    expected, _ = reference.robust_fusion(
        logits, expected_grams(fitted), prior, ("left",), gamma=0.1
    )
    np.testing.assert_allclose(model.predict_proba(inputs), expected, rtol=1e-9, atol=1e-12)


# Of rules that are not named here all numbers are 0.3.
NUMBERS: dict[type[fusion.Rule], fusion.Rule] = {
    Cascade: Cascade(0.8, tempering=0.5, contamination=0.2),
    Robust: Robust(0.1, num_iterations=3),
    fusion.LearnedCascade: fusion.LearnedCascade(0.3, (2.0, *[0.0] * 14, 1.0), (0.0,) * 16, ()),
}


def example_of(rule: Any) -> fusion.Rule:
    numbers = [field.name for field in dataclasses.fields(rule) if not field.metadata]
    return NUMBERS.get(rule) or rule(**dict.fromkeys(numbers, 0.3))


# Of two modalities there is no trimmed mean.
OF_TWO = [example_of(rule) for rule in fusion.RULES if rule is not fusion.TrimmedMean]


@pytest.mark.parametrize("rule", OF_TWO, ids=lambda rule: rule.kind)
def test_every_rule_of_fusion_works(train, fitted, inputs, rule):
    model = RobustLateFusion(
        fitted, columns=HALVES, perturbed="left", **given(rule), calibrate=False, cv="prefit"
    ).fit(*train)
    grams = {
        name: linalg.gram_spectrum(gram)
        for name, gram in expected_grams(fitted).items()
        if name == "left"
    }
    expected = jax.jit(fusion.fuse, static_argnames="perturbed")(
        rule,
        expected_logits(fitted, inputs),
        frequencies(train[1]),
        perturbed="left",
        grams=grams,
    )
    np.testing.assert_allclose(model.predict_proba(inputs), np.exp(expected), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(model.predict_log_proba(inputs), expected, rtol=1e-9, atol=1e-9)
    assert model.rule_ == rule
    assert model.perturbed_ == ("left",)
    assert set(model.grams_) == ({"left"} if rule.needs_grams else set())


def test_a_rule_of_ones_own_works(train, fitted, inputs):
    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Sharper(fusion.Rule):
        kind = "sharper"
        power: float

        def apply(self, inputs):
            return jax.nn.log_softmax(self.power * fusion.mean_fusion(inputs.logits))

    options: dict[str, Any] = {"columns": HALVES, "calibrate": False, "cv": "prefit"}
    mean, sharper = (
        changed(RobustLateFusion(fitted, **options), **given(rule), estimators=fitted)
        .fit(*train)
        .predict_proba(inputs)
        for rule in (fusion.Mean(), Sharper(2.0))
    )
    expected = mean**2 / (mean**2).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(sharper, expected, rtol=1e-9)


def test_samples_do_not_depend_on_their_batch(fused, digits, train, fitted):
    inputs = digits[0][600:900]
    model = changed(fused, estimators=fitted, **robust(0.01)).fit(*train)
    together = model.predict_proba(inputs)
    assert len(inputs) > 256
    np.testing.assert_allclose(together.sum(axis=1), 1, rtol=1e-15)
    for rows in (slice(0, 1), slice(100, 103), slice(0, 256)):
        np.testing.assert_allclose(model.predict_proba(inputs[rows]), together[rows], rtol=1e-12)


@pytest.mark.parametrize("x64", [True, False])
def test_log_probabilities_of_what_no_number_is_small_enough_for(train, inputs, x64):
    X, y = train
    classifier = RidgeClassifier().fit(X, y)
    classifier.coef_ *= 1e5
    decision = classifier.decision_function(inputs)
    model = RobustLateFusion({"all": classifier}, cv="prefit", **PLAIN)
    with jax.enable_x64(x64):
        model.fit(X, y)
        probs, log_probs = model.predict_proba(inputs), model.predict_log_proba(inputs)
    assert (probs == 0).mean() > 0.8
    expected = scipy.special.log_softmax(decision, axis=1)
    np.testing.assert_allclose(log_probs, expected, rtol=1e-12 if x64 else 1e-5, atol=1e-9)
    np.testing.assert_allclose(np.exp(log_probs), probs, rtol=1e-12)
    assert np.isfinite(log_probs).all()
    assert log_probs.dtype == np.float64
