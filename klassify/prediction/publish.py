"""A detector as a folder of its own: the files that answer, a model card, a manifest of hashes.

The folder has the layout of a model repository (README.md, safetensors), and `load_detector` reads
it. Nothing is uploaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

import klassify
from klassify.errors import KlassifyError
from klassify.evaluation.tables import with_interval
from klassify.files import read_json_mapping, write_json, write_text
from klassify.models.weights import EXPORTED
from klassify.settings import file_hash
from klassify.systems.detector import (
    DETECTOR,
    GENERATED_NOTICE,
    MANIFEST,
    PARTS,
    DetectorFile,
    on_generated_corpus,
    read_detector,
)
from klassify.systems.experiment import ENVIRONMENT

CARD = "README.md"
TASKS = {
    "task1": ("Task 1, AUC", "{}.tsv", "auc"),
    "task2": ("Task 2, Score", "{}.task2.tsv", "Score"),
}


def publish(source: Path, out: Path, *, split: str = "testA") -> Path:
    """Copy a detector with what it needs to an empty folder; returns the folder.

    source: a detector.yaml or its folder. split: whose evaluation, if there is one beside the
    systems, the model card quotes. The manifest records whether it is of generated clips, so that
    its answers are marked as such wherever it goes (on_generated_corpus).
    """
    detector = read_detector(source)
    if out.exists() and any(out.iterdir()):
        raise KlassifyError("This folder is not empty.", where=out, fix="name a new one")
    out.mkdir(parents=True, exist_ok=True)
    names = [DETECTOR, *_files(detector)]
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(detector.folder / name, out / name)
    write_text(out / CARD, card(detector, split))
    hashes = {name: file_hash(out / name) for name in [CARD, *names]}
    generated = {"generated_corpus": True} if on_generated_corpus(detector.folder) else {}
    write_json(out / MANIFEST, {"klassify": klassify.__version__, **generated, "sha256": hashes})
    read_detector(out)
    return out


def add_exports(folder: Path, systems: Iterable[str]) -> None:
    """Add models that were exported later to the manifest of a published folder, if it is one."""
    if not (folder / MANIFEST).exists():
        return
    content = read_json_mapping(folder / MANIFEST)
    made = [name for one in systems if (folder / (name := f"{one}/{EXPORTED}")).exists()]
    content["sha256"] |= {name: file_hash(folder / name) for name in made}
    write_json(folder / MANIFEST, content)


def _files(detector: DetectorFile) -> Iterator[str]:
    for name in detector.systems:
        for part in PARTS:
            if (detector.folder / name / part).exists():
                yield f"{name}/{part}"


def card(detector: DetectorFile, split: str) -> str:
    """The model card: what the parts are, what they learned from, results, limits."""
    generated = on_generated_corpus(detector.folder)
    rows = [
        f"| `{name}` | {entry['kind']} | {entry['modality']} | {entry['supervision']} |"
        for name, entry in detector.systems.items()
    ]
    answers = ", ".join(f"{task} by `{name}`" for task, name in detector.answers.items())
    results = list(_results(detector, split))
    measured = [f"Results on {split}, with 95 % intervals (bootstrap over sources):", "", *results]
    return "\n".join(
        [
            "---",
            "license: apache-2.0",
            "library_name: klassify",
            "tags: [deepfake-detection, temporal-localization, audio-visual]",
            "---",
            "",
            "# Detector of partially faked talking-head videos",
            "",
            *([f"**{GENERATED_NOTICE}**", ""] if generated else []),
            f"Answers {answers}. Trained with klassify {klassify.__version__}"
            f"{_commit(detector)}; read it with",
            '`klassify predict clip.mp4 --detector FOLDER` or `klassify.load_detector("FOLDER")`,',
            "where FOLDER may be `hf://owner/name` of a repository on the Hugging Face hub.",
            "",
            "| system | kind | modality | learned from |",
            "|---|---|---|---|",
            *rows,
            "",
            *(measured if results else ["No results are recorded with it."]),
            "",
            "An answer is a statistic, not evidence about a person. Do not use it as the only"
            " reason for a decision.",
            f"`{MANIFEST}` has the SHA-256 of every file.",
            "",
        ]
    )


def _commit(detector: DetectorFile) -> str:
    for name in detector.systems:
        if (path := detector.folder / name / ENVIRONMENT).exists():
            commit = read_json_mapping(path).get("commit")
            return f" (commit {commit[:12]})" if isinstance(commit, str) else ""
    return ""


def _results(detector: DetectorFile, split: str) -> Iterator[str]:
    for task, name in detector.answers.items():
        title, file, key = TASKS[task]
        path = detector.folder / "evaluation" / file.format(split)
        if not path.exists():
            continue
        table = pd.read_csv(path, sep="\t")
        chosen = table["system"].eq(name) & table["group"].eq("all")
        if "label" in table:
            chosen &= table["label"].eq("video")
        for _, row in table[chosen].iterrows():
            yield f"- {title}: {with_interval(row, key, '.3f')} ({row['n']} clips)"
