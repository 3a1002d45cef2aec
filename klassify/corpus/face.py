"""The shape of a painted face: a symmetric synthetic mean mesh with MediaPipe's 478 points."""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np
from scipy.interpolate import LinearNDInterpolator

from klassify.corpus.canvas import smooth_step
from klassify.corpus.look import Look

SCALE = 132  # texture pixels a unit: about twice the resolution of a frame
CORNER = (-1.7, -1.6)  # face coordinates of the texture's upper left corner
WIDTH, HEIGHT = int(3.4 * SCALE), int(3.8 * SCALE)

# landmark numbers of MediaPipe's face mesh; of pairs, those on the left of the picture
UPPER_LID = (33, 246, 161, 160, 159, 158, 157, 173, 133)
LOWER_LID = (33, 7, 163, 144, 145, 153, 154, 155, 133)
BROW = (70, 63, 105, 66, 107, 55, 65, 52, 53, 46)
IRIS, NOSE_WING, NOSE_BASE = 468, 98, 2
UPPER_OUTER_LIP = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
LOWER_OUTER_LIP = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
UPPER_INNER_LIP = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER_INNER_LIP = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
MOUTH_Y = 0.725


@functools.cache
def mean_mesh() -> tuple[np.ndarray, np.ndarray]:
    """(478, 3) mean face in face coordinates, and (478,) each point's mirror image."""
    folder = Path(__file__).parent
    mesh = np.load(folder / "mean_face.npy").astype(float)
    return mesh, np.load(folder / "mirror_permutation.npy")


def on_side(points: tuple[int, ...], side: int) -> list[int]:
    """Landmark numbers of the left half (side -1), or of their mirror images (side 1)."""
    return list(points) if side < 0 else mean_mesh()[1][list(points)].tolist()


def speaker_mesh(look: Look) -> np.ndarray:
    """(478, 3) the mean face with the speaker's proportions; still symmetric."""
    mesh = mean_mesh()[0].copy()
    x, y = mesh[:, 0].copy(), mesh[:, 1].copy()
    mesh[:, 0] *= look.width * (1 + look.jaw * smooth_step((y - 0.3) / 0.9))
    mesh[:, 1] += look.chin * smooth_step((y - 0.75) / 0.47)
    near_nose = np.exp(-((x / 0.3) ** 2) - ((y - 0.45) / 0.16) ** 2)
    near_eyes = np.exp(-(((np.abs(x) - 0.37) / 0.2) ** 2) - (y / 0.12) ** 2)
    near_mouth = np.exp(-((x / 0.5) ** 2) - ((y - 0.74) / 0.2) ** 2)
    mesh[:, 0] *= 1 + (look.nose - 1) * near_nose + (look.mouth_width - 1) * near_mouth
    mesh[:, 1] *= 1 + (look.eye_size - 1) * near_eyes
    lips = sorted({*UPPER_OUTER_LIP, *LOWER_OUTER_LIP, *UPPER_INNER_LIP, *LOWER_INNER_LIP})
    mesh[lips, 1] = MOUTH_Y + (mesh[lips, 1] - MOUTH_Y) * look.lip_fullness
    return mesh


def depth_map(mesh: np.ndarray) -> np.ndarray:
    """(HEIGHT, WIDTH) float32 depth in units: the mesh in the face, a rounded head around it."""
    x, y = np.meshgrid(np.linspace(-0.75, 0.75, 9), (-0.62, -0.72, -0.82, -0.88))
    round_z = 0.75 - 1.2 * np.sqrt(np.maximum(0, 1 - (x / 0.85) ** 2 - ((y + 0.02) / 0.95) ** 2))
    skull = np.stack([x, y, round_z], axis=-1).reshape(-1, 3)
    head = [(0.8, -0.6, 0.75), (0.95, -0.1, 0.75), (0.92, 0.6, 0.75)]
    neck = [(0.6, 1.25, 0.5), (0.3, 1.55, 0.45)]
    edge = [(1.7, -1.6, 0.9), (1.7, 0.3, 0.9), (1.7, 2.2, 0.9)]
    half = head + neck + edge
    around = np.array([(side * x, y, z) for side in (-1, 1) for x, y, z in half])
    middle = [(0, -1.6, 0.85), (0, 2.2, 0.6)]
    points = np.concatenate([mesh[:468], skull, around, middle])
    columns = CORNER[0] + np.arange(0, WIDTH, 2) / SCALE
    rows = CORNER[1] + np.arange(0, HEIGHT, 2) / SCALE
    x, y = np.meshgrid(columns, rows)
    depth = LinearNDInterpolator(points[:, :2], points[:, 2], fill_value=0.8)(x, y)
    depth = cv2.GaussianBlur(depth.astype(np.float32), (0, 0), 2.2)
    return cv2.resize(depth, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def shading(depth: np.ndarray, light: np.ndarray) -> np.ndarray:
    """(HEIGHT, WIDTH) float32 brightness about 1.

    Lambert's law for a key light, a weak light from the camera, and darker hollows. light: (3,)
    unit vector towards the key light.
    """
    soft = cv2.GaussianBlur(depth, (0, 0), 2)
    slope_y, slope_x = np.gradient(soft * SCALE)
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    key = np.maximum(0, (slope_x * light[0] + slope_y * light[1] - light[2]) / length)
    hollow = cv2.GaussianBlur(depth, (0, 0), 6) - cv2.GaussianBlur(depth, (0, 0), 1.5)
    brightness = 0.42 + 0.38 * key + 0.28 / length + np.clip(2.2 * hollow, -0.16, 0.1)
    return brightness.astype(np.float32)
