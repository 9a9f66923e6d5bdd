"""Sylvester and generalized equations to solve, and what their solutions are held against."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax.linalg import solve_generalized, solve_sylvester
from jacfuse_jax.linalg._equations import Method
from tests.linalg.matrices import (
    norms,
    random_entries,
)

SOLVERS = {"sylvester": solve_sylvester, "generalized": solve_generalized}
FORMS = tuple(SOLVERS)
METHODS = ("bartels_stewart", "eigh", "auto")
REAL = ("float32", "float64")
# Compiling takes longer than solving: "auto", which holds both other methods, occurs once.
SOLVED = [
    ("sylvester", "eigh", "float32"),
    ("sylvester", "bartels_stewart", "float64"),
    ("generalized", "bartels_stewart", "float64"),
    ("generalized", "eigh", "float64"),
    ("sylvester", "auto", "float32"),
    *(
        pytest.param(*case, marks=pytest.mark.extended)
        for case in (
            ("sylvester", "eigh", "float64"),
            ("sylvester", "bartels_stewart", "float32"),
            ("generalized", "bartels_stewart", "float32"),
            ("generalized", "eigh", "float32"),
        )
    ),
]


# What a derivative is does not depend on XLA's optimisation, which takes most of the time.
_UNOPTIMISED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jax.__version_info__ < (0, 10):
    _UNOPTIMISED["xla_cpu_use_fusion_emitters"] = False  # later ones have no such option
jit_derivatives = functools.partial(jax.jit, compiler_options=_UNOPTIMISED)


def adjoint(matrices):
    return matrices.conj().swapaxes(-1, -2)


def hermitian(matrices):
    return (matrices + adjoint(matrices)) / 2


def apply_equation(form, a, b, x):
    """L(X)."""
    return a @ x + x @ b if form == "sylvester" else a @ x @ b + x


def kronecker_matrices(form, a, b):
    """L as matrices (..., m n, m n) that act on X row by row."""
    m, n = a.shape[-1], b.shape[-1]

    def kronecker(p, q):
        product = p[..., :, None, :, None] * q[..., None, :, None, :]
        return product.reshape(*product.shape[:-4], m * n, m * n)

    b = b.swapaxes(-1, -2)
    if form == "sylvester":
        return kronecker(a, np.eye(n, dtype=a.dtype)) + kronecker(np.eye(m, dtype=b.dtype), b)
    return kronecker(a, b) + np.eye(m * n, dtype=a.dtype)


def solve_densely(form, a, b, c):
    """X of one equation, from its m n x m n system."""
    return jnp.linalg.solve(kronecker_matrices(form, a, b), c.ravel()).reshape(c.shape)


def relative_norm(form, a, b):
    """||L|| in the sense of `SylvesterInfo`."""
    return norms(a) + norms(b) if form == "sylvester" else norms(a) * norms(b) + 1


def well_separated(form, m, n, dtype, batch, rng):
    """A, B, X, C in double precision with C = L(X) and eigenvalues of A and B about one.

    A, B and X are exact in the dtype.
    """
    wide = np.result_type(dtype, np.float64)
    a, b = (random_entries((*batch, k, k), wide, rng) / (4 * k**0.5) + np.eye(k) for k in (m, n))
    x = random_entries((*batch, m, n), wide, rng)
    a, b, x = (array.astype(dtype).astype(wide) for array in (a, b, x))
    return a, b, x, apply_equation(form, a, b, x)


def nine_equations(form, dtype, m=3):
    """A (9, m, m) and B (9, 3, 3), Hermitian, and C of the dtype: most tests share this shape.

    What decomposes coefficients of two shapes takes longer to compile.
    """
    a, b, _, c = well_separated(form, m, 3, dtype, (9,), np.random.default_rng(9))
    return [array.astype(dtype) for array in (hermitian(a), hermitian(b), c)]


def solve_fully(form, method: Method = "bartels_stewart"):
    solve_fn = SOLVERS[form]
    return lambda a, b, c: solve_fn(a, b, c, method=method, full_output=True)
