"""What is called provable, in the dtype that it is computed in.

float32 results are held against those of the same numbers in float64: never better, and not worse
than by a factor of ten either, so that zero is no way out. What is within rounding of a tie is left
out of the second half: there zero is all that can be said.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import bounds, certificates, fusion, jacobians, linalg
from tests.fusion import rules

# K = 309 is what a large data set has; its radii of robust fusion take a decomposition a sample.
SIZES = [(2, 2000), (10, 1000), (309, 48)]
PARAMETERS = [(0.0, 1.0), (0.01, 1.0), (0.3, 0.3), (0.9, 1.0)]
GAMMAS = (0.5, 0.1, 1e-3, 1e-6, 1e-9)

certified_radius = jax.jit(
    certificates.certified_radius, static_argnames=("corrupted", "perturbed")
)
bias_bound = jax.jit(bounds.bias_bound, static_argnames="perturbed")


@functools.cache
def make_problem(num_classes, num_rows):
    """Saturated and spread samples, in float32: logits, prior and the spectrum of a kernel."""
    rng = np.random.default_rng(num_classes)
    rows = np.arange(num_rows)
    logits = {}
    for name, leads in (("image", (0, 5, 20, 60)), ("audio", (0, 5, 20))):
        scale = rng.choice([0.3, 1, 3, 10], size=(num_rows, 1))
        z = scale * rng.normal(size=(num_rows, num_classes))
        z[rows, rng.integers(num_classes, size=num_rows)] += rng.choice(leads, size=num_rows)
        logits[name] = z.astype(np.float32)
    prior = rng.dirichlet(np.full(num_classes, 3.0)).astype(np.float32)
    kernel = rng.normal(size=(64, num_classes))
    spectrum = linalg.spectrum_from_kernel(kernel.astype(np.float32))
    return logits, prior, {"image": jax.device_get(spectrum)}


def in_both(fn, *problem):
    """Results in float32 and in float64, as float64."""
    wide = jax.tree.map(lambda x: x.astype(np.float64), problem)
    return tuple(np.asarray(fn(*args), np.float64) for args in (problem, wide))


def lead(log_probs):
    """By how much the largest entry of each row exceeds the second."""
    ordered = np.sort(np.asarray(log_probs, np.float64), axis=1)
    return ordered[:, -1] - ordered[:, -2]


@pytest.mark.parametrize(("num_classes", "num_rows"), SIZES)
@pytest.mark.parametrize("corrupted", ["image", "audio"])
def test_radii_of_contaminated_fusion_in_float32_are_those_of_float64(
    num_classes, num_rows, corrupted
):
    logits, prior, _ = make_problem(num_classes, num_rows)
    for e, t in PARAMETERS:
        options: Any = {"contamination": np.float32(e), "tempering": np.float32(t)}
        rule = fusion.Contaminated(**options)
        low, high = in_both(
            functools.partial(certified_radius, rule, corrupted=corrupted, perturbed="image"),
            *(logits, prior),
        )
        assert (low <= high * (1 + 1e-6)).all()
        fused = rules.contaminated_fusion(logits, prior, perturbed="image", **options)
        is_clear = lead(fused) > 1e-2
        assert is_clear.mean() > 0.9
        assert (low >= 0.1 * high)[is_clear].all()


@pytest.mark.parametrize(("num_classes", "num_rows"), SIZES)
def test_radii_and_bounds_of_robust_fusion_in_float32_are_those_of_float64(num_classes, num_rows):
    logits, prior, grams = make_problem(num_classes, num_rows)
    for gamma in GAMMAS:
        options: Any = {"perturbed": "image", "gamma": np.float32(gamma)}
        low, high = in_both(
            lambda logits, grams, prior, rule: certified_radius(
                rule, logits, prior, corrupted="image", perturbed="image", grams=grams
            ),
            *(logits, grams, prior, fusion.Robust(np.float32(gamma))),
        )
        assert (low <= high * (1 + 1e-6)).all()
        fused = rules.robust_fusion(logits, grams, prior, **options).log_probs
        # The rounding of R z grows with the number of its terms.
        is_clear = lead(fused) > (0.02 if num_classes < 100 else 0.5)
        assert is_clear.any()
        assert (low >= 0.1 * high)[is_clear].all()

        low, high = in_both(functools.partial(bias_bound, **options), logits, grams, prior)
        assert (low >= high * (1 - 1e-6)).all()
        assert (low <= 10 * high + 1e-28).all()  # beyond what float32 holds it is rounded up


def directions(fused, num_random):
    """Unit vectors (T, B, K): from the class to each of a few others, and random ones."""
    rng = np.random.default_rng(0)
    eye, ranked = np.eye(fused.shape[1]), np.asarray(fused).argsort(axis=1)[:, ::-1]
    to_rivals = [eye[rival] - eye[ranked[:, 0]] for rival in ranked.T[1:9]]
    drawn = [*to_rivals, *rng.normal(size=(num_random, *fused.shape))]
    return [d / np.linalg.norm(d, axis=1, keepdims=True) for d in drawn]


def flips(fuse_fn, logits, radius):
    """Whether moves of the image by 0.999 of the radius change a sample's class, (B,)."""
    dtype = logits["image"].dtype
    fused = fuse_fn(logits)
    label = np.asarray(fused).argmax(axis=1)
    found = np.zeros(len(label), bool)
    size = 0.999 * np.minimum(np.asarray(radius, np.float64), 1e4)[:, None]
    for direction in directions(fused, num_random=4):
        moved = logits["image"] + (size * direction).astype(dtype)
        found |= np.asarray(fuse_fn({**logits, "image": moved})).argmax(axis=1) != label
    return found


@pytest.mark.parametrize("num_classes", [2, 10])
def test_no_class_changes_within_a_radius(num_classes, dtype):
    logits, prior, grams = jax.tree.map(
        lambda x: x.astype(dtype), make_problem(num_classes, dict(SIZES)[num_classes])
    )
    for e, t in PARAMETERS:
        options: Any = {"contamination": e, "tempering": t, "perturbed": "image"}
        fuse_fn = functools.partial(rules.contaminated_fusion, class_prior=prior, **options)
        radius = certified_radius(
            fusion.Contaminated(e, t), logits, prior, corrupted="image", perturbed="image"
        )
        assert not flips(fuse_fn, logits, radius).any()
        assert flips(fuse_fn, logits, 3 * np.asarray(radius) + 1e-3).any()
    for gamma in GAMMAS:
        fuse_fn = functools.partial(
            lambda z, gamma: (
                rules.robust_fusion(z, grams, prior, perturbed="image", gamma=gamma).log_probs
            ),
            gamma=gamma,
        )
        radius = certified_radius(
            fusion.Robust(gamma),
            *(logits, prior),
            corrupted="image",
            perturbed="image",
            grams=grams,
        )
        assert not flips(fuse_fn, logits, radius).any()


def test_the_log_odds_of_a_saturated_class_are_not_rounded_up():
    """As a difference log(1 - p) of this image has three digits, and a radius of 13.32 follows."""
    a = np.array([[10.964576721191406, -4.599841594696045]], np.float32)
    logits = {"a": a, "b": np.array([[2.8441970348358154, 0.0]], np.float32)}
    prior = np.full(2, 0.5, np.float32)
    options: Any = {"contamination": 0.01, "perturbed": "a"}
    rule = fusion.Contaminated(0.01)
    radius = certificates.certified_radius(rule, logits, prior, corrupted="a", perturbed="a")
    np.testing.assert_allclose(radius, 13.08 * 0.999, rtol=1e-4)
    moved = {
        **logits,
        "a": a + 0.99 * float(radius[0]) * np.array([-1, 1], np.float32) / np.float32(2**0.5),
    }
    fused = fusion.contaminated_fusion(moved, prior, **options)
    assert fused[0, 0] > fused[0, 1]


def saturated_probs(num_classes, leading):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(20, num_classes))
    z[:, 0] += leading
    return np.exp(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))


@pytest.mark.parametrize("leading", [0, 20, 60])
def test_every_entry_of_a_softmax_jacobian_has_its_digits(leading, dtype):
    probs = saturated_probs(10, leading).astype(dtype)
    p = probs.astype(np.longdouble)
    expected = -p[:, :, None] * p[:, None]
    # p_i - p_i^2 for probabilities that sum to one in exact arithmetic.
    others = p.sum(axis=1, keepdims=True) - p
    likeliest = p.argmax(axis=1)
    rows = np.arange(len(p))
    others[rows, likeliest] = (
        np.delete(p, 0, axis=1).sum(axis=1) if leading else others[rows, likeliest]
    )
    np.einsum("bii->bi", expected)[...] = p * others
    np.testing.assert_allclose(
        jacobians.softmax_jacobian(probs), expected.astype(dtype), rtol=40 * np.finfo(dtype).eps
    )


@pytest.mark.parametrize("solver", ["closed_form", "eigh"])
@pytest.mark.parametrize("leading", [20, 40, 60])
def test_norms_of_saturated_samples_have_their_digits(solver, leading):
    rng = np.random.default_rng(0)
    logits = {name: rng.normal(size=(50, 10)).astype(np.float32) for name in ("image", "audio")}
    logits["image"][:, 0] += leading
    prior = np.full(10, 0.1, np.float32)
    grams = {"image": jax.device_get(linalg.spectrum_from_kernel(rng.normal(size=(32, 10))))}
    grams = jax.tree.map(lambda x: x.astype(np.float32), grams)

    def norm(logits, grams, prior):
        out = rules.robust_fusion(
            logits, grams, prior, perturbed="image", gamma=np.float32(1e-6), solver=solver
        )
        return out.jacobian_norm

    low, high = in_both(norm, logits, grams, prior)
    assert (high > 0).all()
    # Probabilities of e^-60 are known to 60 eps.
    np.testing.assert_allclose(low, high, rtol=1.2e-5 * max(1, leading / 20))


@pytest.mark.slow
def test_total_jacobians_of_saturated_samples_have_their_digits():
    logits, prior, grams = make_problem(10, 1000)
    some = {name: z[:40] for name, z in logits.items()}
    total = jax.jit(
        functools.partial(bounds.total_jacobian, perturbed="image", gamma=np.float32(0.1))
    )
    norms = [
        np.asarray(
            bounds.jacobian_norms(
                {"image": total(*arguments)["image"]}, {"image": arguments[1]["image"]}
            ).frobenius,
            np.float64,
        )
        for arguments in (
            (some, grams, prior),
            jax.tree.map(lambda x: x.astype(np.float64), (some, grams, prior)),
        )
    ]
    assert norms[1].min() < 1e-9
    np.testing.assert_allclose(*norms, rtol=1e-3)


def test_bounds_at_the_ends_of_their_parameters():
    logits, prior, grams = make_problem(10, 1000)
    for gamma in (1e-37, 1.0):
        bound = np.asarray(bias_bound(logits, grams, prior, perturbed="image", gamma=gamma))
        assert np.isfinite(bound).all()
        assert (bound == 0).all() == (gamma == 1)
    assert bounds.a_priori_bound(1.0, 1) == 0
    assert bounds.a_priori_bound(1.0, 2, lipschitz=0.0) == 0
    assert bounds.a_priori_bound(np.float32(0.3), 7) >= bounds.a_priori_bound(
        np.float64(np.float32(0.3)), 7
    ).astype(jnp.float32)
