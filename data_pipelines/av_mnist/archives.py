"""Reads sound files out of source archives, in memory, and refuses what is not one."""

import hashlib
import re
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import soundfile

from data_pipelines.errors import DataError

REMEDY = "fetch the archive again from its public home"


def check_mono(file: soundfile.SoundFile, where: str, sample_rate_hz: int) -> None:
    """Raises DataError unless a sound file has one channel and that sample rate.

    Args:
      file: open.
      where: how messages name it.
      sample_rate_hz: expected.
    """
    if file.samplerate != sample_rate_hz:
        raise DataError(f"{where} has {file.samplerate} Hz, expected {sample_rate_hz}; {REMEDY}")
    if file.channels != 1:
        raise DataError(f"{where} has {file.channels} channels, expected 1; {REMEDY}")


def read_members(
    path: Path, sha256: str | None, *, folder: re.Pattern[str], name: re.Pattern[str], form: str
) -> dict[str, bytes]:
    """Reads the sound files of a .tar.gz source archive; nothing is written to disk.

    Args:
      path: the .tar.gz archive.
      sha256: `content_digest` of the sound files in hexadecimal; None skips the check.
      folder: of the folders that hold sound files and nothing else; all else is ignored.
      name: of sound files.
      form: how messages describe such a name.

    Returns:
      {file name: content}, sorted by name.

    Raises:
      DataError: missing, not a .tar.gz, truncated, a member that would leave the folder, an
        unexpected or repeated name, no sound file at all, or a wrong digest.
    """
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                place = PurePosixPath(member.name)
                if place.is_absolute() or ".." in place.parts:
                    raise DataError(f"{path}: member {member.name!r} leaves the folder; {REMEDY}")
                if not folder.fullmatch(place.parent.name) or member.isdir():
                    continue
                content = archive.extractfile(member) if member.isfile() else None
                if content is None or place.name in files or not name.fullmatch(place.name):
                    raise DataError(
                        f"{path}: member {member.name!r} is not a single {form}; {REMEDY}"
                    )
                files[place.name] = content.read()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {REMEDY}") from None
    except (EOFError, zlib.error):
        raise DataError(f"{path}: truncated or damaged archive; {REMEDY}") from None
    except tarfile.ReadError as error:
        problem = "truncated or damaged archive" if files else "not a .tar.gz archive"
        raise DataError(f"{path}: {problem} ({error}); {REMEDY}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None
    if not files:
        raise DataError(f"{path}: no {form} in it; {REMEDY}")
    if sha256 is not None and content_digest(files.items()) != sha256:
        raise DataError(
            f"{path}: the recordings differ from the published ones of this commit; {REMEDY}"
        )
    return {name: files[name] for name in sorted(files)}


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
