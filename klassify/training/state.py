"""The state from which an interrupted training continues (checkpoints/last.pt), and rank seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from klassify.errors import KlassifyError
from klassify.files import whole_file
from klassify.training.ranks import Ranks


def seed_of_rank(seed: int, rank: int) -> int:
    """The seed of a rank's torch generators; the first rank has the training's seed.

    They are for dropout and the like; examples are drawn from (seed, epoch, clip) on every rank.
    """
    return seed if rank == 0 else int(np.random.default_rng([seed, rank]).integers(2**62))


def save(path: Path, state: dict[str, Any], parts: dict[str, Any], ranks: Ranks) -> dict[str, str]:
    """Write the state between two updates. All ranks call this.

    state: plain values. parts: objects with a state_dict. The generators of all ranks are added.
    Only tensors and plain values are written, so that no pickled code runs on loading. Returns
    `state["failed"]`, the unreadable clips, joined over the ranks.
    """
    gathered = ranks.gather((_generators(ranks.device), state["failed"]))
    failed = {file: reason for _, names in gathered for file, reason in names.items()}
    if ranks.is_first:
        generators = [generators for generators, _ in gathered]
        states = {name: part.state_dict() for name, part in parts.items()}
        with whole_file(path) as partial:
            torch.save({**state, "failed": failed, "generators": generators, **states}, partial)
    return failed


def load(path: Path, parts: dict[str, Any], ranks: Ranks) -> dict[str, Any] | None:
    """Restore `parts` and the generators, and return the other values; None if nothing was saved.

    KlassifyError for a file that is unreadable, differs between ranks, or is of another number of
    ranks.
    """
    state = _read(path) if path.exists() else None
    places = ranks.gather(None if state is None else (state["epoch"], state["batch"]))
    if len(set(places)) > 1:
        ranks.refuse(
            "The processes do not see the same training state.",
            where=path,
            fix="write to a folder that all nodes share",
        )
    if state is None:
        return None
    generators = state.pop("generators")
    if len(generators) != ranks.world:
        ranks.refuse(
            f"This training ran on {len(generators)} devices, not {ranks.world}.",
            where=path,
            fix=f"continue with {len(generators)} devices, or restart with --force",
        )
    for name, part in parts.items():
        part.load_state_dict(state.pop(name))
    mine = generators[ranks.rank]
    torch.set_rng_state(mine["cpu"])
    if "cuda" in mine and _on_gpu(ranks.device):
        torch.cuda.set_rng_state(mine["cuda"], ranks.device)
    return state


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state["epoch"], state["batch"], state["generators"]
    except Exception as error:  # torch raises many kinds for a damaged file
        what = f"The training state cannot be read ({type(error).__name__})."
        raise KlassifyError(what, where=path, fix="delete it to restart this training") from None
    return state


def _generators(device: torch.device | None) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if _on_gpu(device):
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _on_gpu(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"
