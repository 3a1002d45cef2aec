"""Systems side by side on labelled clips: both tasks, frames, groups of clips, and every difference
with its interval.

All systems see the same resamples of sources, so differences are paired. Intervals are 95 %
percentiles.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from klassify.evaluation.clips import METRICS, Cell
from klassify.evaluation.conditions import range_name
from klassify.evaluation.frames import bootstrap_auc
from klassify.evaluation.tables import with_ends
from klassify.grid.segments import Truth
from klassify.lists import subsets
from klassify.metrics import clips, segments
from klassify.metrics.frames import SEGMENT_MS, exact, frame_metrics, labelled_frames
from klassify.progress import progress
from klassify.report.entries import Entry

GROUP_SHARE = 5  # groups get this many times fewer resamples than all clips
CLIPS_RESAMPLED = 4_000_000  # of a group's resamples times clips, but at least FEWEST resamples
FEWEST = 50
Groups = Mapping[str, Mapping[str, np.ndarray]]  # {kind: {group: (n,) bool}}
Statistics = Callable[[np.ndarray], np.ndarray]  # clip weights (B, n) -> (systems, B)


def group_resamples(n_bootstrap: int, n_clips: int) -> int:
    """How many resamples each group of clips gets; 0 stays 0."""
    affordable = min(n_bootstrap // GROUP_SHARE, CLIPS_RESAMPLED // max(n_clips, 1))
    return min(n_bootstrap, max(FEWEST, affordable))


def task1_metrics(
    entries: Sequence[Entry], frame: pd.DataFrame, *, n_bootstrap: int = 1000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AUC, EER and log-loss against the video's label by system, and all differences."""
    label, rows = subsets.label(frame, "video"), np.arange(len(frame))
    cells = [Cell.from_scored(one.scored, label, rows) for one in entries]
    points, samples = clips.resampled(
        lambda weights: np.stack([cell.metrics(weights) for cell in cells]),
        subsets.sources_of(frame),
        n=n_bootstrap,
        seed=seed,
    )
    table = []
    for one, values, drawn in zip(entries, points, samples):
        row = _about(one) | {
            "n": len(frame),
            "n_fake": int(label.sum()),
            "n_no_answer": int((~one.scored.answered).sum()),
        }
        for metric, value, sample in zip(METRICS, values, drawn):
            row |= with_ends(metric, value, sample)
        own = subsets.label(frame, subsets.known_label(frame, one.system.own_label))
        row["auc_own"] = clips.roc_auc(own, one.scored.score)
        table.append(row)
    return pd.DataFrame(table), differences("task1", entries, METRICS, points, samples)


def _about(entry: Entry) -> dict[str, Any]:
    system = entry.system
    return {"system": entry.name, "modality": system.modality, "supervision": system.supervision}


def differences(
    task: str,
    entries: Sequence[Entry],
    metrics: Sequence[str],
    points: np.ndarray,
    samples: np.ndarray,
) -> pd.DataFrame:
    """One row per metric and pair of systems: `difference` = a minus b.

    points: (systems, metrics); samples: (systems, metrics, n).
    """
    rows = []
    for m, metric in enumerate(metrics):
        for a, b in itertools.combinations(range(len(entries)), 2):
            row = {"task": task, "metric": metric, "a": entries[a].name, "b": entries[b].name}
            value, drawn = points[a, m] - points[b, m], samples[a, m] - samples[b, m]
            rows.append(row | with_ends("difference", value, drawn))
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
    """AP, AR and Score of each system, and all differences of Score. matches: by name."""
    drawn = segments.bootstrap_task2(
        {one.name: matches[one.name] for one in entries},
        subsets.sources_of(frame),
        n=n_bootstrap,
        seed=seed,
    )
    table = []
    for one in entries:
        found = matches[one.name].score()
        row = _about(one) | {"n": len(frame), "n_segments": int(found.n_segments)} | found.named()
        table.append(row | with_ends("Score", found.score, drawn[one.name][-1]))
    points = np.array([[row["Score"]] for row in table])
    samples = np.stack([drawn[one.name][-1:] for one in entries])
    return pd.DataFrame(table), differences("task2", entries, ["Score"], points, samples)


def frame_rows(
    entries: Sequence[Entry], frame: pd.DataFrame, *, n_bootstrap: int = 1000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AUC and EER of 40 ms frames against the union of fake segments, one row per system; and all
    differences of AUC.

    A system is measured on all clips that it has frames for, differences on the clips that all
    systems have.
    """
    truth, source = Truth.from_list(frame), subsets.sources_of(frame)
    files = pd.Index(truth.files)
    in_all = np.all([files.isin(one.frames.files) for one in entries], axis=0)
    rows, points, samples = [], [], []
    # one table of millions of frames at a time
    for one in progress(entries, len(entries), "measure frames", unit="system"):
        table = one.frame_table()
        own = Truth.from_list(frame, subsets.segment_column(frame, one.system.own_label))
        part = labelled_frames(table, truth, 40)
        found = frame_metrics(table, truth, (40, SEGMENT_MS), own, part)
        (drawn,) = bootstrap_auc([part], source, n=n_bootstrap, seed=seed)
        row = _about(one) | {
            "frame_auc": found.auc[40],
            "frame_eer": found.eer[40],
            "seg_auc": found.auc[SEGMENT_MS],
            "frame_auc_own": found.own_auc,
            "clip_auc": found.clip_auc,
            "n_no_frames": found.n_without,
        }
        rows.append(row | with_ends("frame_auc", found.auc[40], drawn))
        point = found.auc[40]
        if not (common := in_all[part.clips]).all():
            part = part.of_clips(common)
            (drawn,) = bootstrap_auc([part], source, n=n_bootstrap, seed=seed)
            point = exact(part)[0]
        points.append([point])
        samples.append(drawn[None])
    found = differences("frames", entries, ["frame_auc"], np.array(points), np.stack(samples))
    return pd.DataFrame(rows), found


def task1_by_group(
    entries: Sequence[Entry], frame: pd.DataFrame, groups: Groups, **options: Any
) -> pd.DataFrame:
    """AUC by group: kind, group, n, n_fake, system, `value` with interval, `gain` of `versus`
    over it with interval. options: versus, n_bootstrap, seed.
    """
    label = subsets.label(frame, "video")

    def aucs(mask: np.ndarray) -> Statistics:
        rows = np.flatnonzero(mask)
        rankings = [clips.Ranking(label[rows], one.scored.score[rows]) for one in entries]
        return lambda weights: np.stack([one.auc_and_eer(weights[:, rows])[0] for one in rankings])

    measured = (
        (kind, group, mask.sum(), label[mask].sum(), aucs(mask))
        for kind, masks in groups.items()
        for group, mask in masks.items()
    )
    n_groups = sum(map(len, groups.values()))
    measured = progress(measured, n_groups, "groups of clips, Task 1", unit="group")
    return _group_table("task1", "AUC", entries, frame, measured, **options)


def task2_by_group(
    entries: Sequence[Entry],
    frame: pd.DataFrame,
    matches: Mapping[str, segments.Matches],
    groups: Groups,
    **options: Any,
) -> pd.DataFrame:
    """Score by group of clips, and by length of segments, where hits of other segments count as
    neither right nor wrong. options: versus, n_bootstrap, seed.
    """
    label, ours = subsets.label(frame, "video"), [matches[one.name] for one in entries]

    def scores(given: Sequence[segments.Matches], among: np.ndarray | None = None) -> Statistics:
        return lambda weights: np.array(
            [[found.score for found in one.scores(weights, among)] for one in given]
        )

    def measured() -> Iterator[tuple[str, str, int, int, Statistics]]:
        for kind, masks in groups.items():
            for group, mask in masks.items():
                some = [one.of_clips(mask) for one in ours]
                yield kind, group, mask.sum(), label[mask].sum(), scores(some)
        for low, high, among in lengths:
            yield "segment length", range_name(low, high), *[among.sum()] * 2, scores(ours, among)

    lengths = [one for one in segments.length_groups(ours[0].truth) if one[2].any()]
    n_groups = sum(map(len, groups.values())) + len(lengths)
    found = progress(measured(), n_groups, "groups of clips, Task 2", unit="group")
    return _group_table("task2", "Score", entries, frame, found, **options)


def _group_table(
    task: str,
    metric: str,
    entries: Sequence[Entry],
    frame: pd.DataFrame,
    measured: Iterable[tuple[str, str, int, int, Statistics]],
    *,
    versus: str,
    n_bootstrap: int,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per group and system. measured: kind, group, n, n_fake, statistics by system."""
    names, source = [one.name for one in entries], subsets.sources_of(frame)
    rival = names.index(versus)
    rows = []
    for kind, group, n, n_fake, statistics in measured:
        points, samples = clips.resampled(statistics, source, n=n_bootstrap, seed=seed)
        for at, name in enumerate(names):
            row = {"task": task, "metric": metric, "kind": kind, "group": group}
            row |= {"n": int(n), "n_fake": int(n_fake), "system": name}
            row |= with_ends("value", points[at], samples[at])
            if at != rival:
                row["versus"] = versus
                gain, drawn = points[rival] - points[at], samples[rival] - samples[at]
                row |= with_ends("gain", gain, drawn)
            rows.append(row)
    return pd.DataFrame(rows)
