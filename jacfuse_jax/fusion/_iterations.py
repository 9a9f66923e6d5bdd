"""One sample of robust fusion: its iterations, and R in the form that its solver gives."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jacfuse_jax._likelihoods import fuse_independent
from jacfuse_jax._precision import product
from jacfuse_jax._simplex import fill_excluded, mark_likeliest
from jacfuse_jax.jacobians import softmax_jacobian
from jacfuse_jax.linalg import GramSpectrum, solve_generalized
from jacfuse_jax.linalg._closed_form import (
    apply_recalibration,
    recalibrated_eigenvectors,
    sum_or_product,
)

Solver = Literal["closed_form", "eigh", "bartels_stewart"]


class ClosedForm(NamedTuple):
    """R of one sample as its product Y = R V with the eigenvectors of G."""

    columns: jax.Array
    spectrum: GramSpectrum

    @property
    def matrix(self) -> jax.Array:
        """R itself."""
        return product(self.columns, self.spectrum.eigenvectors.T)

    def apply(self, logits: jax.Array) -> jax.Array:
        """R z."""
        return apply_recalibration(self.columns, self.spectrum, logits)

    def squared_norm(self, probs: jax.Array, scale: jax.Array) -> jax.Array:
        """||J R G^(1/2)||_F^2 = sum_j g_j ||J y_j||^2, J divided by the scale."""
        # Relative to the likeliest class, whose entry is the mean where its p rounds to one.
        top = self.columns[probs.argmax()]
        others = jnp.where(mark_likeliest(probs), 0, probs)
        mean = sum_or_product(others, self.columns) - others.sum() * top
        j_columns = (probs / scale)[:, None] * ((self.columns - top[None]) - mean[None])
        return jnp.sum(self.spectrum.eigenvalues * jnp.sum(j_columns**2, axis=0))


class Matrix(NamedTuple):
    """R of one sample as a matrix, (K, K)."""

    matrix: jax.Array
    gram: jax.Array

    def apply(self, logits: jax.Array) -> jax.Array:
        """R z."""
        return product(self.matrix, logits)

    def squared_norm(self, probs: jax.Array, scale: jax.Array) -> jax.Array:
        """||J R G^(1/2)||_F^2 = tr(J R G R^T J), J divided by the scale."""
        j_matrix = product(softmax_jacobian(probs) / scale, self.matrix)
        return jnp.sum(product(j_matrix, self.gram) * j_matrix)


Recalibration = ClosedForm | Matrix


class Sample(NamedTuple):
    """One sample, or a batch of them.

    Attributes:
      logits: {modality: (K,)}, or (B, K); see `_presence.silence`.
      present: {modality: (1,)}, or (B, 1), bool, of those that samples may lack.
    """

    logits: dict[str, jax.Array]
    present: Mapping[str, jax.Array]

    def where_present(self, name: str, x: jax.Array, missing: jax.Array | float) -> jax.Array:
        """What is made of a sample that has the modality, x (...); or else what stands for it."""
        return jnp.where(self.present[name][0], x, missing) if name in self.present else x


def iterate(
    names: tuple[str, ...],
    num_iterations: int,
    solver: Solver,
    sample: Sample,
    grams: list[GramSpectrum | jax.Array],
    log_prior: jax.Array,
    strength: jax.Array,
) -> tuple[jax.Array, jax.Array, list[Recalibration]]:
    """Final and previous log-probabilities, and the R_m that were solved with the previous ones."""

    def step(log_probs: jax.Array) -> tuple[jax.Array, list[Recalibration]]:
        probs = jnp.exp(log_probs)
        recalibrations = [_solve(probs, gram, strength, solver) for gram in grams]
        fused = dict(sample.logits)
        for name, recalibration in zip(names, recalibrations, strict=True):
            z = sample.logits[name]
            fused[name] = sample.where_present(name, _recalibrate(recalibration, z), z)
        return fuse_independent(fused, log_prior), recalibrations

    log_probs = fuse_independent(sample.logits, log_prior)
    if num_iterations > 1:
        log_probs, _ = jax.lax.scan(
            lambda previous, _: (step(previous)[0], None),
            log_probs,
            length=num_iterations - 1,
        )
    final, recalibrations = step(log_probs)
    return final, log_probs, recalibrations


def _recalibrate(recalibration: Recalibration, logits: jax.Array) -> jax.Array:
    """R z, where a class that z excludes stays excluded.

    J and the rest of R do without it, as p = 0; its logit would be multiplied by zeros.
    """
    filled, is_excluded = fill_excluded(logits)
    return jnp.where(is_excluded, -jnp.inf, recalibration.apply(filled))


def _solve(
    probs: jax.Array, gram: GramSpectrum | jax.Array, strength: jax.Array, solver: Solver
) -> Recalibration:
    """Solves c J^2 R G + R = I for one sample."""
    if isinstance(gram, GramSpectrum):
        return ClosedForm(recalibrated_eigenvectors(probs, gram, strength), gram)
    J = softmax_jacobian(probs)
    A = strength * product(J, J)
    method = "eigh" if solver == "eigh" else "bartels_stewart"
    return Matrix(solve_generalized(A, gram, jnp.eye(len(A), dtype=A.dtype), method=method), gram)
