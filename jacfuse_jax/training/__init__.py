"""Training of classifiers with optax, and their checkpoints with orbax."""

from jacfuse_jax._batching import iterate_batches, num_batches
from jacfuse_jax._unimodal import FusionHead
from jacfuse_jax.training._heads import HEADS, train_head
from jacfuse_jax.training._loop import Batch, CheckpointError, LossFn, cross_entropy, fit
from jacfuse_jax.training._regimes import REGIMES, add_randomness, choose_loss_fn

__all__ = [
    "HEADS",
    "REGIMES",
    "Batch",
    "CheckpointError",
    "FusionHead",
    "LossFn",
    "add_randomness",
    "choose_loss_fn",
    "cross_entropy",
    "fit",
    "iterate_batches",
    "num_batches",
    "train_head",
]
