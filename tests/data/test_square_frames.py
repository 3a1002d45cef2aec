"""Square frames: those of the window, for clips of any length, and a reason for damaged ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from videos import noise, write_lossless

from klassify import parts
from klassify.data.base import ClipWindows, Sources
from klassify.data.square_frames import SquareFrames, SquareReader
from klassify.features import shards
from klassify.features.mouth.kind import MouthRow
from klassify.lists import data_list

LENGTHS = (1, 3, 20, 47)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Sources:
    """Clips of LENGTHS frames, each of which tells its number, and one that is damaged."""
    root = tmp_path_factory.mktemp("square")
    (root / "media/val").mkdir(parents=True)
    for n in LENGTHS:
        images = noise(n, 16, 24)
        images[:, 4, 8] = np.arange(n)[:, None]
        write_lossless(root / f"media/val/{n}.mkv", images)
    damaged = (root / "media/val/20.mkv").read_bytes()[:300]
    (root / "media/val/cut.mkv").write_bytes(damaged)
    lines = ["file\tduration", *(f"{n}.mkv\t{n / 25}" for n in LENGTHS), "cut.mkv\t0.8"]
    (root / "lists").mkdir()
    (root / "lists/val.tsv").write_text("\n".join(lines) + "\n")
    assert len(data_list.read_list(root / "lists/val.tsv")) == 5
    rows = [MouthRow(f"{n}.mkv", 25.0, np.zeros((n, 8)), np.ones(n, bool)) for n in LENGTHS]
    rows[3].valid[8:18] = False  # one of its windows shows no face
    rows.append(MouthRow("cut.mkv", 25.0, np.zeros((20, 8)), np.ones(20, bool)))
    rows.append(MouthRow("bird.mkv", 25.0, np.zeros((5, 8)), np.zeros(5, bool), "no face", "face"))
    folder = root / "features/mouth/val"
    shards.write_part(folder, parts.Place(1, 1, 0, 1), rows, {"kind": "mouth"}, "")
    return Sources(root / "lists", root / "media", root / "features")


def numbers(frames: torch.Tensor) -> list[int]:
    return frames[:, 4, 4, 0].tolist()


@pytest.mark.parametrize("n", LENGTHS)
def test_windows_cover_the_clip_with_evenly_spaced_frames(sources, n):
    data = SquareFrames(size=16, frames=4, window=10, stride=8)
    cut = data.cut(data.reader(sources, "val").read(f"{n}.mkv"))
    starts = [*range(0, n - 9, 8)] or [0]
    starts += [n - 10] * (starts[-1] + 10 < n)
    if n == 47:
        starts.remove(8)
    assert [round(window.start_s * 25) for window in cut] == starts
    for start, window in zip(starts, cut):
        length = min(n, 10)
        assert window.end_s == pytest.approx((start + length) / 25)
        spaced = [start + round(i * (length - 1) / 3) for i in range(4)]
        assert numbers(window.inputs["frames"]) == spaced


def test_examples_are_windows_at_random_places(sources):
    data = SquareFrames(size=16, frames=3, window=5, stride=5)
    clip = data.reader(sources, "val").read("20.mkv")
    items = [data.example(clip, 1, np.random.default_rng(seed)) for seed in range(60)]
    firsts = {numbers(item["frames"])[0] for item in items}
    assert firsts == set(range(16))
    assert all(
        numbers(item["frames"]) == [k, k + 2, k + 4]
        for item in items
        for k in numbers(item["frames"])[:1]
    )
    batch = data.collate(items[:2])
    assert batch["frames"].shape == (2, 3, 16, 16, 3) and batch["label"].tolist() == [1, 1]


def test_a_damaged_clip_has_a_reason(sources):
    data = SquareFrames(size=16, frames=3)
    file, cut, reason = ClipWindows(data, sources, "val")["cut.mkv"]
    assert not cut and reason


def test_a_clip_without_a_face_has_no_answer(sources):
    data = SquareFrames(size=16, frames=3)
    assert ClipWindows(data, sources, "val")["bird.mkv"] == ("bird.mkv", [], "no face")
    shares = data.shares(sources, "val", sources.table("val"))
    np.testing.assert_allclose(shares, [1, 1, 1, 37 / 47, 1])


def test_frames_are_scaled_to_the_size(sources):
    clip = SquareReader(sources.media / "val", 8).read("3.mkv")
    assert clip.pick(np.array([[2, 0], [2, 2]])).shape == (2, 2, 8, 8, 3)


@pytest.mark.parametrize("arguments", [{"size": 0}, {"frames": 0}, {"stride": 0}, {"stride": 60}])
def test_impossible_sizes_are_refused(arguments):
    with pytest.raises(ValueError):
        SquareFrames(**arguments)
