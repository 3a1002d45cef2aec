"""System folders: whatever yields a score lives in `exp/<data>/<recipe>/<system>/`.

`system.yaml` says what the system is. A `model` also has config.yaml and model.safetensors and is
run on media or features; a `calibrated` system and a `fusion` are pure functions of the clip scores
of their `inputs`, other system folders, named by paths relative to their own
(klassify.systems.score). All keep `scores/<split>.*`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from klassify.errors import KlassifyError
from klassify.files import read_yaml, write_text
from klassify.models.weights.load import WEIGHTS
from klassify.scores.score_file import SCALES, SUPERVISIONS
from klassify.settings import already_done, canonical_json, file_hash, settings_hash
from klassify.systems.experiment import CONFIG, load_experiment
from klassify.untrusted import refuse_cut

SYSTEM = "system.yaml"
KINDS = ("model", "calibrated", "fusion")
MODALITIES = ("audio", "visual", "both")
# of a fusion that joins its inputs' proposals (klassify localise), not their clip scores
PROPOSALS_RULE = "proposals"
MAX_DEPTH = 50  # of systems that are each computed from the next
# of one that joins their frame scores (klassify.systems.linear) and has both kinds of scores
FRAMES_RULE = "linear"


@dataclasses.dataclass(frozen=True)
class System:
    """What stands in system.yaml.

    supervision: `segment` as soon as anything that was learned from segment labels takes part.
    scale: of its scores; `none` of a model that has none. inputs: folders relative to this system's
    folder. parameters: of a derived system, everything `apply` needs and a record of how it was
    obtained.
    """

    name: str
    kind: str
    modality: str
    supervision: str
    scale: str
    inputs: Sequence[str] = ()
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        allowed = {
            "kind": KINDS,
            "modality": MODALITIES,
            "supervision": SUPERVISIONS,
            "scale": (*SCALES, "none"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise KlassifyError(
                    f"{name}={getattr(self, name)!r} is none of {', '.join(values)}.", where=SYSTEM
                )
        if not isinstance(self.inputs, (list, tuple)) or not isinstance(self.parameters, Mapping):
            raise KlassifyError(
                "`inputs` is a list of folders and `parameters` a mapping.", where=SYSTEM
            )
        if not all(isinstance(path, str) and path and "\0" not in path for path in self.inputs):
            raise KlassifyError(
                f"An input is the name of a folder, not {list(self.inputs)!r:.80}.", where=SYSTEM
            )
        if bool(self.inputs) == (self.kind == "model"):
            raise KlassifyError(
                f"A {self.kind} has {'no ' if self.kind == 'model' else ''}inputs.", where=SYSTEM
            )

    @property
    def own_label(self) -> str:
        """The label this system is about, as `datalist.label` names it."""
        return "video" if self.modality == "both" else self.modality


def load_system(folder: str | os.PathLike) -> System:
    """Read `<folder>/system.yaml`; a missing file, an unknown or a missing key is a
    KlassifyError.
    """
    path = Path(folder) / SYSTEM
    try:
        fields = read_yaml(path)
        refuse_cut(path)
    except (FileNotFoundError, NotADirectoryError):
        raise KlassifyError(
            "This is no finished system: it has no system.yaml.", where=path
        ) from None
    try:
        return System(**fields)
    except TypeError as error:  # not a mapping, or an unknown or a missing key
        known = ", ".join(field.name for field in dataclasses.fields(System))
        raise KlassifyError(f"A system has the keys {known}: {error}.", where=path) from None
    except KlassifyError as error:
        raise KlassifyError(error.what, where=path) from None


def write_system(folder: str | os.PathLike, system: System) -> None:
    """Write `<folder>/system.yaml`."""
    plain = json.loads(canonical_json(dataclasses.asdict(system)))  # tuples as lists
    ordered = {field.name: plain[field.name] for field in dataclasses.fields(System)}
    write_text(Path(folder) / SYSTEM, yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True))


def load_model(folder: str | os.PathLike) -> tuple[Any, Any]:
    """The trained model (eval mode) and the ClipData of a system of kind `model`: (nn.Module,
    ClipData).
    """
    from klassify.models.weights.load import load_weights

    folder = Path(folder)
    weights = folder / WEIGHTS
    if not weights.exists():
        raise KlassifyError("This system has no weights.", where=weights, fix="train it first")
    experiment = load_experiment(folder / CONFIG)
    load_weights(experiment.model, weights)
    return experiment.model.eval(), experiment.data


def derived_system(
    folder: str | os.PathLike,
    kind: str,
    inputs: Sequence[str | os.PathLike],
    scale: str,
    parameters: Mapping[str, Any],
    supervision: str = "clip",
) -> System:
    """The System of a folder that is computed from other systems, with what it takes over from
    them.

    supervision: of what was fitted; an input that learned from segments makes it `segment` in any
    case.
    """
    given = [load_system(path) for path in inputs]
    modalities = {system.modality for system in given}
    here = Path(folder).resolve()
    return System(
        name=here.name,
        kind=kind,
        modality=modalities.pop() if len(modalities) == 1 else "both",
        supervision=(
            "segment" if any(system.supervision == "segment" for system in given) else supervision
        ),
        scale=scale,
        inputs=[os.path.relpath(Path(path).resolve(), here) for path in inputs],
        parameters=parameters,
    )


def made_before(
    folder: str | os.PathLike, made_with: Mapping[str, Any], *, force: bool = False
) -> bool:
    """Whether the folder holds this very derived system. Any other system there is refused,
    unless `force`.
    """
    path = Path(folder) / SYSTEM
    if force or not path.exists():
        return False
    there = load_system(folder)
    if "made_with" not in there.parameters:
        raise KlassifyError(
            f"This folder holds {there.name}, a system of another kind ({there.kind}).",
            where=path,
            fix="write to another folder, or give --force to replace it",
        )
    return already_done(path, there.parameters["made_with"], made_with)


def input_folders(folder: str | os.PathLike) -> list[Path]:
    """The folders of a system's inputs, in order."""
    return [Path(os.path.normpath(Path(folder) / path)) for path in load_system(folder).inputs]


def with_inputs(folder: str | os.PathLike) -> list[Path]:
    """The folder of a system, last, after those of all systems that it is computed from: inputs
    first, each once.

    KlassifyError for a system that is its own input.
    """
    order: dict[Path, Path] = {}
    _gather(Path(folder), frozenset(), order)
    return list(order.values())


def _gather(folder: Path, above: frozenset[Path], order: dict[Path, Path]) -> None:
    here = folder.resolve()
    if here in above:
        raise KlassifyError("This system is its own input.", where=folder / SYSTEM)
    if len(above) == MAX_DEPTH:
        raise KlassifyError(
            f"More than {MAX_DEPTH} systems are each computed from the next.", where=folder / SYSTEM
        )
    if here not in order:
        for path in input_folders(folder):
            _gather(path, above | {here}, order)
        order[here] = folder


def system_hash(folder: str | os.PathLike) -> str:
    """16 hex digits that change with the system's description, config, weights or any of its
    inputs.
    """
    hashes: dict[Path, str] = {}
    for path in with_inputs(folder):
        files = {
            name: file_hash(path / name) for name in (CONFIG, WEIGHTS) if (path / name).exists()
        }
        inputs = [hashes[one.resolve()] for one in input_folders(path)]
        what = {"system": dataclasses.asdict(load_system(path)), "files": files, "inputs": inputs}
        hashes[path.resolve()] = settings_hash(what)
    return hashes[Path(folder).resolve()]


def number(system: System, name: str, default: float | None = None) -> float:
    """A parameter of a derived system that is a number; KlassifyError for anything else."""
    value = system.parameters.get(name, default)
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not abs(value) < float("inf")
    ):
        raise KlassifyError(
            f"The parameter {name} of {system.name} is no number: {value!r:.40}.",
            where=SYSTEM,
            fix="make this system again",
        )
    return float(value)


def choice(system: System, name: str, values: Collection[str]) -> str:
    """A parameter of a derived system that is one of these; KlassifyError for anything else."""
    value = system.parameters.get(name)
    if not isinstance(value, str) or value not in values:
        raise KlassifyError(
            f"The parameter {name} of {system.name} is none of {', '.join(values)}: {value!r:.40}.",
            where=SYSTEM,
            fix="make this system again",
        )
    return value
