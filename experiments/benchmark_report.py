"""What a benchmark leaves behind: a table, a CSV file and a figure."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from tabulate import tabulate

from experiments import files
from experiments.files import write_atomically


class Row(NamedTuple):
    """One line of the table and of the CSV file; None is an empty field.

    Attributes:
      op: what is computed, see `operations.OPERATIONS`.
      device: kind of device.
      yardstick_gflop_per_s: rate of its float32 matrix product.
      yardstick_gb_per_s: rate of a copy in its memory, bytes read and written.
      method: how; the first method of an op is the library's own.
      num_classes: K.
      batch_size: B, the samples that the times are for.
      dtype: of the inputs.
      num_measured: samples that were run; times are scaled by batch_size / num_measured.
      num_repeats: timed, fewer than asked for where they take too long.
      compile_s: seconds to trace, lower and compile; None where nothing is compiled.
      median_s: seconds a batch, median of the repeats.
      min_s: seconds a batch, shortest repeat.
      max_s: seconds a batch, longest repeat.
      us_per_sample: microseconds, median_s / batch_size.
      ratio: median_s over that of the op's first method, where that was measured.
      gflop_per_s: nominal operations, the same for all methods of an op, over median_s.
      executed_gflop_per_s: operations that the program executes, see `flops.count_flops`, over
        median_s; None where they cannot be told.
      gb_per_s: bytes of input and output arrays, which every method must move, over median_s.
      yardstick_ratio: median_s over the time of as many operations in a float32 matrix product.
      peak_mib: arguments, outputs and temporaries of the program, for num_measured samples.
      skipped: why nothing was measured, an error among others; None otherwise.
    """

    op: str
    device: str
    yardstick_gflop_per_s: float
    yardstick_gb_per_s: float
    method: str
    num_classes: int
    batch_size: int
    dtype: str
    num_measured: int | None = None
    num_repeats: int | None = None
    compile_s: float | None = None
    median_s: float | None = None
    min_s: float | None = None
    max_s: float | None = None
    us_per_sample: float | None = None
    ratio: float | None = None
    gflop_per_s: float | None = None
    executed_gflop_per_s: float | None = None
    gb_per_s: float | None = None
    yardstick_ratio: float | None = None
    peak_mib: float | None = None
    skipped: str | None = None


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
    files.write_measured(Row._fields, rows, path)


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
