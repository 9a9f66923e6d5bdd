import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jacfuse_jax.linalg import schur, solve_generalized, solve_sylvester
from tests.linalg.matrices import all_finite, equation_errors, norms, random_entries, schur_errors

BATCH_SIZE = 8
# How the eigenvalues of a coefficient lie, from numbers drawn uniformly from (0, 1).
SPECTRA = {
    "spread": lambda u: 2 * u - 1,
    "positive": lambda u: u,
    "few values": lambda u: np.round(3 * u) / 3,
    "low rank": lambda u: np.where(u < 0.5, 0, u),
    "graded": lambda u: 1e-12**u,
    "signs": lambda u: np.where(u < 0.5, -1.0, 1.0),
    "zero": lambda u: 0 * u,
}
COEFFICIENTS = st.fixed_dictionaries(
    {
        "spectrum": st.sampled_from(sorted(SPECTRA)),
        "coupling": st.sampled_from([0.0, 1e-6, 1.0, 1e3]),  # zero for normal matrices
        "exponent": st.floats(-15, 15),
    }
)
# Compiling takes far longer than solving: few combinations, with all of the rest drawn at random.
EQUATIONS = [
    ("sylvester", 4, 3, "float32"),
    ("sylvester", 2, 2, "complex128"),
    ("generalized", 3, 4, "float64"),
    ("generalized", 2, 1, "complex64"),
]


def make_coefficients(n, dtype, rng, spectrum, coupling, exponent):
    """Q (D + coupling N) Q^H times a power of ten, N strictly upper triangular; (B, n, n)."""
    wide = np.result_type(dtype, np.float64)
    eigenvalues = SPECTRA[spectrum](rng.random((BATCH_SIZE, n)))
    if np.dtype(dtype).kind == "c" and spectrum != "positive":
        eigenvalues = eigenvalues * np.exp(2j * np.pi * rng.random((BATCH_SIZE, n)))
    N = np.triu(random_entries((BATCH_SIZE, n, n), wide, rng), 1)
    Q = np.linalg.qr(random_entries((BATCH_SIZE, n, n), wide, rng))[0]
    T = eigenvalues[..., None] * np.eye(n) + coupling * N
    return (10.0**exponent * (Q @ T @ Q.conj().swapaxes(-1, -2))).astype(dtype)


@functools.cache
def solver(form):
    solve = solve_sylvester if form == "sylvester" else solve_generalized
    return jax.jit(functools.partial(solve, method="bartels_stewart", full_output=True))


@pytest.mark.parametrize(("form", "m", "n", "dtype"), EQUATIONS)
@settings(max_examples=100, deadline=None)
@given(a=COEFFICIENTS, b=COEFFICIENTS, seed=st.integers(0, 2**32 - 1))
def test_solves_backward_stably_or_says_why_not(form, m, n, dtype, a, b, seed):
    rng = np.random.default_rng(seed)
    a, b = (make_coefficients(k, dtype, rng, **drawn) for k, drawn in ((m, a), (n, b)))
    size = norms(a.astype(np.complex128)) + norms(b.astype(np.complex128))
    size = size if form == "sylvester" else np.ones(BATCH_SIZE)
    c = (size[:, None, None] * random_entries((BATCH_SIZE, m, n), dtype, rng)).astype(dtype)
    x, info = solver(form)(a, b, c)
    x = np.asarray(x)
    residual, separation, converged = (np.asarray(array) for array in info)
    eps = np.finfo(dtype).eps
    solved = all_finite(x)
    errors = equation_errors(form, *(array[solved] for array in (a, b, c, x)))
    assert (errors <= 30).all()
    assert solved[converged].all()
    assert np.isnan(residual[~solved]).all()
    assert (separation >= 0).all()
    assert (separation <= 1 + 4 * eps).all()
    np.testing.assert_array_equal(converged, separation > 4 * eps)


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@settings(max_examples=100, deadline=None)
@given(a=COEFFICIENTS, seed=st.integers(0, 2**32 - 1))
def test_schur_form_is_backward_stable(dtype, a, seed):
    matrices = make_coefficients(5, dtype, np.random.default_rng(seed), **a)
    t, q, info = schur(matrices, full_output=True)
    assert info.converged.all()
    assert not np.tril(t, -1).any()
    for errors in schur_errors(matrices, t, q):
        assert errors.max() <= 30


@pytest.mark.parametrize("form", ["sylvester", "generalized"])
@settings(max_examples=50, deadline=None)
@given(a=COEFFICIENTS, b=COEFFICIENTS, factor=st.integers(-30, 30), seed=st.integers(0, 2**32 - 1))
def test_powers_of_two_pass_through(form, a, b, factor, seed):
    rng = np.random.default_rng(seed)
    a, b = (make_coefficients(2, "float64", rng, **drawn) for drawn in (a, b))
    c = random_entries((BATCH_SIZE, 2, 2), "float64", rng)
    x, info = solver(form)(a, b, c)
    if form == "sylvester":
        out, scaled = solver(form)(a * 2.0**factor, b * 2.0**factor, c)
        out = out * 2.0**factor
    else:
        out, scaled = solver(form)(a * 2.0**factor, b * 2.0**-factor, c)
    np.testing.assert_array_equal(scaled.converged, info.converged)
    np.testing.assert_array_equal(scaled.separation, info.separation)
    np.testing.assert_array_equal(out, x)
