"""Paints a speaker's mouth into the texture of the head: jaw, lips, teeth and tongue."""

from __future__ import annotations

import functools

import cv2
import numpy as np
from scipy.interpolate import CubicSpline

from klassify.corpus.canvas import Canvas, band, blend, smooth_step
from klassify.corpus.face import (
    CORNER,
    LOWER_INNER_LIP,
    LOWER_OUTER_LIP,
    MOUTH_Y,
    SCALE,
    UPPER_INNER_LIP,
    UPPER_OUTER_LIP,
)
from klassify.corpus.portrait import Portrait

OPENING = 0.27  # units between the inner lips, wide open
CAVITY, TEETH, TONGUE = np.array([46, 18, 20]), np.array([226, 219, 205]), np.array([150, 74, 74])
MIDDLE = 20  # of the 41 points of a lip arc


def _rows_and_columns(x0: float, x1: float, y0: float, y1: float) -> tuple[slice, slice]:
    columns = (int((x - CORNER[0]) * SCALE) for x in (x0, x1))
    rows = (int((y - CORNER[1]) * SCALE) for y in (y0, y1))
    return slice(*rows), slice(*columns)


JAW = _rows_and_columns(-0.95, 0.95, 0.5, 1.75)
LIPS = _rows_and_columns(-0.6, 0.6, 0.48, 1.3)


class Mouth:
    """One portrait's mouth. Shapes are (open, wide, raised): 0..1, -1..1, 0..1, closed below 0."""

    def __init__(self, portrait: Portrait):
        self.portrait = portrait
        shape = LIPS[0].stop - LIPS[0].start, LIPS[1].stop - LIPS[1].start
        rng = np.random.default_rng(portrait.look.seed + 1)
        grain = rng.standard_normal(shape, dtype=np.float32)
        self._grain = 1 + 0.1 * cv2.GaussianBlur(grain, (0, 0), sigmaX=0.6, sigmaY=1.2)[..., None]
        self._x, self._y, self._drop = _jaw_drop()

    def paint(self, texture: np.ndarray, shape: np.ndarray) -> None:
        """Drop the jaw and paint the mouth, in place, in a (HEIGHT, WIDTH, 4) uint8 texture."""
        jaw = np.ascontiguousarray(texture[JAW])
        rows = self._y - np.float32(max(shape[0], 0.0)) * self._drop
        border = cv2.BORDER_REPLICATE
        texture[JAW] = cv2.remap(jaw, self._x, rows, cv2.INTER_LINEAR, borderMode=border)
        region = texture[LIPS]
        corner = (CORNER[0] + LIPS[1].start / SCALE, CORNER[1] + LIPS[0].start / SCALE)
        canvas = Canvas(region[..., :3].astype(np.float32), SCALE, corner)
        self._paint_lips(canvas, *self._arcs(shape))
        region[..., :3] = canvas.finished()

    def _arcs(self, shape: np.ndarray) -> tuple[np.ndarray, ...]:
        """(41, 2) lip edges in face coordinates.

        From top to bottom: upper outer, upper inner, lower inner, lower outer.
        """
        opened, wide, raised = (float(value) for value in shape)
        mesh, upsample = self.portrait.mesh, _upsample()
        upper_outer, upper_inner, lower_inner, lower_outer = (
            upsample @ mesh[list(points), :2]
            for points in (UPPER_OUTER_LIP, UPPER_INNER_LIP, LOWER_INNER_LIP, LOWER_OUTER_LIP)
        )
        # the lips of the mean face are apart: close them
        lower_outer[:, 1] -= lower_inner[:, 1] - upper_inner[:, 1]
        lower_inner = upper_inner.copy()
        reach = abs(upper_outer[0, 0])
        pout, pressed = 0.012 * max(-wide, 0), 0.03 * min(opened, 0)
        for arc, drop, lift, thicker in (
            (upper_outer, 0, 1, -pout - pressed),
            (upper_inner, 0, 1.1, 0),
            (lower_inner, 1, 0, 0),
            (lower_outer, 0.96, 0, pout + pressed),
        ):
            bow = np.clip(1 - (arc[:, 0] / reach) ** 2, 0, 1) ** 0.8
            arc[:, 1] += (OPENING * max(opened, 0) * drop - 0.035 * raised * lift + thicker) * bow
            arc[:, 0] *= 1 + (0.1 if wide > 0 else 0.26) * wide - 0.04 * max(opened, 0)
        return upper_outer, upper_inner, lower_inner, lower_outer

    def _paint_lips(
        self,
        canvas: Canvas,
        upper_outer: np.ndarray,
        upper_inner: np.ndarray,
        lower_inner: np.ndarray,
        lower_outer: np.ndarray,
    ) -> None:
        lips = self.portrait.look.lips * self._grain
        canvas.shape(_between(upper_outer, upper_inner), 0.84 * lips, 0.8)
        canvas.shape(_between(lower_inner, lower_outer), lips, 0.8)
        canvas.shape(band(0.5 * (lower_inner + lower_outer), 0.015, 0.02)[3:-3], 1.2 * lips, 2, 0.8)
        opening = (lower_inner - upper_inner)[MIDDLE, 1]
        if opening * SCALE > 2:
            self._paint_cavity(canvas, upper_inner, lower_inner, opening)
        canvas.shape(band(upper_inner, 0.007, 0.007), 0.35 * self.portrait.look.lips, 0.8, 0.55)

    def _paint_cavity(
        self, canvas: Canvas, upper: np.ndarray, lower: np.ndarray, opening: float
    ) -> None:
        cavity = canvas.mask(_between(upper, lower), 0.6)
        blend(canvas.pixels, cavity, CAVITY)
        across = np.linspace(-1, 1, len(upper))
        teeth = upper + np.stack([0 * across, 0.085 * (1 - across**4)], axis=1)
        x, _ = canvas.grid
        gaps = 0.86 + 0.14 * np.abs(np.sin(np.pi * x / 0.07)) ** 0.3
        row_of_teeth = canvas.mask(_between(upper[5:36], teeth[5:36]), 0.8)
        blend(canvas.pixels, 0.92 * cavity * row_of_teeth, TEETH * gaps[..., None])
        tongue = lower - (0, 0.32 * opening)
        tongue_mask = canvas.mask(_between(tongue[8:33], lower[8:33]), 1.5)
        blend(canvas.pixels, 0.8 * cavity * tongue_mask, TONGUE)


def _between(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.concatenate([top, bottom[::-1]])


@functools.cache
def _upsample() -> np.ndarray:
    """(41, 11): a smooth arc through 11 points."""
    return CubicSpline(np.arange(11), np.eye(11))(np.arange(41) / 4)


@functools.cache
def _jaw_drop() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns, rows, and pixels by which the skin of a wide open mouth moves down, all in JAW.

    Below the lips the chin moves as a whole; the cheeks stretch over a longer distance.
    """
    rows, columns = np.mgrid[JAW].astype(np.float32)
    x, y = np.abs(CORNER[0] + columns / SCALE), CORNER[1] + rows / SCALE
    beside = np.clip((x - 0.25) / 0.45, 0, 1)
    share = smooth_step((y - MOUTH_Y + 0.12 * beside) / (0.1 + 0.5 * beside))
    share = share * np.clip((0.95 - x) / 0.35, 0, 1)
    drop = (0.8 * OPENING * SCALE * share).astype(np.float32)
    return columns - JAW[1].start, rows - JAW[0].start, drop
