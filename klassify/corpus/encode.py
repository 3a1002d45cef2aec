"""Writes H.264 and AAC in MP4: reproducible bytes that do not name the encoder."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.bitstream import BitStreamFilterContext

from klassify.corpus.motion import FPS
from klassify.corpus.speech import SAMPLE_RATE


def write_clip(
    path: Path, frames: list[np.ndarray], wave: np.ndarray | None, crf: int, audio_bit_rate: int
) -> None:
    """Write an MP4. frames: (H, W, 3) uint8 RGB at 25 fps; wave: (n,) float32 at 16 kHz, or None
    for a clip without sound.
    """
    container_options = {"fflags": "+bitexact", "movflags": "+faststart"}
    with av.open(str(path), "w", format="mp4", container_options=container_options) as container:
        video = container.add_stream("libx264", rate=FPS)
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        video.codec_context.flags |= av.codec.context.Flags.bitexact
        # macroblock-tree rate control reads uninitialised memory (x264 with AVX-512), so that the
        # bytes would differ from run to run
        video.options = {"crf": str(crf), "preset": "veryfast", "x264-params": "mbtree=0"}
        audio = None if wave is None else _audio_stream(container, audio_bit_rate)
        # x264 writes its settings into an SEI unit (type 6)
        strip = BitStreamFilterContext("filter_units=remove_types=6", video)
        for k, picture in enumerate(frames):
            _mux(container, video, _video_frame(picture, k), strip)
        _mux(container, video, None, strip)
        for packet in strip.filter(None):
            container.mux(packet)
        if audio is not None:
            for frame in _audio_frames(wave):
                _mux(container, audio, frame)
            _mux(container, audio, None)


def _audio_stream(container: av.container.OutputContainer, bit_rate: int) -> av.AudioStream:
    audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
    audio.bit_rate = bit_rate
    audio.codec_context.flags |= av.codec.context.Flags.bitexact
    return audio


def _video_frame(picture: np.ndarray, k: int) -> av.VideoFrame:
    # BT.601 in limited range, which decoders assume unless the file says otherwise
    pixels = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420)
    frame = av.VideoFrame.from_ndarray(pixels, format="yuv420p")
    frame.pts, frame.time_base = k, Fraction(1, FPS)
    return frame


def _audio_frames(wave: np.ndarray) -> Iterator[av.AudioFrame]:
    for start in range(0, len(wave), 1024):
        samples = wave[None, start : start + 1024]
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
        yield frame


def _mux(
    container: av.container.OutputContainer,
    stream: av.VideoStream | av.AudioStream,
    frame: av.VideoFrame | av.AudioFrame | None,
    strip: BitStreamFilterContext | None = None,
) -> None:
    for packet in stream.encode(frame):
        for filtered in strip.filter(packet) if strip else (packet,):
            container.mux(filtered)
