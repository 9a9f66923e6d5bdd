import numpy as np
import pytest

from jacfuse_jax import attacks
from tests.attacks.linear_model import (
    DUAL,
    LinearModel,
    assert_compiles_once,
    perturbation_norms,
    run,
)


def search(epsilon, valid_range=None, num_queries=30, **kwargs):
    numbers = {"epsilon": epsilon, "valid_range": valid_range}
    return run(attacks.random_search, numbers, num_queries=num_queries, **kwargs)


@pytest.mark.parametrize("norm", ["linf", "l2"])
class TestBothNorms:
    def test_draws_lie_on_the_budget_and_leave_other_modalities_alone(self, norm, dtype):
        model = LinearModel(dtype)
        adversarial = search({"image": 0.3}, norm=norm, dtype=dtype)
        norms = perturbation_norms(model.inputs["image"], adversarial["image"], norm)
        np.testing.assert_allclose(norms, 0.3, rtol=20 * np.finfo(dtype).eps)
        assert adversarial["image"].dtype == dtype
        np.testing.assert_array_equal(adversarial["audio"], model.inputs["audio"])

    def test_budgets_are_per_modality_and_respect_the_valid_range(self, norm):
        model = LinearModel()
        epsilon = {"image": 0.3, "audio": 0.05}
        adversarial = search(epsilon, norm=norm, valid_range={"image": (0.0, 1.0)})
        for name, radius in epsilon.items():
            norms = perturbation_norms(model.inputs[name], adversarial[name], norm)
            np.testing.assert_array_less(norms, radius * (1 + 1e-12))
            assert norms.min() > 0.5 * radius
        assert 0 <= adversarial["image"].min() <= adversarial["image"].max() <= 1

    def test_never_exceeds_the_optimum_and_more_queries_are_never_weaker(self, norm):
        model = LinearModel()
        gain = 0.1 * np.linalg.norm(model.ascent("audio"), ord=DUAL[norm], axis=1)
        optimum = model.margin(model.inputs) + gain
        previous = model.margin(model.inputs)
        for num_queries in (1, 30, 300):
            found = model.margin(search({"audio": 0.1}, norm=norm, num_queries=num_queries))
            assert (found >= previous - 1e-12).all()
            assert (found <= optimum + 1e-12).all()
            previous = found
        assert ((optimum - previous) / gain).max() < 0.3

    def test_nan_and_constant_samples_are_left_alone(self, norm):
        model = LinearModel()
        found = search({"image": 0.2}, norm=norm, spoil=True)["image"]
        np.testing.assert_array_equal(found[:2], model.inputs["image"][:2])
        expected = search({"image": 0.2}, norm=norm)["image"]
        np.testing.assert_allclose(found[2:], expected[2:], atol=1e-12)


def test_one_compilation_serves_every_budget_and_agrees_with_an_eager_call():
    budgets = [{"epsilon": {"image": r}, "valid_range": None} for r in (0.1, 0.2)]
    assert_compiles_once(attacks.random_search, *budgets, norm="l2", num_queries=30)


def test_linf_finds_the_best_of_all_corners():
    model = LinearModel(num_classes=3)
    corners = np.array(np.meshgrid(*[(-1, 1)] * 6)).reshape(6, -1).T
    audio = model.inputs["audio"]
    best = np.max(
        [model.margin({**model.inputs, "audio": audio + 0.2 * corner}) for corner in corners],
        axis=0,
    )
    # 1000 draws miss one of 64 corners with a probability of e^-15 a sample.
    found = model.margin(search({"audio": 0.2}, num_queries=1000, num_classes=3))
    np.testing.assert_allclose(found, best, rtol=1e-12)


def test_is_weaker_than_a_gradient():
    model = LinearModel(image_shape=(8, 8, 3))
    budget = {"image": 0.01}
    by_gradient = attacks.fgm(model.log_probs, model.inputs, model.labels, epsilon=budget)
    found = search(budget, num_queries=100, image_shape=(8, 8, 3))
    assert (model.margin(found) < model.margin(by_gradient)).all()


def test_misuse():
    with pytest.raises(ValueError, match="norm must be one of linf, l2, got 'l7'"):
        search({"image": 0.1}, norm="l7")
    with pytest.raises(ValueError, match="num_queries must be at least 1, got 0"):
        search({"image": 0.1}, num_queries=0)
    with pytest.raises(ValueError, match="epsilon names 'smell', but the modalities are"):
        search({"smell": 0.1})
