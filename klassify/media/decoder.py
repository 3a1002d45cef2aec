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
import functools
import itertools
import logging
import math
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar

import av
import cv2
import numpy as np
from av.sidedata.sidedata import SideDataContainer

from klassify.errors import KlassifyError
from klassify.media.container import (
    MAX_PIXELS,
    MediaError,
    Streams,
    explained,
    frame_size,
    opened,
    streams_of,
    zero_of,
)

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
DAMAGE_LIMIT = 0.1  # share of a stream's packets that may be damaged or missing
DAMAGE_VARIABLE = "KLASSIFY_DAMAGE"
# formats of which parts are converted alone: pixels in a row that share a value of colour
PLANES = {"yuv420p": 2, "yuvj420p": 2, "yuv444p": 1, "yuvj444p": 1}
SKETCH = (32, 18)
# shapes of pixels that are squared: encoders round a size to 1216:1215, damaged headers claim any
PIXEL_SHAPES, ROUND_SHAPE = (0.1, 10.0), 0.005
LEAD_S = (
    1.0  # a jump goes to a key frame this long before; key frames are indexed in decoding order
)
EPS_S = 1e-6

# by FFmpeg's numbers; 2 and 0 mean that the file does not say
BT601_COLORSPACES = (2, 5, 6)
LIMITED_RANGES = (0, 1)
# red's and blue's part of the luma: BT.709, BT.601
LUMA = {1: (0.2126, 0.0722), 2: (0.299, 0.114), 5: (0.299, 0.114), 6: (0.299, 0.114)}

T = TypeVar("T")
log = logging.getLogger(__name__)


class _Stamp(NamedTuple):
    """The times of a packet, without its content."""

    pts: int | None
    duration: int | None
    time_base: Fraction | None


def damage_limit() -> float:
    """The share of a stream's packets that may be damaged, from $KLASSIFY_DAMAGE; 0 allows none."""
    text = os.environ.get(DAMAGE_VARIABLE) or str(DAMAGE_LIMIT)
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 <= limit <= 1:
        raise KlassifyError(
            f"{DAMAGE_VARIABLE}={text!r} is not a share from 0 to 1.",
            fix=f"export {DAMAGE_VARIABLE}={DAMAGE_LIMIT}",
        )
    return limit


@contextlib.contextmanager
def refusing_damage(strict: bool = True) -> Iterator[None]:
    """Refuse any damage meanwhile, in processes that start meanwhile too; without `strict`, only
    check the limit before any work.
    """
    before = os.environ.get(DAMAGE_VARIABLE)
    if strict:
        os.environ[DAMAGE_VARIABLE] = "0"
    damage_limit()
    try:
        yield
    finally:
        if strict:
            del os.environ[DAMAGE_VARIABLE]
            os.environ.update({} if before is None else {DAMAGE_VARIABLE: before})


class Flow:
    """The decoded frames of one stream. Damage is concealed and counted.

    end: seconds on the container's clock at which its last packet ends; None if none says.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        container: av.container.InputContainer,
        stream: av.VideoStream | av.AudioStream,
    ):
        self.path, self.container, self.stream = path, container, stream
        self.what = "picture" if stream.type == "video" else "sound"
        self.limit = damage_limit()
        self.n_packets, self.n_damaged, self.end = 0, 0, None
        self.counted: set[int] = set()  # time stamps of damaged packets
        self.error: Exception | None = None

    def frames(self) -> Iterator:
        """All frames to the stream's end; MediaError if more than the limit is damaged."""
        n_frames = 0
        with explained(self.path):
            if self.stream.codec_context is None:
                raise MediaError("The codec is unknown.", where=self.path)
            for packet in self._packets():
                frames = self._frames_of(packet)
                n_frames += len(frames)
                yield from frames
            missing = len(self.stream.index_entries) - self.n_packets
            if missing > 0:
                self._damaged(missing)
                self.n_packets += missing
            if not n_frames and self.error is not None:
                raise self.error
        if self.n_damaged > self.limit * self.n_packets:
            raise MediaError(
                f"{self._share()} are damaged or missing; the limit is {100 * self.limit:g} %.",
                where=self.path,
            )
        for sentence in self.notes():
            log.warning("%s: %s", self.path, sentence)

    def _packets(self) -> Iterator[av.Packet]:
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:  # the rest cannot be found
                self._damaged(1, error)
                self.n_packets += 1
                return
            if packet is None:
                return
            if packet.size:
                self.n_packets += 1
                if packet.pts is not None and not packet.is_discard:
                    end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    self.end = end if self.end is None else max(self.end, end)
            yield packet

    def _frames_of(self, packet: av.Packet) -> list:
        if packet.is_corrupt:
            self._damaged_at(packet.pts)
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            self._damaged_at(packet.pts, error)
            return []
        for frame in frames:
            if frame.is_corrupt:  # in part, which the decoder filled
                self._damaged_at(frame.pts)
        return frames

    def _damaged_at(self, pts: int | None, error: Exception | None = None) -> None:
        """Count the packet with a time stamp, once."""
        self._damaged(0 if pts in self.counted else 1, error)
        if pts is not None:
            self.counted.add(pts)

    def _damaged(self, n: int, error: Exception | None = None) -> None:
        self.n_damaged += n
        self.error = self.error or error
        if not self.limit:
            raise MediaError(
                f"The {self.what} is damaged or truncated in packet {self.n_packets}.",
                where=self.path,
            ) from error

    def _share(self) -> str:
        share = 100 * self.n_damaged / self.n_packets
        return f"{self.n_damaged} of {self.n_packets} packets of the {self.what} ({share:.1f} %)"

    def notes(self) -> list[str]:
        """A sentence on the damage, if there was any."""
        return [f"{self._share()} are damaged and were concealed."] if self.n_damaged else []


def read_audio(path: str | os.PathLike) -> np.ndarray:
    """The sound as float32 (n,) in [-1, 1] at 16 kHz from the clip's zero on: the plain mean of its
    channels.

    A file without audio gives an empty array, which is a normal state. Raises MediaError.
    """
    return decode_audio(path)[0]


def decode_audio(path: str | os.PathLike) -> tuple[np.ndarray, Flow | None]:
    """The sound as read_audio gives it, and its stream; None if there is none."""
    with opened(path) as container:
        chosen = streams_of(container)
        if chosen.audio is None:
            return np.zeros(0, np.float32), None
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
    return np.clip(wave, -1.0, 1.0, out=wave), flow


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
        stream, zero = _video(path, chosen), zero_of(path, chosen)
        frames = container.decode(stream)
        keys = [entry.timestamp for entry in stream.index_entries if entry.is_keyframe]
        try:
            ahead = next(frames)
            size = _square_size(stream, ahead)
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


def pictures(path: str | os.PathLike) -> Iterator[tuple[float, float, Picture]]:
    """Every decoded picture of a clip, and when it is on screen: (start, stop, picture), in seconds
    from the clip's zero. The last one may come twice, with a later stop. Raises MediaError.
    """
    with opened(path) as container:
        chosen = streams_of(container)
        stream = _video(path, chosen)
        rate = float(stream.average_rate or stream.guessed_rate or GRID_FPS)
        flow = Flow(path, container, stream)
        size, shown, picture = None, None, None
        timed = _timed(path, flow.frames(), 1 / rate, zero_of(path, chosen), flow)
        for start, stop, frame in timed:
            if frame is not shown:
                size = size or _square_size(stream, frame)
                shown, picture = frame, Picture(frame, size)
            yield start, stop, picture


class Picture:
    """A decoded picture, upright and with square pixels; only what is asked for is converted."""

    def __init__(self, frame: av.VideoFrame, size: tuple[int, int]):
        self.height, self.width = size
        self._frame = frame
        self._whole: np.ndarray | None = None
        self._part: tuple[Sequence[int], np.ndarray] | None = None  # box, what it shows
        as_stored = (frame.height, frame.width) == size and _display_matrix(frame) is None
        self._in_parts = as_stored and _in_planes(frame)

    def rgb(self) -> np.ndarray:
        """RGB uint8 (H, W, 3), the same array each time."""
        if self._whole is None:
            self._whole = _upright(_rgb(self._frame), self._frame)
            n_stored, size = math.prod(self._whole.shape[:2]), (self.width, self.height)
            if self._whole.shape[1::-1] != size:
                how = cv2.INTER_AREA if math.prod(size) < n_stored else cv2.INTER_LINEAR
                self._whole = cv2.resize(self._whole, size, interpolation=how)
        return self._whole

    def part(self, box: Sequence[int]) -> np.ndarray:
        """RGB of the part x0, y0, x1, y1, half open; parts of the last one cost nothing."""
        x0, y0, x1, y1 = box
        if not self._in_parts or self._whole is not None:
            return self.rgb()[y0:y1, x0:x1]
        if self._part is None or not _holds(self._part[0], box):
            even = x0 - x0 % 2, y0 - y0 % 2, x1 + x1 % 2, y1 + y1 % 2
            self._part = even, _rgb(self._frame, even)
        (left, top, _, _), part = self._part
        return part[y0 - top : y1 - top, x0 - left : x1 - left]

    def sketch(self) -> np.ndarray:
        """The stored picture's gray levels, (18, 32) float32: how much changes from one to the
        next.
        """
        if self._frame.format.name in PLANES:
            gray = _plane(self._frame, 0)
        else:
            gray = cv2.cvtColor(self.rgb(), cv2.COLOR_RGB2GRAY)
        step = max(1, min(gray.shape) // 100)
        return cv2.resize(gray[::step, ::step], SKETCH, interpolation=cv2.INTER_AREA).astype(
            np.float32
        )


def _holds(outer: Sequence[int], inner: Sequence[int]) -> bool:
    starts = outer[0] <= inner[0] and outer[1] <= inner[1]
    return starts and inner[2] <= outer[2] and inner[3] <= outer[3]


def _video(path: str | os.PathLike, chosen: Streams) -> av.VideoStream:
    if chosen.video is None:
        raise MediaError("There is no video stream.", where=path)
    frame_size(path, chosen.video)
    chosen.video.codec_context.thread_count = 1  # parallel over clips, not inside one
    return chosen.video


def _square_size(stream: av.VideoStream, frame: av.VideoFrame) -> tuple[int, int]:
    """Height and width of a frame as it is shown, upright and with square pixels."""
    height, width = frame.height, frame.width
    shape = float(stream.sample_aspect_ratio or 1)
    if PIXEL_SHAPES[0] <= shape <= PIXEL_SHAPES[1] and abs(shape - 1) > ROUND_SHAPE:
        square = height * max(1.0, 1 / shape), width * max(1.0, shape)
        if square[0] * square[1] <= MAX_PIXELS:
            height, width = (round(side) for side in square)
    matrix = _display_matrix(frame)
    return (width, height) if matrix is not None and not matrix[0, 0] else (height, width)


def _display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    """How a player turns and mirrors a frame: (2, 2) of -1, 0 and 1, row vectors (x, y) times it;
    None for not at all and for other angles than right ones.
    """
    # frame.side_data would make a cycle, which keeps the picture until garbage is collected
    data = SideDataContainer(frame).get("DISPLAYMATRIX")
    if data is None:
        return None
    matrix = np.frombuffer(bytes(data), np.int32)[[0, 1, 3, 4]].reshape(2, 2) / 65536
    size = np.abs(matrix).max()
    if not size:
        return None
    turned = np.rint(matrix / size).astype(int)
    right = np.abs(turned).sum(axis=0).tolist() == np.abs(turned).sum(axis=1).tolist() == [1, 1]
    exact = np.abs(matrix / size - turned).max() < 0.01
    return turned if right and exact and (turned != np.eye(2)).any() else None


def _upright(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    matrix = _display_matrix(frame)
    if matrix is None:
        return image
    if not matrix[0, 0]:
        image = image.transpose(1, 0, 2)
    flip_x, flip_y = matrix.sum(axis=0) < 0
    return np.ascontiguousarray(image[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def _rgb(frame: av.VideoFrame, box: Sequence[int] | None = None) -> np.ndarray:
    """RGB of a frame as it is stored, or of a part in a box of even numbers, of one that
    _in_planes.
    """
    name, limited = frame.format.name, frame.color_range in LIMITED_RANGES
    if name == "yuv444p" and frame.colorspace in LUMA:
        # five times as fast as swscale, and within one grey level of it
        yuv = cv2.merge(_planes(frame, box))
        return cv2.transform(yuv, _to_rgb(*LUMA[frame.colorspace], limited))
    if not _in_planes(frame):
        return frame.to_ndarray(format="rgb24")
    if name == "yuv420p" and limited and frame.colorspace in BT601_COLORSPACES:
        return cv2.cvtColor(_packed(frame, box), cv2.COLOR_YUV2RGB_I420)
    if box is None:
        return frame.to_ndarray(format="rgb24")
    part = av.VideoFrame.from_ndarray(_packed(frame, box), format=name)
    part.colorspace, part.color_range = frame.colorspace, frame.color_range
    return part.to_ndarray(format="rgb24")


def _in_planes(frame: av.VideoFrame) -> bool:
    """Whether parts of the frame can be converted alone."""
    return frame.format.name in PLANES and frame.height % 2 == frame.width % 2 == 0


def _planes(frame: av.VideoFrame, box: Sequence[int] | None) -> list[np.ndarray]:
    """The three planes of a frame whose format is in PLANES, in a box."""
    x0, y0, x1, y1 = box or (0, 0, frame.width, frame.height)
    ratios = 1, PLANES[frame.format.name], PLANES[frame.format.name]
    return [_plane(frame, i)[y0 // n : y1 // n, x0 // n : x1 // n] for i, n in enumerate(ratios)]


def _packed(frame: av.VideoFrame, box: Sequence[int] | None) -> np.ndarray:
    """The planes in one array, as PyAV and OpenCV want them."""
    planes = _planes(frame, box)
    height, width = planes[0].shape
    packed = np.concatenate([plane.ravel() for plane in planes])
    return packed.reshape((3, height, width) if len(packed) == 3 * height * width else (-1, width))


def _plane(frame: av.VideoFrame, i: int) -> np.ndarray:
    plane = frame.planes[i]
    lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return lines[: plane.height, : plane.width]


@functools.cache
def _to_rgb(red: float, blue: float, limited: bool) -> np.ndarray:
    """(3, 4) that makes RGB of (Y, U, V, 1); red, blue: their parts of the luma."""
    green = 1 - red - blue
    luma, chroma, black = (255 / 219, 255 / 224, 16) if limited else (1.0, 1.0, 0)
    u, v = 2 * chroma * (1 - blue), 2 * chroma * (1 - red)
    matrix = np.array([[luma, 0, v], [luma, -u * blue / green, -v * red / green], [luma, u, 0]])
    return np.column_stack([matrix, matrix @ [-black, -128, -128]]).astype(np.float32)


def count_frames(path: str | os.PathLike) -> int:
    """How many frames `iter_frames` yields for an undamaged file, from the packets' time stamps,
    without decoding.

    Raises MediaError for what is not a video.
    """
    with opened(path) as container:
        chosen = streams_of(container)
        stream = _video(path, chosen)
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
