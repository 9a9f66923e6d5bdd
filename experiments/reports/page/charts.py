"""Lines and points with intervals, each named where it ends rather than in a legend."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.reports.page.estimates import Estimate
from experiments.reports.page.series import Series, style_of
from experiments.reports.page.svg import GRID, INK, REST

_MAX_LABEL = 22  # letters that fit beside the axes
_LEAST_SPAN = 4.0  # points
_LINE = 0.062  # height of a label, as a share of the axes'


def draw_lines(
    axes: Any,
    series: Iterable[Series],
    *,
    x_label: str,
    y_label: str,
    ticks: Mapping[float, str],
    limits: tuple[float, float] | None = None,
) -> None:
    """Draws lines with intervals as bars; those without a label thin and grey.

    Args:
      axes: of a figure.
      series: what is drawn, the most important one last.
      x_label: in words.
      y_label: likewise.
      ticks: {x: its text}.
      limits: of the vertical axis, in %; None: what there is.
    """
    ends: list[tuple[float, float, Series]] = []
    labelled = [each for each in series if each.label]
    for index, each in enumerate(series):
        y = [100 * value.mean for value in each.y]
        if not each.label:
            axes.plot(each.x, y, color=REST, linewidth=0.7, zorder=1.5)
            continue
        colour, marker = style_of(each.method)
        # Bars side by side: those of equal figures would hide each other.
        place = labelled.index(each) - (len(labelled) - 1) / 2
        spacing = (max(ticks) - min(ticks)) / 130 if len(ticks) > 1 else 0
        x = [value + place * spacing for value in each.x]
        axes.errorbar(
            x,
            y,
            yerr=_margins(each.y),
            color=colour,
            marker=marker,
            markersize=4.5 if each.is_chosen else 3.5,
            linewidth=2.2 if each.is_chosen else 1.3,
            elinewidth=0.8,
            zorder=3 + 0.01 * index,
        )
        ends.append((x[-1], y[-1], each))
    if limits is not None:
        axes.set_ylim(limits)
    _finish(axes, x_label, y_label)
    axes.set_xticks(list(ticks), list(ticks.values()))
    _label(axes, ends)


def draw_points(axes: Any, series: Iterable[Series], *, x_label: str, y_label: str) -> None:
    """Draws points with intervals in both directions; those without a label small and grey.

    Args:
      axes: of a figure.
      series: each of one point or, if grey, of any number; x in shares.
      x_label: in words.
      y_label: likewise.
    """
    ends: list[tuple[float, float, Series]] = []
    for each in series:
        x, y = [100 * value for value in each.x], [100 * value.mean for value in each.y]
        if not each.label:
            axes.plot(x, y, ".", color=REST, markersize=5, zorder=1.5)
            continue
        colour, marker = style_of(each.method)
        axes.errorbar(
            x,
            y,
            xerr=_margins(each.x_intervals) if each.x_intervals else None,
            yerr=_margins(each.y),
            color=colour,
            marker=marker,
            markersize=7 if each.is_chosen else 5,
            linestyle="none",
            elinewidth=0.9,
            zorder=3,
        )
        ends.append((x[-1], y[-1], each))
    _finish(axes, x_label, y_label)
    axes.autoscale_view()
    low, high = axes.get_ylim()
    if high - low < _LEAST_SPAN:  # figures that are all but equal
        axes.set_ylim(low - _LEAST_SPAN / 8, low + _LEAST_SPAN)
    _label(axes, ends, linestyle=":")


def draw_zero(axes: Any) -> None:
    """Draws a line at zero.

    Args:
      axes: of a figure of differences.
    """
    axes.axhline(0, color=INK, linewidth=0.7, zorder=1)


def draw_intervals(
    axes: Any, names: Sequence[str], series: Sequence[Series], *, x_label: str
) -> None:
    """Draws a row for every name, in it points with horizontal intervals.

    Args:
      axes: of a figure.
      names: of the rows, from above.
      series: y are the values, one a row; x the rows, from 0.
      x_label: in words.
    """
    for index, each in enumerate(series):
        colour, marker = style_of(each.method)
        shift = 0.18 * (index - (len(series) - 1) / 2)
        axes.errorbar(
            [100 * value.mean for value in each.y],
            [row + shift for row in each.x],
            xerr=_margins(each.y),
            color=colour,
            marker=marker,
            markersize=5,
            linestyle="none",
            label=each.label,
        )
    axes.axvline(0, color=INK, linewidth=0.7, zorder=1)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.2, 1), ncols=3, frameon=False, fontsize=8.5)
    axes.yaxis.tick_right()
    axes.set_xlabel(x_label)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_yticks(range(len(names)), [_shortened(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)


def _margins(estimates: Sequence[Estimate]) -> tuple[list[float], list[float]] | None:
    """Lengths of bars below and above; None where there is no interval."""
    if all(e.low is None or e.high is None for e in estimates):
        return None
    below = [0 if e.low is None else max(0, 100 * (e.mean - e.low)) for e in estimates]
    above = [0 if e.high is None else max(0, 100 * (e.high - e.mean)) for e in estimates]
    return below, above


def _finish(axes: Any, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_title(y_label, loc="left")
    axes.grid(color=GRID, linewidth=0.6)
    axes.margins(x=0.04, y=0.07)


def _label(axes: Any, ends: Sequence[tuple[float, float, Series]], *, linestyle: str = "-") -> None:
    """Names lines and points on the right, in order of their height and apart from each other."""
    if not ends:
        return
    axes.autoscale_view()
    to_axes = (axes.transData + axes.transAxes.inverted()).transform
    places = [(*to_axes((x, y)), each) for x, y, each in ends]
    places.sort(key=lambda place: place[1])
    texts = [_wrapped(each.label) for *_, each in places]
    sizes = [_LINE * (text.count("\n") + 1) for text in texts]
    heights = _apart([float(y) for _, y, _ in places], sizes)
    for (x, y, each), height, text in zip(places, heights, texts, strict=True):
        colour, _ = style_of(each.method)
        axes.plot(
            [x + 0.015, 1.03, 1.05],
            [y, height, height],
            transform=axes.transAxes,
            color=colour,
            linewidth=0.8,
            linestyle=linestyle,
            clip_on=False,
            zorder=2,
        )
        axes.text(
            1.06,
            height,
            text,
            transform=axes.transAxes,
            verticalalignment="center",
            fontweight="bold" if each.is_chosen else "normal",
            fontsize=8.5,
        )


def _apart(heights: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Ascending heights moved as little as keeps labels from each other and within the axes."""
    moved: list[float] = []
    floor = 0.0
    for height, size in zip(heights, sizes, strict=True):
        moved.append(max(height, floor + size / 2))
        floor = moved[-1] + size / 2
    ceiling = 1 + _LINE / 2
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], ceiling - sizes[index] / 2)
        ceiling = moved[index] - sizes[index] / 2
    return moved


def _wrapped(label: str) -> str:
    """A label that fits beside the axes: its parameters below it where it is long."""
    if len(label) <= _MAX_LABEL:
        return label
    name, _, parameters = label.partition(" ")
    return "\n".join(_shortened(part) for part in (name, parameters) if part)


def _shortened(text: str) -> str:
    """A text that fits beside the axes; the tables have it whole."""
    return text if len(text) <= _MAX_LABEL else f"{text[: _MAX_LABEL - 1]}…"
