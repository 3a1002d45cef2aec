"""Published files of weights: where they are, and the tensors and settings in them.

Nothing in a file is run. Its tensors are found below any wrapper, by dotted names.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from klassify.errors import KlassifyError, first_few, first_line
from klassify.files import read_json_mapping
from klassify.models.weights import WEIGHTS
from klassify.models.weights.published import SETTINGS, settings_from_fairseq
from klassify.models.weights.safetensors_file import read_tensors
from klassify.models.weights.torch_file import Record, read_torch_file

MAX_DEPTH = 16  # of mappings in a published file
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX = ".index.json"


def locate_weights(source: str, download: bool = False) -> Path:
    """The file that `source` means: a file, a folder with transformers' weights, or a Hugging Face
    hub id.

    A hub id is looked up in the local hub cache; only `download=True` goes to the network.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for name in FOLDER_FILES:
            if (path / name).is_file():
                return path / name
        raise KlassifyError(
            f"This folder has neither {FOLDER_FILES[0]} nor {FOLDER_FILES[2]}.", where=path
        )
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) or path.suffix in (
        *(".pt", ".pth", ".bin", ".safetensors"),
    ):
        raise KlassifyError("This file of pretrained weights does not exist.", where=source)
    return _from_hub(source, download)


def _from_hub(hub_id: str, download: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def fetch(name: str) -> Path:
        return Path(hf_hub_download(hub_id, name, local_files_only=not download))

    reason: Exception | None = None
    for name in FOLDER_FILES:
        try:
            weights = fetch(name)
            if name.endswith(INDEX):
                for shard in shards_of(weights):
                    fetch(shard)
        except EntryNotFoundError as error:  # also: not in the cache, or no network
            reason = error
        except (OSError, ValueError) as error:
            reason = error
            break
        else:
            with contextlib.suppress(EntryNotFoundError, OSError, ValueError):
                fetch("config.json")  # read_published compares its settings
            return weights
    if not download:
        raise KlassifyError(
            "These pretrained weights are not on this machine, and download is off.",
            where=hub_id,
            fix="set download: true beside source, or name a local file or folder",
        )
    raise KlassifyError(
        f"The hub did not give these weights: {first_line(reason)}",
        where=hub_id,
        fix="check the id and the network, or name a local file or folder",
    )


def weights_path(source: Path) -> Path:
    """The weights that a config names by a file or by a trained system's folder."""
    return source / WEIGHTS if source.is_dir() else source


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a published safetensors or torch file, or of the shards of an index, by dotted
    names ('state_dict.net.weight'); nothing in them is run.
    """
    return read_published(path)[0]


def read_published(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors as read_checkpoint gives them, and SETTINGS in the file or in config.json beside."""
    path = Path(path)
    if path.name.endswith(INDEX):
        tensors, settings = _read_shards(path), {}
    elif _is_safetensors(path):
        tensors, metadata = read_tensors(path)
        settings = _settings_in_metadata(metadata, path)
    elif path.suffix == ".safetensors":
        what = "This is not a safetensors file, but one of torch."
        raise KlassifyError(what, where=path, fix=f"rename it to {path.stem}.pt")
    else:
        content = read_torch_file(path)
        tensors, settings = tensors_in(content, where=path), _settings_in(content)
    config = path.with_name("config.json")
    if config.is_file():
        settings = {**read_json_mapping(config), **settings}
    return tensors, known_settings(settings)


def _is_safetensors(path: Path) -> bool:
    """By its first bytes, whatever it is called: the length of a JSON object, and its bracket."""
    if not path.is_file():
        return path.suffix == ".safetensors"
    with open(path, "rb") as handle:
        head = handle.read(9)
    torch_file = head.startswith(b"PK")
    return head[8:] == b"{" or (path.suffix == ".safetensors" and not torch_file)


def shards_of(index: Path) -> dict[str, list[str]]:
    """{file in the folder of an index: names of the tensors that it should have}."""
    places = read_json_mapping(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise KlassifyError("This index does not say which files the weights are in.", where=index)
    shards: dict[str, list[str]] = {}
    for key, file in places.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)", file):
            raise KlassifyError(
                f"This index names {file!r}, which is not a file of weights in its own folder.",
                where=index,
                fix="delete it, and get the checkpoint from its authors",
            )
        shards.setdefault(file, []).append(key)
    return shards


def _read_shards(index: Path) -> dict[str, Tensor]:
    tensors = {}
    for file, keys in shards_of(index).items():
        path = index.with_name(file)
        shard = read_checkpoint(path)
        if absent := [key for key in keys if key not in shard]:
            raise KlassifyError(
                f"This shard lacks {len(absent)} tensors that its index names"
                f" ({first_few(absent)}).",
                where=path,
                fix="download the shards and their index again",
            )
        tensors |= {key: shard[key] for key in keys}
    return tensors


def tensors_in(content: Any, where: object = None) -> dict[str, Tensor]:
    """The tensors in a checkpoint's nested mappings, by dotted names.

    A mapping of single numbers, such as the best score of a training, holds no weights.
    """
    state: dict[str, Tensor] = {}
    for prefix, mapping in _mappings(content):
        tensors = {
            f"{prefix}{key}": value
            for key, value in mapping.items()
            if isinstance(value, Tensor) and isinstance(key, str)
        }
        if any(value.dim() for value in tensors.values()):
            state |= tensors
    if state:
        refuse_strange(state, where)
        return state
    found = type(content).__name__
    if isinstance(content, Mapping):
        found = first_few(str(key)[:80] for key in content)
    raise KlassifyError(
        f"This checkpoint has no state dict: it has {found or 'no entries'}.",
        where=where,
        fix="save the model's state dict alone, with its own project",
    )


def _mappings(content: Any) -> Iterator[tuple[str, Mapping]]:
    """(dotted prefix, mapping) of all mappings within mappings, each once, outer ones first."""
    seen, found = set(), collections.deque([("", content, 0)])
    while found:
        prefix, value, depth = found.popleft()
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        if isinstance(value, Record):
            value = value.state
        if not isinstance(value, Mapping) or id(value) in seen or depth > MAX_DEPTH:
            continue
        seen.add(id(value))
        yield prefix, value
        found.extend(
            (f"{prefix}{key}.", inner, depth + 1)
            for key, inner in value.items()
            if isinstance(key, str) and isinstance(inner, (Mapping, argparse.Namespace, Record))
        )


def _settings_in(content: Any) -> dict[str, Any]:
    """What the `cfg` or `args` of fairseq or WavLM, anywhere in a file, says of SETTINGS."""
    for _, mapping in _mappings(content):
        if "encoder_attention_heads" in mapping:
            return settings_from_fairseq(mapping)
    return {}


def _settings_in_metadata(metadata: Mapping[str, str], where: Path) -> dict[str, Any]:
    """SETTINGS that `klassify import-checkpoint` wrote into a safetensors file."""
    try:
        return dict(json.loads(metadata.get("settings", "{}")))
    except (ValueError, TypeError, RecursionError):
        raise KlassifyError("The settings in this file are not readable.", where=where) from None


def known_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of SETTINGS that are a number, a text or a list of numbers."""
    known = {}
    for name in SETTINGS:
        value = settings.get(name)
        value = list(value) if isinstance(value, (list, tuple)) else value
        items = value if isinstance(value, list) else [value]
        kinds = (int, float) if isinstance(value, list) else (int, float, str)
        if all(isinstance(item, kinds) for item in items):
            known[name] = value
    return known


def refuse_strange(state: Mapping[str, Tensor], where: object = None) -> None:
    """KlassifyError for tensors whose numbers are not in the file one by one."""
    for name, tensor in state.items():
        if reason := _strange(tensor):
            raise KlassifyError(
                f"{name} is not a plain tensor: {reason}.",
                where=where,
                fix="save its state dict alone, dense, on the CPU, with its own project",
            )


def _strange(tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.is_nested:
        return "it is sparse or nested"
    if tensor.device.type != "cpu":
        return f"its numbers are not in the file ({tensor.device.type})"
    if tensor.is_quantized or tensor.is_complex() or type(tensor) not in (Tensor, nn.Parameter):
        return f"no model here has tensors of its kind ({tensor.dtype})"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"its {tensor.numel()} numbers repeat {tensor.untyped_storage().nbytes()} bytes"
    return ""
