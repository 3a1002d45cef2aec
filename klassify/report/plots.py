"""Which plots stand on the page, with their titles and variants."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

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
    """All plots that there is something for; the recipes' answers are shown first, the others on
    a tap.
    """
    scored = [one for one in result.entries if one.scored is not None]
    plots = _agreement(result, [one.name for one in scored])
    if result.label is None:
        variants = {one.name: _beside_val(result, one) for one in scored}
        plots["histogram"] = Plot(
            "Scores.", variants, "Filled: those of val, where there are any.", "system"
        )
    else:
        plots |= _task1(result, scored) | _task2(result) | _groups(result)
    return {name: plot for name, plot in plots.items() if plot.variants}


def _agreement(result: Comparison, names: list[str]) -> dict[str, Plot]:
    pairs = result.tables["agreement"]
    if pairs.empty:
        return {}
    variants = {
        "rank correlation": figures.heatmap(pairs, "rank_correlation", names, ".2f", -1),
        "equal decisions": figures.heatmap(pairs, "equal_decisions", names, ".0%", 0),
    }
    return {"agreement": Plot("Each pair of systems.", variants, choice="as")}


def _beside_val(result: Comparison, entry: Entry) -> figures.Figure:
    """The scores of a split without labels, and those of val."""
    val = result.val_scores.get(entry.name, np.zeros(0))
    of_val = np.arange(len(val) + len(entry.scored.score)) < len(val)
    both = np.append(val, entry.scored.score)
    return figures.histogram(both, entry.system.scale, {"val": of_val, result.split: ~of_val})


def _task1(result: Comparison, scored: list[Entry]) -> dict[str, Plot]:
    label, first = result.label, [one.name for one in result.answers1]
    scores = {one.name: one.scored.score for one in scored}
    after = {one.name: one for one in result.calibrated}
    if not scored:
        return {}
    curves = {
        one.name: figures.calibration(
            label, one.scored.probability, after[one.name].probability, after[one.name].how
        )
        for one in scored
    }
    types = figures.types_of(result.frame)
    histograms = {
        one.name: figures.histogram(one.scored.score, one.system.scale, types) for one in scored
    }
    note = "On the diagonal, a probability means what it says; larger points hold more clips."
    errors = {}
    if 0 < label.sum() < len(label):  # of one class, no clip is there to be confused with another
        errors = {
            "roc": Plot("ROC.", {"all": figures.roc(label, scores, first)}, HINT),
            "det": Plot(
                "DET.",
                {"all": figures.det(label, scores, first)},
                "Nearer to the lower left is better.",
            ),
        }
    return errors | {
        "calibration": Plot("Calibration.", curves, note, "system"),
        "histogram": Plot(
            "Scores by type.", histograms, "Behind each type, its number of clips.", "system"
        ),
    }


def _task2(result: Comparison) -> dict[str, Plot]:
    if "task2" not in result.tables:
        return {}
    table, first = result.tables["task2"], [one.name for one in result.answers2]
    curves = figures.precision_recall(result.matches, first)
    return {
        "ap": Plot("AP by overlap.", {"all": figures.average_precision(table, first)}, HINT),
        "ar": Plot("AR by number of proposals.", {"all": figures.average_recall(table, first)}),
        "pr": Plot("Precision and recall at an overlap of 0.5.", {"all": curves}),
    }


def _groups(result: Comparison) -> dict[str, Plot]:
    groups, plots = result.tables.get("groups"), {}
    for name, title, answers in (
        ("task1", "Task 1: AUC by group.", result.answers1),
        ("task2", "Task 2: Score by group.", result.answers2),
    ):
        own = None if groups is None else groups[groups["task"] == name]
        if own is None or own.empty:
            continue
        systems, first = list(dict.fromkeys(own["system"])), [one.name for one in answers]
        variants = {
            kind: figures.bars(rows, systems, first)
            for kind, rows in own.groupby("kind", sort=False)
        }
        plots[f"groups-{name}"] = Plot(title, variants, choice="by")
    return plots
