import dataclasses
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.sparse
import scipy.special
from jax.tree_util import register_dataclass
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.model_selection import (
    GridSearchCV,
    PredefinedSplit,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from jacfuse_jax import calibration, fusion, linalg
from jacfuse_jax.fusion import (
    Cascade,
    Contaminated,
    ContaminatedRobust,
    Robust,
    Scaled,
    Statistical,
)
from jacfuse_jax.sklearn import RobustLateFusion
from tests import reference

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


# Two classifiers of one array, as scikit-learn's own ensembles; in float32, as most will run it.
def two_classifiers(**params):
    classifiers = {"linear": LogisticRegression(), "bayes": GaussianNB()}
    return RobustLateFusion(classifiers, cv=2, **params)


# With gamma chosen, too, every shape of data is a program of its own: that is for the checks below.
@parametrize_with_checks([two_classifiers(**robust(0.1))])
@pytest.mark.slow
def test_estimator_checks(estimator, check):
    with jax.enable_x64(False):
        check(estimator)


@pytest.mark.parametrize(
    "check", [estimator_checks.check_fit_idempotent, estimator_checks.check_estimators_pickle]
)
def test_estimator_checks_of_the_defaults(check):
    with jax.enable_x64(False):
        check("RobustLateFusion", two_classifiers())


@pytest.mark.extended
@parametrize_with_checks([two_classifiers()])
def test_all_estimator_checks_of_the_defaults(estimator, check):
    with jax.enable_x64(False):
        check(estimator)


def test_the_package_does_not_import_scikit_learn():
    code = "import sys, jacfuse_jax; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "params",
    [
        PLAIN,
        {"perturbed": (), "calibrate": False},
        {**robust(1.0), "calibrate": False},
        {**given(Scaled(1.0)), "calibrate": False},
        {**given(Contaminated(0.0)), "calibrate": False},
    ],
)
def test_statistical_fusion(train, fitted, inputs, params):
    model = RobustLateFusion(fitted, columns=HALVES, cv="prefit", **params).fit(*train)
    expected = reference.statistical_fusion(expected_logits(fitted, inputs), frequencies(train[1]))
    np.testing.assert_allclose(model.predict_proba(inputs), expected, rtol=1e-11, atol=1e-15)
    np.testing.assert_array_equal(model.predict(inputs), expected.argmax(axis=1))


@pytest.mark.parametrize(
    ("perturbed", "names"),
    [("left", ("left",)), (["right"], ("right",)), (None, ("left", "right"))],
)
def test_robust_fusion(train, fitted, inputs, perturbed, names):
    model = RobustLateFusion(
        fitted, columns=HALVES, perturbed=perturbed, **robust(0.03), calibrate=False, cv="prefit"
    ).fit(*train)
    expected, _ = reference.robust_fusion(
        expected_logits(fitted, inputs),
        expected_grams(fitted),
        frequencies(train[1]),
        names,
        gamma=0.03,
    )
    np.testing.assert_allclose(model.predict_proba(inputs), expected, rtol=1e-9, atol=1e-12)


def test_linear_classifiers_are_recalibrated_as_by_their_own_logits(train, inputs):
    X, y = train
    classifiers = {name: linear().fit(X[:, HALVES[name]], y) for name in HALVES}
    model = RobustLateFusion(
        classifiers, columns=HALVES, **robust(0.01), calibrate=False, cv="prefit"
    ).fit(X, y)
    # Not log-probabilities, which differ from these by a constant, but z = W^T h + b.
    logits = {
        name: clf.decision_function(inputs[:, HALVES[name]]) for name, clf in classifiers.items()
    }
    grams = {name: clf.coef_ @ clf.coef_.T for name, clf in classifiers.items()}
    expected, _ = reference.robust_fusion(logits, grams, frequencies(y), tuple(HALVES), gamma=0.01)
    np.testing.assert_allclose(model.predict_proba(inputs), expected, rtol=1e-9, atol=1e-12)


def test_contaminated_robust_fusion(train, fitted, inputs):
    prior = frequencies(train[1])
    model = RobustLateFusion(
        fitted,
        columns=HALVES,
        perturbed="left",
        **given(ContaminatedRobust(0.3, 0.1)),
        calibrate=False,
        cv="prefit",
    ).fit(*train)
    logits = expected_logits(fitted, inputs)
    logits["left"] = np.log(0.7 * np.exp(logits["left"]) + 0.3 * prior)
    expected, _ = reference.robust_fusion(
        logits, expected_grams(fitted), prior, ("left",), gamma=0.1
    )
    np.testing.assert_allclose(model.predict_proba(inputs), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "rule",
    [
        fusion.Mean(),
        fusion.Max(),
        fusion.Product(),
        Scaled(0.3),
        Contaminated(0.3, tempering=0.5),
        Cascade(0.8, tempering=0.5, contamination=0.2),
        Robust(0.1, num_iterations=3),
    ],
    ids=lambda rule: rule.kind,
)
def test_every_rule_of_fusion_works(train, fitted, inputs, rule):
    model = RobustLateFusion(
        fitted, columns=HALVES, perturbed="left", **given(rule), calibrate=False, cv="prefit"
    ).fit(*train)
    grams = {
        name: linalg.gram_spectrum(gram)
        for name, gram in expected_grams(fitted).items()
        if name == "left"
    }
    expected = jax.jit(fusion.fuse, static_argnames="perturbed")(
        rule,
        expected_logits(fitted, inputs),
        frequencies(train[1]),
        perturbed="left",
        grams=grams,
    )
    np.testing.assert_allclose(model.predict_proba(inputs), np.exp(expected), rtol=1e-8, atol=1e-12)
    assert model.rule_ == rule
    assert model.perturbed_ == ("left",)
    assert set(model.grams_) == ({"left"} if rule.needs_grams else set())


def test_a_rule_of_ones_own_works(train, fitted, inputs):
    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Sharper(fusion.Rule):
        kind = "sharper"
        power: float

        def apply(self, inputs):
            return jax.nn.log_softmax(self.power * fusion.mean_fusion(inputs.logits))

    options: dict[str, Any] = {"columns": HALVES, "calibrate": False, "cv": "prefit"}
    mean, sharper = (
        changed(RobustLateFusion(fitted, **options), **given(rule), estimators=fitted)
        .fit(*train)
        .predict_proba(inputs)
        for rule in (fusion.Mean(), Sharper(2.0))
    )
    expected = mean**2 / (mean**2).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(sharper, expected, rtol=1e-9)


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


def held_out_logits(X, y, cv):
    """As scikit-learn has them, in the order of the folds."""
    order = np.concatenate([test for _, test in StratifiedKFold(cv).split(X, y)])
    probs: dict[str, Any] = {
        name: cross_val_predict(near(), X[:, HALVES[name]], y, cv=cv, method="predict_proba")
        for name in HALVES
    }
    return {name: np.log(np.maximum(p, 2**-52))[order] for name, p in probs.items()}, y[order]


def test_calibrates_on_held_out_predictions(train, inputs):
    X, y = train
    model = RobustLateFusion(
        {name: near() for name in HALVES}, columns=HALVES, **robust(0.1), cv=3
    ).fit(X, y)
    held_out, labels = held_out_logits(X, y, 3)

    def nll(log_temperature, logits):
        calibrated = scipy.special.log_softmax(logits / np.exp(log_temperature), axis=1)
        return -calibrated[np.arange(len(labels)), labels].mean()

    for name in HALVES:
        best: Any = scipy.optimize.minimize_scalar(
            nll, bounds=(-9, 9), args=(held_out[name],), method="bounded", options={"xatol": 1e-9}
        )
        assert model.temperatures_[name] == pytest.approx(np.exp(best.x), rel=1e-5)
    T = model.temperatures_
    logits = expected_logits({name: near().fit(X[:, HALVES[name]], y) for name in HALVES}, inputs)
    expected, _ = reference.robust_fusion(
        {name: z / T[name] for name, z in logits.items()},
        {name: (np.eye(10) - 0.1) / T[name] ** 2 for name in HALVES},
        frequencies(y),
        tuple(HALVES),
        gamma=0.1,
    )
    np.testing.assert_allclose(model.predict_proba(inputs), expected, rtol=1e-9, atol=1e-12)


def test_classifiers_that_never_err_keep_their_temperature(train):
    X, y = train
    two = y < 2
    model = RobustLateFusion({"all": linear()}, **robust(0.1)).fit(X[two], y[two])
    assert model.temperatures_ == {"all": 1.0}


def test_chooses_gamma_and_contamination_on_calibrated_held_out_predictions(train):
    X, y = train[0][:256], train[1][:256]
    model = RobustLateFusion(
        {name: near() for name in HALVES},
        columns=HALVES,
        perturbed="left",
        rule=ContaminatedRobust(0.0, 1.0),
        choose=("gamma", "contamination"),
        cv=3,
        random_state=7,
    ).fit(X, y)
    held_out, labels = held_out_logits(X, y, 3)
    T = model.temperatures_
    logits = {name: z / T[name] for name, z in held_out.items()}
    prior = frequencies(y)
    choose_gamma = jax.jit(calibration.choose_gamma, static_argnames="perturbed")
    choose_contamination = jax.jit(calibration.choose_contamination, static_argnames="perturbed")
    choice = choose_contamination(Contaminated(0.0), logits, labels, prior, perturbed="left")
    contamination = np.asarray(choice.contamination)
    chosen: Any = model.rule_
    assert chosen.contamination == contamination
    logits["left"] = np.log((1 - contamination) * np.exp(logits["left"]) + contamination * prior)
    grams = {"left": linalg.gram_spectrum((np.eye(10) - 0.1) / T["left"] ** 2)}
    key = jax.random.key(np.random.RandomState(7).randint(2**31 - 1))
    choice = choose_gamma(Robust(1.0), logits, labels, prior, key, perturbed="left", grams=grams)
    assert chosen.gamma == choice.gamma
    assert 0 < chosen.contamination < 1
    assert chosen.gamma < 1
    assert fusion.rule_from_json(chosen.to_json()) == chosen


def test_chooses_the_contamination_of_a_cascade(train, inputs):
    X, y = train[0][:256], train[1][:256]
    model = RobustLateFusion(
        {name: near() for name in HALVES},
        columns=HALVES,
        perturbed="left",
        rule=Cascade(0.9, tempering=0.7),
        choose=("contamination",),
        calibrate=False,
        cv=3,
    ).fit(X, y)
    held_out, labels = held_out_logits(X, y, 3)
    choice = jax.jit(calibration.choose_contamination, static_argnames="perturbed")(
        Cascade(0.9, tempering=0.7), held_out, labels, frequencies(y), perturbed="left"
    )
    assert model.rule_ == Cascade(0.9, 0.7, float(choice.contamination))
    assert model.grams_ == {}
    same = changed(model, rule=model.rule_, choose=()).fit(X, y)
    np.testing.assert_array_equal(same.predict_proba(inputs), model.predict_proba(inputs))


def test_withstands_noise_better_than_statistical_fusion(digits, train):
    X, y = digits
    noisy = X.copy()
    noisy[:, HALVES["left"]] = np.random.default_rng(0).random((len(X), 32))
    validation, test = slice(600, 856), slice(856, None)
    classifiers = {name: linear().fit(train[0][:, HALVES[name]], train[1]) for name in HALVES}

    def accuracies(**params):
        model = RobustLateFusion(
            classifiers, columns=HALVES, perturbed="left", cv="prefit", random_state=0, **params
        ).fit(X[validation], y[validation])
        return model.score(X[test], y[test]), model.score(noisy[test], y[test])

    clean, perturbed = accuracies(**given(Statistical()))
    robust_clean, robust_perturbed = accuracies()
    bounded_clean, bounded_perturbed = accuracies(rule=Contaminated(0.0), choose=("contamination",))
    assert robust_perturbed > perturbed + 0.2
    assert robust_clean > clean - 0.1
    assert bounded_perturbed > perturbed + 0.2
    assert bounded_clean > clean - 0.02


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


def test_sparse_coefficients(train, inputs):
    X, y = train
    classifier = linear().fit(X, y)
    model = RobustLateFusion({"all": classifier}, **robust(0.1), calibrate=False, cv="prefit")
    expected = model.fit(X, y).predict_proba(inputs)
    classifier.sparsify()
    actual = model.fit(X, y).predict_proba(inputs)
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-14)


def test_labels_of_any_kind(train, fused, fitted, inputs):
    X, y = train
    names = np.array([f"class {9 - digit}" for digit in range(10)])
    classifiers = {m: clone(fitted[m]) for m in fitted}
    model = RobustLateFusion(classifiers, columns=HALVES, **PLAIN).fit(X, names[y])
    np.testing.assert_array_equal(model.classes_, np.sort(names))
    np.testing.assert_array_equal(model.predict(inputs), names[fused.predict(inputs)])


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


def test_samples_do_not_depend_on_their_batch(fused, digits, train, fitted):
    inputs = digits[0][600:900]
    model = changed(fused, estimators=fitted, **robust(0.01)).fit(*train)
    together = model.predict_proba(inputs)
    assert len(inputs) > 256
    np.testing.assert_allclose(together.sum(axis=1), 1, rtol=1e-15)
    for rows in (slice(0, 1), slice(100, 103), slice(0, 256)):
        np.testing.assert_allclose(model.predict_proba(inputs[rows]), together[rows], rtol=1e-12)


def test_prefit_classifiers_are_not_trained(train, fitted):
    X, y = train
    few = y != 9
    prior = frequencies(y)
    model = RobustLateFusion(
        fitted, columns=HALVES, cv="prefit", class_prior=prior, perturbed="left", **robust(0.1)
    ).fit(X[few], y[few])  # validation data need not have all classes
    assert model.estimators_ == fitted
    np.testing.assert_array_equal(model.class_prior_, prior)
    assert model.predict_proba(X).shape == (600, 10)
    with pytest.raises(ValueError, match=r"y lacks the classes \[9\].*give class_prior"):
        model.set_params(class_prior=None).fit(X[few], y[few])


def test_splits_may_hold_out_a_part_only(train):
    X, y = train
    fold = np.full(len(y), -1)
    fold[400:] = 0
    model = RobustLateFusion({"all": near()}, **robust(0.1), cv=PredefinedSplit(fold)).fit(X, y)
    half = near().fit(X[:400], y[:400])
    prefit = RobustLateFusion({"all": half}, **robust(0.1), cv="prefit").fit(X[400:], y[400:])
    assert model.temperatures_ == prefit.temperatures_
    assert model.estimators_["all"].n_samples_fit_ == 600


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
        ({"rule": Scaled(0.3)}, r"can be chosen for the rule scaled, \[\], got \('gamma',\)"),
        (
            {"choose": ("contamination",)},
            r"can be chosen for the rule robust, \['gamma'\], got \('contamination',\)",
        ),
        (
            {"rule": Cascade(0.9), "choose": ("confidence",)},
            r"chosen for the rule cascade, \['contamination'\], got \('confidence',\)",
        ),
        ({"choose": "gamma"}, "choose must be a tuple of .* got 'gamma'"),
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


def test_what_is_not_fitted(train, fitted):
    with pytest.raises(NotFittedError, match="RobustLateFusion instance is not fitted yet"):
        RobustLateFusion(fitted).predict(train[0])
    with pytest.raises(NotFittedError, match="KNeighborsClassifier instance is not fitted yet"):
        RobustLateFusion({"left": near()}, cv="prefit").fit(*train)


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
        model = RobustLateFusion(fitted, **options).fit(holed, y)
        whole = {m: x[~lacks] for m, x in arrays.items()}
        of_whole = RobustLateFusion(fitted, **options, class_prior=model.class_prior_)
        of_whole.fit(whole, y[~lacks])
        assert model.temperatures_["left"] == pytest.approx(of_whole.temperatures_["left"])
        of_all = RobustLateFusion(fitted, **options).fit(arrays, y)
        assert model.temperatures_["right"] == pytest.approx(of_all.temperatures_["right"])
        assert model.rule_ == of_whole.rule_

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
            halves_of().fit(X, y)
