"""Fused predictions in files, written some rows at a time.

A row has `ids`; `prediction`, its most probable class; `jacobian_norm`, see `fusion.FusedOutput`,
where the rule regularises it; and `log_probs`, K of them. A row whose log-probabilities are not
numbers has prediction -1. What made the file is JSON, under the name `jacfuse_jax`, without the
folders of inputs; its `rule` is a text, which `fusion.rule_from_json` reads. Where classes have
names, `predicted_class` is that of the prediction, or null. .parquet and .npz can be fused again.

    .parquet  log_probs are a column of lists; the JSON is in the metadata of the schema, as is
              `classes`, a list
    .csv      log_probs_0, ... are columns, named for the classes where these have names; the JSON
              is in a file of its own, <name>.csv.json
    .npz      not packed; the JSON is a text beside the arrays; ids that are texts are padded to the
              longest, and refused where that takes more than 256 MiB; `classes` (K,) stand in for
              `predicted_class`
"""

import itertools
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from jacfuse_jax.predictions.classes import Classes
from jacfuse_jax.predictions.parquet import Arrow
from jacfuse_jax.programs import InputError
from jacfuse_jax.programs.files import write_atomically

METADATA = "jacfuse_jax"
_MAX_ID_BYTES = 2**28  # of texts in .npz


class FusedRows(NamedTuple):
    """Some rows of the result.

    Attributes:
      ids: (n,), of Arrow.
      prediction: (n,), int32.
      jacobian_norm: (n,), floating; None of all rows alike where the rule has none.
      log_probs: (n, K), floating.
    """

    ids: Arrow
    prediction: NDArray[np.int32]
    jacobian_norm: NDArray[Any] | None
    log_probs: NDArray[Any]


def write_fused(
    path: Path,
    ids: Arrow,
    batches: Iterator[FusedRows],
    metadata: Mapping[str, Any],
    classes: Classes | None = None,
) -> None:
    """Writes all rows; the file has its name only once it is whole.

    Args:
      path: of the file; its ending is one of `FORMATS`.
      ids: (N,), of all rows.
      batches: of rows, at least one.
      metadata: what made the file.
      classes: (K,), their names; None where they have none.

    Raises:
      InputError: texts are too long for .npz.
    """
    text = json.dumps(metadata, indent=2)
    sidecar = path.with_name(f"{path.name}.json") if path.suffix == ".csv" else None

    def write(temporary: Path) -> None:
        FORMATS[path.suffix](temporary, ids, batches, text, classes)
        if sidecar:
            sidecar.unlink(missing_ok=True)  # it is of another table, which is replaced next

    write_atomically(path, write)
    if sidecar:
        write_atomically(sidecar, text + "\n")


def _columns(rows: FusedRows, classes: Classes | None) -> dict[str, Any]:
    """All but log-probabilities."""
    columns: dict[str, Any] = {"ids": rows.ids, "prediction": rows.prediction}
    if classes is not None:
        places = pa.array(rows.prediction, mask=rows.prediction < 0)
        columns["predicted_class"] = pa.array(classes).take(places)
    if rows.jacobian_norm is not None:
        columns["jacobian_norm"] = rows.jacobian_norm
    return columns


def _write_parquet(
    path: Path, _: Arrow, batches: Iterator[FusedRows], text: str, classes: Classes | None
) -> None:
    """A row group a batch."""
    tables = (
        pa.table(
            {
                **_columns(rows, classes),
                "log_probs": pa.FixedSizeListArray.from_arrays(
                    rows.log_probs.ravel(), rows.log_probs.shape[1]
                ),
            }
        )
        for rows in batches
    )
    first = next(tables)
    names = {} if classes is None else {"classes": json.dumps(classes)}
    schema = first.schema.with_metadata({METADATA: text, **names})
    # Floating-point numbers hardly repeat: dictionaries of them would only cost time.
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)


def _write_csv(
    path: Path, _: Arrow, batches: Iterator[FusedRows], __: str, classes: Classes | None
) -> None:
    """A line a row."""
    tables = (
        pa.table(
            {
                **_columns(rows, classes),
                **{
                    f"log_probs_{k if classes is None else classes[k]}": column
                    for k, column in enumerate(rows.log_probs.T)
                },
            }
        )
        for rows in batches
    )
    first = next(tables)
    with csv.CSVWriter(path, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)


def _write_npz(
    path: Path, ids: Arrow, batches: Iterator[FusedRows], text: str, classes: Classes | None
) -> None:
    """Log-probabilities as they come, then what is small."""
    _check_padding(ids)
    first = next(batches)
    columns: list[tuple[Any, ...]] = []
    with zipfile.ZipFile(path, "w") as archive:
        # Space is left for lengths above 4 GiB, since they are not known before.
        with archive.open("log_probs.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(
                file,
                {
                    "descr": np.lib.format.dtype_to_descr(first.log_probs.dtype),
                    "fortran_order": False,
                    "shape": (len(ids), first.log_probs.shape[1]),
                },
            )
            for rows in itertools.chain([first], batches):
                file.write(rows.log_probs.tobytes())
                columns.append((rows.prediction, rows.jacobian_norm))
        predictions, norms = zip(*columns, strict=True)
        id_array = ids.to_numpy(zero_copy_only=False)
        for name, array in (
            ("ids", id_array.astype(str) if id_array.dtype.hasobject else id_array),
            ("prediction", np.concatenate(predictions)),
            *([] if norms[0] is None else [("jacobian_norm", np.concatenate(norms))]),
            (METADATA, np.array(text)),
            *([] if classes is None else [("classes", np.array(classes))]),
        ):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _check_padding(ids: Arrow) -> None:
    """Raises where NumPy, which gives every text the length of the longest, would need too much."""
    if pa.types.is_integer(ids.type):
        return
    longest = pc.call_function("max", [pc.call_function("utf8_length", [ids])]).as_py()
    if 4 * longest * len(ids) > _MAX_ID_BYTES:
        raise InputError(
            f"--output: in .npz all {len(ids)} ids are as long as the longest, of {longest} "
            "characters; write .parquet or .csv"
        )


_WriteFn = Callable[[Path, Arrow, Iterator[FusedRows], str, Classes | None], None]
FORMATS: dict[str, _WriteFn] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".npz": _write_npz,
}
