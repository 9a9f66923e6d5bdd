"""Integer weights repeat rows, wherever they go, and rows of weight zero are not there."""

from typing import Any

import jax
import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jacfuse_jax.fusion import Cascade, Contaminated
from jacfuse_jax.sklearn import RobustLateFusion
from tests.sklearn_estimator.halves import (
    HALVES,
    PLAIN,
    changed,
    linear,
    near,
    robust,
)

N = 300


@pytest.fixture(scope="module")
def weighted(train):
    """Rows, labels, and weights of 300 in all, some of them 0."""
    X, y = train[0][:N], train[1][:N]
    return X, y, np.random.default_rng(0).multinomial(N, np.full(N, 1 / N))


@pytest.fixture(scope="module")
def skewed(digits, fitted):
    """Rows that nobody was trained on: what only the right half tells counts most, ten nothing."""
    X, y = digits[0][600 : 600 + N], digits[1][600 : 600 + N]
    is_right = {name: fitted[name].predict(X[:, HALVES[name]]) == y for name in HALVES}
    weights = np.where(is_right["right"] & ~is_right["left"], 12, 1)
    weights[:10] = 0
    return X, y, weights


def bayes():
    """Counts, which weights multiply exactly."""
    return MultinomialNB()


def halves_of(make_classifier, **params):
    classifiers = {name: make_classifier() for name in HALVES}
    return RobustLateFusion(classifiers, columns=HALVES, perturbed="left", **params)


# Of faults that are drawn, repeated rows are others.
AGAINST: dict[str, Any] = {"against": "anything", "attack_share": 0.5}


def expected_of(model) -> float:
    """What is expected of the rule, if it was chosen."""
    return model.choice_["expected"] if model.choice_ else 0.0


def assert_same(model, other, X, rtol=1e-9):
    """Whether two models learned the same."""
    np.testing.assert_allclose(model.class_prior_, other.class_prior_, rtol=1e-12)
    for name in HALVES:
        assert model.temperatures_[name] == pytest.approx(other.temperatures_[name], rel=rtol)
    assert model.rule_ == other.rule_
    assert expected_of(model) == pytest.approx(expected_of(other))
    np.testing.assert_allclose(model.predict_proba(X), other.predict_proba(X), rtol=rtol)


@pytest.mark.parametrize("rule", [Contaminated(0.0), Cascade(0.9)])
@pytest.mark.parametrize("learns", [{}, {"class_prior": np.full(10, 0.1), "calibrate": False}])
def test_integers_repeat_rows_of_validation(fitted, skewed, inputs, rule, learns):
    X, y, weights = skewed
    choices: dict[str, Any] = {"rule": rule, "choose": ("contamination",), **AGAINST, **learns}
    model = RobustLateFusion(fitted, columns=HALVES, perturbed="left", cv="prefit", **choices)
    of_repeated = changed(model, estimators=fitted)
    of_repeated.fit(X.repeat(weights, axis=0), y.repeat(weights))
    model.fit(X, y, sample_weight=weights)
    assert_same(model, of_repeated, inputs)
    unweighted = changed(model, estimators=fitted).fit(X, y)
    assert expected_of(unweighted) != pytest.approx(expected_of(model), abs=0.01)


def test_integers_repeat_rows_of_training_and_of_folds(weighted, inputs):
    X, y, weights = weighted
    fold = np.arange(N) % 3
    model = halves_of(
        bayes,
        rule=Contaminated(0.0),
        choose=("contamination",),
        cv=PredefinedSplit(fold),
        **AGAINST,
    )
    model.fit(X, y, sample_weight=weights)
    of_repeated = changed(model, cv=PredefinedSplit(fold.repeat(weights)))
    of_repeated.fit(X.repeat(weights, axis=0), y.repeat(weights))
    for name in HALVES:
        np.testing.assert_allclose(
            model.estimators_[name].feature_count_,
            of_repeated.estimators_[name].feature_count_,
            rtol=1e-12,
        )
    assert_same(model, of_repeated, inputs, rtol=1e-8)


def test_rows_without_weight_may_be_anything(fitted, weighted):
    X, y, _ = weighted
    counts = np.arange(N) % 4 > 0
    model = RobustLateFusion(fitted, columns=HALVES, cv="prefit", **robust(0.1))
    expected = changed(model, estimators=fitted).fit(X[counts], y[counts])
    anything = np.where(counts[:, None], X, np.inf)
    model.fit(anything, np.where(counts, y, 77), sample_weight=counts)
    assert_same(model, expected, X)


def test_a_class_without_weight_is_not_there(weighted, inputs):
    X, y, _ = weighted
    counts = y != 9
    model = halves_of(bayes, **robust(0.1), cv=PredefinedSplit(np.arange(N) % 2))
    model.fit(X, y, sample_weight=counts)
    expected = changed(model, cv=PredefinedSplit(np.arange(N)[counts] % 2))
    expected.fit(X[counts], y[counts])
    assert model.classes_.tolist() == list(range(9))
    assert_same(model, expected, inputs)
    prefit = RobustLateFusion(model.estimators_, columns=HALVES, cv="prefit", **PLAIN)
    with pytest.raises(ValueError, match=r"lacks the classes \[3\] .* or gives them no weight: gi"):
        prefit.fit(X[counts], y[counts], sample_weight=y[counts] != 3)


def test_their_scale_is_the_classifiers_matter(fitted, weighted):
    X, y, weights = weighted
    with jax.enable_x64(False):
        temperatures = [
            RobustLateFusion(fitted, columns=HALVES, cv="prefit", **robust(0.1))
            .fit(X, y, sample_weight=scale * weights)
            .temperatures_
            for scale in (1, 1e-60)
        ]
    assert temperatures[1] == pytest.approx(temperatures[0], rel=1e-5)


class TestClassifiers:
    """Which of them take weights, and by what name."""

    def test_pipelines_take_them_in_their_last_step(self, weighted):
        X, y, weights = weighted
        scaled = make_pipeline(StandardScaler(), make_pipeline(StandardScaler(), linear()))
        model = RobustLateFusion({"all": scaled}, **PLAIN).fit(X, y, sample_weight=weights)
        expected: Any = clone(scaled)
        counts = weights > 0
        of_step = {"pipeline__logisticregression__sample_weight": weights[counts]}
        expected.fit(X[counts], y[counts], **of_step)
        np.testing.assert_array_equal(
            model.estimators_["all"].predict_proba(X), expected.predict_proba(X)
        )

    @pytest.mark.parametrize(
        "classifier",
        [
            near(),
            make_pipeline(StandardScaler(), near()),
            GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, cv=2),
        ],
        ids=lambda classifier: type(classifier).__name__,
    )
    def test_that_take_none_are_refused(self, weighted, classifier):
        X, y, weights = weighted
        model = RobustLateFusion({"bayes": bayes(), "other": classifier}, **PLAIN)
        with pytest.raises(ValueError, match="'other' takes no sample_weight in fit: leave .*, tr"):
            model.fit(X, y, sample_weight=weights)

    def test_that_are_not_trained_need_take_none(self, fitted, weighted, inputs):
        X, y, weights = weighted
        prefit = RobustLateFusion(fitted, columns=HALVES, cv="prefit", **robust(0.1))
        frozen = {name: FrozenEstimator(classifier) for name, classifier in fitted.items()}
        model = RobustLateFusion(frozen, columns=HALVES, cv=2, **robust(0.1))
        for one in (prefit, model):
            one.fit(X, y, sample_weight=weights)
        assert_same(model, prefit, inputs)

    def test_metadata_routing_decides_where_it_is_enabled(self, weighted, inputs):
        X, y, weights = weighted
        with sklearn.config_context(enable_metadata_routing=True):
            takes = bayes().set_fit_request(sample_weight=True)
            scaled = make_pipeline(
                StandardScaler().set_fit_request(sample_weight=True),
                linear(C=0.1, tol=1e-9).set_fit_request(sample_weight=True),
            )
            model = RobustLateFusion(
                {"left": scaled, "right": takes}, columns=HALVES, **robust(0.1), calibrate=False
            )
            of_repeated = changed(model).fit(X.repeat(weights, axis=0), y.repeat(weights))
            outer = make_pipeline(changed(model).set_fit_request(sample_weight=True))
            outer.fit(X, y, sample_weight=weights)
            assert_same(outer[-1], of_repeated, inputs, rtol=1e-5)
            with pytest.raises(ValueError, match="'right' takes no sample_weight in fit"):
                changed(model, right=near()).fit(X, y, sample_weight=weights)
            with pytest.raises(ValueError, match="sample_weight.* are passed but are not expl"):
                changed(model, right=bayes()).fit(X, y, sample_weight=weights)
            # Nobody is asked who is not trained.
            not_trained: list[RobustLateFusion] = [
                changed(model, right=FrozenEstimator(near().fit(X[:, HALVES["right"]], y))),
                RobustLateFusion(of_repeated.estimators_, columns=HALVES, cv="prefit", **PLAIN),
            ]
            for one in not_trained:
                one.fit(X, y, sample_weight=weights)
                np.testing.assert_allclose(one.class_prior_, of_repeated.class_prior_, rtol=1e-12)


def test_wrong_weights(weighted):
    X, y, _ = weighted
    model = RobustLateFusion({"all": bayes()}, **PLAIN)
    with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
        model.fit(X, y, sample_weight=np.where(np.arange(N) == 5, -1, 1))
    with pytest.raises(ValueError, match=r"sample_weight.shape == \(3,\), expected \(300,\)"):
        model.fit(X, y, sample_weight=np.ones(3))
    with pytest.raises(ValueError, match="Input sample_weight contains NaN"):
        model.fit(X, y, sample_weight=np.where(np.arange(N) == 5, np.nan, 1))
    lacks = np.arange(N) < 150
    message = "no row of the modality 'all' that is not all NaN or of weight zero"
    with pytest.raises(ValueError, match=message):
        model.fit({"all": np.where(lacks[:, None], np.nan, X)}, y, sample_weight=lacks)
