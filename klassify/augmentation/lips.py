"""Augmentation of mouth crops: what another camera or codec would do to a whole clip."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from klassify.settings import check_shares


@dataclasses.dataclass(frozen=True)
class LipAugment:
    """Probabilities of each effect; a clip's frames all get the same.

    Args:
        resize: to a share of 0.4 to 1 of the size, and back.
        blur: Gaussian, of 0.3 to 1.5 pixels.
        jpeg: of quality 20 to 80.
        noise: Gaussian, of 1 to 6 gray levels.
        light: contrast of 0.7 to 1.3 and brightness of up to 25 gray levels.
    """

    resize: float = 0.1
    blur: float = 0.1
    jpeg: float = 0.1
    noise: float = 0.1
    light: float = 0.5

    def __post_init__(self):
        check_shares(**dataclasses.asdict(self))

    def __call__(self, crops: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Crops (T, H, W) uint8 -> the same shape."""
        resize, blur, jpeg, noise, light = rng.random(5) < dataclasses.astuple(self)
        scale, sigma = rng.uniform(0.4, 1), rng.uniform(0.3, 1.5)
        quality, level = int(rng.integers(20, 81)), rng.uniform(1, 6)
        contrast, brightness = rng.uniform(0.7, 1.3), rng.uniform(-25, 25)
        frames, size = list(crops), crops.shape[:0:-1]
        if resize:
            small = tuple(max(round(side * scale), 8) for side in size)
            frames = [cv2.resize(frame, small, interpolation=cv2.INTER_AREA) for frame in frames]
            frames = [cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in frames]
        if blur:
            frames = [cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames]
        if light:
            frames = [cv2.convertScaleAbs(f, alpha=contrast, beta=brightness) for f in frames]
        if noise:
            noisy = np.stack(frames) + rng.normal(0, level, crops.shape)
            frames = list(np.clip(noisy, 0, 255).astype(np.uint8))
        if jpeg:
            frames = [_through_jpeg(frame, quality) for frame in frames]
        return np.stack(frames)


def _through_jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    _, coded = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE)
