from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax.attacks import _budget
from jacfuse_jax.attacks.apgd import _checkpoints, apgd
from jacfuse_jax.attacks.gradient import pgd
from tests.attacks.classifiers import BATCH, Classifiers, perturbation_norms

EVERY_LOSS = ["cross_entropy", "margin", "dlr", "targeted_dlr"]


class Network:
    """Random weights of a tanh network with one hidden layer, so that the loss has many maxima."""

    def __init__(self, num_classes=5, batch=64, width=16, features=6):
        rng = np.random.default_rng(0)
        self.first = 3 * rng.normal(size=(features, width)) / features**0.5
        self.second = 3 * rng.normal(size=(width, num_classes)) / width**0.5
        self.inputs = {"image": rng.normal(size=(batch, features))}
        self.labels = np.asarray(self.log_probs(self.inputs).argmax(axis=1))

    def log_probs(self, inputs):
        return jax.nn.log_softmax(jnp.tanh(inputs["image"] @ self.first) @ self.second)


def rank(model, adversarial):
    """Per sample whether it is misclassified, and the cross-entropy."""
    log_probs = np.asarray(model.log_probs(adversarial))
    loss = -np.take_along_axis(log_probs, model.labels[:, None], axis=1)[:, 0]
    return log_probs.argmax(axis=1) != model.labels, loss


def run(model, **kwargs):
    options: dict[str, Any] = {"key": jax.random.key(0), "num_steps": 10, **kwargs}
    return apgd(model.log_probs, model.inputs, model.labels, **options)


def by_the_paper(model, start, epsilon, norm, num_steps):
    """Algorithm 1 for every sample in turn in NumPy; returns the input of highest loss."""

    def log_prob(x, b):
        return model.log_probs({"image": x[None]})[0, jnp.asarray(model.labels)[b]]

    log_prob_and_gradient = jax.jit(jax.value_and_grad(log_prob))
    found = []
    for b, clean in enumerate(model.inputs["image"]):

        def loss_and_gradient(x, b=b):
            value, gradient = log_prob_and_gradient(x, b)
            return -float(value), -np.asarray(gradient)

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
        eta, eta_before, highest_before, rises = 2 * epsilon, 2 * epsilon, values[0], []
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
    assert _checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert _checkpoints(5) == [0, 2, 3, 4]
    assert _checkpoints(1) == [0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
class TestEveryNorm:
    def test_follows_the_algorithm_of_the_paper(self, norm):
        model = Network(batch=12, num_classes=2)  # the highest loss is misclassified if any is
        epsilon, key = 0.5, jax.random.key(3)
        budget = _budget.make_budget(model.inputs, {"image": epsilon}, norm, None)
        start = np.asarray(_budget.random_start(key, budget, norm)["image"])
        expected = by_the_paper(model, start, epsilon, norm, num_steps=40)
        found = run(model, epsilon={"image": epsilon}, norm=norm, num_steps=40, key=key)
        # Around a maximum, the rounding of the loss hides moves of the order of sqrt(eps).
        atol = 4 * np.finfo(np.float64).eps ** 0.5
        np.testing.assert_allclose(found["image"], expected, rtol=0, atol=atol)

    def test_is_stronger_than_pgd_with_as_many_gradients(self, norm):
        model = Network()
        options: dict[str, Any] = {"epsilon": {"image": 0.3}, "norm": norm, "num_steps": 50}
        plain = pgd(model.log_probs, model.inputs, model.labels, jax.random.key(0), **options)
        (pgd_wrong, pgd_loss), (wrong, loss) = (
            rank(model, plain),
            rank(model, run(model, **options)),
        )
        assert 0.1 < pgd_wrong.mean() < 0.9
        assert wrong.mean() >= pgd_wrong.mean()
        assert loss.mean() >= pgd_loss.mean()

    def test_respects_budgets_and_ranges_and_leaves_other_modalities_alone(self, norm, dtype):
        model = Classifiers(dtype)
        model.inputs["text"] = np.arange(BATCH)  # not even floating
        budgets = {"image": 0.3, "audio": 0.05}
        adversarial = apgd(
            lambda inputs: model.log_probs({name: inputs[name] for name in budgets}),
            model.inputs,
            model.labels,
            jax.random.key(0),
            epsilon=budgets,
            norm=norm,
            num_steps=10,
            valid_range={"image": (0, 1)},
        )
        assert adversarial["text"] is model.inputs["text"]
        assert adversarial["image"].min() >= 0
        assert adversarial["image"].max() <= 1
        for name, radius in budgets.items():
            norms = perturbation_norms(model.inputs[name], adversarial[name], norm)
            assert adversarial[name].dtype == dtype
            assert (norms <= radius * (1 + 20 * np.finfo(dtype).eps) + np.finfo(dtype).eps).all()
            assert norms.max() > 0.9 * radius

    def test_one_compilation_serves_every_budget_and_zero_changes_nothing(self, norm):
        model = Classifiers()
        traces = []

        @jax.jit
        def perturb(radius):
            traces.append(radius)
            return run(model, epsilon={"image": radius}, norm=norm)["image"]

        eager = run(model, epsilon={"image": 0.2}, norm=norm)["image"]
        np.testing.assert_allclose(perturb(0.2), eager, atol=1e-12)
        np.testing.assert_array_equal(perturb(0.0), model.inputs["image"])
        assert len(traces) == 1

    def test_samples_of_useless_gradients_stay_and_reach_no_other(self, norm):
        model = Classifiers()
        sample = jnp.arange(BATCH)

        def broken(inputs):
            # NaN are the prediction of sample 0 and, by a root at zero, the gradient of sample 1.
            root = jnp.sqrt((sample != 1) + 0 * inputs["image"].sum(axis=(1, 2)))
            log_probs = model.log_probs(inputs) + (root - (sample != 1))[:, None]
            return jnp.where(sample[:, None] == 0, jnp.nan, log_probs)

        options: dict[str, Any] = {"epsilon": {"image": 0.2}, "norm": norm, "num_steps": 10}
        key = jax.random.key(0)
        found = apgd(broken, model.inputs, model.labels, key, **options)["image"]
        expected = run(model, **options)["image"]
        np.testing.assert_array_equal(found[0], model.inputs["image"][0])
        budget = _budget.make_budget(model.inputs, options["epsilon"], norm, None)
        start = _budget.random_start(key, budget, norm)["image"]
        assert any(np.allclose(found[1], x[1]) for x in (start, model.inputs["image"]))
        np.testing.assert_allclose(found[2:], expected[2:], atol=1e-12)


class TestStrength:
    @pytest.mark.parametrize("loss", EVERY_LOSS)
    def test_finds_the_best_vertex_for_linear_classifiers(self, loss):
        model = Classifiers(num_classes=4)
        model.labels = np.asarray(model.log_probs(model.inputs).argmax(axis=1))
        adversarial = run(model, epsilon={"audio": 0.3}, loss=loss, num_steps=30)
        signs = np.array(np.meshgrid(*[(-1, 1)] * 5)).reshape(5, -1).T
        vertices = [
            rank(model, {**model.inputs, "audio": model.inputs["audio"] + 0.3 * sign})
            for sign in signs
        ]
        wrong, value = rank(model, adversarial)
        # The margin is convex, so some vertex is misclassified if any point of the cube is.
        np.testing.assert_array_equal(wrong, np.any([v[0] for v in vertices], axis=0))
        assert 0 < wrong.sum() < BATCH
        if loss == "cross_entropy":
            best = np.max([np.where(v[0] == wrong, v[1], -np.inf) for v in vertices], axis=0)
            np.testing.assert_allclose(value, best, rtol=1e-9)

    def test_is_optimal_for_two_linear_classes_in_l2(self):
        model = Classifiers(num_classes=2)
        adversarial = run(model, epsilon={"image": 0.2}, norm="l2", num_steps=40)
        difference = model.kernels["image"][:, 0] - model.kernels["image"][:, 1]
        z = np.sum(list(model.logits(model.inputs).values()), axis=0)
        worst = (z[:, 0] - z[:, 1]) * np.where(model.labels == 0, 1, -1)
        worst -= 0.2 * np.linalg.norm(difference)
        np.testing.assert_allclose(model.loss(adversarial), np.log1p(np.exp(-worst)), rtol=1e-9)

    def test_more_restarts_and_targets_are_not_weaker(self):
        model = Network()

        def strength(**kwargs):
            return rank(model, run(model, num_steps=5, epsilon={"image": 0.3}, **kwargs))

        one, several = (strength(num_restarts=n, loss="margin") for n in (1, 4))
        assert (several[0] >= one[0]).all()
        assert several[0].sum() > one[0].sum()
        one, several = (strength(num_targets=n, loss="targeted_dlr") for n in (1, 4))
        assert (several[0] >= one[0]).all()
        assert several[0].sum() > one[0].sum()

    def test_never_returns_an_input_weaker_than_the_clean_one(self):
        model = Classifiers()

        def already_worst(inputs):
            distance = jnp.sum((inputs["image"] - model.inputs["image"]) ** 2, axis=(1, 2))
            return jnp.stack([distance] * 3, axis=1)

        labels, key = np.zeros(BATCH, int), jax.random.key(0)
        found = apgd(already_worst, model.inputs, labels, key, epsilon={"image": 0.3}, num_steps=9)
        np.testing.assert_array_equal(found["image"], model.inputs["image"])


def test_misuse():
    model = Classifiers()
    options = {"epsilon": {"image": 0.1}}
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        run(model, **options, num_steps=0)
    with pytest.raises(ValueError, match="num_restarts must be at least 1, got 0"):
        run(model, **options, num_restarts=0)
    with pytest.raises(ValueError, match="loss must be one of .*, targeted_dlr, got 'l7'"):
        run(model, **options, loss="l7")
    with pytest.raises(ValueError, match=r"K >= 4, got \(6, 3\)"):
        run(model, **options, loss="targeted_dlr", num_targets=2)
    with pytest.raises(ValueError, match="less than the number of classes 3, got 3"):
        run(model, **options, loss="targeted_dlr")
    with pytest.raises(ValueError, match="epsilon names 'smell'"):
        run(model, epsilon={"smell": 0.1})
    with pytest.raises(ValueError, match=r"K >= 3, got \(6, 2\)"):
        run(Classifiers(num_classes=2), **options, loss="dlr")
