r"""Puts together what `.ci/accelerator` measured: JSON, CSV, figures, and a table on the screen.

    python -m experiments.accelerator_report --partial=runs/accelerator/partial \
        --out=runs/accelerator

Steps that failed, or that were ended, leave what they had measured; this says what is missing.
"""

import json
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
from absl import app, flags
from tabulate import tabulate

from experiments.benchmark import NOT_REACHED
from experiments.files import six_digits, write_atomically, write_csv

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
_MARKERS = "osD^vP*X"


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
    cells = ([six_digits(row.get(name)) for name in _COLUMNS] for row in rows)
    write_csv(_COLUMNS, cells, out / "accelerator.csv")
    measured = [row for row in rows if row["median_s"] is not None]
    if not measured:
        return
    device = findings["machine"]["device"]
    for name, draw in (
        ("time", _draw_times),
        ("peers", _draw_peers),
        ("roofline", _draw_roofline),
        ("compile", _draw_compile_times),
    ):
        figure, axis = plt.subplots(figsize=(7.2, 5.6), layout="constrained")
        draw(axis, measured, findings["ceilings"])
        axis.grid(alpha=0.3)
        axis.set_title(f"{axis.get_title()}, {device}")
        if axis.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=3, fontsize="x-small")
        write_atomically(out / f"{name}.png", figure.savefig)
        plt.close(figure)


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


def _draw_times(axis: Any, rows: Sequence[dict[str, Any]], _: Any) -> None:
    """Time of the library's own methods against K, in float32, at the largest batch of each K."""
    own = _first_methods(rows)
    chosen = [row for row in rows if own[row["op"]] == row["method"] and row["dtype"] == "float32"]
    _draw_curves(axis, chosen, lambda row: row["op"])
    axis.set_title("Library's own methods, float32, largest batch")


def _draw_peers(axis: Any, rows: Sequence[dict[str, Any]], _: Any) -> None:
    """The same with peers, of the operations that have any."""
    own = _first_methods(rows)
    with_peers = {row["op"] for row in rows if row["method"] != own[row["op"]]}
    chosen = [row for row in rows if row["op"] in with_peers and row["dtype"] == "float32"]
    _draw_curves(axis, chosen, lambda row: f"{row['op']}: {row['method']}")
    axis.set_title("Methods and peers, float32, largest batch")


def _first_methods(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The method of every op that comes first: the library's own."""
    return {row["op"]: row["method"] for row in reversed(rows)}


def _draw_curves(
    axis: Any, rows: Sequence[dict[str, Any]], label_of: Callable[[dict[str, Any]], str]
) -> None:
    """Microseconds a sample against K, the largest batch of each K."""
    curves: dict[str, dict[int, dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["batch_size"]):
        curves.setdefault(label_of(row), {})[row["num_classes"]] = row
    # A colour an op; the first method, the library's own, is a solid line.
    methods: dict[str, list[str]] = {}
    for label, curve in curves.items():
        methods.setdefault(next(iter(curve.values()))["op"], []).append(label)
    first = {row["op"]: label_of(row) for row in reversed(rows)}
    for index, (op, labels) in enumerate(sorted(methods.items())):
        peers = [label for label in labels if label != first[op]]
        for peer, label in enumerate([first[op], *peers]):
            x = sorted(curves[label])
            axis.plot(
                x,
                [curves[label][K]["us_per_sample"] for K in x],
                linestyle="--" if peer else "-",
                marker=_MARKERS[peer % len(_MARKERS)],
                color=f"C{index % 10}",
                markerfacecolor="white" if peer else f"C{index % 10}",
                label=label,
            )
    ticks = sorted({K for curve in curves.values() for K in curve})
    axis.set(xscale="log", yscale="log", xlabel="number of classes K")
    axis.set_ylabel("microseconds a sample")
    axis.set_xticks(ticks, [str(K) for K in ticks])
    axis.set_xticks([], minor=True)


def _draw_roofline(axis: Any, rows: Sequence[dict[str, Any]], ceilings: Mapping[str, Any]) -> None:
    """Executed operations a second against operations a byte of inputs and outputs, by K."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["dtype"] == "float32" and row["executed_gflop_per_s"]:
            rate = row["executed_gflop_per_s"]
            label = f"{row['op']}: {row['method']}"
            points.setdefault(label, []).append((rate / row["gb_per_s"], rate))
            text = f"K={row['num_classes']}"
            axis.annotate(
                text, points[label][-1], xytext=(6, 3), textcoords="offset points", fontsize=7
            )
    for index, (label, of_label) in enumerate(sorted(points.items())):
        axis.plot(
            *zip(*of_label, strict=True), _MARKERS[index % len(_MARKERS)], label=label, alpha=0.8
        )
    intensities = sorted(x for of_label in points.values() for x, _ in of_label) or [1.0]
    lines = [
        (
            ceilings["shares_are_of"],
            1e3 * ceilings["float32_tflop_per_s"],
            ceilings["gb_per_s"],
            "k-",
        ),
        (
            "product, copy here",
            1e3 * ceilings["measured_tflop_per_s"],
            ceilings["measured_gb_per_s"],
            "k:",
        ),
    ]
    for label, gflop_per_s, gb_per_s, style in lines:
        x = sorted([intensities[0] / 2, gflop_per_s / gb_per_s, intensities[-1] * 2])
        axis.plot(x, [min(gflop_per_s, gb_per_s * value) for value in x], style, label=label)
    axis.set(xscale="log", yscale="log", xlabel="operations a byte of inputs and outputs")
    axis.set_ylabel("GFLOP/s as executed")
    axis.set_title("Against the limits, float32")


def _draw_compile_times(axis: Any, rows: Sequence[dict[str, Any]], _: Any) -> None:
    """Seconds to compile, the longest of each method with its K, every dot a size and dtype."""
    seconds: dict[str, list[float]] = {}
    num_classes: dict[tuple[str, float], int] = {}
    for row in rows:
        if row["compile_s"] is not None:
            name = f"{row['op']}: {row['method']}"
            seconds.setdefault(name, []).append(row["compile_s"])
            num_classes[name, row["compile_s"]] = row["num_classes"]
    names = sorted(seconds, key=lambda name: max(seconds[name]))
    axis.barh(names, [max(seconds[name]) for name in names], color="0.85")
    for position, name in enumerate(names):
        axis.plot(seconds[name], [position] * len(seconds[name]), "k.", markersize=4)
        longest = max(seconds[name])
        text = f" K={num_classes[name, longest]}"
        axis.text(longest, position, text, va="center", fontsize=7)
    axis.tick_params(axis="y", labelsize=7)
    axis.margins(x=0.09)
    axis.set(xlabel="seconds to trace, lower and compile")
    axis.set_title("Compile times")


def main(_: list[str]) -> None:
    """Writes the files, then prints."""
    mpl.use("Agg")
    findings = collect(Path(flags.FLAGS.partial))
    print(describe(findings))
    write(findings, Path(flags.FLAGS.out))


if __name__ == "__main__":
    flags.DEFINE_string("partial", None, "Folder that the steps wrote to.", required=True)
    flags.DEFINE_string("out", None, "Folder of the results.", required=True)
    app.run(main)
