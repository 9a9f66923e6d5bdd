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


class _Rule(NamedTuple):
    """A rule, and the radius (B,) that it has for logits; both take logits and its parameter."""

    method: str
    contamination: float | None
    gamma: float | None
    fuse_fn: Callable[..., jax.Array]
    radius_fn: Callable[..., jax.Array]

    @property
    def parameter(self) -> float:
        return self.gamma if self.gamma is not None else self.contamination or 0.0


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
    rules = _make_rules(models.evidence, corrupted, contaminations, gammas)
    logits = {m: jnp.asarray(o.logits) for m, o in rows.outputs["standard"].items()}
    inputs = jnp.asarray(rows.inputs[corrupted])
    found: list[Row] = []
    for rule in rules:
        radius = np.asarray(jax.jit(rule.radius_fn)(logits, rule.parameter) / lipschitz)
        is_limited = np.isfinite(radius)
        changed: list[float] = []
        for factor in _FACTORS:
            is_changed = _is_changed(
                rule.fuse_fn,
                classifier.logits_fn,
                corrupted,
                attack_steps,
                classifier.parameters,
                inputs,
                logits,
                jnp.where(is_limited, factor * radius, 0),
                key,
                rule.parameter,
            )
            of_limited = np.asarray(is_changed)[is_limited]
            changed.append(float(of_limited.mean()) if of_limited.size else 0.0)
        changed_1, changed_10, changed_100 = changed
        found.append(
            Row(
                dataset,
                seed,
                corrupted,
                rule.method,
                rule.contamination,
                rule.gamma,
                lipschitz,
                1 - float(is_limited.mean()),
                float(np.median(radius[is_limited])) if is_limited.any() else np.inf,
                *(changed_1, changed_10, changed_100),
                len(inputs),
            )
        )
    return found


def _make_rules(
    evidence: Evidence, corrupted: str, contaminations: Sequence[float], gammas: Sequence[float]
) -> list[_Rule]:
    prior = evidence.class_prior

    def fuse_contaminated(z: Mapping[str, Any], e: Any) -> jax.Array:
        return fusion.contaminated_fusion(z, prior, contamination=e, perturbed=corrupted)

    def contaminated_radius(z: Mapping[str, Any], e: Any) -> jax.Array:
        return certificates.contaminated_radius(
            z, prior, contamination=e, corrupted=corrupted, perturbed=corrupted
        )

    def fuse_robust(z: Mapping[str, Any], gamma: Any) -> jax.Array:
        fused = fusion.robust_fusion(z, evidence.grams, prior, perturbed=corrupted, gamma=gamma)
        return fused.log_probs

    def robust_radius(z: Mapping[str, Any], gamma: Any) -> jax.Array:
        return certificates.robust_radius(
            z, evidence.grams, prior, perturbed=corrupted, gamma=gamma
        )

    bounded = fuse_contaminated, contaminated_radius
    return [
        _Rule("statistical", None, None, *bounded),
        *(_Rule("contaminated", e, None, *bounded) for e in contaminations),
        *(_Rule("robust", None, gamma, fuse_robust, robust_radius) for gamma in gammas),
    ]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _is_changed(
    fuse_fn: Callable[..., jax.Array],
    logits_fn: Callable[..., jax.Array],
    corrupted: str,
    num_steps: int,
    parameters: Any,
    inputs: jax.Array,
    logits: dict[str, jax.Array],
    budget: jax.Array,
    key: jax.Array,
    parameter: Any,
) -> jax.Array:
    radius = budget.reshape(-1, *(inputs.ndim - 1) * [1])

    def log_prob_fn(x: Mapping[str, jax.Array]) -> jax.Array:
        # The attack moves within the unit ball, so that every row has its own budget.
        z = logits_fn(parameters, inputs + radius * x["step"])
        return fuse_fn({**logits, corrupted: z}, parameter)

    clean = fuse_fn(logits, parameter).argmax(axis=-1)
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
