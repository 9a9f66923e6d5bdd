"""What is trained, and rows of data with what it says of them."""

from typing import Any, NamedTuple

import jax
from numpy.typing import NDArray

from experiments.classifiers import Classifier
from experiments.fusion_heads import FusionHead
from experiments.methods import Evidence, Observed
from jacfuse_jax.models import UnimodalOutput

Outputs = dict[str, dict[str, UnimodalOutput]]
"""{regime of training: {modality: what its classifier says}}."""


class Models(NamedTuple):
    """Everything that was trained, and what fusion knows of it.

    Attributes:
      classifiers: {regime of training: {modality: classifier}}.
      heads: {name: trained fusion}.
      evidence: of the standard classifiers.
      valid_ranges: {modality: (low, high)} of the training inputs, which bounds perturbed ones.
      fill_values: {modality: (H, W, C)}, the mean training input, which missing entries read.
    """

    classifiers: dict[str, dict[str, Classifier]]
    heads: dict[str, FusionHead]
    evidence: Evidence
    valid_ranges: dict[str, tuple[float, float]]
    fill_values: dict[str, NDArray[Any]]


class Rows(NamedTuple):
    """Rows of a split, clean.

    Attributes:
      inputs: {modality: (N, H, W, C)}.
      labels: (N,).
      groups: (N,), equal for rows that are not independent.
      outputs: what all classifiers say.
      heads: {trained head: log-probabilities (N, K)}.
      grams: {modality: (N, K, K)}, of the Jacobians in the input; empty where nobody asked.
    """

    inputs: dict[str, NDArray[Any]]
    labels: NDArray[Any]
    groups: NDArray[Any]
    outputs: Outputs
    heads: dict[str, NDArray[Any]]
    grams: dict[str, NDArray[Any]]

    def first(self, count: int) -> "Rows":
        """The first rows."""
        return jax.tree.map(lambda array: array[:count], self)

    def observed(self) -> Observed:
        """What classifiers say of them, with nothing perturbed."""
        return Observed({regime: {} for regime in self.outputs}, self.heads, {})


def observe(models: Models, parameters: Any, outputs: Outputs, grams: Any) -> Observed:
    """Collects what classifiers say, with the trained fusions of it.

    Args:
      models: of which the heads are used.
      parameters: {name of a head: its parameters}.
      outputs: {regime: {modality: output}} of all modalities, "standard" among the regimes.
      grams: passed on.
    """
    heads = {
        name: head.log_probs_fn(parameters[name], outputs["standard"])
        for name, head in models.heads.items()
    }
    logits = {
        regime: {modality: output.logits for modality, output in of_regime.items()}
        for regime, of_regime in outputs.items()
    }
    return Observed(logits, heads, grams)
