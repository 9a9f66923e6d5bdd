"""Rows of data with what classifiers say of them."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from jacfuse_jax._batching import iterate_batches
from jacfuse_jax._unimodal import UnimodalOutput
from jacfuse_jax.evaluation.evidence import Observed
from jacfuse_jax.evaluation.models import (
    Classifier,
    Models,
    classify_all,
    input_grams,
    input_residuals,
)

Outputs = dict[str, dict[str, UnimodalOutput]]
"""{regime of training: {modality: what its classifier says}}."""


class Rows(NamedTuple):
    """Rows of a split, clean.

    Attributes:
      inputs: {modality: (N, H, W, C)}.
      labels: (N,).
      groups: (N,), equal for rows that are not independent; or (N, G), G groupings, of which the
        widest interval counts.
      outputs: what all classifiers say.
      heads: {trained head: log-probabilities (N, K)}.
      grams: {modality: (N, K, K)}, of the Jacobians in the input; empty where nobody asked.
      residuals: {modality: (N,)}, see `subspaces.residual`; empty where no rule checks inputs.
    """

    inputs: dict[str, NDArray[Any]]
    labels: NDArray[Any]
    groups: NDArray[Any]
    outputs: Outputs
    heads: dict[str, NDArray[Any]]
    grams: dict[str, NDArray[Any]]
    residuals: dict[str, NDArray[Any]]

    def first(self, count: int) -> "Rows":
        """The first rows."""
        return jax.tree.map(lambda array: array[:count], self)

    def batches(self, batch_size: int) -> Iterator["Rows"]:
        """The rows in batches of one size, the last one padded.

        Args:
          batch_size: rows of a batch.
        """
        leaves, structure = jax.tree.flatten(self)
        arrays = {str(index): leaf for index, leaf in enumerate(leaves)}
        for batch in iterate_batches(arrays, batch_size):
            yield structure.unflatten([batch[name] for name in arrays])

    def observed(self) -> Observed:
        """What classifiers say of them, with nothing perturbed."""
        return Observed({regime: {} for regime in self.outputs}, self.heads, {}, {})


def observe(
    models: Models, parameters: Any, outputs: Outputs, grams: Any, residuals: Any
) -> Observed:
    """Collects what classifiers say, with the trained fusions of it.

    Args:
      models: of which the heads are used.
      parameters: {name of a head: its parameters}.
      outputs: {regime: {modality: output}} of all modalities, "standard" among the regimes.
      grams: passed on.
      residuals: passed on.
    """
    heads = {
        name: head.log_probs_fn(parameters[name], outputs["standard"])
        for name, head in models.heads.items()
    }
    logits = {
        regime: {modality: output.logits for modality, output in of_regime.items()}
        for regime, of_regime in outputs.items()
    }
    return Observed(logits, heads, grams, residuals)


def make_rows(
    models: Models, split: Mapping[str, Any], *, batch_size: int, with_grams: bool = False
) -> Rows:
    """Collects what all models say of the rows of a split.

    Args:
      models: trained.
      split: {modality: inputs, "label": labels, "group": groups of dependent rows}.
      batch_size: rows at a time.
      with_grams: adds the Gram matrices of the Jacobians in the input, K x K a row and modality.

    Returns:
      The rows.
    """
    outputs: Outputs = {
        regime: classify_all(of_regime, split, batch_size=batch_size)
        for regime, of_regime in models.classifiers.items()
    }
    heads = {
        name: np.asarray(jax.jit(head.log_probs_fn)(head.parameters, outputs["standard"]))
        for name, head in models.heads.items()
    }
    standard = models.classifiers["standard"]
    grams = {}
    if with_grams:
        grams = {name: _grams(c, split[name], batch_size) for name, c in standard.items()}
    inputs = {name: split[name] for name in standard}
    return Rows(
        inputs,
        split["label"],
        split["group"],
        outputs,
        heads,
        grams,
        input_residuals(models.subspaces, inputs, batch_size=batch_size),
    )


def _grams(classifier: Classifier, inputs: NDArray[Any], batch_size: int) -> NDArray[Any]:
    """Gram matrices (N, K, K) of the Jacobians of the logits in the input."""
    grams_fn = jax.jit(lambda parameters, x: input_grams(classifier, parameters, x))
    batches = iterate_batches({"inputs": inputs}, batch_size)
    grams = [np.asarray(grams_fn(classifier.parameters, batch["inputs"])) for batch in batches]
    return np.concatenate(grams)[: len(inputs)]
