from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax.attacks import hop_skip_jump
from tests.attacks.linear_model import (
    DUAL,
    LinearModel,
    assert_compiles_once,
    perturbation_norms,
    run,
)

RANGE = {"audio": (-10.0, 10.0), "image": (-10.0, 10.0)}
SHORT = {"num_iterations": 3, "num_draws": 10, "num_halvings": 10, "num_starts": 10}


def attack(epsilon, valid_range=RANGE, **kwargs):
    return run(hop_skip_jump, {"epsilon": epsilon, "valid_range": valid_range}, **kwargs)


def distances_to_the_boundary(model, name, norm):
    return -model.margin(model.inputs) / np.linalg.norm(model.ascent(name), DUAL[norm], axis=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
class TestBothNorms:
    @pytest.mark.parametrize("name", ["audio", "image"])
    def test_finds_the_distance_to_a_linear_boundary(self, norm, name):
        model = LinearModel()
        exact = distances_to_the_boundary(model, name, norm)
        adversarial = attack({name: 1e3}, norm=norm)
        found = perturbation_norms(model.inputs[name], adversarial[name], norm)
        assert (model.margin(adversarial) > 0).all()
        np.testing.assert_array_less(exact * (1 - 1e-9), found)
        np.testing.assert_array_less(found, exact * 1.1)

    def test_returns_the_clean_sample_where_the_boundary_is_out_of_reach(self, norm, dtype):
        model = LinearModel(dtype)
        exact = distances_to_the_boundary(model, "audio", norm)
        radius = np.sort(exact)[2:4].mean()
        adversarial = attack({"audio": radius}, norm=norm, dtype=dtype)
        found = perturbation_norms(model.inputs["audio"], adversarial["audio"], norm)
        unreachable = exact > radius
        np.testing.assert_array_equal(found[unreachable], 0)
        assert (found <= radius * (1 + 4 * np.finfo(dtype).eps)).all()
        assert (model.margin(adversarial) > 0)[exact < radius / 1.1].all()
        assert adversarial["audio"].dtype == dtype
        np.testing.assert_array_equal(adversarial["image"], model.inputs["image"])

    def test_respects_the_valid_range(self, norm):
        bounds = {"image": (np.zeros((4, 5, 1)), np.ones((4, 5, 1)))}
        image = attack({"image": 10.0}, norm=norm, valid_range=bounds, **SHORT)["image"]
        assert 0 <= image.min() <= image.max() <= 1


def test_one_compilation_serves_every_budget_and_agrees_with_an_eager_call():
    budgets = [{"epsilon": {"audio": r}, "valid_range": RANGE} for r in (1e-3, 100.0)]
    assert_compiles_once(hop_skip_jump, *budgets, norm="l2", **SHORT)


def test_nan_constant_and_misclassified_samples_are_left_alone():
    model = LinearModel()
    labels = np.where(np.arange(6) == 2, 1 - model.labels, model.labels)

    kwargs = {"norm": "l2", "labels": labels, **SHORT}
    found = attack({"audio": 100.0}, spoil=True, **kwargs)["audio"]
    np.testing.assert_array_equal(found[:3], model.inputs["audio"][:3])
    expected = attack({"audio": 100.0}, **kwargs)["audio"]
    np.testing.assert_allclose(found[3:], expected[3:], atol=1e-9)
    assert (found[3:] != model.inputs["audio"][3:]).any(axis=1).all()


def test_sees_nothing_but_the_predicted_class():
    model = LinearModel()

    def one_hot(inputs):
        return jnp.log(jax.nn.one_hot(model.log_probs(inputs).argmax(axis=1), 2))

    arguments = (model.inputs, model.labels, jax.random.key(0))
    kwargs: Any = {"epsilon": {"audio": 100.0}, "valid_range": RANGE, **SHORT}
    found = jax.jit(lambda: hop_skip_jump(one_hot, *arguments, **kwargs)["audio"])()
    expected = attack({"audio": 100.0}, norm="l2", **SHORT)["audio"]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_misuse():
    with pytest.raises(
        ValueError, match=r"epsilon must name one modality, got \['audio', 'image'\]"
    ):
        attack({"audio": 0.1, "image": 0.1})
    with pytest.raises(ValueError, match="valid_range must name 'audio', since starts are drawn"):
        attack({"audio": 0.1}, valid_range={"image": (0.0, 1.0)})
    with pytest.raises(ValueError, match="norm must be one of linf, l2, got 'l7'"):
        attack({"audio": 0.1}, norm="l7")
    with pytest.raises(ValueError, match="num_starts must be at least 1, got 20, 100, 20 and 0"):
        attack({"audio": 0.1}, num_starts=0)
