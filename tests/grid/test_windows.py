"""windows.py against slow, obvious references and by property."""

from __future__ import annotations

import numpy as np
import pytest

from klassify.errors import KlassifyError
from klassify.grid import windows

# as published, in samples
AASIST = {"size": 64_600, "hop": 16_000, "grid": 320}


def aggregate(log_odds, how="max"):
    return float(windows.aggregate_by_clip(["clip"] * len(log_odds), log_odds, how).iloc[0])


@pytest.mark.parametrize(
    "length, starts",
    [
        (1, [0]),
        (64_600, [0]),
        (64_919, [0]),  # the uncovered tail is shorter than one 20 ms frame
        (64_920, [0, 320]),
        (80_600, [0, 16_000]),
        (80_700, [0, 16_000]),
        # 9.6 s, the mean clip
        (153_600, [0, 16_000, 32_000, 48_000, 64_000, 80_000, 88_960]),
    ],
)
def test_aasist_windows(length, starts):
    assert windows.cut(length, **AASIST).tolist() == starts


def slow_cut(length, size, hop, grid):
    starts, start = [0], hop
    while start + size <= length:
        starts.append(start)
        start += hop
    tail = max(s for s in range(0, max(length - size, 0) + 1) if s % grid == 0)
    return starts + [tail] if tail > starts[-1] else starts


def test_cut_equals_the_slow_form_and_covers_everything():
    for length in range(1, 60):
        for size, hop, grid in (
            (10, 5, 1),
            (10, 10, 1),
            (7, 3, 1),
            (12, 6, 2),
            (12, 6, 3),
            (1, 1, 1),
        ):
            starts = windows.cut(length, size, hop, grid=grid)
            assert starts.tolist() == slow_cut(length, size, hop, grid)
            covered = np.zeros(max(length, size), bool)
            for start in starts:
                covered[start : start + size] = True
            assert covered[: length - grid + 1].all()
            assert starts.tolist() == [0] or starts[-1] + size <= length


@pytest.mark.parametrize("length", [1, 9, 10, 11, 57])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_cut_then_join_is_the_identity(length, channels):
    signal = np.random.default_rng(length).normal(size=(length, *channels))
    starts = windows.cut(length, 10, 4)
    padded = np.concatenate([signal, np.full((10, *channels), np.nan)])  # must not matter
    pieces = np.stack([padded[s : s + 10] for s in starts])
    for joined in (
        windows.overlap_mean(pieces, starts, length),
        windows.overlap_mean(pieces, starts, length, windows.triangle(10)),
    ):
        assert joined.shape == signal.shape
        np.testing.assert_allclose(joined, signal, rtol=1e-12)


def test_overlap_equals_a_loop_over_frames():
    rng = np.random.default_rng(0)
    starts, weights = windows.cut(47, 12, 5), rng.uniform(0.1, 1, 12)
    outputs = rng.normal(size=(len(starts), 12, 2))
    mean = windows.overlap_mean(outputs, starts, 47, weights)
    for frame in range(47):
        over = [
            (outputs[w, frame - s], weights[frame - s])
            for w, s in enumerate(starts)
            if s <= frame < s + 12
        ]
        np.testing.assert_allclose(
            mean[frame], sum(v * g for v, g in over) / sum(g for _, g in over)
        )


def test_triangle_is_positive_symmetric_and_peaks_in_the_middle():
    for size in (1, 2, 5, 100):
        weights = windows.triangle(size)
        assert (weights > 0).all() and weights.argmax() == (size - 1) // 2
        np.testing.assert_allclose(weights, weights[::-1])


def test_centre_fill_holds_each_window_from_its_centre():
    """Windows of 10 frames, one every 2, write frames start + 5 and start + 6."""
    starts = windows.cut(250, 10, 2)
    assert len(starts) == 121
    filled = windows.centre_fill(np.arange(121), starts, 10, 250)
    wanted = np.full(250, -1)
    for value, start in enumerate(starts):
        wanted[start + 5 : start + 7] = value
    wanted[:5], wanted[247:] = 0, 120
    np.testing.assert_array_equal(filled, wanted)


@pytest.mark.parametrize(
    "factor, count, length", [(4, 5, 20), (4, 5, 18), (8, 2, 40), (16, 1, 3), (1, 4, 4)]
)
def test_repeat_to_clamps_to_the_last_value(factor, count, length):
    values = np.arange(count * 2).reshape(count, 2)
    wanted = np.stack([values[min(frame // factor, count - 1)] for frame in range(length)])
    np.testing.assert_array_equal(windows.repeat_to(values, factor, length), wanted)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def logit(p):
    return np.log(p) - np.log1p(-p)


NAIVE = {
    "max": lambda z: z.max(),
    "mean": lambda z: logit(sigmoid(z).mean()),
    "topk": lambda z: logit(np.sort(sigmoid(z))[-3:].mean()),
    "logit-mean": lambda z: z.mean(),
    "noisy-or": lambda z: logit(1 - np.prod(1 - sigmoid(z))),
}


@pytest.mark.parametrize("how", windows.AGGREGATIONS)
def test_aggregate_by_clip_equals_the_naive_form(how):
    rng = np.random.default_rng(2)
    clips = np.array([f"{n}.mp4" for n in rng.integers(0, 40, 300)], dtype=object)
    log_odds = rng.normal(-2, 2, 300)
    joined = windows.aggregate_by_clip(clips, log_odds, how)
    assert joined.index.tolist() == list(dict.fromkeys(clips))
    for name, value in joined.items():
        np.testing.assert_allclose(value, NAIVE[how](log_odds[clips == name]), rtol=1e-9, atol=1e-9)
        assert value == aggregate(log_odds[clips == name], how)


@pytest.mark.parametrize("how", windows.AGGREGATIONS)
def test_aggregate_does_not_saturate(how):
    for value in (-900.0, -40.0, 0.3, 40.0, 900.0):
        np.testing.assert_allclose(aggregate([value], how), value, rtol=1e-12)
    low, high = (aggregate([-900.0, top - 1, top], how) for top in (50.0, 51.0))
    assert np.isfinite([low, high]).all() and low <= high
    surely_fake = [aggregate([top, top], how) for top in (700.0, 701.0)]
    assert surely_fake[0] < surely_fake[1] < np.inf


def test_mean_of_a_saturated_and_a_real_window_is_one_half():
    assert abs(aggregate([800.0, -800.0], "mean")) < 1e-12


def test_unknown_aggregations_are_refused():
    with pytest.raises(KlassifyError, match="median"):
        aggregate([1.0], "median")
    assert len(windows.aggregate_by_clip([], [])) == 0  # no clip could be scored
