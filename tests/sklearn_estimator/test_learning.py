from typing import Any

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from sklearn.model_selection import PredefinedSplit, StratifiedKFold, cross_val_predict

from jacfuse_jax import calibration, fusion, linalg
from jacfuse_jax.fusion import Cascade, Contaminated, ContaminatedRobust, Robust, Statistical
from jacfuse_jax.sklearn import RobustLateFusion
from tests import reference
from tests.sklearn_estimator.halves import (
    HALVES,
    changed,
    expected_logits,
    frequencies,
    given,
    linear,
    near,
    robust,
)


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


def test_splits_may_repeat_rows(train):
    X, y = train
    drawn = np.random.default_rng(0).integers(400, size=len(y))
    test = np.arange(400, len(y))
    model = RobustLateFusion({"all": near()}, **robust(0.1), cv=[(drawn, test)]).fit(X, y)
    resampled = near().fit(X[drawn], y[drawn])
    prefit = RobustLateFusion({"all": resampled}, **robust(0.1), cv="prefit")
    assert model.temperatures_ == prefit.fit(X[test], y[test]).temperatures_
