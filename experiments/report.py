"""What a run leaves behind: results.csv, figures, and the table on the console."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from tabulate import tabulate

from experiments import files
from experiments.evaluation import Row
from experiments.files import write_atomically
from experiments.methods import Method, Parameters
from experiments.perturbations import ATTACKS


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows with a header; floats with six decimals, None as an empty field."""
    cells = ([_number(name, x) for name, x in row._asdict().items()] for row in rows)
    files.write_csv(Row._fields, cells, path)


def _number(name: str, value: object) -> object:
    """Parameters as given, measurements with six decimals."""
    measured = isinstance(value, float) and name not in Parameters._fields
    return f"{value:.6f}" if measured else value


def write_figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draws accuracy against severity, one figure a perturbed modality, a line per method.

    Args:
      rows: of one run.
      folder: where `accuracy_<perturbed>.png` go.

    Returns:
      The paths written.
    """
    paths: list[Path] = []
    for perturbed in dict.fromkeys(row.perturbed for row in rows):
        chosen = [row for row in rows if row.perturbed == perturbed]
        columns = [name for name in _columns(chosen) if name != "clean"]
        if not columns:
            continue
        num_cols = min(3, len(columns))
        num_rows = -(-len(columns) // num_cols)
        figure, axes = plt.subplots(
            num_rows,
            num_cols,
            figsize=(4.2 * num_cols, 3.4 * num_rows + 0.8),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, column in zip(axes.flat, columns, strict=False):
            for method, style in _styles(chosen).items():
                curve = _curve(chosen, method, column)
                if len(curve) > 1:
                    axis.plot(*zip(*curve, strict=True), label=method.label, **style)
            axis.set(title=column, xlabel="severity", ylim=(-0.02, 1.02), xticks=range(6))
            axis.grid(alpha=0.3)
        for axis in axes.flat[len(columns) :]:
            axis.set_visible(False)
        for axis in axes[:, 0]:
            axis.set_ylabel("accuracy")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        column_inches = 0.7 + 0.09 * max(map(len, labels))
        ncols = max(1, int(figure.get_figwidth() / column_inches))
        figure.legend(handles, labels, loc="outside lower center", ncols=ncols)
        figure.suptitle(f"{chosen[0].dataset}: {perturbed} perturbed")
        path = folder / f"accuracy_{perturbed}.png"
        write_atomically(path, figure.savefig)
        plt.close(figure)
        paths.append(path)
    return paths


def make_table(rows: Sequence[Row]) -> str:
    """Accuracy in percent, averaged over severities, in Markdown.

    "fgm, transfer" is the attack on the perturbed modality's classifier, "fgm, adaptive" the one on
    the fused prediction of the method itself; "worst attack" takes the lowest of them at every
    severity.

    Args:
      rows: of one run.

    Returns:
      One table a perturbed modality, under a line that names it.
    """
    tables: list[str] = []
    for perturbed in dict.fromkeys(row.perturbed for row in rows):
        chosen = [row for row in rows if row.perturbed == perturbed]
        columns = _columns(chosen)
        attacks = [column for column in columns if "," in column]
        body = [
            [
                method.label,
                *(_mean_percent(chosen, method, [column]) for column in columns),
                *([_mean_percent(chosen, method, attacks)] if attacks else []),
            ]
            for method in _styles(chosen)
        ]
        headers = ["method", *columns, *(["worst attack"] if attacks else [])]
        table = tabulate(body, headers, tablefmt="github", floatfmt=".1f")
        tables.append(
            f"{chosen[0].dataset}, {perturbed} perturbed "
            f"(accuracy in %, mean over severities)\n\n{table}"
        )
    return "\n\n".join(tables)


def _column(row: Row) -> str:
    """The panel or table column that a row belongs to."""
    if row.perturbation not in ATTACKS:
        return row.perturbation
    is_transfer = row.attack_target == f"unimodal:{row.perturbed}"
    return f"{row.perturbation}, {'transfer' if is_transfer else 'adaptive'}"


def _method(row: Row) -> Method:
    return Method(
        row.method, Parameters(**{name: getattr(row, name) for name in Parameters._fields})
    )


def _columns(rows: Sequence[Row]) -> list[str]:
    """All columns in order of appearance."""
    return list(dict.fromkeys(_column(row) for row in rows))


def _curve(rows: Sequence[Row], method: Method, column: str) -> list[tuple[int, float]]:
    """Severity and accuracy of a method, severity 0 being clean (on all test rows)."""
    return sorted(
        (row.severity, row.accuracy)
        for row in rows
        if _method(row) == method and _column(row) in ("clean", column)
    )


def _mean_percent(rows: Sequence[Row], method: Method, columns: Sequence[str]) -> float | None:
    """Mean over severities of the lowest accuracy in the columns, in percent."""
    lowest: dict[int, float] = {}
    for row in rows:
        if _method(row) == method and _column(row) in columns:
            lowest[row.severity] = min(row.accuracy, lowest.get(row.severity, 1.0))
    return 100 * float(np.mean(list(lowest.values()))) if lowest else None


def _styles(rows: Sequence[Row]) -> dict[Method, dict[str, Any]]:
    """A colour for every rule; parameters of one rule get shades of it."""
    methods = list(dict.fromkeys(_method(row) for row in rows))
    shades = {
        "scaled": plt.get_cmap("Blues"),
        "robust": plt.get_cmap("Reds"),
        "contaminated": plt.get_cmap("Greens"),
        "contaminated_robust": plt.get_cmap("Purples"),
    }
    others = iter(("tab:orange", "tab:purple", "tab:brown", "tab:olive"))
    fixed = {"mean": "tab:green", "statistical": "black"}
    styles: dict[Method, dict[str, Any]] = {}
    for method in methods:
        if method.rule in shades:
            family = [other for other in methods if other.rule == method.rule]
            depth = 0.4 + 0.55 * (family.index(method) + 1) / len(family)
            style = {"color": shades[method.rule](depth)}
        elif method.rule in fixed:
            style = {"color": fixed[method.rule]}
        else:
            style = {"color": next(others, "tab:gray"), "linestyle": "--"}
        styles[method] = {**style, "marker": "o", "markersize": 3}
    return styles
