"""What `experiments.benchmark` measures."""

import contextlib
import itertools
import json
import resource
import statistics
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from tqdm.auto import tqdm

from experiments import needs, timing
from experiments.benchmark_report import Row, make_table, write_csv, write_figure
from experiments.benchmark_settings import BenchmarkConfig, Case
from experiments.operations import MAX_MATRIX_BYTES, OPERATIONS, Method

_MIB = 2**20
NOT_REACHED = "not reached"
# Out of memory, or a decomposition that the backend does not have.
_FAILURES = (RuntimeError, ValueError, MemoryError)


def run(config: BenchmarkConfig) -> list[Row]:
    """Measures all methods at all sizes, prints the table and writes the files.

    Args:
      config: all settings.

    Returns:
      The rows of the CSV file.
    """
    workdir = Path(config.workdir)
    workdir.mkdir(parents=True, exist_ok=True)  # fails now, not after the measurements
    needs.check(_memory(config), {workdir: 2**20}, remedy="lower --batch_sizes or --num_classes")
    planned = _plan(config)
    paths = [workdir / f"benchmark_{config.op}{suffix}" for suffix in (".jsonl", ".csv", ".png")]
    rows: list[Row] = []
    own_s: dict[Case, float] = {}
    with paths[0].open("w") as file, tqdm(total=sum(map(len, planned)), disable=None) as progress:
        for row in itertools.chain(*planned):
            _write_line(file, row._replace(skipped=NOT_REACHED))
        for of_size in planned:
            with _precision(of_size[0].dtype):
                for row in _measure_methods(config, of_size):
                    row = _with_ratio(row, own_s)
                    _write_line(file, row)
                    rows.append(row)
                    progress.update()
    write_csv(rows, paths[1])
    if all(row.skipped for row in rows):
        del paths[2]
    else:
        write_figure(rows, paths[2])
    print(make_table(rows))
    print(
        f"\n{config.op} on {rows[0].device}, {config.num_repeats} repeats; times are scaled from "
        f"num_measured samples to the batch\nyardsticks: float32 matrix product, "
        f"{rows[0].yardstick_gflop_per_s:.4g} GFLOP/s; copy, {rows[0].yardstick_gb_per_s:.4g} GB/s"
        f"\n{_peak_memory()}"
    )
    for path in paths:
        print(f"wrote {path}")
    return rows


def _memory(config: BenchmarkConfig) -> float:
    """What the largest case takes of the host, with the programs' own limit, or the yardsticks."""
    if jax.default_backend() != "cpu":
        return needs.PROCESS_BYTES
    operation = OPERATIONS[config.op]
    arrays = max(
        case.batch_size * operation.num_entries(case.num_classes) * np.dtype(case.dtype).itemsize
        for case in (*config.cases, *(config.peer_cases or ()))
    )
    yardsticks = max(3 * 4 * config.yardstick_size**2, 2 * config.yardstick_bytes)
    return needs.PROCESS_BYTES + max(arrays + MAX_MATRIX_BYTES, yardsticks)


def _plan(config: BenchmarkConfig) -> list[list[Row]]:
    """Rows with nothing measured but the yardsticks; those of a list share their inputs."""
    flop_per_s = timing.matmul_flop_per_s(config.yardstick_size, num_repeats=config.num_repeats)
    bytes_per_s = timing.copy_bytes_per_s(config.yardstick_bytes, num_repeats=config.num_repeats)
    # The library's own method first: the others are compared with it.
    methods = [name for name in OPERATIONS[config.op].methods if name in config.methods]
    groups = [(case, methods) for case in config.cases]
    if config.peer_cases is not None:
        own = [name for name in methods if name == next(iter(OPERATIONS[config.op].methods))]
        peers = [name for name in methods if name not in own]
        groups = [(case, own) for case in config.cases]
        groups += [(case, peers) for case in config.peer_cases]
    return [
        [
            Row(
                op=config.op,
                device=jax.devices()[0].device_kind,
                yardstick_gflop_per_s=flop_per_s / 1e9,
                yardstick_gb_per_s=bytes_per_s / 1e9,
                method=name,
                **case._asdict(),
            )
            for name in of_case
        ]
        for case, of_case in groups
        if of_case
    ]


def _write_line(file: TextIO, row: Row) -> None:
    """Appends a row, at once."""
    file.write(json.dumps(row._asdict()) + "\n")
    file.flush()


def _precision(dtype: str) -> AbstractContextManager[Any]:
    """Lets JAX compute in float64 where that is asked for, and only there."""
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def _measure_methods(config: BenchmarkConfig, planned: list[Row]) -> Iterator[Row]:
    """The rows of all methods at one size, on the same inputs."""
    operation = OPERATIONS[config.op]
    num_classes, batch_size, dtype = planned[0].num_classes, planned[0].batch_size, planned[0].dtype
    counts = {
        row.method: operation.methods[row.method].num_measured(batch_size, num_classes, dtype)
        for row in planned
        if _reason_to_skip(operation.methods[row.method]) is None
    }
    inputs = failure = None
    if counts:
        # This generator draws without temporaries; JAX's default takes three times the array.
        key = jax.random.key(config.seed, impl="rbg")
        try:
            make_inputs = operation.make_inputs
            if jax.default_backend() != "cpu":
                # Operations of their own compile for half a second each there, but hold less.
                make_inputs = jax.jit(make_inputs, static_argnums=(1, 2, 3))
            inputs = make_inputs(key, max(counts.values()), num_classes, dtype)
        except _FAILURES as error:
            failure = _describe(error)
    for planned_row in planned:
        method = operation.methods[planned_row.method]
        row = planned_row._replace(skipped=_reason_to_skip(method) or failure)
        if row.skipped is None and inputs is not None:
            count = counts[row.method]
            try:
                measured = timing.measure(
                    method.fn,
                    inputs.take(count, as_numpy=not method.is_compiled),
                    num_repeats=config.num_repeats,
                    max_s=config.max_s,
                    is_compiled=method.is_compiled,
                )
                row = _with_measurement(row, measured, count)
            except _FAILURES as error:
                row = row._replace(skipped=_describe(error))
        yield row


def _with_ratio(row: Row, own_s: dict[Case, float]) -> Row:
    """The row with its ratio to the library's own method, whose times it adds to `own_s`."""
    if row.median_s is None:
        return row
    case = Case(row.num_classes, row.batch_size, row.dtype)
    if row.method == next(iter(OPERATIONS[row.op].methods)):
        own_s[case] = row.median_s
    return row._replace(ratio=row.median_s / own_s[case]) if case in own_s else row


def _with_measurement(row: Row, measured: timing.Timing, num_measured: int) -> Row:
    """The row with its times, scaled to the batch, and what follows from them."""
    operation = OPERATIONS[row.op]
    batch_s = [s * row.batch_size / num_measured for s in measured.call_s]
    median_s = statistics.median(batch_s)
    gflop = row.batch_size * operation.num_flops(row.num_classes) / 1e9
    num_entries = row.batch_size * operation.num_entries(row.num_classes)
    peak_bytes, flops = measured.peak_bytes, measured.flops
    return row._replace(
        num_measured=num_measured,
        num_repeats=len(measured.call_s),
        compile_s=measured.compile_s,
        median_s=median_s,
        min_s=min(batch_s),
        max_s=max(batch_s),
        us_per_sample=1e6 * median_s / row.batch_size,
        gflop_per_s=gflop / median_s,
        executed_gflop_per_s=(
            None if flops is None else flops * row.batch_size / num_measured / 1e9 / median_s
        ),
        gb_per_s=num_entries * np.dtype(row.dtype).itemsize / 1e9 / median_s,
        yardstick_ratio=median_s * row.yardstick_gflop_per_s / gflop,
        peak_mib=None if peak_bytes is None else peak_bytes / _MIB,
    )


def _reason_to_skip(method: Method) -> str | None:
    """Why the method cannot run here; None where it can."""
    if jax.default_backend() not in method.backends:
        return f"not available on {jax.default_backend()}"
    return None


def _describe(error: Exception) -> str:
    """An error in one line that is not too long for a table."""
    lines = str(error).splitlines() or [""]
    return f"failed: {type(error).__name__}: {lines[0][:160]}"


def _peak_memory() -> str:
    """The most memory that this process has held so far, on the host and on the device."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB
    text = f"peak memory of this process: {peak:.0f} MiB"
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        text += f", on the device {stats['peak_bytes_in_use'] / _MIB:.0f} MiB"
    return text
