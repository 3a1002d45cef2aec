"""The eight mouth features of paper 1 (KLASSify, section 4.1) and their first differences.

| column | feature | unit | from |
|---|---|---|---|
| 0 | blur | gray levels squared | Laplacian variance of the mouth |
| 1 | nonmouth_mse | gray levels squared | change of the face around it |
| 2 | colour | CIE Delta E 1976 | shift of the lips' mean colour |
| 3 | mar | 1 | mouth aspect ratio |
| 4 5 6 | velocity, acceleration, jerk | eye distances / (40 ms)^1 2 3 | 40 lip points |
| 7 | jitter | eye distances | residual of lines fitted in time |

The paper names the features; sizes, margins and units are this project's. Frames are RGB uint8
(H, W, 3), landmarks (K, 2) pixels in the Face Mesh numbering, gray is BT.601. Values that are not
defined yet (the first frames of a clip or after a gap) are 0, and so is every value of a frame
without a face, whose `valid` is False; so is the first frame after a cut, and after a picture that
stays longer than 0.24 s. At other rates than 25 fps, landmarks are interpolated in time to the
grid, and changes between neighbouring pictures are scaled to 40 ms.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from klassify.features.mouth.face import MAX_GAP_S, Tracked, box_of
from klassify.media.decoder import GRID_FPS, on_grid
from klassify.media.picture import Picture

FEATURES = ("blur", "nonmouth_mse", "colour", "mar", "velocity", "acceleration", "jerk", "jitter")
GROUPS = {1: [0], 2: [1], 3: [2], 4: [3, 4, 5, 6, 7]}  # the rows of paper 1, table 2
LOG_FEATURES = [0, 1]  # spread over decades
VERSION = 3  # raise when models must be trained again: it is part of the shards' settings

# numbers of Face Mesh's landmarks
OUTER_LIPS = np.fromstring(
    "61 146 91 181 84 17 314 405 321 375 291 409 270 269 267 0 37 39 40 185", int, sep=" "
)
INNER_LIPS = np.fromstring(
    "78 95 88 178 87 14 317 402 318 324 308 415 310 311 312 13 82 81 80 191", int, sep=" "
)
FACE_OVAL = np.fromstring(
    "10 338 297 332 284 251 389 356 454 323 361 288 397 365 379 378 400 377 "
    "152 148 176 149 150 136 172 58 132 93 234 127 162 21 54 103 67 109",
    int,
    sep=" ",
)
LIPS = np.concatenate([OUTER_LIPS, INNER_LIPS])
FACE = np.concatenate([FACE_OVAL, OUTER_LIPS])  # a wide open mouth may leave the oval
EYES = np.array([33, 263])  # outer corners
MOVING = np.concatenate([LIPS, EYES])
UPPER_LIP, LOWER_LIP, RIGHT_CORNER, LEFT_CORNER = 13, 14, 61, 291

CODES = np.arange(256) / 255
# sRGB
LINEAR = np.where(CODES <= 0.04045, CODES / 12.92, ((CODES + 0.055) / 1.055) ** 2.4).astype(
    np.float32
)

MOUTH_MARGIN = 0.2  # of the lips' width and height, on each side
MOUTH_SIZE = (64, 48)  # width and height that the mouth is resized to before its blur is measured
MOUTH_GUARD = 0.10  # eye distances around the mouth that are not "the face around the mouth"
MIN_MOUTH_PX, MIN_EYE_DISTANCE_PX, MAX_COORDINATE_PX = 8, 1.0, 1e5
# with which a change between two pictures grows with the time between them: nonmouth_mse, colour
POWERS = (1.5, 0.75)
EPS_S = 1e-6
BLOCK_FRAMES = 1024
BLOCK, BLOCK_PIXELS = 4, 800_000  # both at least: 16 pictures of 224x224
FRAMES_BEFORE = 3  # that a jerk looks back
JITTER_REACH, JITTER_POINTS = 2, 3  # frames to either side; fewer points than this fit any line


def mouth_features(tracked: Tracked) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (T, 8) float32, valid (T,) bool, and the face's box (T, 4) float32 in pixels (x0,
    y0, x1, y1) on the 25 fps grid, of a clip's pictures with their landmarks.

    Holds a few pictures, and 42 points and the box of every one.
    """
    shown, points, appearance, new = [], [], [], []
    nowhere = np.full((len(MOVING) + 2, 2), np.nan)
    start, before = -math.inf, None
    for seen in _in_blocks(tracked):
        apart = seen.cut or seen.start - start > MAX_GAP_S + EPS_S
        now = None if seen.landmarks is None else look(seen.picture, seen.landmarks)
        blur, *change = (0.0, 0.0, 0.0) if now is None else now.features(None if apart else before)
        step = (seen.start - start) * GRID_FPS
        appearance.append([blur, *(value / step**power for value, power in zip(change, POWERS))])
        points.append(nowhere if now is None else _followed(seen.landmarks))
        shown.append((seen.start, seen.stop, len(shown)))
        new.append(apart or before is None)
        start, before = seen.start, now
    cells = [-1 if i is None else i for i in on_grid(shown)]
    if not cells:
        nothing = np.zeros((0, len(FEATURES)), np.float32)
        return nothing, np.zeros(0, bool), nothing[:, :4]
    starts = np.array([start for start, _, _ in shown])
    moving, row = _at_cells(np.array(cells), starts, np.stack(points).astype(np.float64), new)
    valid = np.isfinite(moving).all(axis=(1, 2))
    look_of = np.array(appearance)
    features = np.column_stack(
        [look_of[cells, 0], look_of[row, 1:], kinematics(moving[:, :40], moving[:, 40:42])]
    )
    features = np.where(valid[:, None], features, 0).astype(np.float32)
    boxes = np.where(valid[:, None], moving[:, 42:].reshape(-1, 4), 0).astype(np.float32)
    return features, valid, boxes


def _followed(landmarks: np.ndarray) -> np.ndarray:
    """The MOVING points (42, 2) of landmarks, and two corners of the box around all of them."""
    return np.concatenate([landmarks[MOVING], box_of(landmarks).reshape(2, 2)])


def _at_cells(
    cells: np.ndarray, starts: np.ndarray, points: np.ndarray, new: Sequence[bool]
) -> tuple[np.ndarray, np.ndarray]:
    """Points (T, n, 2) at the times of the grid's cells, and for each cell the number of the
    picture with the change that belongs to it.

    cells: (T,) number of the picture that each shows, -1 for none. points: of the pictures, NaN
    where there is no face. new: whether a picture does not continue the one before it; between the
    two a cell is left without points, so that nothing is measured across.
    """
    from scipy.interpolate import CubicHermiteSpline  # takes a second, so only where it is needed

    times = np.arange(len(cells)) / GRID_FPS
    seen = cells >= 0
    # at 25 fps every cell then falls on a picture, whatever the file's first time stamp is
    times += np.median(starts[cells[seen]] - times[seen])
    result, row = np.full((len(cells), *points.shape[1:]), np.nan), np.maximum(cells, 0)
    there = np.isfinite(points).all(axis=(1, 2))
    ends = np.flatnonzero(np.append(~there | new, True))
    for a in np.flatnonzero(there & new):
        b = ends[np.searchsorted(ends, a, side="right")]
        first, last = np.searchsorted(cells, [a, b])
        here = slice(first + int(a > 0 and there[a - 1]), last)
        at = np.clip(times[here], starts[a], starts[b - 1])
        run, time = points[a:b], starts[a:b]
        if b - a > 1:  # Catmull-Rom
            run = CubicHermiteSpline(time, run, np.gradient(run, time, axis=0))(at)
        result[here] = run
        row[here] = a + np.searchsorted(time, at - EPS_S)
    return result, row


def stack_channels(features: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(T, 8) features and (T,) valid -> (T, 16) float32: log1p of blur and MSE, then first
    differences.

    A difference is 0 at the first frame and wherever one of its two frames is not valid.
    """
    x = np.array(features, np.float32)
    x[:, LOG_FEATURES] = np.log1p(x[:, LOG_FEATURES])
    x[~valid] = 0
    difference = np.zeros_like(x)
    difference[1:] = np.diff(x, axis=0) * (valid[1:] & valid[:-1])[:, None]
    return np.concatenate([x, difference], axis=1)


@dataclasses.dataclass(frozen=True)
class Look:
    """What one frame's face looks like, as far as this frame and the next one need it."""

    blur: float
    lab: np.ndarray  # (3,) mean colour of the lips
    box: np.ndarray  # x0, y0, x1, y1 of the face in the frame, half open
    gray: np.ndarray  # (h, w) uint8, inside the box
    mask: np.ndarray  # (h, w) uint8, 255 on the face around the mouth

    def features(self, before: Look | None) -> tuple[float, float, float]:
        """blur, nonmouth_mse, colour; the last two are 0 where nothing comes before."""
        if before is None:
            return self.blur, 0.0, 0.0
        shared = np.concatenate(
            [np.maximum(self.box, before.box)[:2], np.minimum(self.box, before.box)[2:]]
        )
        mse = (
            nonmouth_mse(*self._within(shared), *before._within(shared))
            if (shared[2:] > shared[:2]).all()
            else 0.0
        )
        return self.blur, mse, colour_shift(self.lab, before.lab)

    def _within(self, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        here = box - np.tile(self.box[:2], 2)
        return _crop(self.gray, here), _crop(self.mask, here)


def look(picture: Picture, landmarks: np.ndarray) -> Look | None:
    """Measure one picture; None where the mouth is too small, hidden or not a mouth."""
    found = mouth_boxes(picture, landmarks)
    if found is None:
        return None
    (mouth, lips), outer = found, landmarks[OUTER_LIPS]
    eye_px = float(np.linalg.norm(landmarks[EYES[1]] - landmarks[EYES[0]]))
    face = _box(landmarks[FACE], (picture.height, picture.width), 0.0)
    both = np.concatenate([np.minimum(face, mouth)[:2], np.maximum(face, mouth)[2:]])
    gray, corner = picture.gray(both.tolist()), np.tile(both[:2], 2)
    lab = mean_lab(picture.part(lips.tolist()), outer - lips[:2])
    mouth_gray, gray = _crop(gray, mouth - corner), _crop(gray, face - corner)
    mask = nonmouth_mask(
        landmarks[FACE_OVAL] - face[:2], outer - face[:2], gray.shape, MOUTH_GUARD * eye_px
    )
    return Look(blurriness(mouth_gray), lab, face, gray, mask)


def mouth_boxes(picture: Picture, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Boxes of the mouth with a margin and of the lips; None where the mouth is not usable."""
    if not np.abs(landmarks).max() < MAX_COORDINATE_PX:  # nor is NaN
        return None
    if np.linalg.norm(landmarks[EYES[1]] - landmarks[EYES[0]]) < MIN_EYE_DISTANCE_PX:
        return None
    shape, outer = (picture.height, picture.width), landmarks[OUTER_LIPS]
    mouth, lips = _box(outer, shape, MOUTH_MARGIN), _box(outer, shape, 0.0)
    if (mouth[2:] - mouth[:2] < MIN_MOUTH_PX).any() or (lips[2:] <= lips[:2]).any():
        return None
    return mouth, lips


def blurriness(gray: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian of the mouth (h, w) resized to 64x48; low = blurred."""
    resized = cv2.resize(gray.astype(np.float32), MOUTH_SIZE, interpolation=cv2.INTER_AREA)
    laplacian = cv2.Laplacian(resized, cv2.CV_32F, ksize=1, borderType=cv2.BORDER_REFLECT_101)
    return float(laplacian.var(dtype=np.float64))


def nonmouth_mask(
    oval: np.ndarray, outer_lips: np.ndarray, shape: tuple[int, int], guard_px: float
) -> np.ndarray:
    """uint8 (h, w), 255 inside the face oval but for the hull of the lips widened by `guard_px`."""
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [_pixels(oval)], 255)
    hull = cv2.convexHull(_pixels(outer_lips))
    cv2.fillConvexPoly(mask, hull, 0)
    radius = min(round(guard_px), max(shape))
    # cv2 reaches (thickness + 1) / 2 px
    cv2.polylines(mask, [hull], True, 0, thickness=max(2 * radius - 1, 1))
    return mask


def nonmouth_mse(
    gray: np.ndarray, mask: np.ndarray, gray_before: np.ndarray, mask_before: np.ndarray
) -> float:
    """Mean squared change of gray where both masks are set; 0 where they share no pixel."""
    both = cv2.bitwise_and(mask, mask_before)
    n = cv2.countNonZero(both)
    return cv2.norm(gray, gray_before, cv2.NORM_L2SQR, both) / n if n else 0.0


def mean_lab(rgb: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Mean CIE Lab (L 0..100, sRGB, D65) inside a polygon of a crop, (3,) float64."""
    mask = np.zeros(rgb.shape[:2], np.uint8)
    cv2.fillPoly(mask, [_pixels(polygon)], 255)
    # from sRGB directly cv2 interpolates in a coarse table
    lab = cv2.cvtColor(cv2.LUT(rgb, LINEAR), cv2.COLOR_LRGB2Lab)
    return np.array(cv2.mean(lab, mask)[:3])


def colour_shift(lab: np.ndarray, lab_before: np.ndarray) -> float:
    """CIE Delta E 1976 of two mean colours."""
    return float(np.linalg.norm(lab - lab_before))


def kinematics(lips: np.ndarray, eyes: np.ndarray) -> np.ndarray:
    """Columns 3-7 (T, 5) from lips (T, 40, 2) and outer eye corners (T, 2, 2), NaN = no face."""
    columns = [np.zeros((0, 5))]
    for start in range(0, len(lips), BLOCK_FRAMES):  # so that long clips take little memory
        first = max(start - FRAMES_BEFORE, 0)
        block = slice(first, start + BLOCK_FRAMES + JITTER_REACH)
        moving = in_face_frame(lips[block], eyes[block])
        motion = [mean_difference(moving, order) for order in (1, 2, 3)]
        values = np.column_stack([mouth_aspect_ratio(lips[block]), *motion, jitter(moving)])
        columns.append(values[start - first :][:BLOCK_FRAMES])
    return np.concatenate(columns)


def mouth_aspect_ratio(lips: np.ndarray) -> np.ndarray:
    """Opening between the inner lips over the mouth's width, (T,), from (T, 40, 2) lip points."""
    at = {int(point): i for i, point in enumerate(LIPS)}
    opening = np.linalg.norm(lips[:, at[UPPER_LIP]] - lips[:, at[LOWER_LIP]], axis=-1)
    width = np.linalg.norm(lips[:, at[RIGHT_CORNER]] - lips[:, at[LEFT_CORNER]], axis=-1)
    return np.nan_to_num(opening / np.maximum(width, 1e-6))


def in_face_frame(points: np.ndarray, eyes: np.ndarray) -> np.ndarray:
    """Points (T, n, 2) relative to the eyes: their middle 0, their line the x axis, distance 1."""
    axis = eyes[:, 1] - eyes[:, 0]
    # dividing complex numbers turns and scales at once
    centred = points - eyes.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # NaN = no face
        turned = (centred[..., 0] + 1j * centred[..., 1]) / (axis[:, 0] + 1j * axis[:, 1])[:, None]
    return np.stack([turned.real, turned.imag], axis=-1)


def mean_difference(moving: np.ndarray, order: int) -> np.ndarray:
    """Mean length (T,) of the first, second or third difference of points (T, n, 2): velocity,
    acceleration and jerk, in eye distances per (40 ms)^order.
    """
    result = np.zeros(len(moving))
    steps = np.linalg.norm(np.diff(moving, n=order, axis=0), axis=-1).mean(axis=-1)
    result[order:] = np.nan_to_num(steps)
    return result


def jitter(moving: np.ndarray) -> np.ndarray:
    """RMS distance (T,) of the points (T, n, 2) from straight lines fitted in time over frames
    t-2..t+2.

    The window is cut short at the ends and at gaps; with fewer than 3 frames it is 0. (The error of
    a two-point extrapolation would equal the acceleration.)
    """
    result, reach = np.zeros(len(moving)), JITTER_REACH
    present = np.isfinite(moving).all(axis=(1, 2))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], present, [False]])))
    for start, stop in edges.reshape(-1, 2):
        run = moving[start:stop]
        whole = range(reach, len(run) - reach)
        for t in set(range(len(run))) - set(whole):
            result[start + t] = _line_residual(
                np.moveaxis(run[max(t - reach, 0) : t + reach + 1], 0, -1)
            )
        if whole:
            # (T - 2 reach, n, 2, 2 reach + 1)
            windows = sliding_window_view(run, 2 * reach + 1, axis=0)
            result[start + whole.start : start + whole.stop] = _line_residual(windows)
    return result


def _line_residual(windows: np.ndarray) -> np.ndarray:
    """RMS residual (...,) of points (..., n, 2, w) over w frames from least-squares lines."""
    n_frames = windows.shape[-1]
    if n_frames < JITTER_POINTS:
        return np.zeros(windows.shape[:-3])
    line = np.stack([np.ones(n_frames), np.arange(n_frames)], axis=1)
    residual = windows @ (np.eye(n_frames) - line @ np.linalg.pinv(line))
    return np.sqrt((residual**2).sum(axis=-2).mean(axis=(-2, -1)))


def _in_blocks(tracked: Tracked) -> Tracked:
    """Track some pictures before measuring: by turns, each would empty the other's caches."""
    block, pixels = [], 0
    for seen in tracked:
        block.append(seen)
        pixels += 0 if seen.picture is None else seen.picture.height * seen.picture.width
        if len(block) >= BLOCK and pixels >= BLOCK_PIXELS:
            yield from block
            block, pixels = [], 0
    yield from block


def _box(points: np.ndarray, shape: tuple[int, ...], margin: float) -> np.ndarray:
    """x0, y0, x1, y1 (half open) around the points, widened on each side, clipped to the frame."""
    x0, y0, x1, y1 = box_of(points).tolist()
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    height, width = shape[:2]
    return np.array(
        [
            min(max(math.floor(x0 - dx), 0), width),
            min(max(math.floor(y0 - dy), 0), height),
            min(max(math.ceil(x1 + dx) + 1, 0), width),
            min(max(math.ceil(y1 + dy) + 1, 0), height),
        ]
    )


def _crop(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    return image[box[1] : box[3], box[0] : box[2]]


def _pixels(polygon: np.ndarray) -> np.ndarray:
    """Rounded to whole pixels, and near enough to the frame for any image library."""
    return np.clip(np.rint(polygon), -16_000, 16_000).astype(np.int32)
