"""Pictures of a clip without a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import av
import numpy as np

from klassify.media.picture import Picture


def picture_of(image: np.ndarray) -> Picture:
    """RGB (H, W, 3) uint8 as a decoded picture."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return Picture(frame, image.shape[:2])


def shown(images: Iterable[np.ndarray], fps: float = 25) -> Iterator[tuple[float, float, Picture]]:
    """Each image with the times from and to which it is on screen."""
    for k, image in enumerate(images):
        yield k / fps, (k + 1) / fps, picture_of(image)
