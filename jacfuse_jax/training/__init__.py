"""Training of classifiers with optax, and their checkpoints with orbax."""

from jacfuse_jax.training._loop import Batch, CheckpointError, LossFn, cross_entropy, fit

__all__ = ["Batch", "CheckpointError", "LossFn", "cross_entropy", "fit"]
