"""LLaVA-1.5 and CLIP with their weights, for all known names of the tensors.

Tensors of LLaVA-1.5 have the names of the LLaVA project (`model.mm_projector.0`, `model.layers.0`;
also in the released fine-tuned LMM of MM-Det) or those of files converted for transformers, which
also change between versions of transformers. `plain_name` maps all of them to one: a file fits a
model if and only if their plain names and shapes are equal.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klassify.errors import KlassifyError
from klassify.features.lmm.folder import (
    TINY,
    built,
    clip_config,
    find_folder,
    fingerprint,
    llava_config,
    read_folder,
)
from klassify.features.lmm.tokenizer import load_tokenizer
from klassify.models.frontends.torchaudio_import import import_transformers
from klassify.models.weights.load import misfits

if TYPE_CHECKING:
    from torch import Tensor, nn

PRECISIONS = {32: "float32", 16: "float16", 8: "8 bit", 4: "4 bit"}

# (start of a name in a file or a version of transformers, start of the plain name); first match
PLAIN_NAMES = (
    (r"(model\.)?vision_tower\.(vision_tower\.)?(vision_model\.)?", "vision."),
    (r"vision_model\.|(?=(embeddings|pre_layrnorm|encoder|post_layernorm)\.)", "vision."),
    (r"model\.mm_projector\.0\.", "projector.linear_1."),
    (r"model\.mm_projector\.2\.", "projector.linear_2."),
    (r"(model\.)?multi_modal_projector\.", "projector."),
    (r"(language_model\.)?lm_head\.", "lm_head."),
    (r"language_model\.model\.|model\.language_model\.|model\.", "language."),
)
# buffers that older versions saved, and the parts of a whole CLIP besides its vision part
UNUSED = re.compile(
    r".*rotary_emb\.inv_freq|.*embeddings\.position_ids"
    r"|text_model\..*|(visual|text)_projection\..*|logit_scale"
)


@dataclasses.dataclass(frozen=True)
class LMMSource:
    """Which LMM to load, and how.

    llava: a folder, a hub id, or `tiny`. clip: the same for a separate CLIP that gives the pooled
    vector; None uses the vision tower of the LMM, as published. bits: 32, 16, 8 or 4 per weight.
    download: whether a hub id may be fetched from the network.
    """

    llava: str
    clip: str | None = None
    bits: int = 32
    download: bool = False

    @property
    def untrained(self) -> bool:
        """Whether any weights are random, so that the features mean nothing."""
        return TINY in (self.llava, self.clip)

    def settings(self) -> dict[str, Any]:
        """The settings that features depend on. Reads the configs, not the weights."""
        config = llava_config(self.llava, self.clip, self.download)
        visual = config.vision_config
        sources = {"lmm": self.llava}
        if self.clip is not None:
            visual = clip_config(self.clip, self.download)
            sources["clip"] = self.clip
        names = {
            name: Path(source).name if Path(source).is_dir() else source
            for name, source in sources.items()
        }
        files = {f"{name}_files": fingerprint(sources[name], self.download) for name in sources}
        return {
            **names,
            **files,
            "untrained": self.untrained,
            "precision": PRECISIONS[self.bits],
            "visual_dim": visual.hidden_size,
            "textual_dim": config.text_config.hidden_size,
        }


def load(source: LMMSource, device: Any) -> tuple[nn.Module, Any, nn.Module | None]:
    """(LlavaForConditionalGeneration, its tokenizer, a CLIPVisionModel or None), in eval mode."""
    transformers = import_transformers()
    if source.llava == TINY:
        from klassify.features.lmm import tiny

        llava, tokenizer = tiny.llava().to(device), tiny.tokenizer()
    else:
        config = llava_config(source.llava, source.clip, source.download)
        folder = find_folder(source.llava, source.download)
        state = read_folder(folder)
        if not any(plain_name(name).startswith("vision.") for name in state):
            state |= _vision_tower(source, folder)
        model = transformers.LlavaForConditionalGeneration
        llava = _build(model, config, state, folder, source.bits, device)
        tokenizer = load_tokenizer(folder)
    return llava.eval(), tokenizer, None if source.clip is None else load_clip(source, device)


def load_clip(source: LMMSource, device: Any) -> nn.Module:
    """The CLIPVisionModel that `source.clip` names, in at least 16 bits."""
    if source.clip == TINY:
        from klassify.features.lmm import tiny

        return tiny.clip().to(device).eval()
    model = import_transformers().CLIPVisionModel
    folder = find_folder(source.clip, source.download)
    config = clip_config(source.clip, source.download)
    return _build(model, config, read_folder(folder), folder, max(source.bits, 16), device).eval()


def _vision_tower(source: LMMSource, folder: Path) -> dict[str, Tensor]:
    """The vision tower's tensors, from --clip, of an LMM that was saved without them."""
    if source.clip in (None, TINY):
        raise KlassifyError(
            "This LMM was saved without its vision tower.", where=folder, fix="name it with --clip"
        )
    state = read_folder(find_folder(source.clip, source.download))
    return {name: state[name] for name in state if plain_name(name).startswith("vision.")}


def plain_name(name: str) -> str:
    """The common name of a tensor of any project or version of transformers."""
    for pattern, plain in PLAIN_NAMES:
        if match := re.match(pattern, name):
            return plain + name[match.end() :]
    return name


def fit(state: Mapping[str, Tensor], model: nn.Module, where: object = None) -> dict[str, Tensor]:
    """The tensors of a file by the model's names.

    model: may be on the meta device. KlassifyError for missing, unknown or misshapen tensors.
    """
    theirs = {plain_name(name): state[name] for name in state if not UNUSED.fullmatch(name)}
    names = {name: plain_name(name) for name in model.state_dict()}
    ours = {names[name]: tensor for name, tensor in model.state_dict().items()}
    problem = misfits(theirs, ours)
    if problem:
        raise KlassifyError(
            f"These weights do not fit the model: of {len(ours)} tensors, {problem}.", where=where
        )
    return {name: theirs[plain] for name, plain in names.items()}


def _build(
    model_class: type, config: Any, state: dict[str, Tensor], where: Path, bits: int, device: Any
) -> nn.Module:
    """The model with these weights on the device, in `bits` per weight."""
    import torch

    with torch.device("meta"):
        skeleton = built(model_class, where, config)
    weights = fit(state, skeleton, where)
    options: dict[str, Any] = {"dtype": torch.float32 if bits == 32 else torch.float16}
    if bits < 16:
        options |= {"quantization_config": quantization(bits), "device_map": {"": device}}
    model = model_class.from_pretrained(None, config=config, state_dict=weights, **options)
    return model if bits < 16 else model.to(device)


def check_bits(bits: int, device: Any) -> None:
    """Refuse 8 or 4 bits where they cannot work, before gigabytes are read."""
    import importlib.util

    if bits >= 16:
        return
    needed = ("bitsandbytes", "accelerate")
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    if absent:
        raise KlassifyError(
            f"{bits}-bit loading needs {' and '.join(absent)}.",
            fix="pip install 'klassify[few-bits]'",
        )
    if device.type != "cuda":
        raise KlassifyError(
            f"{bits}-bit loading needs a GPU.", fix="omit --load-in, or name a GPU with --device"
        )


def quantization(bits: int) -> Any:
    """The config for 8 or 4 bits per weight of the language model, not of the vision side."""
    import torch

    return import_transformers().BitsAndBytesConfig(
        load_in_8bit=bits == 8,
        load_in_4bit=bits == 4,
        bnb_4bit_compute_dtype=torch.float16,
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=["vision_tower", "multi_modal_projector", "lm_head"],
    )
