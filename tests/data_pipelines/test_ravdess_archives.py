import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.errors import DataError, MediaError
from data_pipelines.ravdess.archives import (
    URLS,
    ArchiveError,
    Member,
    find_clips,
    manual_paths,
    read_member,
)
from tests.data_pipelines.media_files import AUDIO_ZIP, VIDEO_ZIPS, write_zips

Members = dict[str, dict[str, bytes]]
NAME = "01-03-01-01-01-05"  # of a clip, without modality
VIDEO, AUDIO = f"Actor_05/01-{NAME}.mp4", f"Actor_05/03-{NAME}.wav"
ZIP = VIDEO_ZIPS[4]


def _members() -> Members:
    """Two clips of every actor; what is in them does not matter here."""
    members: Members = {name: {} for name in URLS}
    for actor, archive in enumerate(VIDEO_ZIPS, 1):
        for emotion in (3, 2):
            name = f"01-{emotion:02d}-01-01-01-{actor:02d}"
            members[archive][f"Actor_{actor:02d}/01-{name}.mp4"] = f"video {name}".encode()
            members[AUDIO_ZIP][f"Actor_{actor:02d}/03-{name}.wav"] = f"audio {name}".encode()
    return members


def _find(folder: Path, members: Members) -> Any:
    return find_clips(manual_paths(write_zips(folder, members)))


def test_clips_are_paired_and_sorted(tmp_path: Path) -> None:
    clips = _find(tmp_path, _members())
    names = [str(clip.name) for clip in clips]
    assert names == sorted(names)
    assert len(names) == 48
    for clip in clips:
        assert (clip.name.modality, clip.name.vocal_channel) == (3, 1)
        shared = str(clip.name)[3:]
        assert read_member(clip.video) == f"video {shared}".encode()
        assert read_member(clip.audio) == f"audio {shared}".encode()
        assert clip.video.archive.name == VIDEO_ZIPS[clip.name.actor - 1]


def test_the_published_archives_are_meant() -> None:
    assert len(URLS) == 25
    home = "https://zenodo.org/records/1188976/files"
    for name in ("Audio_Speech_Actors_01-24.zip", "Video_Speech_Actor_07.zip"):
        assert URLS[name] == f"{home}/{name}?download=1"


def test_what_is_no_clip_is_ignored(tmp_path: Path) -> None:
    members = _members()
    members[ZIP] |= {
        "Actor_05/": b"",
        "Actor_05/readme.txt": b"read me",
        "Actor_05/.DS_Store": b"mac",
        f"__MACOSX/Actor_05/._01-{NAME}.mp4": b"mac",
        f"Actor_05/02-{NAME}.mp4": b"picture alone",
    }
    assert len(_find(tmp_path, members)) == 48


def _rename(archive: str, old: str, new: str) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        members[archive][new] = members[archive].pop(old)

    return change


def _add(archive: str, name: str) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        members[archive][name] = b"more"

    return change


def _drop(archive: str, *names: str) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        for name in names:
            del members[archive][name]

    return change


def _drop_actor(members: Members) -> None:
    members[ZIP].clear()
    for name in list(members[AUDIO_ZIP]):
        if name.startswith("Actor_05"):
            del members[AUDIO_ZIP][name]


OTHER = NAME.replace("03", "02")
BAD: dict[str, tuple[Callable[[Members], None], str]] = {
    "up": (_add(ZIP, "../x.txt"), rf"{ZIP}: member '\.\./x\.txt' leaves the folder; fetch"),
    "up in the middle": (_add(ZIP, f"a/../{VIDEO}"), "leaves the folder"),
    "absolute": (_add(AUDIO_ZIP, f"/{AUDIO}"), rf"{AUDIO_ZIP}: member '/Actor.* leaves the folder"),
    "backslash": (_add(ZIP, f"Actor_05\\01-{NAME}.mp4"), "leaves the folder"),
    "line break": (_add(ZIP, f"a\nb/{VIDEO}"), r"member 'a\\nb/Actor.* has no legal name; fetch"),
    "bad name": (
        _rename(ZIP, VIDEO, "Actor_05/happy.mp4"),
        rf"{ZIP}: member 'Actor_05/happy\.mp4': 'happy' is not a RAVDESS name",
    ),
    "bad field": (_add(ZIP, f"Actor_05/01-{NAME[:-2]}25.mp4"), "actor 25 is not from 01 to 24"),
    "wrong folder": (
        _rename(ZIP, VIDEO, VIDEO.replace("Actor_05", "Actor_06")),
        r"the actor in its name is not that of its folder or archive",
    ),
    "no folder": (_rename(ZIP, VIDEO, VIDEO[9:]), "the actor in its name is not that of"),
    "wrong archive": (
        _add(ZIP, "Actor_06/01-01-03-01-01-02-06.mp4"),
        r"the actor in its name is not that of its folder or archive",
    ),
    "song": (_add(ZIP, f"Actor_05/01-02{NAME[2:]}.mp4"), "song, expected speech"),
    "sound among videos": (
        _add(ZIP, AUDIO),
        r"member 'Actor_05/03-.*\.wav': expected modality 01 and \.mp4",
    ),
    "video among sounds": (_add(AUDIO_ZIP, VIDEO), r"expected modality 03 and \.wav"),
    "twice": (_add(ZIP, f"copy/{VIDEO}"), rf"member 'copy/{VIDEO}': the clip comes twice"),
    "no sound": (
        _drop(AUDIO_ZIP, AUDIO),
        rf": 1 clips have video and no sound: {NAME} \(without modality\)",
    ),
    "no videos": (
        _drop(ZIP, VIDEO, f"Actor_05/01-{OTHER}.mp4"),
        rf": 2 clips have sound and no video: {OTHER}, {NAME} \(without",
    ),
    "no actor": (_drop_actor, rf"{AUDIO_ZIP}: no clips of actors 05; fetch"),
}


def _blamed(case: str) -> set[str]:
    """Names of the archives that may be wrong."""
    if case in ("no sound", "no videos", "no actor"):
        return {AUDIO_ZIP, ZIP}
    return {AUDIO_ZIP} if case in ("absolute", "video among sounds") else {ZIP}


@pytest.mark.parametrize("case", BAD)
def test_bad_members_are_named(case: str, tmp_path: Path) -> None:
    change, problem = BAD[case]
    members = _members()
    change(members)
    with pytest.raises(ArchiveError, match=problem) as caught:
        _find(tmp_path, members)
    assert "\n" not in str(caught.value)
    assert {path.name for path in caught.value.archives} == _blamed(case)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    write_zips(tmp_path, _members())
    with zipfile.ZipFile(tmp_path / ZIP, "a") as file:
        file.writestr(VIDEO, b"another")
    with pytest.raises(DataError, match=rf"member '{VIDEO}': the clip comes twice"):
        find_clips(manual_paths(tmp_path))


def test_members_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    write_zips(tmp_path, _members())
    with (
        zipfile.ZipFile(tmp_path / ZIP, "a", zipfile.ZIP_DEFLATED) as file,
        file.open(f"Actor_05/01-{NAME[:-5]}02-05.mp4", "w", force_zip64=True) as member,
    ):
        for _ in range(257):
            member.write(bytes(2**20))
    assert (tmp_path / ZIP).stat().st_size < 2**20
    with pytest.raises(ArchiveError, match=r"02-05\.mp4': 269484032 bytes, expected at most 2684"):
        find_clips(manual_paths(tmp_path))


@pytest.mark.parametrize("content", [b"", b"not an archive", "half"])
def test_files_that_are_no_archives_are_named(content: Any, tmp_path: Path) -> None:
    write_zips(tmp_path, _members())
    whole = (tmp_path / ZIP).read_bytes()
    (tmp_path / ZIP).write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(DataError, match=rf"{ZIP}: not a zip archive, truncated or dam") as caught:
        find_clips(manual_paths(tmp_path))
    assert "\n" not in str(caught.value)


def test_missing_archives_are_counted_and_named(tmp_path: Path) -> None:
    write_zips(tmp_path, _members())
    for actor in (2, 5, 7, 9, 24):
        (tmp_path / VIDEO_ZIPS[actor - 1]).unlink()
    with pytest.raises(
        DataError,
        match=rf"manual_dir={tmp_path}: 5 of 25 archives are missing: Video_Speech_Actor_02\.zip,"
        r" \S*05\.zip, \S*07\.zip and 2 more; get them from https://zenodo\.org/records/1188976",
    ):
        manual_paths(tmp_path)


def test_a_damaged_member_fails_its_checksum(tmp_path: Path) -> None:
    clips = _find(tmp_path, _members())
    damaged = next(clip for clip in clips if clip.video.name == VIDEO)
    path = damaged.video.archive
    path.write_bytes(path.read_bytes().replace(f"video {NAME}".encode(), b"v" * (6 + len(NAME))))
    with pytest.raises(MediaError, match=rf"^{path}: {VIDEO} is damaged \(Bad CRC-32") as caught:
        read_member(damaged.video)
    assert "\n" not in str(caught.value)
    assert read_member(damaged.audio)


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_whatever_byte_is_damaged_a_member_is_whole_or_named(method: int, tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    expected = bytes(range(100)) * 3
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr(VIDEO, expected)
    member = Member(path, VIDEO, zlib.crc32(expected))
    whole = path.read_bytes()
    assert read_member(member) == expected
    refused: list[str] = []
    for i in range(len(whole)):
        for value in (whole[i] ^ 0xFF, whole[i] ^ 1):
            path.write_bytes(whole[:i] + bytes([value]) + whole[i + 1 :])
            try:
                assert read_member(member) == expected
            except MediaError as error:
                refused.append(str(error))
    assert len(refused) > len(whole)
    assert all(message.startswith(f"{path}: {VIDEO} is damaged (") for message in refused)
    path.write_bytes(whole[:-1])
    with pytest.raises(MediaError, match="is damaged"):
        read_member(member)


def test_a_member_of_another_archive_by_now_is_named(tmp_path: Path) -> None:
    clips = _find(tmp_path, _members())
    with zipfile.ZipFile(clips[0].video.archive, "w"):
        pass
    with pytest.raises(MediaError, match=r"is damaged \(.There is no item named"):
        read_member(clips[0].video)


def test_damaged_names_are_told_in_one_line(tmp_path: Path) -> None:
    members = _members()
    extra = "Actor_05/\u00e9.txt"  # a name outside of ASCII is marked as UTF-8
    members[ZIP] |= {extra: b"more"}
    clips = _find(tmp_path, members)
    path = tmp_path / ZIP
    whole = path.read_bytes()
    name = extra.encode()
    damaged = name.replace("\u00e9".encode(), b"\xff\xff")
    # The name stands in front of the content first, and then in the list at the end.
    path.write_bytes(damaged.join(whole.split(name, 1)))
    member = clips[4].video._replace(archive=path, name=extra)
    with pytest.raises(MediaError, match=r"txt is damaged \('utf-8' codec") as caught:
        read_member(member)
    assert "\n" not in str(caught.value)
    path.write_bytes(whole.replace(name, damaged))
    with pytest.raises(ArchiveError, match=rf"{ZIP}: not a zip.* damaged \('utf-8' codec") as told:
        find_clips(manual_paths(tmp_path))
    assert "\n" not in str(told.value)
    assert told.value.archives == {path}
