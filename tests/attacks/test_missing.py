import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax.attacks import adversarial_missing
from tests.attacks.linear_model import BATCH, LinearModel, assert_compiles_once, run

FILL = {"audio": 0.5, "image": 0.0}


def attack(fraction, fill_value=FILL, num_steps=6, **kwargs):
    numbers = {"fraction": fraction, "fill_value": fill_value}
    return run(adversarial_missing, numbers, num_steps=num_steps, **kwargs)


def attack_function(log_prob_fn, model, fraction):
    key = jax.random.key(0)
    kwargs: Any = {"fraction": fraction, "fill_value": FILL, "num_steps": 6}
    perturb = jax.jit(
        lambda: adversarial_missing(log_prob_fn, model.inputs, model.labels, key, **kwargs)
    )
    return perturb()


def best_of_all_masks(model, count, margin_fn):
    """The largest margin with at most `count` of the six entries of audio filled."""
    margins = [margin_fn(model.inputs)]
    for size in range(1, count + 1):
        for chosen in itertools.combinations(range(6), size):
            audio = np.array(model.inputs["audio"])
            audio[:, chosen] = FILL["audio"]
            margins.append(margin_fn({**model.inputs, "audio": audio}))
    return np.max(margins, axis=0)


@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_is_exact_for_two_linear_classes(count):
    model = LinearModel()
    found = attack({"audio": count / 6})
    expected = best_of_all_masks(model, count, model.margin)
    np.testing.assert_allclose(model.margin(found), expected, rtol=1e-12)


def test_comes_close_to_the_best_mask_of_a_curved_model():
    class Curved(LinearModel):
        def logits(self, inputs):
            x = inputs["audio"]
            curve = 3 * x / (1 + 9 * x**2) ** 0.5 + x * x[:, [5, 0, 1, 2, 3, 4]]
            return super().logits({**inputs, "audio": curve})

    curved = Curved()
    clean = curved.margin(curved.inputs)
    found = curved.margin(attack_function(curved.log_probs, curved, {"audio": 0.5})) - clean
    best = best_of_all_masks(curved, 3, curved.margin) - clean
    assert (found <= best + 1e-12).all()
    assert found.mean() > 0.9 * best.mean()


def test_fills_no_more_than_the_share_of_every_modality(dtype):
    model = LinearModel(dtype, num_classes=3)
    adversarial = attack({"audio": 0.5, "image": 0.25}, dtype=dtype, num_classes=3)
    for name, count in (("audio", 3), ("image", 5)):
        changed = np.asarray(adversarial[name] != model.inputs[name])
        np.testing.assert_array_equal(np.asarray(adversarial[name])[changed], FILL[name])
        assert 1 <= changed.reshape(BATCH, -1).sum(axis=1).max() <= count
        assert adversarial[name].dtype == dtype
    assert (model.margin(adversarial) > model.margin(model.inputs)).all()


def test_larger_shares_are_never_weaker_and_fill_values_may_be_arrays():
    model = LinearModel()
    fill_value = {"image": model.inputs["image"].mean(axis=0)}
    margins = [
        model.margin(attack({"image": fraction}, fill_value)) for fraction in (0.1, 0.5, 1.0)
    ]
    assert (np.diff(margins, axis=0) >= -1e-12).all()
    assert (margins[2] > margins[0]).all()


def test_random_choice_serves_where_gradients_vanish():
    model = LinearModel()

    def staircase(inputs):
        return model.log_probs({**inputs, "image": jnp.round(8 * inputs["image"]) / 8})

    found = attack_function(staircase, model, {"image": 0.5})["image"]
    changed = np.asarray(found != model.inputs["image"]).reshape(BATCH, -1).sum(axis=1)
    assert set(changed) == {0, 10}


def test_one_compilation_serves_every_share_and_agrees_with_an_eager_call():
    shares = [{"fraction": {"audio": share}, "fill_value": FILL} for share in (0.2, 0.5)]
    assert_compiles_once(adversarial_missing, *shares, num_steps=6)


def test_nan_and_constant_samples_are_left_alone():
    found = attack({"audio": 0.5}, spoil=True)["audio"]
    np.testing.assert_array_equal(found[:2], LinearModel().inputs["audio"][:2])
    np.testing.assert_array_equal(found[2:], attack({"audio": 0.5})["audio"][2:])


def test_misuse():
    model = LinearModel()
    arguments = (model.log_probs, model.inputs, model.labels, jax.random.key(0))
    with pytest.raises(ValueError, match=r"fraction\['audio'\] must lie in \[0, 1\], got 1.5"):
        adversarial_missing(*arguments, fraction={"audio": 1.5}, fill_value=FILL)
    with pytest.raises(ValueError, match="fill_value must name 'audio', as fraction does"):
        adversarial_missing(*arguments, fraction={"audio": 0.5}, fill_value={})
    with pytest.raises(ValueError, match="fraction names 'smell', but the modalities are"):
        adversarial_missing(*arguments, fraction={"smell": 0.5}, fill_value=FILL)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        adversarial_missing(*arguments, fraction={}, fill_value={}, num_steps=0)
