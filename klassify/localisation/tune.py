"""Choose method and settings of the proposals on val_fit, by the official Score."""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from klassify.errors import KlassifyError
from klassify.files import read_yaml, whole_file, write_text
from klassify.grid.frames import FRAME_S
from klassify.grid.segments import Truth
from klassify.lists import subsets
from klassify.localisation import localise, proposals
from klassify.localisation.frame_scores import FrameScores, read_frames
from klassify.localisation.methods import LEVELS
from klassify.metrics.segments import METRICS, match
from klassify.progress import Count, progress
from klassify.settings import already_done, canonical_json, file_hash, settings_hash
from klassify.systems import calibrated
from klassify.systems.base import System
from klassify.systems.merged import Merged
from klassify.systems.scores import PROPOSALS

TABLE = "tuning.tsv"
SWEEPS = 2
MARGIN = 0.003  # of Score
COMMON = {
    "smooth_s": [0.0, 0.12, 0.2, 0.28],
    "debias_s": [0.02, 0.01, 0.0],  # half and a quarter of a 40 ms frame
    "nms_sigma": [0.5, 0.1, 0.2, 1.0],
    "at_least_one": [False, True],
}
MANY_LEVELS = [
    list(LEVELS),
    [0.3, 0.5, 0.7],
    [0.05, 0.1, 0.2, 0.3, 0.4, 0.5],
    [0.5, 0.6, 0.7, 0.8, 0.9, 0.95],
]
CONTEXTS = [1.0, 0.5, 0.25, 0.0]
TOLERANCES = [[0.5, 0.7, 0.9], [0.7], [0.9]]
GRID = {
    "threshold": {
        "threshold": [0.5, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9],
        "merge_s": [0.08, 0.0, 0.04, 0.16, 0.24],
        "drop_s": [0.0, 0.08, 0.16],
    },
    "multi_threshold": {"levels": MANY_LEVELS, "merge_s": [0.0, 0.08, 0.16], "context": CONTEXTS},
    "boundary_pairs": {"peaks": [10, 5, 20], "floor": [0.05, 0.01, 0.2], "max_s": [12.0, 1.5]},
    "watershed": {"levels": MANY_LEVELS, "tolerances": TOLERANCES, "context": CONTEXTS},
    "viterbi": {},
}
GRID = {method: axes | COMMON for method, axes in GRID.items()}
GRID[proposals.PROPOSED] = {
    "nms_sigma": COMMON["nms_sigma"],
    "nms_t1": [0.0, 0.2, 0.4],
    "nms_t2": [0.0, 0.4],
    "vote_iou": [0.0, 0.75, 0.9],
    "at_least_one": COMMON["at_least_one"],
}
MERGE_WEIGHTS = (0.75, 0.5, 0.35, 0.2, 0.1, 0.0)  # of one input, beside 1 of the others
MERGE_GRID = {"nms_sigma": [0.5, 0.1, 0.2, 1.0]}
UNION_GRID = {
    "join_iou": [0.8, 0.6, 0.4, 0.0],
    "vote_iou": [0.0, 0.75, 0.9],
    "snap_s": [0.0, 0.005, 0.01, 0.015, 0.02],
    "nms_sigma": [0.5, 0.1, 0.2, 0.3, 0.75],
    "clip_share": [0.0, 0.15, 0.3, 0.5],
}
EDGE_WEIGHT = 0.25  # of one input, beside 1 of the others
SAMPLE_CLIPS = 8192  # of more clips, whole sources of about so many are searched on

Grid = Mapping[str, Mapping[str, Sequence[Any]]]


@dataclasses.dataclass(frozen=True)
class Trial:
    """A choice that was tried and its official metrics, by their names in METRICS, on how many
    clips.
    """

    choice: localise.Choice
    metrics: Mapping[str, float]
    n_clips: int

    @property
    def score(self) -> float:
        """The challenge's Score."""
        return self.metrics["Score"]


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What was chosen on how many clips, and all that was tried, the defaults first.

    Of more than SAMPLE_CLIPS clips, only the defaults and the best of each method, which come
    first, were measured on all.
    """

    best: Trial
    trials: list[Trial]
    n_clips: int


def tune(
    system: System,
    labels: Path,
    *,
    split: str = "val",
    subset: str = "val_fit",
    segments: str = "union",
    grid: Path | None = None,
    force: bool = False,
) -> Tuned | None:
    """Choose method and settings on a labelled subset and write the system's proposals.yaml; None
    if it is up to date.

    segments: `union` of both modalities, or the system's `own`. grid: a file for `read_grid`.
    """
    truth = read_truth(labels, subset, system.modality if segments == "own" else "both")
    paths = [one.path(split, "segments") for one in system.input_systems]
    if isinstance(system, Merged):
        inputs = [one.segment_scores(split) for one in system.input_systems]
    else:
        paths = [system.frames_path(split)]
    axes = read_grid(grid) if grid else None
    default = settings_hash({"frames": GRID, "merge": [MERGE_WEIGHTS, MERGE_GRID]})
    if isinstance(system, Merged) and system.method == "union":
        default = settings_hash([default, UNION_GRID, EDGE_WEIGHT])
    made_with = {
        "system": system.hash,
        "scores": [file_hash(path) for path in paths],
        "labels": _truth_hash(truth),
        "split": split,
        "subset": subset,
        "segments": segments,
        "grid": axes or f"default {default}",
    }
    if len(truth.files) > SAMPLE_CLIPS and not isinstance(system, Merged):
        made_with["sample"] = SAMPLE_CLIPS
    path = system.folder / PROPOSALS
    before = None
    if path.exists():
        before = localise.read_proposals(path).get("tuned", {}).get("made_with", {})
    if already_done(path, before, made_with, force=force):
        return None
    if isinstance(system, Merged):
        parts = [localise.candidates(scores.table, truth.files) for scores in inputs]
        known, clips = None, [one.path(split, "clips") for one in system.input_systems]
        if system.method == "union" and all(path.exists() for path in clips):
            known = localise.clip_log_odds(system, split, truth.files)
        best, trials = tune_merge(parts, truth, axes, method=system.method, clip_log_odds=known)
    else:
        source = subsets.sources_of(subsets.load_split(labels, subset))
        best, trials = tune_frames(read_clips(paths[0], truth), truth, axes, source)
    _write(path, best, trials, made_with)
    return Tuned(best, trials, len(truth.files))


def read_truth(labels: Path, subset: str, modality: str) -> Truth:
    """The segments to find: of audio, visual, or the union of both; KlassifyError for none."""
    column = "fake_segments" if modality == "both" else f"{modality}_fake_segments"
    truth = Truth.from_list(subsets.load_split(labels, subset, segments=[column]), column)
    if not len(truth.segments):
        raise KlassifyError(f"No clip of {subset} has {column}: nothing to tune on.", where=labels)
    return truth


def _truth_hash(truth: Truth) -> str:
    segments = np.split(np.round(truth.segments.astype(float), 4), truth.offsets[1:-1])
    return settings_hash({file: rows.tolist() for file, rows in zip(truth.files, segments)})


def read_clips(path: Path, truth: Truth) -> FrameScores:
    """The frame scores of the clips of `truth`; KlassifyError if none of them has any."""
    wanted, parts = pd.Index(truth.files), []
    for frames in read_frames(path):
        clips = np.flatnonzero(wanted.get_indexer(frames.files) >= 0)
        if len(clips):
            parts.append(frames.take(clips))
    if not parts:
        raise KlassifyError("None of the clips to tune on has frame scores.", where=path)
    return FrameScores.joined(parts)


def read_grid(path: Path) -> dict[str, dict[str, list[Any]]]:
    """A grid of {method: {setting: [values]}}; a wrong name or value is refused."""
    try:
        grid = read_yaml(path)
    except FileNotFoundError:
        raise KlassifyError("This grid does not exist.", where=path) from None
    if not isinstance(grid, dict) or not grid:
        raise KlassifyError("A grid is {method: {setting: [values]}}.", where=path)
    for method, axes in grid.items():
        grid[method] = axes = axes or {}
        proposals.defaults(method, where=path)
        lists = axes.values() if isinstance(axes, dict) else [axes]
        if not all(isinstance(values, list) and values for values in lists):
            raise KlassifyError(f"Each setting of {method} needs a list of values.", where=path)
        for name, values in axes.items():
            for value in values:
                proposals.complete_settings(method, {name: value}, where=path)
    return grid


def tune_frames(
    frames: FrameScores, truth: Truth, grid: Grid | None = None, source: np.ndarray | None = None
) -> tuple[Trial, list[Trial]]:
    """The best choice for frame scores, and all that were tried.

    source: of the clips of the truth. Of more than SAMPLE_CLIPS clips the grid is searched on whole
    sources of about so many, and the defaults and the best of each method are then measured on all;
    without sources it is searched on all.
    """
    if grid is None:
        share = frames.hop_s / FRAME_S
        debias = {"debias_s": [round(share * value, 6) for value in COMMON["debias_s"]]}
        grid = {
            method: {name: debias.get(name, values) for name, values in axes.items()}
            for method, axes in GRID.items()
        }
        if frames.log_tags is None:
            del grid["viterbi"]
        if frames.proposed is None:
            del grid[proposals.PROPOSED]
    if set(proposals.JOINING) & set(grid):
        raise KlassifyError("This grid is for merged systems; this system has frame scores.")
    if source is None or len(truth.files) <= SAMPLE_CLIPS:
        return search(_measuring(frames, truth), grid)
    part = truth.take(subsets.sample_of_sources(source, SAMPLE_CLIPS))
    there = np.flatnonzero(pd.Index(part.files).get_indexer(frames.files) >= 0)
    bests, trials = best_of_each(_measuring(frames.take(there), part), grid)
    finalists = {id(trial): trial for trial in [trials[0], *bests]}.values()
    measure = _measuring(frames, truth)
    found = [
        measure(trial.choice)
        for trial in progress(finalists, len(finalists), "finalists on all clips", unit="trial")
    ]
    return functools.reduce(_better, found), [*found, *trials]


def _measuring(frames: FrameScores, truth: Truth) -> Callable[[localise.Choice], Trial]:
    """What measures a choice on these clips."""
    place = pd.Index(truth.files).get_indexer(frames.files)
    propose = proposals.proposer(frames)

    def evaluate(choice: localise.Choice) -> Trial:
        found = propose(choice.method, **choice.settings)
        return _trial(choice, found._replace(clip=place[found.clip]), truth)

    return evaluate


def tune_merge(
    parts: Sequence[proposals.Candidates],
    truth: Truth,
    grid: Grid | None = None,
    *,
    method: str = "merge",
    clip_log_odds: np.ndarray | None = None,
) -> tuple[Trial, list[Trial]]:
    """The best choice to join proposals, and all that were tried.

    parts: the proposals of each input, with clips as in `truth`. method: of proposals.JOINING.
    clip_log_odds: (parts, clips) for the method `union`.
    """
    if grid is None:
        fitted = fit_platt(parts, truth)
        axes = {"platt": [None] if fitted is None else [None, fitted]}
        axes["weights"] = [[]]
        for weight in MERGE_WEIGHTS:
            axes["weights"] += _one_differs(len(parts), weight)
        if method == "union":
            axes["edge_weights"] = [[], *_one_differs(len(parts), EDGE_WEIGHT)]
            known = clip_log_odds is not None
            axes["clip_platt"] = [fit_clip_platt(clip_log_odds, truth) if known else None]
        grid = {method: axes | (UNION_GRID if method == "union" else MERGE_GRID)}
    if set(grid) != {method}:
        raise KlassifyError(
            f"The grid of a merged system has the one method {method}, not {', '.join(grid)}."
        )

    def evaluate(choice: localise.Choice) -> Trial:
        return _trial(choice, localise.join(parts, choice, clip_log_odds)[0], truth)

    return search(evaluate, grid)


def _one_differs(n: int, weight: float) -> list[list[float]]:
    """n lists of n ones, in each of which another one is `weight`."""
    ones = np.ones((n, n))
    np.fill_diagonal(ones, weight)
    return ones.tolist()


def _trial(choice: localise.Choice, found: proposals.Candidates, truth: Truth) -> Trial:
    metrics = match(found.select(truth.files), truth).score().named()
    return Trial(choice, metrics, len(truth.files))


def fit_platt(parts: Sequence[proposals.Candidates], truth: Truth) -> list[list[float]] | None:
    """(a, b) of each input, which turn its scores into the probability that a proposal hits at IoU
    0.5; None if an input proposes nothing, or its higher scores are not the better ones.
    """
    fitted = []
    for part in parts:
        given = part.select(truth.files)
        matches = match(given, truth)
        hit = np.zeros(len(given.rows), int)
        hit[matches.order[matches.hits[0].rank]] = 1
        if not len(hit):
            return None
        log_odds = proposals.log_odds(given.rows[:, 0].astype(float))
        fitted.append(list(calibrated.platt(log_odds, hit)))
    return fitted if all(a < 0 for a, _ in fitted) else None


def fit_clip_platt(log_odds: np.ndarray, truth: Truth) -> list[list[float]] | None:
    """(a, b) of each input, which turn its clip scores into the probability that a clip has fake
    segments; None where they do not rise with it, or one class is missing.

    log_odds: (inputs, clips), NaN = unknown.
    """
    fake, fitted = np.diff(truth.offsets) > 0, []
    for one in log_odds:
        known = ~np.isnan(one)
        if len(np.unique(fake[known])) < 2:
            return None
        fitted.append(list(calibrated.platt(one[known], fake[known].astype(int))))
    return fitted if all(a < 0 for a, _ in fitted) else None


def search(evaluate: Callable[[localise.Choice], Trial], grid: Grid) -> tuple[Trial, list[Trial]]:
    """The best choice on the grid by coordinate search within each method, and all trials in order.

    Starts from the defaults, or from the first value of a setting whose default is not on the grid.
    Methods and settings are tried in the grid's order; ties and gains up to MARGIN go to what came
    first.
    """
    bests, trials = best_of_each(evaluate, grid)
    return functools.reduce(_better, bests), trials


def best_of_each(
    evaluate: Callable[[localise.Choice], Trial], grid: Grid
) -> tuple[list[Trial], list[Trial]]:
    """The best choice of each method, and all trials; see `search`."""
    tried: dict[str, Trial] = {}
    most = sum(1 + SWEEPS * sum(map(len, axes.values())) for axes in grid.values())
    count = Count("tune", most, unit="trial")

    def attempt(method: str, settings: dict[str, Any]) -> Trial:
        key = canonical_json({"method": method, **settings})
        if key not in tried:
            tried[key] = evaluate(localise.Choice(method, settings))
        count.add(1)
        return tried[key]

    bests = []
    with count:
        for method, axes in grid.items():
            start = proposals.defaults(method)
            start |= {
                name: values[0] for name, values in axes.items() if start.get(name) not in values
            }
            here = attempt(method, start)
            for _ in range(SWEEPS):
                before = here
                for name, values in axes.items():
                    settings = here.choice.settings
                    rivals = [attempt(method, settings | {name: value}) for value in values]
                    here = _better(here, max(rivals, key=lambda trial: trial.score))
                if here is before:
                    break
            bests.append(here)
    return bests, list(tried.values())


def _better(kept: Trial, rival: Trial) -> Trial:
    return rival if rival.score > kept.score + MARGIN else kept


def _write(path: Path, best: Trial, trials: Sequence[Trial], made_with: Mapping[str, Any]) -> None:
    """tuning.tsv first, because a proposals.yaml means that both are complete."""
    rows = [
        {
            "method": trial.choice.method,
            **{name: trial.metrics[name] for name in METRICS},
            "clips": trial.n_clips,
            "chosen": int(trial is best),
            "settings": canonical_json(trial.choice.settings),
        }
        for trial in trials
    ]
    form = {"sep": "\t", "float_format": "%.6f", "quoting": csv.QUOTE_NONE}
    with whole_file(path.with_name(TABLE)) as partial:
        pd.DataFrame(rows).to_csv(partial, index=False, **form)
    content = {
        "method": best.choice.method,
        "settings": best.choice.settings,
        "tuned": {"score": round(best.score, 6), "made_with": dict(made_with)},
    }
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
