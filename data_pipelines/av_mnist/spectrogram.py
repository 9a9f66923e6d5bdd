"""Log-spectrograms of spoken digits as 8-bit pictures."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.signal import get_window

from data_pipelines.media.spectrograms import centred, relative_levels

SIZE = 112
"""Frequency bins and frames of a spectrogram."""

# A real transform of 222 samples has 112 bins, 36 Hz apart at 8 kHz. 112 frames that start 71
# samples apart cover 111 * 71 + 222 = 8103 samples, 1.01 s: all of 99.4% of the recordings.
_WINDOW_SIZE = 2 * (SIZE - 1)
_HOP = 71
NUM_SAMPLES = (SIZE - 1) * _HOP + _WINDOW_SIZE
"""What a spectrogram shows of a recording."""
_WINDOW = np.asarray(get_window("hann", _WINDOW_SIZE))
_VALUES = (np.arange(256) / 255).astype(np.float32)


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
    frames = sliding_window_view(centred(waveform, NUM_SAMPLES), _WINDOW_SIZE)[::_HOP]
    # All frames at once: scipy.signal.ShortTimeFFT takes one after the other, ten times as long.
    levels = np.abs(np.fft.rfft(frames * _WINDOW, axis=1))
    return relative_levels(levels.T, decade_db=20)


def pixel_values(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns pixels / 255.

    Args:
      pictures: of any shape.

    Returns:
      The same shape, in [0, 1].
    """
    return _VALUES[pictures]
