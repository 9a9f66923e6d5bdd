"""Tiny real videos and sounds, and RAVDESS in small, made up here."""

import io
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from data_pipelines.ravdess import EMOTIONS, RavdessConfig
from data_pipelines.ravdess.archives import URLS

AUDIO_ZIP, *VIDEO_ZIPS = URLS

EMOTION_COLOURS = np.array(
    [
        (128, 128, 128),
        (40, 120, 220),
        (230, 220, 40),
        (40, 40, 120),
        (220, 40, 40),
        (120, 40, 160),
        (60, 160, 60),
        (240, 150, 60),
    ],
    np.uint8,
)


def emotion_pitch_hz(emotion: int) -> int:
    """The pitch of emotion 1 .. 8."""
    return 200 + 150 * emotion


def tone(frequency_hz: float, num_samples: int, sample_rate_hz: int) -> NDArray[np.float32]:
    """A sine of half the full level."""
    phase = 2 * np.pi * frequency_hz * np.arange(num_samples) / sample_rate_hz
    return (0.5 * np.sin(phase)).astype(np.float32)


def grey_frames(levels: Sequence[int], height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """One plain grey frame for each level."""
    plain = np.ones((1, height, width, 3), np.uint8)
    return plain * np.array(levels, np.uint8)[:, np.newaxis, np.newaxis, np.newaxis]


def write_mp4(
    path: Path,
    *,
    frames: NDArray[np.uint8] | None = None,
    waveform: NDArray[np.float32] | None = None,
    frame_rate: int = 30,
    sample_rate_hz: int = 16_000,
    codec: str = "mpeg4",
    options: Mapping[str, str] | None = None,
    faststart: bool = False,
    container_format: str = "mp4",
) -> None:
    """Writes a video of (T, H, W, 3) RGB frames, an AAC track of (num_samples,), or both."""
    flags = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", format=container_format, options=flags) as container:
        video: Any = None
        audio: Any = None
        if frames is not None:
            video = container.add_stream(codec, rate=frame_rate, options=dict(options or {}))
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = "yuv420p"
            video.codec_context.thread_count = 1
        if waveform is not None:
            audio = container.add_stream("aac", rate=sample_rate_hz)
            audio.layout = "mono"
        for pixels in [] if frames is None else frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        if video is not None:
            container.mux(video.encode())
        if waveform is not None:
            samples = av.AudioFrame.from_ndarray(waveform[np.newaxis], format="fltp", layout="mono")
            samples.sample_rate = sample_rate_hz
            container.mux(audio.encode(samples))
            container.mux(audio.encode())


def mp4_bytes(**content: Any) -> bytes:
    """The content of a file of `write_mp4`."""
    with tempfile.TemporaryDirectory() as folder:  # FFmpeg reads its file again for `faststart`
        path = Path(folder) / "clip"
        write_mp4(path, **content)
        return path.read_bytes()


def cut_by_copying(
    content: bytes, start_s: float, *, from_key_frame: bool = True, container_format: str = "mp4"
) -> bytes:
    """An MP4 that begins to be shown at `start_s`, of the same packets: its edit lists say where.

    Args:
      content: an MP4.
      start_s: what is shown first, at least half a packet within the clip.
      from_key_frame: leaves packets out that precede the last key frame before `start_s`, as
        `ffmpeg -ss 3.3 -i in.mp4 -c copy out.mp4` does; otherwise all are kept.
      container_format: FFmpeg's name of it.

    Returns:
      The MP4, its index in front.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut"
        with (
            av.open(io.BytesIO(content), "r") as source,
            av.open(
                str(path), "w", format=container_format, options={"movflags": "faststart"}
            ) as result,
        ):
            copies: Any = [result.add_stream_from_template(stream) for stream in source.streams]
            if from_key_frame:
                source.seek(round(start_s * 1e6))  # in microseconds
            for packet in source.demux():
                if packet.pts is not None and packet.dts is not None:
                    offset = round(start_s / packet.time_base)
                    packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
                    packet.stream = copies[packet.stream.index]
                    result.mux(packet)
        return path.read_bytes()


def emptied(content: bytes) -> bytes:
    """An MP4 of one track whose tables of sizes and of times say that it has no samples."""
    for table, offset in ((b"stsz", 12), (b"stts", 8)):
        count = content.index(table) + offset
        content = content[:count] + bytes(4) + content[count + 4 :]
    return content


def wav_bytes(
    waveform: NDArray[np.floating], *, sample_rate_hz: int = 48_000, subtype: str = "PCM_16"
) -> bytes:
    """A WAV file of (num_samples,) or (num_samples, channels)."""
    file = io.BytesIO()
    soundfile.write(file, waveform, sample_rate_hz, subtype, format="WAV")
    return file.getvalue()


def tiny_ravdess_config() -> RavdessConfig:
    """Two frames of 8 x 8 pixels."""
    return RavdessConfig(name="tiny", num_frames=2, frame_size=8)


def ravdess_members(
    *,
    emotions: Sequence[int] = range(1, len(EMOTIONS) + 1),
    repetitions: Sequence[int] = (1,),
    size: int = 64,
    noise: float = 20.0,
) -> dict[str, dict[str, bytes]]:
    """Makes clips from which emotions can be learnt.

    Every actor says statement 1 with normal intensity once for every emotion and repetition, for
    0.3 s: the colour of the video and the pitch of the sound tell the emotion, among noise.

    Args:
      emotions: 1 .. 8.
      repetitions: 1, 2 or both.
      size: height and width of the video.
      noise: standard deviation of a pixel, with 255 for white, and of a sample, with 510 for 1.

    Returns:
      {name of the archive: {name of the member: content}}.
    """
    rng = np.random.default_rng(0)
    members: dict[str, dict[str, bytes]] = {name: {} for name in URLS}
    for actor, archive in enumerate(VIDEO_ZIPS, 1):
        for emotion in emotions:
            for repetition in repetitions:
                name = f"01-{emotion:02d}-01-01-{repetition:02d}-{actor:02d}"
                video, audio = _clip(emotion, size, noise, rng)
                members[archive][f"Actor_{actor:02d}/01-{name}.mp4"] = video
                members[AUDIO_ZIP][f"Actor_{actor:02d}/03-{name}.wav"] = audio
    return members


def write_zips(folder: Path, members: Mapping[str, Mapping[str, bytes]]) -> Path:
    """Writes archives of `ravdess_members`; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for archive, contents in members.items():
        with zipfile.ZipFile(folder / archive, "w") as file:
            for name, content in contents.items():
                # A fixed date: the same members make the same archive.
                file.writestr(zipfile.ZipInfo(name), content)
    return folder


def ravdess_zips(folder: Path, **content: Any) -> Path:
    """Writes the archives of `ravdess_members(**content)`; returns the folder."""
    return write_zips(folder, ravdess_members(**content))


def _clip(emotion: int, size: int, noise: float, rng: np.random.Generator) -> tuple[bytes, bytes]:
    """Returns one video with sound, and one sound alone."""
    pixels = EMOTION_COLOURS[emotion - 1] + noise * rng.normal(size=(9, size, size, 3))
    sound = tone(emotion_pitch_hz(emotion), 14_400, 48_000)
    sound += noise / 510 * rng.normal(size=sound.shape)
    video = mp4_bytes(
        frames=np.clip(pixels, 0, 255).astype(np.uint8), waveform=sound, sample_rate_hz=48_000
    )
    return video, wav_bytes(np.clip(sound, -1, 1))
