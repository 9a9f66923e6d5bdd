import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jacfuse_jax.attacks import _budget, _starts, apgd, pgd
from jacfuse_jax.attacks._ascent import checkpoints_of
from tests.attacks.classifiers import (
    BATCH,
    SOUND,
    TRACES,
    Classifiers,
    attack_classifiers,
    fused_log_probs,
    perturbation_norms,
    run,
    vertices,
)

run_apgd: Any = functools.partial(run, apgd, num_steps=10)


class Network:
    """Random weights of a tanh network with one hidden layer, so that the loss has many maxima."""

    def __init__(self, num_classes=5, batch=64, width=16, features=6):
        rng = np.random.default_rng(0)
        self.first = 3 * rng.normal(size=(features, width)) / features**0.5
        self.second = 3 * rng.normal(size=(width, num_classes)) / width**0.5
        self.inputs = {"image": rng.normal(size=(batch, features))}
        self.labels = self.log_probs(self.inputs).argmax(axis=1)

    def log_probs(self, inputs):
        return log_softmax(np.tanh(inputs["image"] @ self.first) @ self.second, axis=1)

    def loss_and_gradient(self, x, label):
        """The cross-entropy of one sample, and its derivative in the input, by hand."""
        hidden = np.tanh(x @ self.first)
        log_probs = log_softmax(hidden @ self.second)
        residual = np.exp(log_probs) - np.eye(len(log_probs))[label]
        return -log_probs[label], self.first @ ((1 - hidden**2) * (self.second @ residual))

    def rank(self, adversarial):
        """Per sample whether it is misclassified, and the cross-entropy."""
        log_probs = self.log_probs(adversarial)
        loss = -np.take_along_axis(log_probs, self.labels[:, None], axis=1)[:, 0]
        return log_probs.argmax(axis=1) != self.labels, loss


@functools.partial(jax.jit, static_argnames=("attack", "static"))
def _attack_network(attack, first, second, inputs, labels, key, epsilon, static):
    def log_prob_fn(inputs):
        return jax.nn.log_softmax(jnp.tanh(inputs["image"] @ first) @ second)

    return attack(log_prob_fn, inputs, labels, key, epsilon={"image": epsilon}, **dict(static))


def attack_network(attack, network, epsilon, seed=0, **static: Any):
    """One program for all budgets and seeds."""
    arguments = (network.first, network.second, network.inputs, network.labels)
    options = tuple(sorted(static.items()))
    found = _attack_network(attack, *arguments, jax.random.key(seed), epsilon, options)
    return {"image": np.asarray(found["image"])}


def by_the_paper(network, start, epsilon, norm, num_steps, relative_step_size=2.0):
    """Algorithm 1 for every sample in turn in NumPy; returns the input of highest loss."""
    found = []
    for b, clean in enumerate(network.inputs["image"]):

        def loss_and_gradient(x, b=b):
            return network.loss_and_gradient(x, network.labels[b])

        def project(x, clean=clean):
            delta = x - clean
            if norm == "linf":
                return clean + np.clip(delta, -epsilon, epsilon)
            return clean + delta * min(1, epsilon / np.linalg.norm(delta))

        p = [0, 0.22]
        while p[-1] < 1:
            p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
        checkpoints = [int(np.ceil(round(share * num_steps, 9))) for share in p]

        x = [start[b]]
        values, gradient = [loss_and_gradient(x[0])[0]], loss_and_gradient(x[0])[1]
        highest = (values[0], x[0], gradient)
        eta = eta_before = relative_step_size * epsilon
        highest_before, rises = values[0], []
        for k in range(num_steps):
            if k and k in checkpoints:
                window = k - checkpoints[checkpoints.index(k) - 1]
                halve = sum(rises) < 0.75 * window
                halve |= eta == eta_before and highest[0] == highest_before
                eta_before, highest_before, rises = eta, highest[0], []
                if halve:
                    eta /= 2
                    values[-1], x[-1], gradient = highest
            direction = np.sign(gradient)
            if norm == "l2":
                direction = gradient / np.linalg.norm(gradient)
            z = project(x[-1] + eta * direction)
            x.append(z if k == 0 else project(x[-1] + 0.75 * (z - x[-1]) + 0.25 * (x[-1] - x[-2])))
            value, gradient = loss_and_gradient(x[-1])
            rises.append(value > values[-1])
            values.append(value)
            if value > highest[0]:
                highest = (value, x[-1], gradient)
        found.append(highest[1])
    return np.array(found)


def test_checkpoints_are_those_of_the_paper():
    assert checkpoints_of(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints_of(5) == [0, 2, 3, 4]
    assert checkpoints_of(1) == [0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
class TestEveryNorm:
    @pytest.mark.parametrize("relative_step_size", [2.0, 0.5])
    def test_follows_the_algorithm_of_the_paper(self, norm, relative_step_size):
        network = Network(batch=12, num_classes=2)  # the highest loss is misclassified if any is
        epsilon = 0.5
        budget = _budget.make_budget(
            lambda _: jnp.zeros((12, 2)),
            network.inputs,
            network.labels,
            {"image": epsilon},
            norm,
            None,
        )
        start = np.asarray(_starts.random_start(jax.random.key(3), budget, norm)["image"])
        expected = by_the_paper(
            network, start, epsilon, norm, num_steps=40, relative_step_size=relative_step_size
        )
        options = {} if relative_step_size == 2 else {"relative_step_size": relative_step_size}
        found = attack_network(apgd, network, epsilon, seed=3, norm=norm, num_steps=40, **options)
        # Around a maximum, the rounding of the loss hides moves of the order of sqrt(eps).
        atol = 4 * np.finfo(np.float64).eps ** 0.5
        np.testing.assert_allclose(found["image"], expected, rtol=0, atol=atol)

    def test_is_stronger_than_pgd_with_as_many_gradients(self, norm):
        network = Network()
        (pgd_wrong, pgd_loss), (wrong, loss) = (
            network.rank(attack_network(attack, network, 0.3, norm=norm, num_steps=50))
            for attack in (pgd, apgd)
        )
        assert 0.1 < pgd_wrong.mean() < 0.9
        assert wrong.mean() >= pgd_wrong.mean()
        assert loss.mean() >= pgd_loss.mean()

    def test_respects_budgets_and_ranges(self, norm, dtype):
        model = Classifiers(dtype)
        budgets = {"image": 0.3, "audio": 0.05}
        adversarial = run_apgd(model, budgets, {"image": (np.zeros((2, 4)), 1.0)}, norm=norm)
        assert adversarial["image"].min() >= 0
        assert adversarial["image"].max() <= 1
        for name, radius in budgets.items():
            norms = perturbation_norms(model.inputs[name], adversarial[name], norm)
            assert adversarial[name].dtype == dtype
            assert (norms <= radius * (1 + 20 * np.finfo(dtype).eps) + np.finfo(dtype).eps).all()
            assert norms.max() > 0.9 * radius

    def test_one_compilation_serves_every_budget_and_zero_changes_nothing(self, norm):
        model = Classifiers()
        numbers = {"epsilon": {"audio": 0.2}}  # no other modality, and no range
        arguments = (model.kernels, model.inputs, model.labels, 0, SOUND, numbers)
        eager = attack_classifiers(apgd, *arguments, (("norm", norm), ("num_steps", 10)))
        unchanged = run_apgd(model, {}, norm=norm)
        num_traces = len(TRACES)
        found = run_apgd(model, {"audio": 0.2}, norm=norm)
        assert len(TRACES) == num_traces
        np.testing.assert_allclose(found["audio"], eager["audio"], atol=1e-12)
        for name in ("image", "audio"):
            np.testing.assert_array_equal(unchanged[name], model.inputs[name])
        for name in ("image", "text"):
            assert eager[name] is model.inputs[name]

    def test_samples_of_useless_gradients_stay_and_reach_no_other(self, norm):
        model = Classifiers()
        sample = np.arange(BATCH)
        # NaN are the prediction of sample 0 and, by a root at zero, the gradient of sample 1.
        spoil = {"factor": np.where(sample == 0, np.nan, 1), "radicand": 1.0 * (sample != 1)}
        found = run_apgd(model, {"image": 0.2}, spoil=spoil, norm=norm)["image"]
        expected = run_apgd(model, {"image": 0.2}, norm=norm)["image"]
        clean = model.inputs["image"]
        np.testing.assert_array_equal(found[0], clean[0])
        named = {name: model.inputs[name] for name in ("audio", "image")}
        log_prob_fn = functools.partial(fused_log_probs, model.kernels)
        epsilon = {"audio": 0.0, "image": 0.2}
        budget = _budget.make_budget(log_prob_fn, named, model.labels, epsilon, norm, None)
        start = _starts.random_start(jax.random.key(0), budget, norm)["image"]
        assert any(np.allclose(found[1], x[1]) for x in (start, clean))
        np.testing.assert_allclose(found[2:], expected[2:], atol=1e-12)


class TestStrength:
    @pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr", "targeted_dlr"])
    def test_finds_the_best_vertex_for_linear_classifiers(self, loss):
        model = Classifiers(num_classes=4)
        model.labels = model.log_probs(model.inputs).argmax(axis=1)
        adversarial = run_apgd(model, {"audio": 0.3}, loss=loss, num_steps=30)
        moved = [{**model.inputs, "audio": x} for x in vertices(model.inputs["audio"], 0.3)]
        is_wrong = np.array([model.is_misclassified(inputs) for inputs in moved])
        wrong = model.is_misclassified(adversarial)
        # The margin is convex, so some vertex is misclassified if any point of the cube is.
        np.testing.assert_array_equal(wrong, is_wrong.any(axis=0))
        assert 0 < wrong.sum() < BATCH
        if loss == "cross_entropy":
            values = np.array([model.loss(inputs) for inputs in moved])
            best = np.where(is_wrong == wrong, values, -np.inf).max(axis=0)
            np.testing.assert_allclose(model.loss(adversarial), best, rtol=1e-9)

    def test_is_optimal_for_two_linear_classes_in_l2(self):
        model = Classifiers(num_classes=2)
        adversarial = run_apgd(model, {"image": 0.2}, norm="l2", num_steps=40)
        difference = model.kernels["image"][:, 0] - model.kernels["image"][:, 1]
        log_probs = model.log_probs(model.inputs)
        worst = (log_probs[:, 0] - log_probs[:, 1]) * np.where(model.labels == 0, 1, -1)
        worst -= 0.2 * np.linalg.norm(difference)
        np.testing.assert_allclose(model.loss(adversarial), np.log1p(np.exp(-worst)), rtol=1e-9)

    @pytest.mark.parametrize(
        ("count", "loss"), [("num_restarts", "margin"), ("num_targets", "targeted_dlr")]
    )
    def test_more_restarts_and_targets_are_not_weaker(self, count, loss):
        network = Network()

        def is_wrong(number):
            options = {"num_steps": 5, "loss": loss, count: number}
            return network.rank(attack_network(apgd, network, 0.3, **options))[0]

        one, several = is_wrong(1), is_wrong(4)
        assert (several >= one).all()
        assert several.sum() > one.sum()

    def test_never_returns_an_input_weaker_than_the_clean_one(self):
        model = Classifiers()

        def already_worst(inputs):
            distance = jnp.sum((inputs["image"] - model.inputs["image"]) ** 2, axis=(1, 2))
            return jnp.stack([distance] * 3, axis=1)

        labels, key = np.zeros(BATCH, int), jax.random.key(0)
        found = apgd(already_worst, model.inputs, labels, key, epsilon={"image": 0.3}, num_steps=9)
        np.testing.assert_array_equal(found["image"], model.inputs["image"])


def test_misuse():
    def attack(num_classes=3, **kwargs):
        model = Classifiers(num_classes=num_classes)
        log_prob_fn = functools.partial(fused_log_probs, model.kernels)
        options: Any = {"epsilon": {"image": 0.1}, **kwargs}
        apgd(log_prob_fn, model.inputs, model.labels, jax.random.key(0), **options)

    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        attack(num_steps=0)
    with pytest.raises(ValueError, match="num_restarts must be at least 1, got 0"):
        attack(num_restarts=0)
    with pytest.raises(ValueError, match="loss must be one of .*, targeted_dlr, got 'l7'"):
        attack(loss="l7")
    with pytest.raises(ValueError, match=r"K >= 4, got \(6, 3\)"):
        attack(loss="targeted_dlr", num_targets=2)
    with pytest.raises(ValueError, match="less than the number of classes 3, got 3"):
        attack(loss="targeted_dlr")
    with pytest.raises(ValueError, match="epsilon names 'smell'"):
        attack(epsilon={"smell": 0.1})
    with pytest.raises(ValueError, match=r"K >= 3, got \(6, 2\)"):
        attack(num_classes=2, loss="dlr")
