"""Raw videos through a detector: the Python API behind `klassify predict`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.abc
import importlib.machinery
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError
from klassify.features import parts, shards
from klassify.features.lmm.kind import LMMRow
from klassify.files import readable
from klassify.lists import data_list
from klassify.media import isolated
from klassify.models.weights import load
from klassify.scores.score_file import read_scores, score_path
from klassify.systems import experiment
from klassify.systems import scores as systems_scores
from klassify.systems.base import SYSTEM
from klassify.systems.detector import DETECTOR, DetectorFile, read_detector
from klassify.systems.merged import Merged
from klassify.systems.scores import PROPOSALS, as_probability, to_probability


class Detector(DetectorFile):
    """A detector that answers about raw videos."""

    def predict(
        self, video: str | os.PathLike, *, device: str = "auto", lmm: str | None = None
    ) -> Prediction:
        """The answer about one raw video file: see klassify.prediction.predict.Prediction for
        shapes and units.

        device: cpu, cuda, cuda:1 or auto. lmm: the LMM of the multi-branch system; without it the
        other branches answer alone. For many videos klassify.prediction.predict.predict is faster.
        """
        return next(predict(self, [video], device=device, lmm=lmm))


def load_detector(path: str | os.PathLike) -> Detector:
    """Read a detector.yaml (or the folder it lies in) and check that its systems are still the
    same.
    """
    found = read_detector(path)
    return Detector(found.folder, found.answers, found.systems)


SPLIT = "predict"
EXTRACTED = ("mouth", "audio", "lmm")  # kinds of features that need no model of the detector's own
DEMO_NOTICE = (
    "These models were trained on the generated corpus alone: their answers about real videos mean"
    " nothing."
)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer about one video. Times in seconds, scores in [0, 1], higher = more fake.

    file: as it was given, bytes of its name that are no UTF-8 escaped.
    probability: that anything in the video is fake; the prior where nothing could be heard or seen.
    answered: whether the probability rests on evidence. reasons: {system: why it has no answer}.
    segments: proposals, best first, with the columns start, end, score, modality, method.
    frames: {system: table of its 40 ms frames with start, end and probability of fake}.
    detector: what answered; notice: what to know about it, "" if nothing.
    """

    file: str
    probability: float
    answered: bool
    reasons: dict[str, str]
    segments: pd.DataFrame
    frames: dict[str, pd.DataFrame]
    detector: str
    notice: str

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file, without the frames."""
        return {
            "file": self.file,
            "probability": self.probability,
            "answered": self.answered,
            "reasons": self.reasons,
            "segments": self.segments.to_dict("records"),
            "detector": self.detector,
            "notice": self.notice,
        }


def predict(
    detector: DetectorFile,
    videos: Sequence[str | os.PathLike],
    *,
    device: str = "auto",
    lmm: str | None = None,
) -> Iterator[Prediction]:
    """Answers about videos, in their order. A file that cannot be read gets the prior and the
    reasons.
    """
    with tempfile.TemporaryDirectory(prefix="klassify-predict-") as folder:
        kinds = needed_kinds(detector)
        data = _DataSet(Path(folder), [Path(video) for video in videos])
        overlay = data.lay_over(detector)
        with _no_code_of(detector.folder), contextlib.redirect_stdout(io.StringIO()):
            data.run_stages(overlay, kinds, device, lmm)
        answers = _Answers(overlay)
        for video, file in zip(videos, data.files):
            yield answers.about(file, readable(video), detector)


def needed_kinds(detector: DetectorFile) -> set[str]:
    """The kinds of feature shards that its models read, such as {"mouth"}.

    KlassifyError, before any work, for a detector that cannot answer here.
    """
    for task in ("task1", "task2"):
        detector.answering(task)
    folders = [
        detector.folder / name
        for name, entry in detector.systems.items()
        if entry["kind"] == "model"
    ]
    with _no_code_of(detector.folder):
        by_folder = {folder: set(feature_kinds(folder)) for folder in folders}
    for folder, kinds in by_folder.items():
        if other := sorted(kinds.difference(EXTRACTED)):
            raise KlassifyError(
                f"This system reads features of the kind {', '.join(other)}, which a model of its"
                f" own makes; of raw videos only {' and '.join(EXTRACTED)} are made.",
                where=folder,
                fix="extract them, then klassify score",
            )
    return set().union(*by_folder.values())


def feature_kinds(folder: Path) -> Sequence[str]:
    """The kinds of feature shards that a model reads, such as ("mouth",)."""
    import torch

    from klassify.systems.experiment import load_experiment

    with torch.device(
        "meta"
    ):  # the config is checked as that of any system, nothing of the model's size is made
        return load_experiment(folder / experiment.CONFIG).data.feature_kinds


@contextlib.contextmanager
def _no_code_of(folder: Path) -> Iterator[None]:
    """No module is imported from a detector's folder, which may lie below the working directory
    and so on sys.path.
    """
    finder = _Refusing(folder.resolve())
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Refusing(importlib.abc.MetaPathFinder):
    """Finds nothing; KlassifyError for a module that would be found in a folder, but for what is
    installed there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.installed = [
            Path(path).resolve() for path in (Path(__file__).parent, sys.prefix, sys.base_prefix)
        ]

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or not spec.has_location:
            return
        place = Path(spec.origin).resolve()
        if place.is_relative_to(self.folder) and not any(map(place.is_relative_to, self.installed)):
            what = "A config names code that lies in the detector's own folder, which is not run."
            raise KlassifyError(
                what, where=place, fix="if you trust it, move it to a folder of your own"
            )


def on_generated_corpus(folder: Path) -> bool:
    """Whether a detector's folder, exp/<data>/<recipe> or a seed's below it, is of the generated
    corpus.
    """
    place = Path(os.path.abspath(folder))
    recipe = place.parent if place.name.startswith("seed-") else place
    return recipe.parent.name.split("-")[0] == "demo"


def _suffix(video: Path) -> str:
    """Its suffix, if that is a plain one."""
    return video.suffix.lower() if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", video.suffix) else ""


class _DataSet:
    """The given files as a data set: lists/, media/, features/ and, laid over a detector, exp/
    in one folder.
    """

    def __init__(self, folder: Path, videos: Sequence[Path]):
        self.folder = folder
        self.files = [f"{number:06d}{_suffix(video)}" for number, video in enumerate(videos)]
        (folder / "media").mkdir()
        for file, video in zip(self.files, videos):
            (folder / "media" / file).symlink_to(video.resolve())
        (folder / "lists").mkdir()
        self.list = folder / "lists" / f"{SPLIT}.tsv"
        data_list.write_list(self.list, pd.DataFrame([self._measured(file) for file in self.files]))

    def _measured(self, file: str) -> dict[str, Any]:
        try:
            info = isolated.probe(self.folder / "media" / file)
        except KlassifyError:
            return {"file": file} | dict.fromkeys(data_list.MEASURED, np.nan)
        measured = {name: getattr(info, name) for name in data_list.MEASURED}
        return {"file": file} | {
            k: v if data_list.possible(k, v) else np.nan for k, v in measured.items()
        }

    def lay_over(self, detector: DetectorFile) -> DetectorFile:
        """The same systems in a folder of their own, by links, so that their scores are written
        there.
        """
        top = self.folder / "exp"
        for name in detector.systems:
            (top / name).mkdir(parents=True, exist_ok=True)
            for part in (SYSTEM, experiment.CONFIG, load.WEIGHTS, PROPOSALS):
                if (source := detector.folder / name / part).exists():
                    (top / name / part).symlink_to(source.resolve())
        return dataclasses.replace(detector, folder=top)

    def run_stages(
        self, detector: DetectorFile, kinds: Iterable[str], device: str, lmm: str | None
    ) -> None:
        """Extract what the models need, run them, derive, localise: inputs before those that use
        them.
        """
        for kind in sorted(kinds):
            self._extract(kind, device, lmm)
        for name, entry in detector.systems.items():
            folder = detector.folder / name
            joins_proposals = isinstance(detector.loaded[name], Merged)
            if not joins_proposals:
                self._command(
                    "score",
                    str(folder),
                    "--split",
                    SPLIT,
                    "--lists",
                    str(self.folder / "lists"),
                    "--media",
                    str(self.folder / "media"),
                    "--features",
                    str(self.folder / "features"),
                    "--device",
                    device,
                )
            if "proposals" in entry or joins_proposals:
                self._command("localise", str(folder), "--split", SPLIT)

    def _extract(self, kind: str, device: str, lmm: str | None) -> None:
        out = self.folder / "features" / kind / SPLIT
        options = [
            "--kind",
            kind,
            "--list",
            str(self.list),
            "--root",
            str(self.folder / "media"),
            "--out",
            str(out),
        ]
        if kind == "lmm":
            if lmm is None:
                self._without_lmm(out)
                return
            options += ["--lmm", lmm, "--device", device]
        else:
            options += ["--jobs", str(min(len(self.files), os.cpu_count() or 1))]
        self._command("extract", *options)

    def _without_lmm(self, out: Path) -> None:
        """Shards that say of each file why it has no LMM features: the visual branch then does
        without.
        """
        rows = [LMMRow.failed(file, "lmm", "no LMM was given") for file in self.files]
        settings = {"kind": "lmm", "visual_dim": 0, "textual_dim": 0, "new_tokens": 0}
        shards.write_part(out, parts.Place(1, 1, 0, 1), rows, settings, inputs="")

    def _command(self, name: str, *arguments: str) -> None:
        module = importlib.import_module(f"klassify.commands.{name}")
        parser = argparse.ArgumentParser(f"klassify {name}")
        module.configure(parser)
        module.run(parser.parse_args(arguments))


class _Answers:
    """What the systems of a laid-over detector say, read once for all files."""

    def __init__(self, detector: DetectorFile):
        self.clips = {}
        self.frames = {}
        for name in detector.systems:
            folder = detector.folder / name
            if score_path(folder, SPLIT, "clips").exists():
                self.clips[name] = read_scores(score_path(folder, SPLIT, "clips"))
            if score_path(folder, SPLIT, "frames").exists():
                scores = read_scores(score_path(folder, SPLIT, "frames"))
                table = scores.table[["file", "start", "end"]].copy()
                table["probability"] = to_probability(
                    scores.table["score"].to_numpy(float), scores.header.scale
                )
                self.frames[name] = dict(list(table.groupby("file", observed=True, sort=False)))
        self.task1 = detector.answers["task1"]
        self.prior = detector.answering("task1").prior
        self.segments = read_scores(detector.answering("task2").path(SPLIT, "segments")).table

    def about(self, file: str, video: str, detector: DetectorFile) -> Prediction:
        scores = self.clips[self.task1]
        row = int(np.flatnonzero(scores.table["file"].to_numpy() == file)[0])
        probability = float(as_probability(scores)[row])
        answered = bool(systems_scores.answered(scores)[row])
        segments = self.segments[self.segments["file"] == file].drop(columns="file")
        where = detector.folder / DETECTOR
        return Prediction(
            file=video,
            probability=probability if np.isfinite(probability) else self.prior,
            answered=answered,
            reasons=self._reasons(file),
            segments=segments.sort_values("score", ascending=False, ignore_index=True),
            frames={name: tables[file] for name, tables in self.frames.items() if file in tables},
            detector=readable(where),
            notice=DEMO_NOTICE if on_generated_corpus(detector.folder) else "",
        )

    def _reasons(self, file: str) -> dict[str, str]:
        found = {}
        for name, scores in self.clips.items():
            row = scores.table[scores.table["file"] == file]
            reason = row["reason"].fillna("").iloc[0] if "reason" in row and len(row) else ""
            if reason:
                found[name] = str(reason)
        return found
