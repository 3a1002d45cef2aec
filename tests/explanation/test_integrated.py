"""Integrated gradients: completeness, and windows joined as in scoring."""

import numpy as np
import pytest
import torch

from klassify.data.mouth import MouthFeatures, MouthTags
from klassify.explanation.answering import Answering
from klassify.explanation.integrated import TOLERANCE, aggregated, integrated_gradients
from klassify.grid.windows import AGGREGATIONS, aggregate_by_clip
from klassify.models.tcn import TCN, TaggingTCN


def clip_of(n_frames, seed=0):
    generator = torch.Generator().manual_seed(seed)
    valid = torch.ones(n_frames, dtype=torch.bool)
    valid[3:5] = False
    features = torch.randn(n_frames, 16, generator=generator)
    return {"features": torch.where(valid[:, None], features, 0.0), "valid": valid}


def tcn(kind=TCN):
    torch.manual_seed(0)
    model = kind(hidden=8, dilations=(1, 2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    model.mean.normal_()
    return model


@pytest.mark.parametrize("aggregate", ["mean", "max", "noisy-or"])
def test_contributions_of_a_clip_add_up_to_its_score(aggregate):
    model, data, clip = tcn(), MouthFeatures(window=20, stride=10), clip_of(45)
    found = integrated_gradients(model, data, clip, aggregate)
    flat = clip | {"features": torch.where(clip["valid"][:, None], model.mean, 0.0)}
    score, base = Answering(model, data, aggregate).scores([data.cut(clip), data.cut(flat)])
    assert found.baseline == pytest.approx(base, abs=1e-5)
    limit = TOLERANCE * max(abs(score - base), 1.0) + 1e-4
    assert abs(found.values.sum() - (score - base)) <= limit
    assert found.error == pytest.approx(found.values.sum() - (score - base), abs=1e-4)
    assert np.abs(found.values).max() > 0 and not found.values[3:5].any()


@pytest.mark.parametrize("hop_s, aggregate", [(0.04, "max"), (0.02, "top")])
def test_contributions_of_tags_add_up_too(hop_s, aggregate):
    model, clip = tcn(TaggingTCN), clip_of(45)
    data = MouthTags(hop_s=hop_s, window=20, stride=10)
    found = integrated_gradients(model, data, clip, aggregate)
    (score,) = Answering(model, data, aggregate).scores([data.cut(clip)])
    total = found.values.sum() + found.baseline
    assert total == pytest.approx(score, abs=TOLERANCE * max(abs(score - found.baseline), 1) + 1e-4)


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_windows_become_a_clip_as_in_scoring(how):
    log_odds = np.random.default_rng(0).normal(0, 3, (5, 4))
    wanted = [aggregate_by_clip([0] * 4, row, how).iloc[0] for row in log_odds]
    np.testing.assert_allclose(aggregated(torch.from_numpy(log_odds), how), wanted, atol=1e-6)
