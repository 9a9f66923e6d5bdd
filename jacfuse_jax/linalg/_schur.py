"""Complex Schur form by the implicit double-shift QR algorithm, batched and portable.

A = Q T Q^H with Q unitary and T upper triangular, in jax.numpy alone: no LAPACK, hence the same
on CPU, GPU and TPU. Steps, each for all matrices of a batch at once:

1. A is scaled by a power of two to a largest entry of about one.
2. Householder reflectors reduce it to Hessenberg form.
3. Francis sweeps: the two eigenvalues s1, s2 of the trailing 2 x 2 block of the lowest unreduced
   window are the shifts; the first column of (H - s1)(H - s2) fixes a reflector of three entries,
   and reflectors of three entries chase the bulge it makes down the window. Only s1 + s2 and s1 s2
   enter, so that real matrices stay real. A subdiagonal entry is set to zero where it is below
   eps (|h_kk| + |h_k+1,k+1|); where those vanish, or nothing was deflated for ten sweeps, below
   eps ||A||_F. Each sixth sweep without deflation takes an exceptional shift.
4. What remains are 2 x 2 blocks; one unitary rotation each, complex, makes them triangular.

Matrices of a batch go through the same sweeps, each with its own window; reflectors outside of it
are the identity. The matrix is kept as [H | Q^H], so that reflectors from the left act on both. In
one file, since no step is of use without the others.

References:
  Golub, Van Loan, "Matrix Computations", 4th edition, 2013, section 7.5.
  Watkins, "The QR algorithm revisited", 2008.
"""

import math
from typing import Literal, NamedTuple, TypeAlias, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_square
from jacfuse_jax.linalg._batching import over_batch
from jacfuse_jax.linalg._scaling import power_of_two_scale

_slice = jax.lax.dynamic_slice_in_dim
_update = jax.lax.dynamic_update_slice_in_dim
_EXCEPTIONAL_AFTER = 6
_NORMWISE_AFTER = 10
_SWEEPS_PER_ROW = 30
# Up to here loops of known length are faster on GPUs; at 309 rows they were slower by a third.
_FEW_ROWS = 64


class SchurInfo(NamedTuple):
    """What `schur` adds with full_output=True, one entry a matrix.

    Attributes:
      converged: (...), bool; False for matrices that are not finite as well.
      num_sweeps: (...), int32, QR sweeps; the typical matrix takes 1.5 n.
    """

    converged: jax.Array
    num_sweeps: jax.Array


_Form: TypeAlias = tuple[jax.Array, jax.Array]
_FormWithInfo: TypeAlias = tuple[jax.Array, jax.Array, SchurInfo]


@overload
def schur(a: ArrayLike, *, full_output: Literal[False] = False) -> _Form: ...
@overload
def schur(a: ArrayLike, *, full_output: Literal[True]) -> _FormWithInfo: ...
@overload
def schur(a: ArrayLike, *, full_output: bool) -> _Form | _FormWithInfo: ...
def schur(a: ArrayLike, *, full_output: bool = False) -> _Form | _FormWithInfo:
    """Complex Schur form A = Q T Q^H, Q unitary, T upper triangular.

    About 25 n^3 operations in the arithmetic of the input, real or complex. Backward stable:
    ||A - Q T Q^H|| and ||I - Q Q^H|| are small multiples of eps. Eigenvalues, the diagonal of T,
    are in no particular order. No derivatives: use those of the solvers.

    Args:
      a: A, (..., n, n), float32, float64, complex64 or complex128.
      full_output: whether to return `SchurInfo` too; static.

    Returns:
      (t, q): T and Q, (..., n, n), complex of the precision of `a`. With full_output=True
      (t, q, info). A matrix that is not finite, or did not converge within 30 n sweeps, gives NaN,
      for itself alone.

    Raises:
      TypeError: not a floating or complex array of 32 or 64 bits.
      ValueError: not square.
    """
    array = check_square("a", a)
    t, q, info = schur_factors(array)
    return (t, q, info) if full_output else (t, q)


@jax.jit
def schur_factors(a: jax.Array) -> tuple[jax.Array, jax.Array, SchurInfo]:
    """(T, Q, info) of checked matrices (..., n, n)."""
    *batch, n, _ = a.shape
    finite = jnp.isfinite(a).all(axis=(-2, -1))
    safe = jnp.where(finite[..., None, None], a, 0)
    scale = power_of_two_scale(safe)[..., None, None]
    flat = (safe / scale.astype(a.dtype)).reshape(math.prod(batch), n, n)
    t, q, converged, num_sweeps = _schur_of_batch(flat)
    t, q = t.reshape(a.shape) * scale.astype(t.dtype), q.reshape(a.shape)
    info = SchurInfo(converged.reshape(batch) & finite, num_sweeps.reshape(batch))
    failed = ~info.converged[..., None, None]
    t, q = (jnp.asarray(jnp.where(failed, jnp.nan, x)) for x in (t, q))
    return t, q, info


def _schur_kernel(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """T, Q, converged and the number of sweeps of scaled matrices (n, n, B)."""
    n, _, batch = a.shape
    eye = jnp.eye(n, dtype=a.dtype)[..., None]
    # [H | Q^H], with a row and a column of zeros for the last reflector of a sweep, which has two
    # entries.
    m = jnp.concatenate([a, jnp.zeros_like(a[:, :1]), eye + jnp.zeros_like(a)], axis=1)
    m = jnp.pad(m, ((0, 1), (0, 0), (0, 0)))
    converged, num_sweeps = jnp.ones(batch, bool), jnp.zeros(batch, jnp.int32)
    if n > 2:
        m, converged, num_sweeps = _francis(_reduce_to_hessenberg(m))
    m = m[:n].astype(np.result_type(a.dtype, np.complex64))
    if n > 1:
        m = _split_blocks(m)
    upper = _rows(n)[:, :, None] <= _rows(n)[None]
    t = jnp.where(upper, m[:, :n], 0)
    return t, m[:, n + 1 :].conj().swapaxes(0, 1), converged, num_sweeps


_schur_of_batch = over_batch(_schur_kernel)


def _reduce_to_hessenberg(m: jax.Array) -> jax.Array:
    """Reduces H in [H | Q^H] to Hessenberg form, a reflector a column."""
    size = m.shape[0]

    def eliminate(k: jax.Array, m: jax.Array) -> jax.Array:
        column = jnp.where(_rows(size) > k, m[:, k], 0)
        v, beta = _reflector(column, column[k + 1], _rows(size) == k + 1)
        m = m - v[:, None] * (beta[None] * (v.conj()[:, None] * m).sum(axis=0))[None]
        h = m[:, :size]
        h = h - (beta[None] * (h * v[None]).sum(axis=1))[:, None] * v.conj()[None]
        return _update(m, h, 0, axis=1)

    return jax.lax.fori_loop(0, size - 3, eliminate, m)


class _Sweeps(NamedTuple):
    """State of the QR iteration: [H | Q^H], and one entry a matrix of the rest."""

    m: jax.Array
    bottom: jax.Array  # last row of the window, 0 when there is none left
    stalled: jax.Array  # sweeps since the last deflation
    num_sweeps: jax.Array  # each matrix has taken part in
    total: jax.Array  # sweeps made, a scalar


def _francis(m: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sweeps until no window of three rows is left; returns m, converged, num_sweeps."""
    n = m.shape[0] - 1
    norm = jnp.sqrt((jnp.abs(m[:, :n]) ** 2).sum(axis=(0, 1)))

    def sweep(state: _Sweeps) -> _Sweeps:
        m, top, bottom = _deflate(state.m, norm, state.stalled)
        stalled = jnp.where(bottom == state.bottom, state.stalled + 1, 0)
        start = _first_column(m, top, bottom, stalled)
        active = bottom > 0

        def chase(k: jax.Array, m: jax.Array) -> jax.Array:
            rows = _slice(m, k, 3, axis=0)
            column = jnp.where((k == top)[None], start, _slice(rows, k - 1, 1, axis=1)[:, 0])
            column = jnp.where(((top <= k) & (k < bottom))[None], column, 0)
            v, beta = _reflector(column, column[0], _rows(3) == 0)
            rows = rows - v[:, None] * (beta[None] * (v.conj()[:, None] * rows).sum(axis=0))[None]
            m = _update(m, rows, k, axis=0)
            columns = _slice(m, k, 3, axis=1)
            columns = (
                columns - (beta[None] * (columns * v[None]).sum(axis=1))[:, None] * v.conj()[None]
            )
            return _update(m, columns, k, axis=1)

        first, last = jnp.where(active, top, n).min(initial=n), bottom.max(initial=0)
        if n <= _FEW_ROWS:
            # GPUs wait for the host to learn the bounds of a loop, which here takes as long as all
            # else (H100: 1,000 matrices of 10 rows in 2.6 ms instead of 5.2). Rows outside of a
            # window stay as they are anyway.
            first, last = jax.lax.platform_dependent(
                *(first, last),
                cpu=lambda first, last: (first, last),
                default=lambda first, last: (jnp.zeros_like(first), jnp.full_like(last, n - 1)),
            )
        m = jax.lax.fori_loop(first, last, chase, m)
        return _Sweeps(
            m, bottom, stalled, state.num_sweeps + active.astype(jnp.int32), state.total + 1
        )

    def unfinished(state: _Sweeps) -> jax.Array:
        return (state.bottom != 0).any() & (state.total <= _SWEEPS_PER_ROW * n)

    none = jnp.zeros_like(norm, jnp.int32)
    state = _Sweeps(m, none - 1, none, none, jnp.zeros((), jnp.int32))
    state = jax.lax.while_loop(unfinished, sweep, state)
    return state.m, state.bottom == 0, state.num_sweeps


def _deflate(
    m: jax.Array, norm: jax.Array, stalled: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Zeroes what is negligible; returns m and the first and last row of the lowest window."""
    n = m.shape[0] - 1
    diagonal, below = jnp.abs(_diagonal(m, 0)), jnp.abs(_diagonal(m, -1))
    local = diagonal[:-1] + diagonal[1:]
    is_normwise = (local == 0) | (stalled >= _NORMWISE_AFTER)[None]
    local = jnp.where(is_normwise, jnp.maximum(local, norm[None]), local)
    kept = below > jnp.finfo(m.dtype).eps * local
    # Column k keeps its entry in row k + 1 where kept[k]; below that, rounding of the reflectors.
    row, column = jnp.arange(n + 1)[:, None, None], jnp.arange(m.shape[1])[None, :, None]
    kept_of_column = jnp.pad(kept, ((0, m.shape[1] - n + 1), (0, 0)))
    is_zero = (row > column + 1) | ((row == column + 1) & ~kept_of_column[None])
    m = jnp.where(is_zero & (column < n), 0, m)
    # A window ends in the last row that hangs together with the two rows above it.
    joined = kept[:-1] & kept[1:]
    bottom = jnp.where(joined, _rows(n)[2:], 0).max(axis=0)
    top = jnp.where(~kept & (_rows(n)[1:] < bottom[None]), _rows(n)[1:], 0).max(axis=0)
    return m, top, bottom


def _first_column(m: jax.Array, top: jax.Array, bottom: jax.Array, stalled: jax.Array) -> jax.Array:
    """First three entries of (H - s1)(H - s2) e_1 over the window, up to a factor."""
    diagonal, below, above = _diagonal(m, 0), _diagonal(m, -1), _diagonal(m, 1)

    def entry(values: jax.Array, row: jax.Array) -> jax.Array:
        return jnp.where(_rows(len(values)) == row[None], values, 0).sum(axis=0)

    last, before_last = entry(diagonal, bottom), entry(diagonal, bottom - 1)
    lower, upper = entry(below, bottom - 1), entry(above, bottom - 1)
    # The exceptional shifts of LAPACK's xLAHQR: eigenvalues of a made-up trailing block.
    exceptional = (stalled > 0) & (stalled % _EXCEPTIONAL_AFTER == 0)
    size = jnp.abs(lower) + jnp.abs(entry(below, bottom - 2))
    shift = size.astype(m.dtype)
    last = last + jnp.where(exceptional, 0.75 * shift, 0)
    before_last = jnp.where(exceptional, last, before_last)
    lower, upper = (
        jnp.where(exceptional, shift, lower),
        jnp.where(exceptional, -0.4375 * shift, upper),
    )

    h00, h10, h01 = entry(diagonal, top), entry(below, top), entry(above, top)
    h11, h21 = entry(diagonal, top + 1), entry(below, top + 1)
    r, s = last - h00, before_last - h00
    scale = sum(jnp.abs(x) for x in (r, s, lower, h10, h01))
    scale = jnp.where(scale > 0, scale, 1).astype(m.dtype)
    return jnp.stack(
        [
            r * (s / scale) - lower * (upper / scale) + h01 * (h10 / scale),
            (h10 / scale) * (h11 - h00 - r - s),
            (h10 / scale) * h21,
        ]
    )


def _split_blocks(m: jax.Array) -> jax.Array:
    """Makes the 2 x 2 diagonal blocks of H in [H | Q^H] triangular; complex.

    [[a, b], [c, d]] has the eigenvalue d + x with x^2 - (a - d) x - b c = 0 and the eigenvector
    (x, c); the larger x is free of cancellation. Blocks do not overlap, so that all rotations are
    applied at once.
    """
    n = m.shape[0]
    diagonal, b, c = _diagonal(m, 0), _diagonal(m, 1), _diagonal(m, -1)
    p = (diagonal[:-1] - diagonal[1:]) / 2
    scale = jnp.maximum(jnp.abs(p), jnp.maximum(jnp.abs(b), jnp.abs(c)))
    p, b, c = (x / jnp.where(scale > 0, scale, 1).astype(x.dtype) for x in (p, b, c))
    root = jnp.sqrt(p * p + b * c)
    x = jnp.where(jnp.abs(p + root) >= jnp.abs(p - root), p + root, p - root)
    norm = jnp.sqrt(jnp.abs(x) ** 2 + jnp.abs(c) ** 2)
    is_block = (c != 0) & (norm > 0)
    norm = jnp.where(is_block, norm, 1).astype(x.dtype)
    x, c = jnp.where(is_block, x / norm, 1), jnp.where(is_block, c / norm, 0)

    # Rotation k is [[x, -conj(c)], [c, conj(x)]] on rows k and k + 1; a row is in one block only.
    def shifted(values: jax.Array, fill: int, *, down: bool) -> jax.Array:
        widths = ((1, 0) if down else (0, 1), (0, 0))
        return jnp.pad(values, widths, constant_values=fill)

    stay = shifted(x.conj(), 1, down=False) * shifted(x, 1, down=True)
    from_below = shifted(c.conj(), 0, down=False)[:, None]
    from_above = shifted(-c, 0, down=True)[:, None]
    up, down = jnp.pad(m[1:], ((0, 1), (0, 0), (0, 0))), jnp.pad(m[:-1], ((1, 0), (0, 0), (0, 0)))
    m = stay[:, None] * m + from_below * up + from_above * down
    h = m[:, :n]
    left = jnp.pad(h[:, 1:], ((0, 0), (0, 1), (0, 0)))
    right = jnp.pad(h[:, :-1], ((0, 0), (1, 0), (0, 0)))
    h = (
        h * stay.conj()[None]
        + left * shifted(c, 0, down=False)[None]
        + right * shifted(-c.conj(), 0, down=True)[None]
    )
    return jnp.concatenate([h, m[:, n:]], axis=1)


def _reflector(x: jax.Array, first: jax.Array, is_first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """v, beta with (I - beta v v^H) x a multiple of e_first, x (rows, B); beta = 0 if x = 0."""
    scale = jnp.abs(x).max(axis=0)
    nonzero = scale > 0
    safe = jnp.where(nonzero, scale, 1).astype(x.dtype)
    x, first = x / safe[None], first / safe
    norm, size = jnp.sqrt((jnp.abs(x) ** 2).sum(axis=0)), jnp.abs(first)
    phase = jnp.where(size > 0, first / jnp.where(size > 0, size, 1).astype(x.dtype), 1)
    v = jnp.where(is_first, x + (phase * norm.astype(x.dtype))[None], x)
    # From v itself, not norm (norm + size): rounding of the phase would make Q drift from unitary.
    v_squared = (jnp.abs(v) ** 2).sum(axis=0)
    return v, jnp.where(nonzero, 2 / jnp.where(nonzero, v_squared, 1), 0).astype(x.dtype)


def _rows(n: int) -> jax.Array:
    """Row indices, (n, 1)."""
    return jnp.arange(n, dtype=jnp.int32)[:, None]


def _diagonal(m: jax.Array, offset: int) -> jax.Array:
    """A diagonal of H in [H | Q^H], (n - |offset|, B), as one strided slice."""
    rows, columns, batch = m.shape
    n = columns // 2
    start = offset if offset >= 0 else -offset * columns
    stop = start + (n - abs(offset) - 1) * (columns + 1) + 1
    return jax.lax.slice(
        m.reshape(rows * columns, batch), (start, 0), (stop, batch), (columns + 1, 1)
    )
