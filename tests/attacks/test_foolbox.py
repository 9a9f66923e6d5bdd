"""Agreement with another library on a classifier of handwritten digits."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jacfuse_jax import attacks

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of SciPy, while foolbox is imported
    import foolbox.attacks
    from foolbox.models.jax import JAXModel

NUM_STEPS = 50


def logits_fn(params, x):
    hidden = jax.nn.relu(x.reshape(len(x), -1) @ params["hidden"] + params["bias"])
    return hidden @ params["out"]


@pytest.fixture(scope="module")
def classifier():
    """A trained two-layer classifier and 797 test digits (8, 8, 1) in [0, 1]."""
    images, labels = load_digits(return_X_y=True)
    x = jnp.asarray(np.reshape(images, (-1, 8, 8, 1)) / 16, jnp.float32)
    y = jnp.asarray(labels)
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "hidden": jax.random.normal(keys[0], (64, 64), jnp.float32) / 8,
        "bias": jnp.zeros(64, jnp.float32),
        "out": jax.random.normal(keys[1], (64, 10), jnp.float32) / 8,
    }
    optimizer = optax.adam(3e-3)

    def loss_fn(params):
        logits = logits_fn(params, x[:1000])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[:1000]).mean()

    @jax.jit
    def train(params):
        def train_step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss_fn)(params), state)
            return (optax.apply_updates(params, updates), state), None

        carry = (params, optimizer.init(params))
        return jax.lax.scan(train_step, carry, length=200)[0][0]

    params = train(params)
    assert (logits_fn(params, x[1000:]).argmax(axis=-1) == y[1000:]).mean() > 0.9
    return lambda x: logits_fn(params, x), x[1000:], y[1000:]


def robust_accuracy_by_foolbox(classifier, attack, epsilon):
    fn, x, y = classifier
    model = JAXModel(fn, bounds=(0, 1))
    _, _, is_adversarial = attack(model, x, y, epsilons=epsilon)
    return 1 - np.asarray(is_adversarial).mean()


def robust_accuracy(classifier, attack_fn, epsilon, norm, *args, **kwargs):
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

    return np.asarray(fn(attack(epsilon)).argmax(axis=-1) == y).mean()


def assert_within_one_point(ours, theirs):
    assert 0.02 < theirs < 0.97  # neither untouched nor broken altogether
    assert ours == pytest.approx(theirs, abs=0.01)


@pytest.mark.parametrize(
    ("norm", "epsilon"), [("linf", 0.03), ("linf", 0.1), ("l2", 0.2), ("l2", 0.3)]
)
class TestRobustAccuracy:
    def test_under_fgm(self, classifier, norm, epsilon):
        attack = foolbox.attacks.FGSM() if norm == "linf" else foolbox.attacks.FGM()
        theirs = robust_accuracy_by_foolbox(classifier, attack, epsilon)
        ours = robust_accuracy(classifier, attacks.fgm, epsilon, norm)
        assert_within_one_point(ours, theirs)

    def test_under_pgd(self, classifier, norm, epsilon):
        make = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
        attack = make(rel_stepsize=2.5 / NUM_STEPS, steps=NUM_STEPS)
        theirs = robust_accuracy_by_foolbox(classifier, attack, epsilon)
        key = jax.random.key(0)
        ours = robust_accuracy(classifier, attacks.pgd, epsilon, norm, key, num_steps=NUM_STEPS)
        assert_within_one_point(ours, theirs)
