"""A crude painted face that Face Mesh finds."""

from __future__ import annotations

import cv2
import numpy as np

import klassify.corpus
from klassify.features.mouth import channels

MEAN_FACE = np.load(klassify.corpus.__path__[0] + "/mean_face.npy")


def painted(
    opening: float = 0.1, x: float = 112, y: float = 95, scale: float = 70, rgb=None
) -> tuple[np.ndarray, np.ndarray]:
    """A crude shaded face on a plain ground, and where its landmarks are."""
    image = np.full((224, 224, 3), (90, 120, 140), np.uint8) if rgb is None else rgb
    points = MEAN_FACE.copy()
    chin = [
        *(152, 148, 176, 377, 400, 146, 91, 181, 84, 17, 314, 405, 321, 375, 95, 88, 178, 87, 14),
        *(317, 402, 318, 324),
    ]
    points[chin, 1] += opening
    pixels = points[:, :2] * scale + [x, y]

    def fill(of, colour):
        cv2.fillPoly(image, [np.round(pixels[of] * 16).astype(np.int32)], colour, cv2.LINE_AA, 4)

    for triangle in cv2_triangles(MEAN_FACE[:468, :2]):
        a, b, c = points[triangle]
        normal = np.cross(b - a, c - a)
        normal /= -np.sign(normal[2]) * np.linalg.norm(normal)
        light = 0.55 + 0.45 * max(0.0, float(normal @ [-0.3, -0.4, -0.87]))
        fill(triangle, tuple(int(v * light) for v in (224, 172, 140)))
    fill(channels.OUTER_LIPS, (170, 80, 80))
    fill(channels.INNER_LIPS, (60, 20, 20))
    for eye in ([33, 160, 158, 133, 153, 144], [362, 385, 387, 263, 373, 380]):
        fill(eye, (240, 240, 240))
        centre = tuple(int(v * 16) for v in pixels[eye].mean(axis=0))
        cv2.circle(image, centre, int(scale * 1.2), (50, 35, 30), -1, cv2.LINE_AA, 4)
    for brow in ([70, 63, 105, 66, 107], [336, 296, 334, 293, 300]):
        line = np.round(pixels[brow] * 16).astype(np.int32)
        cv2.polylines(image, [line], False, (60, 40, 30), 5, cv2.LINE_AA, 4)
    return image, pixels


def cv2_triangles(points: np.ndarray) -> np.ndarray:
    from scipy.spatial import Delaunay

    return Delaunay(points).simplices
