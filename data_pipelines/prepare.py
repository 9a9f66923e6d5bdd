r"""Prepares a data set without training on it.

    python -m data_pipelines.prepare --dataset=av_mnist/balanced
    python -m data_pipelines.prepare --dataset=ravdess --manual_dir=/data/ravdess --num_workers=8

The experiments prepare what they need with the same flags and find what this made. README.md tells
of each data set where raw files come from and how long it takes. However a preparation ends, the
same command carries on.
"""

import os
import signal
import sys
from pathlib import Path

from absl import app, flags, logging

from data_pipelines.catalogue import ARRAYS, NAMES, base_name, config_name
from data_pipelines.errors import DataError, with_flag


def prepare(
    dataset: str,
    *,
    data_dir: Path,
    manual_dir: Path | None,
    num_workers: int | None,
    max_missing: float,
) -> str:
    """Makes a data set in `data_dir` unless it is there already.

    Args:
      dataset: one of `catalogue.NAMES`.
      data_dir: as for `datasets.load`.
      manual_dir: as for `datasets.load`.
      num_workers: as for `datasets.load`.
      max_missing: as for `datasets.load`.

    Returns:
      One line that tells where it lies, and how many rows each of its splits has; or that nothing
      is to be prepared.

    Raises:
      DataError: unknown data set or config; raw files or folders cannot be used.
    """
    config, base = config_name(dataset), base_name(dataset)
    if base == ARRAYS:
        return "arrays need no preparation: experiments read --manual_dir as it is"
    # Imported here, and one of them alone, since --help shall not wait for seconds.
    if base == "digits":
        from data_pipelines.digits.digits import SPLIT_SIZES

        return f"digits needs no preparation: scikit-learn has it ({_rows(SPLIT_SIZES)})"
    if config is not None:
        from data_pipelines import av_mnist

        builder = av_mnist.prepare(data_dir, manual_dir, av_mnist.CONFIGS[config])
    elif base == "ravdess":
        from data_pipelines import ravdess

        builder = ravdess.prepare(data_dir, manual_dir, num_workers=num_workers)
    else:
        from data_pipelines import vggsound

        builder = vggsound.prepare(
            data_dir, manual_dir, num_workers=num_workers, max_missing=max_missing
        )
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    return f"{dataset} is prepared in {builder.data_dir} ({_rows(sizes)})"


def main(argv: list[str]) -> None:
    """Prepares; what the user can mend ends in one line and a non-zero exit."""
    if len(argv) > 1:
        sys.exit(f"error: unexpected argument {argv[1]!r}; all settings are --flags")
    values = flags.FLAGS
    if not values["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # tensorflow-datasets reports every step
    try:
        report = prepare(
            values.dataset,
            data_dir=Path(values.data_dir).expanduser(),
            manual_dir=None if values.manual_dir is None else Path(values.manual_dir).expanduser(),
            num_workers=values.num_workers,
            max_missing=values.max_missing,
        )
    except (DataError, OSError) as error:
        sys.exit(f"error: {with_flag(error)}")
    print(report)  # noqa: T201


def _rows(sizes: dict[str, int]) -> str:
    """Lists how many rows are in which split."""
    return "rows: " + ", ".join(f"{split} {size:,}" for split, size in sizes.items())


def _define_flags() -> None:
    """Declares the flags, which the experiments have as well."""
    flags.DEFINE_enum("dataset", "digits", sorted(NAMES), "Data set.")
    flags.DEFINE_string(
        "manual_dir",
        None,
        "Folder with the raw files, downloaded where it is not given; or of the arrays.",
    )
    flags.DEFINE_string("data_dir", "~/.cache/jacfuse_jax", "Folder of prepared data.")
    flags.DEFINE_integer(
        "num_workers", None, "Processes that decode media; default one a core.", lower_bound=1
    )
    flags.DEFINE_float(
        "max_missing",
        1.0,
        "Share of the clips of VGGSound that may be missing or damaged.",
        lower_bound=0,
        upper_bound=1,
    )


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; what is wrong with it ends in one line."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        problem = " ".join(str(error).removeprefix("flag ").split())
        sys.exit(f"error: {problem} (--help lists all flags)")


def _end_at_once(*_: object) -> None:
    """Ends the process as a kill would: nothing that is half done counts."""
    os.write(2, b"\ninterrupted; the same command carries on\n")
    os._exit(130)


if __name__ == "__main__":
    _define_flags()
    # An exception instead would go through the data libraries and their workers.
    signal.signal(signal.SIGINT, _end_at_once)
    app.run(main, flags_parser=_parse_flags)
