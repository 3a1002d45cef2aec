"""Systems measured on labelled clips: the numbers behind `klassify evaluate`.

Every system against the video's label and against its modality's own, over all clips and with each
fake type against the real clips, with bootstrap intervals over sources. All systems see the same
resamples, so that differences between them are paired.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import logit

from klassify.errors import KlassifyError
from klassify.lists import data_list, subsets
from klassify.metrics import clips
from klassify.scores.score_file import ScoreFile, align
from klassify.systems import scores as systems_scores
from klassify.systems.base import System
from klassify.systems.calibrated import Calibrated
from klassify.systems.scores import as_probability

METRICS = ("auc", "eer", "log_loss")
GROUPS = ("all", *data_list.TYPES[1:])  # all clips, then each fake type against the real ones


@dataclasses.dataclass(frozen=True)
class Scored:
    """One system on the clips of a list, in the list's order, priors filled in.

    score: on its own scale, for ranking; probability: of fake, NaN where the scale has none
    (cosines), which leaves the log-loss undefined; answered: bool; before: of a calibrated system,
    its input's probabilities.
    """

    system: System
    score: np.ndarray
    probability: np.ndarray
    answered: np.ndarray
    before: np.ndarray | None = None


def load_scored(system: System, split: str, files: Sequence[str]) -> Scored:
    """Join a system's clip scores with `files` by name; clips on one side only are a
    KlassifyError.
    """
    scores = _rows_of(system.clip_scores(split), files, system.folder)
    prior, scale = system.prior, scores.header.scale
    score = scores.table["score"].to_numpy(float)
    empty = np.isnan(score)
    fillers = {"probability": prior, "log_odds": logit(prior), "cosine": 2 * prior - 1}
    if scale not in fillers and empty.any():
        raise KlassifyError(
            f"Clips without an answer have no place among scores of scale {scale}.",
            where=system.folder,
        )
    score = np.where(empty, fillers.get(scale, np.nan), score)
    if scale in ("probability", "log_odds"):
        probability = np.where(empty, prior, as_probability(scores))
    else:
        probability = np.full(len(score), np.nan)
    before = None
    if isinstance(system, Calibrated):
        (parent,) = system.input_systems
        before = as_probability(_rows_of(parent.clip_scores(split), files, parent.folder))
        before = np.where(np.isnan(before), parent.prior, before)
    return Scored(system, score, probability, systems_scores.answered(scores), before)


def _rows_of(scores: ScoreFile, files: Sequence[str], where: object) -> ScoreFile:
    """The rows of a list's clips; the list may be a part of what was scored, not the other way
    round.
    """
    listed = scores.table[scores.table["file"].isin(set(files))]
    return ScoreFile(scores.header, align(ScoreFile(scores.header, listed), files, where=where))


@dataclasses.dataclass(frozen=True)
class Cell:
    """One system against one label on one group of clips (`rows` of the list)."""

    rows: np.ndarray
    label: np.ndarray
    ranking: clips.Ranking
    loss: np.ndarray

    @classmethod
    def of(cls, one: Scored, label: np.ndarray, rows: np.ndarray) -> Cell:
        """label: (clips of the list,); rows: indices of those that count."""
        ranking = clips.Ranking(label[rows], one.score[rows])
        return cls(
            rows, label[rows], ranking, clips.clip_log_loss(label[rows], one.probability[rows])
        )

    def metrics(self, weights: np.ndarray) -> np.ndarray:
        """Clip weights (B, clips of the list) -> AUC, EER, log-loss as (3, B)."""
        weights = weights[:, self.rows]
        auc, eer = self.ranking.auc_and_eer(weights)
        with np.errstate(invalid="ignore"):
            return np.stack([auc, eer, weights @ self.loss / weights.sum(axis=1)])


def _cells(scored: Sequence[Scored], frame: pd.DataFrame) -> dict[tuple[str, str, str], Cell]:
    groups = {
        group: np.flatnonzero(frame["modify_type"].isin(["real", group])) for group in GROUPS[1:]
    }
    groups["all"] = np.arange(len(frame))
    cells = {}
    for one in scored:
        for against, name in {"own": one.system.own_label, "video": "video"}.items():
            if against == "own" and name == "video":
                continue
            label = subsets.label(frame, name)
            for group in GROUPS:
                cells[one.system.name, against, group] = Cell.of(one, label, groups[group])
    return cells


def measure(
    scored: Sequence[Scored],
    frame: pd.DataFrame,
    *,
    versus: str,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row a system, label (`video`, `own`) and group: counts, metrics, intervals, gain of
    `versus`.

    frame: the labelled list. What is not defined, such as an AUC of one class, is NaN.
    """
    cells = _cells(scored, frame)
    source = subsets.sources_of(frame)

    def all_metrics(weights: np.ndarray) -> np.ndarray:
        return np.stack([cell.metrics(weights) for cell in cells.values()])

    points = dict(zip(cells, all_metrics(np.ones((1, len(frame))))[..., 0]))
    samples = {key: np.full((len(METRICS), 1), np.nan) for key in cells}
    if n_bootstrap > 0:
        samples = dict(zip(cells, clips.bootstrap(all_metrics, source, n=n_bootstrap, seed=seed)))
    rows = []
    for one, against, group in itertools.product(scored, ("video", "own"), GROUPS):
        name = one.system.name
        # a system of both modalities has no label of its own
        key, rival = (
            (name, against if (name, against, group) in cells else "video", group),
            (versus, against, group),
        )
        row = {"system": name, "label": against, "group": group}
        row |= _row(one, cells[key], points[key], samples[key], source)
        if against == "video" and name != versus:
            row |= {"versus": versus, "gain": points[rival][0] - points[key][0]}
            row["gain_low"], row["gain_high"] = clips.interval(samples[rival][0] - samples[key][0])
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
    for metric, value, resampled in zip(METRICS, point, samples):
        low, high = clips.interval(resampled)
        row |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
    if one.before is not None:
        row["log_loss_before"] = clips.log_loss(cell.label, one.before[cell.rows])
    return row
