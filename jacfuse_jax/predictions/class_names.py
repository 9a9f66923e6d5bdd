"""Names of classes in files: integers or texts, each once, in the order of the logits.

Where they stand, beside the arrays of predictions, of a last layer or of a class prior:

    folder, .npz  an array `classes` (K,)
    .safetensors  the same, of integers; or texts as a list in JSON, `classes` of its metadata
    Parquet       such a list, `classes` of the metadata of the schema, or of `attrs` of pandas

A last layer that does not name its classes has those of its modality, in their order; a class prior
that does not is refused unless all inputs have the same order.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from jacfuse_jax.predictions.arrays import open_arrays, read_metadata
from jacfuse_jax.predictions.classes import Alignment, Classes, align_classes
from jacfuse_jax.predictions.extent import measure_predictions
from jacfuse_jax.predictions.flags import Combine
from jacfuse_jax.predictions.ids import check_ids
from jacfuse_jax.predictions.inputs import Names, read_array
from jacfuse_jax.predictions.parquet import Arrow, is_table, open_table
from jacfuse_jax.programs import InputError

_NAME = "classes"
# In turn: no JSON, not of one type, or not Unicode; the same; larger than int64; nested too deep.
_LIST_ERRORS = (ValueError, TypeError, OverflowError, RecursionError)


def align_files(paths: Iterable[Path], names: Names, how: Combine | None) -> Alignment | None:
    """Reads the classes of predictions and aligns them, see `align_classes`.

    Args:
      paths: of the predictions, at least one.
      names: of what they hold.
      how: what becomes of classes that not all have.

    Returns:
      The classes; None where no file names any.

    Raises:
      InputError: some files name their classes and others do not, or classes do not fit the logits,
        or one another.
    """
    found = {str(path): read_classes(path) for path in paths}
    own = {source: classes for source, classes in found.items() if classes is not None}
    if not own:
        if how:
            raise InputError(f"--classes={how} needs `classes`, which no input has")
        return None
    first = next(iter(own))
    unnamed = [source for source in found if source not in own]
    if unnamed:
        raise InputError(
            f"{first} holds `classes`, {', '.join(unnamed)} none, so that their order is unknown; "
            "save them with all, or give --classes=position"
        )
    for source, classes in own.items():
        num_classes = measure_predictions(Path(source), names=names).num_classes
        if len(classes) != num_classes:
            raise InputError(f"{source}: {len(classes)} classes, but logits of {num_classes}")
        if _kind(classes) != _kind(own[first]):
            raise InputError(
                f"classes are {_kind(own[first])} in {first}, but {_kind(classes)} in {source}; "
                "save one kind"
            )
    return align_classes(own, how)


def read_classes(path: Path) -> Classes | None:
    """Reads the names of classes, integers or texts; None where a file or folder has none.

    Args:
      path: of predictions, a last layer or a class prior.

    Raises:
      InputError: the file is damaged, or classes are something else, null, or named twice.
    """
    found: list[Arrow] = []
    if is_table(path):
        lists = [_in_schema(path, metadata) for metadata in open_table(path).metadata]
        if any(each != lists[0] for each in lists):
            raise InputError(f"{path}: its parts differ in their classes; write all parts alike")
        found = [] if lists[0] is None else [lists[0]]
    else:
        with contextlib.ExitStack() as stack:
            arrays = open_arrays(
                path,
                [_NAME],
                bare="",
                scratch_fn=lambda: stack.enter_context(tempfile.TemporaryFile()),
            )
            if _NAME in arrays:
                found.append(pa.chunked_array(list(read_array(arrays[_NAME]))))
        if path.suffix == ".safetensors" and path.is_file():
            text = read_metadata(path).get(_NAME)
            found += [] if text is None else [_parse(path, text)]
    if not found:
        return None
    if len(found) > 1:
        raise InputError(f"{path} holds {_NAME} as an array and as metadata; keep one")
    return tuple(check_ids(path, _NAME, found[0], of="class").to_pylist())


def _in_schema(path: Path, metadata: dict[bytes, bytes]) -> Arrow | None:
    """The classes that a file of Parquet names."""
    if b"classes" in metadata:
        return _parse(path, metadata[b"classes"])
    try:
        attrs = json.loads(metadata.get(b"PANDAS_ATTRS", b"{}"))
    except _LIST_ERRORS:
        return None  # not written by pandas
    return _as_array(path, attrs[_NAME]) if isinstance(attrs, dict) and _NAME in attrs else None


def _parse(path: Path, text: str | bytes) -> Arrow:
    """A list in JSON."""
    try:
        values = json.loads(text)
    except _LIST_ERRORS as error:
        raise _no_list(path) from error
    return _as_array(path, values)


def _as_array(path: Path, values: Any) -> Arrow:
    """A list of texts or integers."""
    try:
        if not isinstance(values, list):
            raise TypeError
        return pa.array(values)
    except _LIST_ERRORS as error:
        raise _no_list(path) from error


def _no_list(path: Path) -> InputError:
    return InputError(f"{path}: {_NAME} must be a list of texts or of integers, in JSON")


def _kind(classes: Classes) -> str:
    return "texts" if isinstance(classes[0], str) else "integers"
