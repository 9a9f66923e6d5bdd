import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from jacfuse_jax.sklearn import RobustLateFusion
from tests.sklearn_estimator.halves import HALVES, PLAIN, changed, linear, near, robust


def test_mappings_hold_modalities_of_any_shape(train, fused, inputs):
    by_name = {name: inputs[:, HALVES[name]] for name in HALVES}
    np.testing.assert_array_equal(fused.predict_proba(by_name), fused.predict_proba(inputs))
    X, y = train
    flat = FunctionTransformer(lambda images: images.reshape(len(images), -1))
    model = RobustLateFusion(
        {"left": make_pipeline(flat, StandardScaler(), linear(C=0.1)), "right": near()}, **PLAIN
    )
    images = {"left": X.reshape(-1, 8, 8)[:, :, :4], "right": X[:, HALVES["right"]]}
    assert model.fit(images, y).score(images, y) == fused.score(X, y)
    assert not hasattr(model, "n_features_in_")
    # Held-out predictions need its rows.
    calibrated = changed(model, calibrate=True, cv=2).fit(images, y)
    assert all(T != 1 for T in calibrated.temperatures_.values())


def test_data_frames_by_names_of_columns(train, fitted, inputs):
    X, y = train[0][:200], train[1][:200]
    names = [f"pixel_{i}" for i in range(64)]
    columns = {half: [names[i] for i in HALVES[half]] for half in HALVES}
    model = RobustLateFusion(
        {"left": clone(fitted["left"]), "right": near()}, columns=columns, **robust(0.1), cv=2
    )
    frame = pd.DataFrame(X, columns=names)
    search = GridSearchCV(model, {"left__logisticregression__C": [0.01, 0.1]}, cv=2)
    search.fit(frame, pd.Series(y))
    by_index = GridSearchCV(changed(model, columns=HALVES), search.param_grid, cv=2)
    by_index.fit(X, y)
    assert search.best_params_ == by_index.best_params_
    np.testing.assert_allclose(
        search.predict_proba(pd.DataFrame(inputs, columns=names)),
        by_index.predict_proba(inputs),
        rtol=1e-11,
        atol=1e-15,
    )
    assert search.feature_names_in_.tolist() == names


def test_sparse_arrays_and_lists(train, inputs):
    X, y = train[0][:200], train[1][:200]
    model = RobustLateFusion(
        {name: linear() for name in HALVES}, columns=HALVES, **robust(0.1), calibrate=False
    )
    expected = changed(model).fit(X, y).predict_proba(inputs)
    for convert in (scipy.sparse.coo_array, scipy.sparse.dok_array, np.ndarray.tolist):
        actual = changed(model).fit(convert(X), y.tolist()).predict_proba(convert(inputs))
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


def test_labels_of_any_kind(train, fused, fitted, inputs):
    X, y = train
    names = np.array([f"class {9 - digit}" for digit in range(10)])
    classifiers = {m: clone(fitted[m]) for m in fitted}
    model = RobustLateFusion(classifiers, columns=HALVES, **PLAIN).fit(X, names[y])
    np.testing.assert_array_equal(model.classes_, np.sort(names))
    np.testing.assert_array_equal(model.predict(inputs), names[fused.predict(inputs)])


def test_wrong_inputs(train, fitted, fused):
    X, y = train
    with pytest.raises(ValueError, match=r"X lacks the modalities \['right'\], it has \['left'\]"):
        fused.predict({"left": X[:, HALVES["left"]]})
    unequal = {"left": X[:5, HALVES["left"]], "right": X[:4, HALVES["right"]]}
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        fused.predict(unequal)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        changed(fused, estimators=fitted).fit(X, y[:-1])
    with pytest.raises(ValueError, match="X has 63 features, but RobustLateFusion is expecting 64"):
        fused.predict(X[:, 1:])
    with pytest.raises(ValueError, match="contains NaN"):
        fused.predict(np.where(np.arange(64) == 5, np.nan, X))
    with pytest.raises(ValueError, match="2D NumPy array"):
        fused.predict(X[0])
    with pytest.raises(ValueError, match="y should be a 1d array"):
        RobustLateFusion({"left": near()}).fit({"left": X}, None)
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        RobustLateFusion({"left": near()}).fit(X, X[:, 10])
    with pytest.raises(ValueError, match=r"previously unseen labels: \[.*77"):
        changed(fused, estimators=fitted).fit(X, np.where(y == 3, 77, y))
