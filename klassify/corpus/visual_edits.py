"""The pictures of fake versions: mouths redrawn with the artefacts of lip-sync models.

Fake spans have several artefacts at once (a profile); distractors put a single one on genuine
frames.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d

from klassify.augmentation.faults import Fault, degrade, draw_distractor
from klassify.corpus.motion import Tracks
from klassify.corpus.render import SIZE, Renderer


def distract(
    renderer: Renderer, tracks: Tracks, frames: list[np.ndarray], rng: np.random.Generator
) -> None:
    """Put one fault on 5-12 genuine frames, in place."""
    start = int(rng.integers(0, len(frames) - 12))
    span = range(start, start + int(rng.integers(5, 13)))
    redrawn = redraw(renderer, tracks, span, tracks.mouth, draw_distractor(rng), rng)
    for k, (picture, mask) in zip(span, redrawn):
        frames[k] = (frames[k] + mask * (picture - frames[k])).astype(np.uint8)


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


def mouth_mask(renderer: Renderer, pose: np.ndarray) -> np.ndarray:
    """(224, 224, 1) float32: the lower face, feathered."""
    middle = tuple(int(value) for value in np.round(renderer.mouth_centre(pose) * 16))
    axes = tuple(int(size * renderer.pixels_per_unit * 16) for size in (0.52, 0.36))
    mask = np.zeros((SIZE, SIZE), np.uint8)
    cv2.ellipse(mask, middle, axes, float(np.degrees(pose[2])), 0, 360, 255, -1, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(mask, (0, 0), 3.5).astype(np.float32)[..., None] / 255
