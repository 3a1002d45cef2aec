"""Which plots are on the page, with their titles and variants."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from klassify.evaluation.robustness import CLEAN
from klassify.perturbation.families import family_of
from klassify.report import figures
from klassify.report.comparison import Comparison
from klassify.report.entries import Entry

HINT = "Tap a name in the legend to show or hide a system."


class Plot(NamedTuple):
    """choice: what its variants are, such as systems."""

    title: str
    variants: dict[str, figures.Figure]
    note: str = ""
    choice: str = ""


def of(result: Comparison) -> dict[str, Plot]:
    """All plots with something to show; the recipes' answers first, the others on a tap."""
    plots = _agreement(result)
    if result.label is None:
        variants = {one.name: _beside_val(result, one) for one in result.scored}
        note = "Filled: those of val, where there are any."
        plots["histogram"] = Plot("Scores.", variants, note, "system")
    else:
        plots |= _task1(result) | _task2(result) | _groups(result)
    plots |= _robustness(result)
    return {name: plot for name, plot in plots.items() if plot.variants}


def _robustness(result: Comparison) -> dict[str, Plot]:
    """A small plot for each family of perturbations."""
    if result.robustness is None:
        return {}
    measured = result.robustness
    is_clean = measured["family"] == CLEAN
    plots = {}
    for family, rows in measured[~is_clean].groupby("family", sort=False):
        variants = {}
        for metric, own in rows.groupby("metric", sort=False):
            clean = measured[is_clean & (measured["metric"] == metric)]
            values = dict(zip(clean["system"], clean["value"]))
            variants[metric] = figures.by_level(own, values, list(values))
        about = family_of(family).about
        plots[f"robustness-{family}"] = Plot(f"{family}: {about}.", variants, choice="of")
    return plots


def _agreement(result: Comparison) -> dict[str, Plot]:
    pairs, names = result.tables["agreement"], [one.name for one in result.scored]
    if pairs.empty:
        return {}
    variants = {
        "rank correlation": figures.square(pairs, "rank_correlation", names, ".2f"),
        "equal decisions": figures.square(pairs, "equal_decisions", names, ".0%"),
    }
    return {"agreement": Plot("Each pair of systems.", variants, choice="as")}


def _beside_val(result: Comparison, entry: Entry) -> figures.Figure:
    """The scores of a split without labels, and those of val."""
    val = result.val_scores.get(entry.name, np.zeros(0))
    both = np.append(val, entry.scored.score)
    of_val = np.arange(len(both)) < len(val)
    return figures.histogram(both, entry.system.scale, {"val": of_val, result.split: ~of_val})


def _task1(result: Comparison) -> dict[str, Plot]:
    label, types = result.label, figures.types_of(result.frame)
    scores = {one.name: one.scored.score for one in result.scored}
    after = {one.name: one for one in result.calibrated}
    calibration, histograms = {}, {}
    for one in result.scored:
        known = (one.scored.probability, after[one.name].probability, after[one.name].how)
        calibration[one.name] = figures.calibration(label, *known)
        histograms[one.name] = figures.histogram(one.scored.score, one.system.scale, types)
    plots = {}
    if scores and 0 < label.sum() < len(label):
        first = [one.name for one in result.answers1]
        nearer = "Nearer to the lower left is better."
        plots["roc"] = Plot("ROC.", {"all": figures.roc(label, scores, first)}, HINT)
        plots["det"] = Plot("DET.", {"all": figures.det(label, scores, first)}, nearer)
    note = "On the diagonal, a probability means what it says; larger points hold more clips."
    plots["calibration"] = Plot("Calibration.", calibration, note, "system")
    note = "Behind each type, its number of clips."
    plots["histogram"] = Plot("Scores by type.", histograms, note, "system")
    return plots


def _task2(result: Comparison) -> dict[str, Plot]:
    if "task2" not in result.tables:
        return {}
    table, first = result.tables["task2"], [one.name for one in result.answers2]
    curves = figures.precision_recall(result.matches, first)
    return {
        "ap": Plot("AP by overlap.", {"all": figures.by_number(table, first, "AP")}, HINT),
        "ar": Plot("AR by number of proposals.", {"all": figures.by_number(table, first, "AR")}),
        "pr": Plot("Precision and recall at an overlap of 0.5.", {"all": curves}),
    }


def _groups(result: Comparison) -> dict[str, Plot]:
    if "groups" not in result.tables:
        return {}
    plots = {}
    for name, title, answers in (
        ("task1", "Task 1: AUC by group.", result.answers1),
        ("task2", "Task 2: Score by group.", result.answers2),
    ):
        own = result.tables["groups"].query("task == @name")
        systems, first = list(dict.fromkeys(own["system"])), [one.name for one in answers]
        variants = {
            kind: figures.bars(rows, systems, first)
            for kind, rows in own.groupby("kind", sort=False)
        }
        plots[f"groups-{name}"] = Plot(title, variants, choice="by")
    return plots
