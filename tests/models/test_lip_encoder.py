"""Lip encoders: the published networks against goldens, their files, and the small one."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from fill import load, make_input
from places import GOLDENS
from published import golden_state
from scipy import ndimage

from klassify.errors import KlassifyError
from klassify.models.frontends import logfbank
from klassify.models.lip_encoder import (
    FLOOR,
    GRAY_MEAN,
    GRAY_STD,
    LipEncoder,
    LocalMaps,
    normalised,
)
from klassify.models.weights.load import import_state, import_weights

TINY = {"dim": 64, "layers": 2, "heads": 4, "hidden": 128}
ENCODERS = {
    "raven_video": ("raven", {"name": "raven-base", **TINY}),
    "avhubert": ("av-hubert", {"name": "av-hubert-base", **TINY}),
}


def published(golden: str, model: str = "main") -> LipEncoder:
    """An encoder with the weights of a golden, through the names of the released file."""
    source, architecture = ENCODERS[golden]
    encoder = LipEncoder(architecture)
    report = import_state(encoder, golden_state(golden, model), source)
    assert not report.lacking
    return encoder.eval()


def cases(golden: str, kind: str):
    description, expected = load(GOLDENS / golden)
    for case in description["cases"]:
        if case["kind"] == kind:
            inputs = {spec["name"]: make_input(spec) for spec in case["inputs"]}
            yield case, inputs, expected, description["tolerance"]


def valid_frames(case, n: int):
    lengths = case.get("lengths")
    return None if lengths is None else torch.arange(n) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("golden", ENCODERS)
def test_features_match_the_published_encoder(golden):
    models = {}
    for case, inputs, expected, tolerance in cases(golden, "forward"):
        encoder = models.setdefault(case["model"], published(golden, case["model"]))
        video = inputs.get("input:frames", inputs.get("input:video"))
        audio = inputs.get("input:audio")
        video = None if video is None else torch.from_numpy(video[:, 0])
        audio = None if audio is None else torch.from_numpy(audio).transpose(1, 2)
        valid = valid_frames(case, len((video if audio is None else audio)[0]))
        with torch.no_grad():
            states = encoder.hidden_states(video, audio, valid)
            features = encoder.features(video, audio, valid)
        wanted = [*expected[f"{case['id']}/hidden_states"]]
        if golden == "raven_video":  # which stores the last layer's output too, without its norm
            wanted.append(expected[f"{case['id']}/encoded"])
        assert len(states) == len(wanted)
        torch.testing.assert_close(features, states[-1], rtol=0, atol=0)
        there = slice(None) if valid is None else valid.numpy()
        for state, value in zip(states, wanted):
            np.testing.assert_allclose(
                state.numpy()[there], value[there], atol=tolerance["abs"], rtol=tolerance["rel"]
            )


def test_crops_are_normalised_as_published():
    for golden, kind in (("raven_video", "preprocess"), ("avhubert", "video_preprocess")):
        for case, inputs, expected, tolerance in cases(golden, kind):
            gray = np.stack([cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in inputs["input:frames"]])
            ours = normalised(torch.from_numpy(gray[None, :, 4:92, 4:92])).numpy()
            wanted = expected[f"{case['id']}/normalised"].reshape(ours.shape)
            step = 0.0
            if golden == "raven_video":  # gray levels there are not rounded
                step = 0.55 / 255 / GRAY_STD
            np.testing.assert_allclose(ours, wanted, atol=tolerance["abs"] + step)
    assert float(normalised(torch.zeros(1, dtype=torch.uint8))) == pytest.approx(
        -GRAY_MEAN / GRAY_STD
    )


def test_sound_is_seen_as_published():
    for case, inputs, expected, tolerance in cases("avhubert", "audio_features"):
        wave = inputs["input:wave"]
        if "int16" in case["wave"]:
            wave = np.round(16_000 * wave.astype(float)).astype(np.int16)
        found = logfbank.log_filterbank(wave)
        found = {"logfbank": found, "stacked": logfbank.stacked(found)}
        found["normalised"] = logfbank.audio_frames(wave)
        for name, value in found.items():
            wanted = expected[f"{case['id']}/{name}"]
            assert value.shape == wanted.shape
            np.testing.assert_allclose(value, wanted, atol=1e-4, rtol=tolerance["rel"])


LAYOUTS = {
    "avhubert": [("", {"cfg": {}}), ("encoder.w2v_model.", {"cfg": {}})],
    "raven_video": [("", None), ("encoder.", None)],
}


@pytest.mark.parametrize("golden", ENCODERS)
def test_released_files_load_in_both_layouts(golden, tmp_path):
    source, architecture = ENCODERS[golden]
    wanted = published(golden).state_dict()
    for prefix, around in LAYOUTS[golden]:
        state = golden_state(golden, prefix=prefix)
        state["decoder.embed_tokens.weight"] = torch.ones(3, 2)
        torch.save({**around, "model": state} if around else state, tmp_path / "file.pth")
        encoder = LipEncoder(architecture, source=str(tmp_path / "file.pth"))
        encoder.load_pretrained()
        for name, value in wanted.items():
            assert torch.equal(encoder.state_dict()[name], value), name
    report = import_weights(LipEncoder(architecture), tmp_path / "file.pth")
    assert report.source == source and "licence of the weights" in str(report)
    assert ("non-commercial" in str(report)) == (golden == "avhubert")


@pytest.mark.parametrize(
    "name, part, parameters",
    [
        ("raven-base", "", 52_445_376),
        ("raven-large", "", 339_283_648),
        ("av-hubert-base", "trunk", 11_186_688),
        ("av-hubert-base", "context.encoder", 89_775_488),
        ("av-hubert-large", "context.encoder", 310_701_184),
    ],
)
def test_published_sizes(name, part, parameters):
    with torch.device("meta"):
        encoder = LipEncoder(name)
    assert sum(p.numel() for p in encoder.get_submodule(part).parameters()) == parameters


def crops(n_clips=2, n_frames=9, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (n_clips, n_frames, 88, 88)).astype(np.uint8)
    )


@pytest.mark.parametrize(
    "architecture", ["tiny", ENCODERS["avhubert"][1], ENCODERS["raven_video"][1]]
)
def test_frames_that_are_not_valid_change_nothing(architecture):
    torch.manual_seed(0)
    encoder = LipEncoder(architecture).eval()
    video, valid = crops(), torch.ones(2, 9, dtype=torch.bool)
    valid[0, 6:] = False
    other = video.clone()
    other[~valid] = 7
    with torch.no_grad():
        one, two = encoder(video, valid), encoder(other, valid)
        short = encoder(video[:1, :6], valid[:1, :6])
    torch.testing.assert_close(one[valid], two[valid])
    torch.testing.assert_close(one[:1, :6], short, atol=1e-5, rtol=1e-4)


def test_frozen_parts_keep_weights_and_statistics():
    torch.manual_seed(0)
    encoder = LipEncoder({"name": "raven-base", **TINY}, freeze="all", train_layers=1)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.train()
    encoder(crops()).square().mean().backward()
    learned = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert learned and all(name.startswith("context.layers.1.") for name in learned)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_unknown_architectures_are_refused():
    with pytest.raises(KlassifyError, match="Unknown lip encoder 'huge'"):
        LipEncoder("huge")
    with pytest.raises(KlassifyError, match="tiny has no setting layers"):
        LipEncoder({"name": "tiny", "layers": 3})


def test_local_maps_are_what_slow_code_gives():
    torch.manual_seed(0)
    crops = torch.randn(1, 3, 88, 88, dtype=torch.float64)
    maps = LocalMaps().double()
    maps.norm = torch.nn.Identity()
    found = maps(crops)
    assert found.shape == (1, 3, 6, 22, 22)

    def sharp(x):
        return np.pad(ndimage.laplace(x)[1:-1, 1:-1], 1)

    def small(x, size):
        return x.reshape(len(x) // size, size, -1, size).mean(axis=(1, 3))

    def energy(x, size):
        return np.log(small(x**2, size) + FLOOR)

    for t in range(3):
        now, before = crops[0, t].numpy(), crops[0, max(t - 1, 0)].numpy()
        change = now - before
        wanted = [
            small(now, 4),
            energy(sharp(now), 4),
            energy(sharp(small(now, 2)), 2),
            small(change, 4),
            energy(change, 4),
            energy(sharp(change), 4),
        ]
        np.testing.assert_allclose(found[0, t].numpy(), wanted, atol=1e-9)
