"""What a benchmark leaves behind: a table, a CSV file and a figure."""

import math
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.measuring.benchmark import Row
from experiments.reports.csv_files import write_measured
from jacfuse_jax.programs.files import write_atomically

_MIB = 2**20


def write(rows: Sequence[Row], workdir: Path, *, num_repeats: int) -> None:
    """Writes benchmark_<op>.csv and .png, and prints the table.

    Args:
      rows: of one run, at least one.
      workdir: of the files.
      num_repeats: that were asked for.
    """
    op = rows[0].op
    write_csv(rows, workdir / f"benchmark_{op}.csv")
    is_measured = not all(row.skipped for row in rows)
    if is_measured:
        write_figure(rows, workdir / f"benchmark_{op}.png")
    print(make_table(rows))
    print(
        f"\n{op} on {rows[0].device}, {num_repeats} repeats; times are scaled from num_measured "
        f"samples to the batch\nyardsticks: float32 matrix product, "
        f"{rows[0].yardstick_gflop_per_s:.4g} GFLOP/s; copy, {rows[0].yardstick_gb_per_s:.4g} GB/s"
        f"\n{_peak_memory()}"
    )
    for suffix in ("jsonl", "csv", *(["png"] if is_measured else [])):
        print(f"wrote {workdir / f'benchmark_{op}.{suffix}'}")


def make_table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, without what is the same for the whole run."""
    hidden = {"op", "device", "yardstick_gflop_per_s", "yardstick_gb_per_s"}
    hidden |= set() if any(row.skipped for row in rows) else {"skipped"}
    columns = {
        name: [getattr(row, name) for row in rows] for name in Row._fields if name not in hidden
    }
    return tabulate(columns, "keys", tablefmt="github", floatfmt=".4g")


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows with a header; floats with six digits, None as an empty field."""
    write_measured(Row._fields, rows, path)


def write_figure(rows: Sequence[Row], path: Path) -> None:
    """Draws microseconds a sample on logarithmic axes, a line per method, dtype and batch size.

    The horizontal axis is the batch size where only that varies, K otherwise.

    Args:
      rows: of one run, at least one of them measured.
      path: of the PNG file.
    """
    measured = [row for row in rows if row.us_per_sample and row.yardstick_ratio]
    varying = {
        name
        for name in ("num_classes", "batch_size", "dtype")
        if len({getattr(row, name) for row in measured}) > 1
    }
    abscissa = "batch_size" if varying - {"dtype"} == {"batch_size"} else "num_classes"
    curves: dict[str, dict[int, float]] = {}
    yardstick: dict[int, float] = {}
    for row in measured:
        label = row.method
        label += f" {row.dtype}" if "dtype" in varying else ""
        label += f" B={row.batch_size}" if "batch_size" in varying - {abscissa} else ""
        x, y = getattr(row, abscissa), row.us_per_sample or math.nan
        curves.setdefault(label, {})[x] = y
        yardstick[x] = y / (row.yardstick_ratio or math.nan)
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axis = figure.subplots()
    for label, curve in curves.items():
        x, y = zip(*sorted(curve.items()), strict=True)
        axis.plot(x, y, "o-", label=label)
    ticks, y = zip(*sorted(yardstick.items()), strict=True)
    axis.plot(ticks, y, "x:k", label="as many operations in a matrix product")
    axis.set(xscale="log", yscale="log", ylabel="microseconds a sample")
    axis.set_xlabel("batch size B" if abscissa == "batch_size" else "number of classes K")
    axis.set_xticks(ticks, [str(x) for x in ticks])
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.3)
    names = {"num_classes": "K=", "batch_size": "B=", "dtype": ""}
    constant = [
        text + str(getattr(measured[0], name))
        for name, text in names.items()
        if name not in varying
    ]
    axis.set_title(", ".join([f"{measured[0].op} on {measured[0].device}", *constant]))
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    write_atomically(path, figure.savefig)


def _peak_memory() -> str:
    """The most memory that this process has held so far, on the host and on the device."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB
    text = f"peak memory of this process: {peak:.0f} MiB"
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        text += f", on the device {stats['peak_bytes_in_use'] / _MIB:.0f} MiB"
    return text
