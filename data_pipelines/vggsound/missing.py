"""Clips that are not there or not whole: normal for videos that their owners may take down."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import logging

from data_pipelines.errors import DataError
from data_pipelines.vggsound.clips import Clip

LISTING = "missing_clips.txt"
"""Name of the text file that lists them."""

_NAMES = "{id}_{start:06d}.mp4, or {id}_{start}_{end}.mp4 in milliseconds"
_FILE_NAME = re.compile(
    r"(?P<id>[A-Za-z0-9_-]{11})_(?:(?P<start>[0-9]{6})|(?P<ms>[0-9]+)_(?P<end_ms>[0-9]+))\.mp4",
    re.IGNORECASE,
)
_LENGTH_MS = 10_000


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
      folder: which holds `{id}_{start:06d}.mp4`, or `{id}_{start}_{end}.mp4` in milliseconds, ten
        seconds apart; .MP4 will do. Files of other names are left alone, with a warning where clips
        are missing.

    Returns:
      {name: file} of the clips that are there, and {name: what is wrong} of all others.

    Raises:
      DataError: the folder cannot be read, two files are of one clip, or there are files but none
        has the name of any clip.
    """
    try:
        # One look at the folder takes less time than one at each of the clips that are not there.
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"manual_dir: {folder}: {error.strerror}; name the folder that holds vggsound.csv and"
            " clips/",
            "manual_dir",
        ) from None
    found = _by_clip(folder, names)
    files: dict[str, ClipFile] = {}
    problems: dict[str, str] = {}
    for clips in splits.values():
        for clip in clips:
            if clip.name not in found:
                problems[clip.name] = f"{clip.name}.mp4: no such file"
                continue
            path = folder / found[clip.name]
            try:
                stat = path.stat()
            except OSError as error:
                problems[clip.name] = f"{path.name}: cannot be read ({error.strerror})"
            else:
                files[clip.name] = ClipFile(path, stat.st_size, stat.st_mtime_ns)
    others = [name for name in names if name not in found.values()]
    if problems and others:
        report = (
            f"{folder}: {len(others)} files, such as {others[0]!r}, are not named as clips are:"
            f" {_NAMES}"
        )
        if not found:
            raise DataError(f"{report}; rename them")
        logging.warning("%s", report)
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
            f"max_missing={max_missing} allows fewer: {len(problems)} of {num_clips} clips are"
            f" missing or damaged; fetch those that {listing} names, or raise it",
            "max_missing",
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


def _by_clip(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Returns {name of a clip, whether it is listed or not: name of its file}."""
    found: dict[str, str] = {}
    for name in names:
        match = _FILE_NAME.fullmatch(name)
        if match is None:
            continue
        if match["start"] is None:
            start, milliseconds = divmod(int(match["ms"]), 1000)
            # Names in seconds, or of a piece of a clip, are something else.
            if milliseconds or int(match["end_ms"]) != 1000 * start + _LENGTH_MS:
                continue
        else:
            start = int(match["start"])
        clip = f"{match['id']}_{start:06d}"
        if clip in found:
            raise DataError(f"{folder}: {found[clip]} and {name} are the same clip; remove one")
        found[clip] = name
    return found
