"""Localisers measured on labelled clips: the numbers behind `klassify evaluate --task 2`.

AP, AR and Score as the challenge's evaluator computes them (docs/official-metric.md), over all
clips, for each kind of fake together with all real clips, and by length of the segments; AUC and
EER of the frame scores of systems that have frames (klassify.evaluation.frames); and the Score of
random proposals, as many and of true lengths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError
from klassify.evaluation.frames import frame_columns, frames_text
from klassify.evaluation.tables import aligned, number, with_ends, with_interval
from klassify.grid.frames import FRAME_S
from klassify.grid.ragged import FrameTable
from klassify.grid.segments import Proposals, Truth
from klassify.lists import subsets
from klassify.localisation.proposals import random_proposals
from klassify.metrics import segments
from klassify.progress import progress
from klassify.scores.frame_file import FrameFile, frame_table
from klassify.scores.segment_file import read_segments
from klassify.submission.verdict import MAX_ROWS
from klassify.systems.base import System

RANDOM_DRAWS = 20
CLIPS_DRAWN = 40_000  # of all draws together, but at least one draw
# rows beside those of the systems: guessing, and the true segments with ends on a grid
RANDOM, CEILING = "random", "perfect on the {:g} ms grid"


@dataclasses.dataclass(frozen=True)
class Localised:
    """One system on the clips of a list: at most MAX_ROWS proposals per clip, frames if any."""

    system: System
    proposals: Proposals
    frames: FrameTable | None


def load_localised(
    system: System, split: str, files: Sequence[str], *, frames: bool = True
) -> Localised:
    """The proposals of a system for a split, as they would be submitted; frames: with its frame
    scores, if it has any.
    """
    found = read_segments(system.segments_path(split), texts=())
    clip = pd.Index(files).get_indexer(found.files)[found.clip]
    columns = found.score, found.start, found.end
    proposals = Proposals.from_rows(files, clip, *columns, most=MAX_ROWS)
    path = system.path(split, "frames")
    table_of_frames = frame_table(FrameFile(path)) if frames and path.exists() else None
    return Localised(system, proposals, table_of_frames)


def measure_task2(
    localised: Sequence[Localised],
    frame: pd.DataFrame,
    *,
    versus: str,
    mode: str = "official",
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per system and group of clips or segments: METRICS, intervals of Score, `gain`, and
    frame metrics; more rows for guessing and for the ceiling of each grid that the systems use.

    frame: the labelled list with its segments. gain: Score of `versus` minus this system's on the
    same resamples of sources. KlassifyError if the list has no fake segment.
    """
    truth = Truth.from_list(frame)
    if not len(truth.segments):
        raise KlassifyError("There is no fake segment in these clips, so AP is not defined.")
    sources = subsets.sources_of(frame)
    matches = {
        one.system.name: segments.match(one.proposals, truth, mode)
        for one in progress(localised, len(localised), "match proposals", unit="system")
    }
    drawn = segments.bootstrap_task2(matches, sources, n=n_bootstrap, seed=seed)
    by_frame = frame_columns(
        {one.system.name: one.frames for one in localised},
        {one.system.name: one.system.modality for one in localised},
        frame,
        versus=versus,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )
    whole = {name: one.score() for name, one in matches.items()}
    rows = []
    for one in progress(localised, len(localised), "measure groups", unit="system"):
        name = one.system.name
        row = {"system": name, "group": "all"} | whole[name].named() | by_frame[name]
        row |= with_ends("Score", whole[name].score, drawn[name][-1])
        if name != versus:
            gain = whole[versus].score - whole[name].score
            row["versus"] = versus
            row |= with_ends("gain", gain, drawn[versus][-1] - drawn[name][-1])
        rows.append(row)
        groups = segments.by_modify_type(matches[name], frame["modify_type"])
        groups |= segments.by_length(matches[name])
        groups |= segments.by_modality(one.proposals, frame, mode)
        rows += [{"system": name, "group": key} | found.named() for key, found in groups.items()]
    rival = next(one for one in localised if one.system.name == versus)
    hops = {one.frames.hop_s for one in localised if one.frames is not None}
    beside = beside_systems(rival.proposals, hops, truth, frame, mode, seed)
    rows += [{"system": name, "group": "all"} | found.named() for name, found in beside.items()]
    counts = {"n": len(frame), "n_sources": len(set(sources)), "n_segments": len(truth.segments)}
    return pd.DataFrame(rows).assign(metric=mode, **counts)


def beside_systems(
    like: Proposals,
    hops_s: Collection[float],
    truth: Truth,
    frame: pd.DataFrame,
    mode: str = "official",
    seed: int = 0,
) -> dict[str, segments.Task2Result]:
    """What systems are compared with: guessing, and the ceiling of each grid (or of 40 ms)."""
    found = {RANDOM: guessing(like, truth, frame, mode, seed)}
    for hop_s in sorted(hops_s or {FRAME_S}, reverse=True):
        found[CEILING.format(1000 * hop_s)] = segments.grid_ceiling(truth, hop_s, mode=mode)
    return found


def guessing(
    like: Proposals, truth: Truth, frame: pd.DataFrame, mode: str, seed: int
) -> segments.Task2Result:
    """The mean of random proposals: as many per clip as in `like`, of the truth's lengths."""
    rng = np.random.default_rng(seed)
    lengths = np.diff(truth.segments, axis=1)[:, 0]
    durations = frame["duration"].to_numpy(float)
    results = []
    for _ in range(min(RANDOM_DRAWS, max(1, CLIPS_DRAWN // len(frame)))):
        found = random_proposals(lengths, np.diff(like.offsets), durations, rng)
        results.append(segments.score_task2(found.select(truth.files), truth, mode))
    return results[0]._replace(
        ap=np.mean([one.ap for one in results], axis=0),
        ar=np.mean([one.ar for one in results], axis=0),
        score=float(np.mean([one.score for one in results])),
    )


def comparison_task2(table: pd.DataFrame) -> str:
    """The localisers of one evaluation side by side, as text."""
    first = table.iloc[0]
    whole = table[table["group"] == "all"].set_index("system")
    gain = ["versus", "gain", "gain_low", "gain_high"]  # one system alone has none
    whole = whole.reindex(columns=list(dict.fromkeys([*whole, *gain])))
    short = [name for name in segments.METRICS if name != "Score"]
    versus = next(iter(whole["versus"].dropna()), "it")
    rows = [["Task 2", "Score", *short, f"{versus} minus it"]]
    for name, row in whole.iterrows():
        metrics = [with_interval(row, "Score"), *(number(row[key]) for key in short)]
        rows.append([name, *metrics, with_interval(row, "gain", "+.4f")])
    groups = [group for group in dict.fromkeys(table["group"]) if group != "all"]
    by_group = [["Score", *groups]]
    cells = table.set_index(["system", "group"])["Score"]
    for name in dict.fromkeys(table.loc[table["group"] != "all", "system"]):
        by_group.append([name, *(number(cells.get((name, group), np.nan)) for group in groups)])
    title = (
        f"{first['split']} ({first['subset']}): {first['n']} clips with {first['n_segments']} fake"
        f" segments, of {first['n_sources']} sources; {first['metric']} metric [95 % interval,"
        " bootstrap over sources]"
    )
    tables = [aligned(rows), frames_text(whole, versus), aligned(by_group)]
    return "\n\n".join([title, *filter(None, tables)])
