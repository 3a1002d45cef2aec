"""The systems of a comparison: where they are, what they answer, and for which clips."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
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
from klassify.scores.score_file import SHARES
from klassify.systems.base import SYSTEM, System
from klassify.systems.detector import DETECTOR, TASKS, read_detector
from klassify.systems.merged import Merged
from klassify.systems.scores import PROPOSALS
from klassify.systems.system import load_systems
from klassify.systems.trained import Trained, read_from

ANSWERED, FELL_BACK, FAILED = "answered", "fell back", "failed"


@dataclasses.dataclass(frozen=True)
class Found:
    """A system to compare. name: unique; answers: the tasks its detector.yaml gives it."""

    name: str
    system: System
    answers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Entry(Found):
    """A system with its scores on the clips of a list; None for scores that it does not have.

    frames: opened, not read.
    """

    scored: Scored | None = None
    localised: Localised | None = None
    frames: FrameFile | None = None

    def frame_table(self) -> FrameTable | None:
        """The frame scores of all clips."""
        return None if self.frames is None else frame_table(self.frames)


def find(paths: Sequence[Path]) -> list[Found]:
    """The named systems, each once: system folders, and all systems of folders with a
    detector.yaml.

    Names are folders below the deepest common one: `maxout`, or `klassify/maxout` if several
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
    systems = load_systems(
        folder.relative_to(here) if folder.is_relative_to(here) else folder for folder in folders
    )
    return [
        Found(name, system, tuple(task for task in TASKS if task in answers))
        for name, system, answers in zip(short_names(list(folders)), systems, folders.values())
    ]


def _named(path: Path) -> Iterator[tuple[Path, set[str]]]:
    """The system in a folder, or those of a detector; with the tasks that they answer."""
    if (path / SYSTEM).exists():
        answers = {}
        if (path.parent / DETECTOR).exists():
            answers = read_detector(path.parent).answers
        yield path, {task for task, name in answers.items() if name == path.name}
        return
    if path.name != DETECTOR and not (path / DETECTOR).exists():
        raise KlassifyError(
            f"This folder has neither a {SYSTEM} nor a {DETECTOR}.",
            where=path,
            fix="name a system's folder or a recipe's, such as exp/demo/klassify",
        )
    detector = read_detector(path)
    for name in detector.systems:
        answers = {task for task, chosen in detector.answers.items() if chosen == name}
        yield detector.folder / name, answers


def split_files(found: Sequence[Found], split: str) -> pd.DataFrame:
    """The clips of a split without labels, as the first system with clip scores names them: `file`
    and `duration` in seconds. KlassifyError if no system has clip scores of it.
    """
    for one in found:
        if one.system.path(split, "clips").exists():
            table = one.system.clip_scores(split).table
            columns = {"file": table["file"].to_numpy(object)}
            return pd.DataFrame(columns | {"duration": table["end"].to_numpy(float)})
    raise KlassifyError(
        f"None of these systems has clip scores for {split}.", fix="add one that answers Task 1"
    )


def refuse_unscored(found: Sequence[Found], split: str) -> None:
    """KlassifyError for systems without any scores of a split, with the commands that make them."""
    kinds = ("clips", "segments", "frames")
    lacking = [
        one for one in found if not any(one.system.path(split, kind).exists() for kind in kinds)
    ]
    if lacking:
        raise KlassifyError(
            f"There are no scores for {split} of {first_few(one.name for one in lacking)}.",
            where=lacking[0].system.path(split, "clips"),
            fix=f"{scoring(lacking, split)}    # or leave them out",
        )


def scoring(found: Sequence[Found], split: str) -> str:
    """The commands that score a split with these systems and those that they are computed from."""
    systems = {one.folder: one for each in found for one in each.system.with_inputs()}
    merged = [folder for folder, one in systems.items() if isinstance(one, Merged)]
    scored = [folder for folder in systems if folder not in merged]
    trained = [folder for folder in scored if isinstance(systems[folder], Trained)]
    proposing = [folder for folder in scored if (folder / PROPOSALS).exists()] + merged
    commands = []
    if scored:
        inputs = f" {read_from(trained[0], split)}" if trained else ""
        commands.append(f"klassify score {_joined(scored)} --split {split}{inputs}")
    if proposing:
        commands.append(f"klassify localise {_joined(proposing)} --split {split}")
    return " && ".join(commands)


def _joined(folders: Sequence[Path]) -> str:
    return shlex.join(map(str, folders))


def load(found: Found, split: str, files: Sequence[str]) -> Entry:
    """A system's scores of these clips. KlassifyError for those of an older state."""
    system = found.system
    clips, segments, frames = (system.path(split, kind) for kind in ("clips", "segments", "frames"))
    if frames.exists():
        system.refuse_older(frames, system.score_command(split))
    return Entry(
        found.name,
        system,
        found.answers,
        load_scored(system, split, files) if clips.exists() else None,
        load_localised(system, split, files, frames=False) if segments.exists() else None,
        FrameFile(frames) if frames.exists() else None,
    )


def answering(entries: Sequence[Entry], task: str) -> list[Entry]:
    """What each recipe answers a task with: its detector's choice, else its last system."""
    by_recipe: dict[Path, list[Entry]] = {}
    for one in entries:
        if (one.scored if task == "task1" else one.localised) is not None:
            by_recipe.setdefault(one.system.folder.parent, []).append(one)
    chosen = []
    for group in by_recipe.values():
        chosen += [one for one in group if task in one.answers] or group[-1:]
    return chosen


def coverage(entry: Entry, split: str, files: Sequence[str]) -> pd.DataFrame:
    """One row per clip and task that a system has scores for: system, task, file, state, reason,
    and for Task 1 `seen` and `heard`, the shares of the clip that the answer rests on.

    state: `answered`; `fell back`, if only some inputs of a fusion had an answer; `failed`, if the
    answer is a prior or no proposal.
    """
    states = {}
    if entry.scored is not None:
        states["task1"] = _clip_states(entry, split, files)
    if entry.localised is not None or (entry.frames is not None and entry.scored is None):
        states["task2"] = dict(zip(("state", "reason"), _frame_states(entry, split, files)))
    tables = []
    for task, columns in states.items():
        tables.append(pd.DataFrame({"system": entry.name, "task": task, "file": files} | columns))
    return pd.concat(tables, ignore_index=True)


def _clip_states(entry: Entry, split: str, files: Sequence[str]) -> dict[str, np.ndarray]:
    table = entry.system.clip_scores(split).table.set_index("file").loc[list(files)]
    reason = table["reason"] if "reason" in table else pd.Series("", index=table.index)
    if entry.system.kind == "fusion" and "answered" in table:
        state = _states(table["answered"].to_numpy(int), len(entry.system.inputs))
    else:
        state = np.where(entry.scored.answered, ANSWERED, FAILED).astype(object)
    shares = {name: table[name].to_numpy() for name in SHARES if name in table}
    return {"state": state, "reason": reason.fillna("").to_numpy(object)} | shares


def _frame_states(entry: Entry, split: str, files: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Whether a clip has frames; for merged proposals: how many inputs have."""
    merges = isinstance(entry.system, Merged)
    sources = entry.system.input_systems if merges else [entry.system]
    n_with, reasons = np.zeros(len(files), int), [[] for _ in files]
    for source in sources:
        path, failures = source.path(split, "frames"), read_reasons(source.folder, split)
        known = set(FrameFile(path).files) if path.exists() else set()
        prefix = f"{source.folder.name}: " if len(sources) > 1 else ""
        for i, file in enumerate(files):
            n_with[i] += file in known
            if file not in known:
                reasons[i].append(prefix + failures.get(file, "no frames"))
    return _states(n_with, len(sources)), np.array(["; ".join(texts) for texts in reasons], object)


def _states(n_answers: np.ndarray, n_inputs: int) -> np.ndarray:
    states = np.where(n_answers >= n_inputs, ANSWERED, np.where(n_answers > 0, FELL_BACK, FAILED))
    return states.astype(object)


def coverage_summary(states: pd.DataFrame) -> pd.DataFrame:
    """One row per system and task: clips in each state, the mean shares that were seen and heard,
    and the commonest reasons with their counts.
    """
    rows = []
    for (system, task), group in states.groupby(["system", "task"], sort=False):
        counts = group["state"].value_counts()
        failing = group[(group["state"] != ANSWERED) & (group["reason"] != "")]
        reasons = (f"{why} ({n})" for why, n in failing["reason"].value_counts().items())
        row = {"system": system, "task": task, "n": len(group)}
        row |= {state: int(counts.get(state, 0)) for state in (ANSWERED, FELL_BACK, FAILED)}
        row |= {name: group[name].mean() if name in group else np.nan for name in SHARES}
        rows.append(row | {"reasons": first_few(reasons, 3)})
    return pd.DataFrame(rows)
