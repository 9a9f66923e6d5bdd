"""The rows of a data set of arrays, in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.arrays.outline import Outline
from data_pipelines.arrays.splits import first_of_group
from data_pipelines.errors import DataError

_CHUNK_ROWS = 256


def read(
    outline: Outline, *, num_train: int | None = None, num_eval: int | None = None
) -> dict[str, dict[str, NDArray[Any]]]:
    """Reads all splits.

    Args:
      outline: of the data set.
      num_train: the first so many training rows; None is all.
      num_eval: the first so many test rows; None is all.

    Returns:
      {split: {modality: (n, ...) float32, "label": (n,) int32, "group": (n,) int32}}.

    Raises:
      DataError: an array is damaged, holds what is not finite, or has one value everywhere.
    """
    labelled = outline.labelled
    counts = {"train": num_train, "validation": None, "test": num_eval}
    rows = {split: numbers[: counts[split]] for split, numbers in labelled.rows.items()}
    splits: dict[str, dict[str, NDArray[Any]]] = {split: {} for split in rows}
    for modality, shape in outline.shapes.items():
        files = outline.layout.modalities[modality]
        arrays = [file.open() for file in files]
        num_bad = 0
        for split, numbers in rows.items():
            column = _gather(arrays, numbers).reshape(len(numbers), *shape)
            num_bad += _count_not_finite(column)
            splits[split][modality] = column
        label = " and ".join(map(str, files))
        if num_bad:
            raise DataError(
                f"{label}: {num_bad} entries are NaN or infinite as float32; replace them, or "
                "leave their rows out"
            )
        train = splits["train"][modality]
        if train.min() == train.max():
            raise DataError(
                f"{label}: all training rows are {train.min():g} everywhere; leave the modality out"
            )
    for split, numbers in rows.items():
        splits[split]["label"] = labelled.labels[numbers]
        splits[split]["group"] = first_of_group(labelled.groups[numbers])
    return splits


def _gather(arrays: Sequence[NDArray[Any]], rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """Rows of arrays that follow each other; no second copy of them is made."""
    gathered = np.empty((len(rows), *arrays[0].shape[1:]), np.float32)
    start = 0
    for array in arrays:
        places = np.flatnonzero((rows >= start) & (rows < start + len(array)))
        for first in range(0, len(places), _CHUNK_ROWS):
            chunk = places[first : first + _CHUNK_ROWS]
            with np.errstate(over="ignore"):  # infinite ones are counted
                gathered[chunk] = array[rows[chunk] - start]
        start += len(array)
    return gathered


def _count_not_finite(column: NDArray[np.float32]) -> int:
    """Entries that are NaN or infinite."""
    chunks = range(0, len(column), _CHUNK_ROWS)
    return sum(int((~np.isfinite(column[i : i + _CHUNK_ROWS])).sum()) for i in chunks)
