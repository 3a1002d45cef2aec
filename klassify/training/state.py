"""What a training goes on from after a stop: checkpoints/last.pt, and the seeds of its ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from klassify.errors import KlassifyError
from klassify.files import whole_file
from klassify.training.ranks import Ranks


def seed_of_rank(seed: int, rank: int) -> int:
    """The seed of a rank's torch generators: that of the training for the first, others for the
    others.

    Examples are drawn from (seed, epoch, clip) whatever the rank; this is for dropout and the like.
    """
    import numpy as np

    return seed if rank == 0 else int(np.random.default_rng([seed, rank]).integers(2**62))


def save(path: Path, state: dict[str, Any], parts: dict[str, Any], ranks: Ranks) -> dict[str, str]:
    """Write the state between two updates: plain values, `parts` (objects with a state_dict), all
    ranks' generators.

    Returns `state["failed"]`, the unreadable clips, joined over the ranks. Only tensors and plain
    values are written, so that it loads without pickled code. All ranks call this.
    """
    gathered = ranks.gather((_generators(ranks.device), state["failed"]))
    failed = {file: reason for _, names in gathered for file, reason in names.items()}
    if ranks.is_first:
        content = state | {
            "failed": failed,
            "generators": [generators for generators, _ in gathered],
        }
        with whole_file(path) as partial:
            torch.save(content | {name: part.state_dict() for name, part in parts.items()}, partial)
    return failed


def load(path: Path, parts: dict[str, Any], ranks: Ranks) -> dict[str, Any] | None:
    """Put `parts` and the generators back as they were and return the rest; None where nothing was
    saved.

    KlassifyError for a file that cannot be read, of another number of ranks, or not the same for
    all of them.
    """
    state = _read(path) if path.exists() else None
    places = ranks.gather(None if state is None else (state["epoch"], state["batch"]))
    if len(set(places)) > 1:
        ranks.refuse(
            KlassifyError(
                "The processes do not see the same training state.",
                where=path,
                fix="write to a folder that all nodes share",
            )
        )
    if state is None:
        return None
    generators = state.pop("generators")
    if len(generators) != ranks.world:
        ranks.refuse(
            KlassifyError(
                f"This training ran on {len(generators)} devices, not {ranks.world}.",
                where=path,
                fix=f"go on with {len(generators)} devices, or start anew with --force",
            )
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
        raise KlassifyError(
            f"The training state cannot be read ({type(error).__name__}).",
            where=path,
            fix="delete it to start this training anew",
        ) from None
    return state


def _generators(device: torch.device | None) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if _on_gpu(device) else states


def _on_gpu(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"
