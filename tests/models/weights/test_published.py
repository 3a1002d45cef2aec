"""Released checkpoints: every tensor finds its place, and models give published answers."""

import numpy as np
import published
import pytest
import torch
from fill import load, make_input
from front_ends import Given
from published import GOLDENS, TINY_WAVLM, golden_shapes, golden_state
from torch import nn

from klassify.data.partialspoof import on_frames
from klassify.grid import windows
from klassify.models.bam import BAM
from klassify.models.frontends.ssl import SSLFrontEnd
from klassify.models.linear_fusion import LinearFusion
from klassify.models.partialspoof import PartialSpoof
from klassify.models.raw_aasist import RawAASIST, mel_filters
from klassify.models.spatiotemporal import SpatioTemporal
from klassify.models.visual import Visual
from klassify.models.vqvae import VQVAE
from klassify.models.weights.checkpoint import read_checkpoint
from klassify.models.weights.load import import_state, import_weights
from klassify.models.weights.published import KEY_MAPS
from klassify.systems.imported import ARCHITECTURES, released_model


def close(actual, wanted, tolerance):
    np.testing.assert_allclose(actual, wanted, atol=tolerance["abs"], rtol=tolerance["rel"])


def inputs_of(case):
    return [torch.from_numpy(make_input(spec)) for spec in case["inputs"]]


def visual_shapes():
    return golden_shapes("iafa_vit", "W10", "backbone.") | golden_shapes("mmdet_head")


def cfprf_file():
    fdn, prn = published.cfprf_shapes()
    return fdn | prn


# source: (keys of the speech model inside it, prefix, all else, keys that the model has no use for)
RELEASED = {
    "ssl-anti-spoofing": ("ssl_wav2vec2", "ssl_model.model.", lambda: golden_shapes("aasist"), 8),
    "bam": ("ssl_wavlm", "ssl_layer.model.", lambda: golden_shapes("bam", "embed1024"), 2),
    "partialspoof": (
        "ssl_wav2vec2",
        "extracter.model.",
        lambda: partialspoof_file(golden_shapes("partialspoof")),
        12,
    ),
    "cfprf": ("ssl_wav2vec2", "asr.model.", cfprf_file, 38),
    "fairseq": ("ssl_wav2vec2", "", dict, 8),
    "wavlm": ("ssl_wavlm", "", dict, 1),
    "aasist": (None, "", published.raw_aasist_shapes, 0),
    "visual": (None, "", visual_shapes, 0),
    "vqvae": (None, "", lambda: golden_shapes("vqvae"), 0),
    "auvire": (None, "", published.auvire_shapes, 0),
    "fusion": (None, "", lambda: golden_shapes("linear_fusion"), 0),
}


def partialspoof_file(state):
    """What trained_network.pt has besides the back end and the speech model."""
    names = [f"{side}_{name}" for side in ("input", "output") for name in ("mean", "std")]
    device = state["m_angle_scales.2.weight"].device
    layers = {"weight_hidd": torch.zeros(30, device=device)}
    return state | dict.fromkeys(names, torch.ones(1)) | layers


@pytest.mark.parametrize("source", RELEASED)
def test_every_tensor_of_a_released_file_finds_its_place(source):
    """At full size, on the meta device."""
    golden, prefix, rest, n_unused = RELEASED[source]
    with torch.device("meta"):
        model = released_model(source, ARCHITECTURES.get(source))
    ours, theirs = model.state_dict(), rest()
    for name in published.encoder_names(golden) if golden else []:
        place = ours.get(KEY_MAPS[source].rename(prefix + name), torch.empty(1, device="meta"))
        theirs[prefix + name] = torch.empty_like(place)
    more = {key: value for key, value in ours.items() if key.startswith("vqvae.")}
    report = import_state(model, theirs, source, more=more)
    assert report.loaded == len(ours) - len(more) == len(theirs) - n_unused
    assert len(report.left_out) == n_unused and report.lacking == []


def test_bam_from_a_lightning_file(tmp_path, monkeypatch):
    published.bam_file(tmp_path / "model.ckpt", monkeypatch)
    description, expected = load(GOLDENS / "bam")
    model = BAM(SSLFrontEnd(False, TINY_WAVLM)).eval()
    report = import_weights(model, tmp_path / "model.ckpt")
    assert report.source == "bam" and report.lacking == []
    assert report.left_out == ["ssl_layer.model.mask_emb", "intra_layer.resnet.downsample.weight"]
    speech, last = load(GOLDENS / "ssl_wavlm")
    with torch.no_grad():
        for case in description["cases"]:
            kind = case["kind"], case.get("model"), case.get("resolution")
            if kind == ("forward", "embed64", 0.04):
                logits, boundary = model.backend(*inputs_of(case))
                close(logits.flip(-1), expected[f"{case['id']}/logits"], description["tolerance"])
                close(boundary, expected[f"{case['id']}/boundary"], description["tolerance"])
        for case in speech["cases"]:
            close(model.frontend(*inputs_of(case)), last[f"{case['id']}/last"], speech["tolerance"])


class OneLayer(Given):
    """Given features as the only hidden state."""

    def hidden_states(self, wave):
        return [wave]


def test_partialspoof_and_fusion_give_the_published_logits(tmp_path):
    """At full size, from files; both are in another order here, so the order must cancel out."""
    state = partialspoof_file(golden_state("partialspoof"))
    state["extracter.model.mask_emb"] = torch.zeros(4)
    optimizer, _ = published.trained()
    content = {
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "info": "epoch 12",
        "optimizer": optimizer.state_dict(),
        "trnlog": np.ones((12, 7)),
        "lr_scheduler": None,
    }
    torch.save(content, tmp_path / "trained_network.pt")
    partialspoof = PartialSpoof(OneLayer()).eval()
    report = import_weights(partialspoof, tmp_path / "trained_network.pt")
    assert report.source == "partialspoof" and len(report.reordered) == 6

    description, expected = load(GOLDENS / "partialspoof")
    case = next(case for case in description["cases"] if case["id"] == "T480_B1")
    n_frames = 240
    logits_of = {"name": "input:visual_logits", "shape": [n_frames, 2], "seed": 5}
    visual = torch.from_numpy(make_input(logits_of))
    state = golden_state("linear_fusion")
    columns = [visual.numpy()]
    for shift, frames in ((16, 4), (32, 8), (64, 16)):
        cosines = expected[f"T480_B1/score_{shift}"][0]  # spoof, bona fide
        columns.append(cosines[np.minimum(np.arange(n_frames) // frames, len(cosines) - 1)])
    weight, bias = state["model.weight"].numpy(), state["model.bias"].numpy()
    wanted = np.concatenate(columns, axis=1) @ weight.T + bias

    torch.save(published.lightning(state, prefix=""), tmp_path / "fusion.ckpt")
    fusion = LinearFusion()
    import_weights(fusion, tmp_path / "fusion.ckpt", "fusion")
    with torch.no_grad():
        scores = partialspoof.frame_scores(*inputs_of(case))
        by_time = {name: value.transpose(0, 1).numpy() for name, value in scores.items()}
        # ps20 to ps640, real and fake each
        on_grid = torch.from_numpy(on_frames(by_time, n_frames)[:, 0])
        logits = fusion(torch.cat([visual, on_grid[:, 6:]], dim=1))
    np.testing.assert_allclose(logits.numpy(), wanted, atol=2e-5)


def test_fusion_gives_the_published_logits(tmp_path):
    description, expected = load(GOLDENS / "linear_fusion")
    content = published.lightning(golden_state("linear_fusion"), prefix="")
    torch.save(content, tmp_path / "fusion.ckpt")
    fusion = LinearFusion()
    report = import_weights(fusion, tmp_path / "fusion.ckpt")
    assert (report.source, report.loaded, list(report.reordered)) == ("fusion", 2, ["weight"])
    for case in description["cases"]:
        visual, *audio = (part.numpy() for part in inputs_of(case))
        # real, fake
        tracks = [windows.repeat_to(x[:, ::-1], 4 << k, len(visual)) for k, x in enumerate(audio)]
        with torch.no_grad():
            logits = fusion(torch.from_numpy(np.concatenate([visual, *tracks], axis=1)))
        close(logits, expected[f"{case['id']}/logits"], description["tolerance"])


def slow_raw_aasist(model, wave):
    """The parts that differ from AASIST after a speech model, step by step: (temporal, spectral)
    nodes.
    """
    n = np.arange(129) - 64
    mel = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 71)
    hertz = 700 * (10 ** (mel / 2595) - 1)
    ideal = [2 * f / 16_000 * np.sinc(2 * f * n / 16_000) for f in hertz]
    bands = []
    for low, high in zip(ideal, ideal[1:]):
        taps = torch.from_numpy(np.hamming(129) * (high - low)).float()
        sums = [(wave[i : i + 129] * taps).sum() for i in range(len(wave) - 128)]
        bands.append(torch.stack(sums).abs())
    bands = torch.stack(bands)
    pooled = [
        [bands[3 * i : 3 * i + 3, 3 * t : 3 * t + 3].max() for t in range(bands.shape[1] // 3)]
        for i in range(23)
    ]
    x = nn.functional.selu(model.first_bn(torch.tensor(pooled)[None, None]))
    for block in model.encoder:
        x = block(x)
        x = x[..., : x.shape[3] // 3 * 3].unflatten(3, (-1, 3)).amax(4)
    return x[0].abs().amax(2).T + model.pos_S[0], x[0].abs().amax(1).T


def test_raw_aasist_from_a_bare_file(tmp_path):
    state = published.raw_aasist_state()
    torch.save(state, tmp_path / "AASIST.pth")
    model = RawAASIST().eval()
    report = import_weights(model, tmp_path / "AASIST.pth")
    assert (report.source, report.loaded) == ("aasist", 229)
    assert list(report.reordered) == ["out_layer.weight", "out_layer.bias"]
    torch.testing.assert_close(model.out_layer.bias, state["out_layer.bias"].flip(0))
    wave = torch.from_numpy(published.fill("input:wave", (1, 2700), 3))
    with torch.no_grad():
        for fast, slow in zip(model._graphs(wave), slow_raw_aasist(model, wave[0]), strict=True):
            torch.testing.assert_close(fast[0], slow, atol=1e-5, rtol=1e-4)
        logits = model(wave)
        torch.testing.assert_close(model.score({"wave": wave}), logits[:, 1] - logits[:, 0])
    pools = ("pool_S", "pool_T", "pool_hS1", "pool_hT1", "pool_hS2", "pool_hT2")
    assert [getattr(model, name).ratio for name in pools] == [0.5, 0.7, 0.5, 0.5, 0.5, 0.5]


def test_raw_aasist_filters_lie_side_by_side():
    response = torch.fft.rfft(mel_filters()[:, 0], 16_000).abs()  # one bin a hertz
    middle = response.argmax(dim=1)
    # the first ones are narrower than 129 taps
    assert (middle.diff() >= 0).all() and (middle[3:].diff() > 0).all()
    assert 7_500 < middle[-1] < 8_000
    with pytest.raises(ValueError, match="2315 samples"):
        RawAASIST()(torch.zeros(1, 2314))


@pytest.mark.slow
@pytest.mark.parametrize(
    "container", [published.lightning, published.mm_det], ids=["visual.ckpt", "current_model.pth"]
)
def test_visual_gives_the_published_logits_at_full_size(tmp_path, container):
    """Windows of two frames; nothing but three embeddings depends on their number."""
    state = golden_state("iafa_vit", "W2", "backbone.") | golden_state("mmdet_head")
    torch.save(container(state), tmp_path / "visual.ckpt")
    model = Visual(SpatioTemporal(window=2, fc_grouping="strided"), VQVAE()).eval()
    vqvae = {f"vqvae.{key}": value for key, value in model.vqvae.state_dict().items()}
    report = import_state(model, read_checkpoint(tmp_path / "visual.ckpt"), "visual", more=vqvae)
    n_left_out = 0 if container is published.lightning else 2
    assert report.loaded == 705 and len(report.left_out) == n_left_out
    golden, expected = load(GOLDENS / "iafa_vit")
    head, logits = load(GOLDENS / "mmdet_head")
    with torch.no_grad():
        case = golden["cases"][0]
        tokens = expected[f"{case['id']}/fc_tokens"]
        close(model.backbone(*inputs_of(case)), tokens, golden["tolerance"])
        for case in head["cases"]:
            close(model(*inputs_of(case)), logits[f"{case['id']}/logits"], head["tolerance"])
