"""Thumbnails and waveform of a clip."""

from __future__ import annotations

import os

import numpy as np

from klassify.errors import KlassifyError
from klassify.media import decoder, isolated

THUMBNAILS, THUMBNAIL_PX = 12, 96


def sound_of(video: str | os.PathLike) -> np.ndarray:
    """Its audio (decoder.read_audio), or an empty array for a file that cannot be read."""
    try:
        return isolated.call(decoder.read_audio, video)
    except KlassifyError:
        return np.zeros(0, np.float32)


def thumbnails(video: str | os.PathLike) -> tuple[list[np.ndarray], list[float], float]:
    """Evenly spaced small frames, the times of their middles, and the picture's length in
    seconds; nothing for a file that cannot be read.
    """
    try:
        n_frames = isolated.call(decoder.count_frames, video)
        n_shown = min(THUMBNAILS, n_frames)
        times = [(slot + 0.5) / n_shown * n_frames / decoder.GRID_FPS for slot in range(n_shown)]
        indices = [int(time * decoder.GRID_FPS) for time in times]
        found = list(isolated.stream(decoder.thumbnails_at, video, indices, longest=THUMBNAIL_PX))
    except KlassifyError:
        return [], [], 0.0
    return found, times, n_frames / decoder.GRID_FPS


def envelope(wave: np.ndarray, pieces: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of about so many equal pieces of 16 kHz sound: middles (s), lowest and highest values."""
    size = max(1, len(wave) // pieces)
    cut = wave[: len(wave) // size * size].reshape(-1, size)
    seconds = (np.arange(len(cut)) + 0.5) * size / decoder.SAMPLE_RATE
    return seconds, cut.min(axis=1), cut.max(axis=1)
