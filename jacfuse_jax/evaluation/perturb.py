"""Perturbed inputs of one or several modalities, as fusion sees them."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jacfuse_jax import attacks
from jacfuse_jax._batching import iterate_batches
from jacfuse_jax._unimodal import UnimodalOutput
from jacfuse_jax.evaluation import corruptions
from jacfuse_jax.evaluation.evidence import Observed
from jacfuse_jax.evaluation.models import Models, input_grams
from jacfuse_jax.evaluation.names import L0_ATTACKS, L2_ATTACKS
from jacfuse_jax.evaluation.rows import Rows, observe
from jacfuse_jax.evaluation.rules import predict, regime_of
from jacfuse_jax.evaluation.targets import STRENGTHS, Branch, Step, branch_of

# Attacks without gradients evaluate more often than the others take steps.
_QUERIES_A_STEP = 25

PerturbFn = Callable[[Step, tuple[Branch, ...], jax.Array, Rows], Observed]


def make_perturb_fn(
    models: Models, *, attack_steps: int, num_restarts: int, batch_size: int, with_grams: bool
) -> PerturbFn:
    """Makes the function that perturbs rows and classifies them.

    Args:
      models: attacked; what they say of perturbed inputs is returned.
      attack_steps: of iterated attacks; those without gradients take 25 queries a step.
      num_restarts: random starts of PGD and APGD.
      batch_size: rows at a time.
      with_grams: whether fusion regularises the Jacobian in the input, whose Gram matrices are then
        returned; attacks on the fusion differentiate through them.

    Returns:
      perturb_fn(step, branches, key, rows) -> `Observed` of the perturbed rows, in NumPy arrays:
      logits and grams of the perturbed modalities, and heads. `branches` are those of all steps
      with the same modalities and perturbation: one compiled program serves all of them.
    """
    head_parameters = {name: head.parameters for name, head in models.heads.items()}
    standard = models.classifiers["standard"]

    def grams_of(parameters: Any, modality: str, x: jax.Array) -> jax.Array:
        return input_grams(standard[modality], parameters, x)

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
            )
            for index, (modality, array) in enumerate(x.items())
        }

    @partial(jax.jit, static_argnames=("attacked", "perturbation"))
    def corrupt_batch(
        rows: Rows, key: jax.Array, strength: float, *, attacked: tuple[str, ...], perturbation: str
    ) -> dict[str, jax.Array]:
        return corrupt(key, {m: rows.inputs[m] for m in attacked}, perturbation, strength)

    def predict_branch(
        branch: Branch, observed: Observed, numbers: tuple[jax.Array, ...]
    ) -> jax.Array:
        return predict(
            jax.tree.unflatten(branch.structure, numbers[: branch.structure.num_leaves]),
            observed,
            evidence=models.evidence,
            believed=branch.believed,
            surrogate=branch.surrogate,
        )

    @partial(jax.jit, static_argnames=("attacked", "perturbation", "branches"))
    def attack_batch(
        parameters: Mapping[str, Any],
        heads: Mapping[str, Any],
        numbers: tuple[float, ...],
        index: int,
        rows: Rows,
        key: jax.Array,
        strength: float,
        *,
        attacked: tuple[str, ...],
        perturbation: str,
        branches: tuple[Branch, ...],
    ) -> dict[str, jax.Array]:
        def log_prob_fn(inputs: Mapping[str, jax.Array]) -> jax.Array:
            outputs = dict(rows.outputs["standard"])
            grams: dict[str, Any] = dict(rows.grams)
            for modality, x in inputs.items():
                outputs[modality] = standard[modality].output_fn(parameters[modality], x)
                if with_grams:
                    grams[modality] = grams_of(parameters[modality], modality, x)
            observed = observe(models, heads, {"standard": outputs}, grams)
            return jax.lax.switch(
                index, [partial(predict_branch, branch) for branch in branches], observed, numbers
            )

        x = {modality: rows.inputs[modality] for modality in attacked}
        if perturbation in L0_ATTACKS:
            return attacks.adversarial_missing(
                log_prob_fn,
                x,
                rows.labels,
                key,
                fraction=dict.fromkeys(x, strength),
                fill_value={modality: models.fill_values[modality] for modality in x},
                num_steps=attack_steps,
            )
        return _attack_fn(perturbation, attack_steps, num_restarts)(
            log_prob_fn,
            x,
            rows.labels,
            *(() if perturbation == "fgm" else (key,)),
            epsilon=dict.fromkeys(x, strength),
            norm="l2" if perturbation in L2_ATTACKS else "linf",
            valid_range={modality: models.valid_ranges[modality] for modality in x},
        )

    @partial(jax.jit, static_argnames="modality")
    def output_batch(parameters: Any, x: jax.Array, *, modality: str) -> UnimodalOutput:
        return standard[modality].output_fn(parameters, x)

    @partial(jax.jit, static_argnames="modality")
    def grams_batch(parameters: Any, x: jax.Array, *, modality: str) -> jax.Array:
        return grams_of(parameters, modality, x)

    heads_batch = jax.jit(
        lambda parameters, outputs: observe(models, parameters, outputs, {}).heads
    )

    def observe_batch(x: Mapping[str, jax.Array], rows: Rows) -> Observed:
        """What all classifiers say of perturbed inputs."""
        perturbed = {
            regime: {
                modality: output_batch(of_regime[modality].parameters, array, modality=modality)
                for modality, array in x.items()
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
                modality: grams_batch(standard[modality].parameters, array, modality=modality)
                for modality, array in x.items()
                if with_grams
            },
        )

    def perturb(step: Step, branches: tuple[Branch, ...], key: jax.Array, rows: Rows) -> Observed:
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
        for index, batch in enumerate(_batches(rows, batch_size)):
            batch_key = jax.random.fold_in(key, index)
            if perturbation == "mismatched_pair":
                x = {m: jnp.asarray(inputs[m][batch.inputs[m]]) for m in attacked}
            elif step.target is None:
                x = corrupt_batch(
                    batch, batch_key, strength, attacked=attacked, perturbation=perturbation
                )
            else:
                rule = step.target.rule
                regime = regime_of(rule)
                numbers = jax.tree.leaves(rule)
                most = max(branch.structure.num_leaves for branch in branches)
                x = attack_batch(
                    {m: models.classifiers[regime][m].parameters for m in attacked},
                    head_parameters,
                    # As many for all of them, so that one program serves all rules.
                    (*numbers, *(1.0,) * (most - len(numbers))),
                    branches.index(branch_of(step)),
                    batch._replace(outputs={"standard": batch.outputs[regime]}),
                    batch_key,
                    strength,
                    attacked=attacked,
                    perturbation=perturbation,
                    branches=branches,
                )
            observed.append(observe_batch(x, batch))
        return jax.tree.map(
            lambda *parts: np.concatenate([np.asarray(part) for part in parts])[: len(rows.labels)],
            *observed,
        )

    return perturb


def _attack_fn(name: str, num_steps: int, num_restarts: int) -> Callable[..., dict[str, Any]]:
    """The attack of that name, to be given the prediction, inputs, labels, key and budget."""
    iterated = {"num_steps": num_steps, "num_restarts": num_restarts}
    losses = {
        "apgd_ce": "cross_entropy",
        "apgd_dlr": "dlr",
        "apgd_targeted": "targeted_dlr",
    }
    queries = {"num_queries": _QUERIES_A_STEP * num_steps}
    if name == "fgm":
        return attacks.fgm
    if name.startswith("pgd"):
        return partial(attacks.pgd, **iterated)
    if name.startswith("apgd"):
        return partial(attacks.apgd, loss=losses.get(name, "margin"), **iterated)
    if name == "hop_skip_jump":
        return partial(attacks.hop_skip_jump, num_iterations=num_steps)
    return partial(
        {"square": attacks.square, "random_search": attacks.random_search}[name], **queries
    )


def _batches(rows: Rows, batch_size: int) -> Iterator[Rows]:
    """Rows in batches of one size, the last one padded."""
    leaves, structure = jax.tree.flatten(rows)
    arrays = {str(index): leaf for index, leaf in enumerate(leaves)}
    for batch in iterate_batches(arrays, batch_size):
        yield structure.unflatten([batch[name] for name in arrays])
