"""Robust fusion: logits of perturbed modalities recalibrated per sample."""

import functools
from collections.abc import Mapping
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._arrays import AnyArray, in_dtype_of
from jacfuse_jax._checks import (
    check_batch_size,
    check_choice,
    check_mapping,
    check_modalities,
    check_scalar,
)
from jacfuse_jax._presence import Present, check_available
from jacfuse_jax._simplex import complement
from jacfuse_jax.fusion._iterations import Sample, Solver, iterate
from jacfuse_jax.linalg import GramSpectrum, gram_spectrum
from jacfuse_jax.linalg._arguments import check_gram, check_spectrum
from jacfuse_jax.linalg._samples import map_samples


class FusedOutput(NamedTuple):
    """What `robust_fusion` returns.

    Attributes:
      log_probs: (B, K), normalised log-probabilities.
      jacobian_norm: (B,), sqrt(sum_m ||J R_m W_m^T||_F^2) over the perturbed modalities m, with J
        at the final prediction: its sensitivity to their features, the matrices R_m held fixed.
        Known to a few eps of ||J|| sqrt(sum_m ||W_m||_F^2).
      converged: (B,), bool, whether the last iteration moved no probability by more than `atol`.
    """

    log_probs: jax.Array
    jacobian_norm: jax.Array
    converged: jax.Array


class RobustInputs(NamedTuple):
    """Arguments of `robust_fusion` that are checked.

    Attributes:
      samples: all of them.
      grams: of the perturbed modalities, in their order.
      log_prior: (K,).
      strength: c = (1 - gamma) / gamma.
    """

    samples: Sample
    grams: list[GramSpectrum | jax.Array]
    log_prior: jax.Array
    strength: jax.Array


def robust_fusion(
    logits: Mapping[str, AnyArray],
    grams: Mapping[str, GramSpectrum | ArrayLike],
    class_prior: AnyArray,
    *,
    perturbed: str | tuple[str, ...],
    gamma: ArrayLike,
    num_iterations: int = 1,
    atol: float = 1e-4,
    solver: Solver = "closed_form",
    batch_size: int | None = None,
    present: Present | None = None,
) -> FusedOutput:
    """Statistical fusion recalibrated per sample to lean less on the perturbed modalities.

    p' = softmax(sum_m R_m z_m - (M - 1) log prior), where R_m = I for trusted modalities and
    otherwise minimises, for each sample,

        (1 - gamma) ||J R W_m^T||_F^2 + gamma ||R - I||_F^2,    J = diag(p) - p p^T,

    the squared Frobenius norm of the fused prediction's Jacobian in the features of modality m. J
    is frozen at the statistical fusion p; further iterations freeze it at the previous p'.

    W_m^T stands for the Jacobian D of the logits: in the features of a linear head, or, with a Gram
    matrix G_m = D D^T for every sample, of any head in any features or in the input itself (see
    `jacobians.per_sample_jacobian` and `jacobians.gram_from_jacobian`).

    Solvers of c J^2 R G + R = I, c = (1 - gamma) / gamma, which agree to rounding:
      "closed_form": O(K^2) a sample from the spectrum of G, see `linalg.recalibrate`; the most
        accurate, and the fastest by far where G is shared. A Gram matrix that is not given as a
        spectrum is decomposed first; derivatives in it are NaN where its eigenvalues repeat.
      "eigh", "bartels_stewart": `linalg.solve_generalized`, O(K^3) a sample, differentiable in
        any G. c J^2 and G are then known to rounding only, so that R has an absolute error of about
        K eps c ||J||^2 ||G||: mind small gammas in float32.

    gamma = 1 is statistical fusion. As gamma -> 0, R_m tends to averaging over classes where p is
    not saturated and G_m is invertible: modality m says nothing any more, and what remains is
    softmax(sum of the other z - (M - 1) log prior). Components of z_m in the null space of G_m,
    which no change of the features can reach, stay as they are.

    A class that z_m excludes by a logit of -inf stays excluded; for the other classes its logit
    reads as that of the least likely of them.

    Where p is saturated, J and with it the recalibration vanish, also when a strong attack has
    saturated p on a wrong class. Unlike in statistical fusion, a constant added to all entries of
    z_m changes the result, since R_m need not map constants to constants.

    Args:
      logits: z, {modality: (B, K)}, floating, at least one modality.
      grams: {modality: G_m} for every perturbed modality, each a spectrum with arrays (K,), (K, K)
        for all samples or (B, K), (B, K, K) per sample, or a matrix (K, K) or (B, K, K). For
        linear heads take `linalg.spectrum_from_kernel`.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      perturbed: name or names of the modalities believed perturbed; static.
      gamma: in (0, 1], a scalar. It may be traced: one compiled function serves every gamma, and
        `jax.vmap` over it works. A traced gamma outside (0, 1] gives NaN.
      num_iterations: at least 1; static.
      atol: largest change of a probability that counts as converged.
      solver: "closed_form", "eigh" or "bartels_stewart"; static.
      batch_size: samples solved at a time, at least 1; None: about 2^20 entries of K x K matrices
        on CPU, so that they stay in cache, and 2^26 on accelerators.
      present: see `statistical_fusion`. What a row lacks is not recalibrated, and not part of the
        norm.

    Returns:
      `FusedOutput(log_probs (B, K), jacobian_norm (B,), converged (B,))`, the first in the dtype of
      the logits, the second in float32 for half precision.

    Raises:
      TypeError: an array is not float32 or float64, or presence is not bool.
      ValueError: shapes disagree, a modality is unknown or lacks a Gram spectrum, a prior is not
        positive, gamma lies outside (0, 1] in the dtype of the logits, num_iterations < 1,
        batch_size < 1, or the solver is unknown.

    References:
      Gao, Ren, Xue, Li, Zhao, "Training-Free Robust Multimodal Learning via Sample-Wise Jacobian
      Regularization", 2022, arXiv 2204.02485. The closed form is derived in `linalg._closed_form`.
    """
    names, inputs = check_robust(
        logits, grams, class_prior, perturbed, gamma, num_iterations, solver, present
    )
    check_batch_size(batch_size)
    limit = jnp.asarray(atol, inputs.log_prior.dtype)
    out = _fuse(inputs, limit, names, num_iterations, solver, batch_size)
    return out._replace(log_probs=in_dtype_of(logits, out.log_probs))


def check_robust(
    logits: Mapping[str, AnyArray],
    grams: Mapping[str, GramSpectrum | ArrayLike],
    class_prior: AnyArray,
    perturbed: str | tuple[str, ...],
    gamma: ArrayLike,
    num_iterations: int,
    solver: Solver,
    present: Present | None,
) -> tuple[tuple[str, ...], RobustInputs]:
    """Names of the perturbed modalities and what is computed with; raises as `robust_fusion`."""
    arrays, log_prior, checked_present = check_available(logits, class_prior, present)
    dtype = log_prior.dtype
    names = check_modalities("perturbed", perturbed, arrays)
    check_mapping("grams", grams, "spectrum or (K, K)")
    check_modalities("perturbed", names, grams)
    shape = next(iter(arrays.values())).shape
    check_choice("solver", solver, get_args(Solver))
    checked = [_check_gram(f"grams[{name!r}]", grams[name], solver, shape, dtype) for name in names]
    gamma = check_scalar("gamma", gamma, dtype, high=1, positive=True)
    if num_iterations < 1:
        raise ValueError(f"num_iterations must be at least 1, got {num_iterations}")
    sample = Sample(arrays, checked_present)
    return names, RobustInputs(sample, checked, log_prior, (1 - gamma) / gamma)


def _check_gram(
    name: str,
    gram: GramSpectrum | ArrayLike,
    solver: Solver,
    logits_shape: tuple[int, ...],
    dtype: jnp.dtype,
) -> GramSpectrum | jax.Array:
    """Returns what the solver needs of a Gram matrix: its spectrum or the matrix."""
    if solver == "closed_form" and isinstance(gram, GramSpectrum):
        return check_spectrum(name, gram, logits_shape, dtype)
    matrix = check_gram(name, gram, logits_shape, dtype)
    return gram_spectrum(matrix) if solver == "closed_form" else matrix


# Compiled once for all calls outside of `jax.jit`, too, which would compile the loop every time.
@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _fuse(
    inputs: RobustInputs,
    atol: jax.Array,
    names: tuple[str, ...],
    num_iterations: int,
    solver: Solver,
    batch_size: int | None,
) -> FusedOutput:
    """`robust_fusion` of arguments that are checked."""
    fuse_sample = functools.partial(_fuse_sample, names, num_iterations, solver)
    log_probs, norm, change = map_samples(fuse_sample, *inputs, batch_size=batch_size)
    return FusedOutput(log_probs, norm, change <= atol)


def _fuse_sample(
    names: tuple[str, ...],
    num_iterations: int,
    solver: Solver,
    sample: Sample,
    grams: list[GramSpectrum | jax.Array],
    log_prior: jax.Array,
    strength: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities of one sample, norm of its Jacobian, largest change of a probability."""
    final, previous, recalibrations = iterate(
        names, num_iterations, solver, sample, grams, log_prior, strength
    )
    probs = jnp.exp(final)
    change = jax.lax.stop_gradient(jnp.abs(probs - jnp.exp(previous)).max())
    # Squares of entries of this size would underflow long before it does.
    scale = jax.lax.stop_gradient((probs * complement(probs)).max())
    scale = jnp.where(scale > 0, scale, 1)
    squares = (
        sample.where_present(name, recalibration.squared_norm(probs, scale), 0)
        for name, recalibration in zip(names, recalibrations, strict=True)
    )
    norm = scale * _sqrt(sum(squares, start=jnp.zeros((), log_prior.dtype)))
    return final, norm, change


def _sqrt(x: jax.Array) -> jax.Array:
    """Square root whose derivative at zero is zero, not infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), x)
