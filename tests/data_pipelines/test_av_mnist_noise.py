"""Noise in spoken digits: which clip, where it is cut, and how loud it is."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipelines.av_mnist.mixing import draw_excerpts, mix
from data_pipelines.av_mnist.noise import NoiseClip, read_noise_clips
from data_pipelines.errors import DataError
from tests.data_pipelines.raw_files import NOISE_TAR, noise_clips, ogg_bytes, tar_bytes, write_gzip

SPLITS = ("train", "validation", "test")
FOLDS = {"train": {1, 2, 3}, "validation": {4}, "test": {5}}
NUM_SAMPLES = 8103


def _white(seed: int, num_samples: int = 20_000) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(num_samples)


def _clip(fold: int, number: int, waveform: NDArray[np.float64] | None = None) -> NoiseClip:
    """A clip whose id tells its fold."""
    waveform = _white(10 * fold + number) if waveform is None else waveform
    return NoiseClip(f"{fold}-{fold}{number}-A.ogg", fold, f"{fold}{number}", waveform)


CLIPS = [_clip(fold, number) for fold in range(1, 6) for number in range(3)]


@pytest.mark.parametrize("snr_db", [-18.0, 0.0, 7.5])
@pytest.mark.parametrize("num_samples", [1, 3000, 8102, 8103, 12_345])
def test_powers_have_the_ratio_that_was_asked_for(num_samples: int, snr_db: float) -> None:
    recording, noise = 3 * _white(1, num_samples), 0.01 * _white(2, NUM_SAMPLES)

    mixed = mix(recording, noise, snr_db)

    assert mixed.shape == (NUM_SAMPLES,)
    before = max((num_samples - NUM_SAMPLES) // 2, 0)
    shown = recording[before : before + NUM_SAMPLES]
    begin = (NUM_SAMPLES - len(shown)) // 2
    placed = np.zeros(NUM_SAMPLES)
    placed[begin : begin + len(shown)] = shown
    added = mixed - placed
    measured_db = 10 * np.log10(np.mean(shown**2) / np.mean(added**2))
    np.testing.assert_allclose(measured_db, snr_db, atol=1e-9)
    # The noise is as it was, but for its loudness.
    np.testing.assert_allclose(added / np.std(added), noise / np.std(noise), atol=1e-6)


def test_a_silent_recording_stays_silent() -> None:
    assert not mix(np.zeros(500), _white(0, NUM_SAMPLES), 0.0).any()


@pytest.mark.parametrize("split", SPLITS)
def test_clips_are_of_the_splits_folds_and_used_equally_often(split: str) -> None:
    excerpts = draw_excerpts(CLIPS, 100, split, seed=0)

    counts: dict[str, int] = {}
    for excerpt in excerpts:
        counts[excerpt.clip_id] = counts.get(excerpt.clip_id, 0) + 1
        whole = next(clip.waveform for clip in CLIPS if clip.clip_id == excerpt.clip_id)
        begin = int(np.flatnonzero(whole == excerpt.waveform[0])[0])
        np.testing.assert_array_equal(excerpt.waveform, whole[begin : begin + NUM_SAMPLES])
    assert len(counts) == 3 * len(FOLDS[split])
    assert {int(clip_id[0]) for clip_id in counts} == FOLDS[split]
    assert max(counts.values()) - min(counts.values()) <= 1
    # Every pair has an offset of its own.
    assert len({excerpt.waveform[0] for excerpt in excerpts}) > 90


def test_the_seed_and_the_split_decide() -> None:
    def drawn(split: str, seed: int, folds: dict[int, int]) -> list[tuple[str, float]]:
        clips = [_clip(folds[clip.fold], 0, clip.waveform) for clip in CLIPS]
        excerpts = draw_excerpts(clips, 30, split, seed)
        return [(each.clip_id, float(each.waveform[0])) for each in excerpts]

    same = {fold: fold for fold in range(1, 6)}
    assert drawn("test", 0, same) == drawn("test", 0, same)
    assert drawn("test", 0, same) != drawn("test", 1, same)
    # The same clips in another split come in another order.
    swapped = same | {4: 5, 5: 4}
    assert [place for _, place in drawn("test", 0, same)] != [
        place for _, place in drawn("validation", 0, swapped)
    ]


def test_silent_excerpts_are_not_drawn() -> None:
    waveform = np.zeros(40_000)
    waveform[30_000:31_000] = _white(0, 1000)
    waveform[:9000] = 1e-4 * _white(1, 9000)  # a codec's trace of silence

    excerpts = draw_excerpts([_clip(5, 0, waveform)], 300, "test", seed=0)

    energies = [np.sum(excerpt.waveform**2) for excerpt in excerpts]
    assert min(energies) > 1e-4 * NUM_SAMPLES * np.mean(waveform**2)
    assert min(energies) < 0.2 * max(energies)  # but quiet ones are


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([_clip(1, 0), _clip(4, 0)], r"esc10/\*\.tar\.gz: no clip for the test split .*; use the"),
        ([_clip(5, 0, np.zeros(9000))], r"5-50-A\.ogg is silent; use the published archive"),
        ([_clip(5, 0, np.ones(8102))], r"5-50-A\.ogg has 8102 samples at 8 kHz, 8103 needed; use"),
    ],
)
def test_clips_that_give_no_noise_are_refused(clips: list[NoiseClip], message: str) -> None:
    with pytest.raises(DataError, match=message):
        draw_excerpts(clips, 10, "test", seed=0)


def test_clips_are_resampled_and_sorted_and_other_files_ignored(tmp_path: Path) -> None:
    seconds = np.arange(2 * 44_100) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 1000 * seconds)
    too_high = 0.5 * np.sin(2 * np.pi * 6000 * seconds)  # for 8 kHz
    members = {
        "esc-abc/picture.png": b"",
        "esc-abc/002 - Whistle/5-7-B.ogg": ogg_bytes(tone),
        "esc-abc/001 - Hiss/1-12-A.ogg": ogg_bytes(too_high),
        "esc-abc/more/5-7-B.ogg": b"",
    }
    path = tmp_path / "sounds.tar.gz"
    write_gzip(path, tar_bytes(members))

    high, low = read_noise_clips(path, None)

    assert (high.name, high.fold, high.clip_id) == ("1-12-A.ogg", 1, "12")
    assert (low.name, low.fold, low.clip_id) == ("5-7-B.ogg", 5, "7")
    assert low.waveform.dtype == np.float64
    assert len(low.waveform) == pytest.approx(16_000, abs=100)
    inner = low.waveform[1000:15_000]
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(1000, 15_000) / 8000)
    np.testing.assert_allclose(inner, expected, atol=0.02)  # the codec's error
    assert np.abs(high.waveform[1000:15_000]).max() < 0.01


def test_made_up_clips_are_what_the_other_tests_take_them_for(tmp_path: Path) -> None:
    (tmp_path / "esc10").mkdir()
    write_gzip(tmp_path / NOISE_TAR, tar_bytes(noise_clips()))
    clips = read_noise_clips(tmp_path / NOISE_TAR, None)
    assert len(clips) == 15
    for clip in clips:
        assert int(clip.clip_id) // 10 == clip.fold
        assert len(clip.waveform) > NUM_SAMPLES
