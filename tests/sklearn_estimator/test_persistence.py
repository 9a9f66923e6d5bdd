"""What is fitted is NumPy's and Python's, and comes back from files as it was."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import joblib
import numpy as np
import pytest
import skops.io
from sklearn.frozen import FrozenEstimator
from skops.io.exceptions import UntrustedTypesFoundException

from jacfuse_jax.fusion import Cascade, Contaminated, ContaminatedRobust, Robust, Statistical
from jacfuse_jax.linalg import GramSpectrum
from jacfuse_jax.sklearn import RobustLateFusion
from tests.sklearn_estimator.halves import HALVES, given, linear

RULES = [
    {},
    {"rule": ContaminatedRobust(0.1, 0.1), "choose": ("gamma",)},
    {"rule": Cascade(0.8, tempering=0.7), "choose": ("contamination",)},
    given(Statistical()),
]


def leaves(value) -> list[Any]:
    """What is in containers and rules, classifiers apart."""
    if dataclasses.is_dataclass(value):
        value = list(vars(value).values())
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [leaf for entry in value for leaf in leaves(entry)]
    return [value]


@pytest.mark.parametrize(
    "params",
    [
        *RULES,
        given(Robust(jnp.float32(0.1))),
        given(Contaminated(np.array(0.1), tempering=jnp.asarray(0.5))),
        {"class_prior": jnp.full(10, 0.1), "perturbed": ["left"]},
    ],
)
def test_fitted_attributes_are_of_numpy_and_python(train, fitted, params):
    model = RobustLateFusion(fitted, columns=HALVES, cv="prefit", **params).fit(*train)
    found = {name: leaves(value) for name, value in vars(model).items() if name.endswith("_")}
    assert found.pop("estimators_") == list(fitted.values())
    for name, values in found.items():
        for value in values:
            assert type(value) in (np.ndarray, float, int, str, type(None)), (name, type(value))
    assert all(type(number) is float for number in jax.tree.leaves(model.rule_))


@pytest.fixture(params=RULES, ids=lambda params: type(params.get("rule", Robust(1))).__name__)
def model(request, train, fitted):
    """Of a pipeline, a frozen classifier and another one."""
    X, y = train
    classifiers = {
        "left": fitted["left"],
        "right": FrozenEstimator(fitted["right"]),
        "all": linear(C=0.1).fit(X, y),
    }
    columns = {**HALVES, "all": slice(None)}
    return RobustLateFusion(
        classifiers, columns=columns, perturbed="left", cv="prefit", **request.param
    ).fit(X, y)


def assert_same(found, model, inputs):
    assert found.rule_ == model.rule_
    assert found.get_params().keys() == model.get_params().keys()
    np.testing.assert_array_equal(found.predict_proba(inputs), model.predict_proba(inputs))
    np.testing.assert_array_equal(found.predict(inputs), model.predict(inputs))


def test_joblib_gives_back_what_it_was_given(model, inputs, tmp_path):
    path = tmp_path / "model.joblib"
    joblib.dump(model, path)
    assert_same(joblib.load(path), model, inputs)
    assert_same(joblib.load(path, mmap_mode="r"), model, inputs)


def test_skops_gives_back_what_it_is_told_to_trust(model, inputs, tmp_path):
    path = tmp_path / "model.skops"
    skops.io.dump(model, path)
    with pytest.raises(UntrustedTypesFoundException, match="RobustLateFusion"):
        skops.io.load(path)
    trusted = [RobustLateFusion, GramSpectrum, type(model.rule_)]
    found = skops.io.load(path, trusted=trusted)
    assert_same(found, model, inputs)
    assert found.rule == model.rule
