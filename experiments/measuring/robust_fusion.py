"""What a run measures with one seed: parameters chosen, perturbations, every rule."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.run.start import Prepared
from experiments.run.step_folder import StepFolder
from jacfuse_jax.evaluation import selection, worst_case
from jacfuse_jax.evaluation.measure import Outcomes, Row
from jacfuse_jax.evaluation.perturb import make_perturb_fn
from jacfuse_jax.evaluation.plan import Contest, Contests
from jacfuse_jax.evaluation.rows import make_rows
from jacfuse_jax.evaluation.selection import BestRule, Score, Selection
from jacfuse_jax.evaluation.shuffled import Shuffled
from jacfuse_jax.evaluation.threat_models import make_scenarios
from jacfuse_jax.fusion import Rule


class Findings(NamedTuple):
    """What one seed gave.

    Attributes:
      rows: of results.csv.
      outcomes: which rows each rule gets right in the worst case.
      scores: of the choice of parameters.
      best: rules for shares of attacks.
      shuffled: what weights per sample are worth.
      groups: (N,), of the test rows.
      num_gradients: that attacks took, see `worst_case`, those that chose parameters included.
    """

    rows: list[Row]
    outcomes: Outcomes
    scores: list[Score]
    best: list[BestRule]
    shuffled: list[Shuffled]
    groups: NDArray[np.int32]
    num_gradients: int


def run_seed(
    prepared: Prepared,
    rules: list[Rule],
    threat_models: Sequence[str],
    *,
    perturbed: Sequence[str],
    perturbations: Sequence[str],
    num_attack: int,
    num_select: int,
    select_attack: str,
    attack_share: float,
    attack_steps: int,
    num_restarts: int,
    batch_size: int,
    with_grams: bool,
    num_permutations: int = 0,
    learned: bool = False,
) -> Findings:
    """Chooses parameters, perturbs and measures with one seed.

    Args:
      prepared: for this seed, which is that of the perturbations, too.
      rules: with all their parameters.
      threat_models: see `worst_case`, as what follows but for the choice.
      perturbed: modalities.
      perturbations: of `names.PERTURBATIONS`.
      num_attack: test rows.
      num_select: validation rows to attack, to choose parameters by; 0 chooses none.
      select_attack: the attack on them.
      attack_share: of inputs, see `selection.select`.
      attack_steps: of iterated attacks.
      num_restarts: of PGD and APGD.
      batch_size: rows at a time.
      with_grams: fusion regularises the Jacobian in the input.
      num_permutations: see `worst_case`.
      learned: adds learned cascades, see `selection.select`.

    Returns:
      What was found.
    """
    dataset, models, folder, seed = prepared
    validation, test = dataset.splits["validation"], dataset.splits["test"]
    scenarios = make_scenarios(threat_models, perturbed, dataset.modalities)
    beliefs = list(dict.fromkeys(scenario.believed for scenario in scenarios))
    contests: Contests = dict.fromkeys(beliefs, Contest(rules, frozenset()))
    selected = Selection({}, [], [])
    gradients: list[int] = []
    options: dict[str, Any] = {
        "attack_steps": attack_steps,
        "num_restarts": num_restarts,
        "batch_size": batch_size,
        "with_grams": with_grams,
    }
    if num_select and (learned or any(rule.searched for rule in rules)):
        selected = selection.select(
            beliefs,
            rules,
            make_perturb_fn(models, on_gradients=gradients.append, **options),
            make_rows(models, validation, batch_size=batch_size, with_grams=with_grams),
            models.evidence,
            attack=select_attack,
            num_attack=num_select,
            share=attack_share,
            store=StepFolder(folder / "validation"),
            seed=seed,
            learned=learned,
        )
        contests = selected.contests
    found = worst_case(
        models,
        {modality: test[modality] for modality in dataset.modalities},
        test["label"],
        contests,
        threat_models,
        kinds=dataset.kinds,
        perturbed=perturbed,
        perturbations=perturbations,
        groups=test["group"],
        num_attack=num_attack,
        store=StepFolder(folder / "test"),
        dataset=dataset.name,
        seed=seed,
        num_permutations=num_permutations,
        **options,
    )
    num_gradients = sum(gradients) + found.num_gradients
    return Findings(
        found.rows,
        found.outcomes,
        selected.scores,
        selected.best,
        found.shuffled,
        found.groups,
        num_gradients,
    )
