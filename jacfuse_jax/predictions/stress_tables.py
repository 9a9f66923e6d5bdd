"""What `stress` writes and says."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from jacfuse_jax import metrics, selection
from jacfuse_jax.predictions.labelled import LabelledRows
from jacfuse_jax.programs.files import write_atomically
from jacfuse_jax.selection import FAULTS, Choice, Measured, Suspects

_COVERAGES = np.linspace(0.05, 1, 20)
_NAMES = {"cascade c=0 t=1": "without it"}  # of what anybody would do


class Stressed(NamedTuple):
    """What is found of one kind of failure.

    Attributes:
      suspects: which modalities may fail.
      measured: of every rule, simple ones first.
      choices: a rule for each share of attacks.
    """

    suspects: Suspects
    measured: list[Measured]
    choices: list[Choice]


def write_tables(
    folder: Path, stressed: Sequence[Stressed], groups: NDArray[np.int64] | None, seed: int
) -> None:
    """Writes stress.csv, faults.csv and coverage.csv.

    Args:
      folder: to write to.
      stressed: what was found.
      groups: (N,), of the rows, or None.
      seed: of the resamples of intervals.
    """
    _write_csv(folder / "stress.csv", _lines(stressed, groups, seed))
    _write_csv(folder / "faults.csv", _fault_lines(stressed))
    _write_csv(folder / "coverage.csv", _coverage_lines(stressed))


def make_report(stressed: Sequence[Stressed], rows: LabelledRows, remarks: Sequence[str]) -> str:
    """Says what is lost, and what was chosen.

    Args:
      stressed: what was found.
      rows: that it was found on.
      remarks: lines about the inputs.
    """
    groups = "" if rows.groups is None else f" of {len(np.unique(rows.groups))} groups"
    parts = [f"{len(rows.labels)} labelled rows{groups}; accuracy in %", *remarks]
    headers = ["fails", "clean", *FAULTS, "anything"]
    table: list[list[str]] = []
    for suspects, measured, _ in stressed:
        (statistical,) = (x for x in measured if x.rule == selection.BASELINES[0])
        any_input = statistical.any_input
        assert any_input is not None
        found = [statistical.clean, *statistical.faults.values(), any_input]
        table.append([suspects.name, *(f"{100 * x.mean():.1f}" for x in found)])
    parts += ["", "Statistical fusion, if a modality fails:", "", _tabulate(table, headers)]
    for suspects, _, choices in stressed:
        headers = ["share", "rule", "clean", "worst", "case", "expected", "95% interval"]
        headers += [_NAMES.get(rule.label, rule.label) for rule in choices[0].baselines]
        lines = [
            [
                f"{100 * choice.share:g}%",
                choice.rule.label,
                *(f"{100 * x:.1f}" for x in choice.worth[:2]),
                choice.worst_case,
                f"{100 * choice.worth.expected:.1f}",
                f"[{100 * choice.low:.1f}, {100 * choice.high:.1f}]",
                *(f"{100 * worth.expected:.1f}" for worth in choice.baselines.values()),
            ]
            for choice in choices
        ]
        said = (
            f"{suspects.name} fails in a share of inputs: the rule that is worth most, out of "
            f"{choices[0].num_candidates}, and what is expected of it and of simpler ones:"
        )
        parts += ["", said, "", _tabulate(lines, headers)]
    return "\n".join(parts)


def _lines(
    stressed: Sequence[Stressed], groups: NDArray[np.int64] | None, seed: int
) -> Iterable[Mapping[str, Any]]:
    """stress.csv."""
    for suspects, measured, choices in stressed:
        clean = np.stack([each.clean for each in measured], axis=1)
        interval = metrics.bootstrap_interval(clean, seed, groups=groups)
        for i, each in enumerate(measured):
            any_input = each.any_input
            best = [f"{c.share:g}" for c in choices if c.rule == each.rule]
            yield {
                "suspect": suspects.name,
                "rule": each.rule.name,
                "parameters": _parameters(each),
                "clean": _share(float(interval.mean[i])),
                "clean_low": _share(float(interval.low[i])),
                "clean_high": _share(float(interval.high[i])),
                "any_input": "" if any_input is None else _share(any_input.mean()),
                **{fault: _share(each.faults[fault].mean()) for fault in FAULTS},
                "share_best": " ".join(best),
                "remark": "" if any_input is not None else "any_input: no exact one is known",
                "schema": selection.SCHEMA,
            }


def _fault_lines(stressed: Sequence[Stressed]) -> Iterable[Mapping[str, Any]]:
    """faults.csv."""
    for suspects, measured, _ in stressed:
        for each in measured:
            for fault, figures in each.figures.items():
                yield {
                    "suspect": suspects.name,
                    "rule": each.rule.name,
                    "parameters": _parameters(each),
                    "fault": fault,
                    **{name: _share(value) for name, value in figures._asdict().items()},
                }


def _coverage_lines(stressed: Sequence[Stressed]) -> Iterable[Mapping[str, Any]]:
    """coverage.csv."""
    for suspects, measured, choices in stressed:
        chosen = {choice.rule for choice in choices}
        for each in measured:
            if each.rule not in chosen:
                continue
            criteria: dict[str, Any] = {"confidence": each.confidence}
            if each.certified is not None:
                criteria["certified"] = each.certified
            for criterion, values in criteria.items():
                curve = selection.coverage_curve(values, each.clean)
                # The fewest rows that are at least so many; those of one value go together.
                places = np.unique(
                    np.searchsorted(curve.coverage, _COVERAGES - 1e-9).clip(
                        max=len(curve.coverage) - 1
                    )
                )
                for i in places:
                    yield {
                        "suspect": suspects.name,
                        "rule": each.rule.name,
                        "parameters": _parameters(each),
                        "criterion": criterion,
                        "threshold": _share(float(curve.threshold[i])),
                        "coverage": _share(float(curve.coverage[i])),
                        "accuracy": _share(float(curve.accuracy[i])),
                    }


def _parameters(measured: Measured) -> str:
    return " ".join(f"{name}={x:g}" for name, x in measured.rule.parameters.items())


def _share(number: float) -> str:
    """Four decimals: of 10,000 rows each counts."""
    return f"{number:.4f}"


def _write_csv(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """A table, whole or not there."""
    rows = [*lines]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def _tabulate(lines: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)
