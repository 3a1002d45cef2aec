"""The systems of a comparison: where they lie, what they answer, and for which clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.evaluation.clips import Scored, load_scored
from klassify.evaluation.segments import Localised, load_localised
from klassify.files import short_names
from klassify.grid.ragged import FrameTable
from klassify.scores.clip_scores import read_reasons
from klassify.scores.frame_file import FrameFile, frame_table
from klassify.systems.base import SYSTEM, System
from klassify.systems.detector import DETECTOR, read_detector
from klassify.systems.merged import Merged
from klassify.systems.system import load_systems

TASKS = ("task1", "task2")
ANSWERED, FELL_BACK, FAILED = "answered", "fell back", "failed"


@dataclasses.dataclass(frozen=True)
class Found:
    """A system to compare. name: unique among all; answers: the tasks that its recipe's
    detector.yaml gives it.
    """

    name: str
    system: System
    answers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Entry:
    """A system with its scores on the clips of a list; what it has no scores for is None.

    name: in this comparison; `scored` and `localised` have it too. frames: opened, not read.
    """

    name: str
    system: System
    answers: tuple[str, ...]
    scored: Scored | None
    localised: Localised | None
    frames: FrameFile | None

    def frame_table(self) -> FrameTable | None:
        """The 40 ms scores of all clips."""
        if self.localised is not None and self.localised.frames is not None:
            return self.localised.frames
        return None if self.frames is None else frame_table(self.frames)


def find(paths: Sequence[Path]) -> list[Found]:
    """The systems that are named, each once: system folders, and all systems of folders with a
    detector.yaml.

    Names are folders below the deepest common one: `maxout`, or `klassify/maxout` where several
    recipes take part.
    """
    folders: dict[Path, set[str]] = {}
    for path in paths:
        for folder, answers in _named(Path(path)):
            folders.setdefault(folder.resolve(), set()).update(answers)
    if not folders:
        raise KlassifyError(
            "There is nothing to compare.",
            fix="name system folders, or folders with a detector.yaml",
        )
    here = Path.cwd().resolve()
    systems = load_systems(_short(folder, here) for folder in folders)
    return [
        Found(name, system, tuple(task for task in TASKS if task in answers))
        for name, system, answers in zip(short_names(list(folders)), systems, folders.values())
    ]


def _named(path: Path) -> Iterable[tuple[Path, set[str]]]:
    if (path / SYSTEM).exists():
        yield path, _answers_beside(path)
        return
    if path.name != DETECTOR and not (path / DETECTOR).exists():
        raise KlassifyError(
            f"Here lies neither a {SYSTEM} nor a {DETECTOR}.",
            where=path,
            fix="name a system's folder or a recipe's, such as exp/demo/klassify",
        )
    detector = read_detector(path)
    for name in detector.systems:
        yield (
            detector.folder / name,
            {task for task, chosen in detector.answers.items() if chosen == name},
        )


def _answers_beside(folder: Path) -> set[str]:
    """The tasks that the detector.yaml next to a system gives it."""
    if not (folder.parent / DETECTOR).exists():
        return set()
    return {
        task for task, name in read_detector(folder.parent).answers.items() if name == folder.name
    }


def _short(folder: Path, here: Path) -> Path:
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


# ------------------------------------------------------------------------------ scores


def split_files(found: Sequence[Found], split: str) -> pd.DataFrame:
    """The clips of a split without labels, as its score files name them: `file` and `duration` in
    seconds.

    KlassifyError where no system has clip scores or frames of it.
    """
    for one in found:
        if one.system.path(split, "clips").exists():
            table = one.system.clip_scores(split).table
            return pd.DataFrame(
                {"file": table["file"].to_numpy(object), "duration": table["end"].to_numpy(float)}
            )
    raise KlassifyError(
        f"None of these systems has clip scores for {split}.", fix=f"make stage3 split={split}"
    )


def load(found: Found, split: str, files: Sequence[str]) -> Entry:
    """A system's scores for clips, checked to be of its present state. KlassifyError where it
    has none at all.
    """
    system = found.system
    named = dataclasses.replace(system, name=found.name)
    there = {kind: system.path(split, kind).exists() for kind in ("clips", "segments", "frames")}
    if not any(there.values()):
        raise KlassifyError(
            f"{found.name} has no scores for {split}.",
            where=system.path(split, "clips"),
            fix=f"make stage{2 if split == 'val' else 3} split={split}, or leave it out",
        )
    scored = localised = frames = None
    if there["clips"]:
        scored = dataclasses.replace(load_scored(system, split, files), system=named)
    if there["segments"]:
        localised = dataclasses.replace(load_localised(system, split, files), system=named)
    if there["frames"]:
        path = system.path(split, "frames")
        system.refuse_older(path, f"klassify score {system.folder} --split {split}")
        frames = FrameFile(path)
    return Entry(found.name, system, found.answers, scored, localised, frames)


def answering(entries: Sequence[Entry], task: str) -> list[Entry]:
    """What each recipe answers a task with: its detector's choice, else the last system of its
    folder that can.
    """
    able = [
        one for one in entries if (one.scored if task == "task1" else one.localised) is not None
    ]
    by_recipe: dict[Path, list[Entry]] = {}
    for one in able:
        by_recipe.setdefault(one.system.folder.parent, []).append(one)
    chosen = []
    for group in by_recipe.values():
        chosen += [one for one in group if task in one.answers] or group[-1:]
    return chosen


# ------------------------------------------------------------------------------ coverage


def coverage(entry: Entry, split: str, files: Sequence[str]) -> pd.DataFrame:
    """One row a clip and task that a system has scores for: system, task, file, state, reason.

    state: `answered`; `fell back`, where only some inputs of a fusion had anything to say;
    `failed`, where a prior or no proposal stands for an answer.
    """
    tables = []
    if entry.scored is not None:
        tables.append(("task1", *_clip_states(entry, split, files)))
    if entry.localised is not None or (entry.frames is not None and entry.scored is None):
        tables.append(("task2", *_frame_states(entry, split, files)))
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "system": entry.name,
                    "task": task,
                    "file": files,
                    "state": state,
                    "reason": reason,
                }
            )
            for task, state, reason in tables
        ],
        ignore_index=True,
    )


def _clip_states(entry: Entry, split: str, files: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    table = entry.system.clip_scores(split).table.set_index("file").loc[list(files)]
    reason = (
        table["reason"].fillna("").to_numpy(object)
        if "reason" in table
        else np.full(len(table), "", object)
    )
    if entry.system.kind == "fusion" and "answered" in table:
        return _states(table["answered"].to_numpy(int), len(entry.system.inputs)), reason
    return np.where(entry.scored.answered, ANSWERED, FAILED).astype(object), reason


def _frame_states(entry: Entry, split: str, files: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Of a system with frames: whether a clip has any; of merged proposals: how many inputs have
    frames of it.
    """
    merges = isinstance(entry.system, Merged)
    sources = entry.system.input_systems if merges else [entry.system]
    n_with, reasons = np.zeros(len(files), int), [[] for _ in files]
    for source in sources:
        path, failures = source.path(split, "frames"), read_reasons(source.folder, split)
        there = set(FrameFile(path).files) if path.exists() else set()
        here = np.fromiter((file in there for file in files), bool, len(files))
        n_with += here
        for i in np.flatnonzero(~here):
            why = failures.get(files[i], "no frames")
            reasons[i].append(f"{source.folder.name}: {why}" if len(sources) > 1 else why)
    return _states(n_with, len(sources)), np.array(["; ".join(texts) for texts in reasons], object)


def _states(n_answers: np.ndarray, n_inputs: int) -> np.ndarray:
    states = np.where(n_answers >= n_inputs, ANSWERED, np.where(n_answers > 0, FELL_BACK, FAILED))
    return states.astype(object)


def coverage_summary(states: pd.DataFrame) -> pd.DataFrame:
    """One row a system and task: clips in each state, and the commonest reasons with their
    counts.
    """
    rows = []
    for (system, task), group in states.groupby(["system", "task"], sort=False):
        counts = group["state"].value_counts()
        reasons = group.loc[
            (group["state"] != ANSWERED) & (group["reason"] != ""), "reason"
        ].value_counts()
        text = first_few((f"{why} ({n})" for why, n in reasons.items()), 3)
        rows.append(
            {"system": system, "task": task, "n": len(group)}
            | {state: int(counts.get(state, 0)) for state in (ANSWERED, FELL_BACK, FAILED)}
            | {"reasons": text}
        )
    return pd.DataFrame(rows)
