"""Adds noise to recordings at a fixed signal-to-noise ratio."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipelines.av_mnist.noise import NoiseClip
from data_pipelines.av_mnist.pairing import SPLITS
from data_pipelines.av_mnist.spectrogram import NUM_SAMPLES
from data_pipelines.errors import DataError
from data_pipelines.media.spectrograms import centred

_SPLIT_OF_FOLD = {1: "train", 2: "train", 3: "train", 4: "validation", 5: "test"}
_STREAM = 10  # of random numbers; `pairing` has those of the digits
# Clips are filled up with silence, and codecs leave traces in it, which no factor makes a noise of.
_SILENCE = 1e-4


class Excerpt(NamedTuple):
    """The noise of one pair.

    Attributes:
      clip_id: of the clip that it is cut out of.
      waveform: (8103,), at 8 kHz: as many samples as a spectrogram shows.
    """

    clip_id: str
    waveform: NDArray[np.float64]


def draw_excerpts(
    clips: Sequence[NoiseClip], num_pairs: int, split: str, seed: int
) -> list[Excerpt]:
    """Draws for every pair a clip of its split's folds, and where in the clip its noise begins.

    Folds 1 to 3 are train, 4 validation, 5 test. Every clip is used equally often, give or take
    one, in random order. Where an excerpt begins is uniform over all places but those where it
    would be silent, that is have less than 1/10,000 of the clip's mean power.

    Args:
      clips: all clips, in a fixed order.
      num_pairs: N.
      split: "train", "validation" or "test".
      seed: of the draw; each split has a random stream of its own.

    Returns:
      N excerpts, views of the clips.

    Raises:
      DataError: the split has no clip; a clip is shorter than an excerpt, or silent.
    """
    candidates = [clip for clip in clips if _SPLIT_OF_FOLD[clip.fold] == split]
    if not candidates:
        raise DataError(
            f"esc10/*.tar.gz: no clip for the {split} split (folds 1-3 are train, 4 validation,"
            " 5 test); use the complete archive"
        )
    begins = [_begins(clip) for clip in candidates]
    rng = np.random.default_rng((seed, SPLITS.index(split), _STREAM))
    turns = rng.permutation(np.resize(rng.permutation(len(candidates)), num_pairs))
    excerpts: list[Excerpt] = []
    for turn in turns.tolist():
        clip, begin = candidates[turn], int(rng.choice(begins[turn]))
        excerpts.append(Excerpt(clip.clip_id, clip.waveform[begin : begin + NUM_SAMPLES]))
    return excerpts


def mix(
    waveform: NDArray[np.float64], noise: NDArray[np.float64], snr_db: float
) -> NDArray[np.float64]:
    """Returns x + a n with a^2 = mean x^2 / mean n^2 / 10^(snr / 10), x in the middle of n.

    The recording's power is the mean over its own samples, not over the padding, the noise's over
    all of its samples. A recording longer than the noise is cropped at both ends first. A silent
    recording gives silence.

    Args:
      waveform: x, (num_samples,).
      noise: n, (M,), not silent.
      snr_db: signal-to-noise ratio in decibels.

    Returns:
      (M,).
    """
    shown = centred(waveform, min(len(waveform), len(noise)))
    ratio = np.mean(shown**2) / np.mean(noise**2)
    return centred(shown, len(noise)) + np.sqrt(ratio * 10 ** (-snr_db / 10)) * noise


def _begins(clip: NoiseClip) -> NDArray[np.intp]:
    """Where an excerpt of a clip can begin so that it is not silent."""
    if len(clip.waveform) < NUM_SAMPLES:
        raise DataError(
            f"esc10/*.tar.gz: {clip.name} has {len(clip.waveform)} samples at 8 kHz, {NUM_SAMPLES}"
            " needed; use the published archive"
        )
    energy = np.concatenate([[0.0], np.cumsum(clip.waveform**2)])
    power = (energy[NUM_SAMPLES:] - energy[:-NUM_SAMPLES]) / NUM_SAMPLES
    mean = energy[-1] / len(clip.waveform)
    begins = np.flatnonzero(power > _SILENCE * mean)
    if not len(begins):
        raise DataError(f"esc10/*.tar.gz: {clip.name} is silent; use the published archive")
    return begins
