"""AuViRe gives the published maps, losses, targets and proposals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fill import load, make_input
from learning import learn
from places import GOLDENS
from published import golden_state
from scipy.special import expit

from klassify.localisation.soft_nms import soft_nms
from klassify.models import auvire
from klassify.models.auvire import ALPHA, AuViRe, localisation_loss
from klassify.models.span_loss import focal, overlaps
from klassify.models.weights.load import import_state

GOLDEN, EXPECTED = load(GOLDENS / "auvire")
TOLERANCE = {"atol": GOLDEN["tolerance"]["abs"], "rtol": GOLDEN["tolerance"]["rel"]}
CLOSE = {"atol": GOLDEN["loss_tolerance"]["abs"], "rtol": GOLDEN["loss_tolerance"]["rel"]}


def cases(kind):
    chosen = [case for case in GOLDEN["cases"] if case["kind"] == kind]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case["id"])


def built(name):
    """A golden's model, without weights."""
    config = GOLDEN["models"][name]["config"]
    sizes = {"d_model": config["d_model"], "length": config["max_length"]}
    return AuViRe(halvings=config["reconstruction"]["downsample"], **config["encoder"], **sizes)


def arrays(case, *names):
    return [torch.from_numpy(EXPECTED[f"{case['id']}/{name}"]) for name in names]


def levels_of(case):
    return arrays(case, *(f"level_{i}" for i in range(len(case["factor"]))))


@cases("forward")
@torch.no_grad()
def test_maps_match_the_published_ones(case):
    model = built(case["model"]).eval()
    state = golden_state("auvire", case["model"])
    report = import_state(model, {"model." + key: value for key, value in state.items()}, "auvire")
    assert report.loaded == len(state) and not report.left_out
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert n_parameters == GOLDEN["models"][case["model"]]["parameters"]
    video, audio = (torch.from_numpy(make_input(spec)) for spec in case["inputs"])
    for clip, length in enumerate(case["lengths"]):
        video[clip, length:] = audio[clip, length:] = 0
    maps, rebuilt = [], []
    for module in model.smooth:
        module.register_forward_hook(lambda *call: maps.append(call[2]))
    model.reconstruction.register_forward_hook(lambda *call: rebuilt.append(call[2]))
    outputs = model(video, audio)
    actual = {f"output_{i}": level for i, level in enumerate(outputs.levels)}
    actual["dissimilarity"] = outputs.dissimilarity
    actual |= {f"feature_{i}_corner": x[0, :8, :8] for i, x in enumerate(maps[::-1])}
    for name, x in zip(("audio", "video"), rebuilt):
        actual[f"reconstruction_from_{name}_corner"] = x[0, :8, :8]
        spread = torch.stack([x.mean(), x.std(correction=0)])
        actual[f"reconstruction_from_{name}_mean_std"] = spread
    keys = [key for key in EXPECTED if key.startswith(f"{case['id']}/")]
    assert {key.partition("/")[2] for key in keys} == set(actual)
    for name, values in actual.items():
        wanted = EXPECTED[f"{case['id']}/{name}"]
        np.testing.assert_allclose(values.numpy(), wanted, **TOLERANCE, err_msg=name)


def test_released_sizes():
    with torch.device("meta"):
        models = [AuViRe(**sizes) for sizes in auvire.RELEASED.values()]
        assert AuViRe().factors == models[0].factors
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    assert sizes == [8_934_790, 12_101_516]


@cases("loss")
def test_losses_match_the_published_ones(case):
    """Those of the released models; its detection and smooth L1 losses are left out here."""
    levels, wanted = levels_of(case), case["expected"]
    target, dissimilarity = arrays(case, "target", "dissimilarity")
    for i, factor in enumerate(case["factor"]):
        label, offsets = target[:, ::factor, 0], target[:, ::factor, 1:]
        actual = {
            "focal": focal(levels[i][..., 0], label, ALPHA).sum(1),
            "diou": (overlaps(levels[i][..., 1:], offsets)[1] * label).sum(1),
            "positives": label.sum(1).clamp(min=1),
        }
        for name, values in actual.items():
            np.testing.assert_allclose(values, wanted[f"{name}_{i}"], **CLOSE, err_msg=name)
    real = ~target[..., 0].any(dim=1)
    np.testing.assert_allclose(dissimilarity.mean(1) * real, wanted["reconstruction"], **CLOSE)
    if case["composition"] == ["focal", "diou", "rec"]:
        total = localisation_loss(levels, target, case["factor"])
        np.testing.assert_allclose(total, wanted["localisation"], **CLOSE)

        class Given(AuViRe):
            def forward(self, video, audio):
                return auvire.Outputs(levels, dissimilarity)

        model = Given(4, 4, 8, kernel=3)
        model.factors = case["factor"]
        batch = {"video": None, "audio": None, "target": target}
        np.testing.assert_allclose(model.loss(batch), wanted["total"], **CLOSE)


@cases("loss")
def test_targets_of_losses_are_those_of_their_periods(case):
    rows = [auvire.targets(periods, case["max_length"]) for periods in case["fake_periods"]]
    np.testing.assert_array_equal(np.stack(rows), EXPECTED[f"{case['id']}/target"])


def test_targets_match_the_published_ones():
    for case in GOLDEN["targets"]:
        target = auvire.targets(case["fake_periods"], case["max_length"])
        assert "".join(str(int(label)) for label in target[:, 0]) == case["label"]
        for column, side in ((1, "left"), (2, "right")):
            np.testing.assert_array_equal(target[:, column], case[side])


@cases("decode")
def test_proposals_match_the_published_ones(case):
    levels, fps = levels_of(case), case["fps"]
    rows = torch.cat(auvire.proposals(levels, case["factor"]), dim=1).double().numpy()
    wanted = EXPECTED[f"{case['id']}/proposals"]
    clip = np.repeat(np.arange(len(rows)), rows.shape[1])
    score, *ends = rows.reshape(-1, 3).T
    start, end = (np.clip(times, 0, case["max_length"]) / fps for times in ends)
    settings = {name: case[name] for name in ("sigma", "t1", "t2")}
    taken, value = soft_nms(clip, start, end, score, cap=wanted.shape[1], **settings)
    found = np.stack([value, fps * start[taken], fps * end[taken]], axis=1).reshape(wanted.shape)
    tolerance = GOLDEN["decode_tolerance"]
    np.testing.assert_allclose(found[..., 0], wanted[..., 0], atol=tolerance["score_abs"])
    np.testing.assert_allclose(found[..., 1:], wanted[..., 1:], atol=tolerance["frame_abs"])
    published_score = EXPECTED[f"{case['id']}/detection_score"]
    np.testing.assert_allclose(expit(found[:, 0, 0]), published_score, atol=tolerance["score_abs"])


def test_auvire_learns_where_the_streams_part():
    torch.manual_seed(0)
    model = AuViRe(in_dim=8, d_model=16, length=32, kernel=5)
    rng = np.random.default_rng(0)

    def batch(n=16):
        audio = torch.from_numpy(rng.normal(size=(n, 32, 8))).float()
        video, target = audio.clone(), np.zeros((n, 32, 3), np.float32)
        for clip in range(0, n, 2):
            first = rng.integers(2, 22)
            video[clip, first : first + 8] = torch.from_numpy(rng.normal(size=(8, 8))).float()
            target[clip] = auvire.targets([[(first + 0.5) / 25, (first + 7.5) / 25]], 32)
        return {"video": video, "audio": audio, "target": torch.from_numpy(target)}

    learn(model, lambda _: batch(), steps=80, lr=5e-3)
    unseen = batch(32)
    with torch.no_grad():
        outputs = model(unseen["video"], unseen["audio"])
    best = torch.cat(auvire.proposals(outputs.levels, model.factors), dim=1)
    fake = unseen["target"][..., 0].any(dim=1)
    top = best[torch.arange(32), best[..., 0].argmax(dim=1)]
    assert top[fake, 0].median() > top[~fake, 0].median()
    first = unseen["target"][fake, :, 0].argmax(dim=1)
    assert (top[fake, 1] - first).abs().median() < 2
