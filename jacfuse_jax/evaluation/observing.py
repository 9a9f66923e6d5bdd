"""What all classifiers and heads say of perturbed inputs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jacfuse_jax._unimodal import UnimodalOutput
from jacfuse_jax.evaluation.evidence import Observed
from jacfuse_jax.evaluation.models import PROJECTED, Models, input_grams, input_residuals
from jacfuse_jax.evaluation.rows import Rows, observe

ObserveFn = Callable[[Mapping[str, Any], Rows], Observed]


def make_observe_fn(models: Models, *, batch_size: int, with_grams: bool) -> ObserveFn:
    """Makes the function that classifies perturbed inputs.

    Args:
      models: that classify.
      batch_size: rows at a time.
      with_grams: adds the Gram matrices of the Jacobians in the input.

    Returns:
      observe_fn(x, rows) -> `Observed` of x, {perturbed modality: (N, ...)}, with what the rows say
      of the others; in NumPy arrays.
    """
    head_parameters = {name: head.parameters for name, head in models.heads.items()}
    standard = models.classifiers["standard"]

    @partial(jax.jit, static_argnames=("regime", "modality"))
    def output_batch(
        parameters: Any, x: jax.Array, *, regime: str, modality: str
    ) -> UnimodalOutput:
        return models.classifiers[regime][modality].output_fn(parameters, x)

    @partial(jax.jit, static_argnames="modality")
    def grams_batch(parameters: Any, x: jax.Array, *, modality: str) -> jax.Array:
        return input_grams(standard[modality], parameters, x)

    heads_batch = jax.jit(
        lambda parameters, outputs: observe(models, parameters, outputs, {}, {}).heads
    )

    def observe_batch(rows: Rows) -> Observed:
        perturbed = {
            regime: {
                modality: output_batch(
                    of_regime[modality].parameters,
                    x,
                    # Regimes of training share a program, which has their parameters as data.
                    regime=PROJECTED if regime == PROJECTED else "standard",
                    modality=modality,
                )
                for modality, x in rows.inputs.items()
            }
            for regime, of_regime in models.classifiers.items()
        }
        outputs = {"standard": {**rows.outputs["standard"], **perturbed["standard"]}}
        return Observed(
            {
                regime: {modality: output.logits for modality, output in of_regime.items()}
                for regime, of_regime in perturbed.items()
            },
            heads_batch(head_parameters, outputs),
            {
                modality: grams_batch(standard[modality].parameters, x, modality=modality)
                for modality, x in rows.inputs.items()
                if with_grams
            },
            input_residuals(models.subspaces, rows.inputs, batch_size=batch_size),
        )

    def observe_all(x: Mapping[str, Any], rows: Rows) -> Observed:
        rows = rows._replace(inputs=dict(x))
        found = [observe_batch(batch) for batch in rows.batches(batch_size)]
        return concatenate(found, len(rows.labels))

    return observe_all


def concatenate(parts: Sequence[Observed], num_rows: int) -> Observed:
    """What was said of batches, in one, without the rows that the last is padded with.

    Args:
      parts: of the batches.
      num_rows: N.
    """
    return jax.tree.map(
        lambda *arrays: np.concatenate([np.asarray(array) for array in arrays])[:num_rows], *parts
    )
