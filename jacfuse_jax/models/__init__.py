"""Unimodal classifiers in flax NNX."""

from jacfuse_jax.models.lenet import LeNet
from jacfuse_jax.models.resnet import (
    IMAGENET_MEAN,
    IMAGENET_STDDEV,
    ResNet,
    resnet18,
    small_resnet,
)
from jacfuse_jax.models.torchvision import load_torchvision
from jacfuse_jax.models.unimodal import UnimodalOutput

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STDDEV",
    "LeNet",
    "ResNet",
    "UnimodalOutput",
    "load_torchvision",
    "resnet18",
    "small_resnet",
]
