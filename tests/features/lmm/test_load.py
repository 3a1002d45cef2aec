"""LLaVA's files: names of both projects at 7B, folders, tokenizers, and refusals."""

from __future__ import annotations

import json
import os
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from klassify.errors import KlassifyError
from klassify.features.lmm import load
from klassify.features.lmm import tiny as lmm_tiny
from klassify.features.lmm.folder import (
    CLIP_L_336,
    TINY,
    clip_config,
    find_folder,
    llava_config,
    read_folder,
)
from klassify.features.lmm.load import LMMSource
from klassify.features.lmm.model import LMM, PROMPT, prompt_tokens
from klassify.features.lmm.tokenizer import load_tokenizer
from klassify.models.frontends.torchaudio_import import import_transformers

LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
ORIGINAL_CONFIG = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    **LLAMA_7B,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "rope_scaling": None,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "image_aspect_ratio": "pad",
}


def original_names(text: dict, vision: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of LLaVA-1.5 as the LLaVA project saves them."""
    d, m, v = text["hidden_size"], text["intermediate_size"], text["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (v, d),
        "lm_head.weight": (v, d),
    }
    shapes["model.norm.weight"] = (d,)
    for i in range(text["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (d, d) for name in "qkvo"}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (m, d) for name in ("gate", "up")}
        shapes |= {
            f"{layer}.mlp.down_proj.weight": (d, m),
            f"{layer}.self_attn.rotary_emb.inv_freq": (64,),
        }
        shapes |= {f"{layer}.{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
    c, h, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    shapes |= {"model.mm_projector.0.weight": (d, c), "model.mm_projector.0.bias": (d,)}
    shapes |= {"model.mm_projector.2.weight": (d, d), "model.mm_projector.2.bias": (d,)}
    tower = "model.vision_tower.vision_tower.vision_model"
    n = (vision["image_size"] // patch) ** 2 + 1
    shapes[f"{tower}.embeddings.class_embedding"] = (c,)
    shapes[f"{tower}.embeddings.patch_embedding.weight"] = (c, 3, patch, patch)
    shapes[f"{tower}.embeddings.position_embedding.weight"] = (n, c)
    shapes[f"{tower}.embeddings.position_ids"] = (1, n)
    norms = [f"{tower}.pre_layrnorm", f"{tower}.post_layernorm"]
    for i in range(vision["num_hidden_layers"]):
        layer = f"{tower}.encoder.layers.{i}"
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {
                f"{layer}.self_attn.{name}.weight": (c, c),
                f"{layer}.self_attn.{name}.bias": (c,),
            }
        shapes |= {f"{layer}.mlp.fc1.weight": (h, c), f"{layer}.mlp.fc1.bias": (h,)}
        shapes |= {f"{layer}.mlp.fc2.weight": (c, h), f"{layer}.mlp.fc2.bias": (c,)}
    return shapes | {f"{norm}.{kind}": (c,) for norm in norms for kind in ("weight", "bias")}


def to_converted(name: str) -> str:
    """The name in files converted for transformers of a tensor of the LLaVA project."""
    name = name.replace("model.vision_tower.vision_tower.", "vision_tower.")
    name = name.replace("model.mm_projector.0", "multi_modal_projector.linear_1")
    name = name.replace("model.mm_projector.2", "multi_modal_projector.linear_2")
    return name if name.startswith(("vision_tower", "multi_modal")) else f"language_model.{name}"


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory):
    """(the 7B model on the meta device, the LLaVA project's tensors for it)."""
    folder = tmp_path_factory.mktemp("7b")
    (folder / "config.json").write_text(json.dumps(ORIGINAL_CONFIG))
    config = llava_config(str(folder))
    assert config.image_seq_length == 576 and config.vision_feature_layer == -2
    with torch.device("meta"):
        model = import_transformers().LlavaForConditionalGeneration(config)
        state = {
            name: torch.empty(shape)
            for name, shape in original_names(ORIGINAL_CONFIG, CLIP_L_336).items()
        }
    return model, state


def test_original_names_fit_the_7b_model(seven_billion):
    model, state = seven_billion
    fitted = load.fit(state, model)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in fitted.items()} == wanted
    llama, projector, clip_l_336 = 6_738_415_616, 20_979_712, 303_507_456
    n_parameters = sum(tensor.numel() for tensor in fitted.values())
    assert n_parameters == llama + projector + clip_l_336


def test_tensors_keep_their_places_by_name(seven_billion):
    model, state = seven_billion
    marked = {name: torch.empty(tensor.shape, device="meta") for name, tensor in state.items()}
    for name, tensor in marked.items():
        tensor.came_from = name
    for name, tensor in load.fit(marked, model).items():
        theirs = tensor.came_from
        assert name.split(".")[-1] == theirs.split(".")[-1]
        numbers = [part for part in name.split(".") if part.isdigit()]
        assert not numbers or numbers == [part for part in theirs.split(".") if part.isdigit()]
        assert ("vision_tower" in name) == ("vision_tower" in theirs)
    places = {tensor.came_from: name for name, tensor in load.fit(marked, model).items()}
    assert places["model.mm_projector.0.bias"].endswith("multi_modal_projector.linear_1.bias")
    assert places["model.mm_projector.2.weight"].endswith("multi_modal_projector.linear_2.weight")
    layer = "layers.31.mlp.gate_proj.weight"
    assert places[f"model.{layer}"].endswith(f"language_model.{layer}")
    assert places["lm_head.weight"] == "lm_head.weight"


def test_converted_names_fit_the_7b_model(seven_billion):
    model, state = seven_billion
    fitted = load.fit({to_converted(name): tensor for name, tensor in state.items()}, model)
    assert fitted.keys() == model.state_dict().keys()


def test_misfitting_tensors_are_named(seven_billion):
    model, state = seven_billion
    broken = dict(state)
    del broken["model.mm_projector.2.bias"]
    broken["model.image_newline"] = torch.empty(4096, device="meta")
    broken["lm_head.weight"] = torch.empty(32064, 4096, device="meta")
    with pytest.raises(KlassifyError) as caught:
        load.fit(broken, model, where="here")
    shapes = "[32064, 4096] there, [32000, 4096] in the model"
    for part in ("1 missing (projector.linear_2.bias)", "image_newline", shapes):
        assert part in str(caught.value)


def write_tokenizer(folder: Path) -> None:
    """A Llama tokenizer whose tokens are single bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    vocab = {token: i for i, token in enumerate(tokens)}
    bytes_only = {"merges": [], "unk_token": "<unk>", "byte_fallback": True}
    backend = Tokenizer(models.BPE(vocab=vocab, **bytes_only))
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(spaces)
    to_text = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(to_text)
    start = {"single": "<s> $A", "special_tokens": [("<s>", 1)]}
    backend.post_processor = processors.TemplateProcessing(**start)
    backend.save(str(folder / "tokenizer.json"))


def original_folder(folder: Path, *, tower: bool = True) -> tuple[Path, dict[str, torch.Tensor]]:
    """The tiny LLaVA as the LLaVA project would save it: two .bin files with an index."""
    tiny = lmm_tiny.llava_config()
    text, vision = tiny.text_config.to_dict(), tiny.vision_config.to_dict()
    generator = torch.Generator().manual_seed(1)
    shapes = original_names(text, vision)
    state = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    if not tower:
        state = {name: tensor for name, tensor in state.items() if "vision_tower" not in name}
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    config = {key: text[key] for key in sizes}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    config |= {"eos_token_id": 2, "bos_token_id": 1, "model_type": "llava_llama"}
    config |= {"mm_vision_tower": "clips/another", "mm_projector_type": "mlp2x_gelu"}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = list(state)
    files = {name: f"pytorch_model-0000{1 + (i > 20)}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({name: state[name] for name in names if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    write_tokenizer(folder)
    return folder, state


def clip_folder(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A whole CLIP, of which only the vision part matters."""
    vision = lmm_tiny.llava_config().vision_config.to_dict()
    shapes = original_names(lmm_tiny.llava_config().text_config.to_dict(), vision)
    prefix = "model.vision_tower.vision_tower."
    generator = torch.Generator().manual_seed(2)
    state = {
        name.removeprefix(prefix): torch.randn(shape, generator=generator) * 0.2
        for name, shape in shapes.items()
        if name.startswith(prefix)
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    rest = {
        "text_model.final_layer_norm.weight": torch.ones(4),
        "visual_projection.weight": torch.ones(4, 4),
    }
    save_file({**state, **rest, "logit_scale": torch.ones(1)}, folder / "model.safetensors")
    return folder, state


def test_folders_of_both_projects_give_the_same_model(tmp_path):
    original, state = original_folder(tmp_path / "original")
    clip, _ = clip_folder(tmp_path / "clip")
    source = LMMSource(str(original), str(clip))
    llava, tokenizer, own_clip = load.load(source, "cpu")
    for name, tensor in load.fit(state, llava).items():
        assert torch.equal(tensor, llava.state_dict()[name])
    assert llava.dtype == torch.float32 and not llava.training and own_clip is not None
    converted = tmp_path / "converted"
    converted.mkdir()
    (converted / "config.json").write_text(json.dumps(llava.config.to_dict(), default=str))
    save_file(
        {to_converted(name): tensor for name, tensor in state.items()},
        converted / "model.safetensors",
    )
    write_tokenizer(converted)
    other, tokenizer, none = load.load(LMMSource(str(converted), bits=16), "cpu")
    assert none is None and other.dtype == torch.float16
    for name, tensor in llava.state_dict().items():
        assert torch.equal(tensor.half(), other.state_dict()[name])
    frames = list(np.random.default_rng(0).integers(0, 256, (2, 60, 60, 3)).astype(np.uint8))
    visual, textual, texts = LMM(llava, tokenizer, own_clip)(frames)
    assert np.isfinite(textual).all() and visual.shape == (2, 32) and len(texts) == 2
    files = source.settings()["lmm_files"]
    assert files == source.settings()["lmm_files"]
    assert files != LMMSource(str(converted)).settings()["lmm_files"]


def write_sentencepiece(folder: Path, pieces: list[str]) -> None:
    """A Llama tokenizer.model of special tokens, bytes and these pieces, the best first."""
    import_transformers()
    from transformers.utils import sentencepiece_model_pb2_new as messages

    model = messages.ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = True
    for token in ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))):
        model.pieces.add(piece=token, score=0.0)
    for i, piece in enumerate(pieces):
        model.pieces.add(piece=piece, score=-float(i))
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())


def joined_by_score(text: str, pieces: list[str]) -> list[str]:
    """SentencePiece's byte pairs, slowly: join the first neighbours that make the best piece."""
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [
            (pieces.index(a + b), i)
            for i, (a, b) in enumerate(zip(parts, parts[1:]))
            if a + b in pieces
        ]
        if not pairs:
            break
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [
        token
        for part in parts
        for token in ([part] if part in pieces else map("<0x{:02X}>".format, part.encode()))
    ]


JOINED = "▁t he in an ▁a re ▁the er on is ▁image im age ▁im ### ## # ti tion ▁Hum Hum um"
PIECES = [*JOINED.split(), *"abcdefghiklmnoprstuvxyzAHG▁,.:H"]


@pytest.mark.parametrize(
    "text", [*PROMPT.split("<image>"), "the theatre  image###", "#####", "é\n▁ and 3", ""]
)
def test_a_sentencepiece_model_is_read_as_sentencepiece_does(tmp_path, text):
    write_sentencepiece(tmp_path, PIECES)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == (joined_by_score(text, PIECES) if text else [])
    assert tokenizer.decode([1, *ids, 2], skip_special_tokens=True) == text.replace("▁", " ")


def test_a_piece_after_the_image_has_no_start_token_of_its_own(tmp_path):
    write_tokenizer(tmp_path)
    before, after = prompt_tokens(load_tokenizer(tmp_path))
    byte = {chr(value): 3 + value for value in range(128)}
    assert before[0] == 1 and 1 not in before[1:] and 1 not in after
    assert before[1:4] == [259, byte["A"], byte["s"]] and before[-2:] == [byte[":"], 259]
    # a piece by itself starts with a space, as published
    assert after[:3] == [259, byte["\n"], byte["A"]]


def test_folders_without_a_llama_tokenizer_are_refused(tmp_path):
    with pytest.raises(KlassifyError, match="neither"):
        load_tokenizer(tmp_path)
    write_sentencepiece(tmp_path, PIECES)
    whole = (tmp_path / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(whole[: len(whole) // 2 - 1])
    with pytest.raises(KlassifyError, match="cannot be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(KlassifyError, match="cannot be read"):
        load_tokenizer(tmp_path)
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(KlassifyError, match="lacks <unk>"):
        load_tokenizer(tmp_path)


def test_an_lmm_saved_without_tower_takes_that_of_clip(tmp_path):
    folder, _ = original_folder(tmp_path / "lmm", tower=False)
    clip, clip_state = clip_folder(tmp_path / "clip")
    with pytest.raises(KlassifyError, match="--clip"):
        load.load(LMMSource(str(folder)), "cpu")
    llava, _, own_clip = load.load(LMMSource(str(folder), str(clip)), "cpu")
    wanted = clip_state["vision_model.embeddings.class_embedding"]
    for tower in (llava.model.vision_tower, own_clip):
        assert torch.equal(getattr(tower, "vision_model", tower).embeddings.class_embedding, wanted)


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_hostile_and_broken_folders_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _ = original_folder(tmp_path / "lmm")
    hostile = {"lm_head.weight": torch.ones(2), "extra": Harmful()}
    torch.save(hostile, folder / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(KlassifyError, match="hostile"):
        read_folder(folder)
    assert not (tmp_path / "harmed").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(KlassifyError, match="neither model.safetensors nor pytorch_model.bin"):
        read_folder(empty)
    (empty / "adapter_config.json").write_text("{}")
    with pytest.raises(KlassifyError, match="adapter"):
        read_folder(empty)
    with pytest.raises(KlassifyError, match="config.json"):
        llava_config(str(empty))


def test_an_index_cannot_name_files_outside_the_folder(tmp_path):
    index = {"weight_map": {"a": "../../secret.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(KlassifyError, match="not a file of weights in its own folder"):
        read_folder(tmp_path)


def test_missing_models_are_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for source in ("no/such-model-here", "no/such/folder", "none"):
        with pytest.raises(KlassifyError, match="not on this machine|does not exist"):
            find_folder(source)


def test_low_precision_needs_packages_and_a_gpu(monkeypatch):
    import importlib.util

    cpu = torch.device("cpu")
    load.check_bits(16, cpu)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(KlassifyError, match="bitsandbytes and accelerate") as caught:
        load.check_bits(8, cpu)
    assert "pip install 'klassify[few-bits]'" in str(caught.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(KlassifyError, match="needs a GPU"):
        load.check_bits(4, cpu)
    stand_in = types.SimpleNamespace(BitsAndBytesConfig=dict)
    monkeypatch.setattr(load, "import_transformers", lambda: stand_in)
    four, eight = load.quantization(4), load.quantization(8)
    assert four["load_in_4bit"] and not four["load_in_8bit"] and eight["load_in_8bit"]


@pytest.mark.parametrize(
    "content, told",
    [
        ([], "not a mapping"),
        (ORIGINAL_CONFIG | {"vocab_size": None}, "vocab_size"),
        (ORIGINAL_CONFIG | {"vocab_size": "many"}, "vocab_size"),
        ({"text_config": 3}, "model config is not valid"),
        ({"architectures": ["BertModel"]}, "BertModel"),
        (ORIGINAL_CONFIG | {"mm_projector_type": "linear"}, "mlp2x_gelu"),
        (ORIGINAL_CONFIG | {"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        (ORIGINAL_CONFIG | {"mm_vision_tower": "siglip"}, "siglip"),
    ],
    ids=["list", "no size", "words", "text", "BERT", "projector", "start", "tower"],
)
def test_invalid_llava_configs_are_refused(tmp_path, content, told):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(KlassifyError, match=told) as caught:
        llava_config(str(tmp_path))
    assert caught.value.where == tmp_path / "config.json"


def test_invalid_clip_configs_and_indexes_are_refused(tmp_path):
    for content, told in (
        ([], "not a mapping"),
        ({"model_type": "clip", "vision_config": 3}, "model config is not valid"),
        (ORIGINAL_CONFIG, "not a CLIP"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(KlassifyError, match=told):
            clip_config(str(tmp_path))
    for index in ("[]", "{}", '{"weight_map": {"a": 3}}'):
        (tmp_path / "model.safetensors.index.json").write_text(index)
        with pytest.raises(KlassifyError, match="not a mapping|not say which files|names 3"):
            read_folder(tmp_path)


def test_the_tiny_clip_is_reproducible():
    source = LMMSource(TINY, clip=TINY)
    one, other = (load.load_clip(source, torch.device("cpu")) for _ in range(2))
    image = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    vector = one(pixel_values=image).pooler_output
    assert vector.shape == (1, source.settings()["visual_dim"])
    assert torch.equal(vector, other(pixel_values=image).pooler_output) and not one.training
