"""Spectra of Gram matrices: from the matrix, or from the kernel that it is made of."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jacfuse_jax._checks import check_floating, check_kernel


class GramSpectrum(NamedTuple):
    """Eigendecomposition G = V diag(g) V^T of a positive semi-definite Gram matrix.

    Attributes:
      eigenvalues: g, (K,) shared by all samples or (B, K) per sample; not negative.
      eigenvectors: V, (K, K) or (B, K, K); orthonormal columns.
    """

    eigenvalues: jax.Array
    eigenvectors: jax.Array


def gram_spectrum(gram: ArrayLike) -> GramSpectrum:
    """Decomposes Gram matrices, G = V diag(g) V^T.

    A Gram matrix formed in finite precision knows its eigenvalues only to eps ||G||: what is below
    K eps ||G|| is set to zero, and small eigenvalues above that have few correct digits, which
    shows in a recalibration once strength * eps * ||G|| is not small. Where the matrix comes from a
    kernel, prefer `spectrum_from_kernel`, which knows them to eps sqrt(||G|| g_j).

    Derivatives through the decomposition are NaN where eigenvalues repeat: differentiate with
    respect to the spectrum, or hold it constant.

    Args:
      gram: (K, K) or (B, K, K), symmetric positive semi-definite, float32 or float64. Only its
        symmetric part is used.

    Returns:
      The spectrum, eigenvalues ascending, in the dtype and batch shape of `gram`; NaN for matrices
      that are not finite.

    Raises:
      TypeError: not float32 or float64.
      ValueError: not square.
    """
    gram = jnp.asarray(gram)
    check_floating("gram", gram)
    if gram.ndim not in (2, 3) or gram.shape[-1] != gram.shape[-2]:
        raise ValueError(f"gram must have shape (K, K) or (B, K, K), got {gram.shape}")
    safe, is_finite = finite_symmetric_part(gram)
    eigenvalues, eigenvectors = jnp.linalg.eigh(safe)
    eigenvalues = jnp.asarray(jnp.where(is_finite[..., None], eigenvalues, jnp.nan))
    eigenvectors = jnp.asarray(jnp.where(is_finite[..., None, None], eigenvectors, jnp.nan))
    norm = jnp.abs(eigenvalues).max(axis=-1, keepdims=True)
    rounding = gram.shape[-1] * jnp.finfo(gram.dtype).eps * norm
    kept = jax.lax.select(eigenvalues < rounding, jnp.zeros_like(eigenvalues), eigenvalues)
    return GramSpectrum(kept, eigenvectors)


def spectrum_from_kernel(kernel: ArrayLike) -> GramSpectrum:
    """Spectrum of G = W^T W from the singular values of W, without forming G.

    With W = U diag(sigma) V^T, g = sigma^2: an eigenvalue is known to eps sqrt(||G|| g_j) instead
    of eps ||G||. When K > H, the K - H eigenvalues that must vanish are exact zeros. Derivatives
    through the decomposition are NaN where singular values repeat: hold the spectrum constant.

    Args:
      kernel: W, (H, K), the kernel of the last linear layer, z = W^T h + b; float32 or float64.

    Returns:
      The spectrum of the (K, K) Gram matrix, eigenvalues descending, in the dtype of the kernel.

    Raises:
      TypeError: not float32 or float64.
      ValueError: not a matrix.
    """
    kernel = check_kernel(kernel)
    num_features, num_classes = kernel.shape
    # Zero rows change no singular value and make V^T square without a (H, H) factor U.
    missing_rows = max(num_classes - num_features, 0)
    padded = jnp.pad(kernel, ((0, missing_rows), (0, 0)))
    _, singular_values, vt = jnp.linalg.svd(padded, full_matrices=False)
    rank_bound = num_classes - missing_rows
    eigenvalues = jnp.where(jnp.arange(num_classes) < rank_bound, singular_values**2, 0)
    return GramSpectrum(eigenvalues, vt.T)


def centre_kernel(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """W C of a kernel W, (H, K), C = I - 1 1^T / K: no row of it has a mean, as of log-odds."""
    return kernel - kernel.mean(axis=1, keepdims=True)


def finite_symmetric_part(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(A + A^T) / 2 of matrices (..., K, K), and which are finite, (...); zero where one is not.

    Eigenvalues of the others are to be made NaN: routines of other platforms need not keep it.
    """
    is_finite = jnp.isfinite(matrix).all(axis=(-2, -1))
    safe = jnp.asarray(jnp.where(is_finite[..., None, None], matrix, 0))
    return (safe + jnp.swapaxes(safe, -1, -2)) / 2, is_finite
