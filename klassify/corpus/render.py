"""Frames of a painted speaker: eyes and mouth are painted, then the head is warped by its pose."""

from __future__ import annotations

import cv2
import numpy as np

from klassify.corpus.face import CORNER, HEIGHT, SCALE, WIDTH
from klassify.corpus.motion import Tracks
from klassify.corpus.mouth import Mouth
from klassify.corpus.portrait import EYE_COLUMNS, EYE_ROWS, Portrait
from klassify.corpus.scene import SCENE_EYES

SIZE = 224  # pixels, both ways
EYES = (112.0, 100.0)  # frame pixels of the point between the eyes, before it moves
MOUTH_CENTRE = (0.0, 0.78, -0.15)
BROW_LIFT = 0.045  # units, at brow = 1


class Renderer:
    """Renders frames of one portrait, without sensor noise."""

    def __init__(self, portrait: Portrait):
        self.portrait = portrait
        self.mouth = Mouth(portrait)
        depth = cv2.resize(portrait.depth, (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
        y, x = np.mgrid[: HEIGHT // 2, : WIDTH // 2].astype(np.float32) * (2 / SCALE)
        x, y = x + CORNER[0], y + CORNER[1]
        brows = np.exp(-(((np.abs(x) - 0.38) / 0.3) ** 2) - ((y + 0.22) / 0.13) ** 2)
        self._depth_and_brows = np.dstack([depth, brows]).astype(np.float32)
        v, u = np.mgrid[:SIZE, :SIZE].astype(np.float32)
        self._u, self._v = u - EYES[0], v - EYES[1]

    @property
    def pixels_per_unit(self) -> float:
        """Frame pixels between the outer eye corners."""
        return self.portrait.look.zoom

    def frame(
        self,
        tracks: Tracks,
        k: int,
        mouth: np.ndarray | None = None,
        pose: np.ndarray | None = None,
    ) -> np.ndarray:
        """(224, 224, 3) uint8 RGB of frame k, with another mouth shape or pose if given."""
        pose = tracks.pose[k] if pose is None else pose
        texture = self.portrait.head.copy()
        texture[EYE_ROWS, EYE_COLUMNS, :3] = self.portrait.eyes(tracks.blink[k])
        self.mouth.paint(texture, tracks.mouth[k] if mouth is None else mouth)
        head = self._warp(texture, pose, tracks.brow[k])
        picture = _over(head, self._behind(pose))
        return np.clip(picture * tracks.light[k].astype(np.float32), 0, 255).astype(np.uint8)

    def mouth_centre(self, pose: np.ndarray) -> np.ndarray:
        """(2,) frame pixels of the middle of the mouth."""
        yaw, pitch, roll, dx, dy = pose
        x, y, z = MOUTH_CENTRE
        x, y = x + yaw * z, y - pitch * z
        cos, sin = np.cos(roll), np.sin(roll)
        turned = np.array([cos * x - sin * y, sin * x + cos * y])
        return self.pixels_per_unit * turned + EYES + (dx, dy)

    def _warp(self, texture: np.ndarray, pose: np.ndarray, brow: float) -> np.ndarray:
        """(224, 224, 4) the head at a pose: a similarity, then shifts by depth for small turns."""
        yaw, pitch, roll, dx, dy = (float(value) for value in pose)
        cos, sin = (np.float32(f(roll) * SCALE / self.pixels_per_unit) for f in (np.cos, np.sin))
        u, v = self._u - np.float32(dx), self._v - np.float32(dy)
        x = cos * u + sin * v - np.float32(CORNER[0] * SCALE)
        y = cos * v - sin * u - np.float32(CORNER[1] * SCALE)
        fields = cv2.remap(
            self._depth_and_brows, x / 2, y / 2, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        depth, brows = fields[..., 0], fields[..., 1]
        x -= np.float32(yaw * SCALE) * depth
        y += np.float32(pitch * SCALE) * depth + np.float32(brow * BROW_LIFT * SCALE) * brows
        return cv2.remap(texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)

    def _behind(self, pose: np.ndarray) -> np.ndarray:
        """(224, 224, 3) float32: the backdrop moves a little with the camera, the body more."""
        backdrop = _shifted(self.portrait.backdrop, 0.2 * pose[3:])
        return _over(_shifted(self.portrait.body, 0.7 * pose[3:]), backdrop.astype(np.float32))


def _shifted(scene: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The part of a picture of twice the resolution in the frame, moved by (x, y) frame pixels."""
    corner = [centre - 2 * (eyes + offset) for centre, eyes, offset in zip(SCENE_EYES, EYES, shift)]
    to_scene = np.array([[2, 0, corner[0]], [0, 2, corner[1]]], np.float64)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(scene, to_scene, (SIZE, SIZE), flags=flags)


def _over(front: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Premultiplied RGBA uint8 over RGB float32."""
    # numpy takes four times as long to repeat one channel
    through = cv2.cvtColor(front[..., 3], cv2.COLOR_GRAY2RGB).astype(np.float32) / 255
    np.subtract(1, through, out=through)
    through *= back
    through += cv2.cvtColor(front, cv2.COLOR_RGBA2RGB)
    return through
