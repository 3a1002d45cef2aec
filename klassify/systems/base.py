"""A system: a folder with a system.yaml, inputs, a hash, and scores.

The kinds of systems are subclasses in files of their own; klassify.systems.system loads them.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from klassify.errors import KlassifyError
from klassify.files import read_yaml, write_text
from klassify.models.weights import WEIGHTS
from klassify.scores.score_file import (
    SCALES,
    SUPERVISIONS,
    Header,
    ScoreFile,
    is_current,
    read_header,
    read_scores,
    score_path,
    strongest,
    write_scores,
)
from klassify.settings import already_done, canonical_json, file_hash_once, settings_hash
from klassify.systems.experiment import CONFIG
from klassify.untrusted import refuse_cut

SYSTEM = "system.yaml"
KINDS = ("model", "calibrated", "fusion")
MODALITIES = ("audio", "visual", "both")


@dataclasses.dataclass(frozen=True)
class System:
    """A system: what its system.yaml says, its folder, and the systems it is computed from.

    supervision: the strongest labels that any part of it learned from: `clip`, `self` (edits that
    the training made in clips labelled real), `pseudo` (answers of another system about unlabelled
    clips) or `segment`. scale: of its scores; `none` for a model
    without scores. inputs: folders relative to this system's folder. parameters:
    of a derived system, all that its scores are computed with, and a record of how that was
    obtained. folder and input_systems: set by `load_system`, not stored.
    """

    name: str
    kind: str
    modality: str
    supervision: str
    scale: str
    inputs: Sequence[str] = ()
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folder: Path = dataclasses.field(default=Path(), compare=False)
    input_systems: tuple[System, ...] = dataclasses.field(default=(), compare=False, repr=False)

    has_frames = False  # whether its scores can be of frames

    def __post_init__(self):
        allowed = {
            "kind": KINDS,
            "modality": MODALITIES,
            "supervision": SUPERVISIONS,
            "scale": (*SCALES, "none"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                given = getattr(self, name)
                raise KlassifyError(
                    f"Unknown {name} {given!r} (known: {', '.join(values)}).", where=SYSTEM
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
        """The label that this system predicts, as `klassify.lists.subsets.label` names it."""
        return "video" if self.modality == "both" else self.modality

    @property
    def prior(self) -> float:
        """The probability for a clip without an answer: prior of a fusion, base rate of a
        calibration, else 0.5.
        """
        return self.number("prior" if "prior" in self.parameters else "base_rate", 0.5)

    def described(self) -> dict[str, Any]:
        """What system.yaml holds."""
        return {name: getattr(self, name) for name in FIELDS}

    @functools.cached_property
    def hash(self) -> str:
        """16 hex digits that change with the description, config, weights or any of the inputs."""
        paths = {name: self.folder / name for name in (CONFIG, WEIGHTS)}
        files = {name: file_hash_once(path) for name, path in paths.items() if path.exists()}
        inputs = [one.hash for one in self.input_systems]
        return settings_hash({"system": self.described(), "files": files, "inputs": inputs})

    def with_inputs(self) -> list[System]:
        """All systems that it is computed from, inputs first, each once, and itself last."""
        order: dict[int, System] = {}
        _gather(self, order)
        return list(order.values())

    def number(self, name: str, default: float | None = None) -> float:
        """A parameter that is a number; KlassifyError for anything else."""
        value = self.parameters.get(name, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not abs(value) < float("inf")
        ):
            what = f"The parameter {name} of {self.name} is not a number: {value!r:.40}."
            raise KlassifyError(what, where=SYSTEM, fix="make this system again")
        return float(value)

    def choice(self, name: str, values: Collection[str]) -> str:
        """A parameter that is one of these; KlassifyError for anything else."""
        value = self.parameters.get(name)
        if not isinstance(value, str) or value not in values:
            raise KlassifyError(
                f"The parameter {name} of {self.name} is {value!r:.40}"
                f" (known: {', '.join(values)}).",
                where=SYSTEM,
                fix="make this system again",
            )
        return value

    def deciding(self, scores: Mapping[str, ScoreFile]) -> list[str]:
        """The names of the inputs behind the answer for a clip; scores: of those with an answer."""
        return list(scores)

    def path(self, split: str, kind: str) -> Path:
        """Where its scores of a split are, or would be: windows, clips, frames or segments."""
        return score_path(self.folder, split, kind)

    def score_command(self, split: str) -> str:
        """The command that scores a split, for messages."""
        return f"klassify score {self.folder} --split {split}"

    def clip_scores(self, split: str) -> ScoreFile:
        """Its clip scores; KlassifyError with the command if they are missing or outdated."""
        return read_scores(self._current(split, "clips", "clip scores", self.score_command(split)))

    def frames_path(self, split: str) -> Path:
        """The file of its frame scores; KlassifyError if they are missing or outdated."""
        if not self.has_frames:
            raise KlassifyError(
                f"{self.name} is a {self.kind} and has no frame scores.", where=self.folder
            )
        return self._current(split, "frames", "frame scores", self.score_command(split))

    def segments_path(self, split: str) -> Path:
        """The file of its proposals; KlassifyError if they are missing or outdated."""
        command = f"klassify localise {self.folder} --split {split}"
        return self._current(split, "segments", "proposals", command)

    def segment_scores(self, split: str) -> ScoreFile:
        """Its proposals; errors as `segments_path`."""
        return read_scores(self.segments_path(split))

    def _current(self, split: str, kind: str, name: str, command: str) -> Path:
        path = self.path(split, kind)
        if not path.exists():
            raise KlassifyError(f"{self.name} has no {name} for {split}.", where=path, fix=command)
        self.refuse_older(path, command)
        return path

    def refuse_older(self, path: Path, command: str) -> None:
        """Raise KlassifyError for a score file that an older state of the system made."""
        header = read_header(path)
        if header.settings.get("system") not in (None, self.hash):
            what = f"{self.name} has changed since it scored {header.split}."
            raise KlassifyError(what, where=path, fix=f"{command} --force")


# Those of system.yaml, in its order.
FIELDS = tuple(
    field.name
    for field in dataclasses.fields(System)
    if field.name not in ("folder", "input_systems")
)


def _gather(system: System, order: dict[int, System]) -> None:
    if id(system) not in order:
        for one in system.input_systems:
            _gather(one, order)
        order[id(system)] = system


class Derived(System):
    """A system whose clip scores are a pure function of those of its inputs: `clip_table`."""

    def clip_table(self, inputs: Sequence[ScoreFile]) -> pd.DataFrame:
        """The clip table from the inputs' clip scores."""
        raise NotImplementedError

    def derive(self, split: str, *, force: bool = False) -> ScoreFile:
        """Compute and write the clip scores, or keep them where nothing has changed."""
        path = self.path(split, "clips")
        inputs = [one.clip_scores(split) for one in self.input_systems]
        settings = {"system": self.hash, "inputs": [made_from(scores.header) for scores in inputs]}
        if not is_current(path, settings, force=force):
            header = Header(self.name, split, "clips", self.scale, self.supervision, settings)
            write_scores(path, self.clip_table(inputs), header)
        return read_scores(path)


def made_from(header: Header) -> str:
    """How derived scores record the scores of an input."""
    return f"{header.system} {settings_hash(header.settings)}"


def read_fields(folder: str | os.PathLike) -> dict[str, Any]:
    """The checked content of `<folder>/system.yaml`."""
    path = Path(folder) / SYSTEM
    try:
        fields = read_yaml(path)
        refuse_cut(path)
    except (FileNotFoundError, NotADirectoryError):
        raise _not_a_system(path) from None
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


def _not_a_system(path: Path) -> KlassifyError:
    """No system.yaml; names the systems beside it, since most are misspelt."""
    folder = path.parent
    beside = sorted(found.parent.name for found in folder.parent.glob(f"*/{SYSTEM}"))
    what = "This is not a finished system: it has no system.yaml."
    if not folder.exists():
        what = f"There is no folder {folder.name}."
    close = difflib.get_close_matches(folder.name, beside, n=1)
    fix = f"the systems of {folder.parent} are {', '.join(beside)}" if beside else None
    return KlassifyError(what, where=path, fix=f"did you mean {close[0]}?" if close else fix)


def write_system(folder: str | os.PathLike, system: System) -> None:
    """Write `<folder>/system.yaml`."""
    plain = json.loads(canonical_json(system.described()))  # tuples as lists
    ordered = {name: plain[name] for name in FIELDS}
    write_text(Path(folder) / SYSTEM, yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True))


def derived_system(
    folder: str | os.PathLike,
    kind: str,
    inputs: Sequence[System],
    scale: str,
    parameters: Mapping[str, Any],
    supervision: str = "clip",
) -> System:
    """The description of a system that is computed from others.

    supervision: of the fit; the strongest of it and of the inputs' is recorded.
    """
    modalities = {system.modality for system in inputs}
    here = Path(folder).resolve()
    return System(
        name=here.name,
        kind=kind,
        modality=modalities.pop() if len(modalities) == 1 else "both",
        supervision=strongest([supervision, *(system.supervision for system in inputs)]),
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
