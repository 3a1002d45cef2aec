"""EERs of localisers as benchmarks of partly fake speech report them: of clips, of frames at
several resolutions, and of time.

`utterance`: clips, by the highest score of their frames. `20 ms` to `640 ms`: frames, point-based,
where any overlap makes a frame fake (klassify.metrics.frames). `range`: seconds of sound
(klassify.metrics.ranges). Intervals are 95 % percentiles of a bootstrap over sources.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from klassify.evaluation.frames import bootstrap_eer
from klassify.evaluation.tables import aligned, with_ends, with_interval
from klassify.grid.ragged import FrameTable, pooled, row_offsets
from klassify.grid.segments import Truth
from klassify.lists import subsets
from klassify.metrics.clips import Ranking, bootstrap
from klassify.metrics.frames import RESOLUTIONS_MS, exact, labelled_frames, weighted_frames
from klassify.metrics.ranges import range_eer, timed_frames

UTTERANCE, RANGE = "utterance", "range"


def measure_eer(
    tables: Mapping[str, FrameTable], frame: pd.DataFrame, *, n_bootstrap: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """One row per system and measure: `eer` with its interval, `n` clips, frames or hours.

    tables: the frame scores of each system. frame: the labelled list with its segments; clips
    without known segments are left out.
    """
    known = frame["fake_segments"].notna().to_numpy()
    frame = frame[known].reset_index(drop=True)
    truth, source = Truth.from_list(frame), subsets.sources_of(frame)
    durations = frame["duration"].to_numpy(float)
    how = {"n": n_bootstrap, "seed": seed}
    rows = []
    for name, frames in tables.items():
        row = {"system": name, "n_sources": len(set(source))}
        value, drawn, n = _of_clips(frames, truth, source, **how)
        rows.append(row | {"measure": UTTERANCE, "n": n} | with_ends("eer", value, drawn))
        points = [labelled_frames(frames, truth, ms) for ms in RESOLUTIONS_MS]
        timed = timed_frames(frames, truth, durations)
        samples = bootstrap_eer([*map(weighted_frames, points), timed], source, **how)
        for ms, at, drawn in zip(RESOLUTIONS_MS, points, samples):
            ends = with_ends("eer", exact(at)[1], drawn)
            rows.append(row | {"measure": f"{ms} ms", "n": len(at.labels)} | ends)
        hours = float(timed.real.sum() + timed.fake.sum()) / 3600
        ends = with_ends("eer", range_eer(timed), samples[-1])
        rows.append(row | {"measure": RANGE, "n": hours} | ends)
    return pd.DataFrame(rows)


def _of_clips(
    frames: FrameTable, truth: Truth, source: np.ndarray, *, n: int, seed: int
) -> tuple[float, np.ndarray, int]:
    """The utterance EER, its bootstrap samples, and the number of clips that have frames."""
    at = labelled_frames(frames, truth, round(1000 * frames.hop_s))
    score = pooled(at.scores, row_offsets(at.counts))
    ranking = Ranking(np.diff(truth.offsets)[at.clips] > 0, score)

    def statistics(weights: np.ndarray) -> np.ndarray:
        return ranking.auc_and_eer(weights[:, at.clips])[1]

    value = statistics(np.ones((1, len(source))))[0]
    return float(value), bootstrap(statistics, source, n=n, seed=seed), len(at.clips)


def eer_text(table: pd.DataFrame) -> str:
    """The EERs of several systems, in percent."""
    table = table.assign(**{name: 100 * table[name] for name in ("eer", "eer_low", "eer_high")})
    measures = list(dict.fromkeys(table["measure"]))
    rows = [["EER, %", *measures]]
    for name, cells in table.groupby("system", sort=False):
        by_measure = cells.set_index("measure")
        rows.append([name, *(with_interval(by_measure.loc[m], "eer", ".2f") for m in measures)])
    first = table.iloc[0]
    title = (
        f"{first['split']} ({first['subset']}): clips, frames and time, {first['n_sources']}"
        " sources; [95 % interval, bootstrap over sources]"
    )
    return "\n\n".join([title, aligned(rows)])
