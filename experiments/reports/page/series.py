"""What figures draw: lines and points of rules, in their colours and in words."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.reports.page.estimates import Estimate, percent, points
from experiments.reports.page.svg import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, VERMILLION, YELLOW

_STYLES = {
    "statistical": (VERMILLION, "s"),
    "scaled": (GREEN, "^"),
    "drop_suspect": (PURPLE, "v"),
    "cascade": (BLUE, "o"),
    "learned_cascade": (SKY, "D"),
    "contaminated": (ORANGE, "P"),
}
_OTHER = (YELLOW, "X")
_CHOICE = (INK, "o")


class Series(NamedTuple):
    """A line, or a cloud of points.

    Attributes:
      label: beside its end; "" for what is grey.
      method: the rule whose colour it has; "" for the rule that is chosen for every share.
      x: numbers.
      y: shares or differences of shares.
      x_intervals: of `x`; empty: none.
      is_chosen: drawn thicker.
    """

    label: str
    method: str
    x: Sequence[float]
    y: Sequence[Estimate]
    x_intervals: Sequence[Estimate] = ()
    is_chosen: bool = False


def style_of(method: str) -> tuple[str, str]:
    """Colour and marker of a rule, the same in all figures of all pages.

    Args:
      method: its name; "" for whichever is chosen.
    """
    return _STYLES.get(method, _OTHER) if method else _CHOICE


def described(series: Sequence[Series], ticks: Mapping[float, str], *, signed: bool = False) -> str:
    """Lines in words, by their ends.

    Args:
      series: lines.
      ticks: {x: its text}.
      signed: whether they are of differences.
    """
    said = points if signed else percent
    return "; ".join(
        f"{each.label} from {said(each.y[0].mean)} at {ticks[each.x[0]]} to "
        f"{said(each.y[-1].mean)} at {ticks[each.x[-1]]}"
        for each in series
        if each.label
    )


def described_points(series: Sequence[Series], what: str) -> str:
    """Points in words.

    Args:
      series: each of one point, x a clean accuracy.
      what: y is.
    """
    return "; ".join(
        f"{each.label} {percent(each.x[0])} clean, {percent(each.y[0].mean)} {what}"
        for each in series
        if each.label
    )
