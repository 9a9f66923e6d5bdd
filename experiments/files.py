"""Files that are either whole or not there."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path


def write_atomically(path: Path, content: str | Callable[[Path], object]) -> None:
    """Writes a file under a temporary name beside it, then renames it into place.

    Args:
      path: of the file; its folder is made when it is missing.
      content: the text, or a function that writes to the path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        if isinstance(content, str):
            temporary.write_text(content)
        else:
            content(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[object]], path: Path) -> None:
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


def six_digits(cell: object) -> object:
    """A float with six significant digits; anything else as it is."""
    return f"{cell:.6g}" if isinstance(cell, float) else cell
