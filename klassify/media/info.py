"""How long a clip is and what it consists of, and what a user should know of how it is read."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re

import av

from klassify.media.container import (
    frame_size,
    is_default,
    opened,
    start_of,
    streams_of,
    tracks_of,
    zero_of,
)
from klassify.media.decoder import GRID_FPS, SAMPLE_RATE, count_frames, read_audio

SHOWN_OFFSET_S = 0.1
HEADER_S = 0.1  # lengths that are wrong by more are corrected where files are measured
# formats that have no lengths, or not always; FFmpeg then guesses from the bit rate
NO_LENGTHS = (
    "matroska,webm flv live_flv aac ac3 amr dts dtshd eac3 loas mlp mp3 truehd av1 dirac h261 h263"
    " h264 hevc m4v mpegvideo obu vc1 vvc"
)
UNTIMED = frozenset(NO_LENGTHS.split())
ENDS_STATED = ("matroska,webm", "nut", "ogg", "asf")  # their durations are the times of the end
CLOCK = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")  # of Matroska's DURATION


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


def probe(path: str | os.PathLike) -> MediaInfo:
    """Read a file's headers; a length that they do not tell is measured by decoding. Raises
    MediaError where there is no media.
    """
    with opened(path) as container:
        chosen = streams_of(container)
        video, audio = chosen
        zero = zero_of(path, chosen)
        n_frames, fps, width, height, video_s, audio_s = 0, 0.0, 0, 0, 0.0, 0.0
        if video is not None:
            width, height = frame_size(path, video)
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
    """As `probe`, with decoded lengths where the header is wrong. Raises MediaError."""
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
    if abs(info.n_frames - info.fps * n_cells / GRID_FPS) > 1:  # the rate was not measured
        info = dataclasses.replace(info, n_frames=n_cells, fps=float(GRID_FPS))
    return info


def notes(path: str | os.PathLike) -> list[str]:
    """What a user should know of a file's streams, from its headers: choices between tracks and
    offsets. Empty for most files. Raises MediaError.

    Decoding tells the rest: decoder.decode_audio, decoder.pictures.
    """
    found = []
    with opened(path) as container:
        chosen = streams_of(container)
        for kind, what, stream in zip(("video", "audio"), ("picture", "sound"), chosen):
            tracks = tracks_of(container, kind)
            if len(tracks) > 1:
                number = [track.index for track in tracks].index(stream.index) + 1
                alone = is_default(stream) and sum(map(is_default, tracks)) == 1
                why = "the default" if alone else "the best"
                found.append(f"{len(tracks)} tracks of {what}: number {number} is used, {why}.")
        starts = [stream and start_of(path, stream) for stream in chosen]
        if None not in starts and abs(late := starts[1] - starts[0]) >= SHOWN_OFFSET_S:
            after, before = ("sound", "picture") if late > 0 else ("picture", "sound")
            found.append(f"The {after} starts {abs(late):.2f} s after the {before}.")
    return found


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
    start = start_of(path, stream) or 0.0
    if container.format.name in ENDS_STATED and 0 < start < seconds:
        seconds -= start
    return seconds + start - zero if seconds and zero is not None else seconds


def _count_packets(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    with contextlib.suppress(av.error.FFmpegError):
        return sum(packet.size > 0 for packet in container.demux(stream))
    return 0
