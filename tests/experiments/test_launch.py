import signal
import subprocess
import sys

import pytest

from data_pipelines.catalogue import NAMES, base_name
from experiments.measuring.operations import OPERATIONS
from experiments.run import benchmark_flags
from experiments.run.flags import DEFAULT_NUM_EPOCHS
from experiments.run.workdir import claimed
from jacfuse_jax.evaluation import names
from jacfuse_jax.evaluation.targets import STRENGTHS
from tests.experiments import runs

# What takes seconds to load.
HEAVY = {"tensorflow_datasets", "matplotlib", "scipy", "librosa", "flax", "orbax"}
_HELP = f"""
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_module("experiments." + sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("loaded:", end.code, *sorted({HEAVY} & set(sys.modules)))
"""


def help_of(binary):
    command = [sys.executable, "-c", _HELP, binary]
    return subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("binary", "flag"),
    [
        ("robust_fusion", "gammas"),
        ("certified", "confidences"),
        ("extra_modality", "perturbed"),
        ("make_report", "workdirs"),
        ("attack_sanity", "attack_steps"),
        ("benchmark", "batch_sizes"),
        ("accelerator_digits", "num_test"),
        ("accelerator_report", "partial"),
    ],
)
def test_help_lists_flags_without_loading_what_takes_seconds(binary, flag):
    said = help_of(binary)
    assert f"  --{flag}: " in said
    assert said.endswith("loaded: 1\n")  # absl's code after help


def test_names_that_flags_take_are_those_of_what_they_name():
    assert {op: tuple(o.methods) for op, o in OPERATIONS.items()} == benchmark_flags.METHODS
    assert ("clean", *STRENGTHS) == names.PERTURBATIONS
    assert DEFAULT_NUM_EPOCHS.keys() == {base_name(name) for name in NAMES}


_HOLD = """
import sys, time
from pathlib import Path
from experiments.run.workdir import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_in_a_working_directory_ends_in_one_line_until_the_first_is_gone(tmp_path):
    workdir = tmp_path / "run"
    command = [sys.executable, "-c", _HOLD, str(workdir)]
    first = subprocess.Popen(command, cwd=runs.ROOT, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    try:
        code, _, stderr = runs.run_process(workdir, binary="benchmark")
        assert code == 1
        assert stderr == (
            f"error: --workdir={workdir}: another run is at work there; wait until it has ended,"
            " or choose another --workdir\n"
        )
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    with claimed(workdir):
        (workdir / "result").touch()
