"""Any number of systems of any recipes side by side on one split: tables, and one page to look at (report.html).

    klassify compare exp/demo/klassify exp/demo/multibranch --split testA --out exp/demo/compare \
        --labels data_lists/demo/heldout/testA_labels.tsv --media media/demo --features features/demo
    klassify compare exp/demo/klassify/{maxout,avg} --split testA --out exp/demo/compare

SYSTEM is a system's folder, or a recipe's with a detector.yaml: then all systems that it names take part, and its
answers are the ones that the page shows first. With --labels: AUC, EER, log-loss; AP, AR, Score; 40 ms frames; groups
of clips; every difference with its interval (bootstrap over sources); what joining the recipes would gain; and how
well the containers alone tell the label. On val the numbers are those of val_report. Without: who answered what, how
scores are distributed, where systems disagree, and how far the scores have moved from those of val.

--val names the labelled list of val, on whose val_fit answers are calibrated and joined; by default val.tsv beside
the labels or one folder up. --media opens the container of clips and shows pictures and sound of the chosen ones;
--features their mouth features, and the LMM's words. The page is one file that needs no network; the videos play in
it as long as they lie where they lay.

Writes <out>/<split>/: report.html, comparison.txt and the tables as TSV.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from klassify import lists
from klassify.errors import KlassifyError
from klassify.files import whole_file, write_text


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("systems", nargs="+", type=Path, metavar="SYSTEM", help="system folders, or recipes' folders")
    parser.add_argument("--split", required=True, help="the split whose scores are compared")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="its data list with labels")
    parser.add_argument("--subset", help="named part of the list, or `all` (default: val_report on val, else all)")
    parser.add_argument(
        "--val", type=Path, metavar="FILE", help="labelled list of val (default: found beside --labels)"
    )
    parser.add_argument("--media", type=Path, metavar="DIR", help="folder of the media")
    parser.add_argument("--features", type=Path, metavar="DIR", help="folder of the feature shards")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--metric", choices=("official", "textbook"), default="official", help="of Task 2; see docs/")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples for the intervals (default 1000)")
    parser.add_argument("--clips", type=int, default=30, help="mistakes, and disagreements, on the page (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")


def run(args: argparse.Namespace) -> int:
    from klassify.report import page
    from klassify.report.text import describe

    page.check_libraries()  # before minutes of work
    comparison = compare(args)
    text = describe(comparison)
    print(text)
    out = args.out / args.split
    for name, table in comparison.tables.items():
        with whole_file(out / f"{name}.tsv") as partial:
            table.to_csv(partial, sep="\t", index=False, float_format="%.6g", lineterminator="\n")
    write_text(out / "comparison.txt", text + "\n")
    path = out / "report.html"
    page.write(path, comparison, media_root=args.media, features=args.features, n_clips=args.clips)
    print(path)
    return 0


@dataclasses.dataclass
class Comparison:
    """All that was measured. tables: by name, those of the TSV files; matches: Task 2, by system."""

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
    from klassify.report import agreement, entries

    found = entries.find(args.systems)
    frame, label, subset = _clips(args, found)
    files = frame["file"].tolist()
    loaded = [entries.load(one, args.split, files) for one in found]
    answers = {task: entries.answering(loaded, task) for task in entries.TASKS}
    first = [*answers["task1"], *answers["task2"]]
    by_name = {one.name: one for one in (*first, *loaded)}  # the answers stand first everywhere
    loaded = list(by_name.values())
    clips = [one for one in loaded if one.scored is not None]
    fit, notes = _val_fit(args)
    calibrated = [agreement.calibrated(one, args.split, files, fit) for one in clips]
    states = pd.concat([entries.coverage(one, args.split, files) for one in loaded], ignore_index=True)
    tables = {
        "coverage": entries.coverage_summary(states),
        "not-answered": states[states["state"] != entries.ANSWERED],
        "agreement": agreement.agreement(clips, calibrated),
    }
    title = f"{args.split} ({subset}): {len(frame)} clips"
    if label is not None:
        title += f", {int(label.sum())} of them fake, of {frame['source'].nunique()} sources"
    result = Comparison(
        title, args.split, frame, label, loaded, answers["task1"], answers["task2"], calibrated, tables, {}, notes, {}
    )
    if args.split == "val" and subset == "all":
        notes.append("These numbers include val_fit, on which calibration, fusion and proposals are fitted.")
    if label is not None:
        _measure(result, fit, args)
    if lists.base_split(args.split) != "val":
        _drift(result)
    return result


def _clips(args: argparse.Namespace, found: Sequence) -> tuple[pd.DataFrame, np.ndarray | None, str]:
    """The clips to compare on, their labels where there are any, and the subset's name."""
    from klassify.evaluate import labelled_list
    from klassify.report.entries import split_files

    if args.labels is None:
        if args.subset not in (None, "all"):
            raise KlassifyError("A subset is one of a labelled list.", mend="give --labels")
        return split_files(found, args.split), None, "no labels"
    frame, subset = labelled_list(args.labels, args.split, args.subset, segments=True)
    return frame, lists.label(frame, "video"), subset


def _val_fit(args: argparse.Namespace) -> tuple[pd.DataFrame | None, list[str]]:
    """The labelled clips of val_fit, or None with what follows from that."""
    path = args.val
    if path is not None and (path.name != "val.tsv" or not path.exists()):
        raise KlassifyError("This is no list of val.", where=path, mend="name an existing val.tsv")
    if path is None and args.labels is not None:
        beside = [args.labels.parent / "val.tsv", args.labels.parent.parent / "val.tsv"]
        path = next((one for one in beside if one.exists()), None)
    if path is None:
        return None, ["There is no labelled list of val (--val): probabilities are compared as they are."]
    try:
        return lists.load_split(path.parent, "val_fit"), []
    except KlassifyError as error:
        return None, [f"Probabilities are compared as they are: {error.what}"]


def _measure(result: Comparison, fit: pd.DataFrame | None, args: argparse.Namespace) -> None:
    """All that needs labels, into result.tables."""
    from klassify import leaks
    from klassify.evaluation import localisation_metrics as task2
    from klassify.evaluation import metrics
    from klassify.report import agreement, conditions, sidebyside
    from klassify.submission.predictions import Truth

    frame, tables, drawn = result.frame, result.tables, {"n_bootstrap": args.bootstrap, "seed": args.seed}
    by_group = {"n_bootstrap": sidebyside.group_resamples(args.bootstrap, len(frame)), "seed": args.seed}
    groups, parts, differences = conditions.clip_groups(frame), [], []
    clips = [one for one in result.entries if one.scored is not None]
    if clips:
        tables["task1"], found = sidebyside.task1_metrics(clips, frame, **drawn)
        loss = {one.name: metrics.log_loss(result.label, one.probability) for one in result.calibrated}
        tables["task1"]["log_loss_calibrated"] = tables["task1"]["system"].map(loss)
        differences.append(found)
        parts.append(sidebyside.task1_by_group(clips, frame, groups, versus=result.answers1[-1].name, **by_group))
    answers = [one for one in result.calibrated if one.name in {entry.name for entry in result.answers1}]
    if len(answers) > 1 and fit is not None and all(one.on_fit is not None for one in answers):
        tables["joined"] = agreement.fusion_gain(answers, frame, fit, **drawn)
    if any(cell is None for cell in frame["fake_segments"]):
        result.notes.append("The list has no fake segments of some clips: Task 2 is not measured.")
    elif not len((truth := Truth.from_list(frame)).segments):
        result.notes.append("There is no fake segment in these clips: Task 2 is not measured.")
    else:
        others = [one for one in result.entries if one.localised is not None and one not in result.answers2]
        localisers = [*result.answers2, *others]  # so that a recipe has one colour in the plots of both tasks
        if localisers:
            result.matches = {one.name: task2.match(one.localised.proposals, truth, args.metric) for one in localisers}
            tables["task2"], found = sidebyside.task2_metrics(localisers, frame, result.matches, **drawn)
            differences.append(found)
            parts.append(sidebyside.task2_by_group(localisers, frame, result.matches, groups,
                                                   versus=result.answers2[-1].name, **by_group))  # fmt: skip
        framed = [one for one in result.entries if one.frames is not None]
        if framed:
            tables["frames"], found = sidebyside.frame_rows(framed, frame, **drawn)
            differences.append(found)
    if parts:
        tables["groups"] = pd.concat(parts, ignore_index=True)
    if differences:
        tables["differences"] = pd.concat(differences, ignore_index=True)
    root = None if args.media is None else lists.media_folder(args.media, args.split, frame["file"].tolist())
    tables["leaks"] = leaks.audit(frame, result.label, sidebyside.sources_of(frame), root)
    for row in tables["leaks"].itertuples():
        if row.leaks:
            note = f"leak: {row.trait} alone tells the label with AUC {row.auc:.3f} ({row.n} clips)"
            print(f"warning: {note}", file=sys.stderr)


def _drift(result: Comparison) -> None:
    """How far each system's scores have moved from those of val; systems without scores of val are left out."""
    from klassify import systems
    from klassify.report.drift import population_stability

    rows = []
    for one in result.entries:
        if one.scored is None:
            continue
        try:
            val = systems.clip_scores(one.folder, "val")
        except KlassifyError as error:
            result.notes.append(f"No drift of {one.name}: {error.what}")
            continue
        values = val.table["score"].to_numpy(float)[systems.answered(val)]
        result.val_scores[one.name] = values
        drift = population_stability(one.scored.score[one.scored.answered], values)
        rows.append({"system": one.name, **drift._asdict()})
    result.tables["drift"] = pd.DataFrame(rows, columns=["system", "psi", "by_chance", "reading", "n", "n_val"])
