"""AVEmbeddings: crops in step with their segments, windows, and proposals back in seconds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klassify.data.av_embeddings import AVEmbeddings, Stream
from klassify.models.av_spans import AVSpans


def numbered(n_frames, missing=()):
    """Each frame holds its middle on the timeline, in frames of sound."""
    clip = {}
    for name, step in (("audio", 1), ("visual", 2)):
        n = 0 if name in missing else n_frames // step
        middle = (np.arange(n) + 0.5) * step
        clip[name] = Stream(middle[:, None].astype(np.float16), np.ones(n, bool))
    return clip


def target(*segments):
    one = np.array(segments, float).reshape(-1, 2)
    return one, (one, one[:0])


@pytest.mark.parametrize("warp", [0.0, 0.1])
def test_segments_move_with_their_crop(warp):
    """Interpolated at a segment's edges, the streams say where these are in the clip."""
    data = AVEmbeddings(window=64, stride=32, warp=warp)
    starts, sizes = set(), set()
    for seed in range(40):
        item = data.example(numbered(300), target([2.0, 2.3]), np.random.default_rng(seed))
        middle = np.arange(64) + 0.5
        starts.add(round(float(item["audio"][0, 0])))
        sizes.add(round(float(item["audio"][:, 0].diff().mean()), 3))
        for start, end in item["segments"].tolist():
            for edge, seconds in ((start, 2.0), (end, 2.3)):
                if not 0.5 < edge < 63.5:
                    continue  # cut off by the crop
                place = np.interp(edge, middle, item["audio"][:, 0].numpy())
                assert place == pytest.approx((seconds - 0.0025) / 0.02, abs=0.15)
        seen = item["visual"][:, 0] - item["audio"][:, 0].reshape(-1, 2).mean(dim=1)
        assert seen.abs().max() < 0.3
        assert len(item["visual_segments"]) == 0
        assert torch.equal(item["segments"], item["audio_segments"])
    assert len(starts) > 10 and (len(sizes) > 10) == bool(warp)


def test_most_crops_of_fakes_hold_a_whole_segment():
    data = AVEmbeddings(window=64, stride=32, warp=0.0, whole=0.7)
    whole = 0
    for seed in range(300):
        item = data.example(numbered(600), target([2.0, 2.3]), np.random.default_rng(seed))
        (rows,) = item["segments"].tolist() or [[0, 0]]
        whole += rows[1] - rows[0] == pytest.approx(15, abs=1e-3)
    assert 0.68 < whole / 300 < 0.85


def test_a_segment_that_is_mostly_outside_is_left_out():
    data = AVEmbeddings(window=64, stride=32, warp=0.0, whole=0.0, kept=0.5)
    shares = set()
    for seed in range(300):
        item = data.example(numbered(200), target([1.0, 2.0]), np.random.default_rng(seed))
        for start, end in item["segments"].tolist():
            assert 0 <= start < end <= 64
            shares.add(round((end - start) / 50, 1))
    assert min(shares) == 0.5 and max(shares) == 1.0


@pytest.mark.parametrize("missing", ["audio", "visual"])
def test_a_missing_stream_is_zero_and_invalid(missing):
    data = AVEmbeddings(window=64, stride=32)
    item = data.example(numbered(300, [missing]), target(), np.random.default_rng(0))
    assert not item[missing].any() and not item[f"{missing}_valid"].any()
    other = "visual" if missing == "audio" else "audio"
    assert item[f"{other}_valid"].all()
    for window in data.cut(numbered(300, [missing])):
        assert not window.inputs[f"{missing}_valid"].any()


@pytest.mark.parametrize("n_frames", [2, 7, 63, 64, 65, 200, 301])
def test_windows_cover_every_frame(n_frames):
    data = AVEmbeddings(window=64, stride=32)
    covered = np.zeros(n_frames + 1, bool)
    clip = {"audio": numbered(n_frames)["audio"], "visual": numbered(n_frames)["visual"]}
    for window in data.cut(clip):
        first = round((window.start_s - 0.0025) / 0.02)
        there = window.inputs["valid"]
        assert window.inputs["audio"][0, 0] == first + 0.5 and first % 2 == 0
        assert len(there) % 2 == 0 and len(window.inputs["visual"]) == len(there) // 2
        covered[first : first + int(there.sum())] = True
    assert covered[:n_frames].all()


class Oracle(torch.nn.Module):
    """Each point proposes its own frames, from 1 stride before it to 2 behind it."""

    levels = 4

    def spans(self, batch):
        points = AVSpans(1, 1, dim=16, levels=4, residuals=False).points(batch["valid"].shape[1])
        place = batch["audio"][..., 0, 0][:, None] - 0.5  # where the window begins
        score = 1 / (points.stride + points.time + place)
        columns = [points.time - points.stride, points.time + 2 * points.stride]
        columns = [column.expand_as(score) for column in columns]
        return torch.stack([*columns, score, score, score], dim=-1)


@pytest.mark.parametrize("n_frames", [40, 64, 200])
def test_each_point_is_proposed_once_in_seconds_of_the_clip(n_frames):
    data = AVEmbeddings(window=64, stride=32)
    cut = data.cut(numbered(n_frames))
    batch = data.collate([window.inputs for window in cut])
    starts = [round((window.start_s - 0.0025) / 0.02) for window in cut]
    rows = data.join(data.outputs(Oracle(), batch), np.array(starts), n_frames)
    found = rows[:, 1:].reshape(-1, 3)
    found = found[found[:, 0] > 0]
    wanted = []
    for level in range(4):
        for place in range(0, n_frames, 2**level):
            if level and place + 2**level // 2 >= n_frames:
                continue
            time, stride = place + 0.5, 2**level
            edges = 0.0025 + 0.02 * np.array([time - stride, time + 2 * stride])
            wanted.append((1 / (stride + time), *edges))
    assert len(found) == len(wanted)
    order = lambda rows: sorted(map(tuple, np.round(rows, 5)))  # noqa: E731
    np.testing.assert_allclose(order(found), order(wanted), atol=1e-3)
