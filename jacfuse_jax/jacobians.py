"""Per-sample Jacobians by automatic differentiation, their closed forms, and Gram matrices."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_batch_size, check_floating, check_kernel
from jacfuse_jax._precision import product
from jacfuse_jax._simplex import complement
from jacfuse_jax.linalg._batching import map_in_chunks


def per_sample_jacobian(
    fn: Callable[[Any], jax.Array],
    x: Any,
    *,
    mode: Literal["forward", "reverse"] = "forward",
    batch_size: int | None = None,
) -> Any:
    """Jacobian d fn(x_b) / d x_b of every sample of a batch.

    Forward mode (`jax.jacfwd` under `jax.vmap`) costs one pass per input entry, reverse mode
    (`jax.jacrev`) one per output entry: take "reverse" where inputs outnumber classes by far.

    Args:
      fn: maps one sample, without its batch axis, to an array of shape (K,) (or any other shape).
      x: a batch, (B, ...), or a pytree of such arrays.
      mode: "forward" or "reverse".
      batch_size: samples differentiated at a time, which bounds memory; None takes all at once.
        With one, every call outside of `jax.jit` compiles anew.

    Returns:
      (B, K, ...): for every sample the output axes, then the axes of its input. A pytree of such
      arrays where `x` is one.

    Raises:
      ValueError: unknown mode, or batch_size < 1.
    """
    if mode not in ("forward", "reverse"):
        raise ValueError(f"mode must be 'forward' or 'reverse', got {mode!r}")
    check_batch_size(batch_size)
    jacobian_fn = jax.jacfwd(fn) if mode == "forward" else jax.jacrev(fn)
    if batch_size is None:
        return jax.vmap(jacobian_fn)(x)
    return map_in_chunks(jacobian_fn, x, batch_size)


def softmax_jacobian(probs: ArrayLike) -> jax.Array:
    """Jacobian of p = softmax(z) in z: diag(p) - p p^T.

    Every entry to a few eps of itself, also where one probability rounds to one: p_i - p_i^2 is
    taken as p_i times the sum of the others, which are to sum to one with it.

    Args:
      probs: p, (..., K), float32 or float64.

    Returns:
      (..., K, K), symmetric positive semi-definite; rows sum to zero.

    Raises:
      TypeError: not float32 or float64.
    """
    probs = jnp.asarray(probs)
    check_floating("probs", probs)
    is_diagonal = jnp.eye(probs.shape[-1], dtype=bool)
    is_diagonal = is_diagonal.reshape((1,) * (probs.ndim - 1) + is_diagonal.shape)
    of_class = (probs * complement(probs))[..., :, None]
    return jnp.where(is_diagonal, of_class, -probs[..., :, None] * probs[..., None, :])


def fused_jacobian(probs: ArrayLike, recalibration: ArrayLike, kernel: ArrayLike) -> jax.Array:
    """Jacobian of the fused probabilities in the features of one modality, R held fixed.

    dp'/dh = (diag(p') - p' p'^T) R W^T for logits z = W^T h + b. R itself depends on h; the
    derivative through the solve is `per_sample_jacobian` of the whole fusion.

    Args:
      probs: p', (B, K), the fused probabilities.
      recalibration: R, (B, K, K), see `linalg.recalibration_matrix`.
      kernel: W, (H, K), of the last linear layer.

    Returns:
      (B, K, H).

    Raises:
      TypeError: an array is not float32 or float64.
      ValueError: shapes disagree.
    """
    probs, recalibration, kernel = map(jnp.asarray, (probs, recalibration, kernel))
    check_floating("kernel", kernel)
    check_floating("recalibration", recalibration)
    if (
        recalibration.shape != (*probs.shape, probs.shape[-1])
        or kernel.shape[1:] != probs.shape[1:]
    ):
        raise ValueError(
            "probs, recalibration and kernel must be (B, K), (B, K, K) and (H, K), got "
            f"{probs.shape}, {recalibration.shape} and {kernel.shape}"
        )
    recalibrated_head = product(recalibration, kernel.T)
    return product(softmax_jacobian(probs), recalibrated_head)


def gram_from_head(kernel: ArrayLike) -> jax.Array:
    """Gram matrix of a linear head, G = W^T W, the same for every sample.

    `linalg.spectrum_from_kernel` gives its spectrum more accurately than an eigendecomposition of
    this matrix.

    Args:
      kernel: W, (H, K), of z = W^T h + b; float32 or float64.

    Returns:
      (K, K).

    Raises:
      TypeError: not float32 or float64.
      ValueError: not a matrix.
    """
    kernel = check_kernel(kernel)
    return product(kernel.T, kernel)


def gram_from_jacobian(jac: ArrayLike) -> jax.Array:
    """Gram matrices of per-sample Jacobians, G = D D^T.

    Args:
      jac: D, (B, K, ...), the Jacobian of the logits in features or inputs of any shape, as
        `per_sample_jacobian` returns it; or (K, H) for one sample. float32 or float64.

    Returns:
      (B, K, K), or (K, K) for one sample.

    Raises:
      TypeError: not float32 or float64.
      ValueError: fewer than two axes.
    """
    jac = jnp.asarray(jac)
    check_floating("jac", jac)
    if jac.ndim < 2:
        raise ValueError(f"jac must have shape (B, K, ...) or (K, H), got {jac.shape}")
    flat = jac if jac.ndim == 2 else jac.reshape(*jac.shape[:2], -1)
    return product(flat, jnp.swapaxes(flat, -1, -2))
