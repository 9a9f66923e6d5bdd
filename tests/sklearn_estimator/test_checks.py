import doctest
import subprocess
import sys
from typing import Any

import jax
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from jacfuse_jax.fusion import Scaled
from jacfuse_jax.sklearn import RobustLateFusion
from tests.sklearn_estimator.halves import robust


# Two classifiers of one array, as scikit-learn's own ensembles; in float32, as most will run it.
def two_classifiers(**params):
    classifiers = {"linear": LogisticRegression(), "bayes": GaussianNB()}
    return RobustLateFusion(classifiers, cv=2, **params)


CHOICE: Any = {"rule": Scaled(0.5), "choose": ("scale",)}


# Where something is chosen, every shape of data is a program of its own: for the checks below.
@parametrize_with_checks([two_classifiers(**robust(0.1))])
@pytest.mark.slow
def test_estimator_checks(estimator, check):
    with jax.enable_x64(False):
        check(estimator)


@pytest.mark.parametrize(
    "check", [estimator_checks.check_fit_idempotent, estimator_checks.check_estimators_pickle]
)
def test_estimator_checks_of_choices(check):
    with jax.enable_x64(False):
        check("RobustLateFusion", two_classifiers(**CHOICE))


@pytest.mark.extended
@parametrize_with_checks([two_classifiers(**CHOICE)])
def test_all_estimator_checks_of_choices(estimator, check):
    with jax.enable_x64(False):
        check(estimator)


def test_the_package_does_not_import_scikit_learn():
    code = "import sys, jacfuse_jax; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_examples_of_the_docstring_run():
    (examples,) = doctest.DocTestFinder(recurse=False).find(RobustLateFusion, globs={})
    assert "prefit" in examples.examples[6].source
    results = doctest.DocTestRunner().run(examples)
    assert results == (0, len(examples.examples))
