import gc
import re
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from experiments.run.step_folder import StepFolder
from jacfuse_jax.evaluation.evidence import Observed
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.evaluation.steps import run_steps
from jacfuse_jax.evaluation.targets import OWN, Step, Target, branch_of
from jacfuse_jax.programs import InputError
from tests.evaluation import tiny

ROBUST = Target(tiny.robust(), ("image",))
STEPS = [
    Step((modality,), perturbation, severity, target)
    for modality in ("image", "audio")
    for severity in (1, 2)
    for perturbation, target in (("missing", None), ("fgm", OWN), ("fgm", ROBUST))
]


def chain_of(step):
    """The steps that are carried out together: attacks of all budgets, or one corruption."""
    same = [s for s in STEPS if s._replace(severity=0) == step._replace(severity=0)]
    return same if step.target else [step]


ROWS = Rows({}, np.arange(6), np.arange(6, dtype=np.int32), {}, {}, {}, {})


class PerturbFn:
    """Returns numbers that tell the step, and remembers what it was asked."""

    def __init__(self, stop_at=None):
        self.calls = []
        self.branches = {}
        self.labels = {}
        self.found = {}
        self.stop_at = stop_at
        self.num_chains = 0
        self.lock = threading.Lock()

    def __call__(self, chain, branches, key, rows, found):
        with self.lock:
            self.num_chains += 1
            if self.stop_at is not None and self.num_chains > self.stop_at:
                raise KeyboardInterrupt
            self.calls.extend(chain)
            for step, of_step in zip(chain, found, strict=True):
                self.branches[step] = branches
                self.labels[step] = rows.labels.tolist()
                self.found[step] = of_step
        return [expected_of(step, key, len(rows.labels)) for step in chain]


def expected_of(step, key=None, num_rows=None):
    """Logits, heads and Gram matrices that no other step has."""
    key = jax.random.key(3) if key is None else key
    if num_rows is None:
        num_rows = 6 if step.target is None else 4
    number = float(STEPS.index(step)) + float(jax.random.uniform(key))
    array = np.full((num_rows, 2), number)
    return Observed(
        {"standard": {step.attacked[0]: array}, "noise": {step.attacked[0]: -array}},
        {"gated": array + 1},
        {step.attacked[0]: array[..., None]} if step.target else {},
        {step.attacked[0]: array[:, 0]} if step.target else {},
    )


def run(perturb_fn, folder, steps=STEPS):
    run_steps(steps, perturb_fn, ROWS, num_attack=4, store=StepFolder(folder), seed=3)


def path_of(step, folder):
    parts = [step.perturbation, step.severity, *([step.target.name] if step.target else [])]
    return folder / step.attacked[0] / f"{'_'.join(map(str, parts))}.npz"


def assert_kept(folder):
    for step in STEPS:
        found, expected = StepFolder(folder)[step], expected_of(step)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_every_step_is_carried_out_once_and_kept(tmp_path):
    perturb_fn = PerturbFn()
    run(perturb_fn, tmp_path)
    assert sorted(map(STEPS.index, perturb_fn.calls)) == list(range(len(STEPS)))
    assert_kept(tmp_path)
    assert len(list(tmp_path.rglob("*"))) == len(STEPS) + 2  # folders; nothing partial


def test_a_second_run_repeats_nothing(tmp_path):
    run(PerturbFn(), tmp_path)
    again = PerturbFn()
    run(again, tmp_path)
    assert again.calls == []
    assert_kept(tmp_path)


def test_attacks_are_of_the_first_rows_and_corruptions_of_all(tmp_path):
    perturb_fn = PerturbFn()
    run(perturb_fn, tmp_path)
    assert set(perturb_fn.labels) == set(STEPS)
    for step, labels in perturb_fn.labels.items():
        assert labels == ([0, 1, 2, 3, 4, 5] if step.perturbation == "missing" else [0, 1, 2, 3])


@pytest.mark.parametrize("step", STEPS[:3], ids=lambda step: step.perturbation)
def test_a_file_that_was_removed_is_made_again_and_no_other(step, tmp_path):
    run(PerturbFn(), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    (removed,) = (path for path in before if path == path_of(step, tmp_path))
    removed.unlink()
    again = PerturbFn()
    run(again, tmp_path)
    chain = chain_of(step)
    assert again.calls == chain
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert set(after) == set(before)
    assert {path for path in before if before[path] != after[path]} == {removed}
    assert_kept(tmp_path)


def test_what_a_killed_run_left_half_written_is_never_read(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    leftovers = []
    for step in STEPS:
        path = path_of(step, tmp_path)
        path.parent.mkdir(exist_ok=True)
        leftovers.append(path.with_name(f".{path.stem}.{killed.pid}.1.partial.npz"))
        leftovers[-1].write_bytes(b"PK")
    perturb_fn = PerturbFn()
    run(perturb_fn, tmp_path)
    assert len(perturb_fn.calls) == len(STEPS)
    assert_kept(tmp_path)
    assert not any(path.exists() for path in leftovers)


def test_parameters_that_are_nearly_equal_have_files_of_their_own(tmp_path):
    steps = [Step(("image",), "fgm", 1, Target(tiny.robust(g))) for g in (0.1234567, 0.1234568)]

    def perturb_fn(chain, branches, key, rows, found):
        del branches, key, rows, found
        (step,) = chain
        return [Observed({"standard": {"image": np.array(steps.index(step))}}, {}, {}, {})]

    run(perturb_fn, tmp_path, steps)
    found = [StepFolder(tmp_path)[step].logits["standard"]["image"] for step in steps]
    assert found == [0, 1]


def test_a_step_that_was_never_carried_out_is_an_error(tmp_path):
    with pytest.raises(InputError, match="fgm_1_unimodal"):
        StepFolder(tmp_path)[STEPS[1]]


@pytest.mark.parametrize("stop_at", [0, 1, 4, 7])
def test_an_ended_run_is_carried_on_with_what_remains(stop_at, tmp_path):
    ended = PerturbFn(stop_at)
    with pytest.raises(KeyboardInterrupt):
        run(ended, tmp_path)
    done = [step for step in STEPS if path_of(step, tmp_path).exists()]
    assert len({tuple(chain_of(step)) for step in done}) == stop_at
    assert all(set(chain_of(step)) <= set(done) for step in done)
    assert not list(tmp_path.rglob("*partial*"))
    carried_on = PerturbFn()
    run(carried_on, tmp_path)
    assert set(carried_on.calls) == set(STEPS) - set(done)
    assert_kept(tmp_path)
    # The same programs as in one go, so that results are the same to the last bit.
    for step, branches in carried_on.branches.items():
        of_program = [s for s in STEPS if s[:2] == step[:2]]
        assert branches == tuple(dict.fromkeys(map(branch_of, of_program)))


def test_what_attacks_on_own_classifiers_find_is_told_to_those_on_rules(tmp_path):
    perturb_fn = PerturbFn()
    run(perturb_fn, tmp_path)
    for step, found in perturb_fn.found.items():
        expected = []
        if step.target == ROBUST:
            expected = [expected_of(step._replace(target=OWN))]
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("keep", [0, 10, 200, 0.5, 0.99])
def test_a_truncated_file_is_named(keep, tmp_path):
    run(PerturbFn(), tmp_path)
    path = tmp_path / "image" / "fgm_2_robust_gamma_0.1_believed_image.npz"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    step = Step(("image",), "fgm", 2, ROBUST)
    with pytest.raises(InputError) as caught:
        StepFolder(tmp_path)[step]
    message = str(caught.value)
    assert message.startswith(f"{path} is damaged (")
    assert message.endswith("); remove it, and it is made again")
    del caught
    gc.collect()  # the file is closed: else its ResourceWarning fails the test
    path.unlink()
    run(PerturbFn(), tmp_path)
    assert_kept(tmp_path)


def test_an_array_in_the_place_of_a_file_of_arrays_is_named(tmp_path):
    path = tmp_path / "image" / "fgm_2_robust_gamma_0.1_believed_image.npz"
    path.parent.mkdir()
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match=re.escape(f"{path} is damaged (TypeError); remove it")):
        StepFolder(tmp_path)[Step(("image",), "fgm", 2, ROBUST)]


def test_an_error_ends_the_run_at_once(tmp_path):
    calls = []

    def fail_once(chain, branches, key, rows, found):
        del branches, found
        calls.append(chain)
        time.sleep(0.01)
        if len(calls) > 2 and chain == calls[2]:
            raise OSError("no space left")
        return [expected_of(step, key, len(rows.labels)) for step in chain]

    with pytest.raises(OSError, match="no space left"):
        run(fail_once, tmp_path)
    assert len(calls) <= 6  # what was under way may end
