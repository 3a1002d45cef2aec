"""The one place that decodes: frames on the 40 ms grid, audio as 16 kHz mono, and a probe of both.

Sound and picture share one clock. Its zero is where a player starts: the start of the earlier of
the two streams. Frames leave here as RGB uint8 (H, W, 3) at 25 a second whatever the file holds:
cell k of the grid, [0.04 k, 0.04 (k+1)) seconds, shows the frame that is on screen at its middle,
and is black before the first frame that can be decoded. A file with constant 25 fps passes through
untouched, every decoded frame exactly once; other rates and variable ones repeat or skip frames by
presentation time, never by count. Sound lies at its time stamps, with silence in its gaps.

The streams are those that a player takes. Damaged packets are concealed, as FFmpeg does it, and
counted; more than a share of them (DAMAGE_LIMIT, or what $KLASSIFY_DAMAGE says) is a MediaError, as
is a file that is not media. Everything is streamed, so memory does not grow with a clip's length.
`notes` says what a user should know of how a file was read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import av.logging
import cv2
import numpy as np
from av.sidedata.sidedata import SideDataContainer

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
# sound follows its time stamps where they differ from the count of samples by more: with the time
# until that is noticed it is never off by 20 ms
DRIFT_S = 0.015
ROUNDING_S = 0.002  # of time stamps in milliseconds
DAMAGE_LIMIT = 0.1  # share of a stream's packets that may be damaged or missing
DAMAGE_VARIABLE = "KLASSIFY_DAMAGE"
# the shape of a pixel: encoders write 1216:1215 and the like where they round a size, and damaged
# headers anything
SHAPES, ROUND_SHAPE = (0.1, 10.0), 0.005
SHOWN_OFFSET_S = 0.1
HEADER_S = 0.1  # a header's length that is wrong by more is corrected where files are measured
# formats without lengths, or not always with them: FFmpeg then guesses from the bit rate
UNTIMED = frozenset(
    {"matroska,webm", "flv", "live_flv"}
    | {"aac", "ac3", "amr", "dts", "dtshd", "eac3", "loas", "mlp", "mp3", "truehd", "av1", "dirac"}
    | {"h261", "h263", "h264", "hevc", "m4v", "mpegvideo", "obu", "vc1", "vvc"}
)
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
# red's and blue's part of the luma by FFmpeg's number of a colour space; 2: not said, 1: BT.709
LUMA = {1: (0.2126, 0.0722), 2: (0.299, 0.114), 5: (0.299, 0.114), 6: (0.299, 0.114)}

# of files that are looked for in folders: most of what the decoder opens
LOOKED_FOR = (
    "3g2 3gp asf avi divx dv f4v flv gif m2t m2ts m2v m4v mjpeg mjpg mkv mov mp4 mpe mpeg mpg mts"
    " mxf nsv nut ogm ogv qt rm rmvb ts vob webm wmv wtv y4m"
    " aac ac3 aif aifc aiff amr ape au caf dts eac3 flac m4a m4b mka mp2 mp3 mpc oga ogg opus spx"
    " tak tta voc w64 wav wma wv"
)
SUFFIXES = frozenset(f".{name}" for name in LOOKED_FOR.split())
NO_MEDIA_FOLDERS = ("__MACOSX",)

T = TypeVar("T")
log = logging.getLogger(__name__)


class MediaError(KlassifyError):
    """A media file that cannot be read whole; `where` is its path."""


@dataclasses.dataclass(frozen=True)
class MediaInfo:
    """What the container says of the streams that a player takes. Zeros where one is missing.

    n_frames, fps, width, height: of the video as stored; the first two of the 25 fps grid where the
    file has no length and its rate varies.
    n_samples: expected samples at 16 kHz, from the clip's zero on; the decoded count may be larger
    by one codec frame.
    duration: seconds from the clip's zero to the end of the longer stream.
    """

    n_frames: int
    fps: float
    width: int
    height: int
    n_samples: int
    duration: float
    has_audio: bool
    has_video: bool


class Streams(NamedTuple):
    """The streams that a player takes, None where there is none."""

    video: av.VideoStream | None
    audio: av.AudioStream | None


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


def media_below(folder: str | os.PathLike) -> tuple[list[Path], list[Path]]:
    """The media files below a folder, by their suffixes, and the files that are passed over, both
    sorted.

    What starts with a dot, and the companions that macOS writes into archives, are in neither.
    """
    folder = Path(folder)
    taken, passed = [], []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part in NO_MEDIA_FOLDERS for part in parts)
        if not hidden and path.is_file():
            (taken if path.suffix.lower() in SUFFIXES else passed).append(path)
    return taken, passed


def damage_limit() -> float:
    """The share of a stream's packets that may be damaged, of $KLASSIFY_DAMAGE; 0 refuses any."""
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
    """Any damage is refused meanwhile, in processes that start meanwhile too; nothing is changed
    where not strict.
    """
    before = os.environ.get(DAMAGE_VARIABLE)
    if strict:
        os.environ[DAMAGE_VARIABLE] = "0"
    damage_limit()  # a senseless one is said before any work
    try:
        yield
    finally:
        if strict:
            del os.environ[DAMAGE_VARIABLE]
            os.environ.update({} if before is None else {DAMAGE_VARIABLE: before})


# ------------------------------------------------------------------------------ what is read


def streams_of(container: av.container.InputContainer) -> Streams:
    """The picture and the sound that a player takes: the default track, else the best one, and
    the sound that belongs to the picture. A cover picture is none.
    """
    video = _player_choice(container, "video", None)
    return Streams(video, _player_choice(container, "audio", video))


def _tracks(container: av.container.InputContainer, kind: str) -> list:
    """The streams of a kind that a player could take, those with a known codec before others."""
    covers = av.stream.Disposition.attached_pic
    tracks = [
        stream
        for stream in getattr(container.streams, kind)
        if not (kind == "video" and stream.disposition & covers)
    ]
    return [stream for stream in tracks if stream.codec_context is not None] or tracks


def _player_choice(container: av.container.InputContainer, kind: str, related: Any) -> Any:
    tracks = _tracks(container, kind)
    best = container.streams.best(kind, related=related) if len(tracks) > 1 else None
    if best is not None and any(stream.index == best.index for stream in tracks):
        return best
    return max(tracks, key=_is_default, default=None)


def _is_default(stream: av.VideoStream | av.AudioStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.default)


def _start(path: str | os.PathLike, stream: av.VideoStream | av.AudioStream) -> float | None:
    """When a stream starts on the container's clock; None where it does not say."""
    if stream.start_time is None or stream.time_base is None:
        return None
    if stream.codec_context is not None and stream.codec_context.name == "opus":
        # FFmpeg's start of Opus in Matroska is late by a part of a packet
        with contextlib.suppress(MediaError), opened(path) as again, _explained(path):
            for frame in again.decode(again.streams[stream.index]):
                if frame.pts is not None:
                    return float(frame.pts * frame.time_base)
                break
    return float(stream.start_time * stream.time_base)


def _zero(path: str | os.PathLike, chosen: Streams) -> float | None:
    """Where a player starts, in seconds on the container's clock; None where it is the first frame
    of each stream.
    """
    starts = [_start(path, stream) for stream in chosen if stream is not None]
    if chosen.video is None or None in starts:
        return None
    return min(starts)


def probe(path: str | os.PathLike) -> MediaInfo:
    """Read a file's headers; a length that they do not tell is measured by decoding. Raises
    MediaError where there is no media.
    """
    with opened(path) as container:
        chosen = streams_of(container)
        video, audio = chosen
        zero = _zero(path, chosen)
        n_frames, fps, width, height, video_s, audio_s = 0, 0.0, 0, 0, 0.0, 0.0
        if video is not None:
            width, height = _frame_size(path, video)
            fps = float(video.average_rate or video.guessed_rate or 0)
            n_frames = video.frames or _count_packets(container, video)
            video_s = _stream_end(path, container, video, zero)
        if audio is not None:
            audio_s = _stream_end(path, container, audio, zero)
    info = MediaInfo(
        n_frames=n_frames,
        fps=fps,
        width=width,
        height=height,
        n_samples=round(audio_s * SAMPLE_RATE),
        duration=max(video_s, audio_s),
        has_audio=audio is not None,
        has_video=video is not None,
    )
    if (info.has_video and not video_s) or (info.has_audio and not audio_s):
        return _measured(path, info)
    return info


def measure(path: str | os.PathLike) -> MediaInfo:
    """As `probe`, with the lengths that decoding gives where the header is wrong. Raises
    MediaError.
    """
    info = probe(path)
    if info.has_video and info.n_frames:
        with opened(path) as container:
            n_frames = _count_packets(container, streams_of(container).video)
        info = dataclasses.replace(info, n_frames=n_frames or info.n_frames)
    measured = _measured(path, info)
    off_s = (measured.duration - info.duration, (measured.n_samples - info.n_samples) / SAMPLE_RATE)
    return info if max(map(abs, off_s)) <= HEADER_S else measured


def _measured(path: str | os.PathLike, info: MediaInfo) -> MediaInfo:
    """With the lengths that decoding gives."""
    n_samples = len(read_audio(path))
    n_cells = count_frames(path) if info.has_video else 0
    info = dataclasses.replace(
        info, n_samples=n_samples, duration=max(n_cells / GRID_FPS, n_samples / SAMPLE_RATE)
    )
    if (
        abs(info.n_frames - info.fps * n_cells / GRID_FPS) > 1
    ):  # the rate is not a measurement either
        info = dataclasses.replace(info, n_frames=n_cells, fps=float(GRID_FPS))
    return info


def notes(path: str | os.PathLike) -> list[str]:
    """What a user should know of how a file is read: choices between tracks, silence, offsets,
    concealed damage. Empty for most files.

    Decodes the whole file. Raises MediaError.
    """
    found = []
    with opened(path) as container:
        chosen = streams_of(container)
        for kind, what, stream in zip(("video", "audio"), ("picture", "sound"), chosen):
            tracks = _tracks(container, kind)
            if len(tracks) > 1:
                number = [track.index for track in tracks].index(stream.index) + 1
                alone = _is_default(stream) and sum(map(_is_default, tracks)) == 1
                why = "the default" if alone else "the best"
                found.append(f"{len(tracks)} tracks of {what}: number {number} is used, {why}.")
        starts = [stream and _start(path, stream) for stream in chosen]
        if None not in starts and abs(late := starts[1] - starts[0]) >= SHOWN_OFFSET_S:
            after, before = ("sound", "picture") if late > 0 else ("picture", "sound")
            found.append(f"The {after} starts {abs(late):.2f} s after the {before}.")
    if chosen.audio is not None:
        wave, flow = _decode_audio(path)
        found += flow.told()
        if len(wave) and not wave.any():
            found.append("The sound is digital silence.")
    if chosen.video is not None:
        with opened(path) as container:
            flow = _Flow(path, container, streams_of(container).video)
            for _ in flow.frames():
                pass
            found += flow.told()
    return found


class _Flow:
    """The decoded frames of one stream. Damage is concealed and counted.

    end: seconds on the container's clock at which its last packet ends, None where none says.
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
        self.counted: set[int | None] = set()  # time stamps of what is damaged
        self.error: Exception | None = None

    def frames(self) -> Iterator:
        """All frames to the stream's end; MediaError where more than the limit is damaged."""
        n_frames = 0
        with _explained(self.path):
            if self.stream.codec_context is None:
                raise MediaError("The codec is unknown.", where=self.path)
            for packet in self._packets():
                frames = self._frames_of(packet)
                n_frames += len(frames)
                yield from frames
            missing = len(self.stream.index_entries) - self.n_packets
            if missing > 0:
                self._count(None, missing=missing)
            self.n_packets += max(0, missing)
            if not n_frames and self.error is not None:
                raise self.error
        if self.n_damaged > self.limit * self.n_packets:
            raise MediaError(
                f"{self._share()} are damaged or missing; the limit is {100 * self.limit:g} %.",
                where=self.path,
            )
        for sentence in self.told():
            log.warning("%s: %s", self.path, sentence)

    def _packets(self) -> Iterator[av.Packet]:
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:  # what follows cannot be found
                self._count(None, error)
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
            self._count(packet.pts)
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            self._count(packet.pts, error)
            return []
        for frame in frames:
            if frame.is_corrupt:  # in part, which the decoder filled
                self._count(frame.pts)
        return frames

    def _count(self, pts: int | None, error: Exception | None = None, missing: int = 0) -> None:
        """Count the packet with a time stamp, once, or missing ones."""
        if missing:
            self.n_damaged += missing
        elif pts is None or pts not in self.counted:
            self.counted.add(pts)
            self.n_damaged += 1
        self.error = self.error or error
        if not self.limit:
            raise MediaError(
                f"The {self.what} is damaged or truncated in packet {self.n_packets}.",
                where=self.path,
            ) from error

    def _share(self) -> str:
        share = 100 * self.n_damaged / self.n_packets
        return f"{self.n_damaged} of {self.n_packets} packets of the {self.what} ({share:.1f} %)"

    def told(self) -> list[str]:
        """A sentence on the damage, where there was any."""
        return [f"{self._share()} are damaged and were concealed."] if self.n_damaged else []


# ------------------------------------------------------------------------------ sound


def read_audio(path: str | os.PathLike) -> np.ndarray:
    """The sound as float32 (n,) in [-1, 1] at 16 kHz from the clip's zero on: the plain mean of its
    channels.

    A file without audio gives an empty array, which is a normal state. Raises MediaError.
    """
    return _decode_audio(path)[0]


def _decode_audio(path: str | os.PathLike) -> tuple[np.ndarray, _Flow | None]:
    with opened(path) as container:
        chosen = streams_of(container)
        if chosen.audio is None:
            return np.zeros(0, np.float32), None
        zero = _zero(path, chosen)
        flow, sound = _Flow(path, container, chosen.audio), _Sound(path)
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
        raise MediaError("The audio holds samples that are not finite numbers.", where=path)
    return np.clip(wave, -1.0, 1.0, out=wave), flow


class _Sound:
    """Decoded blocks of sound, resampled and laid at their time stamps.

    Blocks of one rate and layout whose time stamps agree with the count of their samples make a
    stretch, which goes through one resampler. A gap before a stretch is silence, and what overlaps
    with the stretch before is cut.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self.blocks: list[np.ndarray] = []
        self.length = 0  # samples in the blocks
        self.cut = 0  # samples of the stretch that still are to be cut
        self.end = 0.0  # seconds at which the next block follows
        self.heard, self.resampled = 0.0, 0  # seconds that came in, samples that came out
        self.shape: tuple | None = None
        self.resampler: av.AudioResampler | None = None

    def add(self, block: av.AudioFrame, time: float | None, next_time: float | None) -> None:
        """Add a block that is to be heard at a time; next_time: of the block after it."""
        seconds = _block_seconds(self.path, block)
        late = 0.0 if time is None else time - self.end
        if self.resampler is None:
            jumps = abs(late) > ROUNDING_S
        else:
            if next_time is not None:
                late = _lasting(late, next_time - self.end - seconds)
            jumps = abs(late) > DRIFT_S
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
        """Silence up to a time, where what should be heard until then is damaged."""
        if seconds > self.end + DRIFT_S and seconds <= MAX_SECONDS:
            self._flush()
            self._silence(round(seconds * SAMPLE_RATE) - self.length)

    def wave(self) -> np.ndarray:
        """All samples."""
        self._flush()
        came_out = self.resampled / SAMPLE_RATE
        if came_out < self.heard - LOST_S:  # the resampler says nothing of what it cannot do
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


def _lasting(late: float, later: float) -> float:
    """How late a block is, as far as the next one is late too: a single odd time stamp is none."""
    return min(late, later, key=abs) if late * later > 0 else 0.0


def _block_seconds(path: str | os.PathLike, frame: av.AudioFrame) -> float:
    """How long a decoded block of sound is; MediaError for one that no codec makes."""
    seconds = frame.samples / frame.sample_rate if frame.sample_rate else math.inf
    if seconds > MAX_BLOCK_S:
        raise MediaError(
            f"One block of the audio is {seconds:.0f} s long; the limit is {MAX_BLOCK_S:.0f} s.",
            where=path,
        )
    return seconds


# ------------------------------------------------------------------------------ picture


def iter_frames(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """RGB uint8 (H, W, 3) frames on the 25 fps grid from the clip's zero on, upright, with square
    pixels, in time order; black before the first one that can be decoded.

    All have the size of the first. A frame that spans several cells is yielded as the same array
    each time: do not write into it. Raises MediaError, perhaps after some frames, for a file that
    cannot be decoded.
    """
    yield from _cells(path)


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
    with contextlib.closing(_cells(path, wanted)) as frames:
        for number, frame in enumerate(frames):
            if frame is not None:
                yield frame if longest is None else _scaled(frame, longest)
            if number >= last:
                return


def _cells(path: str | os.PathLike, wanted: Container[int] | None = None) -> Iterator:
    """The frames of `iter_frames`; None, unconverted, for those whose index is not wanted."""
    with opened(path) as container:
        chosen = streams_of(container)
        stream = _video(path, chosen)
        stream.codec_context.thread_count = 1  # parallel over clips, not inside one
        rate = float(stream.average_rate or stream.guessed_rate or GRID_FPS)
        flow = _Flow(path, container, stream)
        timed = _timed(path, flow.frames(), 1 / rate, _zero(path, chosen), flow)
        size, n_before, shown, image = None, 0, None, None
        for number, frame in enumerate(on_grid(timed)):
            if frame is None:
                n_before += 1
                continue
            if size is None:
                size = _square_size(stream, frame)
                black = np.zeros((*size, 3), np.uint8) if n_before else None
                for before in range(n_before):
                    yield black if wanted is None or before in wanted else None
            if wanted is not None and number not in wanted:
                yield None
                continue
            if frame is not shown:
                shown, image = frame, _upright(_rgb(frame), frame)
                if image.shape[:2] != size:
                    image = _resized(image, size)
            yield image


def _video(path: str | os.PathLike, chosen: Streams) -> av.VideoStream:
    if chosen.video is None:
        raise MediaError("There is no video stream.", where=path)
    _frame_size(path, chosen.video)
    return chosen.video


def _square_size(stream: av.VideoStream, frame: av.VideoFrame) -> tuple[int, int]:
    """Height and width of a frame as it is shown, upright and with square pixels."""
    height, width = frame.height, frame.width
    shape = float(stream.sample_aspect_ratio or 1)
    if SHAPES[0] <= shape <= SHAPES[1] and abs(shape - 1) > ROUND_SHAPE:
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


def _scaled(frame: np.ndarray, longest: int) -> np.ndarray:
    scale = longest / max(frame.shape[:2])
    size = [max(1, round(side * scale)) for side in frame.shape[1::-1]]
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    smaller = size[0] * size[1] < image.shape[0] * image.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return cv2.resize(image, size[::-1], interpolation=how)


def count_frames(path: str | os.PathLike) -> int:
    """How many frames `iter_frames` yields for a sound file, from the packets' time stamps, without
    decoding.

    Raises MediaError where there is no video stream.
    """
    with opened(path) as container:
        chosen = streams_of(container)
        stream = _video(path, chosen)
        rate = float(stream.average_rate or stream.guessed_rate or GRID_FPS)
        packets = []
        with _explained(path), contextlib.suppress(av.error.FFmpegError):  # as in decoding
            for packet in container.demux(stream):
                if packet.size and not packet.is_discard:
                    packets.append(_Stamp(packet.pts, packet.duration, packet.time_base))
        if all(packet.pts is not None for packet in packets):
            packets.sort(key=lambda packet: packet.pts)  # they come in decoding order
        return sum(1 for _ in on_grid(_timed(path, packets, 1 / rate, _zero(path, chosen))))


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
    flow: _Flow | None = None,
) -> Iterator[tuple[float, float, Any]]:
    """Add the times of frames or packets, in seconds from zero (None: from the first); one without
    a time stamp follows the one before it.

    flow: where they come from; the last frame stays until its end where frames were lost.
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


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    name = frame.format.name
    even = frame.width % 2 == 0 and frame.height % 2 == 0
    limited = frame.color_range in VIDEO_RANGES
    if name == "yuv420p" and even and limited and frame.colorspace in BT601_COLORSPACES:
        return cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2RGB_I420)
    if name == "yuv444p" and frame.colorspace in LUMA:
        # five times as fast as swscale, and within one grey level of it
        yuv = cv2.merge(list(frame.to_ndarray()))
        return cv2.transform(yuv, _to_rgb(*LUMA[frame.colorspace], limited))
    return frame.to_ndarray(format="rgb24")


@functools.cache
def _to_rgb(red: float, blue: float, limited: bool) -> np.ndarray:
    """(3, 4) that makes RGB of (Y, U, V, 1); red, blue: their parts of the luma."""
    green = 1 - red - blue
    luma, chroma, black = (255 / 219, 255 / 224, 16) if limited else (1.0, 1.0, 0)
    u, v = 2 * chroma * (1 - blue), 2 * chroma * (1 - red)
    matrix = np.array([[luma, 0, v], [luma, -u * blue / green, -v * red / green], [luma, u, 0]])
    return np.column_stack([matrix, matrix @ [-black, -128, -128]]).astype(np.float32)


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[av.container.InputContainer]:
    """Open a local file and nothing else: a playlist inside it must not reach other files or
    hosts.
    """
    path = Path(path)
    with _explained(path):
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise MediaError("This is not a regular file.", where=path)
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


def _stream_end(
    path: str | os.PathLike,
    container: av.container.InputContainer,
    stream: av.VideoStream | av.AudioStream,
    zero: float | None,
) -> float:
    """When a stream ends, in seconds from zero; 0 where no header tells how long it lasts."""
    if container.format.name in UNTIMED:
        clock = CLOCK.fullmatch(stream.metadata.get("DURATION", ""))  # of Matroska
        seconds = 3600 * int(clock[1]) + 60 * int(clock[2]) + float(clock[3]) if clock else 0.0
    elif stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    else:
        seconds = container.duration / av.time_base if container.duration else 0.0
    start = _start(path, stream) or 0.0
    if container.format.name in ENDS_STATED and 0 < start < seconds:
        seconds -= start
    return seconds + start - zero if seconds and zero is not None else seconds


def _count_packets(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    with contextlib.suppress(av.error.FFmpegError):
        return sum(packet.size > 0 for packet in container.demux(stream))
    return 0


av.logging.set_level(
    av.logging.PANIC
)  # what matters arrives as MediaError; the rest would break progress bars
