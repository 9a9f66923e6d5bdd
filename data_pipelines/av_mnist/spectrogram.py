"""Log-spectrograms of spoken digits as 8-bit pictures."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.signal import ShortTimeFFT, get_window

from data_pipelines.media.spectrograms import centred, relative_levels

SIZE = 112
"""Frequency bins and frames of a spectrogram."""

# A real transform of 222 samples has 112 bins, 36 Hz apart at 8 kHz. 112 frames that start 71
# samples apart cover 111 * 71 + 222 = 8103 samples, 1.01 s: all of 99.4% of the recordings.
_WINDOW_SIZE = 2 * (SIZE - 1)
_HOP = 71
_NUM_SAMPLES = (SIZE - 1) * _HOP + _WINDOW_SIZE
_TRANSFORM = ShortTimeFFT(np.asarray(get_window("hann", _WINDOW_SIZE)), _HOP, fs=8000)


def log_spectrogram(waveform: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Returns 255 (1 + max(20 log10(|X| / max |X|), -80) / 80), X the short-time Fourier transform.

    Periodic Hann window of 222 samples, hop of 71; the recording is centred in 8103 samples, padded
    with zeros or cropped at both ends. The level is relative to the recording's own maximum, so
    loudness is lost; a silent recording gives zeros.

    Args:
      waveform: (num_samples,), at 8 kHz.

    Returns:
      (112, 112): row = frequency, from 0 to 4 kHz; column = time.
    """
    # SciPy centres frame 0 on sample k_offset: half a window, so that it starts with the recording.
    frames = _TRANSFORM.stft(
        centred(waveform, _NUM_SAMPLES), p0=0, p1=SIZE, k_offset=_WINDOW_SIZE // 2
    )
    return relative_levels(np.abs(frames), decade_db=20)


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """Returns the PNG file of a grey-scale picture (H, W)."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def decode_pngs(files: Sequence[bytes]) -> NDArray[np.float32]:
    """Decodes grey-scale PNG files of equal size, each distinct one once.

    Args:
      files: N encoded pictures, N >= 1.

    Returns:
      (N, H, W, 1) in [0, 1].
    """
    distinct = {content: i for i, content in enumerate(dict.fromkeys(files))}
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in distinct])
    scaled = (pictures / 255).astype(np.float32)[..., np.newaxis]
    return scaled[[distinct[content] for content in files]]
