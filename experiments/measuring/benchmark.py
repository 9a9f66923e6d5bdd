"""What `experiments.benchmark` measures."""

import contextlib
import itertools
import json
import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np
from tqdm.auto import tqdm

from experiments.measuring import timing
from experiments.measuring.operations import MAX_MATRIX_BYTES, OPERATIONS, Method
from experiments.run.benchmark_flags import BenchmarkConfig, Case
from experiments.run.needs import PROCESS_BYTES
from jacfuse_jax.programs import resources

_MIB = 2**20
NOT_REACHED = "not reached"
# Out of memory, or a decomposition that the backend does not have.
_FAILURES = (RuntimeError, ValueError, MemoryError)


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


def measure(config: BenchmarkConfig) -> list[Row]:
    """Measures all methods at all sizes; rows go to benchmark_<op>.jsonl as they come.

    Args:
      config: all settings.

    Returns:
      The rows.

    Raises:
      InputError: the largest size does not fit into memory.
    """
    workdir = config.workdir
    workdir.mkdir(parents=True, exist_ok=True)  # fails now, not after the measurements
    resources.check(
        _memory(config), {workdir: 2**20}, remedy="lower --batch_sizes or --num_classes"
    )
    planned = _plan(config)
    path = workdir / f"benchmark_{config.op}.jsonl"
    rows: list[Row] = []
    own_s: dict[Case, float] = {}
    with path.open("w") as file, tqdm(total=sum(map(len, planned)), disable=None) as progress:
        for row in itertools.chain(*planned):
            _write_line(file, row._replace(skipped=NOT_REACHED))
        for of_size in planned:
            with _precision(of_size[0].dtype):
                for row in _measure_methods(config, of_size):
                    row = _with_ratio(row, own_s)
                    _write_line(file, row)
                    rows.append(row)
                    progress.update()
    return rows


def _memory(config: BenchmarkConfig) -> float:
    """What the largest case takes of the host, with the programs' own limit, or the yardsticks."""
    if jax.default_backend() != "cpu":
        return PROCESS_BYTES
    operation = OPERATIONS[config.op]
    arrays = max(
        case.batch_size * operation.num_entries(case.num_classes) * np.dtype(case.dtype).itemsize
        for case in (*config.cases, *(config.peer_cases or ()))
    )
    yardsticks = max(3 * 4 * config.yardstick_size**2, 2 * config.yardstick_bytes)
    return PROCESS_BYTES + max(arrays + MAX_MATRIX_BYTES, yardsticks)


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
