"""The plots of the page, as Plotly's {data, layout}: a few hundred points each, whatever the size
of the split.

Colours are those of Okabe and Ito; lines also differ in style, bars in pattern, so that no plot
needs colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from klassify.evaluation.plots import BLACK, BLUE, ORANGE, SCALE_NAME, TYPE_STYLE, VERMILLION
from klassify.lists.data_list import TYPES
from klassify.metrics import clips
from klassify.metrics.matching import AP_IOUS, AR_COUNTS
from klassify.metrics.segments import Matches

COLOURS = (BLUE, VERMILLION, "#009E73", ORANGE, "#CC79A7", "#56B4E9", BLACK, "#8A7A00")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
PATTERNS = ("", "/", "x", ".", "-", "+", "|", "\\")
TYPE_DASH = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
MAX_POINTS, HISTOGRAM_BINS = 400, 40
DET_TICKS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 0.999)
FILLED = {"fill": "tozeroy", "fillcolor": "rgba(0,0,0,0.12)"}
Figure = dict[str, Any]


def plain(text: str) -> str:
    """A stranger's text for a plot, whose texts may hold some HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title}, "automargin": True, "zeroline": False, **more}


def _line(at: int, dash: str | None = None) -> dict[str, Any]:
    return {
        "color": COLOURS[at % len(COLOURS)],
        "dash": dash or DASHES[at // len(COLOURS) % len(DASHES)],
        "width": 2,
    }


def _visible(name: str, shown: Sequence[str]) -> bool | str:
    return True if name in shown else "legendonly"


def thinned(*columns: np.ndarray, most: int = MAX_POINTS) -> list[np.ndarray]:
    """The same points of all columns, at most about `most`: evenly along the curve, the ends
    kept.
    """
    x, y = columns[0], columns[1]
    way = np.append(0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
    if len(x) <= most or way[-1] == 0:
        return list(columns)
    kept = np.unique(np.searchsorted(way, np.linspace(0, way[-1], most)))
    kept = np.union1d(np.clip(kept, 0, len(x) - 1), [0, len(x) - 1])
    return [column[kept] for column in columns]


def _numbers(values: np.ndarray, digits: int = 5) -> list[float | None]:
    return [None if not np.isfinite(v) else round(float(v), digits) for v in values]


def roc(label: np.ndarray, scores: Mapping[str, np.ndarray], shown: Sequence[str]) -> Figure:
    """Share of fake clips found against false alarms; systems not in `shown` wait in the legend."""
    data = [
        {
            "x": [0, 1],
            "y": [0, 1],
            "mode": "lines",
            "name": "guessing",
            "hoverinfo": "skip",
            "line": {"color": "#999", "width": 1},
        }
    ]
    for at, (name, score) in enumerate(scores.items()):
        _, false_alarm, miss = clips.error_rates(label, score)
        x, y = thinned(false_alarm, 1 - miss)
        data.append(
            {
                "x": _numbers(x),
                "y": _numbers(y),
                "mode": "lines",
                "name": plain(name),
                "line": _line(at),
                "visible": _visible(name, shown),
            }
        )
    layout = {
        "xaxis": _axis("false alarms: share of real clips called fake", range=[-0.02, 1.02]),
        "yaxis": _axis("share of fake clips found", range=[-0.02, 1.02]),
    }
    return {"data": data, "layout": layout}


def det(label: np.ndarray, scores: Mapping[str, np.ndarray], shown: Sequence[str]) -> Figure:
    """Both error rates on normal-deviate axes, where scores of two Gaussians give straight
    lines.
    """
    n_real, n_fake = (max(int((label == y).sum()), 1) for y in (0, 1))
    low = norm.ppf(min(0.5 / n_real, 0.5 / n_fake, 0.05))
    data = []
    for at, (name, score) in enumerate(scores.items()):
        _, false_alarm, miss = clips.error_rates(label, score)
        x, y = (
            norm.ppf(np.clip(rate, 0.5 / n, 1 - 0.5 / n))
            for rate, n in ((false_alarm, n_real), (miss, n_fake))
        )
        x, y, rates = thinned(x, y, np.stack([false_alarm, miss], axis=1))
        data.append(
            {
                "x": _numbers(x),
                "y": _numbers(y),
                "mode": "lines",
                "name": plain(name),
                "line": _line(at),
                "customdata": np.round(100 * rates, 2).tolist(),
                "visible": _visible(name, shown),
                "hovertemplate": "false alarms %{customdata[0]} %<br>misses %{customdata[1]} %",
            }
        )
    ticks = {
        "tickvals": _numbers(norm.ppf(DET_TICKS)),
        "ticktext": [f"{100 * rate:g}" for rate in DET_TICKS],
    }
    span = {"range": [low - 0.1, -low + 0.1]}
    layout = {
        "xaxis": _axis("false alarms, % of real clips", **ticks, **span),
        "yaxis": _axis("misses, % of fake clips", **ticks, **span),
    }
    return {"data": data, "layout": layout}


def calibration(label: np.ndarray, before: np.ndarray, after: np.ndarray, how: str) -> Figure:
    """Share of fakes against predicted probability, in ten equal bins; the area of a point is
    its clips' number.
    """
    data = [
        {
            "x": [0, 1],
            "y": [0, 1],
            "mode": "lines",
            "name": "perfectly calibrated",
            "hoverinfo": "skip",
            "line": {"color": "#999", "width": 1},
        }
    ]
    for name, probability, colour, symbol, dash in (
        ("before", before, ORANGE, "square", "dash"),
        (f"after ({how})", after, BLUE, "circle", "solid"),
    ):
        if np.isnan(probability).any():
            continue
        predicted, observed, count = clips.reliability(label, probability)
        there = count > 0
        sizes = 6 + 22 * np.sqrt(count[there] / count.sum())
        data.append(
            {
                "x": _numbers(predicted[there]),
                "y": _numbers(observed[there]),
                "mode": "lines+markers",
                "name": name,
                "line": {"color": colour, "dash": dash},
                "marker": {"size": _numbers(sizes, 1), "symbol": symbol},
                "text": count[there].tolist(),
                "hovertemplate": "predicted %{x:.3f}<br>fake %{y:.3f}<br>%{text} clips",
            }
        )
    layout = {
        "xaxis": _axis("mean predicted probability of fake", range=[-0.03, 1.03]),
        "yaxis": _axis("share of clips that are fake", range=[-0.03, 1.03]),
    }
    return {"data": data, "layout": layout}


def histogram(score: np.ndarray, scale: str, groups: Mapping[str, np.ndarray]) -> Figure:
    """How a system's scores are distributed in each group, (n,) masks; modify_types have their
    own colours.
    """
    low, high = (0.0, 1.0) if scale == "probability" else (float(score.min()), float(score.max()))
    n_edges = int(np.clip(np.sqrt(len(score)), 10, HISTOGRAM_BINS)) + 1
    edges = 2 * np.linspace(
        low / 2, max(high, low + 1e-6) / 2, n_edges
    )  # their distance may exceed what a float holds
    data = []
    for at, (name, mask) in enumerate(groups.items()):
        n = int(mask.sum())
        if not n:
            continue
        share = 100 * np.histogram(score[mask], edges)[0] / n
        colour, style = TYPE_STYLE.get(name, (COLOURS[at], "-"))
        data.append(
            {
                "x": _numbers(edges),
                "y": _numbers(np.append(share, 0), 3),
                "mode": "lines",
                "name": f"{plain(name).replace('_', ' ')} ({n})",
                "hovertemplate": "%{x:.3f}: %{y:.1f} %",
                "line": {"color": colour, "dash": TYPE_DASH[style], "shape": "hv", "width": 2},
                **(FILLED if name in ("real", "val") else {}),
            }
        )
    layout = {
        "xaxis": _axis(SCALE_NAME.get(scale, scale)),
        "yaxis": _axis("share of its clips, %", rangemode="tozero"),
    }
    return {"data": data, "layout": layout}


def types_of(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """(n,) masks by modify_type."""
    return {kind: (frame["modify_type"] == kind).to_numpy() for kind in TYPES}


def average_precision(table: pd.DataFrame, shown: Sequence[str]) -> Figure:
    """AP against the overlap that counts as a hit."""
    return _by_number(
        table,
        shown,
        [f"AP@{iou}" for iou in AP_IOUS],
        AP_IOUS,
        "overlap that counts as found",
        "average precision (AP)",
    )


def average_recall(table: pd.DataFrame, shown: Sequence[str]) -> Figure:
    """AR against the number of proposals of a clip."""
    counts = sorted(AR_COUNTS)
    return _by_number(
        table,
        shown,
        [f"AR@{count}" for count in counts],
        counts,
        "proposals of a clip that count",
        "average recall (AR)",
    )


def _by_number(
    table: pd.DataFrame,
    shown: Sequence[str],
    columns: list[str],
    x: Sequence[float],
    x_title: str,
    y_title: str,
) -> Figure:
    data = []
    for at, (_, row) in enumerate(table.iterrows()):
        name = row["system"]
        data.append(
            {
                "x": list(x),
                "y": _numbers(row[columns].to_numpy(float)),
                "mode": "lines+markers",
                "name": plain(name),
                "line": _line(at),
                "marker": {"symbol": at, "size": 8},
                "visible": _visible(name, shown),
            }
        )
    layout = {
        "xaxis": _axis(x_title, tickvals=list(x)),
        "yaxis": _axis(y_title, range=[-0.02, 1.02]),
    }
    return {"data": data, "layout": layout}


def precision_recall(
    matches: Mapping[str, Matches], shown: Sequence[str], iou_at: int = 0
) -> Figure:
    """Precision against recall over all proposals by descending score, at the lowest overlap."""
    data = []
    for at, (name, one) in enumerate(matches.items()):
        rank = one.hits[iou_at].rank
        found = np.arange(1, len(rank) + 1)
        recall, precision = (
            thinned(found / max(len(one.clip_of), 1), found / (rank + 1)) if len(rank) else ([], [])
        )
        data.append(
            {
                "x": _numbers(recall),
                "y": _numbers(precision),
                "mode": "lines",
                "name": plain(name),
                "line": _line(at),
                "visible": _visible(name, shown),
            }
        )
    layout = {
        "xaxis": _axis("recall: share of true segments found", range=[-0.02, 1.02]),
        "yaxis": _axis("precision: share of proposals that are right", range=[-0.02, 1.02]),
    }
    return {"data": data, "layout": layout}


def bars(groups: pd.DataFrame, systems: Sequence[str], shown: Sequence[str]) -> Figure:
    """One kind of group: a bar a system and group, with 95 % intervals."""
    metric, data = groups["metric"].iloc[0], []
    kind = groups["kind"].iloc[0]
    what = "segments" if kind == "segment length" else "clips"
    for at, name in enumerate(systems):
        own = groups[groups["system"] == name]
        if own.empty:
            continue
        value, low, high = (
            own[column].to_numpy(float) for column in ("value", "value_low", "value_high")
        )
        data.append(
            {
                "type": "bar",
                "x": [
                    f"{plain(row.group).replace('_', ' ')} ({row.n})" for row in own.itertuples()
                ],
                "y": _numbers(value),
                "name": plain(name),
                "visible": _visible(name, shown),
                "marker": {
                    "color": COLOURS[at % len(COLOURS)],
                    "pattern": {
                        "shape": PATTERNS[at % len(PATTERNS)],
                        "fillmode": "overlay",
                        "fgcolor": "#fff",
                        "size": 7,
                        "solidity": 0.25,
                    },
                },
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": _numbers(high - value),
                    "arrayminus": _numbers(value - low),
                    "thickness": 1,
                },
                "hovertemplate": f"%{{x}} {what}<br>{metric} %{{y:.4f}}",
            }
        )
    layout = {
        "barmode": "group",
        "xaxis": _axis(f"{kind} ({what} in it)", type="category"),
        "yaxis": _axis(metric, range=[0, 1.02]),
    }
    return {"data": data, "layout": layout}


def heatmap(
    table: pd.DataFrame, column: str, names: Sequence[str], form: str, low: float
) -> Figure:
    """A figure of each pair of systems as a square; light to dark is `low` to 1."""
    at = {name: i for i, name in enumerate(names)}
    values = np.full((len(names), len(names)), np.nan)
    for row in table.itertuples():
        values[at[row.a], at[row.b]] = values[at[row.b], at[row.a]] = getattr(row, column)
    shown = [plain(name) for name in names]
    texts = [["" if np.isnan(v) else format(v, form) for v in line] for line in values]
    data = [
        {
            "type": "heatmap",
            "x": shown,
            "y": shown,
            "z": [_numbers(line) for line in values],
            "zmin": low,
            "zmax": 1,
            "colorscale": [[0, "#f7fbff"], [1, "#0072B2"]],
            "text": texts,
            "texttemplate": "%{text}",
            "hovertemplate": "%{y}<br>%{x}<br>%{text}<extra></extra>",
            "showscale": False,
        }
    ]
    axes = {"type": "category", "showgrid": False}
    return {
        "data": data,
        "layout": {
            "xaxis": _axis("", tickangle=-45, **axes),
            "yaxis": _axis("", autorange="reversed", **axes),
        },
    }
