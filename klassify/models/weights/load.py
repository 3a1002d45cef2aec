"""Weights in and out: our own safetensors, and published files with the help of
klassify.models.weights.published.

Nothing in a published file is run. The model's tensors are found in it below any wrapper, and get
our names and our order of classes (1 = fake). The model gets every tensor that it has; what it does
not need is left out, and the report names it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from klassify.errors import KlassifyError, first_few, first_line
from klassify.files import read_json_mapping, whole_file
from klassify.models.weights import WEIGHTS
from klassify.models.weights.published import (
    KEY_MAPS,
    NOTHING,
    SETTINGS,
    SPEECH_MODELS,
    KeyMap,
    detect_source,
    settings_from_fairseq,
)
from klassify.models.weights.torch_file import Record, read_torch_file
from klassify.untrusted import refuse_irregular

SHOWN = 20  # names of a kind in a message
# where a file has the model several times, such as averaged over training beside it
PREFERRED = ("model_state_dict", "model_weight", "state_dict", "model")
MAX_DEPTH = 16  # of mappings in a published file
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX = ".index.json"
# of torch itself, also within names; the last three of a model that was saved whole
TORCH_WRAPPERS = re.compile(
    r"(^|(?<=\.))(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module"
    r"|_modules|_parameters|_buffers)\."
)


def save_weights(
    model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model's state dict as safetensors; an interrupted write leaves no file."""
    state, seen = {}, set()
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        # the format refuses tensors that share memory
        state[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    write_tensors(state, path, metadata)


def write_tensors(
    state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors as safetensors; an interrupted write leaves no file."""
    with whole_file(path) as partial:
        save_file(dict(state), partial, dict(metadata or {}))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Named tensors and metadata of a safetensors file."""
    refuse_irregular(path)
    try:
        with safe_open(path, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in list(handle.keys())}
            return tensors, handle.metadata() or {}
    except FileNotFoundError:
        raise KlassifyError("This weights file does not exist.", where=path) from None
    except SafetensorError as error:
        published = Path(path).suffix != ".safetensors"
        raise KlassifyError(
            f"This is not a complete safetensors file: {error}.",
            where=path,
            fix="import a published file with klassify import-checkpoint" if published else None,
        ) from None


def load_weights(model: nn.Module, path: str | Path, below: str = "") -> dict[str, str]:
    """Load a file written by save_weights into the same model, strictly; returns its metadata.

    below: the prefix of a part of a larger model, such as "vqvae.", to load that part alone.
    """
    state, metadata = read_tensors(path)
    state = {
        key.removeprefix(below): value for key, value in state.items() if key.startswith(below)
    }
    _load_strictly(model, state, where=path)
    return metadata


def misfits(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], optional: str = NOTHING
) -> str:
    """Names in `state` that are missing (except `optional`), unexpected or of another shape than in
    `wanted`, as text; "" where it fits.
    """
    complaints = {
        "missing": [key for key in wanted if key not in state and not re.fullmatch(optional, key)],
        "unexpected": [key for key in state if key not in wanted],
        "of another shape": [
            f"{key} {list(value.shape)} there, {list(wanted[key].shape)} in the model"
            for key, value in state.items()
            if key in wanted and value.shape != wanted[key].shape
        ],
    }
    return "; ".join(
        f"{len(keys)} {kind} ({first_few(keys, SHOWN)})"
        for kind, keys in complaints.items()
        if keys
    )


def _load_strictly(
    model: nn.Module, state: Mapping[str, Tensor], where: object, optional: str = NOTHING
) -> list[str]:
    """Load `state`, or KlassifyError with all misfits; returns the missing `optional` names."""
    wanted = model.state_dict()
    if told := misfits(state, wanted, optional):
        raise KlassifyError(
            f"These weights do not fit the model: of {len(wanted)} tensors, {told}.",
            where=where,
            fix=(
                "use the settings that the file was made with (config.yaml in its folder, or those"
                " of its project)"
            ),
        )
    absent = [key for key in wanted if key not in state]
    model.load_state_dict(state, strict=not absent)
    return absent


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
    return tensors, _known_settings(settings)


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


def _known_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
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


def speech_settings(model: nn.Module) -> dict[str, Any]:
    """SETTINGS of the speech model in a model; {} where there is none."""
    configs = (module.config for module in model.modules() if hasattr(module, "config"))
    config = next(configs, None)
    return _known_settings({name: getattr(config, name, None) for name in SETTINGS})


def _refuse_other_settings(model: nn.Module, theirs: Mapping[str, Any], where: object) -> None:
    """KlassifyError where a file was trained with other settings than the model's."""
    ours = speech_settings(model)
    theirs = {name: value for name, value in theirs.items() if name in ours}
    other = [
        f"{name} {value!r} there, {ours[name]!r} here"
        for name, value in theirs.items()
        if value != ours[name]
    ]
    if not other:
        return
    settings = {**ours, **theirs}
    family = settings.pop("model_type")
    fix = f"set the architecture to '{json.dumps({'family': family, **settings})}'"
    if family not in ("wav2vec2", "wavlm"):
        fix = "use a file of a wav2vec 2.0 or WavLM model"
    raise KlassifyError(
        f"These weights were trained with other settings: {'; '.join(other)}.", where=where, fix=fix
    )


def weights_path(source: Path) -> Path:
    """The weights that a config names by a file or by a trained system's folder."""
    return source / WEIGHTS if source.is_dir() else source


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


def _refuse_not_finite(state: Mapping[str, Tensor], where: object) -> None:
    for name, tensor in state.items():
        if tensor.is_meta or not tensor.is_floating_point():
            continue
        plain = tensor.float() if tensor.element_size() < 2 else tensor  # 8 bits have no isfinite
        if not torch.isfinite(plain).all():
            raise KlassifyError(
                f"{name} in this file has values that are NaN or infinite.",
                where=where,
                fix="download it again, or use an earlier checkpoint of its training",
            )


@dataclass(frozen=True)
class ImportReport:
    """What an import did: the kind of file, the number of tensors loaded, their names left out, our
    optional names that the file lacked, our names put into our order of classes, the wrapper that
    was stripped from their names, and the licence of the weights.
    """

    source: str
    loaded: int
    left_out: list[str]
    lacking: list[str]
    reordered: Sequence[str] = ()
    stripped: str = ""
    licence: str = ""

    def __str__(self) -> str:
        article = "an" if self.source[0] in "aeio" else "a"
        text = f"{self.loaded} tensors of {article} {self.source} file"
        if self.stripped:
            text += f"; stripped from their names: {self.stripped}"
        if self.reordered:
            text += f"; put into the order real, fake: {summary(self.reordered)}"
        if self.left_out:
            text += f"; left out because the model does not use them: {summary(self.left_out)}"
        if self.lacking:
            text += f"; not in the file, so left as initialised: {summary(self.lacking)}"
        if self.licence:
            text += f"; licence of the weights: {self.licence}"
        return text


def summary(keys: Sequence[str]) -> str:
    """A few names in full; of many, how many there are under each first part."""
    if len(keys) <= SHOWN:
        return ", ".join(keys)
    return ", ".join(
        f"{start}.* ({n})" for start, n in Counter(key.partition(".")[0] for key in keys).items()
    )


def unwrapped(
    state: Mapping[str, Tensor], key_map: KeyMap, wanted: Collection[str] = (), where: object = None
) -> dict[str, str]:
    """{name below the model's wrapper: name in `state`}; names without a wrapper stay.

    Where several wrappers hold such a model, the one with most of the names that are `wanted` here
    is taken. KlassifyError where several fit equally well.
    """
    names = _plain_names(state)
    plain = {name: state[original] for name, original in names.items()}
    fits = {
        wrapper: sum(
            key_map.rename(name.removeprefix(wrapper)) in wanted
            for name in names
            if name.startswith(wrapper)
        )
        for wrapper in key_map.wrappers(plain) or [""]
    }
    best = [wrapper for wrapper in fits if fits[wrapper] == max(fits.values())]
    for container in PREFERRED:
        best = [wrapper for wrapper in best if wrapper.startswith(f"{container}.")] or best
    if len(best) > 1:
        raise KlassifyError(
            f"This file holds the model {len(best)} times, below {first_few(best)}.",
            where=where,
            fix="save the state dict of one of them alone, with its own project",
        )
    return {
        name.removeprefix(best[0]): original
        for name, original in names.items()
        if name.startswith(best[0])
    }


def _plain_names(state: Iterable[str]) -> dict[str, str]:
    """{name without torch's own wrappers: name}."""
    state = list(state)
    plain = {TORCH_WRAPPERS.sub("", name): name for name in state}
    return plain if len(plain) == len(state) else {name: name for name in state}


def _stripped(names: Mapping[str, str]) -> str:
    """What {name below the wrapper: name in the file} lack, each wrapper once."""
    found = {}
    for name, original in names.items():
        if original.endswith(name):
            found[original.removesuffix(name)] = None
        else:  # a wrapper within the name
            found |= {f"{match[2]}.": None for match in TORCH_WRAPPERS.finditer(original)}
    return ", ".join(filter(None, found))


def _module(name: str) -> str:
    """The module of a tensor, with # for each number."""
    parts = ["#" if part.isdigit() else part for part in name.split(".")]
    return ".".join(parts[:-1])


def _modules(names: Iterable[str]) -> set[str]:
    """The modules of tensors, and those around them that lie in numbered layers."""
    modules = {_module(name) for name in names}
    for module in list(modules):
        while "#" in (module := module.rpartition(".")[0]):
            modules.add(module)
    return modules


def import_state(
    model: nn.Module,
    theirs: Mapping[str, Tensor],
    source: str,
    where: object = None,
    more: Mapping[str, Tensor] = {},
) -> ImportReport:
    """Load a published state dict, wrapped or not, into a model of ours, class 1 = fake.

    What the model needs and is missing is a KlassifyError. Heads and the like, which the model does
    not need, are left out; but one more bias or layer within a module that the model has is a
    KlassifyError too, since it changes what is computed. source: a name in KEY_MAPS. more: tensors
    under our names that such a file does not have.
    """
    key_map, wanted = KEY_MAPS[source], model.state_dict()
    if not key_map.wrappers({name: theirs[key] for name, key in _plain_names(theirs).items()}):
        found = _detected(theirs, where)
        raise KlassifyError(
            f"By its names this is a {found} file, not a {source} file.", where=where
        )
    names = unwrapped(theirs, key_map, wanted, where)
    try:
        converted = key_map.convert({name: theirs[key] for name, key in names.items()})
    except KlassifyError as error:
        raise KlassifyError(error.what, where=where) from None
    modules = _modules(wanted)
    ours = {
        ours: tensor
        for ours, (name, tensor) in converted.items()
        if ours in wanted or ("." in name and _module(ours) in modules)
    }
    _refuse_not_finite(ours, where)
    given = {**ours, **more}
    if any(name not in given and not re.fullmatch(key_map.optional, name) for name in wanted):
        # the message names all others too: what is missing may be there under another name
        given |= {name: tensor for name, (_, tensor) in converted.items()}
    lacking = _load_strictly(model, given, where=where, optional=key_map.optional)
    used = {converted[name][0]: names[converted[name][0]] for name in ours}
    inside = set(names.values())
    return ImportReport(
        source,
        loaded=len(ours),
        left_out=[
            *(name for name in names if name not in used),
            *(key for key in theirs if key not in inside),
        ],
        lacking=lacking,
        reordered=[name for name in ours if key_map.order_of(name)],
        stripped=_stripped(used),
        licence=key_map.licence,
    )


def _detected(state: Mapping[str, Tensor], where: object) -> str:
    names = _plain_names(state)
    return detect_source({name: state[key] for name, key in names.items()}, where=where)


def import_weights(model: nn.Module, path: str | Path, source: str | None = None) -> ImportReport:
    """Load a published file into a model of ours; see import_state.

    source None: the names tell. The settings of a speech model must be those of the file.
    """
    tensors, settings = read_published(path)
    source = source or _detected(tensors, path)
    if source in SPEECH_MODELS:
        _refuse_other_settings(model, settings, path)
    return import_state(model, tensors, source, where=path)


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
