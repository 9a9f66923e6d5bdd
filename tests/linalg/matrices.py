"""Square matrices that eigenvalue algorithms find hard, and backward errors in double precision.

The matrices are gathered from the test programs of LAPACK, from Higham's Test Matrix Toolbox
(Higham, "The Test Matrix Toolbox for MATLAB", 1995) and from reports on the QR algorithm. Dtypes
are float32, float64, complex64 or complex128; matrices without a complex variant are the same in
both.
"""

from collections.abc import Callable

import numpy as np
import scipy.linalg

Matrices = dict[str, np.ndarray]


def hard_matrices(n, dtype, rng) -> Matrices:
    """All kinds, each (n, n) of the dtype."""
    dtype = np.dtype(dtype)
    matrices = {
        **_plain(n, dtype, rng),
        **_structured(n, rng),
        **_graded(n, dtype, rng),
        **_slow_to_converge(n, dtype, rng),
        **_of_lapack(n, dtype, rng),
    }
    return {name: matrix.astype(dtype) for name, matrix in matrices.items()}


def stacked(n, dtype, rng) -> tuple[list[str], np.ndarray]:
    """Names and matrices (number of kinds, n, n) of `hard_matrices`."""
    matrices = hard_matrices(n, dtype, rng)
    return list(matrices), np.stack(list(matrices.values()))


def power_of_two_scale(matrices) -> np.ndarray:
    """Powers of two above the largest entries of matrices (..., m, n), as (..., 1, 1) float64."""
    largest = np.abs(matrices.astype(np.complex128)).max(axis=(-2, -1), keepdims=True)
    return np.ldexp(1.0, np.frexp(largest)[1])


def norms(matrices) -> np.ndarray:
    """Frobenius norms of matrices (..., m, n)."""
    return np.linalg.norm(matrices, axis=(-2, -1))


def all_finite(matrices) -> np.ndarray:
    """Which of the matrices (..., m, n) are finite."""
    return np.asarray(np.isfinite(matrices).all(axis=(-2, -1)))


def schur_errors(a, t, q) -> tuple[np.ndarray, np.ndarray]:
    """||A - Q T Q^H|| / (n eps ||A||) and ||I - Q Q^H|| / (n eps) of finite Schur forms."""
    n, eps, scale = a.shape[-1], np.finfo(a.dtype).eps, power_of_two_scale(a)
    A, T, Q = a / scale, np.asarray(t) / scale, np.asarray(q).astype(np.complex128)
    adjoint = Q.conj().swapaxes(-1, -2)
    size = norms(A)
    backward = norms(A - Q @ T @ adjoint) / (size + (size == 0))
    return backward / (n * eps), norms(np.eye(n) - Q @ adjoint) / (n * eps)


def equation_errors(form, a, b, c, x) -> np.ndarray:
    """||C - L(X)|| / (||L|| ||X|| + ||C||) of finite solutions, over max(m, n) eps.

    L(X) and ||L|| are A X + X B and ||A|| + ||B||, or A X B + X and ||A|| ||B|| + 1. All is scaled
    by powers of two, so that no norm leaves the range of float64.
    """
    x = np.asarray(x)
    unit = np.finfo(x.dtype).eps * max(x.shape[-2:])
    scale_a, scale_b = power_of_two_scale(a), power_of_two_scale(b)
    if form == "sylvester":
        scale = np.maximum(scale_a, scale_b)
        A, B = a / scale, b / scale
        norm = norms(A) + norms(B)

        def apply(X) -> np.ndarray:
            return A @ X + X @ B
    else:
        scale = np.maximum(scale_a * scale_b, 1)
        A, B = a / scale_a, b / scale_b
        product, one = scale_a * scale_b / scale, 1 / scale
        norm = product[..., 0, 0] * norms(A) * norms(B) + one[..., 0, 0]

        def apply(X) -> np.ndarray:
            return product * (A @ X @ B) + one * X

    C = c / scale
    scale = np.maximum(power_of_two_scale(x), power_of_two_scale(C))
    X, C = x / scale, C / scale
    size = norm * norms(X) + norms(C)
    return norms(C - apply(X)) / (size + (size == 0)) / unit


def random_entries(shape, dtype, rng) -> np.ndarray:
    """Standard normal entries, complex for complex dtypes."""
    entries = rng.normal(size=shape)
    if np.dtype(dtype).kind == "c":
        entries = entries + 1j * rng.normal(size=shape)
    return entries.astype(dtype)


def random_unitary(n, dtype, rng) -> np.ndarray:
    """Orthogonal for real dtypes; computed in double precision."""
    wide = np.result_type(dtype, np.float64)
    return np.linalg.qr(random_entries((n, n), wide, rng))[0]


def _plain(n, dtype, rng) -> Matrices:
    A = random_entries((n, n), dtype, rng)
    low_rank = random_entries((n, max(1, n // 2)), dtype, rng)
    U = random_unitary(n, dtype, rng)
    jordan = 2 * np.eye(n) + np.eye(n, k=1)
    return {
        "random": A,
        "signs": np.sign(np.real(A)),
        "hermitian": A + A.conj().T,
        "skew_hermitian": A - A.conj().T,
        "rank_deficient_psd": low_rank @ low_rank.conj().T,
        "unitary": U,
        "zero": np.zeros((n, n)),
        "identity": np.eye(n),
        "almost_identity": np.eye(n) + np.finfo(dtype).eps * A,
        "ones": np.ones((n, n)),
        "upper_triangular": np.triu(A),
        "lower_triangular": np.tril(A),
        "strictly_upper": np.triu(A, 1),
        "jordan": jordan,
        "jordan_transposed": jordan.T,
        "jordan_nilpotent": np.eye(n, k=-1),
        "jordan_similar": U @ jordan @ U.conj().T,
        "jordan_twice": np.kron(np.eye(2), jordan)[1 : n + 1, 1 : n + 1],
    }


def _structured(n, rng) -> Matrices:
    i = np.arange(n)
    s, c = np.sin(1.2), np.cos(1.2)
    kahan = np.diag(s**i) @ (np.eye(n) - c * np.triu(np.ones((n, n)), 1))
    first_row = 1 / (1 + i)
    companion = np.eye(n, k=-1)
    companion[0] = rng.normal(size=n)
    # Wilkinson's polynomial with the roots 1/n, 2/n, ..., 1.
    wilkinson = np.eye(n, k=-1)
    wilkinson[0] = -np.poly((1 + i) / n)[1:]
    off_diagonal = np.sqrt((1 + i[:-1]) * (n - 1 - i[:-1]))
    return {
        "grcar": sum(np.eye(n, k=k) for k in range(4)) - np.eye(n, k=-1),
        "frank": np.triu(n - np.maximum.outer(i, i), -1),
        "kahan": kahan,
        "kahan_transposed": kahan.T,
        "clement": np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1),
        "forsythe": np.eye(n, k=1) + 1e-12 * np.eye(n, k=1 - n),
        "lotkin": np.vstack([np.ones((1, n)), 1 / (1 + np.add.outer(i[1:], i))]),
        "triw": np.triu(np.full((n, n), -1.0), 1) + np.eye(n),
        "symmetric_toeplitz": np.asarray(scipy.linalg.toeplitz(first_row)),
        "symmetric_tridiagonal": np.eye(n, k=1) + np.eye(n, k=-1) - 2 * np.eye(n),
        "skew_tridiagonal": np.eye(n, k=1) - np.eye(n, k=-1),
        "companion": companion,
        "companion_wilkinson": wilkinson,
    }


def _graded(n, dtype, rng) -> Matrices:
    """Entries over 12 orders of magnitude, or at the ends of the range."""
    A = random_entries((n, n), dtype, rng)
    grade = np.geomspace(1, 1e-12, n) if n > 1 else np.ones(1)
    exponent = 40 if np.finfo(dtype).bits == 32 else 100
    info = np.finfo(dtype)
    both = grade[:, None] * A * grade
    return {
        "graded_rows": grade[:, None] * A,
        "graded_columns": A * grade,
        "graded_down": both,
        "graded_up": both[::-1, ::-1],
        "graded_similar": A * grade / grade[:, None],
        "scaled_up": A * 2.0**exponent,
        "scaled_down": A * 2.0**-exponent,
        "almost_overflow": A * (info.max / (8 * n * np.abs(A).max())),
        "almost_underflow": A * (info.tiny / info.eps),
    }


def _slow_to_converge(n, dtype, rng) -> Matrices:
    """Matrices on which shifted QR sweeps stall, cycle or find nothing to deflate."""
    A = random_entries((n, n), dtype, rng)
    np.fill_diagonal(A, 0)
    cyclic = np.roll(np.eye(n), 1, axis=0)

    def blocks(block) -> np.ndarray:
        size = len(block)
        return np.kron(np.eye(n // size + 1), block)[:n, :n]

    # Day, "How the QR algorithm fails to converge and how to fix it", 1996.
    days = {
        f"day_{h:.0e}": blocks([[0, 1, 0, 0], [1, 0, -h, 0], [0, h, 0, 1], [0, 0, 1, 0]])
        for h in (1e-2, 1e-6, 1e-8, 1e-12)
    }
    return {
        "cyclic": cyclic,
        "cyclic_tiny": 1e-20 * cyclic,
        "permutation": np.eye(n)[rng.permutation(n)],
        "zero_diagonal": A,
        "zero_diagonal_hessenberg": np.triu(A, -1),
        "almost_decoupled": blocks([[1, 5], [-5e-8, 1]]),
        **days,
    }


def _of_lapack(n, dtype, rng) -> Matrices:
    """The 21 types of LAPACK's zchkhs (dchkhs for real dtypes), as its comments number them."""
    eps, info = np.finfo(dtype).eps, np.finfo(dtype)
    large, small = np.sqrt(info.max) * eps / n, np.sqrt(info.tiny) * n / eps
    even, geometric = np.linspace(1, eps, n), np.geomspace(1, eps, n)
    clustered = np.where(np.arange(n) == 0, 1, eps)

    def phases() -> np.ndarray:
        phase = random_entries(n, np.result_type(dtype, np.float64), rng)
        return phase / np.abs(phase)

    def random_diagonal() -> np.ndarray:
        """Sizes from eps to one, in real matrices half of them as conjugate pairs."""
        sizes = eps ** rng.random(n)
        D = np.diag(sizes * phases())
        if dtype.kind == "f":
            for k in range(0, n - 1, 4):
                a, b = sizes[k] * np.array([np.cos(k), np.sin(k)])
                D[k : k + 2, k : k + 2] = [[a, b], [-b, a]]
        return D

    def similar(D, singular_values) -> np.ndarray:
        """X T X^-1, with the diagonal of T and the singular values of X; largest entry one."""
        T = np.where(D != 0, D, np.triu(_in_unit_disc((n, n), dtype, rng), 1))
        U, V = random_unitary(n, dtype, rng), random_unitary(n, dtype, rng)
        A = U * singular_values @ V @ T @ V.conj().T / singular_values @ U.conj().T
        return A / np.abs(A).max()

    well, ill = np.ones(n), np.linspace(1, np.sqrt(eps), n)
    diagonals: list[Callable[[], np.ndarray]] = [
        lambda: np.diag(even * phases()),
        lambda: np.diag(geometric * phases()),
        lambda: np.diag(clustered * phases()),
        random_diagonal,
    ]
    types = [
        np.zeros((n, n)),
        np.eye(n),
        np.eye(n) + np.eye(n, k=-1),
        *(diagonal() for diagonal in diagonals[:3]),
        large * diagonals[0](),
        small * diagonals[0](),
        *(similar(diagonal(), well) for diagonal in diagonals),
        *(similar(diagonal(), ill) for diagonal in diagonals),
        large * similar(random_diagonal(), ill),
        small * similar(random_diagonal(), ill),
        *(size * _in_unit_disc((n, n), dtype, rng) for size in (1.0, large, small)),
    ]
    return {f"zchkhs_{number}": matrix for number, matrix in enumerate(types, start=1)}


def _in_unit_disc(shape, dtype, rng) -> np.ndarray:
    """Uniform on |z| < 1, or on (-1, 1) for real dtypes."""
    if np.dtype(dtype).kind == "f":
        return rng.uniform(-1, 1, shape)
    return np.sqrt(rng.random(shape)) * np.exp(2j * np.pi * rng.random(shape))
