"""The linear rule of `klassify fuse`: frame scores of several systems -> one, on the 40 ms grid.

system.yaml keeps the parameters: of each input the `columns` it takes (real before fake), `weight`
(2, C), `bias` (2), and `means` (C), the columns' means over the frames of the fit. Where an input
has no scores (its modality is missing, or ends more than `hold_s` before the clip), the means take
their place, so that it does not influence the result; released weights have no means and use zeros.
A clip that no input has frames for has no answer.

Scores, both pure functions of the inputs' files: `<split>.frames.parquet` with the logits `real`
and `fake` and score = fake - real, whose sigmoid is the paper's softmax; `<split>.clips.tsv` with
the highest of a clip's frames (`aggregate: max`, as in the paper) or the mean of its highest tenth
(`top`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.scores import frame_file
from klassify.scores.frame_file import FrameFile, clip_scores
from klassify.scores.score_file import (
    Header,
    ScoreFile,
    is_current,
    read_scores,
    write_blocks,
    write_scores,
)
from klassify.systems import align
from klassify.systems.base import SYSTEM, System, made_from
from klassify.systems.fused import fused_table, in_one_order

RULE = "linear"
PAIR = ("real", "fake")
RESOLUTIONS = (160, 320, 640)


class Rule(NamedTuple):
    """What a linear fusion computes with; see the module. columns: of each input."""

    columns: list[list[str]]
    weight: np.ndarray
    bias: np.ndarray
    means: np.ndarray
    hold_s: float | None
    aggregate: str

    @classmethod
    def from_system(cls, system: System) -> Rule:
        """The rule in a system.yaml; KlassifyError where parameters are missing or do not fit."""
        given = system.parameters
        try:
            arrays = [np.asarray(given[name], float) for name in ("weight", "bias", "means")]
            rule = cls(given["columns"], *arrays, given["hold_s"], given["aggregate"])
            n_columns = sum(map(len, rule.columns))
        except (KeyError, TypeError, ValueError) as error:
            what = f"The parameters of {system.name} are incomplete: {error!r}."
            raise KlassifyError(what, where=SYSTEM) from None
        wanted = [(2, n_columns), (2,), (n_columns,)]
        if [array.shape for array in arrays] != wanted or len(rule.columns) != len(system.inputs):
            raise KlassifyError(
                f"The parameters of {system.name} do not fit its columns.", where=SYSTEM
            )
        return rule

    def logits(self, values: np.ndarray) -> np.ndarray:
        """(F, C), NaN where an input is silent -> (F, 2) logits of real and fake, as float32."""
        filled = np.where(np.isnan(values), self.means, values)
        return (filled @ self.weight.T + self.bias).astype(np.float32).astype(float)

    def log_odds(self, values: np.ndarray) -> np.ndarray:
        """(F, C) -> (F,) fake minus real."""
        return np.diff(self.logits(values), axis=1)[:, 0]


def columns_of(source: FrameFile, resolutions: Sequence[int] = RESOLUTIONS) -> list[str]:
    """The columns a fusion takes of a system: logits, else PartialSpoof's cosines, else score."""
    if set(PAIR) <= set(source.columns):
        return list(PAIR)
    if any(name.startswith("ps") and name.endswith("_fake") for name in source.columns):
        wanted = [f"ps{ms}_{side}" for ms in resolutions for side in PAIR]
        missing = [name for name in wanted if name not in source.columns]
        if missing:
            what = f"There are no columns {first_few(missing)}."
            raise KlassifyError(what, where=source.path, fix="other --resolutions")
        return wanted
    return ["score"]


def open_inputs(systems: Sequence[System], split: str) -> list[FrameFile]:
    """The frame scores of systems; KlassifyError for missing or outdated ones."""
    return [FrameFile(system.frames_path(split)) for system in systems]


class Linear(System):
    """A fusion of frame scores, which has both frame and clip scores."""

    has_frames = True

    def derive(self, split: str, *, force: bool = False) -> ScoreFile:
        """Write the frame and clip scores unless nothing has changed; returns the clip scores."""
        rule, inputs = Rule.from_system(self), self.input_systems
        sources = open_inputs(inputs, split)
        clips = in_one_order([one.clip_scores(split) for one in inputs], self.name)
        files = clips[0].table["file"].tolist()
        for source in sources:
            extra = set(source.files).difference(files)
            if extra:
                raise KlassifyError(
                    f"{len(extra)} clips have frames but no clip score:"
                    f" {first_few(sorted(extra))}.",
                    where=source.path,
                )
        made_of = [made_from(source.header) for source in sources]
        settings = {"system": self.hash, "inputs": made_of}
        frames, path = self.path(split, "frames"), self.path(split, "clips")
        header = Header(self.name, split, "frames", self.scale, self.supervision, settings)
        if not is_current(frames, settings, force=force):
            write_blocks(frames, _frame_tables(rule, sources, files), header)
        if not is_current(path, settings, force=force):
            table = _clip_table(rule, frames, clips, sources)
            write_scores(path, table, dataclasses.replace(header, kind="clips"))
        return read_scores(path)


def _frame_tables(
    rule: Rule, sources: Sequence[FrameFile], files: Sequence[str]
) -> Iterator[pd.DataFrame]:
    for block in frame_file.counted_blocks(files, "fuse frames"):
        found = align.aligned(sources, rule.columns, block, hold_s=rule.hold_s)
        start, end = found.frame_times()
        real, fake = rule.logits(found.values).T
        yield pd.DataFrame(
            {
                "file": np.repeat(found.files, found.counts),
                "start": start,
                "end": end,
                "score": fake - real,
                "real": real.astype(np.float32),
                "fake": fake.astype(np.float32),
            }
        )


def _clip_table(
    rule: Rule, frames: Path, clips: Sequence[ScoreFile], sources: Sequence[FrameFile]
) -> pd.DataFrame:
    """One row per clip; `answered` counts the inputs that have frames of it."""
    files, scores = clips[0].table["file"], {}
    for names, values in clip_scores(FrameFile(frames), rule.aggregate):
        scores.update(zip(names, values))
    present = np.stack([files.isin(set(source.files)).to_numpy() for source in sources])
    return fused_table(clips, files.map(scores).astype(float), present, default="no frames")


class Gathered(NamedTuple):
    """The frames of n clips for which every input has scores.

    values: (F, C) float32. offsets: (n + 1,) of the clips among them. counts: (n,) all frames of
    each clip; kept: (sum of counts,) whether each is among the F. means: (C,) over all frames of
    an input.
    """

    values: np.ndarray
    offsets: np.ndarray
    counts: np.ndarray
    kept: np.ndarray
    means: np.ndarray


def gather(
    sources: Sequence[FrameFile],
    columns: Sequence[Sequence[str]],
    files: Sequence[str],
    hold_s: float | None,
) -> Gathered:
    """The frames of `files` in their order; arguments as in klassify.systems.align.aligned."""
    values, counts, kept, sums = [], [], [], 0.0
    for block in frame_file.counted_blocks(files, "gather frames"):
        found = align.aligned(sources, columns, block, hold_s=hold_s)
        speaks = ~np.isnan(found.values)
        sums = sums + np.stack([np.where(speaks, found.values, 0).sum(axis=0), speaks.sum(axis=0)])
        whole = speaks.all(axis=1)
        values.append(found.values[whole].astype(np.float32))
        counts.append(found.counts)
        kept.append(whole)
    counts, kept = np.concatenate(counts), np.concatenate(kept)
    owner = np.repeat(np.arange(len(counts)), counts)
    offsets = np.append(0, np.cumsum(np.bincount(owner[kept], minlength=len(counts))))
    with np.errstate(invalid="ignore"):
        means = sums[0] / sums[1]
    return Gathered(np.concatenate(values), offsets, counts, kept, means)


def parameters_of(rule: Rule, **more: Any) -> Mapping[str, Any]:
    """The parameters of the system.yaml that `Rule.from_system` reads."""
    arrays = {name: getattr(rule, name).tolist() for name in ("weight", "bias", "means")}
    return {"rule": RULE, **rule._asdict(), **arrays, **more}
