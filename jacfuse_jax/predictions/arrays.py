"""Arrays in the files of any framework, read some rows at a time; nothing in a file is executed.

    folder        one <name>.npy an array
    .npy          one array
    .safetensors  by name
    .npz          by name; packed, so that each array is unpacked to a temporary file first

All are then read in place: what was asked for is in memory, and no more. Slices of the safetensors
library are ranges; rows are wanted in any order, so that its header alone is used.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jacfuse_jax.predictions.npy import (
    ArrayOnDisk,
    ScratchFn,
    Shaped,
    check_size,
    not_whole,
    open_npy,
    read_header,
)
from jacfuse_jax.predictions.npz import list_npz, open_npz
from jacfuse_jax.programs import InputError

_SAFETENSORS_DTYPES: dict[str, np.dtype[Any]] = {
    **{f"F{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    "BF16": np.dtype(jnp.bfloat16),
    "BOOL": np.dtype("?"),
}


def open_arrays(
    path: Path, names: Sequence[str], *, bare: str, scratch_fn: ScratchFn
) -> dict[str, ArrayOnDisk]:
    """Opens the arrays of these names that a file or folder has.

    Args:
      path: a folder, or a file whose ending tells its format.
      names: to look for; whatever else there is is not read.
      bare: what the one array of a single .npy is.
      scratch_fn: makes the files that arrays of .npz are unpacked to.

    Raises:
      InputError: the ending is unknown, the file is not whole, an archive has members of one name
        or outside of its folder, or an array is empty or holds Python objects.
    """
    if path.is_dir():
        files = {name: path / f"{name}.npy" for name in names}
        return {name: open_npy(file, file) for name, file in files.items() if file.exists()}
    if path.suffix == ".npy":
        return {bare: open_npy(path, path)}
    if path.suffix == ".npz":
        return open_npz(path, names, scratch_fn)
    if path.suffix == ".safetensors":
        return _open_safetensors(path, names)
    raise _unknown_ending(path)


def list_arrays(path: Path, *, bare: str) -> dict[str, Shaped]:
    """What arrays a file or folder has, by their headers alone.

    Args:
      path: as in `open_arrays`.
      bare: what the one array of a single .npy is.

    Returns:
      {name: its shape and dtype}.

    Raises:
      InputError: as in `open_arrays`.
    """
    if path.suffix == ".npz" and path.is_file():
        return list_npz(path)
    if path.suffix == ".safetensors" and path.is_file():
        return {
            name: Shaped(tuple(entry["shape"]), _SAFETENSORS_DTYPES.get(entry["dtype"]))
            for name, entry in _safetensors_header(path)[0].items()
        }
    if path.is_dir():
        # Names with a dot are what systems keep beside a file.
        files = {p.stem: p for p in sorted(path.glob("*.npy")) if not p.name.startswith(".")}
    elif path.suffix == ".npy":
        files = {bare: path}
    else:
        raise _unknown_ending(path)
    shaped: dict[str, Shaped] = {}
    for name, file in files.items():
        with file.open("rb") as stream:
            shape, _, dtype = read_header(stream, file)
        shaped[name] = Shaped(shape, dtype)
    return shaped


def read_metadata(path: Path) -> dict[str, str]:
    """The texts beside the arrays of a .safetensors file.

    Args:
      path: of the file.

    Raises:
      InputError: it is not whole.
    """
    try:
        with safe_open(path, "numpy") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise not_whole(path, ".safetensors", error) from error


def _unknown_ending(path: Path) -> InputError:
    """The error for a file of another format."""
    return InputError(
        f"{path}: the ending {path.suffix!r} is unknown; take .npz, .npy, .safetensors, a folder "
        "of .npy files or, for predictions, .parquet"
    )


def _open_safetensors(path: Path, names: Sequence[str]) -> dict[str, ArrayOnDisk]:
    """The arrays of a .safetensors file."""
    header, first = _safetensors_header(path)
    arrays: dict[str, ArrayOnDisk] = {}
    for name in set(names) & set(header):
        entry = header[name]
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise InputError(f"{path}: {name} is {entry['dtype']}; save it as F32")
        arrays[name] = ArrayOnDisk(
            f"{path}: {name}",
            path,
            first + entry["data_offsets"][0],
            _SAFETENSORS_DTYPES[entry["dtype"]],
            tuple(entry["shape"]),
        )
        check_size(arrays[name])
    return arrays


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """What a .safetensors file says of its arrays, and where their bytes begin."""
    try:
        with safe_open(path, "numpy"):  # checks that the header and the length of the file agree
            pass
    except SafetensorError as error:
        raise not_whole(path, ".safetensors", error) from error
    with path.open("rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_length))
        header.pop("__metadata__", None)
        return header, file.tell()
