"""Explanations find what a model depends on: a time, a band, a feature, a part of the picture."""

import numpy as np
import pytest
import torch
from small_data import jpeg
from torch import nn
from visual_model import small

from klassify.data.audio import AudioClips
from klassify.data.av_embeddings import AVEmbeddings, Stream
from klassify.data.lips import LipCrops, LipFrames
from klassify.data.mouth import MouthFeatures
from klassify.data.sync import SyncEmbeddings
from klassify.data.visual import VisualClip, VisualWindows
from klassify.explanation.answering import Answering
from klassify.explanation.axes import BANDS_HZ, CELLS, axes_of
from klassify.explanation.contributions import FRAME_SCORES
from klassify.explanation.explain import explain_model, occlusion
from klassify.explanation.faithfulness import curves
from klassify.features.lips import LipsRow
from klassify.features.mouth.channels import FEATURES
from klassify.models.av_spans import AVSpans
from klassify.models.frame_head import FrameOutputs
from klassify.models.lip_encoder import LipEncoder
from klassify.models.lips import LipFrameModel, LipMIL
from klassify.models.sync import Sync


class Knows(nn.Module):
    """A model that scores with a function of its inputs."""

    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(1))

    def score(self, batch):
        return self.function(batch) * self.weight


def energy_at(first, stop):
    return lambda batch: batch["wave"][:, first:stop].square().mean(dim=1) * 100 - 1


def energy_between(low, high):
    def score(batch):
        spectrum = torch.fft.rfft(batch["wave"]).abs().square()
        hertz = torch.fft.rfftfreq(batch["wave"].shape[1], 1 / 16_000)
        return spectrum[:, (hertz >= low) & (hertz < high)].mean(dim=1) / 100

    return score


def noise(seconds, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)


def explained(model, data, clip):
    answering = Answering(model, data, data.aggregate)
    return answering, {one.over: one for one in explain_model(answering, clip)}


def test_occlusion_finds_the_time_that_counts():
    data = AudioClips(window=16_000, stride=8_000)
    answering, found = explained(Knows(energy_at(4_000, 8_000)), data, noise(1.0))
    time = found["time"]
    middles = (time.edges[:-1] + time.edges[1:]) / 2
    inside = (middles > 0.29) & (middles < 0.46)
    assert time.values[inside].min() > 0.05
    assert np.abs(time.values[(middles < 0.15) | (middles > 0.6)]).max() < 1e-6
    start, end = time.mostly()
    assert 0.2 <= start < end <= 0.55


def test_occlusion_finds_the_band_that_counts():
    data = AudioClips(window=16_000, stride=8_000)
    found = explained(Knows(energy_between(1400, 1700)), data, noise(1.0))[1]["frequency"]
    assert BANDS_HZ[int(found.values.argmax())] == 1300
    others = np.delete(found.values, found.values.argmax())
    assert np.abs(others).max() < 0.1 * found.values.max()


def test_bands_of_which_any_suffices_count_alone():
    low, high = energy_between(400, 550), energy_between(1400, 1700)

    def score(batch):
        return torch.maximum(low(batch), high(batch)).clamp(max=0.01)

    data, wave = AudioClips(window=16_000, stride=16_000), noise(1.0)
    answering = Answering(Knows(score), data, data.aggregate)
    axis = axes_of(data, answering.model, wave)["frequency"]
    left_out, summed = occlusion(answering, axis), occlusion(answering, axis, alone=True)
    assert np.abs(left_out.values).max() < 1e-6
    assert np.flatnonzero(summed.values > 0.005).tolist() == [2, 5]
    assert BANDS_HZ[2] == 350 and BANDS_HZ[5] == 1300


def test_gradients_find_the_feature_that_counts():
    def score(batch):
        return batch["features"][..., 2].amax(dim=1) + batch["features"][..., 10].sum(dim=1)

    generator = torch.Generator().manual_seed(0)
    clip = {"features": torch.randn(30, 16, generator=generator), "valid": torch.ones(30).bool()}
    data = MouthFeatures(window=30, stride=30)
    answering, found = explained(Knows(score), data, clip)
    assert FEATURES[2] == "colour" and np.flatnonzero(found["features"].values).tolist() == [2]
    (whole,) = answering.scores([data.cut(clip)])
    for over in ("features", "time", "features over time"):
        one = found[over]
        assert one.values.sum() + one.rest == pytest.approx(whole, rel=1e-4)


def test_orders_of_contributions_beat_random_ones():
    data = AudioClips(window=16_000, stride=8_000)
    clip = noise(1.0)
    answering, found = explained(Knows(energy_at(4_000, 8_000)), data, clip)
    axis, rng = axes_of(data, answering.model, clip)["time"], np.random.default_rng(0)
    right = curves(answering, axis, found["time"], rng)
    assert right.deletion < right.random - 0.01 and right.insertion > right.random + 0.01
    reversed_ = type(found["time"])("time", "none", "log_odds", -found["time"].values, axis.edges)
    wrong = curves(answering, axis, reversed_, rng)
    assert wrong.deletion > wrong.random > wrong.insertion
    assert wrong.deletion == pytest.approx(right.insertion, abs=0.02)


def lips_row(n_frames, bright=()):
    crops = [jpeg(200 if t in bright else 90) for t in range(n_frames)]
    return LipsRow("a", 25.0, crops, np.ones(n_frames, bool), "")


def test_frames_without_a_face_are_what_crops_lose():
    data = LipCrops(window=16, stride=8)

    def score(batch):
        shown = batch["crops"].float().mean(dim=(2, 3)) * batch["valid"]
        return shown.amax(dim=1) / 50

    answering, found = explained(Knows(score), data, lips_row(20, bright=(6, 7)))
    assert found["time"].values.argmax() == 3 and np.count_nonzero(found["time"].values) == 1


@pytest.mark.parametrize("kind, data_kind", [(LipMIL, LipCrops), (LipFrameModel, LipFrames)])
def test_only_the_clip_model_of_lips_has_a_map(kind, data_kind):
    torch.manual_seed(0)
    data, clip = data_kind(window=8, stride=4), lips_row(9, bright=(6,))
    found = explained(kind(LipEncoder("tiny"), dim=8).eval(), data, clip)[1]
    assert set(found) == ({"time", "picture"} if data.unit == "clip" else set())


class SeesChange(LipMIL):
    """Frames score by how much the upper left of the picture changes."""

    def forward(self, crops, valid=None):
        corner = crops[:, :, :11, :11].float().mean(dim=(2, 3))
        logit = (corner - corner.mean(dim=1, keepdim=True)).abs() / 10 - 6
        return FrameOutputs(logit, logit, logit)


def test_squares_and_frames_that_raise_the_score_are_marked():
    answering, found = explained(
        SeesChange(LipEncoder("tiny"), dim=8),
        LipCrops(window=8, stride=4),
        lips_row(9, bright=(6,)),
    )
    picture, time = found["picture"], found["time"]
    assert np.argwhere(picture.values > 0.1).tolist() == [[0, 0]]
    assert picture.frame_s == pytest.approx(6.5 * 0.04) and picture.image.mean() > 150
    assert time.method == FRAME_SCORES and time.values.shape == (9,)
    assert time.values.argmax() == 6 and time.mostly() == pytest.approx((0.24, 0.28))


def test_the_picture_of_a_visual_model_has_a_map():
    torch.manual_seed(0)
    data = VisualWindows(size=32, window=3, stride=2, lmm=False, faces=False)
    frames = np.random.default_rng(0).integers(0, 255, (7, 32, 32, 3)).astype(np.uint8)
    clip = VisualClip("none.mp4", 7, 32, held=frames)
    answering, found = explained(small(lmm_dims=None).eval(), data, clip)
    assert list(found) == ["picture"]
    assert found["picture"].values.shape == (CELLS, CELLS)
    shown = [np.array_equal(found["picture"].image, frame) for frame in frames]
    assert shown.count(True) == 1 and found["picture"].frame_s == 0.04 * (shown.index(True) + 0.5)
    axes = axes_of(data, answering.model, clip)
    everything = [axis.without(np.ones(len(axis), bool))[0] for axis in axes.values()]
    assert all(np.ptp(one.held, axis=0).max() == 0 for one in everything)


def test_embeddings_lose_frames_and_whole_streams():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    pair = {
        "audio": torch.from_numpy(rng.normal(size=(20, 4)).astype(np.float32)),
        "visual": torch.from_numpy(rng.normal(size=(20, 4)).astype(np.float32)),
        "audio_valid": torch.ones(20).bool(),
        "visual_valid": torch.ones(20).bool(),
    }
    data = SyncEmbeddings(window=16, stride=8)
    model = Sync(audio_dim=4, visual_dim=4, dim=4, hidden=4, hidden_2=4)
    found = explained(model, data, pair)[1]
    assert list(found) == ["time"] and len(found["time"].values) == 10
    streams = {
        name: Stream(rng.normal(size=(size, 4)).astype(np.float16), np.ones(size, bool))
        for name, size in (("audio", 40), ("visual", 20))
    }
    data = AVEmbeddings(window=32, stride=16)
    model = AVSpans(audio_dim=4, visual_dim=4, dim=16, levels=2, hidden=1)
    answering, found = explained(model, data, streams)
    assert list(found) == ["modalities"] and found["modalities"].names == ("sound", "picture")
    silent = streams | {"audio": Stream(np.zeros((0, 4), np.float16), np.zeros(0, bool))}
    whole, without = answering.scores([data.cut(streams), data.cut(silent)])
    assert found["modalities"].values[0] == pytest.approx(whole - without, abs=1e-5)
