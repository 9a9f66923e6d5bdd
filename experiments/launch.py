"""How binaries start: flags first, then what takes seconds to load."""

import importlib
import os
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from absl import app, flags, logging

from data_pipelines.errors import DataError, with_flag
from experiments.config import ConfigError
from experiments.workdir import claimed


def launch(main_fn: Callable[[list[str]], None]) -> None:
    """Runs a binary: Ctrl-C ends it at once, and damaged checkpoints are reported once.

    Args:
      main_fn: takes what absl leaves of the command line.
    """
    signal.signal(signal.SIGINT, end_at_once)
    sys.unraisablehook = skip_cancelled_reads
    app.run(main_fn, flags_parser=parse_flags)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; what is wrong with it ends in one line, as other errors do.

    Args:
      argv: the command line.

    Returns:
      What is left of it.
    """
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        _, _, similar = str(error).removesuffix(" ?").partition("Did you mean: ")
        hint = f" (did you mean --{similar.replace(', ', ' or --')}?)" if similar else ""
        sys.exit(
            f"error: --{error.flagname} is no flag of this program{hint} (--help lists all flags)"
        )
    except flags.Error as error:
        problem = "; ".join(line.removeprefix("flag ") for line in str(error).splitlines())
        sys.exit(f"error: {problem} (--help lists all flags)")


@contextmanager
def one_line_errors(argv: list[str]) -> Generator[None]:
    """Ends the process with one line and a non-zero exit where an error is the user's.

    Args:
      argv: what absl leaves of the command line; there must be nothing but the program.
    """
    if len(argv) > 1:
        sys.exit(f"error: unexpected argument {argv[1]!r}; all settings are --flags")
    if not flags.FLAGS["verbosity"].present:
        # Orbax reports every step of a save, JAX every backend that it does not find.
        logging.set_verbosity(logging.WARNING)
    try:
        yield
    except (ConfigError, DataError, OSError) as error:
        sys.exit(f"error: {with_flag(error)}")


def start(argv: list[str], config_fn: Callable[[], Any], module: str) -> None:
    """Collects flags and runs in the working directory, with `one_line_errors`.

    Args:
      argv: what absl leaves of the command line.
      config_fn: makes the settings of the flags.
      module: has a function `run` that takes them; loaded only when there is nothing wrong with
        them, which takes seconds.
    """
    with one_line_errors(argv):
        config = config_fn()
        with claimed(config.workdir):
            importlib.import_module(module).run(config)


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
