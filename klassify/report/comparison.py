"""Measure systems side by side on one split: the tables, and what the page shows of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.evaluation import (
    conditions,
    crosstest,
    decisions,
    groups,
    leaks,
    robustness,
    shortcuts,
)
from klassify.evaluation.results import labelled_list, labelled_val_fit, val_beside
from klassify.evaluation.segments import beside_systems
from klassify.evaluation.tables import read_table
from klassify.files import short_names
from klassify.grid.segments import Truth
from klassify.lists import subsets
from klassify.metrics import segments
from klassify.metrics.clips import log_loss
from klassify.metrics.decisions import ASVSPOOF_5, Cost
from klassify.progress import progress
from klassify.report import agreement, entries, sidebyside
from klassify.report.drift import population_stability
from klassify.report.entries import Entry
from klassify.systems import scores
from klassify.systems.detector import GENERATED_NOTICE, on_generated_corpus
from klassify.systems.operating import RATES


@dataclasses.dataclass
class Comparison:
    """All that was measured.

    label: (n,) of the clips of frame, None without labels. answers1, answers2: what answers each
    task, one entry per recipe. tables: by name, those of the TSV files. notes: what a reader must
    know. matches: Task 2, by system. val_scores: by system. audits: of the content.
    robustness: the table of klassify perturb.
    """

    title: str
    split: str
    frame: pd.DataFrame
    label: np.ndarray | None
    entries: Sequence[Entry]
    answers1: Sequence[Entry]
    answers2: Sequence[Entry]
    calibrated: Sequence[agreement.Calibrated]
    tables: dict[str, pd.DataFrame]
    notes: list[str]
    matches: dict[str, segments.Matches] = dataclasses.field(default_factory=dict)
    val_scores: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    audits: Sequence[shortcuts.Audit] = ()
    robustness: pd.DataFrame | None = None

    @property
    def recipes(self) -> dict[Path, str]:
        """The folders that hold systems, with names that differ."""
        folders = list(dict.fromkeys(one.system.folder.parent for one in self.entries))
        return dict(zip(folders, short_names(folders)))

    @property
    def scored(self) -> list[Entry]:
        """The systems with clip scores."""
        return [one for one in self.entries if one.scored is not None]


def compare(
    systems: Sequence[Path],
    split: str,
    *,
    labels: Path | None = None,
    subset: str | None = None,
    val: Path | None = None,
    media: Path | None = None,
    audit: Path | None = None,
    perturbed: Path | None = None,
    crosstested: Path | None = None,
    metric: str = "official",
    rates: Sequence[float] = RATES,
    cost: Cost = ASVSPOOF_5,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Load systems, and measure what can be measured.

    systems: their folders, or folders of recipes. labels: the labelled list of the split; subset:
    of it. val: the labelled list of val, None to look for it beside labels. media: folder of the
    media, for the leak audit. audit: folder of the results of `klassify audit`, None for the one
    beside the recipes. perturbed: the table of `klassify perturb`. crosstested: that of `klassify
    crosstest`. metric: of Task 2. rates, cost: see klassify.systems.operating.fit.
    """
    found = entries.find(systems)
    entries.refuse_unscored(found, split)
    frame, subset = _clips(found, split, labels, subset)
    label = None if labels is None else subsets.label(frame, "video")
    if not (files := frame["file"].tolist()):
        raise KlassifyError(f"There is no clip of {split} to compare on.", where=labels)
    loaded = [
        entries.load(one, split, files)
        for one in progress(found, len(found), "read scores", unit="system")
    ]
    answers = {task: entries.answering(loaded, task) for task in entries.TASKS}
    first = [*answers["task1"], *answers["task2"]]  # answers come first in every table
    loaded = list({one.name: one for one in (*first, *loaded)}.values())
    fit, why = labelled_val_fit(val, labels)
    notes = [] if why is None else [f"Probabilities are compared uncalibrated: {why.what}"]
    scored = [one for one in loaded if one.scored is not None]
    calibrated = [
        agreement.calibrated(one, split, files, fit)
        for one in progress(scored, len(scored), "calibrate", unit="system")
    ]
    coverage = [
        entries.coverage(one, split, files)
        for one in progress(loaded, len(loaded), "count answers", unit="system")
    ]
    states = pd.concat(coverage, ignore_index=True)
    tables = {
        "coverage": entries.coverage_summary(states),
        "not-answered": states[states["state"] != entries.ANSWERED],
        "agreement": agreement.agreement(scored, calibrated),
    }
    title = f"{split} ({subset}): {len(frame)} clips"
    if label is not None:
        n_sources = len(set(subsets.sources_of(frame)))
        title += f", {int(label.sum())} of them fake, of {n_sources} sources"
    notes += _notes(loaded, split, subset)
    result = Comparison(
        title, split, frame, label, loaded, *answers.values(), calibrated, tables, notes
    )
    if label is not None:
        _measure(result, fit, metric, n_bootstrap, seed)
        _decide(result, fit, rates, cost=cost, n_bootstrap=n_bootstrap, seed=seed)
        root = None if media is None else subsets.media_folder(media, split, files)
        tables["leaks"] = leaks.audit(frame, label, subsets.sources_of(frame), root)
    if audits := _audits(audit, loaded):
        result.audits = audits
        for name, found in (
            ("shortcuts", [one.traits for one in audits]),
            ("changed_media", [one.systems for one in audits]),
        ):
            both = zip(audits, found)
            tables[name] = pd.concat([table.assign(split=one.split) for one, table in both])
    if perturbed is not None:
        result.robustness = read_table(perturbed, robustness.COLUMNS, "klassify perturb")
        tables["robustness"] = robustness.by_family(result.robustness)
    if crosstested is not None:
        tables["crosstest"] = read_table(crosstested, crosstest.COLUMNS, "klassify crosstest")
    if subsets.base_split(split) != "val":
        path = val or val_beside(labels)
        _drift(result, None if path is None else subsets.load_split(path.parent, "val"))
    return result


def _audits(folder: Path | None, loaded: Sequence[Entry]) -> list[shortcuts.Audit]:
    """The audits in a folder; without one, those in exp/<data>/audit of the systems."""
    beside = dict.fromkeys(shortcuts.folder_of(one.system.folder) for one in loaded)
    folders = beside if folder is None else [folder]
    return [found for one in folders for found in shortcuts.in_folder(one)]


def _clips(
    found: Sequence[entries.Found], split: str, labels: Path | None, subset: str | None
) -> tuple[pd.DataFrame, str]:
    """The clips to compare on, and the subset's name."""
    if labels is not None:
        return labelled_list(labels, split, subset, segments=True)
    if subset not in (None, "all"):
        raise KlassifyError("A subset is a part of a labelled list.", fix="give --labels")
    return entries.split_files(found, split), "no labels"


def _notes(loaded: Sequence[Entry], split: str, subset: str) -> list[str]:
    notes = []
    generated = [one.name for one in loaded if on_generated_corpus(one.system.folder.parent)]
    if generated:
        which = "" if len(generated) == len(loaded) else f" ({first_few(generated)})"
        notes.append(f"{GENERATED_NOTICE}{which}")
    if split == "val" and subset == "all":
        notes.append(
            "These numbers include val_fit, on which calibration, fusion and proposals are fitted."
        )
    return notes


def _measure(
    result: Comparison, fit: pd.DataFrame | None, metric: str, n_bootstrap: int, seed: int
) -> None:
    """All that needs labels, into result.tables."""
    frame, tables = result.frame, result.tables
    resamples = {"n_bootstrap": n_bootstrap, "seed": seed}
    few = {"n_bootstrap": sidebyside.group_resamples(n_bootstrap, len(frame)), "seed": seed}
    masks = conditions.clip_groups(frame)
    by_group, differences = [], []
    if scored := result.scored:
        tables["task1"], found = sidebyside.task1_metrics(scored, frame, **resamples)
        loss = {one.name: log_loss(result.label, one.probability) for one in result.calibrated}
        tables["task1"]["log_loss_calibrated"] = tables["task1"]["system"].map(loss)
        differences.append(found)
        versus = result.answers1[-1].name
        by_group.append(sidebyside.task1_by_group(scored, frame, masks, versus=versus, **few))
        names = [one.name for one in result.answers1]
        answers = [one for one in result.calibrated if one.name in names]
        if len(answers) > 1 and all(one.on_fit is not None for one in answers):
            tables["joined"] = agreement.fusion_gain(answers, frame, fit, **resamples)
    truth = _truth(result)
    others = [one for one in result.entries if one not in result.answers2]
    # the answers first, so that a recipe has the same colour in the plots of both tasks
    localisers = [one for one in (*result.answers2, *others) if one.localised is not None]
    if truth is not None and localisers:
        matches = {
            one.name: segments.match(one.localised.proposals, truth, metric) for one in localisers
        }
        result.matches = matches
        tables["task2"], found = sidebyside.task2_metrics(localisers, frame, matches, **resamples)
        like = result.answers2[-1].localised.proposals
        hops = {one.frames.header.hop_s for one in localisers if one.frames is not None}
        beside = beside_systems(like, hops, truth, frame, metric, seed)
        tables["beside"] = pd.DataFrame(
            [{"system": name} | row.named() for name, row in beside.items()]
        )
        differences.append(found)
        versus = result.answers2[-1].name
        by_group.append(
            sidebyside.task2_by_group(localisers, frame, matches, masks, versus=versus, **few)
        )
    framed = [one for one in result.entries if one.frames is not None]
    if truth is not None and framed:
        tables["frames"], found = sidebyside.frame_rows(framed, frame, **resamples)
        differences.append(found)
    if any(map(len, by_group)):  # a group of clips of one class has no number
        tables["groups"] = pd.concat(by_group, ignore_index=True)
    if differences:
        tables["differences"] = pd.concat(differences, ignore_index=True)


def _decide(
    result: Comparison, fit: pd.DataFrame | None, rates: Sequence[float], **options: Any
) -> None:
    """What errors of Task 1 cost, and how thresholds of val_fit do on these clips."""
    scored = {one.name: one.scored for one in result.scored}
    if not scored:
        return
    tables = result.tables
    tables["costs"] = decisions.measure_costs(scored, result.frame, result.split, **options)
    systems = {one.name: one.system for one in result.scored}
    points, notes = decisions.fit_points(systems, fit, rates=rates, **options)
    result.notes += notes
    if points:
        tables["thresholds"] = decisions.apply_points(scored, result.frame, points)
    resamples = {name: options[name] for name in ("n_bootstrap", "seed")}
    by_group = groups.measure_groups(scored, result.frame, points, **resamples)
    tables["gaps"], tables["rates-by-group"] = by_group.gaps, by_group.groups


def _truth(result: Comparison) -> Truth | None:
    """The fake segments; None, with a note, if they are not known or there are none."""
    if result.frame["fake_segments"].isna().any():
        why = "The list has no fake segments of some clips"
    elif not len((truth := Truth.from_list(result.frame)).segments):
        why = "There is no fake segment in these clips"
    else:
        return truth
    result.notes.append(f"{why}: Task 2 is not measured.")
    return None


def _drift(result: Comparison, val_list: pd.DataFrame | None) -> None:
    """How far each system's scores have moved from those of val, for systems with scores of val."""
    rows, source_of = [], None
    if result.label is not None and val_list is not None:
        names = [subsets.sources_of(frame) for frame in (result.frame, val_list)]
        codes = pd.factorize(np.concatenate(names))[0]
        source, of_val = np.split(codes, [len(result.frame)])
        source_of = pd.Series(of_val, index=val_list["file"])
    for one in result.scored:
        try:
            val = one.system.clip_scores("val")
        except KlassifyError as error:
            result.notes.append(f"No drift of {one.name}: {error.what}")
            continue
        known = scores.answered(val)
        values = val.table["score"].to_numpy(float)[known]
        result.val_scores[one.name] = values
        answered, sources = one.scored.answered, None
        if source_of is not None:
            sources = source[answered], source_of.reindex(val.table["file"][known]).to_numpy()
        drift = population_stability(one.scored.score[answered], values, sources)
        rows.append({"system": one.name, **drift._asdict()})
    columns = ["system", "psi", "by_chance", "reading", "n", "n_val"]
    result.tables["drift"] = pd.DataFrame(rows, columns=columns)
