"""Files that are either whole or not there.

By hand, since libraries for it either do not wait for the disk or are no longer kept up.
"""

import glob
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

from jacfuse_jax.programs.errors import InputError


def write_atomically(path: Path, content: str | Callable[[Path], object]) -> None:
    """Writes a file under a temporary name beside it, then renames it into place.

    The name is that of the thread, so that two writers do not mix; the file that is renamed last
    stays. Content reaches the disk before the name does, so that a crash of the machine leaves the
    old file or the new one. What killed processes of this machine left of `path` is removed.

    Args:
      path: of the file; its folder is made when it is missing.
      content: the text, or a function that writes to the path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    writer = f"{os.getpid()}.{threading.get_native_id()}"
    temporary = path.with_name(f".{path.stem}.{writer}.partial{path.suffix}")
    try:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        else:
            content(temporary)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path, flag: str) -> None:
    """Makes a folder, and those above it, if need be.

    Args:
      path: of the folder.
      flag: that named it, with its value.

    Raises:
      InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{flag}: its folder cannot be made ({error.strerror}); name another"
        ) from error


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Removes temporary files of `path` whose writers are no more."""
    for leftover in path.parent.glob(f".{glob.escape(path.stem)}.*.partial{path.suffix}"):
        match = re.search(r"\.([0-9]+)\.[0-9]+\.partial", leftover.name)
        if match is not None and not _is_running(int(match[1])):
            leftover.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    """Tells whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
