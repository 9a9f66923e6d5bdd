"""Robust late fusion against perturbations of one modality, end to end.

Prepares the data, trains one classifier a modality, perturbs each modality in turn and measures
every fusion method. Writes results.csv, config.json and figures/*.png into --workdir; a run that
was killed carries on when the same command is given again.

    python -m experiments.robust_fusion --dataset=digits --workdir=runs/demo

takes about one minute on two CPU cores.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from absl import app, flags, logging

from data_pipelines import datasets
from data_pipelines.errors import DataError
from experiments import report
from experiments.classifiers import DEFAULT_NUM_EPOCHS, Classifier, train_classifiers
from experiments.config import Config, ConfigError, check_workdir, choices, write_config
from experiments.evaluation import DEFAULT_PERTURBATIONS, PERTURBATIONS, Row, evaluate
from experiments.methods import DEFAULT_METHODS, METHODS, Evidence
from jacfuse_jax.linalg import spectrum_from_kernel
from jacfuse_jax.training import CheckpointError

_DATASET = flags.DEFINE_enum("dataset", "digits", sorted(datasets.MODALITIES), "Data set.")
_MANUAL_DIR = flags.DEFINE_string(
    "manual_dir", None, "Folder with the raw files; they are downloaded where it is not given."
)
_DATA_DIR = flags.DEFINE_string("data_dir", "~/.cache/jacfuse_jax", "Folder of prepared data.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/robust_fusion", "Folder of results.")
_PERTURBED = flags.DEFINE_list("perturbed", None, "Modalities to perturb in turn; default all.")
_PERTURBATIONS = flags.DEFINE_list(
    "perturbations",
    list(DEFAULT_PERTURBATIONS),
    f"Of {','.join(PERTURBATIONS)}; those that do not apply to a modality are left out.",
)
_METHODS = flags.DEFINE_list("methods", list(DEFAULT_METHODS), f"Of {','.join(METHODS)}.")
_GAMMAS = flags.DEFINE_list("gammas", ["0.5", "0.1", "0.01"], "Of robust fusion, in (0, 1].")
_SCALES = flags.DEFINE_list("scales", ["0.5", "0.2", "0.1"], "Of scaled fusion, in [0, 1].")
_CONTAMINATIONS = flags.DEFINE_list(
    "contaminations", ["0.7", "0.3"], "Of contaminated likelihoods, in [0, 1]."
)
_TEMPERINGS = flags.DEFINE_list(
    "temperings", ["1", "0.33"], "Of contaminated likelihoods that are not recalibrated, in [0, 1]."
)
_JACOBIAN = flags.DEFINE_enum(
    "jacobian",
    "head",
    ["head", "input"],
    "What robust fusion regularises: the fused prediction's Jacobian in the features of the last "
    "linear layer, or in the input of the perturbed modality (slower: a Jacobian a sample).",
)
_NUM_TRAIN = flags.DEFINE_integer("num_train", None, "Training rows; default all.", lower_bound=1)
_NUM_EVAL = flags.DEFINE_integer("num_eval", None, "Test rows; default all.", lower_bound=1)
_NUM_ATTACK = flags.DEFINE_integer("num_attack", 2000, "Test rows to attack.", lower_bound=1)
_ATTACK_STEPS = flags.DEFINE_integer("attack_steps", 20, "Steps of PGD and APGD.", lower_bound=1)
_NUM_EPOCHS = flags.DEFINE_integer(
    "num_epochs", None, f"Training epochs; default {DEFAULT_NUM_EPOCHS}.", lower_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Rows at a time.", lower_bound=1)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of training, corruptions, attacks.", lower_bound=0, upper_bound=2**32 - 1
)

_MIN_GAMMA = float(np.finfo(np.float32).tiny)  # smaller ones are zero to the classifiers


class Prepared(NamedTuple):
    """What a run evaluates."""

    dataset: datasets.MultimodalDataset
    classifiers: dict[str, Classifier]
    evidence: Evidence


def prepare(config: Config) -> Prepared:
    """Loads the data and trains the classifiers, or restores what the working directory has.

    Args:
      config: all settings.

    Returns:
      Data, classifiers, and what fusion knows of them.

    Raises:
      DataError: raw or prepared data are missing or damaged.
      ConfigError: the working directory belongs to another run, or a flag does not fit the data.
      CheckpointError: a checkpoint in the working directory is damaged.
    """
    check_workdir(config)
    dataset = datasets.load(
        config.dataset,
        data_dir=Path(config.data_dir),
        manual_dir=None if config.manual_dir is None else Path(config.manual_dir),
        num_train=config.num_train,
        num_eval=config.num_eval,
    )
    counts = np.bincount(dataset.splits["train"]["label"], minlength=dataset.num_classes)
    if counts.min() == 0:
        raise ConfigError(
            f"--num_train={config.num_train} leaves class {counts.argmin()} without a training "
            "row; raise it"
        )
    write_config(config, wall_time_s=None)
    classifiers = train_classifiers(
        dataset,
        num_epochs=config.num_epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        workdir=Path(config.workdir),
    )
    evidence = Evidence(
        grams={name: spectrum_from_kernel(c.kernel) for name, c in classifiers.items()},
        class_prior=jnp.asarray(counts / counts.sum(), jnp.float32),
    )
    return Prepared(dataset, classifiers, evidence)


def run(config: Config) -> list[Row]:
    """Runs one experiment and writes its files.

    Args:
      config: all settings.

    Returns:
      The rows of results.csv.

    Raises:
      DataError, ConfigError, CheckpointError: as in `prepare`.
    """
    began = time.monotonic()
    workdir = Path(config.workdir)
    rows = evaluate(config, *prepare(config))
    figures = report.write_figures(rows, workdir / "figures")
    report.write_csv(rows, workdir / "results.csv")
    write_config(config, wall_time_s=round(time.monotonic() - began, 1))
    print(report.make_table(rows))
    for path in (workdir / "results.csv", workdir / "config.json", *figures):
        print(f"wrote {path}")
    return rows


def config_from_flags() -> Config:
    """Collects the flags; raises ConfigError where one does not fit."""
    modalities, chosen = datasets.MODALITIES[_DATASET.value], _PERTURBED.value
    return Config(
        dataset=_DATASET.value,
        workdir=str(Path(_WORKDIR.value).expanduser()),
        data_dir=str(Path(_DATA_DIR.value).expanduser()),
        manual_dir=_MANUAL_DIR.value and str(Path(_MANUAL_DIR.value).expanduser()),
        perturbed=choices("perturbed", modalities if chosen is None else chosen, modalities),
        perturbations=choices("perturbations", _PERTURBATIONS.value, PERTURBATIONS),
        methods=choices("methods", _METHODS.value, METHODS),
        gammas=_numbers("gammas", _GAMMAS.value, lambda x: _MIN_GAMMA <= x <= 1, "(0, 1]"),
        scales=_shares("scales", _SCALES.value),
        contaminations=_shares("contaminations", _CONTAMINATIONS.value),
        temperings=_shares("temperings", _TEMPERINGS.value),
        jacobian=_JACOBIAN.value,
        num_train=_NUM_TRAIN.value,
        num_eval=_NUM_EVAL.value,
        num_attack=_NUM_ATTACK.value,
        attack_steps=_ATTACK_STEPS.value,
        num_epochs=_NUM_EPOCHS.value or DEFAULT_NUM_EPOCHS[_DATASET.value],
        batch_size=_BATCH_SIZE.value,
        seed=_SEED.value,
    )


def _numbers(
    flag: str, texts: list[str], is_valid: Callable[[float], bool], interval: str
) -> tuple[float, ...]:
    """The numbers of a flag; raises where one does not lie in the interval."""
    numbers: list[float] = []
    for text in texts:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not is_valid(number):
            raise ConfigError(f"--{flag}: {text!r} is not a number in {interval}")
        numbers.append(number)
    if not numbers:
        raise ConfigError(f"--{flag} is empty; give numbers in {interval}")
    return tuple(dict.fromkeys(numbers))


def _shares(flag: str, texts: list[str]) -> tuple[float, ...]:
    """The numbers of a flag, all in [0, 1]."""
    return _numbers(flag, texts, lambda x: 0 <= x <= 1, "[0, 1]")


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


if __name__ == "__main__":
    signal.signal(signal.SIGINT, end_at_once)
    sys.unraisablehook = skip_cancelled_reads
    app.run(main)
