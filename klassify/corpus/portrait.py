"""Paints one speaker: a flat texture of the head with its depth, a body and a backdrop.

Lips are painted for every frame (mouth.py), eyes once for each of a few positions of the lids.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.interpolate import CubicSpline

from klassify.corpus.canvas import (
    Canvas,
    band,
    blend,
    ellipse,
    smooth_noise,
    smooth_ring,
    smooth_step,
)
from klassify.corpus.face import (
    BROW,
    CORNER,
    HEIGHT,
    IRIS,
    LOWER_LID,
    LOWER_OUTER_LIP,
    NOSE_BASE,
    NOSE_WING,
    SCALE,
    UPPER_LID,
    UPPER_OUTER_LIP,
    WIDTH,
    depth_map,
    on_side,
    shading,
    speaker_mesh,
)
from klassify.corpus.look import Look
from klassify.corpus.scene import paint_back_hair, paint_backdrop, paint_body, paint_front_hair
from klassify.features.mouth.channels import FACE_OVAL

LID_POSITIONS = 5
EYE_ROWS = slice(*(int((y - CORNER[1]) * SCALE) for y in (-0.24, 0.2)))
EYE_COLUMNS = slice(*(int((x - CORNER[0]) * SCALE) for x in (-0.66, 0.66)))


@dataclass
class Portrait:
    """The painted parts, colours multiplied by alpha.

    mesh: (478, 3). head: (HEIGHT, WIDTH, 4) uint8 without eyes and lips. depth: (HEIGHT, WIDTH)
    float32 in units. backdrop: (480, 480, 3) and body: (480, 480, 4), both uint8 at twice the
    frame's resolution.
    """

    look: Look
    mesh: np.ndarray
    head: np.ndarray
    depth: np.ndarray
    backdrop: np.ndarray
    body: np.ndarray
    _eyes: dict[int, np.ndarray] = field(default_factory=dict)

    def eyes(self, closed: float) -> np.ndarray:
        """uint8 RGB patch of the head at EYE_ROWS, EYE_COLUMNS, with the lids closed by 0..1."""
        position = round(min(max(closed, 0.0), 1.0) * (LID_POSITIONS - 1))
        if position not in self._eyes:
            self._eyes[position] = _paint_eyes(self, position / (LID_POSITIONS - 1))
        return self._eyes[position]


def paint(look: Look) -> Portrait:
    """Paint a speaker; the same look gives the same pixels."""
    rng = np.random.default_rng(look.seed)
    mesh = speaker_mesh(look)
    depth = depth_map(mesh)
    canvas = Canvas(np.zeros((HEIGHT, WIDTH, 4), np.float32), SCALE, CORNER)
    paint_back_hair(canvas, look, rng)
    _paint_skin(canvas, look, mesh, shading(depth, look.light), rng)
    _paint_features(canvas, look, mesh, rng)
    paint_front_hair(canvas, look, rng)
    head = canvas.finished()
    return Portrait(look, mesh, head, depth, paint_backdrop(look, rng), paint_body(look, rng))


def _paint_skin(
    canvas: Canvas, look: Look, mesh: np.ndarray, shade: np.ndarray, rng: np.random.Generator
) -> None:
    blotches, pores, freckles = (
        smooth_noise(rng, shade.shape, sigma, sigma) for sigma in (14, 1.2, 4)
    )
    texture = 1 + 0.012 * blotches + 0.016 * pores + 0.008 * freckles
    skin = look.skin * (shade * texture)[..., None]
    for side in (-1, 1):
        x = side * 0.8 * look.width
        canvas.shape(ellipse(x, 0.17, 0.1, 0.21), skin * 0.9, 1.5, cover=True)
        canvas.shape(ellipse(x, 0.17, 0.05, 0.13), skin * 0.72, 3, 0.6)
    skull = ellipse(0, -0.02, 0.79 * look.width, 0.88)
    canvas.shape(skull[skull[:, 1] <= 0], skin, 1.5, cover=True)
    canvas.shape(smooth_ring(mesh[FACE_OVAL, :2]), skin, 1.2, cover=True)
    flush = look.skin * (1.02, 0.82, 0.8) * shade[..., None]
    for x, y, rx, ry in ((-0.42, 0.42, 0.17, 0.13), (0.42, 0.42, 0.17, 0.13), (0, 0.47, 0.1, 0.07)):
        canvas.shape(ellipse(x * look.width, y, rx, ry), flush, 10, 0.33)
    if look.beard:
        _paint_beard(canvas, look, rng)


def _paint_beard(canvas: Canvas, look: Look, rng: np.random.Generator) -> None:
    x, y = canvas.grid
    chin = np.exp(-14 * np.maximum(0, 0.62 - y))
    cheeks = 0.7 * smooth_step((np.abs(x) - 0.2) / 0.35) * smooth_step((y - 0.2) / 0.3)
    stubble = np.clip(0.75 + 0.35 * smooth_noise(rng, canvas.pixels.shape[:2], 0.8, 0.8), 0, 1)
    blend(canvas.pixels, look.beard * stubble * np.maximum(chin, cheeks), look.hair)


def _paint_features(canvas: Canvas, look: Look, mesh: np.ndarray, rng: np.random.Generator) -> None:
    """Brows, nostrils, and the soft shadows of eye sockets, folds and lips."""
    nostril, shadow = look.skin * (0.52, 0.42, 0.4), look.skin * (0.72, 0.64, 0.62)
    strands = smooth_noise(rng, canvas.pixels.shape[:2], 1.6, 0.8)
    hair = look.hair * (0.8 + 0.12 * strands)[..., None]
    base = mesh[NOSE_BASE, :2]
    for side in (-1, 1):
        canvas.shape(ellipse(side * 0.36, -0.05, 0.2, 0.1), shadow, 9, 0.45)
        canvas.shape(ellipse(side * 0.36, 0.13, 0.13, 0.025), shadow, 4, 0.4)
        brow = mesh[on_side(BROW, side), :2]
        brow = brow.mean(axis=0) + (brow - brow.mean(axis=0)) * (1.02, look.brow_weight)
        canvas.shape(smooth_ring(brow), hair, 1.6, 0.85)
        wing = mesh[on_side((NOSE_WING,), side)[0], :2]
        x, y = 0.5 * wing + 0.5 * base
        canvas.shape(ellipse(x, y - 0.015, 0.036 * look.nose, 0.016), nostril, 1.2, 0.8)
        fold = wing + np.array([(side * 0.03, -0.02), (side * 0.1, 0.08), (side * 0.14, 0.2)])
        canvas.shape(np.concatenate([fold, fold[::-1] + (side * 0.02, 0.005)]), shadow, 3, 0.4)
    lip_top, lip_bottom = mesh[UPPER_OUTER_LIP[5], 1], mesh[LOWER_OUTER_LIP[5], 1]
    canvas.shape(ellipse(0, lip_bottom + 0.055, 0.16, 0.02), shadow, 4, 0.55)
    canvas.shape(ellipse(0, lip_top - 0.06, 0.022, 0.05), shadow, 3, 0.3)
    canvas.shape(ellipse(0, 0.4, 0.035, 0.05), np.minimum(look.skin * 1.25, 255), 4, 0.3)


def _paint_eyes(portrait: Portrait, closed: float) -> np.ndarray:
    look, mesh = portrait.look, portrait.mesh
    patch = portrait.head[EYE_ROWS, EYE_COLUMNS, :3].astype(np.float32)
    corner = (CORNER[0] + EYE_COLUMNS.start / SCALE, CORNER[1] + EYE_ROWS.start / SCALE)
    canvas = Canvas(patch, SCALE, corner)
    lid, lash = look.skin * (0.86, 0.78, 0.76), look.hair * 0.35 + 8
    white = np.array([226, 220, 216]) * (0.8 + 0.2 * look.skin.mean() / 220)
    for side in (-1, 1):
        upper, lower = (
            CubicSpline(np.arange(9), mesh[on_side(points, side), :2])(np.arange(33) / 4)
            for points in (UPPER_LID, LOWER_LID)
        )
        edge = upper + 0.92 * closed * (lower - upper)
        x, y = mesh[on_side((IRIS,), side)[0], :2]
        canvas.shape(np.concatenate([upper - (0, 0.02), lower[::-1]]), lid, 1.2, 0.8)
        opening = canvas.mask(np.concatenate([edge, lower[::-1]]), 0.7)
        blend(patch, opening, white)
        for dx, dy, radius, colour in (
            (0, 0, 0.072, look.iris * 0.55),
            (0, 0, 0.06, look.iris),
            (0, 0, 0.028, np.array([12, 10, 10])),
            (0.022, -0.024, 0.012, np.array([250, 250, 250])),
        ):
            disc = canvas.mask(ellipse(x + dx, y + dy, radius, radius), 0.7)
            blend(patch, opening * disc, colour)
        blend(patch, 0.45 * opening * canvas.mask(band(edge, 0, 0.035), 1.5), look.skin * 0.3)
        canvas.shape(band(edge, 0.012, 0.01), lash, 0.7, 0.9)
        canvas.shape(band(lower, 0, 0.01), lid * 0.6, 0.8, 0.35)
        canvas.shape(band(upper - (0, 0.05), 0, 0.012), lid * 0.7, 1.0, 0.4)
    return canvas.finished()
