"""Perturbed clips: what is left alone is copied, what changes is stored without loss."""

import hashlib

import numpy as np
import pytest

from klassify.corpus.encode import write_clip
from klassify.errors import KlassifyError
from klassify.media import decoder
from klassify.perturbation.clip import Change, Clip, perturb
from klassify.perturbation.families import FAMILIES
from klassify.perturbation.labels import changed_row


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Two seconds of moving stripes and a voice-like sound."""
    path = tmp_path_factory.mktemp("perturb") / "clip.mp4"
    rows, columns = np.mgrid[:64, :48]
    frames = [
        np.stack([127 + 100 * np.sin((rows + k * columns) / 9 + c) for c in range(3)], -1)
        for k in range(50)
    ]
    time = np.arange(32_000) / 16_000
    voice = sum(np.sin(2 * np.pi * 120 * n * time) / n for n in range(1, 20))
    wave = 0.1 * voice * (1 + np.sin(2 * np.pi * 4 * time))
    write_clip(path, [f.astype(np.uint8) for f in frames], wave.astype(np.float32), 18, 64_000)
    return Clip(path, "clip.mp4")


def frames_of(path):
    return np.stack(list(decoder.iter_frames(path))).astype(int)


def row_of(change, segments, modify_type="both_modified"):
    row = {"file": "clip.mp4", "modify_type": modify_type, "fake_segments": segments}
    row |= {"audio_fake_segments": segments[:1], "visual_fake_segments": segments[1:]}
    return changed_row(row, change)


def test_the_stream_left_alone_is_copied(clip, tmp_path):
    perturb(clip, "loudness", 1, tmp_path / "loud.mp4")
    assert np.array_equal(frames_of(tmp_path / "loud.mp4"), frames_of(clip.path))


def test_trim_cuts_both_ends_and_nothing_else(clip, tmp_path):
    change = perturb(clip, "trim", 3, tmp_path / "cut.mp4")
    assert (change.start_s, change.written.duration) == (0.2, pytest.approx(1.6))
    wave, frames = decoder.read_audio(tmp_path / "cut.mp4"), frames_of(tmp_path / "cut.mp4")
    assert np.abs(wave - clip.wave[3200:28_800]).max() < 1e-6
    difference = np.abs(frames - frames_of(clip.path)[5:45])
    assert difference.mean() < 0.5


def test_trim_leaves_half_of_a_short_clip(clip, tmp_path):
    change = perturb(clip, "trim", 5, tmp_path / "cut.mp4")
    assert change.start_s == pytest.approx(0.48)
    assert change.written.duration >= 1


def test_trim_moves_segments_and_labels(clip, tmp_path):
    change = perturb(clip, "trim", 3, tmp_path / "cut.mp4")
    row = row_of(change, [[0.1, 0.5], [1.5, 2.0]])
    assert row["fake_segments"] == [[0.0, 0.3], [1.3, 1.6]]
    assert (row["modify_type"], row["n_samples"], row["n_frames"]) == ("both_modified", 25_600, 40)
    assert row_of(change, [[0.0, 0.2], [1.0, 1.2]])["modify_type"] == "visual_modified"
    gone = row_of(change, [[0.0, 0.2]], "audio_modified")
    assert gone["modify_type"] == "real" and gone["fake_segments"] == []
    unknown = changed_row({"modify_type": "fake", "fake_segments": None}, change)
    assert unknown["modify_type"] == "fake"


@pytest.mark.parametrize("level, lufs", enumerate(FAMILIES["loudness"].values, 1))
def test_loudness_reaches_its_level(clip, tmp_path, level, lufs):
    import loudness

    change = perturb(clip, "loudness", level, tmp_path / "loud.mp4")
    wave = decoder.read_audio(tmp_path / "loud.mp4")
    assert loudness.integrated_loudness(wave, 16_000) == pytest.approx(lufs, abs=0.2)
    assert isinstance(change, Change) and change.start_s == 0 and change.speed == 1


def test_equal_clips_give_equal_bytes(clip, tmp_path):
    for family in FAMILIES:
        digests = set()
        for number in range(2):
            perturb(Clip(clip.path, clip.name), family, 4, tmp_path / f"{number}.mp4")
            digests.add(hashlib.sha256((tmp_path / f"{number}.mp4").read_bytes()).digest())
        assert len(digests) == 1, family


def test_unknown_families_and_levels_are_refused(clip, tmp_path):
    with pytest.raises(KlassifyError, match="no family 'mud'"):
        perturb(clip, "mud", 1, tmp_path / "x.mp4")
    with pytest.raises(KlassifyError, match="no level 6"):
        perturb(clip, "trim", 6, tmp_path / "x.mp4")
