"""Residual networks for images, spectrograms, and the frames of a video.

In one file, to be read beside torchvision's, whose weights they take.
"""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jacfuse_jax._checks import check_choice, check_floating
from jacfuse_jax._unimodal import UnimodalOutput
from jacfuse_jax.models._convolution import convolve
from jacfuse_jax.models._standardise import check_standardisation

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STDDEV = (0.229, 0.224, 0.225)
"""Of pixels in [0, 1], red, green, blue: what torchvision's weights were trained with."""

_GROUP_SIZE = 8  # channels a group; few, so that 16 channels still have more than one group
_EPSILON = 1e-5

Normalization = Literal["batch", "group"]


class ResNet(nnx.Module):
    """Residual network of basic blocks, global average pooling, and a linear head.

    The last axes of an input are (H, W, C), of any size. A video (B, T, H, W, C) goes through the
    network frame by frame; its features are the mean of those of its frames.

    A model is made in evaluation mode. With batch normalisation, one in training mode
    (`model.train()`, see `training.fit`) depends on its whole batch and updates its running
    statistics; with group normalisation the modes do not differ.

    References:
      He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2016.
      Wu, He, "Group Normalization", 2018.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: Sequence[int],
        num_blocks: Sequence[int],
        stem: Literal["imagenet", "small"],
        normalization: Normalization,
        mean: float | Sequence[float] = 0.0,
        stddev: float | Sequence[float] = 1.0,
        rngs: nnx.Rngs,
    ):
        """Builds the layers, with the initial distributions of torchvision.

        Args:
          in_channels: C.
          num_classes: K.
          channels: of every stage; the last is H, the number of features. Every stage but the first
            halves height and width, rounding up.
          num_blocks: of every stage, two convolutions each.
          stem: "imagenet", a 7 x 7 convolution of stride 2 and max-pooling of stride 2; or "small",
            a 3 x 3 convolution of stride 2.
          normalization: "batch"; or "group", of 8 channels each, for which every sample stands by
            itself.
          mean: of the inputs, for all channels or each; the network sees (x - mean) / stddev, so
            that what is attacked or corrupted remain pixels in [0, 1].
          stddev: likewise, positive.
          rngs: source of the initial parameters.

        Raises:
          ValueError: a size is not positive, stages disagree in number, channels do not divide into
            groups, an unknown stem or normalisation, or mean or stddev do not fit the channels.
        """
        sizes = (in_channels, num_classes, *channels, *num_blocks)
        if min(sizes) < 1:
            raise ValueError(f"all sizes must be positive, got {sizes}")
        if len(channels) != len(num_blocks) or not channels:
            raise ValueError(
                f"channels and num_blocks must hold one number a stage, got {tuple(channels)} and "
                f"{tuple(num_blocks)}"
            )
        check_choice("stem", stem, ("imagenet", "small"))
        check_choice("normalization", normalization, ("batch", "group"))
        if normalization == "group" and any(size % _GROUP_SIZE for size in channels):
            raise ValueError(
                f"channels must be multiples of {_GROUP_SIZE} for group normalisation, got "
                f"{tuple(channels)}"
            )
        self.in_channels = in_channels
        self.normalization = normalization
        self.mean, self.stddev = check_standardisation(mean, stddev, in_channels, of="channels")
        self.pools = stem == "imagenet"
        size = 7 if stem == "imagenet" else 3
        self.stem = NormalizedConvolution(in_channels, channels[0], size, 2, normalization, rngs)
        self.stages = nnx.List[nnx.List[BasicBlock]]([])
        in_channels = channels[0]
        for stage, (out_channels, count) in enumerate(zip(channels, num_blocks, strict=True)):
            blocks = nnx.List[BasicBlock]([])
            for index in range(count):
                stride = 2 if stage and not index else 1
                blocks.append(BasicBlock(in_channels, out_channels, stride, normalization, rngs))
                in_channels = out_channels
            self.stages.append(blocks)
        self.head = nnx.Linear(in_channels, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> UnimodalOutput:
        """Classifies a batch.

        Args:
          x: (B, H, W, C) or (B, T, H, W, C), floating.

        Returns:
          `UnimodalOutput(logits (B, K), features (B, H))`.

        Raises:
          TypeError: x is neither float32 nor float64.
          ValueError: x has another shape.
        """
        x = jnp.asarray(x)
        check_floating("x", x)
        if x.ndim not in (4, 5) or x.shape[-1] != self.in_channels or 0 in x.shape[1:]:
            raise ValueError(
                f"x must have shape (B, H, W, {self.in_channels}) or (B, T, H, W, "
                f"{self.in_channels}), got {x.shape}"
            )
        batch = x.shape[:-3]
        x = x.reshape(math.prod(batch), *x.shape[-3:])
        mean, stddev = (
            jnp.asarray(channels, x.dtype).reshape(1, 1, 1, self.in_channels)
            for channels in (self.mean, self.stddev)
        )
        x = (x - mean) / stddev
        x = nnx.relu(self.stem(x))
        if self.pools:
            x = _max_pool(x)
        for blocks in self.stages:
            for block in blocks:
                x = block(x)
        features = x.mean(axis=(1, 2)).reshape(*batch, x.shape[-1])
        if len(batch) == 2:
            features = features.mean(axis=1)
        with jax.numpy_dtype_promotion("standard"):  # flax promotes inputs and parameters
            return UnimodalOutput(logits=self.head(features), features=features)


class NormalizedConvolution(nnx.Module):
    """A convolution without bias, padded by half its kernel on either side, and its normalisation.

    Attributes:
      conv: the convolution.
      norm: the normalisation.
    """

    # "SAME" would pad inputs of even size after their end only, where the stride is 2.
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        stride: int,
        normalization: Normalization,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            in_channels,
            out_channels,
            (size, size),
            strides=(stride, stride),
            padding=[(size // 2, size // 2)] * 2,
            use_bias=False,
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
            conv_general_dilated=convolve,
            rngs=rngs,
        )
        # The fast variance, E x^2 - (E x)^2, is noise where a channel is constant, as it is where a
        # modality is missing.
        if normalization == "batch":
            self.norm = nnx.BatchNorm(
                out_channels,
                use_running_average=True,
                momentum=0.9,
                epsilon=_EPSILON,
                use_fast_variance=False,
                rngs=rngs,
            )
        else:
            self.norm = nnx.GroupNorm(
                out_channels,
                num_groups=out_channels // _GROUP_SIZE,
                epsilon=_EPSILON,
                use_fast_variance=False,
                rngs=rngs,
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, I) to (B, H', W', O)."""
        with jax.numpy_dtype_promotion("standard"):  # flax promotes inputs and parameters
            return self.norm(self.conv(x))


class BasicBlock(nnx.Module):
    """relu(second(relu(first(x))) + shortcut(x)).

    Attributes:
      first: its 3 x 3 convolution has the stride.
      second: of stride 1.
      shortcut: 1 x 1 where shapes change; None, the identity, where they do not.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        normalization: Normalization,
        rngs: nnx.Rngs,
    ):
        self.first = NormalizedConvolution(
            in_channels, out_channels, 3, stride, normalization, rngs
        )
        self.second = NormalizedConvolution(out_channels, out_channels, 3, 1, normalization, rngs)
        if stride == 1 and in_channels == out_channels:
            self.shortcut = None
        else:
            self.shortcut = NormalizedConvolution(
                in_channels, out_channels, 1, stride, normalization, rngs
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, I) to (B, H', W', O)."""
        residual = self.second(nnx.relu(self.first(x)))
        return nnx.relu(residual + (x if self.shortcut is None else self.shortcut(x)))


def resnet18(
    in_channels: int,
    num_classes: int,
    *,
    mean: float | Sequence[float] = 0.0,
    stddev: float | Sequence[float] = 1.0,
    rngs: nnx.Rngs,
) -> ResNet:
    """ResNet-18, the same function of its weights as torchvision's; H = 512.

    Args:
      in_channels: C.
      num_classes: K.
      mean: as in `ResNet`; `IMAGENET_MEAN` for weights trained on ImageNet.
      stddev: likewise, `IMAGENET_STDDEV`.
      rngs: source of the initial parameters; `load_torchvision` replaces them.

    Returns:
      The network.

    Raises:
      ValueError: as in `ResNet`.
    """
    return ResNet(
        in_channels,
        num_classes,
        channels=(64, 128, 256, 512),
        num_blocks=(2, 2, 2, 2),
        stem="imagenet",
        normalization="batch",
        mean=mean,
        stddev=stddev,
        rngs=rngs,
    )


def small_resnet(
    in_channels: int,
    num_classes: int,
    *,
    channels: Sequence[int] = (16, 32, 64, 64),
    mean: float | Sequence[float] = 0.0,
    stddev: float | Sequence[float] = 1.0,
    rngs: nnx.Rngs,
) -> ResNet:
    """One block a stage and group normalisation: for log-mel spectrograms, or a video's frames.

    Args:
      in_channels: C.
      num_classes: K.
      channels: of every stage, multiples of 8; the last is H.
      mean: as in `ResNet`.
      stddev: as in `ResNet`.
      rngs: source of the initial parameters.

    Returns:
      The network.

    Raises:
      ValueError: as in `ResNet`.
    """
    return ResNet(
        in_channels,
        num_classes,
        channels=channels,
        num_blocks=(1,) * len(channels),
        stem="small",
        normalization="group",
        mean=mean,
        stddev=stddev,
        rngs=rngs,
    )


def _max_pool(x: jax.Array) -> jax.Array:
    """3 x 3 max-pooling of stride 2, padded by one on either side; for x >= 0."""
    # By slices, one axis after the other: the derivative of a windowed reduction is slower on CPU.
    for axis in (1, 2):
        size = -(-x.shape[axis] // 2)
        padding = [(0, 0)] * 4
        padding[axis] = (1, 1)  # zeros never exceed what follows a ReLU
        padded = jnp.pad(x, padding)
        x = jnp.maximum(
            jnp.maximum(
                jax.lax.slice_in_dim(padded, 0, 2 * size - 1, 2, axis),
                jax.lax.slice_in_dim(padded, 1, 2 * size, 2, axis),
            ),
            jax.lax.slice_in_dim(padded, 2, 2 * size + 1, 2, axis),
        )
    return x
