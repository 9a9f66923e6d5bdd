import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tests.linalg.equations import (
    SOLVERS,
    hermitian,
    jit_derivatives,
    solve_densely,
    solve_fully,
    well_separated,
)
from tests.linalg.matrices import (
    random_entries,
)


def defective_and_rank_deficient(form, m, n, dtype, rng):
    """A, B, C (4, ...): random, with repeated eigenvalues, Jordan blocks, and of low rank."""
    a, b, _, c = well_separated(form, m, n, dtype, (4,), rng)
    a[1], b[1] = 2 * np.eye(m), 3 * np.eye(n)
    a[2], b[2] = 2 * np.eye(m) + np.eye(m, k=1), np.eye(n) + np.eye(n, k=1)
    a[3] = 0
    a[3, -1, -1] = 2
    if form == "generalized":
        b[3] = 0
    return a, b, c


class TestDerivatives:
    @pytest.mark.parametrize(
        ("form", "method", "dtype"),
        [
            ("generalized", "eigh", "complex128"),
            # Held against dense systems below.
            pytest.param("sylvester", "bartels_stewart", "float64", marks=pytest.mark.extended),
        ],
    )
    def test_agree_with_finite_differences_to_second_order(self, form, method, dtype):
        arrays = defective_and_rank_deficient(form, 2, 2, dtype, np.random.default_rng(0))
        prepare = hermitian if method == "eigh" else (lambda matrices: matrices)

        @jax.jit  # nested, which takes no options
        def solve(a, b, c):
            return SOLVERS[form](prepare(a), prepare(b), c, method=method)

        check_grads(solve, arrays, order=2, atol=1e-6, rtol=1e-6, eps=1e-5)


class TestDerivativesAgainstDenseSystems:
    @pytest.mark.parametrize(
        ("form", "method", "dtype"),
        [
            ("generalized", "eigh", "float64"),
            ("sylvester", "bartels_stewart", "complex128"),
            ("generalized", "bartels_stewart", "float64"),
            ("sylvester", "eigh", "complex128"),
            ("sylvester", "auto", "float64"),
            pytest.param(
                *("generalized", "bartels_stewart", "complex128"), marks=pytest.mark.extended
            ),
            pytest.param(*("sylvester", "eigh", "float64"), marks=pytest.mark.extended),
        ],
    )
    def test_gradients_and_their_derivatives(self, form, method, dtype):
        rng = np.random.default_rng(0)
        arrays = defective_and_rank_deficient(form, 4, 3, dtype, rng)
        tangents = tuple(random_entries(array.shape, dtype, rng) for array in arrays)
        weights = random_entries(arrays[2].shape, dtype, rng)
        prepare = hermitian if method == "eigh" else (lambda matrices: matrices)

        def derivatives(solve):
            """Gradients in A, B and C, and their derivatives along the tangents."""

            def loss(a, b, c):
                return (weights * jnp.sin(solve(prepare(a), prepare(b), c))).sum().real

            grad_fn = jax.grad(loss, argnums=(0, 1, 2))
            return jax.tree.leaves(
                jit_derivatives(functools.partial(jax.jvp, grad_fn))(arrays, tangents)
            )

        solve = functools.partial(SOLVERS[form], method=method)
        if (form, method, dtype) == ("generalized", "bartels_stewart", "float64"):
            solve = jax.vmap(solve)
        dense = derivatives(jax.vmap(functools.partial(solve_densely, form)))
        for actual, expected in zip(derivatives(solve), dense, strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-9 * np.abs(expected).max())

    @pytest.mark.parametrize(
        ("form", "method"), [("sylvester", "bartels_stewart"), ("generalized", "eigh")]
    )
    def test_one_element_does_not_spoil_the_others(self, form, method):
        a, b, _, c = well_separated(form, 2, 2, float, (5,), np.random.default_rng(1))
        arrays = [hermitian(a), hermitian(b), c]

        @jit_derivatives
        def gradients(weights, *arrays):
            def loss(*arrays):
                return (weights * SOLVERS[form](*arrays, method=method) ** 2).sum()

            return jax.grad(loss, argnums=(0, 1, 2))(*arrays)

        weights = np.ones((5, 1, 1))
        expected = gradients(weights, *arrays)
        arrays[0][1, 0, 0], arrays[2][2, 0, 0] = np.nan, np.inf
        arrays[0][3] = 2 * np.eye(2)
        arrays[1][3] = -2 * np.eye(2) if form == "sylvester" else -np.eye(2) / 2
        for _ in range(2):
            for gradient, finite in zip(gradients(weights, *arrays), expected, strict=True):
                np.testing.assert_array_equal(gradient[0], finite[0])
                np.testing.assert_array_equal(gradient[4], finite[4])
            # Nor where what is not finite has no part in the loss.
            weights[1:4] = 0

    def test_what_tells_of_the_quality_has_none(self):
        a, b, _, c = well_separated("sylvester", 1, 1, float, (), np.random.default_rng(2))

        def quality(a):
            info = solve_fully("sylvester")(a, b, c)[1]
            return info.residual + info.separation

        np.testing.assert_array_equal(jit_derivatives(jax.grad(quality))(a), 0)
