"""A LeNet for small images and spectrograms."""

from collections.abc import Sequence

import jax
from flax import nnx

from jacfuse_jax.models.unimodal import UnimodalOutput


class LeNet(nnx.Module):
    """Convolutions with max-pooling, two hidden dense layers, and a linear head.

    References:
      LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition",
      1998; here with ReLU, max-pooling and padded convolutions.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        channels: Sequence[int] = (6, 16),
        kernel_size: int = 5,
        stem_stride: int = 1,
        hidden_sizes: Sequence[int] = (120, 84),
        rngs: nnx.Rngs,
    ):
        """Builds the layers.

        Args:
          input_shape: (height, width, channels) of one input. Each convolution halves height and
            width, rounding up, the first one after its stride.
          num_classes: K.
          channels: of the convolutions, in order.
          kernel_size: of the convolutions.
          stem_stride: stride of the first convolution; 4 suits spectrograms of 112 x 112.
          hidden_sizes: of the dense layers; the last is H, the number of features.
          rngs: source of the initial parameters.

        Raises:
          ValueError: a size is not positive.
        """
        sizes = (*input_shape, num_classes, *channels, kernel_size, stem_stride, *hidden_sizes)
        if min(sizes) < 1 or not channels or not hidden_sizes:
            raise ValueError(f"all sizes must be positive, got {sizes}")
        height, width, in_channels = input_shape
        self.convolutions = nnx.List([])
        for index, out_channels in enumerate(channels):
            stride = stem_stride if index == 0 else 1
            self.convolutions.append(
                nnx.Conv(in_channels, out_channels, (kernel_size, kernel_size), stride, rngs=rngs)
            )
            height, width = -(-height // stride), -(-width // stride)
            height, width, in_channels = -(-height // 2), -(-width // 2), out_channels
        in_features = height * width * in_channels
        self.hidden = nnx.List([])
        for size in hidden_sizes:
            self.hidden.append(nnx.Linear(in_features, size, rngs=rngs))
            in_features = size
        self.head = nnx.Linear(in_features, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> UnimodalOutput:
        """Classifies a batch.

        Args:
          x: (B, height, width, channels), floating.

        Returns:
          `UnimodalOutput(logits (B, K), features (B, H))`.
        """
        for convolution in self.convolutions:
            x = _max_pool(nnx.relu(convolution(x)))
        x = x.reshape(x.shape[0], -1)
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return UnimodalOutput(logits=self.head(x), features=x)


def _max_pool(x: jax.Array) -> jax.Array:
    """Non-overlapping 2 x 2 max-pooling; odd sizes are padded by repeating the edge."""
    # By reshaping: the derivative of a windowed reduction is about twice as slow on CPU.
    batch, height, width, channels = x.shape
    if height % 2 or width % 2:
        x = jax.numpy.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return x.reshape(batch, -(-height // 2), 2, -(-width // 2), 2, channels).max(axis=(2, 4))
