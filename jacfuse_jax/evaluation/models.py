"""Trained classifiers, as functions of their parameters, and what fusion knows of them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jacfuse_jax import jacobians
from jacfuse_jax._batching import iterate_batches
from jacfuse_jax._unimodal import FusionHead, UnimodalOutput
from jacfuse_jax.evaluation.evidence import Evidence, fit_evidence
from jacfuse_jax.evaluation.subspaces import Subspace, project, residual

PROJECTED = "projected"
"""In place of a regime of training: the standard classifiers of inputs projected first."""
_residual = jax.jit(residual)


class Classifier(NamedTuple):
    """A trained classifier of one modality.

    Attributes:
      output_fn: maps (parameters, inputs (B, H, W, C)) to `UnimodalOutput`.
      parameters: pytree of its arrays.
      kernel: (H, K), of its last linear layer.
      lipschitz_fn: maps (parameters, key) to a bound on the Lipschitz constant of the logits in the
        input, in the 2-norm; None where there is none.
    """

    output_fn: Callable[[Any, jax.Array], UnimodalOutput]
    parameters: Any
    kernel: jax.Array
    lipschitz_fn: Callable[[Any, jax.Array], jax.Array] | None = None

    def logits_fn(self, parameters: Any, inputs: jax.Array) -> jax.Array:
        """Maps (parameters, inputs (B, H, W, C)) to logits (B, K)."""
        return self.output_fn(parameters, inputs).logits


class Models(NamedTuple):
    """Everything that was trained, and what fusion knows of it.

    Attributes:
      classifiers: {regime of training, or `PROJECTED`: {modality: classifier}}.
      heads: {name: trained fusion}.
      evidence: of the standard classifiers.
      valid_ranges: {modality: (low, high)} of the training inputs, which bounds perturbed ones.
      fill_values: {modality: (H, W, C)}, the mean training input, which missing entries read.
      stddevs: {modality: (C,)}, standard deviations of the channels of training inputs; needed of
        the kind "series" alone, whose corruptions are measured in them.
      subspaces: {modality: what clean inputs lie close to}, of all of them or none; needed by rules
        that check inputs, see `add_subspaces`.
    """

    classifiers: dict[str, dict[str, Classifier]]
    heads: dict[str, FusionHead]
    evidence: Evidence
    valid_ranges: dict[str, tuple[float, float]]
    fill_values: dict[str, NDArray[Any]]
    stddevs: Mapping[str, NDArray[Any]] = MappingProxyType({})
    subspaces: Mapping[str, Subspace] = MappingProxyType({})


def make_models(
    classifiers: Mapping[str, Classifier],
    arrays: Mapping[str, Any],
    labels: NDArray[Any],
    *,
    class_prior: Any = None,
    valid_ranges: Mapping[str, tuple[float, float]] | None = None,
    fill_values: Mapping[str, NDArray[Any]] | None = None,
    stddevs: Mapping[str, NDArray[Any]] | None = None,
    batch_size: int = 128,
) -> Models:
    """Makes of trained classifiers what an evaluation takes, with rows to learn about them from.

    Args:
      classifiers: {modality: classifier}.
      arrays: {modality: (N, ...)}, of rows that they were not trained on.
      labels: (N,), integer.
      class_prior: (K,), class frequencies of the training labels; None: uniform.
      valid_ranges: {modality: (low, high)} that perturbed entries stay within; None: of the rows.
      fill_values: {modality: (...)} that missing entries read; None: mean of the rows.
      stddevs: {modality: (C,)}, of every channel, the last axis; None: of the rows.
      batch_size: rows at a time.

    Returns:
      The models, without trained fusions.
    """
    outputs = classify_all(classifiers, arrays, batch_size=batch_size)
    if class_prior is None:
        num_classes = next(iter(classifiers.values())).kernel.shape[1]
        class_prior = np.full(num_classes, 1 / num_classes, np.float32)
    evidence = fit_evidence(
        {name: classifier.kernel for name, classifier in classifiers.items()},
        {name: output.logits for name, output in outputs.items()},
        labels,
        jnp.asarray(class_prior),
    )
    inputs = {name: np.asarray(arrays[name]) for name in classifiers}
    ranges = {name: (float(x.min()), float(x.max())) for name, x in inputs.items()}
    means = {name: x.mean(axis=0) for name, x in inputs.items()}
    spreads = {
        name: x.std(axis=tuple(range(x.ndim - 1)), dtype=np.float64) for name, x in inputs.items()
    }
    return Models(
        {"standard": dict(classifiers)},
        {},
        evidence,
        ranges | dict(valid_ranges or {}),
        means | dict(fill_values or {}),
        spreads | dict(stddevs or {}),
    )


def add_subspaces(models: Models, subspaces: Mapping[str, Subspace]) -> Models:
    """Models that rules which check inputs can be tried on.

    Args:
      models: see `make_models`.
      subspaces: {modality: what its clean inputs lie close to}, of all modalities.

    Returns:
      The models with the subspaces, and with their classifiers of inputs that are projected first.
    """
    projected = {
        m: _project_first(c, subspaces[m]) for m, c in models.classifiers["standard"].items()
    }
    return models._replace(
        classifiers={**models.classifiers, PROJECTED: projected}, subspaces=subspaces
    )


def _project_first(classifier: Classifier, subspace: Subspace) -> Classifier:
    """The classifier of what a subspace holds of its inputs."""
    output_fn = classifier.output_fn
    return Classifier(
        lambda parameters, x: output_fn(parameters[0], project(parameters[1], x)),
        (classifier.parameters, subspace),
        classifier.kernel,
    )


def classify(classifier: Classifier, inputs: Any, *, batch_size: int) -> UnimodalOutput:
    """Classifies inputs in batches.

    Args:
      classifier: as trained.
      inputs: (N, H, W, C), N >= 1.
      batch_size: samples at a time.

    Returns:
      `UnimodalOutput(logits (N, K), features (N, H))` of NumPy arrays.
    """
    output_fn = jax.jit(classifier.output_fn)
    outputs = [
        jax.device_get(output_fn(classifier.parameters, batch["inputs"]))
        for batch in iterate_batches({"inputs": inputs}, batch_size)
    ]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(inputs)], *outputs)


def classify_all(
    classifiers: Mapping[str, Classifier], split: Mapping[str, Any], *, batch_size: int
) -> dict[str, UnimodalOutput]:
    """Classifies the inputs of every modality, see `classify`.

    Args:
      classifiers: {modality: classifier}.
      split: {modality: inputs}, and whatever else.
      batch_size: samples at a time.
    """
    return {
        modality: classify(classifier, split[modality], batch_size=batch_size)
        for modality, classifier in classifiers.items()
    }


def input_residuals(
    subspaces: Mapping[str, Subspace], arrays: Mapping[str, Any], *, batch_size: int
) -> dict[str, NDArray[Any]]:
    """How far inputs are from what clean ones lie close to, {modality: (N,)}.

    Args:
      subspaces: of modalities; others have no residual.
      arrays: {modality: (N, ...)}, N >= 1.
      batch_size: rows at a time.
    """
    return {
        modality: np.concatenate(
            [
                np.asarray(_residual(subspaces[modality], batch["inputs"]))
                for batch in iterate_batches({"inputs": inputs}, batch_size)
            ]
        )[: len(inputs)]
        for modality, inputs in arrays.items()
        if modality in subspaces
    }


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
