"""The augmentations of mouth features: what they change and what they keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klassify.augmentation.mouth import (
    FeatureAugment,
    clip_lengths,
    random_channels,
    random_spans,
    random_swaps,
    shift_in_time,
    take_frames,
)
from klassify.grid.frames import IGNORE, TAGS, encode_tags

OFF = dict.fromkeys(("shift", "temporal_dropout", "swap", "channel_dropout", "noise"), 0.0)


def make_batch(n_clips=24, n_frames=90, channels=16, seed=0):
    """Normalised features with padding and gaps, 0 where invalid, and tags of a few segments."""
    torch.manual_seed(seed)
    lengths = torch.randint(1, n_frames + 1, (n_clips,))
    lengths[0], lengths[1] = n_frames, 1
    place = torch.arange(n_frames)
    valid = place < lengths[:, None]
    valid &= ~((place >= 30) & (place < 36))  # a gap without a face
    x = torch.randn(n_clips, n_frames, channels) * valid[..., None]
    tags = encode_tags([(0.0, 0.2), (0.84, 0.88), (1.6, 2.2)], n_frames)
    return x, valid, torch.from_numpy(np.stack([tags] * n_clips))


def test_augmentations_keep_invalid_frames_zero():
    for name in OFF:
        x, valid, tags = make_batch()
        new_x, new_valid, new_tags = FeatureAugment(**(OFF | {name: 1.0}))(x, valid, tags)
        assert not torch.equal(new_x, x), name
        assert (new_x[~new_valid] == 0).all(), name
        if name != "shift":
            assert torch.equal(new_valid, valid) and torch.equal(new_tags, tags), name


def test_inputs_are_not_modified_and_probability_0_does_nothing():
    x, valid, tags = make_batch()
    kept = [part.clone() for part in (x, valid, tags)]
    FeatureAugment(1, 1, 1, 1, 1)(x, valid, tags)
    assert all(torch.equal(part, copy) for part, copy in zip((x, valid, tags), kept))
    same_x, same_valid, same_tags = FeatureAugment(**OFF)(x, valid, None)
    assert torch.equal(same_x, x) and torch.equal(same_valid, valid) and same_tags is None


def test_the_same_seed_gives_the_same_batch():
    x, valid, tags = make_batch()
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(FeatureAugment()(x, valid, tags))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_noise_has_the_given_probability_and_deviation():
    x, valid, _ = make_batch(n_clips=4000, n_frames=8, channels=2)
    new_x, _, _ = FeatureAugment(**(OFF | {"noise": 0.3}), noise_std=0.05)(x, valid)
    hit = (new_x != x).flatten(1).any(dim=1)
    assert abs(hit.float().mean() - 0.3) < 0.03
    assert abs((new_x - x)[hit][valid[hit]].std() - 0.05) < 1e-3


@pytest.mark.parametrize("offset", [-8, -3, 0, 1, 8])
def test_shift_moves_frames_validity_and_tags_together(offset):
    x, valid, tags = make_batch()
    frames = clip_lengths(valid)
    new_x, new_valid, new_tags = shift_in_time(x, valid, tags, torch.full((len(x),), offset))
    for clip, n in enumerate(frames.tolist()):
        for t in range(x.shape[1]):
            source = min(max(t - offset, 0), n - 1) if t < n else t
            assert torch.equal(new_x[clip, t], x[clip, source])
            assert new_valid[clip, t] == valid[clip, source]
            if t >= n or source == t - offset:
                assert new_tags[clip, t] == tags[clip, source]
            else:  # a repeated edge frame is O or unknown, never a second B or L
                assert new_tags[clip, t] == (0 if tags[clip, source] == 0 else IGNORE)


def test_shift_keeps_a_segment_whole():
    x, valid = torch.randn(1, 20, 2), torch.ones(1, 20, dtype=torch.bool)
    tags = torch.from_numpy(encode_tags([(0.2, 0.4)], 20))[None]
    _, _, moved = shift_in_time(x, valid, tags, torch.tensor([3]))
    assert "".join(TAGS[tag] for tag in moved[0]) == "OOOOOOOOBIIILOOOOOOO"


def test_dropped_spans_keep_to_number_length_and_clip():
    torch.manual_seed(0)
    frames = torch.tensor([256, 100, 16, 5, 3, 0]).repeat(3000)
    dropped = random_spans(frames, 256, max_spans=3, span_frames=(4, 16))
    edges = torch.diff(dropped.int(), dim=1, prepend=torch.zeros(len(frames), 1))
    runs = (edges == 1).sum(dim=1)
    assert (runs <= 3).all() and (dropped.sum(dim=1) <= 48).all()
    assert {1, 2, 3} <= set(runs[frames == 256].tolist())
    long = frames >= 64
    assert (dropped[long].sum(dim=1) >= 4).all()
    assert not dropped[torch.arange(256) >= frames[:, None]].any()  # never in the padding
    assert (dropped.sum(dim=1) <= frames * 0.75).all()  # never the whole clip
    assert dropped[frames == 256].float().mean(dim=0).min() > 0  # anywhere in the clip


def test_swaps_exchange_only_valid_frames_of_equal_tag():
    x, valid, tags = make_batch(n_clips=300)
    order = random_swaps(valid, tags, clip_lengths(valid), swaps=4, distance=4)
    place = torch.arange(90).expand_as(order)
    assert torch.equal(order.sort(dim=1).values, place)  # a permutation
    assert torch.equal(take_frames(tags, order), tags)
    assert torch.equal(take_frames(valid, order), valid)
    assert (order[~valid] == place[~valid]).all()
    assert ((order != place).sum(dim=1) <= 8).all() and (order != place).any()
    single = random_swaps(valid, None, clip_lengths(valid), swaps=1, distance=4)
    assert set((single - place).abs().unique().tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("channels", [2, 4, 6, 16])
def test_features_are_dropped_with_differences_never_all(channels):
    torch.manual_seed(0)
    kept = random_channels(3000, channels, share=0.4)
    features, differences = kept.chunk(2, dim=1)
    assert torch.equal(features, differences)
    assert kept.any(dim=1).all()
    if channels > 6:
        assert abs((~kept).float().mean() - 0.4) < 0.02
    assert random_channels(50, channels, share=1.0).sum(dim=1).eq(2).all()


def test_clips_without_any_valid_frame_pass():
    x, valid = torch.zeros(3, 12, 4), torch.zeros(3, 12, dtype=torch.bool)
    tags = torch.zeros(3, 12, dtype=torch.long)
    new_x, new_valid, tags = FeatureAugment(1, 1, 1, 1, 1)(x, valid, tags)
    assert (new_x == 0).all() and not new_valid.any() and (tags == 0).all()
