"""Tables and a figure of certified accuracy and radii."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.measuring.certified import Findings
from experiments.reports import csv_files
from jacfuse_jax.evaluation import radii
from jacfuse_jax.evaluation.certified import Row
from jacfuse_jax.fusion import RULES
from jacfuse_jax.programs.files import write_atomically

_SYMBOLS = {name: symbol for rule in RULES for name, symbol in rule.searched.items()}


def write(findings: Findings, folder: Path) -> None:
    """Writes certified.csv, radii.csv and figures/certified.png, and prints tables.

    Args:
      findings: measured.
      folder: of the files.
    """
    csv_files.write_measured(Row._fields, findings.rows, folder / "certified.csv")
    write_atomically(folder / "figures" / "certified.png", partial(_draw, findings.rows))
    csv_files.write_measured(radii.Row._fields, findings.radii, folder / "radii.csv")
    print(make_table(findings.rows))
    if findings.radii:
        print("\n" + make_radii_table(findings.radii))
    else:
        print("\nno radii: nothing bounds the Lipschitz constants of these classifiers")
    for name in ("certified.csv", "radii.csv", "figures/certified.png"):
        print(f"wrote {folder / name}")


def make_table(rows: Sequence[Row]) -> str:
    """A table in Markdown, in %, what validation data chose with a star.

    Args:
      rows: of certified.csv.
    """
    body = [
        [
            row.corrupted,
            _label(row.method, contamination=row.contamination, confidence=row.confidence)
            + (" *" if row.selected else ""),
            f"{100 * row.clean:.1f}",
            "{:.1f} [{:.1f}, {:.1f}]".format(
                *(100 * x for x in (row.certified, row.certified_low, row.certified_high))
            ),
        ]
        for row in rows
    ]
    return tabulate(
        body,
        ["corrupted", "method", "clean", "certified"],
        tablefmt="github",
        colalign=("left", "left", "right", "right"),
        disable_numparse=True,
    )


def make_radii_table(rows: Sequence[radii.Row]) -> str:
    """A table in Markdown, shares in %.

    Args:
      rows: of radii.csv.
    """
    body: list[list[str]] = []
    for row in rows:
        label = _label(row.method, contamination=row.contamination, gamma=row.gamma)
        shares = (row.unlimited, row.changed_1, row.changed_10, row.changed_100)
        unlimited, *changed = (f"{100 * share:.1f}" for share in shares)
        body.append([row.corrupted, label, unlimited, f"{row.median:.2g}", *changed])
    return tabulate(
        body,
        ["moved", "method", "any radius", "median radius", "PGD at 1 x", "10 x", "100 x"],
        tablefmt="github",
        colalign=("left", "left", *5 * ["right"]),
        disable_numparse=True,
    )


def _label(method: str, **parameters: float | None) -> str:
    """The rule of a row, with the parameters that are its columns."""
    shown = {_SYMBOLS[name]: x for name, x in parameters.items() if x is not None}
    return " ".join([method, *(f"{symbol}={x:.12g}" for symbol, x in shown.items())])


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Certified against clean accuracy, a panel for every corrupted modality."""
    panels = list(dict.fromkeys(row.corrupted for row in rows))
    figure = Figure(figsize=(5 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=True):
        for method, marker in (("statistical", "s"), ("contaminated", "o"), ("cascade", "D")):
            points = sorted(
                (row for row in rows if (row.corrupted, row.method) == (panel, method)),
                key=lambda row: row.certified,
            )
            (line,) = axis.plot(
                [100 * row.clean for row in points],
                [100 * row.certified for row in points],
                marker=marker,
                markersize=4,
                label=method,
            )
            chosen: Any = [(100 * r.clean, 100 * r.certified) for r in points if r.selected]
            axis.plot(*zip(*chosen, strict=True), "*", ms=13, color=line.get_color())
        axis.set(title=f"{panel} may say anything", xlabel="clean accuracy in %")
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel("certified accuracy in %")
    axes.flat[0].legend(loc="lower left")
    figure.savefig(path)
