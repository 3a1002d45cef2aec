"""The mouth TCN: parameter counts, padding, batch norm, normalisation, learning, tags."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from learning import learn
from torch import nn

from klassify.augmentation.mouth import FeatureAugment
from klassify.grid.frames import IGNORE, TAGS, decode_tags, encode_tags, viterbi
from klassify.models.tcn import TCN, MaskedBatchNorm1d, TaggingTCN


def make_batch(n_clips=6, n_frames=80, channels=16, seed=0):
    """Raw features of clips of different lengths with gaps, labels and tags; NaN where invalid."""
    torch.manual_seed(seed)
    lengths = torch.randint(20, n_frames + 1, (n_clips,))
    lengths[0] = n_frames
    place = torch.arange(n_frames)
    valid = (place < lengths[:, None]) & ~((place >= 9) & (place < 14))
    features = 3 + 5 * torch.randn(n_clips, n_frames, channels)
    features[~valid] = torch.nan  # values at invalid frames must not matter
    tags = torch.randint(4, (n_clips, n_frames)).masked_fill(place >= lengths[:, None], IGNORE)
    return {"features": features, "valid": valid, "label": torch.arange(n_clips) % 2, "tags": tags}


def padded(batch, frames=37):
    """The same batch with padding at the end."""
    fill = {"features": torch.nan, "valid": False, "tags": IGNORE}
    grown = dict(batch)
    for key, value in fill.items():
        shape = (len(batch["label"]), frames, *batch[key].shape[2:])
        extra = torch.full(shape, value, dtype=batch[key].dtype)
        grown[key] = torch.cat([batch[key], extra], dim=1)
    return grown


def fitted(model, batch):
    model.fit_normalisation(zip(batch["features"], batch["valid"]))
    return model


def n_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_counts():
    assert n_parameters(TCN()) == 123_906
    assert n_parameters(TaggingTCN()) == 140_486
    assert n_parameters(TaggingTCN(clip_weight=0)) == 134_148


def test_receptive_field_is_61_frames():
    model = TCN().double().eval()
    x = torch.randn(1, 200, 16, dtype=torch.float64, requires_grad=True)
    valid = torch.ones(1, 200, dtype=torch.bool)
    model.encode(x, valid)[0, :, 100].sum().backward()
    seen = x.grad[0].abs().sum(dim=1).nonzero().flatten()
    assert (seen.min(), seen.max()) == (70, 130)


@pytest.mark.parametrize("channels, cls", [(4, TCN), (6, TCN), (16, TCN), (16, TaggingTCN)])
def test_padding_and_other_clips_change_no_score(channels, cls):
    batch = make_batch(channels=channels)
    torch.manual_seed(1)
    model = fitted(cls(in_channels=channels), batch)
    model.train()
    model.loss(batch)  # moves the running statistics away from their start
    model.eval()
    with torch.no_grad():
        scores = model.score(batch)
        torch.testing.assert_close(model.score(padded(batch)), scores, atol=1e-6, rtol=0)
        if isinstance(model, TaggingTCN):
            kept = batch["valid"]
            longer = model.tag_log_probs(padded(batch))[:, : kept.shape[1]][kept]
            torch.testing.assert_close(longer, model.tag_log_probs(batch)[kept], atol=1e-6, rtol=0)
        for clip in range(len(scores)):
            stop = int(batch["valid"][clip].nonzero().max()) + 1
            alone = {key: batch[key][clip : clip + 1, :stop] for key in ("features", "valid")}
            torch.testing.assert_close(model.score(alone)[0], scores[clip], atol=1e-6, rtol=0)


@pytest.mark.parametrize("cls", [TCN, TaggingTCN])
def test_padding_changes_no_gradient_or_statistics(cls):
    batch = make_batch()
    torch.manual_seed(1)
    models = [fitted(cls(dropout=0.0), batch)]
    models.append(copy.deepcopy(models[0]))
    losses = [model.train().loss(part) for model, part in zip(models, (batch, padded(batch)))]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for a, b in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)
    for a, b in zip(models[0].buffers(), models[1].buffers()):
        torch.testing.assert_close(a, b)


def test_masked_batch_norm_equals_torch_without_padding():
    ours, theirs = MaskedBatchNorm1d(5), nn.BatchNorm1d(5)
    with torch.no_grad():
        ours.weight.uniform_(0.5, 1.5)
        ours.bias.normal_()
    theirs.load_state_dict(ours.state_dict())
    for _ in range(3):
        x = 2 + 3 * torch.randn(4, 5, 11)
        inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        outputs = [ours(inputs[0], torch.ones(4, 1, 11)), theirs(inputs[1])]
        torch.testing.assert_close(*outputs)
        for output in outputs:
            output.square().mul(x).sum().backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x, torch.ones(4, 1, 11)), theirs.eval()(x))


def test_masked_batch_norm_counts_only_valid_frames():
    norm = MaskedBatchNorm1d(3, momentum=1.0)
    x, mask = torch.randn(6, 3, 20), torch.rand(6, 1, 20) < 0.6
    frames = x.transpose(1, 2)[mask[:, 0]]
    y = norm(x.where(mask, torch.tensor(1e4)), mask.float()).transpose(1, 2)[mask[:, 0]]
    torch.testing.assert_close(norm.running_mean, frames.mean(dim=0))
    torch.testing.assert_close(norm.running_var, frames.var(dim=0))
    deviation = (frames.var(dim=0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(y, (frames - frames.mean(dim=0)) / deviation)


def test_normalisation_is_over_all_valid_frames():
    batch = make_batch()
    batch["features"][..., 0] += 1e6  # sums of squares would cancel
    batch["features"][..., 3] = 7.0
    model = fitted(TCN(), batch)
    frames = batch["features"][batch["valid"]].double()
    torch.testing.assert_close(model.mean, frames.mean(dim=0).float())
    spread = frames.std(dim=0, correction=0).float()
    spread[3] = 1.0
    torch.testing.assert_close(model.std, spread)
    x = model.normalised(batch["features"], batch["valid"])
    assert (x[~batch["valid"]] == 0).all()
    assert {"mean", "std"} <= set(model.state_dict())
    model.normalise = False
    kept = model.normalised(batch["features"], batch["valid"])[batch["valid"]]
    torch.testing.assert_close(kept, batch["features"][batch["valid"]])
    with pytest.raises(ValueError, match="valid frame"):
        model.fit_normalisation([(torch.ones(4, 16), torch.zeros(4, dtype=torch.bool))])


def test_clips_without_valid_frames_have_finite_scores():
    batch = {
        "features": torch.full((2, 30, 16), torch.nan),
        "valid": torch.zeros(2, 30, dtype=torch.bool),
    }
    for model in (TCN().eval(), TaggingTCN(clip_weight=0).eval()):
        assert torch.isfinite(model.score(batch)).all()
    assert TCN().train().loss(batch | {"label": torch.tensor([0, 1])}).isfinite()


def test_clip_loss_is_cross_entropy_with_weighted_fakes():
    batch = make_batch()
    torch.manual_seed(1)
    model = TCN(dropout=0.0).eval()
    log_odds, label = model.score(batch), batch["label"].double()
    fake, real = log_odds.double().sigmoid().log(), (-log_odds.double()).sigmoid().log()
    for model.pos_weight in (1.0, 3.0):
        wanted = -(model.pos_weight * label * fake + (1 - label) * real).mean()
        torch.testing.assert_close(model.loss(batch).double(), wanted)


def test_augmentation_applies_only_in_training():
    batch = make_batch()
    model = fitted(TCN(dropout=0.0, augment=FeatureAugment(1, 1, 1, 1, 1)), batch)
    model.eval()
    assert model.loss(batch) == model.loss(batch)
    model.train()
    assert model.loss(batch) != model.loss(batch)


def train(model, batch, steps):
    torch.manual_seed(3)
    fitted(model, batch).train()
    learn(model, batch, steps, lr=3e-3, kind=torch.optim.AdamW)
    return model.eval()


def planted(n_clips=24, n_frames=64, seed=5):
    """Fake clips hold a short segment in which two channels are a little higher."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n_clips, n_frames, 4)).astype(np.float32)
    label, tags = np.arange(n_clips) % 2, np.zeros((n_clips, n_frames), np.int64)
    for clip in np.flatnonzero(label):
        start = rng.integers(0, n_frames - 8) * 0.04
        tags[clip] = encode_tags([(start, start + rng.integers(1, 9) * 0.04)], n_frames)
        features[clip, tags[clip] > 0, :2] += 4
    valid = np.ones((n_clips, n_frames), bool)
    arrays = {"features": features, "valid": valid, "label": label, "tags": tags}
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def test_tcn_learns_a_planted_signal_and_generalises():
    torch.manual_seed(2)
    model = train(TCN(in_channels=4, hidden=16, augment=FeatureAugment()), planted(), steps=80)
    with torch.no_grad():
        unseen = planted(seed=6)
        scores = model.score(unseen)
    fake, real = scores[unseen["label"] == 1], scores[unseen["label"] == 0]
    assert (fake[:, None] > real).float().mean() > 0.95  # the AUC


def test_tagger_learns_to_find_segments():
    torch.manual_seed(2)
    model = TaggingTCN(in_channels=4, hidden=16, tag_hidden=24, dropout=0.0)
    train(model, planted(), steps=150)
    with torch.no_grad():
        batch = planted()
        log_probs = model.tag_log_probs(batch).numpy()
    found = [decode_tags(tags).tolist() for tags in viterbi(log_probs)]
    wanted = [decode_tags(tags).tolist() for tags in batch["tags"].numpy()]
    assert sum(a == b for a, b in zip(found, wanted)) >= 22  # of 24


def test_tag_loss_is_a_weighted_mean_over_known_valid_frames():
    batch = make_batch()
    batch["tags"][0, 5] = IGNORE
    torch.manual_seed(1)
    model = fitted(TaggingTCN(dropout=0.0, clip_weight=0), batch).eval()
    log_probs = model.tag_log_probs(batch)
    assert log_probs.shape == (*batch["tags"].shape, len(TAGS))
    torch.testing.assert_close(log_probs.exp().sum(dim=2), torch.ones(batch["tags"].shape))
    total = mass = 0.0
    for clip, frame in batch["valid"].nonzero().tolist():
        tag = int(batch["tags"][clip, frame])
        if tag != IGNORE:
            weight = (0.05, 0.30, 0.30, 0.35)[tag]
            total, mass = total - weight * log_probs[clip, frame, tag], mass + weight
    torch.testing.assert_close(model.loss(batch), total / mass)
    batch["tags"][:] = IGNORE
    assert model.loss(batch) == 0


def test_tagger_adds_the_clip_loss_with_its_weight():
    batch = make_batch()
    torch.manual_seed(1)
    both = fitted(TaggingTCN(dropout=0.0, clip_weight=0.5), batch).eval()
    tags_only = TaggingTCN(dropout=0.0, clip_weight=0).eval()
    clip_only = TCN(dropout=0.0).eval()
    for part in (tags_only, clip_only):
        part.load_state_dict({name: both.state_dict()[name] for name in part.state_dict()})
    wanted = tags_only.loss(batch) + 0.5 * clip_only.loss(batch)
    torch.testing.assert_close(both.loss(batch), wanted)
    torch.testing.assert_close(both.score(batch), clip_only.score(batch))


def test_without_a_clip_head_the_highest_valid_frame_scores():
    batch = make_batch()
    model = fitted(TaggingTCN(clip_weight=0), batch).eval()
    p_outside = model.tag_log_probs(batch)[..., 0].double().exp()
    frames = torch.log((1 - p_outside) / p_outside)
    wanted = torch.stack([frames[clip, batch["valid"][clip]].max() for clip in range(len(frames))])
    torch.testing.assert_close(model.score(batch).double(), wanted, atol=1e-4, rtol=1e-4)


def test_scores_are_float32_under_autocast():
    batch = make_batch()
    model = fitted(TaggingTCN(), batch)
    with torch.autocast("cpu", torch.bfloat16):
        model.train().loss(batch).backward()
        model.eval()
        assert model.score(batch).dtype == model.tag_log_probs(batch).dtype == torch.float32
