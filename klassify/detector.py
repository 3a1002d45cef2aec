"""Write detector.yaml: which systems, in which order, lead from media to the submitted answers.

    klassify detector exp/demo/klassify --conf recipes/klassify/conf/demo/submit.yaml

The conf names the system that answers each task (`task1: maxout`). The file lists that system and
all that it is computed from, inputs first, with their hashes; what packages or predicts reads it
alone.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import yaml

from klassify import systems
from klassify.detector_file import DETECTOR, DetectorFile, leaves, read_detector, read_mapping
from klassify.errors import KlassifyError
from klassify.files import already_done, file_hash, write_text
from klassify.localise import PROPOSALS
from klassify.prediction import Prediction, predict

TASKS = ("task1", "task2")


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `klassify detector`."""
    parser.add_argument(
        "folder", type=Path, metavar="EXP_DIR", help="folder of the recipe's system folders"
    )
    parser.add_argument("--conf", type=Path, required=True, metavar="submit.yaml")
    parser.add_argument(
        "--force", action="store_true", help="replace a detector.yaml of other systems"
    )


def run(args: argparse.Namespace) -> int:
    """Run `klassify detector`."""
    answers = read_answers(args.conf)
    nodes: dict[str, dict[str, Any]] = {}
    for name in answers.values():
        for folder in systems.with_inputs(args.folder / name):
            below = os.path.relpath(folder, args.folder)
            if leaves(below):
                fix = f"name systems below {args.folder}, and inputs likewise"
                raise KlassifyError(
                    "This system does not lie below the detector's folder.", where=folder, fix=fix
                )
            nodes[below] = _node(args.folder, folder)
    wanted = {"answers": answers, "systems": nodes}
    path = args.folder / DETECTOR
    made_with = read_mapping(path) if path.exists() else None
    if not already_done(path, made_with, wanted, force=args.force):
        write_text(path, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))
    print(path)
    return 0


def read_answers(conf: str | os.PathLike) -> dict[str, str]:
    """{task: system} of a submit.yaml; an unknown task is refused by name."""
    answers = read_mapping(Path(conf))
    unknown = [
        task for task, name in answers.items() if task not in TASKS or not isinstance(name, str)
    ]
    if unknown or not answers:
        raise KlassifyError(
            f"Here stand answers for {unknown or 'no task'}; known are {', '.join(TASKS)}.",
            where=conf,
        )
    return answers


def _node(top: Path, folder: Path) -> dict[str, Any]:
    """A system's entry."""
    system = systems.load_system(folder)
    entry = {
        "kind": system.kind,
        "modality": system.modality,
        "supervision": system.supervision,
        "inputs": [os.path.relpath(path, top) for path in systems.input_folders(folder)],
        "hash": systems.system_hash(folder),
    }
    if (folder / PROPOSALS).exists():
        entry["proposals"] = file_hash(folder / PROPOSALS)
    return entry


class Detector(DetectorFile):
    """A detector that answers about raw videos."""

    def predict(
        self, video: str | os.PathLike, *, device: str = "auto", lmm: str | None = None
    ) -> Prediction:
        """The answer about one raw video file: see klassify.prediction.Prediction for shapes and
        units.

        device: cpu, cuda, cuda:1 or auto. lmm: the LMM of the multi-branch system; without it the
        other branches answer alone. For many videos klassify.prediction.predict is faster.
        """
        return next(predict(self, [video], device=device, lmm=lmm))


def load_detector(path: str | os.PathLike) -> Detector:
    """Read a detector.yaml (or the folder it lies in) and check that its systems are still the
    same.
    """
    return Detector(**vars(read_detector(path)))
