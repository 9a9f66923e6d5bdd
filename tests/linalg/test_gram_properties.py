import jax
import numpy as np
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from jacfuse_jax.linalg import recalibrate, recalibration_matrix, spectrum_from_kernel
from tests import reference

# Compiling takes longer than solving: few sizes, with all of the rest drawn at random.
SYSTEMS = {
    "sizes": st.sampled_from([(1, 2), (9, 5), (4, 12), (15, 12)]),  # features, classes
    "logit_scale": st.floats(0.01, 100),
    "kernel_scale": st.floats(1e-3, 1e3),
    "gamma": st.floats(1e-8, 1),
    "seed": st.integers(0, 2**32 - 1),
}


solve, solve_matrix = jax.jit(recalibrate), jax.jit(recalibration_matrix)
kernel_spectrum = jax.jit(spectrum_from_kernel)


def make_system(sizes, logit_scale, kernel_scale, seed):
    rng = np.random.default_rng(seed)
    kernel = kernel_scale * rng.normal(size=sizes)
    logits = logit_scale * rng.normal(size=(1, sizes[1]))
    return kernel, logits, scipy.special.softmax(logits, axis=-1)


@settings(max_examples=100, deadline=None)
@given(**SYSTEMS)
def test_solves_the_equation_backward_stably(gamma, **system):
    kernel, _, probs = make_system(**system)
    strength = (1 - gamma) / gamma
    R = np.asarray(solve_matrix(probs, kernel_spectrum(kernel), strength))[0]
    J, G = reference.softmax_jacobian(probs[0]), kernel.T @ kernel
    A, K = strength * J @ J, len(G)
    residual = np.linalg.norm(A @ R @ G + R - np.eye(K))
    # p is known to eps, and so is J, however small: A = c J^2 is known to eps c ||J||.
    known = strength * np.linalg.norm(J)
    size = known * np.linalg.norm(R) * np.linalg.norm(G) + np.linalg.norm(R) + K**0.5
    assert residual <= 30 * K * np.finfo(float).eps * size
    np.testing.assert_allclose(R.sum(axis=0), 1, atol=1e-10)


@settings(max_examples=100, deadline=None)
@given(**SYSTEMS)
def test_float32_is_finite_and_close_to_float64(gamma, **system):
    kernel, logits, probs = (array.astype(np.float32) for array in make_system(**system))
    strength = (1 - gamma) / gamma
    spectrum = jax.device_get(kernel_spectrum(kernel))
    low = np.asarray(solve(logits, probs, spectrum, strength))
    wide = type(spectrum)(*(array.astype(np.float64) for array in spectrum))
    high = np.asarray(
        solve(logits.astype(float), probs.astype(float), wide, float(np.float32(strength)))
    )
    assert np.isfinite(low).all()
    size = max(np.abs(high).max(), np.abs(logits).max())
    assert np.abs(low - high).max() <= 1e-5 * size
