"""Augmentation of frames: drawn once per clip, the same for the frames and their reconstruction.

The data class draws (from the clip's own random numbers) and the model applies: the model
reconstructs the unchanged frames first, so the draws travel with the batch. Published settings
(MM-Det's data loader; paper 2 keeps them): Gaussian blur with p 0.1 and a deviation of U(0, 3)
pixels, JPEG with p 0.1 at quality 30 or 100, mirroring with p 0.5, one random crop where the frames
are larger than the model's.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import torch
from torch import Tensor

from klassify.settings import check_shares

DRAWS = ("blur_sigma", "jpeg_quality", "flip", "crop")
SIGMA_MAX = 3.0
QUALITIES = (30, 100)


@dataclasses.dataclass(frozen=True)
class FrameAugment:
    """Probabilities of blur, JPEG and mirroring."""

    blur: float = 0.1
    jpeg: float = 0.1
    flip: float = 0.5

    def __post_init__(self):
        check_shares(blur=self.blur, jpeg=self.jpeg, flip=self.flip)


def draw(rng: np.random.Generator, margin: int, augment: FrameAugment | None) -> dict[str, Tensor]:
    """The draws of one clip; without `augment`, its frames are only cropped to the centre.

    margin: pixels by which the frames are larger than the model's. Returns "blur_sigma" () float32
    and "jpeg_quality" () long, 0 = not applied; "flip" () bool; "crop" (2,) long, first row and
    column.
    """
    if augment is None:
        return _draws(0.0, 0, False, np.full(2, margin // 2))
    crop = rng.integers(margin + 1, size=2)
    blur, jpeg, flip = rng.random(3) < (augment.blur, augment.jpeg, augment.flip)
    sigma, quality = rng.uniform(0, SIGMA_MAX), QUALITIES[rng.integers(2)]
    return _draws(sigma * blur, quality * jpeg, flip, crop)


def _draws(sigma: float, quality: int, flip: bool, crop: np.ndarray) -> dict[str, Tensor]:
    return {
        "blur_sigma": torch.tensor(sigma, dtype=torch.float32),
        "jpeg_quality": torch.tensor(int(quality)),
        "flip": torch.tensor(bool(flip)),
        "crop": torch.from_numpy(crop),
    }


def apply(frames: Tensor, draws: dict[str, Tensor], size: int) -> Tensor:
    """Clips (B, T, S, S, 3) uint8 -> (B, T, size, size, 3). draws: one row per clip."""
    rows = zip(frames, *(draws[name].tolist() for name in DRAWS))
    return torch.stack([_one(clip, size, *values) for clip, *values in rows])


def centre(frames: Tensor, size: int) -> Tensor:
    """The centre (..., size, size, 3) of frames (..., S, S, 3)."""
    first = (frames.shape[-2] - size) // 2
    return frames[..., first : first + size, first : first + size, :]


def _one(
    clip: Tensor, size: int, sigma: float, quality: int, flip: bool, crop: list[int]
) -> Tensor:
    if sigma or quality:
        degraded = [_degraded(frame, sigma, quality) for frame in clip.cpu().numpy()]
        clip = torch.from_numpy(np.stack(degraded)).to(clip.device)
    top, left = crop
    clip = clip[:, top : top + size, left : left + size]
    return clip.flip(2) if flip else clip


def _degraded(frame: np.ndarray, sigma: float, quality: int) -> np.ndarray:
    """One RGB frame after blur, then JPEG."""
    if sigma:
        frame = cv2.GaussianBlur(frame, (0, 0), sigma)
    if quality:
        coded = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        frame = cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]
    return frame
