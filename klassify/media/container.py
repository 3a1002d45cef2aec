"""Opens media files: which formats are read, which streams a player takes, and on which clock.

Sound and picture share one clock. Its zero is where a player starts: the start of the earlier of
the two streams.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.logging

from klassify.errors import KlassifyError

MAX_PIXELS = 8192 * 4320  # a header can claim any size; decoders allocate what it claims
# Containers and elementary streams, each a single file. Playlists (hls, concat, sdp, ...) and
# patterns of image names (image2) read other files, text is drawn (tty), and devices are not
# files: a format that is not listed here is not opened.
FORMATS = (
    "mov,matroska,avi,asf,flv,mpeg,mpegts,mxf,gxf,nut,rm,dv,wtv,nsv,ivf,"
    "h261,h263,h264,hevc,vvc,av1,obu,vc1,dirac,m4v,mpegvideo,mjpeg,yuv4mpegpipe,"
    "gif,apng,png_pipe,jpeg_pipe,bmp_pipe,tiff_pipe,webp_pipe,"
    "ogg,wav,w64,aiff,au,caf,mp3,flac,aac,loas,ac3,eac3,dts,dtshd,mlp,truehd,amr,ape,mpc,mpc8,tak,"
    "tta,voc,wv,nistsphere"
)
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
# files with these suffixes are taken from folders: most of what can be opened
TAKEN = (
    ".3g2 .3gp .asf .avi .divx .dv .f4v .flv .gif .m2t .m2ts .m2v .m4v .mjpeg .mjpg .mkv .mov .mp4"
    " .mpe .mpeg .mpg .mts .mxf .nsv .nut .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv .wtv .y4m"
    " .aac .ac3 .aif .aifc .aiff .amr .ape .au .caf .dts .eac3 .flac .m4a .m4b .mka .mp2 .mp3 .mpc"
    " .oga .ogg .opus .spx .tak .tta .voc .w64 .wav .wma .wv"
)
SUFFIXES = frozenset(TAKEN.split())
MAC_ARCHIVE_FOLDER = "__MACOSX"  # of companion files with the names of the media

av.logging.set_level(av.logging.PANIC)  # FFmpeg's own messages would break progress bars


class MediaError(KlassifyError):
    """A media file that cannot be read whole; `where` is its path."""


class Streams(NamedTuple):
    """The streams that a player takes, None where there is none."""

    video: av.VideoStream | None
    audio: av.AudioStream | None


def inside(root: str | os.PathLike, file: str) -> Path:
    """The path of a listed file in its media folder; MediaError for a name that leads out of it."""
    if os.path.isabs(file) or ".." in Path(file).parts or "\0" in file:
        raise MediaError(f"The name {file!r} leads out of the media folder.", where=root)
    return Path(root) / file


def media_below(folder: str | os.PathLike) -> tuple[list[Path], list[Path]]:
    """The media files below a folder, recognised by suffix, and the other files, both sorted.

    Names that start with a dot, and macOS's companion files, are in neither list.
    """
    folder = Path(folder)
    media, others = [], []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part == MAC_ARCHIVE_FOLDER for part in parts)
        if not hidden and path.is_file():
            (media if path.suffix.lower() in SUFFIXES else others).append(path)
    return media, others


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[av.container.InputContainer]:
    """Open one local file; playlists in it are not followed to other files or hosts."""
    path = Path(path)
    with explained(path):
        if path.exists() and not path.is_file():  # reading a pipe would wait forever
            raise MediaError("This is not a regular file.", where=path)
        if path.is_file() and path.stat().st_size == 0:
            raise MediaError("The file is empty.", where=path)
        with av.open(str(path.absolute()), options=OPTIONS, metadata_errors="replace") as container:
            yield container


@contextlib.contextmanager
def explained(path: str | os.PathLike) -> Iterator[None]:
    """Turn errors of the decoder into MediaError."""
    try:
        yield
    except (av.error.FFmpegError, OSError, ValueError, ArithmeticError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        log = getattr(error, "log", None)
        if log and "Format not on whitelist" in log[2]:
            reason = f"format {log[1]} is not read; playlists and patterns are not followed"
        elif log:
            reason += f" ({log[2].strip()})"
        raise MediaError(f"Cannot decode: {reason}.", where=path) from None


def streams_of(container: av.container.InputContainer) -> Streams:
    """The picture and the sound that a player takes: the default track, else the best one, and
    the sound that belongs to the picture. Cover pictures are left out.
    """
    video = _player_choice(container, "video", None)
    return Streams(video, _player_choice(container, "audio", video))


def tracks_of(container: av.container.InputContainer, kind: str) -> list:
    """The streams of a kind that a player could take: those with a known codec, if any."""
    covers = av.stream.Disposition.attached_pic
    tracks = [s for s in getattr(container.streams, kind) if not s.disposition & covers]
    return [stream for stream in tracks if stream.codec_context is not None] or tracks


def _player_choice(container: av.container.InputContainer, kind: str, related: Any) -> Any:
    tracks = tracks_of(container, kind)
    best = container.streams.best(kind, related=related) if len(tracks) > 1 else None
    if best is not None and any(stream.index == best.index for stream in tracks):
        return best
    return max(tracks, key=is_default, default=None)


def is_default(stream: av.VideoStream | av.AudioStream) -> bool:
    """Whether a file marks this track as the default."""
    return bool(stream.disposition & av.stream.Disposition.default)


def start_of(path: str | os.PathLike, stream: av.VideoStream | av.AudioStream) -> float | None:
    """When a stream starts, in seconds on the container's clock; None if the file does not say."""
    if stream.start_time is None or stream.time_base is None:
        return None
    if stream.codec_context is not None and stream.codec_context.name == "opus":
        # FFmpeg's start of Opus in Matroska is late by a part of a packet
        with contextlib.suppress(MediaError), opened(path) as again, explained(path):
            frame = next(again.decode(again.streams[stream.index]), None)
            if frame is not None and frame.pts is not None:
                return float(frame.pts * frame.time_base)
    return float(stream.start_time * stream.time_base)


def zero_of(path: str | os.PathLike, chosen: Streams) -> float | None:
    """Where a player starts, in seconds on the container's clock; None: at each first frame."""
    starts = [start_of(path, stream) for stream in chosen if stream is not None]
    return None if chosen.video is None or None in starts else min(starts)


def frame_size(path: str | os.PathLike, stream: av.VideoStream) -> tuple[int, int]:
    """Width and height in the header; MediaError if no decoder should be asked for them."""
    if stream.codec_context is None:
        raise MediaError("The video codec is unknown.", where=path)
    width, height = stream.codec_context.width, stream.codec_context.height
    if not 0 < width * height <= MAX_PIXELS:
        raise MediaError(
            f"Frames of {width}x{height} are empty or beyond {MAX_PIXELS} pixels.", where=path
        )
    return width, height


def container_traits(path: str | os.PathLike) -> dict[str, float | str]:
    """What a file says without decoding: sizes, times, rates, codecs and tags, by name.

    A missing stream, or one of an unknown codec, has zeros. MediaError for other files.
    """
    path = Path(path)
    with opened(path) as container:
        video, audio = streams_of(container)
        parts = [part for part in (container, video, audio) if part is not None]
        codecs = [part.codec_context for part in parts[1:]]
        tags = sorted(f"{key}={value}" for part in parts for key, value in part.metadata.items())
        return {
            "bytes": path.stat().st_size,
            "duration_s": container.duration / av.time_base if container.duration else 0.0,
            "bit_rate": container.bit_rate or 0,
            "video_bit_rate": _of_codec(video, "bit_rate"),
            "audio_bit_rate": _of_codec(audio, "bit_rate"),
            "video_frames": video.frames if video else 0,
            "audio_packets": audio.frames if audio else 0,
            "width": _of_codec(video, "width"),
            "height": _of_codec(video, "height"),
            "audio_rate": _of_codec(audio, "rate"),
            "codecs": " ".join(f"{c.name}/{c.profile}" if c else "unknown" for c in codecs),
            "tags": "; ".join(tags),
        }


def _of_codec(stream: Any, name: str) -> int:
    codec = None if stream is None else stream.codec_context
    return getattr(codec, name, None) or 0
