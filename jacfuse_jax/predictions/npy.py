"""Arrays that lie uncompressed in a file, .npy to begin with.

Mapped by hand, since `np.load(mmap_mode=)` wants a file with a name, which unpacked arrays do not
have, and since what was read of a mapping stays in memory as long as it does: here every read maps
anew.
"""

import contextlib
import math
import os
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jacfuse_jax.programs import InputError

ScratchFn = Callable[[], BinaryIO]  # makes a temporary file that has no name
_CHUNK_ENTRIES = 2**20  # in memory at a time
_FLOATING = ("float16", "bfloat16", "float32", "float64")
_HEADER_FNS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# In turn: not a Python literal; not one of a header's; not even a line of Python.
_HEADER_ERRORS = (ValueError, TypeError, SyntaxError, tokenize.TokenError)


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

    def chunks(self, num_rows: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """Reads all rows, some at a time: the position of the first, and they themselves.

        Args:
          num_rows: at a time; None: about 2^20 entries.
        """
        size = num_rows or max(1, _CHUNK_ENTRIES // math.prod(self.shape[1:]))
        for start in range(0, self.shape[0], size):
            yield start, self.read(np.arange(start, min(start + size, self.shape[0])))


class Shaped(NamedTuple):
    """What a header says of an array.

    Attributes:
      shape: of the array.
      dtype: of the entries; None where NumPy has no such type.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None


def open_npy(source: Path | BinaryIO, name: object) -> ArrayOnDisk:
    """Opens the array of a .npy file.

    Args:
      source: the file.
      name: of file and array, for messages.

    Returns:
      The array.

    Raises:
      InputError: it is damaged, empty, or holds Python objects.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        shape, is_fortran, dtype = read_header(file, name)
        offset = file.tell()
        num_bytes = file.seek(0, os.SEEK_END) - offset
    array = ArrayOnDisk(str(name), source, offset, dtype, shape, "F" if is_fortran else "C")
    if dtype.hasobject:
        raise InputError(
            f"{name} holds Python objects, which are not loaded; save numbers, or texts by "
            "array.astype(str)"
        )
    if num_bytes < check_size(array) * dtype.itemsize:
        raise not_whole(name, ".npy", EOFError(f"shape {shape}, but {num_bytes} bytes of entries"))
    return array


def read_header(file: Any, name: object) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Reads what a .npy file begins with.

    Args:
      file: open; is left where entries begin.
      name: of file and array, for messages.

    Returns:
      Shape, whether the order of axes is Fortran's, and dtype.

    Raises:
      InputError: it is no header.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version not in _HEADER_FNS:
            raise ValueError(f"version {version}")
        return _HEADER_FNS[version](file)
    except _HEADER_ERRORS as error:
        raise not_whole(name, ".npy", error) from error


def check_floating(array: ArrayOnDisk) -> None:
    """Raises InputError unless the array is floating.

    Args:
      array: that is to be computed with.
    """
    if array.dtype.name not in _FLOATING:
        raise InputError(f"{array.name} is {array.dtype}, not floating; save it as float32")


def check_size(array: ArrayOnDisk) -> int:
    """Counts the entries of an array.

    Args:
      array: that has some.

    Raises:
      InputError: it has none.
    """
    size = int(np.prod(array.shape, dtype=object))
    if size <= 0 or array.dtype.itemsize == 0:
        raise InputError(f"{array.name} is empty, shape {array.shape}")
    return size


def not_whole(path: object, format_name: str, error: Exception) -> InputError:
    """The error for a file that is damaged, or of another format.

    Args:
      path: of the file.
      format_name: that it should have.
      error: what its reader said.
    """
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(f"{path} is not a whole {format_name} file ({reason}); save it again")
