"""The recalibration matrices R themselves, for those who need more than R z."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_batch_size
from jacfuse_jax._precision import product
from jacfuse_jax.linalg._arguments import check_system
from jacfuse_jax.linalg._closed_form import recalibrated_eigenvectors
from jacfuse_jax.linalg._samples import map_samples
from jacfuse_jax.linalg._spectrum import GramSpectrum


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
