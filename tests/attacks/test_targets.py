"""Attacks that drive samples to given classes, on linear classifiers whose boundaries are known."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.special import log_softmax

from jacfuse_jax import attacks
from jacfuse_jax.attacks import losses

DUAL = {"linf": 1, "l2": 2}  # order of the dual norm
KEY = jax.random.key(0)
rng = np.random.default_rng(0)


class Ladder:
    """Three classes in turn along one direction: below -1, from there to 1, above 1.

    A step across one boundary has the length of the margin over the dual norm of the direction.
    """

    def __init__(self, dtype="float64"):
        self.direction = rng.normal(size=5).astype(dtype)
        x = rng.normal(size=(6, 5))
        away = np.array([-3.0, -2.0, 0.5, -0.3, 4.0, 2.0]) - x @ self.direction
        x += away[:, None] * self.direction / (self.direction**2).sum()
        self.inputs = {"x": x.astype(dtype)}
        self.labels = np.array([0, 0, 1, 1, 2, 2])
        self.targets = np.array([1, 2, 0, 2, 1, 0])

    def log_probs(self, inputs):
        place = inputs["x"] @ self.direction
        return jax.nn.log_softmax(jnp.stack([-place, jnp.ones_like(place), place], axis=1))

    def predict(self, x):
        return np.digitize(np.asarray(x, float) @ self.direction.astype(float), [-1, 1])

    def radii(self, norm):
        """The distance of every sample to its target."""
        place = self.inputs["x"].astype(float) @ self.direction.astype(float)
        low, high = np.array([[-np.inf, -1], [-1, 1], [1, np.inf]])[self.targets].T
        distance = np.maximum(low - place, place - high)
        return distance / np.linalg.norm(self.direction.astype(float), DUAL[norm])


def attack(attack_fn, model, epsilon, **options: Any):
    """Under jit, where labels, targets and radii are traced."""

    @jax.jit
    def perturb(inputs, labels, targets, epsilon):
        return attack_fn(
            model.log_probs,
            inputs,
            labels,
            *(() if attack_fn is attacks.fgm else (KEY,)),
            epsilon={"x": epsilon},
            targets=targets,
            **options,
        )["x"]

    def run(epsilon):
        return np.asarray(perturb(model.inputs, model.labels, model.targets, epsilon))

    return [run(e) for e in epsilon] if isinstance(epsilon, list) else run(epsilon)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("attack_fn", "options"),
    [
        (attacks.pgd, {"relative_step_size": 0.2}),
        (attacks.pgd, {"relative_step_size": 0.2, "loss": "margin"}),
        (attacks.apgd, {"loss": "margin"}),
    ],
)
def test_targets_are_reached_just_above_their_distance_and_not_below(attack_fn, options, norm):
    dtype = "float64" if "loss" in options else "float32"
    model = Ladder(dtype)
    radii = model.radii(norm).astype(dtype)
    above, below = attack(
        attack_fn, model, [radii * 1.02, radii * 0.98], norm=norm, num_steps=40, **options
    )
    assert above.dtype == dtype
    np.testing.assert_array_equal(model.predict(above), model.targets)
    assert (model.predict(below) != model.targets).all()


class Linear:
    """A linear classifier with classes in general position."""

    def __init__(self, num_classes=4, batch_size=8, features=5):
        rng = np.random.default_rng(1)
        self.kernel = rng.normal(size=(features, num_classes))
        self.inputs = {"x": rng.normal(size=(batch_size, features))}
        self.labels = (self.inputs["x"] @ self.kernel).argmax(axis=1)
        shift = rng.integers(1, num_classes, size=batch_size)
        self.targets = (self.labels + shift) % num_classes

    def log_probs(self, inputs):
        return jax.nn.log_softmax(inputs["x"] @ self.kernel)

    def log_probs_in_numpy(self, x):
        return log_softmax(np.asarray(x) @ self.kernel, axis=1)

    def target_margin(self, x):
        z = self.log_probs_in_numpy(x)
        rows = np.arange(len(z))
        of_target = z[rows, self.targets]
        z[rows, self.targets] = -np.inf
        return of_target - z.max(axis=1)


def test_targets_in_general_position_are_reached_where_a_linear_program_does():
    model = Linear()
    radii = []
    for x, target in zip(model.inputs["x"], model.targets, strict=True):
        # The least r with |delta_i| <= r and z_k <= z_target for all k.
        differences = np.delete(model.kernel.T - model.kernel[:, target], target, axis=0)
        ball = np.concatenate([np.eye(5), -np.eye(5)])
        constraints = np.block([[differences, np.zeros((3, 1))], [ball, -np.ones((10, 1))]])
        limits = np.concatenate([-differences @ x, np.zeros(10)])
        found = linprog(np.eye(6)[5], constraints, limits, bounds=(None, None))
        radii.append(found.x[5])
    radii = np.array(radii)
    above, below = attack(attacks.apgd, model, [radii * 1.1, radii * 0.99], loss="margin")
    assert (model.target_margin(above) > 0).all()
    assert (model.target_margin(below) < 0).all()


def test_one_that_is_the_target_comes_before_one_of_higher_loss():
    model = Linear()

    def against_target(log_probs, _, targets):
        return -jnp.take_along_axis(log_probs, targets[:, None], axis=1)[:, 0]

    model.targets[:3] = model.labels[:3]  # classified as such already
    options = {"num_steps": 5, "loss": against_target}
    found, early = (
        attack(attacks.pgd, model, 1.0, **options, early_stop=early_stop)
        for early_stop in (False, True)
    )
    assert (model.target_margin(found)[:3] > 0).all()
    assert not np.array_equal(found[:3], model.inputs["x"][:3])
    np.testing.assert_array_equal(early[:3], model.inputs["x"][:3])


def test_a_loss_that_is_a_function_gets_labels_and_targets():
    model = Linear()
    named, function = (
        attack(attacks.pgd, model, 0.5, num_steps=3, loss=loss)
        for loss in ("dlr", losses.targeted_dlr)
    )
    np.testing.assert_allclose(named, function, rtol=1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr"])
def test_a_target_that_is_the_label_makes_it_more_certain(loss):
    model = Linear()
    model.targets = model.labels

    def certainty_fn(x):
        if loss == "dlr":  # which is relative to the other classes
            return -losses.dlr(model.log_probs({"x": x}), model.labels)
        return model.target_margin(x)

    before = np.asarray(certainty_fn(model.inputs["x"]))
    for attack_fn in (attacks.pgd, attacks.apgd):
        found = attack(attack_fn, model, 0.2, loss=loss, num_steps=10)
        assert (np.asarray(certainty_fn(found)) > before).all()


def test_of_two_classes_the_other_one_is_the_target_of_attacks_without_targets():
    model = Linear(num_classes=2)
    x = model.inputs["x"]
    labels = model.labels.copy()
    labels[0] = 1 - labels[0]  # misclassified
    near: Any = {"epsilon": {"x": 0.5}}
    options: dict[Any, dict[str, Any]] = {
        attacks.fgm: near,
        attacks.pgd: {**near, "loss": "margin", "num_steps": 5},
        attacks.apgd: {**near, "loss": "margin", "num_steps": 5},
        attacks.square: {**near, "num_queries": 10},
        attacks.random_search: {**near, "num_queries": 10},
        attacks.adversarial_missing: {
            "fraction": {"x": 0.5}, "fill_value": {"x": 0.0}, "num_steps": 3
        },
        attacks.hop_skip_jump: {
            "epsilon": {"x": 5.0}, "valid_range": {"x": (-9.0, 9.0)}, "num_iterations": 2,
            "num_draws": 5, "num_halvings": 8, "num_starts": 10,
        },
    }  # fmt: skip

    @jax.jit
    def run_all(**targets):
        return {
            attack_fn.__name__: attack_fn(
                model.log_probs,
                model.inputs,
                labels,
                *(() if attack_fn is attacks.fgm else (KEY,)),
                **keywords,
                **targets,
            )["x"]
            for attack_fn, keywords in options.items()
        }

    expected = run_all()
    for name, found in run_all(targets=1 - labels).items():
        np.testing.assert_allclose(found, expected[name], atol=1e-12, err_msg=name)
        assert (np.asarray(found) != x).any(), name


def test_random_search_finds_the_best_corner_for_the_target():
    model = Linear()
    x = model.inputs["x"]
    corners = np.array(np.meshgrid(*[(-1, 1)] * 5)).reshape(5, -1).T
    margins = [model.target_margin(x), *(model.target_margin(x + 0.5 * c) for c in corners)]
    # 500 draws miss one of 32 corners with a probability of e^-15 a sample.
    found = attack(attacks.random_search, model, 0.5, num_queries=500)
    np.testing.assert_allclose(model.target_margin(found), np.max(margins, axis=0), rtol=1e-9)


def test_square_comes_close_to_the_best_corner_for_the_target():
    model = Ladder()
    radii = 1.1 * model.radii("linf")
    found = attack(attacks.square, model, radii, num_queries=300)
    np.testing.assert_array_equal(model.predict(found), model.targets)
    assert (np.abs(found - model.inputs["x"]).max(axis=1) <= radii * (1 + 1e-12)).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_hop_skip_jump_finds_the_distance_to_the_target(norm):
    model = Ladder()
    radii = model.radii(norm)
    options = {"norm": norm, "valid_range": {"x": (-5.0, 5.0)}}
    found = attack(attacks.hop_skip_jump, model, 100.0, **options)
    np.testing.assert_array_equal(model.predict(found), model.targets)
    distances = np.linalg.norm(found - model.inputs["x"], {"linf": np.inf, "l2": 2}[norm], axis=1)
    np.testing.assert_array_less(radii * (1 - 1e-9), distances)
    np.testing.assert_array_less(distances, radii * 1.15)


def test_missing_entries_raise_the_margin_of_the_target():
    model = Linear()
    x = model.inputs["x"]

    def fill(targets):
        options: Any = {"fraction": {"x": 0.4}, "fill_value": {"x": 2.0}, "num_steps": 2}
        arguments = (model.log_probs, model.inputs, model.labels, KEY)
        return attacks.adversarial_missing(*arguments, **options, targets=targets)["x"]

    before = model.target_margin(x)
    found, towards_any = (model.target_margin(fill(t)) for t in (model.targets, None))
    assert (found >= before).all()
    assert (found > before).mean() > 0.5
    assert found.mean() > towards_any.mean()


def test_known_and_traced_targets_give_the_same():
    model = Linear()
    for attack_fn in (attacks.fgm, functools.partial(attacks.apgd, key=KEY, num_steps=3)):
        options: Any = {"epsilon": {"x": 0.3}, "targets": model.targets}
        known = attack_fn(model.log_probs, model.inputs, model.labels, **options)["x"]

        @jax.jit
        def traced(targets, attack_fn=attack_fn):
            keywords: Any = {"epsilon": {"x": 0.3}, "targets": targets}
            return attack_fn(model.log_probs, model.inputs, model.labels, **keywords)["x"]

        np.testing.assert_allclose(traced(model.targets), known, atol=1e-12)


def test_misuse():
    model = Linear(num_classes=3)

    def run(attack_fn, **options: Any):
        arguments = (model.log_probs, model.inputs, model.labels, KEY)
        attack_fn(*arguments, epsilon={"x": 0.1}, **{"targets": model.targets, **options})

    with pytest.raises(ValueError, match=r"\"targeted_dlr\" chooses targets itself; .* loss=\"dlr"):
        run(attacks.apgd, loss="targeted_dlr")
    with pytest.raises(ValueError, match=r"K >= 4, got \(8, 3\)"):
        run(attacks.pgd, loss="dlr")
    with pytest.raises(ValueError, match=r"targets must have shape \(8,\), one class a sample"):
        run(attacks.square, targets=model.targets[:3])
    with pytest.raises(TypeError, match="targets must be integer, got float64"):
        run(attacks.random_search, targets=model.targets.astype(float))
