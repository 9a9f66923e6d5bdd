"""Ids of rows: integers or texts, of which none occurs twice."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jacfuse_jax.predictions.parquet import Arrow
from jacfuse_jax.programs import InputError

_NUM_EXAMPLES = 3


def is_integer_or_text(column_type: Arrow) -> bool:
    """Whether entries of a type of Arrow can be ids.

    Args:
      column_type: of the column.
    """
    if pa.types.is_dictionary(column_type):
        column_type = column_type.value_type
    return (
        pa.types.is_integer(column_type)
        or pa.types.is_string(column_type)
        or pa.types.is_large_string(column_type)
        or pa.types.is_string_view(column_type)
    )


def is_distinct(batches: Iterator[Arrow]) -> bool:
    """Whether no entry is null or occurs twice; keeps 8 bytes of each, since texts may be long.

    Args:
      batches: of a column of integers or texts, none of them empty, at least one.
    """
    kept: list[NDArray[Any]] = []
    for part in batches:
        batch = part.dictionary_decode() if pa.types.is_dictionary(part.type) else part
        if batch.null_count:
            return False
        if pa.types.is_integer(batch.type):
            keys = batch.to_numpy(zero_copy_only=False)
        else:
            # Of 10 million distinct texts two have the same hash once in 400,000 times.
            keys = np.fromiter(map(hash, batch.to_pylist()), np.int64, len(batch))
        if np.unique(keys).size < keys.size:
            return False
        kept.append(keys)
    keys = np.concatenate(kept)
    keys.sort()
    return not np.any(keys[1:] == keys[:-1])


def check_ids(path: Path, name: str, ids: Arrow, *, of: str = "row") -> Arrow:
    """Ids as int64 or large_string.

    Args:
      path: of their file, for messages.
      name: of their column.
      ids: (N,).
      of: what has one each.

    Raises:
      InputError: they are of another type, some are null, or one occurs twice.
    """
    own = check_column(path, name, ids, of=of)
    counts = own.value_counts()
    repeated = np.flatnonzero(counts.field("counts").to_numpy() > 1)
    if repeated.size:
        raise InputError(
            f"{path}: {repeated.size} {name} occur more than once, "
            f"{name_some(counts.field('values'), repeated)}; give every {of} its own"
        )
    return own


def check_column(path: Path, name: str, column: Arrow, *, of: str = "row") -> Arrow:
    """A column as int64 or large_string.

    Args:
      path: of its file, for messages.
      name: of the column.
      column: (N,).
      of: what has an entry each.

    Raises:
      InputError: it is of another type, or entries are null.
    """
    try:
        own = to_integer_or_text(column)
    except pa.ArrowException as error:
        raise InputError(f"{path}: {name} are {column.type}; save int64 or text") from error
    if own.null_count:
        raise InputError(f"{path}: {own.null_count} {name} are null; give each {of} one")
    return own


def to_integer_or_text(column: Arrow) -> Arrow:
    """A column as int64 or large_string, in one piece; raises ArrowException where it is neither.

    Args:
      column: (N,).
    """
    is_integer = pa.types.is_integer(column.type)
    if pa.types.is_primitive(column.type) and not is_integer:
        raise pa.ArrowInvalid("a number or a time that may be rounded")
    own = column.cast(pa.int64() if is_integer else pa.large_string())
    return own.combine_chunks() if isinstance(own, pa.ChunkedArray) else own


def name_some(ids: Arrow, rows: NDArray[np.int64]) -> str:
    """The ids of the first of these rows, for messages.

    Args:
      ids: (N,), of Arrow, or an index of pandas.
      rows: (n,), positions.
    """
    return list_some(ids.take(rows[: _NUM_EXAMPLES + 1]).tolist())


def list_some(values: Sequence[object]) -> str:
    """The first of these, for messages.

    Args:
      values: any.
    """
    texts = [repr(value) for value in values[:_NUM_EXAMPLES]]
    return ", ".join(texts) + (", ..." if len(values) > _NUM_EXAMPLES else "")
