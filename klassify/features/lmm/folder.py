"""Folders of LLaVA-1.5 and CLIP, on disk or in the hub cache: their configs and weight files.

LLaVA-1.5 comes with the config of the LLaVA project or converted for transformers; both become the
same LlavaConfig. Weights are read from safetensors, or from .bin files through the restricted
unpickler; no file is trusted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klassify.errors import KlassifyError, first_few, first_line
from klassify.features.lmm import tiny
from klassify.files import read_json_mapping
from klassify.models.frontends.torchaudio_import import import_transformers
from klassify.models.weights.checkpoint import (
    FOLDER_FILES,
    INDEX,
    locate_weights,
    read_checkpoint,
    shards_of,
)
from klassify.settings import settings_hash

if TYPE_CHECKING:
    from torch import Tensor

TINY = "tiny"  # instead of a folder: the untrained model of tiny.py
HUB_FILES = ("*.json", "*.safetensors", "*.bin", "tokenizer.model")
LLAMA_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size", "max_position_embeddings", "rms_norm_eps"),
    *("rope_theta", "hidden_act", "bos_token_id", "eos_token_id", "pad_token_id"),
)
CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


def llava_config(source: str, clip: str | None = None, download: bool = False) -> Any:
    """The LlavaConfig of a folder of either project, of a hub id, or of `tiny`."""
    transformers = import_transformers()
    if source == TINY:
        return tiny.llava_config()
    path = find_folder(source, download) / "config.json"
    content = read_json_mapping(path)
    architectures = content.get("architectures") or []
    if "LlavaForConditionalGeneration" in architectures or "text_config" in content:
        return built(transformers.LlavaConfig.from_dict, path, content)
    if "mm_projector_type" not in content and "mm_vision_tower" not in content:
        named = architectures or content.get("model_type")
        raise KlassifyError(f"This is not a LLaVA model: its config names {named}.", where=path)
    return _config_of_original(content, clip, path, download)


def _config_of_original(
    content: Mapping[str, Any], clip: str | None, where: Path, download: bool
) -> Any:
    """LlavaConfig of a config.json of the LLaVA project; KlassifyError unless it is LLaVA-1.5."""
    transformers = import_transformers()
    wanted = {
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "rope_scaling": None,
    }
    other = [
        f"{key}: {content[key]!r}, not {value!r}"
        for key, value in wanted.items()
        if content.get(key, value) != value
    ]
    if other:
        raise KlassifyError(f"This is not a LLaVA-1.5 ({first_few(other)}).", where=where)
    tower = str(content.get("mm_vision_tower"))
    if tower.rstrip("/").endswith("clip-vit-large-patch14-336"):
        vision = transformers.CLIPVisionConfig(**CLIP_L_336)
    elif clip is not None:
        vision = clip_config(clip, download)
    else:
        raise KlassifyError(
            f"Unknown vision tower {tower!r}.", where=where, fix="name its folder with --clip"
        )
    text = {key: content[key] for key in LLAMA_FIELDS if content.get(key) is not None}
    if not isinstance(text.get("vocab_size"), int):
        raise KlassifyError("This config does not give the vocab_size.", where=where)
    return built(
        transformers.LlavaConfig,
        where,
        vision_config=vision,
        text_config=built(transformers.LlamaConfig, where, **text),
        # beyond the embedding, which images never pass through
        image_token_index=text["vocab_size"],
        image_seq_length=built(lambda: (vision.image_size // vision.patch_size) ** 2, where),
        vision_feature_layer=content.get("mm_vision_select_layer", -2),
    )


def clip_config(source: str, download: bool = False) -> Any:
    """The CLIPVisionConfig of a folder (whole CLIP or vision part), of a hub id, or of `tiny`."""
    transformers = import_transformers()
    if source == TINY:
        return tiny.llava_config().vision_config
    path = find_folder(source, download) / "config.json"
    content = read_json_mapping(path)
    if content.get("model_type") not in ("clip", "clip_vision_model"):
        what = f"This is not a CLIP model but {content.get('model_type')!r}."
        raise KlassifyError(what, where=path)
    vision = content.get("vision_config", content)
    return built(transformers.CLIPVisionConfig.from_dict, path, vision)


def built(make: Callable[..., Any], where: Path, *arguments: Any, **settings: Any) -> Any:
    """A config or model of transformers; KlassifyError for whatever invalid fields raise."""
    try:
        return make(*arguments, **settings)
    except Exception as error:
        reason = first_line(error)
        raise KlassifyError(f"This model config is not valid: {reason}.", where=where) from None


def find_folder(source: str, download: bool = False) -> Path:
    """The folder of `source`; a hub id is searched in the local hub cache unless `download`."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        raise KlassifyError("This folder of a model does not exist.", where=source)
    from huggingface_hub import snapshot_download

    try:
        files = {"local_files_only": not download, "allow_patterns": list(HUB_FILES)}
        return Path(snapshot_download(source, **files))
    except (OSError, ValueError) as error:  # the hub's errors derive from these
        raise KlassifyError(
            f"This model is not on this machine: {first_line(error)}",
            where=source,
            fix="name a folder, or fetch it with --download",
        ) from None


def weights_of(folder: Path) -> Path:
    """The file of weights, or the index that names several; safetensors are preferred."""
    if (folder / "adapter_config.json").is_file() and not any(
        (folder / name).is_file() for name in FOLDER_FILES
    ):
        what = "This folder has an adapter without its model."
        raise KlassifyError(what, where=folder, fix="merge the adapter into its base model first")
    return locate_weights(str(folder))


def fingerprint(source: str, download: bool = False) -> str:
    """A hash of the names and sizes of a model's weight files; hashing gigabytes takes minutes."""
    if source == TINY:
        return "random"
    weights = weights_of(find_folder(source, download))
    names = sorted(shards_of(weights)) if weights.name.endswith(INDEX) else [weights.name]
    paths = [weights.with_name(name) for name in names]
    sizes = {path.name: path.stat().st_size if path.is_file() else -1 for path in paths}
    return settings_hash(sizes)


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder by their names in its files."""
    return read_checkpoint(weights_of(folder))
