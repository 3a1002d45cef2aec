"""Weights in and out: every tensor of a published file is accounted for."""

import argparse
import json
import re
import sys
import types

import pytest
import torch
from published import assert_same_state, save
from torch import nn

from klassify.errors import KlassifyError
from klassify.models.weights import load
from klassify.models.weights.checkpoint import locate_weights, read_checkpoint, refuse_strange
from klassify.models.weights.load import import_state, import_weights, load_weights
from klassify.models.weights.published import (
    KEY_MAPS,
    KeyMap,
    Order,
    detect_source,
    settings_from_fairseq,
)
from klassify.models.weights.safetensors_file import save_weights, write_tensors

STATE = {"post_extract_proj.weight": torch.arange(6.0).view(2, 3), "layer_norm.bias": torch.ones(3)}


class Speech(nn.Module):
    """A speech model of three tensors with transformers' names and a config."""

    def __init__(self, **settings):
        super().__init__()
        self.config = types.SimpleNamespace(model_type="wav2vec2", num_attention_heads=16)
        vars(self.config).update(settings)
        self.feature_projection = nn.ModuleDict({"projection": nn.Linear(3, 2)})
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList([nn.LayerNorm(2, bias=False)])})


def speech_state(seed=1, prefix=""):
    generator = torch.Generator().manual_seed(seed)
    return {
        prefix + name: torch.randn(value.shape, generator=generator)
        for name, value in Speech().state_dict().items()
    }


def imported(content, tmp_path, model=None):
    """(report, model) of a file with such content."""
    model = model or Speech()
    return import_weights(model, save(content, tmp_path / "file.pt")), model


def below(prefix):
    return prefix, lambda state: {prefix + key: value for key, value in state.items()}


def within(name):
    """A name as compiled and sharded models have it."""
    return re.sub(r"^(encoder.layers.0.)", r"_orig_mod.\1_fsdp_wrapped_module.", name)


WRAPPERS = {
    "none": ("", lambda state: state),
    "net": ("net.", lambda state: {"net": state}),
    "deep": ("a.b.c.", lambda state: {"a": {"b": {"c": state}}, "epoch": 3}),
    "parameters": (
        "model.",
        lambda state: {"model": {key: nn.Parameter(value) for key, value in state.items()}},
    ),
    "numbers as names": ("", lambda state: {**state, 0: torch.ones(2)}),
    "optimizer": (
        "model_state_dict.",
        lambda state: {"model_state_dict": state, "optimizer": {"state": {0: torch.ones(2)}}},
    ),
    "module": below("module."),
    "several": below("_orig_mod.module.model."),
    "fairseq2": below("w2v_encoder.w2v_model."),
    "unknown": below("my_own.wrapper."),
    "within names": (
        "net., _orig_mod., _fsdp_wrapped_module.",
        lambda state: {f"net.{within(key)}": value for key, value in state.items()},
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_model_is_found_below_any_wrapper(tmp_path, name):
    stripped, wrap = WRAPPERS[name]
    report, model = imported(wrap(speech_state()), tmp_path)
    assert_same_state(model.state_dict(), speech_state())
    assert (report.source, report.loaded, report.stripped) == ("transformers", 3, stripped)
    assert stripped in str(report)


def test_a_model_that_was_saved_whole_is_read_without_its_class(tmp_path, monkeypatch):
    module = types.ModuleType("their_project")
    module.Whole = type("Whole", (Speech,), {"__module__": "their_project"})
    monkeypatch.setitem(sys.modules, "their_project", module)
    whole = module.Whole()
    whole.load_state_dict(speech_state())
    path = save({"model": whole, "epoch": 3}, tmp_path / "file.pt")
    monkeypatch.undo()
    model = Speech()
    report = import_weights(model, path)
    assert_same_state(model.state_dict(), speech_state())
    assert "_parameters." in report.stripped


def test_a_safetensors_file_is_known_by_its_content(tmp_path):
    save_weights(Speech(), tmp_path / "model.pth")
    assert set(read_checkpoint(tmp_path / "model.pth")) == set(speech_state())
    save(speech_state(), tmp_path / "torch.safetensors")
    with pytest.raises(KlassifyError, match="not a safetensors file") as error:
        read_checkpoint(tmp_path / "torch.safetensors")
    assert error.value.fix == "rename it to torch.pt"


def test_what_the_model_does_not_need_is_left_out_and_named(tmp_path):
    heads = {
        "net.layer_weights": torch.ones(13),
        "net.tdnn.0.kernel.weight": torch.ones(2, 2),
        "net.encoder.layers.0.adapter.down.weight": torch.ones(2, 2),
        "lm_head.weight": torch.ones(5, 2),
        "loss.weight": torch.ones(2),
        "n_averaged": torch.tensor(7),
    }
    training = {"callbacks": {"best": torch.tensor(0.9)}, "queue": {"negatives": torch.ones(4)}}
    content = {"state_dict": speech_state(prefix="net.") | heads, **training}
    report, model = imported(content, tmp_path)
    assert_same_state(model.state_dict(), speech_state())
    assert sorted(report.left_out) == [
        *("encoder.layers.0.adapter.down.weight", "layer_weights", "queue.negatives"),
        *("state_dict.lm_head.weight", "state_dict.loss.weight", "state_dict.n_averaged"),
        "tdnn.0.kernel.weight",
    ]
    assert all(name in str(report) for name in report.left_out)


@pytest.mark.parametrize(
    "name",
    ["encoder.layers.0.bias", "encoder.layers.1.weight", "feature_projection.projection.scale"],
)
def test_one_more_layer_or_bias_is_not_left_out(tmp_path, name):
    with pytest.raises(KlassifyError, match=rf"1 unexpected \({name}\)"):
        imported({"net": speech_state() | {name: torch.ones(2)}}, tmp_path)


def test_a_missing_tensor_is_an_error_below_a_wrapper_too(tmp_path):
    state = speech_state(prefix="net.")
    del state["net.encoder.layers.0.weight"]
    with pytest.raises(KlassifyError, match=r"1 missing \(encoder.layers.0.weight\)"):
        imported(state, tmp_path)


def test_of_several_models_the_complete_or_usual_one_is_taken(tmp_path):
    first, second = speech_state(1), speech_state(2)
    report, model = imported({"ema": second, "model": first}, tmp_path)
    assert_same_state(model.state_dict(), first)
    assert report.stripped == "model." and len(report.left_out) == 3
    part = dict(list(second.items())[:1])
    _, model = imported({"teacher": part, "student": first}, tmp_path)
    assert_same_state(model.state_dict(), first)
    with pytest.raises(KlassifyError, match="holds the model 2 times, below teacher., student."):
        imported({"teacher": second, "student": first}, tmp_path)


def test_a_mapping_that_contains_itself_or_is_very_deep_is_read(tmp_path):
    content = {"net": speech_state()}
    content["again"] = content
    deep = inner = {}
    for _ in range(200):
        inner["x"] = inner = {}
    _, model = imported({**content, "deep": deep}, tmp_path)
    assert_same_state(model.state_dict(), speech_state())


def sharded(folder, suffix="safetensors"):
    """A folder as transformers saves a model in two shards."""
    folder.mkdir()
    names = list(speech_state())
    places = {}
    for number, keys in enumerate((names[:1], names[1:]), start=1):
        file = f"model-0000{number}-of-00002.{suffix}"
        state = {f"wav2vec2.{key}": speech_state()[key] for key in keys}
        if suffix == "bin":
            torch.save(state, folder / file)
        else:
            write_tensors(state, folder / file)
        places |= dict.fromkeys(state, file)
    start = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    index = folder / f"{start}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_folder_of_shards_is_read(tmp_path, suffix):
    index = sharded(tmp_path / "hub", suffix)
    assert locate_weights(str(tmp_path / "hub")) == index
    model = Speech()
    assert import_weights(model, index).stripped == "wav2vec2."
    assert_same_state(model.state_dict(), speech_state())


@pytest.mark.parametrize("place", ["../other.safetensors", "/etc/passwd", "..", "", 3, "a/b.bin"])
def test_a_shard_outside_the_folder_is_refused(tmp_path, place):
    index = sharded(tmp_path / "hub")
    write_tensors(speech_state(), tmp_path / "other.safetensors")
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**places, list(places)[0]: place}}))
    with pytest.raises(KlassifyError, match="not a file of weights in its own folder") as caught:
        import_weights(Speech(), index)
    assert caught.value.where == index


def test_a_missing_shard_or_tensor_is_named(tmp_path):
    index = sharded(tmp_path / "hub")
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**places, "more": list(places.values())[0]}}))
    with pytest.raises(KlassifyError, match=r"lacks 1 tensors that its index names \(more\)"):
        import_weights(Speech(), index)
    (tmp_path / "hub" / "model-00002-of-00002.safetensors").unlink()
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(KlassifyError, match="does not exist"):
        import_weights(Speech(), index)


CFG = {"encoder_attention_heads": 12, "layer_norm_first": False, "extractor_mode": "default"}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda cfg: {"cfg": cfg},
        lambda cfg: {"cfg": {"model": {"_name": "w2v", "w2v_args": {"model": cfg}}}},
        lambda cfg: {"args": argparse.Namespace(arch="wav2vec2", **cfg)},
    ],
    ids=["flat", "nested", "namespace"],
)
def test_file_settings_that_contradict_the_model_are_refused(tmp_path, wrap):
    content = {"model": speech_state(), **wrap(CFG)}
    with pytest.raises(KlassifyError, match="num_attention_heads 12 there, 16 here") as caught:
        imported(content, tmp_path)
    assert '"num_attention_heads": 12' in caught.value.fix
    model = Speech(num_attention_heads=12, do_stable_layer_norm=True, feat_extract_norm="group")
    with pytest.raises(KlassifyError, match="settings: do_stable_layer_norm False there, True"):
        imported(content, tmp_path, model)
    model.config.do_stable_layer_norm = False
    imported(content, tmp_path, model)


@pytest.mark.parametrize(
    "setting, theirs, ours",
    [
        ("num_attention_heads", 12, 16),
        ("layer_norm_eps", 1e-6, 1e-5),
        ("conv_stride", [5, 2, 2], (5, 2, 4)),
        ("model_type", "wavlm", "wav2vec2"),
    ],
)
def test_a_config_beside_the_weights_is_compared(tmp_path, setting, theirs, ours):
    write_tensors(speech_state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({setting: theirs, "vocab_size": 32}))
    with pytest.raises(KlassifyError, match=rf"other settings: {setting} ") as caught:
        import_weights(Speech(**{setting: ours}), tmp_path / "model.safetensors")
    assert "architecture" in caught.value.fix
    import_weights(Speech(**{setting: theirs}), tmp_path / "model.safetensors")


def test_settings_missing_from_a_file_are_reported_as_unchecked(tmp_path):
    report, _ = imported(speech_state(), tmp_path)
    assert "its heads, norms and strides were not checked" in str(report)
    content = {"model": speech_state(), "cfg": CFG | {"encoder_attention_heads": 16}}
    model = Speech(do_stable_layer_norm=False)
    assert "not checked" not in str(imported(content, tmp_path, model)[0])


def test_extractor_layers_are_read_without_evaluation():
    text = "[(512, 10, 5)] + [(512, 3, 2)] * 2 + [(256,2,2), (128,2,1)]"
    settings = settings_from_fairseq({"conv_feature_layers": text})
    assert settings == {
        "conv_dim": [512, 512, 512, 256, 128],
        "conv_kernel": [10, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 1],
    }
    for other in ("[(1,2,3)] * 10**9", "__import__('os')", "[]", None):
        assert settings_from_fairseq({"conv_feature_layers": other}) == {}


def test_a_checkpoint_without_a_state_dict_is_refused(tmp_path):
    with pytest.raises(KlassifyError, match="has no state dict: it has epoch"):
        read_checkpoint(save({"epoch": 3}, tmp_path / "none.pt"))
    with pytest.raises(KlassifyError, match="it has Tensor"):
        read_checkpoint(save(torch.ones(1), tmp_path / "tensor.pt"))


def test_known_sources_are_detected_and_others_named():
    keys = {
        "ssl-anti-spoofing": ["ssl_model.model.layer_norm.weight", "GAT_layer_S.bn.weight"],
        "aasist": ["pos_S", "GAT_layer_S.bn.weight"],
        "bam": ["ssl_layer.model.layer_norm.weight", "out_layer.weight"],
        "partialspoof": ["weight_hidd", "extracter.model.mask_emb", "m_angle_scales.64.weight"],
        "wavlm": ["post_extract_proj.weight", "encoder.layers.11.self_attn.grep_a"],
        "fairseq": ["post_extract_proj.weight"],
        "transformers": ["wavlm.feature_projection.layer_norm.weight"],
        "visual": ["backbone.cls_token", "final_fusion.channel_attn.qkv.weight"],
        "vqvae": ["encoder.0.weight", "codebook.embedding.weight"],
        "cfprf": ["asr.model.layer_norm.weight", "b_amlp.norm.weight"],
        "av-hubert": ["feature_extractor_video.resnet.frontend3D.0.weight"],
        "raven": ["encoder.frontend.frontend3D.0.weight"],
        "auvire": ["reconstruction_model.model.encoder.0.weight"],
        "fusion": ["weight", "bias"],
    }
    assert set(keys) == set(KEY_MAPS)
    for source, state in keys.items():
        assert detect_source(dict.fromkeys(state, torch.empty(2, 8))) == source
    with pytest.raises(KlassifyError, match=r"such names: conv\.weight"):
        detect_source({"conv.weight": torch.empty(3)})


def test_a_file_of_another_kind_is_named():
    with pytest.raises(KlassifyError, match="By its names this is a fairseq file, not a bam"):
        import_state(nn.Linear(1, 1), STATE, "bam", where="xlsr.pt")
    wavlm = {"encoder.layers.0.self_attn.grep_a": 0, "post_extract_proj.bias": 0}
    assert KEY_MAPS["fairseq"].wrappers(wavlm) == [""]  # it shares the names


def test_rules_rename_every_kind_of_fairseq_key_once():
    extractor, layer = "feature_extractor.conv_layers.3", "encoder.layers.12"
    renamed = {
        f"{extractor}.0.weight": f"{extractor}.conv.weight",
        f"{extractor}.2.1.bias": f"{extractor}.layer_norm.bias",
        "layer_norm.weight": "feature_projection.layer_norm.weight",
        "encoder.pos_conv.0.weight_g": (
            "encoder.pos_conv_embed.conv.parametrizations.weight.original0"
        ),
        "encoder.pos_conv.0.bias": "encoder.pos_conv_embed.conv.bias",
        f"{layer}.self_attn.q_proj.bias": f"{layer}.attention.q_proj.bias",
        f"{layer}.self_attn_layer_norm.bias": f"{layer}.layer_norm.bias",
        f"{layer}.fc2.weight": f"{layer}.feed_forward.output_dense.weight",
        f"{layer}.final_layer_norm.bias": f"{layer}.final_layer_norm.bias",
        "encoder.layer_norm.bias": "encoder.layer_norm.bias",
        f"{layer}.self_attn.grep_a": f"{layer}.attention.gru_rel_pos_const",
    }
    speech, whole = KEY_MAPS["fairseq"], KEY_MAPS["ssl-anti-spoofing"]
    for theirs, ours in renamed.items():
        assert speech.rename(theirs) == ours
        assert whole.rename(f"ssl_model.model.{theirs}") == f"frontend.model.{ours}"
    assert whole.rename("encoder.0.0.conv1.weight") == "backend.encoder.0.0.conv1.weight"


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.bn = nn.Linear(3, 2), nn.Linear(3, 2), nn.BatchNorm1d(2)


class Tied(Small):
    def __init__(self):
        super().__init__()
        self.two.weight = self.one.weight


def test_safetensors_round_trip_with_tied_weights_and_metadata(tmp_path):
    model, other, path = Tied(), Tied(), tmp_path / "deep" / "model.safetensors"
    save_weights(model, path, {"made": "here"})
    assert load_weights(other, path) == {"made": "here"}
    assert_same_state(other.state_dict(), model.state_dict())
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_weights_that_do_not_fit_are_refused_with_both_sides(tmp_path):
    path = tmp_path / "model.safetensors"
    save_weights(nn.ModuleDict({"one": nn.Linear(4, 2), "three": nn.Linear(1, 1)}), path)
    with pytest.raises(KlassifyError) as caught:
        load_weights(Small(), path)
    text = str(caught.value)
    assert "of 9 tensors, 7 missing" in text and "two.weight" in text
    assert "2 unexpected" in text and "three.weight" in text
    assert "one.weight [2, 4] there, [2, 3] in the model" in text
    assert str(path) in text


def test_a_torn_weights_file_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_weights(Small(), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(KlassifyError, match="not a complete safetensors file"):
        load_weights(Small(), path)
    with pytest.raises(KlassifyError, match="does not exist"):
        load_weights(Small(), tmp_path / "absent.safetensors")
    with pytest.raises(KlassifyError) as caught:
        load_weights(Small(), save(STATE, tmp_path / "published.pth"))
    assert "klassify import-checkpoint" in caught.value.fix


def test_an_import_says_what_it_left_out_and_what_was_lacking(tmp_path, monkeypatch):
    key_map = KeyMap(
        signature="net",
        rules=((r"net\.", ""),),
        unused="junk",
        optional=r"bn\..*",
        reordered={r"one\.bias": Order(0, (1, 0)), r"two\.weight": Order(1, (0, 2, 1))},
    )
    monkeypatch.setitem(KEY_MAPS, "small", key_map)
    small = Small().state_dict()
    published = {f"net.{key}": value for key, value in small.items() if not key.startswith("bn.")}
    path = save(published | {"junk.weight": torch.ones(1)}, tmp_path / "small.pt")
    model = Small()
    report = import_weights(model, path)
    assert (report.source, report.loaded, report.left_out) == ("small", 4, ["junk.weight"])
    assert report.lacking == [key for key in model.state_dict() if key.startswith("bn.")]
    assert "junk.weight" in str(report) and "bn.weight" in str(report)
    assert list(report.reordered) == ["one.bias", "two.weight"] and "one.bias" in str(report)
    torch.testing.assert_close(model.one.bias, published["net.one.bias"].flip(0))
    torch.testing.assert_close(model.two.bias, published["net.two.bias"])
    torch.testing.assert_close(model.two.weight, published["net.two.weight"][:, [0, 2, 1]])


def test_a_tensor_that_cannot_be_reordered_is_refused(monkeypatch):
    key_map = KeyMap(signature="net", rules=((r"net\.", ""),), reordered={"bias": Order(1, (1, 0))})
    monkeypatch.setitem(KEY_MAPS, "small", key_map)
    with pytest.raises(KlassifyError, match=r"net.bias in the file is \[2\]") as caught:
        import_state(nn.Linear(1, 2), {"net.bias": torch.ones(2)}, "small", where="small.pt")
    assert caught.value.where == "small.pt"


def test_two_tensors_for_one_place_are_refused(monkeypatch):
    key_map = KeyMap(signature="net", rules=((r"net\.", ""),))
    monkeypatch.setitem(KEY_MAPS, "small", key_map)
    state = {"net.weight": torch.ones(2, 1), "weight": torch.ones(2, 1)}
    with pytest.raises(KlassifyError, match="net.weight and weight of this file are both weight"):
        import_state(nn.Linear(1, 2), state, "small")


def test_many_keys_are_told_by_their_first_names():
    few = [f"a.{i}" for i in range(20)]
    assert load.summary(few) == ", ".join(few)
    assert load.summary([*few, "mm_encoder.x"]) == "a.* (20), mm_encoder.* (1)"


def test_a_source_of_weights_is_a_file_a_folder_or_a_hub_id(tmp_path):
    file = tmp_path / "xlsr.pt"
    file.touch()
    assert locate_weights(str(file)) == file
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(KlassifyError, match="neither model.safetensors nor pytorch_model.bin"):
        locate_weights(str(folder))
    (folder / "pytorch_model.bin").touch()
    assert locate_weights(str(folder)) == folder / "pytorch_model.bin"
    for wrong in (tmp_path / "absent.pt", "models/absent.pt", "no-such-name"):
        with pytest.raises(KlassifyError, match="does not exist"):
            locate_weights(str(wrong))
    with pytest.raises(KlassifyError, match="download is off") as caught:
        locate_weights("nobody/no-such-speech-model")
    assert "download: true" in caught.value.fix


def fusion(**changed):
    return {"weight": torch.ones(2, 8), "bias": torch.zeros(2), **changed}


@pytest.mark.parametrize(
    "weight, told",
    [
        (torch.ones(2, 8, device="meta"), "not in the file"),
        (torch.ones(2, 8).to_sparse(), "sparse"),
        (torch.ones(2, 8, dtype=torch.complex64), "complex64"),
        (torch.ones(1, 8).expand(1 << 34, 8), "repeat 32 bytes"),
        (torch.full((2, 8), torch.nan), "NaN or infinite"),
        (torch.full((2, 8), torch.inf, dtype=torch.float16), "NaN or infinite"),
    ],
    ids=["meta", "sparse", "complex", "stride 0", "NaN", "infinite"],
)
def test_strange_tensors_are_refused_before_they_are_touched(tmp_path, weight, told):
    from klassify.models.linear_fusion import LinearFusion

    path = save(fusion(weight=weight), tmp_path / "fusion.pt")
    with pytest.raises(KlassifyError, match=told) as caught:
        import_weights(LinearFusion(), path, "fusion")
    assert caught.value.where == path and "weight" in caught.value.what


@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_a_quantised_tensor_is_refused(tmp_path):
    weight = torch.quantize_per_tensor(torch.ones(2, 8), 0.1, 0, torch.qint8)
    with pytest.raises(KlassifyError, match="qint8"):
        refuse_strange(fusion(weight=weight))


def test_views_of_larger_tensors_and_8_bits_are_plain():
    large, small = torch.ones(4, 16), torch.ones(2).to(torch.float8_e4m3fn)
    refuse_strange(
        {"view": large[:2, ::2], "turned": large.T, "one": torch.tensor(1), "none": large[:0]}
    )
    load._refuse_not_finite({"8 bits": small, "whole": torch.ones(2).long()}, "x")


def test_weights_that_are_a_folder_are_named(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(KlassifyError, match="not a regular file"):
        load_weights(nn.Linear(2, 2), tmp_path / "model.safetensors")


def test_the_hub_is_asked_for_one_file_after_the_other(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def download(hub_id, name, local_files_only):
        asked.append(name)
        assert local_files_only
        if name == "pytorch_model.bin":
            return str(tmp_path / name)
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert locate_weights("some/model") == tmp_path / "pytorch_model.bin"
    assert asked == [
        *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "config.json")
    ]


@pytest.mark.parametrize(
    "download, told", [(False, "download is off"), (True, "did not give .* no network")]
)
def test_a_hub_that_gives_nothing_is_told(monkeypatch, download, told):
    import huggingface_hub

    def fail(*_, **__):
        raise OSError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(KlassifyError, match=told) as caught:
        locate_weights("some/model", download=download)
    assert caught.value.where == "some/model"
