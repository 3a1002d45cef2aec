"""Assignment and losses of spans against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from klassify.models.av_spans import AVSpans
from klassify.models.span_loss import assign, distance_loss, focal, overlaps

N_FRAMES = 96


def points():
    return AVSpans(4, 4, dim=16, levels=4, residuals=False).points(N_FRAMES)


def random_segments(rng, n_clips=3, most=4):
    segments = torch.full((n_clips, most, 2), torch.nan)
    for clip in range(n_clips):
        for number in range(rng.integers(0, most + 1)):
            start = rng.uniform(0, N_FRAMES - 1)
            length = min(float(np.exp(rng.uniform(0, 4))), N_FRAMES - start)
            segments[clip, number] = torch.tensor([start, start + length])
    return segments


def owner_by_hand(one, segments):
    """The shortest segment that may own a point (time, stride, low, high)."""
    time, stride, low, high = one
    fits = []
    for number, (begin, end) in enumerate(segments):
        inside = begin < time < end
        central = abs(time - (begin + end) / 2) < 1.5 * stride
        in_range = low <= max(time - begin, end - time) <= high
        if inside and central and in_range:
            fits.append((end - begin, number))
    return min(fits)[1] if fits else -1


def test_owners_equal_a_loop_over_points():
    rng = np.random.default_rng(0)
    columns = points()
    for _ in range(20):
        segments = random_segments(rng)
        mask = torch.from_numpy(rng.random((3, len(columns.time))) < 0.9)
        owner = assign(columns, segments, mask, all_found=False)
        for clip in range(3):
            rows = [row for row in segments[clip].tolist() if row[0] == row[0]]
            for p in range(len(columns.time)):
                one = [float(column[p]) for column in columns]
                wanted = owner_by_hand(one, rows) if mask[clip, p] else -1
                assert int(owner[clip, p]) == wanted


def test_every_segment_has_a_point():
    rng = np.random.default_rng(1)
    columns = points()
    mask = torch.ones(3, len(columns.time), dtype=torch.bool)
    for _ in range(200):
        segments = random_segments(rng)
        owner = assign(columns, segments, mask)
        for clip in range(3):
            there = (~segments[clip, :, 0].isnan()).nonzero()[:, 0].tolist()
            assert set(owner[clip].tolist()) - {-1} == set(there)


def test_focal_loss_equals_its_formula():
    logit, target = torch.tensor([2.0, -1.0, 0.3]), torch.tensor([1.0, 0.0, 1.0])
    for x, y, found in zip(logit.tolist(), target.tolist(), focal(logit, target).tolist()):
        p = 1 / (1 + math.exp(-x))
        right, alpha = (p, 0.25) if y else (1 - p, 0.75)
        assert found == pytest.approx(-alpha * (1 - right) ** 2 * math.log(right))


def test_overlap_losses_equal_those_of_intervals():
    rng = np.random.default_rng(2)
    for _ in range(50):
        found, wanted = rng.uniform(0, 5, (2, 2))
        (a, b), (c, d) = (-found[0], found[1]), (-wanted[0], wanted[1])
        shared = max(min(b, d) - max(a, c), 0)
        iou = shared / ((b - a) + (d - c) - shared)
        hull = max(b, d) - min(a, c)
        apart = (a + b) / 2 - (c + d) / 2
        result = overlaps(torch.tensor(found)[None], torch.tensor(wanted)[None])
        assert float(result[0]) == pytest.approx(iou)
        assert float(result[1]) == pytest.approx(1 - iou + (apart / hull) ** 2)


def test_distance_loss_splits_between_the_two_bins():
    torch.manual_seed(0)
    logits = torch.randn(5, 9)
    distance = torch.tensor([0.0, 2.25, 7.999, 8.0, 11.0])
    log_p = logits.log_softmax(dim=1).tolist()
    wanted = [
        -log_p[0][0],
        -(0.75 * log_p[1][2] + 0.25 * log_p[1][3]),
        -(0.001 * log_p[2][7] + 0.999 * log_p[2][8]),
        -log_p[3][8],
        -log_p[4][8],
    ]
    assert distance_loss(logits, distance).tolist() == pytest.approx(wanted, rel=1e-3)


def given_one_by_one(owner, columns, segments, mask):
    """Segments without a point take the nearest free one of the finest level, in order."""
    finest = columns.stride == 1
    for clip, number in (~segments[..., 0].isnan()).nonzero().tolist():
        if (owner[clip] == number).any():
            continue
        mine = owner[clip]
        counts = torch.bincount(mine[mine >= 0], minlength=segments.shape[1])
        free = finest & mask[clip] & ~((mine >= 0) & (counts[mine.clamp(min=0)] < 2))
        if free.any():
            distance = (columns.time - segments[clip, number].mean()).abs()
            mine[distance.masked_fill(~free, torch.inf).argmin()] = number
    return owner


def test_points_are_given_as_one_by_one():
    rng = np.random.default_rng(2)
    columns = points()
    for _ in range(50):
        segments = random_segments(rng, most=8)
        segments[:, :, 1] = segments[:, :, 0] + (segments[:, :, 1] - segments[:, :, 0]) / 20
        mask = torch.from_numpy(rng.random((3, len(columns.time))) < 0.6)
        before = assign(columns, segments, mask, all_found=False)
        wanted = given_one_by_one(before.clone(), columns, segments, mask)
        assert torch.equal(assign(columns, segments, mask), wanted)
