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

from typing import TYPE_CHECKING

from absl import app
from absl import flags as absl_flags

from experiments.run import benchmark_flags, launch
from experiments.run.benchmark_flags import BenchmarkConfig
from jacfuse_jax.programs.command_line import parse_flags

if TYPE_CHECKING:
    from experiments.measuring.benchmark import Row


def run(config: BenchmarkConfig) -> "list[Row]":
    """Measures all methods at all sizes, prints the table and writes the files.

    Args:
      config: all settings.

    Returns:
      The rows of the CSV file.
    """
    from experiments.measuring.benchmark import measure  # takes seconds
    from experiments.reports.benchmark import write

    rows = measure(config)
    write(rows, config.workdir, num_repeats=config.num_repeats)
    return rows


def main(argv: list[str], flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
    """Parses flags and runs; errors of the user's end in one line and a non-zero exit."""
    launch.start(argv, lambda: benchmark_flags.config_from_flags(flag_values), run)


if __name__ == "__main__":
    benchmark_flags.define_flags(absl_flags.FLAGS)
    absl_flags.adopt_module_key_flags(benchmark_flags)  # those that --help lists
    app.run(main, flags_parser=parse_flags)
