"""Raw videos in, answers out: no metadata, no data set layout, CPU or GPU.

    klassify predict clip.mp4 --out answers/
    klassify predict folder/ 'more/*.mp4' --recipe both --video

For each file: the probability that it is fake (Task 1's answer), the segments that may be (Task 2's), a JSON
file, a timeline (PNG) and, with --video, a copy with the marks drawn in. What runs is the detector.yaml of a
recipe: that of --detector, else the first that was trained, on a real data set before the generated corpus.
The given files become a data set of their own in a temporary folder, on which the stages' own commands run; an
answer is thus the one that a submission would hold.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import glob
import importlib
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify import decoding, lists, media, store, systems
from klassify.detector import DETECTOR, PROPOSALS, Detector, load_detector
from klassify.errors import KlassifyError, some
from klassify.files import write_json
from klassify.scorefile import read_scores, score_path
from klassify.store_kinds import LMMRow

SPLIT = "predict"
TRAINED_ON = ("avdeepfake1mpp", "avdeepfake1m", "lavdf", "fakeavceleb", "demo-large", "demo", "demo-tiny")
SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts")
DEMO_NOTICE = "These models were trained on the generated corpus alone: their answers about real videos mean nothing."
SHOWN_SEGMENTS = 5


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer about one video. Times in seconds, scores in [0, 1], higher = more fake.

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
            "file": self.file, "probability": self.probability, "answered": self.answered, "reasons": self.reasons,
            "segments": self.segments.to_dict("records"), "detector": self.detector, "notice": self.notice,
        }  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="files, folders (searched) or quoted globs")
    parser.add_argument("--recipe", choices=("klassify", "multibranch", "both"), default="klassify")
    parser.add_argument("--detector", type=Path, action="append", metavar="detector.yaml", help="instead of --recipe's")
    parser.add_argument("--exp", type=Path, default=Path("exp"), help="where trained systems lie (default: exp)")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder of the answers")
    parser.add_argument("--video", action="store_true", help="also write a copy of each video with the marks drawn in")
    parser.add_argument("--min-score", type=float, default=0.15, help="of segments that are shown (default 0.15)")
    parser.add_argument("--no-timeline", action="store_true", help="write no PNG")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default)")
    parser.add_argument("--lmm", help="multibranch: the LMM and its CLIP; without it the other branches answer alone")


def run(args: argparse.Namespace) -> int:
    """0 if every file got an answer that rests on evidence, else 1."""
    paths = find_videos(args.videos)
    names = ("klassify", "multibranch") if args.recipe == "both" else (args.recipe,)
    detectors = [load_detector(path) for path in args.detector or [find_detector(args.exp, name) for name in names]]
    unanswered = 0
    for detector in detectors:
        folder = args.out / detector.folder.name if len(detectors) > 1 else args.out
        for path, prediction in zip(paths, predict(detector, paths, device=args.device, lmm=args.lmm)):
            unanswered += not prediction.answered
            print(describe(prediction, args.min_score))
            _write(folder / output_name(path, paths), path, prediction, args)
        if detectors:
            print(f"{folder}{os.sep}")
    return int(unanswered > 0)


def find_videos(given: Iterable[str]) -> list[Path]:
    """The files that the arguments name, folders and globs expanded, each once; none is a KlassifyError."""
    found: dict[Path, None] = {}
    for text in given:
        path = Path(text)
        if path.is_dir():
            here = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        elif path.is_file():
            here = [path]
        else:
            here = sorted(Path(name) for name in glob.glob(text, recursive=True) if os.path.isfile(name))
        if not here:
            raise KlassifyError("There is no video here.", where=text, mend="give files, folders or quoted globs")
        found |= dict.fromkeys(here)
    return list(found)


def find_detector(exp: Path, recipe: str) -> Path:
    """The detector.yaml of a recipe, trained on a real data set if there is one, else on the generated corpus."""
    others = sorted(path.name for path in exp.iterdir() if path.is_dir()) if exp.is_dir() else []
    for name in dict.fromkeys((*TRAINED_ON, *others)):
        if (path := exp / name / recipe / DETECTOR).exists():
            return path
    raise KlassifyError(
        f"No detector of the recipe {recipe} was trained yet.", where=exp,
        mend=f"make demo recipe={recipe} (some minutes), or train on your data: make stage2 recipe={recipe}",
    )  # fmt: skip


def predict(
    detector: Detector, videos: Sequence[str | os.PathLike], *, device: str = "auto", lmm: str | None = None
) -> Iterator[Prediction]:
    """Answers about videos, in their order. A file that cannot be read gets the prior and the reasons."""
    with tempfile.TemporaryDirectory(prefix="klassify-predict-") as folder:
        data = _DataSet(Path(folder), [Path(video) for video in videos])
        overlay = data.lay_over(detector)
        with contextlib.redirect_stdout(io.StringIO()):
            data.run_stages(overlay, device, lmm)
        answers = _Answers(overlay)
        for video, file in zip(videos, data.files):
            yield answers.about(file, os.fspath(video), detector)


def feature_kinds(folder: Path) -> Sequence[str]:
    """The kinds of feature shards that a model reads, such as ("mouth",)."""
    import yaml

    data = yaml.safe_load((folder / systems.CONFIG).read_text(encoding="utf-8"))["data"]
    module, _, name = data["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**data.get("init_args", {})).feature_kinds


class _DataSet:
    """The given files as a data set: lists/, media/, features/ and, laid over a detector, exp/ in one folder."""

    def __init__(self, folder: Path, videos: Sequence[Path]):
        self.folder = folder
        self.files = [f"{number:06d}{video.suffix.lower()}" for number, video in enumerate(videos)]
        (folder / "media").mkdir()
        for file, video in zip(self.files, videos):
            (folder / "media" / file).symlink_to(video.resolve())
        (folder / "lists").mkdir()
        self.list = folder / "lists" / f"{SPLIT}.tsv"
        lists.write_list(self.list, pd.DataFrame([self._measured(file) for file in self.files]))

    def _measured(self, file: str) -> dict[str, Any]:
        try:
            info = decoding.probe(self.folder / "media" / file)
        except KlassifyError:
            return {"file": file, "n_frames": pd.NA, "fps": np.nan, "n_samples": pd.NA, "duration": np.nan}
        measured = {name: getattr(info, name) for name in ("n_frames", "fps", "n_samples", "duration")}
        return {"file": file} | measured

    def lay_over(self, detector: Detector) -> Detector:
        """The same systems in a folder of their own, by links, so that their scores are written there."""
        top = self.folder / "exp"
        for name in detector.systems:
            (top / name).mkdir(parents=True)
            for part in (systems.SYSTEM, systems.CONFIG, systems.WEIGHTS, PROPOSALS):
                if (source := detector.folder / name / part).exists():
                    (top / name / part).symlink_to(source.resolve())
        return dataclasses.replace(detector, folder=top)

    def run_stages(self, detector: Detector, device: str, lmm: str | None) -> None:
        """Extract what the models need, run them, derive, localise: inputs before those that use them."""
        models = [name for name, entry in detector.systems.items() if entry["kind"] == "model"]
        kinds = {kind for name in models for kind in feature_kinds(detector.folder / name)}
        for kind in sorted(kinds):
            self._extract(kind, device, lmm)
        for name, entry in detector.systems.items():
            folder = detector.folder / name
            joins_proposals = systems.load_system(folder).parameters.get("rule") == systems.PROPOSALS_RULE
            if not joins_proposals:
                self._command("score", str(folder), "--split", SPLIT, "--lists", str(self.folder / "lists"),
                              "--media", str(self.folder / "media"), "--features", str(self.folder / "features"),
                              "--device", device)  # fmt: skip
            if "proposals" in entry or joins_proposals:
                self._command("localise", str(folder), "--split", SPLIT)

    def _extract(self, kind: str, device: str, lmm: str | None) -> None:
        out = self.folder / "features" / kind / SPLIT
        options = ["--list", str(self.list), "--root", str(self.folder / "media"), "--out", str(out)]
        if kind == "lmm":
            if lmm is None:
                self._without_lmm(out)
                return
            options += ["--kind", kind, "--lmm", lmm, "--device", device]
        else:
            options += ["--jobs", str(min(len(self.files), os.cpu_count() or 1))]
        self._command("extract", *options)

    def _without_lmm(self, out: Path) -> None:
        """Shards that say of each file why it has no LMM features: the visual branch then does without."""
        rows = [LMMRow.failed(file, "lmm", "no LMM was given") for file in self.files]
        settings = {"kind": "lmm", "visual_dim": 0, "textual_dim": 0, "new_tokens": 0}
        store.write_part(out, store.Place(1, 1, 0, 1), rows, settings, inputs="")

    def _command(self, name: str, *arguments: str) -> None:
        module = importlib.import_module(f"klassify.{name}")
        parser = argparse.ArgumentParser(f"klassify {name}")
        module.configure(parser)
        module.run(parser.parse_args(arguments))


class _Answers:
    """What the systems of a laid-over detector say, read once for all files."""

    def __init__(self, detector: Detector):
        self.clips = {}
        self.frames = {}
        for name in detector.systems:
            folder = detector.folder / name
            if score_path(folder, SPLIT, "clips").exists():
                self.clips[name] = read_scores(score_path(folder, SPLIT, "clips"))
            if score_path(folder, SPLIT, "frames").exists():
                scores = read_scores(score_path(folder, SPLIT, "frames"))
                table = scores.table[["file", "start", "end"]].copy()
                table["probability"] = systems.to_probability(
                    scores.table["score"].to_numpy(float), scores.header.scale
                )
                self.frames[name] = dict(list(table.groupby("file", observed=True, sort=False)))
        self.task1 = detector.answering("task1").name
        self.prior = systems.prior_probability(systems.load_system(detector.answering("task1")))
        self.segments = read_scores(score_path(detector.answering("task2"), SPLIT, "segments")).table

    def about(self, file: str, video: str, detector: Detector) -> Prediction:
        scores = self.clips[self.task1]
        row = int(np.flatnonzero(scores.table["file"].to_numpy() == file)[0])
        probability = float(systems.as_probability(scores)[row])
        answered = bool(systems.answered(scores)[row])
        segments = self.segments[self.segments["file"] == file].drop(columns="file")
        where = detector.folder / DETECTOR
        return Prediction(
            file=video,
            probability=probability if np.isfinite(probability) else self.prior,
            answered=answered,
            reasons=self._reasons(file),
            segments=segments.sort_values("score", ascending=False, ignore_index=True),
            frames={name: tables[file] for name, tables in self.frames.items() if file in tables},
            detector=str(where),
            notice=DEMO_NOTICE if any(part.split("-")[0] == "demo" for part in where.parts) else "",
        )

    def _reasons(self, file: str) -> dict[str, str]:
        found = {}
        for name, scores in self.clips.items():
            row = scores.table[scores.table["file"] == file]
            reason = row["reason"].fillna("").iloc[0] if "reason" in row and len(row) else ""
            if reason:
                found[name] = str(reason)
        return found


def describe(prediction: Prediction, min_score: float) -> str:
    """A few lines for a terminal, with the best segments of at least `min_score`."""
    if prediction.answered:
        lines = [f"{prediction.file}: probability of fake {prediction.probability:.3f}"]
    else:
        why = some(sorted(set(prediction.reasons.values()))) or "no system has an answer"
        lines = [f"{prediction.file}: no evidence ({why}); prior {prediction.probability:.3f}"]
    likely = prediction.segments[prediction.segments["score"] >= min_score].head(SHOWN_SEGMENTS)
    lines += [
        f"  {row.start:8.2f} s to {row.end:8.2f} s  score {row.score:.3f}  {row.modality}"
        for row in likely.itertuples()
    ]
    if not len(likely):
        lines.append(f"  no segment with a score of {min_score:g} or more")
    if prediction.notice:
        lines.append(f"  {prediction.notice}")
    return "\n".join(lines)


def output_name(path: Path, paths: Sequence[Path]) -> str:
    """The stem of a file's answers; files of one name in several folders are told apart by a number."""
    same = [other for other in paths if other.stem == path.stem]
    return path.stem if len(same) == 1 else f"{path.stem}-{same.index(path) + 1}"


def _write(stem: Path, video: Path, prediction: Prediction, args: argparse.Namespace) -> None:
    write_json(stem.with_name(stem.name + ".json"), prediction.as_json())
    if args.no_timeline and not args.video:
        return
    from klassify import timeline

    try:
        if not args.no_timeline:
            timeline.draw(video, prediction, stem.with_name(stem.name + ".png"))
        if args.video:
            timeline.mark(video, prediction, stem.with_name(stem.name + ".marked.mp4"), args.min_score)
    except media.MediaError as error:
        print(f"  no picture of it: {error.what}")
