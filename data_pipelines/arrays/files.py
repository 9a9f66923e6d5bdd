"""Arrays in .npy files and .npz archives: headers first, entries when they are asked for."""

import contextlib
import tokenize
import zipfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import ZIP_ERRORS, DataError

_HEADER_FNS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# In turn: not a Python literal; not one of a header's; not even a line of Python.
_HEADER_ERRORS = (ValueError, TypeError, SyntaxError, tokenize.TokenError)


class ArrayFile(NamedTuple):
    """An array whose header has been read.

    Attributes:
      path: of the .npy file or the .npz archive.
      member: name in the archive, with .npy; None where the file is a .npy itself.
      shape: of the array, not empty.
      dtype: without Python objects.
    """

    path: Path
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return _label(self.path, self.member)

    def open(self) -> NDArray[Any]:
        """Returns the array: of a .npy mapped, of an archive in memory.

        Raises:
          DataError: it is damaged.
        """
        if self.member is None:
            try:
                return np.load(self.path, mmap_mode="r", allow_pickle=False)
            except _HEADER_ERRORS as error:  # it has changed since its header was read
                raise _not_whole(str(self), error) from error
        with _open_archive(self.path) as archive:
            try:
                with archive.open(self.member) as stream:
                    return np.lib.format.read_array(stream, allow_pickle=False)
            except (*ZIP_ERRORS, *_HEADER_ERRORS) as error:
                raise _not_whole(str(self), error) from error


def open_npy(path: Path) -> ArrayFile:
    """Reads the header of a .npy file.

    Args:
      path: of the file.

    Raises:
      DataError: it is damaged, truncated or empty, or holds Python objects.
    """
    with path.open("rb") as stream:
        array = _read_header(stream, path, None)
        offset = stream.tell()
    num_bytes = path.stat().st_size - offset
    if num_bytes < int(np.prod(array.shape, dtype=object)) * array.dtype.itemsize:
        reason = f"shape {array.shape}, but {num_bytes} bytes of entries"
        raise _not_whole(str(array), EOFError(reason))
    return array


def open_npz(path: Path) -> dict[str, ArrayFile]:
    """Reads the headers of an archive.

    Args:
      path: of the archive.

    Returns:
      {name: array}.

    Raises:
      DataError: it is damaged, has a name twice, or one of its arrays is empty or holds objects.
    """
    arrays: dict[str, ArrayFile] = {}
    with _open_archive(path) as archive:
        for member in archive.namelist():
            if not member.endswith(".npy"):
                continue
            name = member.removesuffix(".npy")
            if name in arrays:
                raise DataError(f"{path} holds {member!r} more than once; save it once")
            try:
                with archive.open(member) as stream:
                    arrays[name] = _read_header(stream, path, member)
            except ZIP_ERRORS as error:
                raise _not_whole(_label(path, member), error) from error
    return arrays


@contextlib.contextmanager
def _open_archive(path: Path) -> Generator[zipfile.ZipFile]:
    """The archive."""
    with path.open("rb") as stream, contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(stream))
        except ZIP_ERRORS as error:
            raise _not_whole(str(path), error) from error
        yield archive


def _read_header(stream: BinaryIO | Any, path: Path, member: str | None) -> ArrayFile:
    """Reads what an array begins with."""
    label = _label(path, member)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADER_FNS:
            raise ValueError(f"version {version}")
        shape, _, dtype = _HEADER_FNS[version](stream)
    except _HEADER_ERRORS as error:
        raise _not_whole(label, error) from error
    if dtype.hasobject:
        raise DataError(
            f"{label} holds Python objects, which are not loaded; save numbers, or texts by "
            "array.astype(str)"
        )
    if not shape or min(shape) <= 0 or dtype.itemsize == 0:
        raise DataError(f"{label} is empty, shape {shape}; save rows along the first axis")
    return ArrayFile(path, member, shape, dtype)


def _label(path: Path, member: str | None) -> str:
    """Names an array in messages."""
    return str(path) if member is None else f"{path}: {member.removesuffix('.npy')}"


def _not_whole(label: str, error: Exception) -> DataError:
    """The error for a file that is damaged, or of another format."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return DataError(f"{label} is not a whole array ({reason}); save it again")
