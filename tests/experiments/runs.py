"""Runs of the main experiment in processes of their own, as users start them."""

import csv
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Seconds, not minutes: few rows, epochs and steps.
SMALL = (
    "--dataset=digits",
    "--num_train=1000",
    "--num_epochs=3",
    "--batch_size=32",
    "--num_eval=60",
    "--num_attack=40",
    "--attack_steps=3",
    "--gammas=0.5,0.01",
    "--scales=0.2",
)


def start(workdir: Path, *flags: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.robust_fusion", f"--workdir={workdir}", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(workdir: Path, *flags: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    process = start(workdir, *flags)
    stdout, stderr = process.communicate()
    return process.returncode, stdout, stderr


def stop_when(
    condition: Callable[[], bool], workdir: Path, *flags: str, sent: int = signal.SIGKILL
) -> tuple[int, str]:
    """Starts a run and sends it a signal as soon as the condition holds; it must still run then.

    Returns:
      Exit code and standard error.
    """
    process = start(workdir, *flags)
    while not condition():
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.002)
    process.send_signal(sent)
    _, stderr = process.communicate()
    return process.returncode, stderr


def read_rows(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))
