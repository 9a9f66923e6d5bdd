"""What a run measures with one seed: parameters chosen, perturbations, every rule."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.run.config import Config
from experiments.run.prepared import check_grams, make_rows
from experiments.run.start import Prepared, rules_of
from experiments.run.step_folder import StepFolder
from jacfuse_jax.evaluation import selection, worst_case
from jacfuse_jax.evaluation.measure import Outcomes, Row
from jacfuse_jax.evaluation.perturb import make_perturb_fn
from jacfuse_jax.evaluation.plan import Contest, Contests
from jacfuse_jax.evaluation.selection import Score
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
    contests, scores = _contests(config, prepared, seed)
    split = dataset.splits["test"]
    check_grams(config, models, len(split["label"]))
    found = worst_case(
        models,
        {modality: split[modality] for modality in dataset.modalities},
        split["label"],
        contests,
        config.threat_models,
        kinds=dataset.kinds,
        perturbed=config.perturbed,
        perturbations=config.perturbations,
        groups=split["group"],
        num_attack=config.num_attack,
        attack_steps=config.attack_steps,
        num_restarts=config.num_restarts,
        batch_size=config.batch_size,
        with_grams=config.jacobian == "input",
        store=StepFolder(folder / "test"),
        dataset=config.dataset,
        seed=seed,
    )
    return Findings(found.rows, found.outcomes, scores, found.groups)


def _contests(config: Config, prepared: Prepared, seed: int) -> tuple[Contests, list[Score]]:
    """The rules of every belief: all, or with parameters that validation data choose."""
    dataset, models, folder = prepared
    scenarios = make_scenarios(config.threat_models, config.perturbed, dataset.modalities)
    beliefs = list(dict.fromkeys(scenario.believed for scenario in scenarios))
    rules = rules_of(config, dataset.modalities)
    if not config.num_select or not any(rule.searched for rule in rules):
        return dict.fromkeys(beliefs, Contest(rules, frozenset())), []
    perturb_fn = make_perturb_fn(
        models,
        attack_steps=config.attack_steps,
        num_restarts=config.num_restarts,
        batch_size=config.batch_size,
        with_grams=config.jacobian == "input",
    )
    return selection.select(
        beliefs,
        rules,
        perturb_fn,
        make_rows(config, models, dataset.splits["validation"]),
        models.evidence,
        attack=config.select_attack,
        num_attack=config.num_select,
        max_clean_loss=config.max_clean_loss,
        store=StepFolder(folder / "validation"),
        seed=seed,
    )
