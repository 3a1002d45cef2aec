"""Sync against plain loops; what takes part in its loss; that it learns to find other sound."""

import math

import pytest
import torch
from learning import learn

from klassify.metrics.clips import roc_auc
from klassify.models.sync import Sync


def small(reach=3):
    torch.manual_seed(0)
    return Sync(audio_dim=4, visual_dim=5, dim=8, hidden=8, hidden_2=4, reach=reach)


def random_batch(n=3, n_frames=20, seed=0):
    made = torch.Generator().manual_seed(seed)
    return {
        "audio": torch.randn(n, n_frames, 4, generator=made),
        "visual": torch.randn(n, n_frames, 5, generator=made),
        "audio_valid": torch.rand(n, n_frames, generator=made) < 0.8,
        "visual_valid": torch.rand(n, n_frames, generator=made) < 0.8,
        "label": torch.tensor([0, 1, 0])[:n],
    }


def test_misfit_equals_plain_loops():
    model, batch = small().eval(), random_batch()
    misfit, counts = model.misfit(batch)
    assert torch.equal(counts, batch["audio_valid"] & batch["visual_valid"])
    for b, t in counts.nonzero().tolist():
        mouth = model.first["visual"](model.project["visual"](batch["visual"][b, t]))
        scores = {}
        for other in range(max(t - 3, 0), min(t + 4, 20)):
            if batch["audio_valid"][b, other]:
                sound = model.first["audio"](model.project["audio"](batch["audio"][b, other]))
                scores[other] = float(model.rest(mouth + sound).detach())
        p = math.exp(scores[t]) / sum(map(math.exp, scores.values()))
        expected = -math.log(p) - math.log(len(scores))
        assert float(misfit[b, t].detach()) == pytest.approx(expected, abs=1e-5)
    assert (misfit[~counts] == 0).all()


def test_padding_and_invalid_frames_change_nothing():
    model, batch = small().eval(), random_batch()
    more = {
        key: torch.cat([value, torch.zeros_like(value[:, :7])], dim=1) if key != "label" else value
        for key, value in batch.items()
    }
    for name in ("audio", "visual"):
        noise = torch.randn_like(more[name])
        more[name] = torch.where(more[f"{name}_valid"][..., None], more[name], noise)
    torch.testing.assert_close(model.score(batch), model.score(more))


def test_fake_clips_take_no_part_in_the_loss():
    model, batch = small(), random_batch()
    loss = model.loss(batch).detach()
    batch["visual"][1] = torch.randn(20, 5)
    assert float(model.loss(batch).detach()) == float(loss)
    batch["label"][:] = 1
    nothing = model.loss(batch)
    nothing.backward()
    assert float(nothing.detach()) == 0 and all(not p.grad.any() for p in model.parameters())


def test_a_clip_without_a_frame_that_counts_has_a_finite_score():
    model, batch = small(), random_batch()
    batch["audio_valid"][:] = False
    assert torch.isfinite(model.score(batch)).all() and torch.isfinite(model.loss(batch))


def test_it_learns_from_real_clips_to_find_other_sound():
    made = torch.Generator().manual_seed(1)
    mix = torch.randn(5, 4, generator=made)

    def clips(n):
        mouth = torch.randn(n, 30, 5, generator=made)
        sound = mouth @ mix + 0.3 * torch.randn(n, 30, 4, generator=made)
        label = torch.arange(n) % 2
        other = torch.randn(n, 12, 4, generator=made) @ torch.eye(4) * sound.std()
        sound[label == 1, 8:20] = other[label == 1]
        there = torch.ones(n, 30, dtype=torch.bool)
        return {
            "audio": sound,
            "visual": mouth,
            "audio_valid": there,
            "visual_valid": there,
            "label": label,
        }

    torch.manual_seed(0)
    model = Sync(audio_dim=4, visual_dim=5, dim=16, hidden=32, hidden_2=16, reach=5)
    learn(model, lambda _: clips(16), steps=60, lr=3e-3)
    held = clips(60)
    score = model.eval().score(held).detach()
    assert roc_auc(held["label"].numpy(), score.numpy()) > 0.9
