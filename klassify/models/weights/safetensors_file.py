"""Weights as safetensors: numbers by name, in which nothing can run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from klassify.errors import KlassifyError
from klassify.files import whole_file
from klassify.untrusted import refuse_irregular


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
