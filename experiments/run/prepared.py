"""Trained models of a run, and rows of a split with all that they say of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from data_pipelines.datasets import MultimodalDataset
from data_pipelines.stored import summarise
from experiments.run.classifiers import train_classifiers
from experiments.run.config import Config
from jacfuse_jax.evaluation import rows
from jacfuse_jax.evaluation.evidence import Evidence, fit_evidence
from jacfuse_jax.evaluation.models import Classifier, Models, classify_all
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.evaluation.rules import HEADS, Trained
from jacfuse_jax.programs import InputError
from jacfuse_jax.training import train_head

_MAX_GRAMS = 2**32  # bytes of Gram matrices of a modality


def train_models(config: Config, dataset: MultimodalDataset, seed: int, folder: Path) -> Models:
    """Trains what the rules of a run need, or restores it.

    Args:
      config: settings of the run.
      dataset: its training split trains, its validation split calibrates.
      seed: of training.
      folder: checkpoints go below it.

    Returns:
      The models.
    """
    train = dataset.splits["train"]
    summaries = {modality: summarise(train[modality]) for modality in dataset.modalities}
    valid_ranges = {modality: (low, high) for modality, (low, high, _) in summaries.items()}
    regime_of = {name: regime for regime, name in Trained.names.items()}
    regimes = ["standard", *(regime_of[m] for m in config.methods if m in regime_of)]
    classifiers = {
        regime: train_classifiers(
            dataset,
            num_epochs=config.num_epochs,
            batch_size=config.batch_size,
            seed=seed,
            workdir=folder,
            valid_ranges=valid_ranges,
            weights=config.weights,
            regime=regime,
        )
        for regime in regimes
    }
    head_names = [name for name in config.methods if name in HEADS]
    heads = {}
    if head_names:
        outputs = classify_all(classifiers["standard"], train, batch_size=config.batch_size)
        heads = {
            name: train_head(
                name,
                outputs,
                train["label"],
                batch_size=config.batch_size,
                seed=seed,
                workdir=folder,
            )
            for name in head_names
        }
    return Models(
        classifiers,
        heads,
        _fit_evidence(config, dataset, classifiers["standard"]),
        valid_ranges,
        {modality: mean for modality, (_, _, mean) in summaries.items()},
    )


def make_rows(config: Config, models: Models, split: Mapping[str, Any]) -> Rows:
    """Collects what all models say of the rows of a split.

    Args:
      config: settings of the run.
      models: trained.
      split: {modality: inputs, "label": labels, "group": groups of dependent rows}.

    Returns:
      The rows.

    Raises:
      InputError: as in `check_grams`.
    """
    check_grams(config, models, len(split["label"]))
    with_grams = config.jacobian == "input"
    return rows.make_rows(models, split, batch_size=config.batch_size, with_grams=with_grams)


def check_grams(config: Config, models: Models, num_rows: int) -> None:
    """Raises InputError where the Gram matrices of so many rows take too much memory.

    Args:
      config: settings of the run.
      models: trained.
      num_rows: of a split.
    """
    kernels = [classifier.kernel for classifier in models.classifiers["standard"].values()]
    num_bytes = num_rows * max(kernel.shape[1] ** 2 * kernel.dtype.itemsize for kernel in kernels)
    if config.jacobian == "input" and num_bytes > _MAX_GRAMS:
        raise InputError(
            f"--jacobian=input takes {num_bytes / 2**30:.1f} GiB for a K x K matrix for each of "
            f"{num_rows} rows of a modality; lower --num_eval, or use --jacobian=head"
        )


def _fit_evidence(
    config: Config, dataset: MultimodalDataset, classifiers: dict[str, Classifier]
) -> Evidence:
    """What training labels and validation data tell fusion."""
    counts = np.bincount(dataset.splits["train"]["label"], minlength=dataset.num_classes)
    class_prior = jnp.asarray(counts / counts.sum(), jnp.float32)
    validation = dataset.splits["validation"]
    outputs = classify_all(classifiers, validation, batch_size=config.batch_size)
    return fit_evidence(
        {name: classifier.kernel for name, classifier in classifiers.items()},
        {name: output.logits for name, output in outputs.items()},
        validation["label"],
        class_prior,
    )
