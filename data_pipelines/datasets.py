"""One way to load every data set."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from absl import logging
from numpy.typing import NDArray

from data_pipelines import arrays, av_mnist, digits, ravdess, vggsound
from data_pipelines.av_mnist import AvMnistConfig
from data_pipelines.catalogue import ARRAYS, KINDS, MODALITIES, base_name, config_name
from data_pipelines.errors import DataError
from data_pipelines.preparing import is_prepared, make_builder
from data_pipelines.ravdess import RavdessConfig
from data_pipelines.stored import StoredColumn, StoredSplit
from data_pipelines.vggsound import VggSound, VggSoundConfig

Splits: TypeAlias = dict[str, dict[str, Any]]
Subspaces: TypeAlias = Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
Parts: TypeAlias = dict[str, tuple[StoredSplit, NDArray[np.intp]]]

# More than a subspace of images has dimensions.
_ROWS_OF_SPAN = 1000


class MultimodalDataset(NamedTuple):
    """Rows of several modalities with one label each.

    Attributes:
      name: of the data set, as it was asked for.
      modalities: their names, in the order of `MODALITIES`; of "arrays", sorted.
      kinds: {modality: "image", "video", "spectrogram", "series" or "vector"}, see
        `catalogue.KINDS`.
      num_classes: labels are 0 .. num_classes - 1.
      splits: {"train" | "validation" | "test": {modality: (N, ...) float32, "label": (N,) int32,
        "group": (N,) int32}}. A row of a modality is a picture (H, W, 1), frames (T, H, W, 3), or
        whatever rows of "arrays" are;
        those of "ravdess" and "vggsound" are a `StoredColumn`, all else is in memory. Rows of one
        group, which has the number of its first row, are not independent of each other: they share
        a recording, an actor or a video. Splits of "av_mnist" with noise also have "noise_group",
        (N,) int32: rows of one share the clip that their noise is cut out of.
      subspaces: {modality: (a point (D,), an orthonormal basis (D, r))} of those whose rows are to
        be projected onto an affine subspace before they are classified, D entries in all; see
        `load`.
    """

    name: str
    modalities: tuple[str, ...]
    kinds: dict[str, str]
    num_classes: int
    splits: Splits
    subspaces: Subspaces = MappingProxyType({})


def load(
    name: str,
    *,
    data_dir: Path,
    manual_dir: Path | None = None,
    num_train: int | None = None,
    num_eval: int | None = None,
    fold: int = 0,
    max_missing: float = 1.0,
    kinds: Mapping[str, str] | None = None,
    raw_images: bool = False,
    num_workers: int | None = None,
    progress: bool = True,
    av_mnist_config: AvMnistConfig | None = None,
    ravdess_config: RavdessConfig = ravdess.DEFAULT_CONFIG,
    vggsound_config: VggSoundConfig = vggsound.DEFAULT_CONFIG,
) -> MultimodalDataset:
    """Loads a data set, preparing it first if need be.

    Args:
      name: one of `catalogue.NAMES`, "av_mnist/balanced" for example. "av_mnist" alone is its first
        config, "av_mnist/noisy".
      data_dir: where prepared data sets are kept; "digits" needs none.
      manual_dir: folder with the raw files; None downloads them, all but those of "vggsound".
        "digits" needs none. Of "arrays", the folder or .npz file of the arrays.
      num_train: the first so many training rows; None is all.
      num_eval: the first so many test rows; None is all. Validation rows are always all.
      fold: of "ravdess", 0 to 5: which actors are in which split; of "arrays" with folds, the one
        that is tested on.
      max_missing: share of the clips of "vggsound" that may be missing or damaged, 0 to 1.
      kinds: of "arrays", {modality: kind} where the shape does not tell it, see README.md.
      raw_images: of "av_mnist": images as they are, not reduced to 25% of their energy: classifiers
        are to reduce them, by `MultimodalDataset.subspaces`.
      num_workers: processes that decode clips of "ravdess" and "vggsound"; None is one for each CPU
        that this process may use.
      progress: shows progress bars where standard error is a terminal.
      av_mnist_config: noise, sizes, seed and raw files of "av_mnist", instead of those that the
        name chooses.
      ravdess_config: sizes of "ravdess".
      vggsound_config: sizes of "vggsound".

    Returns:
      The data set.

    Raises:
      DataError: unknown name, config or fold, fewer rows than asked for, or raw files that
        cannot be used.
    """
    config = config_name(name)
    base = base_name(name)
    if base == ARRAYS:
        return _load_arrays(manual_dir, kinds, fold, num_train, num_eval)
    actors = ravdess.split_actors(fold)  # refuses a fold that there is not
    data_dir = Path(data_dir)
    if base == "digits":
        return _dataset(name, 10, _load_digits(num_train, num_eval))
    if config is not None:
        splits, subspaces = _load_av_mnist(
            data_dir,
            manual_dir,
            num_train,
            num_eval,
            raw_images,
            progress,
            av_mnist_config or av_mnist.CONFIGS[config],
        )
        return _dataset(name, 10, splits)._replace(subspaces=subspaces)
    if base == "ravdess":
        most = ravdess.MAX_CLIPS_PER_ACTOR
        _check_counts(num_train, most * len(actors["train"]), num_eval, most * len(actors["test"]))
        builder = ravdess.prepare(
            data_dir, manual_dir, ravdess_config, num_workers=num_workers, progress=progress
        )
        parts = _ravdess_parts(builder, actors)
        return _load_stored(name, parts, "actor", num_train, num_eval, progress)
    _check_listed_counts(data_dir, manual_dir, num_train, num_eval, vggsound_config)
    builder = vggsound.prepare(
        data_dir,
        manual_dir,
        vggsound_config,
        num_workers=num_workers,
        max_missing=max_missing,
        progress=progress,
    )
    return _load_stored(name, _vggsound_parts(builder), "youtube_id", num_train, num_eval, progress)


def _dataset(name: str, num_classes: int, splits: Splits) -> MultimodalDataset:
    """Adds what is known of a data set before it is read."""
    base = base_name(name)
    return MultimodalDataset(name, MODALITIES[base], dict(KINDS[base]), num_classes, splits)


def _load_arrays(
    manual_dir: Path | None,
    kinds: Mapping[str, str] | None,
    fold: int,
    num_train: int | None,
    num_eval: int | None,
) -> MultimodalDataset:
    """Loads arrays of one's own, and says which split was drawn for them."""
    outline = arrays.peek(manual_dir, kinds=kinds, fold=fold)
    _check_counts(num_train, outline.num_rows["train"], num_eval, outline.num_rows["test"])
    if outline.labelled.note:
        logging.warning("%s", outline.labelled.note)
    return MultimodalDataset(
        ARRAYS,
        tuple(outline.kinds),
        outline.kinds,
        outline.num_classes,
        arrays.read(outline, num_train=num_train, num_eval=num_eval),
    )


def _load_digits(num_train: int | None, num_eval: int | None) -> Splits:
    """Loads the first rows of the digits."""
    splits = digits.read_splits()
    _check_counts(num_train, len(splits["train"]["label"]), num_eval, len(splits["test"]["label"]))
    counts = {"train": num_train, "validation": None, "test": num_eval}
    for columns in splits.values():
        columns["group"] = np.arange(len(columns["label"]), dtype=np.int32)
    return {
        split: {key: column[: counts[split]] for key, column in columns.items()}
        for split, columns in splits.items()
    }


def _load_av_mnist(
    data_dir: Path,
    manual_dir: Path | None,
    num_train: int | None,
    num_eval: int | None,
    raw_images: bool,
    progress: bool,
    config: AvMnistConfig,
) -> tuple[Splits, Subspaces]:
    """Prepares AV-MNIST if need be and loads its first rows, and what reduces its images."""
    # Checked before the minute that the preparation takes.
    _check_counts(num_train, config.num_train, num_eval, config.num_test)
    av_mnist.prepare(data_dir, manual_dir, config, progress=progress)
    splits: Splits = {}
    for split, count in (("train", num_train), ("validation", None), ("test", num_eval)):
        columns = av_mnist.read_split(
            data_dir, split, num_examples=count, config=config, progress=progress
        )
        splits[split] = {key: columns[key] for key in (*MODALITIES["av_mnist"], "label")}
        if raw_images:
            splits[split]["image"] = columns["raw_image"]
        splits[split]["group"] = _groups(columns["recording"])
        if config.snr_db is not None:
            splits[split]["noise_group"] = _groups(columns["noise"])
    if not raw_images:
        return splits, {}
    reduced = av_mnist.read_split(
        data_dir,
        "train",
        num_examples=min(_ROWS_OF_SPAN, config.num_train),
        config=config,
        progress=progress,
    )["image"]
    return splits, {"image": av_mnist.span(reduced)}


def _check_listed_counts(
    data_dir: Path,
    manual_dir: Path | None,
    num_train: int | None,
    num_eval: int | None,
    config: VggSoundConfig,
) -> None:
    """Refuses more rows than VGGSound's list has before hours go into decoding them."""
    listing = manual_dir and manual_dir / "vggsound.csv"
    builder = make_builder(VggSound, data_dir, config)
    if listing and listing.is_file() and not is_prepared(builder):
        splits = vggsound.split_clips(vggsound.read_clips(listing))
        _check_counts(num_train, len(splits["train"]), num_eval, len(splits["test"]))


def _ravdess_parts(builder: Any, actors_of: dict[str, tuple[int, ...]]) -> Parts:
    """Returns which rows are in which split, actors and emotions mixed."""
    rows = StoredSplit(builder, "full")
    order = np.random.default_rng(0).permutation(len(rows))
    actors = np.array(rows.read(["actor"], order)["actor"])
    return {split: (rows, order[np.isin(actors, chosen)]) for split, chosen in actors_of.items()}


def _vggsound_parts(builder: Any) -> Parts:
    """Returns all rows of all splits; they were mixed when they were written."""
    splits = {split: StoredSplit(builder, split) for split in ("train", "validation", "test")}
    return {split: (rows, np.arange(len(rows))) for split, rows in splits.items()}


def _load_stored(
    name: str,
    parts: Parts,
    group_feature: str,
    num_train: int | None,
    num_eval: int | None,
    progress: bool,
) -> MultimodalDataset:
    """Loads labels and groups of the first rows; modalities stay on disk."""
    _check_counts(num_train, len(parts["train"][1]), num_eval, len(parts["test"][1]))
    counts = {"train": num_train, "validation": None, "test": num_eval}
    splits: Splits = {}
    for split, (stored, all_rows) in parts.items():
        rows = all_rows[: counts[split]]
        columns = stored.read(["label", group_feature], rows, progress=progress)
        splits[split] = {key: StoredColumn(stored, key, rows) for key in MODALITIES[name]}
        splits[split]["label"] = np.array(columns["label"], np.int32)
        splits[split]["group"] = _groups(np.array(columns[group_feature]))
    num_classes = parts["train"][0].features["label"].num_classes
    return _dataset(name, num_classes, splits)


def _groups(values: NDArray[Any]) -> NDArray[np.int32]:
    """Returns for every row the number of the first row with the same value."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int32)


def _check_counts(
    num_train: int | None, max_train: int, num_eval: int | None, max_eval: int
) -> None:
    """Refuses numbers of rows that the data set does not have."""
    for argument, count, available in (
        ("num_train", num_train, max_train),
        ("num_eval", num_eval, max_eval),
    ):
        if count is not None and not 1 <= count <= available:
            raise DataError(
                f"{argument}={count}: choose between 1 and the {available} rows available", argument
            )
