"""What fusing predictions takes of memory and disk, told by the headers of its inputs."""

import math
from collections.abc import Mapping
from pathlib import Path

from jacfuse_jax.predictions.classes import Alignment
from jacfuse_jax.predictions.extent import Extent, measure_predictions
from jacfuse_jax.predictions.flags import FuseConfig
from jacfuse_jax.predictions.inputs import Names
from jacfuse_jax.programs import resources

NUM_CHOICE_ROWS = 10_000
"""Labelled rows that parameters are chosen on at most; accuracies are then known to a point."""
_PROCESS_BYTES = 0.6e9  # some thousand rows at a time included
_ROW_BYTES = 8  # of the position of a row
_JOIN_BYTES = 200  # of a row whose id is looked up
_CHOICE_BYTES = 100  # of a logit that parameters are chosen on: all of these are tried at once
_ID_BYTES = 32
_DIGITS = {4: 16, 8: 26}  # of a number of so many bytes in .csv, with its comma


def check_fuse_run(config: FuseConfig, names: Names, classes: Alignment | None) -> None:
    """Says what a run takes, and refuses what does not fit.

    Args:
      config: its settings.
      names: of what the inputs hold.
      classes: of the output; None where they have no names.

    Raises:
      InputError: more than is free, or an input is damaged.
    """
    inputs, validation = (_measure(paths, names) for paths in (config.input, config.validation))
    memory = _PROCESS_BYTES
    for extents in (inputs, validation):
        may_join = not names.by_position and any(e.may_have_ids for e in extents)
        num_rows = max((e.num_rows for e in extents), default=0)
        memory += num_rows * (_JOIN_BYTES if may_join else _ROW_BYTES)
    if math.isnan(config.gamma) or math.isnan(config.contamination):
        memory += _CHOICE_BYTES * sum(
            min(e.num_rows, NUM_CHOICE_ROWS) * e.num_classes for e in validation or inputs
        )
    number_bytes = max(4, *(e.itemsize for e in inputs))
    if config.output.suffix == ".csv":
        number_bytes = _DIGITS[number_bytes]
    num_classes = inputs[0].num_classes if classes is None else len(classes.names)
    row_bytes = _ID_BYTES + number_bytes * (num_classes + 2)
    bound = min if config.missing == "drop" else max
    disk = bound(e.num_rows for e in inputs) * row_bytes
    disk += sum(e.unpacked_bytes for e in (*inputs, *validation))
    resources.check(memory, {config.output.parent: disk}, remedy="fuse fewer rows at a time")


def _measure(paths: Mapping[str, Path], names: Names) -> list[Extent]:
    return [measure_predictions(path, names=names) for path in paths.values()]
