"""Augmentation of frames: drawn once per clip, the same for the frames and their reconstruction.

The data class draws (from the clip's own random numbers) and the model applies: the model
reconstructs the unchanged frames first, so the draws travel with the batch. On a CPU OpenCV blurs
and codes; on a GPU, which would have to be waited for, `degrade` does the same in torch, most
pixels within a level.

Published settings (MM-Det's data loader; paper 2 keeps them): Gaussian blur with p 0.1 and a
deviation of U(0, 3) pixels, JPEG with p 0.1 at quality 30 or 100, mirroring with p 0.5, one random
crop where the frames are larger than the model's.
"""

from __future__ import annotations

import dataclasses
import functools

import cv2
import numpy as np
import torch
import torch.nn.functional as F
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
    sigma, quality = draws["blur_sigma"], draws["jpeg_quality"]
    if frames.device.type == "cpu":
        rows = zip(frames, sigma.tolist(), quality.tolist())
        frames = torch.stack([_by_opencv(*row) for row in rows])
    else:
        frames = degrade(frames, sigma, quality)
    place = torch.arange(size, device=frames.device)
    top, left = draws["crop"][:, :, None].unbind(dim=1)
    rows, columns = top + place, left + torch.where(draws["flip"][:, None], size - 1 - place, place)
    clip = torch.arange(len(frames), device=frames.device)[:, None, None, None]
    frame = torch.arange(frames.shape[1], device=frames.device)[:, None, None]
    return frames[clip, frame, rows[:, None, :, None], columns[:, None, None]]


def centre(frames: Tensor, size: int) -> Tensor:
    """The centre (..., size, size, 3) of frames (..., S, S, 3)."""
    first = (frames.shape[-2] - size) // 2
    return frames[..., first : first + size, first : first + size, :]


def _by_opencv(clip: Tensor, sigma: float, quality: int) -> Tensor:
    if not (sigma or quality):
        return clip
    return torch.from_numpy(np.stack([_degraded(frame, sigma, quality) for frame in clip.numpy()]))


def _degraded(frame: np.ndarray, sigma: float, quality: int) -> np.ndarray:
    """One RGB frame after blur, then JPEG."""
    if sigma:
        frame = cv2.GaussianBlur(frame, (0, 0), sigma)
    if quality:
        coded = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        frame = cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]
    return frame


RADIUS = round(3 * SIGMA_MAX)  # of OpenCV's blur of bytes, in pixels
# tables of ITU T.81, annex K, for luma and chroma
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))
COLOURS = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def degrade(frames: Tensor, sigma: Tensor, quality: Tensor) -> Tensor:
    """Clips (B, T, H, W, 3) uint8 after blur, then JPEG, without reading a value.

    sigma, quality: (B,), 0 = not applied.
    """
    x = frames.movedim(-1, 2).float()
    hit = (sigma > 0)[:, None, None, None, None]
    x = torch.where(hit, _blurred(x, sigma).round().clamp(0, 255), x)
    hit = (quality > 0)[:, None, None, None, None]
    x = torch.where(hit, _coded(x, quality).round().clamp(0, 255), x)
    return x.to(torch.uint8).movedim(2, -1)


def _blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """(B, T, 3, H, W) after a Gaussian blur of `sigma` (B,) pixels."""
    place = torch.arange(-RADIUS, RADIUS + 1, device=x.device)
    sigma = sigma.clamp(min=1e-3)[:, None]
    weight = torch.exp(-0.5 * (place / sigma) ** 2) * (place.abs() <= (3 * sigma).round())
    weight = (weight / weight.sum(dim=1, keepdim=True))[:, None, None]  # (B, 1, 1, taps)
    flat = F.pad(x.flatten(1, 2), (RADIUS,) * 4, mode="reflect").movedim(0, 1)  # clips as channels
    flat = F.conv2d(flat, weight, groups=len(x))
    flat = F.conv2d(flat, weight.mT, groups=len(x))
    return flat.movedim(0, 1).unflatten(1, x.shape[1:3])


def _coded(x: Tensor, quality: Tensor) -> Tensor:
    """(B, T, 3, H, W) of whole levels as JPEG of `quality` (B,) shows them, chroma at half size."""
    height, width = x.shape[-2:]
    share = torch.where(quality < 50, 5000 // quality.clamp(min=1), 200 - 2 * quality)
    tables = _tables(x.device) * share[:, None, None, None]
    tables = ((tables + 50) / 100).floor().clamp(1, 255)
    x = F.pad(x.flatten(0, 1), (0, -width % 16, 0, -height % 16), mode="replicate")
    y, *chroma = (
        sum(weight * x[:, i] for i, weight in enumerate(row)) - (128 if n == 0 else 0)
        for n, row in enumerate(COLOURS)
    )
    n_frames = len(x) // len(quality)
    luma, chroma_table = tables.repeat_interleave(n_frames, dim=0).unbind(dim=1)
    y = _requantised(y, luma) + 128
    cb, cr = (
        F.interpolate(
            _requantised(F.avg_pool2d(plane[:, None], 2)[:, 0].round(), chroma_table)[:, None],
            scale_factor=2,
            mode="bilinear",
        )[:, 0]
        for plane in chroma
    )
    rgb = [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]
    rgb = torch.stack(rgb, dim=1)[..., :height, :width]
    return rgb.unflatten(0, (len(quality), -1))


@functools.lru_cache
def _tables(device: torch.device) -> Tensor:
    """The tables of quality 50, (2, 8, 8), copied to a device once."""
    tables = torch.full((2, 8, 8), 99.0)
    tables[0], tables[1, :4, :4] = torch.tensor(LUMA), torch.tensor(CHROMA)
    return tables.to(device)


def _requantised(plane: Tensor, table: Tensor) -> Tensor:
    """Planes (N, H, W) whose 8 x 8 cosine transforms are quantised in steps (N, 8, 8)."""
    place = torch.arange(8, device=plane.device, dtype=torch.float32)
    cosine = torch.cos((2 * place + 1) * place[:, None] * (torch.pi / 16)) / 2
    cosine = cosine * torch.where(place == 0, 0.5**0.5, 1.0)[:, None]
    blocks = plane.round().unflatten(2, (-1, 8)).unflatten(1, (-1, 8)).transpose(2, 3)
    step = table[:, None, None]
    found = (cosine @ blocks @ cosine.T / step).round() * step
    found = (cosine.T @ found @ cosine).round().clamp(-128, 127)
    return found.transpose(2, 3).flatten(3, 4).flatten(1, 2)
