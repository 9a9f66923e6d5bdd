"""Unimodal classifiers in flax NNX."""

from jacfuse_jax.models.lenet import LeNet
from jacfuse_jax.models.unimodal import UnimodalOutput

__all__ = ["LeNet", "UnimodalOutput"]
