"""Which clips the page shows, and all that their timelines need: thumbnails, waveform, scores,
proposals, words.
"""

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
from klassify.features.parts import parts_in
from klassify.features.shards import FeatureStore
from klassify.lists import subsets
from klassify.media import decoder, isolated, preview
from klassify.metrics import clips
from klassify.report.agreement import Calibrated, disagreement
from klassify.report.entries import Entry
from klassify.systems.scores import to_probability

WAVE_PIECES, WAVE_LIMIT = 500, 127
MOUTH_FRAMES = 400  # at most so many columns; longer clips show means of neighbours
SHOWN_PROPOSALS, SHOWN_WORDS = 20, 400
JPEG_QUALITY = 60
IMAGE_BYTES = 5_000_000  # of all thumbnails; the clips after that have none


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A clip on the page. loss: of its worst answer, NaN without labels; spread: between the
    answers.
    """

    row: int
    loss: float
    spread: float
    why: frozenset[str]


def choose(
    answers: Sequence[Calibrated], frame: pd.DataFrame, label: np.ndarray | None, n_each: int
) -> list[Chosen]:
    """The worst mistakes and the largest disagreements, n_each of either, each clip once."""
    spread = disagreement(answers)
    loss = np.full(len(frame), np.nan)
    picked: dict[int, set[str]] = {}
    if label is not None:
        loss = np.max([clips.clip_log_loss(label, one.probability) for one in answers], axis=0)
        for row in np.argsort(-loss, kind="stable")[:n_each].tolist():
            picked.setdefault(row, set()).add("mistake")
    if len(answers) > 1:
        for row in np.argsort(-spread, kind="stable")[:n_each].tolist():
            picked.setdefault(row, set()).add("disagreement")
    elif label is None:  # the most suspicious ones
        for row in np.argsort(-answers[0].probability, kind="stable")[:n_each].tolist():
            picked.setdefault(row, set()).add("disagreement")
    return [
        Chosen(row, float(loss[row]), float(spread[row]), frozenset(why))
        for row, why in picked.items()
    ]


class Timelines:
    """Makes the payloads of clips, each a JSON-serialisable dict that page.js draws."""

    def __init__(
        self,
        entries: Sequence[Entry],
        frame: pd.DataFrame,
        split: str,
        *,
        media_root: Path | None,
        features: Path | None,
        page_folder: Path,
        labelled: bool,
    ):
        self.entries, self.frame, self.labelled, self.page_folder = (
            entries,
            frame,
            labelled,
            page_folder,
        )
        files = frame["file"].tolist()
        self.media_root = (
            None if media_root is None else subsets.media_folder(media_root, split, files)
        )
        self.mouth = _store(features, "mouth", split)
        self.lmm = _store(features, "lmm", split)
        self.image_bytes = 0

    def of(self, row: int) -> dict[str, Any]:
        """The timeline of the clip in that row of the list."""
        file = str(self.frame["file"].iloc[row])
        duration = float(self.frame["duration"].iloc[row])
        found: dict[str, Any] = {
            "file": file,
            "frames": self._frames(file),
            "proposals": self._proposals(row),
        }
        found |= self._media(file) | self._mouth(file) | self._words(file)
        if self.labelled:
            found["truth"] = {
                name: self.frame[f"{column}fake_segments"].iloc[row] or []
                for name, column in (("fake", ""), ("audio", "audio_"), ("visual", "visual_"))
                if f"{column}fake_segments" in self.frame
            }
        ends = [len(one["values"]) / decoder.GRID_FPS for one in found["frames"]]
        found["seconds"] = round(
            max([duration if np.isfinite(duration) else 0, found.pop("media_s"), *ends, 0.04]), 3
        )
        return found

    def _media(self, file: str) -> dict[str, Any]:
        nothing = {"media_s": 0.0, "thumbs": [], "wave": [], "video": None, "problem": ""}
        if self.media_root is None:
            return nothing
        try:
            path = decoder.inside(self.media_root, file)
            isolated.probe(path)
        except (KlassifyError, OSError) as error:
            return nothing | {"problem": getattr(error, "what", str(error))}
        images, times, picture_s = preview.thumbnails(path)
        wave = preview.sound_of(path)
        relative = Path(os.path.relpath(path.resolve(), self.page_folder.resolve())).as_posix()
        return {
            "media_s": max(picture_s, len(wave) / decoder.SAMPLE_RATE),
            "thumbs": [[round(t, 3), image] for t, image in zip(times, self._jpegs(images))],
            "wave": _wave(wave),
            "wave_s": len(wave) / decoder.SAMPLE_RATE,
            "video": quote(relative),
            "problem": "",
        }

    def _jpegs(self, images: Sequence[np.ndarray]) -> list[str]:
        encoded = []
        for image in images:
            ok, data = cv2.imencode(
                ".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
            )
            if not ok or self.image_bytes + len(data) > IMAGE_BYTES:
                break
            self.image_bytes += len(data)
            encoded.append("data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode())
        return encoded

    def _frames(self, file: str) -> list[dict[str, Any]]:
        """Frame scores as whole per cent of fake."""
        found = []
        for entry in self.entries:
            if entry.frames is None:
                continue
            rows = entry.frames.read([file], ["score"])
            if len(rows.values):
                p = to_probability(
                    rows.values[:, 0], entry.frames.header.scale, where=entry.system.folder
                )
                found.append(
                    {
                        "name": entry.name,
                        "fused": entry.system.kind == "fusion",
                        "values": np.round(100 * p).astype(int).tolist(),
                    }
                )
        return found

    def _proposals(self, row: int) -> list[dict[str, Any]]:
        found = []
        for entry in self.entries:
            if entry.localised is not None:
                proposals = entry.localised.proposals
                rows = proposals.rows[proposals.offsets[row] : proposals.offsets[row + 1]][
                    :SHOWN_PROPOSALS
                ]
                rows = [
                    [round(float(value), 3) for value in (start, end, score)]
                    for score, start, end in rows
                ]
                found.append({"name": entry.name, "rows": rows})
        return found

    def _mouth(self, file: str) -> dict[str, Any]:
        """Each feature from 0 to 99 between its clip's extremes, 0 where there is no face."""
        if self.mouth is None or file not in self.mouth:
            return {"mouth": None}
        row = self.mouth[file]
        if not row.valid.any():
            return {
                "mouth": {
                    "names": FEATURES,
                    "seconds": 0,
                    "rows": [],
                    "reason": row.reason or "no face",
                }
            }
        values = row.features.astype(float)
        low, high = np.quantile(values[row.valid], [0.02, 0.98], axis=0)
        scaled = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1) * row.valid[:, None]
        size = -(-len(scaled) // MOUTH_FRAMES)
        pieces = np.add.reduceat(scaled, np.arange(0, len(scaled), size))
        pieces /= np.minimum(size, len(scaled) - np.arange(0, len(scaled), size))[:, None]
        return {
            "mouth": {
                "names": FEATURES,
                "seconds": len(values) / decoder.GRID_FPS,
                "reason": "",
                "rows": np.round(99 * pieces.T).astype(int).tolist(),
            }
        }

    def _words(self, file: str) -> dict[str, Any]:
        if self.lmm is None or file not in self.lmm:
            return {"words": []}
        row = self.lmm[file]
        times = np.asarray(row.frames) / decoder.GRID_FPS
        return {
            "words": [
                [round(float(t), 2), str(text)[:SHOWN_WORDS]] for t, text in zip(times, row.texts)
            ]
        }


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
