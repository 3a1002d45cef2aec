"""The sound encoders: shapes, supervision, and training on a planted cue."""

from __future__ import annotations

import torch
from learning import learn

from klassify.models.audio_encoder import AudioFrameModel, AudioMIL
from klassify.models.frontends.filterbank import FilterbankFrontEnd


def frontend():
    return FilterbankFrontEnd(bands=16, width=16, kernels=(3,), dim=16, dropout=0.0)


def planted(n_clips=8, n_frames=50):
    """Noise; the fakes have a louder, smoother stretch between frames 20 and 30."""
    torch.manual_seed(0)
    wave = 0.1 * torch.randn(n_clips, 320 * (n_frames - 1) + 400)
    label = torch.arange(n_clips) % 2
    target, start, end = torch.zeros(3, n_clips, n_frames)
    tone = torch.sin(torch.arange(3200) * 0.4)
    for i in range(1, n_clips, 2):
        wave[i, 6440 : 6440 + 3200] += tone
        target[i, 20:30] = 1
        start[i, 19:21] = end[i, 29:31] = 0.6
    return {"wave": wave, "label": label, "target": target, "start": start, "end": end}


def train(model, batch):
    learn(model, batch, steps=40, lr=5e-3, kind=torch.optim.AdamW)
    return model.eval()


@torch.no_grad()
def test_frame_model_finds_the_planted_frames_and_edges():
    with torch.enable_grad():
        model = train(AudioFrameModel(frontend(), dim=16), planted())
    batch = planted()
    scores = model.frame_scores({"wave": batch["wave"]})
    assert scores.shape == (8, 50, 3)
    assert ((scores[..., 0] > 0) == (batch["target"] > 0.5)).float().mean() > 0.98
    assert set(scores[1::2, :, 1].argmax(dim=1).tolist()) <= {19, 20}
    assert set(scores[1::2, :, 2].argmax(dim=1).tolist()) <= {29, 30}
    features = model.frontend(batch["wave"])
    torch.testing.assert_close(model.frame_scores({"features": features}), scores)


@torch.no_grad()
def test_mil_learns_from_clip_labels_alone():
    batch = planted()
    with torch.enable_grad():
        only_labels = {"wave": batch["wave"], "label": batch["label"]}
        model = train(AudioMIL(frontend(), dim=16), only_labels)
    score = model.score({"wave": batch["wave"]})
    assert score[1::2].min() > score[::2].max()
