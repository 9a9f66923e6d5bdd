"""Labels of rows: positions of classes or, where these have names, names."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jacfuse_jax.predictions.classes import Alignment, Classes
from jacfuse_jax.predictions.ids import list_some, to_integer_or_text
from jacfuse_jax.predictions.parquet import Arrow
from jacfuse_jax.programs import InputError


def check_positions(source: str, labels: Arrow, num_classes: int) -> NDArray[np.int64]:
    """Labels as positions of classes that have no names.

    Args:
      source: file and column, for messages.
      labels: (N,), of Arrow.
      num_classes: K.

    Returns:
      (N,), from 0 to K - 1.

    Raises:
      InputError: labels are of another type, null, or no positions.
    """
    if not pa.types.is_integer(labels.type) or labels.null_count:
        raise InputError(
            f"{source} are {labels.type}, {labels.null_count} of them null; save an integer a row, "
            "or texts with `classes`"
        )
    array = labels.to_numpy().astype(np.int64)
    if array.min() < 0 or array.max() >= num_classes:
        raise InputError(
            f"{source} run from {array.min()} to {array.max()}, classes from 0 to {num_classes - 1}"
        )
    return array


def place_labels(
    source: str, labels: Arrow, own: Classes, classes: Alignment
) -> tuple[NDArray[np.int64], list[str]]:
    """Where the classes of rows stand in the output.

    Texts are names, also of classes that other inputs have. Integers are positions in the order of
    their own file; but where its classes are integers that do not count from 0, they may be such
    classes as well: they are what all of them can be, and are refused where that is both.

    Args:
      source: file and column, for messages.
      labels: (N,), of Arrow.
      own: the classes of their file.
      classes: of the output.

    Returns:
      (N,), -1 where the class is left out; and a line for whatever was done.

    Raises:
      InputError: labels are of another type, null, or no classes.
    """
    every, num_classes = classes.every, len(own)
    has_texts = isinstance(own[0], str)
    try:
        named = to_integer_or_text(labels)
    except pa.ArrowException:
        named = labels  # of another type, which is refused next
    if pa.types.is_integer(named.type) and (has_texts or own == tuple(range(num_classes))):
        placed = classes.positions(own)[check_positions(source, labels, num_classes)]
        return placed, _left_out(source, placed)
    if named.null_count or named.type != (pa.large_string() if has_texts else pa.int64()):
        raise InputError(
            f"{source} are {labels.type}, {labels.null_count} of them null, but classes "
            f"{'texts' if has_texts else 'integers'}; save such a one a row"
        )
    found = pc.call_function("index_in", [named], pc.SetLookupOptions(value_set=pa.array(every)))
    found = found.fill_null(-1).to_numpy()
    unknown = np.flatnonzero(found < 0)
    remarks: list[str] = []
    if not has_texts:
        array = named.to_numpy()
        may_be_positions = array.min() >= 0 and array.max() < num_classes
        if may_be_positions and not unknown.size:
            raise InputError(
                f"{source} may be classes or their positions, since both are integers, and classes "
                "do not count from 0; save both as texts"
            )
        if may_be_positions:
            placed = classes.positions(own)[array]
            remark = f"{source} are positions of classes: {array[unknown[0]]} is no class"
            return placed, [remark, *_left_out(source, placed)]
        remarks.append(f"{source} are classes, not positions, which end at {num_classes - 1}")
    if unknown.size:
        row = int(unknown[0])
        raise InputError(
            f"{source}: row {row} is {named[row].as_py()!r}, none of the classes "
            f"{list_some(every)}; correct it"
        )
    placed = classes.positions(every)[found]
    return placed, remarks + _left_out(source, placed)


def _left_out(source: str, placed: NDArray[np.int64]) -> list[str]:
    """A line that counts labels of classes that are left out."""
    count = int((placed < 0).sum())
    return [f"{source}: {count} are of classes that are left out, and not counted"] * bool(count)
