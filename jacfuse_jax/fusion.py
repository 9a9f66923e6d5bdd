"""Late fusion of classifiers, one per modality: logits in, log-probabilities out, no training.

All rules take `logits`, {modality: (B, K)}, and treat samples independently: a NaN stays in its
sample. They work under `jax.jit`, `jax.vmap` and `jax.grad`; modality names are static.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import (
    check_class_prior,
    check_logits,
    check_modalities,
    check_scalar,
)
from jacfuse_jax.linalg.gram import (
    GramSpectrum,
    apply_recalibration,
    check_spectrum,
    map_samples,
    recalibrated_eigenvectors,
)

_HIGHEST = jax.lax.Precision.HIGHEST


class FusedOutput(NamedTuple):
    """What `robust_fusion` returns.

    Attributes:
      log_probs: (B, K), normalised log-probabilities.
      jacobian_norm: (B,), sqrt(sum_m ||J R_m W_m^T||_F^2) over the perturbed modalities m, with J
        at the final prediction: its sensitivity to their features, the matrices R_m held fixed.
      converged: (B,), bool, whether the last iteration moved no probability by more than `atol`.
    """

    log_probs: jax.Array
    jacobian_norm: jax.Array
    converged: jax.Array


def mean_fusion(logits: Mapping[str, ArrayLike]) -> jax.Array:
    """Averages the probabilities of the modalities, log p = log((1/M) sum_m softmax(z_m)).

    A bounded rule: one modality moves a probability by 1/M at most. Underconfident when modalities
    agree.

    Args:
      logits: {modality: (B, K)}, float32 or float64, at least one modality.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not float32 or float64.
      ValueError: shapes disagree.
    """
    arrays = check_logits(logits)
    log_probs = jnp.stack([jax.nn.log_softmax(z) for z in arrays.values()])
    return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(jnp.asarray(len(arrays), log_probs.dtype))


def statistical_fusion(logits: Mapping[str, ArrayLike], class_prior: ArrayLike) -> jax.Array:
    """Fuses modalities that are independent given the class.

    log p(k) = sum_m log softmax(z_m)_k - (M - 1) log prior_k, normalised over k. Overconfident when
    modalities share information.

    Args:
      logits: {modality: (B, K)}, float32 or float64, at least one modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not float32 or float64.
      ValueError: shapes disagree, or a prior is not positive.
    """
    arrays = check_logits(logits)
    num_classes, dtype = _classes_and_dtype(arrays)
    prior = check_class_prior(class_prior, num_classes, dtype)
    return _fuse(arrays, jnp.log(prior))


def scaled_fusion(
    logits: Mapping[str, ArrayLike],
    class_prior: ArrayLike,
    *,
    perturbed: str | tuple[str, ...],
    scale: ArrayLike,
) -> jax.Array:
    """Statistical fusion with the perturbed modalities' likelihood ratios raised to a power.

    log p(k) = log prior_k + sum_m t_m (log softmax(z_m)_k - log prior_k), normalised over k, where
    t_m = scale for perturbed modalities and 1 for the others. scale = 1 is statistical fusion,
    scale = 0 drops the modality. The influence of a perturbed modality shrinks but stays unbounded.

    Args:
      logits: {modality: (B, K)}, float32 or float64, at least one modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      perturbed: name or names of the modalities believed perturbed; static.
      scale: in [0, 1], a scalar, traced or not.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not float32 or float64.
      ValueError: shapes disagree, a modality is unknown, a prior is not positive, or the scale lies
        outside [0, 1].
    """
    arrays = check_logits(logits)
    num_classes, dtype = _classes_and_dtype(arrays)
    log_prior = jnp.log(check_class_prior(class_prior, num_classes, dtype))
    names = check_modalities("perturbed", perturbed, arrays)
    scale = check_scalar("scale", scale, dtype, high=1)
    log_ratios = (
        (scale if name in names else 1) * (jax.nn.log_softmax(z) - log_prior)
        for name, z in arrays.items()
    )
    return jax.nn.log_softmax(sum(log_ratios, start=log_prior))


def robust_fusion(
    logits: Mapping[str, ArrayLike],
    grams: Mapping[str, GramSpectrum],
    class_prior: ArrayLike,
    *,
    perturbed: str | tuple[str, ...],
    gamma: ArrayLike,
    num_iterations: int = 1,
    atol: float = 1e-4,
    batch_size: int | None = None,
) -> FusedOutput:
    """Statistical fusion recalibrated per sample to lean less on the perturbed modalities.

    p' = softmax(sum_m R_m z_m - (M - 1) log prior), where R_m = I for trusted modalities and
    otherwise minimises, for each sample,

        (1 - gamma) ||J R W_m^T||_F^2 + gamma ||R - I||_F^2,    J = diag(p) - p p^T,

    the squared Frobenius norm of the fused prediction's Jacobian in the features of modality m. J
    is frozen at the statistical fusion p; further iterations freeze it at the previous p'. Solved
    in O(K^2) a sample, see `linalg.recalibrate`.

    gamma = 1 is statistical fusion. As gamma -> 0, R_m tends to averaging over classes where p is
    not saturated and G_m is invertible: modality m says nothing any more, and what remains is
    softmax(sum of the other z - (M - 1) log prior). Components of z_m in the null space of G_m,
    which no change of the features can reach, stay as they are.

    Where p is saturated, J and with it the recalibration vanish, also when a strong attack has
    saturated p on a wrong class. Unlike in statistical fusion, a constant added to all entries of
    z_m changes the result, since R_m need not map constants to constants.

    Args:
      logits: z, {modality: (B, K)}, float32 or float64, at least one modality.
      grams: {modality: spectrum of G_m = W_m^T W_m} for every perturbed modality, shared (K,),
        (K, K) or per sample (B, K), (B, K, K); see `linalg.spectrum_from_kernel`.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      perturbed: name or names of the modalities believed perturbed; static.
      gamma: in (0, 1], a scalar. It may be traced: one compiled function serves every gamma, and
        `jax.vmap` over it works. A traced gamma outside (0, 1] gives NaN.
      num_iterations: at least 1; static.
      atol: largest change of a probability that counts as converged.
      batch_size: samples solved at a time, at least 1; None: as in `linalg.recalibrate`.

    Returns:
      `FusedOutput(log_probs (B, K), jacobian_norm (B,), converged (B,))`, the first two in the
      dtype of the logits.

    Raises:
      TypeError: an array is not float32 or float64.
      ValueError: shapes disagree, a modality is unknown or lacks a Gram spectrum, a prior is not
        positive, gamma lies outside (0, 1] in the dtype of the logits, num_iterations < 1, or
        batch_size < 1.

    References:
      Gao, Ren, Xue, Li, Zhao, "Training-Free Robust Multimodal Learning via Sample-Wise Jacobian
      Regularization", 2022, arXiv 2204.02485. The closed form is derived in `linalg.gram`.
    """
    arrays = check_logits(logits)
    num_classes, dtype = _classes_and_dtype(arrays)
    log_prior = jnp.log(check_class_prior(class_prior, num_classes, dtype))
    names = check_modalities("perturbed", perturbed, arrays)
    check_modalities("perturbed", names, grams)
    shape = next(iter(arrays.values())).shape
    spectra = [check_spectrum(f"grams[{name!r}]", grams[name], shape, dtype) for name in names]
    gamma = check_scalar("gamma", gamma, dtype, high=1, positive=True)
    if num_iterations < 1:
        raise ValueError(f"num_iterations must be at least 1, got {num_iterations}")
    strength = jnp.where((gamma > 0) & (gamma <= 1), (1 - gamma) / gamma, jnp.nan)

    def fuse_sample(sample: dict[str, jax.Array], *spectra: GramSpectrum) -> FusedOutput:
        def iterate(log_probs: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
            probs = jnp.exp(log_probs)
            recalibrated = [recalibrated_eigenvectors(probs, s, strength) for s in spectra]
            fused = dict(sample)
            for name, spectrum, columns in zip(names, spectra, recalibrated, strict=True):
                fused[name] = apply_recalibration(columns, spectrum, sample[name])
            return _fuse(fused, log_prior), recalibrated

        log_probs = _fuse(sample, log_prior)
        if num_iterations > 1:
            log_probs, _ = jax.lax.scan(
                lambda previous, _: (iterate(previous)[0], None),
                log_probs,
                length=num_iterations - 1,
            )
        final, recalibrated = iterate(log_probs)
        probs = jnp.exp(final)
        squares = (_squared_norm(probs, y, s) for y, s in zip(recalibrated, spectra, strict=True))
        change = jnp.abs(probs - jnp.exp(log_probs)).max()
        return FusedOutput(final, _sqrt(sum(squares, start=jnp.zeros((), dtype))), change <= atol)

    return map_samples(fuse_sample, arrays, *spectra, batch_size=batch_size)


def _classes_and_dtype(logits: Mapping[str, jax.Array]) -> tuple[int, jnp.dtype]:
    """K and the dtype shared by all modalities."""
    first = next(iter(logits.values()))
    return first.shape[-1], first.dtype


def _fuse(logits: Mapping[str, jax.Array], log_prior: jax.Array) -> jax.Array:
    """Log softmax(sum_m z_m - (M - 1) log prior) over the last axis."""
    # Normalising each modality first keeps the sum of large logits from losing digits.
    log_probs = sum(jax.nn.log_softmax(z) for z in logits.values())
    return jax.nn.log_softmax(log_probs - (len(logits) - 1) * log_prior)


def _squared_norm(probs: jax.Array, columns: jax.Array, spectrum: GramSpectrum) -> jax.Array:
    """||J R G^(1/2)||_F^2 = sum_j g_j ||J y_j||^2 of one sample, y_j the columns of R V."""
    j_columns = probs[:, None] * (columns - jnp.matmul(probs, columns, precision=_HIGHEST))
    return jnp.sum(spectrum.eigenvalues * jnp.sum(j_columns**2, axis=0))


def _sqrt(x: jax.Array) -> jax.Array:
    """Square root whose derivative at zero is zero, not infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), x)
