import io
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from data_pipelines.errors import MediaError
from data_pipelines.media.audio import log_mel, read_audio_track, read_wav
from tests.data_pipelines.media_files import (
    cut_by_copying,
    emptied,
    grey_frames,
    mp4_bytes,
    tone,
    wav_bytes,
    write_mp4,
)


def _wav(content: bytes, sample_rate_hz: int = 16_000) -> NDArray[np.float32]:
    return read_wav(io.BytesIO(content), "sound", sample_rate_hz=sample_rate_hz)


def _track(content: bytes, sample_rate_hz: int = 16_000) -> NDArray[np.float32]:
    return read_audio_track(io.BytesIO(content), "clip", sample_rate_hz=sample_rate_hz)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_wav_samples_are_kept_at_their_own_rate(subtype: str) -> None:
    sound = tone(440, 4000, 16_000)
    actual = _wav(wav_bytes(sound, sample_rate_hz=16_000, subtype=subtype))
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, sound, rtol=0, atol=2**-15)


@pytest.mark.parametrize("rate_hz", [8_000, 44_100, 48_000])
def test_wav_is_resampled(rate_hz: int) -> None:
    actual = _wav(wav_bytes(tone(1000, rate_hz, rate_hz), sample_rate_hz=rate_hz))
    assert len(actual) == 16_000
    inner = slice(500, -500)  # what is silent before and after the sound rings at its ends
    np.testing.assert_allclose(actual[inner], tone(1000, 16_000, 16_000)[inner], rtol=0, atol=1e-3)


def test_frequencies_that_the_new_rate_cannot_hold_vanish() -> None:
    actual = _wav(wav_bytes(tone(15_000, 48_000, 48_000)))
    assert np.abs(actual[500:-500]).max() < 1e-3


def test_channels_are_averaged() -> None:
    sound = tone(440, 4000, 16_000)
    left_only = wav_bytes(np.stack([sound, 0 * sound], axis=1), sample_rate_hz=16_000)
    np.testing.assert_allclose(_wav(left_only), sound / 2, rtol=0, atol=2**-15)
    opposite = wav_bytes(np.stack([sound, -sound], axis=1), sample_rate_hz=16_000)
    np.testing.assert_allclose(_wav(opposite), 0, rtol=0, atol=2**-15)


def test_a_wav_of_unknown_length_is_whole() -> None:
    # Programs that write to a pipe cannot go back to fill in the lengths.
    content = bytearray(wav_bytes(tone(440, 4000, 16_000), sample_rate_hz=16_000))
    assert content[36:40] == b"data"
    content[4:8] = content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    assert len(_wav(bytes(content))) == 4000


def test_chunks_around_the_samples_are_skipped() -> None:
    content = wav_bytes(tone(440, 4000, 16_000), sample_rate_hz=16_000)
    odd = b"junk" + struct.pack("<I", 3) + b"abc\0"  # chunks are padded to an even length
    np.testing.assert_array_equal(_wav(content[:36] + odd + content[36:] + odd), _wav(content))


def _flac() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(440, 4000, 16_000), 16_000, format="FLAC")
    return file.getvalue()


def _with(value: float) -> NDArray[np.float32]:
    sound = tone(440, 4000, 16_000)
    sound[2000] = value
    return sound


WAV = wav_bytes(tone(440, 4000, 16_000))
BAD_WAV: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "text": (b"not a sound\n" * 20, "not a WAV file"),
    "cut in half": (WAV[: len(WAV) // 2], "truncated within its samples"),
    "last byte missing": (WAV[:-1], "truncated within its samples"),
    "header alone": (WAV[:44], "truncated within its samples"),
    "half a header": (WAV[:20], "not a WAV file, or truncated"),
    "flac": (_flac(), "FLAC of PCM_16, expected WAV"),
    "no samples": (wav_bytes(np.zeros(0)), "the audio has no length"),
    "nan": (wav_bytes(_with(np.nan), subtype="FLOAT"), "a sample of its audio is NaN or infinite"),
    "infinite": (wav_bytes(_with(np.inf), subtype="FLOAT"), "a sample .* is NaN or infinite"),
    "compressed": (
        wav_bytes(tone(440, 4000, 16_000), subtype="GSM610"),
        "WAV of GSM610, expected WAV that is not compressed",
    ),
    "one sample a second": (
        wav_bytes(tone(440, 4000, 16_000), sample_rate_hz=1),
        "1 samples a second, expected 4000 to 384000",
    ),
    "two billion a second": (
        wav_bytes(tone(440, 4000, 16_000), sample_rate_hz=2**31 - 1),
        "2147483647 samples a second, expected",
    ),
    "nine channels": (
        wav_bytes(np.zeros((100, 9), np.float32)),
        "9 channels, expected at most 8",
    ),
}


@pytest.mark.parametrize("case", BAD_WAV)
def test_bad_wav_files_are_named(case: str) -> None:
    content, problem = BAD_WAV[case]
    with pytest.raises(MediaError, match=rf"^sound: {problem}") as caught:
        _wav(content)
    assert "\n" not in str(caught.value)


def test_the_sound_of_a_video_is_read_and_resampled(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "frames": grey_frames([50] * 30),
        "waveform": tone(1000, 48_000, 48_000),
        "sample_rate_hz": 48_000,
    }
    actual = _track(mp4_bytes(**content))
    assert actual.dtype == np.float32
    assert abs(len(actual) - 16_000) <= 1024  # AAC comes in blocks of 1024 samples
    spectrum = np.abs(np.fft.rfft(actual[:16_000]))
    assert spectrum.argmax() == 1000
    level = np.sqrt(2 * np.mean(actual[1000:15_000] ** 2))
    np.testing.assert_allclose(level, 0.5, rtol=0.02)
    write_mp4(tmp_path / "clip.mp4", **content)
    np.testing.assert_array_equal(
        read_audio_track(tmp_path / "clip.mp4", "clip", sample_rate_hz=16_000), actual
    )


MP4: dict[str, Any] = {
    "frames": np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8),
    "waveform": tone(400, 10_667, 16_000),
}


def _mov(waveform: NDArray[np.float32], rate_hz: int = 16_000, layout: str = "mono") -> bytes:
    """A QuickTime file with these samples (of all channels in turn), as they are."""
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as container:
        stream: Any = container.add_stream("pcm_f32le", rate=rate_hz)
        stream.layout = layout
        frame = av.AudioFrame.from_ndarray(waveform[np.newaxis], format="flt", layout=layout)
        frame.sample_rate = rate_hz
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


BAD_TRACK: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "text": (b"not a video\n" * 20, "not an MP4 file, truncated or damaged"),
    "playlist": (b"ffconcat version 1.0\nfile other.mp4\n", "not an MP4 file"),
    "cut, index at the end": (mp4_bytes(**MP4)[:10_000], "not an MP4 file, truncated or damaged"),
    "cut, index in front": (mp4_bytes(**MP4, faststart=True)[:10_000], "truncated"),
    "no audio": (mp4_bytes(frames=grey_frames([50] * 5)), "no audio in it"),
    "no samples": (emptied(mp4_bytes(waveform=tone(400, 8000, 16_000))), "the audio has no length"),
    "codec": (
        mp4_bytes(**MP4).replace(b"mp4a", b"zzzz").replace(b"esds", b"free"),
        "nothing decodes its audio",
    ),
    "nan": (_mov(_with(np.nan)), "a sample of its audio is NaN or infinite"),
    "infinite": (_mov(_with(np.inf)), "a sample of its audio is NaN or infinite"),
    # PyAV crashes on as many.
    "channels": (_mov(tone(440, 4000, 16_000), layout="hexadecagonal"), "16 channels, expected at"),
    "slow": (_mov(tone(440, 4000, 16_000), 100), "100 samples a second, expected 4000 to 384000"),
}


@pytest.mark.parametrize("case", BAD_TRACK)
def test_bad_tracks_are_named(case: str) -> None:
    content, problem = BAD_TRACK[case]
    with pytest.raises(MediaError, match=rf"^some clip: {problem}") as caught:
        read_audio_track(io.BytesIO(content), "some clip", sample_rate_hz=16_000)
    assert "\n" not in str(caught.value)


def test_uncompressed_tracks_are_kept_sample_by_sample() -> None:
    sound = tone(440, 4000, 16_000)
    np.testing.assert_array_equal(_track(_mov(sound)), sound)


def test_uncompressed_tracks_may_have_an_edit_list() -> None:
    sound = tone(440, 32_000, 16_000)
    content = cut_by_copying(_mov(sound), 1.5, from_key_frame=False, container_format="mov")
    np.testing.assert_array_equal(_track(content), sound[24_000:])
    with pytest.raises(MediaError, match="^clip: truncated"):
        _track(content[:-100])


def test_a_track_is_refused_wherever_it_is_cut() -> None:
    content = mp4_bytes(waveform=tone(400, 10_667, 16_000), faststart=True)
    assert len(_track(content)) >= 10_667
    for length in [*range(0, len(content) - 1, len(content) // 25), len(content) - 1]:
        with pytest.raises(MediaError, match=r"^clip: "):
            _track(content[:length])


SKIPPED_S = [0.5, 1, 2, 3]


def _rising(duration_s: int) -> NDArray[np.float32]:
    """A tone whose frequency is 500 Hz times the number of the second, from 1 on."""
    return np.concatenate([tone(500 * (i + 1), 16_000, 16_000) for i in range(duration_s)])


@pytest.mark.parametrize("skipped_s", SKIPPED_S)
def test_sound_that_an_edit_list_skips_is_not_missed(skipped_s: float) -> None:
    content = cut_by_copying(mp4_bytes(waveform=_rising(5)), skipped_s, from_key_frame=False)
    assert b"elst" in content
    actual = _track(content)
    expected = _rising(5)[round(16_000 * skipped_s) :]
    assert 0 <= len(actual) - len(expected) < 2 * 1024  # AAC ends with silence, in blocks
    for start in range(0, len(expected) - 4000, 4000):
        pitches = [
            np.abs(np.fft.rfft(sound[start + 400 : start + 3600])).argmax()
            for sound in (actual, expected)
        ]
        assert pitches[0] == pitches[1]


@pytest.mark.parametrize("share", [0.6, 0.9, 0.98])
@pytest.mark.parametrize("skipped_s", SKIPPED_S)
def test_a_track_with_an_edit_list_is_refused_where_it_is_truncated(
    skipped_s: float, share: float
) -> None:
    content = cut_by_copying(mp4_bytes(waveform=_rising(5)), skipped_s, from_key_frame=False)
    with pytest.raises(MediaError, match="^clip: truncated"):
        _track(content[: int(share * len(content))])


def _mel_bands(num_mels: int, num_fft: int, rate_hz: int) -> NDArray[np.float64]:
    """Slaney's triangles of equal area: equally spaced up to 1 kHz, then by equal ratios."""
    ratio = np.log(6.4) / 27

    def mel_of(hz: float) -> float:
        return 3 * hz / 200 if hz < 1000 else 15 + np.log(hz / 1000) / ratio

    mels = np.linspace(0, mel_of(rate_hz / 2), num_mels + 2)
    edges = np.where(mels < 15, 200 * mels / 3, 1000 * np.exp(ratio * (mels - 15)))
    frequencies = np.fft.rfftfreq(num_fft, 1 / rate_hz)
    bands = np.empty((num_mels, len(frequencies)))
    for band, (low, centre, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        rising, falling = (
            (frequencies - low) / (centre - low),
            (high - frequencies) / (high - centre),
        )
        bands[band] = 2 / (high - low) * np.maximum(0, np.minimum(rising, falling))
    return bands


def mel_levels(sound: NDArray[Any], num_mels: int, num_frames: int) -> NDArray[np.float64]:
    """The docstring of `log_mel` at 16 kHz, frame by frame in float64."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    centre = len(sound) // 2
    padded = np.concatenate([np.zeros(10**5), sound, np.zeros(10**5)])
    # The frames' windows, 160 samples apart, lie symmetrically around the middle of the sound.
    start = 10**5 + centre - ((num_frames - 1) * 160 + 400) // 2
    starts = start + 160 * np.arange(num_frames)
    spectra = np.array([np.fft.rfft(window * padded[i : i + 400], 1024) for i in starts])
    power = _mel_bands(num_mels, 1024, 16_000) @ np.abs(spectra.T) ** 2
    return 255 * (1 + np.maximum(10 * np.log10(power / power.max() + 1e-30), -80) / 80)


@pytest.mark.parametrize("num_samples", [6_000, 16_000, 40_000])
def test_log_mel_is_what_its_docstring_says(num_samples: int) -> None:
    rng = np.random.default_rng(0)
    chirp = np.sin(np.cumsum(np.linspace(0.05, 2.5, num_samples)))
    sound = (0.3 * chirp + 0.001 * rng.normal(size=num_samples)).astype(np.float32)
    actual = log_mel(sound, sample_rate_hz=16_000, num_mels=64, num_frames=100)
    assert actual.shape == (64, 100)
    assert actual.dtype == np.uint8
    # Half a step for rounding, and a little for float32.
    np.testing.assert_allclose(actual, mel_levels(sound, 64, 100), rtol=0, atol=0.6)


def test_log_mel_has_time_from_left_to_right_and_frequency_upwards() -> None:
    sound = np.concatenate([tone(500, 8000, 16_000), tone(4000, 8000, 16_000)])
    actual = log_mel(sound, sample_rate_hz=16_000, num_mels=64, num_frames=100)
    first, second = actual[:, 25].argmax(), actual[:, 75].argmax()
    assert 0 < first < second < 63


def test_loudness_does_not_matter_and_silence_is_black() -> None:
    sound = tone(500, 8000, 16_000)
    loud, quiet = (
        log_mel(level * sound, sample_rate_hz=16_000, num_mels=16, num_frames=50)
        for level in (np.float32(1), np.float32(2**-10))
    )
    np.testing.assert_array_equal(loud, quiet)
    assert loud.max() == 255
    silence = log_mel(0 * sound, sample_rate_hz=16_000, num_mels=16, num_frames=50)
    assert not silence.any()


def test_a_short_sound_is_centred_in_silence() -> None:
    picture = log_mel(tone(500, 1600, 16_000), sample_rate_hz=16_000, num_mels=16, num_frames=100)
    (filled,) = np.nonzero(picture.max(axis=0))
    assert abs((filled[0] + filled[-1]) / 2 - 49.5) <= 1
    assert 8 <= len(filled) <= 14


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_log_mel_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="waveform must be finite"):
        log_mel(_with(value), sample_rate_hz=16_000, num_mels=16, num_frames=50)


def test_level_does_not_matter_up_to_the_largest_numbers_and_down_to_the_smallest() -> None:
    sound = tone(500, 8000, 16_000)
    expected = log_mel(sound, sample_rate_hz=16_000, num_mels=16, num_frames=50)
    for exponent in (-100, 127):
        scaled = np.ldexp(sound, exponent)
        actual = log_mel(scaled, sample_rate_hz=16_000, num_mels=16, num_frames=50)
        np.testing.assert_array_equal(actual, expected)
    loud = _wav(wav_bytes(np.float32(1e20) * sound, sample_rate_hz=16_000, subtype="FLOAT"))
    actual = log_mel(loud, sample_rate_hz=16_000, num_mels=16, num_frames=50)
    # 1e20 is no power of two: roundings differ.
    np.testing.assert_allclose(actual.astype(int), expected.astype(int), rtol=0, atol=1)


def test_samples_that_overflow_while_they_are_resampled_are_refused() -> None:
    sound = np.float32(3.4e38) * np.sign(tone(440, 48_000, 48_000))
    with pytest.raises(MediaError, match="^sound: a sample of its audio is NaN or infinite"):
        _wav(wav_bytes(sound, subtype="FLOAT"))


def _adts(layout: str, rate_hz: int) -> bytes:
    """One second of AAC of which every block says its format, so that streams may be joined."""
    file = io.BytesIO()
    with av.open(file, "w", format="adts") as container:
        stream: Any = container.add_stream("aac", rate=rate_hz)
        stream.layout = layout
        channels = np.stack([tone(1000, rate_hz, rate_hz)] * {"mono": 1, "stereo": 2}[layout])
        frame = av.AudioFrame.from_ndarray(channels, format="fltp", layout=layout)
        frame.sample_rate = rate_hz
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("stereo", 48_000), ("mono", 48_000)),
        (("stereo", 48_000), ("mono", 16_000)),
        (("mono", 16_000), ("stereo", 48_000)),
    ],
)
def test_a_track_may_change_its_format(
    first: tuple[str, int], second: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipelines.media.container._FORMATS", "aac")
    actual = _track(_adts(*first) + _adts(*second))
    assert abs(len(actual) - 32_000) <= 3 * 1024  # AAC comes in blocks of 1024 samples
    for part in (actual[2000:14_000], actual[-14_000:-2000]):
        spectrum = np.abs(np.fft.rfft(part))
        assert spectrum.argmax() == 750  # 1000 Hz, in bins of 4/3 Hz
        np.testing.assert_allclose(np.sqrt(2 * np.mean(part**2)), 0.5, rtol=0.02)
