"""PyTorch's classifiers in JAX, and fusion in PyTorch. No other package imports torch."""

from jacfuse_jax.torch._fusion_module import FusionModule

__all__ = ["FusionModule"]
