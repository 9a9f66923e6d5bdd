import json
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from sklearn.model_selection import (
    GroupKFold,
    PredefinedSplit,
    RepeatedStratifiedKFold,
    StratifiedKFold,
    cross_val_predict,
)

from jacfuse_jax import fusion, linalg, selection
from jacfuse_jax.fusion import Cascade, Robust
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


def by_hand(candidates, held_out, labels, groups=None, *, share, against, seed, baselines=()):
    """The choice of the library's functions."""
    suspects = selection.Suspects.of("left")
    prior = frequencies(labels)
    arguments = (held_out, labels, prior, suspects)
    found = selection.measure(
        [selection.Candidate(rule) for rule in (*baselines, *candidates)],
        *arguments,
        groups=groups,
        grams={"left": linalg.spectrum_from_kernel(np.eye(10) - 0.1)},
        seed=seed,
    )
    return selection.choose(
        found[len(baselines) :],
        share,
        against=against,
        baselines=found[: len(baselines)],
        groups=groups,
        seed=seed,
    )


@pytest.mark.parametrize(
    ("rule", "choose", "against"),
    [
        (Cascade(0.9, tempering=0.7), ("confidence",), "anything"),
        (Robust(0.1), ("gamma",), "faults"),
    ],
)
def test_chooses_parameters_on_held_out_predictions(train, rule, choose, against):
    X, y = train[0][:256], train[1][:256]
    model = RobustLateFusion(
        {name: near() for name in HALVES},
        columns=HALVES,
        perturbed="left",
        rule=rule,
        choose=choose,
        attack_share=0.4,
        against=against,
        calibrate=False,
        cv=3,
        random_state=7,
    ).fit(X, y)
    held_out, labels = held_out_logits(X, y, 3)
    expected = by_hand(
        selection.grid(rule, choose),
        held_out,
        labels,
        share=0.4,
        against=against,
        seed=np.random.RandomState(7).randint(2**31 - 1),
        baselines=selection.BASELINES,
    )
    assert model.rule_ == expected.rule
    choice: Any = model.choice_
    assert choice["expected"] == pytest.approx(expected.worth.expected)
    assert set(choice["baselines"]) == {"statistical", "cascade c=0 t=1"}
    assert (model.grams_ == {}) == (not rule.needs_grams)


@pytest.mark.slow
def test_auto_is_the_rule_that_is_worth_most(digits, train):
    X, y = digits
    noisy = X.copy()
    noisy[:, HALVES["left"]] = np.random.default_rng(0).random((len(X), 32))
    validation, test = slice(600, 1200), slice(1200, None)
    classifiers = {name: linear().fit(train[0][:, HALVES[name]], train[1]) for name in HALVES}

    def fit(**params):
        model = RobustLateFusion(
            classifiers, columns=HALVES, perturbed="left", cv="prefit", random_state=0, **params
        )
        return model.fit(X[validation], y[validation])

    def worth(model, share):
        scores = model.score(X[test], y[test]), model.score(noisy[test], y[test])
        return (1 - share) * scores[0] + share * scores[1]

    others = [fit(**given(rule)) for rule in selection.BASELINES]
    for share in (0.1, 0.5):
        model = fit(rule="auto", attack_share=share)
        # A point is one and a half standard deviations of 597 rows.
        assert worth(model, share) >= max(worth(other, share) for other in others) - 0.01
        choice: Any = model.choice_
        assert choice["num_candidates"] > 50
        assert choice["expected"] >= max(x["expected"] for x in choice["baselines"].values())
    # What was chosen goes on as JSON, alone or with what it was chosen for.
    again = fit(rule=model.rule_.to_json())
    np.testing.assert_array_equal(again.predict_proba(noisy), model.predict_proba(noisy))


def chosen(name, scale):
    """A rule of chosen.json."""
    return {
        "perturbed": [name],
        "share": 0.1,
        "against": "faults",
        "rule": {"schema": 1, "rule": "scaled", "scale": scale},
        "expected": 0.5,
    }


def test_chosen_rules_in_json_say_what_is_perturbed(fitted, train):
    entries = [chosen("left", 0.25), chosen("right", 0.75)]
    text = json.dumps({"schema": 1, "chosen": entries})
    model = RobustLateFusion(fitted, columns=HALVES, cv="prefit", rule=text, perturbed="right")
    assert model.fit(*train).rule_ == fusion.Scaled(0.75)
    one = json.dumps({"schema": 1, "chosen": entries[:1]})
    model = changed(model, estimators=fitted, rule=one, perturbed=None).fit(*train)
    assert (model.rule_, model.perturbed_) == (fusion.Scaled(0.25), ("left",))
    assert model.choice_ is None
    with pytest.raises(ValueError, match="2 of its rules fit; ask for one of: perturbed=left"):
        changed(model, estimators=fitted, rule=text).fit(*train)


def test_chosen_rules_are_for_their_classes(fitted, train):
    content = {"schema": 1, "chosen": [chosen("left", 0.25)], "classes": list(range(10))}
    model = RobustLateFusion(fitted, columns=HALVES, cv="prefit", rule=json.dumps(content))
    assert model.fit(*train).rule_ == fusion.Scaled(0.25)
    content["classes"] = list(range(10))[::-1]
    with pytest.raises(ValueError, match="rules were chosen for other classes, or another order"):
        changed(model, estimators=fitted, rule=json.dumps(content)).fit(*train)


def test_repeated_splits_are_no_new_rows(train):
    X, y = train[0][:200], train[1][:200]

    def interval(cv) -> Any:
        model = RobustLateFusion(
            {name: near() for name in HALVES},
            columns=HALVES,
            perturbed="left",
            rule=Cascade(0.9),
            choose=("confidence",),
            against="anything",
            cv=cv,
            random_state=0,
        )
        return model.fit(X, y).choice_

    once = interval(StratifiedKFold(3))
    often = interval(RepeatedStratifiedKFold(n_splits=3, n_repeats=6, random_state=0))
    # Six times as many independent rows would have 0.41 of it.
    assert often["high"] - often["low"] > 0.5 * (once["high"] - once["low"])


def test_groups_reach_folds_and_intervals(train):
    X, y = train[0][:256], train[1][:256]
    groups = np.arange(256) // 8
    model = RobustLateFusion(
        {name: near() for name in HALVES},
        columns=HALVES,
        perturbed="left",
        rule=Cascade(0.9),
        choose=("confidence",),
        against="anything",
        calibrate=False,
        cv=GroupKFold(4),
        random_state=1,
    ).fit(X, y, groups=groups)
    splits = list(GroupKFold(4).split(X, y, groups))
    order = np.concatenate([test for _, test in splits])
    held_out = {
        name: np.concatenate(
            [
                np.log(np.maximum(near().fit(x[a], y[a]).predict_proba(x[b]), 2**-52))
                for a, b in splits
            ]
        )
        for name, columns in HALVES.items()
        for x in [X[:, columns]]
    }
    expected = by_hand(
        selection.grid(Cascade(0.9), ["confidence"]),
        held_out,
        y[order],
        groups[order],
        share=0.1,
        against="anything",
        seed=np.random.RandomState(1).randint(2**31 - 1),
        baselines=selection.BASELINES,
    )
    assert model.rule_ == expected.rule
    choice: Any = model.choice_
    assert (choice["low"], choice["high"]) == pytest.approx((expected.low, expected.high))


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
