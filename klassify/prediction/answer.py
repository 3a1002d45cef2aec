"""The answer about one video: what the systems of a detector say, as one Prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.explanation.contributions import MODALITIES, Explanation
from klassify.features.audio_cache import SILENT, AudioRow
from klassify.features.mouth.kind import MouthRow
from klassify.files import readable
from klassify.grid.frames import pictures_at
from klassify.media import info, isolated
from klassify.media.decoder import SAMPLE_RATE
from klassify.scores.score_file import SHARES, read_scores, score_path
from klassify.systems import scores as systems_scores
from klassify.systems.detector import DETECTOR, GENERATED_NOTICE, DetectorFile, on_generated_corpus
from klassify.systems.operating import RATES, Verdict
from klassify.systems.scores import as_probability, to_probability

NO_TASK_2 = "this detector finds no segments: its systems learned from clip labels alone"
SHOWN_SEGMENTS = 5
NO_POINTS = "this detector has no operating points (klassify detector --labels adds them)"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer about one video. Times in seconds, scores in [0, 1], higher = more fake.

    file: as it was given, bytes of its name that are not UTF-8 escaped.
    probability: that anything in the video is fake; the prior where nothing could be heard or seen.
    answered: whether the probability rests on evidence. reasons: {system: why it has no answer}.
    segments: proposals, best first, with the columns start, end, score, modality, method.
    frames: {system: table of its frames with start, end and probability of fake, NaN where the
    file has no sound for a system that hears, or no face for one that looks at faces}.
    detector: what answered; notice: what to know about it, "" if nothing.
    evidence: what was heard and seen. decided: the part or parts that decided, "" without evidence.
    notes: what to know of how the file was read: choices between tracks, offsets, damage.
    seen, heard: the shares of the clip that the probability rests on, NaN where unknown.
    verdict: fake, real or cannot tell at a false-alarm rate (klassify.systems.operating); "" where
    there is none, and its note says why.
    explanation: why the systems say so, if that was asked for.
    modalities: {system: "sound", "picture" or "sound and picture"} of those with frames.
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
    verdict: Verdict = Verdict(note=NO_POINTS)
    explanation: Explanation | None = None
    modalities: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file, without the frames, and of the explanation the sentence."""
        why = {} if self.explanation is None else {"why": self.explanation.sentence}
        return {
            "file": self.file,
            "probability": self.probability,
            "verdict": dataclasses.asdict(self.verdict),
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
            **why,
        }

    def as_text(self, min_score: float) -> str:
        """A few lines for a terminal, with the best segments of at least `min_score`."""
        if self.answered:
            lines = [f"{self.file}: probability of fake {self.probability:.3f}"]
        else:
            why = _own_reasons(self.reasons) or "no system has an answer"
            lines = [f"{self.file}: no evidence ({why}); prior {self.probability:.3f}"]
        verdict = self.verdict
        if verdict.answer:
            lines.append(f"  {verdict.answer} at {verdict.at} ({verdict.note})")
        elif self.answered:
            lines.append(f"  no verdict{f' at {verdict.at}' if verdict.at else ''}: {verdict.note}")
        decided = f"; decided by {self.decided}" if self.decided else ""
        lines.append(f"  {self.evidence}{decided}")
        if self.explanation is not None and self.answered:
            lines.append(f"  why: {self.explanation.sentence}")
        likely = self.segments[self.segments["score"] >= min_score].head(SHOWN_SEGMENTS)
        if len(likely):
            lines.append("  may be fake, best first (scores from 0 to 1; segments may overlap):")
        lines += [
            f"  {row.start:8.2f} s to {row.end:8.2f} s  score {row.score:.3f}  {row.modality}"
            for row in likely.itertuples()
        ]
        if not len(likely) and NO_TASK_2 not in self.notes:
            lines.append(f"  no segment with a score of {min_score:g} or more")
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


def _own_reasons(reasons: Mapping[str, str]) -> str:
    """Each reason once, without those of fusions, which name their inputs and repeat theirs."""
    named = tuple(f"{name}: " for name in reasons)
    own = sorted({reason for reason in reasons.values() if not reason.startswith(named)})
    return first_few(reason.removesuffix(".") for reason in own)


def evidence_of(measured: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    """What was heard and seen of a clip: "sound: 4.1 s; picture: face in 96 of 103 frames".

    measured: of its data list; rows: its features by kind.
    """
    samples, frames = (np.nan_to_num(measured[name]) for name in ("n_samples", "n_frames"))
    if "audio" in rows:  # decoded sound may end with padding behind the clip
        samples = min(samples, rows["audio"].n_heard) or rows["audio"].n_heard
    mouth = rows.get("mouth")
    nothing = SILENT if "audio" in rows and rows["audio"].reason == SILENT else "no sound"
    sound = f"sound: {samples / SAMPLE_RATE:.1f} s" if samples else nothing
    if mouth is not None and len(mouth.valid):
        return f"{sound}; picture: face in {int(mouth.valid.sum())} of {len(mouth.valid)} frames"
    return f"{sound}; picture: {int(frames)} frames" if frames else f"{sound}; no picture"


class Answers:
    """What the systems of a laid-over detector say about one clip, whose features by kind are
    `rows`.
    """

    def __init__(self, detector: DetectorFile, split: str, rows: Mapping[str, Any]):
        self.clips = {}
        self.frames = {}
        self.detector, self.rows = detector, rows
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
                modality = detector.systems[name]["modality"]
                if modality == "visual" and "mouth" in rows:
                    grid = {"hop_s": scores.header.hop_s, "offset_s": scores.header.offset_s}
                    table.loc[~_seen(rows["mouth"], len(table), grid), "probability"] = np.nan
                if modality == "audio" and "audio" in rows:
                    table.loc[_in_gaps(rows["audio"], table), "probability"] = np.nan
                if len(table):
                    self.frames[name] = table
        self.segments = pd.DataFrame(columns=["start", "end", "score", "modality"])
        if "task2" in detector.answers:
            proposals = read_scores(detector.answering("task2").path(split, "segments"))
            self.segments = proposals.table.drop(columns="file")
            self.segments["modality"] = self.segments["modality"].replace("both", _present(rows))

    def about(
        self,
        video: Path,
        detector: DetectorFile,
        evidence: str,
        left_out: Mapping[str, str],
        false_alarms: float = RATES[0],
    ) -> Prediction:
        """The answer. left_out: {kind of features: why there are none}; false_alarms: the rate of
        the verdict.
        """
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
            notes=[*self._notes_on(video), *([] if "task2" in detector.answers else [NO_TASK_2])],
            seen=seen,
            heard=heard,
            verdict=self._verdict(task1, left_out, false_alarms),
            modalities={
                name: MODALITIES[self.detector.systems[name]["modality"]] for name in self.frames
            },
        )

    def _notes_on(self, video: Path) -> list[str]:
        try:
            found = isolated.call(info.notes, video)
        except KlassifyError:  # the reasons of the systems tell of it
            found = []
        for row in self.rows.values():
            found += getattr(row, "notes", ())  # rows of the LMM have none
        return list(dict.fromkeys(found))  # kinds that decode the same stream say the same

    def _verdict(self, task1: str, left_out: Mapping[str, str], false_alarms: float) -> Verdict:
        points = self.detector.points
        if points is None:
            return Verdict(note=NO_POINTS)
        at = points.at(false_alarms).name
        if not self._answered(task1):
            return Verdict(at=at, note="there is no evidence")
        if left_out:
            return Verdict(at=at, note=f"thresholds do not apply: {'; '.join(left_out.values())}")
        return points.verdict(float(self.clips[task1].table["score"].iloc[0]), false_alarms)

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
            return [f"{name} ({MODALITIES[entry['modality']]})"]
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


def _present(rows: Mapping[str, Any]) -> str:
    """What a fusion of both modalities had of a clip: both, or the one that is there."""
    if "mouth" in rows and not rows["mouth"].valid.any():
        return "audio"
    return "visual" if "audio" in rows and not rows["audio"].n_heard else "both"


def _seen(mouth: MouthRow, n_frames: int, grid: Mapping[str, float]) -> np.ndarray:
    """Whether each frame of scores shows a face, (n_frames,) bool."""
    at = pictures_at(n_frames, **grid)
    return (at < len(mouth.valid)) & mouth.valid.take(at, mode="clip")


def _in_gaps(audio: AudioRow, table: pd.DataFrame) -> np.ndarray:
    """Whether the middle of each frame of scores is where the file has no sound, (n,) bool."""
    middles = table[["start", "end"]].mean(axis=1).to_numpy() * SAMPLE_RATE
    within = np.zeros(len(table), bool)
    for start, stop in audio.gaps:
        within |= (start <= middles) & (middles < stop)
    return within
