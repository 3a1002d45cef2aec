"""A contact sheet of a corpus: real above fake versions, fake frames framed in red."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np

from klassify.corpus.metadata import read_entries
from klassify.corpus.motion import FPS
from klassify.corpus.plan import SPLITS
from klassify.errors import KlassifyError
from klassify.files import whole_file

TILE, MARGIN, CAPTION = 224, 4, 18
RED, GREY, WHITE = (40, 40, 220), (90, 90, 90), (240, 240, 240)  # BGR, as OpenCV writes


def draw_sheet(corpus: Path, path: Path, *, speakers: int = 6, moments: int = 6) -> None:
    """Write a PNG with two rows for each of some speakers: real, then a version with a fake mouth.

    Half of the moments show fake frames, if the clip has that many.
    """
    pairs = _pairs(corpus)
    if not pairs:
        raise KlassifyError(
            "No original here has both a real version and a version with a fake mouth.",
            where=corpus,
        )
    chosen = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, speakers).astype(int))]
    rows = []
    for real, fake in chosen:
        at = _moments(fake, moments)
        for entry in (real, fake):
            rows.append(_row(corpus, entry, at))
    with whole_file(path) as partial:
        cv2.imwrite(str(partial), np.concatenate(rows, axis=0))


def _pairs(corpus: Path) -> list[tuple[dict, dict]]:
    """(real, visually fake) entries of one original of each speaker."""
    pairs = {}
    for split in SPLITS:
        entries = read_entries(corpus, (split,))
        reals = {entry["file"]: entry for entry in entries if entry["modify_type"] == "real"}
        for entry in entries:
            if entry["visual_fake_segments"] and entry["original"] in reals:
                pairs.setdefault(entry["speaker"], (reals[entry["original"]], entry))
    return list(pairs.values())


def _fake_frames(entry: dict) -> np.ndarray:
    flags = np.zeros(entry["video_frames"], bool)
    for start, end in entry["visual_fake_segments"]:
        flags[round(start * FPS) : round(end * FPS)] = True
    return flags


def _moments(fake: dict, n: int) -> list[int]:
    flags = _fake_frames(fake)
    inside, outside = np.flatnonzero(flags), np.flatnonzero(~flags)
    chosen = []
    for side in (inside[1:-1], outside[5:-3]):
        chosen += side[np.linspace(0, len(side) - 1, n // 2).astype(int)].tolist()
    return sorted(chosen)


def _row(corpus: Path, entry: dict, at: list[int]) -> np.ndarray:
    with av.open(str(corpus / entry["split"] / entry["file"])) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    flags = _fake_frames(entry)
    models = " + ".join(entry[key] for key in ("audio_model", "video_model") if entry[key])
    tiles = []
    for k in at:
        colour = RED if flags[k] else GREY
        frame = cv2.resize(frames[k], (TILE, TILE))
        borders = (MARGIN, MARGIN + CAPTION, MARGIN, MARGIN)
        tile = cv2.copyMakeBorder(frame, *borders, cv2.BORDER_CONSTANT, value=colour)
        text = f"{entry['speaker']} {entry['modify_type']} {k / FPS:.2f} s"
        if k == at[-1] and models:
            text = models
        place, font = (6, tile.shape[0] - 7), cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(tile, text, place, font, 0.36, WHITE, 1, cv2.LINE_AA)
        tiles.append(tile)
    return np.concatenate(tiles, axis=1)
