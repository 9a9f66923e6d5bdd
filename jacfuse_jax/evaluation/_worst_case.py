"""Worst-case evaluation in one call."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jacfuse_jax.evaluation import shuffled
from jacfuse_jax.evaluation.input_checks import InputCheck
from jacfuse_jax.evaluation.measure import Outcomes, Row, evaluate
from jacfuse_jax.evaluation.models import Models
from jacfuse_jax.evaluation.perturb import make_perturb_fn
from jacfuse_jax.evaluation.plan import Contest, Contests, make_plan
from jacfuse_jax.evaluation.rows import make_rows
from jacfuse_jax.evaluation.shuffled import Shuffled
from jacfuse_jax.evaluation.steps import StepStore, run_steps
from jacfuse_jax.evaluation.summary import Summary, summarise
from jacfuse_jax.evaluation.threat_models import make_scenarios
from jacfuse_jax.fusion import Rule


class WorstCase(NamedTuple):
    """What `worst_case` found.

    Attributes:
      rows: accuracy and more for every threat model, perturbed modality, perturbation, severity,
        attack target and rule; see `measure.flatten` for a table.
      outcomes: which rows each rule gets right in the worst case.
      groups: (N,) or (N, G), of the rows.
      num_gradients: that attacks took, those of every row counted, of steps not kept before.
      shuffled: what the weights are worth that rules give every sample, if that was asked for.
    """

    rows: list[Row]
    outcomes: Outcomes
    groups: NDArray[np.int32]
    num_gradients: int
    shuffled: list[Shuffled]

    def summary(self) -> list[Summary]:
        """A line for every threat model, perturbed modality and rule."""
        return summarise(self.rows, self.outcomes, self.groups)


def worst_case(
    models: Models,
    arrays: Mapping[str, Any],
    labels: NDArray[Any],
    rules: Sequence[Rule] | Contests,
    threat_models: str | Sequence[str] = "known",
    *,
    kinds: Mapping[str, str] | None = None,
    perturbed: Sequence[str] | None = None,
    perturbations: Sequence[str] = ("clean", "apgd"),
    groups: NDArray[Any] | None = None,
    num_attack: int | None = None,
    attack_steps: int = 20,
    num_restarts: int = 1,
    batch_size: int = 128,
    with_grams: bool = False,
    store: StepStore | None = None,
    dataset: str = "",
    seed: int = 0,
    num_permutations: int = 0,
) -> WorstCase:
    """Attacks and corrupts modalities, and measures every rule in the worst case.

    Attacks go through classifiers and rules: for every perturbed modality its own classifier,
    statistical fusion, every rule under every belief, and surrogates of recalibrated rules are
    attacked, and whatever any of these attacks finds is tried on every rule, with the budget it has
    and with every larger one. A rule counts as right where it withstands all of them.

    Args:
      models: see `make_models`.
      arrays: {modality: (N, ...)}, of rows that nothing was trained on.
      labels: (N,), integer.
      rules: of `jacfuse_jax.fusion` and `rules`; or {believed modalities: contest}, where they are
        not the same for all beliefs.
      threat_models: of `threat_models.THREAT_MODELS`, see `threat_models.make_scenarios`.
      kinds: {modality: "image", "video", "spectrogram" or "series"}, which have corruptions of
        their own; "vector", or none: those of any input.
      perturbed: modalities to perturb in turn; None: all.
      perturbations: of `names.PERTURBATIONS`; those that do not apply to a modality are left out.
      groups: (N,), equal for rows that are not independent, or (N, G), G groupings, of which the
        widest interval counts; None: all are.
      num_attack: attacks take the first so many rows; None: all.
      attack_steps: of iterated attacks; those without gradients take 25 queries a step.
      num_restarts: random starts of PGD and APGD.
      batch_size: rows at a time.
      with_grams: fusion regularises the Jacobian in the input, K x K a row, and not that in the
        features of the last linear layer.
      store: keeps what every step gave, so that a call that was interrupted carries on; None keeps
        it in memory while the call lasts.
      dataset: its name, for the results.
      seed: of attacks and corruptions.
      num_permutations: of rows whose weights are given to others under corruptions, see
        `shuffled.measure`; 0: that is not tested.

    Returns:
      The results.

    Raises:
      ValueError: a rule checks inputs, and the models have no subspaces.
    """
    if groups is None:
        groups = np.arange(len(labels), dtype=np.int32)
    modalities = tuple(models.classifiers["standard"])
    names = [threat_models] if isinstance(threat_models, str) else threat_models
    scenarios = make_scenarios(names, modalities if perturbed is None else perturbed, modalities)
    if not isinstance(rules, Mapping):
        contest = Contest(list(rules), frozenset())
        rules = {scenario.believed: contest for scenario in scenarios}
    for contest in rules.values():
        for rule in contest.rules:
            if isinstance(rule, InputCheck) and not models.subspaces:
                raise ValueError(f"{rule.name} checks inputs, which needs models with subspaces")
    num_classes = len(models.evidence.class_prior)
    plan = make_plan(
        scenarios,
        rules,
        perturbations,
        kinds or {},
        num_classes=num_classes,
        shapes={modality: tuple(array.shape[1:]) for modality, array in arrays.items()},
    )
    gradients: list[int] = []
    perturb_fn = make_perturb_fn(
        models,
        attack_steps=attack_steps,
        num_restarts=num_restarts,
        batch_size=batch_size,
        with_grams=with_grams,
        on_gradients=gradients.append,
    )
    split = {**arrays, "label": labels, "group": groups}
    rows = make_rows(models, split, batch_size=batch_size, with_grams=with_grams)
    store = {} if store is None else store
    num_attack = len(labels) if num_attack is None else num_attack
    run_steps(plan.steps, perturb_fn, rows, num_attack=num_attack, store=store, seed=seed)
    found = evaluate(
        plan, rows, models.evidence, store, num_attack=num_attack, dataset=dataset, seed=seed
    )
    tested: list[Shuffled] = []
    for scenario in scenarios:
        steps = [
            step
            for step in plan.steps
            if step.target is None and (step.attacked,) == scenario.alternatives
        ]
        if num_permutations and scenario.threat_model == "known" and steps:
            tested += shuffled.measure(
                seed,
                scenario.perturbed,
                rules[scenario.believed].chosen,
                [store[step] for step in steps],
                rows,
                models.evidence,
                num_permutations=num_permutations,
            )
    return WorstCase(*found, groups, sum(gradients), tested)
