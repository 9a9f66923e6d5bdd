"""A few small square pictures out of a video."""

from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipelines.errors import MediaError
from data_pipelines.media.container import count_packets, first_stream, opened


def read_frames(
    path: Path | BinaryIO, name: str, *, num_frames: int, size: int
) -> NDArray[np.uint8]:
    """Reads evenly spaced frames, cropped to the central square and resized.

    Of N frames, those at floor((t + 1/2) N / T) are taken, t = 0 .. T - 1: the centres of T equal
    parts. Where N < T some are taken more than once. Every frame is decoded, so that damage
    anywhere is found; no more than one is held besides the result.

    Args:
      path: an MP4 file of any codec that FFmpeg reads; a file object must be seekable.
      name: what messages call it.
      num_frames: T, at least 1.
      size: side of the pictures in pixels, at least 1. They are shrunk with antialiasing
        (Pillow's bilinear filter, as wide as a pixel of the result).

    Returns:
      (T, size, size, 3) RGB.

    Raises:
      MediaError: empty, not MP4, no video in it, truncated, damaged, or of no length.
    """
    count = count_packets(path, name, "video")
    wanted = (2 * np.arange(num_frames) + 1) * count // (2 * num_frames)
    pictures = np.empty((num_frames, size, size, 3), np.uint8)
    num_decoded = 0
    with opened(path, name) as container:
        first_stream(container, name, "video")
        for frame in container.decode(video=0):
            if frame.is_corrupt:
                raise MediaError(f"{name}: frame {num_decoded} of its video is damaged")
            places = wanted == num_decoded
            if places.any():
                pictures[places] = _picture(frame, size)
            num_decoded += 1
    if num_decoded < count:
        raise MediaError(f"{name}: damaged: {num_decoded} of {count} frames could be decoded")
    return pictures


def _picture(frame: av.VideoFrame, size: int) -> NDArray[np.uint8]:
    """Returns the central square of a frame, (size, size, 3)."""
    side = min(frame.width, frame.height)
    left, top = (frame.width - side) // 2, (frame.height - side) // 2
    pixels = frame.to_ndarray(format="rgb24")[top : top + side, left : left + side]
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))
