"""Figures of an evaluation, as PNG, in the colours of Okabe and Ito, which colour-blind readers can
tell apart.

Matplotlib is imported when a figure is drawn, without pyplot: no display is needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from klassify.files import whole_file
from klassify.metrics.clips import reliability

BLACK, ORANGE, BLUE, VERMILLION = "#000000", "#E69F00", "#0072B2", "#D55E00"
TYPE_STYLE = {  # colour and line style of each modify_type
    "real": (BLACK, "-"),
    "audio_modified": (ORANGE, "--"),
    "visual_modified": (BLUE, "-."),
    "both_modified": (VERMILLION, ":"),
    "fake": (VERMILLION, "-"),
}
COLUMNS = 3
BINS = (10, 40)  # fewest and most of a histogram
SCALE_NAME = {"probability": "probability of fake", "log_odds": "log-odds of fake"}


def _figure(n_panels: int, height: float) -> tuple[Any, list[Any]]:
    """Panels of equal size, COLUMNS in a row: (figure, list of axes)."""
    from matplotlib.figure import Figure

    columns = min(n_panels, COLUMNS)
    rows = -(-n_panels // columns)
    figure = Figure(figsize=(3.6 * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[n_panels:]:
        unused.set_axis_off()
    return figure, axes[:n_panels]


def _save(figure: Any, path: str | os.PathLike) -> None:
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=150)


def score_edges(score: np.ndarray, scale: str) -> np.ndarray:
    """Edges of a histogram's bins."""
    low, high = (0.0, 1.0) if scale == "probability" else (float(score.min()), float(score.max()))
    n_edges = int(np.clip(np.sqrt(len(score)), *BINS)) + 1
    # halved, because the difference of two large scores may exceed what a float holds
    return 2 * np.linspace(low / 2, max(high, low + 1e-6) / 2, n_edges)


def calibration_curves(
    curves: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
    path: str | os.PathLike,
    title: str,
) -> None:
    """Share of fakes against predicted probability, before and after calibration (paper 1, figure
    5).

    curves: (system, label (n,), probability before (n,), after (n,)), one panel each. Points are
    means of ten equal bins; their area shows how many clips a bin holds.
    """
    figure, axes = _figure(len(curves), 4.2)
    for panel, (name, label, before, after) in zip(axes, curves):
        panel.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="perfectly calibrated")
        for text, probability, colour, marker in (
            ("before", before, ORANGE, "s"),
            ("after Platt scaling", after, BLUE, "o"),
        ):
            predicted, observed, count = reliability(label, probability)
            filled = count > 0
            points, share = (predicted[filled], observed[filled]), count[filled] / count.sum()
            panel.plot(*points, color=colour, linewidth=1.5)
            look = {"color": colour, "marker": marker, "alpha": 0.8}
            panel.scatter(*points, 15 + 200 * share, label=text, **look)
        panel.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), title=name)
        panel.set_xlabel("mean predicted probability of fake")
        panel.grid(alpha=0.3)
    for panel in axes[::COLUMNS]:
        panel.set_ylabel("share of clips that are fake")
    handles = axes[0].get_legend_handles_labels()
    small = {"fontsize": "small", "title_fontsize": "small"}
    about = "area of a point: clips in its bin"
    legend = figure.legend(*handles, loc="outside lower center", ncols=3, title=about, **small)
    for handle in legend.legend_handles[1:]:
        handle.set_sizes([40])
    figure.suptitle(f"Calibration on {title}")
    _save(figure, path)


def score_histograms(
    systems: Sequence[tuple[str, str, np.ndarray]],
    modify_type: np.ndarray,
    path: str | os.PathLike,
    title: str,
) -> None:
    """How each system's scores are distributed, by type of clip.

    systems: (name, scale, score (n,)), one panel each; modify_type: (n,) text.
    """
    figure, axes = _figure(len(systems), 3.2)
    for panel, (name, scale, score) in zip(axes, systems):
        edges = score_edges(score, scale)
        for kind, (colour, style) in TYPE_STYLE.items():
            chosen = score[modify_type == kind]
            if not len(chosen):
                continue
            share = np.histogram(chosen, edges)[0] / len(chosen)
            line = {"linestyle": style, "linewidth": 1.6}
            look = {"fill": True, "alpha": 0.25} if kind == "real" else line
            label = f"{kind} ({len(chosen)} clips)"
            panel.stairs(share, edges, color=colour, label=label, **look)
        panel.set(title=name, xlabel=SCALE_NAME.get(scale, scale))
        panel.grid(alpha=0.3)
    for panel in axes[::COLUMNS]:
        panel.set_ylabel("share of the type's clips")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(f"Scores on {title}")
    _save(figure, path)
