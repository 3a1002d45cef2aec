"""The eight mouth features against slow references and the properties that define them."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from shown import shown

from klassify.features.mouth import channels
from klassify.features.mouth.face import Seen, fill_gaps

T, SIZE = 24, 160
BLUR, MSE, COLOUR, MAR, VELOCITY, ACCELERATION, JERK, JITTER = range(8)


def face_points(opening: float = 0.1) -> np.ndarray:
    """A schematic face (478, 2): oval, lips, eye corners in their places, unit eye distance."""
    points = np.zeros((478, 2))
    angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    points[channels.FACE_OVAL] = np.column_stack([0.85 * np.sin(angle), 0.35 - 1.1 * np.cos(angle)])
    turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    # from the right corner over the lower lip
    shape = np.column_stack([-np.cos(turn), np.sin(turn)])
    points[channels.OUTER_LIPS] = [0, 0.75] + shape * [0.35, 0.12 + opening / 2]
    points[channels.INNER_LIPS] = [0, 0.75] + shape * [0.28, opening / 2]
    points[channels.EYES] = [[-0.5, 0], [0.5, 0]]
    return points


def tracked(frames, points, fps: float = 25, cuts: tuple[int, ...] = ()) -> Iterator[Seen]:
    """Images and landmarks as a source gives them."""
    for k, ((start, stop, picture), x) in enumerate(zip(shown(frames, fps), points)):
        yield Seen(start, stop, picture, x, k in cuts)


def features_of(frames, points, **how) -> tuple[np.ndarray, np.ndarray]:
    return channels.mouth_features(tracked(frames, points, **how))[:2]


def clip_points(rng: np.random.Generator, n: int = T, scale: float = 60.0) -> np.ndarray:
    """A talking mouth on a still head, (n, 478, 2) pixels in a SIZE x SIZE frame."""
    openings = 0.1 + 0.08 * rng.standard_normal(n).cumsum() / np.sqrt(n)
    return np.stack([face_points(opening) for opening in np.abs(openings)]) * scale + [80, 55]


def texture(rng: np.random.Generator, sigma: float = 1.5) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.uniform(0, 255, (SIZE, SIZE, 3)).astype(np.float32), (0, 0), sigma)
    return np.clip((noise - 127) * 3 + 127, 0, 255).astype(np.uint8)


def moved(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another translation, rotation and uniform scale in every frame."""
    angle, scale = rng.uniform(-0.5, 0.5, len(points)), rng.uniform(0.5, 2, len(points))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(
        2, 0, 1
    )
    return np.einsum("tij,tkj->tki", turn * scale[:, None, None], points) + rng.uniform(
        -50, 50, (len(points), 1, 2)
    )


def motion(points: np.ndarray) -> np.ndarray:
    return channels.kinematics(points[:, channels.LIPS], points[:, channels.EYES])


def kinematics_reference(points: np.ndarray) -> np.ndarray:
    """Columns 3-7 one frame and one point at a time, from the definitions."""
    n = len(points)
    relative, rows = [], []
    for x in points:
        right, left = x[33], x[263]
        unit = np.linalg.norm(right - left)
        theta = np.arctan2(*(left - right)[::-1])
        back = np.array([[np.cos(-theta), -np.sin(-theta)], [np.sin(-theta), np.cos(-theta)]])
        relative.append([back @ (x[k] - (right + left) / 2) / unit for k in channels.LIPS])
    p = np.array(relative)
    for t in range(n):
        x = points[t]
        row = [np.linalg.norm(x[13] - x[14]) / max(np.linalg.norm(x[61] - x[291]), 1e-6)]
        steps = {1: [1, -1], 2: [1, -2, 1], 3: [1, -3, 3, -1]}
        for order, weights in steps.items():
            total = 0.0
            for k in range(40):
                if t >= order:
                    total += np.linalg.norm(sum(w * p[t - i, k] for i, w in enumerate(weights)))
            row.append(total / 40)
        window = [s for s in range(t - 2, t + 3) if 0 <= s < n]
        squares = [0.0]
        if len(window) >= 3:
            squares = []
            for k in range(40):
                fits = [np.polyfit(window, p[window, k, axis], 1) for axis in (0, 1)]
                for s in window:
                    squares.append(sum((p[s, k, a] - np.polyval(fits[a], s)) ** 2 for a in (0, 1)))
        row.append(np.sqrt(np.mean(squares)))
        rows.append(row)
    return np.array(rows)


def laplacian_variance_reference(gray: np.ndarray) -> float:
    h, w = gray.shape
    padded = np.pad(gray.astype(float), 1, mode="reflect")
    values = [
        padded[y, x + 1]
        + padded[y + 2, x + 1]
        + padded[y + 1, x]
        + padded[y + 1, x + 2]
        - 4 * padded[y + 1, x + 1]
        for y in range(h)
        for x in range(w)
    ]
    return float(np.var(values))


def lab_reference(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab of sRGB 0..255 under D65, from the standards' formulas."""
    c = np.asarray(rgb, float) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [
            [0.412453, 0.357580, 0.180423],
            [0.212671, 0.715160, 0.072169],
            [0.019334, 0.119193, 0.950227],
        ]
    )
    x, y, z = (linear @ to_xyz.T / [0.950456, 1.0, 1.088754]).T
    f = [np.where(v > 216 / 24389, np.cbrt(v), (24389 / 27 * v + 16) / 116) for v in (x, y, z)]
    return np.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])], axis=-1)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, T])
def test_kinematics_equal_the_slow_reference(n):
    rng = np.random.default_rng(n)
    points = moved(clip_points(rng, n), rng)
    np.testing.assert_allclose(motion(points), kinematics_reference(points), atol=1e-10)


@pytest.mark.parametrize("block", [1, 3, 7])
def test_long_clips_are_worked_through_in_blocks(monkeypatch, block):
    points = clip_points(np.random.default_rng(block), 40)
    points[[11, 12, 30]] = np.nan
    whole = motion(points)
    monkeypatch.setattr(channels, "BLOCK_FRAMES", block)
    np.testing.assert_allclose(motion(points), whole, atol=1e-12)


def test_moving_or_scaling_the_whole_face_changes_no_motion():
    rng = np.random.default_rng(1)
    points = clip_points(rng)
    np.testing.assert_allclose(motion(moved(points, rng)), motion(points), atol=1e-10)


def test_constant_velocity_has_no_acceleration_or_jerk():
    points = np.repeat(face_points()[None], T, axis=0)
    points[:, channels.LIPS] += 0.01 * np.arange(T)[:, None, None] * [3, 4]
    columns = motion(points)
    np.testing.assert_allclose(columns[1:, 1], 0.05)
    np.testing.assert_allclose(columns[:, 2:], 0, atol=1e-12)
    assert columns[0, 1] == 0


def test_opposite_motions_do_not_cancel():
    points = np.repeat(face_points()[None], 4, axis=0)
    points[:, channels.LIPS[::2]] += 0.1 * np.arange(4)[:, None, None] * [1, 0]
    points[:, channels.LIPS[1::2]] -= 0.1 * np.arange(4)[:, None, None] * [1, 0]
    np.testing.assert_allclose(motion(points)[1:, 1], 0.1)


def test_leading_values_are_zero_and_gaps_start_anew():
    points = clip_points(np.random.default_rng(2), 20)
    points[8:10] = np.nan
    columns = motion(points)
    np.testing.assert_allclose(columns[:8], motion(points[:8]))
    np.testing.assert_allclose(columns[10:], motion(points[10:]))
    assert not columns[8:10].any() and (columns[10, 1], columns[11, 2], columns[12, 3]) == (0, 0, 0)


def test_mouth_aspect_ratio_is_opening_over_width():
    ratios = channels.mouth_aspect_ratio(
        np.stack([face_points(a)[channels.LIPS] for a in (0.0, 0.07, 0.35)])
    )
    np.testing.assert_allclose(ratios, np.array([0.0, 0.07, 0.35]) / 0.7, atol=1e-12)
    assert channels.mouth_aspect_ratio(np.zeros((1, 40, 2))) == [0.0]  # a mouth of no width


def test_blurriness_equals_the_slow_reference():
    gray = np.random.default_rng(0).integers(0, 256, (96, 128)).astype(np.uint8)
    halved = gray.reshape(48, 2, 64, 2).mean(axis=(1, 3))
    assert channels.blurriness(gray) == pytest.approx(
        laplacian_variance_reference(halved), rel=1e-5
    )
    same = gray[:48, :64]
    assert channels.blurriness(same) == pytest.approx(laplacian_variance_reference(same), rel=1e-6)


def test_blurriness_falls_when_smoothed_and_is_zero_on_a_slope():
    gray = texture(np.random.default_rng(1))[:40, :60, 0]
    values = [channels.blurriness(gray)] + [
        channels.blurriness(cv2.GaussianBlur(gray, (0, 0), s)) for s in (0.7, 1.5, 3)
    ]
    assert values == sorted(values, reverse=True) and values[0] > 5 * values[-1]
    assert channels.blurriness(np.full((30, 40), 93, np.uint8)) == 0


def test_nonmouth_mask_is_the_face_without_lips_and_guard():
    points = face_points(0.2) * 60 + [80, 55]
    oval, lips, guard = points[channels.FACE_OVAL], points[channels.OUTER_LIPS], 6.0
    mask = channels.nonmouth_mask(oval, lips, (SIZE, SIZE), guard)
    hull = cv2.convexHull(lips.astype(np.float32))
    for y in range(SIZE):
        for x in range(SIZE):
            in_face = cv2.pointPolygonTest(oval.astype(np.float32), (x, y), True)
            to_lips = -cv2.pointPolygonTest(hull, (x, y), True)
            # pixels at the edges may fall either way
            if min(abs(in_face), abs(to_lips - guard)) > 1.5:
                assert (mask[y, x] > 0) == (in_face > 0 and to_lips > guard), (x, y)
    assert set(np.unique(mask)) == {0, 255}


def test_nonmouth_mse_equals_the_slow_reference():
    rng = np.random.default_rng(2)
    gray, before = rng.integers(0, 256, (2, 30, 40)).astype(np.uint8)
    mask, mask_before = (rng.random((2, 30, 40)) < 0.5).astype(np.uint8) * 255
    both = (mask > 0) & (mask_before > 0)
    expected = np.mean((gray[both].astype(float) - before[both].astype(float)) ** 2)
    assert channels.nonmouth_mse(gray, mask, before, mask_before) == pytest.approx(expected)
    assert channels.nonmouth_mse(gray, mask, before, 255 - mask) == 0
    assert channels.nonmouth_mse(gray, mask, gray, mask_before) == 0


def test_mean_lab_equals_the_formulas():
    rgb = np.random.default_rng(3).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    box = np.array([[4, 3], [20, 3], [20, 15], [4, 15]], float)
    expected = lab_reference(rgb[3:16, 4:21]).mean(axis=(0, 1))
    np.testing.assert_allclose(channels.mean_lab(rgb, box), expected, atol=1e-3)


def test_clip_features_equal_full_frame_references():
    """Working inside boxes gives what working on whole frames gives."""
    rng = np.random.default_rng(4)
    frames = [texture(rng) for _ in range(5)]
    points = moved_a_little(clip_points(rng, 5), rng)
    features, valid = features_of(frames, points)
    assert valid.all() and features.shape == (5, 8) and features.dtype == np.float32
    masks, grays, labs = [], [], []
    for frame, x in zip(frames, points):
        guard = 0.10 * np.linalg.norm(x[33] - x[263])
        masks.append(
            channels.nonmouth_mask(
                x[channels.FACE_OVAL], x[channels.OUTER_LIPS], (SIZE, SIZE), guard
            )
        )
        grays.append(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
        labs.append(channels.mean_lab(frame, x[channels.OUTER_LIPS]))
    for t in range(1, 5):
        mse = channels.nonmouth_mse(grays[t], masks[t], grays[t - 1], masks[t - 1])
        assert features[t, MSE] == pytest.approx(mse, rel=1e-6) and mse > 100
        assert features[t, COLOUR] == pytest.approx(np.linalg.norm(labs[t] - labs[t - 1]), rel=1e-4)
    assert features[0, MSE] == features[0, COLOUR] == 0
    np.testing.assert_allclose(features[:, MAR:], motion(points), atol=1e-6)


def moved_a_little(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return points + rng.integers(-6, 7, (len(points), 1, 2))


def test_frozen_frames_give_zeros():
    rng = np.random.default_rng(5)
    frame, points = texture(rng), face_points() * 60 + [80, 55]
    features, valid = features_of([frame] * T, [points] * T)
    assert valid.all()
    assert not features[:, [MSE, COLOUR, VELOCITY, ACCELERATION, JERK]].any()
    np.testing.assert_allclose(features[:, JITTER], 0, atol=1e-7)
    assert np.ptp(features[:, BLUR]) == np.ptp(features[:, MAR]) == 0 and features[0, BLUR] > 0


def test_blurring_only_the_mouth_lowers_blur_alone():
    rng = np.random.default_rng(6)
    sharp, points = texture(rng, 0.7), face_points() * 60 + [80, 55]
    soft, (x, y) = sharp.copy(), points[channels.OUTER_LIPS].min(axis=0).astype(int) - 2
    soft[y : y + 40, x : x + 50] = cv2.GaussianBlur(sharp, (0, 0), 3)[y : y + 40, x : x + 50]
    a, b = (features_of([frame], [points])[0][0] for frame in (sharp, soft))
    assert b[BLUR] < 0.5 * a[BLUR]
    np.testing.assert_array_equal(a[MAR:], b[MAR:])


def test_frames_without_a_face_are_invalid_and_zero():
    rng = np.random.default_rng(7)
    frames, points = [texture(rng) for _ in range(10)], list(clip_points(rng, 10))
    points[3] = points[4] = None
    features, valid = features_of(frames, points)
    assert valid.tolist() == [True] * 3 + [False] * 2 + [True] * 5
    assert not features[3:5].any()
    assert features[5, [MSE, COLOUR, VELOCITY]].tolist() == [0, 0, 0] and features[6, MSE] > 0


def test_a_clip_without_any_face_or_frame():
    features, valid = features_of([texture(np.random.default_rng(8))] * 4, [None] * 4)
    assert features.shape == (4, 8) and not valid.any() and not features.any()
    features, valid, _ = channels.mouth_features([])
    assert features.shape == (0, 8) and valid.shape == (0,)


@pytest.mark.parametrize("fps", [25, 50])
def test_boxes_surround_the_landmarks_of_their_frames(fps):
    rng = np.random.default_rng(21)
    every = fps // 25
    frames, points = [texture(rng) for _ in range(8 * every)], list(clip_points(rng, 8 * every))
    points[2 * every : 3 * every] = [None] * every
    _, valid, boxes = channels.mouth_features(tracked(frames, points, fps=fps))
    assert boxes.dtype == np.float32 and valid.tolist() == [k != 2 for k in range(8)]
    assert not boxes[2].any()
    for k in set(range(8)) - {2}:
        shown = points[k * every]
        wanted = np.concatenate([shown.min(axis=0), shown.max(axis=0)])
        np.testing.assert_allclose(boxes[k], wanted, atol=2.0 if every > 1 else 1e-3)


@pytest.mark.parametrize("shift", [(-70, 0), (75, 0), (0, -60), (0, 55), (60, 40)])
def test_faces_partly_outside_the_frame_are_clipped(shift):
    rng = np.random.default_rng(9)
    frames, points = [texture(rng) for _ in range(3)], clip_points(rng, 3) + shift
    features, valid = features_of(frames, points)
    assert np.isfinite(features).all()
    inside = (points[:, channels.OUTER_LIPS] > 8).all() and (
        points[:, channels.OUTER_LIPS] < SIZE - 8
    ).all()
    assert valid.all() or not inside


def test_a_face_is_valid_until_its_mouth_leaves_the_frame():
    frame, points = texture(np.random.default_rng(15)), face_points() * 60 + [80, 55]
    for direction in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        moving = [points + np.multiply(direction, t) for t in range(200)]
        features, valid = features_of([frame] * 200, moving)
        assert np.isfinite(features).all() and valid[0] and not valid[-1]
        assert (np.diff(valid.astype(int)) <= 0).all()


def test_mouths_that_are_too_small_or_out_of_sight_are_invalid():
    frame = texture(np.random.default_rng(10))
    for points in (
        face_points() * 8 + [80, 80],
        face_points() * 60 + [500, 55],
        np.zeros((478, 2)),
    ):
        features, valid = features_of([frame] * 3, [points] * 3)
        assert not valid.any() and not features.any()


def test_hostile_landmarks_give_finite_features():
    rng = np.random.default_rng(11)
    frame = texture(rng)
    for spread in (0, 1e-9, 1, 1e3, 1e9, 1e30):
        for _ in range(10):
            points = rng.normal(80, spread, (4, 468, 2)).astype(np.float32)
            points[rng.integers(4), rng.integers(468)] = rng.choice([np.nan, np.inf, -1e38, 0])
            features, valid = features_of([frame] * 4, points)
            assert np.isfinite(features).all() and not features[~valid].any()


def test_468_and_478_points_give_the_same():
    rng = np.random.default_rng(12)
    frames, points = [texture(rng) for _ in range(4)], clip_points(rng, 4)
    full, short = (features_of(frames, points[:, :n])[0] for n in (478, 468))
    np.testing.assert_array_equal(full, short)


def test_short_gaps_are_bridged_smoothly():
    rng = np.random.default_rng(13)
    frames = [texture(rng)] * 9
    points = [face_points() * 60 + [80, 55] + [t, 0] for t in range(9)]
    features, valid, _ = channels.mouth_features(
        fill_gaps(tracked(frames, points[:2] + [None] * 5 + points[7:]))
    )
    assert valid.all()
    np.testing.assert_allclose(features[:, VELOCITY:], 0, atol=1e-6)


@pytest.mark.parametrize("fps", [23.976, 24, 29.97, 30, 37, 38, 12.5])
def test_other_rates_carry_no_comb(fps):
    """A mouth that turns at a steady speed on a picture that brightens at a steady speed."""
    n = round(4 * fps)
    angle = 2 * np.pi * np.arange(n) / fps / 2
    points = np.repeat(face_points()[None] * 60 + [80, 55], n, axis=0)
    points[:, channels.LIPS] += 4 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)[:, None]
    frames = [np.full((SIZE, SIZE, 3), 20 + 200 * k // n, np.uint8) for k in range(n)]
    points[:, :, 0] += np.arange(n)[:, None] / fps  # so that no two are equal
    features, valid = features_of(frames, points, fps=fps)
    assert valid.all() and len(features) == 100
    speed = features[5:-5, VELOCITY]
    assert speed.mean() == pytest.approx(4 / 60 * np.pi / 25, rel=0.05)
    assert speed.max() < 1.1 * speed.min()
    # of a noise that is the same in every step
    noisy = [
        np.random.default_rng(k).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
        for k in range(n)
    ]
    features, _ = features_of(noisy, points, fps=fps)
    change = features[5:-5, MSE]
    assert change.max() < 1.1 * change.min()


def test_a_steady_rate_of_25_is_kept_whenever_it_starts():
    rng = np.random.default_rng(20)
    frames, points = [texture(rng) for _ in range(8)], clip_points(rng, 8)
    seen = list(tracked(frames, points))
    expected = channels.mouth_features(seen)[0]
    np.testing.assert_allclose(expected[:, MAR:], motion(points), atol=1e-6)
    late = [x._replace(start=x.start + 0.013, stop=x.stop + 0.013) for x in seen]
    np.testing.assert_allclose(channels.mouth_features(late)[0], expected, rtol=1e-5, atol=1e-6)


def test_nothing_is_measured_across_a_cut_or_a_long_still():
    rng = np.random.default_rng(21)
    frames = [texture(rng)] * 10 + [texture(rng)] * 10
    points = clip_points(rng, 20)
    points[10:] += [12, 5]
    features, valid = features_of(frames, points, cuts=(10,))
    assert valid.tolist() == [k != 10 for k in range(20)] and not features[10].any()
    np.testing.assert_allclose(features[:10], features_of(frames[:10], points[:10])[0])
    np.testing.assert_allclose(features[11:, MAR:], motion(points[11:]), atol=1e-6)
    assert features[11, MSE] == 0 and features_of(frames, points)[0][10, MSE] > 100
    stays = [
        x._replace(start=x.start + 0.4 * (k > 9), stop=x.stop + 0.4 * (k > 8))
        for k, x in enumerate(tracked(frames, points))
    ]
    features, valid, _ = channels.mouth_features(stays)
    assert len(valid) == 30 and valid.tolist() == [k != 20 for k in range(30)]
    assert not features[10:20, [MSE, COLOUR]].any() and features[:, VELOCITY].max() < 0.1


def test_stacked_channels_are_logs_and_first_differences():
    rng = np.random.default_rng(14)
    features, valid = rng.gamma(2.0, 30.0, (12, 8)).astype(np.float32), np.ones(12, bool)
    valid[[4, 5, 9]] = False
    features[~valid] = 0
    stacked = channels.stack_channels(features, valid)
    assert stacked.shape == (12, 16) and stacked.dtype == np.float32
    for t in range(12):
        for c in range(8):
            value = [
                np.log1p(features[s, c]) if c in (BLUR, MSE) else features[s, c] for s in (t, t - 1)
            ]
            assert stacked[t, c] == pytest.approx(value[0] if valid[t] else 0, rel=1e-6)
            defined = t > 0 and valid[t] and valid[t - 1]
            assert stacked[t, 8 + c] == pytest.approx(
                value[0] - value[1] if defined else 0, rel=1e-4, abs=1e-5
            )


def test_stacking_copies_and_takes_empty_clips():
    features, valid = np.ones((3, 8), np.float32), np.array([True, False, True])
    channels.stack_channels(features, valid)
    assert (features == 1).all()
    assert channels.stack_channels(features[:0], valid[:0]).shape == (0, 16)


def test_groups_are_those_of_the_paper():
    assert [
        channels.FEATURES[i] for i in channels.GROUPS[1] + channels.GROUPS[2] + channels.GROUPS[3]
    ] == ["blur", "nonmouth_mse", "colour"]
    assert sorted(sum(channels.GROUPS.values(), [])) == list(range(len(channels.FEATURES)))
