"""Raw videos through a detector: the Python API behind `klassify predict`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.abc
import importlib.machinery
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify import parts
from klassify.data.base import Sources
from klassify.errors import KlassifyError
from klassify.features import shards
from klassify.features.base import Extraction, n_cpus
from klassify.features.extract import rows_in_order
from klassify.features.kinds import KINDS
from klassify.features.lmm.kind import LMMRow
from klassify.features.mouth.kind import MouthRow
from klassify.files import readable
from klassify.grid.frames import pictures_at
from klassify.lists import data_list
from klassify.localisation.localise import choose, localise
from klassify.media import info, isolated
from klassify.media.decoder import SAMPLE_RATE
from klassify.models.weights import WEIGHTS
from klassify.scores.score_file import SHARES, read_scores, score_path
from klassify.systems import experiment
from klassify.systems import scores as systems_scores
from klassify.systems.base import SYSTEM
from klassify.systems.detector import (
    DETECTOR,
    GENERATED_NOTICE,
    DetectorFile,
    on_generated_corpus,
    read_detector,
)
from klassify.systems.merged import Merged
from klassify.systems.score import score
from klassify.systems.scores import PROPOSALS, as_probability, to_probability
from klassify.systems.trained import Trained


class Detector(DetectorFile):
    """A detector that answers about raw videos."""

    def predict(
        self,
        video: str | os.PathLike,
        *,
        device: str = "auto",
        lmm: str | None = None,
        without_lmm: bool = False,
    ) -> Prediction:
        """The answer about one raw video file: see Prediction for shapes and units.

        device: cpu, cuda, cuda:1 or auto. lmm, without_lmm: see predict(), which is faster for many
        videos.
        """
        return next(predict(self, [video], device=device, lmm=lmm, without_lmm=without_lmm))


def load_detector(path: str | os.PathLike) -> Detector:
    """Read a detector.yaml (or the folder it lies in) and check that its systems are still the
    same.
    """
    found = read_detector(path)
    return Detector(found.folder, found.answers, found.systems)


PRETRAINED = Path("pretrained")  # where docs/gpu-box.md puts published weights
LEFT_OUT = "the LMM was left out on request"
NO_TASK_2 = "this detector finds no segments: its systems learned from clip labels alone"
HEARD_OR_SEEN = {"audio": "sound", "visual": "picture"}
Progress = Callable[[int, Path], None]
EXTRACTED = ("mouth", "audio", "lmm")  # kinds of features that need no model of the detector's own


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer about one video. Times in seconds, scores in [0, 1], higher = more fake.

    file: as it was given, bytes of its name that are not UTF-8 escaped.
    probability: that anything in the video is fake; the prior where nothing could be heard or seen.
    answered: whether the probability rests on evidence. reasons: {system: why it has no answer}.
    segments: proposals, best first, with the columns start, end, score, modality, method.
    frames: {system: table of its frames with start, end and probability of fake, NaN where a
    system that looks at faces saw none}.
    detector: what answered; notice: what to know about it, "" if nothing.
    evidence: what was heard and seen. decided: the part or parts that decided, "" without evidence.
    notes: what to know of how the file was read (media.info.notes).
    seen, heard: the shares of the clip that the probability rests on, NaN where unknown.
    """

    file: str
    probability: float
    answered: bool
    reasons: dict[str, str]
    segments: pd.DataFrame
    frames: dict[str, pd.DataFrame]
    detector: str
    notice: str
    evidence: str = ""
    decided: str = ""
    notes: Sequence[str] = ()
    seen: float = np.nan
    heard: float = np.nan

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file, without the frames."""
        return {
            "file": self.file,
            "probability": self.probability,
            "answered": self.answered,
            "seen": None if np.isnan(self.seen) else self.seen,
            "heard": None if np.isnan(self.heard) else self.heard,
            "evidence": self.evidence,
            "decided": self.decided,
            "reasons": self.reasons,
            "segments": self.segments.to_dict("records"),
            "detector": self.detector,
            "notice": self.notice,
            "notes": list(self.notes),
        }


def predict(
    detector: DetectorFile,
    videos: Sequence[str | os.PathLike],
    *,
    device: str = "auto",
    jobs: int | None = None,
    lmm: str | None = None,
    without_lmm: bool = False,
    progress: Progress | None = None,
) -> Iterator[Prediction]:
    """Answers about videos, in their order, each as soon as it is ready. A file that cannot be
    read gets the prior and the reasons.

    progress: called as each video begins, with the number of those before it and its path.

    lmm: where the LMM of the multi-branch system is, if not under the name that detector.yaml
    records. without_lmm: leave it out, which changes the answers.
    """
    kinds = needed_kinds(detector)
    extractions = {
        kind: lmm_of(detector, device, lmm)
        if kind == "lmm"
        else KINDS[kind].extraction(jobs=jobs or min(len(videos), n_cpus()))
        for kind in sorted(kinds)
        if not (kind == "lmm" and without_lmm)
    }
    with tempfile.TemporaryDirectory(prefix="klassify-predict-") as folder:
        work = _Work(Path(folder), detector, [Path(video) for video in videos], device)
        yield from work.answers(kinds, extractions, progress)


def lmm_of(detector: DetectorFile, device: str = "auto", lmm: str | None = None) -> Extraction:
    """How the LMM features of a detector are made: with the LMM that its stage 1 used.

    KlassifyError where that one is unknown, is not on this machine, or is not `lmm`.
    """
    recorded = [entry["lmm"] for entry in detector.systems.values() if entry.get("lmm")]
    where = detector.folder / DETECTOR
    known = recorded[0] if recorded else {}
    if any(other != known for other in recorded):
        raise KlassifyError("The systems of this detector use several LMMs.", where=where)
    name = lmm or known.get("lmm")
    if name is None:
        raise KlassifyError(
            "This detector needs an LMM, and does not record which.",
            where=where,
            fix="--lmm NAME, the one of stage 1; or --without-lmm, which changes the answers",
        )
    if lmm is None and not Path(name).exists() and (PRETRAINED / name).is_dir():
        name = str(PRETRAINED / name)
    arguments = {key: known[key] for key in ("clip", "interval") if key in known}
    try:
        made = KINDS["lmm"].extraction(lmm=name, device=device, **arguments)
    except KlassifyError as error:
        if lmm is not None:
            raise
        raise KlassifyError(
            f"This detector needs the LMM {name}, which is not here: {error.what}",
            where=where,
            fix="--lmm FOLDER, where it is; or --without-lmm, which changes the answers",
        ) from None
    if known and made.settings["lmm_files"] != known["lmm_files"]:
        raise KlassifyError(
            f"{name} is not the LMM of this detector, {known['lmm']}: their files differ.",
            where=where,
            fix="--lmm FOLDER of the right one; or --without-lmm, which changes the answers",
        )
    return made


def needed_kinds(detector: DetectorFile) -> set[str]:
    """The kinds of feature shards that its models read, such as {"mouth"}.

    KlassifyError, before any work, for a detector that cannot answer here.
    """
    detector.answering("task1")
    models = [system for system in detector.loaded.values() if isinstance(system, Trained)]
    with _no_code_of(detector.folder):
        by_folder = {system.folder: set(system.data().feature_kinds) for system in models}
    for folder, kinds in by_folder.items():
        if other := sorted(kinds.difference(EXTRACTED)):
            raise KlassifyError(
                f"This system reads features of the kind {', '.join(other)}, which a model of its"
                f" own makes; of raw videos only {' and '.join(EXTRACTED)} are made.",
                where=folder,
                fix="extract them, then klassify score",
            )
    return set().union(*by_folder.values())


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
            Path(path).resolve()
            for path in (Path(__file__).parents[1], sys.prefix, sys.base_prefix)
        ]

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or not spec.has_location:
            return
        place = Path(spec.origin).resolve()
        if place.is_relative_to(self.folder) and not any(map(place.is_relative_to, self.installed)):
            what = "A config names code in the detector's own folder, which is not run."
            raise KlassifyError(
                what, where=place, fix="if you trust it, move it to a folder of your own"
            )


def _notes_on(video: str | os.PathLike) -> list[str]:
    try:
        return isolated.call(info.notes, video)
    except KlassifyError:  # the reasons of the systems tell of it
        return []


def _suffix(video: Path) -> str:
    """Its suffix, if that is a plain one."""
    return video.suffix.lower() if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", video.suffix) else ""


class _Work:
    """The given files as data sets of one clip each, in a temporary folder: lists/, media/,
    features/ and exp/, the detector's systems by links, so that their scores are written there.
    """

    def __init__(self, folder: Path, detector: DetectorFile, videos: Sequence[Path], device: str):
        self.folder, self.detector, self.device = folder, detector, device
        self.videos = videos
        self.files = [f"{number:06d}{_suffix(video)}" for number, video in enumerate(videos)]
        for name in ("media", "lists"):
            (folder / name).mkdir()
        for file, video in zip(self.files, videos):
            (folder / "media" / file).symlink_to(video.resolve())
        self.overlay = dataclasses.replace(detector, folder=folder / "exp")
        for name in detector.systems:
            (self.overlay.folder / name).mkdir(parents=True, exist_ok=True)
            for part in (SYSTEM, experiment.CONFIG, experiment.SETTINGS, WEIGHTS, PROPOSALS):
                if (source := detector.folder / name / part).exists():
                    (self.overlay.folder / name / part).symlink_to(source.resolve())
        self.sources = Sources(folder / "lists", folder / "media", folder / "features")
        self.models: dict[str, Any] = {}

    def answers(
        self, kinds: Iterable[str], extractions: Mapping[str, Extraction], progress: Progress | None
    ) -> Iterator[Prediction]:
        """Each file's answer: its features are extracted while those before it are scored."""
        media = self.folder / "media"
        rows = {kind: rows_in_order(made, media, self.files) for kind, made in extractions.items()}
        left_out = {"lmm": LEFT_OUT} if "lmm" in kinds and "lmm" not in extractions else {}
        for number, (file, video) in enumerate(zip(self.files, self.videos)):
            if progress is not None:
                progress(number, video)
            split = f"clip{number:06d}"
            found = {kind: next(of_kind) for kind, of_kind in rows.items()}
            for kind, row in found.items():
                settings = {"kind": kind, **extractions[kind].settings}
                self._write_features(kind, split, row, settings)
            if left_out:
                row = LMMRow.failed(file, "lmm", LEFT_OUT)
                sizes = dict.fromkeys(("visual_dim", "textual_dim", "new_tokens"), 0)
                self._write_features("lmm", split, row, {"kind": "lmm", **sizes})
            measured = self._measured(file)
            data_list.write_list(self.sources.lists / f"{split}.tsv", pd.DataFrame([measured]))
            with _no_code_of(self.detector.folder):
                self._run(split)
            mouth = found.get("mouth")
            answer = _Answers(self.overlay, split, mouth)
            evidence = _evidence(measured, mouth)
            yield answer.about(video, self.detector, evidence, left_out)
            for path in self.overlay.folder.glob(f"*/scores/{split}.*"):
                path.unlink()

    def _write_features(self, kind: str, split: str, row: Any, settings: dict[str, Any]) -> None:
        folder = self.sources.feature_folder(kind, split)
        shards.write_part(folder, parts.Place(1, 1, 0, 1), [row], settings, inputs="")

    def _measured(self, file: str) -> dict[str, Any]:
        try:
            info = isolated.probe(self.folder / "media" / file)
        except KlassifyError:
            return {"file": file} | dict.fromkeys(data_list.MEASURED, np.nan)
        measured = {name: getattr(info, name) for name in data_list.MEASURED}
        return {"file": file} | {
            k: v if data_list.possible(k, v) else np.nan for k, v in measured.items()
        }

    def _run(self, split: str) -> None:
        """Score and localise with every system, inputs before those that use them."""
        for name, entry in self.overlay.systems.items():
            system = self.overlay.loaded[name]
            joins_proposals = isinstance(system, Merged)
            if isinstance(system, Trained) and name not in self.models:
                self.models[name] = system.load()
            if not joins_proposals:
                loaded = self.models.get(name)
                score(system, split, self.sources, device=self.device, loaded=loaded)
            if "proposals" in entry or joins_proposals:
                localise(system, split, choose(system))


def _evidence(measured: Mapping[str, Any], mouth: MouthRow | None) -> str:
    """What was heard and seen of a clip: "sound: 4.1 s; picture: face in 96 of 103 frames"."""
    samples, frames = (np.nan_to_num(measured[name]) for name in ("n_samples", "n_frames"))
    sound = f"sound: {samples / SAMPLE_RATE:.1f} s" if samples else "no sound"
    if mouth is not None and len(mouth.valid):
        return f"{sound}; picture: face in {int(mouth.valid.sum())} of {len(mouth.valid)} frames"
    return f"{sound}; picture: {int(frames)} frames" if frames else f"{sound}; no picture"


class _Answers:
    """What the systems of a laid-over detector say about one clip."""

    def __init__(self, detector: DetectorFile, split: str, mouth: MouthRow | None):
        self.clips = {}
        self.frames = {}
        self.detector, self.mouth = detector, mouth
        for name in detector.systems:
            folder = detector.folder / name
            if score_path(folder, split, "clips").exists():
                self.clips[name] = read_scores(score_path(folder, split, "clips"))
            if score_path(folder, split, "frames").exists():
                scores = read_scores(score_path(folder, split, "frames"))
                table = scores.table[["start", "end"]].copy()
                table["probability"] = to_probability(
                    scores.table["score"].to_numpy(float), scores.header.scale
                )
                if mouth is not None and detector.systems[name]["modality"] == "visual":
                    grid = {"hop_s": scores.header.hop_s, "offset_s": scores.header.offset_s}
                    at = pictures_at(len(table), **grid)
                    seen = (at < len(mouth.valid)) & mouth.valid.take(at, mode="clip")
                    table.loc[~seen, "probability"] = np.nan
                if len(table):
                    self.frames[name] = table
        self.segments = pd.DataFrame(columns=["start", "end", "score", "modality"])
        if "task2" in detector.answers:
            proposals = read_scores(detector.answering("task2").path(split, "segments"))
            self.segments = proposals.table.drop(columns="file")

    def about(
        self, video: Path, detector: DetectorFile, evidence: str, left_out: Mapping[str, str]
    ) -> Prediction:
        task1 = detector.answers["task1"]
        seen, heard = self._shares(task1)
        answered = self._answered(task1)
        probability = float(as_probability(self.clips[task1])[0])
        shares = [f"{name} {share:.0%}" for name, share in zip(SHARES, (seen, heard)) if share >= 0]
        shares = f" ({', '.join(shares)} of the clip)" if shares else ""
        notices = [
            f"T{why[1:]}: the answers differ from a submission's." for why in left_out.values()
        ]
        if on_generated_corpus(detector.folder):
            notices.append(GENERATED_NOTICE)
        return Prediction(
            file=readable(video),
            probability=probability if answered else self.detector.answering("task1").prior,
            answered=answered,
            reasons=self._reasons() | dict(left_out),
            segments=self.segments.sort_values("score", ascending=False, ignore_index=True),
            frames=self.frames,
            detector=readable(detector.folder / DETECTOR),
            notice=" ".join(notices),
            evidence=evidence + shares,
            decided=", ".join(self._decided(task1)) if answered else "",
            notes=[*_notes_on(video), *([] if "task2" in detector.answers else [NO_TASK_2])],
            seen=seen,
            heard=heard,
        )

    def _shares(self, name: str) -> list[float]:
        """The shares of the clip that were seen and heard, NaN where a system does neither."""
        table = self.clips[name].table
        return [float(table[one].iloc[0]) if one in table else np.nan for one in SHARES]

    def _answered(self, name: str) -> bool:
        return bool(systems_scores.answered(self.clips[name])[0])

    def _decided(self, name: str) -> list[str]:
        """The models behind the answer of a system."""
        entry = self.detector.systems[name]
        if entry["kind"] == "model":
            return [f"{name} ({HEARD_OR_SEEN.get(entry['modality'], 'sound and picture')})"]
        given = [one for one in entry["inputs"] if one in self.clips and self._answered(one)]
        scores = {one: self.clips[one] for one in given}
        deciding = self.detector.loaded[name].deciding(scores)
        return [part for one in deciding for part in self._decided(one)]

    def _reasons(self) -> dict[str, str]:
        found = {}
        for name, scores in self.clips.items():
            reason = scores.table["reason"].fillna("").iloc[0] if "reason" in scores.table else ""
            if reason:
                found[name] = str(reason)
        return found
