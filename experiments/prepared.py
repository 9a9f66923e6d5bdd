"""Trained models of a run, and rows of a split with all that they say of them."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from data_pipelines.batching import iterate_batches
from data_pipelines.datasets import MultimodalDataset
from data_pipelines.stored import summarise
from experiments.classifiers import Classifier, input_grams, predict, train_classifiers
from experiments.config import Config, ConfigError
from experiments.fusion_heads import train_head
from experiments.methods import Evidence
from experiments.models import Models, Outputs, Rows
from experiments.names import HEADS, REGIME_OF
from jacfuse_jax import calibration, detection, fusion
from jacfuse_jax.linalg import spectrum_from_kernel

_MAX_GRAMS = 2**32  # bytes of Gram matrices of a modality


def train_models(config: Config, dataset: MultimodalDataset, seed: int, folder: Path) -> Models:
    """Trains what the methods of a run need, or restores it.

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
    regimes = ["standard", *(REGIME_OF[m] for m in config.methods if m in REGIME_OF)]
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
        outputs = _outputs(classifiers["standard"], train, config.batch_size)
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
        _evidence(config, dataset, classifiers["standard"]),
        valid_ranges,
        {modality: mean for modality, (_, _, mean) in summaries.items()},
    )


def make_rows(config: Config, models: Models, split: dict[str, NDArray[Any]]) -> Rows:
    """Collects what all models say of the rows of a split.

    Args:
      config: settings of the run.
      models: trained.
      split: {modality: inputs, "label": labels, "group": groups of dependent rows}.

    Returns:
      The rows.
    """
    outputs: Outputs = {
        regime: _outputs(of_regime, split, config.batch_size)
        for regime, of_regime in models.classifiers.items()
    }
    heads = {
        name: np.asarray(jax.jit(head.log_probs_fn)(head.parameters, outputs["standard"]))
        for name, head in models.heads.items()
    }
    standard = models.classifiers["standard"]
    grams = {}
    if config.jacobian == "input":
        grams = {name: _grams(c, split[name], config.batch_size) for name, c in standard.items()}
    return Rows(
        {name: split[name] for name in standard},
        split["label"],
        split["group"],
        outputs,
        heads,
        grams,
    )


def _outputs(
    classifiers: dict[str, Classifier], split: dict[str, NDArray[Any]], batch_size: int
) -> dict[str, Any]:
    return {
        modality: predict(classifier, split[modality], batch_size=batch_size)
        for modality, classifier in classifiers.items()
    }


def _grams(classifier: Classifier, inputs: NDArray[Any], batch_size: int) -> NDArray[Any]:
    """Gram matrices (N, K, K) of the Jacobians of the logits in the input."""
    size = len(inputs) * classifier.kernel.shape[1] ** 2 * classifier.kernel.dtype.itemsize
    if size > _MAX_GRAMS:
        raise ConfigError(
            f"--jacobian=input takes {size / 2**30:.1f} GiB for a K x K matrix for each of "
            f"{len(inputs)} rows of a modality; lower --num_eval, or use --jacobian=head"
        )
    grams_fn = jax.jit(lambda parameters, x: input_grams(classifier, parameters, x))
    batches = iterate_batches({"inputs": inputs}, batch_size)
    grams = [np.asarray(grams_fn(classifier.parameters, batch["inputs"])) for batch in batches]
    return np.concatenate(grams)[: len(inputs)]


def _evidence(
    config: Config, dataset: MultimodalDataset, classifiers: dict[str, Classifier]
) -> Evidence:
    """What training labels and validation data tell fusion."""
    counts = np.bincount(dataset.splits["train"]["label"], minlength=dataset.num_classes)
    class_prior = jnp.asarray(counts / counts.sum(), jnp.float32)
    validation = dataset.splits["validation"]
    outputs = _outputs(classifiers, validation, config.batch_size)
    logits = {modality: output.logits for modality, output in outputs.items()}
    probs = jnp.exp(fusion.statistical_fusion(logits, class_prior))
    return Evidence(
        {name: spectrum_from_kernel(c.kernel) for name, c in classifiers.items()},
        class_prior,
        {name: calibration.fit_temperature(z, validation["label"]) for name, z in logits.items()},
        _mean_squared_jacobian(probs),
        jax.jit(detection.fit_detector)(logits, validation["label"], class_prior),
    )


def _mean_squared_jacobian(probs: jax.Array) -> jax.Array:
    """mean_b J_b^2, (K, K), of J = diag(p) - p p^T, without a K x K matrix for every row."""
    p = np.asarray(probs, np.float64)  # as terms cancel
    q = p**2
    crossed = q.T @ p
    inner = (q.sum(axis=1, keepdims=True) * p).T @ p  # p^T p times p p^T
    mean = np.diag(q.mean(axis=0)) + (inner - crossed - crossed.T) / len(p)
    return jnp.asarray(mean, probs.dtype)
