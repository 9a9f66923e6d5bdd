r"""Speed and memory of the solvers against named peers, measured in the same run.

For every number of classes K, batch size B and dtype: seconds to compile; median, shortest and
longest of the repeats after a warm-up; ratio to the library's own method; rates; memory of the
program. Prints a table and writes benchmark_<op>.csv and benchmark_<op>.png into --workdir; rows go
to benchmark_<op>.jsonl as soon as they are measured, after those that are planned: of lines for the
same method, size and dtype the last one counts.

    python -m experiments.benchmark --op=solve_sylvester --num_classes=10 --batch_sizes=4096
    python -m experiments.benchmark --op=solve_sylvester --num_classes=50 --batch_sizes=256
    python -m experiments.benchmark --op=recalibrate --num_classes=10 --batch_sizes=65536
    python -m experiments.benchmark --op=recalibrate --num_classes=309 --batch_sizes=256
    python -m experiments.benchmark --op=recalibrate --num_classes=309 --batch_sizes=1000000 \
        --methods=closed_form

take one or two minutes each on two CPU cores, most of it in the peers; the last one takes three, in
3.5 GiB of arrays.

Methods that hold K x K arrays of every sample run on as many samples as fit into about 1 GiB, SciPy
loops, `jnp.linalg.eig` and what calls it on 16 at most: the column `num_measured` tells how many.
Times are then scaled to the batch, memory is not. The row of a method that fails says why.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import re
import resource
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import matplotlib as mpl
import numpy as np
from absl import app, flags, logging
from tqdm.auto import tqdm

from experiments import timing
from experiments.benchmark_report import Row, make_table, write_csv, write_figure
from experiments.config import ConfigError, check_folder, choices
from experiments.operations import OPERATIONS, Method

_DTYPES = ("float32", "float64")
_MIB = 2**20
NOT_REACHED = "not reached"
# Out of memory, or a decomposition that the backend does not have.
_FAILURES = (RuntimeError, ValueError, MemoryError)


class Case(NamedTuple):
    """What all methods are measured for: K, B and the dtype."""

    num_classes: int
    batch_size: int
    dtype: str


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """All flags, under their own names, sizes and dtypes as cases; see --help."""

    op: str
    cases: tuple[Case, ...]
    peer_cases: tuple[Case, ...] | None
    methods: tuple[str, ...]
    num_repeats: int
    max_s: float
    yardstick_size: int
    yardstick_bytes: int
    seed: int
    workdir: str


def run(config: BenchmarkConfig) -> list[Row]:
    """Measures all methods at all sizes, prints the table and writes the files.

    Args:
      config: all settings.

    Returns:
      The rows of the CSV file.
    """
    check_folder(config.workdir)
    workdir = Path(config.workdir)
    workdir.mkdir(parents=True, exist_ok=True)  # fails now, not after the measurements
    planned = _plan(config)
    paths = [workdir / f"benchmark_{config.op}{suffix}" for suffix in (".jsonl", ".csv", ".png")]
    rows: list[Row] = []
    own_s: dict[Case, float] = {}
    with paths[0].open("w") as file, tqdm(total=sum(map(len, planned))) as progress:
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


def define_flags(flag_values: flags.FlagValues) -> None:
    """Declares the flags; apart from import, since another binary has flags of the same names."""
    flags.DEFINE_enum(
        "op", "recalibrate", list(OPERATIONS), "What to measure.", flag_values=flag_values
    )
    known = "; ".join(f"{op}: {','.join(o.methods)}" for op, o in OPERATIONS.items())
    for name, default, text in (
        ("num_classes", ["10", "50"], "Numbers of classes K."),
        ("batch_sizes", ["256"], "Batch sizes B."),
        ("dtypes", ["float32"], f"Of {','.join(_DTYPES)}."),
        ("cases", None, "KxBxdtype, in this order; default all combinations of these three."),
        (
            "peer_cases",
            None,
            "Cases of methods other than the first, after all of the first's; default the same.",
        ),
        ("methods", None, f"Default all. Of {known}."),
    ):
        flags.DEFINE_list(name, default, text, flag_values=flag_values)
    flags.DEFINE_integer("num_repeats", 5, "Timed repeats.", lower_bound=5, flag_values=flag_values)
    flags.DEFINE_float(
        "max_s",
        math.inf,
        "Seconds after which a method is not repeated at the same size.",
        lower_bound=0,
        flag_values=flag_values,
    )
    for name, default, text in (
        ("yardstick_size", 2048, "n of the first yardstick, a product of n x n matrices."),
        ("yardstick_bytes", 2**28, "Of the second yardstick, the copy of an array."),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=flag_values)
    flags.DEFINE_integer(
        "seed", 0, "Of the inputs.", lower_bound=0, upper_bound=2**32 - 1, flag_values=flag_values
    )
    flags.DEFINE_string("workdir", "runs/benchmark", "Folder of results.", flag_values=flag_values)


def config_from_flags(flag_values: flags.FlagValues) -> BenchmarkConfig:
    """Collects the flags; raises ConfigError where one does not fit."""
    known = tuple(OPERATIONS[flag_values.op].methods)
    combined = itertools.product(
        choices("dtypes", flag_values.dtypes, _DTYPES),
        _sizes("num_classes", flag_values.num_classes),
        _sizes("batch_sizes", flag_values.batch_sizes),
    )
    return BenchmarkConfig(
        op=flag_values.op,
        cases=tuple(_parse_case("cases", text) for text in flag_values.cases or ())
        or tuple(Case(K, batch_size, dtype) for dtype, K, batch_size in combined),
        peer_cases=(
            None
            if flag_values.peer_cases is None
            else tuple(_parse_case("peer_cases", text) for text in flag_values.peer_cases)
        ),
        methods=choices(
            "methods", known if flag_values.methods is None else flag_values.methods, known
        ),
        num_repeats=flag_values.num_repeats,
        max_s=flag_values.max_s,
        yardstick_size=flag_values.yardstick_size,
        yardstick_bytes=flag_values.yardstick_bytes,
        seed=flag_values.seed,
        workdir=str(Path(flag_values.workdir).expanduser()),
    )


def _parse_case(flag: str, text: str) -> Case:
    """The case that a flag writes as KxBxdtype; raises where it does not."""
    match = re.fullmatch(rf"([1-9]\d*)x([1-9]\d*)x({'|'.join(_DTYPES)})", text)
    if match is None:
        raise ConfigError(f"--{flag}: {text!r} is not like 10x4096x{_DTYPES[0]}")
    return Case(int(match[1]), int(match[2]), match[3])


def _sizes(flag: str, texts: Sequence[str]) -> tuple[int, ...]:
    """The numbers of a flag; raises where one is not a positive integer."""
    for text in texts:
        if not text.isdecimal() or int(text) == 0:
            raise ConfigError(f"--{flag}: {text!r} is not a positive integer")
    if not texts:
        raise ConfigError(f"--{flag} is empty; give positive integers")
    return tuple(sorted({int(text) for text in texts}))


def main(argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Parses flags and runs; errors of the user's end in one line and a non-zero exit."""
    if len(argv) > 1:
        sys.exit(f"error: unexpected argument {argv[1]!r}; all settings are --flags")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # JAX names every backend that it does not find
    mpl.use("Agg")
    try:
        run(config_from_flags(flag_values))
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
