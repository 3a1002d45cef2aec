"""Self-made fakes: segments say exactly where genuine material was replaced."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from klassify.augmentation import mouth_edits, sound_edits, splice

RATE = 16_000
SEEDS = range(30)


@pytest.fixture(scope="module")
def speech():
    """4 s of syllables: harmonics of a moving pitch, five a second, with pauses."""
    rng = np.random.default_rng(5)
    time = np.arange(4 * RATE) / RATE
    phase = 2 * np.pi * np.cumsum(130 + 25 * np.sin(2 * np.pi * 0.7 * time)) / RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 20))
    loudness = np.clip(np.sin(np.pi * 5 * time), 0, 1) * (time % 1.3 < 1.1)
    return (0.1 * voice * loudness + 0.002 * rng.standard_normal(len(time))).astype(np.float32)


@pytest.fixture(scope="module")
def talking():
    """100 crops of 96 x 96 with a dark mouth that opens and closes."""
    rng = np.random.default_rng(6)
    skin = cv2.GaussianBlur(rng.uniform(110, 200, (96, 96)).astype(np.float32), (0, 0), 3)
    crops = []
    for k in range(100):
        crop = skin.copy()
        height = 3 + 8 * abs(np.sin(0.45 * k + np.sin(0.11 * k)))
        cv2.ellipse(crop, (48, 51), (22, round(height)), 0, 0, 360, 50, -1)
        crops.append(crop + rng.normal(0, 1, (96, 96)))
    return np.clip(crops, 0, 255).astype(np.uint8)


def changed_spans(before, after, rate):
    """Runs of samples or frames that differ, in seconds, those at most 10 ms apart joined."""
    differs = (after != before).reshape(len(before), -1).any(axis=1)
    at = np.flatnonzero(differs)
    if not len(at):
        return np.zeros((0, 2))
    ends = np.flatnonzero(np.diff(at) > 0.01 * rate + 1)
    return np.column_stack([at[np.r_[0, ends + 1]], at[np.r_[ends, len(at) - 1]] + 1]) / rate


def covers(segment, spans, slack):
    return any(abs(segment - span).max() <= slack for span in spans)


@pytest.mark.parametrize("seed", SEEDS)
def test_wave_segments_are_where_samples_changed(speech, seed):
    edited, segments = splice.splice_wave(speech, np.random.default_rng(seed))
    assert edited.dtype == np.float32 and edited.shape == speech.shape and len(segments)
    np.testing.assert_allclose(segments * 1000, np.round(segments * 1000), atol=1e-9)
    assert (np.diff(segments.ravel()) > 0).all()
    spans = changed_spans(speech, edited, RATE)
    assert all(covers(segment, spans, 0.003) for segment in segments)
    assert 1 <= len(spans) <= len(splice.COUNTS)


@pytest.mark.parametrize("seed", SEEDS)
def test_crop_segments_are_whole_frames_that_changed(talking, seed):
    edited, segments = splice.splice_crops(talking, np.random.default_rng(seed))
    assert edited.dtype == np.uint8 and edited.shape == talking.shape and len(segments)
    np.testing.assert_allclose(segments * 25, np.round(segments * 25), atol=1e-9)
    differs = (edited != talking).any(axis=(1, 2))
    for start, end in np.round(segments * 25).astype(int):
        assert differs[start:end].mean() > 0.7
    corners = edited[:, :8], talking[:, :8]
    np.testing.assert_array_equal(*corners)


def test_colour_crops_are_edited_alike(talking):
    colour = np.repeat(talking[..., None], 3, axis=3)
    edited, segments = splice.splice_crops(colour, np.random.default_rng(0))
    assert edited.shape == colour.shape and len(segments) and (edited != colour).any()


def test_equal_seeds_give_equal_edits_and_inputs_stay(speech, talking):
    before = speech.copy(), talking.copy()
    for function, given in ((splice.splice_wave, speech), (splice.splice_crops, talking)):
        one, other = (function(given, np.random.default_rng(3)) for _ in range(2))
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
        assert not np.array_equal(one[0], function(given, np.random.default_rng(4))[0])
    np.testing.assert_array_equal(before[0], speech)
    np.testing.assert_array_equal(before[1], talking)


def test_real_examples_are_edited_as_often_as_fakes(speech, talking):
    for function, given, rate in (
        (splice.splice_wave, speech, RATE),
        (splice.splice_crops, talking, 25),
    ):
        counts = {}
        for share in (0.0, 1.0):
            made = [function(given, np.random.default_rng(seed), share) for seed in range(40)]
            assert all(bool(len(segments)) == bool(share) for _, segments in made)
            counts[share] = np.mean([len(changed_spans(given, e, rate)) for e, _ in made])
        assert abs(counts[0.0] - counts[1.0]) < 0.35


def test_share_is_the_probability_of_a_fake(speech):
    made = [splice.splice_wave(speech, np.random.default_rng(s), 0.3)[1] for s in range(100)]
    assert 0.2 < np.mean([len(segments) > 0 for segments in made]) < 0.42


def test_edits_keep_loudness(speech):
    for seed in SEEDS:
        edited, segments = splice.splice_wave(speech, np.random.default_rng(seed))
        for start, end in np.round(segments * RATE).astype(int):
            ratio = sound_edits.level(edited[start:end]) / sound_edits.level(speech[start:end])
            assert 0.5 < ratio < 1.8


def test_silence_and_short_clips_stay_real(talking):
    for wave in (np.zeros(RATE, np.float32), np.ones(800, np.float32)):
        edited, segments = splice.splice_wave(wave, np.random.default_rng(0))
        assert not len(segments)
        np.testing.assert_array_equal(edited, wave)
    edited, segments = splice.splice_crops(talking[:6], np.random.default_rng(0))
    assert segments.shape == (0, 2)


def test_frames_without_a_mouth_are_never_edited(talking):
    valid = np.arange(100) % 50 < 35
    for seed in SEEDS:
        edited, _ = splice.splice_crops(talking, np.random.default_rng(seed), valid=valid)
        np.testing.assert_array_equal(edited[~valid], talking[~valid])


def test_a_still_mouth_is_faked_by_warping_alone():
    still = np.repeat(np.arange(96, dtype=np.uint8)[None, :, None], 50, axis=0)
    still = np.repeat(still, 96, axis=2) * 2
    rng = np.random.default_rng(1)
    usable = np.ones(50, bool)
    names = {splice.fake_mouth(still.copy(), (10, 20), still, usable, rng) for _ in range(10)}
    assert names == {"warp"}


@pytest.mark.parametrize("kind", sound_edits.FAKES)
def test_each_sound_edit_has_the_length_and_differs(speech, kind):
    span = (12_000, 18_000)
    sound = sound_edits.FAKES[kind](speech, span, speech, np.random.default_rng(0))
    assert sound.shape == (6000,) and np.isfinite(sound).all()
    assert np.corrcoef(sound, speech[slice(*span)])[0, 1] < 0.98


@pytest.mark.parametrize("kind", mouth_edits.FAKES)
def test_each_mouth_edit_has_the_shape_and_differs(talking, kind):
    usable, rng = np.ones(100, bool), np.random.default_rng(0)
    mouth = mouth_edits.FAKES[kind](talking, (40, 52), usable, rng)
    assert mouth.shape == (12, 96, 96) and mouth.dtype == np.float32
    mask = mouth_edits.mouth_mask((96, 96), rng)
    assert mouth_edits.difference(talking, (40, 52), mouth, mask) > 1.0


def test_edges_move_to_pauses(speech):
    quiet = np.full(RATE, 0.5, np.float32)
    quiet[7000:7400] = 0
    begin, _ = sound_edits.at_pauses(quiet, (6800, 12_000))
    assert 7000 <= begin <= 7400
