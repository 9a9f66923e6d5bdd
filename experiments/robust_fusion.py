"""Robust late fusion against perturbations of one modality, end to end.

Prepares the data, trains one classifier a modality, perturbs each modality in turn and measures
every fusion method. Writes results.csv, config.json and figures/*.png into --workdir; a run that
was killed carries on when the same command is given again.

    python -m experiments.robust_fusion --dataset=digits --workdir=runs/demo

takes about five minutes on two CPU cores.
"""

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from absl import app, flags, logging

from data_pipelines import datasets
from data_pipelines.errors import DataError
from experiments import report, selection
from experiments.config import Config, ConfigError, check_workdir, write_config
from experiments.contests import Contest, Contests, list_steps
from experiments.evaluation import Row, evaluate
from experiments.methods import GRIDS, Method, expand_methods
from experiments.models import Models
from experiments.perturbations import PerturbFn, make_perturb_fn
from experiments.prepared import make_rows, train_models
from experiments.report import Findings
from experiments.selection import Score
from experiments.settings import config_from_flags
from experiments.steps import run_steps
from experiments.threat_models import make_scenarios
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


def load(config: Config) -> datasets.MultimodalDataset:
    """Loads the data and claims the working directory.

    Args:
      config: all settings.

    Returns:
      The data set.

    Raises:
      DataError: raw or prepared data are missing or damaged.
      ConfigError: the working directory belongs to another run, or a flag does not fit the data.
    """
    check_workdir(config)
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
    check_workdir(config, data)
    write_config(config, data, wall_time_s=None)
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
      CheckpointError: a checkpoint in the working directory is damaged.
    """
    folder = Path(config.workdir) / f"seed_{seed}"
    return Prepared(dataset, train_models(config, dataset, seed, folder), folder)


def run(config: Config) -> list[Row]:
    """Runs one experiment and writes its files.

    Args:
      config: all settings.

    Returns:
      The rows of results.csv.

    Raises:
      DataError, ConfigError, CheckpointError: as in `load` and `prepare`.
    """
    began = time.monotonic()
    dataset = load(config)
    findings = {
        seed: run_seed(config, prepare(config, dataset, seed), seed)
        for seed in range(config.seed, config.seed + config.num_seeds)
    }
    paths = report.write(findings, Path(config.workdir))
    wall_time_s = round(time.monotonic() - began, 1)
    write_config(config, _digest(dataset), wall_time_s=wall_time_s)
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


def _digest(dataset: datasets.MultimodalDataset) -> str:
    """SHA-256 of labels and groups: those of other rows differ."""
    digest = hashlib.sha256()
    for split, arrays in dataset.splits.items():
        for name in ("label", "group"):
            digest.update(f"{split} {name} {len(arrays[name])}\n".encode())
            digest.update(np.asarray(arrays[name], np.int32).tobytes())
    return digest.hexdigest()


def end_at_once(*_: object) -> None:
    """Ends the process on Ctrl-C, as a kill would: nothing that is half done counts."""
    # An exception instead would go through the data and checkpoint libraries and their threads.
    os.write(2, b"\ninterrupted; the same command carries on\n")
    os._exit(130)


def skip_cancelled_reads(unraisable: Any) -> None:
    """Drops what orbax's threads say of reads under way when it found a damaged file.

    The error itself is raised and reaches `main`.
    """
    text = str(unraisable.exc_value)
    if not text.endswith(("Event loop is closed", "Python is likely shutting down")):
        sys.__unraisablehook__(unraisable)


def start(argv: list[str], run_fn: Callable[[Config], object]) -> None:
    """Parses flags and runs; errors of the user's end in one line and a non-zero exit.

    Args:
      argv: what absl leaves of the command line.
      run_fn: takes the settings.
    """
    if len(argv) > 1:
        sys.exit(f"error: unexpected argument {argv[1]!r}; all settings are --flags")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax reports every step of a save
    mpl.use("Agg")
    try:
        run_fn(config_from_flags())
    except (ConfigError, DataError, CheckpointError, OSError) as error:
        sys.exit(f"error: {error}")


def main(argv: list[str]) -> None:
    """Runs the experiment."""
    start(argv, run)


def launch(main_fn: Callable[[list[str]], None]) -> None:
    """Runs a binary: Ctrl-C ends it at once, and damaged checkpoints are reported once.

    Args:
      main_fn: takes what absl leaves of the command line.
    """
    signal.signal(signal.SIGINT, end_at_once)
    sys.unraisablehook = skip_cancelled_reads
    app.run(main_fn)


if __name__ == "__main__":
    launch(main)
