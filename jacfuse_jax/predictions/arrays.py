"""Arrays in the files of any framework, read some rows at a time; nothing in a file is executed.

    folder        one <name>.npy an array
    .npy          one array
    .safetensors  by name
    .npz          by name; packed, so that each array is unpacked to a temporary file first

All are then read in place: what was asked for is in memory, and no more.
"""

import collections
import contextlib
import json
import lzma
import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from jacfuse_jax.programs import InputError

ScratchFn = Callable[[], BinaryIO]  # makes a temporary file that has no name
_FLOATING = ("float16", "bfloat16", "float32", "float64")
_HEADER_FNS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# In turn: not a Python literal; not one of a header's; not even a line of Python.
_HEADER_ERRORS = (ValueError, TypeError, SyntaxError, tokenize.TokenError)
# In turn: no archive, or a wrong checksum; content that ends early; damaged deflate; damaged LZMA;
# damaged bzip2, or a position before the file; another archive by now; a damaged name; encryption,
# or (NotImplementedError) packing or a version that Python does not know.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    OSError,
    KeyError,
    UnicodeDecodeError,
    RuntimeError,
)
_PIECE_BYTES = 2**20  # of an archive in memory at a time
_SAFETENSORS_DTYPES: dict[str, np.dtype[Any]] = {
    **{f"F{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    "BF16": np.dtype(jnp.bfloat16),
    "BOOL": np.dtype("?"),
}


class ArrayOnDisk(NamedTuple):
    """An array that lies uncompressed in a file.

    Attributes:
      name: of file and array, for messages.
      source: the file.
      offset: of the first entry, in bytes.
      dtype: of the entries.
      shape: not empty.
      order: of the axes, "F" for Fortran's.
    """

    name: str
    source: Path | BinaryIO
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"] = "C"

    def read(self, rows: NDArray[np.int64] | None = None) -> NDArray[Any]:
        """Reads rows into memory, in the order that is asked for; None reads all.

        Args:
          rows: (n,), positions along the first axis.
        """
        # Pages of a mapping stay in memory as long as it does: every call has its own.
        mapping = np.memmap(self.source, self.dtype, "r", self.offset, self.shape, self.order)
        array = np.asarray(mapping)
        return array.copy() if rows is None else array[rows]


class Shaped(NamedTuple):
    """What a header says of an array.

    Attributes:
      shape: of the array.
      dtype: of the entries; None where NumPy has no such type.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None


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
        return {name: _open_npy(file, file) for name, file in files.items() if file.exists()}
    if path.suffix == ".npy":
        return {bare: _open_npy(path, path)}
    if path.suffix == ".npz":
        return _open_npz(path, names, scratch_fn)
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
        return _list_npz(path)
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
            shape, _, dtype = _read_header(stream, file)
        shaped[name] = Shaped(shape, dtype)
    return shaped


def check_floating(array: ArrayOnDisk) -> None:
    """Raises InputError unless the array is floating.

    Args:
      array: that is to be computed with.
    """
    if array.dtype.name not in _FLOATING:
        raise InputError(f"{array.name} is {array.dtype}, not floating; save it as float32")


def not_whole(path: object, format_name: str, error: Exception) -> InputError:
    """The error for a file that is damaged, or of another format.

    Args:
      path: of the file.
      format_name: that it should have.
      error: what its reader said.
    """
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(f"{path} is not a whole {format_name} file ({reason}); save it again")


def _unknown_ending(path: Path) -> InputError:
    """The error for a file of another format."""
    return InputError(
        f"{path}: the ending {path.suffix!r} is unknown; take .npz, .npy, .safetensors, a folder "
        "of .npy files or, for predictions, .parquet"
    )


def _open_npy(source: Path | BinaryIO, name: object) -> ArrayOnDisk:
    """The array of a .npy file."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        shape, is_fortran, dtype = _read_header(file, name)
        offset = file.tell()
        num_bytes = file.seek(0, os.SEEK_END) - offset
    array = ArrayOnDisk(str(name), source, offset, dtype, shape, "F" if is_fortran else "C")
    if dtype.hasobject:
        raise InputError(
            f"{name} holds Python objects, which are not loaded; save numbers, or texts by "
            "array.astype(str)"
        )
    if num_bytes < _size(array) * dtype.itemsize:
        raise not_whole(name, ".npy", EOFError(f"shape {shape}, but {num_bytes} bytes of entries"))
    return array


def _read_header(file: Any, name: object) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is Fortran's, and dtype that a .npy file begins with."""
    try:
        version = np.lib.format.read_magic(file)
        if version not in _HEADER_FNS:
            raise ValueError(f"version {version}")
        return _HEADER_FNS[version](file)
    except _HEADER_ERRORS as error:
        raise not_whole(name, ".npy", error) from error


def _open_npz(path: Path, names: Sequence[str], scratch_fn: ScratchFn) -> dict[str, ArrayOnDisk]:
    """The arrays of an archive."""
    arrays: dict[str, ArrayOnDisk] = {}
    with _open_archive(path) as archive:
        for name in set(names) & {member.removesuffix(".npy") for member in archive.namelist()}:
            file = scratch_fn()
            for piece in _unpack(path, archive, f"{name}.npy"):
                file.write(piece)
            file.seek(0)
            arrays[name] = _open_npy(file, f"{path}: {name}")
    return arrays


def _list_npz(path: Path) -> dict[str, Shaped]:
    """The arrays of an archive, of each of which only the beginning is unpacked."""
    shaped: dict[str, Shaped] = {}
    with _open_archive(path) as archive:
        members = [member for member in archive.namelist() if member.endswith(".npy")]
        if not members:
            raise not_whole(path, ".npz", ValueError("no .npy in it"))
        for member in members:
            name = member.removesuffix(".npy")
            try:
                with archive.open(member) as packed:
                    shape, _, dtype = _read_header(packed, f"{path}: {name}")
            except _ZIP_ERRORS as error:
                raise not_whole(path, ".npz", error) from error
            shaped[name] = Shaped(shape, dtype)
    return shaped


@contextlib.contextmanager
def _open_archive(path: Path) -> Generator[zipfile.ZipFile]:
    """The archive, its members' names checked."""
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(path.open("rb"))
        try:
            archive = stack.enter_context(zipfile.ZipFile(stream))
        except _ZIP_ERRORS as error:
            raise not_whole(path, ".npz", error) from error
        _check_members(path, archive.namelist())
        yield archive


def _check_members(path: Path, members: Sequence[str]) -> None:
    """Raises where names of an archive repeat, or would leave the folder it is unpacked to."""
    for member, count in collections.Counter(members).items():
        if count > 1:
            raise InputError(f"{path} holds {member!r} {count} times; save it once")
        place = PurePosixPath(member.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts:
            raise InputError(f"{path} holds {member!r}, outside of its folder; rename it")


def _unpack(path: Path, archive: zipfile.ZipFile, member: str) -> Iterator[bytes]:
    """The bytes of a member, some at a time."""
    try:
        with archive.open(member) as packed:
            while piece := packed.read(_PIECE_BYTES):
                yield piece
    except _ZIP_ERRORS as error:
        raise not_whole(path, ".npz", error) from error


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
        _size(arrays[name])
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


def _size(array: ArrayOnDisk) -> int:
    """The number of entries; raises where there is none."""
    size = int(np.prod(array.shape, dtype=object))
    if size <= 0 or array.dtype.itemsize == 0:
        raise InputError(f"{array.name} is empty, shape {array.shape}")
    return size
