"""What a run leaves behind: tables in CSV and Markdown, and figures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.measuring.robust_fusion import Findings
from experiments.reports.figures import write_curves, write_trade_off
from experiments.reports.tables import (
    make_comparison,
    make_envelope,
    make_shuffled,
    make_tables,
)
from jacfuse_jax.evaluation.envelope import measure
from jacfuse_jax.evaluation.measure import flatten
from jacfuse_jax.evaluation.rules import PARAMETERS
from jacfuse_jax.evaluation.summary import compare, summarise
from jacfuse_jax.fusion import Rule
from jacfuse_jax.programs.files import write_atomically

SCHEMA = 1  # of rules.json


def write(findings: Mapping[int, Findings], workdir: Path, *, note: str = "") -> list[Path]:
    """Writes results, summary, comparison, selection, envelope, shuffled .csv, rules.json, report.

    Args:
      findings: {seed: what it gave}.
      workdir: where the files go.
      note: that the tables begin with, if any.

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
    envelope = [
        line
        for seed, found in findings.items()
        for line in measure(seed, found.best, found.outcomes, found.groups)
    ]
    if envelope:
        tables = f"{tables}\n\n{make_envelope(envelope)}"
    tested = [line for found in findings.values() for line in found.shuffled]
    if tested:
        tables = f"{tables}\n\n{make_shuffled(tested)}"
    if note:
        tables = f"{note}\n\n{tables}"
    print(tables)
    paths = [workdir / name for name in ("results.csv", "summary.csv")]
    write_csv([flatten(row) for row in rows], paths[0])
    write_csv([flatten(line) for line in summaries], paths[1])
    if comparisons:
        paths.append(workdir / "comparison.csv")
        write_csv([_with_labels(line) for line in comparisons], paths[-1])
    scores = [
        {"seed": seed, **_with_labels(score)}
        for seed, found in findings.items()
        for score in found.scores
    ]
    if scores:
        paths.append(workdir / "selection.csv")
        write_csv(scores, paths[-1])
    chosen = [line for seed, found in findings.items() for line in _chosen_rules(seed, found)]
    if chosen:
        paths.append(workdir / "rules.json")
        write_atomically(paths[-1], json.dumps({"schema": SCHEMA, "rules": chosen}, indent=1))
    if tested:
        paths.append(workdir / "shuffled.csv")
        write_csv([_with_labels(line) for line in tested], paths[-1])
    if envelope:
        paths.append(workdir / "envelope.csv")
        write_csv([_with_labels(line) for line in envelope], paths[-1])
    paths.append(workdir / "report.md")
    write_atomically(paths[-1], tables + "\n")
    paths += write_curves(rows, workdir / "figures")
    paths += write_trade_off(summaries, workdir / "figures")
    return paths


def _chosen_rules(seed: int, found: Findings) -> list[dict[str, Any]]:
    """Rules that validation rows chose, whole: of learned ones parameters are not all there is."""
    shares: dict[tuple[str, Rule], list[float]] = {}
    for best in found.best:
        shares.setdefault((best.believed, best.rule), []).append(best.share)
    return [
        {
            "seed": seed,
            "believed": score.believed,
            "selected": score.selected,
            "best_for_shares": shares.get((score.believed, score.rule), []),
            "rule": json.loads(score.rule.to_json()),
        }
        for score in found.scores
        if score.selected or (score.believed, score.rule) in shares
    ]


def write_csv(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes lines: measurements with six decimals, parameters as given, None as an empty field.

    Args:
      lines: {column: value}, at least one, all with the same columns.
      path: of the file.
    """
    frame = pd.DataFrame.from_records(lines)
    for name in set(PARAMETERS) & set(frame.columns):
        frame[name] = frame[name].map(repr, na_action="ignore")
    if "severity" in frame:  # empty for means
        frame["severity"] = frame["severity"].astype("Int64")
    write_atomically(path, frame.to_csv(index=False, float_format="%.6f"))


def _with_labels(line: Any) -> dict[str, Any]:
    """A line of a table as columns, with the labels of rules."""
    return {
        "method" if name == "rule" else name: value.label if isinstance(value, Rule) else value
        for name, value in line._asdict().items()
    }
