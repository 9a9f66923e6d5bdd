"""The unimodal classifiers of every data set: architecture, training, outputs."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
import optax
from flax import nnx
from tqdm.auto import tqdm

from data_pipelines.catalogue import ARRAYS, base_name
from data_pipelines.datasets import MultimodalDataset
from data_pipelines.stored import Column
from jacfuse_jax import training
from jacfuse_jax.evaluation.models import Classifier
from jacfuse_jax.models import (
    IMAGENET_MEAN,
    IMAGENET_STDDEV,
    MLP,
    LeNet,
    Reduced,
    ResNet,
    SeriesResNet,
    UnimodalOutput,
    load_torchvision,
    resnet18,
    small_resnet,
)
from jacfuse_jax.programs import InputError

Network: TypeAlias = LeNet | ResNet | MLP | SeriesResNet | Reduced

_LEARNING_RATE = 1e-3
# Of vectors few rows are usual, and with them few steps: at the rate of the networks for pictures
# logistic regression was better.
_MLP_LEARNING_RATE = 3e-3
_MLP_HIDDEN_SIZES = (256,)
_CHUNK_ROWS = 256
# Keyword arguments of LeNet, for all configs of a data set.
_LENETS: dict[tuple[str, str], dict[str, Any]] = {
    ("digits", "upper"): {"channels": (16, 32), "kernel_size": 3, "hidden_sizes": (64, 32)},
    ("digits", "lower"): {"channels": (16, 32), "kernel_size": 3, "hidden_sizes": (64, 32)},
    ("av_mnist", "image"): {"channels": (16, 32), "kernel_size": 3, "patch_size": 4},
    ("av_mnist", "audio"): {
        "channels": (16, 64),
        "kernel_size": 3,
        "patch_size": 8,
        "mean": 0.5,
        "stddev": 0.25,
    },
}


def train_classifiers(
    dataset: MultimodalDataset,
    *,
    num_epochs: int,
    batch_size: int,
    seed: int,
    workdir: Path,
    valid_ranges: Mapping[str, tuple[float, float]],
    weights: Mapping[str, Path],
    regime: str = "standard",
) -> dict[str, Classifier]:
    """Trains the classifier of every modality, or restores it from the working directory.

    Regimes start from the same initial parameters and see the rows in the same order.

    Args:
      dataset: its training split is used.
      num_epochs: passes over the training split.
      batch_size: samples a step.
      seed: of initial parameters, order, and whatever a regime draws.
      workdir: checkpoints go to `checkpoints/<modality>` below it, those of a regime other than
        "standard" to `checkpoints_<regime>/<modality>`.
      valid_ranges: {modality: (low, high)} of the training inputs.
      weights: {modality: file} of those residual networks that start from torchvision's weights.
      regime: one of `training.REGIMES`.

    Returns:
      {modality: classifier}.

    Raises:
      ValueError: unknown regime.
      InputError: a file of weights is missing, damaged or of another architecture.
      CheckpointError: as in `training.fit`.
    """
    loss_fn = training.choose_loss_fn(regime)
    folder = workdir / ("checkpoints" if regime == "standard" else f"checkpoints_{regime}")
    num_steps = num_epochs * training.num_batches(len(dataset.splits["train"]["label"]), batch_size)
    models: dict[str, Network] = {}
    for index, modality in enumerate(dataset.modalities):
        key = jax.random.fold_in(jax.random.key(seed), index)
        models[modality] = _make_model(dataset, modality, nnx.Rngs(key))
        if modality in weights:
            # Trained further, it starts with a new head, since classes differ as a rule.
            _load_weights(models[modality], modality, weights[modality], load_head=num_epochs == 0)
    for index, (modality, model) in enumerate(models.items()):
        rate = _MLP_LEARNING_RATE if isinstance(model, MLP) else _LEARNING_RATE
        arrays = {
            "inputs": dataset.splits["train"][modality],
            "label": dataset.splits["train"]["label"],
        }
        training.fit(
            model,
            optax.adam(optax.cosine_decay_schedule(rate, max(num_steps, 1))),
            _make_batches(
                arrays,
                modality,
                num_epochs,
                batch_size,
                seed=(seed, index),
                valid_range=valid_ranges[modality],
            ),
            num_epochs=num_epochs,
            checkpoint_dir=folder / modality,
            loss_fn=loss_fn,
        )
    return {modality: _freeze(model) for modality, model in models.items()}


def _make_batches(
    arrays: dict[str, Column],
    modality: str,
    num_epochs: int,
    batch_size: int,
    *,
    seed: tuple[int, int],
    valid_range: tuple[float, float],
) -> Callable[[int], Iterable[training.Batch]]:
    """Batches of an epoch, in an order that depends on seed and epoch alone, behind a bar.

    Adversarial perturbations grow for half of the epochs.
    """

    def make_batches(epoch: int) -> Iterable[training.Batch]:
        batches = training.iterate_batches(arrays, batch_size, shuffle_seed=(*seed, epoch))
        share = min(1.0, 2 * (epoch + 1) / num_epochs)
        return tqdm(
            training.add_randomness(batches, (*seed, epoch), valid_range, radius_share=share),
            desc=f"train {modality}, epoch {epoch + 1}/{num_epochs}",
            total=training.num_batches(len(arrays["label"]), batch_size),
            leave=epoch + 1 == num_epochs,
            disable=None,
        )

    return make_batches


def _make_model(dataset: MultimodalDataset, modality: str, rngs: nnx.Rngs) -> Network:
    """The untrained classifier of a modality."""
    shape = dataset.splits["train"][modality].shape[1:]
    name = base_name(dataset.name)
    if (name, modality) in _LENETS:
        architecture = _LENETS[name, modality]
        model = LeNet(shape, dataset.num_classes, **architecture, rngs=rngs)
        subspace = dataset.subspaces.get(modality)
        return model if subspace is None else Reduced(model, *subspace)
    if name == ARRAYS:
        return _make_for_arrays(dataset, modality, rngs)
    make_fn = resnet18 if name == "vggsound" else small_resnet
    # Levels of sound lie in [0, 1] like pixels; frames are seen as ImageNet's weights expect them.
    mean, stddev = (IMAGENET_MEAN, IMAGENET_STDDEV) if shape[-1] == 3 else (0.5, 0.25)
    return make_fn(shape[-1], dataset.num_classes, mean=mean, stddev=stddev, rngs=rngs)


def _make_for_arrays(dataset: MultimodalDataset, modality: str, rngs: nnx.Rngs) -> Network:
    """The untrained classifier of a kind; nobody knows the range of its inputs beforehand."""
    column = dataset.splits["train"][modality]
    mean, stddev = _standardisation(column)
    make_fn = {
        "vector": partial(MLP, hidden_sizes=_MLP_HIDDEN_SIZES),
        "series": SeriesResNet,
    }.get(dataset.kinds[modality], small_resnet)
    return make_fn(column.shape[-1], dataset.num_classes, mean=mean, stddev=stddev, rngs=rngs)


def _standardisation(column: Column) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every channel, or feature: of those that never change, 1."""
    axes = tuple(range(len(column.shape) - 1))
    chunks = [slice(i, i + _CHUNK_ROWS) for i in range(0, len(column), _CHUNK_ROWS)]
    count = np.prod(column.shape[:-1])
    mean = np.sum([np.sum(column[c], axis=axes, dtype=float) for c in chunks], axis=0) / count
    squares = [np.sum((column[c] - mean) ** 2, axis=axes) for c in chunks]
    stddev = np.sqrt(np.sum(squares, axis=0) / count)
    # Entries in float32 know their differences to about this.
    is_constant = stddev <= 1e-6 * np.abs(mean)
    return mean.tolist(), np.where(is_constant, 1.0, stddev).tolist()


def _load_weights(model: Network, modality: str, path: Path, *, load_head: bool) -> None:
    """Loads torchvision's weights of a flag."""
    assert isinstance(model, ResNet)
    try:
        load_torchvision(model, path, load_head=load_head)
    except ValueError as error:
        raise InputError(f"--weights={modality}={error}") from None


def _freeze(model: Network) -> Classifier:
    """Separates the trained model into a pure function and its parameters."""
    graph, parameters = nnx.split(model)

    def output_fn(parameters: Any, inputs: jax.Array) -> UnimodalOutput:
        return nnx.merge(graph, parameters)(inputs)

    def lipschitz_fn(parameters: Any, key: jax.Array) -> jax.Array:
        bounded = nnx.merge(graph, parameters)
        assert isinstance(bounded, LeNet | MLP | Reduced)
        return bounded.lipschitz_bound(key)

    return Classifier(
        output_fn,
        parameters,
        model.head.kernel[...],
        lipschitz_fn if isinstance(model, LeNet | MLP | Reduced) else None,
    )
