"""Tables and figures of what an extra modality does."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.measuring.extra_modality import GAUSSIAN, Row
from experiments.reports import csv_files
from jacfuse_jax.programs.files import write_atomically


def write(rows: Sequence[Row], folder: Path) -> None:
    """Writes extra_modality.csv and figures, and prints tables.

    Args:
      rows: measured.
      folder: of the files.
    """
    csv_files.write_measured(Row._fields, rows, folder / "extra_modality.csv")
    names = ["extra_modality.csv"]
    for source, perturbed in dict.fromkeys((row.source, row.perturbed) for row in rows):
        chosen = [row for row in rows if (row.source, row.perturbed) == (source, perturbed)]
        print(f"\n{source}, {perturbed} perturbed\n\n{make_table(chosen)}\n")
        names.append(f"figures/extra_modality_{source}_{perturbed}.png")
        write_atomically(folder / names[-1], partial(_draw, chosen))
    for name in names:
        print(f"wrote {folder / name}")


def make_table(rows: Sequence[Row]) -> str:
    """A table in Markdown; accuracies in %.

    Args:
      rows: of one source and perturbed modality.
    """

    def cell(value: float | None, factor: float, digits: int) -> str:
        return "" if value is None else f"{factor * value:.{digits}f}"

    body = [
        [
            f"{row.strength:g}",
            row.method + ("" if row.gamma is None else f" γ={row.gamma:g}"),
            cell(row.clean, 100, 1),
            cell(row.attacked, 100, 1),
            cell(row.bias, 1, 3),
            cell(row.bias_bound, 1, 2),
            cell(row.jacobian, 1, 3),
            cell(row.total_jacobian, 1, 3),
            cell(row.a_priori_bound, 1, 3),
            cell(row.above_bound, 100, 1),
        ]
        for row in rows
    ]
    headers = ["extra's strength", "method", "clean", "attacked", "bias", "bound"]
    headers += ["‖J R Wᵀ‖", "total", "bound", "above it"]
    return tabulate(body, headers, tablefmt="github", disable_numparse=True)


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy, bias and Jacobian against the strength of the extra modality."""
    is_gaussian = rows[0].source == GAUSSIAN
    figure = Figure(figsize=(17, 3.8), layout="constrained")
    axes = figure.subplots(1, 4)
    methods = list(dict.fromkeys((row.method, row.gamma) for row in rows))
    for index, (method, gamma) in enumerate(methods):
        points = [row for row in rows if (row.method, row.gamma) == (method, gamma)]
        strengths = [row.strength for row in points]
        style: Any = {"color": matplotlib.colormaps["tab10"](index), "marker": "o", "markersize": 3}
        label = method if gamma is None else f"{method} γ={gamma:g}"
        if method.endswith("alone"):
            style["linestyle"] = "--"
        axes[0].plot(strengths, [100 * row.clean for row in points], label=label, **style)
        axes[1].plot(strengths, [100 * row.attacked for row in points], **style)
        if gamma is None:
            continue
        axes[2].plot(strengths, [row.bias for row in points], **style)
        dotted = {**style, "linestyle": ":", "marker": None}
        axes[2].plot(strengths, [row.bias_bound for row in points], **dotted)
        axes[3].plot(strengths, [row.jacobian for row in points], **style)
        axes[3].plot(strengths, [row.total_jacobian for row in points], **style | {"ls": "--"})
        axes[3].plot(strengths, [row.a_priori_bound for row in points], **dotted)
    titles = ["clean accuracy in %", "accuracy in %, one modality attacked"]
    titles += ["distance from statistical fusion\n(dotted: bound)"]
    titles += ["Jacobian, R held fixed\n(dashed: through the solve, dotted: a priori bound)"]
    xlabel = (
        "strength of the extra modality" if is_gaussian else "minus noise on the extra modality"
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(xlabel)
        axis.grid(alpha=0.3)
    for axis in axes[2:]:
        axis.set_yscale("log")
    figure.legend(loc="outside lower center", ncols=len(methods))
    figure.savefig(path)
