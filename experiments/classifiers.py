"""The unimodal classifiers of every data set: architecture, training, logits."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray
from tqdm.auto import tqdm

from data_pipelines.batching import iterate_batches, num_batches
from data_pipelines.datasets import MultimodalDataset
from jacfuse_jax import jacobians, training
from jacfuse_jax.models import LeNet

_LEARNING_RATE = 1e-3
# Keyword arguments of LeNet and the default number of epochs.
_ARCHITECTURES: dict[tuple[str, str], dict[str, Any]] = {
    ("digits", "upper"): {"channels": (16, 32), "kernel_size": 3, "hidden_sizes": (64, 32)},
    ("digits", "lower"): {"channels": (16, 32), "kernel_size": 3, "hidden_sizes": (64, 32)},
    ("av_mnist", "image"): {},
    ("av_mnist", "audio"): {"channels": (8, 16, 32), "kernel_size": 3, "patch_size": 4},
}
DEFAULT_NUM_EPOCHS = {"digits": 30, "av_mnist": 4}


class Classifier(NamedTuple):
    """A trained classifier of one modality.

    Attributes:
      logits_fn: maps (parameters, inputs (B, H, W, C)) to logits (B, K).
      parameters: pytree of its arrays.
      kernel: (H, K), of its last linear layer.
    """

    logits_fn: Callable[[Any, jax.Array], jax.Array]
    parameters: Any
    kernel: jax.Array


def train_classifiers(
    dataset: MultimodalDataset, *, num_epochs: int, batch_size: int, seed: int, workdir: Path
) -> dict[str, Classifier]:
    """Trains the classifier of every modality, or restores it from the working directory.

    Args:
      dataset: its training split is used.
      num_epochs: passes over the training split.
      batch_size: samples a step.
      seed: of initial parameters and order.
      workdir: checkpoints go to `checkpoints/<modality>` below it.

    Returns:
      {modality: classifier}.
    """
    classifiers: dict[str, Classifier] = {}
    for index, modality in enumerate(dataset.modalities):
        arrays = {
            "inputs": dataset.splits["train"][modality],
            "label": dataset.splits["train"]["label"],
        }
        key = jax.random.fold_in(jax.random.key(seed), index)
        model = LeNet(
            arrays["inputs"].shape[1:],
            dataset.num_classes,
            **_ARCHITECTURES[dataset.name, modality],
            rngs=nnx.Rngs(key),
        )
        steps_per_epoch = num_batches(len(arrays["label"]), batch_size)
        training.fit(
            model,
            optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, num_epochs * steps_per_epoch)),
            _make_batches(arrays, modality, num_epochs, batch_size, seed=(seed, index)),
            num_epochs=num_epochs,
            checkpoint_dir=workdir / "checkpoints" / modality,
        )
        classifiers[modality] = _freeze(model)
    return classifiers


def predict_logits(
    classifier: Classifier, inputs: NDArray[Any], *, batch_size: int
) -> NDArray[Any]:
    """Logits (N, K) of inputs (N, H, W, C), computed in batches."""
    predict = jax.jit(classifier.logits_fn)
    batches = iterate_batches({"inputs": inputs}, batch_size)
    logits = [np.asarray(predict(classifier.parameters, batch["inputs"])) for batch in batches]
    return np.concatenate(logits)[: len(inputs)]


def input_grams(classifier: Classifier, parameters: Any, inputs: jax.Array) -> jax.Array:
    """Gram matrices D D^T of the Jacobians D of the logits in the input, one per sample.

    Args:
      classifier: differentiated by `jax.jacrev`, since inputs outnumber classes.
      parameters: of the classifier.
      inputs: (B, H, W, C).

    Returns:
      (B, K, K).
    """
    jac = jacobians.per_sample_jacobian(
        lambda x: classifier.logits_fn(parameters, x[None])[0], inputs, mode="reverse"
    )
    return jacobians.gram_from_jacobian(jac)


def _make_batches(
    arrays: dict[str, NDArray[Any]],
    modality: str,
    num_epochs: int,
    batch_size: int,
    *,
    seed: tuple[int, int],
) -> Callable[[int], Iterable[dict[str, NDArray[Any]]]]:
    """Batches of an epoch, in an order that depends on seed and epoch alone, behind a bar."""

    def make_batches(epoch: int) -> Iterable[dict[str, NDArray[Any]]]:
        return tqdm(
            iterate_batches(arrays, batch_size, shuffle_seed=(*seed, epoch)),
            desc=f"train {modality}, epoch {epoch + 1}/{num_epochs}",
            total=num_batches(len(arrays["label"]), batch_size),
            leave=epoch + 1 == num_epochs,
        )

    return make_batches


def _freeze(model: LeNet) -> Classifier:
    """Separates the trained model into a pure function and its parameters."""
    graph, parameters = nnx.split(model)

    def logits_fn(parameters: Any, inputs: jax.Array) -> jax.Array:
        return nnx.merge(graph, parameters)(inputs).logits

    return Classifier(logits_fn, parameters, model.head.kernel[...])
