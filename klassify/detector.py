"""Write detector.yaml: which systems, in which order, lead from media to the submitted answers.

    klassify detector exp/demo/klassify --conf recipes/klassify/conf/demo/submit.yaml

The conf names the system that answers each task (`task1: maxout`). The file lists that system and all
that it is computed from, inputs first, with their hashes; what packages or predicts reads it alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from klassify import systems
from klassify.errors import KlassifyError
from klassify.files import already_done, file_hash, read_yaml, refuse_cut, write_text

if TYPE_CHECKING:
    from klassify.predict import Prediction

DETECTOR = "detector.yaml"
PROPOSALS = "proposals.yaml"  # of a localiser: how its frame scores become proposals
TASKS = ("task1", "task2")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="EXP_DIR", help="folder of the recipe's system folders")
    parser.add_argument("--conf", type=Path, required=True, metavar="submit.yaml")
    parser.add_argument("--force", action="store_true", help="replace a detector.yaml of other systems")


def run(args: argparse.Namespace) -> int:
    answers = read_answers(args.conf)
    nodes: dict[str, dict[str, Any]] = {}
    for name in answers.values():
        _collect(args.folder, args.folder / name, nodes)
    wanted = {"answers": answers, "systems": nodes}
    path = args.folder / DETECTOR
    made_with = _read(path) if path.exists() else None
    if not already_done(path, made_with, wanted, force=args.force):
        write_text(path, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))
    print(path)
    return 0


def read_answers(conf: str | os.PathLike) -> dict[str, str]:
    """{task: system} of a submit.yaml; an unknown task is refused by name."""
    answers = _read(Path(conf))
    unknown = [task for task, name in answers.items() if task not in TASKS or not isinstance(name, str)]
    if unknown or not answers:
        raise KlassifyError(f"Here stand answers for {unknown or 'no task'}; known are {', '.join(TASKS)}.", where=conf)
    return answers


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise KlassifyError("This file does not exist.", where=path, mend="make stage2") from None
    if not isinstance(content, dict):
        raise KlassifyError("This is no mapping of names to values.", where=path)
    return content


def _collect(top: Path, folder: Path, nodes: dict[str, dict[str, Any]]) -> None:
    """Add a system and, before it, everything it is computed from."""
    system = systems.load_system(folder)
    for path in systems.input_folders(folder):
        _collect(top, path, nodes)
    name = os.path.relpath(folder, top)
    nodes[name] = {
        "kind": system.kind,
        "modality": system.modality,
        "supervision": system.supervision,
        "inputs": [os.path.relpath(path, top) for path in systems.input_folders(folder)],
        "hash": systems.system_hash(folder),
    }
    if (folder / PROPOSALS).exists():
        nodes[name]["proposals"] = file_hash(folder / PROPOSALS)


@dataclasses.dataclass(frozen=True)
class Detector:
    """A read detector.yaml. answers: {task: system}; systems: name -> its entry, inputs before users."""

    folder: Path
    answers: dict[str, str]
    systems: dict[str, dict[str, Any]]

    def answering(self, task: str) -> Path:
        """The folder of the system that answers `task1` or `task2`."""
        if task not in self.answers:
            raise KlassifyError(f"No system answers {task}; there are answers for {', '.join(self.answers)}.",
                                where=self.folder / DETECTOR)  # fmt: skip
        return self.folder / self.answers[task]

    def predict(self, video: str | os.PathLike, *, device: str = "auto", lmm: str | None = None) -> Prediction:
        """The answer about one raw video file: see klassify.predict.Prediction for shapes and units.

        device: cpu, cuda, cuda:1 or auto. lmm: the LMM of the multi-branch system; without it the other branches
        answer alone. For many videos klassify.predict.predict is faster.
        """
        from klassify.predict import predict

        return next(predict(self, [video], device=device, lmm=lmm))


def _problem(answers: Any, entries: Any) -> str:
    """What is wrong with the content of a detector.yaml, or ''."""
    if not isinstance(answers, dict) or not isinstance(entries, dict):
        return "answers and systems are mappings"
    if lost := [name for name in answers.values() if not isinstance(name, str) or name not in entries]:
        return f"{lost[0]!r} answers, but is not among the systems"
    for name, entry in entries.items():
        texts = (
            [entry.get(key) for key in ("kind", "modality", "supervision", "hash")] if isinstance(entry, dict) else [0]
        )
        if not all(isinstance(text, str) for text in (name, *texts)) or not isinstance(entry.get("inputs"), list):
            return f"the entry of {name!r} is not whole"
    return ""


def load_detector(path: str | os.PathLike) -> Detector:
    """Read a detector.yaml (or the folder it lies in) and check that its systems are still the same."""
    path = Path(path) / DETECTOR if Path(path).is_dir() else Path(path)
    content = _read(path)
    if set(content) != {"answers", "systems"}:
        raise KlassifyError(f"A detector has the keys answers and systems, not {sorted(content)}.", where=path)
    refuse_cut(path)
    if problem := _problem(content["answers"], content["systems"]):
        raise KlassifyError(f"This detector is damaged: {problem}.", where=path, mend="make stage2 force=1")
    detector = Detector(path.parent, content["answers"], content["systems"])
    for name, entry in detector.systems.items():
        proposals = path.parent / name / PROPOSALS
        same = "proposals" not in entry or (proposals.exists() and file_hash(proposals) == entry["proposals"])
        if not same or systems.system_hash(path.parent / name) != entry["hash"]:
            raise KlassifyError(
                f"The system {name} has changed since the detector was put together.",
                where=path,
                mend="make stage2 force=1, or klassify detector ... --force",
            )
    return detector
