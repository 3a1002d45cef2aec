"""Weights in and out: every tensor of a published file is accounted for."""

import pytest
import torch
from torch import nn

from klassify.errors import KlassifyError
from klassify.models.weights import load
from klassify.models.weights.load import (
    import_state,
    import_weights,
    load_weights,
    read_checkpoint,
    save_weights,
)
from klassify.models.weights.published import KEY_MAPS, KeyMap, Order, detect_source

STATE = {"post_extract_proj.weight": torch.arange(6.0).view(2, 3), "layer_norm.bias": torch.ones(3)}


def save(content, path):
    torch.save(content, path)
    return path


def assert_same_state(actual, wanted):
    assert actual.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "args": None},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {
            "model_state_dict": state,
            "optimizer": {"state": {0: torch.ones(2)}},
            "step": 1,
        },
        lambda state: {**state, 0: torch.ones(2)},
        lambda state: {"task_cfg": {}, "model_cfg": {}, "model_weight": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}},
        lambda state: {
            "state_dict": {f"model.module.{key}": value for key, value in state.items()}
        },
        lambda state: {"model": {key: nn.Parameter(value) for key, value in state.items()}},
    ],
)
def test_every_container_is_unwrapped(tmp_path, wrap):
    assert_same_state(read_checkpoint(save(wrap(STATE), tmp_path / "wrapped.pt")), STATE)


def test_a_prefix_that_only_some_keys_have_stays(tmp_path):
    state = {"model.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert_same_state(read_checkpoint(save(state, tmp_path / "some.pt")), state)


def test_a_checkpoint_without_a_state_dict_is_refused_with_what_it_has(tmp_path):
    with pytest.raises(KlassifyError, match="no state dict in this checkpoint: it has epoch"):
        read_checkpoint(save({"epoch": 3}, tmp_path / "none.pt"))
    with pytest.raises(KlassifyError, match="it has Tensor"):
        read_checkpoint(save(torch.ones(1), tmp_path / "tensor.pt"))


def test_known_sources_are_detected_and_others_named():
    keys = {
        "ssl-anti-spoofing": [
            "ssl_model.model.layer_norm.weight",
            "LL.weight",
            "GAT_layer_S.bn.weight",
        ],
        "aasist": ["pos_S", "GAT_layer_S.bn.weight"],
        "bam": ["ssl_layer.model.layer_norm.weight", "out_layer.weight"],
        "partialspoof": ["weight_hidd", "extracter.model.mask_emb", "m_angle_scales.64.weight"],
        "wavlm": ["post_extract_proj.weight", "encoder.layers.11.self_attn.grep_a"],
        "fairseq": ["post_extract_proj.weight"],
        "transformers": ["wavlm.feature_projection.layer_norm.weight"],
        "visual": ["backbone.cls_token", "final_fusion.channel_attn.qkv.weight"],
        "vqvae": ["encoder.0.weight", "codebook.embedding.weight"],
        "fusion": ["weight", "bias"],
    }
    detected = {source: detect_source(dict.fromkeys(state)) for source, state in keys.items()}
    assert detected == {source: source for source in KEY_MAPS}
    with pytest.raises(KlassifyError, match=r"such keys: conv\.weight"):
        detect_source({"conv.weight": 0})


def test_a_file_of_another_kind_is_named():
    with pytest.raises(KlassifyError, match="a fairseq file by its keys, not a bam file"):
        import_state(nn.Linear(1, 1), STATE, "bam", where="xlsr.pt")
    wavlm = {"encoder.layers.0.self_attn.grep_a": 0, "post_extract_proj.bias": 0}
    assert KEY_MAPS["fairseq"].fits(wavlm)  # it shares the names


def test_rules_rename_every_kind_of_fairseq_key_once():
    renamed = {
        "feature_extractor.conv_layers.3.0.weight": "feature_extractor.conv_layers.3.conv.weight",
        "feature_extractor.conv_layers.3.2.1.bias": (
            "feature_extractor.conv_layers.3.layer_norm.bias"
        ),
        "layer_norm.weight": "feature_projection.layer_norm.weight",
        "encoder.pos_conv.0.weight_g": (
            "encoder.pos_conv_embed.conv.parametrizations.weight.original0"
        ),
        "encoder.pos_conv.0.bias": "encoder.pos_conv_embed.conv.bias",
        "encoder.layers.12.self_attn.q_proj.bias": "encoder.layers.12.attention.q_proj.bias",
        "encoder.layers.12.self_attn_layer_norm.bias": "encoder.layers.12.layer_norm.bias",
        "encoder.layers.12.fc2.weight": "encoder.layers.12.feed_forward.output_dense.weight",
        "encoder.layers.12.final_layer_norm.bias": "encoder.layers.12.final_layer_norm.bias",
        "encoder.layer_norm.bias": "encoder.layer_norm.bias",
        "encoder.layers.0.self_attn.grep_a": "encoder.layers.0.attention.gru_rel_pos_const",
    }
    assert {key: KEY_MAPS["fairseq"].rename(key) for key in renamed} == renamed
    below = KEY_MAPS["ssl-anti-spoofing"]
    assert all(
        below.rename(f"ssl_model.model.{key}") == f"frontend.model.{ours}"
        for key, ours in renamed.items()
    )
    assert below.rename("encoder.0.0.conv1.weight") == "backend.encoder.0.0.conv1.weight"


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
    with pytest.raises(KlassifyError, match="not a whole safetensors file"):
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
    published = {
        f"net.{key}": value
        for key, value in Small().state_dict().items()
        if not key.startswith("bn.")
    }
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


def test_a_tensor_that_cannot_be_put_in_order_and_a_name_given_twice_are_refused(monkeypatch):
    key_map = KeyMap(signature="net", rules=((r"net\.", ""),), reordered={"bias": Order(1, (1, 0))})
    monkeypatch.setitem(KEY_MAPS, "small", key_map)
    with pytest.raises(KlassifyError, match=r"net.bias is \[2\] there") as caught:
        import_state(nn.Linear(1, 2), {"net.bias": torch.ones(2)}, "small", where="small.pt")
    assert caught.value.where == "small.pt"
    with pytest.raises(
        KlassifyError, match="Two tensors of this file are weight here, one of them weight"
    ):
        import_state(
            nn.Linear(1, 2), {"net.weight": torch.ones(2, 1), "weight": torch.ones(2, 1)}, "small"
        )


def test_many_keys_are_told_by_their_first_names():
    few = [f"a.{i}" for i in range(20)]
    assert load.summary(few) == ", ".join(few)
    assert load.summary([*few, "mm_encoder.x"]) == "a.* (20), mm_encoder.* (1)"


def test_a_source_of_weights_is_a_file_a_folder_or_a_hub_id(tmp_path):
    file = tmp_path / "xlsr.pt"
    file.touch()
    assert load.locate_weights(str(file)) == file
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(KlassifyError, match="neither model.safetensors nor pytorch_model.bin"):
        load.locate_weights(str(folder))
    (folder / "pytorch_model.bin").touch()
    assert load.locate_weights(str(folder)) == folder / "pytorch_model.bin"
    for wrong in (tmp_path / "absent.pt", "models/absent.pt", "no-such-name"):
        with pytest.raises(KlassifyError, match="does not exist"):
            load.locate_weights(str(wrong))
    with pytest.raises(KlassifyError, match="download is off") as caught:
        load.locate_weights("nobody/no-such-speech-model")
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
def test_a_tensor_that_is_none_is_refused_before_it_is_touched(tmp_path, weight, told):
    from klassify.models.linear_fusion import LinearFusion

    path = save(fusion(weight=weight), tmp_path / "fusion.pt")
    with pytest.raises(KlassifyError, match=told) as caught:
        import_weights(LinearFusion(), path, "fusion")
    assert caught.value.where == path and "weight" in caught.value.what


@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_a_quantised_tensor_is_refused(tmp_path):
    weight = torch.quantize_per_tensor(torch.ones(2, 8), 0.1, 0, torch.qint8)
    with pytest.raises(KlassifyError, match="qint8"):
        load.refuse_strange(fusion(weight=weight))


def test_views_of_larger_tensors_and_8_bits_are_plain():
    large, small = torch.ones(4, 16), torch.ones(2).to(torch.float8_e4m3fn)
    load.refuse_strange(
        {"view": large[:2, ::2], "turned": large.T, "one": torch.tensor(1), "none": large[:0]}
    )
    load._refuse_not_finite({"8 bits": small, "whole": torch.ones(2).long()}, "x")


def test_weights_that_are_a_folder_are_named(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(KlassifyError, match="no regular file"):
        load_weights(nn.Linear(2, 2), tmp_path / "model.safetensors")


def test_the_hub_is_asked_for_one_file_after_the_other(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def download(hub_id, name, local_files_only):
        asked.append((hub_id, name, local_files_only))
        if name == "pytorch_model.bin":
            return str(tmp_path / name)
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load.locate_weights("some/model") == tmp_path / "pytorch_model.bin"
    assert asked == [
        ("some/model", "model.safetensors", True),
        ("some/model", "pytorch_model.bin", True),
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
        load.locate_weights("some/model", download=download)
    assert caught.value.where == "some/model"
