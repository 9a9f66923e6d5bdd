"""The file names of RAVDESS, which say what is in a file: seven numbers of two digits."""

import dataclasses
import re

from data_pipelines.errors import DataError

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
"""Names of emotions 1 to 8."""

NUM_ACTORS = 24

MAX_CLIPS_PER_ACTOR = 60
"""How many names there are of one actor: neutral and seven emotions of two intensities, with two
statements, each twice."""

_NAME = re.compile(r"([0-9]{2})(?:-[0-9]{2}){6}")
_LARGEST = {
    "modality": 3,
    "vocal_channel": 2,
    "emotion": len(EMOTIONS),
    "intensity": 2,
    "statement": 2,
    "repetition": 2,
    "actor": NUM_ACTORS,
}


@dataclasses.dataclass(frozen=True, order=True)
class ClipName:
    """What the name of a file says, in its order.

    Attributes:
      modality: 1 picture and sound, 2 picture alone, 3 sound alone.
      vocal_channel: 1 speech, 2 song.
      emotion: 1 .. 8, see `EMOTIONS`.
      intensity: 1 normal, 2 strong; there is no strong neutral.
      statement: 1 "Kids are talking by the door", 2 "Dogs are sitting by the door".
      repetition: 1 or 2.
      actor: 1 .. 24; odd ones are male, even ones female.
    """

    modality: int
    vocal_channel: int
    emotion: int
    intensity: int
    statement: int
    repetition: int
    actor: int

    @classmethod
    def parse(cls, name: str) -> "ClipName":
        """Reads a name such as "03-01-06-01-02-01-12".

        Args:
          name: without folder and extension.

        Returns:
          Its fields.

        Raises:
          DataError: not seven numbers of two digits, one is out of range, or strong neutral.
        """
        if not _NAME.fullmatch(name):
            raise DataError(
                f"{name!r} is not a RAVDESS name: seven numbers of two digits, as in"
                " 03-01-06-01-02-01-12; use the files as published"
            )
        fields = dict(zip(_LARGEST, map(int, name.split("-")), strict=True))
        for field, value in fields.items():
            if not 1 <= value <= _LARGEST[field]:
                raise DataError(
                    f"{name!r} is not a RAVDESS name: {field} {value:02d} is not from 01 to"
                    f" {_LARGEST[field]:02d}; use the files as published"
                )
        if EMOTIONS[fields["emotion"] - 1] == "neutral" and fields["intensity"] == 2:
            raise DataError(
                f"{name!r} is not a RAVDESS name: neutral has no strong intensity; use the files as"
                " published"
            )
        return cls(**fields)

    def __str__(self) -> str:
        return "-".join(f"{value:02d}" for value in dataclasses.astuple(self))
