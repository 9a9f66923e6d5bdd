"""Which modalities may fail, and what rules are told of it."""

import itertools
from collections.abc import Iterable
from typing import NamedTuple


class Suspects(NamedTuple):
    """Which modalities may fail.

    Attributes:
      name: for tables.
      perturbed: the modalities that rules believe perturbed.
      cases: sets of modalities that may fail together; one of them does, nobody knows which.
    """

    name: str
    perturbed: tuple[str, ...]
    cases: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, modalities: str | Iterable[str]) -> "Suspects":
        """These modalities, which fail together.

        Args:
          modalities: name or names.
        """
        names = (modalities,) if isinstance(modalities, str) else tuple(modalities)
        return cls("+".join(names), names, (names,))

    @classmethod
    def among(cls, perturbed: Iterable[str], modalities: Iterable[str]) -> "Suspects":
        """Those believed perturbed: all fail together, or, where that is all there are, any one.

        Args:
          perturbed: names.
          modalities: names of all.
        """
        names = tuple(perturbed)
        is_every = len(names) > 1 and set(names) >= set(modalities)
        return cls.any_of(names) if is_every else cls.of(names)

    @classmethod
    def any_of(cls, modalities: Iterable[str], number: int = 1) -> "Suspects":
        """Any so many of these modalities; rules believe all of them perturbed.

        Args:
          modalities: names.
          number: that fail together.

        Raises:
          ValueError: there are not more modalities than fail.
        """
        names = tuple(modalities)
        if not 1 <= number < len(names):
            raise ValueError(f"number must lie in 1 ... {len(names) - 1}, got {number}")
        return cls(f"any {number}", names, tuple(itertools.combinations(names, number)))
