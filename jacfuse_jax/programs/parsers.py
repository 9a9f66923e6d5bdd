"""Parsers of flags that absl does not have: what does not fit is said as it is parsed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags


class Number(flags.ArgumentParser[float]):
    """A number of an interval; NaN is in none."""

    def __init__(self, low: float = 0, interval: str = "[0, 1]") -> None:
        """Takes the smallest number; the largest is 1, and `interval` is what messages say."""
        super().__init__()
        self._low, self._interval = low, interval
        self.syntactic_help = f"a number in the range {interval}"

    def parse(self, argument: str | float) -> float:
        """See base class."""
        try:
            number = float(argument)
        except ValueError:
            number = math.nan
        if not self._low <= number <= 1:
            raise ValueError(f"{argument!r} is not a number in {self._interval}")
        return number


class NumberOrAuto(Number):
    """A number of an interval, or NaN for `auto`."""

    def parse(self, argument: str | float) -> float:
        """See base class."""
        if argument == "auto":
            return math.nan
        try:
            return super().parse(argument)
        except ValueError as error:
            raise ValueError(f"{error}, nor auto") from None


class OneOf(flags.EnumParser):
    """A name out of several, which the message quotes."""

    def parse(self, argument: str) -> str:
        """See base class."""
        if argument not in self.enum_values:
            raise ValueError(f"unknown {argument!r}; choose from {','.join(self.enum_values)}")
        return argument


class ListOf(flags.ListParser):
    """A comma-separated list of what another parser takes: each once, and at least one."""

    def __init__(self, item: flags.ArgumentParser[Any]) -> None:
        """Takes the parser of an item."""
        super().__init__()
        self._item = item

    def parse(self, argument: Any) -> Any:
        """See base class; returns a tuple."""
        texts = super().parse(argument if isinstance(argument, str) else list(argument))
        if not texts:
            raise ValueError("give at least one")
        return tuple(dict.fromkeys(self._item.parse(text) for text in texts))


class OneOfModality(flags.ArgumentParser[tuple[str, str]]):
    """<modality>:<name>, the name out of several."""

    def __init__(self, names: Sequence[str]) -> None:
        """Takes the names to choose from."""
        super().__init__()
        self._name = OneOf(names)

    def parse(self, argument: str | tuple[str, str]) -> tuple[str, str]:
        """See base class."""
        if isinstance(argument, tuple):
            return argument
        modality, _, name = argument.rpartition(":")
        if not modality or not name:
            raise ValueError(f"{argument!r} is not <modality>:<name>")
        return modality, self._name.parse(name)


class OfModality(flags.ArgumentParser[tuple[str, Path]]):
    """<modality>=<file>, of a file or folder that is there."""

    def parse(self, argument: str) -> tuple[str, Path]:
        """See base class."""
        modality, _, file = argument.partition("=")
        if not modality or not file:
            raise ValueError("write <modality>=<file>")
        path = Path(file).expanduser()
        if not path.exists():
            raise ValueError("no such file or folder")
        return modality, path
