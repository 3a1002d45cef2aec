"""Scores of the clips of a split by a model: of windows for detectors, of frames for localisers.

The scores of a clip do not depend on its neighbours in the list, to the last bit on a CPU: a
forward pass takes windows of one clip, or, on a GPU and for models too small to fill a processor
with those, windows of several clips in batches that all have one shape. (Other shapes are summed in
another order.) Windows of clips of different lengths wait for others of their own shape.
Nothing is kept of a clip once its rows are made. What overlapping windows have in common is
computed once: see klassify.scores.shared_windows.
"""

from __future__ import annotations

import functools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from klassify.data.base import ClipData, Sources, Window, zero_padded
from klassify.errors import KlassifyError
from klassify.grid.windows import aggregate_by_clip
from klassify.media.container import MediaError
from klassify.models.devices import pick_device
from klassify.scores.clip_loader import Clip, ClipLoader
from klassify.scores.score_file import SHARES
from klassify.scores.shared_windows import WindowInputs, spans

T = TypeVar("T")
MOST_WAITING = 8  # batches of windows whose shape is rare
# a bar, none, or what wraps the clips (klassify.progress.Count)
Progress = bool | Callable[[Iterable], Iterator]


def _clips(
    data: ClipData,
    sources: Sources,
    split: str,
    files: Sequence[str] | None,
    loader: ClipLoader | int,
    progress: Progress,
) -> Iterator[Clip]:
    files = sources.table(split)["file"].tolist() if files is None else list(files)
    if isinstance(loader, int):
        loader = ClipLoader(data, sources, split, loader)
    if callable(progress):  # counts the clips of several calls
        return progress(loader(files))
    return tqdm(
        loader(files),
        total=len(files),
        desc=f"score {split}",
        unit="clip",
        disable=not (progress and sys.stderr.isatty()),
    )


@torch.inference_mode()
def score_clips(
    model: nn.Module,
    data: ClipData,
    sources: Sources,
    split: str,
    *,
    files: Sequence[str] | None = None,
    batch_size: int = 16,
    workers: int | ClipLoader = 0,
    device: torch.device | str = "auto",
    progress: Progress = True,
    approximate: bool = False,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Score the clips of a split, or the named ones, in windows.

    model: with `score(batch) -> (B,)` log-odds of fake. workers: processes that read, or a loader
    of this split that has them. approximate: run the front end once over each clip instead of over
    each window. Returns the window table (file, start, end, score) in the order of the files, and
    {file: reason} of the clips without an answer.
    """
    device = pick_device(device) if isinstance(device, str) else device
    reasons: dict[str, str] = {}
    model = model.to(device).eval()
    inputs = WindowInputs(model, data, device, approximate)
    clips = _clips(data, sources, split, files, workers, progress)
    fills = not approximate and (data.fills_batches or device.type == "cuda")
    how = spans if approximate else functools.partial(in_batches, size=batch_size)
    groups = by_shape(clips, batch_size, reasons) if fills else _clip_by_clip(clips, how, reasons)

    def scored() -> Iterator[tuple[list[Waiting], torch.Tensor]]:
        for group in groups:
            batch = inputs([(one.file, one.window) for one in group])
            if fills:
                batch = {name: zero_padded(values, batch_size) for name, values in batch.items()}
            yield group, model.score(batch).float()

    rows: list[tuple] = []
    for group, scores in _one_behind(scored()):
        rows += [
            (one.clip, one.place, one.file, one.window.start_s, one.window.end_s, score)
            for one, score in zip(group, scores.cpu().tolist())
        ]
    rows.sort(key=lambda row: row[:2])
    table = pd.DataFrame([row[2:] for row in rows], columns=["file", "start", "end", "score"])
    return _finite(table, reasons)


def _one_behind(items: Iterator[T]) -> Iterator[T]:
    """The same items, each once the next one is under way on the device."""
    last: list[T] = []
    for item in items:
        yield from last
        last = [item]
    yield from last


class Waiting(NamedTuple):
    """A window that is to be scored: window `place` of `of` of clip `clip` in the list."""

    clip: int
    place: int
    of: int
    file: str
    window: Window


def by_shape(clips: Iterable[Clip], size: int, reasons: dict[str, str]) -> Iterator[list[Waiting]]:
    """The windows of all clips in lists of `size` of one shape each, so that a clip of another
    length does not hold up a batch; why a clip has none is put into `reasons`.

    A few lists at the end, and whenever MOST_WAITING batches of odd shapes wait, are shorter.
    """
    waiting: dict[tuple, list[Waiting]] = {}
    for number, (file, cut, reason) in enumerate(clips):
        if not cut:
            reasons[file] = reason
        for place, window in enumerate(cut):
            shape = tuple(tuple(values.shape) for values in window.inputs.values())
            alike = waiting.setdefault(shape, [])
            alike.append(Waiting(number, place, len(cut), file, window))
            if len(alike) == size:
                yield waiting.pop(shape)
        if sum(map(len, waiting.values())) > MOST_WAITING * size:
            yield from waiting.values()
            waiting = {}
    yield from waiting.values()


def _clip_by_clip(
    clips: Iterator[Clip],
    parts: Callable[[Sequence[Window]], Iterable[Sequence[Window]]],
    reasons: dict[str, str],
) -> Iterator[list[Waiting]]:
    """The windows of each clip in the given parts; why a clip has none is put into `reasons`."""
    for number, (file, cut, reason) in enumerate(clips):
        if not cut:
            reasons[file] = reason
        done = 0
        for part in parts(cut):
            yield [
                Waiting(number, done + place, len(cut), file, window)
                for place, window in enumerate(part)
            ]
            done += len(part)


def in_batches(cut: Sequence[Window], size: int) -> Iterator[Sequence[Window]]:
    """The windows of a clip in lists of `size`, the last one shorter."""
    for first in range(0, len(cut), size):
        yield cut[first : first + size]


@torch.inference_mode()
def score_frames(
    model: nn.Module,
    data: ClipData,
    sources: Sources,
    split: str,
    *,
    files: Sequence[str] | None = None,
    batch_size: int = 16,
    workers: int | ClipLoader = 0,
    device: torch.device | str = "auto",
    progress: Progress = True,
    approximate: bool = False,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Score every frame of the clips of a split, or of the named ones.

    data: a FrameData. approximate: as in score_clips. Returns the frame table (file, start, end,
    score, named columns) in the order of the files, and {file: reason} of the clips without an
    answer.
    """
    device = pick_device(device) if isinstance(device, str) else device
    model = model.to(device).eval()
    names = ["start", "end", "score", *data.COLUMNS]
    listed, tables, reasons = [], [np.empty((0, len(names)))], {}
    clips = _clips(data, sources, split, files, workers, progress)
    if device.type == "cuda" and not approximate and not data.streams:
        scored = frames_by_shape(model, data, clips, batch_size, device, reasons)
    else:
        how = {"batch_size": batch_size, "device": device, "approximate": approximate}
        scored = _frames_by_clip(model, data, clips, how, reasons)
    for file, rows in scored:
        listed += [file] * len(rows)
        tables.append(rows)
    table = pd.DataFrame(np.concatenate(tables), columns=names)
    table.insert(0, "file", np.array(listed, dtype=object))
    return _finite(table, reasons)


def _frames_by_clip(
    model: nn.Module,
    data: ClipData,
    clips: Iterable[Clip],
    how: dict[str, Any],
    reasons: dict[str, str],
) -> Iterator[tuple[str, np.ndarray]]:
    """Each clip's rows; why it has none is put into `reasons`."""
    for file, cut, reason in clips:
        if not cut:
            reasons[file] = reason
            continue
        try:
            yield file, clip_frames(model, data, cut, **how)
        except MediaError as error:  # of data that is decoded while it is scored
            reasons[file] = error.what


def frames_by_shape(
    model: nn.Module,
    data: ClipData,
    clips: Iterable[Clip],
    batch_size: int,
    device: torch.device,
    reasons: dict[str, str],
) -> list[tuple[str, np.ndarray]]:
    """As _frames_by_clip, in whole batches of windows of several clips; see by_shape."""
    inputs = WindowInputs(model, data, device)
    parts: dict[int, list[tuple[Waiting, np.ndarray]]] = defaultdict(list)
    rows: dict[int, tuple[str, np.ndarray]] = {}
    for group in by_shape(clips, batch_size, reasons):
        outputs = data.outputs(model, inputs([(one.file, one.window) for one in group]))
        for one, output in zip(group, outputs):
            done = parts[one.clip]
            done.append((one, output))
            if len(done) == one.of:
                del parts[one.clip]
                done.sort(key=lambda part: part[0].place)
                cut = [part.window for part, _ in done]
                rows[one.clip] = one.file, frame_rows(data, np.stack([o for _, o in done]), cut)
    return [rows[number] for number in sorted(rows)]


@torch.inference_mode()
def clip_frames(
    model: nn.Module,
    data: ClipData,
    cut: list[Window],
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    approximate: bool = False,
) -> np.ndarray:
    """The rows of one clip from its windows, (n_frames, 3 + named columns): start, end, score, ...

    Frames are on `data.score_grid`; the last one ends with the clip. Memory does not grow with the
    clip beyond its rows.
    """
    if data.streams and not approximate:
        return data.clip_rows(model, cut, batch_size=batch_size, device=torch.device(device))
    inputs = WindowInputs(model, data, torch.device(device), approximate)
    parts = spans(cut) if approximate else in_batches(cut, batch_size)
    outputs = np.concatenate(
        [data.outputs(model, inputs([("", window) for window in part])) for part in parts]
    )
    return frame_rows(data, outputs, cut)


def frame_rows(data: ClipData, outputs: np.ndarray, cut: Sequence[Window]) -> np.ndarray:
    """The rows of one clip, as `clip_frames` gives them, from the outputs (W, F, C) of its
    windows.
    """
    hop_s, offset_s = data.score_grid["hop_s"], data.score_grid["offset_s"]
    starts = np.array([round(window.start_s / hop_s) for window in cut])
    end_s = max(window.end_s for window in cut)
    n_frames = max(int(np.ceil((end_s - offset_s) / hop_s - 1e-6)), 1)
    edges = np.arange(n_frames + 1) * hop_s + offset_s
    edges[-1] = np.clip(end_s, edges[-2], edges[-1])  # a clip may end before the first frame
    return np.column_stack([edges[:-1], edges[1:], data.join(outputs, starts, n_frames)])


def _finite(table: pd.DataFrame, reasons: dict[str, str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """A clip with a score that is not a finite number has no answer: NaN must never be ranked."""
    bad = set(table.loc[~np.isfinite(table["score"].to_numpy(float)), "file"])
    reasons = reasons | dict.fromkeys(bad, "the model gave no finite score")
    return table[~table["file"].isin(bad)].reset_index(drop=True), reasons


def clip_table(
    scored: pd.DataFrame, table: pd.DataFrame, reasons: Mapping[str, str], aggregate: str
) -> pd.DataFrame:
    """One row for each clip of the list, in its order: file start end score reason, and the shares
    that the table has, 0 where there is no answer.
    """
    scores: dict[str, float] = {}
    if len(scored):
        scores = aggregate_by_clip(
            scored["file"].to_numpy(), scored["score"].to_numpy(float), aggregate
        )
    clips = pd.DataFrame(
        {"file": table["file"], "start": 0.0, "end": table["duration"].fillna(0.0).to_numpy(float)}
    )
    clips["score"] = clips["file"].map(scores).astype(float)
    clips["reason"] = clips["file"].map(dict(reasons)).fillna("")
    lost = clips.loc[clips["score"].isna() & clips["reason"].eq(""), "file"]
    if len(lost):
        raise KlassifyError(
            f"{len(lost)} clips have neither a score nor a reason, first {lost.iloc[0]}."
        )
    for name in SHARES:
        if name in table:
            clips[name] = table[name].where(clips["reason"].eq("").to_numpy(), 0.0).to_numpy(float)
    return clips
