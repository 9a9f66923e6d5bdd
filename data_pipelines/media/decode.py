"""Decodes many clips in worker processes into one folder, and carries on where it was killed."""

import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError
from numpy.typing import NDArray
from tqdm.auto import tqdm

from data_pipelines.errors import DataError, MediaError

J = TypeVar("J")

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def decode_all(
    jobs: Mapping[str, J],
    decode_fn: Callable[[J], dict[str, NDArray[Any]]],
    folder: Path,
    *,
    num_workers: int,
    progress: bool,
    description: str,
) -> dict[str, str]:
    """Writes what `decode_fn` makes of every job to `{folder}/{key}.npz`.

    A file appears under its name only when it is complete, and a job whose file is there already is
    skipped: after a kill the same call carries on. Workers write the files themselves, so memory
    does not grow with the number of jobs.

    Args:
      jobs: {key: small argument of `decode_fn`}; keys of letters, digits, "_", "-" and ".", the
        last not in front.
      decode_fn: a function of a module, which worker processes import.
      folder: made if missing; no other process may decode into it at the same time.
      num_workers: processes; 1 decodes in this one.
      progress: shows a progress bar where standard error is a terminal.
      description: of the progress bar.

    Returns:
      {key: message} of the jobs that raised MediaError, in the order of `jobs`. They have no file,
      and the next call tries them again. Any other exception ends the call.

    Raises:
      DataError: a key is refused, the folder cannot be written to, or a worker died.
    """
    for key in jobs:
        _check_key(key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir()}
        for name in names:
            if name.endswith(".tmp"):  # a worker was killed while it wrote
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(_unwritable(folder, error)) from None
    missing = {key: job for key, job in jobs.items() if f"{key}.npz" not in names}
    # Results come as they are ready, and few jobs wait in the queue: nothing piles up. Workers that
    # have nothing to do end soon, also when this process was killed.
    results: Any = Parallel(
        n_jobs=num_workers,
        return_as="generator_unordered",
        pre_dispatch="2 * n_jobs",
        idle_worker_timeout=30,
    )(delayed(_decode)(decode_fn, job, folder, key) for key, job in missing.items())
    bar = tqdm(
        results,
        desc=description,
        total=len(jobs),
        initial=len(jobs) - len(missing),
        disable=None if progress else True,
    )
    try:
        with warnings.catch_warnings():
            # A worker that was idle or has grown by hundreds of megabytes ends and is replaced.
            # Nothing is lost, but raised as an error in joblib's own thread the warning would leave
            # this one waiting for ever.
            warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
            failures = {key: message for key, message in bar if message is not None}
    except TerminatedWorkerError:
        raise DataError(
            f"{folder}: a worker process died (out of memory, killed, or a fault in a decoder); the"
            " same command carries on, with fewer workers if memory is short"
        ) from None
    return {key: failures[key] for key in missing if key in failures}


def read_decoded(folder: Path, key: str) -> dict[str, NDArray[Any]]:
    """Reads one file of `decode_all`.

    Args:
      folder: as for `decode_all`.
      key: as for `decode_all`.

    Returns:
      What `decode_fn` returned.

    Raises:
      DataError: a key is refused, or the file is missing or damaged.
    """
    path = folder / f"{_check_key(key)}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    # TypeError: a .npy under that name.
    except (OSError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: missing or damaged ({reason}); remove the file, and the same command makes it"
            " again"
        ) from None


def _decode(
    decode_fn: Callable[[J], dict[str, NDArray[Any]]], job: J, folder: Path, key: str
) -> tuple[str, str | None]:
    """Decodes one job, in a worker; returns its key, and the message if the clip is unusable."""
    try:
        arrays: Any = decode_fn(job)
    except MediaError as error:
        return key, str(error)
    unfinished = folder / f"{key}.{os.getpid()}.tmp"
    try:
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)
        unfinished.replace(folder / f"{key}.npz")
    except OSError as error:
        raise DataError(_unwritable(folder, error)) from None
    return key, None


def _check_key(key: str) -> str:
    """Returns a key that names a file in the folder and nothing else."""
    if not _KEY.fullmatch(key):
        raise DataError(
            f'{key!r} cannot name a clip: only letters, digits, "_", "-" and ".", the last not in'
            " front"
        )
    return key


def _unwritable(folder: Path, error: OSError) -> str:
    """Says that the folder cannot be written to."""
    return (
        f"{folder}: cannot be written to ({error.strerror}); make room or name another folder, and"
        " the same command carries on"
    )
