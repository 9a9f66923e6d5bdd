"""Files that are either whole or not there."""

from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, content: str | Callable[[Path], object]) -> None:
    """Writes a file under a temporary name beside it, then renames it into place.

    Args:
      path: of the file; its folder is made when it is missing.
      content: the text, or a function that writes to the path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    if isinstance(content, str):
        temporary.write_text(content)
    else:
        content(temporary)
    temporary.replace(path)
