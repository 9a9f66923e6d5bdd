"""A classifier of what a subspace holds of its inputs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jacfuse_jax._precision import project
from jacfuse_jax._unimodal import UnimodalOutput


class Reduced(nnx.Module):
    """Projects inputs onto an affine subspace and classifies what is left, f(m + V V^T (x - m)).

    What is attacked or corrupted are inputs before the projection.

    Attributes:
      head: the last linear layer.
    """

    def __init__(self, classifier: Any, point: Any, basis: Any):
        """Puts the projection before a classifier.

        Args:
          classifier: f, a network of this package; maps inputs (B, ...) to a `UnimodalOutput`.
          point: m, (D,), of the subspace, D entries in all an input.
          basis: V, (D, r), orthonormal.

        Raises:
          ValueError: shapes disagree, or the basis is not orthonormal.
        """
        point, basis = jnp.asarray(point), jnp.asarray(basis)
        if basis.ndim != 2 or point.shape != basis.shape[:1]:
            raise ValueError(
                f"point must be (D,) and basis (D, r), got {point.shape} and {basis.shape}"
            )
        columns = np.asarray(basis, np.float64)
        if not np.allclose(columns.T @ columns, np.eye(basis.shape[1]), atol=1e-4):
            raise ValueError("basis must have orthonormal columns")
        self.classifier = classifier
        self.point = nnx.Variable(point)
        self.basis = nnx.Variable(basis)

    @property
    def head(self) -> nnx.Linear:
        """The last linear layer."""
        return self.classifier.head

    def __call__(self, x: jax.Array) -> UnimodalOutput:
        """Classifies a batch.

        Args:
          x: (B, ...), of D entries each, floating.

        Returns:
          `UnimodalOutput(logits (B, K), features (B, H))`.
        """
        return self.classifier(project(x, self.point[...], self.basis[...]))

    def lipschitz_bound(self, key: jax.Array) -> jax.Array:
        """That of the classifier: projections bring no two inputs further apart.

        Args:
          key: of the power iterations.

        Returns:
          A scalar, float32.
        """
        return self.classifier.lipschitz_bound(key)
