"""What is kept of a clip: a few small frames, and the log-mel spectrogram of its sound."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.media.audio import log_mel, read_audio_track
from data_pipelines.media.video import read_frames

_SAMPLE_RATE_HZ = 16_000


def decode_clip(
    path: Path, *, num_frames: int, frame_size: int, num_mels: int, num_steps: int
) -> dict[str, NDArray[Any]]:
    """Decodes one clip.

    Args:
      path: the MP4 file.
      num_frames: T, evenly spaced over the clip.
      frame_size: S, side of the central square, to which frames are cropped and resized.
      num_mels: M, bands of the spectrogram.
      num_steps: N, columns of the spectrogram, 10 ms apart and centred in the clip.

    Returns:
      "video": (T, S, S, 3) uint8; "audio": (M, N, 1) uint8.

    Raises:
      MediaError: the file is missing, damaged, or lacks one of the two.
    """
    waveform = read_audio_track(path, path.name, sample_rate_hz=_SAMPLE_RATE_HZ)
    spectrogram = log_mel(
        waveform, sample_rate_hz=_SAMPLE_RATE_HZ, num_mels=num_mels, num_frames=num_steps
    )
    return {
        "video": read_frames(path, path.name, num_frames=num_frames, size=frame_size),
        "audio": spectrogram[..., np.newaxis],
    }
