"""Real data that JACFUSE_TEST_DATA holds, converted into folders for --dataset=arrays."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from data_pipelines.media.audio import log_mel, read_wav
from tests.real_data import needs_real_data, real_data

needs_real_arrays = needs_real_data("hapt/, leaves/, mfeat/ and ravdess/")
SAMPLE_RATE_HZ = 16_000
RECORDINGS = "ravdess/ravdess_speech_16k_flac.zip"
LOGITS = "ravdess/ravdess_logits.npz"


def read_npz(name: str) -> dict[str, NDArray[Any]]:
    """All arrays of an archive."""
    with np.load(real_data(name)) as archive:
        return {key: archive[key] for key in archive.files}


def write_hapt(folder: Path) -> Path:
    """Accelerometer and gyroscope of 30 people, (128, 3) each, grouped by person."""
    found = read_npz("hapt/hapt_windows.npz")
    return _save(
        folder,
        accelerometer=found["accelerometer"],
        gyroscope=found["gyroscope"],
        labels=found["labels"],
        groups=found["subject"],
    )


def write_leaves(folder: Path) -> Path:
    """Three views of leaves of 100 species, 64 numbers each, in five folds of all species."""
    found = read_npz("leaves/leaves100.npz")
    views = {view: unit_range(found[view]) for view in ("view1", "view2", "view3")}
    return _save(folder, **views, labels=found["labels"], fold=np.arange(1600) % 16 % 5)


def write_mfeat(folder: Path, views: tuple[str, ...]) -> Path:
    """Some of six views of 2,000 handwritten digits, 6 to 240 numbers each."""
    found = read_npz("mfeat/mfeat.npz")
    return _save(folder, **{v: unit_range(found[v]) for v in views}, labels=found["labels"])


def write_ravdess(folder: Path, rows: slice = slice(None)) -> Path:
    """Voices and faces of acted emotions, folds by actor.

    Spectrograms are averaged over 2 bands and 8 frames, (32, 50), so that a CPU trains on them in
    minutes; of a face there are the means of 35 action units.
    """
    found = read_npz(LOGITS)
    names = ["03" + name[2:] for name in found["ids"][rows].tolist()]
    return _save(
        folder,
        face=unit_range(found["face_au_mean"])[rows],
        voice=np.stack([_coarse(spectrogram(wav)) for wav in recordings(names)]),
        labels=found["labels"][rows],
        groups=found["actor"][rows],
        fold=found["fold"][rows],
    )


def recordings(names: list[str]) -> list[bytes]:
    """Recordings of RAVDESS as the WAV files that their published names belong to."""
    with zipfile.ZipFile(real_data(RECORDINGS)) as archive:
        return [_wav(archive.read(f"Actor_{name[-2:]}/{name}.flac")) for name in names]


def spectrogram(wav: bytes) -> NDArray[np.float32]:
    """What the builder of RAVDESS makes of a WAV file, (64, 400, 1) in [0, 1]."""
    waveform = read_wav(io.BytesIO(wav), "recording", sample_rate_hz=SAMPLE_RATE_HZ)
    levels = log_mel(waveform, sample_rate_hz=SAMPLE_RATE_HZ, num_mels=64, num_frames=400)
    return (levels[..., np.newaxis] / 255).astype(np.float32)


def unit_range(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scales every feature to [0, 1]: a budget is the same share of the range of each."""
    low, high = rows.min(axis=0), rows.max(axis=0)
    return ((rows - low) / np.where(high > low, high - low, 1)).astype(np.float32)


def _coarse(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means over 2 bands and 8 frames, (32, 50, 1)."""
    return picture.reshape(32, 2, 50, 8, 1).mean(axis=(1, 3))


def _wav(flac: bytes) -> bytes:
    """The same samples in another format."""
    samples, rate_hz = soundfile.read(io.BytesIO(flac), dtype="int16")
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, "PCM_16", format="WAV")
    return file.getvalue()


def _save(folder: Path, **arrays: NDArray[Any]) -> Path:
    """Writes a file for each array; returns the folder."""
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder
