"""Arrays in archives, .npz: packed, so that each is unpacked to a temporary file first."""

import collections
import contextlib
import lzma
import zipfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path, PurePosixPath

from jacfuse_jax.predictions.npy import (
    ArrayOnDisk,
    ScratchFn,
    Shaped,
    not_whole,
    open_npy,
    read_header,
)
from jacfuse_jax.programs import InputError

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


def open_npz(path: Path, names: Sequence[str], scratch_fn: ScratchFn) -> dict[str, ArrayOnDisk]:
    """Unpacks the arrays of these names that an archive has.

    Args:
      path: of the archive.
      names: to look for.
      scratch_fn: makes the files that they are unpacked to.

    Raises:
      InputError: it is damaged, or has members of one name or outside of its folder.
    """
    arrays: dict[str, ArrayOnDisk] = {}
    with _open_archive(path) as archive:
        for name in set(names) & {member.removesuffix(".npy") for member in archive.namelist()}:
            file = scratch_fn()
            for piece in _unpack(path, archive, f"{name}.npy"):
                file.write(piece)
            file.seek(0)
            arrays[name] = open_npy(file, f"{path}: {name}")
    return arrays


def list_npz(path: Path) -> dict[str, Shaped]:
    """What arrays an archive has; only the beginning of each is unpacked.

    Args:
      path: of the archive.

    Raises:
      InputError: as `open_npz`, or it has none.
    """
    shaped: dict[str, Shaped] = {}
    with _open_archive(path) as archive:
        members = [member for member in archive.namelist() if member.endswith(".npy")]
        if not members:
            raise not_whole(path, ".npz", ValueError("no .npy in it"))
        for member in members:
            name = member.removesuffix(".npy")
            try:
                with archive.open(member) as packed:
                    shape, _, dtype = read_header(packed, f"{path}: {name}")
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
