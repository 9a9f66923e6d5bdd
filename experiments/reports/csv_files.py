"""Tables in CSV files."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from jacfuse_jax.programs.files import write_atomically


def write_csv(columns: Sequence[str], rows: Iterable[Iterable[object]], path: Path) -> None:
    """Writes rows of cells under a header; None is an empty field.

    Args:
      columns: their names.
      rows: one cell a column.
      path: of the file.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue())


def write_measured(columns: Sequence[str], rows: Iterable[Sequence[object]], path: Path) -> None:
    """The same, with six significant digits of what is a float.

    Args:
      columns: their names.
      rows: one cell a column.
      path: of the file.
    """
    write_csv(columns, (map(_six_digits, row) for row in rows), path)


def _six_digits(cell: object) -> object:
    """A float with six significant digits; anything else as it is."""
    return f"{cell:.6g}" if isinstance(cell, float) else cell
