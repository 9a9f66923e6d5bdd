"""Finds the clips in the published zip archives."""

import dataclasses
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data_pipelines.errors import ZIP_ERRORS, DataError, MediaError
from data_pipelines.ravdess.names import NUM_ACTORS, ClipName

HOMEPAGE = "https://zenodo.org/records/1188976"

URLS = {
    name: f"{HOMEPAGE}/files/{name}?download=1"
    for name in (
        "Audio_Speech_Actors_01-24.zip",
        *(f"Video_Speech_Actor_{actor:02d}.zip" for actor in range(1, NUM_ACTORS + 1)),
    )
}
"""{file name: public home} of the archives: the sound of all actors, then the videos of each."""

_AUDIO, *_VIDEOS = URLS
_REMEDY = "fetch the archive again from its public home"
MAX_BYTES = 2**28
"""Of a file, which is read whole. Published ones have a few megabytes; small archives can promise
any size."""


class ArchiveError(DataError):
    """Archives are damaged or foreign.

    Attributes:
      archives: their paths.
    """

    def __init__(self, message: str, archives: Iterable[Path]) -> None:
        super().__init__(message)
        self.archives = set(archives)


class Member(NamedTuple):
    """A file in a zip archive, or in the folder where they were unpacked.

    Attributes:
      archive: path of the archive or folder.
      name: of the file in it.
      crc: CRC-32 of the file's content, as the archive states it; of an unpacked file, of its size
        and the time when it was changed.
    """

    archive: Path
    name: str
    crc: int


class Clip(NamedTuple):
    """One utterance.

    Attributes:
      name: of its sound file.
      video: the file with picture and sound.
      audio: the WAV file, sound alone.
    """

    name: ClipName
    video: Member
    audio: Member


def manual_paths(manual_dir: Path) -> dict[str, Path]:
    """Returns {name of the archive: path} of a folder that holds all of them.

    Args:
      manual_dir: the folder.

    Returns:
      The paths, in the order of `URLS`.

    Raises:
      DataError: archives are missing.
    """
    missing = [name for name in URLS if not (manual_dir / name).is_file()]
    if missing:
        raise DataError(
            f"manual_dir={manual_dir}: {len(missing)} of {len(URLS)} archives are missing:"
            f" {list_some(missing)}; get them from {HOMEPAGE}, unpack all of them there and leave"
            " none, or name no folder to download them",
            "manual_dir",
        )
    return {name: manual_dir / name for name in URLS}


def find_clips(paths: Mapping[str, Path]) -> list[Clip]:
    """Lists the archives and pairs video and sound.

    Files that are neither .mp4 nor .wav, folders and videos without sound are ignored.

    Args:
      paths: {name of the archive: path}, all of `URLS`.

    Returns:
      The clips, sorted by name: by emotion first, by actor last. At least one of every actor.

    Raises:
      DataError: an archive cannot be read.
      ArchiveError: one is not a zip archive; a member would leave the folder, has no legal name, is
        a song, comes twice, belongs to another actor or is far too large; a video has no sound or a
        sound has no video; an actor has no clips. Where two archives disagree, either may be wrong.
    """
    audio = _members(paths[_AUDIO], modality=3, suffix=".wav", actor=None)
    video: dict[ClipName, Member] = {}
    for actor, name in enumerate(_VIDEOS, 1):
        video |= _members(paths[name], modality=1, suffix=".mp4", actor=actor)
    return pair_clips(
        audio, video, paths[_AUDIO].parent, lambda actors: _archives_of(paths, actors)
    )


def pair_clips(
    audio: Mapping[ClipName, Member],
    video: Mapping[ClipName, Member],
    folder: Path,
    archives_of: Callable[[Iterable[int]], list[Path]],
) -> list[Clip]:
    """Pairs video and sound.

    Args:
      audio: {name: file}, all of modality 3.
      video: {name: file}, all of modality 1.
      folder: what messages name.
      archives_of: maps actors to the archives of their files.

    Returns:
      The clips, sorted by name. At least one of every actor.

    Raises:
      ArchiveError: a video has no sound or a sound has no video; an actor has no clips.
    """
    sounds = {dataclasses.replace(name, modality=1): name for name in audio}
    for kind, other, unpaired in (
        ("video", "sound", video.keys() - sounds.keys()),
        ("sound", "video", sounds.keys() - video.keys()),
    ):
        if unpaired:
            names = [str(name)[3:] for name in sorted(unpaired)]
            raise ArchiveError(
                f"{folder}: {len(names)} clips have {kind} and no {other}:"
                f" {list_some(names)} (without modality); {_REMEDY}",
                archives_of({name.actor for name in unpaired}),
            )
    absent = set(range(1, NUM_ACTORS + 1)) - {name.actor for name in audio}
    if absent:
        actors = [f"{actor:02d}" for actor in sorted(absent)]
        suspects = archives_of(absent)
        raise ArchiveError(
            f"{[*suspects, folder][0]}: no clips of actors {list_some(actors)}; {_REMEDY}", suspects
        )
    return [Clip(sounds[name], video[name], audio[sounds[name]]) for name in sorted(video)]


def read_member(member: Member) -> bytes:
    """Reads one file; the CRC-32 of one in an archive is checked.

    Args:
      member: the file.

    Returns:
      Its content.

    Raises:
      MediaError: the archive is damaged there, or the file cannot be read.
    """
    if member.archive.is_dir():
        try:
            return (member.archive / member.name).read_bytes()
        except OSError as error:
            raise MediaError(
                f"{member.archive}: {member.name} cannot be read ({error.strerror})"
            ) from None
    try:
        with zipfile.ZipFile(member.archive) as archive:
            return archive.read(member.name)
    except ZIP_ERRORS as error:
        reason = " ".join(str(error).split())
        raise MediaError(f"{member.archive}: {member.name} is damaged ({reason})") from None


def list_some(names: list[str]) -> str:
    """Returns the first three names, and how many there are besides.

    Args:
      names: to list in a message.

    Returns:
      Text such as "a, b, c and 4 more".
    """
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _archives_of(paths: Mapping[str, Path], actors: Iterable[int]) -> list[Path]:
    """Returns the archives that hold sound or videos of some actors."""
    return [paths[_AUDIO], *(paths[_VIDEOS[actor - 1]] for actor in actors)]


def _members(
    path: Path, *, modality: int, suffix: str, actor: int | None
) -> dict[ClipName, Member]:
    """Returns an archive's files of one modality, all of the given actor unless that is None."""
    found: dict[ClipName, Member] = {}
    for info in _list(path):
        file = PurePosixPath(info.filename)
        where = f"{path}: member {info.filename!r}"
        if file.is_absolute() or ".." in file.parts or "\\" in info.filename:
            raise ArchiveError(f"{where} leaves the folder; {_REMEDY}", [path])
        if not info.filename.isprintable():
            raise ArchiveError(f"{where} has no legal name; {_REMEDY}", [path])
        # Archives made on a Mac hold a file ._NAME of properties for every file NAME.
        if info.is_dir() or file.suffix not in (".mp4", ".wav") or file.name.startswith("._"):
            continue
        try:
            name = ClipName.parse(file.stem)
        except DataError as error:
            raise ArchiveError(f"{where}: {error}", [path]) from None
        if (name.modality, file.suffix) == (2, ".mp4"):
            continue
        if (name.modality, file.suffix) != (modality, suffix):
            raise ArchiveError(
                f"{where}: expected modality {modality:02d} and {suffix}; {_REMEDY}", [path]
            )
        if name.vocal_channel != 1:
            raise ArchiveError(f"{where}: song, expected speech; {_REMEDY}", [path])
        if file.parent.name != f"Actor_{name.actor:02d}" or name.actor != (actor or name.actor):
            raise ArchiveError(
                f"{where}: the actor in its name is not that of its folder or archive; {_REMEDY}",
                [path],
            )
        if info.file_size > MAX_BYTES:
            raise ArchiveError(
                f"{where}: {info.file_size} bytes, expected at most {MAX_BYTES}; {_REMEDY}", [path]
            )
        if name in found:
            raise ArchiveError(f"{where}: the clip comes twice; {_REMEDY}", [path])
        found[name] = Member(path, info.filename, info.CRC)
    return found


def _list(path: Path) -> list[zipfile.ZipInfo]:
    """Lists the files in an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None
    # NotImplementedError: of a later version of the format; UnicodeDecodeError: a damaged name.
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise ArchiveError(
            f"{path}: not a zip archive, truncated or damaged ({error}); {_REMEDY}", [path]
        ) from None
