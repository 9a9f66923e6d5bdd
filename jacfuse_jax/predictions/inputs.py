"""What classifiers of any framework predicted, in files.

A file or folder holds `logits` (N, K), or `log_probs` as `outputs` writes them, and may hold
`ids` (N,), `labels` (N,) and the last linear layer: `kernel` (H, K), torch's `weight` (K, H), or
the Gram matrix itself, `gram` (K, K). Formats are those of `arrays`, a single .npy being the
logits, and those of `parquet`: logits are a column of lists there, and are unpacked to a
temporary file.

It may also name its classes, integers or texts, each once: `class_names` says where. Logits, the
last layer and labels are then in the order of these, and are aligned with those of other inputs;
labels may be such names.

Where there are no `ids`, any other column of integers or texts of which none occurs twice may be
meant: rows that belong together are then found by it, if all inputs have it.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jacfuse_jax.predictions.arrays import list_arrays, open_arrays
from jacfuse_jax.predictions.classes import Alignment
from jacfuse_jax.predictions.ids import (
    check_column,
    check_ids,
    is_distinct,
    is_integer_or_text,
)
from jacfuse_jax.predictions.labels import check_positions, place_labels
from jacfuse_jax.predictions.layers import HEADS
from jacfuse_jax.predictions.npy import (
    ArrayOnDisk,
    ScratchFn,
    Shaped,
    check_floating,
    not_whole,
)
from jacfuse_jax.predictions.parquet import (
    Arrow,
    is_table,
    open_table,
    pandas_index,
    read_column,
    unpack_lists,
)
from jacfuse_jax.programs import InputError

# Never taken for ids.
RESERVED = ("logits", "log_probs", "labels", "classes", "class_prior", *HEADS)
_COLUMN_ROWS = 2**16  # of an array in memory at a time


class Names(NamedTuple):
    """What arrays and columns are called; None: as the module says.

    Attributes:
      logits: of the logits.
      ids: of the ids.
      labels: of the labels.
      groups: of what rows have in common; None: of nothing.
      by_position: whether ids are not looked for.
    """

    logits: str | None = None
    ids: str | None = None
    labels: str | None = None
    groups: str | None = None
    by_position: bool = False


DEFAULT_NAMES = Names()


class Predictions(NamedTuple):
    """What a classifier predicted.

    Attributes:
      path: of the file or folder.
      logits: (N, K), floating.
      ids: (N,), int64 or large_string, each once; None where none are named.
      ids_name: of their column.
      candidates: {column: reads it as ids}; empty where there are ids.
      labels: (N,), classes of the output, -1 where that is left out; None where there are none.
      groups: (N,), int64 or large_string, what rows have in common; None where none is named.
      heads: those of `HEADS` that the file holds.
      unused: what else it holds, candidates included.
      places: (K,), where classes of the output are among its own, -1 where they are not; None: they
        are alike.
      remarks: a line for whatever was done to the labels.
    """

    path: Path
    logits: ArrayOnDisk
    ids: Arrow | None
    ids_name: str | None
    candidates: dict[str, Callable[[], Arrow]]
    labels: NDArray[np.int64] | None
    groups: Arrow | None
    heads: dict[str, ArrayOnDisk]
    unused: list[str]
    places: NDArray[np.int64] | None
    remarks: list[str]

    @property
    def num_classes(self) -> int:
        """Those of the output."""
        return self.logits.shape[1] if self.places is None else len(self.places)


class _Opened(NamedTuple):
    """A file of either kind: names, logits and heads in it, and what reads its columns."""

    names: list[str]
    may_be_ids: list[str]
    index_names: list[str]
    logits_name: str
    logits: ArrayOnDisk
    heads: dict[str, ArrayOnDisk]
    read_fn: Callable[[str], Iterator[Arrow]]


def open_predictions(
    path: Path,
    *,
    scratch_fn: ScratchFn,
    names: Names = DEFAULT_NAMES,
    classes: Alignment | None = None,
) -> Predictions:
    """Opens what a classifier predicted; logits stay on disk.

    Args:
      path: of the file or folder.
      scratch_fn: makes temporary files for what cannot be read in place.
      names: of what it holds.
      classes: of all inputs, this one among them; None where they have no names.

    Raises:
      InputError: there is no such file, it is damaged, or what it holds does not fit together.
    """
    opened = (_open_table if is_table(path) else _open_arrays)(path, names, scratch_fn)
    logits = opened.logits
    if len(logits.shape) != 2 or logits.shape[1] < 2:
        raise InputError(f"{logits.name} has shape {logits.shape}, not (N, K) of K >= 2 classes")
    check_floating(logits)
    num_rows, num_classes = logits.shape
    if names.labels is None and "label" in opened.names:
        raise InputError(
            f"{path} holds `label`; name it `labels`, give --labels_column=label, or leave it out"
        )
    if names.ids and names.ids not in opened.names:
        raise _lacks(path, names.ids, opened.names, "--ids_column")

    def read(name: str) -> Arrow:
        column = pa.chunked_array(list(opened.read_fn(name)))
        if len(column) != num_rows:
            raise InputError(f"{path}: {num_rows} rows of logits, but {len(column)} {name}")
        return column

    def read_ids(name: str) -> Arrow:
        return check_ids(path, name, read(name))

    ids_name = names.ids or ("ids" if "ids" in opened.names else None)
    labels_name = names.labels or "labels"
    candidates: list[str] = []
    if names.by_position:
        ids_name = None
    elif ids_name is None:
        candidates = _candidates(path, opened, {labels_name, names.groups})
    used = {opened.logits_name, ids_name, labels_name, names.groups, "class_prior", *opened.heads}
    places = labels = None
    remarks: list[str] = []
    if labels_name in opened.names:
        source, column = f"{path}: {labels_name}", read(labels_name)
        if classes is None:
            labels = check_positions(source, column, num_classes)
        else:
            labels, remarks = place_labels(source, column, classes.own[str(path)], classes)
    if classes is not None:
        used.add("classes")
        own = classes.own[str(path)]
        places = None if own == classes.names else classes.places(own)
    return Predictions(
        path=path,
        logits=logits,
        ids=None if ids_name is None else read_ids(ids_name),
        ids_name=ids_name,
        candidates={name: functools.partial(read_ids, name) for name in candidates},
        labels=labels,
        groups=(
            check_column(path, names.groups, read(names.groups))
            if names.groups and names.groups in opened.names
            else None
        ),
        heads=opened.heads,
        unused=[name for name in opened.names if name not in used],
        places=places,
        remarks=remarks,
    )


def _open_arrays(path: Path, names: Names, scratch_fn: ScratchFn) -> _Opened:
    """A file or folder of arrays."""
    bare = names.logits or "logits"
    shaped = list_arrays(path, bare=bare)
    open_fn = functools.partial(open_arrays, path, bare=bare, scratch_fn=scratch_fn)
    logits_name = find_logits(path, list(shaped), names)
    arrays = open_fn([logits_name, *HEADS])
    logits = arrays[logits_name]
    return _Opened(
        names=list(shaped),
        may_be_ids=list(columns_of(shaped, logits.shape[0])),
        index_names=[],
        logits_name=logits_name,
        logits=logits,
        heads={name: arrays[name] for name in HEADS if name in arrays},
        read_fn=lambda name: read_array(open_fn([name])[name]),
    )


def _open_table(path: Path, names: Names, scratch_fn: ScratchFn) -> _Opened:
    """Parquet."""
    table = open_table(path)
    schema = table.schema
    for name in (names.logits or "logits", names.ids or "ids", names.labels or "labels"):
        if name in table.partitions:
            raise InputError(f"{path}: only folders' names tell {name}; save it as a column")
    logits_name = find_logits(path, schema.names, names)
    return _Opened(
        names=[*schema.names, *table.partitions],
        may_be_ids=[field.name for field in schema if is_integer_or_text(field.type)],
        index_names=pandas_index(schema),
        logits_name=logits_name,
        logits=unpack_lists(table, logits_name, scratch_fn()),
        heads={},
        read_fn=functools.partial(read_column, table),
    )


def columns_of(shaped: Mapping[str, Shaped], num_rows: int) -> dict[str, np.dtype[Any]]:
    """The arrays that have an integer or text a row.

    Args:
      shaped: {name: what headers say}.
      num_rows: N.

    Returns:
      {name: dtype}.
    """
    return {
        name: dtype
        for name, (shape, dtype) in shaped.items()
        # Texts may have been saved as Python objects, which is then said.
        if shape == (num_rows,) and dtype is not None and dtype.kind in "iuUSO"
    }


def find_logits(path: Path, present: Sequence[str], names: Names) -> str:
    """Which array the logits are.

    Args:
      path: of the file or folder, for messages.
      present: names of what it holds.
      names: that the logits may have.

    Returns:
      Their name.

    Raises:
      InputError: they are not there.
    """
    for name in [names.logits] if names.logits else ["logits", "log_probs"]:
        if name in present:
            return name
    raise _lacks(path, names.logits or "logits", present, "--logits_column")


def read_array(array: ArrayOnDisk) -> Iterator[Arrow]:
    """Reads a column some rows at a time.

    Args:
      array: (N,).

    Raises:
      InputError: it has another shape, or a type that Arrow does not know.
    """
    if len(array.shape) != 1:
        raise InputError(f"{array.name} must have shape (N,), got {array.shape}")
    for _, column in array.chunks(_COLUMN_ROWS):
        try:
            yield pa.array(column.astype(column.dtype.newbyteorder("=")))
        except pa.ArrowException as error:
            raise InputError(f"{array.name} is {array.dtype}; save int64 or text") from error
        except UnicodeDecodeError as error:
            raise not_whole(array.name, ".npy", error) from error


def _lacks(path: Path, name: str, present: Sequence[str], flag: str) -> InputError:
    """The error for what is not there."""
    only = f", only {', '.join(present)}" if present else ""
    return InputError(f"{path} has no array `{name}`{only}; {flag} names one")


def _candidates(path: Path, opened: _Opened, others: set[str | None]) -> list[str]:
    """The columns that may be ids; raises where there is an index, but no such column."""
    names = [
        name
        for name in opened.may_be_ids
        if name not in {opened.logits_name, *others, *RESERVED}
        and is_distinct(opened.read_fn(name))
    ]
    if opened.index_names and not names:
        raise InputError(
            f"{path}: the pandas index {', '.join(opened.index_names)} is not one integer or text "
            "a row, each once; make it such a column, or give --join=position"
        )
    return names
