"""Which clips the page shows, and their thumbnails, waveforms, scores, proposals, words."""

from __future__ import annotations

import base64
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pandas as pd

from klassify.errors import KlassifyError
from klassify.features.mouth.channels import FEATURES
from klassify.features.shards import FeatureStore
from klassify.grid.frames import pictures_at
from klassify.lists import subsets
from klassify.media import decoder, isolated, preview
from klassify.media.container import inside
from klassify.metrics import clips
from klassify.parts import parts_in
from klassify.report.agreement import Calibrated
from klassify.report.comparison import Comparison
from klassify.systems.scores import to_probability

WAVE_PIECES, WAVE_LIMIT = 500, 127
MOUTH_FRAMES = 400  # most columns; longer clips show means of neighbours
SHOWN_PROPOSALS, SHOWN_WORDS = 20, 400
JPEG_QUALITY = 60
UNTRAINED = "tiny"  # the LMM whose words mean nothing
IMAGE_BYTES = 5_000_000  # of all thumbnails; the clips after that have none


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A clip on the page. loss: of its worst answer, NaN without labels; spread: between the
    answers; why: it is among the `mistake`s, the `disagreement`s, or both.
    """

    row: int
    loss: float
    spread: float
    why: frozenset[str]


def choose(
    answers: Sequence[Calibrated], frame: pd.DataFrame, label: np.ndarray | None, n_each: int
) -> list[Chosen]:
    """The worst mistakes and the largest disagreements, n_each of either, each clip once. A mistake
    is a clip that an answer puts on the wrong side of 0.5. A single answer without labels has its
    most suspicious clips instead of disagreements.
    """
    spread = np.ptp([one.probability for one in answers], axis=0)
    loss = np.full(len(frame), np.nan)
    worst = {}
    if label is not None:
        loss = np.max([clips.clip_log_loss(label, one.probability) for one in answers], axis=0)
        wrong = np.any([(one.probability > 0.5) != (label == 1) for one in answers], axis=0)
        worst["mistake"] = np.where(wrong, loss, -1.0)
    if len(answers) > 1:
        worst["disagreement"] = spread
    elif label is None:
        worst["disagreement"] = answers[0].probability
    picked: dict[int, set[str]] = {}
    for why, badness in worst.items():
        order = np.argsort(-badness, kind="stable")
        for row in order[badness[order] >= 0][:n_each].tolist():
            picked.setdefault(row, set()).add(why)
    return [
        Chosen(row, float(loss[row]), float(spread[row]), frozenset(why))
        for row, why in picked.items()
    ]


class Timelines:
    """Makes the payloads of clips, each a JSON-serialisable dict that page.js draws."""

    def __init__(
        self, result: Comparison, media: Path | None, features: Path | None, page_folder: Path
    ):
        self.result, self.page_folder = result, page_folder.resolve()
        files = result.frame["file"].tolist()
        self.media = None if media is None else subsets.media_folder(media, result.split, files)
        self.mouth, self.lmm = (_store(features, kind, result.split) for kind in ("mouth", "lmm"))
        self.image_bytes = 0

    def of(self, row: int) -> dict[str, Any]:
        """The timeline of the clip in that row of the list."""
        clip = self.result.frame.iloc[row]
        file, duration = str(clip["file"]), float(clip["duration"])
        found = {"file": file, "frames": self._frames(file), "proposals": self._proposals(row)}
        found |= self._media(file) | {"mouth": self._mouth(file), "words": self._words(file)}
        if self.result.label is not None:
            found["truth"] = {
                name: clip[f"{column}fake_segments"] or []
                for name, column in (("fake", ""), ("audio", "audio_"), ("visual", "visual_"))
                if f"{column}fake_segments" in clip
            }
        ends = [len(one["values"]) * one["hop"] + one["offset"] for one in found["frames"]]
        known = duration if np.isfinite(duration) else 0
        found["seconds"] = round(max(known, found.pop("media_s"), *ends, 0.04), 3)
        return found

    def _media(self, file: str) -> dict[str, Any]:
        found = {"media_s": 0.0, "thumbs": [], "wave": [], "video": None, "problem": ""}
        if self.media is None:
            return found
        try:
            path = inside(self.media, file)
            isolated.probe(path)
        except (KlassifyError, OSError) as error:
            return found | {"problem": getattr(error, "what", str(error))}
        images, times, picture_s = preview.thumbnails(path)
        wave = preview.sound_of(path)
        wave_s = len(wave) / decoder.SAMPLE_RATE
        relative = Path(os.path.relpath(path.resolve(), self.page_folder)).as_posix()
        return found | {
            "media_s": max(picture_s, wave_s),
            "thumbs": [[round(t, 3), image] for t, image in zip(times, self._jpegs(images))],
            "wave": _wave(wave),
            "wave_s": wave_s,
            "video": quote(relative),
        }

    def _jpegs(self, images: Sequence[np.ndarray]) -> list[str]:
        encoded = []
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        for image in images:
            ok, data = cv2.imencode(".jpg", image[..., ::-1], quality)
            if not ok or self.image_bytes + len(data) > IMAGE_BYTES:
                break
            self.image_bytes += len(data)
            encoded.append("data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode())
        return encoded

    def _frames(self, file: str) -> list[dict[str, Any]]:
        """Frame scores as whole per cent of fake; None where a system that looks saw no face."""
        found = []
        seen = self.mouth[file].valid if self.mouth is not None and file in self.mouth else None
        for entry in self.result.entries:
            if entry.frames is None or not len(rows := entry.frames.read([file], ["score"]).values):
                continue
            header, fused = entry.frames.header, entry.system.kind == "fusion"
            p = to_probability(rows[:, 0], header.scale, where=entry.system.folder)
            values = np.round(100 * p).astype(int).tolist()
            if seen is not None and entry.system.modality == "visual":
                at = pictures_at(len(p), hop_s=header.hop_s, offset_s=header.offset_s)
                values = [v if k < len(seen) and seen[k] else None for v, k in zip(values, at)]
            one = {"name": entry.name, "fused": fused, "values": values}
            found.append(one | {"hop": header.hop_s, "offset": header.offset_s})
        return found

    def _proposals(self, row: int) -> list[dict[str, Any]]:
        """The best proposals as [start_s, end_s, score]."""
        found, answers = [], {entry.name for entry in self.result.answers2}
        for entry in self.result.entries:
            if entry.localised is not None:
                proposals = entry.localised.proposals
                first, stop = proposals.offsets[row : row + 2]
                best = proposals.rows[first:stop][:SHOWN_PROPOSALS, [1, 2, 0]]
                rows = [[round(value, 3) for value in values] for values in best.tolist()]
                answer = entry.name in answers
                found.append({"name": entry.name, "answer": answer, "rows": rows})
        return found

    def _mouth(self, file: str) -> dict[str, Any] | None:
        """Each feature from 0 to 99 between its clip's extremes, 0 where there is no face."""
        if self.mouth is None or file not in self.mouth:
            return None
        row = self.mouth[file]
        if not row.valid.any():
            reason = row.reason or "no face"
            return {"names": FEATURES, "seconds": 0, "rows": [], "reason": reason}
        values = row.features.astype(float)
        low, high = np.quantile(values[row.valid], [0.02, 0.98], axis=0)
        scaled = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1) * row.valid[:, None]
        size = -(-len(scaled) // MOUTH_FRAMES)
        starts = np.arange(0, len(scaled), size)
        pieces = np.add.reduceat(scaled, starts)
        pieces /= np.minimum(size, len(scaled) - starts)[:, None]
        return {
            "names": FEATURES,
            "seconds": len(values) / decoder.GRID_FPS,
            "reason": "",
            "rows": np.round(99 * pieces.T).astype(int).tolist(),
        }

    def _words(self, file: str) -> list[list[float | str]]:
        if self.lmm is None or file not in self.lmm or self.lmm.settings.get("lmm") == UNTRAINED:
            return []
        row = self.lmm[file]
        times = np.asarray(row.frames) / decoder.GRID_FPS
        return [[round(float(t), 2), str(text)[:SHOWN_WORDS]] for t, text in zip(times, row.texts)]


def _store(features: Path | None, kind: str, split: str) -> FeatureStore | None:
    folder = None if features is None else features / kind / split
    return None if folder is None or not parts_in(folder) else FeatureStore(folder, incomplete=True)


def _wave(wave: np.ndarray) -> list[int]:
    """Lowest and highest value of each piece in turn, scaled so that the loudest is WAVE_LIMIT."""
    if not len(wave):
        return []
    _, low, high = preview.envelope(wave, WAVE_PIECES)
    peak = max(float(np.abs(wave).max()), 0.01)
    return np.round(np.stack([low, high], axis=1).ravel() / peak * WAVE_LIMIT).astype(int).tolist()
