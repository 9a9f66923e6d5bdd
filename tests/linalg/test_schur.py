import itertools
import re
from typing import assert_type

import jax
import numpy as np
import pytest

from jacfuse_jax.linalg import SchurInfo, _schur, schur
from tests.linalg.matrices import random_entries, schur_errors, stacked

REAL, COMPLEX = ("float32", "float64"), ("complex64", "complex128")


def assert_schur_form(a, t, q, names=None):
    """Asserts the promised bounds for every matrix of the batch (B, n, n)."""
    t, q = np.asarray(t), np.asarray(q)
    assert t.dtype == q.dtype == np.result_type(a.dtype, np.complex64)
    assert np.isfinite(t).all()
    assert np.isfinite(q).all()
    assert not np.tril(t, -1).any()
    for errors in schur_errors(a, t, q):
        worst = errors.argmax()
        assert errors[worst] <= 30, names[worst] if names else worst


def assert_same_eigenvalues(t, expected, tolerance):
    """Compares eigenvalues in whatever order they come."""
    eigenvalues = np.diagonal(np.asarray(t), axis1=-2, axis2=-1)
    distances = np.abs(eigenvalues[..., :, None] - expected[..., None, :])
    assert distances.min(axis=-1).max() <= tolerance
    assert distances.min(axis=-2).max() <= tolerance


def all_of(sizes, dtypes, chosen):
    """Sizes and dtypes; those that are not chosen are left to `make extended`."""
    rest = [case for case in itertools.product(sizes, dtypes) if case not in chosen]
    return [*chosen, *(pytest.param(*case, marks=pytest.mark.extended) for case in rest)]


def check_every_kind_of_matrix(n, dtype):
    names, a = stacked(n, dtype, np.random.default_rng(n))
    t, q, info = jax.device_get(schur(a, full_output=True))
    assert_schur_form(a, t, q, names)
    assert info.converged.all()
    assert np.median(info.num_sweeps) <= 2 * n
    assert info.num_sweeps.max() <= (16 if n < 10 else 8) * n


def check_eigenvalues_of_random_matrices(dtype):
    shape = stacked(10, dtype, np.random.default_rng(0))[1].shape  # which is compiled already
    a = random_entries(shape, dtype, np.random.default_rng(0))
    expected = np.linalg.eigvals(a.astype(np.complex128))
    assert_same_eigenvalues(schur(a)[0], expected, 1000 * 10 * np.finfo(dtype).eps)


class TestAccuracy:
    @pytest.mark.parametrize(
        ("n", "dtype"),
        all_of(
            [1, 2, 3, 4, 6, 10, 32, 33, 64, 100],
            REAL,
            [
                (10, "float32"),
                (10, "float64"),
                (1, "float32"),
                (2, "float64"),
                (3, "float32"),
                (33, "float64"),
            ],
        ),
    )
    def test_every_kind_of_matrix(self, n, dtype):
        check_every_kind_of_matrix(n, dtype)

    @pytest.mark.parametrize("dtype", REAL)
    def test_eigenvalues_of_random_matrices_are_numpys(self, dtype):
        check_eigenvalues_of_random_matrices(dtype)


class TestAccuracyComplex:
    @pytest.mark.parametrize(
        ("n", "dtype"),
        all_of(
            [1, 2, 3, 10, 33],
            COMPLEX,
            [
                (10, "complex64"),
                (10, "complex128"),
                (1, "complex128"),
                (2, "complex64"),
                (3, "complex128"),
                (33, "complex64"),
            ],
        ),
    )
    def test_every_kind_of_matrix(self, n, dtype):
        check_every_kind_of_matrix(n, dtype)

    @pytest.mark.parametrize("dtype", COMPLEX)
    def test_eigenvalues_of_random_matrices_are_numpys(self, dtype):
        check_eigenvalues_of_random_matrices(dtype)

    def test_two_by_two_blocks_at_the_ends_of_the_range(self):
        blocks = np.array(
            [
                [[0, 1], [-1, 0]],
                [[0, 1], [1e-300, 0]],
                [[1, 1e300], [1e-300, 1]],
                [[1, 1], [1e-17, 1]],
                [[1, 1], [-1e-17, 1]],
                [[1, 1e307], [1e307, 1]],
                [[1e-200, 1], [0, 1e200]],
                [[1e-300, 2e-300], [-3e-300, 4e-300]],
            ]
        )
        t, q = schur(blocks)
        assert_schur_form(blocks, t, q)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "dtype", ["float32", pytest.param("float64", marks=pytest.mark.extended)]
    )
    def test_one_large_matrix(self, dtype):
        a = random_entries((1, 309, 309), dtype, np.random.default_rng(0))
        t, q, info = schur(a, full_output=True)
        assert_schur_form(a, t, q)
        assert info.num_sweeps[0] <= 2 * 309


class TestBatches:
    """Tests of one shape, which is compiled once; rounding is no matter here."""

    def matrices(self):
        return stacked(4, "float32", np.random.default_rng(0))[1][:12]

    def test_vmap_under_jit_agrees_to_the_last_bit(self):
        a = self.matrices()
        direct = schur(a, full_output=True)
        once = jax.vmap(lambda a: schur(a, full_output=True))
        mapped = jax.jit(jax.vmap(once))(a.reshape(3, 4, 4, 4))
        for leaf, expected in zip(jax.tree.leaves(mapped), jax.tree.leaves(direct), strict=True):
            np.testing.assert_array_equal(np.reshape(leaf, expected.shape), expected)

    def test_loop_agrees_to_rounding(self):
        # Rounding may differ with the length of the batch, and a Schur form is not unique.
        a = random_entries((12, 4, 4), "float32", np.random.default_rng(0))
        for matrix, form in zip(a, np.asarray(schur(a)[0]), strict=True):
            alone, q = jax.device_get(schur(matrix))
            assert_schur_form(matrix[None], alone[None], q[None])
            assert_same_eigenvalues(alone, np.diagonal(form), 100 * 4 * np.finfo("f4").eps)

    def test_permuting_the_batch_permutes_the_answer(self):
        a = self.matrices()
        order = np.random.default_rng(1).permutation(len(a))
        for direct, permuted in zip(schur(a), schur(a[order]), strict=True):
            np.testing.assert_array_equal(permuted, np.asarray(direct)[order])

    @pytest.mark.parametrize(("batch_size", "n"), [(129, 3), (0, 3), (1, 2), (300, 2)])
    def test_any_batch_size(self, batch_size, n):
        a = random_entries((batch_size, n, n), "float32", np.random.default_rng(batch_size))
        t, q, info = schur(a, full_output=True)
        assert t.shape == q.shape == a.shape
        assert info.converged.shape == info.num_sweeps.shape == (batch_size,)
        if batch_size:
            assert_schur_form(a, t, q)

    def test_batch_axes_and_what_full_output_adds(self):
        a = random_entries((2, 3, 3, 3), "float32", np.random.default_rng(2))
        form = assert_type(schur(a, full_output=True), tuple[jax.Array, jax.Array, SchurInfo])
        t, q, info = jax.device_get(form)
        assert t.shape == q.shape == (2, 3, 3, 3)
        assert info.converged.shape == info.num_sweeps.shape == (2, 3)
        assert info.converged.dtype == bool
        assert info.num_sweeps.dtype == np.int32
        assert info.converged.all()
        assert info.num_sweeps.min() >= 1
        short = assert_type(schur(a), tuple[jax.Array, jax.Array])
        assert len(short) == 2
        np.testing.assert_array_equal(short[0], t)

    def test_repeated_calls_compile_once(self, caplog):
        matrix = np.ones((1, 1, 2, 2))
        with jax.log_compiles():
            schur(matrix)
            assert "Compiling" in caplog.text
            caplog.clear()
            schur(2 * matrix)
            assert not caplog.text


class TestFailures:
    @pytest.mark.parametrize(
        ("n", "dtype"), [(4, "float32"), (1, "float32"), (2, "complex128"), (4, "complex128")]
    )
    def test_what_is_not_finite_is_nan_for_itself_alone(self, n, dtype):
        values = [np.nan, np.inf, -np.inf]
        if dtype == "complex128":
            values += [complex(0, np.nan), complex(1, -np.inf)]
        places = np.indices((n, n)).reshape(2, -1)
        shape = (2 + len(values) * n * n, n, n)
        a = random_entries(shape, dtype, np.random.default_rng(n))
        expected = jax.device_get(schur(a))
        for k, value in enumerate(values):
            a[1 + k * n * n + np.arange(n * n), *places] = value
        t, q, info = jax.device_get(schur(a, full_output=True))
        np.testing.assert_array_equal(info.converged, [True, *[False] * (len(a) - 2), True])
        for actual, finite in zip((t, q), expected, strict=True):
            np.testing.assert_array_equal(actual[0], finite[0])
            np.testing.assert_array_equal(actual[-1], finite[-1])
            assert np.isnan(actual[1:-1]).all()
        assert (info.num_sweeps[1:-1] == 0).all()

    def test_a_matrix_that_does_not_converge_is_nan_for_itself_alone(self, monkeypatch):
        monkeypatch.setattr(_schur, "_SWEEPS_PER_ROW", 0)
        # No other test may meet what is compiled here: the size is this test's own.
        random = random_entries((5, 5), "float32", np.random.default_rng(0))
        out = schur(np.stack([random, np.triu(random)]), full_output=True)
        t, q, info = jax.device_get(out)
        np.testing.assert_array_equal(info.converged, [False, True])
        assert np.isnan(t[0]).all()
        assert np.isnan(q[0]).all()
        np.testing.assert_array_equal(t[1], np.triu(random))


class TestMisuse:
    def test_shapes(self):
        for shape in [(3,), (), (2, 3), (4, 0, 0)]:
            with pytest.raises(ValueError, match=f"a must have shape .* {re.escape(str(shape))}"):
                schur(np.ones(shape))

    def test_dtypes(self):
        for dtype in ("int32", "float16", "bool"):
            with pytest.raises(TypeError, match=f"a must be float32, .* got {dtype}; cast it"):
                schur(np.ones((2, 2), dtype))
