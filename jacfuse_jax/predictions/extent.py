"""How large what classifiers predicted is, told by the headers of its files."""

import math
from pathlib import Path
from typing import NamedTuple

from jacfuse_jax.predictions.arrays import list_arrays
from jacfuse_jax.predictions.ids import is_integer_or_text
from jacfuse_jax.predictions.inputs import DEFAULT_NAMES, RESERVED, Names, columns_of, find_logits
from jacfuse_jax.predictions.parquet import is_table, measure_lists, open_table


class Extent(NamedTuple):
    """How large the predictions of a file are.

    Attributes:
      num_rows: N.
      num_classes: K.
      itemsize: bytes of a logit.
      unpacked_bytes: what temporary files take, for what cannot be read in place.
      may_have_ids: whether rows may be joined by a column.
    """

    num_rows: int
    num_classes: int
    itemsize: int
    unpacked_bytes: int
    may_have_ids: bool


def measure_predictions(path: Path, *, names: Names = DEFAULT_NAMES) -> Extent:
    """Measures what a classifier predicted by the headers alone.

    Args:
      path: of the file or folder.
      names: of what it holds.

    Raises:
      InputError: it is damaged, or has no logits.
    """
    if is_table(path):
        table = open_table(path)
        logits_name = find_logits(path, table.schema.names, names)
        num_rows, num_entries, dtype = measure_lists(table, logits_name)
        column_bytes = 0
        may_have_ids = any(is_integer_or_text(field.type) for field in table.schema)
    else:
        shaped = list_arrays(path, bare=names.logits or "logits")
        shape, dtype = shaped[find_logits(path, list(shaped), names)]
        num_rows, num_entries = shape[0] if shape else 0, math.prod(shape)
        columns = columns_of(shaped, num_rows)
        # Each is looked at, then read.
        column_bytes = 2 * num_rows * sum(column.itemsize for column in columns.values())
        may_have_ids = bool(columns.keys() - set(RESERVED))
    itemsize = 1 if dtype is None else dtype.itemsize  # a dtype that is refused when it is read
    is_packed = is_table(path) or path.suffix == ".npz"
    return Extent(
        num_rows,
        num_entries // max(1, num_rows),
        itemsize,
        is_packed * (num_entries * itemsize + column_bytes),
        may_have_ids,
    )
