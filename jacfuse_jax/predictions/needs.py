"""What fusing predictions takes of memory and disk, told by the headers of its inputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jacfuse_jax.predictions.classes import Alignment
from jacfuse_jax.predictions.extent import Extent, measure_predictions
from jacfuse_jax.predictions.flags import FuseConfig, StressConfig
from jacfuse_jax.predictions.inputs import Names
from jacfuse_jax.predictions.labelled import count_rows
from jacfuse_jax.programs import resources

_PROCESS_BYTES = 0.6e9  # some thousand rows at a time included
_ROW_BYTES = 8  # of the position of a row
_JOIN_BYTES = 200  # of a row whose id is looked up
_CHOICE_BYTES = 100  # of a logit that rules are chosen on
_ID_BYTES = 32
_TABLE_BYTES = 1e6  # of tables and a figure
_DIGITS = {4: 16, 8: 26}  # of a number of so many bytes in .csv, with its comma


def check_fuse_run(
    config: FuseConfig, names: Names, classes: Alignment | None, *, is_chosen: bool
) -> None:
    """Says what a run takes, and refuses what does not fit.

    Args:
      config: its settings.
      names: of what the inputs hold.
      classes: of the output; None where they have no names.
      is_chosen: whether something is chosen on labelled rows.

    Raises:
      InputError: more than is free, or an input is damaged.
    """
    inputs, validation = (_measure(paths, names) for paths in (config.input, config.validation))
    memory = _PROCESS_BYTES
    for extents in (inputs, validation):
        may_join = not names.by_position and any(e.may_have_ids for e in extents)
        num_rows = max((e.num_rows for e in extents), default=0)
        memory += num_rows * (_JOIN_BYTES if may_join else _ROW_BYTES)
    if is_chosen:
        memory += _choice_bytes(validation or inputs)
    number_bytes = max(4, *(e.itemsize for e in inputs))
    if config.output.suffix == ".csv":
        number_bytes = _DIGITS[number_bytes]
    num_classes = inputs[0].num_classes if classes is None else len(classes.names)
    row_bytes = _ID_BYTES + number_bytes * (num_classes + 2)
    bound = min if config.missing == "drop" else max
    disk = bound(e.num_rows for e in inputs) * row_bytes
    disk += sum(e.unpacked_bytes for e in (*inputs, *validation))
    resources.check(memory, {config.output.parent: disk}, remedy="fuse fewer rows at a time")


def check_stress_run(config: StressConfig, names: Names) -> None:
    """Says what a run of `stress` takes, and refuses what does not fit.

    Args:
      config: its settings.
      names: of what the inputs hold.

    Raises:
      InputError: more than is free, or an input is damaged.
    """
    inputs = _measure(config.input, names)
    may_join = not names.by_position and any(e.may_have_ids for e in inputs)
    num_rows = max(e.num_rows for e in inputs)
    memory = _PROCESS_BYTES + num_rows * (_JOIN_BYTES if may_join else _ROW_BYTES)
    memory += _choice_bytes(inputs)
    disk = _TABLE_BYTES + sum(e.unpacked_bytes for e in inputs)
    resources.check(memory, {config.output: disk}, remedy="give fewer rows at a time")


def _choice_bytes(extents: Sequence[Extent]) -> float:
    """What choosing on labelled rows takes."""
    return _CHOICE_BYTES * sum(
        count_rows(e.num_rows, e.num_classes) * e.num_classes for e in extents
    )


def _measure(paths: Mapping[str, Path], names: Names) -> list[Extent]:
    return [measure_predictions(path, names=names) for path in paths.values()]
