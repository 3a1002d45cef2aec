"""Localisers measured on labelled clips: the numbers behind `klassify evaluate --task 2`.

AP, AR and Score as the challenge's evaluator computes them (docs/official-metric.md), over all
clips, for each kind of fake beside all real clips, and by length of the segments; the frame scores'
AUC and EER where a system has frames (klassify.evaluation.frames); and what guessing
reaches with as many proposals of true lengths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError
from klassify.evaluation.frames import frame_columns, frames_text
from klassify.evaluation.tables import aligned, number, with_interval
from klassify.grid.frames import FRAME_S
from klassify.grid.ragged import FrameTable
from klassify.grid.segments import Proposals, Truth
from klassify.lists import subsets
from klassify.localisation.proposals import random_proposals
from klassify.metrics import segments
from klassify.metrics.clips import interval
from klassify.scores.frame_file import FrameFile, frame_table
from klassify.submission.verdict import MAX_ROWS
from klassify.systems.base import System

RANDOM_DRAWS = 20
RANDOM = "random"  # rows beside the systems': guessing,
CEILING = "perfect on the 40 ms grid"  # and the true segments with their ends on the grid


@dataclasses.dataclass(frozen=True)
class Localised:
    """One system on the clips of a list: its proposals, at most MAX_ROWS a clip, and its frames
    if it has any.
    """

    system: System
    proposals: Proposals
    frames: FrameTable | None


def load_localised(system: System, split: str, files: Sequence[str]) -> Localised:
    """The proposals of a system for a split, as they would be submitted."""
    table = system.segment_scores(split).table
    table = (
        table.sort_values("score", ascending=False, kind="stable")
        .groupby("file", sort=False)
        .head(MAX_ROWS)
    )
    path = system.path(split, "frames")
    frames = frame_table(FrameFile(path)) if path.exists() else None
    return Localised(system, Proposals.from_table(table, files), frames)


def measure_task2(
    localised: Sequence[Localised],
    frame: pd.DataFrame,
    *,
    versus: str,
    mode: str = "official",
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row a system and group of clips or segments: METRICS, intervals of Score, `gain`, frame
    metrics.

    Two more rows are what guessing reaches and what the grid allows.

    frame: the labelled list with its segments. gain: Score of `versus` minus this system's on the
    same resamples of sources. KlassifyError where the list has no fake segment.
    """
    truth = Truth.from_list(frame)
    if not len(truth.segments):
        raise KlassifyError("There is no fake segment in these clips, so AP is not defined.")
    sources = subsets.sources_of(frame)
    matches = {one.system.name: segments.match(one.proposals, truth, mode) for one in localised}
    samples = {}
    if n_bootstrap:
        resampled = segments.bootstrap_task2(matches, sources, n=n_bootstrap, seed=seed)
        samples = {name: values[-1] for name, values in resampled.items()}
    whole = {name: one.score() for name, one in matches.items()}
    by_frame = frame_columns(
        {one.system.name: one.frames for one in localised},
        {one.system.name: one.system.modality for one in localised},
        frame,
        versus=versus,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )
    rows = []
    for one in localised:
        name = one.system.name
        row = {"system": name, "group": "all"} | whole[name].named() | by_frame[name]
        row |= _with_ends("Score", row["Score"], samples.get(name))
        if name != versus:
            row["versus"] = versus
            paired = samples[versus] - samples[name] if samples else None
            row |= _with_ends("gain", whole[versus].score - whole[name].score, paired)
        rows.append(row)
        groups = segments.by_modify_type(matches[name], frame["modify_type"]) | segments.by_length(
            matches[name]
        )
        groups |= segments.by_modality(one.proposals, frame, mode)
        rows += [
            {"system": name, "group": group} | result.named() for group, result in groups.items()
        ]
    last = next(one for one in localised if one.system.name == versus)
    rows.append(
        {"system": RANDOM, "group": "all"}
        | guessing(last.proposals, truth, frame, mode, seed).named()
    )
    rows.append(
        {"system": CEILING, "group": "all"}
        | segments.grid_ceiling(truth, FRAME_S, mode=mode).named()
    )
    table = pd.DataFrame(rows)
    return table.assign(
        metric=mode, n=len(frame), n_sources=len(set(sources)), n_segments=len(truth.segments)
    )


def _with_ends(name: str, value: float, samples: np.ndarray | None) -> dict[str, float]:
    low, high = (np.nan, np.nan) if samples is None else interval(samples)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def guessing(
    like: Proposals,
    truth: Truth,
    frame: pd.DataFrame,
    mode: str,
    seed: int,
    draws: int = RANDOM_DRAWS,
) -> segments.Task2Result:
    """The mean over draws of random proposals: as many a clip as `like` has, of lengths drawn
    from the truth.
    """
    rng = np.random.default_rng(seed)
    lengths = np.diff(truth.segments, axis=1)[:, 0]
    durations = frame["duration"].to_numpy(float)
    results = []
    for _ in range(draws):
        found = random_proposals(lengths, np.diff(like.offsets), durations, rng)
        results.append(segments.score_task2(found.of(truth.files), truth, mode))
    ap, ar = (
        np.mean([getattr(result, name) for result in results], axis=0) for name in ("ap", "ar")
    )
    return results[0]._replace(
        ap=ap, ar=ar, score=float(np.mean([result.score for result in results]))
    )


def comparison_task2(table: pd.DataFrame) -> str:
    """The localisers of one evaluation side by side, as text."""
    first = table.iloc[0]
    whole = table[table["group"] == "all"].set_index("system")
    short = [name for name in segments.METRICS if name != "Score"]
    versus = (
        table["versus"].dropna().iloc[0]
        if "versus" in table and table["versus"].notna().any()
        else "it"
    )
    rows = [["Task 2", "Score", *short, f"{versus} minus it"]]
    gains = whole.reindex(columns=["gain", "gain_low", "gain_high"])
    for name, row in whole.iterrows():
        gain = with_interval(gains.loc[name], "gain", "+.4f")
        rows.append([name, with_interval(row, "Score"), *(number(row[key]) for key in short), gain])
    groups = [group for group in dict.fromkeys(table["group"]) if group != "all"]
    by_group = [["Score", *groups]]
    cells = table.set_index(["system", "group"])["Score"]
    for name in whole.index.drop([RANDOM, CEILING]):
        by_group.append([name, *(number(cells.get((name, group), np.nan)) for group in groups)])
    title = (
        f"{first['split']} ({first['subset']}): {first['n']} clips with {first['n_segments']} fake"
        f" segments, of {first['n_sources']} sources; {first['metric']} metric [95 % interval,"
        " bootstrap over sources]"
    )
    tables = [aligned(rows), frames_text(whole, versus), aligned(by_group)]
    return "\n\n".join([title, *filter(None, tables)])
