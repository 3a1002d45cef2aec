"""The one place that decodes: frames on the 40 ms grid, audio as 16 kHz mono, and a probe of both.

Frames leave here as RGB uint8 (H, W, 3) at 25 a second whatever the file holds: cell k of the grid,
[0.04 k, 0.04 (k+1)) seconds from the first frame, shows the frame that is on screen at its middle.
A file with constant 25 fps passes through untouched, every decoded frame exactly once; other rates
and variable ones repeat or skip frames by presentation time, never by count.

Everything is streamed, so memory does not grow with a clip's length. A file that cannot be decoded
whole (no media, damaged, cut off) is a MediaError that names it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import av.logging
import cv2
import numpy as np

from klassify.errors import KlassifyError

GRID_FPS = 25
SAMPLE_RATE = 16_000
MAX_PIXELS = 8192 * 4320  # a header can claim any size; decoders allocate what it claims
MAX_SECONDS = 3600.0  # a broken time stamp can claim years
# how long one picture may stay: longer than the longest clips, eleven minutes, which may show a
# single one, and than any slide. A gap beyond it is a broken time stamp, which would fill an hour
# with copies of one picture.
MAX_STILL_S = 900.0
# of one decoded block of sound: codecs end theirs after seconds, and resampling takes memory many
# times its size
MAX_BLOCK_S = 300.0
LOST_S = 1.0  # of sound: more than this is not lost at the ends of a resampler's filter
EPS_S = 1e-6
ENDS_STATED = (
    "matroska,webm",
    "nut",
    "ogg",
    "asf",
)  # what these call a duration is the time of the end
CLOCK = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")

# containers and elementary streams, each one file of its own. A playlist (hls, concat, sdp, ...)
# and a pattern of image names (image2) read other files, text is drawn (tty), and devices are no
# files: what is not here is not opened.
FORMATS = (
    "mov,matroska,avi,asf,flv,mpeg,mpegts,mxf,gxf,nut,rm,dv,wtv,nsv,ivf,"
    "h261,h263,h264,hevc,vvc,av1,obu,vc1,dirac,m4v,mpegvideo,mjpeg,yuv4mpegpipe,"
    "gif,apng,png_pipe,jpeg_pipe,bmp_pipe,tiff_pipe,webp_pipe,"
    "ogg,wav,w64,aiff,au,caf,mp3,flac,aac,loas,ac3,eac3,dts,dtshd,mlp,truehd,amr,ape,mpc,mpc8,tak,tta,voc,wv,nistsphere"
)
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS}

# what cv2 turns to RGB at half the cost, and without the offset of about 1, of swscale: BT.601,
# video range
BT601_COLORSPACES = (2, 5, 6)  # 2: not said
VIDEO_RANGES = (0, 1)  # 0: not said

T = TypeVar("T")


class MediaError(KlassifyError):
    """A media file that cannot be read whole; `where` is its path."""


@dataclasses.dataclass(frozen=True)
class MediaInfo:
    """What the container says, without decoding. Zeros where a stream is missing.

    n_frames, fps, width, height: of the video as stored (not of the 25 fps grid).
    n_samples: expected samples at 16 kHz; the decoded count may be larger by one codec frame.
    duration: seconds, of the longer stream.
    """

    n_frames: int
    fps: float
    width: int
    height: int
    n_samples: int
    duration: float
    has_audio: bool
    has_video: bool


class _Stamp(NamedTuple):
    """The times of a packet, without what it holds."""

    pts: int | None
    duration: int | None
    time_base: Fraction | None


def inside(root: str | os.PathLike, file: str) -> Path:
    """The path of a listed file below its media folder; a name that leads out of it is a
    MediaError.
    """
    if os.path.isabs(file) or ".." in Path(file).parts or "\0" in file:
        raise MediaError(f"The name {file!r} leads out of the media folder.", where=root)
    return Path(root) / file


def probe(path: str | os.PathLike) -> MediaInfo:
    """Read a file's headers. Raises MediaError where there is no media."""
    with opened(path) as container:
        video = container.streams.video[0] if container.streams.video else None
        audio = container.streams.audio[0] if container.streams.audio else None
        n_frames, fps, width, height, video_s, audio_s = 0, 0.0, 0, 0, 0.0, 0.0
        if video is not None:
            width, height = _frame_size(path, video)
            fps = float(video.average_rate or video.guessed_rate or 0)
            n_frames = video.frames or _count_packets(container, video)
            video_s = _stream_seconds(video, container) or (n_frames / fps if fps else 0.0)
        if audio is not None:
            audio_s = _stream_seconds(audio, container)
        return MediaInfo(
            n_frames=n_frames,
            fps=fps,
            width=width,
            height=height,
            n_samples=round(audio_s * SAMPLE_RATE),
            duration=max(video_s, audio_s),
            has_audio=audio is not None,
            has_video=video is not None,
        )


def read_audio(path: str | os.PathLike) -> np.ndarray:
    """The first audio stream as float32 (n,) in [-1, 1] at 16 kHz: the plain mean of its channels.

    A file without audio gives an empty array, which is a normal state. Raises MediaError.
    """
    blocks = []
    seconds = 0.0
    with opened(path) as container:
        if not container.streams.audio:
            return np.zeros(0, np.float32)
        resampler = av.AudioResampler(
            format="flt", rate=SAMPLE_RATE
        )  # interleaved: PyAV crashes on 8 planes
        decoded = _decoded(path, container, container.streams.audio[0])
        for frame in itertools.chain(decoded, [None]):  # which flushes the resampler
            if frame is not None:
                seconds += _block_seconds(path, frame)
            if seconds > MAX_SECONDS:
                raise MediaError(f"The audio is longer than {MAX_SECONDS:.0f} s.", where=path)
            for block in resampler.resample(frame):
                channels = block.to_ndarray().reshape(-1, block.layout.nb_channels)
                blocks.append(channels.mean(axis=1, dtype=np.float32))
    wave = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if (
        len(wave) < (seconds - LOST_S) * SAMPLE_RATE
    ):  # the resampler says nothing of what it cannot do
        raise MediaError(
            f"Of {seconds:.1f} s of audio only {len(wave) / SAMPLE_RATE:.1f} s could be resampled.",
            where=path,
        )
    if not np.isfinite(wave).all():
        raise MediaError("The audio holds samples that are no finite numbers.", where=path)
    return np.clip(wave, -1.0, 1.0, out=wave)


def _block_seconds(path: str | os.PathLike, frame: av.AudioFrame) -> float:
    """How long a decoded block of sound is; MediaError for one that no codec makes."""
    seconds = frame.samples / frame.sample_rate if frame.sample_rate else math.inf
    if seconds > MAX_BLOCK_S:
        raise MediaError(
            f"One block of the audio is {seconds:.0f} s long; the limit is {MAX_BLOCK_S:.0f} s.",
            where=path,
        )
    return seconds


def iter_frames(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """RGB uint8 (H, W, 3) frames on the 25 fps grid, upright, in time order.

    A frame that spans several cells is yielded as the same array each time: do not write into it.
    Raises MediaError, perhaps after some frames, for a file that cannot be decoded whole.
    """
    with opened(path) as container:
        if not container.streams.video:
            raise MediaError("There is no video stream.", where=path)
        stream = container.streams.video[0]
        _frame_size(path, stream)
        stream.codec_context.thread_count = 1  # parallel over clips, not inside one
        rate = float(stream.average_rate or stream.guessed_rate or GRID_FPS)
        shown, image = None, None
        for frame in on_grid(_timed(path, _decoded(path, container, stream), 1 / rate)):
            if frame is not shown:
                size = (frame.width, frame.height)
                if shown is not None and size != (shown.width, shown.height):
                    raise MediaError(
                        f"The frame size changes from {shown.width}x{shown.height} to {size}.",
                        where=path,
                    )
                shown, image = frame, _rgb(frame)
            yield image


def frames_at(
    path: str | os.PathLike,
    indices: Sequence[int],
    *,
    longest: int | None = None,
    to_end: bool = False,
) -> Iterator[np.ndarray]:
    """Those of the frames of `iter_frames` at these ascending indices that the clip reaches.

    longest: pixels of the longer side to which each is scaled by area; None keeps the size.
    Decoding stops after the last of them, or with `to_end` goes on, so that damage behind it is
    noticed. Raises MediaError.
    """
    wanted = set(indices)
    last = math.inf if to_end else max(wanted, default=-1)
    if last < 0:
        return
    with contextlib.closing(iter_frames(path)) as frames:
        for number, frame in enumerate(frames):
            if number in wanted:
                yield frame if longest is None else _scaled(frame, longest)
            if number >= last:
                return


def _scaled(frame: np.ndarray, longest: int) -> np.ndarray:
    scale = longest / max(frame.shape[:2])
    size = [max(1, round(side * scale)) for side in frame.shape[1::-1]]
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def count_frames(path: str | os.PathLike) -> int:
    """How many frames `iter_frames` yields for a sound file, from the packets' time stamps, without
    decoding.

    Raises MediaError where there is no video stream.
    """
    with opened(path) as container:
        if not container.streams.video:
            raise MediaError("There is no video stream.", where=path)
        stream = container.streams.video[0]
        _frame_size(path, stream)
        rate = float(stream.average_rate or stream.guessed_rate or GRID_FPS)
        with _explained(path):
            packets = [
                _Stamp(packet.pts, packet.duration, packet.time_base)
                for packet in container.demux(stream)
                if packet.size and not packet.is_discard
            ]
        if all(packet.pts is not None for packet in packets):
            packets.sort(key=lambda packet: packet.pts)  # they come in decoding order
        return sum(1 for _ in on_grid(_timed(path, packets, 1 / rate)))


def on_grid(shown: Iterable[tuple[float, float, T]]) -> Iterator[T]:
    """Sample what is on screen at the middle of every 40 ms cell.

    shown: (start, end, item) in seconds from 0, in order; an item stays until the next one starts,
    the last until its end.
    """
    k, held, end = 0, None, 0.0
    for start, stop, item in shown:
        while held is not None and (k + 0.5) / GRID_FPS < start - EPS_S:
            yield held
            k += 1
        held, end = item, stop
    while held is not None and (k + 0.5) / GRID_FPS < end - EPS_S:
        yield held
        k += 1


def _timed(
    path: str | os.PathLike, frames: Iterable, period: float
) -> Iterator[tuple[float, float, Any]]:
    """Add the times of frames or packets from the first on; one without a time stamp follows the
    one before it.
    """
    first, last, stop = None, -period, 0.0
    for frame in frames:
        time = float(frame.pts * frame.time_base) if frame.pts is not None else None
        if first is None:
            first = time or 0.0
        start = last + period if time is None else max(time - first, last, 0.0)
        if start > MAX_SECONDS:
            raise MediaError(
                f"A frame is stamped {start:.0f} s after the first; the limit is"
                f" {MAX_SECONDS:.0f} s.",
                where=path,
            )
        _check_still(path, start - last)
        own = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
        stop = start + (own if period <= own < MAX_SECONDS else period)
        yield start, stop, frame
        last = start
    _check_still(path, stop - last)


def _check_still(path: str | os.PathLike, seconds: float) -> None:
    if seconds > MAX_STILL_S:
        raise MediaError(
            f"One picture stays for {seconds:.0f} s; the limit is {MAX_STILL_S:.0f} s.", where=path
        )


def _decoded(
    path: str | os.PathLike,
    container: av.container.InputContainer,
    stream: av.VideoStream | av.AudioStream,
) -> Iterator:
    """Decode one stream to its end; a damaged or missing packet is an error, not a shorter clip."""
    n_packets = 0
    with _explained(path):
        if stream.codec_context is None:
            raise MediaError("The codec is unknown.", where=path)
        for packet in container.demux(stream):
            n_packets += packet.size > 0
            if packet.is_corrupt:
                raise MediaError(
                    f"The file is damaged or cut off in packet {n_packets}.", where=path
                )
            yield from packet.decode()
        if n_packets < len(stream.index_entries):
            raise MediaError(
                f"The file ends after {n_packets} of {len(stream.index_entries)} packets.",
                where=path,
            )


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    common = (
        frame.format.name == "yuv420p"
        and frame.width % 2 == 0
        and frame.height % 2 == 0
        and frame.colorspace in BT601_COLORSPACES
        and frame.color_range in VIDEO_RANGES
    )
    if common:
        image = cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2RGB_I420)
    else:
        image = frame.to_ndarray(format="rgb24")
    if frame.rotation % 90 == 0 and frame.rotation % 360:
        image = np.ascontiguousarray(np.rot90(image, frame.rotation // 90))
    return image


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[av.container.InputContainer]:
    """Open a local file and nothing else: a playlist inside it must not reach other files or
    hosts.
    """
    path = Path(path)
    with _explained(path):
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise MediaError("This is no regular file.", where=path)
        if path.is_file() and path.stat().st_size == 0:
            raise MediaError("The file is empty.", where=path)
        with av.open(str(path.absolute()), options=OPTIONS, metadata_errors="replace") as container:
            yield container


@contextlib.contextmanager
def _explained(path: str | os.PathLike) -> Iterator[None]:
    """Turn the decoder's errors into MediaError."""
    try:
        yield
    except (av.error.FFmpegError, OSError, ValueError, ArithmeticError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        log = getattr(error, "log", None)
        if log and "Format not on whitelist" in log[2]:
            reason, log = (
                (
                    f"format {log[1]} is none of those that are read; playlists and patterns are"
                    " not followed"
                ),
                None,
            )
        raise MediaError(
            f"Cannot decode: {reason}{f' ({log[2].strip()})' if log else ''}.", where=path
        ) from None


def _frame_size(path: str | os.PathLike, stream: av.VideoStream) -> tuple[int, int]:
    """Width and height that the header claims, refused where no decoder should be asked for
    them.
    """
    if stream.codec_context is None:
        raise MediaError("The video codec is unknown.", where=path)
    width, height = stream.codec_context.width, stream.codec_context.height
    if not 0 < width * height <= MAX_PIXELS:
        raise MediaError(
            f"Frames of {width}x{height} are empty or beyond {MAX_PIXELS} pixels.", where=path
        )
    return width, height


def _stream_seconds(
    stream: av.VideoStream | av.AudioStream, container: av.container.InputContainer
) -> float:
    """How long a stream lasts; where it does not say, how long the container does."""
    if stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif clock := CLOCK.fullmatch(stream.metadata.get("DURATION", "")):  # of Matroska
        seconds = 3600 * int(clock[1]) + 60 * int(clock[2]) + float(clock[3])
    else:
        seconds = container.duration / av.time_base if container.duration else 0.0
    start = (
        float(stream.start_time * stream.time_base)
        if stream.start_time and stream.time_base
        else 0.0
    )
    return (
        seconds - start if container.format.name in ENDS_STATED and 0 < start < seconds else seconds
    )


def _count_packets(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    with contextlib.suppress(av.error.FFmpegError):
        return sum(packet.size > 0 for packet in container.demux(stream))
    return 0


av.logging.set_level(
    av.logging.PANIC
)  # what matters arrives as MediaError; the rest would break progress bars
