"""Training of unimodal classifiers with optax, and their checkpoints with orbax."""

from jacfuse_jax.training.loop import CheckpointError, fit

__all__ = ["CheckpointError", "fit"]
