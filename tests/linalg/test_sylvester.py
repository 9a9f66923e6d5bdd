import functools
import itertools
import re
from typing import assert_type

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jacfuse_jax.linalg import SylvesterInfo, solve_generalized, solve_sylvester
from tests.linalg.equations import (
    FORMS,
    METHODS,
    SOLVED,
    apply_equation,
    hermitian,
    kronecker_matrices,
    nine_equations,
    relative_norm,
    solve_densely,
    solve_fully,
    well_separated,
)
from tests.linalg.matrices import (
    all_finite,
    equation_errors,
    norms,
    random_unitary,
)


def solve(form, method, *arrays):
    """X and what is known of its quality, as NumPy arrays."""
    return jax.device_get(solve_fully(form, method)(*arrays))


@pytest.mark.parametrize(("form", "method", "dtype"), SOLVED)
def test_recovers_the_answer_it_was_built_from(form, method, dtype):
    a, b, x, _ = well_separated(form, 3, 3, dtype, (9,), np.random.default_rng(0))
    if method == "eigh":
        a, b = (hermitian(array).astype(dtype).astype(float) for array in (a, b))
    c = apply_equation(form, a, b, x)
    out, info = solve(form, method, *(array.astype(dtype) for array in (a, b, c)))
    assert out.dtype == dtype
    assert info.converged.all()
    assert info.separation.min() >= 0.01
    tolerance = 30 * 3 * np.finfo(dtype).eps / float(info.separation.min())
    np.testing.assert_array_less(norms(out - x), tolerance * norms(x))


@pytest.mark.parametrize("form", FORMS)
def test_agrees_with_dense_systems_and_with_scipy(form):
    a, b, _, c = well_separated(form, 3, 3, float, (9,), np.random.default_rng(1))
    x, _ = solve(form, "bartels_stewart", a, b, c)
    dense = jax.jit(jax.vmap(functools.partial(solve_densely, form)))(a, b, c)
    np.testing.assert_allclose(x, dense, atol=1e-12)
    if form == "sylvester":
        expected = [scipy.linalg.solve_sylvester(*abc) for abc in zip(a, b, c, strict=True)]
        np.testing.assert_allclose(x, expected, atol=1e-12)


@pytest.mark.parametrize(("form", "method", "dtype"), SOLVED)
def test_scaling_by_powers_of_two_changes_nothing(form, method, dtype):
    a, b, c = nine_equations(form, dtype)
    x, info = solve(form, method, a, b, c)
    for power in (40, -40) if dtype == "float32" else (100, -100):
        factor = np.dtype(dtype).type(2.0**power)
        scaled = (a * factor, b * factor, c * factor)
        if form == "generalized":
            scaled = (a * factor, b / factor, c)
        out, scaled_info = solve(form, method, *scaled)
        tolerance = 100 * float(np.finfo(dtype).eps)
        np.testing.assert_allclose(out, x, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(scaled_info.separation, info.separation, rtol=tolerance)
        np.testing.assert_array_equal(scaled_info.converged, info.converged)


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("eigh", "float64"),
        ("bartels_stewart", "float32"),
        pytest.param("eigh", "float32", marks=pytest.mark.extended),
        pytest.param("bartels_stewart", "float64", marks=pytest.mark.extended),
    ],
)
def test_separation_follows_a_sweep_from_one_to_eps(method, dtype):
    rng = np.random.default_rng(0)
    eps = float(np.finfo(dtype).eps)
    gaps = np.geomspace(1, eps / 4, 60)
    U, V = random_unitary(2, dtype, rng), random_unitary(2, dtype, rng)
    a = U * [1, -0.8] @ U.T
    b = V * np.stack([np.full(60, 2.5), 0.8 + gaps], axis=1)[:, None] @ V.T
    a, b = hermitian(a).astype(dtype), hermitian(b).astype(dtype)
    x, info = solve("sylvester", method, a, b, np.ones((2, 2), dtype))
    expected = gaps / relative_norm("sylvester", a, b)
    np.testing.assert_allclose(info.separation, expected, atol=2 * eps)
    assert info.converged[expected >= 6 * eps].all()
    assert not info.converged[expected <= 2 * eps].any()
    np.testing.assert_array_equal(all_finite(x), info.converged)


def singular_equations(form, dtype, rng):
    """Exactly singular A (B, 4, 4), B (B, 3, 3): small integers and powers of two, no rounding."""

    def similar(eigenvalues, coupling=0):
        """S (D + coupling N) S^-1 with unimodular S, whose inverse has integer entries too."""
        n = len(eigenvalues)
        entries = rng.integers(-1, 2, (2, n, n))
        S = (np.tril(entries[0], -1) + np.eye(n)) @ (np.triu(entries[1], 1) + np.eye(n))
        inverse = np.round(np.linalg.inv(S))
        return S @ (np.diag(eigenvalues) + coupling * np.eye(n, k=1)) @ inverse

    if form == "sylvester":
        spectra = [
            ([1, 2, 3, 4], [-3, 5, 6]),
            ([0, 2, 3, 5], [0, 1, 4]),
            ([2, 2, 2, 2], [-2, -2, -2]),
            ([1, -2, 3, -4], [-1, 2, -3]),
        ]
    else:
        spectra = [
            ([1, 2, 3, 4], [-0.5, 5, 6]),
            ([1, 2, 4, 8], [-1, -0.5, -0.25]),
            ([2, 2, 2, 2], [-0.5, 1, 1]),
            ([0, 0, 0, 4], [-0.25, 0, 0]),
        ]
    pairs = [
        (similar(of_a, coupling), similar(of_b, coupling))
        for of_a, of_b in spectra
        for coupling in (0, 1)
        for _ in range(9)
    ]
    return [np.stack(matrices).astype(dtype) for matrices in zip(*pairs, strict=True)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.extended)])
def test_shared_spectra_are_flagged_and_leave_their_neighbours_alone(form, dtype):
    a, b = singular_equations(form, dtype, np.random.default_rng(0))
    harmless_a, harmless_b, c = nine_equations(form, dtype, m=4)
    expected, _ = solve(form, "bartels_stewart", harmless_a, harmless_b, c)
    for first in range(0, len(a), 9):
        mixed_a, mixed_b = a[first : first + 9].copy(), b[first : first + 9].copy()
        mixed_a[::2], mixed_b[::2] = harmless_a[::2], harmless_b[::2]
        x, info = solve(form, "bartels_stewart", mixed_a, mixed_b, c)
        np.testing.assert_array_equal(info.converged, np.arange(9) % 2 == 0)
        np.testing.assert_array_equal(x[::2], expected[::2])
        assert info.separation[1::2].max() <= 4 * np.finfo(dtype).eps


@pytest.mark.parametrize(
    ("form", "method", "dtype"),
    [("generalized", "eigh", "float64"), ("sylvester", "auto", "float32")],
)
def test_vmap_under_jit_and_loop_agree_and_permutations_commute(form, method, dtype):
    arrays = nine_equations(form, dtype)
    if method == "auto":
        # One matrix that is not Hermitian: as a batch "bartels_stewart" solves all of them, in the
        # loop that one alone, and under `jax.vmap` both methods run.
        arrays[0][4] = np.triu(arrays[0][4])
    x, info = solve(form, method, *arrays)
    tolerance = 10 * 3 * np.finfo(dtype).eps
    loop = [solve(form, method, *abc) for abc in zip(*arrays, strict=True)]
    looped, looped_info = jax.tree.map(lambda *leaves: np.stack(leaves), *loop)
    mapped, mapped_info = jax.jit(jax.vmap(solve_fully(form, method)))(*arrays)
    for other, other_info in ((looped, looped_info), (mapped, mapped_info)):
        np.testing.assert_allclose(other, x, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(other_info.separation, info.separation, rtol=tolerance)
        np.testing.assert_array_equal(other_info.converged, info.converged)
    order = np.random.default_rng(0).permutation(9)
    permuted = solve(form, method, *(array[order] for array in arrays))
    for leaf, direct in zip(jax.tree.leaves(permuted), jax.tree.leaves((x, info)), strict=True):
        np.testing.assert_array_equal(leaf, direct[order])


@pytest.mark.parametrize(
    ("form", "method"), [("generalized", "bartels_stewart"), ("sylvester", "eigh")]
)
def test_batch_axes_broadcast(form, method):
    a, b, _, c = well_separated(form, 2, 1, float, (2, 3), np.random.default_rng(1))
    a, b, c = hermitian(a[:, :1]), hermitian(b[0]), c[0, 0]
    x, info = solve(form, method, a, b, c)
    assert x.shape == (2, 3, 2, 1)
    assert [array.shape for array in info] == [(2, 3)] * 3
    for i, k in itertools.product(range(2), range(3)):
        matrix = kronecker_matrices(form, a[i, 0], b[k])
        expected = np.linalg.solve(matrix, c.ravel()).reshape(c.shape)
        np.testing.assert_allclose(x[i, k], expected, atol=1e-13)
    inner = jax.vmap(solve_fully(form, method), in_axes=(None, 0, None), out_axes=-1)
    mapped, _ = jax.jit(jax.vmap(inner, in_axes=(0, None, None)))(a[:, 0], b, c)
    np.testing.assert_allclose(np.moveaxis(mapped, -1, 1), x, atol=1e-13)


@pytest.mark.parametrize(
    ("form", "method", "batch_size"),
    [
        *(("generalized", "eigh", size) for size in (129, 0)),
        *(("sylvester", "bartels_stewart", size) for size in (129, 0)),
        *(
            pytest.param("sylvester", "bartels_stewart", size, marks=pytest.mark.extended)
            for size in (1, 300)
        ),
    ],
)
def test_any_batch_size(form, method, batch_size):
    rng = np.random.default_rng(2)
    a, b, x, _ = well_separated(form, 2, 1, float, (batch_size,), rng)
    a = hermitian(a)
    out, info = solve(form, method, a, b, apply_equation(form, a, b, x))
    assert out.shape == x.shape
    assert [array.shape for array in info] == [(batch_size,)] * 3
    np.testing.assert_allclose(out, x, atol=1e-12)


def test_dtypes_are_promoted_and_real_stays_real():
    shapes = ((5, 3, 3), (2, 2), (3, 2))
    for dtypes, expected, precision in (
        (("float32", "float32", "float32"), "float32", "float32"),
        (("float32", "float32", "float64"), "float64", "float64"),
        (("float32", "complex64", "float32"), "complex64", "float32"),
        (("float64", "float32", "complex64"), "complex128", "float64"),
    ):
        arrays = [jax.ShapeDtypeStruct(*sd) for sd in zip(shapes, dtypes, strict=True)]
        for form, method in itertools.product(FORMS, METHODS):
            x, info = jax.eval_shape(solve_fully(form, method), *arrays)
            assert (x.shape, x.dtype) == ((5, 3, 2), expected)
            assert [array.dtype for array in info] == [precision, precision, bool]
            assert [array.shape for array in info] == [(5,)] * 3


@pytest.mark.parametrize(("form", "method", "dtype"), SOLVED)
def test_what_is_not_finite_is_nan_for_itself_alone(form, method, dtype):
    arrays = nine_equations(form, dtype)
    x, info = solve(form, method, *arrays)
    broken = [(array, value) for array in arrays for value in (np.nan, np.inf)]
    for k, (array, value) in enumerate(broken, start=1):
        array[k, 1, 2] = value
    out, broken_info = solve(form, method, *arrays)
    good = [0, 7, 8]
    np.testing.assert_array_equal(out[good], x[good])
    assert np.isnan(out[1:7]).all()
    assert np.isnan(broken_info.residual[1:7]).all()
    np.testing.assert_array_equal(broken_info.converged, np.isin(np.arange(9), good))
    assert np.isnan(broken_info.separation[1:5]).all()
    # Only C is not finite in the equations 5 and 6.
    np.testing.assert_array_equal(broken_info.separation[5:], info.separation[5:])


@pytest.mark.parametrize(("form", "dtype"), [("generalized", "float64"), ("sylvester", "float32")])
def test_eigh_is_nan_for_matrices_that_are_not_hermitian(form, dtype):
    a, b, c = nine_equations(form, dtype)
    a[3, 0, 1] *= 1 + 2 * np.finfo(dtype).eps  # rounding is forgiven
    expected, _ = solve(form, "eigh", a, b, c)
    assert np.isfinite(expected).all()
    a[1, 0, 1] += 1e-3
    b[2, 2, 0] += 1e-3
    x, info = solve(form, "eigh", a, b, c)
    good = [0, *range(3, 9)]
    np.testing.assert_array_equal(x[good], expected[good])
    assert np.isnan(x[1:3]).all()
    np.testing.assert_array_equal(info.converged, np.isin(np.arange(9), good))
    assert np.isnan(info.separation[1:3]).all()
    if (form, "auto", dtype) in SOLVED:  # takes what solves them all
        x, info = solve(form, "auto", a, b, c)
        assert info.converged.all()
        assert equation_errors(form, a, b, c, x).max() <= 30


def test_repeated_calls_compile_once(caplog):
    matrix = np.ones((1, 1, 1, 1))
    with jax.log_compiles():
        solve_fully("sylvester")(matrix, matrix, matrix)
        assert "Compiling" in caplog.text
        caplog.clear()
        solve_fully("sylvester")(2 * matrix, jnp.asarray(matrix), matrix)
        assert not caplog.text


def test_results_have_types_that_a_checker_knows():
    a = np.eye(2)
    for solve_fn in (solve_sylvester, solve_generalized):
        x = assert_type(solve_fn(a, a, a, method="eigh"), jax.Array)
        known = solve_fn(a, a, a, method="eigh", full_output=True)
        also_x, info = assert_type(known, tuple[jax.Array, SylvesterInfo])
        assert isinstance(info, SylvesterInfo)
        np.testing.assert_array_equal(x, also_x)


class TestMisuse:
    @pytest.mark.parametrize(("solve", "name"), [(solve_sylvester, "b"), (solve_generalized, "g")])
    def test_shapes(self, solve, name):
        a, b, c = np.ones((3, 3)), np.ones((2, 2)), np.ones((3, 2))
        shape = re.escape("(..., m, m), (..., n, n) and (..., m, n)")
        with pytest.raises(ValueError, match=r"a must have shape \(..., n, n\), got \(3, 2\)"):
            solve(c, b, c)
        with pytest.raises(
            ValueError, match=rf"{name} must have shape \(..., n, n\), got \(3, 2\)"
        ):
            solve(a, c, c)
        with pytest.raises(ValueError, match=r"c must have shape .* got \(2,\)"):
            solve(a, b, c[0])
        with pytest.raises(ValueError, match=rf"a, {name}, c must be {shape}, got \(3, 3\)"):
            solve(a, b, c.T)
        with pytest.raises(ValueError, match=rf"batch axes of a, {name}, c must broadcast, got"):
            solve(np.stack([a] * 2), np.stack([b] * 3), c)

    def test_dtypes_and_methods(self):
        a = np.eye(2)
        for dtype in ("int64", "float16"):
            for k in range(3):
                arrays = [a, a, a]
                arrays[k] = a.astype(dtype)
                with pytest.raises(TypeError, match=f"{'abc'[k]} must be .* got {dtype}"):
                    solve_sylvester(*arrays)
        with pytest.raises(ValueError, match="auto, bartels_stewart, eigh, got 'schur'"):
            solve_sylvester(a, a, a, method="schur")  # pyright: ignore[reportArgumentType]
