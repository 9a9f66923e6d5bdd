"""The steps of an evaluation, each kept in a file: a run that was killed repeats none of them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np
from flax import traverse_util
from tqdm.auto import tqdm

from experiments.config import ConfigError
from experiments.files import write_atomically
from experiments.methods import Observed
from experiments.models import Rows
from experiments.names import ATTACKS
from experiments.perturbations import PerturbFn
from experiments.targets import Branch, Step, branch_of

# One step compiles, or waits for files, while another computes.
_NUM_WORKERS = 2


def run_steps(
    steps: Sequence[Step],
    perturb_fn: PerturbFn,
    rows: Rows,
    *,
    num_attack: int,
    folder: Path,
    seed: int,
) -> None:
    """Carries out steps and keeps what they gave, save those whose file is there.

    Args:
      steps: each once.
      perturb_fn: see `perturbations.make_perturb_fn`; called from several threads.
      rows: for corruptions.
      num_attack: attacks take the first so many rows.
      folder: of the files.
      seed: of the perturbations.
    """
    programs: dict[Any, tuple[Branch, ...]] = {}
    for step in steps:  # of all of them, so that a run that carries on compiles the same programs
        before = programs.get((step.attacked, step.perturbation), ())
        programs[step.attacked, step.perturbation] = (*before, branch_of(step))
    programs = {key: tuple(dict.fromkeys(branches)) for key, branches in programs.items()}
    missing = [step for step in steps if not _path(folder, step).exists()]
    attacked_rows = rows.first(num_attack)
    with tqdm(total=len(steps), initial=len(steps) - len(missing), disable=None) as progress:

        def run(step: Step) -> None:
            chosen = attacked_rows if step.perturbation in ATTACKS else rows
            branches = programs[step.attacked, step.perturbation]
            observed = perturb_fn(step, branches, jax.random.key(seed), chosen)
            arrays = traverse_util.flatten_dict(observed._asdict(), sep="/")
            write_atomically(_path(folder, step), partial(_save, arrays))
            progress.set_description(f"{'+'.join(step.attacked)}: {step.perturbation}")
            progress.update()

        pool = ThreadPoolExecutor(_NUM_WORKERS)
        try:
            # The first step of every program compiles it; two threads never compile the same.
            first = {(step.attacked, step.perturbation): step for step in reversed(missing)}
            for chosen in (first.values(), [s for s in missing if s not in first.values()]):
                for result in [pool.submit(run, step) for step in chosen]:
                    result.result()
        finally:  # after an error, not before all that is queued
            pool.shutdown(cancel_futures=True)


def read_step(step: Step, folder: Path) -> Observed:
    """What a step gave.

    Args:
      step: carried out before.
      folder: as for `run_steps`.

    Raises:
      ConfigError: the file is damaged.
    """
    path = _path(folder, step)
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            arrays: dict[str, Any] = dict(file)
    # TypeError: a .npy under that name.
    except (OSError, TypeError, ValueError, EOFError, KeyError, BadZipFile) as error:
        raise ConfigError(
            f"{path} is damaged ({type(error).__name__}); remove it, and it is made again"
        ) from error
    tree = traverse_util.unflatten_dict(arrays, sep="/")
    return Observed(*(tree.get(field, {}) for field in Observed._fields))


def _save(arrays: dict[str, Any], path: Path) -> None:
    # Into an open file: NumPy appends .npz to names without it.
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _path(folder: Path, step: Step) -> Path:
    parts = [step.perturbation, str(step.severity)]
    if step.target is not None:
        parts.append(step.target.name)
    return folder / "+".join(step.attacked) / f"{'_'.join(parts)}.npz"
