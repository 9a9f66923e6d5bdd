"""What a run measures with one seed: parameters chosen, perturbations, every method."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.run.config import Config
from experiments.run.prepared import make_rows
from experiments.run.start import Prepared, rules_of
from experiments.run.step_folder import StepFolder
from jacfuse_jax.evaluation import selection
from jacfuse_jax.evaluation.measure import Outcomes, Row, evaluate
from jacfuse_jax.evaluation.perturb import PerturbFn, make_perturb_fn
from jacfuse_jax.evaluation.plan import Contest, Contests, make_plan
from jacfuse_jax.evaluation.selection import Score
from jacfuse_jax.evaluation.steps import run_steps
from jacfuse_jax.evaluation.threat_models import make_scenarios


class Findings(NamedTuple):
    """What one seed gave.

    Attributes:
      rows: of results.csv.
      outcomes: which rows each rule gets right in the worst case.
      scores: of the choice of parameters.
      groups: (N,), of the test rows.
    """

    rows: list[Row]
    outcomes: Outcomes
    scores: list[Score]
    groups: NDArray[np.int32]


def run_seed(config: Config, prepared: Prepared, seed: int) -> Findings:
    """Chooses parameters, perturbs and measures with one seed.

    Args:
      config: all settings.
      prepared: for this seed.
      seed: of the perturbations.

    Returns:
      What was found.
    """
    dataset, models, folder = prepared
    perturb_fn = make_perturb_fn(
        models,
        attack_steps=config.attack_steps,
        num_restarts=config.num_restarts,
        batch_size=config.batch_size,
        with_grams=config.jacobian == "input",
    )
    scenarios = make_scenarios(config.threat_models, config.perturbed, dataset.modalities)
    beliefs = list(dict.fromkeys(scenario.believed for scenario in scenarios))
    contests, scores = _contests(config, prepared, seed, beliefs, perturb_fn)
    rows = make_rows(config, models, dataset.splits["test"])
    plan = make_plan(scenarios, contests, config.perturbations)
    store = StepFolder(folder / "test")
    num_attack = config.num_attack
    run_steps(plan.steps, perturb_fn, rows, num_attack=num_attack, store=store, seed=seed)
    found = evaluate(
        plan,
        rows,
        models.evidence,
        store,
        num_attack=num_attack,
        dataset=config.dataset,
        seed=seed,
    )
    return Findings(*found, scores, rows.groups)


def _contests(
    config: Config,
    prepared: Prepared,
    seed: int,
    beliefs: list[tuple[str, ...]],
    perturb_fn: PerturbFn,
) -> tuple[Contests, list[Score]]:
    """The rules of every belief: all, or with parameters that validation data choose."""
    rules = rules_of(config, prepared.dataset.modalities)
    if not config.num_select or not any(rule.searched for rule in rules):
        return dict.fromkeys(beliefs, Contest(rules, frozenset())), []
    return selection.select(
        beliefs,
        rules,
        perturb_fn,
        make_rows(config, prepared.models, prepared.dataset.splits["validation"]),
        prepared.models.evidence,
        attack=config.select_attack,
        num_attack=config.num_select,
        max_clean_loss=config.max_clean_loss,
        store=StepFolder(prepared.folder / "validation"),
        seed=seed,
    )
