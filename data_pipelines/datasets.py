"""One way to load every data set."""

from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from data_pipelines import av_mnist, digits
from data_pipelines.av_mnist import AvMnistConfig
from data_pipelines.errors import DataError

MODALITIES: dict[str, tuple[str, ...]] = {
    "digits": ("upper", "lower"),
    "av_mnist": ("image", "audio"),
}
"""Names of the modalities of every data set; known without its data."""

Splits: TypeAlias = dict[str, dict[str, NDArray[Any]]]


class MultimodalDataset(NamedTuple):
    """Rows of several modalities with one label each.

    Attributes:
      name: of the data set.
      modalities: their names, in the order of `MODALITIES`.
      num_classes: labels are 0 .. num_classes - 1.
      splits: {"train" | "validation" | "test": {modality: (N, H, W, 1) float32, "label": (N,)
        int32, "group": (N,) int32}}. Rows of one group, which has
        the number of its first row, are not independent of each other: they share a recording.
    """

    name: str
    modalities: tuple[str, ...]
    num_classes: int
    splits: Splits


def load(
    name: str,
    *,
    data_dir: Path,
    manual_dir: Path | None = None,
    num_train: int | None = None,
    num_eval: int | None = None,
    progress: bool = True,
    av_mnist_config: AvMnistConfig = av_mnist.DEFAULT_CONFIG,
) -> MultimodalDataset:
    """Loads a data set into memory, preparing it first if need be.

    Args:
      name: a key of `MODALITIES`.
      data_dir: where prepared data sets are kept; "digits" needs none.
      manual_dir: folder with the raw files; None downloads them. "digits" needs none.
      num_train: the first so many training rows; None is all.
      num_eval: the first so many test rows; None is all. Validation rows are always all.
      progress: shows progress bars.
      av_mnist_config: sizes, seed and raw files of "av_mnist".

    Returns:
      The data set.

    Raises:
      DataError: unknown name, fewer rows than asked for, or raw files that cannot be used.
    """
    if name not in MODALITIES:
        raise DataError(f"--dataset={name}: unknown; choose from {', '.join(MODALITIES)}")
    if name == "av_mnist":
        splits = _load_av_mnist(
            Path(data_dir), manual_dir, num_train, num_eval, progress, av_mnist_config
        )
    else:
        splits = _load_digits(num_train, num_eval)
    return MultimodalDataset(name, MODALITIES[name], 10, splits)


def _load_digits(num_train: int | None, num_eval: int | None) -> Splits:
    """Loads the first rows of the digits."""
    splits = digits.read_splits()
    _check_counts(num_train, len(splits["train"]["label"]), num_eval, len(splits["test"]["label"]))
    counts = {"train": num_train, "validation": None, "test": num_eval}
    for arrays in splits.values():
        arrays["group"] = np.arange(len(arrays["label"]), dtype=np.int32)
    return {
        split: {key: array[: counts[split]] for key, array in arrays.items()}
        for split, arrays in splits.items()
    }


def _load_av_mnist(
    data_dir: Path,
    manual_dir: Path | None,
    num_train: int | None,
    num_eval: int | None,
    progress: bool,
    config: AvMnistConfig,
) -> Splits:
    """Prepares AV-MNIST if need be and loads its first rows."""
    # Checked before the minute that the preparation takes.
    _check_counts(num_train, config.num_train, num_eval, config.num_test)
    av_mnist.prepare(data_dir, manual_dir, config, progress=progress)
    splits: Splits = {}
    for split, count in (("train", num_train), ("validation", None), ("test", num_eval)):
        columns = av_mnist.read_split(
            data_dir, split, num_examples=count, config=config, progress=progress
        )
        recordings = columns["recording"]
        _, first, inverse = np.unique(recordings, return_index=True, return_inverse=True)
        splits[split] = {key: columns[key] for key in (*MODALITIES["av_mnist"], "label")}
        splits[split]["group"] = first[inverse].astype(np.int32)
    return splits


def _check_counts(
    num_train: int | None, max_train: int, num_eval: int | None, max_eval: int
) -> None:
    """Refuses numbers of rows that the data set does not have."""
    for flag, count, available in (
        ("--num_train", num_train, max_train),
        ("--num_eval", num_eval, max_eval),
    ):
        if count is not None and not 1 <= count <= available:
            raise DataError(f"{flag}={count}: choose between 1 and the {available} rows available")
