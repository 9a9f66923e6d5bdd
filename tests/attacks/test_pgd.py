import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import attacks
from jacfuse_jax.attacks import losses
from tests.attacks.classifiers import BATCH, Classifiers, run

pgd: Any = functools.partial(run, attacks.pgd, norm="linf")


@pytest.fixture
def accurate():
    """Classifiers that are right on all samples but two."""
    model = Classifiers()
    model.labels = model.log_probs(model.inputs).argmax(axis=1)
    model.labels[:2] = (model.labels[:2] + 1) % 3
    return model


def log_prob(log_probs, labels):
    """A loss that is highest where the prediction is right."""
    return jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]


class TestOptionsOfPgd:
    def test_more_restarts_are_not_weaker_and_the_first_is_that_of_a_single_one(self):
        model = Classifiers()
        values = [
            model.loss(pgd(model, {"image": 0.3}, num_steps=1, num_restarts=restarts))
            for restarts in (1, 2, 5)
        ]
        assert (values[0] <= values[1] + 1e-12).all()
        assert (values[1] <= values[2] + 1e-12).all()
        assert values[0].mean() < values[2].mean()

    @pytest.mark.parametrize("loss", ["margin", "dlr"])
    def test_other_losses_are_raised_and_misclassified_iterates_come_first(self, accurate, loss):
        adversarial = pgd(accurate, {"image": 0.2}, loss=loss)
        loss_fn = {"margin": losses.margin, "dlr": losses.dlr}[loss]
        before, after = (
            np.asarray(loss_fn(accurate.log_probs(x), accurate.labels))
            for x in (accurate.inputs, adversarial)
        )
        raised = after > before
        assert raised[2:].all()
        assert (raised | (after == before)).all()  # of three classes the ratio is 1 at most
        wrong = accurate.is_misclassified(accurate.inputs)
        assert (accurate.is_misclassified(adversarial) >= wrong).all()

    def test_a_loss_may_be_a_function_and_a_misclassified_input_beats_one_of_higher_loss(
        self, accurate
    ):
        adversarial = pgd(accurate, {"image": 3.0}, loss=log_prob)
        assert accurate.is_misclassified(adversarial)[:2].all()
        assert (accurate.loss(adversarial) <= accurate.loss(accurate.inputs) + 1e-12)[:2].all()

    @pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
    def test_early_stop_keeps_the_first_misclassified_input(self, accurate, loss):
        options: Any = {"epsilon": {"image": 0.4}, "loss": loss}
        full = pgd(accurate, **options)
        early = pgd(accurate, **options, early_stop=True)
        wrong = accurate.is_misclassified(accurate.inputs)
        broken = accurate.is_misclassified(full)
        assert wrong.sum() < broken.sum()
        assert (accurate.is_misclassified(early) >= broken).all()
        np.testing.assert_array_equal(early["image"][wrong], accurate.inputs["image"][wrong])
        assert (accurate.loss(early)[broken] < accurate.loss(full)[broken]).all()

    def test_cosine_steps_start_at_twice_the_mean_and_shrink(self):
        model = Classifiers()
        kernel = model.kernels["image"][:, 0].reshape(2, 4)
        visited = []

        def log_probs(inputs):
            jax.debug.callback(lambda x: visited.append(np.asarray(x)), inputs["image"])
            z = (inputs["image"] * kernel[None]).sum(axis=(1, 2))
            return jnp.stack([z, 0 * z], axis=1)

        labels = np.zeros(BATCH, int)
        key = jax.random.key(0)
        attacks.pgd(
            log_probs,
            model.inputs,
            labels,
            key,
            epsilon={"image": 1.0},
            num_steps=4,
            relative_step_size=1e-3,
            step_schedule="cosine",
        )
        jax.effects_barrier()
        lengths = np.abs(np.diff(np.array(visited)[-5:], axis=0)).max(axis=(1, 2, 3))
        cosines = np.cos(np.pi * np.array([1, 3, 5, 7]) / 8)
        np.testing.assert_allclose(lengths, 1e-3 * (1 + cosines), rtol=1e-9)

    def test_a_budget_of_zero_beside_another_does_not_stop_the_attack(self):
        model = Classifiers()
        adversarial = run(attacks.pgd, model, {"image": 0.2, "audio": 0.0}, norm="l2")
        np.testing.assert_array_equal(adversarial["audio"], model.inputs["audio"])
        assert (model.loss(adversarial) > model.loss(model.inputs)).all()
