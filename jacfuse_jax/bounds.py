"""Sensitivity of fused predictions: what can be said beforehand, and what is true of a sample."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacfuse_jax._checks import (
    check_batch_size,
    check_floating,
    check_inputs,
    check_mapping,
    check_modalities,
    check_scalar,
)
from jacfuse_jax._likelihoods import rounding_of_probs
from jacfuse_jax._precision import product
from jacfuse_jax._simplex import fill_excluded, log_jacobian_norm
from jacfuse_jax.fusion import robust_fusion, statistical_fusion
from jacfuse_jax.fusion._iterations import iterate
from jacfuse_jax.fusion._robust import RobustInputs, check_robust
from jacfuse_jax.jacobians import softmax_jacobian
from jacfuse_jax.linalg import GramSpectrum
from jacfuse_jax.linalg._arguments import check_gram, check_spectrum
from jacfuse_jax.linalg._batching import map_in_chunks
from jacfuse_jax.linalg._samples import map_samples
from jacfuse_jax.linalg._spectrum import finite_symmetric_part

_FAILURE = 1e-9  # probability with which `spectral_norm` may return less than the norm


class JacobianNorms(NamedTuple):
    """What `jacobian_norms` returns.

    Attributes:
      frobenius: (B,), sqrt(sum_m ||T_m G_m^(1/2)||_F^2).
      spectral: (B,), the largest singular value of all T_m G_m^(1/2) side by side: by how much a
        small change of the features, of 2-norm one, moves the fused probabilities at most.
    """

    frobenius: jax.Array
    spectral: jax.Array


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


def frozen_jacobian(
    logits: Mapping[str, ArrayLike],
    grams: Mapping[str, GramSpectrum],
    class_prior: ArrayLike,
    *,
    perturbed: str | tuple[str, ...],
    gamma: ArrayLike,
    num_iterations: int = 1,
) -> dict[str, jax.Array]:
    """Jacobian of `fusion.robust_fusion` in the logits, with the matrices R_m held fixed.

    dp'/dz_m = (diag(p') - p' p'^T) R_m at the final prediction p', R_m solved with the previous
    one: what the recalibration makes small. In the features of a linear head it is times W_m^T.

    Args:
      logits: z, {modality: (B, K)}, floating, at least one modality.
      grams: {modality: spectrum}, shared or per sample, of every perturbed modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      perturbed: name or names of the modalities believed perturbed; static.
      gamma: in (0, 1], a scalar, traced or not.
      num_iterations: at least 1; static.

    Returns:
      {perturbed modality: (B, K, K)}.

    Raises:
      TypeError, ValueError: as `fusion.robust_fusion`.
    """
    names, inputs = check_robust(
        logits, grams, class_prior, perturbed, gamma, num_iterations, "closed_form"
    )
    return _frozen_jacobian(inputs, names, num_iterations)


# Compiled once for all calls outside of `jax.jit`, too, which would compile the loop every time.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _frozen_jacobian(
    inputs: RobustInputs, names: tuple[str, ...], num_iterations: int
) -> dict[str, jax.Array]:
    """`frozen_jacobian` of arguments that are checked."""

    def fuse_sample(*arguments: Any) -> tuple[jax.Array, list[jax.Array]]:
        log_probs, _, recalibrations = iterate(names, num_iterations, "closed_form", *arguments)
        return log_probs, [recalibration.matrix for recalibration in recalibrations]

    log_probs, matrices = map_samples(fuse_sample, *inputs)
    J = softmax_jacobian(jnp.exp(log_probs))
    return {name: product(J, R) for name, R in zip(names, matrices, strict=True)}


def total_jacobian(
    logits: Mapping[str, ArrayLike],
    grams: Mapping[str, GramSpectrum],
    class_prior: ArrayLike,
    *,
    perturbed: str | tuple[str, ...],
    gamma: ArrayLike,
    num_iterations: int = 1,
    batch_size: int | None = None,
) -> dict[str, jax.Array]:
    """Jacobian of `fusion.robust_fusion` in the logits, through the solve, by `jax.jacfwd`.

    The sensitivity that an attacker meets: unlike `frozen_jacobian` it includes that the matrices
    R_m depend on all logits. Gram matrices are constants; in the features of a linear head it is
    times W_m^T.

    Args:
      logits: z, {modality: (B, K)}, floating, at least one modality.
      grams: {modality: spectrum shared by all samples} of every perturbed modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      perturbed: name or names of the modalities believed perturbed; static.
      gamma: in (0, 1], a scalar, traced or not.
      num_iterations: at least 1; static.
      batch_size: samples differentiated at a time, which bounds memory; None takes all at once.
        With one, every call outside of `jax.jit` compiles anew.

    Returns:
      {modality: dp'/dz_m, (B, K, K)} of all modalities, trusted ones included.

    Raises:
      TypeError, ValueError: as `fusion.robust_fusion`, or a spectrum is not shared.
    """
    arrays, _ = check_inputs(logits, class_prior)
    for name in check_modalities("perturbed", perturbed, arrays):
        if name in grams and jnp.ndim(grams[name].eigenvalues) != 1:
            raise ValueError(f"grams[{name!r}] must be shared by all samples")

    def fuse(sample: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        out = robust_fusion(
            {name: z[None] for name, z in sample.items()},
            grams,
            class_prior,
            perturbed=perturbed,
            gamma=gamma,
            num_iterations=num_iterations,
        )
        return out.log_probs[0], out.log_probs[0]

    def of_sample(sample: dict[str, jax.Array]) -> dict[str, jax.Array]:
        # Through exp, 1 - p would be left to rounding where p rounds to one.
        jacobians, log_probs = jax.jacfwd(fuse, has_aux=True)(sample)
        J, is_possible = softmax_jacobian(jnp.exp(log_probs)), log_probs[:, None] > -jnp.inf
        return {
            name: product(J, jnp.asarray(jnp.where(is_possible, jac, 0)))
            for name, jac in jacobians.items()
        }

    check_batch_size(batch_size)
    if batch_size is None:
        return jax.vmap(of_sample)(arrays)
    return map_in_chunks(of_sample, arrays, batch_size)


def bias_bound(
    logits: Mapping[str, ArrayLike],
    grams: Mapping[str, GramSpectrum],
    class_prior: ArrayLike,
    *,
    perturbed: str | tuple[str, ...],
    gamma: ArrayLike,
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

    Returns:
      (B,), in the dtype of the logits, float32 for half precision.

    Raises:
      TypeError, ValueError: as `fusion.robust_fusion`.

    References:
      Derived here.
    """
    arrays, log_prior = check_inputs(logits, class_prior)
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
        total += jnp.sqrt(rank) * share * jnp.linalg.norm(z, axis=-1)
    return total * (1 + 8 * jnp.finfo(dtype).eps) / 2


def jacobian_norms(
    jacobians: Mapping[str, ArrayLike], grams: Mapping[str, GramSpectrum | ArrayLike]
) -> JacobianNorms:
    """Norms, per sample, of a prediction's Jacobian in the features of one or more modalities.

    For T_m = dp/dz_m and features h_m with dz_m/dh_m = D_m, G_m = D_m D_m^T, these are norms of
    [T_1 D_1, T_2 D_2, ...]; the features themselves are not needed.

    Args:
      jacobians: {modality: T_m, (B, K, K)}, from `frozen_jacobian` or `total_jacobian`; those of
        the modalities whose features may move. float32 or float64.
      grams: {modality: G_m} of these modalities at least, each a spectrum or a matrix, shared
        (K, K) or per sample (B, K, K).

    Returns:
      `JacobianNorms(frobenius (B,), spectral (B,))`.

    Raises:
      TypeError: an array is not float32 or float64.
      ValueError: shapes disagree, or there is no modality.
    """
    check_mapping("jacobians", jacobians, "(B, K, K)")
    if not jacobians:
        raise ValueError("jacobians must hold at least one modality, got none")
    check_mapping("grams", grams, "spectrum or (K, K)")
    check_modalities("jacobians", tuple(jacobians), grams)
    arrays = {name: jnp.asarray(jac) for name, jac in jacobians.items()}
    for name, T in arrays.items():
        check_floating(f"jacobians[{name!r}]", T)
        if T.ndim != 3 or T.shape[-1] != T.shape[-2]:
            raise ValueError(f"jacobians[{name!r}] must have shape (B, K, K), got {T.shape}")
    # Squares of the entries of a saturated sample would underflow.
    largest = jnp.stack([jnp.abs(T).max(axis=(-2, -1)) for T in arrays.values()]).max(axis=0)
    scale = jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1))
    squares: list[jax.Array] = []
    for name, T in arrays.items():
        gram = check_gram(f"grams[{name!r}]", grams[name], T.shape[:2], T.dtype)
        scaled = T / scale[:, None, None]
        squares.append(product(product(scaled, gram), jnp.swapaxes(scaled, -1, -2)))
    total = sum(squares[1:], start=squares[0])
    safe, is_finite = finite_symmetric_part(total)
    eigenvalues = jnp.linalg.eigvalsh(safe)
    spectral = jnp.asarray(jnp.where(is_finite, eigenvalues[:, -1], jnp.nan))
    trace = jnp.trace(total, axis1=-2, axis2=-1)
    return JacobianNorms(*(scale * jnp.sqrt(jnp.maximum(x, 0)) for x in (trace, spectral)))


def spectral_norm(
    linear_fn: Callable[[jax.Array], jax.Array],
    shape: tuple[int, ...],
    key: jax.Array,
    *,
    num_iterations: int = 500,
    dtype: jnp.dtype | type = jnp.float32,
) -> jax.Array:
    """An upper bound on the spectral norm of a linear map, from power iteration.

    k steps of power iteration on A^T A from a random start estimate its largest eigenvalue from
    below; with probability at least 1 - 0.824 sqrt(n) (1 - eps)^(k - 1/2) the estimate is at least
    1 - eps times the eigenvalue. The result is the estimate divided by 1 - eps, with eps such that
    this fails with probability 1e-9: 3% above the norm for 500 steps and a thousand inputs.

    A network's Lipschitz constant is at most the product over its layers; ReLU and non-overlapping
    max-pooling have 1. Every call outside of `jax.jit` compiles anew.

    Args:
      linear_fn: one sample's linear map, without its bias: an array of `shape` to an array.
      shape: of its input.
      key: of the start.
      num_iterations: k, at least 50.
      dtype: float32 or float64.

    Returns:
      A scalar in `dtype`.

    Raises:
      ValueError: num_iterations < 50.

    References:
      Kuczynski and Wozniakowski, "Estimating the Largest Eigenvalue by the Power and Lanczos
      Algorithms with a Random Start", 1992.
    """
    if num_iterations < 50:
        raise ValueError(f"num_iterations must be at least 50, got {num_iterations}")
    example = jnp.zeros(shape, dtype)
    transpose_fn = jax.linear_transpose(linear_fn, example)
    start = jax.random.normal(key, shape, dtype)

    def step(_: int, x: jax.Array) -> jax.Array:
        (y,) = transpose_fn(linear_fn(x / jnp.linalg.norm(x)))
        return jnp.asarray(jnp.where((y != 0).any(), y, x))

    x = jax.lax.fori_loop(0, num_iterations, step, start)
    estimate = jnp.sqrt(jnp.sum(linear_fn(x / jnp.linalg.norm(x)) ** 2))
    log_shrinkage = np.log(_FAILURE / (0.824 * np.sqrt(max(example.size, 1))))
    return estimate * float(np.exp(-log_shrinkage / (2 * num_iterations - 1)))
