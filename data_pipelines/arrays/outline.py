"""What is known of a data set of arrays before its modalities are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from data_pipelines.arrays.kinds import choose_kinds, row_shape
from data_pipelines.arrays.layouts import Layout, find_layout
from data_pipelines.arrays.splits import Labelled, read_labels
from data_pipelines.errors import DataError


class Outline(NamedTuple):
    """A data set of arrays, modalities unread.

    Attributes:
      layout: its arrays.
      labelled: labels, groups and splits of its rows.
      kinds: {modality: kind}, sorted by modality.
      shapes: {modality: shape of a row}.
    """

    layout: Layout
    labelled: Labelled
    kinds: dict[str, str]
    shapes: dict[str, tuple[int, ...]]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.labelled.classes)

    @property
    def num_rows(self) -> dict[str, int]:
        """{split: rows}."""
        return {split: len(rows) for split, rows in self.labelled.rows.items()}


def peek(
    manual_dir: Path | None, *, kinds: Mapping[str, str] | None = None, fold: int = 0
) -> Outline:
    """Reads headers of modalities, and labels, groups and splits.

    Args:
      manual_dir: folder or archive, see README.md.
      kinds: {modality: kind} of those whose shape does not tell, see `choose_kinds`.
      fold: the test fold, where the data set has folds.

    Returns:
      The outline.

    Raises:
      DataError: arrays are missing, damaged or do not fit together.
    """
    if manual_dir is None:
        raise DataError(
            "manual_dir=None: arrays are your own; name their folder or .npz file", "manual_dir"
        )
    layout = find_layout(Path(manual_dir))
    for files in layout.modalities.values():
        for file in files:
            if file.dtype.kind not in "biuf":
                raise DataError(f"{file} is {file.dtype}, not numbers; save it as float32")
    chosen = choose_kinds(layout, kinds or {})
    shapes = {
        modality: row_shape(kind, layout.modalities[modality][0].shape)
        for modality, kind in chosen.items()
    }
    return Outline(layout, read_labels(layout, fold), chosen, shapes)
