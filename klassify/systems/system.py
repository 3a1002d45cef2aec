"""System folders: whatever yields a score lives in `exp/<data>/<recipe>/<system>/`.

`system.yaml` says what the system is. A `model` also has config.yaml and model.safetensors and is
run on media or features; a `calibrated` system and a `fusion` are pure functions of the scores of
their `inputs`, other system folders, named by paths relative to their own. All keep
`scores/<split>.*`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from klassify.errors import KlassifyError
from klassify.files import read_yaml, write_text
from klassify.settings import already_done, canonical_json
from klassify.systems import linear, merged
from klassify.systems.base import FIELDS, SYSTEM, System
from klassify.systems.calibrated import Calibrated
from klassify.systems.fused import Fused
from klassify.systems.linear import Linear
from klassify.systems.merged import Merged
from klassify.systems.trained import Trained
from klassify.untrusted import refuse_cut

MAX_DEPTH = 50  # of systems that are each computed from the next


def load_system(folder: str | os.PathLike) -> System:
    """The system of a folder, with the systems that it is computed from.

    KlassifyError for a missing system.yaml, an unknown or a missing key, and a system that is its
    own input.
    """
    return load_systems([folder])[0]


def load_systems(folders: Iterable[str | os.PathLike]) -> list[System]:
    """The systems of several folders; what some of them have in common is loaded once."""
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
        paths = [Path(os.path.normpath(folder / path)) for path in fields["inputs"]]
        inputs = tuple(_load(path, (*above, here), loaded) for path in paths)
        loaded[here] = _class_of(fields)(**fields, folder=folder, input_systems=inputs)
    return loaded[here]


def _class_of(fields: Mapping[str, Any]) -> type[System]:
    if fields["kind"] != "fusion":
        return {"model": Trained, "calibrated": Calibrated}[fields["kind"]]
    rule = fields["parameters"].get("rule")
    if rule == linear.RULE:
        return Linear
    return Merged if rule == merged.RULE else Fused


def read_fields(folder: str | os.PathLike) -> dict[str, Any]:
    """The checked content of `<folder>/system.yaml`."""
    path = Path(folder) / SYSTEM
    try:
        fields = read_yaml(path)
        refuse_cut(path)
    except (FileNotFoundError, NotADirectoryError):
        raise KlassifyError(
            "This is not a finished system: it has no system.yaml.", where=path
        ) from None
    known = ", ".join(FIELDS)
    if not isinstance(fields, dict) or not set(fields) <= set(FIELDS):
        extra = sorted(map(str, set(fields) - set(FIELDS))) if isinstance(fields, dict) else fields
        raise KlassifyError(f"A system has the keys {known}, not {extra!r:.80}.", where=path)
    try:
        return System(**fields).described()
    except TypeError as error:  # a missing key
        raise KlassifyError(f"A system has the keys {known}: {error}.", where=path) from None
    except KlassifyError as error:
        raise KlassifyError(error.what, where=path) from None


def write_system(folder: str | os.PathLike, system: System) -> None:
    """Write `<folder>/system.yaml`."""
    plain = json.loads(canonical_json(system.described()))  # tuples as lists
    ordered = {name: plain[name] for name in FIELDS}
    write_text(Path(folder) / SYSTEM, yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True))


def system_hash(folder: str | os.PathLike) -> str:
    """The hash of the system in a folder; see System.hash."""
    return load_system(folder).hash


def derived_system(
    folder: str | os.PathLike,
    kind: str,
    inputs: Sequence[System],
    scale: str,
    parameters: Mapping[str, Any],
    supervision: str = "clip",
) -> System:
    """The description of a system that is computed from others.

    supervision: of the fit; an input that learned from segments makes it `segment`.
    """
    modalities = {system.modality for system in inputs}
    if any(system.supervision == "segment" for system in inputs):
        supervision = "segment"
    here = Path(folder).resolve()
    return System(
        name=here.name,
        kind=kind,
        modality=modalities.pop() if len(modalities) == 1 else "both",
        supervision=supervision,
        scale=scale,
        inputs=[os.path.relpath(system.folder.resolve(), here) for system in inputs],
        parameters=parameters,
    )


def made_before(
    folder: str | os.PathLike, made_with: Mapping[str, Any], *, force: bool = False
) -> bool:
    """Whether the folder holds this derived system; KlassifyError if another, unless `force`."""
    path = Path(folder) / SYSTEM
    if force or not path.exists():
        return False
    there = read_fields(folder)
    if "made_with" not in there["parameters"]:
        raise KlassifyError(
            f"This folder holds {there['name']}, a system of another kind ({there['kind']}).",
            where=path,
            fix="write to another folder, or pass --force to replace it",
        )
    return already_done(path, there["parameters"]["made_with"], made_with)
