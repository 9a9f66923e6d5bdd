"""The list of clips, as it was published, and which split each clip belongs to."""

import csv
import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import DataError

SPLITS = ("train", "validation", "test")

_YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_START = re.compile(r"[0-9]{1,6}")
_COLUMNS = "YouTube id, start in seconds, label, train or test"
_TRAINING_IDS_PER_VALIDATION_ID = 20


class Clip(NamedTuple):
    """One row of the list.

    Attributes:
      youtube_id: of the video, eleven characters that are all fit for file names.
      start: where the clip begins in the video, whole seconds.
      label: name of the class.
      split: "train" or "test", as published.
    """

    youtube_id: str
    start: int
    label: str
    split: str

    @property
    def name(self) -> str:
        """The clip's file name without its extension, unique in the list."""
        return f"{self.youtube_id}_{self.start:06d}"


def read_clips(path: Path) -> list[Clip]:
    """Reads the list of clips: rows of YouTube id, start, label, split.

    It is published without a header; one is left out, and so is a byte order mark.

    Args:
      path: the CSV file.

    Returns:
      The clips, in file order, at least one.

    Raises:
      DataError: the file is missing or empty, or a row is not one of a clip or comes twice.
    """
    clips: dict[str, Clip] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if reader.line_num == 1 and _is_header(row):
                    continue
                clip = _clip(f"{path}, line {reader.line_num}", row)
                if clip.name in clips:
                    raise DataError(
                        f"{path}, line {reader.line_num}: {clip.name} is listed before; remove one"
                    )
                clips[clip.name] = clip
    except OSError as error:
        raise DataError(
            f"manual_dir: {path}: {error.strerror}; name the folder that holds vggsound.csv and"
            " clips/",
            "manual_dir",
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8 ({error}); fetch it again") from None
    if not clips:
        raise DataError(f"{path}: no rows; expected {_COLUMNS}")
    return list(clips.values())


def split_clips(clips: Iterable[Clip]) -> dict[str, list[Clip]]:
    """Carves validation clips out of the training clips; no video is in two splits.

    Test clips stay as published. Training clips of a video that has test clips are left out. Of the
    videos of every class that has at least two, one in twenty, rounded up, is validation: those
    with the lowest SHA-256 of their ids. A video belongs to the class of its first clip.

    Args:
      clips: all that are listed.

    Returns:
      {split: clips}, all in the order of the SHA-256 of their names, which mixes the classes.
    """
    clips = sorted(clips, key=lambda clip: _digest(clip.name))
    test = [clip for clip in clips if clip.split == "test"]
    tested = {clip.youtube_id for clip in test}
    train = [clip for clip in clips if clip.split == "train" and clip.youtube_id not in tested]
    label_of: dict[str, str] = {}
    for clip in train:
        label_of.setdefault(clip.youtube_id, clip.label)
    videos: dict[str, list[str]] = {}
    for youtube_id in sorted(label_of, key=_digest):
        videos.setdefault(label_of[youtube_id], []).append(youtube_id)
    held_out: set[str] = set()
    for ids in videos.values():
        if len(ids) > 1:
            held_out.update(ids[: math.ceil(len(ids) / _TRAINING_IDS_PER_VALIDATION_ID)])
    return {
        "train": [clip for clip in train if clip.youtube_id not in held_out],
        "validation": [clip for clip in train if clip.youtube_id in held_out],
        "test": test,
    }


def _digest(text: str) -> bytes:
    """Returns SHA-256: an order that has nothing to do with what is in a clip."""
    return hashlib.sha256(text.encode()).digest()


def _is_header(row: Sequence[str]) -> bool:
    """Tells names of columns from a clip of which one column is wrong."""
    if len(row) != len(Clip._fields):
        return False
    youtube_id, start, _, split = row
    is_clip = _YOUTUBE_ID.fullmatch(youtube_id) or re.search("[0-9]", start)
    return not is_clip and split not in ("train", "test")


def _clip(where: str, row: Sequence[str]) -> Clip:
    """Checks one row."""
    if len(row) != len(Clip._fields):
        raise DataError(f"{where}: {len(row)} columns, expected {_COLUMNS}")
    youtube_id, start, label, split = row
    if not _YOUTUBE_ID.fullmatch(youtube_id):
        raise DataError(f"{where}: {youtube_id!r} is not a YouTube id: 11 letters, digits, - or _")
    if not _START.fullmatch(start):
        raise DataError(f"{where}: start {start!r} is not a whole number from 0 to 999999")
    if not label or label != label.strip() or not label.isprintable():
        raise DataError(f"{where}: label {label!r} is empty, has spaces around it, or line breaks")
    if split not in ("train", "test"):
        raise DataError(f"{where}: split {split!r} is neither train nor test")
    return Clip(youtube_id, int(start), label, split)
