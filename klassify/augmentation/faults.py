"""Artefacts of redrawn mouths: what lip-sync models and re-encoding leave in a picture."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np


@dataclass(frozen=True)
class Fault:
    """Artefacts of a redrawn mouth over a span of frames; the defaults are none."""

    blur: float = 0.0  # standard deviation in pixels
    shrink: float = 1.0  # factor of a lower resolution
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)  # shift in Lab
    jitter: float = 0.0  # deviation of the mouth's place, in units of the outer eye distance
    smooth: float = 0.0  # deviation of a filter over the mouth's motion, in frames
    still: float = 0.0  # how far head motion and sensor noise of the lower face are frozen, 0..1
    sharpen: float = 0.0  # amount of unsharp masking
    quality: int = 100  # of JPEG; 100 means no JPEG
    ghost: float = 0.0  # share of the previous frame


def draw_profile(
    profile: str, strength: float, sharpened: float, rng: np.random.Generator
) -> Fault:
    """The faults of one fake clip with a named profile."""
    u = rng.uniform
    fault = {
        "soft": Fault(blur=u(0.7, 1.25), still=0.5, jitter=0.004),
        "jittery": Fault(shrink=u(0.52, 0.72), jitter=u(0.007, 0.013), still=0.3),
        "smooth": Fault(blur=u(0.5, 0.9), smooth=u(1.8, 3.0), still=0.9),
        "blocky": Fault(quality=int(u(8, 22)), shrink=0.7, still=0.5, jitter=0.006),
        "ghosting": Fault(ghost=u(0.4, 0.65), blur=u(0.6, 1.1), smooth=1.0, still=0.6),
    }[profile]
    fault = replace(fault, tint=_tint(rng, u(2.0, 4.0)))
    if rng.random() < sharpened:
        fault = replace(fault, sharpen=u(0.6, 1.4))
    return scaled(fault, strength)


def draw_distractor(rng: np.random.Generator) -> Fault:
    """A single fault, about as strong as in fakes."""
    u = rng.uniform
    kinds = (
        Fault(blur=u(0.6, 1.5)),
        Fault(blur=u(0.6, 1.5)),
        Fault(shrink=u(0.5, 0.75)),
        Fault(sharpen=u(0.6, 1.4)),
        Fault(tint=_tint(rng, u(2, 4.5))),
        Fault(jitter=u(0.006, 0.015)),
    )
    return kinds[rng.integers(len(kinds))]


def scaled(fault: Fault, strength: float) -> Fault:
    """A weaker (strength below 1) or stronger fault."""
    return replace(
        fault,
        blur=fault.blur * strength,
        shrink=float(np.clip(1 - (1 - fault.shrink) * strength, 0.25, 1)),
        tint=tuple(value * strength for value in fault.tint),
        jitter=fault.jitter * strength,
        smooth=fault.smooth * strength,
        still=min(fault.still * strength, 1.0),
        ghost=min(fault.ghost * strength, 0.8),
    )


def degrade(picture: np.ndarray, fault: Fault) -> np.ndarray:
    """A picture with all artefacts of a fault but those of motion.

    (H, W, 3) RGB or (H, W) grey, 0-255 float32; a tint of a grey one is a shift of its brightness.
    """
    if fault.shrink < 1:
        whole = picture.shape[1::-1]
        small = tuple(max(int(size * fault.shrink), 8) for size in whole)
        picture = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
        picture = cv2.resize(picture, whole, interpolation=cv2.INTER_CUBIC)
    if fault.blur:
        picture = cv2.GaussianBlur(picture, (0, 0), fault.blur)
    if fault.sharpen:
        picture = picture + fault.sharpen * (picture - cv2.GaussianBlur(picture, (0, 0), 1.5))
    if any(fault.tint) and picture.ndim == 2:
        picture = picture + np.float32(2.55 * fault.tint[0])  # L is in percent
    elif any(fault.tint):
        lab = cv2.cvtColor(np.clip(picture, 0, 255) / np.float32(255), cv2.COLOR_RGB2LAB)
        picture = 255 * cv2.cvtColor(lab + np.float32(fault.tint), cv2.COLOR_LAB2RGB)
    picture = np.clip(picture, 0, 255)
    if fault.quality < 100:
        quality = [cv2.IMWRITE_JPEG_QUALITY, fault.quality]
        coded = cv2.imencode(".jpg", picture.astype(np.uint8), quality)[1]
        picture = cv2.imdecode(coded, cv2.IMREAD_UNCHANGED).astype(np.float32)
    return picture


def _tint(rng: np.random.Generator, size: float) -> tuple[float, float, float]:
    direction = rng.normal(size=3) * (1, 0.8, 0.8)
    return tuple(float(value) for value in size * direction / np.linalg.norm(direction))
