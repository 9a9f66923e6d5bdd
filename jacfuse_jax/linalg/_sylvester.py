"""Sylvester equations, and those of a Gram matrix that may be singular, for whole batches."""

from typing import Literal, TypeAlias, get_args, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_choice, check_matrices, check_square
from jacfuse_jax.linalg import _equations
from jacfuse_jax.linalg._equations import Method, SylvesterInfo
from jacfuse_jax.linalg._triangular import Form

_WithInfo: TypeAlias = tuple[jax.Array, SylvesterInfo]


@overload
def solve_sylvester(
    a: ArrayLike,
    b: ArrayLike,
    c: ArrayLike,
    *,
    method: Method = "auto",
    full_output: Literal[False] = False,
) -> jax.Array: ...
@overload
def solve_sylvester(
    a: ArrayLike,
    b: ArrayLike,
    c: ArrayLike,
    *,
    method: Method = "auto",
    full_output: Literal[True],
) -> _WithInfo: ...
@overload
def solve_sylvester(
    a: ArrayLike,
    b: ArrayLike,
    c: ArrayLike,
    *,
    method: Method = "auto",
    full_output: bool,
) -> jax.Array | _WithInfo: ...
def solve_sylvester(
    a: ArrayLike,
    b: ArrayLike,
    c: ArrayLike,
    *,
    method: Method = "auto",
    full_output: bool = False,
) -> jax.Array | _WithInfo:
    """Solves the Sylvester equation A X + X B = C for X.

    It has one solution where no eigenvalue of A is minus one of B. Backward stable, with one step
    of iterative refinement: the residual is a small multiple of n eps (||A|| ||X|| + ||X|| ||B|| +
    ||C||) in either precision; the error of X may be larger by 1 / separation. Every element of a
    batch stands for itself: where its eigenvalues cancel to rounding, |a_i + b_k| <= 4 eps (||A|| +
    ||B||), its input is not finite or a decomposition failed, it alone is NaN. `SylvesterInfo`
    tells more about equations close to singular.

    Differentiable in A, B and C, forward and reverse, to any order, also for repeated eigenvalues
    and rank-deficient A or B: every derivative is the solution of another Sylvester equation with
    the same decompositions (derived in `linalg._equations`).

    Methods:
      "bartels_stewart": for all matrices, by their complex Schur forms and a triangular solve.
        Written in jax.numpy, without LAPACK, the same on every platform.
      "eigh": for Hermitian A and B, by their eigendecompositions (`jnp.linalg.eigh`), 2 to 4 times
        faster on CPU; matrices that are not Hermitian to rounding give NaN.
      "auto": "eigh" where all A and B of the call are exactly Hermitian, which every device finds
        out of its own when the program runs, else "bartels_stewart".

    Args:
      a: A, (..., m, m), float32, float64, complex64 or complex128.
      b: B, (..., n, n).
      c: C, (..., m, n). Batch axes broadcast; arrays are promoted to a common dtype.
      method: static.
      full_output: whether to return `SylvesterInfo` too; static.

    Returns:
      X, (..., m, n), real for real arguments; with full_output=True (x, info).

    Raises:
      TypeError: an array is not floating or complex of 32 or 64 bits.
      ValueError: shapes disagree, or the method is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jacfuse_jax import linalg
      >>> a = jnp.array([[1.0, 2.0], [0.0, 3.0]])
      >>> x = linalg.solve_sylvester(a, a, a @ a + a @ a)
      >>> bool(jnp.allclose(x, a, atol=1e-5))
      True

    References:
      Bartels, Stewart, "Solution of the matrix equation AX + XB = C", 1972.
      Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, 2002, chapter 16.
    """
    return _solve("sylvester", ("a", "b", "c"), a, b, c, method, full_output)


@overload
def solve_generalized(
    a: ArrayLike,
    g: ArrayLike,
    c: ArrayLike,
    *,
    method: Method = "auto",
    full_output: Literal[False] = False,
) -> jax.Array: ...
@overload
def solve_generalized(
    a: ArrayLike,
    g: ArrayLike,
    c: ArrayLike,
    *,
    method: Method = "auto",
    full_output: Literal[True],
) -> _WithInfo: ...
@overload
def solve_generalized(
    a: ArrayLike,
    g: ArrayLike,
    c: ArrayLike,
    *,
    method: Method = "auto",
    full_output: bool,
) -> jax.Array | _WithInfo: ...
def solve_generalized(
    a: ArrayLike,
    g: ArrayLike,
    c: ArrayLike,
    *,
    method: Method = "auto",
    full_output: bool = False,
) -> jax.Array | _WithInfo:
    """Solves A X G + X = C for X.

    The recalibration's equation with a Gram matrix G for every sample, singular or not; for
    invertible G it is the Sylvester equation A X + X G^-1 = C G^-1. It has one solution where no
    product of an eigenvalue of A and one of G is -1, hence for all positive semi-definite A and G.
    Methods, accuracy, derivatives and treatment of failures are those of `solve_sylvester`; NaN
    where |1 + a_i g_k| <= 4 eps (1 + |a_i g_k|). The separation is relative to ||A|| ||G|| + 1, so
    that `converged` is False beyond ||A|| ||G|| of 1 / (4 eps), where X still has a small residual.

    Args:
      a: A, (..., m, m), float32, float64, complex64 or complex128.
      g: G, (..., n, n).
      c: C, (..., m, n). Batch axes broadcast, so that one G may serve all; arrays are promoted to a
        common dtype.
      method: "auto", "bartels_stewart" or "eigh", see `solve_sylvester`; static.
      full_output: whether to return `SylvesterInfo` too; static.

    Returns:
      X, (..., m, n), real for real arguments; with full_output=True (x, info).

    Raises:
      TypeError: an array is not floating or complex of 32 or 64 bits.
      ValueError: shapes disagree, or the method is unknown.

    References:
      Golub, Nash, Van Loan, "A Hessenberg-Schur method for the problem AX + XB = C", 1979, whose
      section on related equations treats this form.
    """
    return _solve("generalized", ("a", "g", "c"), a, g, c, method, full_output)


def _solve(
    form: Form,
    names: tuple[str, str, str],
    a: ArrayLike,
    b: ArrayLike,
    c: ArrayLike,
    method: Method,
    full_output: bool,
) -> jax.Array | _WithInfo:
    """Checks the arguments of either equation and solves it."""
    check_choice("method", method, get_args(Method))
    a, b, c = check_square(names[0], a), check_square(names[1], b), check_matrices(names[2], c)
    shapes = f"{a.shape}, {b.shape} and {c.shape}"
    if (a.shape[-1], b.shape[-1]) != c.shape[-2:]:
        raise ValueError(
            f"{', '.join(names)} must be (..., m, m), (..., n, n) and (..., m, n), got {shapes}"
        )
    try:
        jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2], c.shape[:-2])
    except ValueError as error:
        raise ValueError(
            f"batch axes of {', '.join(names)} must broadcast, got {shapes}"
        ) from error
    # Of the widest precision, complex where one of them is.
    dtype = np.result_type(a.dtype, b.dtype, c.dtype)
    # Batch axes of length one in front: every array has all of them.
    ndim = max(array.ndim for array in (a, b, c))
    arrays = (
        array.astype(dtype).reshape((1,) * (ndim - array.ndim) + array.shape) for array in (a, b, c)
    )
    x, info = _equations.solve(form, method, *arrays, full_output=full_output)
    return (x, info) if full_output else x
