"""What classifiers of any framework predicted, in files.

A file or folder holds `logits` (N, K) and may hold `ids` (N,), `labels` (N,) and the last linear
layer: `kernel` (H, K), torch's `weight` (K, H), or the Gram matrix itself, `gram` (K, K). Formats
are those of `array_files`, a single .npy being the logits, and Parquet: `logits` is a column of
lists there, and is unpacked to a temporary file. A name in the singular is refused, since rows
without `ids` would be joined by position.
"""

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray

from experiments.array_files import ArrayOnDisk, ScratchFn, not_whole, open_arrays
from experiments.config import ConfigError
from jacfuse_jax import linalg

Arrow = Any  # arrays of pyarrow, which has no types
HEADS = ("kernel", "weight", "gram")
_FLOATING = ("float16", "bfloat16", "float32", "float64")
_COLUMNS = ("ids", "labels")
_SINGULAR = ("id", "label")
# The last where a name in the schema is damaged.
_PARQUET_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
_BATCH_ROWS = 1024  # of a Parquet file in memory at a time
_BUFFER_BYTES = 2**22
_NUM_EXAMPLES = 3
_GRAM_ROUNDING = 1e-2  # of the largest eigenvalue, where the product was formed in bfloat16


class Predictions(NamedTuple):
    """What a classifier predicted.

    Attributes:
      path: of the file or folder.
      logits: (N, K), floating.
      ids: (N,), int64 or large_string, each once; None where there are none.
      labels: (N,), from 0 to K - 1; None where there are none.
      heads: those of `HEADS` that the file holds.
    """

    path: Path
    logits: ArrayOnDisk
    ids: Arrow | None
    labels: NDArray[np.int64] | None
    heads: dict[str, ArrayOnDisk]


def open_predictions(path: Path, *, scratch_fn: ScratchFn) -> Predictions:
    """Opens what a classifier predicted; logits stay on disk.

    Args:
      path: of the file or folder.
      scratch_fn: makes temporary files for what cannot be read in place.

    Raises:
      ConfigError: there is no such file, it is damaged, or what it holds does not fit together.
    """
    if path.suffix == ".parquet" and path.is_file():
        logits, ids, labels = _open_parquet(path, scratch_fn)
        arrays: dict[str, ArrayOnDisk] = {}
    else:
        names = ("logits", *_COLUMNS, *_SINGULAR, *HEADS)
        arrays = open_arrays(path, names, bare="logits", scratch_fn=scratch_fn)
        if "logits" not in arrays:
            raise ConfigError(f"{path} holds no array `logits`")
        _check_plural(path, arrays)
        logits = arrays["logits"]
        ids, labels = (_column(arrays[name]) if name in arrays else None for name in _COLUMNS)
    if len(logits.shape) != 2 or logits.shape[1] < 2:
        raise ConfigError(f"{logits.name} has shape {logits.shape}, not (N, K) of K >= 2 classes")
    _check_floating(logits)
    num_rows, num_classes = logits.shape
    for name, column in (("ids", ids), ("labels", labels)):
        if column is not None and len(column) != num_rows:
            raise ConfigError(f"{path}: {num_rows} rows of logits, but {len(column)} {name}")
    return Predictions(
        path,
        logits,
        None if ids is None else _check_ids(path, ids),
        None if labels is None else _check_labels(path, labels, num_classes),
        {name: arrays[name] for name in HEADS if name in arrays},
    )


def head_spectrum(
    heads: Mapping[str, ArrayOnDisk], num_classes: int, dtype: np.dtype[Any]
) -> linalg.GramSpectrum:
    """The spectrum of C G C, the Gram matrix of a last linear layer, C = I - 1 1^T / K.

    Centred over classes it leaves a constant as it is that is added to a row of logits: they may be
    log-probabilities as well.

    Args:
      heads: one layer, under its name in `HEADS`; none stands for a kernel that is the identity.
      num_classes: K.
      dtype: that is computed in.

    Returns:
      Arrays (K,) and (K, K).

    Raises:
      ConfigError: there are two layers, or the one does not fit, or is too large for the dtype.
    """
    if len(heads) > 1:
        raise ConfigError(f"{', '.join(head.name for head in heads.values())}: keep one of them")
    if not heads:
        return linalg.spectrum_from_kernel(_centre(np.eye(num_classes)))
    [(name, head)] = heads.items()
    _check_floating(head)
    transposed = head._replace(shape=head.shape[::-1]) if name == "weight" else head
    if len(head.shape) != 2 or transposed.shape[1] != num_classes:
        raise ConfigError(
            f"{head.name} has shape {head.shape}, but K = {num_classes}; a `kernel` is (H, K), a "
            "`weight`, as torch has it, (K, H), a `gram` (K, K)"
        )
    matrix = head.read().astype(np.float64)
    if not np.isfinite(matrix).all():
        raise ConfigError(f"{head.name} is not finite")
    _check_size(head.name, matrix, dtype, is_gram=name == "gram")
    if name != "gram":
        return linalg.spectrum_from_kernel(_centre(matrix.T if name == "weight" else matrix))
    is_square = matrix.shape[0] == num_classes
    if not is_square or np.abs(matrix - matrix.T).max() > 1e-3 * np.abs(matrix).max():
        raise ConfigError(f"{head.name} must be (K, K) and symmetric, got shape {matrix.shape}")
    gram = _centre(_centre(matrix).T)
    eigenvalues = np.linalg.eigvalsh(gram)
    if eigenvalues[0] < -_GRAM_ROUNDING * np.abs(eigenvalues).max():
        raise ConfigError(
            f"{head.name} has the eigenvalue {eigenvalues[0]:.3g}, where none may be negative; "
            "save W^T W, or better the `kernel` W"
        )
    return linalg.gram_spectrum(gram)


def name_some(ids: Arrow, rows: NDArray[np.int64]) -> str:
    """The ids of the first of these rows, for messages.

    Args:
      ids: (N,).
      rows: (n,), positions.
    """
    texts = [repr(ids[row].as_py()) for row in rows[:_NUM_EXAMPLES].tolist()]
    return ", ".join(texts) + (", ..." if len(rows) > _NUM_EXAMPLES else "")


def _centre(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """W C, of which no row has a mean."""
    return kernel - kernel.mean(axis=1, keepdims=True)


def _check_size(
    name: str, matrix: NDArray[np.float64], dtype: np.dtype[Any], *, is_gram: bool
) -> None:
    """Raises where norms of Jacobians could leave the range of the dtype."""
    largest = np.abs(matrix).max()
    with np.errstate(over="ignore"):
        trace = len(matrix) * largest if is_gram else np.sum(matrix**2)  # a bound for `gram`
    if trace >= _max_trace(dtype):
        double = trace < _max_trace(np.float64)
        raise ConfigError(
            f"{name} has entries up to {largest:.3g}, too large to compute with in {dtype}; scale "
            "it down" + (", or save float64 logits and set JAX_ENABLE_X64=1" if double else "")
        )


def _max_trace(dtype: DTypeLike) -> float:
    """That a Gram matrix may have; leaves room for products and for sums over modalities."""
    return float(np.finfo(dtype).max * np.finfo(dtype).eps)


def _check_plural(path: Path, names: Container[str]) -> None:
    """Raises on a name that would be overlooked."""
    for singular, plural in zip(_SINGULAR, _COLUMNS, strict=True):
        if singular in names:
            raise ConfigError(f"{path} holds `{singular}`; name it `{plural}`, or leave it out")


def _check_floating(array: ArrayOnDisk) -> None:
    """Raises unless the array is floating."""
    if array.dtype.name not in _FLOATING:
        raise ConfigError(f"{array.name} is {array.dtype}, not floating; save it as float32")


def _column(array: ArrayOnDisk) -> Arrow:
    """A column in memory."""
    if len(array.shape) != 1:
        raise ConfigError(f"{array.name} must have shape (N,), got {array.shape}")
    column = array.read()
    try:
        return pa.chunked_array([column.astype(column.dtype.newbyteorder("="))])
    except pa.ArrowException as error:
        raise ConfigError(f"{array.name} is {array.dtype}; save int64 or text") from error
    except UnicodeDecodeError as error:
        raise not_whole(array.name, ".npy", error) from error


def _check_ids(path: Path, ids: Arrow) -> Arrow:
    """Ids as int64 or large_string; raises on other types, nulls and duplicates."""
    is_integer = pa.types.is_integer(ids.type)
    try:
        if pa.types.is_primitive(ids.type) and not is_integer:
            raise pa.ArrowInvalid("a number or a time that may be rounded")
        own = ids.cast(pa.int64() if is_integer else pa.large_string()).combine_chunks()
    except pa.ArrowException as error:
        raise ConfigError(f"{path}: ids are {ids.type}; save int64 or text") from error
    if own.null_count:
        raise ConfigError(f"{path}: {own.null_count} ids are null")
    counts = own.value_counts()
    repeated = np.flatnonzero(counts.field("counts").to_numpy() > 1)
    if repeated.size:
        raise ConfigError(
            f"{path}: {repeated.size} ids occur more than once, "
            f"{name_some(counts.field('values'), repeated)}; give every row its own"
        )
    return own


def _check_labels(path: Path, labels: Arrow, num_classes: int) -> NDArray[np.int64]:
    """Labels as integers; raises on other types, nulls and classes that do not exist."""
    if not pa.types.is_integer(labels.type) or labels.null_count:
        raise ConfigError(
            f"{path}: labels are {labels.type}, {labels.null_count} of them null; save an integer "
            "a row"
        )
    array = labels.to_numpy().astype(np.int64)
    if array.min() < 0 or array.max() >= num_classes:
        raise ConfigError(
            f"{path}: labels run from {array.min()} to {array.max()}, classes from 0 to "
            f"{num_classes - 1}"
        )
    return array


def _open_parquet(path: Path, scratch_fn: ScratchFn) -> tuple[ArrayOnDisk, Arrow, Arrow]:
    """Logits, ids and labels of a Parquet file."""
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            _check_plural(path, schema.names)
            for name in ("logits", *_COLUMNS):
                if schema.names.count(name) > 1:
                    raise ConfigError(f"{path} has more than one column `{name}`; keep one")
            found = [name for name in _COLUMNS if name in schema.names]
            table = file.read(columns=found)
            table.validate(full=True)
    except _PARQUET_ERRORS as error:
        raise not_whole(path, "Parquet", error) from error
    if "logits" not in schema.names:
        raise ConfigError(f"{path} has no column `logits`, only {', '.join(schema.names)}")
    logits = _unpack_logits(path, schema.field("logits").type, scratch_fn())
    ids, labels = (table[name] if name in found else None for name in _COLUMNS)
    return logits, ids, labels


def _unpack_logits(path: Path, column_type: Arrow, file: BinaryIO) -> ArrayOnDisk:
    """Copies the lists of a Parquet file, one a row, to a file of numbers alone."""
    name = f"{path}: logits"
    is_list = (
        pa.types.is_list(column_type)
        or pa.types.is_large_list(column_type)
        or pa.types.is_fixed_size_list(column_type)
    )
    if not is_list or not pa.types.is_floating(column_type.value_type):
        raise ConfigError(f"{name} is a column of {column_type}; save a list of float32 a row")
    dtype = np.dtype(column_type.value_type.to_pandas_dtype())
    lengths: set[Any] = set()
    num_rows = 0
    for column in _read_logits(path):
        lengths.update(pc.call_function("list_value_length", [column]).unique().to_pylist())
        values = column.flatten()
        if len(lengths) > 1 or None in lengths or values.null_count:
            raise ConfigError(f"{name} has rows that are null, hold a null or differ in length")
        file.write(values.to_numpy(zero_copy_only=False).tobytes())
        num_rows += len(column)
    if not any(lengths):
        raise ConfigError(f"{name} is empty")
    file.flush()
    return ArrayOnDisk(name, file, 0, dtype, (num_rows, *lengths))


def _read_logits(path: Path) -> Iterator[Any]:
    """The column of a Parquet file, some rows at a time, however large its row groups are."""
    try:
        # By default the reader takes a row group whole.
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=["logits"]):
                yield batch.column(0)
    except _PARQUET_ERRORS as error:
        raise not_whole(path, "Parquet", error) from error
