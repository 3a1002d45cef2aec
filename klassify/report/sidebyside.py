"""Systems side by side on labelled clips: both tasks, frames, groups of clips, and every difference
with its interval.

All systems see the same resamples of sources, so that differences are paired. Intervals are 95 %
percentiles.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from klassify.evaluation.clips import METRICS, Cell
from klassify.evaluation.frames import bootstrap_auc
from klassify.grid.ragged import FrameTable
from klassify.grid.segments import Truth
from klassify.lists import subsets
from klassify.metrics import clips, segments
from klassify.metrics.frames import SEGMENT_MS, LabelledFrames, frame_metrics, labelled_frames
from klassify.report.entries import Entry

GROUP_SHARE = 5  # groups get this many times fewer resamples than all clips
CLIPS_RESAMPLED = 4_000_000  # of a group's resamples times clips, but at least FEWEST resamples
FEWEST = 50


def group_resamples(n_bootstrap: int, n_clips: int) -> int:
    """How many resamples each group of clips gets; 0 stays 0."""
    return min(
        n_bootstrap,
        max(FEWEST, min(n_bootstrap // GROUP_SHARE, CLIPS_RESAMPLED // max(n_clips, 1))),
    )


def task1_metrics(
    entries: Sequence[Entry], frame: pd.DataFrame, *, n_bootstrap: int = 1000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AUC, EER and log-loss against the video's label, one row a system; and all differences
    between two systems.
    """
    label, rows = subsets.label(frame, "video"), np.arange(len(frame))
    cells = [Cell.of(one.scored, label, rows) for one in entries]

    def statistics(weights: np.ndarray) -> np.ndarray:
        return np.stack([cell.metrics(weights) for cell in cells])

    points, samples = _resampled(statistics, frame, n_bootstrap, seed)
    table = []
    for one, values, drawn in zip(entries, points, samples):
        row = {
            "system": one.name,
            "modality": one.system.modality,
            "supervision": one.system.supervision,
        }
        row |= {
            "n": len(frame),
            "n_fake": int(label.sum()),
            "n_no_answer": int((~one.scored.answered).sum()),
        }
        for metric, value, sample in zip(METRICS, values, drawn):
            row |= with_ends(metric, value, sample)
        own = one.system.own_label
        row["auc_own"] = (
            row["auc"]
            if own == "video"
            else clips.roc_auc(subsets.label(frame, own), one.scored.score)
        )
        table.append(row)
    names = [one.name for one in entries]
    return pd.DataFrame(table), differences("task1", names, METRICS, points, samples)


def _resampled(
    statistics: Callable[[np.ndarray], np.ndarray], frame: pd.DataFrame, n_bootstrap: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(...,) values on all clips, and (..., n_bootstrap) on resamples."""
    points = statistics(np.ones((1, len(frame))))[..., 0]
    if not n_bootstrap:
        return points, np.full((*points.shape, 1), np.nan)
    return points, clips.bootstrap(statistics, subsets.sources_of(frame), n=n_bootstrap, seed=seed)


def with_ends(name: str, value: float, samples: np.ndarray) -> dict[str, float]:
    """{name, name_low, name_high}."""
    low, high = clips.interval(samples)
    return {name: float(value), f"{name}_low": low, f"{name}_high": high}


def differences(
    task: str,
    names: Sequence[str],
    metric_names: Sequence[str],
    points: np.ndarray,
    samples: np.ndarray,
) -> pd.DataFrame:
    """One row a metric and pair of systems: `difference` = a minus b. points: (systems,
    metrics); samples: (..., n).
    """
    rows = []
    for m, metric in enumerate(metric_names):
        for a, b in itertools.combinations(range(len(names)), 2):
            row = {"task": task, "metric": metric, "a": names[a], "b": names[b]}
            rows.append(
                row
                | with_ends(
                    "difference", points[a, m] - points[b, m], samples[a, m] - samples[b, m]
                )
            )
    columns = ["task", "metric", "a", "b", "difference", "difference_low", "difference_high"]
    return pd.DataFrame(rows, columns=columns)


def task2_metrics(
    entries: Sequence[Entry],
    frame: pd.DataFrame,
    matches: Mapping[str, segments.Matches],
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AP, AR and Score, one row a system; and all differences of Score. matches: by name of
    system.
    """
    names = [one.name for one in entries]
    whole = [matches[name].score() for name in names]
    samples = np.full((len(names), len(segments.METRICS), 1), np.nan)
    if n_bootstrap:
        drawn = segments.bootstrap_task2(
            matches, subsets.sources_of(frame), n=n_bootstrap, seed=seed
        )
        samples = np.stack([drawn[name] for name in names])
    table = []
    for one, result, drawn in zip(entries, whole, samples):
        row = {
            "system": one.name,
            "modality": one.system.modality,
            "supervision": one.system.supervision,
        }
        row |= {"n": len(frame), "n_segments": int(result.n_segments)} | result.named()
        row |= with_ends("Score", result.score, drawn[-1])
        table.append(row)
    points = np.array([[result.score] for result in whole])
    return pd.DataFrame(table), differences("task2", names, ["Score"], points, samples[:, -1:])


def frame_rows(
    entries: Sequence[Entry], frame: pd.DataFrame, *, n_bootstrap: int = 1000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AUC and EER of 40 ms frames against the union of fake segments, one row a system; and all
    differences of AUC.

    A system is measured on all clips that it has frames for, differences on the clips that all
    systems have.
    """
    truth, source = Truth.from_list(frame), subsets.sources_of(frame)
    tables = {one.name: one.frame_table() for one in entries}
    parts, table = [], []
    for one in entries:
        found = frame_metrics(tables[one.name], truth, (40, SEGMENT_MS))
        own = (
            f"{one.system.modality}_fake_segments"
            if one.system.modality != "both"
            else "fake_segments"
        )
        own_auc = frame_metrics(tables[one.name], Truth.from_list(frame, own), (40,)).auc[40]
        table.append(
            {
                "system": one.name,
                "modality": one.system.modality,
                "supervision": one.system.supervision,
                "frame_auc": found.auc[40],
                "frame_eer": found.eer[40],
                "seg_auc": found.auc[SEGMENT_MS],
                "frame_auc_own": own_auc,
                "clip_auc": found.clip_auc,
                "n_no_frames": found.n_without,
            }
        )
        parts.append(labelled_frames(tables[one.name], truth, 40))
    common = _on_common_clips(tables, truth) or parts
    samples = np.full((len(entries), 1), np.nan)
    on_common = samples
    if n_bootstrap:
        samples = on_common = bootstrap_auc(parts, source, n=n_bootstrap, seed=seed)
        if common is not parts:
            on_common = bootstrap_auc(common, source, n=n_bootstrap, seed=seed)
    for row, drawn in zip(table, samples):
        row |= with_ends("frame_auc", row["frame_auc"], drawn)
    points = np.array([[clips.roc_auc(part.labels, part.scores)] for part in common])
    names = [one.name for one in entries]
    return pd.DataFrame(table), differences(
        "frames", names, ["frame_auc"], points, on_common[:, None]
    )


def _on_common_clips(tables: Mapping[str, FrameTable], truth: Truth) -> list[LabelledFrames]:
    """The frames of the clips that all systems have; none where they have the same clips anyway."""
    sets = [set(table.files) for table in tables.values()]
    common = set.intersection(*sets)
    if all(len(files) == len(common) for files in sets):
        return []
    return [labelled_frames(table.take(common), truth, 40) for table in tables.values()]


# ------------------------------------------------------------------------------ groups of clips


def task1_by_group(
    entries: Sequence[Entry],
    frame: pd.DataFrame,
    groups: Mapping[str, Mapping[str, np.ndarray]],
    *,
    versus: str,
    n_bootstrap: int,
    seed: int = 0,
) -> pd.DataFrame:
    """AUC by group: kind, group, n, n_fake, system, `value` with interval, `gain` of `versus`
    over it with interval.
    """
    label = subsets.label(frame, "video")
    rows = []
    for kind, group, mask in _each(groups):
        chosen = np.flatnonzero(mask)
        cells = [Cell.of(one.scored, label, chosen) for one in entries]

        def statistics(weights: np.ndarray, cells: list[Cell] = cells) -> np.ndarray:
            return np.stack([cell.ranking.auc_and_eer(weights[:, cell.rows])[0] for cell in cells])

        points, samples = _resampled(statistics, frame, n_bootstrap, seed)
        counts = {"n": len(chosen), "n_fake": int(label[chosen].sum())}
        rows += _group_rows("task1", "AUC", kind, group, counts, entries, points, samples, versus)
    return pd.DataFrame(rows)


def task2_by_group(
    entries: Sequence[Entry],
    frame: pd.DataFrame,
    matches: Mapping[str, segments.Matches],
    groups: Mapping[str, Mapping[str, np.ndarray]],
    *,
    versus: str,
    n_bootstrap: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Score by group of clips, and by length of segments, whose hits of other segments count
    neither way.
    """
    label, ours = subsets.label(frame, "video"), [matches[one.name] for one in entries]
    rows = []
    for kind, group, mask in _each(groups):
        within = mask.astype(float)

        def statistics(weights: np.ndarray, within: np.ndarray = within) -> np.ndarray:
            return np.array([[one.score(each * within).score for each in weights] for one in ours])

        points, samples = _resampled(statistics, frame, n_bootstrap, seed)
        counts = {"n": int(mask.sum()), "n_fake": int(label[mask].sum())}
        rows += _group_rows("task2", "Score", kind, group, counts, entries, points, samples, versus)
    start, end = ours[0].truth.segments.T
    lengths = np.round(end - start, 6)
    for low, high in zip(segments.LENGTH_EDGES_S[:-1], segments.LENGTH_EDGES_S[1:]):
        among = (lengths >= low) & (lengths < high)
        if not among.any():
            continue
        group = f"{low:g}-{high:g} s" if np.isfinite(high) else f"{low:g} s and more"

        def statistics(weights: np.ndarray, among: np.ndarray = among) -> np.ndarray:
            return np.array([[one.score(each, among).score for each in weights] for one in ours])

        points, samples = _resampled(statistics, frame, n_bootstrap, seed)
        counts = {"n": int(among.sum()), "n_fake": int(among.sum())}
        rows += _group_rows(
            "task2", "Score", "segment length", group, counts, entries, points, samples, versus
        )
    return pd.DataFrame(rows)


def _each(groups: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[tuple[str, str, np.ndarray]]:
    for kind, masks in groups.items():
        for group, mask in masks.items():
            yield kind, group, mask


def _group_rows(
    task: str,
    metric: str,
    kind: str,
    group: str,
    counts: Mapping[str, int],
    entries: Sequence[Entry],
    points: np.ndarray,
    samples: np.ndarray,
    versus: str,
) -> list[dict[str, Any]]:
    names = [one.name for one in entries]
    rival = names.index(versus)
    rows = []
    for at, name in enumerate(names):
        row = (
            {"task": task, "metric": metric, "kind": kind, "group": group}
            | counts
            | {"system": name}
        )
        row |= with_ends("value", points[at], samples[at])
        if at != rival:
            gain = with_ends("gain", points[rival] - points[at], samples[rival] - samples[at])
            row |= {"versus": versus} | gain
        rows.append(row)
    return rows
