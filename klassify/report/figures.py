"""The plots of the page, as plain data that plots.js draws: a few hundred points each, whatever the
size of the split.

A figure has the axes `x` and `y`, and either `lines`, or `bars` over the categories of x; or it is
a `square` of one value for each pair of systems. Colours are those of Okabe and Ito; lines also
differ in style and bars in pattern, so that no plot depends on colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from klassify.evaluation.plots import (
    BLACK,
    BLUE,
    ORANGE,
    SCALE_NAME,
    TYPE_STYLE,
    VERMILLION,
    score_edges,
)
from klassify.lists.data_list import KINDS
from klassify.metrics import clips
from klassify.metrics.matching import AP_IOUS, AR_COUNTS
from klassify.metrics.segments import Matches

INK = "var(--ink)"
COLOURS = (BLUE, VERMILLION, "#009E73", ORANGE, "#CC79A7", "#56B4E9", INK, "#8A7A00")
GREY = "#888888"
DASHES = ("", "8 4", "2 3", "8 3 2 3", "14 4")
TYPE_DASH = {"-": "", "--": "8 4", "-.": "8 3 2 3", ":": "2 3"}
MAX_POINTS = 400
DET_TICKS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 0.999)
SHARE = {"range": [-0.02, 1.02]}
Figure = dict[str, Any]


def _figure(x: Figure, y: Figure, lines: list[Figure]) -> Figure:
    return {"x": x, "y": y, "lines": lines}


def _axis(title: str, **more: Any) -> Figure:
    """An axis. range: its ends, else those of the data; ticks: [value, text], else round numbers;
    from_zero: 0 is on it.
    """
    return {"title": title, **more}


def line_style(at: int) -> dict[str, Any]:
    """The line of the system at this place, which no other one has."""
    dash = DASHES[at // len(COLOURS) % len(DASHES)]
    return {"colour": COLOURS[at % len(COLOURS)], "dash": dash}


def _curve(
    at: int, name: str, shown: Sequence[str], x: Iterable[float], y: Iterable[float], **more: Any
) -> Figure:
    """One system's curve; that of a system not in `shown` waits in the legend."""
    points = {"name": name, "x": _numbers(x), "y": _numbers(y)}
    return points | line_style(at) | {"hidden": name not in shown} | more


def _diagonal(name: str) -> Figure:
    return {"name": name, "x": [0, 1], "y": [0, 1], "colour": GREY, "dash": "", "guide": True}


def thinned(*columns: np.ndarray, most: int = MAX_POINTS) -> list[np.ndarray]:
    """About `most` of the points of all columns at most: evenly along the curve, with its ends."""
    x, y = columns[0], columns[1]
    travelled = np.append(0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
    if len(x) <= most or travelled[-1] == 0:
        return list(columns)
    kept = np.unique(np.searchsorted(travelled, np.linspace(0, travelled[-1], most)))
    kept = np.union1d(np.clip(kept, 0, len(x) - 1), [0, len(x) - 1])
    return [column[kept] for column in columns]


def _numbers(values: Iterable[float], digits: int = 5) -> list[float | None]:
    return [None if not np.isfinite(v) else round(float(v), digits) for v in values]


def roc(label: np.ndarray, scores: Mapping[str, np.ndarray], shown: Sequence[str]) -> Figure:
    """Share of fake clips found against false alarms."""
    lines = [_diagonal("guessing")]
    for at, (name, score) in enumerate(scores.items()):
        _, false_alarm, miss = clips.error_rates(label, score)
        lines.append(_curve(at, name, shown, *thinned(false_alarm, 1 - miss)))
    x = _axis("false alarms: share of real clips called fake", **SHARE)
    return _figure(x, _axis("share of fake clips found", **SHARE), lines)


def det(label: np.ndarray, scores: Mapping[str, np.ndarray], shown: Sequence[str]) -> Figure:
    """Both error rates on normal-deviate axes, on which Gaussian scores give straight lines."""
    smallest = [0.5 / max(int((label == kind).sum()), 1) for kind in (0, 1)]
    lines = []
    for at, (name, score) in enumerate(scores.items()):
        _, *rates = clips.error_rates(label, score)
        x, y = (norm.ppf(np.clip(rate, low, 1 - low)) for rate, low in zip(rates, smallest))
        x, y, rates = thinned(x, y, np.stack(rates, axis=1))
        tips = [
            f"false alarms {100 * alarm:.2f} %, misses {100 * miss:.2f} %" for alarm, miss in rates
        ]
        lines.append(_curve(at, name, shown, x, y, tips=tips))
    low = float(norm.ppf(min(*smallest, 0.05)))
    ticks = [[float(norm.ppf(rate)), f"{100 * rate:g}"] for rate in DET_TICKS]
    axis = {"range": [low - 0.1, -low + 0.1], "ticks": ticks}
    x = _axis("false alarms, % of real clips", **axis)
    return _figure(x, _axis("misses, % of fake clips", **axis), lines)


def calibration(label: np.ndarray, before: np.ndarray, after: np.ndarray, how: str) -> Figure:
    """Share of fakes against predicted probability in ten bins; areas show numbers of clips."""
    lines = [_diagonal("perfectly calibrated")]
    for name, probability, colour, marker, dash in (
        ("before", before, ORANGE, 1, DASHES[1]),
        (f"after ({how})", after, BLUE, 0, ""),
    ):
        if np.isnan(probability).any():
            continue
        predicted, observed, count = clips.reliability(label, probability)
        filled = count > 0
        predicted, observed, count = predicted[filled], observed[filled], count[filled]
        points = zip(predicted, observed, count)
        lines.append(
            {
                "name": name,
                "x": _numbers(predicted),
                "y": _numbers(observed),
                "colour": colour,
                "dash": dash,
                "marker": marker,
                "sizes": _numbers(6 + 22 * np.sqrt(count / count.sum()), 1),
                "tips": [f"predicted {p:.3f}, fake {q:.3f}, {n} clips" for p, q, n in points],
            }
        )
    share = {"range": [-0.03, 1.03]}
    x = _axis("mean predicted probability of fake", **share)
    return _figure(x, _axis("share of clips that are fake", **share), lines)


def histogram(score: np.ndarray, scale: str, groups: Mapping[str, np.ndarray]) -> Figure:
    """The distribution of a system's scores in each group, (n,) masks; types have own colours."""
    edges = score_edges(score, scale)
    lines = []
    for at, (name, mask) in enumerate(groups.items()):
        if not mask.any():
            continue
        share = 100 * np.histogram(score[mask], edges)[0] / mask.sum()
        colour, style = TYPE_STYLE.get(name, (COLOURS[at], "-"))
        lines.append(
            {
                "name": f"{name.replace('_', ' ')} ({mask.sum()})",
                "x": _numbers(edges),
                "y": _numbers(np.append(share, 0), 3),
                "colour": INK if colour == BLACK else colour,  # that of text, whatever the page's
                "dash": TYPE_DASH[style],
                "step": True,
                "fill": name in ("real", "val"),
            }
        )
    y = _axis("share of its clips, %", from_zero=True)
    return _figure(_axis(SCALE_NAME.get(scale, scale)), y, lines)


def types_of(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """(n,) masks by modify_type."""
    return {kind: (frame["modify_type"] == kind).to_numpy() for kind in KINDS}


BY_NUMBER = {
    "AP": (AP_IOUS, "overlap that counts as found", "average precision (AP)"),
    "AR": (sorted(AR_COUNTS), "proposals of a clip that count", "average recall (AR)"),
}


def by_number(table: pd.DataFrame, shown: Sequence[str], metric: str) -> Figure:
    """AP against the overlap that counts as a hit, or AR against the number of proposals."""
    x, across, up = BY_NUMBER[metric]
    lines = []
    for at, row in enumerate(table.to_dict("records")):
        y = [row[f"{metric}@{number}"] for number in x]
        lines.append(_curve(at, row["system"], shown, x, y, marker=at))
    ticks = [[number, f"{number:g}"] for number in x]
    return _figure(_axis(across, ticks=ticks), _axis(up, **SHARE), lines)


def by_level(measured: pd.DataFrame, clean: Mapping[str, float], shown: Sequence[str]) -> Figure:
    """One metric under one family of perturbations: its value by level, 0 for the clean clips.

    measured: rows with system, metric, level and value. clean: the value by system, which sets the
    order of colours.
    """
    lines = []
    for at, (name, first) in enumerate(clean.items()):
        own = measured[measured["system"] == name].sort_values("level")
        points = [0, *own["level"]], [first, *own["value"]]
        lines.append(_curve(at, name, shown, *points, marker=at))
    levels = sorted({0, *measured["level"]})
    ticks = [[int(level), str(int(level)) if level else "clean"] for level in levels]
    return _figure(_axis("level", ticks=ticks), _axis(measured["metric"].iloc[0]), lines)


def precision_recall(matches: Mapping[str, Matches], shown: Sequence[str]) -> Figure:
    """Precision against recall over all proposals by descending score, at the lowest overlap."""
    lines = []
    for at, (name, one) in enumerate(matches.items()):
        rank = one.hits[0].rank
        found = np.arange(1, len(rank) + 1)
        points = thinned(found / max(len(one.clip_of), 1), found / (rank + 1))
        lines.append(_curve(at, name, shown, *points))
    x = _axis("recall: share of true segments found", **SHARE)
    return _figure(x, _axis("precision: share of proposals that are right", **SHARE), lines)


def bars(groups: pd.DataFrame, systems: Sequence[str], shown: Sequence[str]) -> Figure:
    """One kind of group: a bar for each system and group, with 95 % intervals."""
    metric, kind = groups["metric"].iloc[0], groups["kind"].iloc[0]
    what = "segments" if kind == "segment length" else "clips"
    counts = groups.groupby("group", sort=False)["n"].first()
    drawn = []
    for at, name in enumerate(systems):
        own = groups[groups["system"] == name].set_index("group").reindex(counts.index)
        if own["value"].isna().all():
            continue
        columns = {
            "y": _numbers(own["value"]),
            "low": _numbers(own["value_low"]),
            "high": _numbers(own["value_high"]),
        }
        colour = COLOURS[at % len(COLOURS)]
        hidden = name not in shown
        drawn.append({"name": name, "colour": colour, "pattern": at, "hidden": hidden} | columns)
    names = [f"{key.replace('_', ' ')} ({n})" for key, n in counts.items()]
    x = _axis(f"{kind} ({what} in it)", categories=names)
    return {"x": x, "y": _axis(metric, range=[0, 1.02]), "bars": drawn}


def square(table: pd.DataFrame, column: str, names: Sequence[str], form: str) -> Figure:
    """A value in [-1, 1] for each pair of systems, whose cell is as dark as the value is high."""
    at = {name: i for i, name in enumerate(names)}
    values = np.full((len(names), len(names)), np.nan)
    for a, b, value in zip(table["a"], table["b"], table[column]):
        values[at[a], at[b]] = values[at[b], at[a]] = value
    text = [["" if np.isnan(v) else format(v, form) for v in row] for row in values]
    shade = [_numbers(row, 2) for row in values]
    return {"square": {"names": list(names), "text": text, "shade": shade}}
