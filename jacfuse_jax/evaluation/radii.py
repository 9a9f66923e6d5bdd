"""Certified radii of a fused class in the input of one modality, and what attacks need to break it.

The classifier's Lipschitz constant, a product over its layers, turns radii of logits into radii of
inputs, in the 2-norm. PGD with one, ten and a hundred times each row's radius goes through
classifier and fusion.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jacfuse_jax import attacks, certificates, fusion
from jacfuse_jax.evaluation.evidence import Evidence
from jacfuse_jax.evaluation.models import Models
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.fusion import Contaminated, Robust, Rule, Statistical

_FACTORS = (1, 10, 100)


class Row(NamedTuple):
    """One line of radii.csv.

    Attributes:
      corrupted: the modality that moves, and that the rule believes perturbed.
      method: "statistical", "contaminated" or "robust".
      contamination: of contaminated fusion.
      gamma: of robust fusion.
      lipschitz: upper bound on the Lipschitz constant of the modality's logits.
      unlimited: share of rows that hold whatever the modality says.
      median: median radius of all other rows, in the 2-norm of the input.
      changed_1: share of these whose class PGD changes within the radius: 0, as proved.
      changed_10: within ten times the radius.
      changed_100: within a hundred times.
      num_examples: rows.
    """

    dataset: str
    seed: int
    corrupted: str
    method: str
    contamination: float | None
    gamma: float | None
    lipschitz: float
    unlimited: float
    median: float
    changed_1: float
    changed_10: float
    changed_100: float
    num_examples: int


def measure(
    dataset: str,
    models: Models,
    rows: Rows,
    corrupted: str,
    *,
    contaminations: Sequence[float],
    gammas: Sequence[float],
    attack_steps: int,
    seed: int,
) -> list[Row]:
    """Radii of statistical, contaminated and robust fusion, and PGD on them.

    Args:
      dataset: its name, for the rows.
      models: trained.
      rows: all are attacked.
      corrupted: the modality that moves.
      contaminations: of contaminated fusion.
      gammas: of robust fusion.
      attack_steps: of PGD.
      seed: of PGD and of the Lipschitz constant's bound.

    Returns:
      A row for every rule.

    Raises:
      ValueError: the classifier of the modality has no `lipschitz_fn`.
    """
    classifier = models.classifiers["standard"][corrupted]
    if classifier.lipschitz_fn is None:
        raise ValueError(f"nothing bounds the Lipschitz constant of the classifier of {corrupted}")
    key = jax.random.key(seed)
    lipschitz = float(jax.jit(classifier.lipschitz_fn)(classifier.parameters, key))
    evidence = models.evidence
    rules = [
        Statistical(),
        *(Contaminated(e) for e in contaminations),
        *(Robust(gamma) for gamma in gammas),
    ]
    logits = {m: jnp.asarray(o.logits) for m, o in rows.outputs["standard"].items()}
    inputs = jnp.asarray(rows.inputs[corrupted])
    found: list[Row] = []
    for rule in rules:
        radius = np.asarray(
            certificates.certified_radius(
                rule,
                logits,
                evidence.class_prior,
                corrupted=corrupted,
                perturbed=corrupted,
                grams=evidence.grams,
                lipschitz=lipschitz,
            )
        )
        is_limited = np.isfinite(radius)
        changed: list[float] = []
        for factor in _FACTORS:
            is_changed = _is_changed(
                classifier.logits_fn,
                corrupted,
                attack_steps,
                rule,
                evidence,
                classifier.parameters,
                inputs,
                logits,
                jnp.where(is_limited, factor * radius, 0),
                key,
            )
            of_limited = np.asarray(is_changed)[is_limited]
            changed.append(float(of_limited.mean()) if of_limited.size else 0.0)
        changed_1, changed_10, changed_100 = changed
        found.append(
            Row(
                dataset,
                seed,
                corrupted,
                rule.kind,
                rule.parameters.get("contamination"),
                rule.parameters.get("gamma"),
                lipschitz,
                1 - float(is_limited.mean()),
                float(np.median(radius[is_limited])) if is_limited.any() else np.inf,
                *(changed_1, changed_10, changed_100),
                len(inputs),
            )
        )
    return found


@partial(jax.jit, static_argnums=(0, 1, 2))
def _is_changed(
    logits_fn: Callable[..., jax.Array],
    corrupted: str,
    num_steps: int,
    rule: Rule,
    evidence: Evidence,
    parameters: Any,
    inputs: jax.Array,
    logits: dict[str, jax.Array],
    budget: jax.Array,
    key: jax.Array,
) -> jax.Array:
    radius = budget.reshape(-1, *(inputs.ndim - 1) * [1])

    def fuse(z: Mapping[str, jax.Array]) -> jax.Array:
        return fusion.fuse(rule, z, evidence.class_prior, perturbed=corrupted, grams=evidence.grams)

    def log_prob_fn(x: Mapping[str, jax.Array]) -> jax.Array:
        # The attack moves within the unit ball, so that every row has its own budget.
        z = logits_fn(parameters, inputs + radius * x["step"])
        return fuse({**logits, corrupted: z})

    clean = fuse(logits).argmax(axis=-1)
    found = attacks.pgd(
        log_prob_fn,
        {"step": jnp.zeros_like(inputs)},
        clean,
        key,
        epsilon={"step": 1.0},
        norm="l2",
        num_steps=num_steps,
        loss="margin",
    )
    return log_prob_fn(found).argmax(axis=-1) != clean
