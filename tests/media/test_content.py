"""What the content of a clip says without any model: planted values are measured."""

from __future__ import annotations

import numpy as np
import pytest
from videos import gray, picture, sound, write_media

from klassify.media import content
from klassify.media.container import MediaError

RATE = 16_000


def voice(n=RATE, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, n).astype(np.float32)


def traits_of(wave):
    return content.sound_traits(np.asarray(wave, np.float32))


def test_silence_at_both_ends_is_exact():
    wave = voice()
    wave[:800], wave[-161:] = 0.0005, -0.0003
    wave[[800, -162]] = 0.1
    found = traits_of(wave)
    assert found["silence_start_ms"] == 50 and found["silence_end_ms"] == 1000 * 161 / RATE
    silent = traits_of(np.zeros(RATE // 2))
    assert silent["silence_start_ms"] == silent["silence_end_ms"] == 500


def test_levels_are_in_decibels_of_full_scale():
    time = np.arange(RATE) / RATE
    sine = 0.5 * np.sin(2 * np.pi * 400 * time)
    sine[RATE // 2 :] = 0.01 * sine[RATE // 2 :]
    found = traits_of(sine)
    assert found["noise_floor_db"] == pytest.approx(10 * np.log10(0.005**2 / 2), abs=0.1)
    assert found["loudness_db"] == pytest.approx(10 * np.log10(0.5**2 / 4), abs=0.1)


def test_an_offset_is_found_and_not_that_of_an_edit():
    assert traits_of(voice() + 0.02)["dc_offset"] == pytest.approx(0.02, abs=2e-3)
    edited = voice()
    edited[4000:9000] += 0.05
    assert traits_of(edited)["dc_offset"] < 5e-3


def test_bandwidth_and_roll_off_follow_a_filter():
    from scipy.signal import firwin, lfilter

    wave = lfilter(firwin(401, 3000, fs=RATE, window=("kaiser", 10)), 1, voice(2 * RATE))
    found = traits_of(wave)
    assert 2300 < found["rolloff_hz"] < 2800 and 2900 < found["bandwidth_hz"] < 3300
    assert traits_of(voice())["bandwidth_hz"] == 8000


def test_clipped_samples_and_jumps_are_counted():
    wave = voice()
    wave[100:260] = 1
    assert traits_of(wave)["clipped_share"] == pytest.approx(160 / RATE)
    time = np.arange(RATE) / RATE
    smooth = 0.5 * np.sin(2 * np.pi * 150 * time)
    assert traits_of(smooth)["sound_jumps"] == 0
    for at in (4000, 9000):  # near the peaks of the sine
        smooth[at:] = -smooth[at:] + 0.3
    assert traits_of(smooth)["sound_jumps"] == 2


class Sketch:
    """A picture whose sketch is one grey level."""

    def __init__(self, level):
        self.level = level

    def sketch(self):
        return np.full((18, 32), self.level, np.float32)


def shown(levels):
    return [(k / 25, (k + 1) / 25, Sketch(level)) for k, level in enumerate(levels)]


def test_repeated_and_frozen_pictures_are_counted():
    pictures = shown([5, 5, 5, 6, 7, 7, 8, 9, 9])
    pictures.append((8 / 25, 12 / 25, pictures[-1][2]))  # the last one again, with a later end
    found = content.picture_traits(pictures)
    assert (found["first_repeated"], found["last_repeated"]) == (2, 1)
    assert found["frozen_share"] == pytest.approx(4 / 8)
    assert found["picture_rate"] == pytest.approx(9 / 12 * 25)
    still = content.picture_traits(shown([4, 4, 4]))
    assert still["first_repeated"] == still["last_repeated"] == 2 and still["frozen_share"] == 1
    assert content.picture_traits([]) == {}
    assert content.picture_traits(shown([4]))["picture_jumps"] == 0


def test_picture_jumps_are_changes_far_above_their_neighbours():
    levels = np.cumsum([1.0] * 20 + [30.0] + [1.0] * 20 + [25.0] + [1.0] * 10)
    assert content.picture_traits(shown(levels))["picture_jumps"] == 2
    assert content.picture_traits(shown(20 * np.arange(30)))["picture_jumps"] == 0


def test_a_clip_without_a_stream_lacks_its_part(tmp_path):
    wave = voice()[None]
    both = write_media(tmp_path / "a.mkv", picture(gray(range(40, 65))), sound(wave))
    found = content.content_traits(both)
    names = {*content.SOUND, *content.PICTURE, *content.CONTAINER, *content.TEXTS}
    assert set(found) == names and found["picture_rate"] == pytest.approx(25)
    silent = write_media(tmp_path / "b.mkv", picture(gray(range(40, 65))))
    assert set(content.content_traits(silent)) == names - {*content.SOUND}
    heard = write_media(tmp_path / "c.wav", sound(wave, codec="pcm_s16le"))
    assert set(content.content_traits(heard)) == names - {*content.PICTURE}
    (tmp_path / "d.mp4").write_bytes(b"no media")
    with pytest.raises(MediaError):
        content.content_traits(tmp_path / "d.mp4")
