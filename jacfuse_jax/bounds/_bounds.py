"""What can be said of a fused prediction's sensitivity and bias beforehand."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import (
    check_mapping,
    check_modalities,
    check_scalar,
)
from jacfuse_jax._likelihoods import rounding_of_probs
from jacfuse_jax._presence import Present, any_of, check_available
from jacfuse_jax._simplex import fill_excluded, log_jacobian_norm
from jacfuse_jax.fusion import statistical_fusion
from jacfuse_jax.linalg import GramSpectrum
from jacfuse_jax.linalg._arguments import check_spectrum


def a_priori_bound(gamma: ArrayLike, num_classes: int, *, lipschitz: ArrayLike = 1.0) -> jax.Array:
    """A bound on the fused prediction's Jacobian that holds before any sample is seen.

    If R solves c J^2 R G + R = I, c = (1 - gamma) / gamma, then, whatever the classifier,

        ||J R W^T||_F <= (1/2) sqrt(gamma (K - 1) / (1 - gamma)),      G = W^T W.

    Proof: let J = U diag(j) U^T and G = V diag(g) V^T. Entry (i, j) of U^T J R G^(1/2) V is
    (U^T V)_ij x / (1 + c x^2) with x = j_i sqrt(g_j), and x / (1 + c x^2) <= 1 / (2 sqrt(c)). J has
    at most K - 1 eigenvalues that are not zero, and the rows of U^T V have norm one.

    The bound is about J at the p that R was solved with. `robust_fusion` solves with J at the
    previous iterate, so that for its final prediction p' the bound applies

      - at a fixed point, where `converged` is true for atol -> 0; and in general only as
        ||J(p') R W^T||_F <= bound + 3 ||p' - p||_2 ||W||_F,
        since ||J(p') - J(p)||_2 <= 3 ||p' - p||_2 and ||R W^T||_F <= ||W||_F: after one iteration
        it can fail by far;
      - with R held fixed. R itself depends on the features: `total_jacobian` has the derivative
        through the solve, which no bound here covers.

    For t perturbed modalities side by side, multiply by sqrt(t).

    Args:
      gamma: in (0, 1], a scalar, traced or not; at 1 the bound is infinite.
      num_classes: K.
      lipschitz: Lipschitz constant L of the features in the input, both in the 2-norm: the result
        then bounds the Jacobian in the input.

    Returns:
      A scalar, float64 for a gamma that is, float32 otherwise; rounded up, like all bounds here.

    Raises:
      ValueError: gamma lies outside (0, 1], lipschitz is negative, or num_classes < 1.

    References:
      Derived here, from the objective of Gao, Ren, Xue, Li, Zhao, "Training-Free Robust Multimodal
      Learning via Sample-Wise Jacobian Regularization", 2022, arXiv 2204.02485.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    is_double = getattr(gamma, "dtype", None) == jnp.float64
    dtype = jax.dtypes.canonicalize_dtype(jnp.float64 if is_double else jnp.float32)
    gamma = check_scalar("gamma", gamma, dtype, high=1, positive=True)
    lipschitz = check_scalar("lipschitz", lipschitz, dtype)
    if num_classes == 1:  # J = 0, whatever gamma
        return jnp.zeros_like(lipschitz) * gamma
    bound = lipschitz * jnp.sqrt(gamma * (num_classes - 1) / (1 - gamma)) / 2
    return jnp.where(lipschitz == 0, 0, bound * (1 + 4 * jnp.finfo(dtype).eps))


def bias_bound(
    logits: Mapping[str, ArrayLike],
    grams: Mapping[str, GramSpectrum],
    class_prior: ArrayLike,
    *,
    perturbed: str | tuple[str, ...],
    gamma: ArrayLike,
    present: Present | None = None,
) -> jax.Array:
    """How far one recalibration moves a prediction at most: what robustness costs on clean data.

    With p the statistical fusion, p' the robust one, c = (1 - gamma) / gamma,

        ||p' - p||_2 <= (1/2) sum_m sqrt(min(rank_m, K - 1)) x_m / (1 + x_m) ||z_m||_2,
        x_m = c ||G_m|| ||J||^2,    ||J|| <= max_i 2 p_i (1 - p_i) <= 1/2,

    the sum over perturbed modalities. Proof: softmax has the Jacobian J, ||J|| <= 1/2, so that
    ||p' - p|| <= (1/2) ||sum_m (R_m - I) z_m||; in the eigenbases of J and G_m the entries of
    R - I are those of an orthogonal matrix times c j^2 g / (1 + c j^2 g), which increases in j and
    g and vanishes where either does; ||J|| by Gershgorin's theorem.

    Where a further modality, or any other, makes p confident, J and with it the bias vanish
    quadratically: what the extra modality contributes is certainty that the recalibration respects.
    Where it is not sure, neither is p, and the perturbed modality is moved most.

    Args:
      logits: z, {modality: (B, K)}, floating, at least one modality.
      grams: {modality: spectrum}, shared or per sample, of every perturbed modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      perturbed: name or names of the modalities believed perturbed; static.
      gamma: in (0, 1], a scalar, traced or not.
      present: see `fusion.statistical_fusion`.

    Returns:
      (B,), in the dtype of the logits, float32 for half precision.

    Raises:
      TypeError, ValueError: as `fusion.robust_fusion`.

    References:
      Derived here.
    """
    arrays, log_prior, checked = check_available(logits, class_prior, present)
    dtype = log_prior.dtype
    names = check_modalities("perturbed", perturbed, arrays)
    check_mapping("grams", grams, "spectrum")
    check_modalities("perturbed", names, grams)
    gamma = check_scalar("gamma", gamma, dtype, high=1, positive=True)
    log_probs = statistical_fusion(arrays, class_prior)
    # The bound holds in the dtype it is computed in: what may be wrong is rounded up.
    log_norm_J = log_jacobian_norm(log_probs) + rounding_of_probs(arrays, log_prior)
    log_strength = jnp.log1p(-gamma) - jnp.log(gamma)
    total = jnp.zeros_like(log_norm_J)
    for name in names:
        z, _ = fill_excluded(arrays[name])
        g, _ = check_spectrum(f"grams[{name!r}]", grams[name], z.shape, dtype)
        # As a logarithm x does not overflow.
        log_x = log_strength + jnp.log(g.max(axis=-1)) + 2 * log_norm_J
        rank = jnp.minimum((g > 0).sum(axis=-1), z.shape[-1] - 1).astype(dtype)
        # Zero where it is, not by underflow.
        smallest = float(jnp.finfo(dtype).tiny) / float(jnp.finfo(dtype).eps)
        share = jnp.where(log_x > -jnp.inf, jnp.maximum(jax.nn.sigmoid(log_x), smallest), 0)
        moved = jnp.sqrt(rank) * share * jnp.linalg.norm(z, axis=-1)
        is_moved = any_of([name], checked).reshape(-1)
        total += jnp.asarray(jnp.where(is_moved, moved, 0))
    return total * (1 + 8 * jnp.finfo(dtype).eps) / 2
