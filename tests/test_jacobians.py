from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jacfuse_jax import fusion, jacobians
from jacfuse_jax.linalg import recalibration_matrix
from tests import reference
from tests.fusion import rules

differentiate = jax.jit(jacobians.per_sample_jacobian, static_argnums=0)


def tolerance(num_classes, dtype):
    return 10 * num_classes * np.finfo(dtype).eps


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# Forward and reverse, all batch sizes, and both dtypes, each with the other.
@pytest.mark.parametrize(
    ("mode", "batch_size", "dtype"),
    [
        ("forward", None, "float64"),
        ("reverse", None, "float32"),
        ("forward", 2, "float32"),
        ("reverse", 2, "float64"),
        ("forward", 1, "float64"),
        ("reverse", 5, "float64"),
        ("forward", 50, "float64"),
    ],
)
def test_matches_the_derivative_of_a_polynomial(rng, mode, batch_size, dtype):
    W = rng.normal(size=(4, 2, 3)).astype(dtype)
    x = rng.normal(size=(5, 2, 3)).astype(dtype)

    @jax.jit
    def jacobian_of(x):
        return jacobians.per_sample_jacobian(
            lambda x: jnp.einsum("khw,hw->k", W, x**2), x, mode=mode, batch_size=batch_size
        )

    jac = jacobian_of(x)
    assert jac.dtype == dtype
    np.testing.assert_allclose(jac, 2 * W * x[:, None], rtol=tolerance(4, dtype))


def test_pytree_inputs_give_a_pytree_of_jacobians(rng):
    x = {"a": rng.normal(size=(5, 2)), "b": rng.normal(size=(5, 3))}
    # Outside of jit.
    jac = jacobians.per_sample_jacobian(lambda x: jnp.outer(x["a"], x["b"]).ravel(), x)
    assert jac["a"].shape == (5, 6, 2)
    assert jac["b"].shape == (5, 6, 3)
    expected = np.kron(np.eye(2), x["b"][2][:, None])
    np.testing.assert_allclose(np.asarray(jac["a"])[2], expected, atol=1e-15)


def test_unknown_mode_is_refused(rng):
    with pytest.raises(ValueError, match="mode must be 'forward' or 'reverse', got 'both'"):
        jacobians.per_sample_jacobian(lambda x: x, rng.normal(size=(2, 2)), mode=cast(Any, "both"))


@pytest.mark.parametrize("num_classes", [10, 2, 309])
def test_softmax_jacobian(rng, num_classes, dtype):
    logits = 3 * rng.normal(size=(3, num_classes)).astype(dtype)
    probs = scipy.special.softmax(logits, axis=-1)
    closed_form = jax.jit(jacobians.softmax_jacobian)(probs)
    assert closed_form.dtype == dtype
    expected = np.stack([reference.softmax_jacobian(p) for p in probs.astype(float)])
    np.testing.assert_allclose(closed_form, expected, atol=tolerance(1, dtype))


def test_softmax_jacobian_is_that_of_automatic_differentiation(rng):
    logits = 3 * rng.normal(size=(3, 10))
    closed_form = jacobians.softmax_jacobian(jax.nn.softmax(logits))  # outside of jit
    automatic = differentiate(jax.nn.softmax, logits)
    np.testing.assert_allclose(closed_form, automatic, atol=tolerance(1, float))


def test_head_jacobian_and_its_gram_matrix(rng, dtype):
    kernel, bias = rng.normal(size=(6, 4)).astype(dtype), rng.normal(size=4).astype(dtype)
    h = rng.normal(size=(3, 6)).astype(dtype)

    @jax.jit
    def jacobian_and_gram(h):
        jac = jacobians.per_sample_jacobian(lambda h: h @ kernel + bias, h)
        return jac, jacobians.gram_from_jacobian(jac)

    jac, own = jacobian_and_gram(h)
    np.testing.assert_allclose(jac, np.stack([kernel.T] * 3), rtol=tolerance(4, dtype))
    shared = jacobians.gram_from_head(kernel)
    np.testing.assert_allclose(shared, kernel.T @ kernel, atol=tolerance(10, dtype))
    np.testing.assert_allclose(own, np.stack([shared] * 3), atol=tolerance(10, dtype))


def test_gram_of_an_input_jacobian_sums_over_all_input_axes(rng):
    jac = rng.normal(size=(2, 4, 5, 6, 1))
    expected = np.einsum("bkhwc,blhwc->bkl", jac, jac)
    np.testing.assert_allclose(jacobians.gram_from_jacobian(jac), expected, atol=1e-12)
    one = jac[0, :, :, 0, 0]
    np.testing.assert_allclose(jacobians.gram_from_jacobian(one), one @ one.T, atol=1e-12)


def test_fused_jacobian_matches_automatic_differentiation_with_the_recalibration_frozen(rng):
    kernel = rng.normal(size=(6, 4))
    features, trusted = rng.normal(size=(3, 6)), rng.normal(size=(3, 4))
    prior = scipy.special.softmax(rng.normal(size=4))
    logits = {"a": features @ kernel, "b": trusted}
    spectrum = jax.device_get(rules.kernel_spectrum(kernel))
    p = reference.statistical_fusion(logits, prior)
    R = jax.device_get(jax.jit(recalibration_matrix)(p, spectrum, 9.0))

    def fused_probs(sample):
        h, z, R = sample["h"], sample["z"], sample["R"]
        return jax.nn.softmax(R @ (h @ kernel) + z - jnp.log(prior))

    samples = {"h": features, "z": trusted, "R": R}
    automatic = differentiate(fused_probs, samples)["h"]
    probs = jax.jit(jax.vmap(fused_probs))(samples)
    closed_form = jacobians.fused_jacobian(probs, R, kernel)  # outside of jit
    np.testing.assert_allclose(closed_form, automatic, atol=1e-14)
    out = rules.robust_fusion(logits, {"a": spectrum}, prior, perturbed="a", gamma=0.1)
    norms = np.linalg.norm(automatic, axis=(1, 2))
    np.testing.assert_allclose(out.jacobian_norm, norms, rtol=1e-12)


def test_jacobian_of_the_statistical_fusion_is_that_of_the_softmax(rng):
    kernel = rng.normal(size=(6, 4))
    prior = np.full(4, 0.25)
    samples = {"h": rng.normal(size=(3, 6)), "z": rng.normal(size=(3, 4))}

    def fused_probs(sample):
        logits = {"a": (sample["h"] @ kernel)[None], "b": sample["z"][None]}
        return jnp.exp(fusion.statistical_fusion(logits, prior))[0]

    automatic = differentiate(fused_probs, samples)["h"]
    probs = jax.jit(jax.vmap(fused_probs))(samples)
    expected = np.stack([reference.softmax_jacobian(p) @ kernel.T for p in np.asarray(probs)])
    np.testing.assert_allclose(automatic, expected, atol=1e-14)
    identity = np.stack([np.eye(4)] * 3)
    closed_form = jacobians.fused_jacobian(probs, identity, kernel)
    np.testing.assert_allclose(closed_form, expected, atol=1e-14)


def test_misuse():
    with pytest.raises(ValueError, match=r"kernel must have shape \(H, K\), got \(2,\)"):
        jacobians.gram_from_head(np.ones(2))
    with pytest.raises(ValueError, match=r"jac must have shape .* got \(2,\)"):
        jacobians.gram_from_jacobian(np.ones(2))
    with pytest.raises(TypeError, match="probs must be float32 or float64, got int64"):
        jacobians.softmax_jacobian(np.ones(2, int))
    with pytest.raises(ValueError, match=r"got \(1, 2\), \(1, 2, 2\) and \(3, 3\)"):
        jacobians.fused_jacobian(np.ones((1, 2)), np.ones((1, 2, 2)), np.ones((3, 3)))
