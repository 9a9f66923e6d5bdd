import jax
import jax.numpy as jnp
import numpy as np

from jacfuse_jax import attacks

rng = np.random.default_rng(0)
INPUTS = {"image": rng.normal(size=(4, 6))}
LABELS = np.array([0, 1, 2, 0])


class Model:
    """What a training loop updates in place."""

    def __init__(self, seed):
        self.kernel = jnp.asarray(np.random.default_rng(seed).normal(size=(6, 3)))
        self.sign = 1.0

    def log_probs(self, inputs):
        return jax.nn.log_softmax(self.sign * (inputs["image"] @ self.kernel))


def attack(log_prob_fn, epsilon=0.3):
    return np.asarray(attacks.fgm(log_prob_fn, INPUTS, LABELS, epsilon={"image": epsilon})["image"])


def test_a_model_that_was_updated_is_attacked_as_it_is():
    model, other = Model(0), Model(1)
    before = attack(model.log_probs)
    np.testing.assert_array_equal(attack(model.log_probs), before)
    model.kernel = other.kernel
    np.testing.assert_array_equal(attack(model.log_probs), attack(other.log_probs))
    assert not np.array_equal(attack(model.log_probs), before)
    model.sign = -1.0  # a constant of the program
    updated = attack(model.log_probs)
    np.testing.assert_array_equal(updated, attack(lambda inputs: model.log_probs(inputs)))
    assert not np.array_equal(updated, attack(other.log_probs))


def test_what_it_closes_over_may_be_traced():
    @jax.jit
    def attack_kernel(kernel):
        def log_prob_fn(inputs):
            return jax.nn.log_softmax(inputs["image"] @ kernel)

        return attacks.fgm(log_prob_fn, INPUTS, LABELS, epsilon={"image": 0.3})["image"]

    np.testing.assert_allclose(attack_kernel(Model(0).kernel), attack(Model(0).log_probs))
