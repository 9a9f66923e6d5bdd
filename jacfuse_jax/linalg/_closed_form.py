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

import jax
import jax.numpy as jnp

from jacfuse_jax._precision import product
from jacfuse_jax.linalg._spectrum import GramSpectrum

_FEW_CLASSES = 16


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
