"""What `.ci/accelerator` measured, put together."""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tabulate import tabulate

from experiments.measuring.benchmark import NOT_REACHED
from experiments.reports.accelerator_figures import write_figures
from experiments.reports.accelerator_limits import card_of, describe_ceilings, with_shares
from experiments.reports.csv_files import write_measured
from jacfuse_jax.programs.files import write_atomically

_PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax", "numpy")
_TIMED_OUT = (124, 137)  # what `timeout` returns
_COLUMNS = (
    "op",
    "method",
    "num_classes",
    "batch_size",
    "dtype",
    "num_measured",
    "num_repeats",
    "us_per_sample",
    "ratio",
    "nominal_flops",
    "executed_flops",
    "gflop_per_s",
    "executed_gflop_per_s",
    "gb_per_s",
    "share_of_peak",
    "executed_share_of_peak",
    "share_of_bandwidth",
    "compile_s",
    "peak_mib",
    "skipped",
)
# The table on the screen: what is left out stands in the CSV file. Shares are in percent.
_HEADERS = {
    "op": "op",
    "method": "method",
    "num_classes": "K",
    "batch_size": "B",
    "dtype": "dtype",
    "num_measured": "samples\nrun",
    "us_per_sample": "us a\nsample",
    "ratio": "times\nour own",
    "nominal_flops": "flop a sample,\nnominal",
    "executed_flops": "flop a sample,\nexecuted",
    "share_of_peak": "% of peak,\nnominal",
    "executed_share_of_peak": "% of peak,\nexecuted",
    "share_of_bandwidth": "% of\nbandwidth",
    "compile_s": "compile\ns",
    "peak_mib": "memory\nMiB",
}


def collect(partial: Path) -> dict[str, Any]:
    """Gathers what the steps left.

    Args:
      partial: folder with steps.jsonl, <step>/benchmark_<op>.jsonl and, each if it got so far,
        tests.log, digits.json and card.txt.

    Returns:
      {"machine": ..., "ceilings": ..., "steps": [...], "tests": {outcome: count}, "digits": ...,
      "rows": [...]}, ready for JSON. A row is that of `benchmark_report.Row` with
      "nominal_flops" and "executed_flops" a sample, "share_of_peak" of either, at the precision
      of the row, and "share_of_bandwidth"; None where one is not known.
    """
    steps = _read_lines(partial / "steps.jsonl")
    rows: list[dict[str, Any]] = []
    for step in steps:
        for path in sorted((partial / step["name"]).glob("benchmark_*.jsonl")):
            rows += _rows_of_step(step, _read_lines(path))
    card = card_of(rows)
    log = partial / "tests.log"
    digits = partial / "digits.json"
    return {
        "machine": _describe_machine(partial, rows),
        "ceilings": describe_ceilings(rows, card),
        "steps": [{**step, "outcome": _outcome(step)} for step in steps],
        "tests": count_tests(log.read_text(errors="replace")) if log.exists() else {},
        "digits": json.loads(digits.read_text()) if digits.exists() else None,
        "rows": [with_shares(row, card) for row in rows],
    }


def count_tests(text: str) -> dict[str, int]:
    """Counts tests by their outcome.

    Args:
      text: what pytest -v printed, whole or not.

    Returns:
      {"passed": ..., "failed": ...} of the last line, or of the tests so far where it is missing.
    """
    for line in reversed(text.splitlines()):
        counts = re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed|xpassed)\b", line)
        if counts and " in " in line:
            return {outcome: int(count) for count, outcome in counts}
    outcomes = re.findall(r"\b(PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)\b", text)
    return {outcome.lower(): outcomes.count(outcome) for outcome in dict.fromkeys(outcomes)}


def write(findings: Mapping[str, Any], out: Path) -> None:
    """Writes JSON, CSV and figures.

    Args:
      findings: see `collect`.
      out: folder of the results.
    """
    write_atomically(out / "accelerator.json", json.dumps(findings, indent=1) + "\n")
    rows = findings["rows"]
    cells = ([row.get(name) for name in _COLUMNS] for row in rows)
    write_measured(_COLUMNS, cells, out / "accelerator.csv")
    measured = [row for row in rows if row["median_s"] is not None]
    if measured:
        write_figures(measured, findings["ceilings"], findings["machine"]["device"], out)


def describe(findings: Mapping[str, Any]) -> str:
    """The findings as text: machine, ceilings, steps, and a table of what was measured.

    Args:
      findings: see `collect`.
    """
    measured = [row for row in findings["rows"] if row["median_s"] is not None]
    table = tabulate(
        [[_cell(name, row.get(name)) for name in _HEADERS] for row in measured],
        list(_HEADERS.values()),
        colalign=["left" if name in ("op", "method", "dtype") else "right" for name in _HEADERS]
        if measured
        else None,
        disable_numparse=True,
    )
    missing = [
        f"{row['op']} {row['method']} K={row['num_classes']} B={row['batch_size']} {row['dtype']}: "
        f"{row['skipped']}"
        for row in findings["rows"]
        if row["median_s"] is None
    ]
    missing += [
        f"all of step {step['name']}: {step['outcome']}"
        for step in findings["steps"]
        if step["code"] is None
    ]
    steps = [
        f"{step['name']}: {step['outcome']}, {step['wall_s']} s of {step['limit_s']}"
        for step in findings["steps"]
    ]
    return "\n".join(
        [
            table,
            "\nnominal: the same for all methods of an op; executed: of the program, if known",
            "peak, bandwidth: the limits below, in the dtype of the row",
            "\nnot measured:",
            *(missing or ["nothing"]),
            "\nsteps:",
            *steps,
            f"\ntests: {findings['tests'] or 'none'}",
            f"digits: {json.dumps(findings['digits'])}",
            *(f"{name}: {value}" for name, value in findings["ceilings"].items()),
            *(f"{name}: {value}" for name, value in findings["machine"].items()),
        ]
    )


def _cell(name: str, value: Any) -> str:
    """A figure with three digits and no exponent unless it is tiny; shares in percent."""
    if value is None or isinstance(value, str):
        return value or ""
    if "share" in name:
        value *= 100
    if isinstance(value, int) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 1e-4 else f"{value:.1e}"


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a last line that is not whole was not finished."""
    objects: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            objects.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return objects


def _rows_of_step(step: Mapping[str, Any], lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last line of every method, size and dtype, in the order of the plan."""
    last: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in lines:
        key = tuple(line[name] for name in ("method", "num_classes", "batch_size", "dtype"))
        last[key] = {**line, "step": step["name"]}
    for row in last.values():
        if row["skipped"] == NOT_REACHED:
            row["skipped"] = f"{NOT_REACHED}: the step {_outcome(step)}"
    return list(last.values())


def _outcome(step: Mapping[str, Any]) -> str:
    """How a step ended, in words."""
    if step["code"] is None:
        return "had no time left"
    if step["code"] in _TIMED_OUT:
        return f"was ended after its {step['limit_s']} s"
    return f"failed with {step['code']}" if step["code"] else "was finished"


def _describe_machine(partial: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Card, driver and versions."""
    card = partial / "card.txt"
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "device": rows[0]["device"] if rows else "no device",
        "card": card.read_text().strip() if card.exists() else "no nvidia-smi",
        "versions": versions,
        "platform": platform.platform(),
    }
