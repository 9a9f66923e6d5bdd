"""Opens MP4 files and tells whole ones from cut ones."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

import av
from av.codec import CodecContext
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Stream

from data_pipelines.errors import MediaError

# FFmpeg would take a playlist for a clip, too, and open what it names.
_FORMATS = "mov"  # its name for MP4 and QuickTime


@contextmanager
def opened(file: Path | BinaryIO, name: str) -> Generator[InputContainer]:
    """Opens an MP4 file; what the demuxer or a decoder raises in the block becomes a MediaError.

    Args:
      file: path, or a file that can be seeked in; it is read from its beginning.
      name: what messages call it.

    Yields:
      The container.

    Raises:
      MediaError: the file is empty, missing or not MP4, or the block met damaged data.
    """
    try:
        if not isinstance(file, Path):
            file.seek(0)
        options = {"format_whitelist": _FORMATS}
        # Titles and comments are in any encoding; nobody reads them.
        with av.open(file, "r", options=options, metadata_errors="ignore") as container:
            yield container
    except MediaError:
        raise
    except FFmpegError as error:
        if _is_empty(file):
            raise MediaError(f"{name}: the file is empty") from None
        reason = error.strerror or type(error).__name__
        raise MediaError(f"{name}: not an MP4 file, truncated or damaged ({reason})") from None


def count_packets(file: Path | BinaryIO, name: str, kind: Literal["audio", "video"]) -> int:
    """Counts the packets of the first stream of a kind, without decoding any.

    A packet of a video is a frame. Sound that is not compressed is counted in samples. What is
    decoded but never shown, since it precedes the first frame of a clip that was cut out of a
    longer one, does not count.

    Args:
      file: as for `opened`.
      name: what messages call it.
      kind: of the stream.

    Returns:
      Their number, at least 1.

    Raises:
      MediaError: not MP4, no such stream, nothing in it, or less than the file promises. An MP4 in
        fragments promises nothing: one that ends between two of them is taken as it is.
    """
    found = shown = 0
    with opened(file, name) as container:
        stream = first_stream(container, name, kind)
        is_pcm = stream.codec_context.name.startswith("pcm_")
        for packet in container.demux(stream):
            if not packet.size:  # the demuxer's way to say that the stream has ended
                continue
            if packet.is_corrupt:
                raise MediaError(f"{name}: truncated or damaged within its {kind}")
            length = (packet.duration or 0) if is_pcm else 1
            found += length
            shown += 0 if packet.is_discard else length
        if found < stream.frames:
            raise MediaError(
                f"{name}: truncated: {found} of {stream.frames} packets of its {kind} are there"
            )
    if not shown:
        raise MediaError(f"{name}: the {kind} has no length")
    return shown


def first_stream(container: InputContainer, name: str, kind: Literal["audio", "video"]) -> Stream:
    """Returns the first stream of a kind, to be decoded in the calling thread.

    Args:
      container: an open one.
      name: what messages call it.
      kind: of the stream.

    Returns:
      The stream.

    Raises:
      MediaError: there is none, or FFmpeg does not know its codec.
    """
    streams = container.streams.video if kind == "video" else container.streams.audio
    if not streams:
        raise MediaError(f"{name}: no {kind} in it")
    context = cast(CodecContext | None, streams[0].codec_context)  # PyAV's types know of no None
    if context is None:
        raise MediaError(f"{name}: nothing decodes its {kind}")
    # Clips are decoded in parallel by processes: threads on top of them would only get in the way.
    context.thread_count = 1
    return cast(Stream, streams[0])


def _is_empty(file: Path | BinaryIO) -> bool:
    """Tells an empty file from one that is merely not MP4."""
    if isinstance(file, Path):
        return file.is_file() and file.stat().st_size == 0
    return file.seek(0, 2) == 0
