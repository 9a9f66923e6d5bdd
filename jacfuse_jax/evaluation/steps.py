"""The steps of an evaluation, each kept: a run that was killed repeats no chain of them."""

from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
from tqdm.auto import tqdm

from jacfuse_jax.evaluation.chains import PerturbFn
from jacfuse_jax.evaluation.evidence import Observed
from jacfuse_jax.evaluation.input_checks import InputCheck
from jacfuse_jax.evaluation.names import ATTACKS
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.evaluation.rules import EachAlone
from jacfuse_jax.evaluation.stages import stages_of
from jacfuse_jax.evaluation.targets import Branch, Step, branch_of

# One chain compiles, or waits for files, while another computes.
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
    only: Container[Step] | None = None,
) -> None:
    """Carries out steps and keeps what they gave, save those that are kept already.

    Attacks that differ in nothing but their severity are one chain: what is found at one severity
    is where the next one starts. The attacks on the modalities' own classifiers come first, and
    what they find counts for the rules.

    Args:
      steps: each once, by severity.
      perturb_fn: see `perturb.make_perturb_fn`; called from several threads.
      rows: for corruptions.
      num_attack: attacks take the first so many rows.
      store: where they are kept; set from several threads.
      seed: of the perturbations.
      only: some of the steps, whole chains; None: all. Programs are compiled for all of them.
    """
    programs: dict[Any, tuple[Branch, ...]] = {}
    chains: dict[Any, list[Step]] = {}
    for step in steps:  # of all of them, so that a run that carries on compiles the same programs
        program = _program(step)
        programs[program] = (*programs.get(program, ()), branch_of(step))
        of_chain = None if step.perturbation in ATTACKS else step.severity
        chains.setdefault((program, step.target, of_chain), []).append(step)
    programs = {key: tuple(dict.fromkeys(branches)) for key, branches in programs.items()}
    wanted = [chain for chain in chains.values() if only is None or chain[0] in only]
    missing = [chain for chain in wanted if not all(step in store for step in chain)]
    attacked_rows = rows.first(num_attack)
    total, num_missing = (sum(map(len, of_these)) for of_these in (wanted, missing))
    with tqdm(total=total, initial=total - num_missing, disable=None) as progress:

        def run(chain: Sequence[Step]) -> None:
            first = chain[0]
            found: list[list[Observed]] = [[] for _ in chain]
            if first.perturbation in ATTACKS and not _is_transferred(first):
                found = [
                    [store[s] for s in steps if _is_transferred(s) and s[:3] == step[:3]]
                    for step in chain
                ]
            observed = perturb_fn(
                chain,
                programs[_program(first)],
                jax.random.key(seed),
                attacked_rows if first.perturbation in ATTACKS else rows,
                found,
            )
            for step, result in zip(chain, observed, strict=True):
                if step not in store:
                    store[step] = result
            progress.set_description(f"{'+'.join(first.attacked)}: {first.perturbation}")
            progress.update(len(chain))

        pool = ThreadPoolExecutor(_NUM_WORKERS)
        try:
            # Attacks on own classifiers come first; then the first chain of every program compiles
            # it, since two threads never compile the same.
            own = [chain for chain in missing if _is_transferred(chain[0])]
            others = [chain for chain in missing if not _is_transferred(chain[0])]
            for wave in (own, others):
                first = {_program(chain[0]): chain for chain in reversed(wave)}
                later = [chain for chain in wave if chain not in first.values()]
                for chosen in (first.values(), later):
                    for result in [pool.submit(run, chain) for chain in chosen]:
                        result.result()
        finally:  # after an error, not before all that is queued
            pool.shutdown(cancel_futures=True)


def count_programs(steps: Sequence[Step], *, num_classes: int) -> int:
    """How many attacks are compiled.

    Args:
      steps: all of an evaluation.
      num_classes: K.
    """
    return len(
        {
            (_program(step), stage._replace(share_left=1, relative_step_size=1, from_clean=False))
            for step in steps
            if step.target is not None
            for stage in stages_of(step, num_classes=num_classes)
        }
    )


def _program(step: Step) -> Any:
    """What one compiled program serves."""
    if step.target is None:
        return step.attacked, step.perturbation
    rule, towards = step.target.rule, step.target.towards
    # Those that check inputs take more than others do.
    check = rule.kind if isinstance(rule, InputCheck) else ""
    return step.attacked, step.perturbation, towards > 0, check


def _is_transferred(step: Step) -> bool:
    """Whether a step attacks the modalities' own classifiers."""
    return step.target is not None and isinstance(step.target.rule, EachAlone)
