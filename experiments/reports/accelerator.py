"""What `.ci/accelerator` measured, put together."""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from experiments.measuring.benchmark import NOT_REACHED
from experiments.reports.accelerator_figures import write_figures
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


class Card(NamedTuple):
    """Limits of a device, floating-point operations and bytes a second.

    Attributes:
      float32: without tensor cores.
      float64: without tensor cores; None where it is not known.
      bandwidth: of its memory.
      source: of these figures.
    """

    float32: float
    float64: float | None
    bandwidth: float
    source: str


# Data sheets of the vendor, without tensor cores, by the name that JAX gives.
_CARDS = {
    "NVIDIA H100 80GB HBM3": Card(66.9e12, 33.5e12, 3.35e12, "data sheet"),
    "NVIDIA H100 PCIe": Card(51.2e12, 25.6e12, 2.0e12, "data sheet"),
    "NVIDIA H200": Card(66.9e12, 33.5e12, 4.8e12, "data sheet"),
    "NVIDIA A100-SXM4-80GB": Card(19.5e12, 9.7e12, 2.039e12, "data sheet"),
    "NVIDIA A100-SXM4-40GB": Card(19.5e12, 9.7e12, 1.555e12, "data sheet"),
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
    card = _card_of(rows)
    log = partial / "tests.log"
    digits = partial / "digits.json"
    return {
        "machine": _describe_machine(partial, rows),
        "ceilings": _describe_ceilings(rows, card),
        "steps": [{**step, "outcome": _outcome(step)} for step in steps],
        "tests": count_tests(log.read_text(errors="replace")) if log.exists() else {},
        "digits": json.loads(digits.read_text()) if digits.exists() else None,
        "rows": [_with_shares(row, card) for row in rows],
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


def _card_of(rows: Sequence[Mapping[str, Any]]) -> Card | None:
    """Limits of the device of the rows: of its data sheet, or as measured here."""
    if not rows:
        return None
    flop_per_s, bytes_per_s = _measured_ceilings(rows)
    measured = Card(flop_per_s, None, bytes_per_s, "measured here: matrix product and copy")
    return _CARDS.get(rows[0]["device"], measured)


def _measured_ceilings(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The best rates of any step, since each measures them again."""
    return (
        max(row["yardstick_gflop_per_s"] for row in rows) * 1e9,
        max(row["yardstick_gb_per_s"] for row in rows) * 1e9,
    )


def _describe_ceilings(rows: Sequence[Mapping[str, Any]], card: Card | None) -> dict[str, Any]:
    """Limits in units for reading; empty where no benchmark got as far as its yardsticks."""
    if card is None:
        return {}
    flop_per_s, bytes_per_s = _measured_ceilings(rows)
    return {
        "measured_tflop_per_s": flop_per_s / 1e12,
        "measured_gb_per_s": bytes_per_s / 1e9,
        "float32_tflop_per_s": card.float32 / 1e12,
        "float64_tflop_per_s": None if card.float64 is None else card.float64 / 1e12,
        "gb_per_s": card.bandwidth / 1e9,
        "shares_are_of": card.source,
    }


def _with_shares(row: dict[str, Any], card: Card | None) -> dict[str, Any]:
    """The row with its operations a sample and its shares of the limits."""
    if row["median_s"] is None or card is None:
        return row
    peak = {"float32": card.float32, "float64": card.float64}[row["dtype"]]
    shares: dict[str, Any] = {"share_of_bandwidth": row["gb_per_s"] * 1e9 / card.bandwidth}
    for flops, rate, share in (
        ("nominal_flops", row["gflop_per_s"], "share_of_peak"),
        ("executed_flops", row["executed_gflop_per_s"], "executed_share_of_peak"),
    ):
        known = rate is not None
        shares[flops] = round(rate * 1e9 * row["median_s"] / row["batch_size"]) if known else None
        shares[share] = rate * 1e9 / peak if known and peak is not None else None
    return {**row, **shares}


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
