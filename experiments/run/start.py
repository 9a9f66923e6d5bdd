"""How a run starts: its data, its working directory, its classifiers, its rules."""

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from data_pipelines import datasets
from data_pipelines.catalogue import ARRAYS, base_name
from experiments.run import needs
from experiments.run.config import Config
from experiments.run.prepared import check_grams, train_models
from experiments.run.workdir import check_workdir, write_config
from jacfuse_jax.evaluation.models import Models
from jacfuse_jax.evaluation.names import ATTACKS
from jacfuse_jax.evaluation.plan import SEVERITIES, Contest, make_plan
from jacfuse_jax.evaluation.rules import LEARNED, PARAMETERS, expand
from jacfuse_jax.evaluation.selection import SHARES
from jacfuse_jax.evaluation.steps import count_programs
from jacfuse_jax.evaluation.threat_models import make_scenarios
from jacfuse_jax.evaluation.trial import unfitted_cascade
from jacfuse_jax.fusion import Rule
from jacfuse_jax.programs import InputError
from jacfuse_jax.selection import assign_folds
from jacfuse_jax.training import CheckpointError


class Prepared(NamedTuple):
    """What a run evaluates with one seed.

    Attributes:
      dataset: all splits.
      models: trained.
      folder: of this seed, below the working directory.
      seed: of training and of what follows.
    """

    dataset: datasets.MultimodalDataset
    models: Models
    folder: Path
    seed: int


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
      InputError: the working directory belongs to another run, or a flag does not fit the data.
    """
    check_workdir(config, classifiers_only=classifiers_only)
    figures = needs.figures_of(config)
    needs.check_run(
        config,
        figures,
        needs.Extent(0, 0) if classifiers_only else _extent_of(config, figures),
        computes_on_host=jax.default_backend() == "cpu",
    )
    dataset = datasets.load(
        config.dataset,
        data_dir=config.data_dir,
        manual_dir=config.manual_dir,
        num_train=config.num_train,
        num_eval=config.num_eval,
        fold=config.fold,
        max_missing=config.max_missing,
        kinds=config.kinds,
        raw_images=base_name(config.dataset) == "av_mnist" and config.attack_at == "raw",
        num_workers=config.num_workers,
    )
    counts = np.bincount(dataset.splits["train"]["label"], minlength=dataset.num_classes)
    if counts.min() == 0:
        raise InputError(
            f"--num_train={config.num_train} leaves class {counts.argmin()} without a training "
            "row; raise it"
        )
    for split in dataset.splits.values():
        if "noise_group" in split:  # what shares a recording depends, and what shares its noise
            split["group"] = np.stack([split["group"], split.pop("noise_group")], axis=1)
    _check_groups(dataset, "test", num_eval=config.num_eval, num_attack=config.num_attack)
    if config.num_select:
        _check_groups(dataset, "validation", num_select=config.num_select)
        if LEARNED in config.methods:
            _check_folds(dataset, config.num_select)
    data = _digest(dataset)
    check_workdir(config, data, classifiers_only=classifiers_only)
    if not classifiers_only or not (config.workdir / "config.json").exists():
        write_config(config, data, _device())
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
      InputError: a checkpoint in the working directory is damaged, or Gram matrices take too much
        memory.
    """
    folder = config.workdir / f"seed_{seed}"
    try:
        models = train_models(
            dataset,
            config.methods,
            num_epochs=config.num_epochs,
            batch_size=config.batch_size,
            weights=config.weights,
            seed=seed,
            folder=folder,
        )
    except CheckpointError as error:
        raise InputError(str(error)) from error
    if config.jacobian == "input":
        used = ("test", "validation") if config.num_select else ("test",)
        check_grams(models, max(len(dataset.splits[name]["label"]) for name in used))
    return Prepared(dataset, models, folder, seed)


def finish(
    config: Config, dataset: datasets.MultimodalDataset, wall_time_s: float, num_gradients: int
) -> Path:
    """Writes into config.json what a run, or the last part of one that was killed, took.

    Args:
      config: all settings.
      dataset: see `load`.
      wall_time_s: in seconds.
      num_gradients: in attacks, those of every row counted.

    Returns:
      The path written.
    """
    write_config(
        config,
        _digest(dataset),
        _device(),
        wall_time_s=round(wall_time_s, 1),
        num_gradients=num_gradients,
    )
    return config.workdir / "config.json"


def rules_of(config: Config, modalities: tuple[str, ...]) -> list[Rule]:
    """The rules of a run with all their parameters.

    Args:
      config: settings of the run.
      modalities: of its data set.

    Returns:
      The rules.

    Raises:
      InputError: a method needs more modalities.
    """
    values = {
        name: getattr(config, f"{name}s") for name in PARAMETERS if hasattr(config, f"{name}s")
    }
    try:
        return expand(config.methods, modalities, values)
    except ValueError as error:
        raise InputError(f"--methods: {error}") from error


def _check_groups(dataset: datasets.MultimodalDataset, split: str, **counts: int | None) -> None:
    """Raises InputError where the first rows, so many by flag, are of one group."""
    groups = dataset.splits[split]["group"]
    for flag, count in counts.items():
        if (groups[:count] == groups[0]).all(axis=0).any():
            count = len(groups) if count is None else count
            raise InputError(
                f"--{flag}={count}: intervals need {split} rows of two groups; raise it"
            )


def _check_folds(dataset: datasets.MultimodalDataset, num_select: int) -> None:
    """Raises InputError where attacked validation rows beside those of a fold are of one group."""
    groups = dataset.splits["validation"]["group"]
    first = groups.reshape(len(groups), -1)[:, 0]
    folds = assign_folds(len(first), groups=first)
    left = [first[:num_select][folds[:num_select] != fold] for fold in range(folds.max() + 1)]
    if min(len(np.unique(of_fold)) for of_fold in left) < 2:
        raise InputError(
            f"--num_select={num_select}: {LEARNED} is fitted in folds, each of which must leave "
            "attacked validation rows of two groups; raise it"
        )


def _extent_of(config: Config, figures: needs.Figures) -> needs.Extent:
    """What is perturbed; the first parameters stand for the best."""
    kinds = figures.kinds
    modalities = tuple(kinds)
    rules = rules_of(config, modalities)
    if LEARNED in config.methods and config.num_select:
        learned = unfitted_cascade(figures.num_classes)
        rules += [dataclasses.replace(learned, share=s) for s in (config.attack_share, *SHARES)]
    first = {rule.name: rule for rule in reversed(rules) if rule.searched}
    contest = Contest(rules, frozenset(first.values() if config.num_select else ()))
    scenarios = make_scenarios(config.threat_models, config.perturbed, modalities)
    contests = {scenario.believed: contest for scenario in scenarios}
    plan = make_plan(
        scenarios, contests, config.perturbations, kinds, num_classes=figures.num_classes
    )
    num_test = config.num_eval or figures.num_rows[2]
    num_attack = min(config.num_attack, num_test)
    num_selection_steps = len(SEVERITIES) * len(modalities) * (2 + len(contests) * len(rules))
    num_select = min(config.num_select, figures.num_rows[1])
    num_rows = num_select * num_selection_steps + sum(
        len(step.attacked) * (num_attack if step.perturbation in ATTACKS else num_test)
        for step in plan.steps
    )
    num_programs = count_programs(plan.steps, num_classes=figures.num_classes)
    return needs.Extent(num_rows, num_programs + (config.num_select > 0) * len(modalities))


def _device() -> str:
    return str(jax.devices()[0].device_kind)


def _digest(dataset: datasets.MultimodalDataset) -> str:
    """SHA-256 of labels and groups: those of other rows differ. Of one's own arrays, of all."""
    digest = hashlib.sha256()
    for split, arrays in dataset.splits.items():
        for name in ("label", "group"):
            digest.update(f"{split} {name} {len(arrays[name])}\n".encode())
            digest.update(np.asarray(arrays[name], np.int32).tobytes())
        if dataset.name == ARRAYS:  # which may be saved anew, with the same labels
            for modality in dataset.modalities:
                digest.update(f"{modality} {arrays[modality].shape}\n".encode())
                digest.update(arrays[modality])
    return digest.hexdigest()
