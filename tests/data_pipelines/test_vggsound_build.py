import os
import re
import signal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipelines.errors import DataError
from data_pipelines.media.audio import log_mel, read_audio_track
from data_pipelines.media.video import read_frames
from data_pipelines.stored import StoredSplit
from data_pipelines.vggsound import VggSound, VggSoundConfig, prepare
from data_pipelines.vggsound import builder as builder_module
from data_pipelines.vggsound.clips import Clip, read_clips, split_clips
from data_pipelines.vggsound.decoding import decode_clip
from tests.data_pipelines.processes import exit_code, prepare_vggsound, start
from tests.data_pipelines.vggsound_files import (
    LABELS,
    clip_path,
    tiny_config,
    write_list,
    write_vggsound,
)

_FEATURES = ("video", "audio", "label", "youtube_id", "start")
Rows = dict[str, dict[str, list[Any]]]


@pytest.fixture(scope="module")
def manual_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_vggsound(folder)
    return folder


def _clips(manual_dir: Path) -> list[Clip]:
    """The clips in the list."""
    return read_clips(manual_dir / "vggsound.csv")


def _copy(manual_dir: Path, folder: Path) -> list[Clip]:
    """Makes a folder with the same clips, to take some out."""
    (folder / "clips").mkdir(parents=True)
    for path in [manual_dir / "vggsound.csv", *(manual_dir / "clips").iterdir()]:
        os.link(path, folder / path.relative_to(manual_dir))
    return _clips(folder)


def _prepare(data_dir: Path, manual_dir: Path | None, **changes: Any) -> None:
    keywords: dict[str, Any] = {"num_workers": 1, "progress": False, **changes}
    prepare(data_dir, manual_dir, tiny_config(), **keywords)


def _read(data_dir: Path) -> Rows:
    """All rows of all splits."""
    builder = VggSound(data_dir=data_dir, config=tiny_config())
    splits = {split: StoredSplit(builder, split) for split in ("train", "validation", "test")}
    return {name: split.read(_FEATURES, np.arange(len(split))) for name, split in splits.items()}


@pytest.fixture(scope="module")
def built(manual_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("data")
    _prepare(data_dir, manual_dir)
    return data_dir


def _names(rows: dict[str, list[Any]]) -> list[str]:
    return [
        f"{youtube_id.decode()}_{start:06d}"
        for youtube_id, start in zip(rows["youtube_id"], rows["start"], strict=True)
    ]


def _assert_same(data_dir: Path, expected: Path) -> None:
    """Holds two preparations against each other, row by row and in their order."""
    actual = _read(data_dir)
    for split, rows in _read(expected).items():
        for feature, values in rows.items():
            np.testing.assert_array_equal(np.array(actual[split][feature]), np.array(values))


def test_rows_are_the_decoded_clips_each_in_its_split_and_only_once(
    built: Path, manual_dir: Path
) -> None:
    clips = {clip.name: clip for clip in _clips(manual_dir)}
    splits = split_clips(clips.values())
    for split, rows in _read(built).items():
        names = _names(rows)
        assert names == [clip.name for clip in splits[split]]
        for i, name in enumerate(names):
            path = manual_dir / f"clips/{name}.mp4"
            frames = read_frames(path, name, num_frames=2, size=8)
            waveform = read_audio_track(path, name, sample_rate_hz=16_000)
            sound = log_mel(waveform, sample_rate_hz=16_000, num_mels=8, num_frames=20)
            np.testing.assert_array_equal(rows["video"][i], frames)
            np.testing.assert_array_equal(rows["audio"][i], sound[..., None])
            assert LABELS[rows["label"][i]] == clips[name].label


def test_the_number_of_clips_and_nothing_else_is_kept_beside_the_rows(built: Path) -> None:
    info = VggSound(data_dir=built, config=tiny_config()).info
    assert info.metadata == {"num_clips": 40, "num_missing": 0, "labels": list(LABELS)}
    folder = built / "vggsound/tiny"
    assert {path.name for path in folder.iterdir()} == {"1.0.0", "missing_clips.txt"}
    assert (folder / "missing_clips.txt").read_text() == ""


def test_defaults_hold_ten_seconds(tmp_path: Path) -> None:
    features: Any = VggSound(data_dir=tmp_path).info.features
    assert features["video"].shape == (4, 112, 112, 3)
    assert features["audio"].shape == (64, 1000, 1)


@pytest.mark.slow
def test_more_workers_and_another_run_give_the_same_rows(
    built: Path, manual_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_all = Mock(wraps=builder_module.decode_all)
    monkeypatch.setattr(builder_module, "decode_all", decode_all)
    _prepare(tmp_path, manual_dir, num_workers=2)
    assert decode_all.call_args.kwargs["num_workers"] == 2
    _assert_same(tmp_path, built)


@pytest.mark.parametrize("shard_rows", [1, 4, 7, 24])
def test_data_of_several_files_have_the_same_rows(
    shard_rows: int,
    built: Path,
    manual_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("data_pipelines.vggsound.builder._SHARD_ROWS", shard_rows)
    _prepare(tmp_path, manual_dir)
    _assert_same(tmp_path, built)
    assert len(list(tmp_path.rglob("*-train.array_record-*"))) == -(-24 // shard_rows)


def test_a_prepared_data_set_needs_no_clips(built: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*") if path.name != "lock"}
    _prepare(built, None)
    _prepare(built, tmp_path / "nothing here")
    assert before == {
        path: path.stat().st_mtime_ns for path in built.rglob("*") if path.name != "lock"
    }


def test_missing_and_damaged_clips_are_listed_and_left_out(
    built: Path, manual_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = split_clips(_copy(manual_dir, tmp_path / "raw"))
    gone, cut, empty, text, mute = (clip for clip in clips["train"][::4][:5])
    damage: dict[Clip, bytes] = {
        cut: clip_path(manual_dir, cut).read_bytes()[:900],
        empty: b"",
        text: b"This video is no longer available.\n",
    }
    clip_path(tmp_path / "raw", gone).unlink()
    for clip, content in damage.items():
        clip_path(tmp_path / "raw", clip).unlink()
        clip_path(tmp_path / "raw", clip).write_bytes(content)
    clip_path(tmp_path / "raw", mute).unlink()
    _drop_sound(clip_path(manual_dir, mute), clip_path(tmp_path / "raw", mute))

    _prepare(tmp_path / "data", tmp_path / "raw")

    lines = (tmp_path / "data/vggsound/tiny/missing_clips.txt").read_text().splitlines()
    assert lines[0] == f"{gone.name}.mp4: no such file"
    listed = {line.split(".mp4: ")[0]: line.split(".mp4: ")[1] for line in lines}
    assert set(listed) == {clip.name for clip in (gone, cut, empty, text, mute)}
    assert "empty" in listed[empty.name]
    assert "truncated or damaged" in listed[cut.name]
    assert "not an MP4 file" in listed[text.name]
    assert "no audio" in listed[mute.name]
    # All others are as they were, in the same order.
    actual = _read(tmp_path / "data")
    for split, rows in _read(built).items():
        kept = [i for i, name in enumerate(_names(rows)) if name not in listed]
        for feature, values in rows.items():
            expected = np.array([values[i] for i in kept])
            np.testing.assert_array_equal(np.array(actual[split][feature]), expected)

    # Clips that turn up later are not silently left out.
    with caplog.at_level("WARNING", logger="absl"):
        _prepare(tmp_path / "data", manual_dir)
    assert re.search(r"prepared with 35 of 40 clips .*missing_clips\.txt.*remove the", caplog.text)


def _drop_sound(source: Path, target: Path) -> None:
    """Copies a clip without its sound track."""
    with av.open(source) as clip, av.open(target, "w") as copy:
        stream = copy.add_stream_from_template(clip.streams.video[0])
        for packet in clip.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)


def test_too_many_missing_clips_are_refused_before_any_is_decoded(
    manual_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = split_clips(_copy(manual_dir, tmp_path / "raw"))
    for clip in clips["test"][:4]:
        clip_path(tmp_path / "raw", clip).unlink()

    def decode(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("data_pipelines.vggsound.builder.decode_all", decode)
    message = r"max_missing=0\.09 allows fewer: 4 of 40 clips are missing or damaged; fetch"
    with pytest.raises(DataError, match=message) as caught:
        _prepare(tmp_path / "data", tmp_path / "raw", max_missing=0.09)
    listing = tmp_path / "data/vggsound/tiny/missing_clips.txt"
    assert str(listing) in str(caught.value)
    assert len(listing.read_text().splitlines()) == 4


def test_missing_and_damaged_clips_count_together(manual_dir: Path, tmp_path: Path) -> None:
    clips = split_clips(_copy(manual_dir, tmp_path / "raw"))
    clip_path(tmp_path / "raw", clips["test"][0]).unlink()
    damaged = clip_path(tmp_path / "raw", clips["test"][1])
    damaged.unlink()
    damaged.write_bytes(b"nothing")

    with pytest.raises(DataError, match=r"max_missing=0\.04 allows fewer: 2 of 40 clips"):
        _prepare(tmp_path / "data", tmp_path / "raw", max_missing=0.04)
    _prepare(tmp_path / "data", tmp_path / "raw", max_missing=0.05)
    # It is held against what was prepared as well.
    with pytest.raises(DataError, match=r"max_missing=0\.04 allows fewer: .*with 38 of 40 clips"):
        _prepare(tmp_path / "data", None, max_missing=0.04)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train", r"none of 24 train clips can be used; fetch some of those that \S+missing_clips"),
        ("validation", "none of 4 validation clips"),
        ("test", "none of 12 test clips"),
        ("class", r"no training clip of class 'thunder' can be used; fetch one, or take the class"),
    ],
)
def test_a_split_or_class_without_clips_is_refused(
    split: str, message: str, manual_dir: Path, tmp_path: Path
) -> None:
    splits = split_clips(_copy(manual_dir, tmp_path / "raw"))
    gone = splits.get(split) or [clip for clip in splits["train"] if clip.label == "thunder"]
    for clip in gone:
        clip_path(tmp_path / "raw", clip).unlink()
    with pytest.raises(DataError, match=message):
        _prepare(tmp_path / "data", tmp_path / "raw")


def test_a_list_that_leaves_a_split_empty_is_refused(manual_dir: Path, tmp_path: Path) -> None:
    clips = _copy(manual_dir, tmp_path / "raw")
    (tmp_path / "raw/vggsound.csv").unlink()
    write_list(tmp_path / "raw", [clip for clip in clips if clip.split == "train"])
    with pytest.raises(DataError, match=r"vggsound\.csv: no test clip; it needs test clips"):
        _prepare(tmp_path / "data", tmp_path / "raw")
    single = {clip.label: clip for clip in clips if clip.split == "train"}.values()
    tests = [clip for clip in clips if clip.split == "test"]
    write_list(tmp_path / "raw", [*single, *tests])
    with pytest.raises(DataError, match="no validation clip; .* training clips of two videos"):
        _prepare(tmp_path / "data", tmp_path / "raw")


def test_what_cannot_be_prepared_is_named_with_its_flag(manual_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manual_dir=None: VGGSound is not downloaded; name"):
        _prepare(tmp_path, None)
    with pytest.raises(DataError, match=r"manual_dir=\S+gone: VGGSound is not downloaded; name"):
        _prepare(tmp_path, tmp_path / "gone")
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(DataError, match=f"max_missing={share}: choose a share from 0 to 1"):
            _prepare(tmp_path, manual_dir, max_missing=share)
    with pytest.raises(DataError, match="num_workers=0: choose at least 1"):
        _prepare(tmp_path, manual_dir, num_workers=0)
    assert not list(tmp_path.iterdir())
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match=r"manual_dir=\S+raw: VGGSound is not downloaded; name"):
        _prepare(tmp_path, tmp_path / "raw")
    write_list(tmp_path / "raw", _clips(manual_dir))
    with pytest.raises(
        DataError, match=r"^manual_dir: \S+raw/clips: No such file .*; name the folder"
    ):
        _prepare(tmp_path, tmp_path / "raw")


def test_two_processes_may_prepare_at_once(built: Path, manual_dir: Path, tmp_path: Path) -> None:
    processes = [start(prepare_vggsound, tmp_path, manual_dir, "never") for _ in range(2)]
    assert [exit_code(process) for process in processes] == [0, 0]
    _assert_same(tmp_path, built)


@pytest.mark.parametrize(("moment", "num_decoded"), [("decoding", 14), ("writing", 40)])
def test_a_killed_preparation_carries_on_and_ends_the_same(
    moment: str,
    num_decoded: int,
    built: Path,
    manual_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = start(prepare_vggsound, tmp_path, manual_dir, moment)
    assert exit_code(process) == -signal.SIGKILL
    folder = tmp_path / "vggsound/tiny"
    assert not (folder / "1.0.0").exists()
    assert len(list((folder / "decoded.1.0.0").glob("*.npz"))) == num_decoded

    decoded: list[Path] = []

    def counted(path: Path, **sizes: int) -> dict[str, NDArray[Any]]:
        decoded.append(path)
        return decode_clip(path, **sizes)

    monkeypatch.setattr("data_pipelines.vggsound.builder.decode_clip", counted)
    _prepare(tmp_path, manual_dir)

    assert len(decoded) == 40 - num_decoded
    _assert_same(tmp_path, built)
    assert {path.name for path in folder.iterdir()} == {"1.0.0", "missing_clips.txt"}


def _interrupt(
    data_dir: Path, manual_dir: Path, config: VggSoundConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepares, but ends when all clips are decoded and none is written."""

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data_pipelines.vggsound.builder.read_decoded", fail)
        with pytest.raises(KeyboardInterrupt):
            prepare(data_dir, manual_dir, config, num_workers=1, progress=False)
    assert len(list(data_dir.rglob("*.npz"))) == 40


def test_what_was_decoded_of_other_clips_or_to_other_sizes_is_not_taken(
    built: Path, manual_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (
        clip_path(tmp_path / "raw", c) for c in _copy(manual_dir, tmp_path / "raw")[:2]
    )
    sound = first.read_bytes()
    first.unlink()
    first.write_bytes(second.read_bytes())
    _interrupt(tmp_path / "data", tmp_path / "raw", tiny_config(num_frames=1), monkeypatch)
    first.write_bytes(sound)
    _prepare(tmp_path / "data", tmp_path / "raw")
    _assert_same(tmp_path / "data", built)

    first.write_bytes(second.read_bytes())
    _interrupt(tmp_path / "again", tmp_path / "raw", tiny_config(), monkeypatch)
    first.write_bytes(sound)
    _prepare(tmp_path / "again", tmp_path / "raw")
    _assert_same(tmp_path / "again", built)


def test_a_clip_that_leads_nowhere_is_missing(manual_dir: Path, tmp_path: Path) -> None:
    clip = split_clips(_copy(manual_dir, tmp_path / "raw"))["test"][0]
    path = clip_path(tmp_path / "raw", clip)
    path.unlink()
    path.symlink_to("gone.mp4")
    with pytest.raises(DataError, match=r"1 of 40 clips are missing") as caught:
        _prepare(tmp_path / "data", tmp_path / "raw", max_missing=0)
    listing = tmp_path / "data/vggsound/tiny/missing_clips.txt"
    assert str(listing) in str(caught.value)
    assert listing.read_text() == f"{path.name}: cannot be read (No such file or directory)\n"
