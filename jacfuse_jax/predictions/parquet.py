"""Tables in Parquet, read some rows at a time: one file, or a folder of files that are its parts.

The parts are in the order of their names, numbers in these compared as such. What does not end in
.parquet is not read, nor is what begins with "_" or ".", as in `pyarrow.dataset`, which cannot read
them here: it holds whole row groups in memory, of which a file may have but one.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jacfuse_jax.predictions.npy import ArrayOnDisk, not_whole
from jacfuse_jax.programs import InputError

Arrow = Any  # arrays, types and schemas of pyarrow, which has no types
# The last where a name in the schema is damaged.
_PARQUET_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
_LIST_ROWS = 1024  # of lists in memory at a time
_COLUMN_ROWS = 2**16  # of numbers or texts
_BUFFER_BYTES = 2**22


class Table(NamedTuple):
    """A table that lies in one file or several.

    Attributes:
      path: of the file or folder.
      files: its parts.
      schema: of the columns, the same in all of them.
      metadata: of each part.
      partitions: columns that only the names of folders tell; they are not read.
    """

    path: Path
    files: list[Path]
    schema: Arrow
    metadata: list[dict[bytes, bytes]]
    partitions: list[str]


def is_table(path: Path) -> bool:
    """Whether a file or folder is Parquet.

    Args:
      path: of the file or folder.
    """
    return bool(_parts(path)) if path.is_dir() else path.suffix == ".parquet"


def open_table(path: Path) -> Table:
    """Reads what columns a table has.

    Args:
      path: of the file or folder.

    Raises:
      InputError: a file is damaged or has a column twice, or a folder is still being written,
        mixes formats, or has parts with other columns.
    """
    files = [path]
    if path.is_dir():
        files = _parts(path)
        if (path / "_temporary").exists():
            raise InputError(f"{path} holds _temporary: it is still being written; write it anew")
        if any(path.glob("*.npy")):
            raise InputError(f"{path} holds .npy and .parquet files; keep one kind")
    schemas = [_read_schema(file) for file in files]
    names = schemas[0].names
    for file, schema in zip(files, schemas, strict=True):
        for name in schema.names:
            if schema.names.count(name) > 1:
                raise InputError(f"{file} has more than one column `{name}`; keep one")
        if set(schema.names) != set(names):
            differing = ", ".join(sorted(set(schema.names) ^ set(names)))
            raise InputError(
                f"{file} and {files[0]} are parts of {path}, but only one has {differing}; write "
                "all parts alike"
            )
    folders = files[0].relative_to(path).parts[:-1]
    partitions = [folder.partition("=")[0] for folder in folders if "=" in folder]
    metadata = [schema.metadata or {} for schema in schemas]
    return Table(path, files, schemas[0], metadata, partitions)


def read_column(table: Table, name: str, *, num_rows: int = _COLUMN_ROWS) -> Iterator[Arrow]:
    """Reads a column some rows at a time, however large the row groups are.

    Args:
      table: that has it.
      name: of the column.
      num_rows: at a time.

    Yields:
      Arrays, none of them empty.

    Raises:
      InputError: a file is damaged, or has another type of column than the first.
    """
    for path in table.files:
        try:
            # By default the reader takes a row group whole.
            with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
                for batch in file.iter_batches(num_rows, columns=[name]):
                    batch.validate(full=True)
                    [column] = batch.columns
                    if column.type != table.schema.field(name).type:
                        raise InputError(
                            f"{path}: {name} is {column.type}, but {table.schema.field(name).type} "
                            f"in {table.files[0]}; write all parts alike"
                        )
                    yield column
        except _PARQUET_ERRORS as error:
            raise not_whole(path, "Parquet", error) from error


def measure_lists(table: Table, name: str) -> tuple[int, int, np.dtype[Any]]:
    """How many rows and entries a column of lists has, and their dtype, by the headers alone.

    Args:
      table: that has it.
      name: of the column.

    Raises:
      InputError: it is no such column, or a file is damaged.
    """
    dtype = _list_dtype(table, name)
    num_rows = num_entries = 0
    for path in table.files:
        try:
            metadata = pq.read_metadata(path)
        except _PARQUET_ERRORS as error:
            raise not_whole(path, "Parquet", error) from error
        num_rows += metadata.num_rows
        for i in range(metadata.num_row_groups):
            group = metadata.row_group(i)
            columns = map(group.column, range(group.num_columns))
            num_entries += sum(
                column.num_values
                for column in columns
                if column.path_in_schema.startswith(f"{name}.")
            )
    return num_rows, num_entries, dtype


def unpack_lists(table: Table, name: str, file: BinaryIO) -> ArrayOnDisk:
    """Copies a column of lists of one length to a file of numbers alone.

    Args:
      table: that has it.
      name: of the column.
      file: to write to.

    Returns:
      The array, (N, K).

    Raises:
      InputError: it is no such column, or is empty.
    """
    full_name, dtype = f"{table.path}: {name}", _list_dtype(table, name)
    lengths: set[Any] = set()
    num_rows = 0
    for column in read_column(table, name, num_rows=_LIST_ROWS):
        lengths.update(pc.call_function("list_value_length", [column]).unique().to_pylist())
        values = column.flatten()
        if len(lengths) > 1 or None in lengths or values.null_count:
            raise InputError(f"{full_name} has rows that are null, hold a null or differ in length")
        file.write(values.to_numpy(zero_copy_only=False).tobytes())
        num_rows += len(column)
    if not any(lengths):
        raise InputError(f"{full_name} is empty")
    file.flush()
    return ArrayOnDisk(full_name, file, 0, dtype, (num_rows, *lengths))


def pandas_index(schema: Arrow) -> list[str]:
    """The columns that were the index of a data frame of pandas, unless it only counted rows.

    Args:
      schema: of a table.
    """
    try:
        index = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
        # An index that only counts is a description in the place of a name.
        return [name for name in index if isinstance(name, str) and name in schema.names]
    except (KeyError, TypeError, ValueError):
        return []


def _list_dtype(table: Table, name: str) -> np.dtype[Any]:
    """The dtype of the entries of a column of lists."""
    column_type = table.schema.field(name).type
    is_list = (
        pa.types.is_list(column_type)
        or pa.types.is_large_list(column_type)
        or pa.types.is_fixed_size_list(column_type)
    )
    if not is_list or not pa.types.is_floating(column_type.value_type):
        raise InputError(
            f"{table.path}: {name} is a column of {column_type}; save a list of float32 a row"
        )
    return np.dtype(column_type.value_type.to_pandas_dtype())


def _parts(folder: Path) -> list[Path]:
    """The parts in a folder, and in those within it whose names tell a column, in their order."""
    parts: dict[Path, list[str | int]] = {}
    for file in folder.rglob("*.parquet"):
        relative = file.relative_to(folder)
        is_hidden = any(name.startswith(("_", ".")) for name in relative.parts)
        if file.is_file() and not is_hidden and all("=" in name for name in relative.parts[:-1]):
            pieces = re.split(r"(\d+)", str(relative))
            parts[file] = [int(text) if i % 2 else text for i, text in enumerate(pieces)]
    return sorted(parts, key=lambda file: parts[file])


def _read_schema(path: Path) -> Arrow:
    """The columns of a file."""
    try:
        with pq.ParquetFile(path) as file:
            return file.schema_arrow
    except _PARQUET_ERRORS as error:
        raise not_whole(path, "Parquet", error) from error
