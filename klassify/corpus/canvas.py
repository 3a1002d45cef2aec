"""Soft shapes, painted in face coordinates.

Face coordinates: the origin is between the eyes, the unit is the distance of the outer eye corners,
x points right and y down in the picture, z away from the camera.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.interpolate import CubicSpline

SUBPIXEL_BITS = 4


class Canvas:
    """A picture to paint on.

    pixels: (H, W, 3) RGB, or (H, W, 4) with alpha 0..1 and colours multiplied by it; float32,
    0-255. scale: pixels per unit. corner: face coordinates of the upper left corner.
    """

    def __init__(self, pixels: np.ndarray, scale: float, corner: tuple[float, float]):
        self.pixels, self.scale, self.corner = pixels, scale, corner

    @property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Face coordinates x (1, W) and y (H, 1) of the pixels."""
        height, width = self.pixels.shape[:2]
        x = self.corner[0] + np.arange(width, dtype=np.float32) / self.scale
        y = self.corner[1] + np.arange(height, dtype=np.float32) / self.scale
        return x[None], y[:, None]

    def shape(
        self,
        points: np.ndarray,
        colour: np.ndarray,
        blur: float = 1.0,
        strength: float = 1.0,
        cover: bool = False,
    ) -> None:
        """Fill a polygon, its edges blurred by `blur` pixels.

        colour: (3,) or (H, W, 3). cover: paint where the canvas is transparent too.
        """
        spread = int(3 * blur) + 2
        at = (np.asarray(points, float) - self.corner) * self.scale
        height, width = self.pixels.shape[:2]
        x0, y0 = np.clip(np.floor(at.min(axis=0)).astype(int) - spread, 0, (width, height))
        x1, y1 = np.clip(np.ceil(at.max(axis=0)).astype(int) + spread + 1, 0, (width, height))
        if x1 <= x0 or y1 <= y0:
            return
        mask = polygon_mask(at - (x0, y0), (y1 - y0, x1 - x0), blur)
        colour = colour[y0:y1, x0:x1] if np.ndim(colour) == 3 else colour
        blend(self.pixels[y0:y1, x0:x1], strength * mask, colour, cover)

    def mask(self, points: np.ndarray, blur: float = 0.0) -> np.ndarray:
        """(H, W) coverage of a polygon."""
        at = (np.asarray(points, float) - self.corner) * self.scale
        return polygon_mask(at, self.pixels.shape[:2], blur)

    def finished(self) -> np.ndarray:
        """uint8 pixels, alpha 0-255."""
        pixels = self.pixels * (1, 1, 1, 255) if self.pixels.shape[2] == 4 else self.pixels
        return np.clip(pixels, 0, 255).astype(np.uint8)


def blend(pixels: np.ndarray, mask: np.ndarray, colour: np.ndarray, cover: bool = False) -> None:
    """Paint `colour` where mask is 1, in place; transparent pixels only with `cover`."""
    alpha = cv2.merge((mask, mask, mask))  # numpy takes twice as long to repeat one channel
    if pixels.shape[2] == 4:
        if cover:
            pixels[..., 3:] += mask[..., None] * (1 - pixels[..., 3:])
        else:
            colour = colour * pixels[..., 3:]
    pixels[..., :3] += alpha * (colour - pixels[..., :3])


def polygon_mask(points: np.ndarray, shape: tuple[int, int], blur: float = 0.0) -> np.ndarray:
    """(rows, columns) float32 coverage 0..1 of a polygon given in pixels, with soft edges."""
    mask = np.zeros(shape, np.uint8)
    corners = np.round(points * 2**SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(mask, [corners], 255, cv2.LINE_AA, SUBPIXEL_BITS)
    if blur:
        mask = cv2.GaussianBlur(mask, (0, 0), blur, borderType=cv2.BORDER_REPLICATE)
    return mask.astype(np.float32) / 255


def smooth_ring(points: np.ndarray, per_point: int = 4) -> np.ndarray:
    """Closed smooth curve through the points."""
    n = len(points)
    spline = CubicSpline(np.arange(n + 1), np.concatenate([points, points[:1]]), bc_type="periodic")
    return spline(np.arange(n * per_point) / per_point)


def ellipse(x0: float, y0: float, rx: float, ry: float) -> np.ndarray:
    """(48, 2) points of an ellipse."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([x0 + rx * np.cos(t), y0 + ry * np.sin(t)], axis=1)


def band(curve: np.ndarray, above: float, below: float) -> np.ndarray:
    """Polygon between a curve raised by `above` and lowered by `below`."""
    return np.concatenate([curve - (0, above), (curve + (0, below))[::-1]])


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], sigma_x: float, sigma_y: float
) -> np.ndarray:
    """(rows, columns) float32 noise of unit deviation, smoothed."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y)
    return noise / noise.std()


def smooth_step(t: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)
