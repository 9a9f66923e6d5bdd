"""Which recording goes with which image."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipelines.av_mnist.recordings import Recording
from data_pipelines.errors import DataError

SPLITS = ("train", "validation", "test")
_NUM_HELD_OUT = 5


def split_of(index: int) -> str:
    """Returns the split that a recording belongs to.

    Args:
      index: the recording's running number among those of its digit and speaker.

    Returns:
      "test" for 0-4, the official test recordings; "validation" for 5-9; else "train".
    """
    if index < _NUM_HELD_OUT:
        return "test"
    return "validation" if index < 2 * _NUM_HELD_OUT else "train"


def pair_recordings(
    labels: NDArray[np.uint8], recordings: Sequence[Recording], split: str, seed: int
) -> list[Recording]:
    """Draws for every image a recording of its digit from the recordings of its split.

    Every recording of a digit is used equally often, give or take one, in random order.

    Args:
      labels: (N,) digits of the images.
      recordings: all recordings, in a fixed order.
      split: "train", "validation" or "test".
      seed: of the draw; each split and digit has a random stream of its own.

    Returns:
      N recordings.

    Raises:
      DataError: a digit has no recording in the split.
    """
    pairs = np.zeros(len(labels), np.intp)
    for digit in range(10):
        candidates = [
            position
            for position, recording in enumerate(recordings)
            if recording.digit == digit and split_of(recording.index) == split
        ]
        if not candidates:
            raise DataError(
                f"fsdd/*.tar.gz: no recording of digit {digit} for the {split} split (indices 0-4"
                " are test, 5-9 validation, the rest train); use the complete archive"
            )
        rows = np.flatnonzero(labels == digit)
        rng = np.random.default_rng((seed, SPLITS.index(split), digit))
        turns = np.resize(rng.permutation(candidates), len(rows))
        pairs[rows] = rng.permutation(turns)
    return [recordings[int(position)] for position in pairs]
