"""The last linear layer of a classifier, in which the Jacobian is regularised."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from jacfuse_jax import linalg
from jacfuse_jax.linalg._spectrum import centre_kernel
from jacfuse_jax.predictions.npy import ArrayOnDisk, check_floating
from jacfuse_jax.programs import InputError

HEADS = ("kernel", "weight", "gram")
_GRAM_ROUNDING = 1e-2  # of the largest eigenvalue, where the product was formed in bfloat16


def head_spectrum(
    heads: Mapping[str, ArrayOnDisk],
    num_classes: int,
    dtype: np.dtype[Any],
    places: NDArray[np.int64] | None = None,
) -> linalg.GramSpectrum:
    """The spectrum of C G C, the Gram matrix of a last linear layer, C = I - 1 1^T / K.

    Centred over classes it leaves a constant as it is that is added to a row of logits: they may be
    log-probabilities as well, and classes may be left out.

    Args:
      heads: one layer, under its name in `HEADS`; none stands for a kernel that is the identity.
      num_classes: of the layer.
      dtype: that is computed in.
      places: (K,), where the classes of the output are in the layer; None: they are alike.

    Returns:
      Arrays (K,) and (K, K).

    Raises:
      InputError: there are two layers, or the one does not fit, or is too large for the dtype.
    """
    if len(heads) > 1:
        raise InputError(f"{', '.join(head.name for head in heads.values())}: keep one of them")
    if not heads:
        size = num_classes if places is None else len(places)
        return linalg.spectrum_from_kernel(centre_kernel(np.eye(size)))
    [(name, head)] = heads.items()
    check_floating(head)
    transposed = head._replace(shape=head.shape[::-1]) if name == "weight" else head
    if len(head.shape) != 2 or transposed.shape[1] != num_classes:
        raise InputError(
            f"{head.name} has shape {head.shape}, but K = {num_classes}; a `kernel` is (H, K), a "
            "`weight`, as torch has it, (K, H), a `gram` (K, K)"
        )
    matrix = head.read().astype(np.float64)
    if not np.isfinite(matrix).all():
        raise InputError(f"{head.name} is not finite")
    _check_size(head.name, matrix, dtype, is_gram=name == "gram")
    kept = slice(None) if places is None else places
    if name != "gram":
        kernel = matrix.T if name == "weight" else matrix
        return linalg.spectrum_from_kernel(centre_kernel(kernel[:, kept]))
    is_square = matrix.shape[0] == num_classes
    if not is_square or np.abs(matrix - matrix.T).max() > 1e-3 * np.abs(matrix).max():
        raise InputError(f"{head.name} must be (K, K) and symmetric, got shape {matrix.shape}")
    gram = centre_kernel(centre_kernel(matrix[kept][:, kept]).T)
    eigenvalues = np.linalg.eigvalsh(gram)
    if eigenvalues[0] < -_GRAM_ROUNDING * np.abs(eigenvalues).max():
        raise InputError(
            f"{head.name} has the eigenvalue {eigenvalues[0]:.3g}, where none may be negative; "
            "save W^T W, or better the `kernel` W"
        )
    return linalg.gram_spectrum(gram)


def _check_size(
    name: str, matrix: NDArray[np.float64], dtype: np.dtype[Any], *, is_gram: bool
) -> None:
    """Raises where norms of Jacobians could leave the range of the dtype."""
    largest = np.abs(matrix).max()
    with np.errstate(over="ignore"):
        trace = len(matrix) * largest if is_gram else np.sum(matrix**2)  # a bound for `gram`
    if trace >= _max_trace(dtype):
        double = trace < _max_trace(np.float64)
        raise InputError(
            f"{name} has entries up to {largest:.3g}, too large to compute with in {dtype}; scale "
            "it down" + (", or save float64 logits and set JAX_ENABLE_X64=1" if double else "")
        )


def _max_trace(dtype: DTypeLike) -> float:
    """That a Gram matrix may have; leaves room for products and for sums over modalities."""
    return float(np.finfo(dtype).max * np.finfo(dtype).eps)
