"""The frame head: its shapes, its losses against plain loops, and pooling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from klassify.models.frame_head import (
    FrameHead,
    FrameOutputs,
    SmoothMax,
    balanced_cross_entropy,
    frame_losses,
    pooled,
)


def test_published_size_and_shapes():
    head = FrameHead(1024)
    assert sum(parameter.numel() for parameter in head.parameters()) == 166_915
    outputs = head(torch.randn(2, 7, 1024))
    assert outputs.embedding.shape == (2, 7, 128)
    assert outputs.logit.shape == (2, 7) and outputs.edges.shape == (2, 7, 2)


def test_invalid_frames_change_no_valid_frame():
    torch.manual_seed(0)
    head = FrameHead(5, 8).eval()
    x = torch.randn(2, 30, 5)
    valid = torch.ones(2, 30, dtype=torch.bool)
    valid[0, 20:] = valid[1, 3] = False
    other = torch.where(valid[..., None], x, torch.randn(2, 30, 5))
    for one, two in zip(head(x, valid), head(other, valid)):
        torch.testing.assert_close(one[valid], two[valid])
    alone = head(x[:1, :20], valid[:1, :20])
    torch.testing.assert_close(alone.logit[0], head(x, valid).logit[0, :20])


def cross_entropy(logit, target, weight=1.0):
    p = 1 / (1 + math.exp(-logit))
    return -(weight * target * math.log(p) + (1 - target) * math.log(1 - p))


def test_frame_losses_equal_plain_loops():
    rng = np.random.default_rng(0)
    logit = rng.normal(size=(2, 9))
    edges = rng.normal(size=(2, 9, 2))
    target, start, end = rng.random((3, 2, 9))
    target[0, 6:] = np.nan
    counts = [(b, t) for b in range(2) for t in range(9) if not math.isnan(target[b, t])]
    frames = sum(cross_entropy(logit[at], target[at], 3.0) for at in counts) / len(counts)
    expected = frames
    for i, edge in enumerate((start, end)):
        yes = sum(edge[at] * cross_entropy(edges[at][i], 1) for at in counts)
        no = sum((1 - edge[at]) * cross_entropy(edges[at][i], 0) for at in counts)
        yes /= max(sum(edge[at] for at in counts), 1)
        no /= max(sum(1 - edge[at] for at in counts), 1)
        expected += 0.5 * (yes + no) / 2
    as_tensor = torch.from_numpy
    outputs = FrameOutputs(None, as_tensor(logit), as_tensor(edges))
    loss = frame_losses(outputs, as_tensor(target), as_tensor(start), as_tensor(end))
    assert float(loss) == pytest.approx(expected)


def test_loss_without_a_counting_frame_is_zero():
    head = FrameHead(3, 4)
    nothing = torch.full((1, 5), torch.nan)
    loss = frame_losses(head(torch.randn(1, 5, 3)), nothing, torch.zeros(1, 5), torch.zeros(1, 5))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_balanced_cross_entropy_ignores_how_many_negatives():
    logit, target = torch.tensor([2.0] + [-1.0] * 50), torch.tensor([1.0] + [0.0] * 50)
    two = torch.arange(51) < 2
    few = balanced_cross_entropy(logit, target, two)
    assert float(balanced_cross_entropy(logit, target, two >= 0)) == pytest.approx(float(few))


def test_pooling_goes_from_the_mean_to_the_maximum():
    logit = torch.tensor([[0.0, 3.0, -1.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    by_hand = math.log((math.exp(0) + math.exp(6) + math.exp(-2)) / 3) / 2
    assert float(pooled(logit, mask, 2.0)) == pytest.approx(by_hand)
    assert float(pooled(logit, mask, 1e-3)) == pytest.approx(2 / 3, abs=1e-2)
    assert float(pooled(logit, mask, 1e3)) == pytest.approx(3, abs=1e-2)
    assert float(pooled(logit, None, 1e3)) == pytest.approx(9, abs=1e-2)


def test_pooling_without_frames_is_zero_with_a_gradient():
    logit = torch.zeros(2, 3, requires_grad=True)
    result = pooled(logit, torch.tensor([[False] * 3, [True] * 3]), 1.0)
    result.sum().backward()
    assert result.tolist() == [0.0, 0.0]
    assert logit.grad.isfinite().all() and logit.grad[0].tolist() == [0, 0, 0]


def test_learned_sharpness_stays_in_its_range():
    pool = SmoothMax()
    logit = torch.randn(3, 10)
    torch.testing.assert_close(pool(logit), pooled(logit, None, 1.0))
    for value, r in ((9.0, 4.0), (-9.0, 0.5)):
        pool.sharpness.data.fill_(value)
        torch.testing.assert_close(pool(logit), pooled(logit, None, r), atol=1e-3, rtol=0)
