"""The published files, in a folder that JACFUSE_TEST_DATA names, laid out as for --manual_dir."""

import gzip
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipelines.av_mnist import DEFAULT_CONFIG, AvMnistConfig, prepare, read_split
from data_pipelines.av_mnist.energy import fit_subspace
from data_pipelines.av_mnist.mixing import draw_excerpts, mix
from data_pipelines.av_mnist.sources import PUBLISHED, RawData, manual_paths, read_sources
from data_pipelines.av_mnist.spectrogram import log_spectrogram
from tests.data_pipelines.raw_files import needs_published_files

pytestmark = needs_published_files
Columns = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def manual_dir() -> Path:
    return Path(os.environ["JACFUSE_TEST_DATA"])


@pytest.fixture(scope="module")
def raw(manual_dir: Path) -> RawData:
    paths = manual_paths(PUBLISHED, manual_dir)
    return read_sources(PUBLISHED, paths, min_train=60_000, min_test=10_000)


@pytest.fixture(scope="module")
def splits(prepared_av_mnist: tuple[Path, Path]) -> dict[str, Columns]:
    _, data_dir = prepared_av_mnist
    return {
        split: read_split(data_dir, split, num_examples=num_examples, progress=False)
        for split, num_examples in (("train", 20_000), ("validation", None), ("test", None))
    }


@pytest.mark.parametrize(
    ("name", "md5"),
    [
        ("train", "6bbc9ace898e44ae57da46a324031adb"),
        ("t10k", "2646ac647ad5339dbf082846283269ea"),
    ],
)
def test_images_have_the_well_known_digests(manual_dir: Path, name: str, md5: str) -> None:
    content = gzip.decompress((manual_dir / f"mnist/{name}-images-idx3-ubyte.gz").read_bytes())
    assert hashlib.md5(content).hexdigest() == md5


def test_raw_files_have_the_published_digests_and_counts(raw: RawData) -> None:
    assert raw.train_images.shape == (60_000, 28, 28)
    assert raw.test_images.shape == (10_000, 28, 28)
    assert raw.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert raw.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert len(raw.recordings) == 3_000
    counts = np.bincount([100 * each.digit + each.index for each in raw.recordings])
    assert set(counts[[100 * digit + index for digit in range(10) for index in range(50)]]) == {6}
    assert np.bincount([clip.fold for clip in raw.noise]).tolist() == [0, 80, 80, 80, 80, 80]


@pytest.mark.slow
def test_the_full_data_set_has_every_promised_property(
    raw: RawData, splits: dict[str, Columns]
) -> None:
    starts = {"train": 0, "validation": 55_000, "test": 0}
    counts = {"train": 20_000, "validation": 5_000, "test": 10_000}
    num_recordings = {"train": 2_400, "validation": 300, "test": 300}
    pca = fit_subspace(raw.train_images[:55_000])
    components = np.asarray(pca.components_)
    assert components.shape == (4, 784)
    waveforms = {each.name: each.waveform for each in raw.recordings}
    fold_of = {clip.clip_id: clip.fold for clip in raw.noise}
    folds = {"train": {1, 2, 3}, "validation": {4}, "test": {5}}
    snr_db = DEFAULT_CONFIG.snr_db
    assert snr_db is not None
    for split, columns in splits.items():
        rows = slice(starts[split], starts[split] + counts[split])
        source = raw.test_images if split == "test" else raw.train_images
        labels = raw.test_labels if split == "test" else raw.train_labels
        np.testing.assert_array_equal(columns["label"], labels[rows])
        np.testing.assert_array_equal(columns["index"], np.arange(rows.start, rows.stop))
        pixels = source[rows].reshape(-1, 784) / 255
        expected = pca.mean_ + (pixels - pca.mean_) @ components.T @ components
        np.testing.assert_allclose(columns["image"].reshape(-1, 784), expected, atol=1e-6)
        names = [name.removesuffix(".wav").split("_") for name in columns["recording"].tolist()]
        np.testing.assert_array_equal([int(name[0]) for name in names], columns["label"])
        used = {int(name[2]) for name in names}
        assert (
            used
            == {
                "train": set(range(10, 50)),
                "validation": set(range(5, 10)),
                "test": set(range(5)),
            }[split]
        )
        assert len(set(columns["recording"])) == num_recordings[split]
        num_pairs = {"train": 55_000, "validation": 5_000, "test": 10_000}[split]
        excerpts = draw_excerpts(raw.noise, num_pairs, split, seed=0)[: counts[split]]
        assert columns["noise"].tolist() == [excerpt.clip_id for excerpt in excerpts]
        assert {fold_of[clip_id] for clip_id in columns["noise"]} == folds[split]
        for row in range(0, counts[split], 500):
            recording = waveforms[columns["recording"][row]]
            mixed = mix(recording, excerpts[row].waveform, snr_db)
            picture = log_spectrogram(mixed)
            np.testing.assert_array_equal(255 * columns["audio"][row, :, :, 0], picture)
            if len(recording) <= len(mixed):
                begin = (len(mixed) - len(recording)) // 2
                mixed[begin : begin + len(recording)] -= recording
                ratio = np.mean(recording**2) / np.mean(mixed**2)
                np.testing.assert_allclose(10 * np.log10(ratio), snr_db, atol=1e-9)


def test_clean_is_version_1(manual_dir: Path, tmp_path: Path) -> None:
    config = AvMnistConfig(
        name="small", snr_db=None, num_train=2000, num_validation=500, num_test=500
    )
    prepare(tmp_path, manual_dir, config, progress=False)
    digest = hashlib.sha256()
    for split in ("train", "validation", "test"):
        columns = read_split(tmp_path, split, config=config, progress=False)
        for key in ("audio", "label", "index"):
            digest.update(columns[key].astype("<f4").tobytes())
        digest.update(" ".join(columns["recording"].tolist()).encode())
    # Of what the code of version 1.0.0 made with these sizes.
    assert digest.hexdigest() == "2b6d9cc469713cb2d7c9cdf6ec2a6ca952fd9ad7974e0fc8376cbea1d3f289d4"


@pytest.mark.slow
def test_the_subspace_is_that_of_an_svd_of_the_training_images(raw: RawData) -> None:
    rows = raw.train_images[:55_000].reshape(-1, 784) / 255
    # R of a QR decomposition has the singular values and right vectors of the whole matrix.
    triangle = np.linalg.qr(rows - rows.mean(0), mode="r")
    _, singular_values, vectors = np.linalg.svd(triangle)
    energy = np.cumsum(singular_values**2) / np.sum(singular_values**2)
    rank = int(np.flatnonzero(energy >= 0.25)[0]) + 1

    pca = fit_subspace(raw.train_images[:55_000])

    components = np.asarray(pca.components_)
    np.testing.assert_allclose(pca.mean_, rows.mean(0), atol=1e-12)
    projector = vectors[:rank].T @ vectors[:rank]
    np.testing.assert_allclose(components.T @ components, projector, atol=1e-9)
