"""LLaVA-1.5 and CLIP with their weights, whatever project's names the tensors have.

Two namings of LLaVA-1.5 exist: that of the LLaVA project (`model.mm_projector.0`, `model.layers.0`,
which the released fine-tuned LMM of MM-Det has) and that of the files converted for transformers,
which in turn names the parts of its classes differently from version to version. `plain_name` maps
all of them to one, so that a file fits a model if and only if their plain names and shapes are
equal.
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

# (start of a name in a file or in a version of transformers, start of the plain name); the first
# match counts
PLAIN_NAMES = (
    (r"(model\.)?vision_tower\.(vision_tower\.)?(vision_model\.)?", "vision."),
    (r"vision_model\.|(?=(embeddings|pre_layrnorm|encoder|post_layernorm)\.)", "vision."),
    (r"model\.mm_projector\.0\.", "projector.linear_1."),
    (r"model\.mm_projector\.2\.", "projector.linear_2."),
    (r"(model\.)?multi_modal_projector\.", "projector."),
    (r"(language_model\.)?lm_head\.", "lm_head."),
    (r"language_model\.model\.|model\.language_model\.|model\.", "language."),
)
# buffers that older versions saved, and what a whole CLIP has besides its vision part
UNUSED = re.compile(
    r".*rotary_emb\.inv_freq|.*embeddings\.position_ids|text_model\..*|(visual|text)_projection\..*|logit_scale"
)


@dataclasses.dataclass(frozen=True)
class LMMSource:
    """Which LMM is to be used and how, before it is loaded.

    llava: a folder, a hub id, or `tiny`. clip: the same for a CLIP of its own that gives the pooled
    vector; None takes the vision tower inside the LMM, as the published system does. bits: 32, 16,
    8 or 4 a weight. download: whether a hub id may be fetched from the network.
    """

    llava: str
    clip: str | None = None
    bits: int = 32
    download: bool = False

    @property
    def untrained(self) -> bool:
        """Whether random weights take part, so that the features mean nothing."""
        return TINY in (self.llava, self.clip)

    def settings(self) -> dict[str, Any]:
        """What features depend on, for their settings. Reads the configs, not the weights."""
        config = llava_config(self.llava, self.clip, self.download)
        visual = (
            config.vision_config if self.clip is None else clip_config(self.clip, self.download)
        )
        folders = {
            name: source for name, source in (("lmm", self.llava), ("clip", self.clip)) if source
        }
        return {
            **{
                name: Path(source).name if Path(source).is_dir() else source
                for name, source in folders.items()
            },
            **{
                f"{name}_files": fingerprint(source, self.download)
                for name, source in folders.items()
            },
            "untrained": self.untrained,
            "precision": PRECISIONS[self.bits],
            "visual_dim": visual.hidden_size,
            "textual_dim": config.text_config.hidden_size,
        }


def load(source: LMMSource, device: Any) -> tuple[nn.Module, Any, nn.Module | None]:
    """(LlavaForConditionalGeneration, its tokenizer, a CLIPVisionModel or None) on the device,
    in eval mode.
    """
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
        llava = _build(
            transformers.LlavaForConditionalGeneration, config, state, folder, source.bits, device
        )
        tokenizer = load_tokenizer(folder)
    return llava.eval(), tokenizer, None if source.clip is None else load_clip(source, device)


def load_clip(source: LMMSource, device: Any) -> nn.Module:
    """The CLIPVisionModel that `source.clip` names, in 16 bit where the LMM has fewer."""
    if source.clip == TINY:
        from klassify.features.lmm import tiny

        return tiny.clip().to(device).eval()
    model = import_transformers().CLIPVisionModel
    folder = find_folder(source.clip, source.download)
    config = clip_config(source.clip, source.download)
    return _build(model, config, read_folder(folder), folder, max(source.bits, 16), device).eval()


def _vision_tower(source: LMMSource, folder: Path) -> dict[str, Tensor]:
    """The vision tower's tensors of an LMM that was saved without it, from --clip."""
    if source.clip in (None, TINY):
        raise KlassifyError(
            "This LMM was saved without its vision tower.", where=folder, fix="name it with --clip"
        )
    state = read_folder(find_folder(source.clip, source.download))
    return {
        name: tensor for name, tensor in state.items() if plain_name(name).startswith("vision.")
    }


# ------------------------------------------------------------------------------------ names and
# loading


def plain_name(name: str) -> str:
    """The name of a tensor without the habits of a project or a version of transformers."""
    for pattern, plain in PLAIN_NAMES:
        if match := re.match(pattern, name):
            return plain + name[match.end() :]
    return name


def fit(state: Mapping[str, Tensor], model: nn.Module, where: object = None) -> dict[str, Tensor]:
    """The tensors of a file under the model's names; KlassifyError for any that is missing, unknown
    or misshapen.

    model: may lie on the meta device.
    """
    theirs = {
        plain_name(name): tensor for name, tensor in state.items() if not UNUSED.fullmatch(name)
    }
    ours = {plain_name(name): (name, tensor) for name, tensor in model.state_dict().items()}
    if told := misfits(theirs, {plain: tensor for plain, (_, tensor) in ours.items()}):
        raise KlassifyError(
            f"These weights do not fit the model: of {len(ours)} tensors, {told}.", where=where
        )
    return {name: theirs[plain] for plain, (name, _) in ours.items()}


def _build(
    model_class: type, config: Any, state: dict[str, Tensor], where: Path, bits: int, device: Any
) -> nn.Module:
    """The model with these weights on the device, in so many bits a weight."""
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
    """Refuse 8 or 4 bits a weight where they cannot work, before gigabytes are read."""
    import importlib.util

    if bits >= 16:
        return
    absent = [
        name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None
    ]
    if absent:
        raise KlassifyError(
            f"{bits}-bit loading needs {' and '.join(absent)}.",
            fix=f"pip install {' '.join(absent)}",
        )
    if device.type != "cuda":
        raise KlassifyError(
            f"{bits}-bit loading needs a GPU.", fix="leave --load-in away, or name a --device"
        )


def quantization(bits: int) -> Any:
    """The config for 8 or 4 bits a weight of the language model; the vision side stays as it is."""
    import torch

    return import_transformers().BitsAndBytesConfig(
        load_in_8bit=bits == 8,
        load_in_4bit=bits == 4,
        bnb_4bit_compute_dtype=torch.float16,
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=["vision_tower", "multi_modal_projector", "lm_head"],
    )
