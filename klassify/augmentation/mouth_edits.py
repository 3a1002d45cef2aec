"""Edits of a mouth over a span of frames: fakes, which show it as it was not, and genuine faults.

Crops are (T, H, W) grey or (T, H, W, 3) uint8 with the mouth in the middle, at the same place and
size in every frame; spans are frames [start, end). An edit returns the span's new crops as float32,
and `blend` puts them in under a feathered mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter1d

from klassify.augmentation.faults import Fault, degrade

Span = tuple[int, int]
Mouth = np.ndarray | None
MIDDLE = (0.5, 0.53)  # of the mask, in widths and heights of a crop
AXES = (0.36, 0.29)
FEATHER = 0.045
ALIKE = 5  # another time is one of the fifth that looks most alike around the mouth


def mouth_mask(size: tuple[int, int], rng: Generator) -> np.ndarray:
    """(H, W) float32 of a slightly random ellipse around the mouth: 1 inside, feathered."""
    height, width = size
    scale = rng.uniform(0.92, 1.08, 2)
    middle = (round(16 * MIDDLE[0] * width), round(16 * MIDDLE[1] * height))
    axes = (round(16 * AXES[0] * width * scale[0]), round(16 * AXES[1] * height * scale[1]))
    mask = np.zeros(size, np.uint8)
    cv2.ellipse(mask, middle, axes, 0, 0, 360, 255, -1, cv2.LINE_AA, 4)
    feather = FEATHER * width * rng.uniform(0.6, 1.4)
    return cv2.GaussianBlur(mask, (0, 0), feather).astype(np.float32) / 255


def blend(crops: np.ndarray, span: Span, edited: np.ndarray, mask: np.ndarray) -> None:
    """Put edited crops into crops[start:end], in place, where the mask says."""
    old = crops[slice(*span)].astype(np.float32)
    share = mask[..., None] if crops.ndim == 4 else mask
    crops[slice(*span)] = np.clip(old + share * (edited - old) + 0.5, 0, 255).astype(np.uint8)


def difference(crops: np.ndarray, span: Span, edited: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute difference under the mask, in grey levels, of edited crops from the span's."""
    apart = np.abs(edited - crops[slice(*span)].astype(np.float32))
    apart = apart.mean(axis=3) if crops.ndim == 4 else apart
    return float((apart * mask).sum() / mask.sum() / len(apart))


def other_time(crops: np.ndarray, span: Span, usable: np.ndarray, rng: Generator) -> Mouth:
    """The mouth of another place of the clip, played as it was, where the head is held alike."""
    size = span[1] - span[0]
    starts = np.arange(len(crops) - size + 1)
    far = starts[np.abs(starts - span[0]) >= max(size, 6)]
    far = np.array([start for start in far if usable[start : start + size].all()], int)
    if not len(far):
        return None
    # what is around the mouth, coarsely, at the beginning and at the end
    height, width = crops.shape[1:3]
    around = mouth_mask((height, width), rng)[4::8, 4::8] < 0.1
    coarse = crops[:, 4::8, 4::8][:, around].reshape(len(crops), -1).astype(np.float32)
    first, last = coarse[span[0]], coarse[span[1] - 1]
    unlike = np.abs(coarse[far] - first).mean(axis=1)
    unlike += np.abs(coarse[far + size - 1] - last).mean(axis=1)
    alike = far[np.argsort(unlike, kind="stable")[: max(1, len(far) // ALIKE)]]
    return _from(crops, span, usable, alike, rng)


def shifted(crops: np.ndarray, span: Span, usable: np.ndarray, rng: Generator) -> Mouth:
    """The mouth 2 to 5 frames early or late."""
    near = [span[0] + sign * shift for sign in (-1, 1) for shift in range(2, 6)]
    return _from(crops, span, usable, near, rng)


def _from(
    crops: np.ndarray, span: Span, usable: np.ndarray, starts: Sequence[int], rng: Generator
) -> Mouth:
    """The crops from one of these frames on, as bright as the span's; None if none will do."""
    size = span[1] - span[0]
    inside = [start for start in starts if 0 <= start <= len(crops) - size]
    good = [start for start in inside if usable[start : start + size].all()]
    if not good:
        return None
    start = int(rng.choice(good))
    return _lit_alike(crops[start : start + size], crops[slice(*span)])


def held(crops: np.ndarray, span: Span, usable: np.ndarray, rng: Generator) -> Mouth:
    """The mouth of one frame of the span, standing still."""
    still = crops[int(rng.integers(*span))].astype(np.float32)
    return np.repeat(still[None], span[1] - span[0], axis=0)


def smoothed(crops: np.ndarray, span: Span, usable: np.ndarray, rng: Generator) -> Mouth:
    """The own mouth, averaged over neighbouring frames."""
    width = rng.uniform(2.0, 3.5)
    return gaussian_filter1d(crops[slice(*span)].astype(np.float32), width, axis=0, mode="nearest")


def warped(crops: np.ndarray, span: Span, usable: np.ndarray, rng: Generator) -> Mouth:
    """The own mouth opened and closed at a rhythm of its own, by a smooth local warp."""
    height, width = crops.shape[1:3]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    across = np.exp(-(((columns / width - MIDDLE[0]) / 0.2) ** 2))
    down = (rows / height - MIDDLE[1]) / 0.18
    pull = across * down * np.exp(0.5 - down**2 / 2)  # towards or away from the lips' line, up to 1
    phase, rate = rng.uniform(0, 2 * np.pi), rng.uniform(0.12, 0.22)  # cycles a frame: 3 to 5.5 Hz
    strength = rng.uniform(0.045, 0.08) * height
    frames = []
    for k in range(*span):
        amount = strength * (0.6 + 0.4 * np.sin(phase + 2 * np.pi * rate * (k - span[0])))
        at = rows + np.float32(amount * (1 if phase < np.pi else -1)) * pull.astype(np.float32)
        frames.append(cv2.remap(crops[k].astype(np.float32), columns, at, cv2.INTER_CUBIC))
    return np.stack(frames)


def _lit_alike(mouth: np.ndarray, there: np.ndarray) -> np.ndarray:
    """float32 crops with the mean brightness and colour of others."""
    mouth = mouth.astype(np.float32)
    axes = (0, 1, 2)
    return mouth + (there.mean(axis=axes, dtype=np.float64) - mouth.mean(axis=axes)).astype(
        np.float32
    )


# each takes the crops, the span, (T,) bool of the frames with a mouth, and a generator; None where
# the clip has nothing to make it of
FAKES: dict[str, Callable[[np.ndarray, Span, np.ndarray, Generator], Mouth]] = {
    "other_time": other_time,
    "shift": shifted,
    "warp": warped,
    "held": held,
    "smooth": smoothed,
}


def degraded(crops: np.ndarray, fault: Fault) -> np.ndarray:
    """float32 crops, every frame with the same artefacts."""
    return np.stack([degrade(crop.astype(np.float32), fault) for crop in crops])


def draw_finish(rng: Generator) -> Fault:
    """Artefacts of one redrawn mouth: softness, re-encoding, another tone, sharpening, or none."""
    u = rng.uniform
    kinds = (
        Fault(),
        Fault(blur=u(0.6, 1.3)),
        Fault(shrink=u(0.5, 0.75)),
        Fault(quality=int(u(12, 40))),
        Fault(sharpen=u(0.5, 1.2)),
        Fault(tint=(u(-2.5, 2.5), u(-1.5, 1.5), u(-1.5, 1.5))),
    )
    return kinds[rng.integers(len(kinds))]
