"""Checks of Gram matrices, of their spectra, and of all that a recalibration takes."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_floating, check_scalar
from jacfuse_jax._precision import product
from jacfuse_jax.linalg._spectrum import GramSpectrum


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
