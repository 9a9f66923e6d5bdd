"""What spectrograms of all data sets share: a recording in the centre, and levels in decibels."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Real = TypeVar("Real", np.float32, np.float64)

_DYNAMIC_RANGE_DB = 80.0


def centred(waveform: NDArray[Real], num_samples: int) -> NDArray[Real]:
    """Pads with zeros or crops both ends alike.

    Args:
      waveform: (N,).
      num_samples: M.

    Returns:
      (M,), of the same dtype.
    """
    surplus = len(waveform) - num_samples
    if surplus >= 0:
        return waveform[surplus // 2 : surplus // 2 + num_samples]
    return np.pad(waveform, (-surplus // 2, -surplus - -surplus // 2))


def relative_levels(values: NDArray[Real], *, decade_db: int) -> NDArray[np.uint8]:
    """Returns 255 (1 + max(d log10(v / max v), -80) / 80), rounded; zeros where max v = 0.

    Args:
      values: v, of any shape, not negative, at least one, finite.
      decade_db: d, the decibels of a factor of ten: 10 for powers, 20 for magnitudes.

    Returns:
      The shape of the values.
    """
    peak = values.max()
    if peak == 0:
        return np.zeros(values.shape, np.uint8)
    floor = 10 ** (-_DYNAMIC_RANGE_DB / decade_db)
    level_db = decade_db * np.log10(np.maximum(values / peak, floor))
    return np.rint(255 * (1 + level_db / _DYNAMIC_RANGE_DB)).astype(np.uint8)
