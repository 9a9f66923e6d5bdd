from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, cross_val_score

from jacfuse_jax import fusion
from jacfuse_jax.fusion import Cascade, ContaminatedRobust, Robust, Scaled
from jacfuse_jax.sklearn import RobustLateFusion
from tests.sklearn_estimator.halves import HALVES, changed, given, linear, near, robust


def test_grid_search_reaches_its_parameters_and_those_of_the_classifiers(train):
    X, y = train[0][:200], train[1][:200]
    model = RobustLateFusion(
        {"left": linear(), "right": near()},
        columns=HALVES,
        perturbed="left",
        choose=(),
        calibrate=False,
    )
    grid = {
        "rule": [Robust(1.0), Robust(0.001)],
        "left__C": [1e-3, 0.03],
        "right": [near(), linear(C=0.01)],
    }
    search = GridSearchCV(model, grid, cv=2, scoring="neg_log_loss").fit(X, y)
    results = search.cv_results_
    for params, score in zip(results["params"], results["mean_test_score"], strict=True):
        one = RobustLateFusion(
            {"left": linear(C=params["left__C"]), "right": clone(params["right"])},
            columns=HALVES,
            perturbed="left",
            **given(params["rule"]),
            calibrate=False,
        )
        expected = cross_val_score(one, X, y, cv=2, scoring="neg_log_loss").mean()
        assert score == pytest.approx(expected, rel=1e-12)
    assert len(set(results["mean_test_score"])) == 8
    best, params = search.best_estimator_, search.best_params_
    assert (best.estimators_["left"].C, best.rule_) == (params["left__C"], params["rule"])
    assert best.estimators["right"] is not model.estimators["right"]


def test_frozen_classifiers_survive_grid_search(fitted, train, inputs):
    frozen = {name: FrozenEstimator(classifier) for name, classifier in fitted.items()}
    model = RobustLateFusion(frozen, columns=HALVES, perturbed="left", choose=(), calibrate=False)
    some: list[fusion.Rule] = [Robust(1.0), Robust(0.1), Scaled(0.3), Cascade(0.9)]
    search = GridSearchCV(model, {"rule": some}, cv=2).fit(*train)
    assert search.best_params_["rule"] in some
    for rule in some:
        frozen_one = changed(model, rule=rule).fit(*train)
        prefit = RobustLateFusion(
            fitted, columns=HALVES, perturbed="left", **given(rule), calibrate=False, cv="prefit"
        ).fit(*train)
        np.testing.assert_array_equal(
            frozen_one.predict_proba(inputs), prefit.predict_proba(inputs)
        )
    assert search.best_score_ > 0.9


def test_parameters_of_classifiers():
    left, right = linear(C=2.0), near()
    model = RobustLateFusion({"left": left, "right": right}, rule=Robust(0.5))
    params = model.get_params()
    assert params["left"] is left
    assert params["left__C"] == 2.0
    assert "left__C" not in model.get_params(deep=False)
    other = near()
    model.set_params(left__C=3.0, right=other, right__n_neighbors=1, rule=Scaled(0.1))
    assert (left.C, model.estimators["right"], other.n_neighbors) == (3.0, other, 1)
    assert model.rule == model.get_params()["rule"] == Scaled(0.1)
    copy: Any = clone(model)
    assert copy.rule == Scaled(0.1)
    assert right.n_neighbors == 5
    model.set_params(estimators={"audio": right}, audio__n_neighbors=2)
    assert right.n_neighbors == 2
    with pytest.raises(ValueError, match="Invalid parameter 'left' for estimator"):
        model.set_params(left=left)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"estimators": {}}, "'estimators' should be a non-empty dict of .* Got {} instead"),
        ({"estimators": [("a", near())]}, "'estimators' should be a non-empty dict"),
        ({"estimators": {0: near()}}, "'estimators' should be a non-empty dict"),
        ({"estimators": {"rule": near()}}, r"conflict with constructor arguments: \['rule'\]"),
        ({"estimators": {"a__b": near()}}, r"must not contain __: got \['a__b'\]"),
        ({"estimators": {"a": LinearRegression()}}, "LinearRegression.. should be a classifier"),
        ({"columns": {"left": [0]}}, r"entry for each of \['left', 'right'\] and no other, got"),
        ({"columns": {**HALVES, "top": [0]}}, "and no other, got"),
        ({"perturbed": "top"}, r"perturbed names 'top', but the modalities are \['left', 'right'"),
        ({"perturbed": ("left", "left")}, "perturbed names a modality twice"),
        (robust(0.0), r"gamma must lie in \(0, 1\], got 0.0"),
        (robust(1.5), r"gamma must lie in \(0, 1\], got 1.5"),
        (robust(np.array([0.1, 0.5])), r"gamma must be a scalar, got shape \(2,\)"),
        (given(Robust(0.1, num_iterations=0)), "num_iterations must be at least 1, got 0"),
        (given(Scaled(-0.1)), r"scale must lie in \[0, 1\], got -0.1"),
        ({"rule": ContaminatedRobust(-0.1, 0.1)}, r"contamination must lie in \[0, 1\], got -0.1"),
        ({"rule": 0.1}, "rule must be a rule of jacfuse_jax.fusion, got 0.1"),
        ({"rule": Robust}, "rule must be a rule of jacfuse_jax.fusion, got <class .*Robust'>"),
        (
            {"rule": Scaled(0.3), "choose": ("gamma",)},
            r"of the rule scaled that can be chosen are \['scale'\], got 'gamma'",
        ),
        (
            {"choose": ("contamination",)},
            r"of the rule robust that can be chosen are \['gamma'\], got 'contamination'",
        ),
        ({"choose": "gamma"}, "choose must be a tuple of .* got 'gamma'"),
        ({"rule": "auto", "choose": ("gamma",)}, "rule='auto' chooses everything: leave out"),
        ({"rule": "best"}, "no JSON"),
        ({"rule": '{"schema": 3, "chosen": []}'}, "of schema 3, not 1: a newer jacfuse_jax reads"),
        ({"attack_share": 1.5}, r"attack_share must lie in \[0, 1\], .* got 1.5 and 'faults'"),
        ({"against": "all"}, "against be one of faults, anything, got 0.1 and 'all'"),
        ({"choose": None}, "choose must be a tuple of .* got None"),
        ({"class_prior": [0.5, 0.5]}, r"class_prior must have shape \(10,\), one entry a class"),
        ({"class_prior": np.ones(10)}, "class_prior must be positive and sum to one"),
        ({"class_prior": np.eye(10)[0]}, "class_prior must be positive and sum to one"),
        ({"cv": "all"}, "Expected .?cv.? as an integer"),
    ],
)
def test_wrong_parameters(train, params, message):
    model = RobustLateFusion({"left": near(), "right": near()}, columns=HALVES)
    with pytest.raises(ValueError, match=message):
        model.set_params(**params).fit(*train)


def test_what_is_not_fitted(train, fitted):
    with pytest.raises(NotFittedError, match="RobustLateFusion instance is not fitted yet"):
        RobustLateFusion(fitted).predict(train[0])
    with pytest.raises(NotFittedError, match="KNeighborsClassifier instance is not fitted yet"):
        RobustLateFusion({"left": near()}, cv="prefit").fit(*train)
