"""Inside what scikit-learn composes."""

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from jacfuse_jax.fusion import Robust, Statistical
from jacfuse_jax.sklearn import RobustLateFusion
from tests.sklearn_estimator.halves import HALVES, given, near, robust


@pytest.fixture
def model():
    return RobustLateFusion(
        {name: near() for name in HALVES},
        columns=HALVES,
        perturbed="left",
        **robust(0.1),
        cv=2,
        random_state=0,
    )


@pytest.fixture
def few(train):
    return train[0][:200], train[1][:200]


@pytest.mark.parametrize("method", ["predict_proba", "predict_log_proba", "predict"])
def test_cross_val_predict(model, few, method):
    X, y = few
    expected: Any = [None] * len(y)
    for fit, test in StratifiedKFold(2).split(X, y):
        fold: Any = clone(model)
        fold.fit(X[fit], y[fit])
        for row, prediction in zip(test, getattr(fold, method)(X[test]), strict=True):
            expected[row] = prediction
    found: Any = cross_val_predict(model, X, y, cv=2, method=method)
    np.testing.assert_array_equal(found, np.array(expected))


def test_pipeline_whose_last_step_it_is(model, few, inputs):
    X, y = few
    scaled = make_pipeline(StandardScaler(), clone(model)).fit(X, y)
    scaler = StandardScaler().fit(X)
    alone: Any = clone(model)
    alone.fit(scaler.transform(X), y)
    for method in ("predict", "predict_proba", "predict_log_proba"):
        np.testing.assert_array_equal(
            getattr(scaled, method)(inputs), getattr(alone, method)(scaler.transform(inputs))
        )
    assert scaled.score(X, y) == alone.score(scaler.transform(X), y)


def test_weights_reach_the_last_step_of_a_pipeline(few, inputs):
    X, y = few
    weights = np.random.default_rng(0).integers(0, 3, len(y))
    model = RobustLateFusion({name: MultinomialNB() for name in HALVES}, columns=HALVES, cv=2)
    model.set_params(**given(Statistical()))
    scaled = make_pipeline(MinMaxScaler(), model)
    scaled.fit(X, y, robustlatefusion__sample_weight=weights)
    alone: Any = clone(model)
    alone.fit(MinMaxScaler().fit_transform(X), y, sample_weight=weights)
    scaler = MinMaxScaler().fit(X)
    np.testing.assert_array_equal(
        scaled.predict_proba(inputs), alone.predict_proba(scaler.transform(inputs))
    )


def test_grid_over_rules_inside_a_pipeline(model, few):
    X, y = few
    some = [Robust(1.0), Robust(0.001), Statistical()]
    pipeline = make_pipeline(StandardScaler(), model)
    search = GridSearchCV(pipeline, {"robustlatefusion__rule": some}, cv=2).fit(X, y)
    for rule, found in zip(some, search.cv_results_["mean_test_score"], strict=True):
        one: Any = clone(pipeline)
        one.set_params(robustlatefusion__rule=rule)
        expected = [
            one.fit(X[fit], y[fit]).score(X[test], y[test])
            for fit, test in StratifiedKFold(2).split(X, y)
        ]
        assert found == pytest.approx(np.mean(expected), rel=1e-12)
    best: Any = search.best_estimator_
    assert best[-1].rule_ == search.best_params_["robustlatefusion__rule"]


def test_stacking_classifier_of_which_it_is_one(model, few, inputs):
    X, y = few
    stack: Any = StackingClassifier(
        [("fusion", model), ("near", near())], LogisticRegression(max_iter=500), cv=2
    )
    stack.fit(X, y)
    first: Any = [
        cross_val_predict(one, X, y, cv=2, method="predict_proba") for one in (model, near())
    ]
    final = LogisticRegression(max_iter=500).fit(np.concatenate(first, axis=1), y)
    np.testing.assert_allclose(stack.final_estimator_.coef_, final.coef_, rtol=1e-9)
    of_all: Any = [one.fit(X, y).predict_proba(inputs) for one in (model, near())]
    np.testing.assert_allclose(
        stack.predict_proba(inputs),
        final.predict_proba(np.concatenate(of_all, axis=1)),
        rtol=1e-9,
        atol=1e-15,
    )


def test_calibrated_classifier(model, few, inputs):
    X, y = few
    model.fit(X, y)
    calibrated: Any = CalibratedClassifierCV(FrozenEstimator(model), method="temperature")
    probs = calibrated.fit(X, y).predict_proba(inputs)
    beta = calibrated.calibrated_classifiers_[0].calibrators[0].beta_
    expected = model.predict_proba(inputs) ** beta
    np.testing.assert_allclose(probs, expected / expected.sum(axis=1, keepdims=True), rtol=1e-6)
