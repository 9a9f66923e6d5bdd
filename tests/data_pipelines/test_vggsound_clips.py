import hashlib
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.vggsound.clips import Clip, read_clips, split_clips
from data_pipelines.vggsound.missing import find_clips

_ROWS = """---g-f_I2yQ,1,people marching,test
--0PQM4-hqg,30,waterfall burbling,train
--9O4XZOge4,30,"female speech, woman speaking",train
--9O4XZOge4,123456,"say ""ah"" twice",train
"""


def _write(folder: Path, content: str | bytes) -> Path:
    path = folder / "vggsound.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_rows_are_read_as_published(ending: str, tmp_path: Path) -> None:
    clips = read_clips(_write(tmp_path, _ROWS.replace("\n", ending)))
    assert clips == [
        ("---g-f_I2yQ", 1, "people marching", "test"),
        ("--0PQM4-hqg", 30, "waterfall burbling", "train"),
        ("--9O4XZOge4", 30, "female speech, woman speaking", "train"),
        ("--9O4XZOge4", 123456, 'say "ah" twice', "train"),
    ]
    assert [clip.name for clip in clips[::3]] == ["---g-f_I2yQ_000001", "--9O4XZOge4_123456"]


@pytest.mark.parametrize(
    "start",
    ["\ufeff", "# YouTube ID,start seconds,label,train/test split\n", "\ufeffid,t,y,part\n"],
)
def test_a_byte_order_mark_and_a_header_are_left_out(start: str, tmp_path: Path) -> None:
    assert read_clips(_write(tmp_path, start + _ROWS)) == read_clips(_write(tmp_path, _ROWS))


_GOOD = "--0PQM4-hqg,30,thunder,train\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"vggsound\.csv: no rows; expected YouTube id, start in seconds, label, tr"),
        (_GOOD + "--0PQM4-hqg,31,thunder\n", r"vggsound\.csv, line 2: 3 columns, expected YouTube"),
        (_GOOD + "--0PQM4-hqg,31,thunder,train,1\n", "line 2: 5 columns"),
        (_GOOD + "\n", "line 2: 0 columns"),
        (_GOOD + "--0PQM4-hqg,female speech, woman,speaking,train\n", "line 2: 5 columns"),
        ("youtube_id,start,label,split\n", r"vggsound\.csv: no rows"),
        (_GOOD + "youtube_id,start,label,split\n", "line 2: 'youtube_id' is not a YouTube id: 11"),
        ("youtube_id,30,thunder,train\n", "line 1: 'youtube_id' is not a YouTube id"),
        ("dQw4w9WgXcQ,start,label,split\n", "line 1: start 'start' is not a whole number"),
        ("../../../abc,0,thunder,train\n", r"'\.\./\.\./\.\./abc' is not a YouTube id"),
        ("..,0,thunder,train\n", "is not a YouTube id"),
        ("abc/defghij,0,thunder,train\n", "is not a YouTube id"),
        ("abcdéfghijk,0,thunder,train\n", "is not a YouTube id"),
        ("--0PQM4-hqg,1.5,thunder,train\n", r"line 1: start '1\.5' is not a whole number"),
        ("--0PQM4-hqg,-1,thunder,train\n", "start '-1' is not a whole number"),
        ("--0PQM4-hqg,,thunder,train\n", "start '' is not a whole number"),
        ("--0PQM4-hqg,1234567,thunder,train\n", "start '1234567' is not a whole number"),
        ("--0PQM4-hqg,٣,thunder,train\n", "start '٣' is not a whole number"),
        ("--0PQM4-hqg,1,,train\n", "label '' is empty"),
        ("--0PQM4-hqg,1, thunder,train\n", "label ' thunder' is empty, has spaces around it"),
        ('--0PQM4-hqg,1,"thun\nder",train\n', r"line 2: label 'thun\\nder' is empty, .* breaks"),
        ("--0PQM4-hqg,1,thunder,validation\n", "split 'validation' is neither train nor test"),
        (_GOOD + "--0PQM4-hqg,030,rain,test\n", "line 2: --0PQM4-hqg_000030 is listed before"),
        ('--0PQM4-hqg,1,"thunder,train\n', r"not a CSV file in UTF-8 \(unexpected end of data\)"),
        (b"--0PQM4-hqg,1,thund\xffer,train\n", r"not a CSV file in UTF-8 \('utf-8' codec"),
        (b"--0PQM4-hqg,1,thun\0der,train\n", "vggsound.csv"),
    ],
)
def test_a_bad_list_is_refused_in_one_line(
    content: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_clips(_write(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_a_missing_list_is_named_with_its_flag(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^manual_dir: \S+vggsound\.csv: No such file.*; name the folder"
    ):
        read_clips(tmp_path / "vggsound.csv")


def _clips(num_videos: int, *, num_classes: int, seed: int = 0) -> list[Clip]:
    """Videos of one to three clips; those of one class in a row."""
    rng = np.random.default_rng(seed)
    clips: list[Clip] = []
    for i in range(num_videos):
        split = "test" if rng.random() < 0.1 else "train"
        label = f"class {i % num_classes}"
        clips += [
            Clip(f"video{seed}{i:05d}", 10 * j, label, split) for j in range(rng.integers(1, 4))
        ]
    return clips


@pytest.mark.parametrize(("num_videos", "num_classes"), [(2000, 7), (40, 4), (9, 3)])
def test_one_video_in_twenty_of_every_class_is_validation(
    num_videos: int, num_classes: int
) -> None:
    clips = _clips(num_videos, num_classes=num_classes)

    splits = split_clips(clips)

    assert list(splits) == ["train", "validation", "test"]
    assert sorted(itertools.chain(*splits.values())) == sorted(clips)
    assert set(splits["test"]) == {clip for clip in clips if clip.split == "test"}
    for part in splits.values():
        assert part == sorted(part, key=lambda clip: hashlib.sha256(clip.name.encode()).digest())
    ids = {split: {clip.youtube_id for clip in part} for split, part in splits.items()}
    assert not ids["train"] & ids["validation"]
    assert not ids["test"] & (ids["train"] | ids["validation"])
    for label in {clip.label for clip in clips}:
        videos = {
            split: {clip.youtube_id for clip in part if clip.label == label}
            for split, part in splits.items()
        }
        total = len(videos["train"] | videos["validation"])
        assert len(videos["validation"]) == (math.ceil(total / 20) if total > 1 else 0)
        digests = {
            split: [hashlib.sha256(youtube_id.encode()).hexdigest() for youtube_id in part]
            for split, part in videos.items()
        }
        if total > 1:
            assert max(digests["validation"]) < min(digests["train"])


def test_the_order_of_the_list_does_not_matter() -> None:
    clips = _clips(300, num_classes=5)
    assert split_clips(clips) == split_clips(clips[::-1])


def test_training_clips_of_a_tested_video_are_left_out() -> None:
    clips = [*_clips(20, num_classes=2), Clip("bothbothbot", 0, "class 0", "train")]
    tested = Clip("bothbothbot", 10, "class 1", "test")
    splits = split_clips([*clips, tested])
    assert tested in splits["test"]
    assert clips[-1] not in splits["train"] + splits["validation"]


def test_the_only_video_of_a_class_is_for_training() -> None:
    clips = [Clip("onlyonlyonl", start, "rare", "train") for start in range(3)]
    splits = split_clips(clips)
    assert {split: set(part) for split, part in splits.items()} == {
        "train": set(clips),
        "validation": set(),
        "test": set(),
    }


_LISTED = [
    Clip("---g-f_I2yQ", 1, "marching", "test"),
    Clip("--0PQM4-hqg", 30, "waterfall", "train"),
    Clip("abc_1234567", 0, "thunder", "train"),
]


def _folder(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes(b"a clip")
    return folder


def test_clips_are_found_under_each_of_their_ordinary_names(tmp_path: Path) -> None:
    names = ["---g-f_I2yQ_1000_11000.mp4", "--0PQM4-hqg_000030.MP4", "abc_1234567_0_10000.Mp4"]
    files, problems = find_clips({"all": _LISTED}, _folder(tmp_path, *names, "._.mp4", "list.txt"))
    assert not problems
    assert [files[clip.name].path.name for clip in _LISTED] == names


def test_files_of_other_names_are_told_where_clips_are_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # In seconds, of another length, not from a whole second, without zeros in front.
    names = ["abc_1234567_0_10.mp4", "--0PQM4-hqg_30000_35000.mp4", "---g-f_I2yQ_1.mp4"]
    folder = _folder(tmp_path, *names, "---g-f_I2yQ_1500_11500.mp4")
    with pytest.raises(
        DataError,
        match=r"4 files, such as '---g-f_I2yQ_1\.mp4', are not named as clips are: \{id\}"
        r"_\{start:06d\}\.mp4, or \{id\}_\{start\}_\{end\}\.mp4 in milliseconds; rename them",
    ):
        find_clips({"all": _LISTED}, folder)
    with caplog.at_level("WARNING", logger="absl"):
        files, problems = find_clips({"all": _LISTED}, _folder(folder, "abc_1234567_000000.mp4"))
    assert list(files) == ["abc_1234567_000000"]
    assert next(iter(problems.values())) == "---g-f_I2yQ_000001.mp4: no such file"
    assert "4 files, such as" in caplog.text


def test_two_files_of_one_clip_are_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "--0PQM4-hqg_000030.mp4", "--0PQM4-hqg_30000_40000.mp4")
    with pytest.raises(
        DataError, match=r"hqg_000030\.mp4 and \S*40000\.mp4 are the same clip; rem"
    ):
        find_clips({"all": _LISTED}, folder)
