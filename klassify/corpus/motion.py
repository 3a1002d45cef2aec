"""The motion of a clip: mouth, head, eyelids, brows and light, one value per frame at 25 fps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

FPS = 25
FINE = 200  # samples per second of the mouth curves before smoothing
CO_ARTICULATION_S = 0.035

# first letters of espeak mnemonics: (open 0..1, wide -1..1, upper lip raised 0..1)
_VISEMES = {
    "p b m": (-0.05, 0.0, 0.0),
    "f v": (0.08, 0.1, 0.6),
    "t d": (0.2, 0.2, 0.2),
    "n T D": (0.22, 0.2, 0.2),
    "l": (0.3, 0.1, 0.2),
    "s z": (0.14, 0.45, 0.3),
    "S Z tS dZ": (0.2, -0.5, 0.5),
    "k g x": (0.3, 0.1, 0.1),
    "N": (0.25, 0.1, 0.1),
    "h": (0.4, 0.1, 0.1),
    "r": (0.22, -0.35, 0.2),
    "w": (0.12, -0.95, 0.1),
    "j": (0.22, 0.5, 0.1),
    "i": (0.26, 0.8, 0.3),
    "I": (0.34, 0.5, 0.2),
    "e": (0.5, 0.5, 0.3),
    "E": (0.58, 0.45, 0.3),
    "a": (0.95, 0.2, 0.3),
    "A": (1.0, 0.05, 0.3),
    "V": (0.75, 0.1, 0.2),
    "0 Q": (0.8, -0.3, 0.1),
    "O": (0.7, -0.6, 0.1),
    "o": (0.5, -0.8, 0.1),
    "u": (0.24, -1.0, 0.1),
    "U": (0.3, -0.8, 0.1),
    "@": (0.4, 0.0, 0.1),
    "3": (0.42, -0.2, 0.2),
}
VISEMES = {sound: shape for sounds, shape in _VISEMES.items() for sound in sounds.split()}
REST = (0.02, 0.0, 0.0)
# slow motion of yaw, pitch, roll (rad), x and y (frame pixels): amplitude, lowest and highest Hz
POSE_MOTION = (
    (0.08, 0.08, 0.45),
    (0.045, 0.1, 0.6),
    (0.035, 0.08, 0.4),
    (2.2, 0.08, 0.4),
    (1.6, 0.1, 0.5),
)


@dataclass
class Tracks:
    """What moves in a clip of T frames.

    mouth: (T, 3) open, wide, raised. pose: (T, 5) yaw, pitch, roll (rad), x, y (frame pixels).
    blink, brow: (T,) 0..1. light: (T, 3) gains.
    """

    mouth: np.ndarray
    pose: np.ndarray
    blink: np.ndarray
    brow: np.ndarray
    light: np.ndarray


def mouth_curve(phonemes: list[tuple[str, float]], n_frames: int, offset_s: float) -> np.ndarray:
    """(n_frames, 3) mouth parameters at frame centres; offset_s is added to phoneme times."""
    n_fine = n_frames * FINE // FPS
    curve = np.tile(np.array(REST), (n_fine, 1))
    starts = [offset_s + start for _, start in phonemes]
    for (name, _), start, end in zip(phonemes, starts, [*starts[1:], n_frames / FPS]):
        curve[int(start * FINE) : int(end * FINE)] = viseme(name)
    curve = gaussian_filter1d(curve, CO_ARTICULATION_S * FINE, axis=0, mode="nearest")
    return curve[np.minimum(np.arange(n_frames) * FINE // FPS + FINE // FPS // 2, n_fine - 1)]


def viseme(mnemonic: str) -> tuple[float, float, float]:
    """(open, wide, raised) of a phoneme; REST for pauses and unknown sounds."""
    letters = mnemonic.lstrip("'%,=")
    return VISEMES.get(letters[:2]) or VISEMES.get(letters[:1], REST)


def draw_tracks(rng: np.random.Generator, mouth: np.ndarray) -> Tracks:
    """Head, lids, brows and light of one clip, around a given mouth curve."""
    n = len(mouth)
    time = np.arange(n) / FPS
    speech = gaussian_filter1d(mouth[:, 0], 3, mode="nearest")
    pose = np.stack([_wander(rng, time, *motion) for motion in POSE_MOTION], axis=1)
    pose[:, 1] += 0.05 * rng.uniform(0.3, 1) * (speech - speech.mean())
    pose += np.array([rng.normal(0, 0.04), rng.normal(0, 0.02), rng.normal(0, 0.015), 0, 0])
    pose[:, 3:] += rng.normal(0, 0.12, (n, 2))  # hand-held camera
    brow = np.clip(_wander(rng, time, 0.5, 0.15, 0.5) + 0.6 * (speech - speech.mean()), -0.3, 1)
    brightness = _wander(rng, time, 0.012, 0.05, 0.3)
    colour = np.stack([_wander(rng, time, 0.003, 0.05, 0.2) for _ in range(3)], axis=1)
    light = 1 + brightness[:, None] + colour
    return Tracks(mouth, pose, _blinks(rng, n), brow, light)


def _wander(
    rng: np.random.Generator, time: np.ndarray, amplitude: float, low_hz: float, high_hz: float
) -> np.ndarray:
    """Slow random motion: four sinusoids."""
    frequencies, phases = rng.uniform(low_hz, high_hz, 4), rng.uniform(0, 2 * np.pi, 4)
    weights = rng.dirichlet(np.ones(4)) * 1.5
    waves = weights * np.sin(2 * np.pi * frequencies * time[:, None] + phases)
    return amplitude * waves.sum(axis=1)


def _blinks(rng: np.random.Generator, n: int) -> np.ndarray:
    closed = np.zeros(n)
    shape = np.array([0.3, 0.85, 1.0, 0.7, 0.35, 0.1])
    at = rng.integers(5, 50)
    while at + len(shape) < n:
        closed[at : at + len(shape)] = shape
        at += rng.integers(40, 110)
    return closed
