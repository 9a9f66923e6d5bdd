"""Agreement with another library on a classifier of handwritten digits."""

import functools
import importlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jacfuse_jax import attacks

NUM_STEPS = 50


@jax.jit
def logits_fn(params, x):
    hidden = jax.nn.relu(x.reshape(len(x), -1) @ params["hidden"] + params["bias"][None])
    return hidden @ params["out"]


@pytest.fixture(scope="module")
def foolbox():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of SciPy, while foolbox is imported
        return importlib.import_module("foolbox")


@pytest.fixture(scope="module")
def classifier():
    """A trained two-layer classifier and 797 test digits (8, 8, 1) in [0, 1]."""
    from sklearn.datasets import load_digits

    images, y = (np.asarray(array) for array in load_digits(return_X_y=True))
    x = np.reshape(images, (-1, 8, 8, 1)).astype(np.float32) / 16
    rng = np.random.default_rng(0)
    initial = {
        "hidden": rng.normal(size=(64, 64)) / 8,
        "bias": np.zeros(64),
        "out": rng.normal(size=(64, 10)) / 8,
    }
    optimizer = optax.adam(3e-3)

    def loss_fn(params):
        logits = logits_fn(params, x[:1000])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[:1000]).mean()

    @jax.jit
    def train(params):
        def train_step(carry, _):
            params, state = carry
            gradient = jax.grad(loss_fn)(params)
            with jax.numpy_dtype_promotion("standard"):  # optax multiplies step counts and floats
                updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        carry = (params, optimizer.init(params))
        return jax.lax.scan(train_step, carry, length=200)[0][0]

    params = train({name: array.astype(np.float32) for name, array in initial.items()})
    fn = functools.partial(logits_fn, params)
    x, y = jnp.asarray(x[1000:]), jnp.asarray(y[1000:])
    assert (np.asarray(fn(x)).argmax(axis=-1) == np.asarray(y)).mean() > 0.9
    return fn, x, y


def robust_accuracies_by_foolbox(foolbox, classifier, attack, epsilons):
    fn, x, y = classifier
    model = foolbox.JAXModel(fn, bounds=(0, 1))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # foolbox
        _, _, is_adversarial = attack(model, x, y, epsilons=list(epsilons))
    return 1 - np.asarray(is_adversarial).mean(axis=1)


def robust_accuracies(classifier, attack_fn, epsilons, norm, *args, **kwargs):
    fn, x, y = classifier

    @jax.jit
    def attack(epsilon):
        return attack_fn(
            lambda inputs: jax.nn.log_softmax(fn(inputs["image"])),
            {"image": x},
            y,
            *args,
            epsilon={"image": epsilon},
            norm=norm,
            valid_range={"image": (0, 1)},
            **kwargs,
        )["image"]

    predicted = [np.asarray(fn(attack(epsilon))).argmax(axis=-1) for epsilon in epsilons]
    return np.mean(predicted == np.asarray(y), axis=1)


def assert_within_one_point(ours, theirs):
    assert (theirs > 0.02).all()  # neither broken altogether
    assert (theirs < 0.97).all()  # nor untouched
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.01)


@pytest.mark.parametrize(("norm", "epsilons"), [("linf", (0.03, 0.1)), ("l2", (0.2, 0.3))])
class TestRobustAccuracy:
    def test_under_fgm(self, foolbox, classifier, norm, epsilons):
        attack = foolbox.attacks.FGSM() if norm == "linf" else foolbox.attacks.FGM()
        theirs = robust_accuracies_by_foolbox(foolbox, classifier, attack, epsilons)
        ours = robust_accuracies(classifier, attacks.fgm, epsilons, norm)
        assert_within_one_point(ours, theirs)

    def test_under_pgd(self, foolbox, classifier, norm, epsilons):
        make = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
        attack = make(rel_stepsize=2.5 / NUM_STEPS, steps=NUM_STEPS)
        theirs = robust_accuracies_by_foolbox(foolbox, classifier, attack, epsilons)
        key = jax.random.key(0)
        ours = robust_accuracies(classifier, attacks.pgd, epsilons, norm, key, num_steps=NUM_STEPS)
        assert_within_one_point(ours, theirs)
