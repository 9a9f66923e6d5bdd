"""Perturbed inputs of one modality, as fusion sees them: logits and, on request, Gram matrices."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from data_pipelines.batching import iterate_batches
from experiments import corruptions
from experiments.classifiers import Classifier, input_grams
from experiments.methods import Evidence, Method, Parameters, fuse
from jacfuse_jax import attacks
from jacfuse_jax.corruptions import SEVERITIES

ATTACKS = ("fgm", "pgd", "apgd")
# The parameter at severities 1 to 5: of corruptions as graded by the library; of attacks the radius
# of the linf ball, in units of the input (range about one).
STRENGTHS: dict[str, tuple[float, ...]] = {
    **{name: SEVERITIES[name].values for name in corruptions.NAMES},
    **dict.fromkeys(ATTACKS, (0.01, 0.03, 0.1, 0.2, 0.4)),
}


class Prediction(NamedTuple):
    """What the classifier of the perturbed modality says of inputs.

    Attributes:
      logits: (N, K).
      grams: (N, K, K), of the Jacobians of the logits in the input; None where nobody asked.
    """

    logits: NDArray[Any]
    grams: NDArray[Any] | None


PerturbFn = Callable[..., Prediction]


def make_perturb_fn(
    classifier: Classifier,
    evidence: Evidence,
    training_inputs: NDArray[Any],
    *,
    perturbed: str,
    attack_steps: int,
    batch_size: int,
    with_grams: bool,
) -> PerturbFn:
    """Makes the function that perturbs inputs of one modality and classifies them.

    Args:
      classifier: of the perturbed modality.
      evidence: Gram matrices and class prior, for attacks on fused predictions.
      training_inputs: (N, H, W, C); their range bounds perturbed inputs, and their mean is what a
        missing entry reads.
      perturbed: name of the modality.
      attack_steps: of PGD and APGD.
      batch_size: samples at a time.
      with_grams: whether the fusion regularises the Jacobian in the input, whose Gram matrices are
        then returned; attacks on the fusion differentiate through them.

    Returns:
      perturb_fn(perturbation, severity, key, inputs (N, H, W, C), labels (N,), trusted_logits
      {other modality: (N, K)}, target) -> `Prediction` of the perturbed modality. `target` is the
      method whose prediction an attack differentiates; corruptions ignore it, and "clean" leaves
      the inputs as they are. One compilation serves all severities and all parameters of a method.
    """
    valid_range = (float(training_inputs.min()), float(training_inputs.max()))
    fill_value = training_inputs.mean(axis=0)
    corrupt = partial(corruptions.corrupt, valid_range=valid_range, fill_value=fill_value)

    @partial(jax.jit, static_argnames=("perturbation", "rule"))
    def perturb_batch(
        parameters: Any,
        batch: Mapping[str, jax.Array],
        key: jax.Array,
        strength: float,
        method_parameters: Parameters,
        *,
        perturbation: str,
        rule: str,
    ) -> tuple[jax.Array, jax.Array | None]:
        x = batch["inputs"]
        trusted = {name: z for name, z in batch.items() if name in evidence.grams}

        def log_prob_fn(inputs: Mapping[str, jax.Array]) -> jax.Array:
            logits = {**trusted, perturbed: classifier.logits_fn(parameters, inputs[perturbed])}
            grams = dict(evidence.grams)
            if with_grams and rule.endswith("robust"):
                grams[perturbed] = input_grams(classifier, parameters, inputs[perturbed])
            return fuse(
                rule,
                logits,
                evidence._replace(grams=grams),
                perturbed=perturbed,
                parameters=method_parameters,
            )

        if perturbation in corruptions.NAMES:
            x = corrupt(perturbation, key, x, strength)
        elif perturbation in ATTACKS:
            attack_fns = {
                "fgm": attacks.fgm,
                "pgd": partial(attacks.pgd, key=key, num_steps=attack_steps),
                "apgd": partial(attacks.apgd, key=key, num_steps=attack_steps, loss="margin"),
            }
            x = attack_fns[perturbation](
                log_prob_fn,
                {perturbed: x},
                batch["label"],
                epsilon={perturbed: strength},
                valid_range={perturbed: valid_range},
            )[perturbed]
        grams = input_grams(classifier, parameters, x) if with_grams else None
        return classifier.logits_fn(parameters, x), grams

    def perturb(
        perturbation: str,
        severity: int,
        key: jax.Array,
        inputs: NDArray[Any],
        labels: NDArray[Any],
        trusted_logits: Mapping[str, NDArray[Any]],
        target: Method,
    ) -> Prediction:
        strength = 0.0 if perturbation == "clean" else STRENGTHS[perturbation][severity - 1]
        if perturbation == "mismatched_pair":
            # Samples trade inputs within the whole split, not within batches, which are padded.
            inputs = np.asarray(corrupt(perturbation, key, jnp.asarray(inputs), strength))
            perturbation = "clean"
        arrays = {"inputs": inputs, "label": labels, **trusted_logits}
        batches = [
            perturb_batch(
                classifier.parameters,
                {name: array for name, array in batch.items() if name != "mask"},
                jax.random.fold_in(key, index),
                strength,
                target.parameters,
                perturbation=perturbation,
                rule=target.rule if perturbation in ATTACKS else "",
            )
            for index, batch in enumerate(iterate_batches(arrays, batch_size))
        ]
        logits = np.concatenate([batch_logits for batch_logits, _ in batches])
        grams = [batch_grams for _, batch_grams in batches if batch_grams is not None]
        return Prediction(
            logits[: len(inputs)], np.concatenate(grams)[: len(inputs)] if grams else None
        )

    return perturb
