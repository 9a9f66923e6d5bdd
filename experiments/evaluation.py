"""Evaluation of every perturbation, severity and method on the test split."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpy.typing import NDArray
from tqdm.auto import tqdm

from data_pipelines.datasets import MultimodalDataset
from experiments import corruptions
from experiments.classifiers import Classifier, predict_logits
from experiments.config import Config
from experiments.methods import Evidence, Method, expand_methods, fuse
from experiments.perturbations import ATTACKS, STRENGTHS, PerturbFn, make_perturb_fn
from jacfuse_jax import metrics

DEFAULT_PERTURBATIONS = ("clean", "gaussian_noise", "missing", "fgm", "pgd")
PERTURBATIONS = ("clean", *STRENGTHS)

Logits = dict[str, NDArray[Any]]

# One compilation serves all parameters of a rule.
_fuse_jitted = jax.jit(fuse, static_argnames=("rule", "perturbed"))


class Row(NamedTuple):
    """One line of results.csv; None is written as an empty field.

    Attributes:
      attack_target: what the attacker differentiated: "unimodal:<perturbed>" (a transfer attack on
        every method but that classifier itself) or the row's own method; None without an attack.
      gamma: parameter of the method, None where it has none, like the next three.
      scale: as above.
      contamination: as above.
      tempering: as above.
    """

    dataset: str
    seed: int
    perturbed: str
    perturbation: str
    severity: int
    attack_target: str | None
    method: str
    gamma: float | None
    scale: float | None
    contamination: float | None
    tempering: float | None
    accuracy: float
    ci_low: float
    ci_high: float
    nll: float
    brier: float
    ece: float
    num_examples: int


class _Scenario(NamedTuple):
    """Perturbed logits and Gram matrices, and the methods to evaluate on them."""

    perturbation: str
    severity: int
    attack_target: str | None
    methods: list[Method]
    logits: Logits
    evidence: Evidence


def evaluate(
    config: Config,
    dataset: MultimodalDataset,
    classifiers: dict[str, Classifier],
    evidence: Evidence,
) -> list[Row]:
    """Evaluates perturbed modality x perturbation x severity x method on the test split.

    Corruptions run on all test rows, where they apply to the modality. Attacks run on the first
    `config.num_attack` rows, once against the perturbed modality's own classifier (every method is
    evaluated on the outcome) and once against the fused prediction of each method, differentiated
    through the fusion.

    Args:
      config: settings of the run.
      dataset: its test split is evaluated.
      classifiers: {modality: classifier}.
      evidence: Gram matrices and class prior.

    Returns:
      One row each, in a fixed order.
    """
    methods = methods_of(config, dataset.modalities)
    test = dataset.splits["test"]
    clean_logits = {
        modality: predict_logits(classifier, test[modality], batch_size=config.batch_size)
        for modality, classifier in classifiers.items()
    }
    rows: list[Row] = []
    for perturbed in config.perturbed:
        perturb_fn = make_perturb_fn(
            classifiers[perturbed],
            evidence,
            dataset.splits["train"][perturbed],
            perturbed=perturbed,
            attack_steps=config.attack_steps,
            batch_size=config.batch_size,
            with_grams=config.jacobian == "input",
        )
        scenarios = _scenarios(config, methods, perturb_fn, perturbed, test, clean_logits, evidence)
        for scenario in scenarios:
            labels = test["label"][: len(scenario.logits[perturbed])]
            for method in scenario.methods:
                log_probs = _fuse_jitted(
                    method.rule,
                    scenario.logits,
                    scenario.evidence,
                    perturbed=perturbed,
                    parameters=method.parameters,
                )
                rows.append(_row(config, perturbed, scenario, method, log_probs, labels))
    return rows


def methods_of(config: Config, modalities: Sequence[str]) -> list[Method]:
    """The methods of a run with all their parameters.

    Args:
      config: settings of the run.
      modalities: of its data set.
    """
    return expand_methods(
        config.methods,
        modalities,
        gammas=config.gammas,
        scales=config.scales,
        contaminations=config.contaminations,
        temperings=config.temperings,
    )


def _scenarios(
    config: Config,
    methods: list[Method],
    perturb_fn: PerturbFn,
    perturbed: str,
    test: dict[str, NDArray[Any]],
    clean_logits: Logits,
    evidence: Evidence,
) -> Iterator[_Scenario]:
    """Perturbs one modality in every way asked for, behind a progress bar."""
    own = Method(f"unimodal:{perturbed}")
    fused = [method for method in methods if not method.rule.startswith("unimodal:")]
    steps = [
        (perturbation, severity, target)
        for perturbation in config.perturbations
        if perturbation not in corruptions.NAMES or corruptions.applies(perturbation, perturbed)
        for severity in ([0] if perturbation == "clean" else [1, 2, 3, 4, 5])
        for target in ([own, *fused] if perturbation in ATTACKS else [own])
    ]
    progress = tqdm(steps)
    for perturbation, severity, target in progress:
        progress.set_description(f"{perturbed} perturbed: {perturbation} {severity}")
        is_attack = perturbation in ATTACKS
        rows = slice(config.num_attack if is_attack else None)
        trusted = {name: z[rows] for name, z in clean_logits.items() if name != perturbed}
        logits, grams = perturb_fn(
            perturbation,
            severity,
            jax.random.key(config.seed),
            test[perturbed][rows],
            test["label"][rows],
            trusted,
            target,
        )
        yield _Scenario(
            perturbation,
            severity,
            target.rule if is_attack else None,
            methods if target == own else [target],
            {**trusted, perturbed: logits},
            evidence
            if grams is None
            else evidence._replace(grams={**evidence.grams, perturbed: jnp.asarray(grams)}),
        )


def _row(
    config: Config,
    perturbed: str,
    scenario: _Scenario,
    method: Method,
    log_probs: jax.Array,
    labels: NDArray[Any],
) -> Row:
    """Measures one method in one scenario."""
    sums = metrics.classification_sums(log_probs, labels)
    return Row(
        dataset=config.dataset,
        seed=config.seed,
        perturbed=perturbed,
        perturbation=scenario.perturbation,
        severity=scenario.severity,
        attack_target=scenario.attack_target,
        method=method.rule,
        **method.parameters._asdict(),
        **metrics.finalise(sums)._asdict(),
    )
