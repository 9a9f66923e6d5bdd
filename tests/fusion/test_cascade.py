from typing import Any

import jax
import numpy as np
import pytest
import scipy.special
from jax.test_util import check_grads

from jacfuse_jax import fusion
from tests.fusion import rules

NAMES = ("image", "audio", "video")


def make_problem(dtype="float64", num_classes=5):
    rng = np.random.default_rng(0)
    logits = {m: (3 * rng.normal(size=(40, num_classes))).astype(dtype) for m in NAMES}
    return logits, rng.dirichlet(np.full(num_classes, 3.0)).astype(dtype)


def fuse_trusted(logits, prior):
    """Audio and video alone, in float64."""
    z = {m: np.asarray(logits[m], float) for m in ("audio", "video")}
    probs = np.prod([scipy.special.softmax(a, axis=-1) for a in z.values()], axis=0) / prior
    return probs / probs.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("confidence", [0.6, 0.95])
def test_is_its_definition(confidence, dtype):
    logits, prior = make_problem(dtype)
    options: Any = {"contamination": 0.3, "tempering": 0.5, "perturbed": "image"}
    fused = rules.cascade_fusion(logits, prior, confidence=confidence, **options)
    assert fused.dtype == dtype
    trusted = fuse_trusted(logits, prior)
    is_sure = trusted.max(axis=-1) > confidence
    assert 5 < is_sure.sum() < 35
    rest = np.exp(rules.contaminated_fusion(logits, prior, **options))
    expected = np.where(is_sure[:, None], trusted, rest)
    np.testing.assert_allclose(np.exp(fused), expected, rtol=400 * np.finfo(dtype).eps)


def test_limits_are_the_other_rules():
    logits, prior = make_problem()
    options: Any = {"contamination": 0.3, "tempering": 0.5, "perturbed": "image"}
    contaminated = rules.contaminated_fusion(logits, prior, **options)
    never = rules.cascade_fusion(logits, prior, confidence=1.0, **options)
    np.testing.assert_array_equal(never, contaminated)
    always = rules.cascade_fusion(logits, prior, confidence=0.0, **options)
    dropped = rules.scaled_fusion(logits, prior, perturbed="image", scale=0.0)
    np.testing.assert_allclose(always, dropped, rtol=1e-12)
    nobody = rules.cascade_fusion(logits, prior, perturbed=NAMES, confidence=0.5)
    statistical = rules.statistical_fusion(logits, prior)
    np.testing.assert_allclose(nobody, statistical, rtol=1e-12)


@pytest.mark.parametrize("says", [np.nan, np.inf, 1e30])
def test_nothing_moves_a_sample_of_which_the_trusted_are_sure(says, dtype):
    logits, prior = make_problem(dtype)
    is_sure = fuse_trusted(logits, prior).max(axis=-1) > 0.9

    def fuse(logits):
        return np.asarray(rules.cascade_fusion(logits, prior, perturbed="image", confidence=0.9))

    before = fuse(logits)
    for label in range(5):
        image = np.zeros((40, 5), dtype)
        image[:, label] = says
        after = fuse({**logits, "image": image})
        np.testing.assert_array_equal(after[is_sure], before[is_sure])
        assert (after[~is_sure] != before[~is_sure]).any(axis=-1).all()


def test_gradients_match_finite_differences():
    logits, prior = make_problem()

    @jax.jit
    def fn(logits, tempering):
        return fusion.cascade_fusion(
            logits,
            prior,
            perturbed="image",
            confidence=0.9,
            contamination=0.2,
            tempering=tempering,
        )

    check_grads(fn, (logits, 0.5), order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)


def test_misuse():
    logits, prior = make_problem()
    with pytest.raises(ValueError, match=r"confidence must lie in \[0, 1\], got 1.5"):
        fusion.cascade_fusion(logits, prior, perturbed="image", confidence=1.5)
    with pytest.raises(ValueError, match="perturbed names 'smell'"):
        fusion.cascade_fusion(logits, prior, perturbed="smell", confidence=0.5)
