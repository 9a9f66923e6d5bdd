"""The picture of the leaderboard: what chosen rules are worth by the share of attacks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from experiments.reports.page.charts import draw_lines
from experiments.reports.page.estimates import Estimate
from experiments.reports.page.series import Series
from experiments.reports.page.svg import HEIGHT, SETTINGS, WIDTH
from jacfuse_jax.programs.files import write_atomically

_LABELS = {"statistical": "fuse everything", "scaled": "scale it", "drop_suspect": "drop it"}
_MOST_COLUMNS = 2


def write_figure(results: Sequence[Any], path: Path) -> None:
    """Draws a panel for every data set and suspect.

    Args:
      results: see `leaderboard.read`.
      path: of the picture.
    """
    frame = pd.concat([pd.DataFrame(r["envelope"]).assign(name=r["name"]) for r in results])
    panels = [lines for _, lines in frame.groupby(["name", "perturbed"], sort=False)]
    columns = min(_MOST_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    settings: Any = SETTINGS
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows))
        for index, lines in enumerate(panels):
            row, column = divmod(index, columns)
            place = (column + 0.105) / columns, 1 - (row + 0.87) / rows
            axes = figure.add_axes((*place, 0.53 / columns, 0.7 / rows))
            _draw(axes, lines)
            title = f"{lines.name.iloc[0]}: {lines.perturbed.iloc[0]} attacked, right in %"
            axes.set_title(title, loc="left", pad=10)
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))


def _draw(axes: Any, lines: Any) -> None:
    """One panel."""
    shares = sorted(lines.share.unique())
    ticks = {float(i): f"{100 * share:g}%" for i, share in enumerate(shares)}
    places = {share: place for place, share in zip(ticks, shares, strict=True)}
    against = lines.baseline.str.partition(" ")[0]
    series: list[Series] = []
    for method, label in _LABELS.items():
        chosen = lines[against == method]
        if len(chosen):
            worth = (chosen.expected - chosen.difference).groupby(chosen.share).mean()
            x = [places[share] for share in worth.index]
            series.append(Series(label, method, x, [Estimate(value) for value in worth]))
    own = lines.groupby("share")[["expected", "low", "high"]].agg(
        {"expected": "mean", "low": "min", "high": "max"}
    )
    values = [Estimate(*line) for line in own.itertuples(index=False)]
    series.append(Series("chosen rule", "", list(ticks), values, is_chosen=True))
    draw_lines(
        axes,
        series,
        x_label="share of inputs that are attacked",
        y_label="",
        ticks=ticks,
    )
