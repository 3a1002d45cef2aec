"""The pictures of fake versions: mouths redrawn with the artefacts of lip-sync models.

A `Fault` describes the artefacts of the mouth over a span of frames. Fake spans have several at
once (a profile); distractors put a single one on genuine frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d

from klassify.corpus.motion import Tracks
from klassify.corpus.render import SIZE, Renderer


@dataclass(frozen=True)
class Fault:
    """Artefacts of a redrawn mouth; the defaults are none."""

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


def distract(
    renderer: Renderer, tracks: Tracks, frames: list[np.ndarray], rng: np.random.Generator
) -> None:
    """Put one fault on 5-12 genuine frames, in place."""
    start = int(rng.integers(0, len(frames) - 12))
    span = range(start, start + int(rng.integers(5, 13)))
    redrawn = redraw(renderer, tracks, span, tracks.mouth, draw_distractor(rng), rng)
    for k, (picture, mask) in zip(span, redrawn):
        frames[k] = (frames[k] + mask * (picture - frames[k])).astype(np.uint8)


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


def redraw(
    renderer: Renderer,
    tracks: Tracks,
    span: range,
    mouth: np.ndarray,
    fault: Fault,
    rng: np.random.Generator,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(picture, mask) of each frame of the span: the face with another mouth and its faults.

    mouth: (T, 3) mouth parameters of the whole clip. Pictures are float32, masks (224, 224, 1) are
    1 where the picture replaces the original's.
    """
    if fault.smooth:
        mouth = gaussian_filter1d(mouth, fault.smooth, axis=0, mode="nearest") * (0.8, 1, 1)
    held = tracks.pose[span.start : span.stop].mean(axis=0)
    pictures = []
    for k in span:
        pose = (1 - 0.7 * fault.still) * tracks.pose[k] + 0.7 * fault.still * held
        place = pose.copy()
        place[3:] += rng.normal(0, fault.jitter * renderer.pixels_per_unit, 2)
        shape = mouth[k] + rng.normal(0, 4 * fault.jitter, 3) * (1, 0.5, 0.5)
        picture = degrade(renderer.frame(tracks, k, shape, place).astype(np.float32), fault)
        if fault.ghost and pictures:
            picture = (1 - fault.ghost) * picture + fault.ghost * pictures[-1][0]
        pictures.append((picture, mouth_mask(renderer, tracks.pose[k])))
    return pictures


def degrade(picture: np.ndarray, fault: Fault) -> np.ndarray:
    """A frame, RGB 0-255 float32, with all artefacts of a fault but those of motion."""
    if fault.shrink < 1:
        small = max(int(SIZE * fault.shrink), 8)
        picture = cv2.resize(picture, (small, small), interpolation=cv2.INTER_AREA)
        picture = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    if fault.blur:
        picture = cv2.GaussianBlur(picture, (0, 0), fault.blur)
    if fault.sharpen:
        picture = picture + fault.sharpen * (picture - cv2.GaussianBlur(picture, (0, 0), 1.5))
    if any(fault.tint):
        lab = cv2.cvtColor(np.clip(picture, 0, 255) / np.float32(255), cv2.COLOR_RGB2LAB)
        picture = 255 * cv2.cvtColor(lab + np.float32(fault.tint), cv2.COLOR_LAB2RGB)
    picture = np.clip(picture, 0, 255)
    if fault.quality < 100:
        quality = [cv2.IMWRITE_JPEG_QUALITY, fault.quality]
        coded = cv2.imencode(".jpg", picture.astype(np.uint8), quality)[1]
        picture = cv2.imdecode(coded, cv2.IMREAD_COLOR).astype(np.float32)
    return picture


def mouth_mask(renderer: Renderer, pose: np.ndarray) -> np.ndarray:
    """(224, 224, 1) float32: the lower face, feathered."""
    middle = tuple(int(value) for value in np.round(renderer.mouth_centre(pose) * 16))
    axes = tuple(int(size * renderer.pixels_per_unit * 16) for size in (0.52, 0.36))
    mask = np.zeros((SIZE, SIZE), np.uint8)
    cv2.ellipse(mask, middle, axes, float(np.degrees(pose[2])), 0, 360, 255, -1, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(mask, (0, 0), 3.5).astype(np.float32)[..., None] / 255


def _tint(rng: np.random.Generator, size: float) -> tuple[float, float, float]:
    direction = rng.normal(size=3) * (1, 0.8, 0.8)
    return tuple(float(value) for value in size * direction / np.linalg.norm(direction))
