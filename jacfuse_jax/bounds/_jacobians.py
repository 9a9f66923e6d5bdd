"""The Jacobian of robust fusion in the logits, with and without the derivative of the solve."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import (
    check_batch_size,
    check_modalities,
)
from jacfuse_jax._precision import product
from jacfuse_jax._presence import Present, check_available
from jacfuse_jax.fusion import robust_fusion
from jacfuse_jax.fusion._iterations import Sample, iterate
from jacfuse_jax.fusion._robust import RobustInputs, check_robust
from jacfuse_jax.jacobians import softmax_jacobian
from jacfuse_jax.linalg import GramSpectrum
from jacfuse_jax.linalg._batching import map_in_chunks
from jacfuse_jax.linalg._samples import map_samples


def frozen_jacobian(
    logits: Mapping[str, ArrayLike],
    grams: Mapping[str, GramSpectrum],
    class_prior: ArrayLike,
    *,
    perturbed: str | tuple[str, ...],
    gamma: ArrayLike,
    num_iterations: int = 1,
    present: Present | None = None,
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
      present: see `fusion.statistical_fusion`.

    Returns:
      {perturbed modality: (B, K, K)}, zero in what a row lacks.

    Raises:
      TypeError, ValueError: as `fusion.robust_fusion`.
    """
    names, inputs = check_robust(
        logits, grams, class_prior, perturbed, gamma, num_iterations, "closed_form", present
    )
    return _frozen_jacobian(inputs, names, num_iterations)


# Compiled once for all calls outside of `jax.jit`, too, which would compile the loop every time.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _frozen_jacobian(
    inputs: RobustInputs, names: tuple[str, ...], num_iterations: int
) -> dict[str, jax.Array]:
    """`frozen_jacobian` of arguments that are checked."""

    def fuse_sample(sample: Sample, *arguments: Any) -> tuple[jax.Array, list[jax.Array]]:
        log_probs, _, recalibrations = iterate(
            names, num_iterations, "closed_form", sample, *arguments
        )
        return log_probs, [
            sample.where_present(name, recalibration.matrix, 0)
            for name, recalibration in zip(names, recalibrations, strict=True)
        ]

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
    present: Present | None = None,
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
      present: see `fusion.statistical_fusion`.

    Returns:
      {modality: dp'/dz_m, (B, K, K)} of all modalities, trusted ones included; zero in what a row
      lacks.

    Raises:
      TypeError, ValueError: as `fusion.robust_fusion`, or a spectrum is not shared.
    """
    arrays, _, checked = check_available(logits, class_prior, present)
    for name in check_modalities("perturbed", perturbed, arrays):
        if name in grams and jnp.ndim(grams[name].eigenvalues) != 1:
            raise ValueError(f"grams[{name!r}] must be shared by all samples")

    def fuse(
        sample: dict[str, jax.Array], of_sample: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        out = robust_fusion(
            {name: z[None] for name, z in sample.items()},
            grams,
            class_prior,
            perturbed=perturbed,
            gamma=gamma,
            num_iterations=num_iterations,
            present=of_sample,
        )
        return out.log_probs[0], out.log_probs[0]

    def differentiate(
        batched: tuple[dict[str, jax.Array], dict[str, jax.Array]],
    ) -> dict[str, jax.Array]:
        # Through exp, 1 - p would be left to rounding where p rounds to one.
        jacobians, log_probs = jax.jacfwd(fuse, has_aux=True)(*batched)
        J, is_possible = softmax_jacobian(jnp.exp(log_probs)), log_probs[:, None] > -jnp.inf
        return {
            name: product(J, jnp.asarray(jnp.where(is_possible, jac, 0)))
            for name, jac in jacobians.items()
        }

    check_batch_size(batch_size)
    if batch_size is None:
        return jax.vmap(differentiate)((arrays, checked))
    return map_in_chunks(differentiate, (arrays, checked), batch_size)
