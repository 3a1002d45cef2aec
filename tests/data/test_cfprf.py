"""CFPRF's data: whole clips as published, long ones in windows, rows on the 20 ms grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klassify.data.cfprf import CFPRFFrames
from klassify.grid import windows
from klassify.grid.frames import IGNORE
from klassify.models.cfprf import FrameOutputs

RATE = 16_000


class Loudness:
    """Stands for a CFPRF: a frame is fake if it is loud; proposals are the runs, made wider."""

    def __call__(self, wave):
        loud = wave.unfold(1, 400, 320).abs().mean(dim=2)
        logit = torch.stack([0.5 - loud, loud - 0.5], dim=2)
        return FrameOutputs(logit, logit + 0.7, logit, logit)

    def proposals(self, fake, hidden):
        assert fake.shape == hidden.shape[:1]
        padded = torch.nn.functional.pad(fake.int(), (1, 1)).diff()
        spans = torch.stack([(padded == 1).nonzero()[:, 0], (padded == -1).nonzero()[:, 0]], 1)
        made = torch.cat([torch.full((len(spans), 1), 0.8), spans + torch.tensor([-1, 1])], 1)
        return spans, made.double()


def rows_of(data, clip):
    device = torch.device("cpu")
    return data.clip_rows(Loudness(), data.cut(clip), batch_size=4, device=device)


def clip_of(n_samples, *loud):
    clip = np.zeros(n_samples, np.float32)
    for start, end in loud:
        clip[round(start * RATE) : round(end * RATE)] = 0.9
    return clip


@pytest.mark.parametrize("n_samples", [1, 399, 400, 719, 720, 16_000, 33_333])
def test_a_clip_is_one_pass_over_its_own_samples(n_samples):
    (window,) = CFPRFFrames(crop=50).cut(clip_of(n_samples, (0, 9)))
    n_frames = max((n_samples - 400) // 320 + 1, 1)
    assert len(window.inputs["wave"]) == (n_frames - 1) * 320 + 400
    rows = rows_of(CFPRFFrames(crop=50), clip_of(n_samples, (0, 9)))
    assert len(rows) == max(-(-n_samples // 320), 1)
    np.testing.assert_allclose(rows[:, 0], 0.02 * np.arange(len(rows)))
    assert rows[-1, 1] == pytest.approx(n_samples / RATE)
    np.testing.assert_array_equal(rows[:-1, 1], rows[1:, 0])


def test_windows_of_a_long_clip_say_what_one_pass_says():
    clip = clip_of(5 * RATE + 77, (0.5, 0.9), (1.3, 3.72), (4.6, 4.8))
    whole = rows_of(CFPRFFrames(window=400, stride=200, crop=50), clip)
    for window, stride in ((60, 30), (101, 37), (100, 99)):
        rows = rows_of(CFPRFFrames(window=window, stride=stride, crop=20), clip)
        np.testing.assert_allclose(rows, whole, atol=1e-6)
    (first, score, start, end) = whole[whole[:, 4] > 0][1, [0, 4, 5, 6]]
    assert score == pytest.approx(0.8) and first == pytest.approx(1.28, abs=0.021)
    assert (start, end) == (pytest.approx(first - 0.02), pytest.approx(3.74, abs=0.021))
    assert ((whole[:, 3] >= 0) & (whole[:, 3] <= 1)).all()


def test_each_frame_counts_where_it_lies_deepest():
    starts, size = windows.cut(241, 100, 50), 100
    edges = windows.seams(starts, size)
    for frame in range(241):
        depth = [min(frame - s, s + size - 1 - frame) for s in starts]
        chosen = np.searchsorted(edges, frame, side="right") - 1
        assert depth[chosen] >= max(depth) - 1


def test_labels_of_a_crop_lie_where_its_samples_do():
    data = CFPRFFrames(window=100, stride=50, crop=40)
    clip, fake = clip_of(3 * RATE, (0.5, 0.9), (2.0, 2.1)), np.array([[0.5, 0.9], [2.0, 2.1]])
    for seed in range(12):
        example = data.example(clip, (fake, 1), np.random.default_rng(seed))
        inside = example["wave"][: 40 * 320].unflatten(0, (40, 320)).amax(dim=1) > 0
        assert (inside.long() == example["frame_label"]).all()
    short = data.example(clip_of(4000, (0, 0.1)), (fake - 0.5, 1), np.random.default_rng(0))
    assert (short["frame_label"][12:] == IGNORE).all() and (short["frame_label"][:12] == 1).all()
    assert len(short["wave"]) == 39 * 320 + 400


def test_a_window_longer_than_the_model_takes_is_refused():
    class Short:
        class fdn:
            seq_len = 99

    with pytest.raises(ValueError, match="takes 99 frames"):
        CFPRFFrames(window=100, stride=50, crop=50).check_model(Short())
