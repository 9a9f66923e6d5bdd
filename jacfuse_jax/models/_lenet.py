"""A LeNet for small images and spectrograms."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jacfuse_jax._unimodal import UnimodalOutput
from jacfuse_jax.bounds import spectral_norm


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
        patch_size: int = 1,
        hidden_sizes: Sequence[int] = (120, 84),
        mean: float = 0.0,
        stddev: float = 1.0,
        rngs: nnx.Rngs,
    ):
        """Builds the layers.

        Args:
          input_shape: (height, width, channels) of one input. Each convolution is followed by
            pooling that halves height and width, rounding up.
          num_classes: K.
          channels: of the convolutions, in order; with patches, the first is of the patches.
          kernel_size: of the convolutions, odd.
          patch_size: above 1, the input is first cut into patches of this height and width, which
            must divide the input's, and a dense layer maps every patch to `channels[0]`. 4 suits
            spectrograms of 112 x 112.
          hidden_sizes: of the dense layers; the last is H, the number of features.
          mean: of the inputs; the network sees (x - mean) / stddev, so that what is attacked or
            corrupted remain inputs as they are.
          stddev: likewise, positive.
          rngs: source of the initial parameters.

        Raises:
          ValueError: a size is not positive, the kernel size is even, patches do not fit, or mean
            or stddev is out of range.
        """
        sizes = (*input_shape, num_classes, *channels, kernel_size, patch_size, *hidden_sizes)
        if min(sizes) < 1 or not channels or not hidden_sizes:
            raise ValueError(f"all sizes must be positive, got {sizes}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        height, width, in_channels = input_shape
        if height % patch_size or width % patch_size:
            raise ValueError(f"patch_size must divide {height} and {width}, got {patch_size}")
        if not (math.isfinite(mean) and math.isfinite(stddev) and stddev > 0):
            raise ValueError(
                f"mean must be finite and stddev finite and positive, got {mean} and {stddev}"
            )
        self.input_shape = input_shape
        self.mean = mean
        self.stddev = stddev
        self.patch_size = patch_size
        self.patches = nnx.List([])
        if patch_size > 1:
            self.patches.append(nnx.Linear(patch_size**2 * in_channels, channels[0], rngs=rngs))
            height, width, in_channels = height // patch_size, width // patch_size, channels[0]
            channels = channels[1:]
        self.convolutions = nnx.List([])
        for out_channels in channels:
            self.convolutions.append(
                nnx.Conv(
                    in_channels,
                    out_channels,
                    (kernel_size, kernel_size),
                    conv_general_dilated=_convolve,
                    rngs=rngs,
                )
            )
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
        x = (x - self.mean) / self.stddev
        for layer in self.patches:
            x = nnx.relu(layer(_cut_into_patches(x, self.patch_size)))
        for convolution in self.convolutions:
            x = _max_pool(nnx.relu(convolution(x)))
        x = x.reshape(x.shape[0], -1)
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return UnimodalOutput(logits=self.head(x), features=x)

    def lipschitz_bound(self, key: jax.Array) -> jax.Array:
        """An upper bound on the Lipschitz constant of the logits in the input, both in the 2-norm.

        The product of the layers' spectral norms, divided by `stddev`: exact ones of dense layers
        and of patches, which do not overlap; of convolutions those of `bounds.spectral_norm`, with
        their zero padding. ReLU and pooling over disjoint blocks have 1.

        Args:
          key: of the power iterations.

        Returns:
          A scalar, float32.
        """
        bound = jnp.float32(1 / self.stddev)
        height, width, channels = self.input_shape
        for layer in self.patches:
            bound *= jnp.linalg.norm(layer.kernel[...], ord=2)
            height, width = height // self.patch_size, width // self.patch_size
            channels = layer.kernel.shape[-1]
        for index, convolution in enumerate(self.convolutions):
            kernel = convolution.kernel[...]
            bound *= spectral_norm(
                lambda x, kernel=kernel: _convolve(x[None], kernel),
                (height, width, channels),
                jax.random.fold_in(key, index),
            )
            height, width, channels = -(-height // 2), -(-width // 2), kernel.shape[-1]
        for layer in (*self.hidden, self.head):
            bound *= jnp.linalg.norm(layer.kernel[...], ord=2)
        return bound


def _convolve(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    """Convolution with stride 1 and zero padding, as one matrix product; ignores other options."""
    # The derivative of `jax.lax.conv_general_dilated` in its input runs without an optimised kernel
    # inside loops on CPU: there it took 5 to 10 times as long, and attacks are such loops.
    del args, kwargs
    height, width = x.shape[1:3]
    size = kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _cut_into_patches(x: jax.Array, size: int) -> jax.Array:
    """(B, H, W, C) to (B, H / size, W / size, size^2 C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, height // size, width // size, -1)


def _max_pool(x: jax.Array) -> jax.Array:
    """Non-overlapping 2 x 2 max-pooling; odd sizes are padded by repeating the edge."""
    # By reshaping: the derivative of a windowed reduction is about twice as slow on CPU.
    batch, height, width, channels = x.shape
    if height % 2 or width % 2:
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return x.reshape(batch, -(-height // 2), 2, -(-width // 2), 2, channels).max(axis=(2, 4))
