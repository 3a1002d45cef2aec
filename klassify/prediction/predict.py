"""Raw videos through a detector: the Python API behind `klassify predict`."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify import parts
from klassify.data.base import Sources
from klassify.errors import KlassifyError
from klassify.explanation.contributions import Explanation
from klassify.explanation.explain import Explainer
from klassify.features import audio_cache, shards
from klassify.features.avhubert_extraction import Extractor, load_encoder, settings_of
from klassify.features.base import Extraction, n_cpus
from klassify.features.extract import rows_in_order
from klassify.features.kinds import KINDS
from klassify.features.lips import LipsRow
from klassify.features.lmm.kind import LMMRow
from klassify.features.mouth.face import TORCH, is_by_torch
from klassify.files import read_json_mapping
from klassify.lists import data_list
from klassify.localisation.localise import choose, localise
from klassify.media import isolated
from klassify.models.lip_encoder import LipEncoder
from klassify.models.weights import EXPORTED
from klassify.prediction.answer import Answers, Prediction, evidence_of
from klassify.prediction.hub import located
from klassify.systems.detector import DETECTOR, PARTS, DetectorFile, read_detector
from klassify.systems.embeddings import write_embeddings
from klassify.systems.experiment import SETTINGS
from klassify.systems.exported import load_exported
from klassify.systems.merged import Merged
from klassify.systems.operating import RATES
from klassify.systems.score import score
from klassify.systems.system import EMBEDDING
from klassify.systems.trained import Trained
from klassify.untrusted import no_code_of


class Detector(DetectorFile):
    """A detector that answers about raw videos."""

    def predict(
        self,
        video: str | os.PathLike,
        *,
        device: str = "auto",
        precision: str | None = None,
        lmm: str | None = None,
        without_lmm: bool = False,
        avhubert: str | os.PathLike | None = None,
        false_alarms: float = RATES[0],
        explain: bool = False,
        runtime: str = "torch",
    ) -> Prediction:
        """The answer about one raw video file: see Prediction for shapes and units.

        device: cpu, cuda, cuda:1 or auto. precision: `32`, `tf32` or `bf16`, see
        klassify.models.devices.computing. lmm, without_lmm, avhubert, false_alarms, explain: see
        predict(), which is faster for many videos.
        """
        given = {"lmm": lmm, "without_lmm": without_lmm, "avhubert": avhubert}
        given["false_alarms"] = false_alarms
        how = {"device": device, "precision": precision, "explain": explain}
        how["runtime"] = runtime
        return next(predict(self, [video], **how, **given))


def load_detector(path: str | os.PathLike) -> Detector:
    """Read a detector.yaml, its folder, or `hf://owner/name[@revision]` of one that was published
    to the Hugging Face hub, and check that its systems are unchanged.
    """
    found = read_detector(located(path))
    return Detector(found.folder, found.answers, found.systems, found.points)


PRETRAINED = Path("pretrained")  # where docs/checkpoints.md puts published weights
LEFT_OUT = "the LMM was left out on request"
Progress = Callable[[int, Path], None]
# kinds of features that need no model of the detector's own
EXTRACTED = ("mouth", "audio", "lmm", "lips", "avhubert")


def predict(
    detector: DetectorFile,
    videos: Sequence[str | os.PathLike],
    *,
    device: str = "auto",
    precision: str | None = None,
    jobs: int | None = None,
    lmm: str | None = None,
    without_lmm: bool = False,
    avhubert: str | os.PathLike | None = None,
    false_alarms: float = RATES[0],
    explain: bool = False,
    runtime: str = "torch",
    progress: Progress | None = None,
) -> Iterator[Prediction]:
    """Answers about videos, in their order, each as soon as it is ready. A file that cannot be
    read gets the prior and the reasons.

    progress: called as each video begins, with the number of those before it and its path.

    lmm: where the LMM of the multi-branch system is, if not under the name that detector.yaml
    records. without_lmm: leave it out, which changes the answers. avhubert: weights of AV-HuBERT,
    for a detector such as AuViRe that reads its features.

    false_alarms: the rate at which verdicts are given, one of the detector's operating points.
    explain: also say why (klassify.explanation); takes some seconds a clip, more for large models.

    runtime: `torch`, or `onnx`: the systems of by_onnx are answered by onnxruntime, within
    klassify.systems.exported.TOLERANCE of torch, the others by torch.
    """
    if detector.points is not None:
        detector.points.at(false_alarms)  # before any work
    exported = {}
    if runtime == "onnx":
        if explain or precision not in (None, "32"):
            raise KlassifyError(
                "Exported models give no explanations and compute in float32.",
                fix="leave out --explain and --precision, or --runtime onnx",
            )
        exported = {
            name: load_exported(detector.loaded[name], device) for name in by_onnx(detector)[0]
        }
    kinds = needed_kinds(detector)
    extractions = {
        kind: lmm_of(detector, device, lmm)
        if kind == "lmm"
        else KINDS[kind].extraction(
            jobs=jobs or min(len(videos), n_cpus()), **face_of(detector, kind, device)
        )
        for kind in sorted(kinds - {"avhubert"})
        if not (kind == "lmm" and without_lmm)
    }
    encoder = None
    if "avhubert" in kinds:
        weights = avhubert_of(detector, avhubert)
        crops = {"kind": "lips", **extractions["lips"].settings}
        encoder = load_encoder(weights, device), settings_of(weights, crops)
    with tempfile.TemporaryDirectory(prefix="klassify-predict-") as folder:
        how = {"device": device, "precision": precision}
        work = _Work(Path(folder), detector, [Path(video) for video in videos], how, explain)
        work.encoder = encoder
        work.models |= exported
        yield from work.answers(kinds, extractions, false_alarms, progress)


def by_onnx(detector: DetectorFile) -> tuple[list[str], list[str]]:
    """The trained systems of a detector that onnxruntime can answer for, and the others.

    The others have no model.onnx, or make the embeddings that other systems read. KlassifyError
    where there are only others.
    """
    trained = {name: one for name, one in detector.loaded.items() if isinstance(one, Trained)}
    encoders = {encoder.folder for one in trained.values() for encoder in one.input_systems}
    exported = [
        name
        for name, one in trained.items()
        if (one.folder / EXPORTED).exists() and one.folder not in encoders
    ]
    if not exported:
        what = "No system of this detector is exported."
        fix = f"klassify export {detector.folder}, or leave out --runtime onnx"
        raise KlassifyError(what, where=detector.folder / DETECTOR, fix=fix)
    return exported, [name for name in trained if name not in exported]


def avhubert_of(detector: DetectorFile, weights: str | os.PathLike | None) -> Path:
    """The weights of AV-HuBERT for a detector that reads its features; KlassifyError without."""
    if weights is None:
        raise KlassifyError(
            "This detector reads AV-HuBERT features of mouth and sound, and does not hold the"
            " weights that make them; their licence forbids passing them on.",
            where=detector.folder / DETECTOR,
            fix="--avhubert base_lrs3_iter4.pt, the file that its features were made with",
        )
    if not Path(weights).is_file():
        raise KlassifyError("This file of weights does not exist.", where=weights)
    return Path(weights)


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


def face_of(detector: DetectorFile, kind: str, device: str = "auto") -> dict[str, Any]:
    """The arguments of the extraction of a kind that say how a face is found: as for the features
    that the detector's systems have learned from.
    """
    for system in detector.loaded.values():
        record = system.folder / SETTINGS
        made_with = read_json_mapping(record) if record.exists() else {}
        for of in made_with.values():
            if isinstance(of, dict) and of.get("kind") == kind and "refine" in of:
                by_torch = {"landmarks": TORCH, "device": device} if is_by_torch(of) else {}
                return {"refine": bool(of["refine"]), **by_torch}
    return {}


def needed_kinds(detector: DetectorFile) -> set[str]:
    """The kinds of features that its models read, such as {"mouth", "audio"}, without embeddings,
    which its own encoders make.

    KlassifyError, before any work, for a detector that cannot answer here.
    """
    detector.answering("task1")
    models = [system for system in detector.loaded.values() if isinstance(system, Trained)]
    by_folder = {}
    for system in models:
        with no_code_of(detector.folder):
            data = system.data()
        kinds = {kind for kind in data.feature_kinds if not kind.startswith(EMBEDDING)}
        # so that sound is decoded once for all models
        by_folder[system.folder] = kinds | ({"audio"} if data.modality == "audio" else set())
    for folder, kinds in by_folder.items():
        if other := sorted(kinds.difference(EXTRACTED)):
            raise KlassifyError(
                f"This system reads features of the kind {', '.join(other)}, which a model of its"
                f" own makes; of raw videos only {' and '.join(EXTRACTED)} are made.",
                where=folder,
                fix="extract them, then klassify score",
            )
    needed = set().union(*by_folder.values())
    return needed | {"lips"} if "avhubert" in needed else needed


def _suffix(video: Path) -> str:
    """Its suffix, if that is a plain one."""
    return video.suffix.lower() if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", video.suffix) else ""


class _Work:
    """The given files as data sets of one clip each, in a temporary folder: lists/, media/,
    features/ and exp/, the detector's systems by links, so that their scores are written there.
    """

    def __init__(
        self,
        folder: Path,
        detector: DetectorFile,
        videos: Sequence[Path],
        how: dict[str, str | None],
        explain: bool,
    ):
        self.folder, self.detector, self.how, self.explain = folder, detector, how, explain
        self.videos = videos
        self.files = [f"{number:06d}{_suffix(video)}" for number, video in enumerate(videos)]
        for name in ("media", "lists"):
            (folder / name).mkdir()
        for file, video in zip(self.files, videos):
            (folder / "media" / file).symlink_to(video.resolve())
        self.overlay = dataclasses.replace(detector, folder=folder / "exp")
        for name in detector.systems:
            (self.overlay.folder / name).mkdir(parents=True, exist_ok=True)
            for part in PARTS:
                if (source := detector.folder / name / part).exists():
                    (self.overlay.folder / name / part).symlink_to(source.resolve())
        self.sources = Sources(folder / "lists", folder / "media", folder / "features")
        self.models: dict[str, Any] = {}
        self.encoder: tuple[LipEncoder, dict[str, Any]] | None = None  # and its features' settings

    def answers(
        self,
        kinds: Iterable[str],
        extractions: Mapping[str, Extraction],
        false_alarms: float,
        progress: Progress | None,
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
            if self.encoder is not None:
                self._write_avhubert(split, file, found["lips"])
            if left_out:
                row = LMMRow.failed(file, "lmm", LEFT_OUT)
                sizes = dict.fromkeys(("visual_dim", "textual_dim", "new_tokens"), 0)
                self._write_features("lmm", split, row, {"kind": "lmm", **sizes})
            measured = self._measured(file)
            data_list.write_list(self.sources.lists / f"{split}.tsv", pd.DataFrame([measured]))
            with no_code_of(self.detector.folder):
                self._run(split)
                explanation = self._explanation(split, file) if self.explain else None
            answer = Answers(self.overlay, split, found)
            # the frames of an encoder may end after the clip, which a submission's segments do not
            ends = answer.segments["end"].clip(upper=measured["duration"])
            answer.segments = answer.segments.assign(end=ends)
            evidence = evidence_of(measured, found)
            about = answer.about(video, self.detector, evidence, left_out, false_alarms)
            if explanation is not None:
                explanation = dataclasses.replace(explanation, file=about.file)
            yield dataclasses.replace(about, explanation=explanation)
            for path in self.overlay.folder.glob(f"*/scores/{split}.*"):
                path.unlink()

    def _write_features(self, kind: str, split: str, row: Any, settings: dict[str, Any]) -> None:
        write = audio_cache.write_part if kind == "audio" else shards.write_part
        folder = self.sources.feature_folder(kind, split)
        write(folder, parts.Place(1, 1, 0, 1), [row], settings, inputs="")

    def _write_avhubert(self, split: str, file: str, crops: LipsRow) -> None:
        model, settings = self.encoder
        (row,) = Extractor(self.folder / "media", model, {file: crops}).rows([file])
        self._write_features("avhubert", split, row, {"kind": "avhubert", **settings})

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
            for encoder in system.input_systems if isinstance(system, Trained) else ():
                self._embed(encoder, split)
            if not joins_proposals:
                loaded = self.models.get(name)
                score(system, split, self.sources, **self.how, loaded=loaded)
            if "proposals" in entry or joins_proposals:
                localise(system, split, choose(system))

    def _explanation(self, split: str, file: str) -> Explanation:
        others = [self.overlay.answering("task2")] if "task2" in self.overlay.answers else []
        loaded = {self.overlay.loaded[name].name: model for name, model in self.models.items()}
        how = {"others": others, "device": self.how["device"], "loaded": loaded}
        answer = self.overlay.answering("task1")
        return Explainer(answer, split, self.sources, **how).explain(file)

    def _embed(self, encoder: Trained, split: str) -> None:
        """The embeddings of a clip by one of the detector's encoders, unless they are there."""
        if self.sources.feature_folder(f"{EMBEDDING}{encoder.name}", split).exists():
            return
        name = os.path.relpath(encoder.folder, self.overlay.folder)
        model = self.models[name][0]
        write_embeddings(encoder, model, self.sources, split, device=self.how["device"])
