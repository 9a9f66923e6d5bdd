"""Unimodal classifiers in flax NNX."""

from jacfuse_jax._unimodal import UnimodalOutput
from jacfuse_jax.models._lenet import LeNet
from jacfuse_jax.models._mlp import MLP
from jacfuse_jax.models._reduced import Reduced
from jacfuse_jax.models._resnet import (
    IMAGENET_MEAN,
    IMAGENET_STDDEV,
    ResNet,
    resnet18,
    small_resnet,
)
from jacfuse_jax.models._series import SeriesResNet
from jacfuse_jax.models._torchvision import load_torchvision

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STDDEV",
    "MLP",
    "LeNet",
    "Reduced",
    "ResNet",
    "SeriesResNet",
    "UnimodalOutput",
    "load_torchvision",
    "resnet18",
    "small_resnet",
]
