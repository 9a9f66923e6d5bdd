"""A folder with a file for every step of an evaluation, which are whole or not there.

By hand rather than by joblib's cache, whose keys are hashes of arguments, models among them: here
the name of a file says what it holds, and removing it makes it again.
"""

from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from flax import traverse_util

from jacfuse_jax.evaluation.evidence import Observed
from jacfuse_jax.evaluation.targets import Step
from jacfuse_jax.programs import InputError
from jacfuse_jax.programs.files import write_atomically


class StepFolder:
    """Keeps what steps gave, see `jacfuse_jax.evaluation.steps.StepStore`."""

    def __init__(self, folder: Path) -> None:
        """Names the folder, which is made when the first step is kept."""
        self._folder = folder

    def __contains__(self, step: object) -> bool:
        return isinstance(step, Step) and self._path(step).exists()

    def __getitem__(self, step: Step) -> Observed:
        path = self._path(step)
        try:
            with path.open("rb") as stream, np.load(stream) as file:
                arrays: dict[str, Any] = dict(file)
        # TypeError: a .npy under that name.
        except (OSError, TypeError, ValueError, EOFError, KeyError, BadZipFile) as error:
            raise InputError(
                f"{path} is damaged ({type(error).__name__}); remove it, and it is made again"
            ) from error
        tree = traverse_util.unflatten_dict(arrays, sep="/")
        return Observed(*(tree.get(field, {}) for field in Observed._fields))

    def __setitem__(self, step: Step, observed: Observed) -> None:
        arrays = traverse_util.flatten_dict(observed._asdict(), sep="/")
        write_atomically(self._path(step), partial(_save, arrays))

    def _path(self, step: Step) -> Path:
        parts = [step.perturbation, str(step.severity)]
        if step.target is not None:
            parts.append(step.target.name)
        return self._folder / "+".join(step.attacked) / f"{'_'.join(parts)}.npz"


def _save(arrays: dict[str, Any], path: Path) -> None:
    # Into an open file: NumPy appends .npz to names without it.
    with path.open("wb") as file:
        np.savez(file, **arrays)
