"""Sylvester equations with upper triangular coefficients, batched.

Two equations for X (m, n), with upper triangular A (m, m) and B (n, n):

    sylvester:    A X + X B = C,      divisors d_ik = a_ii + b_kk
    generalized:  A X B + X = C,      divisors d_ik = 1 + a_ii b_kk

Entry (i, k) needs those below it in its column and those to its left in its row, so that the
entries of an anti-diagonal (from the lower left corner) are solved at once, m + n - 1 steps in
all. Once x = x_ik is known it is taken out of the equations of column k above, and of row i to the
right. Rows take in V: V = X for "sylvester", V = A X for "generalized", where S = (A - diag A) X of
column k is built up first, and V_ik = S_ik + a_ii x_ik.

Beyond 64 rows or columns the same is done with blocks in the place of entries: the updates are then
matrix products, and the anti-diagonals are those of one block.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from jacfuse_jax._devices import on_each_device
from jacfuse_jax._precision import product
from jacfuse_jax.linalg._batching import over_batch

Form = Literal["sylvester", "generalized"]
_State = tuple[jax.Array, jax.Array | None]  # right-hand side and, in "generalized", S
_BLOCK = 64


def divisors(form: Form, a: jax.Array, b: jax.Array) -> jax.Array:
    """d_ik, (..., m, n), from the eigenvalues a (..., m) and b (..., n)."""
    a, b = a[..., :, None], b[..., None, :]
    return a + b if form == "sylvester" else 1 + a * b


def solve_triangular(form: Form, a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """X of checked complex arrays A (B, m, m), B (B, n, n), C (B, m, n).

    Where a divisor is zero the result is finite but meaningless.
    """
    if max(c.shape[-2:]) <= _BLOCK:
        return _kernels[form](a, b, c)
    return on_each_device(functools.partial(_solve_by_blocks, form), (a, b, c))


def _solve_by_blocks(form: Form, arrays: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    """The same where there are several blocks."""
    a, b, c = arrays
    m, n = c.shape[-2:]
    rows, columns = _block_size(m), _block_size(n)
    num_rows, num_columns = -(-m // rows), -(-n // columns)
    a, b, c = (
        jnp.pad(x, ((0, 0), (0, r - x.shape[1]), (0, s - x.shape[2])))
        for x, r, s in (
            (a, num_rows * rows, num_rows * rows),
            (b, num_columns * columns, num_columns * columns),
            (c, num_rows * rows, num_columns * columns),
        )
    )

    def solve_block(step: jax.Array, state: _State) -> _State:
        """Solves one block and updates the others, column by column from the bottom row up."""
        top, left = (num_rows - 1 - step % num_rows) * rows, (step // num_rows) * columns
        a_columns, b_rows = _columns(a, top, rows), _rows(b, left, columns)
        a_block, b_block = _rows(a_columns, top, rows), _columns(b_rows, left, columns)
        above = jnp.where(jnp.arange(a.shape[1])[None, :, None] < top, a_columns, 0)
        right = jnp.where(jnp.arange(b.shape[2])[None, None] >= left + columns, b_rows, 0)
        c, s = state
        rhs = _columns(_rows(c, top, rows), left, columns)
        if s is None:
            v = x = _kernels[form](a_block, b_block, rhs)
            c = _add(c, -product(above, x), left, axis=2)
        else:
            known = _columns(_rows(s, top, rows), left, columns)
            x = _kernels[form](a_block, b_block, rhs - product(known, b_block))
            v = known + product(a_block, x)
            s = _add(s, product(above, x), left, axis=2)
        # What is right of the block changes, and the block itself gives way to the solution.
        row = _rows(c, top, rows) - product(v, right)
        row = jax.lax.dynamic_update_slice_in_dim(row, x, left, axis=2)
        return jax.lax.dynamic_update_slice_in_dim(c, row, top, axis=1), s

    state = (c, None if form == "sylvester" else jnp.zeros_like(c))
    x, _ = jax.lax.fori_loop(0, num_rows * num_columns, solve_block, state)
    return x[:, :m, :n]


def _block_size(n: int) -> int:
    """Size of the fewest blocks of at most 64 that hold n, all alike."""
    return -(-n // -(-n // _BLOCK))


def _rows(matrices: jax.Array, first: jax.Array, count: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(matrices, first, count, axis=1)


def _columns(matrices: jax.Array, first: jax.Array, count: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(matrices, first, count, axis=2)


def _add(matrices: jax.Array, part: jax.Array, first: jax.Array, *, axis: int) -> jax.Array:
    """Adds to a slice."""
    old = jax.lax.dynamic_slice_in_dim(matrices, first, part.shape[axis], axis)
    return jax.lax.dynamic_update_slice_in_dim(matrices, old + part, first, axis)


def _make_kernel(form: Form):
    """The solve along anti-diagonals, for arrays with the batch last."""

    def kernel(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        m, n, batch = c.shape
        a_diagonal = jnp.diagonal(a).T
        b_diagonal = jnp.diagonal(b).T
        strict = (jnp.arange(m)[:, None] < jnp.arange(m)[None])[..., None]
        # Anti-diagonal d holds column k in row i = m - 1 - d + k. Padding keeps slices inside.
        a_strict = jnp.pad(jnp.where(strict, a, 0), ((0, 0), (n - 1, n), (0, 0)))
        strict = (jnp.arange(n)[:, None] < jnp.arange(n)[None])[..., None]
        b_strict = jnp.pad(jnp.where(strict, b, 0), ((m - 1, m), (0, 0), (0, 0)))
        a_padded = jnp.pad(a_diagonal, ((n - 1, n), (0, 0)))

        def antidiagonal(matrix: jax.Array, first: jax.Array) -> jax.Array:
            """Entries (first + k - (n - 1), k) for all k, (n, B), zero outside of the matrix."""
            padded = jnp.pad(matrix, ((n - 1, n), (0, 0), (0, 0)))
            padded = padded.reshape((m + 2 * n - 1) * n, batch)
            entries = jax.lax.dynamic_slice_in_dim(padded, first * n, n * (n + 1))
            return entries.reshape(n, n + 1, batch)[:, 0]

        def step(d: jax.Array, state: _State) -> _State:
            c, s = state
            first = m + n - 2 - d
            a_k = jax.lax.dynamic_slice_in_dim(a_padded, first, n)
            a_columns = jax.lax.dynamic_slice_in_dim(a_strict, first, n, axis=1)
            rhs = antidiagonal(c, first)
            if s is None:
                v = x = rhs / nonzero(a_k + b_diagonal)
                c = c - a_columns * x[None]
            else:
                known = antidiagonal(s, first)
                x = (rhs - b_diagonal * known) / nonzero(1 + a_k * b_diagonal)
                v = known + a_k * x
                s = s + a_columns * x[None]
            v_of_row = jax.lax.dynamic_slice_in_dim(jnp.pad(v, ((m - 1, m), (0, 0))), d, m)
            b_rows = jax.lax.dynamic_slice_in_dim(b_strict, d, m)
            return c - b_rows * v_of_row[:, None], s

        state = (c, None if form == "sylvester" else jnp.zeros_like(c))
        c, s = jax.lax.fori_loop(0, m + n - 1, step, state)
        # What is left on the right-hand side of entry (i, k) when its turn came is there still.
        divisor = jnp.moveaxis(divisors(form, a_diagonal.T, b_diagonal.T), 0, -1)
        return (c if s is None else c - b_diagonal[None] * s) / nonzero(divisor)

    return kernel


def nonzero(divisor: jax.Array) -> jax.Array:
    """The divisor, with ones for zeros: what they divide is not used."""
    return jnp.where(divisor == 0, 1, divisor)


_kernels = {form: over_batch(_make_kernel(form)) for form in ("sylvester", "generalized")}
