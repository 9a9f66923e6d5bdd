"""Makes arrays of one clip; runs in worker processes."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.media.audio import log_mel, read_wav
from data_pipelines.media.video import read_frames
from data_pipelines.ravdess.archives import Clip, Member, read_member

AUDIO_SHAPE = (64, 400, 1)
"""Mel bands and frames of the sound: 4 s."""

_SAMPLE_RATE_HZ = 16_000


def decode_clip(clip: Clip, *, num_frames: int, frame_size: int) -> dict[str, NDArray[Any]]:
    """Reads video and sound of a clip out of their archives.

    Args:
      clip: where they are.
      num_frames: frames of the video, evenly spaced.
      frame_size: their height and width in pixels.

    Returns:
      "video": (num_frames, frame_size, frame_size, 3) uint8, RGB; "audio": (64, 400, 1) uint8.

    Raises:
      MediaError: one of them is damaged.
    """
    video, audio = io.BytesIO(read_member(clip.video)), io.BytesIO(read_member(clip.audio))
    waveform = read_wav(audio, _where(clip.audio), sample_rate_hz=_SAMPLE_RATE_HZ)
    num_mels, num_audio_frames, _ = AUDIO_SHAPE
    picture = log_mel(
        waveform, sample_rate_hz=_SAMPLE_RATE_HZ, num_mels=num_mels, num_frames=num_audio_frames
    )
    return {
        "video": read_frames(video, _where(clip.video), num_frames=num_frames, size=frame_size),
        "audio": picture[..., np.newaxis],
    }


def _where(member: Member) -> str:
    """Names a file in an archive."""
    return f"{member.archive}: {member.name}"
