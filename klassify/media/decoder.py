"""The one place that decodes: RGB frames on the 40 ms grid, and sound as 16 kHz mono.

Both are on the clip's clock (klassify.media.container). Frames are RGB uint8 (H, W, 3) at 25 a
second whatever the file holds: cell k of the grid, [0.04 k, 0.04 (k+1)) seconds, shows the frame
that is on screen at its middle, and is black before the first frame that can be decoded. A file
with constant 25 fps passes through unchanged, every decoded frame exactly once; other rates, and
variable ones, repeat or skip frames by presentation time, never by count. Sound lies at its time
stamps, with silence in its gaps.

Damaged packets are concealed, as FFmpeg does it, and counted; more than a share of them
(DAMAGE_LIMIT, or $KLASSIFY_DAMAGE) is a MediaError, and so is a file that is not media. Everything
is streamed, so memory does not grow with a clip's length.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar

import av
import cv2
import numpy as np

from klassify.media.container import (
    MediaError,
    Streams,
    explained,
    frame_size,
    opened,
    streams_of,
    zero_of,
)
from klassify.media.flow import Flow
from klassify.media.picture import Picture, square_size

GRID_FPS = 25
SAMPLE_RATE = 16_000
MAX_SECONDS = 3600.0  # a broken time stamp can claim years
# how long one picture may stay: longer than a slide, and than the longest clips, which may show a
# single one. A longer gap is a broken time stamp, which would fill an hour with copies.
MAX_STILL_S = 900.0
# of one decoded block of sound: codecs end theirs after seconds, and resampling takes memory many
# times its size
MAX_BLOCK_S = 300.0
LOST_S = 1.0  # of sound; the ends of a resampler's filter lose less
# sound follows its time stamps where they differ from the count of samples by more: with the time
# until that is noticed it is never off by 20 ms
DRIFT_S = 0.015
ROUNDING_S = 0.002  # of time stamps in milliseconds
# jumps go to a key frame this long before: key frames are indexed in decoding order
LEAD_S = 1.0
EPS_S = 1e-6
T = TypeVar("T")


class Sound(NamedTuple):
    """What decode_audio gives.

    wave: float32 (n,) in [-1, 1] at 16 kHz. gaps: [start, stop) in samples of the silence where the
    file has no sound. notes: what a user should know: concealed damage.
    """

    wave: np.ndarray
    gaps: Sequence[tuple[int, int]] = ()
    notes: Sequence[str] = ()


class _Stamp(NamedTuple):
    """The times of a packet, without its content."""

    pts: int | None
    duration: int | None
    time_base: Fraction | None


def read_audio(path: str | os.PathLike) -> np.ndarray:
    """The sound as float32 (n,) in [-1, 1] at 16 kHz from the clip's zero on: the plain mean of its
    channels.

    A file without audio gives an empty array, which is a normal state. Raises MediaError.
    """
    return decode_audio(path).wave


def decode_audio(path: str | os.PathLike) -> Sound:
    """The sound as read_audio gives it, and where there is none. Raises MediaError."""
    with opened(path) as container:
        chosen = streams_of(container)
        if chosen.audio is None:
            return Sound(np.zeros(0, np.float32))
        zero = zero_of(path, chosen)
        flow, sound = Flow(path, container, chosen.audio), _Sound(path)
        seconds, held = 0.0, None
        for frame in itertools.chain(flow.frames(), [None]):
            time = None
            if frame is not None:
                seconds += _block_seconds(path, frame)
                if seconds > MAX_SECONDS:
                    raise MediaError(f"The audio is longer than {MAX_SECONDS:.0f} s.", where=path)
                if frame.pts is not None and frame.time_base:
                    time = float(frame.pts * frame.time_base)
                    zero = time if zero is None else zero
                    time -= zero
            if held is not None:
                sound.add(*held, time)
            held = (frame, time)
        if flow.n_damaged and flow.end is not None and zero is not None:
            sound.lengthen(flow.end - zero)
    wave = sound.wave()
    if not np.isfinite(wave).all():
        raise MediaError("The audio has samples that are not finite numbers.", where=path)
    return Sound(np.clip(wave, -1.0, 1.0, out=wave), sound.gaps, flow.notes())


class _Sound:
    """Decoded blocks of sound, resampled and laid at their time stamps.

    Blocks of one rate and layout whose time stamps agree with the count of their samples make a
    stretch, which goes through one resampler. A gap before a stretch is silence, and an overlap
    with the stretch before is cut.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self.blocks: list[np.ndarray] = []
        self.length = 0  # samples in the blocks
        self.gaps: list[tuple[int, int]] = []  # of them, those without sound
        self.cut = 0  # samples of this stretch that still have to be cut
        self.end = 0.0  # seconds at which the next block follows
        self.heard, self.resampled = 0.0, 0  # seconds that came in, samples that came out
        self.shape: tuple | None = None
        self.resampler: av.AudioResampler | None = None

    def add(self, block: av.AudioFrame, time: float | None, next_time: float | None) -> None:
        """Add a block with its time and that of the block after it."""
        seconds = _block_seconds(self.path, block)
        late = 0.0 if time is None else time - self.end
        if self.resampler is not None and next_time is not None:
            later = next_time - self.end - seconds
            # a single odd time stamp does not count: only as late as the next block is, too
            late = min(late, later, key=abs) if late * later > 0 else 0.0
        jumps = abs(late) > (ROUNDING_S if self.resampler is None else DRIFT_S)
        shape = (block.sample_rate, block.layout.name, block.format.name)
        if shape != self.shape or jumps:
            self._flush()
            # interleaved: PyAV crashes on 8 planes
            self.shape, self.resampler = shape, av.AudioResampler(format="flt", rate=SAMPLE_RATE)
        if jumps:
            self.end += late
            if self.end + seconds > MAX_SECONDS:
                raise MediaError(
                    f"The audio is stamped {self.end:.0f} s after the start; the limit is"
                    f" {MAX_SECONDS:.0f} s.",
                    where=self.path,
                )
            begin = round(self.end * SAMPLE_RATE)
            self._silence(begin - self.length)
            self.cut = self.length - begin
        self.end += seconds
        self.heard += seconds
        self._resample(block)

    def lengthen(self, seconds: float) -> None:
        """Add silence up to a time, in place of damaged sound at the end."""
        if seconds > self.end + DRIFT_S and seconds <= MAX_SECONDS:
            self._flush()
            self._silence(round(seconds * SAMPLE_RATE) - self.length)

    def wave(self) -> np.ndarray:
        """All samples."""
        self._flush()
        came_out = self.resampled / SAMPLE_RATE
        if came_out < self.heard - LOST_S:  # the resampler does not report its failures
            raise MediaError(
                f"Of {self.heard:.1f} s of audio only {came_out:.1f} s could be resampled.",
                where=self.path,
            )
        return np.concatenate(self.blocks) if self.blocks else np.zeros(0, np.float32)

    def _silence(self, n: int) -> None:
        if n > 0:
            self.blocks.append(np.zeros(n, np.float32))
            self.gaps.append((self.length, self.length + n))
            self.length += n

    def _flush(self) -> None:
        if self.resampler is not None:
            self._resample(None)
            self.shape = self.resampler = None
            self.cut = 0

    def _resample(self, block: av.AudioFrame | None) -> None:
        for part in self.resampler.resample(block):
            channels = part.to_ndarray().reshape(-1, part.layout.nb_channels)
            samples = channels.mean(axis=1, dtype=np.float32)
            self.resampled += len(samples)
            n_cut = min(max(self.cut, 0), len(samples))
            self.cut -= n_cut
            self.blocks.append(samples[n_cut:])
            self.length += len(samples) - n_cut


def _block_seconds(path: str | os.PathLike, frame: av.AudioFrame) -> float:
    """The length of a decoded block of sound; MediaError for one that no codec makes."""
    seconds = frame.samples / frame.sample_rate if frame.sample_rate else math.inf
    if seconds > MAX_BLOCK_S:
        raise MediaError(
            f"One block of the audio is {seconds:.0f} s long; the limit is {MAX_BLOCK_S:.0f} s.",
            where=path,
        )
    return seconds


def iter_frames(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """RGB uint8 (H, W, 3) frames on the 25 fps grid from the clip's zero on, upright, with square
    pixels, in time order; black before the first one that can be decoded.

    All have the size of the first. A frame that spans several cells is yielded as the same array
    each time: do not write into it. Raises MediaError, perhaps after some frames, for a file that
    cannot be decoded.
    """
    yield from _cells(path)


def frames_at(path: str | os.PathLike, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Those of the frames of `iter_frames` at these ascending indices that the clip reaches.

    Decoding goes on to the end, so that damage anywhere is noticed. Raises MediaError.
    """
    if len(indices):
        yield from (frame for frame in _cells(path, set(indices)) if frame is not None)


def thumbnails_at(
    path: str | os.PathLike, indices: Sequence[int], longest: int
) -> Iterator[np.ndarray]:
    """`frames_at`, scaled by area so that the longer side has `longest` pixels.

    Jumps over what is not shown where time stamps and index are exact; damage in between is not
    noticed. Raises MediaError.
    """
    frames = _jumped_to(path, indices) or frames_at(path, indices)
    for frame in frames:
        scale = longest / max(frame.shape[:2])
        size = [max(1, round(side * scale)) for side in frame.shape[1::-1]]
        yield cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def _cells(path: str | os.PathLike, wanted: Container[int] | None = None) -> Iterator:
    """The frames of `iter_frames`; None, unconverted, for those whose index is not wanted."""
    n_before, black = 0, None
    for number, picture in enumerate(on_grid(pictures(path))):
        if picture is None:
            n_before += 1
            continue
        if black is None:
            black = np.zeros((picture.height, picture.width, 3), np.uint8)
            for before in range(n_before):
                yield black if wanted is None or before in wanted else None
        yield picture.rgb() if wanted is None or number in wanted else None


def _jumped_to(path: str | os.PathLike, indices: Sequence[int]) -> list[np.ndarray]:
    """`frames_at`, decoded from the key frame before each; [] for a file that must be decoded
    whole, without exact time stamps or with damage on the way.
    """
    found: list[np.ndarray] = []
    with opened(path) as container:
        chosen = streams_of(container)
        stream, zero = video_of(path, chosen), zero_of(path, chosen)
        frames = container.decode(stream)
        keys = [entry.timestamp for entry in stream.index_entries if entry.is_keyframe]
        try:
            ahead = next(frames)
            size = square_size(stream, ahead)
            shown, time = None, ahead.time
            for index in indices:
                middle = zero + (index + 0.5) / GRID_FPS + EPS_S
                at = bisect.bisect(keys, (middle - LEAD_S) / stream.time_base)
                if at and keys[at - 1] * stream.time_base > time:
                    container.seek(keys[at - 1], stream=stream)
                    frames = container.decode(stream)
                    shown, ahead = None, next(frames)
                    time = ahead.time
                while time < middle:
                    shown, ahead = ahead, next(frames, None)
                    time = ahead.time if ahead is not None else math.inf
                if shown is None:
                    return []
                found.append(Picture(shown, size).rgb())
        except (av.error.FFmpegError, StopIteration, TypeError, AttributeError):
            return []  # damaged, or a frame or its time is missing
    return found


@dataclasses.dataclass
class About:
    """A clip's own rate, and what a user should know of its picture."""

    fps: float = 0.0
    notes: Sequence[str] = ()


def pictures(
    path: str | os.PathLike, about: About | None = None
) -> Iterator[tuple[float, float, Picture]]:
    """Every decoded picture of a clip, and when it is on screen: (start, stop, picture), in seconds
    from the clip's zero. The last one may come twice, with a later stop. Raises MediaError.

    about: is filled in, the notes after the last picture.
    """
    with opened(path) as container:
        chosen = streams_of(container)
        stream = video_of(path, chosen)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        flow = Flow(path, container, stream)
        if about is not None:
            about.fps = rate
        size, shown, picture = None, None, None
        timed = _timed(path, flow.frames(), 1 / (rate or GRID_FPS), zero_of(path, chosen), flow)
        for start, stop, frame in timed:
            if frame is not shown:
                size = size or square_size(stream, frame)
                shown, picture = frame, Picture(frame, size)
            yield start, stop, picture
        if about is not None:
            about.notes = flow.notes()


def video_of(path: str | os.PathLike, chosen: Streams) -> av.VideoStream:
    """The chosen picture, to be decoded by one thread: clips are parallel, and what counts as
    damaged depends on the threads. Raises MediaError where there is none.
    """
    if chosen.video is None:
        raise MediaError("There is no video stream.", where=path)
    frame_size(path, chosen.video)
    chosen.video.codec_context.thread_count = 1
    return chosen.video


def count_frames(path: str | os.PathLike) -> int:
    """How many frames `iter_frames` yields for an undamaged file, from the packets' time stamps,
    without decoding.

    Raises MediaError for what is not a video.
    """
    with opened(path) as container:
        chosen = streams_of(container)
        stream = video_of(path, chosen)
        rate = float(stream.average_rate or stream.guessed_rate or GRID_FPS)
        packets = []
        with explained(path), contextlib.suppress(av.error.FFmpegError):  # as in decoding
            for packet in container.demux(stream):
                if packet.size and not packet.is_discard:
                    packets.append(_Stamp(packet.pts, packet.duration, packet.time_base))
        if all(packet.pts is not None for packet in packets):
            packets.sort(key=lambda packet: packet.pts)  # they come in decoding order
        return sum(1 for _ in on_grid(_timed(path, packets, 1 / rate, zero_of(path, chosen))))


def on_grid(shown: Iterable[tuple[float, float, T]]) -> Iterator[T | None]:
    """Sample what is on screen at the middle of every 40 ms cell; None before the first item.

    shown: (start, end, item) in seconds from 0, in order; an item stays until the next one starts,
    the last until its end.
    """
    k, held, end = 0, None, 0.0
    for start, stop, item in shown:
        while (k + 0.5) / GRID_FPS < start - EPS_S:
            yield held
            k += 1
        held, end = item, stop
    while held is not None and (k + 0.5) / GRID_FPS < end - EPS_S:
        yield held
        k += 1


def _timed(
    path: str | os.PathLike,
    frames: Iterable,
    period: float,
    zero: float | None,
    flow: Flow | None = None,
) -> Iterator[tuple[float, float, Any]]:
    """(start, end, item) of frames or packets, in seconds from zero (None: from the first); one
    without a time stamp follows the one before it.

    flow: their stream; the last frame stays until its end if frames were lost.
    """
    last, stop, frame = -period, 0.0, None
    for frame in frames:
        time = float(frame.pts * frame.time_base) if frame.pts is not None else None
        if zero is None:
            zero = time or 0.0
        start = last + period if time is None else max(time - zero, last, 0.0)
        if start > MAX_SECONDS:
            raise MediaError(
                f"A frame is stamped {start:.0f} s after the start; the limit is"
                f" {MAX_SECONDS:.0f} s.",
                where=path,
            )
        _check_still(path, start - last)
        own = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
        stop = start + (own if period <= own < MAX_SECONDS else period)
        yield start, stop, frame
        last = start
    _check_still(path, stop - last)
    if frame is not None and flow is not None and flow.n_damaged and flow.end is not None:
        yield last, min(max(stop, flow.end - zero), last + MAX_STILL_S), frame


def _check_still(path: str | os.PathLike, seconds: float) -> None:
    if seconds > MAX_STILL_S:
        raise MediaError(
            f"One picture stays for {seconds:.0f} s; the limit is {MAX_STILL_S:.0f} s.", where=path
        )
