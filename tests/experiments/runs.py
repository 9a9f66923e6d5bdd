"""Runs of the main experiment in processes of their own, as users start them."""

import atexit
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A minute, most of it to compile: few rows, epochs, steps, methods.
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

# Runs compile the same programs over and over: those of one session share what is compiled, unless
# the environment names a folder that is to last longer.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# What XLA says of every program that it reads from there, and nothing else of what it says.
_NOTICE = re.compile(r"W\S+ \S+ +\d+ pjrt_executable\.cc:\d+\] Assume version compatibility\..*\n")


def start(
    workdir: Path, *flags: str, compiled_is_kept: bool = True, is_optimised: bool = False
) -> "subprocess.Popen[str]":
    environment = dict(os.environ)
    if is_optimised:  # runs that compute for longer than it takes to compile
        environment.pop("XLA_FLAGS", None)
    if not compiled_is_kept:  # by a process that is killed, it might be kept in half
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1e9"
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.robust_fusion", f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(workdir: Path, *flags: str, is_optimised: bool = False) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    process = start(workdir, *flags, is_optimised=is_optimised)
    stdout, stderr = process.communicate()
    return process.returncode, stdout, _NOTICE.sub("", stderr)


def stop_when(
    condition: Callable[[], bool], workdir: Path, *flags: str, sent: int = signal.SIGKILL
) -> tuple[int, str]:
    """Starts a run and sends it a signal as soon as the condition holds; it must still run then.

    Returns:
      Exit code and standard error.
    """
    process = start(workdir, *flags, compiled_is_kept=False)
    while not condition():
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.002)
    process.send_signal(sent)
    _, stderr = process.communicate()
    return process.returncode, _NOTICE.sub("", stderr)


def read_rows(workdir: Path, name: str = "results.csv") -> list[dict[str, str]]:
    with (workdir / name).open(newline="") as file:
        return list(csv.DictReader(file))
