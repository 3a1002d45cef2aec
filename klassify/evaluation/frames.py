"""Frame scores of systems measured side by side: AUC with intervals, paired differences, and Table
1.

All systems are measured against the same labels and, where they differ in the clips that they have
frames for, compared on the clips that both have. Intervals are 95 % percentiles of a bootstrap over
sources.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.evaluation.tables import aligned, number, with_interval
from klassify.grid.ragged import FrameTable
from klassify.grid.segments import Truth
from klassify.lists import subsets
from klassify.metrics.clips import Ranking, bootstrap, interval
from klassify.metrics.frames import SEGMENT_MS, LabelledFrames, frame_metrics, labelled_frames
from klassify.scores.frame_file import FrameFile, frame_table
from klassify.systems.base import System

MAX_BINS, MAX_CELLS = (
    2000,
    20_000_000,
)  # of the bootstrap's histograms: of scores, and scores times sources
HEAD = re.compile(r"ps(\d+)")


def bootstrap_auc(
    parts: Sequence[LabelledFrames], source: Sequence[str], *, n: int = 1000, seed: int = 0
) -> np.ndarray:
    """AUC of each part on resamples of sources, the same for all: (parts, n).

    source: of each clip of the truth. Frames are counted by source in bins of about equal size, of
    equal scores where there are few; more than MAX_BINS different scores cost less than 0.001 of
    the AUC.
    """
    names, place = np.unique(np.asarray(source, dtype=str), return_inverse=True)
    first_clip = np.unique(place, return_index=True)[1]
    counts = [_by_source(part, place, len(names)) for part in parts]

    def statistics(weights: np.ndarray) -> np.ndarray:
        weights = weights[:, first_clip]
        with np.errstate(invalid="ignore"):
            return np.stack([_auc(weights @ real, weights @ fake) for real, fake in counts])

    return bootstrap(statistics, source, n=n, seed=seed)


def _by_source(
    part: LabelledFrames, place: np.ndarray, n_sources: int
) -> tuple[np.ndarray, np.ndarray]:
    """Real and fake frames of each source by bin of score, two (sources, bins)."""
    n_bins = int(np.clip(MAX_CELLS // n_sources, 100, MAX_BINS))
    edges = np.unique(part.scores)
    if len(edges) > n_bins:
        edges = np.unique(np.quantile(part.scores, np.linspace(0, 1, n_bins + 1)[1:-1]))
    cell = np.repeat(place[part.clips], part.counts) * (len(edges) + 1) + np.searchsorted(
        edges, part.scores
    )
    size = n_sources * (len(edges) + 1)
    shape = (n_sources, len(edges) + 1)
    return tuple(
        np.bincount(cell[part.labels == y], minlength=size).reshape(shape).astype(float)
        for y in (0, 1)
    )


def _auc(real: np.ndarray, fake: np.ndarray) -> np.ndarray:
    """AUC (B,) of real and fake frames by bin of score, each (B, bins)."""
    below = np.cumsum(real, axis=1) - real / 2
    return (below * fake).sum(axis=1) / (real.sum(axis=1) * fake.sum(axis=1))


# ------------------------------------------------------------------------------ systems side by
# side


def frame_columns(
    tables: Mapping[str, FrameTable | None],
    modality: Mapping[str, str],
    frame: pd.DataFrame,
    *,
    versus: str,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """What the frames of each system say, against the union of fake segments; {} for one that has
    none.

    `frame_auc` with its interval and `frame_eer` at 40 ms, `seg_auc` at SEGMENT_MS, `frame_auc_own`
    against the modality's own segments, `n_no_frames` clips, and `frame_gain`: the AUC of `versus`
    minus this one's on the clips that both have.
    """
    truth, source = Truth.from_list(frame), subsets.sources_of(frame)
    results: dict[str, dict[str, float]] = {}
    parts: dict[tuple[str, str], LabelledFrames] = {}
    pairs: dict[
        str, tuple[tuple[str, str], tuple[str, str]]
    ] = {}  # of each system: the rival's frames, its own
    for name, table in tables.items():
        results[name] = {}
        if table is None:
            continue
        union = frame_metrics(table, truth, (40, SEGMENT_MS))
        results[name] = {
            "frame_auc": union.auc[40],
            "frame_eer": union.eer[40],
            "seg_auc": union.auc[SEGMENT_MS],
        }
        if modality[name] in ("audio", "visual"):
            own = Truth.from_list(frame, f"{modality[name]}_fake_segments")
            results[name]["frame_auc_own"] = frame_metrics(table, own, (40,)).auc[40]
        results[name]["n_no_frames"] = union.n_without
        parts[name, "all"] = labelled_frames(table, truth, 40)
        rival = tables[versus]
        if rival is None or name == versus:
            continue
        both = set(rival.files) & set(table.files)
        if len(both) == len(rival.files) == len(table.files):
            pairs[name] = (versus, "all"), (name, "all")
        else:
            pairs[name] = (name, "rival"), (name, "both")
            for key, one in zip(pairs[name], (rival, table)):
                parts[key] = labelled_frames(one.take(both), truth, 40)
    samples = dict.fromkeys(parts)
    if n_bootstrap and parts:
        samples = dict(
            zip(parts, bootstrap_auc(list(parts.values()), source, n=n_bootstrap, seed=seed))
        )
    for name, columns in results.items():
        if columns:
            columns |= _ends("frame_auc", samples[name, "all"])
        if name in pairs:
            theirs, own = pairs[name]
            columns["frame_gain"] = _exact(parts[theirs]) - _exact(parts[own])
            columns |= _ends(
                "frame_gain", None if samples[own] is None else samples[theirs] - samples[own]
            )
    return results


def _exact(part: LabelledFrames) -> float:
    return (
        float(Ranking(part.labels, part.scores).auc_and_eer()[0])
        if len(part.labels)
        else float("nan")
    )


def _ends(name: str, samples: np.ndarray | None) -> dict[str, float]:
    low, high = (np.nan, np.nan) if samples is None else interval(samples)
    return {f"{name}_low": low, f"{name}_high": high}


def frames_text(whole: pd.DataFrame, versus: str) -> str:
    """The frame columns of several systems (index) as text."""
    wanted = ["frame_auc", "frame_auc_own", "frame_eer", "seg_auc", "frame_gain", "n_no_frames"]
    ends = [f"{name}_{end}" for name in ("frame_auc", "frame_gain") for end in ("low", "high")]
    whole = whole.reindex(columns=[*wanted, *ends])
    rows = [
        [
            "40 ms frames",
            "AUC",
            "own label",
            "EER",
            f"AUC {SEGMENT_MS} ms",
            f"{versus} minus it",
            "no frames",
        ]
    ]
    for name, row in whole[whole["frame_auc"].notna()].iterrows():
        rows.append(
            [
                name,
                with_interval(row, "frame_auc"),
                number(row["frame_auc_own"]),
                number(row["frame_eer"], ".3f"),
                number(row["seg_auc"]),
                with_interval(row, "frame_gain", "+.4f"),
                number(row["n_no_frames"], ".0f"),
            ]
        )
    return aligned(rows) if len(rows) > 1 else ""


# ------------------------------------------------------------------------------ heads of one system
# (Table 1)


def heads_of(source: FrameFile) -> list[str]:
    """The single-resolution heads of a system, `ps20` to `ps640`: those with columns for real
    and fake.
    """
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

    One row a head and label: `own` (the modality's segments) and `union` (either's). heads: None
    takes all there are. At 20 ms both halves of a 40 ms frame have the head's mean.
    """
    source = FrameFile(system.frames_path(split))
    there = heads_of(source)
    unknown = [name for name in heads or [] if name not in there]
    if unknown:
        raise KlassifyError(
            f"{system.name} has no heads {first_few(unknown)}; it has:"
            f" {first_few(there, 20) or 'none'}.",
            where=system.folder,
        )
    columns = {"own": f"{system.modality}_fake_segments", "union": "fake_segments"}
    if system.modality == "both":
        del columns["own"]
    rows = []
    for head in heads or there:
        milliseconds = int(HEAD.fullmatch(head)[1])
        table = frame_table(source, f"{head}_fake", f"{head}_real")
        parts = [
            labelled_frames(table, Truth.from_list(frame, name), milliseconds)
            for name in columns.values()
        ]
        samples = [None] * len(parts)
        if n_bootstrap:
            samples = bootstrap_auc(parts, subsets.sources_of(frame), n=n_bootstrap, seed=seed)
        for label, part, resampled in zip(columns, parts, samples):
            auc, eer = (
                Ranking(part.labels, part.scores).auc_and_eer()
                if len(part.labels)
                else (np.nan, np.nan)
            )
            row = {
                "system": system.name,
                "head": head,
                "resolution_ms": milliseconds,
                "label": label,
                "auc": float(auc),
                "eer": float(eer),
            }
            counts = {
                "n_frames": len(part.labels),
                "n_fake": int(part.labels.sum()),
                "n_clips": len(part.clips),
            }
            rows.append(row | _ends("auc", resampled) | counts)
    return pd.DataFrame(rows)


def heads_text(table: pd.DataFrame) -> str:
    """Table 1 of one or more systems as text."""
    rows = [["Table 1: heads", "ms", "AUC own", "EER own", "AUC union", "EER union", "frames"]]
    for (name, head), cells in table.groupby(["system", "head"], sort=False):
        by_label = {row["label"]: row for _, row in cells.iterrows()}
        shown = []
        for label in ("own", "union"):
            row = by_label.get(label)
            shown += ["-", "-"] if row is None else [with_interval(row, "auc"), number(row["eer"])]
        first = cells.iloc[0]
        rows.append([f"{name} {head}", str(first["resolution_ms"]), *shown, str(first["n_frames"])])
    return aligned(rows)
