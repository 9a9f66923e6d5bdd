"""The per-sample K x K system of a softmax Jacobian and a Gram matrix, solved in O(K^2).

For one sample let p be its probabilities, J = diag(p) - p p^T the softmax Jacobian, G a positive
semi-definite Gram matrix and c >= 0 a strength. The matrix R that minimises

    c ||J R G^(1/2)||_F^2 + ||R - I||_F^2        solves        c J^2 R G + R = I.

With G = V diag(g) V^T and s_j = c g_j, column j of Y = R V is y_j = (I + s_j J^2)^-1 v_j. Since

    J^2 = diag(p^2) - q p^T - p q^T + n p p^T,      q = p*p,  n = p^T p,

I + s_j J^2 is a diagonal matrix of rank-two change, and Woodbury's identity gives y_j in O(K). The
2 x 2 determinant of the textbook form cancels for saturated p; using sum(p) = 1 and
s p_i^2 E_ij = 1 - E_ij with E_ij = 1 / (1 + s_j p_i^2), it turns into a sum of squares:

    e = sum_i p_i E_ij,  a = sum_i p_i^2 E_ij,  u = sum_i p_i E_ij V_ij,  w = sum_i p_i^2 E_ij V_ij
    b = s a,    d = a b + e^2,    x = (b u - s e w) / d,    y = -(s b w + s e u) / d
    Y_ij = E_ij (V_ij - p_i x_j - p_i^2 y_j).

No term is divided by s, so zero eigenvalues are exact (and smooth). Where s > 1, p is replaced by
sqrt(s) p and s by one, which changes neither form nor result: every term is then of order one, and
large strengths lose nothing until s itself overflows. Derived here.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_batch_size, check_floating, check_kernel, check_scalar
from jacfuse_jax._devices import on_each_device
from jacfuse_jax._precision import product
from jacfuse_jax.linalg._batching import Chunks, with_chunks

_FEW_CLASSES = 16


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


def recalibration_matrix(
    probs: ArrayLike,
    spectrum: GramSpectrum,
    strength: ArrayLike,
    *,
    batch_size: int | None = None,
) -> jax.Array:
    """The recalibration matrix R itself, c J^2 R G + R = I, one per sample.

    Costs O(K^3) a sample and B K^2 memory, since R = Y V^T is formed; `recalibrate` applies R
    without that. Its columns sum to one, since J 1 = 0.

    Args:
      probs: p, (B, K) or (K,), float32 or float64; rows sum to one.
      spectrum: of G, shared (K,), (K, K) or per sample (B, K), (B, K, K).
      strength: c >= 0, a scalar, traced or not.
      batch_size: samples solved at a time, at least 1. None: about 2^20 entries of K x K matrices
        on CPU, so that they stay in cache, and 2^26 on accelerators.

    Returns:
      R, (B, K, K) or (K, K), in the dtype of the probabilities.

    Raises:
      TypeError: an array is not float32 or float64.
      ValueError: shapes disagree, strength is negative or not finite, or batch_size < 1.
    """
    probs = jnp.asarray(probs)
    probs, spectrum, strength = check_system(probs, probs, spectrum, strength)
    check_batch_size(batch_size)
    return _recalibration_matrix(batch_size, probs, spectrum, strength)


# Compiled once for all calls outside of `jax.jit`, too, which would compile the loop every time.
@functools.partial(jax.jit, static_argnums=0)
def _recalibration_matrix(
    batch_size: int | None, probs: jax.Array, spectrum: GramSpectrum, strength: jax.Array
) -> jax.Array:
    """`recalibration_matrix` of arguments that are checked."""

    def matrix_of_sample(
        p: jax.Array, spectra: list[GramSpectrum], strength: jax.Array
    ) -> jax.Array:
        (spectrum,) = spectra
        recalibrated = recalibrated_eigenvectors(p, spectrum, strength)
        return product(recalibrated, spectrum.eigenvectors.T)

    return map_samples(matrix_of_sample, probs, [spectrum], strength, batch_size=batch_size)


def finite_symmetric_part(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(A + A^T) / 2 of matrices (..., K, K), and which are finite, (...); zero where one is not.

    Eigenvalues of the others are to be made NaN: routines of other platforms need not keep it.
    """
    is_finite = jnp.isfinite(matrix).all(axis=(-2, -1))
    safe = jnp.asarray(jnp.where(is_finite[..., None, None], matrix, 0))
    return (safe + jnp.swapaxes(safe, -1, -2)) / 2, is_finite


def recalibrated_eigenvectors(
    probs: jax.Array, spectrum: GramSpectrum, strength: jax.Array
) -> jax.Array:
    """Y = R V of one sample, (K, K): column j is (I + c g_j J^2)^-1 v_j. See the module's text."""
    s, scale = scaled_strengths(clipped_strengths(spectrum, strength))
    V = spectrum.eigenvectors
    P = probs[:, None] * scale[None]
    E = 1 / (1 + s[None] * P**2)
    pq = jnp.stack([probs, probs**2])
    e, a = sum_or_product(pq, E)
    u, w = sum_or_product(pq, E * V)
    x, y = rank_two_coefficients(s, scale, e, a, u, w)
    return E * (V - P * x[None] - P**2 * y[None])


def clipped_strengths(spectrum: GramSpectrum, strength: jax.Array) -> jax.Array:
    """Strengths s_j = c g_j, where they would overflow close to the largest number."""
    info = jnp.finfo(spectrum.eigenvalues.dtype)
    strength = jnp.asarray(jnp.where(strength >= 0, strength, jnp.nan))
    # Sums of p E, which are about 1 / s, are then still normal numbers.
    return jnp.minimum(strength * spectrum.eigenvalues, info.max / 2**16)


def scaled_strengths(s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Strengths of at most one, and the scales of p that make up for it, sqrt(s) or one."""
    is_large = s > 1
    return jnp.where(is_large, 1, s), jnp.sqrt(jnp.where(is_large, s, 1))


def rank_two_coefficients(
    s: jax.Array, scale: jax.Array, e: jax.Array, a: jax.Array, u: jax.Array, w: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Coefficients x and y of scaled p, in the shape of the sums, which are those of p as it is."""
    s, scale = (x.reshape((1,) * (a.ndim - 1) + x.shape) for x in (s, scale))
    e, a, u, w = scale * e, scale * (scale * a), scale * u, scale * (scale * w)
    b = s * a
    d = a * b + e**2
    return (b * u - s * e * w) / d, -s * (b * w + e * u) / d


def apply_recalibration(
    recalibrated: jax.Array, spectrum: GramSpectrum, logits: jax.Array
) -> jax.Array:
    """R z = Y V^T z of one sample, (K,), from the columns Y of `recalibrated_eigenvectors`."""
    vt_z = product(logits, spectrum.eigenvectors)
    return sum_or_product(vt_z, recalibrated.T)


def sum_or_product(weights: jax.Array, matrix: jax.Array) -> jax.Array:
    """Weights (..., K) times a matrix (K, N) of one sample, in full precision.

    For few classes as a sum, which XLA computes together with the matrix instead of storing it: at
    K = 10 that is 14 times as fast on an H100, and slightly faster on CPU.
    """
    if len(matrix) > _FEW_CLASSES:
        return product(weights, matrix)
    return jnp.sum(
        weights[..., None] * matrix.reshape((1,) * (weights.ndim - 1) + matrix.shape), axis=-2
    )


def map_samples(
    sample_fn: Callable[..., Any],
    samples: Any,
    grams: Sequence[GramSpectrum | jax.Array],
    *shared: Any,
    batch_size: int | Chunks | None = None,
) -> Any:
    """Applies `sample_fn(sample, grams, *shared)` to every sample, on the device that has it.

    Leaves of `samples` are (K,) for one sample or (B, K); Gram matrices, or their spectra, are
    shared (K, K) or per sample (B, K, K). Devices solve a chunk at a time. Differentiable as
    `sample_fn` is, in its floating-point results.
    """
    if jax.tree.leaves(samples)[0].ndim == 1:
        return sample_fn(samples, grams, *shared)
    solve = functools.partial(map_local_samples, sample_fn, batch_size)
    # Which Gram matrices samples have of their own: the others are None there, and conversely.
    is_own = [jax.tree.leaves(gram)[-1].ndim == 3 for gram in grams]
    own = [gram if own else None for gram, own in zip(grams, is_own, strict=True)]
    common = [None if own else gram for gram, own in zip(grams, is_own, strict=True)]
    return on_each_device(solve, (samples, own), common, *shared)


def map_local_samples(
    sample_fn: Callable[..., Any],
    batch_size: int | Chunks | None,
    batched: tuple[Any, list[Any]],
    common_grams: list[Any],
    *shared: Any,
) -> Any:
    """The same of one device's samples and their own Gram matrices.

    The body is rematerialised, so reverse mode keeps no K x K array.
    """

    @jax.checkpoint
    def body(args: tuple[Any, list[Any]]) -> Any:
        sample, own_grams = args
        grams = [
            common if own is None else own
            for own, common in zip(own_grams, common_grams, strict=True)
        ]
        return sample_fn(sample, grams, *shared)

    def solve(batch_size: int | Chunks, batched: tuple[Any, list[Any]]) -> Any:
        if isinstance(batch_size, Chunks):
            first = jax.tree.leaves(batched)[0]
            batch_size = _chunk_size(batch_size.matrix_entries, *first.shape)
        return jax.lax.map(body, batched, batch_size=batch_size)

    return with_chunks(solve, batch_size, batched)


def _chunk_size(matrix_entries: int, batch: int, num_classes: int) -> int:
    """Samples that fill about as many matrix entries; a divisor of the batch where one is near.

    A last, smaller chunk would make `jax.lax.map` copy inputs and outputs.
    """
    largest = max(1, matrix_entries // num_classes**2)
    sizes = range(min(largest, max(batch, 1)), largest // 2, -1)
    return next((size for size in sizes if batch % size == 0), largest)


def check_system(
    logits: jax.Array, probs: ArrayLike, spectrum: GramSpectrum, strength: ArrayLike
) -> tuple[jax.Array, GramSpectrum, jax.Array]:
    """Returns probabilities, spectrum and strength in the dtype of the logits; raises on misuse."""
    check_floating("logits", logits)
    probs = jnp.asarray(probs)
    check_floating("probs", probs)
    if logits.ndim not in (1, 2) or probs.shape != logits.shape:
        raise ValueError(
            f"logits and probs must both be (B, K) or (K,), got {logits.shape} and {probs.shape}"
        )
    spectrum = check_spectrum("spectrum", spectrum, logits.shape, logits.dtype)
    strength = check_scalar("strength", strength, logits.dtype)
    return probs.astype(logits.dtype), spectrum, strength


def check_gram(
    name: str, gram: GramSpectrum | ArrayLike, logits_shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    """Returns the Gram matrix, or that of the spectrum, in `dtype`; raises as `check_spectrum`."""
    if isinstance(gram, GramSpectrum):
        g, V = check_spectrum(name, gram, logits_shape, dtype)
        return product(V * g[..., None, :], jnp.swapaxes(V, -1, -2))
    array = jnp.asarray(gram)
    check_floating(name, array)
    num_classes = logits_shape[-1]
    shared, own = (num_classes, num_classes), (*logits_shape, num_classes)
    if array.shape not in (shared, own):
        raise ValueError(f"{name} must have shape {shared}, or {own} per sample, got {array.shape}")
    return array.astype(dtype)


def check_spectrum(
    name: str, spectrum: GramSpectrum, logits_shape: tuple[int, ...], dtype: Any
) -> GramSpectrum:
    """Returns the spectrum in `dtype`; raises unless it is shared or per sample of the logits."""
    eigenvalues, eigenvectors = (jnp.asarray(array) for array in spectrum)
    check_floating(f"{name}.eigenvalues", eigenvalues)
    check_floating(f"{name}.eigenvectors", eigenvectors)
    num_classes = logits_shape[-1]
    shapes = (eigenvalues.shape, eigenvectors.shape)
    shared = ((num_classes,), (num_classes, num_classes))
    own = (logits_shape, (*logits_shape, num_classes))
    if shapes not in (shared, own):
        raise ValueError(
            f"{name} must have shapes {shared[0]} and {shared[1]}, or {own[0]} and {own[1]} per "
            f"sample, got {shapes[0]} and {shapes[1]}"
        )
    return GramSpectrum(eigenvalues.astype(dtype), eigenvectors.astype(dtype))
