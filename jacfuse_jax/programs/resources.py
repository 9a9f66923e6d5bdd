"""What memory and disks have free, checked against what a run takes."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import psutil

from jacfuse_jax.programs.errors import InputError

_GIB = 2**30


def check(memory: float, folders: Mapping[Path, float], *, remedy: str) -> None:
    """Prints what is needed, in one line, and refuses what does not fit.

    Args:
      memory: bytes.
      folders: {folder, there or not: bytes}.
      remedy: which flags to lower.

    Raises:
      InputError: more than is free.
    """
    wanted = [f"{_size(memory)} of memory"]
    wanted += [f"{_size(count)} in {folder}" for folder, count in folders.items() if count]
    print(f"needs at most about {', '.join(wanted)} (estimated)")
    available = psutil.virtual_memory().available
    if memory > available:
        raise InputError(
            f"about {_size(memory)} of memory are needed and {_size(available)} are free; {remedy}"
        )
    on_disk: dict[int, float] = {}  # folders may share one
    for folder, count in folders.items():
        there = next(
            path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
        )
        disk, free = there.stat().st_dev, shutil.disk_usage(there).free
        on_disk[disk] = on_disk.get(disk, 0) + count
        if on_disk[disk] > free:
            raise InputError(
                f"{folder}: about {_size(on_disk[disk])} are needed on its disk and {_size(free)}"
                " are free; make room, or name another folder"
            )


def _size(count: float) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB / 10 else f"{count / 2**20:.0f} MiB"
