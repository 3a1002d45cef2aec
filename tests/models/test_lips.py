"""Lip detectors: they learn, padding changes nothing, and weights come back."""

from __future__ import annotations

import pytest
import torch
from learning import learn

from klassify.models.lip_encoder import LipEncoder
from klassify.models.lips import LipFrameModel, LipMIL

SMALL = {"name": "tiny", "channels": [4, 4, 8], "dim": 8}


def batch(n_clips: int = 4, n_frames: int = 16):
    """Crops of which fakes are brighter for a few frames."""
    rng = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 120, (n_clips, n_frames, 88, 88), generator=rng, dtype=torch.uint8)
    label = torch.arange(n_clips) % 2
    target = torch.zeros(n_clips, n_frames)
    target[1::2, 5:9] = 1
    crops[target.bool()] += 100
    valid = torch.ones(n_clips, n_frames, dtype=torch.bool)
    valid[0, 12:] = False
    start, end = torch.zeros_like(target), torch.zeros_like(target)
    start[1::2, 5], end[1::2, 8] = 1, 1
    return {
        "crops": crops,
        "valid": valid,
        "label": label,
        "target": target.masked_fill(~valid, torch.nan),
        "start": start,
        "end": end,
    }


def made(cls):
    torch.manual_seed(0)
    return cls(LipEncoder(SMALL), dim=8)


@pytest.mark.parametrize("cls", [LipFrameModel, LipMIL])
def test_the_loss_falls(cls):
    model, data = made(cls), batch()
    losses = learn(model, data, steps=25, lr=1e-2)
    assert losses[-1] < 0.5 * losses[0]


def test_frames_that_are_not_valid_change_no_score():
    data = batch()
    other = {**data, "crops": data["crops"].masked_fill(~data["valid"][..., None, None], 255)}
    short = {name: data[name][:1, :12] for name in ("crops", "valid")}
    with torch.no_grad():
        model = made(LipMIL).eval()
        score = model.score(data)
        torch.testing.assert_close(model.score(other), score)
        torch.testing.assert_close(model.score(short), score[:1], atol=1e-5, rtol=1e-4)
        model = made(LipFrameModel).eval()
        scores = model.frame_scores(data)
        assert scores.shape == (4, 16, 3)
        torch.testing.assert_close(
            model.frame_scores(short)[0], scores[0, :12], atol=1e-5, rtol=1e-4
        )
