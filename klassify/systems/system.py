"""System folders: whatever yields a score lives in `exp/<data>/<recipe>/<system>/`.

`system.yaml` says what the system is. A `model` also has config.yaml and model.safetensors and is
run on media or features; a `calibrated` system and a `fusion` are pure functions of the scores of
their `inputs`, other system folders, named by paths relative to their own. All keep
`scores/<split>.*`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError
from klassify.files import read_json_mapping
from klassify.systems import linear, merged, stack
from klassify.systems.base import SYSTEM, System, read_fields
from klassify.systems.calibrated import Calibrated
from klassify.systems.experiment import SETTINGS
from klassify.systems.fused import Fused
from klassify.systems.linear import Linear
from klassify.systems.merged import Merged
from klassify.systems.stack import Stack
from klassify.systems.trained import Trained

EMBEDDING = "embedding-"  # and the encoder's name: a kind of features
MAX_DEPTH = 50  # of systems that are each computed from the next


def load_system(folder: str | os.PathLike) -> System:
    """The system of a folder, with the systems that it is computed from; those of a model are the
    encoders whose embeddings it reads.

    KlassifyError for a missing system.yaml, an unknown or a missing key, and a system that is its
    own input.
    """
    return load_systems([folder])[0]


def load_systems(folders: Iterable[str | os.PathLike]) -> list[System]:
    """The systems of several folders; shared inputs are loaded once."""
    loaded: dict[Path, System] = {}
    return [_load(Path(folder), (), loaded) for folder in folders]


def _load(folder: Path, above: tuple[Path, ...], loaded: dict[Path, System]) -> System:
    """above: the folders of the systems that lead to this one."""
    here = folder.resolve()
    if here in above:
        raise KlassifyError("This system is its own input.", where=folder / SYSTEM)
    if len(above) == MAX_DEPTH:
        raise KlassifyError(
            f"More than {MAX_DEPTH} systems are each computed from the next.", where=folder / SYSTEM
        )
    if here not in loaded:
        fields = read_fields(folder)
        names = fields["inputs"] or [f"../{name}" for name in encoders_of(folder)]
        paths = [Path(os.path.normpath(folder / name)) for name in names]
        inputs = tuple(_load(path, (*above, here), loaded) for path in paths)
        loaded[here] = _class_of(fields)(**fields, folder=folder, input_systems=inputs)
    return loaded[here]


def encoders_of(folder: Path) -> list[str]:
    """The systems beside a trained model whose embeddings it has learned from."""
    record = folder / SETTINGS
    learned_from = read_json_mapping(record) if record.exists() else {}
    names = [k.removeprefix(EMBEDDING) for k in learned_from if k.startswith(EMBEDDING)]
    return [name for name in names if Path(name).name == name != ".."]


def _class_of(fields: Mapping[str, Any]) -> type[System]:
    if fields["kind"] != "fusion":
        return {"model": Trained, "calibrated": Calibrated}[fields["kind"]]
    rules = {linear.RULE: Linear, merged.RULE: Merged, stack.RULE: Stack}
    rule = fields["parameters"].get("rule")
    return rules.get(rule, Fused) if isinstance(rule, str) else Fused


def system_hash(folder: str | os.PathLike) -> str:
    """The hash of the system in a folder; see System.hash."""
    return load_system(folder).hash
