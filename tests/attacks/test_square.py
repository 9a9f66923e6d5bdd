from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax.attacks import random_search, square
from jacfuse_jax.attacks._square import _pair_of_peaks, _shares
from tests.attacks.linear_model import (
    BATCH,
    DUAL,
    LinearModel,
    assert_compiles_once,
    perturbation_norms,
    run,
)


def attack(epsilon, valid_range=None, num_queries=300, **kwargs):
    numbers = {"epsilon": epsilon, "valid_range": valid_range}
    return run(square, numbers, num_queries=num_queries, **kwargs)


@pytest.mark.parametrize("norm", ["linf", "l2"])
class TestBothNorms:
    def test_respects_the_budget_and_leaves_other_modalities_alone(self, norm):
        shape = {"linf": (7, 3), "l2": (4, 5, 3)}[norm]
        model = LinearModel("float32", image_shape=shape)
        adversarial = attack({"image": 0.01}, norm=norm, dtype="float32", image_shape=shape)
        norms = perturbation_norms(model.inputs["image"], adversarial["image"], norm)
        np.testing.assert_allclose(norms, 0.01, atol=2.0**-22)
        assert adversarial["image"].dtype == "float32"
        np.testing.assert_array_equal(adversarial["audio"], model.inputs["audio"])

    def test_budgets_are_per_modality_and_respect_the_valid_range(self, norm):
        model = LinearModel()
        epsilon = {"image": 0.02, "audio": 0.03}
        bounds = {"image": (0.0, 1.0), "audio": (np.zeros(6), np.full(6, 0.5))}
        adversarial = attack(epsilon, norm=norm, valid_range=bounds)
        for name, radius in epsilon.items():
            norms = perturbation_norms(model.inputs[name], adversarial[name], norm)
            np.testing.assert_array_less(norms, radius * (1 + 1e-12))
            assert norms.min() > 0.5 * radius
        assert 0 <= adversarial["image"].min() <= adversarial["image"].max() <= 1
        assert (adversarial["audio"] <= np.maximum(model.inputs["audio"], 0.5)).all()

    def test_comes_close_to_the_optimum_and_beats_random_search(self, norm):
        kwargs: Any = {"norm": norm, "image_shape": (8, 8, 1), "num_queries": 600}
        model = LinearModel(image_shape=(8, 8, 1))
        clean = model.margin(model.inputs)
        gain = 1e-4 * np.linalg.norm(model.ascent("image"), ord=DUAL[norm], axis=1)
        found = model.margin(attack({"image": 1e-4}, **kwargs)) - clean
        assert (found <= gain * (1 + 1e-9)).all()
        # The peaks of the l2 attack are smooth; the kernel, white noise, is not.
        assert (found >= {"linf": 0.95, "l2": 0.6}[norm] * gain).all()
        numbers = {"epsilon": {"image": 1e-4}, "valid_range": None}
        by_random_search = model.margin(run(random_search, numbers, **kwargs)) - clean
        assert (found > 1.5 * by_random_search).all()

    def test_nan_and_constant_samples_are_left_alone(self, norm):
        model = LinearModel()
        found = attack({"image": 0.01}, norm=norm, spoil=True)["image"]
        np.testing.assert_array_equal(found[:2], model.inputs["image"][:2])
        expected = attack({"image": 0.01}, norm=norm)["image"]
        np.testing.assert_allclose(found[2:], expected[2:], atol=1e-12)

    def test_zero_budget_changes_nothing(self, norm):
        found = attack({"image": 0.0}, norm=norm)["image"]
        np.testing.assert_array_equal(found, LinearModel().inputs["image"])


def test_one_compilation_serves_every_budget_and_agrees_with_an_eager_call():
    budgets = [{"epsilon": {"image": r}, "valid_range": None} for r in (0.01, 0.02)]
    assert_compiles_once(square, *budgets, norm="linf", num_queries=300)


def test_more_queries_are_stronger_on_average():
    model = LinearModel()
    few, many = (
        [
            model.margin(attack({"image": 1e-3}, norm="linf", num_queries=n, seed=s))
            for s in range(5)
        ]
        for n in (30, 300)
    )
    assert np.mean(few) < np.mean(many)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_windows_of_a_video_lie_in_the_same_place_in_all_frames(norm):
    rng = np.random.default_rng(0)
    video = rng.uniform(size=(BATCH, 3, 5, 4, 2))
    image = np.moveaxis(video, 1, 3).reshape(BATCH, 5, 4, 6)
    kernel = rng.normal(size=(120, 4))
    labels = (image.reshape(BATCH, -1) @ kernel).argmax(axis=1)

    def attacked(x, as_image_fn):
        def log_prob_fn(inputs):
            return jax.nn.log_softmax(as_image_fn(inputs["x"]).reshape(BATCH, -1) @ kernel)

        return jax.jit(
            lambda x: square(
                log_prob_fn,
                {"x": x},
                labels,
                jax.random.key(0),
                epsilon={"x": 0.05},
                norm=norm,
                num_queries=60,
                valid_range={"x": (0.0, 1.0)},
            )
        )(x)["x"]

    expected = attacked(image, lambda x: x)
    found = attacked(video, lambda x: jnp.moveaxis(x, 1, 3).reshape(BATCH, 5, 4, 6))
    assert (found != video).any()
    found_image = np.moveaxis(np.asarray(found), 1, 3).reshape(BATCH, 5, 4, 6)
    np.testing.assert_array_equal(found_image, expected)


def test_misclassified_samples_are_not_touched():
    model = LinearModel()
    labels = np.where(np.arange(BATCH) < 2, 1 - model.labels, model.labels)
    found = attack({"image": 0.1}, norm="linf", labels=labels)["image"]
    np.testing.assert_array_equal(found[:2], model.inputs["image"][:2])
    assert (found[2:] != model.inputs["image"][2:]).any(axis=(1, 2, 3)).all()


def test_window_shares_follow_the_schedule_of_the_paper():
    def p_selection(iteration):  # as in the paper
        limits = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
        return 0.8 / 2 ** sum(iteration > limit for limit in limits)

    expected = [p_selection(iteration) for iteration in range(9999)]
    np.testing.assert_array_equal(_shares(0.8, 10000), expected)
    np.testing.assert_array_equal(_shares(0.8, 1000), expected[:9990:10])


@pytest.mark.parametrize("side", [3, 4, 7])
def test_pairs_of_peaks_are_the_nested_rectangles_of_the_paper(side):
    def rectangles(height, width):  # as in the paper
        peak = np.zeros((height, width))
        row, col = height // 2, width // 2
        for n in range(max(height // 2, width // 2) + 1):
            rows = slice(max(row - n, 0), min(row + n + 1, height))
            peak[rows, max(col - n, 0) : min(col + n + 1, width)] += 1 / (n + 1) ** 2
        return peak / np.linalg.norm(peak)

    upper = side // 2
    expected = np.concatenate([rectangles(upper, side), -rectangles(side - upper, side)])
    # The window has its corner at (2, 1) of a grid of 10 x 12 positions.
    rows, cols = np.arange(10)[:, None, None] - 2, np.arange(12)[None, :, None] - 1
    inside = (rows >= 0) & (rows < side) & (cols >= 0) & (cols < side)
    pair = np.array(jax.jit(_pair_of_peaks)(rows, cols, side, side, inside))[..., 0]
    np.testing.assert_allclose(pair[2 : 2 + side, 1 : 1 + side], expected / 2**0.5, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(pair), 1, rtol=1e-12)


def test_misuse():
    with pytest.raises(ValueError, match="norm must be one of linf, l2, got 'l7'"):
        attack({"image": 0.1}, norm="l7")
    with pytest.raises(ValueError, match="num_queries must be at least 1, got 0"):
        attack({"image": 0.1}, num_queries=0)
    with pytest.raises(ValueError, match=r"initial_share must lie in \(0, 1\], got 0"):
        attack({"image": 0.1}, initial_share=0)
