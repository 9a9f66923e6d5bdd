"""The trained models of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from data_pipelines.datasets import MultimodalDataset
from data_pipelines.stored import summarise
from experiments.run.classifiers import train_classifiers
from jacfuse_jax.evaluation.evidence import Evidence, fit_evidence
from jacfuse_jax.evaluation.models import Classifier, Models, classify_all
from jacfuse_jax.evaluation.rules import HEADS, Trained
from jacfuse_jax.programs import InputError
from jacfuse_jax.training import train_head

_MAX_GRAMS = 2**32  # bytes of Gram matrices of a modality


def train_models(
    dataset: MultimodalDataset,
    methods: Sequence[str],
    *,
    num_epochs: int,
    batch_size: int,
    weights: Mapping[str, Path],
    seed: int,
    folder: Path,
) -> Models:
    """Trains what rules need, or restores it.

    Args:
      dataset: its training split trains, its validation split calibrates.
      methods: names of the rules.
      num_epochs: passes over the training split.
      batch_size: samples a step.
      weights: see `classifiers.train_classifiers`.
      seed: of training.
      folder: checkpoints go below it.

    Returns:
      The models.
    """
    train = dataset.splits["train"]
    summaries = {modality: summarise(train[modality]) for modality in dataset.modalities}
    valid_ranges = {modality: (found.low, found.high) for modality, found in summaries.items()}
    regime_of = {name: regime for regime, name in Trained.names.items()}
    regimes = ["standard", *(regime_of[m] for m in methods if m in regime_of)]
    classifiers = {
        regime: train_classifiers(
            dataset,
            num_epochs=num_epochs,
            batch_size=batch_size,
            seed=seed,
            workdir=folder,
            valid_ranges=valid_ranges,
            weights=weights,
            regime=regime,
        )
        for regime in regimes
    }
    head_names = [name for name in methods if name in HEADS]
    heads = {}
    if head_names:
        outputs = classify_all(classifiers["standard"], train, batch_size=batch_size)
        heads = {
            name: train_head(
                name,
                outputs,
                train["label"],
                batch_size=batch_size,
                seed=seed,
                workdir=folder,
            )
            for name in head_names
        }
    return Models(
        classifiers,
        heads,
        _fit_evidence(dataset, classifiers["standard"], batch_size),
        valid_ranges,
        {modality: found.mean for modality, found in summaries.items()},
        {modality: found.stddev for modality, found in summaries.items()},
    )


def check_grams(models: Models, num_rows: int) -> None:
    """Raises InputError where the Gram matrices of so many rows take too much memory.

    Args:
      models: trained.
      num_rows: of a split.
    """
    kernels = [classifier.kernel for classifier in models.classifiers["standard"].values()]
    num_bytes = num_rows * max(kernel.shape[1] ** 2 * kernel.dtype.itemsize for kernel in kernels)
    if num_bytes > _MAX_GRAMS:
        raise InputError(
            f"--jacobian=input takes {num_bytes / 2**30:.1f} GiB for a K x K matrix for each of "
            f"{num_rows} rows of a modality; lower --num_eval, or use --jacobian=head"
        )


def _fit_evidence(
    dataset: MultimodalDataset, classifiers: dict[str, Classifier], batch_size: int
) -> Evidence:
    """What training labels and validation data tell fusion."""
    counts = np.bincount(dataset.splits["train"]["label"], minlength=dataset.num_classes)
    class_prior = jnp.asarray(counts / counts.sum(), jnp.float32)
    validation = dataset.splits["validation"]
    outputs = classify_all(classifiers, validation, batch_size=batch_size)
    return fit_evidence(
        {name: classifier.kernel for name, classifier in classifiers.items()},
        {name: output.logits for name, output in outputs.items()},
        validation["label"],
        class_prior,
    )
