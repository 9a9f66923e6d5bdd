"""Opens MP4 files and tells whole ones from cut ones."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import av
from av.codec import CodecContext
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream

from data_pipelines.errors import MediaError

# FFmpeg would take a playlist for a clip, too, and open what it names.
_FORMATS = "mov"  # its name for MP4 and QuickTime
# Titles and comments are in any encoding; nobody reads them. PyAV 19 minds none.
_TEXT: dict[str, Any] = (
    {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
)


@contextmanager
def opened(
    file: Path | BinaryIO, name: str, *, ignore_editlist: bool = False
) -> Generator[InputContainer]:
    """Opens an MP4 file; what the demuxer or a decoder raises in the block becomes a MediaError.

    Args:
      file: path, or a file that can be seeked in; it is read from its beginning.
      name: what messages call it.
      ignore_editlist: gives all that is stored. Otherwise the edit list says what is shown; FFmpeg
        marks packets that are decoded but not shown, and drops those that need not be decoded.

    Yields:
      The container.

    Raises:
      MediaError: the file is empty, missing or not MP4, or the block met damaged data.
    """
    try:
        if not isinstance(file, Path):
            file.seek(0)
        options = {"format_whitelist": _FORMATS, "ignore_editlist": str(int(ignore_editlist))}
        with av.open(file, "r", options=options, **_TEXT) as container:
            yield container
    except MediaError:
        raise
    except FFmpegError as error:
        if _is_empty(file):
            raise MediaError(f"{name}: the file is empty") from None
        reason = error.strerror or type(error).__name__
        raise MediaError(f"{name}: not an MP4 file, truncated or damaged ({reason})") from None


def count_packets(file: Path | BinaryIO, name: str, kind: Literal["audio", "video"]) -> int:
    """Counts the packets of the first stream of a kind that are shown, without decoding any.

    A packet of a video is a frame. Sound that is not compressed is counted in samples. A clip that
    was cut out of a longer one without encoding it anew begins with what its first frame needs; its
    edit list leaves that out, and it does not count. It must be there all the same.

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
    with opened(file, name, ignore_editlist=True) as container:
        stream = first_stream(container, name, kind)
        stored = 0
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise MediaError(f"{name}: truncated or damaged within its {kind}")
            stored += _length(packet)
        if stored < stream.frames:
            raise MediaError(
                f"{name}: truncated: {stored} of {stream.frames} packets of its {kind} are there"
            )
    with opened(file, name) as container:
        packets = container.demux(first_stream(container, name, kind))
        shown = sum(_length(packet) for packet in packets if not packet.is_discard)
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


def _length(packet: "Packet[Stream]") -> int:
    """Returns what a packet counts: the number of samples where they are not compressed, or one."""
    if not packet.size:  # the demuxer's way to say that the stream has ended
        return 0
    is_pcm = packet.stream.codec_context.name.startswith("pcm_")
    return (packet.duration or 0) if is_pcm else 1


def _is_empty(file: Path | BinaryIO) -> bool:
    """Tells an empty file from one that is merely not MP4."""
    if isinstance(file, Path):
        return file.is_file() and file.stat().st_size == 0
    return file.seek(0, 2) == 0
