"""A working directory belongs to one process at a time, and to the flags of one run."""

import dataclasses
import json
import platform
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiments.run.config import Config
from jacfuse_jax.programs import InputError
from jacfuse_jax.programs.files import write_atomically

_LOCK = ".lock"
MEANS = ("workdir", "data_dir", "manual_dir", "num_workers", "max_missing")
"""Flags that say where and with what means, not what is computed."""
# Flags that decide on the classifiers, and on the rows that a run's data are the digest of.
_OF_CLASSIFIERS = (
    *(
        "dataset",
        "fold",
        "kinds",
        "attack_at",
        "weights",
        "num_train",
        "num_eval",
        "num_epochs",
        "batch_size",
        "seed",
    ),
)

# Whose versions config.json tells.
_PACKAGES = (
    "jacfuse_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "numpy",
)


@contextmanager
def claimed(workdir: Path) -> Generator[None]:
    """Keeps other processes out of a working directory, which is made when it is missing.

    The system lets it go however the process ends. A directory that is new and has got nothing by
    the end is removed, so that a corrected command may use it.

    Args:
      workdir: of the flag.

    Raises:
      InputError: another process is at work there, or it is a file.
    """
    if workdir.is_file():
        raise InputError(f"--workdir={workdir} is a file; name a folder")
    is_new = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(workdir / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"--workdir={workdir}: another run is at work there; wait until it has ended, or choose"
            " another --workdir"
        ) from None
    try:
        yield
    finally:
        if is_new and [path.name for path in workdir.iterdir()] == [_LOCK]:
            shutil.rmtree(workdir)
        lock.release()


def check_workdir(
    config: Config, data: str | None = None, *, classifiers_only: bool = False
) -> None:
    """Raises unless the working directory is new or belongs to a run with the same flags.

    Args:
      config: the settings of this run.
      data: digest of its data set; None where it is not loaded yet.
      classifiers_only: compares no flags but those that its classifiers and its rows depend on;
        the seed must be one of the run's.

    Raises:
      InputError: the directory's config.json is of other flags or data, is not a config, or is
        missing beside results; files are those of an earlier version.
    """
    path = config.workdir / "config.json"
    for old in path.parent.glob("seed_*/**/* *.npz"):
        raise InputError(
            f"--workdir={config.workdir} is of an earlier version, which named {old.name!r}; choose"
            " another --workdir"
        )
    if not path.exists():
        for name in ("seed_*", "results.csv", "figures"):
            for remains in path.parent.glob(name):
                raise InputError(
                    f"{path} is missing beside {remains.name}; choose another --workdir"
                )
        return
    try:
        content = json.loads(path.read_text())
        owner = dict(content["flags"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a config of this program; choose another --workdir"
        ) from error
    flags = _flags(config)
    names = [name for name in dict.fromkeys([*owner, *flags]) if name not in MEANS]
    if classifiers_only:
        names = list(_OF_CLASSIFIERS)
        seed, num_seeds = owner.get("seed", 0), owner.get("num_seeds", 1)
        if seed <= config.seed < seed + num_seeds:
            names.remove("seed")
    differences = [
        f"--{name}={owner.get(name)}, now {flags.get(name)}"
        for name in names
        if owner.get(name) != flags.get(name)
    ]
    if differences:
        raise InputError(
            f"{path} belongs to a run with other flags ({'; '.join(differences)}); "
            "repeat those or choose another --workdir"
        )
    if data is not None and content.get("data") != data:
        raise InputError(
            f"{path} belongs to a run on other rows of {config.dataset}: the data set was prepared "
            "anew; choose another --workdir"
        )


def write_config(
    config: Config,
    data: str,
    device: str,
    *,
    wall_time_s: float | None = None,
    num_gradients: int | None = None,
) -> None:
    """Writes config.json: flags, data, versions, device and, when done, what it took.

    What it took before, and the commits that it ran on, stay where the run carries on.
    """
    path = config.workdir / "config.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    commits = [name for name in (before.get("commit"), _commit()) if name]
    if wall_time_s is not None:
        wall_time_s = round(wall_time_s + (before.get("wall_time_s") or 0), 1)
    if num_gradients is not None:
        num_gradients += before.get("num_gradients") or 0
    content = {
        "flags": _flags(config),
        "data": data,
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _PACKAGES},
        },
        "commit": ", ".join(dict.fromkeys(", ".join(commits).split(", "))) or None,
        "device": device,
        "platform": platform.platform(),
        "wall_time_s": before.get("wall_time_s") if wall_time_s is None else wall_time_s,
        "num_gradients": before.get("num_gradients") if num_gradients is None else num_gradients,
    }
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _commit() -> str | None:
    """The commit of the code; None where it is not that of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _flags(config: Config) -> dict[str, Any]:
    """The settings as JSON reads them back."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))
