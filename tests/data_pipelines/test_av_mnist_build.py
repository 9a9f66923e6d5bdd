import errno
import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tensorflow_datasets.core.download import downloader

from data_pipelines.av_mnist import AvMnist, AvMnistConfig, prepare, read_split
from data_pipelines.av_mnist.recordings import read_recordings
from data_pipelines.av_mnist.sources import PUBLISHED, Sources, listed
from data_pipelines.av_mnist.spectrogram import log_spectrogram
from data_pipelines.errors import DataError
from tests.data_pipelines.local_server import served
from tests.data_pipelines.processes import exit_code, prepare_av_mnist, start
from tests.data_pipelines.raw_files import (
    NOISE_TAR,
    TAR,
    idx_bytes,
    images_of,
    labels_of,
    tiny_config,
    tone,
    write_raw_files,
)

Splits = dict[str, dict[str, NDArray[Any]]]


@pytest.fixture(scope="module")
def manual_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw_files(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def built(manual_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return _build(tmp_path_factory.mktemp("data"), manual_dir)


def _read(data_dir: Path, config: AvMnistConfig) -> Splits:
    return {
        split: read_split(data_dir, split, config=config, progress=False)
        for split in ("train", "validation", "test")
    }


def _build(data_dir: Path, manual_dir: Path | None, config: AvMnistConfig | None = None) -> Splits:
    config = config or tiny_config()
    prepare(data_dir, manual_dir, config, progress=False)
    return _read(data_dir, config)


def _assert_same(actual: Splits, expected: Splits) -> None:
    for split, columns in expected.items():
        for key, column in columns.items():
            np.testing.assert_array_equal(actual[split][key], column)


def test_splits_take_the_images_that_they_should(built: Splits) -> None:
    train, test = labels_of(85), labels_of(25)
    expected = {"train": range(60), "validation": range(65, 85), "test": range(20)}
    for split, indices in expected.items():
        columns = built[split]
        np.testing.assert_array_equal(columns["index"], indices)
        labels = (test if split == "test" else train)[indices]
        np.testing.assert_array_equal(columns["label"], labels)
        shapes = {key: column.shape[1:] for key, column in columns.items()}
        assert shapes.pop("image") == shapes.pop("raw_image") == (28, 28, 1)
        assert shapes.pop("audio") == (112, 112, 1)
        assert set(shapes.values()) == {()}
        assert columns["image"].dtype == columns["audio"].dtype == np.float32
        assert columns["label"].dtype == np.int32


def test_recordings_say_the_label_and_are_disjoint(built: Splits) -> None:
    indices = {"train": {10, 11}, "validation": {5, 9}, "test": {0, 4}}
    for split, columns in built.items():
        names = [name.removesuffix(".wav").split("_") for name in columns["recording"]]
        assert [int(name[0]) for name in names] == columns["label"].tolist()
        assert {int(name[2]) for name in names} == indices[split]
        for digit in range(10):
            used = columns["recording"][columns["label"] == digit].tolist()
            counts = [used.count(f"{digit}_ann_{index}.wav") for index in indices[split]]
            assert max(counts) - min(counts) <= 1


def test_audio_is_that_of_the_named_recording(built: Splits) -> None:
    for columns in built.values():
        # Every digit is a tone of 400 + 300 digit + index Hz, and bins are 8000 / 222 Hz apart.
        peak = columns["audio"][:, :, 56, 0].argmax(axis=1)
        name_indices = [int(name[:-4].split("_")[2]) for name in columns["recording"]]
        frequency_hz = 400 + 300 * columns["label"] + name_indices
        assert np.abs(peak - frequency_hz * 222 / 8000).max() <= 0.55


def test_noise_is_of_the_splits_folds_and_makes_every_row_its_own(built: Splits) -> None:
    folds = {"train": {1, 2, 3}, "validation": {4}, "test": {5}}
    for split, columns in built.items():
        assert {int(clip_id) // 10 for clip_id in columns["noise"]} == folds[split]
        assert {int(clip_id) % 10 for clip_id in columns["noise"]} == {1, 2}
        pictures = columns["audio"].reshape(len(columns["audio"]), -1)
        assert len(np.unique(pictures, axis=0)) == len(pictures)


def test_clean_needs_no_noise_and_has_the_recordings_as_they_are(tmp_path: Path) -> None:
    manual_dir = write_raw_files(tmp_path / "raw")
    (manual_dir / NOISE_TAR).unlink()

    splits = _build(tmp_path, manual_dir, tiny_config(snr_db=None))

    waveforms = {each.name: each.waveform for each in read_recordings(manual_dir / TAR, None)}
    for columns in splits.values():
        assert set(columns["noise"]) == {""}
        for picture, name in zip(columns["audio"], columns["recording"], strict=True):
            expected = log_spectrogram(waveforms[str(name)])
            np.testing.assert_array_equal(255 * picture[..., 0], expected)


def test_configs_differ_in_the_noise_alone(built: Splits, manual_dir: Path, tmp_path: Path) -> None:
    louder = _build(tmp_path, manual_dir, tiny_config(snr_db=-20.0))
    for split, columns in built.items():
        for key in ("image", "label", "index", "recording", "noise"):
            np.testing.assert_array_equal(louder[split][key], columns[key])
        # Where the recording was louder than noise, white noise fills the picture.
        assert louder[split]["audio"].mean() > columns["audio"].mean() + 0.05


def test_images_are_projected_onto_components_of_the_training_images(built: Splits) -> None:
    train, test = (images_of(labels_of(n)).reshape(n, 784) / 255 for n in (85, 25))
    mean = train[:60].mean(axis=0)
    _, singular_values, components = np.linalg.svd(train[:60] - mean, full_matrices=False)
    energy = np.cumsum(singular_values**2) / np.sum(singular_values**2)
    kept = components[: np.flatnonzero(energy >= 0.25)[0] + 1]
    sources = {"train": train[:60], "validation": train[65:], "test": test[:20]}
    for split, rows in sources.items():
        expected = mean + (rows - mean) @ kept.T @ kept
        np.testing.assert_allclose(built[split]["image"].reshape(-1, 784), expected, atol=1e-6)


def test_the_same_seed_gives_the_same_pairs_and_another_seed_others(
    built: Splits, manual_dir: Path, tmp_path: Path
) -> None:
    _assert_same(_build(tmp_path / "again", manual_dir), built)
    other = _build(tmp_path / "other", manual_dir, tiny_config(seed=1))
    for split, columns in built.items():
        np.testing.assert_array_equal(other[split]["label"], columns["label"])
        np.testing.assert_array_equal(other[split]["image"], columns["image"])
        assert (other[split]["recording"] != columns["recording"]).any()
        assert (other[split]["noise"] != columns["noise"]).any()


def test_a_prepared_data_set_needs_no_raw_files(manual_dir: Path, tmp_path: Path) -> None:
    first = _build(tmp_path, manual_dir)
    _assert_same(_build(tmp_path, tmp_path / "nothing here"), first)


@pytest.mark.parametrize("moment", ["train", "test", "written"])
def test_a_killed_preparation_is_begun_again_and_ends_the_same(
    moment: str, built: Splits, manual_dir: Path, tmp_path: Path
) -> None:
    process = start(prepare_av_mnist, tmp_path, manual_dir, moment)
    assert exit_code(process) == -signal.SIGKILL
    folder = tmp_path / "av_mnist/tiny"
    assert [path.name[:11] for path in folder.iterdir()] == ["incomplete."]

    _assert_same(_build(tmp_path, manual_dir), built)

    assert [path.name for path in folder.iterdir()] == ["2.1.0"]


def test_two_processes_may_prepare_at_once(built: Splits, manual_dir: Path, tmp_path: Path) -> None:
    processes = [start(prepare_av_mnist, tmp_path, manual_dir, "never") for _ in range(2)]
    assert [exit_code(process) for process in processes] == [0, 0]
    _assert_same(_read(tmp_path, tiny_config()), built)


def _sources(home: str, labels_sha256: str | None = None) -> Sources:
    """The raw files' places on the local server."""
    names = {"fsdd/*.tar.gz": TAR, "esc10/*.tar.gz": NOISE_TAR}
    places = {
        name: source._replace(
            url=f"{home}/{names.get(source.pattern, source.pattern)}", sha256=None
        )
        for name, source in listed(PUBLISHED).items()
    }
    sources = Sources(**places)
    return sources._replace(train_labels=sources.train_labels._replace(sha256=labels_sha256))


def test_downloaded_files_give_the_same_data_set(
    built: Splits, manual_dir: Path, tmp_path: Path
) -> None:
    sha256 = hashlib.sha256(idx_bytes(labels_of(85))).hexdigest()
    with served(manual_dir) as (home, _):
        _assert_same(_build(tmp_path, None, tiny_config(sources=_sources(home, sha256))), built)


def test_a_wrong_download_is_refused_and_fetched_anew(
    built: Splits, manual_dir: Path, tmp_path: Path
) -> None:
    raw = write_raw_files(tmp_path / "raw")
    labels = raw / "mnist/train-labels-idx1-ubyte.gz"
    sound = labels.read_bytes()
    sha256 = hashlib.sha256(idx_bytes(labels_of(85))).hexdigest()
    with served(raw) as (home, _):
        config = tiny_config(sources=_sources(home, sha256))
        labels.write_bytes((manual_dir / "mnist/t10k-labels-idx1-ubyte.gz").read_bytes())
        with pytest.raises(DataError, match=r"http\S+train-labels\S+: .*differs .*run again"):
            prepare(tmp_path, None, config, progress=False)
        labels.write_bytes(sound[:-20])
        with pytest.raises(DataError, match=r"http\S+train-labels\S+: truncated.*run again"):
            prepare(tmp_path, None, config, progress=False)
        labels.write_bytes(sound)
        _assert_same(_build(tmp_path, None, config), built)


def test_a_failed_download_says_so_and_the_next_run_succeeds(
    built: Splits, manual_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloader, "MAX_RETRIES", 1)
    with served(manual_dir) as (home, _):
        sources = _sources(home)
        missing = sources._replace(
            recordings=sources.recordings._replace(url=f"{home}/gone.tar.gz")
        )
        with pytest.raises(DataError, match=r"download failed \(.*gone\.tar\.gz.*404.*network"):
            prepare(tmp_path, None, tiny_config(sources=missing), progress=False)
        _assert_same(_build(tmp_path, None, tiny_config(sources=sources)), built)
    assert not list((tmp_path / "downloads").rglob("*.tmp.*"))
    with pytest.raises(
        DataError, match=r"^manual_dir is not given, and the download failed \(.*refused.*; check"
    ) as caught:
        prepare(tmp_path / "offline", None, tiny_config(sources=sources), progress=False)
    assert "\n" not in str(caught.value)


def test_waveform_of_the_tests_is_what_the_spectrogram_test_expects() -> None:
    assert np.abs(np.fft.rfft(tone(1000, 8000))).argmax() == 1000


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [_truncate, Path.unlink])
def test_damaged_prepared_data_is_named(damage: Any, manual_dir: Path, tmp_path: Path) -> None:
    prepare(tmp_path, manual_dir, tiny_config(), progress=False)
    (file,) = tmp_path.rglob("*train.array_record*")
    damage(file)
    with pytest.raises(DataError, match=rf"{tmp_path}\S+ is damaged \(split train, \w+\)"):
        read_split(tmp_path, "train", config=tiny_config(), progress=False)
    test = read_split(tmp_path, "test", config=tiny_config(), progress=False)
    assert len(test["label"]) == 20


def test_what_the_system_refuses_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases: list[tuple[Exception, type[Exception], str]] = [
        (MemoryError("no room"), MemoryError, "no room"),
        (
            OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
            DataError,
            rf"{tmp_path}\S+ cannot be read \(split train, Too many open files\)",
        ),
    ]
    for error, raised, message in cases:

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(AvMnist, "as_data_source", fail)
        with pytest.raises(raised, match=message):
            read_split(tmp_path, "train", config=tiny_config(), progress=False)
