"""Families of perturbations: stronger levels change more, and nothing else moves."""

import itertools

import numpy as np
import pytest
from scipy.signal import correlate

from klassify.corpus.encode import LOSSLESS_VIDEO, write_streams
from klassify.media import decoder
from klassify.perturbation import picture, sound
from klassify.perturbation.families import FAMILIES, LEVELS

# of these, a level is not a distance from the clip
UNORDERED = ("trim", "tempo", "loudness", "pitch")
SOUND = [f.name for f in FAMILIES.values() if f.sound and not f.picture]
PICTURE = [f.name for f in FAMILIES.values() if f.picture and not f.sound]


@pytest.fixture(scope="module")
def wave():
    """Two seconds of a voice-like sound whose pitch wanders, and breath."""
    rng = np.random.default_rng(0)
    time = np.arange(32_000) / 16_000
    phase = 2 * np.pi * np.cumsum(110 + 20 * np.sin(5 * time) + 60 * time) / 16_000
    voice = sum(np.sin(n * phase) / n for n in range(1, 40)) + rng.normal(0, 0.1, len(time))
    return (0.1 * voice * (0.2 + np.abs(np.sin(9 * time)))).astype(np.float32)


@pytest.fixture(scope="module")
def frames():
    """Twelve frames of coloured, moving texture."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (12, 16, 3)).repeat(4, 0).repeat(4, 1)
    return [np.roll(texture, k, axis=(0, 1)).astype(np.uint8) for k in range(12)]


def heard(name, wave, level):
    family = FAMILIES[name]
    return np.asarray(family.sound(wave, family.value(level), np.random.default_rng(1)))


def seen(name, frames, level, folder):
    family = FAMILIES[name]
    value = family.value(level)
    changed = list(family.picture(iter(frames), value, np.random.default_rng(1)))
    if family.video(value) == LOSSLESS_VIDEO:
        return np.stack(changed)
    write_streams(folder / "coded.mp4", changed, None, video=family.video(value))
    return np.stack(list(decoder.iter_frames(folder / "coded.mp4")))


def distance(one, other):
    return float(np.sqrt(np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2)))


@pytest.mark.parametrize("name", [name for name in SOUND if name not in UNORDERED])
def test_stronger_levels_change_the_sound_more(name, wave):
    distances = [distance(heard(name, wave, level), wave) for level in LEVELS]
    assert distances[-1] > max(distances[0], 0.001)
    # encoders keep to their bit rates only roughly
    assert all(b > 0.8 * a for a, b in itertools.pairwise(distances))


@pytest.mark.parametrize("name", PICTURE)
def test_stronger_levels_change_the_picture_more(name, frames, tmp_path):
    distances = [distance(seen(name, frames, level, tmp_path), frames) for level in LEVELS]
    assert distances[-1] > 1 and distances == sorted(distances)


@pytest.mark.parametrize("name", SOUND)
def test_sounds_keep_length_and_time(name, wave):
    for level in (1, 5):
        changed = heard(name, wave, level)
        assert changed.shape == wave.shape
        if name not in ("pitch", "amr"):  # which change the waveform more than its place
            lag = correlate(changed, wave, method="fft").argmax() - (len(wave) - 1)
            assert abs(lag) <= 16  # 1 ms


@pytest.mark.parametrize("name", ["loudness", "noise", "music", "reverberation", "clipping"])
def test_silence_stays_silent(name):
    assert not heard(name, np.zeros(1600, np.float32), 3).any()


def test_noise_is_at_its_ratio(wave):
    for name in ("noise", "music"):
        added = heard(name, wave, 5) - wave
        ratio = 10 * np.log10(np.mean(np.square(wave, dtype=float)) / np.mean(added**2))
        assert ratio == pytest.approx(FAMILIES[name].value(5), abs=0.01)


def test_tempo_moves_sound_and_picture_alike(frames):
    wave = np.zeros(16_000, np.float32)
    wave[8000:8100] = np.sin(np.arange(100))
    faster = sound.tempo(wave, 1.25, np.random.default_rng(0))
    assert len(faster) == 12_800
    assert abs(int(np.abs(faster).argmax()) - 6440) < 160
    numbered = [np.full((2, 2, 3), k, np.uint8) for k in range(50)]
    shown = [int(f[0, 0, 0]) for f in picture.tempo(numbered, 1.25, None)]
    middles = (np.arange(len(shown)) + 0.5) * 1.25
    assert len(shown) == 40 and shown == middles.astype(int).tolist()


def test_frame_rate_repeats_frames_in_place():
    numbered = [np.full((2, 2, 3), k, np.uint8) for k in range(25)]
    shown = [int(f[0, 0, 0]) for f in picture.frame_rate(numbered, 5, None)]
    assert shown == [k // 5 * 5 for k in range(25)]


def test_there_are_twenty_families_of_five_levels():
    assert len(FAMILIES) >= 20
    assert all(len(family.values) == len(LEVELS) for family in FAMILIES.values())
