"""A residual network for series of several channels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jacfuse_jax._unimodal import UnimodalOutput
from jacfuse_jax.models._resnet import small_resnet


class SeriesResNet(nnx.Module):
    """`small_resnet` in one dimension: a series (T, C) is a picture of height T and width 1."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        mean: float | Sequence[float] = 0.0,
        stddev: float | Sequence[float] = 1.0,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          in_channels: C.
          num_classes: K.
          mean: as in `ResNet`.
          stddev: as in `ResNet`.
          rngs: source of the initial parameters.

        Raises:
          ValueError: as in `ResNet`.
        """
        self.network = small_resnet(in_channels, num_classes, mean=mean, stddev=stddev, rngs=rngs)

    @property
    def head(self) -> nnx.Linear:
        """The last layer."""
        return self.network.head

    def __call__(self, x: jax.Array) -> UnimodalOutput:
        """Classifies a batch.

        Args:
          x: (B, T, C), floating.

        Returns:
          `UnimodalOutput(logits (B, K), features (B, H))`.

        Raises:
          TypeError: x is neither float32 nor float64.
          ValueError: x has another shape.
        """
        x = jnp.asarray(x)
        if x.ndim != 3 or x.shape[2] != self.network.in_channels:
            raise ValueError(f"x must have shape (B, T, {self.network.in_channels}), got {x.shape}")
        return self.network(x[:, :, None])
