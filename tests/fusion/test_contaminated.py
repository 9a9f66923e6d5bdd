import functools
import itertools

import jax
import numpy as np
import pytest
import scipy.special
from jax.test_util import check_grads

from jacfuse_jax import fusion
from tests.fusion import rules

NAMES = ("image", "audio", "video")


def make_problem(dtype="float64", num_classes=5, logit_scale=3.0):
    rng = np.random.default_rng(0)
    logits = {m: (logit_scale * rng.normal(size=(6, num_classes))).astype(dtype) for m in NAMES}
    return logits, rng.dirichlet(np.full(num_classes, 3.0)).astype(dtype)


def by_definition(logits, prior, contamination, tempering, perturbed):
    """Products of probabilities in float64."""
    prior = prior.astype(float) / prior.astype(float).sum()
    fused = np.tile(prior, (6, 1))
    for name, z in logits.items():
        e, t = (contamination, tempering) if name in perturbed else (0, 1)
        p = (1 - e) * scipy.special.softmax(z.astype(float), axis=-1) + e * prior
        fused = fused * (p / prior) ** t
    return fused / fused.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("perturbed", [("image", "video"), "image", None])
def test_is_its_definition(perturbed, dtype):
    logits, prior = make_problem(dtype)
    names = NAMES if perturbed is None else np.atleast_1d(perturbed)
    for contamination, tempering in itertools.product((0.0, 1e-3, 0.5, 1.0), (0.0, 0.3, 1.0)):
        fused = rules.contaminated_fusion(
            logits, prior, contamination=contamination, tempering=tempering, perturbed=perturbed
        )
        assert fused.dtype == dtype
        expected = by_definition(logits, prior, contamination, tempering, names)
        np.testing.assert_allclose(np.exp(fused), expected, rtol=200 * np.finfo(dtype).eps)


def test_limits_are_the_other_rules():
    logits, prior = make_problem()
    fuse = functools.partial(rules.contaminated_fusion, logits, prior)
    scaled = functools.partial(rules.scaled_fusion, logits, prior, perturbed="audio")
    for actual, expected in (
        (fuse(contamination=0.0), rules.statistical_fusion(logits, prior)),
        (fuse(contamination=0.0, tempering=0.3, perturbed="audio"), scaled(scale=0.3)),
        (fuse(contamination=1.0, perturbed="audio"), scaled(scale=0.0)),
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4, 1e30])
def test_influence_is_bounded_whatever_the_logits(size, dtype):
    logits, prior = make_problem(dtype)
    e, t = 0.3, 0.5
    trusted = np.asarray(rules.statistical_fusion({"audio": logits["audio"]}, prior))
    extreme = {**logits, "image": np.asarray(size * np.sign(logits["image"]), dtype)}
    del extreme["video"]
    fused = np.asarray(
        rules.contaminated_fusion(extreme, prior, contamination=e, tempering=t, perturbed="image")
    )
    moved = fused - trusted
    spread = (moved.max(axis=-1) - moved.min(axis=-1)).max()
    bound = t * (np.log((1 - e) / prior.min() + e) - np.log(e))
    assert np.isfinite(fused).all()
    assert spread <= bound * (1 + 1e-5)
    log_probs = rules.contaminated_log_probs(extreme["image"], prior, contamination=e)
    log_ratio = np.asarray(log_probs) - np.log(prior)
    rounding = 1e-5
    assert log_ratio.min() >= np.log(e) - rounding
    assert (log_ratio <= np.log((1 - e) / prior + e) + rounding).all()


def test_gradients_match_finite_differences():
    logits, prior = make_problem()

    @jax.jit
    def fn(logits, contamination, tempering):
        return fusion.contaminated_fusion(
            logits, prior, contamination=contamination, tempering=tempering
        )

    check_grads(fn, (logits, 0.3, 0.5), order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda z: fn(z, 0.0, 1.0)[0, 0]))(logits)
    assert all(np.isfinite(g).all() for g in gradient.values())


def test_recalibrated_contaminated_likelihoods_are_fused_like_logits():
    logits, prior = make_problem()
    bounded = {
        **logits,
        "image": rules.contaminated_log_probs(logits["image"], prior, contamination=0.5),
    }
    gram = {"image": np.eye(5)}
    unchanged = rules.robust_fusion(bounded, gram, prior, perturbed="image", gamma=1.0)
    expected = rules.contaminated_fusion(logits, prior, contamination=0.5, perturbed="image")
    np.testing.assert_allclose(unchanged.log_probs, expected, rtol=1e-12)


def test_nan_of_a_trusted_modality_stays_in_its_sample():
    logits, prior = make_problem()
    broken = {name: z.copy() for name, z in logits.items()}
    broken["audio"][2, 1] = np.nan
    fuse = functools.partial(
        rules.contaminated_fusion, class_prior=prior, contamination=0.3, perturbed=("image",)
    )
    fused, intact = np.asarray(fuse(broken)), np.asarray(fuse(logits))
    assert np.isnan(fused[2]).all()
    np.testing.assert_array_equal(np.delete(fused, 2, 0), np.delete(intact, 2, 0))


@pytest.mark.parametrize("rule", [fusion.max_fusion, fusion.product_fusion])
def test_max_and_product_are_their_definitions(rule, dtype):
    logits, _ = make_problem(dtype)
    probs = np.stack([scipy.special.softmax(z.astype(float), -1) for z in logits.values()])
    fused = probs.max(axis=0) if rule is fusion.max_fusion else probs.prod(axis=0)
    fused = fused / fused.sum(axis=-1, keepdims=True)
    actual = jax.jit(rule)(logits)
    assert actual.dtype == dtype
    np.testing.assert_allclose(np.exp(actual), fused, rtol=200 * np.finfo(dtype).eps)


def test_misuse():
    logits, prior = make_problem()
    with pytest.raises(ValueError, match=r"contamination must lie in \[0, 1\], got 1.5"):
        fusion.contaminated_fusion(logits, prior, contamination=1.5)
    with pytest.raises(ValueError, match=r"tempering must lie in \[0, 1\], got -1"):
        fusion.contaminated_fusion(logits, prior, contamination=0.5, tempering=-1.0)
    with pytest.raises(ValueError, match="perturbed names 'smell'"):
        fusion.contaminated_fusion(logits, prior, contamination=0.5, perturbed="smell")
    with pytest.raises(ValueError, match=r"logits must have shape \(B, K\), got \(5,\)"):
        fusion.contaminated_log_probs(np.ones(5), prior, contamination=0.5)
    with pytest.raises(TypeError, match="logits must be float32 or float64, got int"):
        fusion.contaminated_log_probs(np.ones((2, 5), int), prior, contamination=0.5)


def test_modalities_that_are_not_perturbed_keep_their_logits():
    logits = {name: np.random.default_rng(i).normal(size=(5, 3)) for i, name in enumerate("abc")}
    prior = np.array([0.5, 0.3, 0.2])
    found = fusion.contaminate_modalities(logits, prior, contamination=0.3, perturbed=("a", "c"))
    np.testing.assert_array_equal(found["b"], logits["b"])
    for name in "ac":
        exponentials = np.exp(logits[name])
        probs = exponentials / exponentials.sum(axis=1, keepdims=True)
        expected = np.log(0.7 * probs + 0.3 * prior)
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="perturbed names 'd', but the modalities are"):
        fusion.contaminate_modalities(logits, prior, contamination=0.3, perturbed="d")
