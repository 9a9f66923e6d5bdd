"""The trained models of a run."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from data_pipelines.datasets import MultimodalDataset
from data_pipelines.stored import Column, summarise
from experiments.run.classifiers import train_classifiers
from jacfuse_jax.evaluation.evidence import Evidence, fit_evidence
from jacfuse_jax.evaluation.input_checks import INPUT_CHECKS
from jacfuse_jax.evaluation.models import (
    Classifier,
    Models,
    add_subspaces,
    classify_all,
)
from jacfuse_jax.evaluation.rules import HEADS, Trained
from jacfuse_jax.evaluation.subspaces import Subspace, residual
from jacfuse_jax.programs import InputError
from jacfuse_jax.training import train_head

_MAX_GRAMS = 2**32  # bytes of Gram matrices of a modality
_CHECKS = {rule.kind for rule in INPUT_CHECKS}
_MAX_ROWS = 4000  # that principal components are of
_MAX_ENTRIES = 2**26  # of these rows
_MAX_COMPONENTS = 256
_HELD_VARIANCE = 0.95
_PERCENTILE = 99.0  # of clean residuals, which pass
_ROUNDING = 1e-4  # of a float32 projection, as a share of what is projected


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
    models = Models(
        classifiers,
        heads,
        _fit_evidence(dataset, classifiers["standard"], batch_size),
        valid_ranges,
        {modality: found.mean for modality, found in summaries.items()},
        {modality: found.stddev for modality, found in summaries.items()},
    )
    if _CHECKS.isdisjoint(methods):
        return models
    validation = dataset.splits["validation"]
    return add_subspaces(
        models, {m: fit_subspace(train[m], validation[m]) for m in dataset.modalities}
    )


def fit_subspace(train: Column, validation: Column) -> Subspace:
    """The subspace of the leading principal components of training inputs.

    The fewest that hold 95% of the variance of the first training rows, 256 at most. The threshold
    is the 99th percentile of the residuals of validation rows, which are no smaller than rounding.

    Args:
      train: (N, ...), of one modality.
      validation: (N', ...).

    Returns:
      The subspace, in float32.
    """
    from sklearn.decomposition import PCA  # takes a second to load

    rows = _flat_rows(train)
    pca = PCA(min(_MAX_COMPONENTS, *rows.shape), svd_solver="randomized", random_state=0).fit(rows)
    held = np.cumsum(pca.explained_variance_ratio_)
    rank = min(int(np.searchsorted(held, _HELD_VARIANCE)) + 1, len(held))
    components = np.asarray(pca.components_, np.float32)
    subspace = Subspace(pca.mean_.astype(np.float32), components[:rank].T, 1)
    residuals = residual(subspace, jnp.asarray(_flat_rows(validation)))
    least = _ROUNDING * float(np.linalg.norm(rows, axis=1).mean())
    threshold = max(float(np.percentile(residuals, _PERCENTILE)), least)
    return subspace._replace(threshold=np.float32(threshold))


def _flat_rows(column: Column) -> NDArray[np.float32]:
    """(N, D), of the first rows."""
    num_rows = min(_MAX_ROWS, max(_MAX_ENTRIES // math.prod(column.shape[1:]), 2))
    rows = np.asarray(column[:num_rows], np.float32)
    return rows.reshape(len(rows), -1)


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
