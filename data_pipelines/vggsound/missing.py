"""Clips that are not there or not whole: normal for videos that their owners may take down."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import DataError
from data_pipelines.vggsound.clips import Clip

LISTING = "missing_clips.txt"
"""Name of the text file that lists them."""


class ClipFile(NamedTuple):
    """The file of a clip.

    Attributes:
      path: of the file.
      size: in bytes.
      mtime_ns: when its content was last changed.
    """

    path: Path
    size: int
    mtime_ns: int


def find_clips(
    splits: Mapping[str, Sequence[Clip]], folder: Path
) -> tuple[dict[str, ClipFile], dict[str, str]]:
    """Looks which clips are there.

    Args:
      splits: {split: clips}.
      folder: which holds `{id}_{start:06d}.mp4`.

    Returns:
      {name: file} of the clips that are there, and {name: what is wrong} of all others.

    Raises:
      DataError: the folder cannot be read.
    """
    try:
        # One look at the folder takes less time than one at each of the clips that are not there.
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise DataError(
            f"{folder}: {error.strerror}; --manual_dir names the folder that holds vggsound.csv"
            " and clips/"
        ) from None
    files: dict[str, ClipFile] = {}
    problems: dict[str, str] = {}
    for clips in splits.values():
        for clip in clips:
            path = folder / f"{clip.name}.mp4"
            if path.name not in names:
                problems[clip.name] = f"{path.name}: no such file"
                continue
            try:
                stat = path.stat()
            except OSError as error:
                problems[clip.name] = f"{path.name}: cannot be read ({error.strerror})"
            else:
                files[clip.name] = ClipFile(path, stat.st_size, stat.st_mtime_ns)
    return files, problems


def report_missing(
    listing: Path,
    problems: Mapping[str, str],
    splits: Mapping[str, Sequence[Clip]],
    labels: Sequence[str],
    *,
    max_missing: float,
) -> None:
    """Writes one line for every clip that cannot be used, and refuses to go on with too few.

    Args:
      listing: the text file, which is replaced as a whole.
      problems: {name: what is wrong} of the clips that cannot be used.
      splits: {split: clips}, usable or not.
      labels: all classes.
      max_missing: share of the clips that may have a problem, 0 to 1.

    Raises:
      DataError: more have one, a split is empty, or a class has no training clip.
    """
    unfinished = listing.with_suffix(".tmp")
    unfinished.write_text("".join(f"{line}\n" for line in problems.values()), encoding="utf-8")
    unfinished.replace(listing)
    num_clips = sum(map(len, splits.values()))
    if len(problems) > max_missing * num_clips:
        raise DataError(
            f"{len(problems)} of {num_clips} clips are missing or damaged, more than"
            f" --max_missing={max_missing} allows; fetch those that {listing} names, or raise it"
        )
    usable = {
        split: [clip for clip in clips if clip.name not in problems]
        for split, clips in splits.items()
    }
    for split, clips in usable.items():
        if not clips and splits[split]:
            raise DataError(
                f"none of {len(splits[split])} {split} clips can be used; fetch some of those that"
                f" {listing} names"
            )
        if not clips:
            raise DataError(
                f"vggsound.csv: no {split} clip; it needs test clips, and a class with training"
                " clips of two videos, of which one is for validation"
            )
    trained = {clip.label for clip in usable["train"]}
    for label in labels:
        if label not in trained:
            raise DataError(
                f"vggsound.csv: no training clip of class {label!r} can be used; fetch one, or take"
                " the class out of the file"
            )
