"""The picture of an explanation: contributions over time in lanes, the others in panels below."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from klassify.explanation.contributions import (
    FRAME_SCORES,
    MODALITIES,
    Contribution,
    Explanation,
    SystemExplanation,
)
from klassify.files import whole_file
from klassify.media.preview import thumbnails

FAKE, REAL = "#D55E00", "#0072B2"  # of Okabe and Ito
LANES = {"time": 1.0, "features over time": 1.5, "systems over time": 1.2}  # inches
LINES = ("-", "--", "-.", ":")
PANELS = ("systems", "modalities", "features", "frequency", "picture")
PANELS_A_ROW, PANEL_INCHES, THUMBNAIL_INCHES = 4, 2.1, 0.9
DOTS = 100  # an inch

Drawer = Callable[[Any], None]


@contextlib.contextmanager
def boxes_for_missing_glyphs() -> Iterator[None]:
    """Matplotlib draws a box for a character that its fonts lack; it need not warn of each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


@boxes_for_missing_glyphs()
def draw(
    explanation: Explanation,
    path: str | os.PathLike | io.BytesIO,
    *,
    video: str | os.PathLike | None = None,
    notice: str = "",
    dots: int = DOTS,
) -> None:
    """The picture as PNG. video: shows its frames, if it has any. notice: written below. dots: an
    inch.
    """
    from matplotlib.figure import Figure

    images, times, end_s = ([], [], 0.0) if video is None else thumbnails(video)
    over_time = [
        (system, one)
        for system in explanation.systems.values()
        for one in system.contributions
        if one.over in LANES
    ]
    drawers = {"time": _time, "features over time": _map, "systems over time": _lines}
    lanes = [
        (LANES[one.over], functools.partial(drawers[one.over], system, one))
        for system, one in over_time
    ]
    panels = list(_panels(explanation))
    if images:
        lanes.insert(0, (THUMBNAIL_INCHES, functools.partial(_thumbnails, images, times)))
    n_rows = -(-len(panels) // PANELS_A_ROW)
    heights = [0.5 + sum(height + 0.25 for height, _ in lanes), PANEL_INCHES * n_rows]
    figure = Figure(figsize=(11, sum(heights) + 0.5), layout="constrained")
    title = f"{Path(explanation.file).name}: {explanation.sentence}"
    figure.suptitle(title, fontsize=11, parse_math=False)
    if notice:
        figure.supxlabel(notice, fontsize=8, parse_math=False)
    parts = figure.subfigures(2, 1, height_ratios=[max(height, 0.01) for height in heights])
    if lanes:
        axes = parts[0].subplots(
            len(lanes), 1, sharex=True, squeeze=False, height_ratios=[one[0] for one in lanes]
        )[:, 0]
        for panel, (_, drawer) in zip(axes, lanes):
            drawer(panel)
        axes[-1].set_xlim(0, max([end_s, *(one.edges[-1] for _, one in over_time)]))
        axes[-1].set_xlabel("seconds")
    if panels:
        grid = parts[1].subplots(n_rows, PANELS_A_ROW, squeeze=False).ravel()
        for panel, drawer in zip(grid, panels):
            drawer(panel)
        for panel in grid[len(panels) :]:
            panel.set_axis_off()
    if isinstance(path, io.BytesIO):
        figure.savefig(path, dpi=dots, format="png")
        return
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=dots, format="png")


def _panels(explanation: Explanation) -> Iterator[Drawer]:
    """Those of the answer come first."""
    for over in PANELS:
        for system in reversed(explanation.systems.values()):
            one = system.over(over)
            if one is None or (system.kind == "calibrated" and len(one.names) == 1):
                continue
            drawer = {"frequency": _bands, "picture": _heat}.get(over, _bars)
            yield functools.partial(drawer, system, one)


def _title(panel: Any, system: SystemExplanation, text: str) -> None:
    panel.set_title(f"{system.name}: {text}", fontsize=8, loc="left", parse_math=False)
    panel.tick_params(labelsize=7)


def _about(system: SystemExplanation, one: Contribution) -> str:
    method = one.method.split(",")[0]
    return f"{MODALITIES[system.modality]}, probability {system.probability:.2f}; {method}"


def _time(system: SystemExplanation, one: Contribution, panel: Any) -> None:
    values, edges = np.asarray(one.values, float), one.edges
    if one.method == FRAME_SCORES:
        values = np.where(np.isnan(values), np.nan, one.weights())
        panel.set_ylim(0, 1.03)
    panel.stairs(np.fmax(values, 0), edges, fill=True, color=FAKE)
    panel.stairs(np.fmin(values, 0), edges, fill=True, color=REAL)
    unit = "probability" if one.method == FRAME_SCORES else one.unit.replace("_", "-")
    panel.set_ylabel(unit, fontsize=7)
    _title(panel, system, _about(system, one))


def _map(system: SystemExplanation, one: Contribution, panel: Any) -> None:
    limit = max(float(np.abs(one.values).max()), 1e-9)
    rows = np.arange(len(one.names) + 1)
    panel.pcolormesh(one.edges, rows, one.values.T, cmap="RdBu_r", vmin=-limit, vmax=limit)
    panel.set_yticks(rows[:-1] + 0.5, one.names)
    panel.invert_yaxis()
    _title(panel, system, f"{one.over} (red: fake, blue: real); {one.method.split(',')[0]}")


def _lines(system: SystemExplanation, one: Contribution, panel: Any) -> None:
    for number, name in enumerate(one.names):
        panel.stairs(
            one.values[:, number],
            one.edges,
            baseline=None,
            label=name,
            linestyle=LINES[number % len(LINES)],
            color=(FAKE, REAL, "0.2")[number % 3],
        )
    panel.axhline(0, color="0.7", linewidth=0.6)
    panel.legend(fontsize=7, loc="upper right", ncols=2)
    panel.set_ylabel(one.unit, fontsize=7)
    _title(panel, system, f"weights times inputs; {one.method}")


def _bars(system: SystemExplanation, one: Contribution, panel: Any) -> None:
    place = np.arange(len(one.names))
    panel.barh(place, one.values, color=[FAKE if value > 0 else REAL for value in one.values])
    panel.set_yticks(place, one.names)
    panel.invert_yaxis()
    panel.axvline(0, color="0.3", linewidth=0.6)
    panel.set_xlabel(one.unit.replace("_", "-"), fontsize=7)
    _title(panel, system, one.over)


def _bands(system: SystemExplanation, one: Contribution, panel: Any) -> None:
    place = np.arange(len(one.edges))  # bands of one width, as the ear has them
    panel.stairs(np.maximum(one.values, 0), place, fill=True, color=FAKE)
    panel.stairs(np.minimum(one.values, 0), place, fill=True, color=REAL)
    panel.axhline(0, color="0.3", linewidth=0.6)
    panel.set_xticks(place[::3], [f"{edge / 1000:g}" for edge in one.edges[::3]])
    panel.set_xlabel("kHz", fontsize=7)
    panel.set_ylabel(one.unit.replace("_", "-"), fontsize=7)
    _title(panel, system, f"frequency, {one.method}")


def _heat(system: SystemExplanation, one: Contribution, panel: Any) -> None:
    image = one.image
    rows, columns = image.shape[:2]
    panel.imshow(image, cmap="gray" if image.ndim == 2 else None, vmin=0, vmax=255)
    limit = max(float(np.abs(one.values).max()), 1e-9)
    panel.imshow(
        one.values,
        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        alpha=0.45,
        interpolation="bilinear",
    )
    panel.set_xticks([])
    panel.set_yticks([])
    panel.set_xlabel(f"frame at {one.frame_s:.2f} s", fontsize=7)
    _title(panel, system, f"picture, {one.method} (red: fake)")


def _thumbnails(images: list[np.ndarray], times: list[float], panel: Any) -> None:
    wide = 2 * times[0]
    for image, time in zip(images, times):
        rows, columns = image.shape[:2]
        cut = max(round(min(rows, columns * 0.75) / 2), 1)
        middle = image[rows // 2 - cut : rows // 2 + cut]
        extent = (time - 0.48 * wide, time + 0.48 * wide, 0, 1)
        panel.imshow(middle, extent=extent, aspect="auto", zorder=2)
    panel.set_ylim(0, 1)
    panel.set_yticks([])
