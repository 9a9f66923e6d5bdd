"""Shares, differences of shares and their intervals, and how they read."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

_MINUS = "\N{MINUS SIGN}"
_NO_BREAK = "\N{NO-BREAK SPACE}"


class Estimate(NamedTuple):
    """A share with its interval: of one seed the 95% interval, of several the range of seeds.

    Attributes:
      mean: over seeds.
      low: None where no interval is known.
      high: likewise.
    """

    mean: float
    low: float | None = None
    high: float | None = None


def pool(estimates: Sequence[Estimate]) -> Estimate:
    """One estimate for all seeds.

    Args:
      estimates: one a seed, at least one.
    """
    if len(estimates) == 1:
        return estimates[0]
    means = [estimate.mean for estimate in estimates]
    return Estimate(sum(means) / len(means), min(means), max(means))


def percent(share: float) -> str:
    """A share in percent with a decimal.

    Args:
      share: in [0, 1].
    """
    return f"{100 * share:.1f}%"


def points(difference: float) -> str:
    """A difference of shares in points, with its sign.

    Args:
      difference: of two shares.
    """
    return f"{100 * difference:+.1f}".replace("-", _MINUS)


def interval(estimate: Estimate, *, signed: bool = False) -> str:
    """The ends of an interval in brackets; nothing where they are not known.

    Args:
      estimate: of a share, or of a difference.
      signed: whether it is a difference.
    """
    if estimate.low is None or estimate.high is None:
        return ""
    if signed:
        ends = points(estimate.low), points(estimate.high)
    else:
        ends = f"{100 * estimate.low:.1f}", f"{100 * estimate.high:.1f}"
    return f"[{ends[0]},{_NO_BREAK}{ends[1]}]"


def listed(names: Iterable[str], last: str = "and") -> str:
    """Names as a sentence lists them.

    Args:
      names: at least one.
      last: the word before the last one.
    """
    *first, final = names
    return f"{', '.join(first)} {last} {final}" if first else final
