"""How binaries start: flags first, then what takes seconds to load."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from absl import app

from data_pipelines.errors import DataError, with_flag
from experiments.run.workdir import claimed
from jacfuse_jax.programs import InputError
from jacfuse_jax.programs.command_line import one_line_errors, parse_flags


def launch(main_fn: Callable[[list[str]], None]) -> None:
    """Runs a binary: Ctrl-C ends it at once, and damaged checkpoints are reported once.

    Args:
      main_fn: takes what absl leaves of the command line.
    """
    signal.signal(signal.SIGINT, end_at_once)
    sys.unraisablehook = skip_cancelled_reads
    app.run(main_fn, flags_parser=parse_flags)


def start(argv: list[str], config_fn: Callable[[], Any], run_fn: Callable[[Any], object]) -> None:
    """Collects flags and runs in the working directory; errors of the user's end in one line.

    Args:
      argv: what absl leaves of the command line.
      config_fn: makes the settings of the flags.
      run_fn: takes them; what takes seconds to load it imports itself, for which what is wrong with
        the flags need not wait.
    """
    with one_line_errors(argv):
        config = config_fn()
        with claimed(config.workdir):
            try:
                run_fn(config)
            except DataError as error:
                raise InputError(with_flag(error)) from None


def end_at_once(*_: object) -> None:
    """Ends the process on Ctrl-C, as a kill would: nothing that is half done counts."""
    # An exception instead would go through the data and checkpoint libraries and their threads.
    os.write(2, b"\ninterrupted; the same command carries on\n")
    os._exit(130)


def skip_cancelled_reads(unraisable: Any) -> None:
    """Drops what orbax's threads say of reads under way when it found a damaged file.

    The error itself is raised and reaches `start`.
    """
    text = str(unraisable.exc_value)
    if not text.endswith(("Event loop is closed", "Python is likely shutting down")):
        sys.__unraisablehook__(unraisable)
