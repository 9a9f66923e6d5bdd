"""Reads the environmental sounds of ESC-10 out of a source archive, in memory."""

import dataclasses
import io
import re
from pathlib import Path

import librosa  # its parts are loaded on first use
import numpy as np
import soundfile
from numpy.typing import NDArray

from data_pipelines.av_mnist.archives import REMEDY, check_mono, read_members
from data_pipelines.av_mnist.recordings import SAMPLE_RATE_HZ
from data_pipelines.errors import DataError

_FOLDER = re.compile(r"[0-9]{3} - .+")  # one for each kind of sound
_NAME = re.compile(r"([1-5])-([0-9]+)-([A-Z])\.ogg")
_PUBLISHED_RATE_HZ = 44_100


@dataclasses.dataclass(frozen=True)
class NoiseClip:
    """One environmental sound.

    Attributes:
      name: file name, `{fold}-{clip id}-{take}.ogg`.
      fold: 1..5; all takes of one clip are in one fold.
      clip_id: of the longer recording that this is a take of.
      waveform: (num_samples,) float64, 8 kHz, at least one sample, finite.
    """

    name: str
    fold: int
    clip_id: str
    waveform: NDArray[np.float64]


def read_noise_clips(path: Path, sha256: str | None) -> list[NoiseClip]:
    """Reads every `{kind}/{fold}-{clip id}-{take}.ogg` of a .tar.gz source archive, resampled.

    Nothing is written to disk. Files outside the folders of kinds are ignored.

    Args:
      path: the .tar.gz archive.
      sha256: `archives.content_digest` of the clips in hexadecimal; None skips the check.

    Returns:
      The clips, sorted by file name.

    Raises:
      DataError: as in `archives.read_members`; a file that is not mono Ogg Vorbis of 44.1 kHz with
        finite samples; a clip id in two folds.
    """
    files = read_members(
        path, sha256, folder=_FOLDER, name=_NAME, form="{fold}-{clip id}-{take}.ogg"
    )
    clips = [_noise_clip(path, name, content) for name, content in files.items()]
    fold_of: dict[str, int] = {}
    for clip in clips:
        if fold_of.setdefault(clip.clip_id, clip.fold) != clip.fold:
            raise DataError(
                f"{path}: clip {clip.clip_id} is in folds {fold_of[clip.clip_id]} and {clip.fold},"
                f" so that splits would share it; {REMEDY}"
            )
    return clips


def _noise_clip(path: Path, name: str, content: bytes) -> NoiseClip:
    """Decodes one Ogg Vorbis file."""
    where = f"{path}: {name}"
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if (file.format, file.subtype) != ("OGG", "VORBIS"):
                found = f"{file.format} of {file.subtype}"
                raise DataError(f"{where} is {found}, expected Ogg Vorbis; {REMEDY}")
            check_mono(file, where, _PUBLISHED_RATE_HZ)
            published = np.asarray(file.read(dtype="float64"), np.float64)
    except soundfile.LibsndfileError:
        raise DataError(f"{where} is not an Ogg Vorbis file; {REMEDY}") from None
    if _is_cut(content) or not len(published):
        raise DataError(f"{where} is truncated; {REMEDY}")
    waveform = librosa.resample(published, orig_sr=_PUBLISHED_RATE_HZ, target_sr=SAMPLE_RATE_HZ)
    if not np.isfinite(waveform).all():
        raise DataError(f"{where} has samples that are NaN or infinite; {REMEDY}")
    fold, clip_id, _ = name.removesuffix(".ogg").split("-")
    return NoiseClip(name, int(fold), clip_id, waveform)


def _is_cut(content: bytes) -> bool:
    """Tells whether an Ogg file ends before its stream does: libsndfile lets it be."""
    page = content.rfind(b"OggS")
    header = content[page : page + 27]  # its sixth byte has flags, its last the number of segments
    if len(header) < 27 or not header[5] & 4:
        return True
    segments = content[page + 27 : page + 27 + header[26]]  # their sizes
    return page + 27 + header[26] + sum(segments) > len(content)
