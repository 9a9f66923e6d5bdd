"""The steps of an evaluation, each kept: a run that was killed repeats none of them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
from tqdm.auto import tqdm

from jacfuse_jax.evaluation.evidence import Observed
from jacfuse_jax.evaluation.names import ATTACKS
from jacfuse_jax.evaluation.perturb import PerturbFn
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.evaluation.targets import Branch, Step, branch_of

# One step compiles, or waits for files, while another computes.
_NUM_WORKERS = 2


class StepStore(Protocol):
    """What keeps what steps gave: a dict, or files that outlive the process."""

    def __contains__(self, step: object, /) -> bool: ...
    def __getitem__(self, step: Step, /) -> Observed: ...
    def __setitem__(self, step: Step, observed: Observed, /) -> None: ...


def run_steps(
    steps: Sequence[Step],
    perturb_fn: PerturbFn,
    rows: Rows,
    *,
    num_attack: int,
    store: StepStore,
    seed: int,
) -> None:
    """Carries out steps and keeps what they gave, save those that are kept already.

    Args:
      steps: each once.
      perturb_fn: see `perturbations.make_perturb_fn`; called from several threads.
      rows: for corruptions.
      num_attack: attacks take the first so many rows.
      store: where they are kept; set from several threads.
      seed: of the perturbations.
    """
    programs: dict[Any, tuple[Branch, ...]] = {}
    for step in steps:  # of all of them, so that a run that carries on compiles the same programs
        before = programs.get((step.attacked, step.perturbation), ())
        programs[step.attacked, step.perturbation] = (*before, branch_of(step))
    programs = {key: tuple(dict.fromkeys(branches)) for key, branches in programs.items()}
    missing = [step for step in steps if step not in store]
    attacked_rows = rows.first(num_attack)
    with tqdm(total=len(steps), initial=len(steps) - len(missing), disable=None) as progress:

        def run(step: Step) -> None:
            chosen = attacked_rows if step.perturbation in ATTACKS else rows
            branches = programs[step.attacked, step.perturbation]
            store[step] = perturb_fn(step, branches, jax.random.key(seed), chosen)
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
