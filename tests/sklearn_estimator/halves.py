"""Classifiers of the halves of digits, and what is known of their fusion."""

from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from jacfuse_jax.fusion import Robust, Statistical
from jacfuse_jax.sklearn import RobustLateFusion

PIXELS = np.arange(64).reshape(8, 8)
HALVES = {"left": PIXELS[:, :4].ravel(), "right": PIXELS[:, 4:].ravel()}
PLAIN: dict[str, Any] = {"rule": Statistical(), "choose": (), "calibrate": False}


def linear(**params):
    return LogisticRegression(max_iter=500, **params)


def near():
    return KNeighborsClassifier(5)


def given(rule) -> dict[str, Any]:
    """Parameters of an estimator that chooses none of the rule's."""
    return {"rule": rule, "choose": ()}


def robust(gamma):
    return given(Robust(gamma))


def changed(model, **params) -> RobustLateFusion:
    copy: Any = clone(model)
    return copy.set_params(**params)


def log_probs(classifier, X):
    return np.log(np.maximum(classifier.predict_proba(X), 2**-52))


def expected_logits(classifiers, X):
    return {name: log_probs(clf, X[:, HALVES[name]]) for name, clf in classifiers.items()}


def expected_grams(classifiers):
    """Of the centred kernels: the linear classifier's, and the identity."""
    centring = np.eye(10) - 0.1
    coef = classifiers["left"][-1].coef_
    return {"left": centring @ coef @ coef.T @ centring, "right": centring}


def frequencies(y):
    return np.bincount(y) / len(y)
