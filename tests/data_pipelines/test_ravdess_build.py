import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipelines.errors import DataError
from data_pipelines.ravdess import DEFAULT_CONFIG, Ravdess, RavdessConfig, prepare
from data_pipelines.ravdess import builder as builder_module
from data_pipelines.ravdess.archives import URLS, Clip
from tests.data_pipelines.local_server import served
from tests.data_pipelines.media_files import (
    AUDIO_ZIP,
    EMOTION_COLOURS,
    VIDEO_ZIPS,
    emotion_pitch_hz,
    ravdess_members,
    tiny_ravdess_config,
    write_zips,
)
from tests.data_pipelines.processes import exit_code, prepare_ravdess, start

Members = dict[str, dict[str, bytes]]
Columns = dict[str, NDArray[Any]]
VIDEO = "Actor_05/01-01-03-01-01-01-05.mp4"
AUDIO = "Actor_08/03-01-05-01-01-01-08.wav"


@pytest.fixture(scope="module")
def members() -> Members:
    return ravdess_members(emotions=(3, 5), size=32, noise=5)


@pytest.fixture(scope="module")
def manual_dir(members: Members, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zips(tmp_path_factory.mktemp("raw"), members)


@pytest.fixture(scope="module")
def data_dir(manual_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    _prepare(folder, manual_dir)
    return folder


@pytest.fixture(scope="module")
def rows(data_dir: Path) -> Columns:
    return _read(data_dir)


def _prepare(data_dir: Path, manual_dir: Path | None, num_workers: int = 1) -> None:
    prepare(data_dir, manual_dir, tiny_ravdess_config(), num_workers=num_workers, progress=False)


def _builder(data_dir: Path, config: RavdessConfig | None = None) -> Any:
    return Ravdess(data_dir=data_dir, config=config or tiny_ravdess_config())


def _read(data_dir: Path) -> Columns:
    source = _builder(data_dir).as_data_source("full")
    examples: list[dict[str, Any]] = [source[i] for i in range(len(source))]
    return {key: np.array([example[key] for example in examples]) for key in examples[0]}


def _assert_same(actual: Columns, expected: Columns) -> None:
    assert actual.keys() == expected.keys()
    for key, column in expected.items():
        np.testing.assert_array_equal(actual[key], column)


def _folder(data_dir: Path) -> list[str]:
    return [path.name for path in (data_dir / "ravdess/tiny").iterdir()]


def test_there_is_one_row_for_every_clip(rows: Columns) -> None:
    names = [name.decode() for name in rows["name"]]
    expected = [f"03-01-{e:02d}-01-01-01-{a:02d}" for e in (3, 5) for a in range(1, 25)]
    assert names == expected
    fields = np.array([[int(part) for part in name.split("-")] for name in names])
    for key, field in (("intensity", 3), ("statement", 4), ("repetition", 5), ("actor", 6)):
        np.testing.assert_array_equal(rows[key], fields[:, field])
    np.testing.assert_array_equal(rows["label"], fields[:, 2] - 1)
    assert rows["video"].shape == (48, 2, 8, 8, 3)
    assert rows["audio"].shape == (48, 64, 400, 1)
    assert rows["video"].dtype == rows["audio"].dtype == np.uint8


def test_video_and_sound_are_those_of_the_named_clip(rows: Columns) -> None:
    colours = rows["video"].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(colours, EMOTION_COLOURS[rows["label"]], rtol=0, atol=10)
    # Bands are 46 Hz apart up to 1 kHz, the first is centred at 46 Hz; the sound is in the middle.
    bands = rows["audio"][:, :, 200, 0].argmax(axis=1)
    pitch_hz = np.array([emotion_pitch_hz(label + 1) for label in rows["label"]])
    assert np.abs(46.4 * (bands + 1) - pitch_hz).max() < 46.4
    assert (rows["audio"][:, :, 200].max(axis=(1, 2)) > 200).all()
    for silent in (rows["audio"][:, :, :180], rows["audio"][:, :, 220:]):
        assert not silent.any()


def test_defaults_hold_six_frames_and_four_seconds(data_dir: Path) -> None:
    features = _builder(data_dir, DEFAULT_CONFIG).info.features
    assert features["video"].shape == (6, 80, 80, 3)
    assert features["audio"].shape == (64, 400, 1)


def test_the_same_archives_make_the_same_bytes_whoever_decodes(
    data_dir: Path, manual_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_all = Mock(wraps=builder_module.decode_all)
    monkeypatch.setattr(builder_module, "decode_all", decode_all)
    _prepare(tmp_path, manual_dir, num_workers=2)
    assert decode_all.call_args.kwargs["num_workers"] == 2
    (first,), (second,) = (
        [path.read_bytes() for path in folder.rglob("*.array_record*")]
        for folder in (data_dir, tmp_path)
    )
    assert first == second


def test_nothing_is_left_beside_the_data_set(data_dir: Path) -> None:
    assert _folder(data_dir) == ["1.0.0"]


def test_a_prepared_data_set_needs_no_archives(
    manual_dir: Path, tmp_path: Path, rows: Columns
) -> None:
    _prepare(tmp_path, manual_dir)
    _prepare(tmp_path, tmp_path / "nothing here")
    _assert_same(_read(tmp_path), rows)


def test_two_processes_may_prepare_at_once(rows: Columns, manual_dir: Path, tmp_path: Path) -> None:
    processes = [start(prepare_ravdess, tmp_path, manual_dir, "never") for _ in range(2)]
    assert [exit_code(process) for process in processes] == [0, 0]
    _assert_same(_read(tmp_path), rows)


@pytest.mark.parametrize(
    ("moment", "num_left"), [("decoding", 29), ("writing", 0), ("cleaning", 0)]
)
def test_a_killed_preparation_carries_on_and_ends_the_same(
    moment: str,
    num_left: int,
    manual_dir: Path,
    rows: Columns,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = start(prepare_ravdess, tmp_path, manual_dir, moment)
    assert exit_code(process) == -signal.SIGKILL
    decoded = tmp_path / "ravdess/tiny/decoded.1.0.0"
    done = {path.stem: path.stat().st_mtime_ns for path in decoded.glob("*.npz")}
    assert len(done) == 48 - num_left
    again: list[str] = []
    kept: dict[str, int] = {}
    decode = builder_module.decode_clip
    generate = Ravdess._generate_examples

    def count(clip: Clip, **sizes: int) -> Any:
        again.append(str(clip.name))
        return decode(clip, **sizes)

    def look(self: Any, clips: Any) -> Any:
        kept.update({path.stem: path.stat().st_mtime_ns for path in decoded.iterdir()})
        return generate(self, clips)

    monkeypatch.setattr(builder_module, "decode_clip", count)
    monkeypatch.setattr(Ravdess, "_generate_examples", look)

    _prepare(tmp_path, manual_dir)

    assert len(again) == num_left
    if moment != "cleaning":
        assert {key: kept[key] for key in done} == done
        assert len(kept) == 48
    _assert_same(_read(tmp_path), rows)
    assert _folder(tmp_path) == ["1.0.0"]


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


BAD_CLIPS: dict[str, tuple[str, str, Callable[[bytes], bytes], str]] = {
    "cut video": (VIDEO_ZIPS[4], VIDEO, _half, "not an MP4 file, truncated or damaged"),
    "cut sound": (AUDIO_ZIP, AUDIO, _half, "truncated within its samples"),
}


@pytest.mark.parametrize("case", BAD_CLIPS)
def test_an_unusable_clip_is_named_after_all_were_tried(
    case: str, members: Members, rows: Columns, tmp_path: Path
) -> None:
    archive, name, change, problem = BAD_CLIPS[case]
    bad = {**members, archive: {**members[archive], name: change(members[archive][name])}}
    raw = write_zips(tmp_path / "raw", bad)
    with pytest.raises(
        DataError,
        match=rf"^1 of 48 clips cannot be used: {raw}/{archive}: {name}: {problem}.*; fetch",
    ) as caught:
        _prepare(tmp_path, raw)
    assert "\n" not in str(caught.value)
    decoded = tmp_path / "ravdess/tiny/decoded.1.0.0"
    assert len(list(decoded.iterdir())) == 47
    # With the right archives the same call ends as if nothing had been.
    _prepare(tmp_path, write_zips(raw, members))
    _assert_same(_read(tmp_path), rows)


def test_a_member_that_fails_its_checksum_is_named(members: Members, tmp_path: Path) -> None:
    raw = write_zips(tmp_path / "raw", members)
    content = members[AUDIO_ZIP][AUDIO]
    changed = bytearray(content)
    changed[1000] ^= 1
    zipped = (raw / AUDIO_ZIP).read_bytes()
    (raw / AUDIO_ZIP).write_bytes(zipped.replace(content, bytes(changed)))
    with pytest.raises(DataError, match=rf"^1 of 48 clips .*{AUDIO} is damaged \(Bad CRC-32"):
        _prepare(tmp_path, raw)


def test_clips_of_other_archives_are_not_taken_for_these(
    members: Members, rows: Columns, tmp_path: Path
) -> None:
    # The first try leaves the clips that it decoded; then one of them has another content.
    other = members[VIDEO_ZIPS[5]][VIDEO.replace("05.mp4", "06.mp4").replace("05/", "06/")]
    raw = write_zips(
        tmp_path / "raw",
        {
            **members,
            VIDEO_ZIPS[4]: {**members[VIDEO_ZIPS[4]], VIDEO: other},
            AUDIO_ZIP: {**members[AUDIO_ZIP], AUDIO: b"no sound"},
        },
    )
    with pytest.raises(DataError, match=r"^1 of 48 clips cannot be used"):
        _prepare(tmp_path, raw)
    _prepare(tmp_path, write_zips(raw, members))
    _assert_same(_read(tmp_path), rows)


def test_clips_of_other_sizes_are_not_taken_for_these(
    members: Members, rows: Columns, tmp_path: Path
) -> None:
    bad = {**members, AUDIO_ZIP: {**members[AUDIO_ZIP], AUDIO: b"no sound"}}
    raw = write_zips(tmp_path / "raw", bad)
    other = RavdessConfig(name="tiny", num_frames=1, frame_size=8)
    with pytest.raises(DataError, match=r"^1 of 48 clips cannot be used"):
        prepare(tmp_path, raw, other, num_workers=1, progress=False)
    _prepare(tmp_path, write_zips(raw, members))
    _assert_same(_read(tmp_path), rows)


def test_bad_arguments_are_named(manual_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^num_workers=0: choose at least 1"):
        _prepare(tmp_path, manual_dir, num_workers=0)
    with pytest.raises(DataError, match=rf"^manual_dir={tmp_path}/gone: no such folder"):
        _prepare(tmp_path, tmp_path / "gone")
    with pytest.raises(DataError, match=rf"^manual_dir={tmp_path}: 25 of 25 archives are missing"):
        _prepare(tmp_path, tmp_path)


def test_downloads_are_used_and_a_wrong_one_is_fetched_anew(
    members: Members, rows: Columns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_zips(tmp_path / "raw", members)
    sound = (raw / AUDIO_ZIP).read_bytes()
    (raw / AUDIO_ZIP).write_bytes(sound[:-100])
    with served(raw) as (home, requested):
        urls = {name: f"{home}/{name}?download=1" for name in URLS}
        monkeypatch.setattr(builder_module, "URLS", urls)
        with pytest.raises(
            DataError, match=rf"^{AUDIO_ZIP}: not a zip archive.*run again to fetch"
        ):
            _prepare(tmp_path / "data", None)
        (raw / AUDIO_ZIP).write_bytes(sound)
        assert len(requested) == 25
        _prepare(tmp_path / "data", None)
        assert requested[25:] == [f"/{AUDIO_ZIP}?download=1"]
    _assert_same(_read(tmp_path / "data"), rows)


def test_all_wrong_downloads_are_fetched_anew_at_once_and_no_others(
    members: Members, rows: Columns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = VIDEO_ZIPS[4:9]  # more than a message names
    cut = {
        archive: {name: _half(content) for name, content in members[archive].items()}
        for archive in damaged
    }
    raw = write_zips(tmp_path / "raw", {**members, **cut})
    with served(raw) as (home, requested):
        urls = {name: f"{home}/{name}?download=1" for name in URLS}
        monkeypatch.setattr(builder_module, "URLS", urls)
        message = (
            rf"^10 of 48 clips cannot be used: {damaged[0]}: .*\(removed 5 downloads, {damaged[0]}"
        )
        with pytest.raises(DataError, match=message):
            _prepare(tmp_path / "data", None)
        requested.clear()

        # One of those that come anew lacks a clip: it or the sounds are wrong.
        content = {name: each for name, each in members[damaged[0]].items() if name != VIDEO}
        write_zips(raw, {**members, damaged[0]: content})
        with pytest.raises(DataError, match=r": 1 clips have sound and no video.*removed 2 downl"):
            _prepare(tmp_path / "data", None)
        assert requested == [f"/{name}?download=1" for name in damaged]
        requested.clear()

        write_zips(raw, members)
        _prepare(tmp_path / "data", None)
        assert requested == [f"/{name}?download=1" for name in (AUDIO_ZIP, damaged[0])]
    _assert_same(_read(tmp_path / "data"), rows)
