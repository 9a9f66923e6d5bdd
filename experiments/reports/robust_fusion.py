"""What a run leaves behind: tables in CSV and Markdown, and figures."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.measuring.robust_fusion import Findings
from experiments.reports import csv_files
from experiments.reports.figures import write_curves, write_trade_off
from experiments.reports.tables import make_comparison, make_tables
from jacfuse_jax.evaluation.measure import Row
from jacfuse_jax.evaluation.methods import Parameters
from jacfuse_jax.evaluation.selection import Score
from jacfuse_jax.evaluation.summary import Comparison, Summary, compare, summarise
from jacfuse_jax.programs.files import write_atomically


def write(findings: Mapping[int, Findings], workdir: Path) -> list[Path]:
    """Writes results.csv, summary.csv, comparison.csv, selection.csv, report.md and figures.

    Args:
      findings: {seed: what it gave}.
      workdir: where the files go.

    Returns:
      The paths written.
    """
    rows = [row for found in findings.values() for row in found.rows]
    summaries = [
        line
        for found in findings.values()
        for line in summarise(found.rows, found.outcomes, found.groups)
    ]
    comparisons = [
        line
        for seed, found in findings.items()
        for line in compare(seed, found.rows, found.outcomes, found.groups)
    ]
    tables = make_tables(rows, summaries)
    if comparisons:
        tables = f"{tables}\n\n{make_comparison(comparisons)}".rstrip()
    print(tables)
    paths = [workdir / name for name in ("results.csv", "summary.csv")]
    write_csv(Row._fields, rows, paths[0])
    write_csv(Summary._fields, summaries, paths[1])
    if comparisons:
        paths.append(workdir / "comparison.csv")
        write_csv(Comparison._fields, comparisons, paths[-1])
    scores = [(seed, *score) for seed, found in findings.items() for score in found.scores]
    if scores:
        paths.append(workdir / "selection.csv")
        write_csv(("seed", *Score._fields), scores, paths[-1])
    paths.append(workdir / "report.md")
    write_atomically(paths[-1], tables + "\n")
    paths += write_curves(rows, workdir / "figures")
    paths += write_trade_off(summaries, workdir / "figures")
    return paths


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]], path: Path) -> None:
    """Writes rows under a header: measurements with six decimals, None as an empty field.

    Args:
      columns: their names.
      rows: one cell a column.
      path: of the file.
    """
    cells = ([_number(name, cell) for name, cell in zip(columns, row, strict=True)] for row in rows)
    csv_files.write_csv(columns, cells, path)


def _number(name: str, value: object) -> object:
    """Parameters as given, measurements with six decimals."""
    measured = isinstance(value, float) and name not in Parameters._fields
    return f"{value:.6f}" if measured else value
