"""Small media files with known content."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIZE = 64


def gray_level(i: int) -> int:
    """Frame i is a plain gray that tells which one it is."""
    return 20 + 3 * (i % 75)


def write_video(
    path: Path,
    times_ms: list[int],
    *,
    rate=25,
    options=None,
    pix_fmt="yuv420p",
    colour=None,
    turn=0,
):
    """Plain gray frames shown from the given times on; frame i has gray_level(i)."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"qp": "4", "bf": "2"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if turn:
            stream.set_display_rotation(turn)
        for i, time in enumerate(times_ms):
            image = np.full((SIZE, SIZE, 3), gray_level(i) if colour is None else colour, np.uint8)
            if turn:
                image[: SIZE // 2] = 0
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_audio(path: Path, wave: np.ndarray, rate: int, codec: str, layout: str) -> Path:
    """wave: (channels, n) float32."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        for start in range(0, wave.shape[1], 1024):
            block = np.ascontiguousarray(wave[:, start : start + 1024])
            if codec == "pcm_s16le":
                packed = (block.T.reshape(1, -1) * 32767).round().astype(np.int16)
                frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
            else:
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_lossless(path: Path, images: np.ndarray, rate: int = 25) -> Path:
    """A Matroska file that decodes to exactly these RGB images (T, H, W, 3)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate, options={"level": "1"})  # 1: no slices
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "bgr0"
        for image in images:
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="bgr0")
                )
            )
        container.mux(stream.encode())
    return path


def noise(n: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3)).astype(np.uint8)
