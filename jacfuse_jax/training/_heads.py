"""Trained fusion of frozen unimodal classifiers, to compare fusion without training with."""

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray
from tqdm.auto import tqdm

from jacfuse_jax._batching import iterate_batches, num_batches
from jacfuse_jax._unimodal import FusionHead, UnimodalOutput
from jacfuse_jax.training._loop import Batch, fit

NUM_EPOCHS = 10
_MIN_STEPS = 1000  # small data sets are gone through several times an epoch

_LEARNING_RATE = 1e-3
_HIDDEN_SIZE = 64

Outputs = Mapping[str, UnimodalOutput]


class ConcatenationHead(nnx.Module):
    """A hidden layer on the features of all modalities, z = W relu(V [h_1 ... h_M] + a) + b."""

    def __init__(self, num_features: Mapping[str, int], num_classes: int, *, rngs: nnx.Rngs):
        """Builds the layers.

        Args:
          num_features: {modality: H_m}; features are concatenated in the order of sorted names.
          num_classes: K.
          rngs: source of the initial parameters.
        """
        self.modalities = tuple(sorted(num_features))
        self.hidden = nnx.Linear(sum(num_features.values()), _HIDDEN_SIZE, rngs=rngs)
        self.head = nnx.Linear(_HIDDEN_SIZE, num_classes, rngs=rngs)

    def __call__(self, outputs: Outputs) -> UnimodalOutput:
        """Fuses {modality: UnimodalOutput} to `UnimodalOutput(logits (B, K), features (B, 64))`."""
        hidden = nnx.relu(self.hidden(_concatenate(outputs, self.modalities)))
        return UnimodalOutput(logits=self.head(hidden), features=hidden)


class GatedHead(nnx.Module):
    """A gate on the prediction of every modality, z = sum_m g_m log softmax(z_m).

    g = softmax(W [h_1 ... h_M] + b) over modalities, one g per sample. Predictions are gated, not
    features as in the reference.

    References:
      Arevalo, Solorio, Montes-y-Gomez, Gonzalez, "Gated Multimodal Units for Information Fusion",
      2017.
    """

    def __init__(self, num_features: Mapping[str, int], num_classes: int, *, rngs: nnx.Rngs):
        """Builds the layer; arguments as of `ConcatenationHead`, the number of classes unused."""
        del num_classes
        self.modalities = tuple(sorted(num_features))
        self.gate = nnx.Linear(sum(num_features.values()), len(num_features), rngs=rngs)

    def __call__(self, outputs: Outputs) -> UnimodalOutput:
        """Fuses {modality: UnimodalOutput}; returns logits (B, K) and the features of the gate."""
        features = _concatenate(outputs, self.modalities)
        gates = jax.nn.softmax(self.gate(features))
        log_probs = jnp.stack([jax.nn.log_softmax(outputs[m].logits) for m in self.modalities], 1)
        return UnimodalOutput(logits=(gates[..., None] * log_probs).sum(axis=1), features=features)


def train_head(
    name: str,
    outputs: Outputs,
    labels: NDArray[Any],
    *,
    batch_size: int,
    seed: int,
    workdir: Path,
) -> FusionHead:
    """Trains a fusion head for `NUM_EPOCHS` epochs, or restores it from the working directory.

    An epoch goes through the rows as often as it takes to make 1,000 steps of all epochs.

    The classifiers stay as they are: only their outputs are seen.

    Args:
      name: one of `HEADS`.
      outputs: {modality: UnimodalOutput(logits (N, K), features (N, H_m))} of the training rows, at
        least one modality.
      labels: (N,), integer.
      batch_size: samples a step.
      seed: of initial parameters and order.
      workdir: checkpoints go to `checkpoints_<name>` below it.

    Returns:
      The head, differentiable in parameters and outputs.

    Raises:
      ValueError: unknown head.
      CheckpointError: as in `training.fit`.
    """
    if name not in _HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, got {name!r}")
    num_features = {modality: output.features.shape[1] for modality, output in outputs.items()}
    num_classes = next(iter(outputs.values())).logits.shape[1]
    model = _HEADS[name](num_features, num_classes, rngs=nnx.Rngs(jax.random.key(seed)))
    num_passes = -(-_MIN_STEPS // (NUM_EPOCHS * num_batches(len(labels), batch_size)))
    num_steps = NUM_EPOCHS * num_passes * num_batches(len(labels), batch_size)
    fit(
        model,
        optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, num_steps)),
        _make_batches(name, outputs, labels, batch_size, seed, num_passes),
        num_epochs=NUM_EPOCHS,
        checkpoint_dir=workdir / f"checkpoints_{name}",
    )
    graph, parameters = nnx.split(model)

    def log_probs_fn(parameters: Any, outputs: Outputs) -> jax.Array:
        return jax.nn.log_softmax(nnx.merge(graph, parameters)(outputs).logits)

    return FusionHead(log_probs_fn, parameters)


def _make_batches(
    name: str,
    outputs: Outputs,
    labels: NDArray[Any],
    batch_size: int,
    seed: int,
    num_passes: int,
) -> Callable[[int], Iterable[Batch]]:
    """Batches of an epoch, in an order that depends on seed and epoch alone, behind a bar."""
    arrays = {"row": np.arange(len(labels)), "label": labels}

    def make_batches(epoch: int) -> Iterable[Batch]:
        passes = (
            iterate_batches(arrays, batch_size, shuffle_seed=(seed, epoch, i))
            for i in range(num_passes)
        )
        progress = tqdm(
            chain.from_iterable(passes),
            desc=f"train {name}, epoch {epoch + 1}/{NUM_EPOCHS}",
            total=num_passes * num_batches(len(labels), batch_size),
            leave=epoch + 1 == NUM_EPOCHS,
            disable=None,
        )
        for batch in progress:
            take_rows = itemgetter(batch.pop("row"))
            yield {**batch, "inputs": jax.tree.map(take_rows, dict(outputs))}

    return make_batches


def _concatenate(outputs: Outputs, modalities: tuple[str, ...]) -> jax.Array:
    """Features (B, sum of H_m)."""
    return jnp.concatenate([outputs[modality].features for modality in modalities], axis=-1)


_HEADS: dict[str, Callable[..., nnx.Module]] = {
    "concatenation": ConcatenationHead,
    "gated": GatedHead,
}
HEADS = tuple(_HEADS)
"""Names of the fusion heads."""
