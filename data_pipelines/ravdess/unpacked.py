"""Finds the clips where somebody unpacked the archives."""

import zlib
from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.ravdess.archives import MAX_BYTES, URLS, Clip, Member, pair_clips
from data_pipelines.ravdess.names import ClipName

_MODALITIES = {".mp4": 1, ".wav": 3}


def is_unpacked(folder: Path) -> bool:
    """Tells whether a folder holds no archive but folders of actors, at any depth.

    Args:
      folder: with the raw files.
    """
    archived = any((folder / name).exists() for name in URLS)
    return not archived and next(folder.glob("**/Actor_[0-9][0-9]/"), None) is not None


def find_unpacked(folder: Path) -> list[Clip]:
    """Lists a folder that holds Actor_01 to Actor_24, at any depth, and pairs video and sound.

    Files that are neither .mp4 nor .wav, videos without sound and songs are ignored.

    Args:
      folder: where all archives were unpacked, into it or into folders of it.

    Returns:
      The clips, sorted by name: by emotion first, by actor last. At least one of every actor.

    Raises:
      DataError: a file has no legal name, comes twice, lies in the folder of another actor or is
        far too large; a video has no sound or a sound has no video; an actor has no clips.
    """
    found: dict[int, dict[ClipName, Member]] = {1: {}, 3: {}}
    for path in sorted(folder.glob("**/Actor_[0-9][0-9]/*")):
        suffix = path.suffix.lower()
        if suffix not in _MODALITIES or path.name.startswith("._"):
            continue
        try:
            name = ClipName.parse(path.stem)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        if name.modality == 2 or name.vocal_channel != 1:
            continue
        if name.modality != _MODALITIES[suffix]:
            raise DataError(f"{path}: modality {name.modality:02d} is not that of {suffix} files")
        if path.parent.name != f"Actor_{name.actor:02d}":
            raise DataError(f"{path}: the actor in its name is not that of its folder; move it")
        members = found[name.modality]
        if name in members:
            raise DataError(f"{path}: the clip is also {members[name].name}; remove one")
        stat = path.stat()
        if stat.st_size > MAX_BYTES:
            raise DataError(f"{path}: {stat.st_size} bytes, expected at most {MAX_BYTES}")
        version = zlib.crc32(f"{stat.st_size} {stat.st_mtime_ns}".encode())
        members[name] = Member(folder, str(path.relative_to(folder)), version)
    return pair_clips(found[3], found[1], folder, lambda _: [])
