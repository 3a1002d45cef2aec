"""The plots of the page, as Plotly's {data, layout}: a few hundred points each, whatever the size
of the split.

Colours are those of Okabe and Ito; lines also differ in style and bars in pattern, so that no plot
depends on colour alone.
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

COLOURS = (BLUE, VERMILLION, "#009E73", ORANGE, "#CC79A7", "#56B4E9", BLACK, "#8A7A00")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
PATTERNS = ("", "/", "x", ".", "-", "+", "|", "\\")
TYPE_DASH = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
MAX_POINTS = 400
DET_TICKS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 0.999)
FILLED = {"fill": "tozeroy", "fillcolor": "rgba(0,0,0,0.12)"}
SHARE = {"range": [-0.02, 1.02]}
Figure = dict[str, Any]


def plain(text: str) -> str:
    """Escape a foreign text for a plot, whose texts may hold some HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _figure(
    data: list[dict[str, Any]], x: dict[str, Any], y: dict[str, Any], **more: Any
) -> Figure:
    return {"data": data, "layout": {"xaxis": x, "yaxis": y, **more}}


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title}, "automargin": True, "zeroline": False, **more}


def line_style(at: int) -> dict[str, Any]:
    """The line of the system at this place, which no other one has."""
    dash = DASHES[at // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[at % len(COLOURS)], "dash": dash, "width": 2}


def _curve(
    at: int, name: str, shown: Sequence[str], x: Iterable[float], y: Iterable[float], **more: Any
) -> dict[str, Any]:
    """One system's curve; that of a system not in `shown` waits in the legend."""
    curve = {"x": _numbers(x), "y": _numbers(y), "mode": "lines", "name": plain(name)}
    return {**curve, "line": line_style(at), "visible": _visible(name, shown), **more}


def _visible(name: str, shown: Sequence[str]) -> bool | str:
    return True if name in shown else "legendonly"


def _diagonal(name: str) -> dict[str, Any]:
    line = {"color": "#999", "width": 1}
    both = {"x": [0, 1], "y": [0, 1], "mode": "lines", "hoverinfo": "skip"}
    return {**both, "name": name, "line": line}


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
    data = [_diagonal("guessing")]
    for at, (name, score) in enumerate(scores.items()):
        _, false_alarm, miss = clips.error_rates(label, score)
        data.append(_curve(at, name, shown, *thinned(false_alarm, 1 - miss)))
    x = _axis("false alarms: share of real clips called fake", **SHARE)
    return _figure(data, x, _axis("share of fake clips found", **SHARE))


def det(label: np.ndarray, scores: Mapping[str, np.ndarray], shown: Sequence[str]) -> Figure:
    """Both error rates on normal-deviate axes, on which Gaussian scores give straight lines."""
    smallest = [0.5 / max(int((label == kind).sum()), 1) for kind in (0, 1)]
    data = []
    for at, (name, score) in enumerate(scores.items()):
        _, *rates = clips.error_rates(label, score)
        x, y = (norm.ppf(np.clip(rate, low, 1 - low)) for rate, low in zip(rates, smallest))
        x, y, rates = thinned(x, y, np.stack(rates, axis=1))
        hover = "false alarms %{customdata[0]} %<br>misses %{customdata[1]} %"
        per_cent = np.round(100 * rates, 2).tolist()
        data.append(_curve(at, name, shown, x, y, customdata=per_cent, hovertemplate=hover))
    low = norm.ppf(min(*smallest, 0.05))
    axes = {
        "tickvals": _numbers(norm.ppf(DET_TICKS)),
        "ticktext": [f"{100 * rate:g}" for rate in DET_TICKS],
        "range": [low - 0.1, -low + 0.1],
    }
    x = _axis("false alarms, % of real clips", **axes)
    return _figure(data, x, _axis("misses, % of fake clips", **axes))


def calibration(label: np.ndarray, before: np.ndarray, after: np.ndarray, how: str) -> Figure:
    """Share of fakes against predicted probability in ten bins; areas show numbers of clips."""
    data = [_diagonal("perfectly calibrated")]
    for name, probability, colour, symbol, dash in (
        ("before", before, ORANGE, "square", "dash"),
        (f"after ({how})", after, BLUE, "circle", "solid"),
    ):
        if np.isnan(probability).any():
            continue
        predicted, observed, count = clips.reliability(label, probability)
        filled = count > 0
        sizes = 6 + 22 * np.sqrt(count[filled] / count.sum())
        data.append(
            {
                "x": _numbers(predicted[filled]),
                "y": _numbers(observed[filled]),
                "mode": "lines+markers",
                "name": name,
                "line": {"color": colour, "dash": dash},
                "marker": {"size": _numbers(sizes, 1), "symbol": symbol},
                "text": count[filled].tolist(),
                "hovertemplate": "predicted %{x:.3f}<br>fake %{y:.3f}<br>%{text} clips",
            }
        )
    share = {"range": [-0.03, 1.03]}
    x = _axis("mean predicted probability of fake", **share)
    return _figure(data, x, _axis("share of clips that are fake", **share))


def histogram(score: np.ndarray, scale: str, groups: Mapping[str, np.ndarray]) -> Figure:
    """The distribution of a system's scores in each group, (n,) masks; types have own colours."""
    edges = score_edges(score, scale)
    data = []
    for at, (name, mask) in enumerate(groups.items()):
        if not mask.any():
            continue
        share = 100 * np.histogram(score[mask], edges)[0] / mask.sum()
        colour, style = TYPE_STYLE.get(name, (COLOURS[at], "-"))
        line = {"color": colour, "dash": TYPE_DASH[style], "shape": "hv", "width": 2}
        data.append(
            {
                "x": _numbers(edges),
                "y": _numbers(np.append(share, 0), 3),
                "mode": "lines",
                "name": f"{plain(name).replace('_', ' ')} ({mask.sum()})",
                "hovertemplate": "%{x:.3f}: %{y:.1f} %",
                "line": line,
                **(FILLED if name in ("real", "val") else {}),
            }
        )
    y = _axis("share of its clips, %", rangemode="tozero")
    return _figure(data, _axis(SCALE_NAME.get(scale, scale)), y)


def types_of(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """(n,) masks by modify_type."""
    return {kind: (frame["modify_type"] == kind).to_numpy() for kind in KINDS}


def average_precision(table: pd.DataFrame, shown: Sequence[str]) -> Figure:
    """AP against the overlap that counts as a hit."""
    titles = ("overlap that counts as found", "average precision (AP)")
    return _by_number(table, shown, "AP", AP_IOUS, titles)


def average_recall(table: pd.DataFrame, shown: Sequence[str]) -> Figure:
    """AR against the number of proposals of a clip."""
    titles = ("proposals of a clip that count", "average recall (AR)")
    return _by_number(table, shown, "AR", sorted(AR_COUNTS), titles)


def _by_number(
    table: pd.DataFrame,
    shown: Sequence[str],
    metric: str,
    x: Sequence[float],
    titles: tuple[str, str],
) -> Figure:
    data = []
    for at, row in enumerate(table.to_dict("records")):
        y = [row[f"{metric}@{number}"] for number in x]
        look = {"mode": "lines+markers", "marker": {"symbol": at, "size": 8}}
        data.append(_curve(at, row["system"], shown, x, y, **look))
    return _figure(data, _axis(titles[0], tickvals=list(x)), _axis(titles[1], **SHARE))


def precision_recall(matches: Mapping[str, Matches], shown: Sequence[str]) -> Figure:
    """Precision against recall over all proposals by descending score, at the lowest overlap."""
    data = []
    for at, (name, one) in enumerate(matches.items()):
        rank = one.hits[0].rank
        found = np.arange(1, len(rank) + 1)
        points = thinned(found / max(len(one.clip_of), 1), found / (rank + 1))
        data.append(_curve(at, name, shown, *points))
    x = _axis("recall: share of true segments found", **SHARE)
    return _figure(data, x, _axis("precision: share of proposals that are right", **SHARE))


def bars(groups: pd.DataFrame, systems: Sequence[str], shown: Sequence[str]) -> Figure:
    """One kind of group: a bar for each system and group, with 95 % intervals."""
    metric, kind = groups["metric"].iloc[0], groups["kind"].iloc[0]
    what = "segments" if kind == "segment length" else "clips"
    look = {"fillmode": "overlay", "fgcolor": "#fff", "size": 7, "solidity": 0.25}
    data = []
    for at, name in enumerate(systems):
        own = groups[groups["system"] == name]
        if own.empty:
            continue
        value, low, high = own[["value", "value_low", "value_high"]].to_numpy(float).T
        pattern = {"shape": PATTERNS[at % len(PATTERNS)], **look}
        ends = {"array": _numbers(high - value), "arrayminus": _numbers(value - low)}
        data.append(
            {
                "type": "bar",
                "x": [f"{plain(key).replace('_', ' ')} ({n})" for key, n in zip(own.group, own.n)],
                "y": _numbers(value),
                "name": plain(name),
                "visible": _visible(name, shown),
                "marker": {"color": COLOURS[at % len(COLOURS)], "pattern": pattern},
                "error_y": {"type": "data", "symmetric": False, "thickness": 1, **ends},
                "hovertemplate": f"%{{x}} {what}<br>{metric} %{{y:.4f}}",
            }
        )
    x = _axis(f"{kind} ({what} in it)", type="category")
    return _figure(data, x, _axis(metric, range=[0, 1.02]), barmode="group")


def heatmap(
    table: pd.DataFrame, column: str, names: Sequence[str], form: str, low: float
) -> Figure:
    """A figure for each pair of systems in a square; light to dark is `low` to 1."""
    at = {name: i for i, name in enumerate(names)}
    values = np.full((len(names), len(names)), np.nan)
    for a, b, value in zip(table["a"], table["b"], table[column]):
        values[at[a], at[b]] = values[at[b], at[a]] = value
    shown = [plain(name) for name in names]
    square = {
        "type": "heatmap",
        "x": shown,
        "y": shown,
        "z": [_numbers(row) for row in values],
        "zmin": low,
        "zmax": 1,
        "colorscale": [[0, "#f7fbff"], [1, "#0072B2"]],
        "text": [["" if np.isnan(v) else format(v, form) for v in row] for row in values],
        "texttemplate": "%{text}",
        "hovertemplate": "%{y}<br>%{x}<br>%{text}<extra></extra>",
        "showscale": False,
    }
    axes = {"type": "category", "showgrid": False}
    y = _axis("", autorange="reversed", **axes)
    return _figure([square], _axis("", tickangle=-45, **axes), y)
