"""Small media files with known content."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIZE = 64
Track = Callable[[Any], tuple[Any, Iterable]]  # adds a stream to a container; its frames


def write_media(path: Path, *tracks: Track, alter=None, file=None, **options) -> Path:
    """A file of tracks, made with `picture` and `sound`.

    alter: called with the streams before anything is written. file: written to instead of path.
    """
    with av.open(file or str(path), "w", **options) as container:
        made = [track(container) for track in tracks]
        if alter is not None:
            alter([stream for stream, _ in made])
        for stream, frames in made:
            for frame in frames:
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def picture(
    images, *, rate=25, times_ms=None, codec="mpeg4", pixels="yuv420p", turn=0, **options
) -> Track:
    """A video of RGB images (H, W, 3) uint8, shown at a rate or from the given times on."""

    def add(container):
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = images[0].shape[:2] if len(images) else (SIZE, SIZE)
        stream.pix_fmt, stream.codec_context.thread_count = pixels, 1
        if times_ms is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if turn:
            stream.set_display_rotation(turn)
        return stream, frames()

    def frames():
        for k, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(format=pixels)
            frame.pts = k if times_ms is None else round(times_ms[k])
            frame.time_base = 1 / Fraction(rate) if times_ms is None else Fraction(1, 1000)
            yield frame

    return add


def sound(wave, *, rate=16_000, codec="aac", layout="mono", start_s=0.0, **options) -> Track:
    """A sound of a wave (channels, n) float32 in the layout's order."""

    def add(container):
        stream = container.add_stream(codec, rate=rate, layout=layout, options=options)
        size = stream.codec_context.frame_size or 1024
        return stream, blocks(av.AudioResampler(stream.format.name, layout, rate, size))

    def blocks(resampler):
        packed = np.ascontiguousarray(wave.T, np.float32).reshape(1, -1)  # PyAV fails on 8 planes
        whole = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        whole.sample_rate, whole.time_base = rate, Fraction(1, rate)
        whole.pts = round(start_s * rate)
        return [*resampler.resample(whole), *resampler.resample(None)]

    return add


def gray(levels, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Plain images."""
    return [np.full((height, width, 3), level, np.uint8) for level in levels]


def tone(rate: int, seconds: float, channels: int = 1) -> np.ndarray:
    """(channels, n): 440 Hz."""
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * 440 * time)] * channels).astype(np.float32)


def gray_level(i: int) -> int:
    """Frame i is a plain gray that tells which one it is."""
    return 20 + 3 * (i % 75)


def write_video(path: Path, times_ms: list[int], *, rate=25, options=None) -> Path:
    """Plain gray frames shown from the given times on; frame i has gray_level(i)."""
    images = gray([gray_level(i) for i in range(len(times_ms))], SIZE, SIZE)
    track = picture(images, rate=rate, times_ms=times_ms, codec="libx264", qp="4", bf="2")
    return write_media(path, track, options=options or {})


def write_lossless(path: Path, images: np.ndarray, rate: int = 25) -> Path:
    """A Matroska file that decodes to exactly these RGB images (T, H, W, 3)."""
    # level 1: no slices
    return write_media(path, picture(images, rate=rate, codec="ffv1", pixels="bgr0", level="1"))


def noise(n: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3)).astype(np.uint8)
