"""Measure systems side by side on one split: the tables, and what the page shows of them."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError
from klassify.evaluation import leaks
from klassify.evaluation.results import labelled_list
from klassify.grid.segments import Truth
from klassify.lists import subsets
from klassify.metrics import segments
from klassify.metrics.clips import log_loss
from klassify.report import agreement, conditions, sidebyside
from klassify.report import entries as report_entries
from klassify.report.drift import population_stability
from klassify.systems import scores


@dataclasses.dataclass
class Comparison:
    """All that was measured. tables: by name, those of the TSV files; matches: Task 2, by
    system.
    """

    title: str
    split: str
    frame: pd.DataFrame
    label: np.ndarray | None
    entries: Sequence
    answers1: Sequence
    answers2: Sequence
    calibrated: Sequence
    tables: dict[str, pd.DataFrame]
    matches: dict
    notes: list[str]
    val_scores: dict[str, np.ndarray]


def compare(args: argparse.Namespace) -> Comparison:
    """Load, and measure what can be measured."""
    found = report_entries.find(args.systems)
    frame, label, subset = _clips(args, found)
    if not (files := frame["file"].tolist()):
        raise KlassifyError(f"There is no clip of {args.split} to compare on.", where=args.labels)
    loaded = [report_entries.load(one, args.split, files) for one in found]
    answers = {task: report_entries.answering(loaded, task) for task in report_entries.TASKS}
    first = [*answers["task1"], *answers["task2"]]
    by_name = {one.name: one for one in (*first, *loaded)}  # the answers stand first everywhere
    loaded = list(by_name.values())
    clips = [one for one in loaded if one.scored is not None]
    fit, notes = _val_fit(args)
    calibrated = [agreement.calibrated(one, args.split, files, fit) for one in clips]
    states = pd.concat(
        [report_entries.coverage(one, args.split, files) for one in loaded], ignore_index=True
    )
    tables = {
        "coverage": report_entries.coverage_summary(states),
        "not-answered": states[states["state"] != report_entries.ANSWERED],
        "agreement": agreement.agreement(clips, calibrated),
    }
    title = f"{args.split} ({subset}): {len(frame)} clips"
    if label is not None:
        title += (
            f", {int(label.sum())} of them fake, of {len(set(subsets.sources_of(frame)))} sources"
        )
    result = Comparison(
        title,
        args.split,
        frame,
        label,
        loaded,
        answers["task1"],
        answers["task2"],
        calibrated,
        tables,
        {},
        notes,
        {},
    )
    if args.split == "val" and subset == "all":
        notes.append(
            "These numbers include val_fit, on which calibration, fusion and proposals are fitted."
        )
    if label is not None:
        _measure(result, fit, args)
    if subsets.base_split(args.split) != "val":
        _drift(result)
    return result


def _clips(
    args: argparse.Namespace, found: Sequence
) -> tuple[pd.DataFrame, np.ndarray | None, str]:
    """The clips to compare on, their labels where there are any, and the subset's name."""
    if args.labels is None:
        if args.subset not in (None, "all"):
            raise KlassifyError("A subset is one of a labelled list.", fix="give --labels")
        return report_entries.split_files(found, args.split), None, "no labels"
    frame, subset = labelled_list(args.labels, args.split, args.subset, segments=True)
    return frame, subsets.label(frame, "video"), subset


def _val_fit(args: argparse.Namespace) -> tuple[pd.DataFrame | None, list[str]]:
    """The labelled clips of val_fit, or None with what follows from that."""
    path = args.val
    if path is not None and (path.name != "val.tsv" or not path.exists()):
        raise KlassifyError(
            "This is not a list of val.", where=path, fix="name an existing val.tsv"
        )
    if path is None and args.labels is not None:
        beside = [args.labels.parent / "val.tsv", args.labels.parent.parent / "val.tsv"]
        path = next((one for one in beside if one.exists()), None)
    if path is None:
        return None, [
            "There is no labelled list of val (--val): probabilities are compared as they are."
        ]
    try:
        return subsets.load_split(path.parent, "val_fit"), []
    except KlassifyError as error:
        return None, [f"Probabilities are compared as they are: {error.what}"]


def _measure(result: Comparison, fit: pd.DataFrame | None, args: argparse.Namespace) -> None:
    """All that needs labels, into result.tables."""
    frame, tables, drawn = (
        result.frame,
        result.tables,
        {"n_bootstrap": args.bootstrap, "seed": args.seed},
    )
    by_group = {
        "n_bootstrap": sidebyside.group_resamples(args.bootstrap, len(frame)),
        "seed": args.seed,
    }
    groups, parts, differences = conditions.clip_groups(frame), [], []
    clips = [one for one in result.entries if one.scored is not None]
    if clips:
        tables["task1"], found = sidebyside.task1_metrics(clips, frame, **drawn)
        loss = {one.name: log_loss(result.label, one.probability) for one in result.calibrated}
        tables["task1"]["log_loss_calibrated"] = tables["task1"]["system"].map(loss)
        differences.append(found)
        parts.append(
            sidebyside.task1_by_group(
                clips, frame, groups, versus=result.answers1[-1].name, **by_group
            )
        )
    answers = [
        one for one in result.calibrated if one.name in {entry.name for entry in result.answers1}
    ]
    if len(answers) > 1 and fit is not None and all(one.on_fit is not None for one in answers):
        tables["joined"] = agreement.fusion_gain(answers, frame, fit, **drawn)
    if any(cell is None for cell in frame["fake_segments"]):
        result.notes.append("The list has no fake segments of some clips: Task 2 is not measured.")
    elif not len((truth := Truth.from_list(frame)).segments):
        result.notes.append("There is no fake segment in these clips: Task 2 is not measured.")
    else:
        others = [
            one
            for one in result.entries
            if one.localised is not None and one not in result.answers2
        ]
        localisers = [
            *result.answers2,
            *others,
        ]  # so that a recipe has one colour in the plots of both tasks
        if localisers:
            result.matches = {
                one.name: segments.match(one.localised.proposals, truth, args.metric)
                for one in localisers
            }
            tables["task2"], found = sidebyside.task2_metrics(
                localisers, frame, result.matches, **drawn
            )
            differences.append(found)
            parts.append(
                sidebyside.task2_by_group(
                    localisers,
                    frame,
                    result.matches,
                    groups,
                    versus=result.answers2[-1].name,
                    **by_group,
                )
            )
        framed = [one for one in result.entries if one.frames is not None]
        if framed:
            tables["frames"], found = sidebyside.frame_rows(framed, frame, **drawn)
            differences.append(found)
    if any(map(len, parts)):  # no group of clips of one class has a number
        tables["groups"] = pd.concat(parts, ignore_index=True)
    if differences:
        tables["differences"] = pd.concat(differences, ignore_index=True)
    root = (
        None
        if args.media is None
        else subsets.media_folder(args.media, args.split, frame["file"].tolist())
    )
    tables["leaks"] = leaks.audit(frame, result.label, subsets.sources_of(frame), root)
    for row in tables["leaks"].itertuples():
        if row.leaks:
            note = f"leak: {row.trait} alone tells the label with AUC {row.auc:.3f} ({row.n} clips)"
            print(f"warning: {note}", file=sys.stderr)


def _drift(result: Comparison) -> None:
    """How far each system's scores have moved from those of val; systems without scores of val
    are left out.
    """
    rows = []
    for one in result.entries:
        if one.scored is None:
            continue
        try:
            val = one.system.clip_scores("val")
        except KlassifyError as error:
            result.notes.append(f"No drift of {one.name}: {error.what}")
            continue
        values = val.table["score"].to_numpy(float)[scores.answered(val)]
        result.val_scores[one.name] = values
        drift = population_stability(one.scored.score[one.scored.answered], values)
        rows.append({"system": one.name, **drift._asdict()})
    result.tables["drift"] = pd.DataFrame(
        rows, columns=["system", "psi", "by_chance", "reading", "n", "n_val"]
    )
