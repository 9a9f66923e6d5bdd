"""Weights of torchvision's residual networks."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jacfuse_jax.models._resnet import NormalizedConvolution, ResNet

# Where the axes of the model's arrays are in the file's: (h, w, I, O) in (O, I, h, w), (H, K) in
# (K, H), and vectors.
_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}


def load_torchvision(model: ResNet, path: str | Path, *, load_head: bool = True) -> None:
    """Replaces a network's weights and running statistics by those of a torchvision state dict.

    The file is what `safetensors.torch.save_file(resnet.state_dict(), path)` writes, for example of
    `torchvision.models.resnet18`. Floats of any width are cast to the dtype of the model's. If
    the model takes one channel and the file's network several, the first kernel is summed over its
    input channels: the model then sees one channel as the other sees copies of it.

    Args:
      model: of basic blocks with batch normalisation, for example of `resnet18`; left as it is if
        anything is wrong.
      path: of the .safetensors file.
      load_head: False keeps the model's own last layer, for other classes than the file's.

    Raises:
      ValueError: the model has no batch normalisation; the file is missing or damaged; or a tensor
        is missing, unexpected, of a wrong shape, not of floats that are finite in the dtype of
        the model's, or a variance below zero.
    """
    if model.normalization != "batch":
        raise ValueError(
            f"model has {model.normalization} normalisation, but torchvision's weights are for "
            'normalization="batch"'
        )
    tensors = _read(path)
    variables = dict(_variables(model))
    if not load_head:
        tensors = {name: array for name, array in tensors.items() if not name.startswith("fc.")}
        variables = {name: array for name, array in variables.items() if not name.startswith("fc.")}
    unexpected = sorted(set(tensors) - set(variables))
    if unexpected:
        raise ValueError(
            f"{path}: unexpected tensor {unexpected[0]!r}, {len(unexpected)} in all; save the "
            "state dict of a network with the model's stages and blocks"
        )
    arrays = {
        name: _convert(path, name, tensors, variable.shape, variable.dtype)
        for name, variable in variables.items()
    }
    for name, variable in variables.items():
        variable[...] = jnp.asarray(arrays[name])


def _read(path: str | Path) -> dict[str, NDArray[Any]]:
    """The tensors of a file, without the counters of batches, which nothing depends on."""
    try:
        tensors = load_file(path)
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror or error}); give the path of a .safetensors "
            "file"
        ) from error
    except SafetensorError as error:
        raise ValueError(
            f"{path}: damaged, or no safetensors file ({error}); write it anew with "
            "safetensors.torch.save_file(resnet.state_dict(), path)"
        ) from error
    except AttributeError as error:  # safetensors looks the dtype up in NumPy
        raise ValueError(
            f"{path}: holds a dtype that NumPy lacks ({error}); save it anew as float32"
        ) from error
    return {
        name: array for name, array in tensors.items() if not name.endswith(".num_batches_tracked")
    }


def _variables(model: ResNet) -> Iterator[tuple[str, nnx.Variable[Any]]]:
    """The model's variables under torchvision's names."""
    yield from _layer("conv1", "bn1", model.stem)
    for stage, blocks in enumerate(model.stages, start=1):
        for index, block in enumerate(blocks):
            prefix = f"layer{stage}.{index}"
            yield from _layer(f"{prefix}.conv1", f"{prefix}.bn1", block.first)
            yield from _layer(f"{prefix}.conv2", f"{prefix}.bn2", block.second)
            if block.shortcut is not None:
                names = f"{prefix}.downsample.0", f"{prefix}.downsample.1"
                yield from _layer(*names, block.shortcut)
    yield "fc.weight", model.head.kernel
    assert model.head.bias is not None
    yield "fc.bias", model.head.bias


def _layer(
    conv: str, norm: str, layer: NormalizedConvolution
) -> Iterator[tuple[str, nnx.Variable[Any]]]:
    """The variables of a convolution and its batch normalisation."""
    assert isinstance(layer.norm, nnx.BatchNorm)
    assert layer.norm.scale is not None
    assert layer.norm.bias is not None
    yield f"{conv}.weight", layer.conv.kernel
    yield f"{norm}.weight", layer.norm.scale
    yield f"{norm}.bias", layer.norm.bias
    yield f"{norm}.running_mean", layer.norm.mean
    yield f"{norm}.running_var", layer.norm.var


def _convert(
    path: str | Path,
    name: str,
    tensors: Mapping[str, NDArray[Any]],
    shape: tuple[int, ...],
    dtype: Any,
) -> NDArray[Any]:
    """One tensor in the layout and dtype of the model."""
    if name not in tensors:
        raise ValueError(
            f"{path}: no tensor {name!r}; save the state dict of a network with the model's stages "
            "and blocks"
        )
    tensor = tensors[name]
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise ValueError(f"{path}: {name!r} must hold floats, got {tensor.dtype}; save it anew")
    axes = _AXES[len(shape)]
    expected = tuple(shape[axis] for axis in np.argsort(axes))
    converted = tensor
    if name == "conv1.weight" and expected[1] == 1 and tensor.ndim == 4:
        converted = tensor.astype(np.float64).sum(axis=1, keepdims=True)
    if converted.shape != expected:
        remedy = (
            "load_head=False keeps the model's own"
            if name.startswith("fc.")
            else "build the model with the channels of the file's network"
        )
        raise ValueError(
            f"{path}: {name!r} has shape {tensor.shape}, but the model's is {expected}; {remedy}"
        )
    with np.errstate(over="ignore"):
        converted = converted.transpose(axes).astype(dtype)
    if not np.isfinite(converted).all():
        raise ValueError(
            f"{path}: {name!r} holds numbers that are not finite in {dtype}; save it anew"
        )
    if name.endswith(".running_var") and (converted < 0).any():
        raise ValueError(f"{path}: {name!r} holds variances below zero; save it anew")
    return converted
