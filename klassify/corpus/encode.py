"""Writes MP4: reproducible bytes that do not name the encoder."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import av
import cv2
import numpy as np
from av.bitstream import BitStreamFilterContext

from klassify.corpus.motion import FPS
from klassify.corpus.speech import SAMPLE_RATE
from klassify.media.container import MediaError, opened, streams_of, zero_of

# macroblock-tree rate control reads uninitialised memory (x264 with AVX-512), so that the bytes
# would differ from run to run
X264 = {"x264-params": "mbtree=0"}
BLOCK = 1024  # samples
Packets = list[av.Packet]


@dataclasses.dataclass(frozen=True)
class Encoding:
    """An encoder with its options; bit_rate: bits per second, 0 where the options say it."""

    encoder: str
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bit_rate: int = 0


# bit by bit what is given: 4:2:0 planes of the picture, 24 bits of the sound
LOSSLESS_VIDEO = Encoding("libx264", {"qp": "0", "preset": "ultrafast", **X264})
LOSSLESS_AUDIO = Encoding("flac")


def write_clip(
    path: Path,
    frames: list[np.ndarray],
    wave: np.ndarray | None,
    crf: int,
    audio_bit_rate: int,
    again: Mapping[str, Packets] | None = None,
) -> dict[str, Packets]:
    """Write H.264 and AAC. frames: (H, W, 3) uint8 RGB at 25 fps; wave: (n,) float32 at 16 kHz, or
    None for a clip without sound. again: see write_streams.
    """
    video = Encoding("libx264", {"crf": str(crf), "preset": "veryfast", **X264})
    audio = Encoding("aac", bit_rate=audio_bit_rate)
    return write_streams(path, frames, wave, video=video, audio=audio, again=again or {})


def write_streams(
    path: Path,
    frames: Iterable[np.ndarray] | None,
    wave: np.ndarray | None,
    *,
    video: Encoding = LOSSLESS_VIDEO,
    audio: Encoding = LOSSLESS_AUDIO,
    copied: str | os.PathLike | None = None,
    again: Mapping[str, Packets] = MappingProxyType({}),
) -> dict[str, Packets]:
    """Write frames and sound as `write_clip` does, with any encoders; returns what was encoded, by
    `video` and `audio`.

    copied: an MP4 whose picture or sound is copied in place of what is None, packet by packet, so
    that it starts where it did. MediaError where it cannot be read. again: what an earlier call
    returned for an equal picture or sound, which is then not encoded again.
    """
    written = {}
    container_options = {"fflags": "+bitexact", "movflags": "+faststart"}
    with av.open(str(path), "w", format="mp4", container_options=container_options) as container:
        pictures = None if frames is None else _Pictures(container, frames, video)
        audio_stream = None if wave is None else _audio_stream(container, audio)
        if copied is not None:
            _copy(container, copied, video=frames is None, audio=wave is None)
        if pictures is not None:
            known = again.get("video")
            written["video"] = _mux(container, pictures.stream, known or pictures.packets())
        if wave is not None:
            known = again.get("audio")
            written["audio"] = _mux(container, audio_stream, known or _sound(audio_stream, wave))
    return written


class _Pictures:
    """A video stream and the frames that go into it."""

    def __init__(
        self,
        container: av.container.OutputContainer,
        frames: Iterable[np.ndarray],
        encoding: Encoding,
    ):
        self.frames = iter(frames)
        self.first = next(self.frames, None)
        if self.first is None:
            raise MediaError("There is no frame to encode.")
        self.stream = container.add_stream(encoding.encoder, rate=FPS)
        self.stream.height, self.stream.width = self.first.shape[:2]
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.thread_count = 1
        self.stream.codec_context.flags |= av.codec.context.Flags.bitexact
        self.stream.options = dict(encoding.options)
        self.has_settings = encoding.encoder == "libx264"

    def packets(self) -> Iterator[av.Packet]:
        """All frames, encoded."""
        # x264 writes its settings into an SEI unit (type 6)
        how = "filter_units=remove_types=6" if self.has_settings else "null"
        strip = BitStreamFilterContext(how, self.stream)
        for k, picture in enumerate(itertools.chain([self.first], self.frames)):
            for packet in self.stream.encode(_video_frame(picture, k)):
                yield from strip.filter(packet)
        for packet in self.stream.encode(None):
            yield from strip.filter(packet)
        yield from strip.filter(None)


def _audio_stream(container: av.container.OutputContainer, encoding: Encoding) -> av.AudioStream:
    stream = container.add_stream(encoding.encoder, rate=SAMPLE_RATE, layout="mono")
    stream.codec_context.flags |= av.codec.context.Flags.bitexact
    if encoding.bit_rate:
        stream.bit_rate = encoding.bit_rate
    if encoding == LOSSLESS_AUDIO:
        stream.codec_context.format = "s32"
    return stream


def _copy(
    container: av.container.OutputContainer, path: str | os.PathLike, *, video: bool, audio: bool
) -> None:
    with opened(path) as source:
        chosen = streams_of(source)
        zero = zero_of(path, chosen) or 0.0
        wanted = [s for s, keep in zip(chosen, (video, audio)) if keep and s is not None]
        targets = {s.index: container.add_stream_from_template(s) for s in wanted}
        for packet in source.demux(wanted) if wanted else ():
            if packet.dts is None:  # the end of a stream
                continue
            late = round(zero / packet.time_base)
            packet.dts -= late
            packet.pts = None if packet.pts is None else packet.pts - late
            packet.stream = targets[packet.stream_index]
            container.mux(packet)


def _video_frame(picture: np.ndarray, k: int) -> av.VideoFrame:
    # BT.601 in limited range, which decoders assume unless the file says otherwise
    pixels = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420)
    frame = av.VideoFrame.from_ndarray(pixels, format="yuv420p")
    frame.pts, frame.time_base = k, Fraction(1, FPS)
    return frame


def _audio_frames(wave: np.ndarray, format: str) -> Iterator[av.AudioFrame]:
    if format == "s32":
        # FLAC takes the upper 24 bits
        top = (1 << 23) - 1
        wave = np.clip(np.rint(wave * np.float64(1 << 23)), -top, top).astype(np.int32) << 8
    for start in range(0, len(wave), BLOCK):
        samples = wave[None, start : start + BLOCK]
        frame = av.AudioFrame.from_ndarray(samples, format=format, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
        yield frame


def _sound(stream: av.AudioStream, wave: np.ndarray) -> Iterator[av.Packet]:
    for frame in (*_audio_frames(wave, stream.codec_context.format.name), None):
        yield from stream.encode(frame)


def _mux(
    container: av.container.OutputContainer,
    stream: av.VideoStream | av.AudioStream,
    packets: Iterable[av.Packet],
) -> Packets:
    container.start_encoding()
    kept = []
    for packet in packets:
        packet.stream = stream
        container.mux(packet)
        kept.append(packet)
    return kept
