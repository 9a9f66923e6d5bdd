"""Reads the spoken digits out of a source archive, in memory, and refuses what is not one."""

import dataclasses
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import soundfile
from numpy.typing import NDArray

from data_pipelines.errors import DataError

SAMPLE_RATE_HZ = 8000

_FOLDER = "recordings"
_NAME = re.compile(r"([0-9])_([a-z]+)_(0|[1-9][0-9]*)\.wav")
_REMEDY = "fetch the archive again from its public home"


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
      sha256: `content_digest` of the recordings in hexadecimal; None skips the check.

    Returns:
      The recordings, sorted by file name.

    Raises:
      DataError: missing, not a .tar.gz, truncated, a member that would leave the folder, an
        unexpected name, a file that is not a mono 8 kHz WAV with samples, or a wrong digest.
    """
    files = _read_members(path)
    if sha256 is not None and content_digest(files.items()) != sha256:
        raise DataError(
            f"{path}: the recordings differ from the published ones of this commit; {_REMEDY}"
        )
    return [_recording(path, name, files[name]) for name in sorted(files)]


def content_digest(files: Iterable[tuple[str, bytes]]) -> str:
    """Returns SHA-256 over name, length and bytes of files in the order of their names.

    Unlike a digest of the archive it does not depend on how the archive was packed.

    Args:
      files: pairs (file name, content).

    Returns:
      The digest in hexadecimal.
    """
    digest = hashlib.sha256()
    for name, content in sorted(files):
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _read_members(path: Path) -> dict[str, bytes]:
    """Returns {file name: content} of the archive's recordings."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise DataError(f"{path}: member {member.name!r} leaves the folder; {_REMEDY}")
                if name.parent.name != _FOLDER or member.isdir():
                    continue
                content = archive.extractfile(member) if member.isfile() else None
                if content is None or name.name in files or not _NAME.fullmatch(name.name):
                    raise DataError(
                        f"{path}: member {member.name!r} is not a single"
                        f" {{digit}}_{{speaker}}_{{index}}.wav; {_REMEDY}"
                    )
                files[name.name] = content.read()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {_REMEDY}") from None
    except (EOFError, zlib.error):
        raise DataError(f"{path}: truncated or damaged archive; {_REMEDY}") from None
    except tarfile.ReadError as error:
        problem = "truncated or damaged archive" if files else "not a .tar.gz archive"
        raise DataError(f"{path}: {problem} ({error}); {_REMEDY}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None
    return files


def _recording(path: Path, name: str, content: bytes) -> Recording:
    """Decodes one WAV file."""
    where = f"{path}: {_FOLDER}/{name}"
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.format not in ("WAV", "WAVEX"):
                raise DataError(f"{where} is {file.format}, expected WAV; {_REMEDY}")
            if file.samplerate != SAMPLE_RATE_HZ:
                raise DataError(
                    f"{where} has {file.samplerate} Hz, expected {SAMPLE_RATE_HZ}; {_REMEDY}"
                )
            if file.channels != 1:
                raise DataError(f"{where} has {file.channels} channels, expected 1; {_REMEDY}")
            waveform = np.asarray(file.read(dtype="float64"), np.float64)
    except soundfile.LibsndfileError:
        raise DataError(f"{where} is not a WAV file; {_REMEDY}") from None
    if not len(waveform):
        raise DataError(f"{where} is empty; {_REMEDY}")
    digit, _, index = name.removesuffix(".wav").split("_")
    return Recording(name, int(digit), int(index), waveform)
