"""Perturbed inputs of one or several modalities, as fusion sees them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jacfuse_jax.evaluation import corruptions
from jacfuse_jax.evaluation.chains import PerturbFn, make_attack_fn
from jacfuse_jax.evaluation.evidence import Observed
from jacfuse_jax.evaluation.models import Models
from jacfuse_jax.evaluation.observing import concatenate, make_observe_fn
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.evaluation.targets import STRENGTHS, Branch, Step


def make_perturb_fn(
    models: Models,
    *,
    attack_steps: int,
    num_restarts: int,
    batch_size: int,
    with_grams: bool,
    on_gradients: Callable[[int], object] | None = None,
) -> PerturbFn:
    """Makes the function that perturbs rows and classifies them.

    Attacks of increasing budgets are one chain, see `chains.make_attack_fn`.

    Args:
      models: attacked; what they say of perturbed inputs is returned.
      attack_steps: of iterated attacks; those without gradients take 25 queries a step.
      num_restarts: starts of PGD and APGD; all but the first are random.
      batch_size: rows at a time.
      with_grams: whether fusion regularises the Jacobian in the input, whose Gram matrices are then
        returned; attacks on the fusion differentiate through them.
      on_gradients: told how many gradients an attack takes, those of every row counted, from the
        thread that perturbs; attacks without gradients take none.

    Returns:
      perturb_fn(chain, branches, key, rows, found) -> `Observed` of the perturbed rows for each
      step, in NumPy arrays: logits and grams of the perturbed modalities, and heads. A chain is one
      corruption, or attacks that differ in their severity alone, weakest first. `branches` are
      those of all steps with the same modalities and perturbation: one compiled program serves all
      of them. `found` is, for every step, what other attacks of its severity have found already.
    """
    observe_fn = make_observe_fn(models, batch_size=batch_size, with_grams=with_grams)
    attack_fn = make_attack_fn(
        models,
        observe_fn,
        attack_steps=attack_steps,
        num_restarts=num_restarts,
        batch_size=batch_size,
        with_grams=with_grams,
        on_gradients=on_gradients,
    )

    def corrupt(
        key: jax.Array, x: Mapping[str, Any], perturbation: str, strength: Any
    ) -> dict[str, jax.Array]:
        return {
            modality: corruptions.corrupt(
                perturbation,
                jax.random.fold_in(key, index),
                jnp.asarray(array),
                strength,
                valid_range=models.valid_ranges[modality],
                fill_value=models.fill_values[modality],
                stddev=models.stddevs.get(modality),
            )
            for index, (modality, array) in enumerate(x.items())
        }

    @partial(jax.jit, static_argnames=("attacked", "perturbation"))
    def corrupt_batch(
        rows: Rows, key: jax.Array, strength: float, *, attacked: tuple[str, ...], perturbation: str
    ) -> dict[str, jax.Array]:
        return corrupt(key, {m: rows.inputs[m] for m in attacked}, perturbation, strength)

    def corrupt_and_observe(step: Step, key: jax.Array, rows: Rows) -> Observed:
        attacked, perturbation = step.attacked, step.perturbation
        strength = STRENGTHS[perturbation][step.severity - 1]
        inputs = {modality: rows.inputs[modality] for modality in attacked}
        rows = rows._replace(inputs=inputs)
        if perturbation == "mismatched_pair":
            # Samples trade within the whole split, not within batches, which are padded; they trade
            # row numbers, as inputs may not fit into memory.
            numbers = np.arange(len(rows.labels), dtype=np.float32)
            traded = corrupt(key, dict.fromkeys(attacked, numbers), perturbation, strength)
            rows = rows._replace(inputs={m: np.asarray(n, np.intp) for m, n in traded.items()})
        observed: list[Observed] = []
        for index, batch in enumerate(rows.batches(batch_size)):
            if perturbation == "mismatched_pair":
                x = {m: jnp.asarray(inputs[m][batch.inputs[m]]) for m in attacked}
            else:
                x = corrupt_batch(
                    batch,
                    jax.random.fold_in(key, index),
                    strength,
                    attacked=attacked,
                    perturbation=perturbation,
                )
            observed.append(observe_fn(x, batch))
        return concatenate(observed, len(rows.labels))

    def perturb(
        chain: Sequence[Step],
        branches: tuple[Branch, ...],
        key: jax.Array,
        rows: Rows,
        found: Sequence[Sequence[Observed]],
    ) -> list[Observed]:
        if chain[0].target is None:
            return [corrupt_and_observe(step, key, rows) for step in chain]
        return attack_fn(chain, branches, key, rows, found)

    return perturb
