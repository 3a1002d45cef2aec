"""Front ends match the published speech encoders and load weights of every kind of file."""

import importlib.util

import numpy as np
import pytest
import torch
from fill import fill, load, make_input
from places import GOLDENS
from safetensors.torch import save_file
from speech_models import MODELS, NARROW, TINY, pretrained, published_file

from klassify.errors import KlassifyError
from klassify.models.frontends.ssl import ARCHITECTURES, SSLFrontEnd, normalise_waveform


def waves(n_samples=8000, batch=2, seed=1):
    return torch.from_numpy(fill("input:wave", (batch, n_samples), seed))


# if fairseq2 is installed (`make test-fairseq2`), it is tested too; it has no WavLM
HAS_FAIRSEQ2 = importlib.util.find_spec("fairseq2") is not None
LIBRARIES = ["transformers"] + ["torchaudio"] * (importlib.util.find_spec("torchaudio") is not None)
CASES = [(golden, library) for golden in MODELS for library in LIBRARIES]
CASES += [("ssl_wav2vec2", "fairseq2")] * HAS_FAIRSEQ2


@pytest.mark.parametrize(("golden", "library"), CASES)
def test_hidden_states_match_the_published_encoder(golden, library, tmp_path):
    frontend = pretrained(golden, tmp_path, library=library).eval()
    description, expected = load(GOLDENS / golden)
    tolerance = {"atol": description["tolerance"]["abs"], "rtol": description["tolerance"]["rel"]}
    for case in description["cases"]:
        wave = torch.from_numpy(make_input(case["inputs"][0]))
        with torch.no_grad():
            states = frontend.hidden_states(wave)
            last = frontend(wave)
        wanted = expected[f"{case['id']}/hidden_states"]
        assert len(states) == len(wanted)
        for state, value in zip(states, wanted):
            np.testing.assert_allclose(state.numpy(), value, **tolerance)
        np.testing.assert_allclose(last.numpy(), expected[f"{case['id']}/last"], **tolerance)
        assert last.shape[1:] == (frontend.n_frames(wave.shape[1]), frontend.dim)


@pytest.mark.parametrize(("golden", "library"), CASES)
def test_libraries_share_one_state_dict(golden, library, tmp_path):
    ours, theirs = pretrained(golden, tmp_path), SSLFrontEnd(False, MODELS[golden], library=library)
    theirs.load_state_dict(ours.state_dict())
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[key]), key
    with torch.no_grad():
        one, other = ours.eval()(waves()), theirs.eval()(waves())
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def gradients(frontend):
    frontend.train()(waves(n_samples=4000)).square().sum().backward()
    return {name: p.grad for name, p in frontend.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("golden", "library"), CASES)
def test_checkpointing_changes_no_gradient(golden, library, tmp_path):
    plain = gradients(pretrained(golden, tmp_path, library=library))
    frontend = pretrained(golden, tmp_path, library=library, gradient_checkpointing=True)
    checkpointed = gradients(frontend)
    if library == "transformers":
        assert all(layer.gradient_checkpointing for layer in frontend.model.encoder.layers)
    assert plain.keys() == checkpointed.keys() and len(plain) > 30
    for name, gradient in plain.items():
        torch.testing.assert_close(gradient, checkpointed[name], atol=1e-5, rtol=1e-4)


def test_output_can_be_a_layer_or_a_learned_mix():
    torch.manual_seed(0)
    frontend = SSLFrontEnd(False, MODELS["ssl_wav2vec2"], layer="mix").eval()
    with torch.no_grad():
        states, mixed = frontend.hidden_states(waves()), frontend(waves())
        torch.testing.assert_close(mixed, torch.stack(states).mean(dim=0))
        frontend.layer_weight[1] = 50.0
        torch.testing.assert_close(frontend(waves()), states[1])
    frontend(waves()).sum().backward()
    assert frontend.layer_weight.grad is not None
    one = SSLFrontEnd(False, MODELS["ssl_wav2vec2"], layer=1).eval()
    one.load_state_dict({k: v for k, v in frontend.state_dict().items() if k != "layer_weight"})
    with torch.no_grad():
        assert torch.equal(one(waves()), states[1])
    with pytest.raises(ValueError, match="0 to 2"):
        SSLFrontEnd(False, MODELS["ssl_wav2vec2"], layer=3)


@pytest.mark.skipif(HAS_FAIRSEQ2, reason="fairseq2 is installed here")
def test_the_error_without_fairseq2_says_how_to_install_it():
    with pytest.raises(KlassifyError, match="fairseq2") as raised:
        SSLFrontEnd(False, MODELS["ssl_wav2vec2"], library="fairseq2")
    assert "pip install" in str(raised.value)


@pytest.mark.parametrize(("golden", "library"), CASES)
def test_nothing_is_dropped_or_masked_in_training(golden, library, tmp_path):
    frontend = pretrained(golden, tmp_path, library=library).train()
    with torch.no_grad():
        first, second, evaluated = frontend(waves()), frontend(waves()), frontend.eval()(waves())
    assert torch.equal(first, second)
    torch.testing.assert_close(first, evaluated)


def frames_by_convolution(n_samples):
    for kernel, stride in [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]:
        n_samples = (n_samples - kernel) // stride + 1
    return max(n_samples, 0)


def test_frame_rule_matches_the_convolutions():
    frontend = SSLFrontEnd(normalize_input=False, architecture=NARROW)
    assert (frontend.hop_samples, frontend.receptive_field_samples, frontend.dim) == (320, 400, 32)
    lengths = [*range(0, 3000), 16_000, 64_000, 64_600, 160_000, 668 * 16_000]
    assert [frontend.n_frames(n) for n in lengths] == [frames_by_convolution(n) for n in lengths]
    assert [frontend.n_frames(n) for n in (399, 400, 719, 720, 64_600)] == [0, 1, 1, 2, 201]
    with torch.no_grad():
        for n_samples in (400, 719, 720, 1039, 1040, 5_001):
            assert frontend(waves(n_samples)).shape == (2, frontend.n_frames(n_samples), 32)


def test_sizes_of_the_large_models():
    for name in ARCHITECTURES:
        with torch.device("meta"):
            frontend = SSLFrontEnd(normalize_input=False, architecture=name)
        # without the mask embedding (1,024) and the pretraining heads, which no detector uses
        wanted = 315_452_096 if name == "wavlm-large" else 315_437_696
        assert sum(parameter.numel() for parameter in frontend.parameters()) == wanted
        assert (frontend.dim, len(frontend.model.encoder.layers)) == (1024, 24)


@pytest.mark.parametrize(
    "architecture, told",
    [
        ("xlsr54", "Unknown speech model architecture 'xlsr54'"),
        ({**TINY, "family": "hubert"}, "Unknown speech model family 'hubert'"),
        ({"hidden_size": -1}, "No speech model has these settings"),
        ({"num_attention_heads": 0}, "No speech model has these settings"),
        ({"conv_dim": "a"}, "No speech model has these settings"),
    ],
)
def test_architectures_that_cannot_be_are_refused(architecture, told):
    with pytest.raises(KlassifyError, match=told) as caught:
        SSLFrontEnd(normalize_input=False, architecture=architecture)
    assert not told.startswith("No") or caught.value.where == architecture


def test_normalised_waves_have_zero_mean_and_unit_variance():
    wave = 0.3 * waves() + 0.1
    normal = normalise_waveform(wave)
    torch.testing.assert_close(normal.mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std(1, correction=0), torch.ones(2), atol=1e-3, rtol=0)
    for constant in (0.0, 0.7):
        assert torch.equal(normalise_waveform(torch.full((1, 500), constant)), torch.zeros(1, 500))


def test_normalisation_is_a_setting_of_the_model(tmp_path):
    plain = pretrained("ssl_wav2vec2", tmp_path).eval()
    normal = pretrained("ssl_wav2vec2", tmp_path, normalize_input=True).eval()
    wave = 0.1 * waves()
    with torch.no_grad():
        torch.testing.assert_close(normal(wave), plain(normalise_waveform(wave)))
        torch.testing.assert_close(normal(wave), normal(2 * wave + 0.2), atol=1e-2, rtol=1e-2)
        assert (normal(wave) - plain(wave)).abs().max() > 0.1
        assert normal(torch.zeros(1, 8000)).isfinite().all()


def test_local_features_of_a_window_are_a_slice_of_the_clip(tmp_path):
    frontend = pretrained("ssl_wav2vec2", tmp_path).eval()
    wave = waves(20_000, batch=1)
    with torch.no_grad():
        whole = frontend.local_features(wave)
        window = frontend.local_features(wave[:, 16_000 - 9_600 : 16_000])
        part = whole[:, 20 : 20 + frontend.n_frames(9_600)]
        torch.testing.assert_close(window, part, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(frontend.context(whole), frontend(wave))


def test_a_front_end_without_pretrained_weights_refuses_to_run(tmp_path):
    published_file("ssl_wav2vec2", tmp_path / "tiny.pt")
    settings = {"normalize_input": False, "architecture": MODELS["ssl_wav2vec2"]}
    frontend = SSLFrontEnd(**settings, source=str(tmp_path / "tiny.pt"))
    with pytest.raises(KlassifyError, match="still has random weights"):
        frontend(waves())
    frontend.load_pretrained()
    trained = SSLFrontEnd(**settings, source="/gone/xlsr.pt")  # an evaluation never needs that file
    state = {f"0.{key}": value for key, value in frontend.state_dict().items()}
    torch.nn.Sequential(trained).load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(trained.eval()(waves()), frontend.eval()(waves()))
    assert SSLFrontEnd(**settings).load_pretrained() is None


@pytest.mark.parametrize(
    "layout", ["model.safetensors", "pytorch_model.bin", "old pytorch_model.bin"]
)
@pytest.mark.parametrize("golden", MODELS)
def test_files_of_transformers_load(golden, layout, tmp_path):
    original = pretrained(golden, tmp_path).eval()
    prefix = MODELS[golden]["family"]
    state = {f"{prefix}.{key}": value for key, value in original.model.state_dict().items()}
    unused = {f"{prefix}.masked_spec_embed": torch.ones(64), "quantizer.codevectors": torch.ones(1)}
    state |= unused
    folder = tmp_path / "folder"
    folder.mkdir()
    if layout.startswith("old"):  # before torch had parametrizations
        new = f"{prefix}.encoder.pos_conv_embed.conv.parametrizations.weight.original"
        old = f"{prefix}.encoder.pos_conv_embed.conv.weight_"
        for ours, theirs in (("0", "g"), ("1", "v")):
            state[f"{old}{theirs}"] = state.pop(f"{new}{ours}")
    if layout == "model.safetensors":
        save_file(state, folder / layout)
    else:
        torch.save(state, folder / "pytorch_model.bin")
    frontend = SSLFrontEnd(False, MODELS[golden], source=str(folder)).eval()
    report = frontend.load_pretrained()
    assert report.source == "transformers"
    assert sorted(report.left_out) == ["masked_spec_embed", "quantizer.codevectors"]
    with torch.no_grad():
        assert torch.equal(frontend(waves()), original(waves()))


def test_the_wrong_kind_of_weights_is_refused(tmp_path):
    published_file("ssl_wav2vec2", tmp_path / "tiny.pt")
    frontend = SSLFrontEnd(False, MODELS["ssl_wavlm"], source=str(tmp_path / "tiny.pt"))
    with pytest.raises(KlassifyError, match="missing .*gru_rel_pos") as caught:
        frontend.load_pretrained()
    assert "tiny.pt" in str(caught.value)


def test_freeze_stops_gradients(tmp_path):
    trained = gradients(pretrained("ssl_wav2vec2", tmp_path)).keys()
    still_trained = gradients(pretrained("ssl_wav2vec2", tmp_path, freeze="extractor")).keys()
    extractor = {name for name in trained if ".feature_extractor." in name}
    assert extractor and trained - still_trained == extractor
    frozen = pretrained("ssl_wav2vec2", tmp_path, freeze="all")
    assert not frozen(waves()).requires_grad
