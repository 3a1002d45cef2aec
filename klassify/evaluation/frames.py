"""Frame scores of systems measured side by side: AUC with intervals, paired differences, and
Table 1.

All systems are measured against the same labels. Systems with frames for different clips are
compared on the clips that both have. Intervals are 95 % percentiles of a bootstrap over sources.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.evaluation.tables import ABSENT, aligned, number, with_ends, with_interval
from klassify.grid.ragged import FrameTable
from klassify.grid.segments import Truth
from klassify.lists import subsets
from klassify.metrics.clips import bootstrap
from klassify.metrics.frames import (
    SEGMENT_MS,
    LabelledFrames,
    WeightedFrames,
    exact,
    frame_metrics,
    labelled_frames,
    weighted_frames,
)
from klassify.scores.frame_file import FrameFile, frame_table
from klassify.systems.base import System

BINS = 512  # of scores, in the bootstrap's histograms
SAMPLE = 1 << 17  # scores that the bins are chosen by
HEAD = re.compile(r"ps(\d+)")


def bootstrap_auc(
    parts: Iterable[LabelledFrames], source: Sequence[str], *, n: int = 1000, seed: int = 0
) -> np.ndarray:
    """AUC of each part on resamples of sources, the same for all: (parts, n).

    source: of each clip of the truth. Frames are counted by source in bins of about equal size, or
    of equal scores where there are few; more than BINS different scores change the AUC by less
    than 0.001.
    """
    return _bootstrap(map(weighted_frames, parts), source, _auc, n=n, seed=seed)


def bootstrap_eer(
    parts: Iterable[WeightedFrames], source: Sequence[str], *, n: int = 1000, seed: int = 0
) -> np.ndarray:
    """EER of each part on resamples of sources, as `bootstrap_auc` draws them: (parts, n)."""
    return _bootstrap(parts, source, _eer, n=n, seed=seed)


def _bootstrap(
    parts: Iterable[WeightedFrames],
    source: Sequence[str],
    metric: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    n: int,
    seed: int,
) -> np.ndarray:
    names, place = np.unique(np.asarray(source, dtype=str), return_inverse=True)

    def sampled(part: WeightedFrames) -> np.ndarray:
        counts = _by_source(part, place, len(names))

        def statistics(weights: np.ndarray) -> np.ndarray:
            # in float32 whole numbers are exact, since no bin holds 2^24 frames
            drawn = weights.astype(counts.dtype) @ counts.reshape(len(names), -1)
            real, fake = np.split(drawn.astype(float), 2, axis=1)
            with np.errstate(divide="ignore", invalid="ignore"):
                return metric(real, fake)

        return bootstrap(statistics, names, n=n, seed=seed)

    return np.stack([sampled(part) for part in parts])  # one at a time: each has millions of frames


def _by_source(part: WeightedFrames, place: np.ndarray, n_sources: int) -> np.ndarray:
    """Real and fake weight of each source by bin of score, (sources, 2, bins); float32 of whole
    numbers of frames.
    """
    sample = part.scores[:: max(1, len(part.scores) // SAMPLE)]
    edges = np.unique(sample)
    if len(edges) > BINS:
        edges = np.unique(np.quantile(sample, np.linspace(0, 1, BINS + 1)[1:-1]))
    shape = (n_sources, len(edges) + 1)
    cell = np.repeat(place[part.clips] * shape[1], part.counts)
    cell += np.searchsorted(edges, part.scores)
    found = []
    for weights in (part.real, part.fake):
        if weights.dtype == bool:
            counted = np.bincount(cell[weights], minlength=np.prod(shape)).astype(np.float32)
        else:
            counted = np.bincount(cell, weights, minlength=np.prod(shape))
        found.append(counted.reshape(shape))
    return np.stack(found, axis=1)


def _auc(real: np.ndarray, fake: np.ndarray) -> np.ndarray:
    """AUC (B,) of real and fake frames by bin of score, each (B, bins)."""
    below = np.cumsum(real, axis=1) - real / 2
    return (below * fake).sum(axis=1) / (real.sum(axis=1) * fake.sum(axis=1))


def _eer(real: np.ndarray, fake: np.ndarray) -> np.ndarray:
    """EER (B,) of real and fake frames by bin of score, each (B, bins)."""
    miss, kept = (
        np.cumsum(np.pad(weights, ((0, 0), (1, 0))), axis=1) / weights.sum(axis=1, keepdims=True)
        for weights in (fake, real)
    )
    gap = miss + kept - 1  # rises from -1 to 1
    after = np.maximum(np.argmax(gap >= 0, axis=1), 1)
    at = np.stack([after - 1, after], axis=1)
    (gap_0, gap_1), (miss_0, miss_1) = (
        np.take_along_axis(values, at, axis=1).T for values in (gap, miss)
    )
    return miss_0 - gap_0 / (gap_1 - gap_0) * (miss_1 - miss_0)


def on_common_clips(tables: Sequence[FrameTable], truth: Truth) -> list[LabelledFrames]:
    """The 40 ms frames of the clips that all tables have."""
    common = set.intersection(*(set(table.files) for table in tables))
    return [
        labelled_frames(table if len(table.files) == len(common) else table.take(common), truth, 40)
        for table in tables
    ]


def frame_columns(
    tables: Mapping[str, FrameTable | None],
    modality: Mapping[str, str],
    frame: pd.DataFrame,
    *,
    versus: str,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """The frame metrics of each system against the union of fake segments; {} without frames.

    `frame_auc` with its interval and `frame_eer` at 40 ms, `seg_auc` at SEGMENT_MS, `frame_auc_own`
    against the modality's own segments, `n_no_frames` clips, and `frame_gain`: the AUC of `versus`
    minus this one's on the clips that both have.
    """
    truth, source = Truth.from_list(frame), subsets.sources_of(frame)
    results: dict[str, dict[str, float]] = {name: {} for name in tables}
    samples: dict[str, np.ndarray] = {}
    for name, table in tables.items():
        if table is None:
            continue
        own = None
        if modality[name] in ("audio", "visual"):
            own = Truth.from_list(frame, subsets.segment_column(frame, modality[name]))
        part = labelled_frames(table, truth, 40)
        found = frame_metrics(table, truth, (40, SEGMENT_MS), own, part)
        row = results[name]
        row |= {
            "frame_auc": found.auc[40],
            "frame_eer": found.eer[40],
            "seg_auc": found.auc[SEGMENT_MS],
        }
        if own is not None:
            row["frame_auc_own"] = found.own_auc
        row["n_no_frames"] = found.n_without
        (drawn,) = bootstrap_auc([part], source, n=n_bootstrap, seed=seed)
        samples[name] = drawn
        row |= with_ends("frame_auc", row["frame_auc"], drawn)
    rival = tables[versus]
    for name, table in tables.items():
        if name == versus or table is None or rival is None:
            continue
        if np.array_equal(table.files, rival.files):
            points = [results[one]["frame_auc"] for one in (versus, name)]
            theirs, ours = samples[versus], samples[name]
        else:
            pair = on_common_clips([rival, table], truth)
            points = [exact(part)[0] for part in pair]
            theirs, ours = bootstrap_auc(pair, source, n=n_bootstrap, seed=seed)
        results[name] |= with_ends("frame_gain", points[0] - points[1], theirs - ours)
    return results


def frames_text(whole: pd.DataFrame, versus: str) -> str:
    """The frame columns of several systems (index) as text."""
    wanted = ["frame_auc", "frame_auc_own", "frame_eer", "seg_auc", "frame_gain", "n_no_frames"]
    ends = [f"{name}_{end}" for name in ("frame_auc", "frame_gain") for end in ("low", "high")]
    whole = whole.reindex(columns=[*wanted, *ends])
    heads = ["40 ms frames", "AUC", "own label", "EER", f"AUC {SEGMENT_MS} ms"]
    rows = [[*heads, f"{versus} minus it", "no frames"]]
    for name, row in whole[whole["frame_auc"].notna()].iterrows():
        cells = [
            with_interval(row, "frame_auc"),
            number(row["frame_auc_own"]),
            number(row["frame_eer"], ".3f"),
            number(row["seg_auc"]),
            with_interval(row, "frame_gain", "+.4f"),
            number(row["n_no_frames"], ".0f"),
        ]
        rows.append([name, *cells])
    return aligned(rows) if len(rows) > 1 else ""


def heads_of(source: FrameFile) -> list[str]:
    """The heads of a system, `ps20` to `ps640`, that have columns for real and fake."""
    names = [name.removesuffix("_fake") for name in source.columns if name.endswith("_fake")]
    return [name for name in names if HEAD.fullmatch(name) and f"{name}_real" in source.columns]


def measure_heads(
    system: System,
    split: str,
    frame: pd.DataFrame,
    heads: Sequence[str] | None = None,
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """AUC and EER of each head alone at its own resolution, where any overlap makes a frame fake
    (Table 1).

    One row per head and label: `own` (the modality's segments) and `union` (either's). heads: None
    takes all. At 20 ms both halves of a 40 ms frame have the head's mean.
    """
    source = FrameFile(system.frames_path(split))
    known = heads_of(source)
    unknown = [name for name in heads or [] if name not in known]
    if unknown:
        raise KlassifyError(
            f"{system.name} has no heads {first_few(unknown)}; it has:"
            f" {first_few(known, 20) or 'none'}.",
            where=system.folder,
        )
    own = subsets.segment_column(frame, system.own_label)
    columns = {"own": own, "union": "fake_segments"}
    if system.modality == "both":
        del columns["own"]
    truths = [Truth.from_list(frame, name) for name in columns.values()]
    rows = []
    for head in heads or known:
        resolution_ms = int(HEAD.fullmatch(head)[1])
        table = frame_table(source, f"{head}_fake", f"{head}_real")
        parts = [labelled_frames(table, truth, resolution_ms) for truth in truths]
        samples = bootstrap_auc(parts, subsets.sources_of(frame), n=n_bootstrap, seed=seed)
        for label, part, drawn in zip(columns, parts, samples):
            auc, eer = exact(part)
            row = {
                "system": system.name,
                "head": head,
                "resolution_ms": resolution_ms,
                "label": label,
                "auc": auc,
                "eer": eer,
            }
            row |= with_ends("auc", auc, drawn)
            row |= {
                "n_frames": len(part.labels),
                "n_fake": int(part.labels.sum()),
                "n_clips": len(part.clips),
            }
            rows.append(row)
    return pd.DataFrame(rows)


def heads_text(table: pd.DataFrame) -> str:
    """Table 1 of one or more systems as text."""
    rows = [["Table 1: heads", "ms", "AUC own", "EER own", "AUC union", "EER union", "frames"]]
    for (name, head), cells in table.groupby(["system", "head"], sort=False):
        by_label = {row["label"]: row for _, row in cells.iterrows()}
        shown = []
        for label in ("own", "union"):
            row = by_label.get(label)
            shown += (
                [ABSENT] * 2 if row is None else [with_interval(row, "auc"), number(row["eer"])]
            )
        first = cells.iloc[0]
        rows.append([f"{name} {head}", str(first["resolution_ms"]), *shown, str(first["n_frames"])])
    return aligned(rows)
