"""frames.py against integer arithmetic, brute force and the published boundary labels."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
from places import GOLDENS

from klassify.grid import frames
from klassify.grid.frames import ALLOWED, FIRST, FRAME_S, LAST, TAGS, O


def tag_string(tags):
    return "".join(TAGS[tag] for tag in tags)


def random_segments_ms(rng, n_frames):
    """A few segments in whole milliseconds, possibly overlapping."""
    starts = rng.integers(0, n_frames * 40, rng.integers(0, 6))
    return [(int(s), int(min(s + rng.integers(20, 900), n_frames * 40))) for s in starts]


def test_labels_equal_any_overlap_in_integer_milliseconds():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n_frames = int(rng.integers(1, 120))
        milliseconds = random_segments_ms(rng, n_frames)
        wanted = [
            any(s < 40 * (k + 1) and e > 40 * k for s, e in milliseconds) for k in range(n_frames)
        ]
        labels = frames.encode_labels([(s / 1000, e / 1000) for s, e in milliseconds], n_frames)
        np.testing.assert_array_equal(labels, wanted)


def test_grid_aligned_segments_are_exact_at_every_frame():
    """No float noise may add a frame on either side, far into a long clip either."""
    first = np.arange(0, 16_000)
    for hop_s in (0.04, 0.02, 0.16):
        for length in (1, 2, 7):
            spans = [
                frames.frame_spans([(k * hop_s, (k + length) * hop_s)], 20_000, hop_s=hop_s)[0]
                for k in first[::13]
            ]
            np.testing.assert_array_equal(spans, np.stack([first, first + length], axis=1)[::13])


def test_half_frames_and_shortest_segments():
    assert frames.frame_spans([(5.74, 5.78)], 250).tolist() == [[143, 145]]
    # 20 ms, the shortest of the data set
    assert frames.frame_spans([(0.05, 0.07)], 250).tolist() == [[1, 2]]
    assert frames.frame_spans([(0.08, 0.08)], 250).tolist() == [[2, 3]]


def test_spans_are_clipped_and_merged_where_they_share_a_frame():
    assert frames.frame_spans([(9.9, 10.3), (11.0, 12.0)], 250).tolist() == [[247, 250]]
    assert frames.frame_spans([(0.4, 0.8), (0.0, 0.4)], 250).tolist() == [[0, 10], [10, 20]]
    assert frames.frame_spans([(0.0, 0.41), (0.42, 0.8)], 250).tolist() == [[0, 20]]
    assert frames.frame_spans([(0.0, 2.0), (0.4, 0.8), (1.96, 2.4)], 250).tolist() == [[0, 60]]
    assert frames.frame_spans([], 250).shape == (0, 2)


def test_labels_and_runs_are_inverse():
    for bits in itertools.product([0, 1], repeat=8):
        runs = re.finditer("1+", "".join(map(str, bits)))
        spans = np.array([run.span() for run in runs]).reshape(-1, 2)
        assert frames.encode_labels(spans * FRAME_S, 8).tolist() == list(bits)


@pytest.mark.parametrize("case", json.loads((GOLDENS / "bam.json").read_text())["boundary_labels"])
def test_boundary_labels_equal_the_published(case):
    fake = np.array([digit == "0" for digit in case["frames"]])  # published: 1 = bona fide
    wanted = [int(digit) for digit in case["boundary"]]
    np.testing.assert_array_equal(frames.boundary_labels(fake), wanted)
    np.testing.assert_array_equal(frames.boundary_labels(np.stack([fake, fake])), [wanted, wanted])


def test_tags_of_one_two_and_more_frames():
    tags = frames.encode_tags([(0.04, 0.08), (0.12, 0.20), (0.24, 0.40)], 12)
    assert tag_string(tags) == "OBOBLOBIILOO"
    touching = frames.encode_tags([(0.0, 0.04), (0.04, 0.08), (0.08, 0.2)], 5)
    assert tag_string(touching) == "BBBIL"


def test_tags_round_trip_on_random_segments():
    rng = np.random.default_rng(1)
    for _ in range(300):
        n_frames = int(rng.integers(1, 120))
        fakes = np.array(random_segments_ms(rng, n_frames)).reshape(-1, 2) / 1000
        spans = frames.frame_spans(fakes, n_frames)
        tags = frames.encode_tags(fakes, n_frames)
        np.testing.assert_array_equal(frames.decode_tags(tags), spans)
        np.testing.assert_array_equal(tags != O, frames.encode_labels(fakes, n_frames).astype(bool))
        np.testing.assert_array_equal(frames.encode_tags(spans * FRAME_S, n_frames), tags)


@pytest.mark.parametrize("tags", ["I", "BI", "OL", "BIO", "BIB", "BLI", "BLL", "OI"])
def test_decode_refuses_broken_segments(tags):
    with pytest.raises(ValueError, match=tags):
        frames.decode_tags(np.array([TAGS.index(tag) for tag in tags]))
    assert frames.decode_tags(np.array([], int)).shape == (0, 2)


def brute_force(log_probs):
    """The best of all sequences that consist of whole segments."""

    def whole(tags):
        return (
            FIRST[tags[0]] and LAST[tags[-1]] and all(ALLOWED[a, b] for a, b in zip(tags, tags[1:]))
        )

    ways = filter(whole, itertools.product(range(4), repeat=len(log_probs)))
    return max(ways, key=lambda tags: sum(frame[tag] for frame, tag in zip(log_probs, tags)))


def test_viterbi_equals_brute_force():
    rng = np.random.default_rng(2)
    for _ in range(60):
        logits = rng.normal(0, 2, (int(rng.integers(1, 7)), 4))
        log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        np.testing.assert_array_equal(frames.viterbi(log_probs), brute_force(log_probs))


def test_viterbi_of_a_batch_ignores_padding():
    rng = np.random.default_rng(3)
    log_probs, lengths = rng.normal(0, 2, (40, 30, 4)), rng.integers(0, 31, 40)
    tags = frames.viterbi(log_probs, lengths)
    for clip, length, row in zip(log_probs, lengths, tags):
        np.testing.assert_array_equal(row[:length], frames.viterbi(clip[:length]))
        assert (row[length:] == O).all()


def test_viterbi_repairs_certain_but_broken_tags():
    """Probabilities of exactly 0 and 1 that form no whole segments still decode."""
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.eye(4)[[TAGS.index(tag) for tag in "OOIIILOO"]])
    assert tag_string(frames.viterbi(log_probs)) in ("OOBIILOO", "OBIIILOO")


def test_covered_share_equals_counting_milliseconds():
    rng = np.random.default_rng(1)
    for _ in range(100):
        n_frames = int(rng.integers(1, 40))
        milliseconds = random_segments_ms(rng, n_frames)
        fake = np.zeros(40 * n_frames + 5000, bool)
        for start, end in milliseconds:
            fake[start:end] = True
        for hop, offset in ((40, 0), (20, 0), (20, 3), (10, 7)):
            wanted = [fake[offset + hop * t :][:hop].mean() for t in range(n_frames)]
            share = frames.covered_share(
                [(s / 1000, e / 1000) for s, e in milliseconds],
                n_frames,
                hop_s=hop / 1000,
                offset_s=offset / 1000,
            )
            np.testing.assert_allclose(share, wanted, atol=1e-5)


def test_edge_targets_equal_a_loop_over_frames():
    times = [0.031, 0.5]
    found = frames.edge_targets(times, 30, hop_s=0.02, offset_s=0.0025)
    for t, value in enumerate(found):
        centre = 0.0025 + 0.02 * t + 0.01
        nearest = min(abs(centre - time) for time in times)
        assert value == pytest.approx(np.exp(-((nearest / 0.01) ** 2) / 2), abs=1e-6)
    assert not frames.edge_targets([], 5).any()


GRIDS = [(0.04, 0.0), (0.02, 0.0), (0.02, 0.0025), (0.01, 0.0075)]


@pytest.mark.parametrize(("hop_s", "offset_s"), GRIDS)
def test_labels_and_tags_of_any_grid_are_where_shares_are(hop_s, offset_s):
    rng = np.random.default_rng(4)
    step_s, n_frames = 0.0005, 60
    for _ in range(20):
        start = np.round(rng.uniform(-0.1, n_frames * hop_s, 4) / step_s) * step_s
        segments = np.stack([start, start + step_s * rng.integers(1, 300, 4)], axis=1)
        grid = {"hop_s": hop_s, "offset_s": offset_s}
        share = frames.covered_share(segments, n_frames, **grid)
        labels = frames.encode_labels(segments, n_frames, **grid)
        np.testing.assert_array_equal(labels, share > 1e-6)
        np.testing.assert_array_equal(frames.encode_tags(segments, n_frames, **grid) > 0, labels)


def test_the_picture_in_the_middle_of_a_frame():
    np.testing.assert_array_equal(frames.pictures_at(4), [0, 1, 2, 3])
    np.testing.assert_array_equal(frames.pictures_at(5, hop_s=0.02), [0, 0, 1, 1, 2])
    shifted = frames.pictures_at(9, hop_s=0.01, offset_s=0.0075)
    np.testing.assert_array_equal(shifted, [0, 0, 0, 1, 1, 1, 1, 2, 2])
