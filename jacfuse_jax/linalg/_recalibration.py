"""The recalibration of a batch, R z: for large K by matrix products that samples share.

Of the K x K matrix E_ij = 1 / (1 + s_j p_i^2) of a sample, R z takes products of E and of F = E * V
with vectors (see `_closed_form`):

    R z = F t - p * (E (x t)) - p^2 * (E (y t)),     t = V^T z,     x, y from e, a, u, w.

Rows with s_max p_i^2 <= X = 1 / 32 are polynomials to rounding,

    E_ij = sum_l c_l xi_i^l sigma_j^l,     xi_i = s_max p_i^2 / X,     sigma_j = s_j / s_max,

so that products with F become products with V_l = c_l V diag(sigma^l), which all samples share, and
products with E need moments only. Over these rows

    e_j = sum_l c_l sigma_j^l sum_i p_i xi_i^l       u_j = sum_l sum_i p_i xi_i^l (V_l)_ij
    (E x)_i = sum_l c_l xi_i^l sum_j sigma_j^l x_j   (F t)_i = sum_l xi_i^l (V_l t)_i,

a and w likewise with p_i^2 for p_i. The rows of the likely classes, p_i > sqrt(X / s_max), are
added one by one. Probabilities sum to one, so that there are few unless the strength is large:
where a sample has more than K / 8 of them, its block of samples is solved densely. Derived here.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_batch_size
from jacfuse_jax._devices import on_each_device
from jacfuse_jax._precision import product
from jacfuse_jax.linalg._arguments import check_system
from jacfuse_jax.linalg._batching import Chunks, with_chunks
from jacfuse_jax.linalg._closed_form import (
    apply_recalibration,
    clipped_strengths,
    rank_two_coefficients,
    recalibrated_eigenvectors,
    scaled_strengths,
)
from jacfuse_jax.linalg._samples import map_local_samples, map_samples
from jacfuse_jax.linalg._spectrum import GramSpectrum

# Where products were faster than the dense solve on CPU.
_MIN_CLASSES = {"float32": 96, "float64": 256}
_MIN_BATCH = 16
# Interpolation in Chebyshev points leaves an error of 7e-9 in E with four terms, 1e-17 with eight.
_LARGEST_X = 1 / 32
_NUM_TERMS = {"float32": 4, "float64": 8}
# Likely classes that a block may have, K over these; more than K / 8 are as fast densely.
_LIKELY_PARTS = (20, 8)


def recalibrate(
    logits: ArrayLike,
    probs: ArrayLike,
    spectrum: GramSpectrum,
    strength: ArrayLike,
    *,
    batch_size: int | None = None,
) -> jax.Array:
    """Applies the recalibration, R z, where c J^2 R G + R = I and J = diag(p) - p p^T.

    O(K^2) operations a sample and no decomposition; memory grows with the chunk, not with B K^2.
    The error is at most about 10 eps of the largest entry of z and R z where strength * eigenvalues
    are below 1e32 in float32, 1e300 in float64; beyond, R z is that of such a strength. Derivatives
    need their square to be representable: up to 1e18 in float32.

    From 96 classes (256 in float64) and 16 samples on, samples that share a spectrum are solved by
    matrix products, as long as no sample of a chunk has more than K / 8 likely classes: those with
    p^2 > 1 / (32 strength max(eigenvalues)). In float32 that is two to four times as fast on CPU,
    in float64 1.5 times. Derivatives do not gain by it, and under `jax.vmap` all branches run.

    Args:
      logits: z, (B, K) or (K,), float32 or float64.
      probs: p, same shape as the logits; rows sum to one.
      spectrum: of G, shared (K,), (K, K) or per sample (B, K), (B, K, K).
      strength: c >= 0, a scalar, traced or not; (1 - gamma) / gamma in fusion. A traced strength
        below zero gives NaN.
      batch_size: samples solved at a time, at least 1. None: what fits the platform. On CPU that is
        about 2^20 entries of K x K matrices, or 2^16 entries of the logits where matrix products
        are used, so that chunks stay in cache; on accelerators 2^26 and 2^24, for which the device
        needs a few gigabytes.

    Returns:
      R z in the shape and dtype of the logits. NaN in a sample stays in that sample.

    Raises:
      TypeError: an array is not float32 or float64.
      ValueError: shapes disagree, strength is negative or not finite, or batch_size < 1.

    References:
      Derived here; the objective is that of Gao et al., "Training-Free Robust Multimodal Learning
      via Sample-Wise Jacobian Regularization", 2022, arXiv 2204.02485.
    """
    logits = jnp.asarray(logits)
    probs, spectrum, strength = check_system(logits, probs, spectrum, strength)
    check_batch_size(batch_size)
    is_shared = spectrum.eigenvalues.ndim == 1
    has_many = logits.ndim == 2 and len(logits) >= _MIN_BATCH
    if is_shared and has_many and logits.shape[1] >= _MIN_CLASSES[logits.dtype.name]:
        return _solve_by_products(batch_size, logits, probs, spectrum, strength)
    return _solve_densely(batch_size, logits, probs, spectrum, strength)


# Compiled once for all calls outside of `jax.jit`, too, which would compile the loop every time.
@functools.partial(jax.jit, static_argnums=0)
def _solve_densely(
    batch_size: int | Chunks | None,
    logits: jax.Array,
    probs: jax.Array,
    spectrum: GramSpectrum,
    strength: jax.Array,
) -> jax.Array:
    """R z with all of Y = R V, sample by sample."""
    samples = logits, probs
    return map_samples(_solve_sample, samples, [spectrum], strength, batch_size=batch_size)


def _solve_sample(
    sample: tuple[jax.Array, jax.Array], spectra: list[GramSpectrum], strength: jax.Array
) -> jax.Array:
    """R z of one sample."""
    (z, p), (spectrum,) = sample, spectra
    return apply_recalibration(recalibrated_eigenvectors(p, spectrum, strength), spectrum, z)


class _Expansion(NamedTuple):
    """E and F = E * V for p <= threshold; see the module's text.

    Attributes:
      s: (K,), at most one.
      scale: of p, (K,), see `_closed_form`.
      eigenvectors: V, (K, K).
      threshold: sqrt(X / s_max).
      powers: c_l sigma_j^l, (L, K).
      products: V_l, (L, K, K).
    """

    s: jax.Array
    scale: jax.Array
    eigenvectors: jax.Array
    threshold: jax.Array
    powers: jax.Array
    products: jax.Array


def _expand(spectrum: GramSpectrum, strength: jax.Array) -> _Expansion:
    """Interpolates 1 / (1 + x) in Chebyshev points of [0, X], in powers of x / X."""
    s, V = clipped_strengths(spectrum, strength), spectrum.eigenvectors
    num_terms = _NUM_TERMS[s.dtype.name]
    series = np.polynomial.Chebyshev.interpolate(
        lambda x: 1 / (1 + x), num_terms - 1, domain=[0, _LARGEST_X]
    )
    c = series.convert(kind=np.polynomial.Polynomial, domain=[0, _LARGEST_X], window=[0, 1]).coef
    largest = s.max()
    sigma = s / jnp.where(largest > 0, largest, 1)
    powers = jnp.stack([float(c[i]) * sigma**i for i in range(num_terms)])
    threshold = jnp.sqrt(_LARGEST_X / largest)
    return _Expansion(*scaled_strengths(s), V, threshold, powers, V[None] * powers[:, None])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _by_products(
    batch_size: int | None,
    logits: jax.Array,
    probs: jax.Array,
    spectrum: GramSpectrum,
    strength: jax.Array,
) -> jax.Array:
    """R z of samples (B, K) that share a spectrum, block by block."""

    def solve(
        samples: tuple[jax.Array, jax.Array], spectrum: GramSpectrum, strength: jax.Array
    ) -> jax.Array:
        return with_chunks(_solve_blocks, batch_size, *samples, spectrum, strength)

    return on_each_device(solve, (logits, probs), spectrum, strength)


@functools.partial(_by_products.defjvp, symbolic_zeros=True)
def _(batch_size: int | None, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """Polynomials that are exact to rounding have derivatives that are not: these are dense."""
    primals, structure = jax.tree.flatten(primals)
    tangents = structure.flatten_up_to(tangents)
    moving = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, SymbolicZero)]

    def solve(*moved: jax.Array) -> jax.Array:
        leaves = list(primals)
        for index, leaf in zip(moving, moved, strict=True):
            leaves[index] = leaf
        return _solve_densely(batch_size, *structure.unflatten(leaves))

    return jax.jvp(solve, [primals[i] for i in moving], [tangents[i] for i in moving])


_solve_by_products = jax.jit(_by_products, static_argnums=0)


def _solve_blocks(
    batch_size: int | Chunks,
    logits: jax.Array,
    probs: jax.Array,
    spectrum: GramSpectrum,
    strength: jax.Array,
) -> jax.Array:
    """The same in blocks of known size; one that is solved densely is cut up once more."""
    num_samples, num_classes = logits.shape
    if isinstance(batch_size, Chunks):
        largest = max(1, batch_size.block_entries // num_classes)
    else:
        largest = batch_size
    num_blocks = -(-num_samples // largest)
    size = -(-num_samples // num_blocks)
    expansion = _expand(spectrum, strength)
    limits = [num_classes // part for part in _LIKELY_PARTS]
    solve_fns = [
        *(functools.partial(_solve_block, limit, expansion) for limit in limits),
        lambda z, p: map_local_samples(
            _solve_sample, batch_size, ((z, p), [None]), [spectrum], strength
        ),
    ]

    def solve_next(index: jax.Array, out: jax.Array) -> jax.Array:
        # Blocks overlap a little where the batch does not divide.
        start = jnp.minimum(index * size, num_samples - size)
        z, p = (jax.lax.dynamic_slice_in_dim(x, start, size) for x in (logits, probs))
        num_likely = (p > expansion.threshold).sum(axis=-1).max()
        choice = sum((num_likely > limit).astype(jnp.int32) for limit in limits)
        block = jax.lax.switch(choice, solve_fns, z, p)
        return jax.lax.dynamic_update_slice_in_dim(out, block, start, axis=0)

    return jax.lax.fori_loop(0, num_blocks, solve_next, jnp.empty_like(logits))


def _solve_block(
    num_likely: int, expansion: _Expansion, logits: jax.Array, probs: jax.Array
) -> jax.Array:
    """R z of samples (B, K) with at most `num_likely` likely classes each."""
    s, scale, V, threshold, powers, products = expansion
    (size, num_classes), num_terms = logits.shape, len(powers)
    t = product(logits, V)

    rest = jnp.where(probs > threshold, 0, probs)
    xi = (rest / threshold) ** 2
    xi_l = jnp.stack([xi**i for i in range(num_terms)], axis=1)
    weights = jnp.stack([rest, rest**2])[:, :, None] * xi_l[None]
    # A sum by a product, since XLA would compute the weights a second time for a reduction.
    ea = product(product(weights, jnp.ones(num_classes, probs.dtype)), powers)
    uw = product(weights.reshape(2, size, -1), products.reshape(-1, num_classes))

    top, classes = jax.lax.top_k(probs, num_likely)
    # These are so few that sums, whose terms XLA does not store, are faster than products.
    likely = jnp.where(top > threshold, top, 0)[:, :, None]
    P = likely * scale[None, None]
    E, rows = 1 / (1 + s[None, None] * P**2), V[classes]
    pE = likely * E
    sums = [x.sum(axis=1) for x in (pE, likely * pE, pE * rows, likely * pE * rows)]
    (e, a), (u, w) = ea + jnp.stack(sums[:2]), uw + jnp.stack(sums[2:])

    x, y = rank_two_coefficients(s, scale, e, a, u, w)
    x_t, y_t = x * t, y * t
    Ft = product(t, products.reshape(-1, num_classes).T).reshape(xi_l.shape)
    of_rest = jnp.stack([scale[None] * x_t, scale[None] * (scale[None] * y_t)])
    Ex, Ey = product(of_rest, powers.T)[..., None]
    rest_l = Ft - rest[:, None] * (Ex + rest[:, None] * Ey)
    out = jnp.asarray(jnp.where(probs > threshold, 0, (xi_l * rest_l).sum(axis=1)))

    x_t, y_t = x_t[:, None], y_t[:, None]
    of_likely = (E * (rows * t[:, None] - P * (x_t + P * y_t))).sum(axis=-1)
    of_likely = jnp.where(top > threshold, of_likely, 0)
    return out.at[jnp.arange(size)[:, None], classes].add(of_likely, unique_indices=True)
