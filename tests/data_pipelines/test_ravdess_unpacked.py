import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.errors import DataError, MediaError
from data_pipelines.ravdess import Ravdess, prepare
from data_pipelines.ravdess.archives import read_member
from data_pipelines.ravdess.unpacked import find_unpacked, is_unpacked
from tests.data_pipelines.media_files import ravdess_members, tiny_ravdess_config, write_zips

NAME = "01-03-01-01-01-05"  # of a clip, without modality
VIDEO, AUDIO = f"Actor_05/01-{NAME}.mp4", f"Actor_05/03-{NAME}.wav"


def _unpack(folder: Path, *, apart: bool = False) -> Path:
    """Writes two clips of every actor, all into one folder, or sound and videos apart."""
    for actor in range(1, 25):
        for emotion in (3, 2):
            name = f"01-{emotion:02d}-01-01-01-{actor:02d}"
            for archive, file in (("Audio", f"03-{name}.wav"), ("Video", f"01-{name}.mp4")):
                parent = folder / (archive if apart else "") / f"Actor_{actor:02d}"
                parent.mkdir(parents=True, exist_ok=True)
                (parent / file).write_bytes(f"{archive} {name}".encode())
    return folder


@pytest.mark.parametrize("apart", [False, True])
def test_clips_are_found_paired_and_sorted(apart: bool, tmp_path: Path) -> None:
    folder = _unpack(tmp_path, apart=apart)
    for name in (f"02-{NAME}.mp4", f"01-02{NAME[2:]}.mp4", "readme.txt", f"._01-{NAME}.mp4"):
        (folder / "Actor_05").mkdir(exist_ok=True)
        (folder / "Actor_05" / name).write_bytes(b"no clip of speech")
    assert is_unpacked(folder)
    clips = find_unpacked(folder)
    names = [str(clip.name) for clip in clips]
    assert names == sorted(names)
    assert len(names) == 48
    for clip in clips:
        assert read_member(clip.video) == f"Video {str(clip.name)[3:]}".encode()
        assert read_member(clip.audio) == f"Audio {str(clip.name)[3:]}".encode()


def test_archives_come_before_what_lies_beside_them(tmp_path: Path) -> None:
    (_unpack(tmp_path) / "Video_Speech_Actor_05.zip").write_bytes(b"")
    assert not is_unpacked(tmp_path)
    assert not is_unpacked(tmp_path / "Actor_05")


def _move(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


def _copy(old: str, new: str) -> Callable[[Path], object]:
    def copy(folder: Path) -> None:
        (folder / new).parent.mkdir(parents=True, exist_ok=True)
        (folder / new).write_bytes((folder / old).read_bytes())

    return copy


def _enlarge(folder: Path) -> None:
    os.truncate(folder / VIDEO, 2**28 + 1)


def _drop_actor(folder: Path) -> None:
    for path in (folder / "Actor_05").iterdir():
        path.unlink()


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "name": (_move(VIDEO, "Actor_05/happy.MP4"), r"happy\.MP4: 'happy' is not a RAVDESS name"),
    "folder": (_move(VIDEO, f"Actor_06/01-{NAME}.mp4"), "the actor in its name is not that of its"),
    "kind": (_move(VIDEO, f"Actor_05/01-{NAME}.wav"), r"modality 01 is not that of \.wav files"),
    "twice": (
        _copy(VIDEO, f"copy/{VIDEO}"),
        rf"copy/{VIDEO}: the clip is also {VIDEO}; remove one",
    ),
    "size": (_enlarge, "268435457 bytes, expected at most 268435456"),
    "no sound": (lambda folder: (folder / AUDIO).unlink(), "1 clips have video and no sound"),
    "no actor": (_drop_actor, "no clips of actors 05"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(case: str, tmp_path: Path) -> None:
    change, problem = BAD[case]
    change(_unpack(tmp_path))
    with pytest.raises(DataError, match=rf"^{tmp_path}.*{problem}") as caught:
        find_unpacked(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_gone_by_now_is_named(tmp_path: Path) -> None:
    clip = find_unpacked(_unpack(tmp_path))[0]
    (tmp_path / clip.video.name).unlink()
    with pytest.raises(
        MediaError, match=rf"^{tmp_path}: {clip.video.name} cannot be read \(No such"
    ):
        read_member(clip.video)


@pytest.mark.slow
def test_unpacked_clips_make_the_rows_of_the_archives(tmp_path: Path) -> None:
    members = ravdess_members(emotions=(3,), size=32)
    for contents in members.values():
        for name, content in contents.items():
            path = tmp_path / "unpacked" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    rows: list[Any] = []
    for folder in (write_zips(tmp_path / "zips", members), tmp_path / "unpacked"):
        data_dir = tmp_path / f"data_{folder.name}"
        prepare(data_dir, folder, tiny_ravdess_config(), num_workers=1, progress=False)
        builder: Any = Ravdess(data_dir=data_dir, config=tiny_ravdess_config())
        rows.append(builder.as_data_source("full"))
    assert len(rows[0]) == len(rows[1]) == 24
    for i in range(24):
        np.testing.assert_equal(rows[1][i], rows[0][i])
