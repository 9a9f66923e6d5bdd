from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from jacfuse_jax import fusion
from jacfuse_jax.fusion import Cascade, Contaminated, Robust, Scaled, Statistical
from jacfuse_jax.sklearn import RobustLateFusion
from tests.sklearn_estimator.halves import HALVES, PLAIN, given, linear, log_probs, near


@pytest.fixture(scope="module")
def halves(train):
    return {name: train[0][:, HALVES[name]] for name in HALVES}, train[1]


@pytest.fixture(scope="module")
def holed(inputs):
    """Inputs without one half, the other, or both; the whole ones; and which rows lack what."""
    whole = {name: inputs[:, HALVES[name]] for name in HALVES}
    rows = np.arange(len(inputs)) % 4
    lacks = {"left": (rows == 1) | (rows == 3), "right": rows >= 2}
    return {m: np.where(lacks[m][:, None], np.nan, x) for m, x in whole.items()}, whole, rows


def halves_of(**params):
    return RobustLateFusion({"left": linear(C=0.1), "right": near()}, cv=2, **params)


class TestMissing:
    """Rows of a modality that are all NaN."""

    @pytest.mark.parametrize("rule", [Statistical(), Robust(0.1), Contaminated(0.2), Cascade(0.7)])
    def test_is_fused_as_what_is_left(self, fitted, halves, holed, rule):
        model = RobustLateFusion(
            fitted, cv="prefit", perturbed="left", calibrate=False, **given(rule)
        )
        X, inputs, rows = holed
        arrays, y = halves
        probs = model.fit(arrays, y).predict_proba(X)
        whole = model.predict_proba(inputs)
        np.testing.assert_allclose(probs[rows == 0], whole[rows == 0], rtol=1e-9, atol=1e-12)
        right = np.exp(log_probs(fitted["right"], inputs["right"]))
        np.testing.assert_allclose(probs[rows == 1], right[rows == 1], rtol=1e-9, atol=1e-12)
        alone = fusion.fuse(
            rule,
            {"left": log_probs(fitted["left"], inputs["left"])},
            model.class_prior_,
            perturbed="left",
            grams=model.grams_,
        )
        np.testing.assert_allclose(probs[rows == 2], np.exp(alone)[rows == 2], rtol=1e-7)
        prior = np.tile(model.class_prior_, ((rows == 3).sum(), 1))
        np.testing.assert_allclose(probs[rows == 3], prior, rtol=1e-12)

    def test_is_not_trained_on(self, halves):
        arrays, y = halves
        lacks = np.arange(len(y)) % 3 == 0
        holed = {**arrays, "left": np.where(lacks[:, None], np.nan, arrays["left"])}
        model = halves_of(**PLAIN).fit(holed, y)
        expected: Any = clone(model.estimators["left"])
        expected.fit(arrays["left"][~lacks], y[~lacks])
        np.testing.assert_array_equal(model.estimators_["left"].coef_, expected.coef_)
        expected = clone(model.estimators["right"])
        expected.fit(arrays["right"], y)
        np.testing.assert_array_equal(
            model.estimators_["right"].predict(arrays["right"]), expected.predict(arrays["right"])
        )

    def test_parameters_are_learned_where_it_is_there(self, fitted, halves):
        arrays, y = halves
        lacks = np.arange(len(y)) % 3 == 0
        holed = {**arrays, "left": np.where(lacks[:, None], np.nan, arrays["left"])}
        options: dict[str, Any] = {"cv": "prefit", "perturbed": "left", "random_state": 0}
        options |= {"rule": Scaled(1.0), "choose": ("scale",), "attack_share": 0.5}
        model = RobustLateFusion(fitted, **options).fit(holed, y)
        whole = {m: x[~lacks] for m, x in arrays.items()}
        of_whole = RobustLateFusion(fitted, **options, class_prior=model.class_prior_)
        of_whole.fit(whole, y[~lacks])
        assert model.temperatures_["left"] == pytest.approx(of_whole.temperatures_["left"])
        of_all = RobustLateFusion(fitted, **options).fit(arrays, y)
        assert model.temperatures_["right"] == pytest.approx(of_all.temperatures_["right"])
        assert model.rule_ == of_whole.rule_ != Scaled(1.0)

    def test_cross_validation_goes_through(self, halves):
        arrays, y = halves
        X = np.concatenate([arrays["left"], arrays["right"]], axis=1)
        X[::4, :32] = np.nan
        X[1::4, 32:] = np.nan
        columns = {"left": slice(0, 32), "right": slice(32, 64)}
        estimators = {"left": linear(), "right": linear()}
        model = RobustLateFusion(estimators, columns=columns, cv=3, **PLAIN)
        assert cross_val_score(model, X, y, cv=3).min() > 0.6

    @pytest.mark.parametrize("kind", [pd.DataFrame, lambda x: x.astype(object), np.ndarray.tolist])
    def test_of_any_kind(self, fitted, halves, holed, kind):
        model = RobustLateFusion(fitted, cv="prefit", **PLAIN).fit(*halves)
        X, *_ = holed
        expected = model.predict_proba(X)
        found = model.predict_proba({m: kind(x) for m, x in X.items()})
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)

    def test_texts_that_are_none(self):
        texts = np.array(["a good one", "a bad one", None, "good", "bad", "bad"] * 5, object)
        y = np.array([1, 0, 0, 1, 0, 0] * 5)
        numbers = np.random.default_rng(0).normal(size=(30, 2)) + y[:, None]
        words = make_pipeline(CountVectorizer(), linear())
        model = RobustLateFusion({"text": words, "number": linear()}, **PLAIN)
        X = {"text": texts, "number": numbers}
        probs = model.fit(X, y).predict_proba(X)
        alone = model.estimators_["number"].predict_proba(numbers)
        np.testing.assert_allclose(probs[2::6], alone[2::6], rtol=1e-9)

    def test_partly_nan_is_the_classifiers_own_matter(self, halves, holed):
        arrays, y = halves
        X = {m: x.copy() for m, x in holed[1].items()}
        X["left"][0, 0] = np.nan
        with pytest.raises(ValueError, match="NaN"):
            halves_of(**PLAIN).fit(arrays, y).predict_proba(X)
        trees = RobustLateFusion(
            {"left": HistGradientBoostingClassifier(max_iter=3), "right": linear()}, **PLAIN
        )
        assert np.isfinite(trees.fit(arrays, y).predict_proba(X)).all()
        assert not trees.__sklearn_tags__().input_tags.allow_nan
        both = trees.set_params(right=HistGradientBoostingClassifier())
        assert both.__sklearn_tags__().input_tags.allow_nan
        X["left"][0, 0] = np.inf
        with pytest.raises(ValueError, match="infinity"):
            halves_of(**PLAIN).fit(arrays, y).predict_proba(X)

    def test_nothing_at_all_is_refused(self, halves):
        arrays, y = halves
        with pytest.raises(ValueError, match="X has no row of the modality 'left' that is not all"):
            halves_of(**PLAIN).fit({**arrays, "left": np.nan * arrays["left"]}, y)
        is_even = (np.arange(len(y)) % 2 == 0)[:, None]
        X = {
            "left": np.where(is_even, np.nan, arrays["left"]),
            "right": np.where(is_even, arrays["right"], np.nan),
        }
        with pytest.raises(ValueError, match="needs held-out rows that have all modalities"):
            halves_of(choose=("gamma",)).fit(X, y)
