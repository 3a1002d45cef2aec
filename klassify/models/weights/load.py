"""Weights in and out: safetensors for everything of ours, and published files by way of
klassify.models.weights.published.

Nothing in a published file is run. Its tensors get our names and our order of classes (1 = fake);
every one of them finds its place or stands on its key map's list of unused ones, and the model gets
all that it has.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from klassify.errors import KlassifyError, first_few, first_line
from klassify.files import whole_file
from klassify.models.weights.published import KEY_MAPS, NOTHING, detect_source
from klassify.models.weights.torch_file import read_torch_file
from klassify.untrusted import refuse_irregular

SHOWN = 20  # keys of a kind that a message names
CONTAINERS = (
    "model_state_dict",
    "model_weight",
    "state_dict",
    "model",
)  # keys of files that hold more than weights


# ---------------------------------------------------------------------------------- our own files


def save_weights(
    model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model's state dict as safetensors, whole or not at all."""
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
    """Write named tensors as safetensors, whole or not at all."""
    with whole_file(path) as partial:
        save_file(dict(state), partial, dict(metadata or {}))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Named tensors and metadata of a safetensors file."""
    refuse_irregular(path)
    try:
        with safe_open(path, framework="pt") as handle:
            return {
                name: handle.get_tensor(name) for name in list(handle.keys())
            }, handle.metadata() or {}
    except FileNotFoundError:
        raise KlassifyError("This weights file does not exist.", where=path) from None
    except SafetensorError as error:
        fix = (
            None
            if Path(path).suffix == ".safetensors"
            else "a published file: klassify import-checkpoint first"
        )
        raise KlassifyError(
            f"This is not a whole safetensors file: {error}.", where=path, fix=fix
        ) from None


def load_weights(model: nn.Module, path: str | Path, below: str = "") -> dict[str, str]:
    """Load a file written by save_weights into the same model, strictly; returns its metadata.

    below: take the part of a larger model whose names begin so, such as "vqvae.".
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
    """What of `state` is missing (but for `optional`), unexpected or misshapen, in words; "" if
    it fits `wanted`.
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
    """Load `state`; whatever does not fit is one KlassifyError. Returns the `optional` keys that
    were missing.
    """
    wanted = model.state_dict()
    if told := misfits(state, wanted, optional):
        raise KlassifyError(
            f"These weights do not fit the model: of {len(wanted)} tensors, {told}.",
            where=where,
            fix=(
                "use the settings that the file was made with (config.yaml beside it, or its"
                " project's)"
            ),
        )
    absent = [key for key in wanted if key not in state]
    model.load_state_dict(state, strict=not absent)
    return absent


# ------------------------------------------------------------------------------- published files


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a published safetensors or torch file; nothing in the file is run."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    return state_of(read_torch_file(path), where=path)


def state_of(content: Any, where: object = None) -> dict[str, Tensor]:
    """The state dict in a checkpoint's content: bare, or under one of CONTAINERS.

    The prefixes of nn.DataParallel ('module.') and Lightning ('model.') come off where all keys
    have them.
    """
    containers = [content]
    if isinstance(content, Mapping):
        containers = [content[key] for key in CONTAINERS if key in content] + containers
    for container in containers:
        if isinstance(container, Mapping):
            state = {
                k: value
                for k, value in container.items()
                if isinstance(value, Tensor) and isinstance(k, str)
            }
            if state:
                refuse_strange(state, where)
                return _without_wrappers(state)
    found = (
        first_few(str(key)[:80] for key in content)
        if isinstance(content, Mapping)
        else type(content).__name__
    )
    raise KlassifyError(f"There is no state dict in this checkpoint: it has {found}.", where=where)


def weights_path(source: Path) -> Path:
    """The weights of what a config names: a trained system's folder, or a file."""
    return source / WEIGHTS if source.is_dir() else source


def refuse_strange(state: Mapping[str, Tensor], where: object = None) -> None:
    """KlassifyError for tensors whose numbers do not lie in the file one by one."""
    for name, tensor in state.items():
        if reason := _strange(tensor):
            raise KlassifyError(
                f"{name} is no plain tensor: {reason}.",
                where=where,
                fix="save its state dict alone, dense, on the CPU, with its own project",
            )


def _strange(tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.is_nested:
        return "it is sparse or nested"
    if tensor.device.type != "cpu":
        return f"its numbers are not in the file ({tensor.device.type})"
    if tensor.is_quantized or tensor.is_complex() or type(tensor) not in (Tensor, nn.Parameter):
        return f"it is of a kind that no model here has ({tensor.dtype})"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"its {tensor.numel()} numbers repeat {tensor.untyped_storage().nbytes()} bytes"
    return ""


def _refuse_not_finite(state: Mapping[str, Tensor], where: object) -> None:
    for name, tensor in state.items():
        if tensor.is_meta or not tensor.is_floating_point():
            continue
        plain = (
            tensor.float() if tensor.element_size() < 2 else tensor
        )  # torch has no answer for 8 bits
        if not torch.isfinite(plain).all():
            raise KlassifyError(
                f"{name} of this file has numbers that are NaN or infinite.",
                where=where,
                fix="download it again, or take an earlier state of its training",
            )


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in ("module.", "model.", "module."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


@dataclass(frozen=True)
class ImportReport:
    """What an import did: the kind of file, tensors loaded, their keys left out, our optional keys
    the file lacked, our keys put into our order of classes."""

    source: str
    loaded: int
    left_out: list[str]
    lacking: list[str]
    reordered: Sequence[str] = ()

    def __str__(self) -> str:
        article = "an" if self.source[0] in "aeio" else "a"
        text = f"{self.loaded} tensors of {article} {self.source} file"
        if self.reordered:
            text += f"; put into the order real, fake: {summary(self.reordered)}"
        if self.left_out:
            text += f"; left out, since the model has no use for them: {summary(self.left_out)}"
        if self.lacking:
            text += f"; not in the file, so as initialised: {summary(self.lacking)}"
        return text


def summary(keys: Sequence[str]) -> str:
    """All of a few keys; of many, how many there are under each first name."""
    if len(keys) <= SHOWN:
        return ", ".join(keys)
    return ", ".join(
        f"{start}.* ({n})" for start, n in Counter(key.partition(".")[0] for key in keys).items()
    )


def import_state(
    model: nn.Module,
    theirs: Mapping[str, Tensor],
    source: str,
    where: object = None,
    more: Mapping[str, Tensor] = {},
) -> ImportReport:
    """Load a published state dict into a model of ours, strictly, class 1 = fake.

    source: a name in KEY_MAPS. more: tensors under our names that such a file has not.
    """
    key_map = KEY_MAPS[source]
    if not key_map.fits(theirs):
        found = detect_source(theirs, where=where)
        raise KlassifyError(
            f"This is a {found} file by its keys, not a {source} file.", where=where
        )
    try:
        ours = key_map.convert(theirs)
    except KlassifyError as error:
        raise KlassifyError(error.what, where=where) from None
    _refuse_not_finite(ours, where)
    lacking = _load_strictly(model, {**ours, **more}, where=where, optional=key_map.optional)
    left_out = [key for key in theirs if re.match(key_map.unused, key)]
    return ImportReport(
        source, len(ours), left_out, lacking, [key for key in ours if key_map.order_of(key)]
    )


def import_weights(model: nn.Module, path: str | Path, source: str | None = None) -> ImportReport:
    """Load a published file into a model of ours; see import_state. source None looks at the
    keys.
    """
    theirs = read_checkpoint(path)
    return import_state(model, theirs, source or detect_source(theirs, where=path), where=path)


def locate_weights(source: str, download: bool = False) -> Path:
    """The file that `source` means: a file, a folder with transformers' weights, or a Hugging Face
    hub id.

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

    reason: Exception | None = None
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
            fix="set download: true beside source, or name a local file or folder",
        )
    raise KlassifyError(
        f"The hub did not give these weights: {first_line(reason)}",
        where=hub_id,
        fix="check the id and the network, or name a local file or folder",
    )


WEIGHTS = "model.safetensors"
