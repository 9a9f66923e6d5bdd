"""Budgets that differ from sample to sample."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import attacks
from tests.attacks.linear_model import BATCH, LinearModel, run

RADII = np.array([0.3, 0.0, 0.02, 0.1, 0.02, 0.3])
SHORT = {"num_iterations": 2, "num_draws": 5, "num_halvings": 5, "num_starts": 5}
NUMBERS: dict[Any, dict[str, Any]] = {
    attacks.hop_skip_jump: {"valid_range": {"image": (-10.0, 10.0)}},
    attacks.adversarial_missing: {"fill_value": {"image": 0.0}},
}


def attack(attack_fn, radii, **options: Any):
    """The image under attack, and its clean version."""
    numbers = {**NUMBERS.get(attack_fn, {"valid_range": None})}
    if attack_fn is attacks.adversarial_missing:
        numbers["fraction"] = {"image": radii}
    else:
        numbers["epsilon"] = {"image": radii}
    return np.asarray(run(attack_fn, numbers, **options)["image"])


@pytest.mark.parametrize(
    ("attack_fn", "options"),
    [
        (attacks.pgd, {"norm": "linf", "num_steps": 3, "num_restarts": 2}),
        (attacks.pgd, {"norm": "l2", "num_steps": 3}),
        (attacks.apgd, {"norm": "l2", "num_steps": 6}),
        (attacks.square, {"norm": "linf", "num_queries": 20}),
        (attacks.square, {"norm": "l2", "num_queries": 20, "image_shape": (7, 3)}),
        (attacks.square, {"norm": "l2", "num_queries": 20, "image_shape": (2, 4, 5, 1)}),
        (attacks.random_search, {"norm": "l2", "num_queries": 20}),
        (attacks.adversarial_missing, {"num_steps": 3}),
    ],
)
def test_every_sample_is_attacked_as_with_its_own_radius_for_all(attack_fn, options):
    found = attack(attack_fn, RADII, **options)
    clean = LinearModel(image_shape=options.get("image_shape", (4, 5, 1))).inputs["image"]
    expected = np.empty_like(found)
    for radius in np.unique(RADII):
        expected[radius == RADII] = attack(attack_fn, radius, **options)[radius == RADII]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    changed = (found != clean).reshape(BATCH, -1).any(axis=1)
    np.testing.assert_array_equal(changed[[0, 1, 5]], [True, False, True])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_hop_skip_jump_tells_by_sample_what_is_out_of_reach(norm):
    anywhere = attack(attacks.hop_skip_jump, np.full(BATCH, 1e3), norm=norm, **SHORT)
    clean = LinearModel().inputs["image"]
    order = {"linf": np.inf, "l2": 2}[norm]
    distances = np.linalg.norm((anywhere - clean).reshape(BATCH, -1), order, axis=1)
    is_near = np.arange(BATCH) % 2 == 0
    radii = distances * np.where(is_near, 1.01, 0.99)
    found = attack(attacks.hop_skip_jump, radii, norm=norm, **SHORT)
    np.testing.assert_array_equal(found[is_near], anywhere[is_near])
    np.testing.assert_array_equal(found[~is_near], clean[~is_near])


def test_a_traced_one_out_of_range_spoils_its_sample_alone():
    radii = np.where(np.arange(BATCH) == 2, -1, RADII)
    options: dict[Any, dict[str, Any]] = {
        attacks.pgd: {"norm": "l2", "num_steps": 3},
        attacks.adversarial_missing: {"num_steps": 3},
    }
    for attack_fn, static in options.items():
        found, expected = (attack(attack_fn, r, **static) for r in (radii, RADII))
        assert np.isnan(found[2]).all()
        others = np.arange(BATCH) != 2
        np.testing.assert_array_equal(found[others], expected[others])


def linear(inputs):
    return jax.nn.log_softmax(inputs["x"] @ jnp.asarray([[1.0, 0.0, 2.0], [0.5, 1.0, -1.0]]))


@pytest.mark.parametrize("batch_size", [0, 1])
def test_a_batch_of_one_or_none(batch_size):
    x = np.ones((batch_size, 2))
    zeros = np.zeros(batch_size, int)
    key, radii = jax.random.key(0), np.full(batch_size, 0.1)

    def check(attack_fn, *key, **options: Any):
        arguments = (linear, {"x": x}, zeros, *key)
        found = attack_fn(*arguments, targets=zeros + 1, **options)["x"]
        assert found.shape == x.shape
        assert np.isfinite(found).all()

    own: Any = {"epsilon": {"x": radii}}
    check(attacks.fgm, **own)
    for attack_fn in (attacks.pgd, attacks.apgd):
        check(attack_fn, key, **own, initial={"x": x}, num_steps=2)
    check(attacks.random_search, key, **own, num_queries=2)
    check(attacks.square, key, **own, num_queries=2)
    fractions: Any = {"fraction": {"x": 5 * radii}, "fill_value": {"x": 0.0}}
    check(attacks.adversarial_missing, key, **fractions, num_steps=2)


def test_misuse():
    model = LinearModel()

    def fgm(radius):
        arguments = (model.log_probs, model.inputs, model.labels)
        return attacks.fgm(*arguments, epsilon={"image": radius, "audio": 0.1})

    for shape in ((5,), (6, 1), (1,)):
        with pytest.raises(
            ValueError,
            match=rf"epsilon\['image'\] must be a scalar or of shape \(6,\), .* got shape "
            rf"\({shape[0]}",
        ):
            fgm(np.ones(shape))
    for wrong in (-0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"epsilon\['image'\] must lie in \[0, inf\), got"):
            fgm(np.where(np.arange(BATCH) == 3, wrong, 0.1))
    with pytest.raises(ValueError, match=r"fraction\['image'\] must lie in \[0, 1\], got"):
        attacks.adversarial_missing(
            *(model.log_probs, model.inputs, model.labels, jax.random.key(0)),
            fraction={"image": np.linspace(0, 1.1, BATCH)},
            fill_value={"image": 0.0},
        )
