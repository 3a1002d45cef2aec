"""detector.yaml, the graph of systems from media to answers: schema, writer and reader."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from klassify.errors import KlassifyError, first_few
from klassify.files import read_json_mapping, read_yaml, write_text
from klassify.metrics.decisions import ASVSPOOF_5, Cost
from klassify.models.weights import EXPORTED, WEIGHTS
from klassify.settings import already_done, file_hash
from klassify.systems import operating
from klassify.systems.base import SYSTEM, System
from klassify.systems.experiment import CONFIG, SETTINGS
from klassify.systems.scores import PROPOSALS
from klassify.systems.system import load_systems
from klassify.untrusted import refuse_cut

DETECTOR = "detector.yaml"
MANIFEST = "manifest.json"  # of a published detector: hashes of its files
# of a system: what an answer depends on
PARTS = (SYSTEM, CONFIG, SETTINGS, WEIGHTS, EXPORTED, PROPOSALS)
TASKS = ("task1", "task2")
OPERATING_POINTS = "operating_points"  # the key of what may be absent
ENTRY = {"kind": str, "modality": str, "supervision": str, "hash": str, "inputs": list}
GENERATED_NOTICE = (
    "These models were trained on the generated corpus alone: their answers about real videos mean"
    " nothing."
)


def on_generated_corpus(recipe: Path) -> bool:
    """Whether a recipe's folder, that of a seed below it, or a published detector is of the
    generated corpus.
    """
    place = Path(os.path.abspath(recipe))
    manifest = place / MANIFEST
    if manifest.exists() and read_json_mapping(manifest).get("generated_corpus"):
        return True
    top = place.parent if place.name.startswith("seed-") else place
    return top.parent.name.split("-")[0] == "demo"


def read_answers(conf: str | os.PathLike) -> dict[str, str]:
    """{task: system} of a submit.yaml; an unknown task is refused by name."""
    answers = read_mapping(Path(conf))
    unknown = [
        task for task, name in answers.items() if task not in TASKS or not isinstance(name, str)
    ]
    if unknown or not answers:
        raise KlassifyError(
            f"Answers for {unknown or 'no task'} (known tasks: {', '.join(TASKS)}).", where=conf
        )
    return answers


def write_detector(
    top: Path,
    answers: dict[str, str],
    *,
    val_fit: pd.DataFrame | None = None,
    rates: Sequence[float] = operating.RATES,
    cost: Cost = ASVSPOOF_5,
    force: bool = False,
) -> Path:
    """Write the detector.yaml of a folder of systems, or keep it where nothing has changed.

    answers: {task: system}. val_fit: labelled clips that the operating points of Task 1's answer
    are fitted on, None for no operating points; rates, cost: see klassify.systems.operating.fit.
    KlassifyError for a system, also an input's, that is not below the folder.
    """
    entries: dict[str, dict[str, Any]] = {}
    for answering in load_systems(top / name for name in answers.values()):
        for system in answering.with_inputs():
            below = os.path.relpath(system.folder, top)
            if leaves(below):
                raise KlassifyError(
                    "This system is not below the detector's folder.",
                    where=system.folder,
                    fix=f"name systems below {top}, and inputs likewise",
                )
            entries[below] = _entry(top, system)
    wanted: dict[str, Any] = {"answers": answers, "systems": entries}
    path = top / DETECTOR
    made_with = read_mapping(path) if path.exists() else None
    if val_fit is not None and "task1" in answers:
        answering = load_systems([top / answers["task1"]])[0]
        points = operating.fit(answering, val_fit, rates=rates, cost=cost)
        wanted[OPERATING_POINTS] = points.described()
        if made_with is not None and OPERATING_POINTS not in made_with:
            made_with = made_with | {OPERATING_POINTS: wanted[OPERATING_POINTS]}
            force = force or made_with == wanted  # all that it lacks is added
    elif made_with is not None:
        made_with = {key: value for key, value in made_with.items() if key != OPERATING_POINTS}
    if not already_done(path, made_with, wanted, force=force):
        write_text(path, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))
    return path


def _entry(top: Path, system: System) -> dict[str, Any]:
    entry = {
        "kind": system.kind,
        "modality": system.modality,
        "supervision": system.supervision,
        "inputs": [os.path.relpath(one.folder, top) for one in system.input_systems],
        "hash": system.hash,
    }
    if lmm := _lmm_of(system.folder):
        entry["lmm"] = lmm
    proposals = system.folder / PROPOSALS
    if proposals.exists():
        entry["proposals"] = file_hash(proposals)
    return entry


def _lmm_of(folder: Path) -> dict[str, Any]:
    """The LMM whose features a system was trained on, as stage 1 recorded it; {} without one."""
    record = folder / "settings.json"
    made_with = read_json_mapping(record).get("lmm") if record.exists() else None
    names = ("lmm", "lmm_files", "clip", "clip_files", "interval")
    return {name: made_with[name] for name in names if name in made_with} if made_with else {}


@dataclasses.dataclass(frozen=True)
class DetectorFile:
    """A read detector.yaml. answers: {task: system}; systems: {name: entry}, inputs first; points:
    the operating points of Task 1's answer, None where the file has none.
    """

    folder: Path
    answers: dict[str, str]
    systems: dict[str, dict[str, Any]]
    points: operating.OperatingPoints | None = None

    @functools.cached_property
    def loaded(self) -> dict[str, System]:
        """Its systems by name."""
        folders = [self.folder / name for name in self.systems]
        return dict(zip(self.systems, load_systems(folders)))

    def answering(self, task: str) -> System:
        """The system that answers `task1` or `task2`."""
        if task not in self.answers:
            raise KlassifyError(
                f"No system answers {task}; there are answers for {', '.join(self.answers)}.",
                where=self.folder / DETECTOR,
            )
        return self.loaded[self.answers[task]]


def read_detector(path: str | os.PathLike) -> DetectorFile:
    """Read a detector.yaml (or its folder) and check that its systems have not changed."""
    path = Path(path)
    if path.is_dir():
        below = sorted(str(found.parent) for found in path.glob(f"*/{DETECTOR}"))
        if below and not (path / DETECTOR).exists():
            what = f"This folder has no {DETECTOR}, but folders in it do."
            raise KlassifyError(what, where=path, fix=f"name one: {first_few(below)}")
        path = path / DETECTOR
    if not path.exists():
        what, fix = "There is no detector here.", "name the folder of a recipe after make stage2"
        raise KlassifyError(what, where=path, fix=fix)
    content = read_mapping(path)
    if set(content) - {OPERATING_POINTS} != {"answers", "systems"}:
        raise KlassifyError(
            f"A detector has the keys answers and systems, not {sorted(content)}.", where=path
        )
    refuse_cut(path)
    if problem := _problem(content["answers"], content["systems"]):
        raise KlassifyError(
            f"This detector is damaged: {problem}.", where=path, fix="make stage2 force=1"
        )
    points = None
    if OPERATING_POINTS in content:
        try:
            points = operating.read_points(content[OPERATING_POINTS])
        except KlassifyError as error:
            raise KlassifyError(error.what, where=path, fix="make stage2 force=1") from None
    detector = DetectorFile(path.parent, content["answers"], content["systems"], points)
    for name, system in detector.loaded.items():
        entry, proposals = detector.systems[name], system.folder / PROPOSALS
        same = "proposals" not in entry or (
            proposals.exists() and file_hash(proposals) == entry["proposals"]
        )
        if not same or system.hash != entry["hash"]:
            raise KlassifyError(
                f"The system {name} has changed since the detector was made.",
                where=path,
                fix="make stage2 force=1, or klassify detector ... --force",
            )
    return detector


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML mapping of stage 2; KlassifyError for anything else."""
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise KlassifyError("This file does not exist.", where=path, fix="make stage2") from None
    if not isinstance(content, dict):
        raise KlassifyError("This is not a mapping of names to values.", where=path)
    return content


def leaves(name: Any) -> bool:
    """Whether a system's name is not a path to a folder below that of the detector."""
    return (
        not isinstance(name, str)
        or "\0" in name
        or name.startswith("/")
        or not {"", ".", ".."}.isdisjoint(name.split("/"))
    )


def _problem(answers: Any, entries: Any) -> str:
    """What is wrong with the content of a detector.yaml, or ''."""
    if not isinstance(answers, dict) or not isinstance(entries, dict):
        return "answers and systems are mappings"
    for name in answers.values():
        if not isinstance(name, str) or name not in entries:
            return f"{name!r} answers, but is not among the systems"
    for name, entry in entries.items():
        if leaves(name):
            return f"the system {name!r} is not a folder beside it"
        if not isinstance(entry, dict) or not all(
            isinstance(entry.get(key), kind) for key, kind in ENTRY.items()
        ):
            return f"the entry of {name!r} is incomplete"
        lmm = entry.get("lmm", {})
        if not isinstance(lmm, dict) or not isinstance(lmm.get("lmm", ""), str):
            return f"the LMM of {name!r} is not a name with its settings"
    return ""
