"""What a run does: data, classifiers, perturbations, measurements, files."""

import hashlib
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from data_pipelines import datasets
from experiments import needs, report, selection
from experiments.config import Config, ConfigError
from experiments.contests import SEVERITIES, Contest, Contests, list_steps
from experiments.evaluation import Row, evaluate
from experiments.methods import Method, expand_methods
from experiments.models import Models
from experiments.names import ATTACKS, GRIDS
from experiments.perturbations import PerturbFn, make_perturb_fn
from experiments.prepared import make_rows, train_models
from experiments.report import Findings
from experiments.selection import Score
from experiments.steps import run_steps
from experiments.threat_models import make_scenarios
from experiments.workdir import check_workdir, write_config
from jacfuse_jax.training import CheckpointError


class Prepared(NamedTuple):
    """What a run evaluates with one seed.

    Attributes:
      dataset: all splits.
      models: trained.
      folder: of this seed, below the working directory.
    """

    dataset: datasets.MultimodalDataset
    models: Models
    folder: Path


def load(config: Config, *, classifiers_only: bool = False) -> datasets.MultimodalDataset:
    """Loads the data and makes the working directory that of this run.

    Args:
      config: all settings.
      classifiers_only: takes the classifiers of a run whose flags differ in what they do not depend
        on, and leaves its config.json alone.

    Returns:
      The data set.

    Raises:
      DataError: raw or prepared data are missing or damaged.
      ConfigError: the working directory belongs to another run, or a flag does not fit the data.
    """
    check_workdir(config, classifiers_only=classifiers_only)
    needs.check_run(
        config,
        0 if classifiers_only else _num_step_rows(config),
        computes_on_host=jax.default_backend() == "cpu",
    )
    dataset = datasets.load(
        config.dataset,
        data_dir=Path(config.data_dir),
        manual_dir=None if config.manual_dir is None else Path(config.manual_dir),
        num_train=config.num_train,
        num_eval=config.num_eval,
        fold=config.fold,
        max_missing=config.max_missing,
        num_workers=config.num_workers,
    )
    counts = np.bincount(dataset.splits["train"]["label"], minlength=dataset.num_classes)
    if counts.min() == 0:
        raise ConfigError(
            f"--num_train={config.num_train} leaves class {counts.argmin()} without a training "
            "row; raise it"
        )
    groups = dataset.splits["test"]["group"]
    for flag, count in (("num_eval", len(groups)), ("num_attack", config.num_attack)):
        if len(set(groups[:count].tolist())) < 2:
            raise ConfigError(f"--{flag}={count}: intervals need test rows of two groups; raise it")
    data = _digest(dataset)
    check_workdir(config, data, classifiers_only=classifiers_only)
    if not classifiers_only or not (Path(config.workdir) / "config.json").exists():
        write_config(config, data, _device(), wall_time_s=None)
    return dataset


def prepare(config: Config, dataset: datasets.MultimodalDataset, seed: int) -> Prepared:
    """Trains all models of a seed, or restores what the working directory has.

    Args:
      config: all settings.
      dataset: see `load`.
      seed: of training.

    Returns:
      Data, models and their folder.

    Raises:
      ConfigError: a checkpoint in the working directory is damaged.
    """
    folder = Path(config.workdir) / f"seed_{seed}"
    try:
        return Prepared(dataset, train_models(config, dataset, seed, folder), folder)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def run(config: Config) -> list[Row]:
    """Runs one experiment and writes its files.

    Args:
      config: all settings.

    Returns:
      The rows of results.csv.

    Raises:
      DataError, ConfigError: as in `load` and `prepare`.
    """
    began = time.monotonic()
    dataset = load(config)
    findings = {
        seed: run_seed(config, prepare(config, dataset, seed), seed)
        for seed in range(config.seed, config.seed + config.num_seeds)
    }
    paths = report.write(findings, Path(config.workdir))
    wall_time_s = round(time.monotonic() - began, 1)
    write_config(config, _digest(dataset), _device(), wall_time_s=wall_time_s)
    for path in (*paths, Path(config.workdir) / "config.json"):
        print(f"wrote {path}")
    return [row for found in findings.values() for row in found.rows]


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
    steps = folder / "test"
    run_steps(
        list_steps(config, scenarios, contests),
        perturb_fn,
        rows,
        num_attack=config.num_attack,
        folder=steps,
        seed=seed,
    )
    found = evaluate(config, seed, scenarios, contests, rows, models.evidence, steps)
    return Findings(*found, scores, rows.groups)


def methods_of(config: Config, modalities: tuple[str, ...]) -> list[Method]:
    """The methods of a run with all their parameters.

    Args:
      config: settings of the run.
      modalities: of its data set.
    """
    values = {
        "gamma": config.gammas,
        "scale": config.scales,
        "contamination": config.contaminations,
        "tempering": config.temperings,
        "confidence": config.confidences,
    }
    return expand_methods(config.methods, modalities, values)


def _num_step_rows(config: Config) -> int:
    """Rows of single modalities in the files of a seed; the first parameters stand for the best."""
    modalities = datasets.MODALITIES[config.dataset]
    methods = methods_of(config, modalities)
    first = {method.rule: method for method in reversed(methods) if method.rule in GRIDS}
    contest = Contest(methods, frozenset(first.values() if config.num_select else ()))
    scenarios = make_scenarios(config.threat_models, config.perturbed, modalities)
    steps = list_steps(config, scenarios, {s.believed: contest for s in scenarios})
    num_test = config.num_eval or needs.num_test_rows(config.dataset)
    num_attack = min(config.num_attack, num_test)
    num_selection_steps = len(SEVERITIES) * len(modalities) * (2 + len(methods))
    return config.num_select * num_selection_steps + sum(
        len(step.attacked) * (num_attack if step.perturbation in ATTACKS else num_test)
        for step in steps
    )


def _contests(
    config: Config,
    prepared: Prepared,
    seed: int,
    beliefs: list[tuple[str, ...]],
    perturb_fn: PerturbFn,
) -> tuple[Contests, list[Score]]:
    """The methods of every belief: all, or with parameters that validation data choose."""
    methods = methods_of(config, prepared.dataset.modalities)
    if not config.num_select or not any(method.rule in GRIDS for method in methods):
        return dict.fromkeys(beliefs, Contest(methods, frozenset())), []
    return selection.select(
        beliefs,
        methods,
        perturb_fn,
        make_rows(config, prepared.models, prepared.dataset.splits["validation"]),
        prepared.models.evidence,
        attack=config.select_attack,
        num_attack=config.num_select,
        max_clean_loss=config.max_clean_loss,
        folder=prepared.folder / "validation",
        seed=seed,
    )


def _device() -> str:
    return str(jax.devices()[0].device_kind)


def _digest(dataset: datasets.MultimodalDataset) -> str:
    """SHA-256 of labels and groups: those of other rows differ."""
    digest = hashlib.sha256()
    for split, arrays in dataset.splits.items():
        for name in ("label", "group"):
            digest.update(f"{split} {name} {len(arrays[name])}\n".encode())
            digest.update(np.asarray(arrays[name], np.int32).tobytes())
    return digest.hexdigest()
