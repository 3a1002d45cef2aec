"""Systems measured on labelled clips: the numbers behind `klassify evaluate`.

Every system is measured against the video's label and against the label of its own modality, over
all clips and with each fake type against the real clips, with bootstrap intervals over sources. All
systems see the same resamples, so differences between them are paired.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import logit

from klassify.errors import KlassifyError
from klassify.evaluation.tables import with_ends
from klassify.lists import data_list, subsets
from klassify.metrics import clips
from klassify.systems import scores as systems_scores
from klassify.systems.base import System
from klassify.systems.calibrated import Calibrated
from klassify.systems.scores import as_probability, scores_of

METRICS = ("auc", "eer", "log_loss")
GROUPS = ("all", *data_list.TYPES[1:])  # all clips, then each fake type against the real ones


@dataclasses.dataclass(frozen=True)
class Scored:
    """One system on the clips of a list, in the list's order, priors filled in.

    score: on its own scale, for ranking; probability: of fake, NaN where the scale has none
    (cosines), which leaves the log-loss undefined; answered: bool; before: the probabilities of a
    calibrated system's input.
    """

    system: System
    score: np.ndarray
    probability: np.ndarray
    answered: np.ndarray
    before: np.ndarray | None = None


def load_scored(system: System, split: str, files: Sequence[str]) -> Scored:
    """A system's clip scores, joined with `files` by name; KlassifyError for a file without one."""
    scores = scores_of(system, split, files)
    prior, scale = system.prior, scores.header.scale
    score = scores.table["score"].to_numpy(float)
    empty = np.isnan(score)
    fillers = {"probability": prior, "log_odds": logit(prior), "cosine": 2 * prior - 1}
    if scale not in fillers and empty.any():
        raise KlassifyError(
            f"Clips without an answer cannot be ranked among scores of scale {scale}.",
            where=system.folder,
        )
    score = np.where(empty, fillers.get(scale, np.nan), score)
    probability = np.full(len(score), np.nan)
    if scale in ("probability", "log_odds"):
        probability = np.where(empty, prior, as_probability(scores))
    before = None
    if isinstance(system, Calibrated):
        (parent,) = system.input_systems
        before = as_probability(scores_of(parent, split, files))
        before = np.where(np.isnan(before), parent.prior, before)
    return Scored(system, score, probability, systems_scores.answered(scores), before)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One system against one label on one group of clips (`rows` of the list)."""

    rows: np.ndarray
    label: np.ndarray
    ranking: clips.Ranking
    loss: np.ndarray

    @classmethod
    def from_scored(cls, one: Scored, label: np.ndarray, rows: np.ndarray) -> Cell:
        """label: (clips of the list,); rows: indices of those that count."""
        label, probability = label[rows], one.probability[rows]
        loss = clips.clip_log_loss(label, probability)
        return cls(rows, label, clips.Ranking(label, one.score[rows]), loss)

    def metrics(self, weights: np.ndarray) -> np.ndarray:
        """Clip weights (B, clips of the list) -> AUC, EER, log-loss as (3, B)."""
        if len(self.rows) < weights.shape[1]:
            weights = weights[:, self.rows]
        auc, eer = self.ranking.auc_and_eer(weights)
        with np.errstate(invalid="ignore"):
            return np.stack([auc, eer, weights @ self.loss / weights.sum(axis=1)])


def _cells(scored: Sequence[Scored], frame: pd.DataFrame) -> dict[tuple[str, str, str], Cell]:
    """By system, label and group; without those whose own label is that of the video."""
    rows = {kind: np.flatnonzero(frame["modify_type"].isin(["real", kind])) for kind in GROUPS[1:]}
    rows["all"] = np.arange(len(frame))
    cells = {}
    for one in scored:
        labels = {"video": "video", "own": subsets.known_label(frame, one.system.own_label)}
        if labels["own"] == "video":
            del labels["own"]
        for against, name in labels.items():
            label = subsets.label(frame, name)
            for group in GROUPS:
                video = cells.get((one.system.name, "video", group))
                if video is None or not np.array_equal(video.label, label[rows[group]]):
                    cells[one.system.name, against, group] = Cell.from_scored(
                        one, label, rows[group]
                    )
    return cells


def measure(
    scored: Sequence[Scored],
    frame: pd.DataFrame,
    *,
    versus: str,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per system, label (`video`, `own`) and group: counts, metrics, intervals, and the
    gain of `versus`.

    frame: the labelled list. What is not defined, such as an AUC of one class, is NaN.
    """
    cells = _cells(scored, frame)
    source = subsets.sources_of(frame)

    def all_metrics(weights: np.ndarray) -> np.ndarray:
        return np.stack([cell.metrics(weights) for cell in cells.values()])

    points, samples = clips.resampled(all_metrics, source, n=n_bootstrap, seed=seed)
    place = {key: index for index, key in enumerate(cells)}
    rows = []
    for one in scored:
        for against in ("video", "own"):
            for group in GROUPS:
                key = (one.system.name, against, group)
                key = key if key in cells else (one.system.name, "video", group)
                at, rival = place[key], place.get((versus, against, group))
                row = {"system": one.system.name, "label": against, "group": group}
                row |= _row(one, cells[key], points[at], samples[at], source)
                if against == "video" and one.system.name != versus:
                    gain, drawn = points[rival] - points[at], samples[rival] - samples[at]
                    row |= {"versus": versus} | with_ends("gain", gain[0], drawn[0])
                rows.append(row)
    table = pd.DataFrame(rows)
    last = ["log_loss_before", "versus", "gain", "gain_low", "gain_high"]
    return table.reindex(columns=[name for name in table if name not in last] + last)


def _row(
    one: Scored, cell: Cell, point: np.ndarray, samples: np.ndarray, source: np.ndarray
) -> dict:
    """Counts, metrics (3,) and intervals from resamples (3, n) of one cell."""
    row = {
        "modality": one.system.modality,
        "supervision": one.system.supervision,
        "n": len(cell.rows),
        "n_fake": int(cell.label.sum()),
        "n_sources": len(set(source[cell.rows])),
        "n_no_answer": int((~one.answered[cell.rows]).sum()),
    }
    for metric, value, drawn in zip(METRICS, point, samples):
        row |= with_ends(metric, value, drawn)
    if one.before is not None:
        row["log_loss_before"] = clips.log_loss(cell.label, one.before[cell.rows])
    return row
