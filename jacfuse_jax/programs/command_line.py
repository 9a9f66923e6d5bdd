"""Command lines of absl: what is wrong with them ends in one line."""

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from absl import flags, logging

from jacfuse_jax.programs.errors import InputError
from jacfuse_jax.programs.parsers import ListOf, OneOf

T = TypeVar("T")
flags.disclaim_key_flags()  # what `define` declares is its caller's


def parse_flags(argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses the command line; what is wrong with it ends in one line, as other errors do.

    Args:
      argv: the command line.
      flag_values: where its flags are declared.

    Returns:
      What is left of it.
    """
    try:
        return flag_values(argv)
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
    """Ends the process with one line and a non-zero exit where an error, or Ctrl-C, is the user's.

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
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)


def define(
    parser: flags.ArgumentParser[Any],
    name: str,
    default: Any,
    text: str,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> None:
    """Declares a flag that a parser of `parsers` reads.

    Args:
      parser: of the flag.
      name: of the flag.
      default: in place of one that is not given; parsed too, unless None.
      text: of --help.
      flag_values: where it is declared.
    """
    serializer = (
        flags.CsvListSerializer(",")
        if isinstance(parser, flags.ListParser)
        else flags.ArgumentSerializer()
    )
    flags.DEFINE(parser, name, default, text, flag_values, serializer)


def by_modality(flag: str, pairs: Sequence[tuple[str, T]], separator: str = "=") -> dict[str, T]:
    """What a flag says once a modality.

    Args:
      flag: its name.
      pairs: as `parsers.OfModality` or `OneOfModality` reads them.
      separator: that it is written with.

    Raises:
      InputError: a modality has two.
    """
    values: dict[str, T] = {}
    for modality, value in pairs:
        if modality in values:
            raise InputError(f"--{flag}={modality}{separator}{value}: {modality} is given twice")
        values[modality] = value
    return values


def choices(flag: str, names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The names of a flag, each once, where those that are known depend on other flags.

    Args:
      flag: its name.
      names: that were given.
      known: to choose from.

    Raises:
      InputError: a name is unknown, or there is none.
    """
    try:
        return ListOf(OneOf(known)).parse(names)
    except ValueError as error:
        raise InputError(f"--{flag}={','.join(names)}: {error}") from None
