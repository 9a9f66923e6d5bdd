"""A tiny data set of the same layout as VGGSound: real clips, made up here."""

import base64
import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.vggsound import VggSoundConfig
from data_pipelines.vggsound.clips import Clip
from tests.data_pipelines.media_files import tone, write_mp4

LABELS = ("dog barking", "female speech, woman speaking", "raining", "thunder")
"""Classes, each with a colour and a pitch of its own; the CSV file must quote one of them."""

_COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (180, 180, 40))


def tiny_config(**changes: Any) -> VggSoundConfig:
    """Two frames of 8 x 8 pixels and a spectrogram of 8 x 20."""
    sizes: dict[str, Any] = {"num_frames": 2, "frame_size": 8, "num_mels": 8, "num_steps": 20}
    return VggSoundConfig(name="tiny", **{**sizes, **changes})


def write_vggsound(
    folder: Path, *, num_train: int = 6, num_test: int = 3, num_classes: int = 4
) -> list[Clip]:
    """Writes vggsound.csv and clips/; returns the clips, in the order of the CSV file.

    Args:
      folder: made if missing.
      num_train: training videos of a class, of which the first has two clips.
      num_test: test videos of a class.
      num_classes: at most 4.
    """
    clips: list[Clip] = []
    for label in LABELS[:num_classes]:
        for i in range(num_train + num_test):
            digest = hashlib.sha256(f"{label} {i}".encode()).digest()
            youtube_id = base64.urlsafe_b64encode(digest).decode()[:11]
            split = "train" if i < num_train else "test"
            starts = (0, 30) if i == 0 else (i,)
            clips += [Clip(youtube_id, start, label, split) for start in starts]
    clips.sort()
    (folder / "clips").mkdir(parents=True)
    write_list(folder, clips)
    for i, clip in enumerate(clips):
        rng = np.random.default_rng(i)
        write_clip(clip_path(folder, clip), LABELS.index(clip.label), rng)
    return clips


def write_list(folder: Path, clips: list[Clip]) -> None:
    """Writes vggsound.csv as it is published: no header, labels with commas in quotes."""
    with (folder / "vggsound.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(clips)


def clip_path(folder: Path, clip: Clip) -> Path:
    """Where a clip lies."""
    return folder / "clips" / f"{clip.youtube_id}_{clip.start:06d}.mp4"


def write_clip(path: Path, label: int, rng: np.random.Generator) -> None:
    """Writes half a second of a noisy colour and a noisy tone, both those of the label."""
    pixels = np.array(_COLOURS[label]) + rng.integers(-40, 41, (5, 32, 48, 3))
    waveform = tone(400 * (label + 1), 8000, 16_000)
    waveform += rng.normal(scale=0.05, size=waveform.shape).astype(np.float32)
    frames = np.clip(pixels, 0, 255).astype(np.uint8)
    write_mp4(path, frames=frames, waveform=waveform, frame_rate=10)
