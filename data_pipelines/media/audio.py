"""Waveforms out of WAV and MP4 files, and their log-mel spectrograms."""

import io
import struct
from itertools import chain, groupby
from pathlib import Path
from typing import BinaryIO

import av
import librosa  # its parts are loaded on first use
import numpy as np
import soundfile
from numpy.typing import NDArray

from data_pipelines.errors import MediaError
from data_pipelines.media.container import count_packets, first_stream, opened
from data_pipelines.media.spectrograms import centred, relative_levels

_WINDOW_S = 0.025
_HOP_S = 0.010
_UNKNOWN_LENGTH = 0xFFFFFFFF  # what programs write that cannot go back to the header
# Others are in no use, but damaged files have them: a few samples would become gigabytes, and PyAV
# crashes on more channels.
_RATES_HZ = (4_000, 384_000)
_MAX_CHANNELS = 8
# Compressed kinds cannot be told to be whole.
_WAV_KINDS = {"PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"}


def read_wav(file: BinaryIO, name: str, *, sample_rate_hz: int) -> NDArray[np.float32]:
    """Reads a WAV file as the mean of its channels, resampled.

    Args:
      file: a file that can be seeked in.
      name: what messages call it.
      sample_rate_hz: of the result.

    Returns:
      (num_samples,), at least one; integers are scaled to [-1, 1].

    Raises:
      MediaError: empty, not WAV, truncated, without samples or compressed; sample rate or
        number of channels are those of no sound; a sample is NaN or infinite.
    """
    if file.seek(0, io.SEEK_END) == 0:
        raise MediaError(f"{name}: the file is empty")
    file.seek(0)
    try:
        with soundfile.SoundFile(file) as sound:
            if sound.format not in ("WAV", "WAVEX") or sound.subtype not in _WAV_KINDS:
                found = f"{sound.format} of {sound.subtype}"
                raise MediaError(f"{name}: {found}, expected WAV that is not compressed")
            rate_hz = sound.samplerate
            _check_format(sound.channels, rate_hz, name)
            channels = sound.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        raise MediaError(f"{name}: not a WAV file, or truncated in its header") from None
    if _is_cut(file):
        raise MediaError(f"{name}: truncated within its samples")
    waveform = _checked(channels.mean(axis=1), name)
    resampled = librosa.resample(waveform, orig_sr=rate_hz, target_sr=sample_rate_hz)
    return _checked(resampled, name)  # the largest numbers can overflow


def read_audio_track(
    path: Path | BinaryIO, name: str, *, sample_rate_hz: int
) -> NDArray[np.float32]:
    """Reads the first sound track of a video as the mean of its channels, resampled.

    Args:
      path: an MP4 file of any codec that FFmpeg reads; a file object must be seekable.
      name: what messages call it.
      sample_rate_hz: of the result.

    Returns:
      (num_samples,), at least one.

    Raises:
      MediaError: empty, not MP4, no sound in it, truncated, damaged, or of no length; sample
        rate or number of channels are those of no sound; a sample is NaN or infinite.
    """
    count_packets(path, name, "audio")
    blocks: list[NDArray[np.float32]] = []
    with opened(path, name) as container:
        first_stream(container, name, "audio")
        # A resampler is made for one format, and some tracks change theirs on the way.
        for (_, layout, rate_hz), frames in groupby(container.decode(audio=0), key=_format):
            _check_format(layout.nb_channels, rate_hz, name)
            resampler = av.AudioResampler(format="fltp", rate=sample_rate_hz)
            # None makes the resampler give what it still holds back.
            for frame in chain(frames, [None]):
                blocks += [block.to_ndarray().mean(axis=0) for block in resampler.resample(frame)]
    return _checked(np.concatenate([np.empty(0, np.float32), *blocks]), name)


def log_mel(
    waveform: NDArray[np.float32], *, sample_rate_hz: int, num_mels: int, num_frames: int
) -> NDArray[np.uint8]:
    """Returns 255 (1 + max(10 log10(S / max S), -80) / 80), S the mel spectrogram of the power.

    Hann window of 25 ms, hop of 10 ms, mel bands (Slaney's) from 0 to half the sample rate. The
    waveform is centred in what the frames cover, padded with zeros or cropped at both ends. The
    level is relative to the clip's own maximum, so loudness is lost; silence gives zeros.

    Args:
      waveform: (num_samples,), finite.
      sample_rate_hz: of the waveform.
      num_mels: number of bands. More than about 160 leave bands empty at 16 kHz.
      num_frames: number of columns.

    Returns:
      (num_mels, num_frames): row = band, from low to high; column = time.

    Raises:
      ValueError: a sample is NaN or infinite.
    """
    if not np.isfinite(waveform).all():
        raise ValueError("waveform must be finite, got NaN or infinity")
    window, hop = round(_WINDOW_S * sample_rate_hz), round(_HOP_S * sample_rate_hz)
    # Low bands are narrower than the window's own frequency bins: zeros interpolate between these.
    num_fft = 1 << (2 * window - 1).bit_length()
    waveform = centred(waveform, (num_frames - 1) * hop + num_fft)
    # The power of very large samples would overflow. A power of two takes away no digit.
    _, exponent = np.frexp(np.abs(waveform).max())
    power = librosa.feature.melspectrogram(
        y=np.ldexp(waveform, -exponent),
        sr=sample_rate_hz,
        n_fft=num_fft,
        win_length=window,
        hop_length=hop,
        center=False,
        n_mels=num_mels,
    )
    return relative_levels(power, decade_db=10)


def _format(frame: av.AudioFrame) -> tuple[str, av.AudioLayout, int]:
    """Returns what a resampler must know of a frame."""
    return frame.format.name, frame.layout, frame.sample_rate


def _check_format(num_channels: int, rate_hz: int, name: str) -> None:
    """Refuses what no sound is recorded with."""
    low, high = _RATES_HZ
    if not low <= rate_hz <= high:
        raise MediaError(f"{name}: {rate_hz} samples a second, expected {low} to {high}")
    if num_channels > _MAX_CHANNELS:
        raise MediaError(f"{name}: {num_channels} channels, expected at most {_MAX_CHANNELS}")


def _checked(waveform: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Returns a waveform that has samples, all of them finite."""
    if not len(waveform):
        raise MediaError(f"{name}: the audio has no length")
    if not np.isfinite(waveform).all():
        raise MediaError(f"{name}: a sample of its audio is NaN or infinite")
    return waveform


def _is_cut(file: BinaryIO) -> bool:
    """Tells whether the data chunk of a WAV file is shorter than it says: libsndfile lets it be."""
    size = file.seek(0, io.SEEK_END)
    position = 12  # the first chunk follows "RIFF", a length and "WAVE"
    while position + 8 <= size:
        file.seek(position)
        chunk, length = struct.unpack("<4sI", file.read(8))
        position += 8
        if chunk == b"data":
            return length != _UNKNOWN_LENGTH and position + length > size
        position += length + length % 2
    return True
