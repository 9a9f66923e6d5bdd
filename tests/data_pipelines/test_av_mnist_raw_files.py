"""Every way in which a raw file can be wrong, and what is said about it."""

import gzip
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.av_mnist import prepare
from data_pipelines.av_mnist.archives import content_digest
from data_pipelines.av_mnist.recordings import read_recordings
from data_pipelines.av_mnist.sources import Source, listed
from data_pipelines.errors import DataError
from tests.data_pipelines.raw_files import (
    NOISE_TAR,
    TAR,
    UNCHECKED,
    idx_bytes,
    images_of,
    labels_of,
    noise_clips,
    ogg_bytes,
    recordings,
    rustle,
    tar_bytes,
    tiny_config,
    tone,
    wav_bytes,
    write_gzip,
    write_raw_files,
)

IMAGES = "mnist/train-images-idx3-ubyte.gz"
LABELS = "mnist/train-labels-idx1-ubyte.gz"
ONE = "fsdd-abc/recordings/3_ann_4.wav"
CLIP = "esc-abc/001 - Rustling/3-31-A.ogg"


def _replaced(path: str, content: bytes) -> Callable[[Path], None]:
    """Writes other content into a gzip file."""
    return lambda folder: write_gzip(folder / path, content)


def _archive(**changes: bytes) -> Callable[[Path], None]:
    """Replaces members of the archive, or adds some."""
    return _replaced(TAR, tar_bytes({**recordings(), **changes}))


def _noise(**changes: bytes) -> Callable[[Path], None]:
    """Replaces clips of the archive of noise, or adds some."""
    return _replaced(NOISE_TAR, tar_bytes({**noise_clips(), **changes}))


def _without_noise(part: str) -> Callable[[Path], None]:
    """Leaves out the clips whose names contain the part."""
    members = {name: content for name, content in noise_clips().items() if part not in name}
    return _replaced(NOISE_TAR, tar_bytes(members))


def _without(*parts: str) -> Callable[[Path], None]:
    """Leaves out the members whose names contain one of the parts."""
    members = {
        name: content
        for name, content in recordings().items()
        if not any(part in name for part in parts)
    }
    return _replaced(TAR, tar_bytes(members))


def _cut(path: str, share: float) -> Callable[[Path], None]:
    """Keeps only the beginning of a file."""

    def cut(folder: Path) -> None:
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[: int(share * len(content))])

    return cut


def _cut_inside(path: str, num_bytes: int) -> Callable[[Path], None]:
    """Removes the end of what is inside a sound gzip file."""

    def cut(folder: Path) -> None:
        content = gzip.decompress((folder / path).read_bytes())
        write_gzip(folder / path, content[:-num_bytes])

    return cut


def _plain(path: str, content: bytes) -> Callable[[Path], int]:
    """Writes a file that is not gzip."""
    return lambda folder: (folder / path).write_bytes(content)


def _add_archive(folder: Path) -> None:
    shutil.copy(folder / TAR, folder / "fsdd/second.tar.gz")


TRAIN_LABELS = labels_of(85)
STEREO = wav_bytes(np.zeros((50, 2)))
RUSTLE = rustle(0)
CASES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no folder": (shutil.rmtree, "", r"manual_dir=.*: no such folder; name the one"),
    "no file": (
        lambda folder: (folder / IMAGES).unlink(),
        IMAGES,
        r"found 0 files, expected one; get it from https://\S+train-images.*name no folder",
    ),
    "no archive": (
        lambda folder: (folder / TAR).unlink(),
        "fsdd/*.tar.gz",
        "found 0 files.*get it from https://github.com",
    ),
    "two archives": (_add_archive, "fsdd/*.tar.gz", "found 2 files, expected one"),
    "not gzip": (_plain(IMAGES, idx_bytes(images_of(TRAIN_LABELS))), IMAGES, "not a gzip file"),
    "empty": (_plain(IMAGES, b""), IMAGES, "magic number 0"),
    "folder instead of file": (
        lambda folder: (folder / LABELS).unlink() or (folder / LABELS).mkdir(),
        LABELS,
        r"cannot be read \(Is a directory\)",
    ),
    "truncated gzip": (_cut(IMAGES, 0.5), IMAGES, "truncated or damaged gzip file"),
    "foreign IDX": (
        _replaced(IMAGES, idx_bytes(TRAIN_LABELS)),
        IMAGES,
        "magic number 2049, expected 2051 of IDX images",
    ),
    "images for labels": (
        _replaced(LABELS, idx_bytes(images_of(TRAIN_LABELS))),
        LABELS,
        "magic number 2051, expected 2049 of IDX labels",
    ),
    "header alone": (_replaced(IMAGES, bytes([0, 0, 8, 3, 0])), IMAGES, "header is cut off"),
    "too few bytes": (
        _cut_inside(LABELS, 3),
        LABELS,
        r"the header promises 85 labels \(85 bytes\) but 82 bytes follow",
    ),
    "too many bytes": (
        _replaced(LABELS, idx_bytes(TRAIN_LABELS) + b"\0"),
        LABELS,
        r"85 labels \(85 bytes\) but 86 bytes follow",
    ),
    "other size": (
        _replaced(IMAGES, idx_bytes(np.zeros((85, 20, 30), np.uint8))),
        IMAGES,
        "images are 20 x 30, expected 28 x 28",
    ),
    "counts disagree": (
        _replaced(LABELS, idx_bytes(labels_of(84))),
        IMAGES,
        "85 images but 84 labels in .*train-labels",
    ),
    "label 10": (
        _replaced(LABELS, idx_bytes(np.append(TRAIN_LABELS[:-1], np.uint8(10)))),
        LABELS,
        r"label 10 is not a digit 0\.\.9",
    ),
    "plain text for an archive": (_plain(TAR, b"text"), TAR, r"not a \.tar\.gz archive"),
    "gzip that is no archive": (_replaced(TAR, b"text" * 999), TAR, r"not a \.tar\.gz archive"),
    "truncated archive": (_cut(TAR, 0.6), TAR, "truncated or damaged archive"),
    "archive truncated before it was packed": (
        _cut_inside(TAR, 100_000),
        TAR,
        "truncated or damaged archive",
    ),
    "member above": (
        _archive(**{"fsdd-abc/../../recordings/0_ann_0.wav": b""}),
        TAR,
        r"'fsdd-abc/\.\./\.\./recordings/0_ann_0\.wav' leaves the folder",
    ),
    "absolute member": (_archive(**{"/etc/x": b""}), TAR, "'/etc/x' leaves the folder"),
    "the same name twice": (
        _archive(**{"fsdd-abc/more/recordings/3_ann_4.wav": b""}),
        TAR,
        r"3_ann_4\.wav' is not a single",
    ),
    "not WAV": (_archive(**{ONE: b"RIFFxxxx"}), TAR, r"recordings/3_ann_4\.wav is not a WAV file"),
    "FLAC": (
        _archive(**{ONE: wav_bytes(tone(500), file_format="FLAC")}),
        TAR,
        r"3_ann_4\.wav is FLAC, expected WAV",
    ),
    "44.1 kHz": (
        _archive(**{ONE: wav_bytes(tone(500), sample_rate_hz=44100)}),
        TAR,
        r"3_ann_4\.wav has 44100 Hz, expected 8000",
    ),
    "stereo": (_archive(**{ONE: STEREO}), TAR, r"3_ann_4\.wav has 2 channels, expected 1"),
    "no samples": (_archive(**{ONE: wav_bytes(np.zeros(0))}), TAR, r"3_ann_4\.wav is empty"),
    "no noise": (
        lambda folder: (folder / NOISE_TAR).unlink(),
        "esc10/*.tar.gz",
        "found 0 files.*get it from https://github.com/karolpiczak/ESC-10",
    ),
    "truncated noise": (_cut(NOISE_TAR, 0.6), NOISE_TAR, "truncated or damaged archive"),
    "empty noise": (_plain(NOISE_TAR, b""), NOISE_TAR, r"not a \.tar\.gz archive|no .* in it"),
    "archive without noise": (
        _replaced(NOISE_TAR, tar_bytes({"esc-abc/README.md": b""})),
        NOISE_TAR,
        r"no \{fold\}-\{clip id\}-\{take\}\.ogg in it",
    ),
    "archive without recordings": (
        _replaced(TAR, tar_bytes({"fsdd-abc/README.md": b""})),
        TAR,
        r"no \{digit\}_\{speaker\}_\{index\}\.wav in it",
    ),
    "not Ogg": (_noise(**{CLIP: b"OggSxxxx"}), NOISE_TAR, r"3-31-A\.ogg is not an Ogg Vorbis file"),
    "WAV for Ogg": (
        _noise(**{CLIP: wav_bytes(RUSTLE, sample_rate_hz=44_100)}),
        NOISE_TAR,
        r"3-31-A\.ogg is WAV of PCM_16, expected Ogg Vorbis",
    ),
    "Opus": (
        _noise(**{CLIP: ogg_bytes(RUSTLE, sample_rate_hz=48_000, subtype="OPUS")}),
        NOISE_TAR,
        r"3-31-A\.ogg is OGG of OPUS, expected Ogg Vorbis",
    ),
    "cut Ogg": (
        _noise(**{CLIP: ogg_bytes(RUSTLE)[:9_000]}),
        NOISE_TAR,
        r"3-31-A\.ogg is truncated",
    ),
    "Ogg cut in its last page": (
        _noise(**{CLIP: ogg_bytes(RUSTLE)[:-1]}),
        NOISE_TAR,
        r"3-31-A\.ogg is truncated",
    ),
    "short Ogg": (
        _noise(**{CLIP: ogg_bytes(rustle(0, duration_s=0.9))}),
        "esc10/*.tar.gz",
        r"3-31-A\.ogg has \d+ samples at 8 kHz, 8103 needed",
    ),
    "noise of 22 kHz": (
        _noise(**{CLIP: ogg_bytes(RUSTLE, sample_rate_hz=22_050)}),
        NOISE_TAR,
        r"3-31-A\.ogg has 22050 Hz, expected 44100",
    ),
    "noise in stereo": (
        _noise(**{CLIP: ogg_bytes(np.column_stack([RUSTLE, RUSTLE]))}),
        NOISE_TAR,
        r"3-31-A\.ogg has 2 channels, expected 1",
    ),
    "a clip in two folds": (
        _noise(**{"esc-abc/001 - Rustling/5-31-C.ogg": ogg_bytes(RUSTLE)}),
        NOISE_TAR,
        "clip 31 is in folds 3 and 5",
    ),
    "no test noise": (_without_noise("/5-"), "esc10/*.tar.gz", "no clip for the test split"),
    "no validation noise": (
        _without_noise("/4-"),
        "esc10/*.tar.gz",
        "no clip for the validation split",
    ),
    "no test recording": (
        _without("7_ann_0.", "7_ann_4."),
        "fsdd/*.tar.gz",
        "no recording of digit 7 for the test split",
    ),
    "no validation recording": (
        _without("0_ann_5", "0_ann_9"),
        "fsdd/*.tar.gz",
        "no recording of digit 0 for the validation split",
    ),
    "no training recording": (
        _without("9_ann_1"),
        "fsdd/*.tar.gz",
        "no recording of digit 9 for the train split",
    ),
}
for name in ("3_ann.wav", "11_ann_0.wav", "3_ann_04.wav", "3_ann_4.wav.bak", "3_Ann_4.wav", "x"):
    CASES[f"name {name}"] = (
        _archive(**{f"fsdd-abc/recordings/{name}": wav_bytes(tone(500))}),
        TAR,
        rf"recordings/{re.escape(name)}' is not a single \{{digit\}}_\{{speaker\}}_\{{index\}}",
    )


for name in ("6-1-A.ogg", "1-1.ogg", "1-x-A.ogg", "1-1-A.wav"):
    CASES[f"name {name}"] = (
        _noise(**{f"esc-abc/001 - Rustling/{name}": ogg_bytes(RUSTLE)}),
        NOISE_TAR,
        rf"Rustling/{re.escape(name)}' is not a single \{{fold\}}-\{{clip id\}}-\{{take\}}",
    )


@pytest.mark.parametrize("case", CASES)
def test_a_bad_file_is_named_in_one_line_and_nothing_is_left(case: str, tmp_path: Path) -> None:
    spoil, file, message = CASES[case]
    manual_dir = write_raw_files(tmp_path / "raw")
    spoil(manual_dir)

    with pytest.raises(DataError, match=message) as caught:
        prepare(tmp_path / "data", manual_dir, tiny_config(), progress=False)

    text = str(caught.value)
    assert "\n" not in text
    assert file in text
    assert "; " in text  # what follows is the remedy
    assert not list((tmp_path / "data/av_mnist/tiny").iterdir())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_train": 66}, "train-images.*85 images, 86 needed"),
        ({"num_test": 26}, "t10k-images.*25 images, 26 needed"),
    ],
)
def test_too_few_images_for_the_config(sizes: dict[str, int], message: str, tmp_path: Path) -> None:
    manual_dir = write_raw_files(tmp_path / "raw")
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "data", manual_dir, tiny_config(**sizes), progress=False)


@pytest.mark.parametrize("name", UNCHECKED._fields)
def test_a_digest_that_differs_is_refused(name: str, tmp_path: Path) -> None:
    manual_dir = write_raw_files(tmp_path / "raw")
    source = listed(UNCHECKED)[name]
    sources = UNCHECKED._replace(**{name: source._replace(sha256="0" * 64)})
    with pytest.raises(DataError, match=r"differs? from the published"):
        prepare(tmp_path / "data", manual_dir, tiny_config(sources=sources), progress=False)


def _checked(source: Source | None, members: dict[str, bytes]) -> Source:
    """The source of an archive of these members."""
    assert source is not None
    files = [(name.split("/")[-1], content) for name, content in members.items()]
    return source._replace(sha256=content_digest(files))


def test_archives_packed_anew_pass_and_a_changed_byte_does_not(tmp_path: Path) -> None:
    manual_dir = write_raw_files(tmp_path / "raw")
    contents = {TAR: recordings(), NOISE_TAR: noise_clips()}
    sources = UNCHECKED._replace(
        recordings=_checked(UNCHECKED.recordings, contents[TAR]),
        noise=_checked(UNCHECKED.noise, contents[NOISE_TAR]),
    )
    config = tiny_config(sources=sources)
    for path, members in contents.items():
        content = tar_bytes(dict(reversed(members.items())) | {"top/new.md": b"more"})
        (manual_dir / path).write_bytes(gzip.compress(content, compresslevel=9, mtime=7))
    prepare(tmp_path / "packed anew", manual_dir, config, progress=False)

    for path, members in contents.items():
        name = sorted(members)[3]
        changed = bytearray(members[name])
        changed[-9] ^= 1
        sound = (manual_dir / path).read_bytes()
        write_gzip(manual_dir / path, tar_bytes({**members, name: bytes(changed)}))
        with pytest.raises(DataError, match=r"differ from the published .*; fetch the") as caught:
            prepare(tmp_path / "changed", manual_dir, config, progress=False)
        assert path in str(caught.value)
        (manual_dir / path).write_bytes(sound)


def test_digest_of_recordings_depends_on_names_and_bytes_but_not_on_packing() -> None:
    files = [("a.wav", b"12"), ("b.wav", b"3")]
    digest = content_digest(files)
    assert digest == content_digest(reversed(files))
    for other in ([("a.wav", b"1"), ("b.wav", b"23")], [("a.wav", b"12"), ("c.wav", b"3")]):
        assert content_digest(other) != digest


def test_recordings_are_sorted_and_other_files_ignored(tmp_path: Path) -> None:
    (tmp_path / "fsdd").mkdir()
    members = dict(reversed(recordings().items())) | {"fsdd-abc/x/3_ann_4.wav": b"", "x.wav": b""}
    write_gzip(tmp_path / TAR, tar_bytes(members))

    found = read_recordings(tmp_path / TAR, None)

    assert [each.name for each in found] == sorted(name.split("/")[-1] for name in recordings())
    for each in found:
        assert each.name == f"{each.digit}_ann_{each.index}.wav"
        frequency_hz = 400 + 300 * each.digit + each.index
        np.testing.assert_allclose(each.waveform, tone(frequency_hz), atol=2**-15)


def test_a_folder_that_is_no_prepared_data_set_is_refused(tmp_path: Path) -> None:
    manual_dir = write_raw_files(tmp_path / "raw")
    (tmp_path / "av_mnist/tiny/2.1.0").mkdir(parents=True)
    with pytest.raises(DataError, match=r"tiny/2\.1\.0: not a prepared data set; remove the"):
        prepare(tmp_path, manual_dir, tiny_config(), progress=False)


def test_a_data_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    data_dir = tmp_path / "file"
    data_dir.write_text("")
    with pytest.raises(DataError, match=r"data_dir=.*file: .*; name a folder"):
        prepare(data_dir, None, tiny_config(), progress=False)
