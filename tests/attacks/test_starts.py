"""Runs that start where the caller says."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import attacks

BATCH, FEATURES, CLASSES = 32, 6, 5
KEY = jax.random.key(0)
rng = np.random.default_rng(0)
FIRST = 3 * rng.normal(size=(FEATURES, 16)) / FEATURES**0.5
SECOND = 3 * rng.normal(size=(16, CLASSES)) / 4
X = rng.normal(size=(BATCH, FEATURES))
LABELS = (np.tanh(X @ FIRST) @ SECOND).argmax(axis=1)


def logits_by(xp, inputs):
    return xp.tanh(inputs["x"] @ FIRST) @ SECOND


def log_prob_fn(inputs):
    return jax.nn.log_softmax(logits_by(jnp, inputs))


def is_misclassified(x):
    return logits_by(np, {"x": np.asarray(x)}).argmax(axis=1) != LABELS


def log_prob_of_label(inputs):
    log_probs = np.asarray(log_prob_fn(inputs))
    return log_probs[np.arange(BATCH), LABELS]


@functools.partial(jax.jit, static_argnames=("attack_fn", "static"))
def compiled(attack_fn, x, key, numbers, static):
    return attack_fn(log_prob_fn, {"x": x}, LABELS, key, **numbers, **dict(static))["x"]


def attack(attack_fn, epsilon, *, initial=None, relative_step_size, seed=0, valid_range=None,
           **static: Any):  # fmt: skip
    numbers = {
        "epsilon": {"x": epsilon},
        "initial": None if initial is None else {"x": initial},
        "relative_step_size": relative_step_size,
        "valid_range": None if valid_range is None else {"x": valid_range},
    }
    options = tuple(sorted(static.items()))
    return np.asarray(compiled(attack_fn, X, jax.random.key(seed), numbers, options))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack_fn", [attacks.pgd, attacks.apgd])
def test_what_a_smaller_budget_has_found_is_not_lost_in_a_larger_one(attack_fn, norm):
    options: Any = {"norm": norm, "loss": "margin", "num_steps": 2, "relative_step_size": 1.0}
    found, alone = None, []
    rates = []
    for seed, epsilon in enumerate(np.linspace(0.05, 0.6, 8)):
        alone.append(is_misclassified(attack(attack_fn, epsilon, seed=seed, **options)))
        before = np.zeros(BATCH, bool) if found is None else is_misclassified(found)
        initial = X if found is None else found
        found = attack(attack_fn, epsilon, initial=initial, seed=seed, **options)
        now = is_misclassified(found)
        assert (now >= before).all()
        rates.append(now.mean())
        order = {"linf": np.inf, "l2": 2}[norm]
        assert (np.linalg.norm(found - X, order, axis=1) <= epsilon * (1 + 1e-12)).all()
    assert rates[0] < rates[-1]
    assert (np.diff(np.array(alone, int), axis=0) < 0).any()  # by themselves, they lose some


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack_fn", [attacks.pgd, attacks.apgd])
def test_a_start_is_projected_and_is_a_candidate_itself(attack_fn, norm):
    radii = np.where(np.arange(BATCH) % 2 == 0, 0.1, 1e3)
    start = X + rng.normal(size=X.shape)
    options: Any = {"norm": norm, "num_steps": 1, "relative_step_size": 0.0}
    found = attack(attack_fn, radii, initial=start, valid_range=(-1.5, np.inf), **options)
    delta = start - X
    if norm == "linf":
        delta = np.clip(delta, -radii[:, None], radii[:, None])
    else:
        delta *= np.minimum(1, radii / np.linalg.norm(delta, axis=1))[:, None]
    projected = np.maximum(X + delta, np.minimum(X, -1.5))
    is_stronger = log_prob_of_label({"x": projected}) < log_prob_of_label({"x": X})
    if attack_fn is attacks.apgd:  # where success comes first
        is_stronger = np.where(is_misclassified(projected), True, is_stronger)
    assert 0.3 < is_stronger.mean() < 1
    expected = np.where(is_stronger[:, None], projected, X)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    is_within = (np.abs(delta) == np.abs(start - X)).all(axis=1) & (start > -1.5).all(axis=1)
    kept = is_within & is_stronger
    assert kept.any()
    np.testing.assert_array_equal(found[kept], start[kept])


def test_later_restarts_are_those_of_attacks_without_a_start():
    options: Any = {"norm": "linf", "num_steps": 1, "relative_step_size": 0.0}
    first = attack(attacks.pgd, 0.3, **options)
    three = attack(attacks.pgd, 0.3, num_restarts=3, **options)
    from_clean = attack(attacks.pgd, 0.3, initial=X, num_restarts=3, **options)
    is_later = (three != first).any(axis=1)
    assert 0.2 < is_later.mean() < 1
    np.testing.assert_array_equal(from_clean[is_later], three[is_later])
    assert (from_clean[~is_later] != three[~is_later]).any()


def test_a_start_serves_all_targets_of_the_targeted_ratio():
    start = attack(attacks.apgd, 0.3, loss="margin", num_steps=20, relative_step_size=2.0)
    found = attack(
        attacks.apgd, 0.31, initial=start, loss="targeted_dlr", num_steps=1, relative_step_size=0.0
    )
    assert (is_misclassified(found) >= is_misclassified(start)).all()
    assert is_misclassified(start).any()


def test_a_start_of_one_precision_is_cast_to_that_of_the_input():
    x = X.astype(np.float32)
    options: Any = {"epsilon": {"x": 0.1}, "num_steps": 1, "initial": {"x": X + 0.05}}

    def in_single(inputs):
        return jax.nn.log_softmax(inputs["x"] @ SECOND[:FEATURES].astype(np.float32))

    assert attacks.pgd(in_single, {"x": x}, LABELS, KEY, **options)["x"].dtype == np.float32


def test_misuse():
    inputs = {"x": X, "y": X}

    def run(initial, attack_fn=attacks.pgd, **options: Any):
        epsilon = {"x": 0.1, "y": 0.1}
        attack_fn(log_prob_fn, inputs, LABELS, KEY, epsilon=epsilon, initial=initial, **options)

    for initial in ({"x": X}, {"x": X, "y": X, "z": X}):
        with pytest.raises(
            ValueError, match=r"initial must name the modalities with a budget, \['x', 'y'\], got"
        ):
            run(initial)
    with pytest.raises(ValueError, match=r"initial\['y'\] must have shape \(32, 6\), .* \(3, 6\)"):
        run({"x": X, "y": X[:3]}, attacks.apgd)
    with pytest.raises(TypeError, match=r"initial must be {modality: \(B, ...\)}, got ndarray"):
        run(X)
    with pytest.raises(ValueError, match=r"relative_step_size must lie in \[0, inf\), got -1"):
        run(inputs, attacks.apgd, relative_step_size=-1)
