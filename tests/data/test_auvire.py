"""AuViRe's data: windows as published or several that overlap, proposals in seconds of the clip."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klassify.data.auvire import AuViReFrames
from klassify.models.auvire import AuViRe, Outputs
from klassify.scores.inference import clip_frames

HOP_S = 0.04


class Ramp:
    """Stands for an AuViRe: each position proposes the frame before to the two frames after it, and
    says with its score what its first feature is.
    """

    length, factors = 16, [1, 1, 2, 4]

    def to(self, device):
        return self

    def eval(self):
        return self

    def __call__(self, video, audio):
        levels = []
        for factor in self.factors:
            logit = video[:, ::factor, :1] / 10 + (factor - 1)
            reach = torch.ones_like(logit) * torch.tensor([1.0, 2.0])
            levels.append(torch.cat([logit, reach], dim=2))
        return Outputs(levels, logit)


def clip_of(n_frames):
    number = torch.arange(n_frames)[:, None].float()
    return {"video": number.expand(-1, 3), "audio": number.expand(-1, 3)}


@pytest.mark.parametrize("n_frames", [1, 3, 15, 16, 17, 24, 26, 61])
def test_every_frame_and_its_proposals_come_from_its_own_place(n_frames):
    data = AuViReFrames(length=16, stride=8, factors=[1, 1, 2, 4])
    cut = data.cut(clip_of(n_frames))
    assert {len(window.inputs["video"]) for window in cut} == {16}
    rows = clip_frames(Ramp(), data, cut, batch_size=2)
    assert len(rows) == n_frames
    for frame, row in enumerate(rows):
        assert row[:2] == pytest.approx([frame * HOP_S, (frame + 1) * HOP_S])
        assert row[2] == pytest.approx(max(frame // f * f / 10 + f - 1 for f in (1, 2, 4)))
        for k, factor in enumerate((1, 1, 2, 4)):
            score, start, end = row[3 + 3 * k : 6 + 3 * k]
            if frame % factor:
                assert score == start == end == 0
            else:
                assert score == pytest.approx(1 / (1 + np.exp(-(frame / 10 + factor - 1))))
                assert start == pytest.approx(max(frame - 1, 0) * HOP_S)
                assert end == pytest.approx((frame + 2) * HOP_S)


def test_examples_are_the_beginnings_of_clips():
    data = AuViReFrames(length=16, stride=8)
    fake = np.array([[0.1, 0.21], [0.5, 3.0]])
    long = data.example(clip_of(40), (fake, 1), np.random.default_rng(0))
    assert long["video"][:, 0].tolist() == list(range(16))
    assert long["target"][:, 0].tolist() == [0, 0, 1, 1, 1, 1] + [0] * 6 + [1] * 4
    short = data.example(clip_of(5), (fake, 1), np.random.default_rng(0))
    assert short["audio"][:, 0].tolist() == [0, 1, 2, 3, 4] + [0] * 11


def test_another_models_levels_are_refused():
    data = AuViReFrames(length=32, stride=16)
    with torch.device("meta"):
        data.check_model(AuViRe(8, 8, 32))
        with pytest.raises(ValueError, match=r"length=32, and the model 64"):
            data.check_model(AuViRe(8, 8, 64))
        with pytest.raises(ValueError, match=r"factors=\[1, 2\], and the model \[1, 1, 2\]"):
            data.check_model(AuViRe(8, 8, 32, retain=2))
    with pytest.raises(ValueError, match="multiples of the largest"):
        AuViReFrames(length=32, stride=15)
