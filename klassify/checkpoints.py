"""Weights in and out: safetensors for everything of ours, key maps for published files.

A published file speaks its project's names. KEY_MAPS has one table for each kind of file; adding a source
is adding a table. Published audio models have output index 1 = bona fide; their tables name the tensors
whose rows are swapped on the way in, since index 1 is fake here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from klassify.errors import KlassifyError, some
from klassify.files import whole_file
from klassify.torchfile import read_torch_file

# ---------------------------------------------------------------------------------- our own files


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a model's state dict as safetensors, whole or not at all."""
    state, seen = {}, set()
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        # the format refuses tensors that share memory
        state[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    write_tensors(state, path, metadata)


def write_tensors(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors as safetensors, whole or not at all."""
    with whole_file(path) as partial:
        save_file(dict(state), partial, dict(metadata or {}))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Named tensors and metadata of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}, handle.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise KlassifyError("This weights file does not exist.", where=path) from None
    except SafetensorError as error:
        raise KlassifyError(f"This is not a whole safetensors file: {error}.", where=path) from None


def load_weights(model: nn.Module, path: str | Path) -> dict[str, str]:
    """Load a file written by save_weights into the same model, strictly; returns its metadata."""
    state, metadata = read_tensors(path)
    _load_strictly(model, state, where=path)
    return metadata


def _load_strictly(model: nn.Module, state: Mapping[str, Tensor], where: object, optional: str = r"(?!)") -> list[str]:
    """Load `state`; anything missing (but for `optional`), unexpected or misshapen is one KlassifyError.

    Returns the optional keys that were missing.
    """
    wanted = model.state_dict()
    absent = [key for key in wanted if key not in state]
    missing = [key for key in absent if not re.fullmatch(optional, key)]
    unexpected = [key for key in state if key not in wanted]
    misshapen = [
        f"{key} {list(state[key].shape)} there, {list(wanted[key].shape)} in the model"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    complaints = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(complaints.values()):
        told = "; ".join(f"{len(keys)} {kind} ({some(keys)})" for kind, keys in complaints.items() if keys)
        raise KlassifyError(
            f"These weights do not fit the model: of {len(wanted)} tensors, {told}.",
            where=where,
            mend="use the settings that the file was made with (config.yaml beside it, or its project's)",
        )
    model.load_state_dict(state, strict=not absent)
    return absent


# ------------------------------------------------------------------------ from their names to ours

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class KeyMap:
    """How one kind of published file names its tensors. All patterns are regular expressions.

    signature: matches at the start of a key that only this kind of file has.
    rules: (start of their key, start of ours); the first that matches is applied.
    unused: keys of theirs that are left out on purpose.
    optional: keys of ours that the file may lack.
    swapped: keys of ours whose two rows change places (class 1 is bona fide there, fake here).
    """

    signature: str
    rules: Rules
    unused: str = r"(?!)"
    optional: str = r"(?!)"
    swapped: tuple[str, ...] = ()

    def rename(self, key: str) -> str:
        """Our name for their key."""
        for pattern, ours in self.rules:
            if match := re.match(pattern, key):
                return match.expand(ours) + key[match.end() :]
        return key

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under our names, without the unused ones, class 1 = fake."""
        ours = {self.rename(key): value for key, value in state.items() if not re.match(self.unused, key)}
        return {key: value.flip(0) if key in self.swapped else value for key, value in ours.items()}


def _below(rules: Rules, theirs: str, ours: str) -> Rules:
    """The same rules for tensors that lie under a prefix."""
    return tuple((re.escape(theirs) + pattern, ours + replacement) for pattern, replacement in rules)


# towards transformers' names, as klassify.models.ssl.SSLFrontEnd.model has them
WEIGHT_NORM: Rules = (
    (r"(encoder\.pos_conv_embed\.conv)\.weight_g", r"\1.parametrizations.weight.original0"),
    (r"(encoder\.pos_conv_embed\.conv)\.weight_v", r"\1.parametrizations.weight.original1"),
)
FAIRSEQ: Rules = (
    (r"(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"(feature_extractor\.conv_layers\.\d+)\.2\.1\.", r"\1.layer_norm."),
    (r"layer_norm\.", "feature_projection.layer_norm."),
    (r"post_extract_proj\.", "feature_projection.projection."),
    (r"encoder\.pos_conv\.0\.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"encoder\.pos_conv\.0\.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm."),
    (r"(encoder\.layers\.\d+)\.self_attn\.relative_attention_bias\.", r"\1.attention.rel_attn_embed."),
    (r"(encoder\.layers\.\d+)\.self_attn\.grep_linear\.", r"\1.attention.gru_rel_pos_linear."),
    (r"(encoder\.layers\.\d+)\.self_attn\.grep_a", r"\1.attention.gru_rel_pos_const"),
    (r"(encoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
    (r"(encoder\.layers\.\d+)\.fc1\.", r"\1.feed_forward.intermediate_dense."),
    (r"(encoder\.layers\.\d+)\.fc2\.", r"\1.feed_forward.output_dense."),
    ("", ""),
)
FAIRSEQ_UNUSED = r"(quantizer|project_q|final_proj|mask_emb)\b"

KEY_MAPS = {
    # SSL_Anti-spoofing, LA_model.pth and Best_LA_model_for_DF.pth -> klassify.models.w2v_aasist.W2VAASIST
    "ssl-anti-spoofing": KeyMap(
        signature=r"ssl_model\.model\.",
        rules=(*_below(FAIRSEQ, "ssl_model.model.", "frontend.model."), ("", "backend.")),
        # older files have the first block's normalisation, which no version of the model uses
        unused=rf"ssl_model\.model\.{FAIRSEQ_UNUSED}|encoder\.0\.0\.bn1\.",
        optional=r".*\.num_batches_tracked|backend\.encoder\.[1-5]\.0\.bn1\..*",
        swapped=("backend.out_layer.weight", "backend.out_layer.bias"),
    ),
    # fairseq's xlsr_53_56k.pt, xlsr2_300m.pt, w2v_large_lv_fsh_swbd_cv.pt, and Microsoft's WavLM-Large.pt
    "fairseq": KeyMap(signature=r"post_extract_proj\.", rules=FAIRSEQ, unused=FAIRSEQ_UNUSED),
    # pytorch_model.bin or model.safetensors of the same models in transformers' own naming
    "transformers": KeyMap(
        signature=r"((wav2vec2|wavlm)\.)?feature_projection\.",
        rules=(*_below(WEIGHT_NORM, "wav2vec2.", ""), *_below(WEIGHT_NORM, "wavlm.", ""), *WEIGHT_NORM)
        + ((r"(wav2vec2|wavlm)\.", ""),),
        unused=r"((wav2vec2|wavlm)\.)?masked_spec_embed|(quantizer|project_hid|project_q|lm_head|projector|classifier)\.",
    ),
}


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a published safetensors or torch file; nothing in the file is run."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    return state_of(read_torch_file(path), where=path)


def state_of(content: Any, where: object = None) -> dict[str, Tensor]:
    """The state dict in a checkpoint's content: bare, or under 'model', 'state_dict' or 'model_weight'.

    The prefixes of nn.DataParallel ('module.') and Lightning ('model.') come off where all keys have them.
    """
    containers = [content]
    if isinstance(content, Mapping):
        containers = [content[key] for key in ("model_weight", "state_dict", "model") if key in content] + containers
    for container in containers:
        if isinstance(container, Mapping):
            state = {key: value for key, value in container.items() if isinstance(value, Tensor)}
            if state:
                return _without_wrappers(state)
    found = some(content) if isinstance(content, Mapping) else type(content).__name__
    raise KlassifyError(f"There is no state dict in this checkpoint: it has {found}.", where=where)


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in ("module.", "model.", "module."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


@dataclass(frozen=True)
class ImportReport:
    """What an import did: the kind of file, tensors loaded, keys left out, optional keys the file lacked."""

    source: str
    loaded: int
    left_out: list[str]
    lacking: list[str]

    def __str__(self) -> str:
        text = f"{self.loaded} tensors of a {self.source} file"
        if self.left_out:
            text += f"; left out, since the model has no use for them: {some(self.left_out)}"
        if self.lacking:
            text += f"; not in the file, so as initialised: {some(self.lacking)}"
        return text


def detect_source(state: Mapping[str, Tensor], where: object = None) -> str:
    """The name in KEY_MAPS of the kind of file that has these keys."""
    for source, key_map in KEY_MAPS.items():
        if any(re.match(key_map.signature, key) for key in state):
            return source
    raise KlassifyError(
        f"No known kind of checkpoint has such keys: {some(state)}.",
        where=where,
        mend=f"known kinds are {', '.join(KEY_MAPS)}",
    )


def import_weights(model: nn.Module, path: str | Path, source: str | None = None) -> ImportReport:
    """Load a published file into a model of ours, strictly, class 1 = fake.

    source: a name in KEY_MAPS; None looks at the keys.
    """
    theirs = read_checkpoint(path)
    source = source or detect_source(theirs, where=path)
    key_map = KEY_MAPS[source]
    ours = key_map.convert(theirs)
    lacking = _load_strictly(model, ours, where=path, optional=key_map.optional)
    left_out = [key for key in theirs if re.match(key_map.unused, key)]
    return ImportReport(source, len(ours), left_out, lacking)


def locate_weights(source: str, download: bool = False) -> Path:
    """The file that `source` means: a file, a folder with transformers' weights, or a Hugging Face hub id.

    A hub id is looked up in the local hub cache; only `download=True` goes to the network.
    """
    path = Path(source).expanduser()
    names = ("model.safetensors", "pytorch_model.bin")
    if path.is_file():
        return path
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise KlassifyError(f"This folder has neither {names[0]} nor {names[1]}.", where=path)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) or path.suffix in (
        ".pt",
        ".pth",
        ".bin",
        ".safetensors",
    ):
        raise KlassifyError("This file of pretrained weights does not exist.", where=source)
    return _from_hub(source, names, download)


def _from_hub(hub_id: str, names: tuple[str, ...], download: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    reason: Exception | str = ""
    for name in names:
        try:
            return Path(hf_hub_download(hub_id, name, local_files_only=not download))
        except EntryNotFoundError as error:  # also: not in the cache, or no network
            reason = error
        except (OSError, ValueError) as error:
            reason = error
            break
    if not download:
        raise KlassifyError(
            "These pretrained weights are not on this machine, and download is off.",
            where=hub_id,
            mend="set download: true beside source, or name a local file or folder",
        )
    raise KlassifyError(
        f"The hub did not give these weights: {str(reason).splitlines()[0]}",
        where=hub_id,
        mend="check the id and the network, or name a local file or folder",
    )
