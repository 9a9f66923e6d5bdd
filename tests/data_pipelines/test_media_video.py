import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import MediaError
from data_pipelines.media.container import count_packets
from data_pipelines.media.video import read_frames
from tests.data_pipelines.media_files import (
    cut_by_copying,
    emptied,
    grey_frames,
    mp4_bytes,
    tone,
    write_mp4,
)

LEVELS = range(10, 250, 12)  # of twenty frames; what codecs lose is less than half a step


def _levels(content: bytes, num_frames: int) -> list[float]:
    frames = read_frames(io.BytesIO(content), "clip", num_frames=num_frames, size=8)
    assert frames.shape == (num_frames, 8, 8, 3)
    assert frames.dtype == np.uint8
    assert frames.std(axis=(1, 2, 3)).max() < 2
    return frames.mean(axis=(1, 2, 3)).tolist()


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [(1, [10]), (2, [5, 15]), (4, [2, 7, 12, 17]), (3, [3, 10, 16]), (20, range(20))],
)
def test_frames_are_the_centres_of_equal_parts(codec: str, num_frames: int, expected: Any) -> None:
    content = mp4_bytes(frames=grey_frames(LEVELS), codec=codec)
    nearest = np.rint((np.array(_levels(content, num_frames)) - 10) / 12)
    np.testing.assert_array_equal(nearest, expected)


def test_a_clip_of_fewer_frames_repeats_them() -> None:
    content = mp4_bytes(frames=grey_frames([40, 200]))
    np.testing.assert_allclose(_levels(content, 5), [40, 40, 200, 200, 200], rtol=0, atol=4)
    np.testing.assert_allclose(
        _levels(mp4_bytes(frames=grey_frames([90])), 3), [90] * 3, rtol=0, atol=4
    )


def test_the_central_square_is_taken_whichever_side_is_longer() -> None:
    # A square of green in the middle of red (before it) and blue (behind it).
    colours = np.array([(255, 0, 0)] * 32 + [(0, 255, 0)] * 64 + [(0, 0, 255)] * 32, np.uint8)
    wide = np.broadcast_to(colours, (2, 64, 128, 3))
    for frames in (wide, wide.swapaxes(1, 2)):
        content = mp4_bytes(frames=np.ascontiguousarray(frames), codec="libx264")
        (picture,) = read_frames(io.BytesIO(content), "clip", num_frames=1, size=16)
        inner = picture[1:-1, 1:-1].astype(int)  # colours have half the resolution: edges blur
        assert (inner[..., 1] > 200).all()
        assert (inner[..., [0, 2]] < 80).all()


def test_colours_come_in_the_order_red_green_blue() -> None:
    frames = np.broadcast_to(np.array([200, 100, 30], np.uint8), (1, 32, 32, 3))
    content = mp4_bytes(frames=np.ascontiguousarray(frames))
    (picture,) = read_frames(io.BytesIO(content), "clip", num_frames=1, size=4)
    np.testing.assert_allclose(picture.reshape(-1, 3), [[200, 100, 30]] * 16, rtol=0, atol=6)


def test_shrinking_averages_fine_patterns() -> None:
    # A chess board of single pixels: every sample of it is black or white, every average grey.
    board = 255 * (np.indices((128, 128)).sum(axis=0) % 2).astype(np.uint8)
    frames = np.repeat(board[np.newaxis, ..., np.newaxis], 3, axis=-1)
    content = mp4_bytes(frames=frames, codec="libx264", options={"crf": "1"})
    (picture,) = read_frames(io.BytesIO(content), "clip", num_frames=1, size=16)
    np.testing.assert_allclose(picture, 127.5, rtol=0, atol=8)


def test_a_path_and_a_file_object_give_the_same(tmp_path: Path) -> None:
    write_mp4(tmp_path / "clip.mp4", frames=grey_frames(LEVELS))
    content = io.BytesIO((tmp_path / "clip.mp4").read_bytes())
    content.read()  # it is read from its beginning wherever it stands
    from_path, from_object, again = (
        read_frames(file, "clip", num_frames=3, size=8)
        for file in (tmp_path / "clip.mp4", content, content)
    )
    np.testing.assert_array_equal(from_path, from_object)
    np.testing.assert_array_equal(from_path, again)


def _whole(**options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
    return mp4_bytes(frames=noise, **options)


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    return file.getvalue()


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"the file is empty"),
    "text": (b"not a video at all\n" * 20, r"not an MP4 file, truncated or damaged \(Invalid data"),
    "cut, index at the end": (_whole()[:10_000], r"not an MP4 file, truncated or damaged"),
    "picture": (_png(), r"not an MP4 file"),
    "matroska": (_whole(container_format="matroska"), r"not an MP4 file"),
    # FFmpeg would read what these name: another file, or what arrives on a port.
    "playlist": (b"ffconcat version 1.0\nfile other.mp4\n", r"not an MP4 file"),
    "session": (
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        r"not an MP4 file",
    ),
    "cut, index in front": (_whole(faststart=True)[:10_000], r"truncated"),
    "no frames": (emptied(mp4_bytes(frames=grey_frames(LEVELS))), r"the video has no length"),
    "codec": (_whole(codec="libx264").replace(b"avc1", b"none"), r"nothing decodes its video"),
    "no video": (mp4_bytes(waveform=tone(400, 8000, 16_000)), r"no video in it"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(case: str, tmp_path: Path) -> None:
    content, problem = BAD[case]
    write_mp4(tmp_path / "other.mp4", frames=grey_frames(LEVELS))
    (tmp_path / "clip.mp4").write_bytes(content)
    for file in (io.BytesIO(content), tmp_path / "clip.mp4"):
        with pytest.raises(MediaError, match=rf"^some clip: {problem}") as caught:
            read_frames(file, "some clip", num_frames=2, size=8)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_clip_is_refused_wherever_it_is_cut(codec: str) -> None:
    content = _whole(codec=codec, faststart=True)
    assert read_frames(io.BytesIO(content), "clip", num_frames=2, size=8).shape == (2, 8, 8, 3)
    for length in [*range(0, len(content) - 1, len(content) // 25), len(content) - 1]:
        with pytest.raises(MediaError, match=r"^clip: "):
            read_frames(io.BytesIO(content[:length]), "clip", num_frames=2, size=8)


STARTS = [0.5, 1, 2.9]


@pytest.mark.parametrize("start_s", STARTS)
@pytest.mark.parametrize("from_key_frame", [True, False])
@pytest.mark.parametrize("key_frame_distance", [12, 30, 250])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_clip_cut_by_copying_shows_what_its_edit_list_says(
    codec: str, key_frame_distance: int, from_key_frame: bool, start_s: float
) -> None:
    # Three seconds of which each tenth has a level of its own.
    levels = [10 + 8 * (i // 3) for i in range(90)]
    options = {"g": str(key_frame_distance), "bf": "2"}
    whole = mp4_bytes(frames=grey_frames(levels), codec=codec, options=options)
    content = cut_by_copying(whole, start_s, from_key_frame=from_key_frame)
    assert b"elst" in content
    expected = levels[round(30 * start_s) :]
    assert count_packets(io.BytesIO(content), "clip", "video") == len(expected)
    np.testing.assert_allclose(_levels(content, len(expected)), expected, rtol=0, atol=3.9)


@pytest.mark.parametrize("share", [0.6, 0.9, 0.98])
@pytest.mark.parametrize("start_s", STARTS)
def test_a_clip_with_an_edit_list_is_refused_where_it_is_truncated(
    start_s: float, share: float
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 48, 64, 3), np.uint8)
    whole = mp4_bytes(frames=noise, codec="libx264", options={"g": "12"})
    content = cut_by_copying(whole, start_s, from_key_frame=False)
    with pytest.raises(MediaError, match=r"^clip: truncated"):
        read_frames(io.BytesIO(content[: int(share * len(content))]), "clip", num_frames=2, size=8)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"^gone: .*No such file"):
        read_frames(tmp_path / "gone.mp4", "gone", num_frames=2, size=8)


def _titled(title: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        container.metadata["title"] = title
        stream: Any = container.add_stream("mpeg4", rate=30)
        stream.pix_fmt = "yuv420p"
        for pixels in grey_frames([40, 200]):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def test_titles_may_be_in_any_encoding() -> None:
    content = _titled("nine bytes").replace(b"nine bytes", "caf\xe9 bytes".encode("latin-1"))
    np.testing.assert_allclose(_levels(content, 2), [40, 200], rtol=0, atol=4)


def test_damage_within_a_frame_is_refused() -> None:
    content = bytearray(_whole(faststart=True))
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    with pytest.raises(MediaError, match=r"^clip: frame \d+ of its video is damaged"):
        read_frames(io.BytesIO(bytes(content)), "clip", num_frames=2, size=8)


def test_frames_that_the_decoder_drops_are_missed() -> None:
    content = mp4_bytes(frames=grey_frames(LEVELS), codec="libx264", faststart=True)
    with av.open(io.BytesIO(content), "r") as container:
        position = max(packet.pos or 0 for packet in container.demux(video=0))
    # A length of four bytes, then the type of what follows: 10 ends a sequence, without a picture.
    damaged = bytearray(content)
    damaged[position + 4] = 10
    with pytest.raises(MediaError, match=r"^clip: damaged: 19 of 20 frames could be decoded"):
        read_frames(io.BytesIO(bytes(damaged)), "clip", num_frames=2, size=8)


_PEAK = """
import resource, sys
from pathlib import Path
from data_pipelines.media.video import read_frames

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

short, long = map(Path, sys.argv[1:])
read_frames(short, "short", num_frames=4, size=8)
before = peak_mb()
read_frames(long, "long", num_frames=4, size=8)
print(peak_mb() - before)
print(*sorted({"jax", "tensorflow_datasets", "librosa"} & set(sys.modules)))
"""


def test_memory_does_not_grow_with_the_length_of_a_clip(tmp_path: Path) -> None:
    for name, num_frames in (("short", 10), ("long", 500)):
        write_mp4(tmp_path / name, frames=grey_frames([100] * num_frames, 240, 320))
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _PEAK, str(tmp_path / "short"), str(tmp_path / "long")]
    run = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    grown_mb, heavy = run.stdout.split("\n")[:2]
    assert float(grown_mb) < 20  # all frames would be 110 MB
    assert not heavy
