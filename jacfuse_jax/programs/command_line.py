"""Command lines of absl: what is wrong with them ends in one line."""

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from absl import flags, logging

from jacfuse_jax.programs.errors import InputError


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
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


def choices(flag: str, names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The names of a flag, each once.

    Args:
      flag: its name.
      names: that were given.
      known: to choose from.

    Raises:
      InputError: a name is unknown, or there is none.
    """
    for name in names:
        if name not in known:
            raise InputError(f"--{flag}: unknown {name!r}; choose from {','.join(known)}")
    if not names:
        raise InputError(f"--{flag} is empty; choose from {','.join(known)}")
    return tuple(dict.fromkeys(names))
