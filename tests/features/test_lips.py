"""Mouth crops: where the lips come to lie, what is smoothed, and the rows of shards."""

from __future__ import annotations

import cv2
import numpy as np
from painted_face import painted
from shown import picture_of

from klassify.features import lips
from klassify.features.mouth import channels
from klassify.features.mouth.face import Seen


def seen(images_and_points, cut: int | None = None):
    """A followed face, frame by frame; an image without points has no face."""
    for k, (image, points) in enumerate(images_and_points):
        yield Seen(k / 25, (k + 1) / 25, picture_of(image), points, k == cut)


def turned(image, points, degrees: float, scale: float):
    """A picture and its points, turned and scaled around the middle."""
    matrix = cv2.getRotationMatrix2D((112, 112), degrees, scale)
    moved = points.copy()
    moved[:, :2] = points[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    image = cv2.warpAffine(image, matrix, (224, 224), borderMode=cv2.BORDER_REPLICATE)
    return image, moved.astype(np.float32)


def crops(frames, cut=None):
    jpegs, valid = lips.lip_crops(seen(frames, cut))
    return lips.opened(jpegs), valid


def test_alignment_is_the_least_squares_similarity():
    rng = np.random.default_rng(0)
    for _ in range(5):
        here = lips.MEAN_FACE @ rng.normal(size=(2, 2)) + rng.normal(size=(5, 2))
        middle = rng.normal(size=2)
        turn, corner = lips.aligned(here, middle)
        # slow: the two numbers of a similarity and the shift, by linear least squares
        x, y = here.T
        columns = np.stack([x, -y, np.ones(5), np.zeros(5), y, x, np.zeros(5), np.ones(5)], axis=1)
        a, b, *_ = np.linalg.lstsq(columns.reshape(10, 4), lips.MEAN_FACE.ravel(), rcond=None)[0]
        np.testing.assert_allclose(turn @ [[a, -b], [b, a]], np.eye(2), atol=1e-9)
        np.testing.assert_allclose(turn @ [48, 48] + corner, middle, atol=1e-9)


def test_a_turned_and_scaled_face_gives_the_same_crop():
    image, points = painted()
    straight, _ = crops([(image, points.astype(np.float32))])
    other, _ = crops([turned(image, points, 20, 0.9)])
    difference = cv2.absdiff(straight[0], other[0])
    assert straight.shape == (1, 96, 96) and straight.std() > 10
    assert difference.mean() < 3


def test_the_lips_lie_in_the_middle():
    image, points = painted()
    marked = np.zeros_like(image)
    middle = points[channels.LIPS, :2].mean(axis=0)
    cv2.circle(marked, tuple(np.round(middle).astype(int).tolist()), 3, (255, 255, 255), -1)
    crop = crops([(marked, points.astype(np.float32))])[0][0].astype(float)
    y, x = np.mgrid[:96, :96]
    np.testing.assert_allclose([(crop * v).sum() / crop.sum() for v in (x, y)], 48, atol=0.7)


def test_crops_follow_a_moving_face_and_ignore_shaking_points():
    image, points = painted()
    rng = np.random.default_rng(0)
    still = crops([(image, points.astype(np.float32))])[0][0]
    frames = []
    for t in range(25):
        shift = np.float32([2 * t - 25, 0])
        moved = cv2.warpAffine(
            image, np.float32([[1, 0, shift[0]], [0, 1, 0]]), (224, 224), borderMode=1
        )
        noise = rng.normal(0, 0.8, points.shape)
        frames.append((moved, (points + noise)[:, :2].astype(np.float32) + shift))
    moving, valid = crops(frames)
    assert valid.all()
    inner = np.abs(moving[:, 8:-8, 8:-8].astype(float) - still[8:-8, 8:-8]).mean(axis=(1, 2))
    assert inner.max() < 6  # a lag of one frame gives 12


def test_nothing_is_averaged_across_a_cut_or_a_gap():
    image, points = painted()
    here = (image, points.astype(np.float32))
    there = turned(image, points, 30, 0.8)
    alone = crops([here] * 3)[0], crops([there] * 3)[0]
    both = crops([here] * 3 + [there] * 3, cut=3)[0]
    np.testing.assert_array_equal(both, np.concatenate(alone))
    gap = crops([here] * 3 + [(image, None)] + [there] * 3)
    np.testing.assert_array_equal(gap[0][[0, 1, 2, 4, 5, 6]], both)
    assert gap[1].tolist() == [True] * 3 + [False] + [True] * 3 and not gap[0][3].any()


def test_frames_without_a_mouth_in_sight_are_not_valid():
    image, points = painted()
    points = points.astype(np.float32)
    outside, nowhere = points + np.float32(1000), np.full_like(points, np.nan)
    assert crops([(image, outside), (image, nowhere), (image, points)])[1].tolist() == [0, 0, 1]
