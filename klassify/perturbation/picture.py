"""Perturbations of the picture: RGB frames (H, W, 3) uint8 at 25 fps in and out, one by one.

Each takes the frames, a value (its meaning is in klassify.perturbation.families) and a generator,
which has drawn nothing yet, so that all levels of a clip have the same noise or losses. Lengths in
pixels follow the shorter side, so that a level means the same at every resolution.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from klassify.media.decoder import GRID_FPS

Frames = Iterable[np.ndarray]
GREY = 128
BLOCKS = 32  # across the shorter side


def jpeg(frames: Frames, quality: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Each frame through JPEG."""
    how = [cv2.IMWRITE_JPEG_QUALITY, int(quality)]
    for frame in frames:
        coded = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), how)[1]
        yield cv2.cvtColor(cv2.imdecode(coded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def blur(frames: Frames, percent: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """A Gaussian blur; value: its standard deviation in percent of the shorter side."""
    for frame in frames:
        yield cv2.GaussianBlur(frame, (0, 0), percent / 100 * min(frame.shape[:2]))


def resize(frames: Frames, factor: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Down by a factor, by area, and up again, bilinearly."""
    for frame in frames:
        height, width = frame.shape[:2]
        small = max(1, round(width * factor)), max(1, round(height * factor))
        frame = cv2.resize(frame, small, interpolation=cv2.INTER_AREA)
        yield cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)


def pixel_noise(frames: Frames, deviation: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Gaussian noise in each pixel and colour; value: its standard deviation in grey levels."""
    for frame in frames:
        noise = np.float32(deviation) * rng.standard_normal(frame.shape, np.float32)
        yield _pixels(frame + noise)


def brightness(frames: Frames, levels: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """All frames so many grey levels brighter or darker, by the clip's draw."""
    table = _pixels(np.arange(256) + levels * rng.choice([-1, 1]))
    for frame in frames:
        yield cv2.LUT(frame, table)


def contrast(frames: Frames, factor: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Grey levels at a smaller distance to the middle one."""
    for frame in frames:
        yield cv2.convertScaleAbs(frame, alpha=factor, beta=GREY * (1 - factor))


def saturation(frames: Frames, factor: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Colours nearer to the grey of their luma; 0: a grey picture."""
    for frame in frames:
        grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        yield cv2.addWeighted(frame, factor, grey, 1 - factor, 0)


def frame_rate(frames: Frames, fps: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Frames at a lower rate, each shown until the next."""
    shown, held = None, -1
    for k, frame in enumerate(frames):
        number = int(k * fps / GRID_FPS + 1e-9)
        if number != held:
            shown, held = frame, number
        yield shown


def block_loss(frames: Frames, percent: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """So many percent of the blocks of each frame grey, independently drawn; 32 blocks lie across
    the shorter side.
    """
    for frame in frames:
        height, width = frame.shape[:2]
        side = max(1, min(height, width) // BLOCKS)
        lost = rng.random((-(-height // side), -(-width // side))) < percent / 100
        lost = lost.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
        frame = frame.copy()
        frame[lost] = GREY
        yield frame


def tempo(frames: Frames, speed: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """So many times as fast: at each moment the frame of `speed` times that moment."""
    k = 0
    for number, frame in enumerate(frames):
        while int((k + 0.5) * speed) == number:
            yield frame
            k += 1


def _pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
