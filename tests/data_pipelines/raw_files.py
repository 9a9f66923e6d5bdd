"""Tiny raw files of the same layout as the published ones, made up here."""

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from data_pipelines.av_mnist import AvMnistConfig
from data_pipelines.av_mnist.sources import PUBLISHED, Sources, listed
from tests.real_data import needs_real_data

needs_published_files = needs_real_data("mnist/*.gz, fsdd/*.tar.gz and esc10/*.tar.gz")
UNCHECKED = Sources(
    **{name: source._replace(sha256=None) for name, source in listed(PUBLISHED).items()}
)
TINY: dict[str, Any] = {
    "snr_db": 10.0,
    "num_train": 60,
    "num_validation": 20,
    "num_test": 20,
    "sources": UNCHECKED,
}
TAR = "fsdd/spoken.tar.gz"
NOISE_TAR = "esc10/sounds.tar.gz"


def tiny_config(**changes: Any) -> AvMnistConfig:
    """60 / 20 / 20 pairs, with noise 10 dB below, from files without digests."""
    return AvMnistConfig(name="tiny", **{**TINY, **changes})


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """An IDX file of unsigned bytes."""
    header = [0x0800 + array.ndim, *array.shape]
    return b"".join(value.to_bytes(4, "big") for value in header) + array.tobytes()


def wav_bytes(
    waveform: NDArray[np.float64], *, sample_rate_hz: int = 8000, file_format: str = "WAV"
) -> bytes:
    """An audio file of (num_samples,) or (num_samples, channels)."""
    file = io.BytesIO()
    soundfile.write(file, waveform, sample_rate_hz, "PCM_16", format=file_format)
    return file.getvalue()


def tone(frequency_hz: float, num_samples: int = 3000) -> NDArray[np.float64]:
    """A sine of half the full level at 8 kHz."""
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(num_samples) / 8000)


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
    """A tar archive, uncompressed."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def recordings() -> dict[str, bytes]:
    """One speaker's recordings of ten digits for every split; each digit has its own pitch."""
    return {
        f"fsdd-abc/recordings/{digit}_ann_{index}.wav": wav_bytes(tone(400 + 300 * digit + index))
        for index in (0, 4, 5, 9, 10, 11)
        for digit in range(10)
    }


def ogg_bytes(
    waveform: NDArray[np.float64], *, sample_rate_hz: int = 44_100, subtype: str = "VORBIS"
) -> bytes:
    """An Ogg file of (num_samples,) or (num_samples, channels)."""
    file = io.BytesIO()
    soundfile.write(file, waveform, sample_rate_hz, subtype, format="OGG")
    return file.getvalue()


def rustle(seed: int, *, duration_s: float = 1.3) -> NDArray[np.float64]:
    """White noise at 44.1 kHz."""
    size = round(duration_s * 44_100)
    return 0.1 * np.random.default_rng(seed).standard_normal(size)


def noise_clips() -> dict[str, bytes]:
    """Two clips for every fold, of which the first has two takes."""
    return {
        f"esc-abc/{kind:03} - Rustling/{fold}-{10 * fold + kind}-{take}.ogg": ogg_bytes(
            rustle(100 * fold + 10 * kind + index)
        )
        for fold in (1, 2, 3, 4, 5)
        for kind, takes in ((1, "AB"), (2, "A"))
        for index, take in enumerate(takes)
    }


def labels_of(num_labels: int) -> NDArray[np.uint8]:
    """All ten digits over and over, in a fixed random order."""
    labels = np.arange(num_labels) % 10
    return np.random.default_rng(num_labels).permutation(labels).astype(np.uint8)


def images_of(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Noisy pictures with a brighter row for the digit."""
    images = np.random.default_rng(1).integers(0, 100, (len(labels), 28, 28), np.uint8)
    images[np.arange(len(labels)), 2 * labels] += 100
    return images


def write_raw_files(folder: Path) -> Path:
    """Writes 85 training and 25 test images, 60 recordings and 15 noises; returns the folder."""
    for name in ("mnist", "fsdd", "esc10"):
        (folder / name).mkdir(parents=True)
    for prefix, count in (("train", 85), ("t10k", 25)):
        labels = labels_of(count)
        write_gzip(folder / f"mnist/{prefix}-images-idx3-ubyte.gz", idx_bytes(images_of(labels)))
        write_gzip(folder / f"mnist/{prefix}-labels-idx1-ubyte.gz", idx_bytes(labels))
    write_gzip(folder / TAR, tar_bytes({"fsdd-abc/README.md": b"spoken", **recordings()}))
    write_gzip(folder / NOISE_TAR, tar_bytes({"esc-abc/README.md": b"sounds", **noise_clips()}))
    return folder


def write_gzip(path: Path, content: bytes) -> None:
    """Writes a gzip file."""
    path.write_bytes(gzip.compress(content, compresslevel=1))
