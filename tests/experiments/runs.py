"""Runs of binaries: in this process, or in one of their own where the process is the point."""

import contextlib
import csv
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import jax
from absl import flags
from absl.testing import flagsaver

from experiments import robust_fusion

ROOT = Path(__file__).parents[2]
# Half a minute, most of it to compile: few rows, epochs, steps, methods.
SMALL = (
    "--dataset=digits",
    "--num_train=400",
    "--num_epochs=3",
    "--batch_size=32",
    "--num_eval=60",
    "--num_attack=20",
    "--attack_steps=1",
    "--gammas=0.1",
    "--scales=0.2",
    "--perturbations=clean,missing,fgm",
    "--methods=unimodal,statistical,scaled,robust",
)


class Said(NamedTuple):
    """What a run printed."""

    stdout: str
    stderr: str


def run(workdir: Path, *arguments: str, binary: ModuleType = robust_fusion) -> Said:
    """Runs a binary of the main experiment's flags in this process; its errors are raised."""
    with (
        flagsaver.flagsaver(),
        _without_x64(),
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        flags.FLAGS([binary.__name__, f"--workdir={workdir}", *arguments])
        binary.main([binary.__name__])
    return Said(stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def _without_x64() -> Generator[None]:
    """As users run binaries; also in the threads of a run, which know no context of this one."""
    jax.config.update("jax_enable_x64", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", True)


def start(
    workdir: Path, *arguments: str, binary: str = "robust_fusion", is_optimised: bool = False
) -> "subprocess.Popen[str]":
    """Starts a binary in a process of its own."""
    environment = dict(os.environ)
    if is_optimised:  # runs that compute for longer than it takes to compile
        environment.pop("XLA_FLAGS", None)
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{binary}", f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_process(
    workdir: Path, *arguments: str, binary: str = "robust_fusion", is_optimised: bool = False
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    process = start(workdir, *arguments, binary=binary, is_optimised=is_optimised)
    stdout, stderr = process.communicate()
    return process.returncode, stdout, stderr


def stop_when(
    condition: Callable[[], bool], workdir: Path, *arguments: str, sent: int = signal.SIGKILL
) -> tuple[int, str]:
    """Starts a run and sends it a signal as soon as the condition holds; it must still run then.

    Returns:
      Exit code and standard error.
    """
    process = start(workdir, *arguments)
    while not condition():
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.002)
    process.send_signal(sent)
    _, stderr = process.communicate()
    return process.returncode, stderr


def read_rows(workdir: Path, name: str = "results.csv") -> list[dict[str, str]]:
    with (workdir / name).open(newline="") as file:
        return list(csv.DictReader(file))


def read_tables(text: str) -> list[list[list[str]]]:
    """The cells of all tables in Markdown, headers first."""
    tables: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if set("".join(cells)) - set("-:"):
                tables[-1].append(cells)
        elif tables[-1]:
            tables.append([])
    return [table for table in tables if table]
