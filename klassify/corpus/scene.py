"""What surrounds a painted face: hair, shoulders, and an out-of-focus room."""

from __future__ import annotations

import cv2
import numpy as np

from klassify.corpus.canvas import Canvas, ellipse, smooth_noise, smooth_ring
from klassify.corpus.look import Look

SCENE_SIZE = 480  # backdrop and body: twice the frame and a margin to move in
SCENE_EYES = (240, 214)  # pixels of the point between the eyes


def paint_back_hair(canvas: Canvas, look: Look, rng: np.random.Generator) -> None:
    """Hair behind the face, for the styles that have it."""
    bottom = {"long": 1.75, "bob": 0.95, "curly": 0.75}.get(look.hairstyle)
    if bottom is None:
        return
    curly = look.hairstyle == "curly"
    width = 1.06 if curly else 0.97
    t = np.linspace(-np.pi, 0, 30)
    crown = np.stack([width * np.cos(t), -0.05 + 1.05 * np.sin(t)], axis=1)
    right = np.array([(width + 0.03, 0.5), (width - 0.05, bottom), (0.5, bottom + 0.06)])
    outline = np.concatenate([crown, right, right[::-1] * (-1, 1)])
    if curly:
        outline *= 1 + 0.035 * np.sin(2.3 * np.arange(len(outline)) + rng.uniform(0, 6))[:, None]
    canvas.shape(smooth_ring(outline), 0.72 * _strands(canvas, look, rng), 2.5, cover=True)


def paint_front_hair(canvas: Canvas, look: Look, rng: np.random.Generator) -> None:
    """Hair over the forehead and temples, down to the hairline."""
    if look.hairstyle == "bald":
        return
    top, side = {
        "short": (0.98, 0.85),
        "parted": (1.02, 0.88),
        "long": (1.06, 0.97),
        "bob": (1.06, 0.97),
        "curly": (1.12, 1.02),
    }[look.hairstyle]
    t = np.linspace(-np.pi - 0.12, 0.12, 40)
    outer = np.stack([side * look.width * np.cos(t), -0.03 + top * np.sin(t)], axis=1)
    if look.hairstyle == "curly":
        outer *= 1 + 0.03 * np.sin(1.9 * np.arange(len(outer)))[:, None]
    x = np.linspace(0.78, -0.78, 31)
    hairline = -0.5 + look.hairline + 0.42 * np.abs(x / 0.78) ** 4
    if look.hairstyle in ("parted", "bob", "long"):
        parting = 0.25 if look.seed % 2 else -0.25
        hairline += 0.05 * np.cos(5 * x) - 0.16 * np.exp(-(((x - parting) / 0.2) ** 2))
    hairline[np.abs(x) > 0.72] = 0.12 if look.hairstyle == "short" else 0.3
    outline = np.concatenate([outer, np.stack([x * look.width, hairline], axis=1)])
    canvas.shape(outline + (0, 0.03), look.skin * 0.5, 5, 0.35)
    canvas.shape(outline, _strands(canvas, look, rng), 1.8, cover=True)


def _strands(canvas: Canvas, look: Look, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) hair: fine vertical strands, or curls."""
    sizes = ((3, 3), (8, 8)) if look.hairstyle == "curly" else ((0.9, 9), (4, 22))
    fine, broad = (smooth_noise(rng, canvas.pixels.shape[:2], *size) for size in sizes)
    x, y = canvas.grid
    gloss = np.exp(-(((y + 0.78 + 0.25 * x**2) / 0.12) ** 2))
    brightness = 0.9 + 0.13 * fine + 0.1 * broad + 0.3 * gloss
    return look.hair * brightness[..., None] + 10 * gloss[..., None]


def paint_backdrop(look: Look, rng: np.random.Generator) -> np.ndarray:
    """(480, 480, 3) uint8: a wall with a few soft boxes, brighter towards the light."""
    picture = np.ones((SCENE_SIZE, SCENE_SIZE, 3), np.float32) * look.wall
    for _ in range(rng.integers(3, 8)):
        middle, size = rng.uniform(0, SCENE_SIZE, 2), rng.uniform((30, 40), (150, 220))
        colour = look.wall * rng.uniform(0.55, 1.35) + rng.uniform(-25, 25, 3)
        (x0, y0), (x1, y1) = (middle - size / 2).astype(int), (middle + size / 2).astype(int)
        picture[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = colour
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(4, 12))
    ramp = np.linspace(-0.12, 0.12, SCENE_SIZE, dtype=np.float32)[None, :, None]
    ramp = ramp * np.sign(look.light[0])
    grain = 1.2 * smooth_noise(rng, (SCENE_SIZE, SCENE_SIZE), 1.5, 1.5)[..., None]
    return np.clip(picture * (1 + ramp) + grain, 0, 255).astype(np.uint8)


def paint_body(look: Look, rng: np.random.Generator) -> np.ndarray:
    """(480, 480, 4) uint8: neck, and shoulders in a shirt."""
    shape, unit = (SCENE_SIZE, SCENE_SIZE), 2 * look.zoom
    corner = (-SCENE_EYES[0] / unit, -SCENE_EYES[1] / unit)
    canvas = Canvas(np.zeros((*shape, 4), np.float32), unit, corner)
    half = 0.42 * look.width
    neck = np.array([(-half, 0.7), (half, 0.7), (half + 0.06, 1.9), (-half - 0.06, 1.9)])
    canvas.shape(neck, look.skin * 0.8, 2, cover=True)
    canvas.shape(ellipse(0, 1.18 + look.chin, 0.5, 0.26), look.skin * 0.5, 14, 0.75)
    folds, cloth = smooth_noise(rng, shape, 10, 30), smooth_noise(rng, shape, 1.5, 1.5)
    shirt = look.shirt * (1 + 0.05 * folds + 0.02 * cloth)[..., None]
    right = np.array([(0.5, 1.55), (1.0, 1.72), (1.75, 1.95), (2.0, 2.6)])
    shoulders = np.concatenate([[(0.0, 1.78)], right, right[::-1] * (-1, 1)])
    canvas.shape(smooth_ring(shoulders), shirt, 2, cover=True)
    collar = np.array([(0.52, 1.52), (0.0, 1.8), (0.2, 1.98), (0.66, 1.6)])
    canvas.shape(collar * (-1, 1), look.shirt * 1.2, 2, 0.9, cover=True)
    canvas.shape(collar, look.shirt * 1.12, 2, 0.9, cover=True)
    return canvas.finished()
