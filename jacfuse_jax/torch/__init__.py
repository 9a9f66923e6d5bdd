"""PyTorch's classifiers in JAX, and fusion in PyTorch. No other package imports torch."""

from jacfuse_jax.torch._fusion_module import FusionModule
from jacfuse_jax.torch._logits_fn import as_logits_fn

__all__ = ["FusionModule", "as_logits_fn"]
