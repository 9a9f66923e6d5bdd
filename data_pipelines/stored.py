"""Columns of prepared data sets that are read from disk when their rows are asked for."""

import errno
import os
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast, overload

import numpy as np
import tensorflow_datasets as tfds
from numpy.typing import DTypeLike, NDArray
from tqdm.auto import tqdm

from data_pipelines.errors import DataError

# A whole record is in memory for every row of a chunk, whichever features are wanted.
_CHUNK_ROWS = 256


class StoredSplit:
    """Rows of one split of a prepared data set, in array_record files on disk.

    Attributes:
      features: {name: tensorflow-datasets feature}.
    """

    def __init__(self, builder: Any, split: str) -> None:
        """Opens the files.

        Args:
          builder: of tensorflow-datasets; what it builds is prepared.
          split: its name.

        Raises:
          DataError: what was prepared cannot be read any more.
        """
        self.features: Any = builder.info.features
        self._folder = Path(builder.data_dir)
        self._split = split
        with reading(self._folder, f"split {split}"):
            # TFDS would decode all features of a record; `read` decodes those that it returns.
            self._records: Any = builder.as_data_source(
                split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )

    def __len__(self) -> int:
        return len(self._records)

    def read(
        self, features: Sequence[str], rows: NDArray[np.intp], *, progress: bool = False
    ) -> dict[str, list[Any]]:
        """Reads some features of some rows.

        Args:
          features: their names.
          rows: (N,) in 0 .. len(self) - 1.
          progress: shows a progress bar where standard error is a terminal.

        Returns:
          {feature: N values}.

        Raises:
          DataError: what was prepared cannot be read any more.
        """
        wanted = {name: self.features[name] for name in features}
        parse_fn = cast(Any, tfds.features.FeaturesDict(wanted)).deserialize_example_np
        columns: dict[str, list[Any]] = {name: [] for name in features}
        with tqdm(
            total=len(rows), desc=f"Reading {self._split}", disable=None if progress else True
        ) as bar:
            for start in range(0, len(rows), _CHUNK_ROWS):
                chunk = rows[start : start + _CHUNK_ROWS].tolist()
                with reading(self._folder, f"split {self._split}"):
                    for record in self._records.__getitems__(chunk):
                        example = parse_fn(record)
                        for name, column in columns.items():
                            column.append(example[name])
                bar.update(len(chunk))
        return columns


class StoredColumn:
    """Rows of one 8-bit feature, as float32 in [0, 1], for data sets larger than memory.

    `column[rows]`, with a one-dimensional array of row numbers, reads these rows;
    `column[start:stop]` reads nothing and is a column again; `np.asarray(column)` reads all rows.

    Attributes:
      shape: (N, ...).
      dtype: float32.
    """

    def __init__(self, split: StoredSplit, feature: str, rows: NDArray[np.intp]) -> None:
        """Names the rows.

        Args:
          split: which holds them.
          feature: uint8, of a fixed shape.
          rows: (N,) numbers of the split's rows, in the order wanted.

        Raises:
          TypeError: the feature is not uint8.
        """
        if split.features[feature].np_dtype != np.uint8:
            raise TypeError(f"{feature} must be uint8, got {split.features[feature].np_dtype}")
        self._split, self._feature, self._rows = split, feature, rows
        self.shape: tuple[int, ...] = (len(rows), *split.features[feature].shape)
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: slice) -> "StoredColumn": ...
    @overload
    def __getitem__(self, index: NDArray[Any]) -> NDArray[np.float32]: ...
    def __getitem__(self, index: slice | NDArray[Any]) -> "StoredColumn | NDArray[np.float32]":
        rows = self._rows[index]
        if isinstance(index, slice):
            return StoredColumn(self._split, self._feature, rows)
        if np.ndim(rows) != 1:
            raise TypeError(f"choose rows with a slice or a one-dimensional array, got {index!r}")
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for i, value in enumerate(self._split.read([self._feature], rows)[self._feature]):
            pixels[i] = value
        return np.divide(pixels, np.float32(255), dtype=np.float32)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a StoredColumn is on disk: an array of it is always a copy")
        return self[np.arange(len(self))].astype(dtype or self.dtype, copy=False)


@contextmanager
def reading(folder: Path, part: str) -> Generator[None]:
    """Turns whatever goes wrong in the block into an error that names a prepared data set.

    Args:
      folder: of the data set.
      part: which part of it is read.

    Raises:
      DataError: the block raised something else than MemoryError.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # array_record, protobuf and TFDS raise many types
        if reason := system_failure(error):
            raise DataError(
                f"data_dir: {folder} cannot be read ({part}, {reason}); that is no fault of the"
                " data: mend it, and run again",
                "data_dir",
            ) from error
        raise DataError(
            f"data_dir: {folder} is damaged ({part}, {type(error).__name__}); remove this"
            " folder, and it is prepared again",
            "data_dir",
        ) from error


def system_failure(error: Exception) -> str | None:
    """Returns why the system could not read files that may be sound all the same.

    Args:
      error: what reading raised.

    Returns:
      What the system says, such as "Too many open files"; None if the files themselves are at
      fault: damaged, or gone.
    """
    # array_record tells of system calls in words alone: "open() failed: Too many open files; ...".
    call = re.match(r"\w+\(\) failed: ([^;]+)", str(error))
    reason = error.strerror if isinstance(error, OSError) else call and call[1]
    return None if reason == os.strerror(errno.ENOENT) else reason


Column: TypeAlias = NDArray[Any] | StoredColumn
"""Rows in memory or on disk."""


class Summary(NamedTuple):
    """What attacks and corruptions need to know of a modality's values.

    Attributes:
      low: the lowest value.
      high: the highest.
      mean: (...), over rows.
      stddev: (C,), of every channel, the last axis, over rows and all other axes.
    """

    low: float
    high: float
    mean: NDArray[np.float32]
    stddev: NDArray[np.float32]


def summarise(column: Column) -> Summary:
    """Summarises the values of a modality in one pass.

    Sums are float64, those of squares of the distance from the mean of the channel in the first
    chunk: a channel far from zero does not lose its spread to rounding.

    Args:
      column: (N, ..., C), N >= 1; read in chunks.
    """
    low, high = np.inf, -np.inf
    total = np.zeros(column.shape[1:], np.float64)
    squares, origin = np.zeros((2, column.shape[-1]), np.float64)
    for start in range(0, len(column), _CHUNK_ROWS):
        chunk = np.asarray(column[start : start + _CHUNK_ROWS])
        low, high = min(low, float(chunk.min())), max(high, float(chunk.max()))
        total += chunk.sum(axis=0, dtype=np.float64)
        if start == 0:
            origin = chunk.mean(axis=tuple(range(chunk.ndim - 1)), dtype=np.float64)
        for row in chunk:  # the whole chunk in float64 would take twice the memory
            squares += np.square(row - origin).sum(axis=tuple(range(row.ndim - 1)))
    mean = total / len(column)
    of_channel = mean.mean(axis=tuple(range(mean.ndim - 1)))
    num_values = len(column) * mean.size // len(of_channel)
    variance = squares / num_values - np.square(of_channel - origin)
    stddev = np.sqrt(np.maximum(variance, 0))
    return Summary(low, high, mean.astype(np.float32), stddev.astype(np.float32))
