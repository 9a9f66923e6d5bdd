"""What a run takes of memory and of disks: estimated from shapes, said and checked beforehand."""

import math
from pathlib import Path
from typing import NamedTuple

from data_pipelines import arrays
from data_pipelines.catalogue import ARRAYS, KINDS, base_name
from experiments.run.config import Config
from jacfuse_jax.evaluation.chains import BATCHES_A_BLOCK
from jacfuse_jax.evaluation.rules import HEADS, Trained
from jacfuse_jax.programs.resources import check

PROCESS_BYTES = 1.5 * 2**30
"""Libraries, and the programs that they compile."""
_PROGRAM_BYTES = 0.12e9  # an attack on all targets, compiled; of AV-MNIST, --suite=standard
_REPORT_BYTES = 10e6  # tables and figures
_CLIP_BYTES = 0.41e6  # of VGGSound: decoded, and in the data set


class Figures(NamedTuple):
    """Figures of a data set and of the classifiers that are trained on it.

    Attributes:
      kinds: {modality: kind}, see `catalogue.KINDS`.
      num_rows: of training, validation and test.
      num_classes: K.
      row_bytes: of a row, all modalities.
      in_memory: whether rows are held in memory, or stay on disk.
      sample_bytes: what a training step holds for each sample of a batch, as XLA counts it on CPUs,
        for the modality that takes most.
      num_parameters: of the classifiers of all modalities.
    """

    kinds: dict[str, str]
    num_rows: tuple[int, int, int]
    num_classes: int
    row_bytes: float
    in_memory: bool
    sample_bytes: float
    num_parameters: float


class Extent(NamedTuple):
    """What one seed of a run perturbs.

    Attributes:
      num_step_rows: rows of single modalities in the files of its steps.
      num_programs: attacks that are compiled.
    """

    num_step_rows: int
    num_programs: int


_FIGURES = {
    name: Figures(KINDS[name], *figures)
    for name, figures in {
        "digits": ((1097, 200, 500), 10, 256, True, 15e3, 23e3),
        "av_mnist": ((55_000, 5000, 10_000), 10, 53_312, True, 0.3e6, 0.5e6),
        "ravdess": ((960, 240, 240), 8, 0.6e6, False, 7e6, 0.4e6),
        "vggsound": ((174_000, 9500, 15_500), 309, 0.9e6, False, 34e6, 23e6),
    }.items()
}


def figures_of(config: Config) -> Figures:
    """Figures of the data set of a run, as far as they are known beforehand.

    Args:
      config: settings of the run.

    Raises:
      DataError: it is of arrays that cannot be used.
    """
    name = base_name(config.dataset)
    if name != ARRAYS:
        return _FIGURES[name]
    outline = arrays.peek(config.manual_dir, kinds=config.kinds, fold=config.fold)
    rows, shapes = outline.num_rows, outline.shapes
    num_features = sum(
        math.prod(shapes[m]) for m, kind in outline.kinds.items() if kind == "vector"
    )
    return Figures(
        outline.kinds,
        (rows["train"], rows["validation"], rows["test"]),
        outline.num_classes,
        4 * sum(math.prod(shape) for shape in shapes.values()),
        True,
        max(_sample_bytes(kind, shapes[modality]) for modality, kind in outline.kinds.items()),
        # Of a first hidden layer; of all the others of any network; of a head.
        256 * num_features + len(shapes) * (0.17e6 + 256 * outline.num_classes),
    )


def check_run(config: Config, data: Figures, extent: Extent, *, computes_on_host: bool) -> None:
    """Says what a run of `experiments.robust_fusion` takes, and refuses what does not fit.

    Upper figures for whole data sets: fewer clips take less, and so does a run that carries on.

    Args:
      config: its settings.
      data: see `figures_of`.
      extent: what one seed perturbs.
      computes_on_host: the memory of batches is that of the host, not of an accelerator.

    Raises:
      InputError: more than is free.
    """
    num_train, num_validation, num_test = data.num_rows
    num_train, num_test = config.num_train or num_train, config.num_eval or num_test
    num_attacked = min(config.num_attack, num_test, BATCHES_A_BLOCK * config.batch_size)
    num_modalities = len(data.kinds)
    grams = data.num_classes**2 if config.jacobian == "input" else 0
    memory = (
        PROCESS_BYTES
        + computes_on_host * _PROGRAM_BYTES * extent.num_programs
        + data.row_bytes * data.in_memory * (num_train + num_validation + num_test)
        + 2 * 4 * data.row_bytes * num_attacked  # two chains, each with several of all inputs
        + computes_on_host * 2 * config.batch_size * data.sample_bytes  # two programs run at once
        + 4 * grams * num_modalities * num_test
    )
    num_regimes = 1 + sum(name in Trained.names.values() for name in config.methods)
    # Parameters and two moments; a checkpoint is removed when the next one is there.
    checkpoints = num_regimes * 2 * 3 * 4 * data.num_parameters
    num_heads = sum(name in HEADS for name in config.methods)
    row_bytes = 4 * ((num_regimes + num_heads) * data.num_classes + grams)
    steps = extent.num_step_rows * row_bytes
    folders = {config.workdir: config.num_seeds * (checkpoints + steps) + _REPORT_BYTES}
    if not (config.data_dir / config.dataset).exists():
        folders[config.data_dir] = _data_bytes(config)
    check(memory, folders, remedy="lower --batch_size, --num_train or --num_eval")


def _sample_bytes(kind: str, shape: tuple[int, ...]) -> float:
    """What a training step holds for a sample of arrays: by pixel or time, as XLA counts it."""
    if kind == "vector":
        return 8 * shape[0] + 4e3
    return 800 * shape[0] if kind == "series" else 200 * math.prod(shape[:-1])


def _data_bytes(config: Config) -> float:
    """What the preparation of a data set takes."""
    dataset = base_name(config.dataset)
    if dataset == "vggsound":
        folder = (config.manual_dir or Path()) / "clips"
        return _CLIP_BYTES * (sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0)
    published = 13e9 if dataset == "ravdess" and not config.manual_dir else 0
    return {"digits": 0, ARRAYS: 0, "av_mnist": 0.95e9, "ravdess": 0.4e9}[dataset] + published
