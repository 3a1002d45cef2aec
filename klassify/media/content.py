"""Measures what a clip's content says without any model: silence at its ends, noise floor, level,
bandwidth, repeated pictures, jumps.

All of it can differ between real and fake clips for reasons that have nothing to do with the fake,
such as how the files of a data set were cut and encoded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from klassify.media.container import container_traits
from klassify.media.decoder import SAMPLE_RATE, pictures, read_audio
from klassify.media.picture import Picture

QUIET = 0.0005  # largest sample that counts as silence, as in the published audit of the data set
LEVEL_BLOCK, OFFSET_BLOCK = SAMPLE_RATE // 50, SAMPLE_RATE // 10  # samples: 20 and 100 ms
FLOOR_PERCENTILE = 10
SILENCE_POWER = 1e-12  # -120 dB
ROLLOFF_SHARE = 0.85
BANDWIDTH_RATIO = 1e-6  # of the strongest band: 60 dB
FULL_SCALE = 0.999
# a sound jumps where its second difference is far above its mean over 40 ms
SOUND_JUMP_RATIO, SOUND_JUMP_LEAST, SOUND_JUMP_SPAN = 12, 0.02, SAMPLE_RATE // 25
SOUND_JUMP_APART = SAMPLE_RATE // 100  # samples: closer ones count once
# grey levels of a sketch: no difference anywhere, and a mean difference far above its neighbours'
SAME, PICTURE_JUMP_LEAST, PICTURE_JUMP_RATIO, PICTURE_JUMP_SPAN = 0.05, 3.0, 5, 9

SOUND = (
    "silence_start_ms",
    "silence_end_ms",
    "noise_floor_db",
    "loudness_db",
    "rolloff_hz",
    "bandwidth_hz",
    "dc_offset",
    "clipped_share",
    "sound_jumps",
)
PICTURE = ("first_repeated", "last_repeated", "frozen_share", "picture_jumps", "picture_rate")
CONTAINER = (
    "bytes",
    "duration_s",
    "bit_rate",
    "video_bit_rate",
    "audio_bit_rate",
    "video_frames",
    "audio_packets",
    "width",
    "height",
    "audio_rate",
)
TEXTS = ("codecs", "tags")


def content_traits(path: str | os.PathLike) -> dict[str, Any]:
    """SOUND, PICTURE, CONTAINER and TEXTS of a clip, by name; without a stream its part is missing.

    Sound and picture are decoded once. Raises MediaError.
    """
    traits: dict[str, Any] = dict(container_traits(path))
    traits |= sound_traits(read_audio(path))
    if traits["width"]:
        traits |= picture_traits(pictures(path))
    return traits


def sound_traits(wave: np.ndarray) -> dict[str, float]:
    """SOUND of (n,) float32 at 16 kHz; {} without samples.

    Milliseconds of |x| <= QUIET at both ends; the 10th percentile of 20 ms levels, and the level of
    the clip, in dB of full scale; the frequency below which 85 % of the power lies, and the highest
    one within 60 dB of the strongest; the median offset of 100 ms, without sign; the share of
    samples at full scale; the number of places where the wave jumps. Percentile and median are
    those of the recording: an edit of a small part hardly moves them.
    """
    from scipy.signal import welch

    if not len(wave):
        return {}
    audible = np.flatnonzero(np.abs(wave) > QUIET)
    first, last = (audible[0], audible[-1]) if len(audible) else (len(wave), -1)
    levels = _decibels(_blocks(wave, LEVEL_BLOCK).var(axis=1))
    frequency, power = welch(wave, SAMPLE_RATE, nperseg=min(512, len(wave)))
    share = np.cumsum(power) / max(power.sum(), SILENCE_POWER)
    strong = np.flatnonzero(power > BANDWIDTH_RATIO * power.max())
    return {
        "silence_start_ms": 1000 * first / SAMPLE_RATE,
        "silence_end_ms": 1000 * (len(wave) - 1 - last) / SAMPLE_RATE,
        "noise_floor_db": np.percentile(levels, FLOOR_PERCENTILE),
        "loudness_db": _decibels(wave.var()),
        "rolloff_hz": frequency[min(np.searchsorted(share, ROLLOFF_SHARE), len(power) - 1)],
        "bandwidth_hz": frequency[strong[-1]] if len(strong) else 0.0,
        "dc_offset": abs(np.median(_blocks(wave, OFFSET_BLOCK).mean(axis=1))),
        "clipped_share": (np.abs(wave) >= FULL_SCALE).mean(),
        "sound_jumps": _sound_jumps(wave),
    }


def picture_traits(shown: Iterable[tuple[float, float, Picture]]) -> dict[str, float]:
    """PICTURE of decoded pictures with their times, as decoder.pictures gives them; {} for none.

    How many pictures after the first equal it, and before the last; the share of pictures that
    equal the one before; the number of sudden changes; pictures a second.
    """
    changes, held, before, end = [], None, None, 0.0
    for _, stop, picture in shown:
        end = stop
        if picture is held:
            continue
        sketch = picture.sketch()
        if before is not None:
            difference = np.abs(sketch - before)
            changes.append((difference.max(), difference.mean()))
        held, before = picture, sketch
    if held is None:
        return {}
    largest, mean = np.array(changes).reshape(-1, 2).T
    moves = np.flatnonzero(largest > SAME)
    first, last = (moves[0], moves[-1]) if len(moves) else (len(largest), -1)
    return {
        "first_repeated": first,
        "last_repeated": len(largest) - 1 - last,
        "frozen_share": 1 - len(moves) / max(len(largest), 1),
        "picture_jumps": _picture_jumps(mean),
        "picture_rate": (len(largest) + 1) / max(end, 1 / SAMPLE_RATE),
    }


def _blocks(wave: np.ndarray, size: int) -> np.ndarray:
    """(n, size) whole blocks; one short block where there is none."""
    n = len(wave) // size
    return wave[: n * size].reshape(n, size) if n else wave[None]


def _decibels(power: Any) -> Any:
    return 10 * np.log10(power + SILENCE_POWER)


def _sound_jumps(wave: np.ndarray) -> int:
    from scipy.ndimage import uniform_filter1d

    bend = np.abs(np.diff(wave.astype(float), 2))
    usual = uniform_filter1d(bend, SOUND_JUMP_SPAN, mode="nearest") if len(bend) else bend
    at = np.flatnonzero((bend > SOUND_JUMP_RATIO * usual) & (bend > SOUND_JUMP_LEAST))
    return int(len(at) > 0) + int((np.diff(at) > SOUND_JUMP_APART).sum())


def _picture_jumps(change: np.ndarray) -> int:
    from scipy.ndimage import median_filter

    if not len(change):
        return 0
    usual = median_filter(change, PICTURE_JUMP_SPAN, mode="nearest")
    return int((change > np.maximum(PICTURE_JUMP_RATIO * usual, PICTURE_JUMP_LEAST)).sum())
