"""Reads the spoken digits out of a source archive, in memory, and refuses what is not one."""

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from data_pipelines.av_mnist.archives import REMEDY, check_mono, read_members
from data_pipelines.errors import DataError

SAMPLE_RATE_HZ = 8000

_FOLDER = re.compile("recordings")
_NAME = re.compile(r"([0-9])_([a-z]+)_(0|[1-9][0-9]*)\.wav")


@dataclasses.dataclass(frozen=True)
class Recording:
    """One spoken digit.

    Attributes:
      name: file name, `{digit}_{speaker}_{index}.wav`.
      digit: what is said, 0..9.
      index: running number of the recording among those of the same digit and speaker.
      waveform: (num_samples,) float64 in [-1, 1], 8 kHz, at least one sample.
    """

    name: str
    digit: int
    index: int
    waveform: NDArray[np.float64]


def read_recordings(path: Path, sha256: str | None) -> list[Recording]:
    """Reads every `recordings/{digit}_{speaker}_{index}.wav` of a .tar.gz source archive.

    Nothing is written to disk. Other files of the archive are ignored.

    Args:
      path: the .tar.gz archive.
      sha256: `archives.content_digest` of the recordings in hexadecimal; None skips the check.

    Returns:
      The recordings, sorted by file name.

    Raises:
      DataError: as in `archives.read_members`; a file that is not a mono 8 kHz WAV with samples.
    """
    files = read_members(
        path, sha256, folder=_FOLDER, name=_NAME, form="{digit}_{speaker}_{index}.wav"
    )
    return [_recording(path, name, content) for name, content in files.items()]


def _recording(path: Path, name: str, content: bytes) -> Recording:
    """Decodes one WAV file."""
    where = f"{path}: recordings/{name}"
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.format not in ("WAV", "WAVEX"):
                raise DataError(f"{where} is {file.format}, expected WAV; {REMEDY}")
            check_mono(file, where, SAMPLE_RATE_HZ)
            waveform = np.asarray(file.read(dtype="float64"), np.float64)
    except soundfile.LibsndfileError:
        raise DataError(f"{where} is not a WAV file; {REMEDY}") from None
    if not len(waveform):
        raise DataError(f"{where} is empty; {REMEDY}")
    digit, _, index = name.removesuffix(".wav").split("_")
    return Recording(name, int(digit), int(index), waveform)
