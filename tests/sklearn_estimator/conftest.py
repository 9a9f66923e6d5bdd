import pytest
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jacfuse_jax.sklearn import RobustLateFusion
from tests.sklearn_estimator.halves import HALVES, PLAIN, linear, near


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X / 16, y


@pytest.fixture(scope="module")
def train(digits):
    return digits[0][:600], digits[1][:600]


@pytest.fixture(scope="module")
def inputs(digits):
    return digits[0][600:612]


@pytest.fixture(scope="module")
def fitted(train):
    """A linear classifier and one that is not, trained."""
    X, y = train
    return {
        "left": make_pipeline(StandardScaler(), linear(C=0.1)).fit(X[:, HALVES["left"]], y),
        "right": near().fit(X[:, HALVES["right"]], y),
    }


@pytest.fixture(scope="module")
def fused(train, fitted):
    """Statistical fusion of these, prefit."""
    return RobustLateFusion(fitted, columns=HALVES, cv="prefit", **PLAIN).fit(*train)
