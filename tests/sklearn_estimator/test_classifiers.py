from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from jacfuse_jax.sklearn import RobustLateFusion
from tests import reference
from tests.sklearn_estimator.halves import HALVES, PLAIN, frequencies, linear, near, robust


@pytest.mark.parametrize("make_binary", [LogisticRegression, RidgeClassifier])
def test_two_classes(train, inputs, make_binary):
    X, y = train
    y = y > 4
    model = RobustLateFusion(
        {name: make_binary() for name in HALVES}, columns=HALVES, **robust(0.1), calibrate=False
    ).fit(X, y)
    logits, grams = {}, {}
    for name, classifier in model.estimators_.items():
        decision = classifier.decision_function(inputs[:, HALVES[name]])
        # Whatever is split evenly between the classes has the same softmax and the least kernel.
        logits[name] = np.stack([-decision / 2, decision / 2], axis=1)
        coef = np.atleast_2d(classifier.coef_)
        kernel = np.concatenate([-coef / 2, coef / 2])
        grams[name] = kernel @ kernel.T
    expected, _ = reference.robust_fusion(logits, grams, frequencies(y), tuple(HALVES), gamma=0.1)
    np.testing.assert_allclose(model.predict_proba(inputs), expected, rtol=1e-9, atol=1e-12)
    assert model.predict(inputs).dtype == bool


def test_support_vector_machines_have_no_kernel_of_classes(train, inputs):
    X, y = train
    three = y < 3  # as many classes as pairs of classes
    classifier = SVC(kernel="linear").fit(X[three], y[three])
    assert classifier.coef_.shape == (3, 64)
    logits = {"all": classifier.decision_function(inputs)}
    expected, _ = reference.robust_fusion(
        logits, {"all": np.eye(3) - 1 / 3}, frequencies(y[three]), ("all",), gamma=0.1
    )
    for estimator in (classifier, FrozenEstimator(classifier)):
        model = RobustLateFusion({"all": estimator}, **robust(0.1), calibrate=False, cv="prefit")
        actual = model.fit(X[three], y[three]).predict_proba(inputs)
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_classes", [3, 10])
def test_logits_of_pairs_of_classes_are_refused(train, num_classes):
    X, y = train[0][train[1] < num_classes], train[1][train[1] < num_classes]
    machine = SVC(decision_function_shape="ovo")
    for classifier in (machine, make_pipeline(StandardScaler(), machine)):
        with pytest.raises(ValueError, match="'all' has .*_shape='ovo', .* set .*_shape='ovr'"):
            RobustLateFusion({"all": classifier}, **PLAIN).fit(X, y)


def test_two_classes_have_one_pair(train, inputs):
    X, y = train[0][train[1] < 2], train[1][train[1] < 2]
    pair, rest = (
        RobustLateFusion({"all": SVC(decision_function_shape=shape)}, **PLAIN)
        .fit(X, y)
        .predict_proba(inputs)
        for shape in ("ovo", "ovr")
    )
    np.testing.assert_array_equal(pair, rest)


class Spoilt(RidgeClassifier):
    """A classifier whose outputs are those that a function makes of its own."""

    def __init__(self, spoil: Any = None):
        super().__init__()
        self.spoil = spoil

    def decision_function(self, X):
        return self.spoil(super().decision_function(X))


class SpoiltProbs(GaussianNB):
    """Likewise, of its probabilities."""

    def __init__(self, spoil: Any = None):
        super().__init__()
        self.spoil = spoil

    def predict_proba(self, X):
        return self.spoil(super().predict_proba(X))


def with_first_row(value):
    return lambda rows: np.where(np.arange(len(rows))[:, None] == 0, value, rows)


@pytest.mark.parametrize(
    ("classifier", "value"), [(Spoilt, np.nan), (Spoilt, -np.inf), (SpoiltProbs, np.nan)]
)
def test_logits_that_are_not_finite_are_refused(train, inputs, classifier, value):
    X, y = train
    spoilt = classifier(with_first_row(value))
    message = "'spoilt' gives NaN or infinity for 1 of {} samples; check its inputs"
    model = RobustLateFusion({"bayes": GaussianNB(), "spoilt": spoilt}, **robust(0.1), cv=2)
    with pytest.raises(ValueError, match=message.format(300)):
        model.fit(X, y)
    model.set_params(calibrate=False).fit(X, y)
    with pytest.raises(ValueError, match=message.format(12)):
        model.predict(inputs)


def test_logits_of_other_classes_are_refused(train, inputs):
    model = RobustLateFusion({"all": Spoilt(lambda rows: rows[:, :9])}, **PLAIN).fit(*train)
    with pytest.raises(ValueError, match=r"'all' must give .* \(N, 10\), .*, got \(12, 9\)"):
        model.predict(inputs)


def test_sparse_coefficients(train, inputs):
    X, y = train
    classifier = linear().fit(X, y)
    model = RobustLateFusion({"all": classifier}, **robust(0.1), calibrate=False, cv="prefit")
    expected = model.fit(X, y).predict_proba(inputs)
    classifier.sparsify()
    actual = model.fit(X, y).predict_proba(inputs)
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-14)


class OfAnotherLibrary(BaseEstimator):
    """A classifier that behaves like scikit-learn's only where it must."""

    steps = 100  # of training

    def __init__(self, make_classes: Any = list):
        self.make_classes = make_classes

    def fit(self, X, y):
        self.model_ = GaussianNB().fit(X, y)
        self.classes_ = self.make_classes(self.model_.classes_)

    def predict_proba(self, X):
        return self.model_.predict_proba(X).tolist()


@pytest.mark.parametrize("make_classes", [list, tuple, pd.Index])
def test_classes_of_any_kind(train, inputs, make_classes):
    X, y = train
    names = np.array([f"class {digit}" for digit in range(10)])
    params: dict[str, Any] = {**robust(0.1), "cv": 2}
    expected = RobustLateFusion({"all": GaussianNB()}, **params).fit(X, names[y])
    model = RobustLateFusion({"all": OfAnotherLibrary(make_classes)}, **params).fit(X, names[y])
    np.testing.assert_array_equal(model.predict(inputs), expected.predict(inputs))
    np.testing.assert_array_equal(model.predict_proba(inputs), expected.predict_proba(inputs))
    other = linear().fit(X, y)
    with pytest.raises(ValueError, match=r"'other' was fitted with classes \[0, 1, .*, another"):
        model.set_params(estimators={**model.estimators_, "other": other}, cv="prefit").fit(X, y)


@pytest.mark.parametrize("make_classes", [lambda c: c[::-1], lambda c: [*c, c[-1]]])
def test_classes_in_no_order_are_refused(train, make_classes):
    with pytest.raises(ValueError, match=r"'all' has classes_ \[.*\]: they must be sorted, "):
        RobustLateFusion({"all": OfAnotherLibrary(make_classes)}, **PLAIN).fit(*train)


def test_a_classifier_without_classes_is_refused(train):
    classifier = GaussianNB().fit(*train)
    del classifier.classes_
    with pytest.raises(ValueError, match="'all' has no attribute classes_, its labels sorted"):
        RobustLateFusion({"all": classifier}, cv="prefit", **PLAIN).fit(*train)


def test_classifiers_of_other_classes(train, fitted):
    X, y = train
    few = near().fit(X[:, HALVES["right"]], y % 2)
    model = RobustLateFusion({**fitted, "right": few}, columns=HALVES, cv="prefit")
    with pytest.raises(ValueError, match=r"'right' was fitted with classes \[0, 1\], another one"):
        model.fit(X, y)
    once = np.where(np.arange(600) == 0, 10, y)
    with (
        pytest.warns(UserWarning, match="least populated class"),
        pytest.raises(ValueError, match=r"'left' was fitted with .* also in every fold"),
    ):
        RobustLateFusion({"left": near()}).fit(X, once)
