"""The LMM hidden states as a kind: row, settings and extractor."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from klassify.arguments import at_least_1
from klassify.errors import KlassifyError
from klassify.features.base import (
    MODEL_ARGUMENTS,
    Columns,
    Extraction,
    Kind,
    Row,
    attempt,
    common,
    in_process,
    media_only,
    ragged,
    schema,
    values,
)
from klassify.media import decoder, isolated

if TYPE_CHECKING:
    import torch

    from klassify.features.lmm.model import LMM

INTERVAL = 200  # frames: 8 s on the 25 fps grid


def extraction(
    *,
    lmm: str | None = None,
    clip: str | None = None,
    interval: int = INTERVAL,
    load_in: int = 16,
    download: bool = False,
    device: str | torch.device = "auto",
    batch: int | None = None,
    jobs: int | None = None,
) -> Extraction:
    """What an LMM sees and says of every `interval`-th frame.

    lmm, clip, download: see load.LMMSource. load_in: bits per weight, on the CPU always 32. device:
    a name, or a torch.device of another machine, which is not looked for on this one.
    """
    if lmm is None:
        raise KlassifyError(
            "--kind lmm needs --lmm MODEL.",
            fix="name a folder or hub id of LLaVA-1.5, or `tiny`, an untrained stand-in",
        )
    from klassify.features.lmm import load, model
    from klassify.models.devices import pick_device

    device = pick_device(device) if isinstance(device, str) else device
    bits = 32 if device.type == "cpu" and load_in == 16 else load_in
    source = load.LMMSource(lmm, clip, bits, download)
    load.check_bits(bits, device)
    settings = {"version": model.VERSION, "fps": decoder.GRID_FPS, "interval": interval}
    settings |= source.settings()
    settings |= {"new_tokens": model.NEW_TOKENS, "prompt": model.PROMPT}

    def extractor(root: Path) -> Any:
        models = model.LMM(*load.load(source, device))
        return LMMExtractor(root, models, interval, batch or 8)

    # the tiny one gains nothing from threads, and with one gives the same bytes everywhere
    threads = 1 if source.untrained else jobs
    rows = functools.partial(in_process, extractor, threads)
    return Extraction("lmm", settings, media_only, rows)


@dataclasses.dataclass(frozen=True)
class Shown:
    """The frames of one clip for the LMM, (H, W, 3) uint8; n_frames: of the clip, on the grid."""

    file: str
    fps: float
    n_frames: int
    indices: np.ndarray
    frames: Sequence[np.ndarray]


class LMMExtractor:
    """Extracts the clips of a list; a bad clip does not affect the others.

    Args:
        root: the folder that clip names are relative to.
        lmm: the models.
        interval: frames of the 25 fps grid between sampled frames.
        batch_size: frames per batch; a batch that is not full repeats its last frame.
    """

    def __init__(self, root: Path, lmm: LMM, interval: int = INTERVAL, batch_size: int = 8):
        self.root, self.lmm, self.interval, self.batch_size = root, lmm, interval, batch_size

    def rows(self, files: Sequence[str]) -> Iterator[LMMRow]:
        """One row per clip, in any order."""
        waiting: list[Shown] = []
        for file in files:
            shown = attempt(LMMRow, self.root, file, lambda path, file=file: self.look(file, path))
            if isinstance(shown, LMMRow):
                yield shown
                continue
            waiting.append(shown)
            if sum(len(clip.frames) for clip in waiting) >= self.batch_size:
                yield from self.extract(waiting)
                waiting = []
        yield from self.extract(waiting)

    def look(self, file: str, path: Path) -> Shown | LMMRow:
        """Decode a whole clip and keep the frames 0, interval, 2 interval, ..."""
        fps = isolated.probe(path).fps
        n_frames = isolated.call(decoder.count_frames, path)
        looked_at = range(0, n_frames, self.interval)
        frames = list(isolated.stream(decoder.frames_at, path, list(looked_at)))
        if not frames:
            return LMMRow.failed(file, "decode", "no frames")
        if len(frames) < len(looked_at):
            reason = f"The clip ends before frame {looked_at[len(frames)]}."
            return LMMRow.failed(file, "decode", reason)
        return Shown(file, fps, n_frames, np.array(looked_at, np.int32), frames)

    def extract(self, clips: Sequence[Shown]) -> Iterator[LMMRow]:
        """The rows of these clips. If they fail together, each is tried alone."""
        try:
            yield from self._together(clips)
        except Exception as error:  # native libraries raise many kinds; other clips must continue
            if len(clips) == 1:
                reason = f"{type(error).__name__}: {error}"
                yield LMMRow.failed(clips[0].file, "features", reason)
            else:
                for clip in clips:
                    yield from self.extract([clip])

    def _together(self, clips: Sequence[Shown]) -> list[LMMRow]:
        frames = [frame for clip in clips for frame in clip.frames]
        if not frames:
            return []
        starts = range(0, len(frames), self.batch_size)
        # batches of one shape: the features of a frame do not depend on how many others there are
        frames += frames[-1:] * (-len(frames) % self.batch_size)
        blocks = [self.lmm(frames[first : first + self.batch_size]) for first in starts]
        visual, textual = (np.concatenate([block[i] for block in blocks]) for i in (0, 1))
        texts = [text for block in blocks for text in block[2]]
        rows, first = [], 0
        for clip in clips:
            part = slice(first, first + len(clip.frames))
            rows.append(self._row(clip, visual[part], textual[part], texts[part]))
            first = part.stop
        return rows

    @staticmethod
    def _row(clip: Shown, visual: np.ndarray, textual: np.ndarray, texts: list[str]) -> LMMRow:
        if not (np.isfinite(visual).all() and np.isfinite(textual).all()):
            reason = "the LMM's states are beyond the range of float16"
            return LMMRow.failed(clip.file, "features", reason)
        return LMMRow(clip.file, clip.fps, clip.n_frames, clip.indices, visual, textual, texts)


@dataclasses.dataclass(frozen=True)
class LMMRow(Row):
    """What an LMM makes of the sampled frames of one clip (multi-branch paper, section 2.1).

    frames: (n,) int32, which frames of the 25 fps grid; n_frames: how many the clip has. visual:
    (n, 1024) float16, CLIP's pooled vector. textual: (n, 64, 4096) float16, the states of the last
    64 positions. texts: what the LMM wrote about each frame. The widths are those of the model that
    was used. A clip without features has n = 0, and `reason` in words with its `stage` (path,
    decode, features).
    """

    file: str
    fps: float
    n_frames: int
    frames: np.ndarray
    visual: np.ndarray
    textual: np.ndarray
    texts: Sequence[str]
    reason: str = ""
    stage: str = ""

    SCHEMA: ClassVar = schema(
        ("frames", pa.list_(pa.int32())),
        ("visual", pa.list_(pa.float16())),
        ("textual", pa.large_list(pa.float16())),
        ("texts", pa.list_(pa.string())),
    )
    NOTHING: ClassVar = (
        *(0, np.zeros(0, np.int32)),
        *(np.zeros((0, 0), np.float16), np.zeros((0, 0, 0), np.float16), []),
    )
    SPLIT_BYTES: ClassVar = ("visual.list.element", "textual.list.element")

    @staticmethod
    def dims(settings: Mapping[str, Any]) -> tuple[int, int, int]:
        """(visual_dim, new_tokens, textual_dim) from a shard's settings; else ValueError."""
        try:
            return settings["visual_dim"], settings["new_tokens"], settings["textual_dim"]
        except KeyError as error:
            raise ValueError(f"settings of kind lmm lack {error}") from None

    @classmethod
    def columns(cls, rows: Sequence[LMMRow], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The rows as columns of SCHEMA. ValueError for wrong shapes and NaN."""
        width, positions, depth = cls.dims(settings)
        for row in rows:
            n = len(row.frames)
            shapes = (row.visual.shape, row.textual.shape, len(row.texts))
            if n and shapes != ((n, width), (n, positions, depth), n):
                raise ValueError(
                    f"{row.file}: visual, textual and texts are {shapes} for {n} sampled frames"
                )
            if not (np.isfinite(row.visual).all() and np.isfinite(row.textual).all()):
                raise ValueError(f"{row.file}: features that are not finite")
        return {
            "n_frames": [row.n_frames for row in rows],
            "frames": ragged([row.frames.astype(np.int32) for row in rows], pa.int32()),
            "visual": ragged([row.visual.astype(np.float16).ravel() for row in rows], pa.float16()),
            "textual": ragged(
                [row.textual.astype(np.float16).ravel() for row in rows], pa.float16(), large=True
            ),
            "texts": [list(row.texts) for row in rows],
        }

    @classmethod
    def from_columns(cls, columns: Columns, i: int, settings: Mapping[str, Any]) -> LMMRow:
        """Row i of a row group."""
        width, positions, depth = cls.dims(settings)
        frames = values(columns, "frames", i).copy()
        n = len(frames)
        return cls(
            n_frames=columns["n_frames"][i].as_py(),
            frames=frames,
            visual=values(columns, "visual", i).reshape(n, width).copy(),
            textual=values(columns, "textual", i).reshape(n, positions, depth).copy(),
            texts=columns["texts"][i].as_py(),
            **common(columns, i),
        )


MODELS = "a folder, a hub id, or `tiny`, which is untrained"
KIND = Kind(
    "lmm",
    LMMRow,
    clips_per_file=200,
    extraction=extraction,
    arguments={
        "--lmm": {"metavar": "MODEL", "help": f"LLaVA-1.5: {MODELS}"},
        "--clip": {
            "metavar": "MODEL",
            "help": f"CLIP-L/14-336 instead of the LMM's own vision tower: {MODELS}",
        },
        "--interval": {
            "type": at_least_1,
            "help": f"use every INTERVAL-th frame (default: {INTERVAL})",
        },
        "--load-in": {
            "type": int,
            "choices": (16, 8, 4),
            "help": "bits per weight (default: 16; on CPU always 32)",
        },
        "--download": {
            "action": "store_true",
            "help": "download a hub id that is not on this machine",
        },
        **MODEL_ARGUMENTS,
    },
)
