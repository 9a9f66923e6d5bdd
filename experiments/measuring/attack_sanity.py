"""What `experiments.attack_sanity` checks."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from experiments.run.start import Prepared
from jacfuse_jax import fusion, metrics
from jacfuse_jax.evaluation.evidence import Evidence
from jacfuse_jax.evaluation.gradient_sanity import check_gradients
from jacfuse_jax.evaluation.input_checks import InputCheck
from jacfuse_jax.evaluation.models import PROJECTED, Models
from jacfuse_jax.evaluation.rows import Rows, make_rows, observe
from jacfuse_jax.evaluation.rules import Unimodal, predict, regime_of
from jacfuse_jax.evaluation.sanity import Check, Subject, check_attacks
from jacfuse_jax.evaluation.subspaces import project, residual
from jacfuse_jax.evaluation.targets import STRENGTHS
from jacfuse_jax.fusion import Rule
from jacfuse_jax.models import UnimodalOutput

_NUM_QUERIES = 500


class Row(NamedTuple):
    """One line of attack_sanity.csv; `check` and the columns after it as in `Check`."""

    dataset: str
    seed: int
    perturbed: str
    target: str
    check: str
    value: float
    limit: float
    passed: bool
    detail: str


def measure(
    prepared: Prepared,
    rules: Sequence[Rule],
    *,
    perturbed: Sequence[str],
    num_attack: int,
    attack_steps: int,
    batch_size: int,
) -> list[Row]:
    """Runs all checks.

    Args:
      prepared: data and classifiers, which are attacked.
      rules: with all their parameters.
      perturbed: modalities to attack in turn.
      num_attack: test rows.
      attack_steps: of PGD.
      batch_size: rows at a time.

    Returns:
      The rows of attack_sanity.csv.
    """
    dataset, models, _, seed = prepared
    split = dataset.splits["test"]
    rows = make_rows(models, split, batch_size=batch_size, with_grams=False).first(num_attack)
    steps = [
        (modality, rule)
        for modality in perturbed
        for rule in [
            Unimodal(modality),
            *(rule for rule in rules if not isinstance(rule, Unimodal)),
        ]
    ]
    lines: list[Row] = []
    progress = tqdm(steps, disable=None)
    for modality, rule in progress:
        progress.set_description(f"{modality} attacked: {rule.label}")
        lines += [
            Row(dataset.name, seed, modality, rule.label, *check)
            for check in _check_rule(models, rows, modality, rule, attack_steps, batch_size, seed)
        ]
    return lines


def _check_rule(
    models: Models,
    rows: Rows,
    perturbed: str,
    rule: Rule,
    attack_steps: int,
    batch_size: int,
    seed: int,
) -> list[Check]:
    """All checks of one prediction on the clean rows."""
    regime = regime_of(rule)
    trusted = {name: output for name, output in rows.outputs[regime].items() if name != perturbed}
    subject = Subject(
        _make_log_prob_fn(models, regime, perturbed, rule),
        {perturbed: rows.inputs[perturbed], **_flatten(trusted)},
        rows.labels,
        perturbed,
        models.valid_ranges[perturbed],
        None if isinstance(rule, Unimodal) else _accuracy(trusted, models.evidence, rows.labels),
    )
    key = jax.random.key(seed)
    return [
        *check_attacks(
            subject,
            epsilons=STRENGTHS["pgd"],
            num_steps=attack_steps,
            num_queries=_NUM_QUERIES,
            batch_size=batch_size,
            key=key,
        ),
        *check_gradients(subject, batch_size=batch_size, key=key),
    ]


def _make_log_prob_fn(models: Models, regime: str, perturbed: str, rule: Rule) -> Any:
    """The prediction as a function of the perturbed input and what is said of the others."""
    classifier = models.classifiers[regime][perturbed]
    head_parameters = {name: head.parameters for name, head in models.heads.items()}
    subspace = models.subspaces.get(perturbed) if isinstance(rule, InputCheck) else None

    def log_prob_fn(inputs: Mapping[str, Any]) -> jax.Array:
        # In the dtype of the inputs, so that gradients can be checked in float64.
        dtype = jnp.result_type(inputs[perturbed])
        parameters, heads, evidence, arrays = jax.tree.map(
            lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            (classifier.parameters, head_parameters, models.evidence, dict(inputs)),
        )
        x = arrays.pop(perturbed)
        outputs = {perturbed: classifier.output_fn(parameters, x)}
        of_regimes, residuals = {}, {}
        if subspace is not None:
            projected = classifier.output_fn(parameters, project(subspace, x))
            of_regimes[PROJECTED] = {perturbed: projected}
            residuals[perturbed] = residual(subspace, x)
        for name in models.evidence.grams:
            if name != perturbed:
                fields = (arrays[f"{name}/{field}"] for field in UnimodalOutput._fields)
                outputs[name] = UnimodalOutput(*fields)
        of_regimes |= {"standard": outputs, regime: outputs}
        observed = observe(models, heads, of_regimes, {}, residuals)
        return predict(rule, observed, evidence=evidence, believed=(perturbed,))

    return log_prob_fn


def _flatten(outputs: Mapping[str, UnimodalOutput]) -> dict[str, NDArray[Any]]:
    """Arrays under names of their own, for batches."""
    return {
        f"{name}/{field}": np.asarray(array)
        for name, output in outputs.items()
        for field, array in output._asdict().items()
    }


def _accuracy(
    outputs: Mapping[str, UnimodalOutput], evidence: Evidence, labels: NDArray[Any]
) -> float | None:
    """Accuracy of the statistical fusion of these modalities."""
    if not outputs:
        return None
    logits = {modality: output.logits for modality, output in outputs.items()}
    log_probs = fusion.statistical_fusion(logits, evidence.class_prior)
    return metrics.finalise(metrics.classification_sums(log_probs, labels)).accuracy
