"""Proposals against slow, obvious references; properties on random and on hostile frame scores."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from klassify.errors import KlassifyError
from klassify.grid.frames import (
    boundary_labels,
    covered_share,
    decode_tags,
    encode_labels,
    encode_tags,
    viterbi,
)
from klassify.localisation import proposals
from klassify.localisation.frame_scores import FrameScores, edge_times, merge_gaps, runs
from klassify.localisation.methods import METHODS, by_boundaries, by_viterbi
from klassify.localisation.soft_nms import soft_nms, top_per_clip

FRAME_S = 0.04


def frames_of(clips, boundary=None, log_tags=None, durations_s=None, hop_s=FRAME_S, offset_s=0.0):
    """FrameScores of a list of p_fake lists."""
    counts = np.array([len(clip) for clip in clips])
    return FrameScores(
        np.array([f"{i}.mp4" for i in range(len(clips))], dtype=object),
        np.append(0, np.cumsum(counts)),
        np.concatenate([np.asarray(clip, float) for clip in clips]),
        counts * hop_s if durations_s is None else np.asarray(durations_s, float),
        None if boundary is None else np.concatenate([np.asarray(b, float) for b in boundary]),
        None if log_tags is None else np.concatenate(log_tags),
        hop_s=hop_s,
        offset_s=offset_s,
    )


def random_frames(seed, n_clips=40, tags=False, boundary=False):
    """Clips of 0 to 60 frames; scores are smooth in some, all 0 or all 1 in others."""
    rng = np.random.default_rng(seed)
    clips, marks, logs = [], [], []
    for i in range(n_clips):
        n = int(rng.integers(0, 60)) if i % 7 else i // 7 % 2
        p = (
            np.convolve(rng.random(n + 4), np.ones(5) / 5, "valid")[:n] ** 2
            if i % 3
            else rng.random(n)
        )
        if i % 5 == 0:
            p = np.full(n, float(i % 2))
        clips.append(p)
        marks.append(rng.random(n))
        q = rng.dirichlet([3, 1, 1, 1], n).reshape(n, 4)
        logs.append(np.log(q))
        if tags:
            clips[-1] = 1 - q[:, 0]
    durations = [max(len(p) * FRAME_S - rng.choice([0, 0.013]), 0) for p in clips]
    return frames_of(clips, marks if boundary else None, logs if tags else None, durations)


KINDS = {"plain": {}, "boundary": {"boundary": True}, "tags": {"tags": True}}


def methods_of(kind):
    return [method for method in METHODS if method != "viterbi" or kind == "tags"]


def slow_soft_nms(rows, sigma, cap, min_score, t1=0.0, t2=0.0):
    """rows: [(start, end, score, index)] of one clip."""
    left, taken = sorted(rows, key=lambda row: (-row[2], row[0], row[3])), []
    while left and len(taken) < cap:
        best = max(left, key=lambda row: row[2])
        if best[2] < min_score:
            break
        left.remove(best)
        taken.append((best[3], best[2]))
        for i, (start, end, score, index) in enumerate(left):
            shared = max(0.0, min(end, best[1]) - max(start, best[0]))
            iou = shared / (end - start + best[1] - best[0] - shared)
            decays = sigma and iou > t1 + (t2 - t1) * (best[1] - best[0])
            left[i] = (start, end, score * (math.exp(-iou * iou / sigma) if decays else 1.0), index)
    return taken


@pytest.mark.parametrize(
    ("sigma", "cap", "min_score", "thresholds"),
    [
        (0.5, 50, 0.0, {}),
        (0.1, 5, 0.05, {}),
        (0.0, 3, 0.2, {}),
        (2.0, 1, 0.0, {}),
        (0.1, 50, 0.0, {"t1": 0.2, "t2": 0.4}),
        (0.7, 50, 0.0, {"t1": 0.9, "t2": 0.0}),
    ],
)
def test_soft_nms_equals_a_loop_over_clips_and_rows(sigma, cap, min_score, thresholds):
    rng = np.random.default_rng(3)
    n = 400
    clip = rng.integers(0, 25, n) * 2  # every other clip has none
    start = rng.uniform(0, 8, n).round(1)
    end, score = start + rng.uniform(0.1, 3, n).round(1), rng.random(n).round(2)  # with ties
    expected = []
    for c in range(50):
        rows = [(start[i], end[i], score[i], i) for i in np.flatnonzero(clip == c)]
        expected += slow_soft_nms(rows, sigma, cap, min_score, **thresholds)
    settings = {"sigma": sigma, "cap": cap, "min_score": min_score}
    taken, value = soft_nms(clip, start, end, score, **settings, **thresholds)
    assert [i for i, _ in expected] == taken.tolist()
    np.testing.assert_allclose(value, [s for _, s in expected], rtol=1e-12)


def with_proposals(frames, seed, n=3):
    """The frames with `n` random proposals each, some of no length, some beyond the clip."""
    rng = np.random.default_rng(seed)
    shape = (len(frames.p_fake), n)
    start = rng.uniform(0, 2, shape).round(2)
    end = start + rng.choice([0.0, 0.3, 1.1], shape)
    proposed = np.stack([rng.random(shape), start, end], axis=2)
    return dataclasses.replace(frames, proposed=proposed)


def test_a_models_own_proposals_equal_a_loop_over_clips():
    frames = with_proposals(random_frames(2), seed=5)
    settings = {"nms_sigma": 0.3, "nms_t1": 0.2, "nms_t2": 0.4, "cap": 20, "min_score": 0.1}
    found = proposals.propose(frames, "proposed", **settings)
    for clip, duration in enumerate(frames.durations_s):
        mine = frames.proposed[frames.offsets[clip] : frames.offsets[clip + 1]].reshape(-1, 3)
        rows = [(start, min(end, duration), score, i) for i, (score, start, end) in enumerate(mine)]
        rows = [row for row in rows if row[0] < row[1] and row[2] >= 0.1]
        wanted = slow_soft_nms(rows, 0.3, 20, 0.1, 0.2, 0.4)
        here = found.take(found.clip == clip)
        np.testing.assert_allclose(here.score, [score for _, score in wanted])
        np.testing.assert_allclose(here.start_s, [mine[i, 1] for i, _ in wanted])
        assert (here.end_s <= duration).all()


def test_votes_of_own_proposals_move_edges_and_nothing_else():
    frames = with_proposals(random_frames(2), seed=5)
    plain = proposals.propose(frames, "proposed", nms_sigma=0.3)
    voted = proposals.propose(frames, "proposed", nms_sigma=0.3, vote_iou=0.75)
    np.testing.assert_array_equal(voted.clip, plain.clip)
    np.testing.assert_array_equal(voted.score, plain.score)
    moved = np.abs(voted.start_s - plain.start_s)
    assert 0 < moved.max() <= 0.3
    alone = proposals.propose(frames, "proposed", nms_sigma=0.3, vote_iou=1.0)
    np.testing.assert_allclose(alone.start_s, plain.start_s)


def test_a_clip_without_own_proposals_can_get_one():
    frames = with_proposals(random_frames(2), seed=5)
    frames.proposed[:, :, 0] = 0.0
    assert not len(proposals.propose(frames, "proposed").clip)
    found = proposals.propose(frames, "proposed", at_least_one=True)
    assert found.clip.tolist() == np.flatnonzero(np.diff(frames.offsets)).tolist()


def test_own_proposals_are_refused_where_there_are_none():
    with pytest.raises(KlassifyError, match="proposed0_score"):
        proposals.propose(random_frames(2), "proposed")


def test_soft_nms_of_nothing_and_of_one():
    none = np.empty(0)
    taken, value = soft_nms(np.empty(0, int), none, none, none, sigma=0.5, cap=5)
    assert len(taken) == len(value) == 0
    taken, value = soft_nms(
        np.array([7]), np.array([1.0]), np.array([2.0]), np.array([0.3]), sigma=0.5, cap=5
    )
    assert taken.tolist() == [0] and value.tolist() == [0.3]


def test_the_best_of_each_clip():
    clip, score = np.array([2, 0, 2, 0, 2]), np.array([0.1, 0.5, 0.9, 0.5, 0.3])
    assert top_per_clip(clip, score, 2).tolist() == [1, 3, 2, 4]


def slow_runs(p, threshold, merge, drop):
    """(first, stop) of one clip by itertools.groupby."""
    spans, k = [], 0
    for above, group in itertools.groupby(p, key=lambda x: x >= threshold):
        n = len(list(group))
        if above:
            spans.append([k, k + n])
        k += n
    joined = spans[:1]
    for first, stop in spans[1:]:
        if first - joined[-1][1] <= merge:
            joined[-1][1] = stop
        else:
            joined.append([first, stop])
    return [span for span in joined if span[1] - span[0] >= drop]


@pytest.mark.parametrize(("merge", "drop"), [(0, 0), (2, 0), (1, 3), (4, 2)])
def test_threshold_equals_groupby(merge, drop):
    frames = random_frames(1)
    spans = METHODS["threshold"](
        frames, threshold=0.4, merge_s=merge * FRAME_S, drop_s=drop * FRAME_S
    )
    expected = []
    for low, high in itertools.pairwise(frames.offsets.tolist()):
        expected += [
            (low + a, low + b) for a, b in slow_runs(frames.p_fake[low:high], 0.4, merge, drop)
        ]
    assert list(zip(spans.first.tolist(), spans.stop.tolist())) == expected
    np.testing.assert_allclose(spans.score, [frames.p_fake[a:b].mean() for a, b in expected])


def test_context_mean_equals_slices():
    frames = random_frames(2)
    first, stop = runs(frames.p_fake >= 0.3, frames)
    for a, b, outer in zip(first, stop, frames.outer_mean(first, stop)):
        clip = np.searchsorted(frames.offsets, a, side="right") - 1
        low, high = frames.offsets[clip], frames.offsets[clip + 1]
        width = max(math.ceil(0.25 * (b - a)), 1)
        around = np.append(
            frames.p_fake[max(a - width, low) : a], frames.p_fake[b : min(b + width, high)]
        )
        assert outer == pytest.approx(around.mean() if len(around) else 0.0, abs=1e-12)


def test_smoothing_equals_means_of_slices():
    frames = random_frames(6)
    smooth = frames.smoothed(2).p_fake
    for low, high in itertools.pairwise(frames.offsets.tolist()):
        for k in range(low, high):
            assert smooth[k] == pytest.approx(
                frames.p_fake[max(k - 2, low) : min(k + 3, high)].mean(), abs=1e-12
            )
    assert frames.smoothed(0) is frames


def test_runs_and_merging_never_cross_clips():
    frames = frames_of([[0, 1], [1, 1], [], [1], [0]])
    first, stop = runs(frames.p_fake > 0.5, frames)
    assert list(zip(first, stop)) == [(1, 2), (2, 4), (4, 5)]
    assert [x.tolist() for x in merge_gaps(first, stop, frames.clip_of(first), 9)] == [
        [1, 2, 4],
        [2, 4, 5],
    ]


def test_edges_between_frames():
    frames = frames_of([[0, 0.25, 0.75, 1, 1, 0.2, 0]])
    at = {"first": np.array([2]), "stop": np.array([5]), "level": np.array([0.5])}
    start, end = edge_times(frames, **at, debias_s=0.0)
    # from 0.25 to 0.75 half way between the centres; from 1 down to 0.2 after 0.5 / 0.8 of a frame
    assert start[0] == pytest.approx(0.08) and end[0] == pytest.approx((4.5 + 0.5 / 0.8) * FRAME_S)
    start, end = edge_times(frames, **at, debias_s=0.02)
    assert start[0] == pytest.approx(0.10) and end[0] == pytest.approx((4.0 + 0.5 / 0.8) * FRAME_S)


def test_an_edge_at_the_clips_end_stays_and_no_span_vanishes():
    frames = frames_of([[1, 1, 0, 1, 0, 1]], durations_s=[0.21])
    first, stop = runs(frames.p_fake > 0.5, frames)
    start, end = edge_times(frames, first, stop, np.full(3, 0.5), 0.02)
    np.testing.assert_allclose(start, [0.0, 0.13, 0.2 + 0.005], atol=1e-12)
    np.testing.assert_allclose(end, [0.06, 0.15, 0.21], atol=1e-12)


def slow_watershed(p, level, tolerance):
    basins = slow_runs(p, level, 0, 0)
    spans = []
    for i, (first, stop) in enumerate(basins):
        filled = stop - first
        for a, b in basins[i + 1 :]:
            if (filled + b - a) / (b - first) < tolerance:
                break
            filled, stop = filled + b - a, b
        spans.append((first, stop))
    return spans


def test_watershed_equals_a_loop_over_basins():
    frames = random_frames(4)
    levels, tolerances = [0.1, 0.3, 0.5, 0.8], [0.4, 0.6, 0.9]
    spans = METHODS["watershed"](frames, levels=levels, tolerances=tolerances)
    expected = {
        (low + a, low + b)
        for low, high in itertools.pairwise(frames.offsets.tolist())
        for level in levels
        for tolerance in tolerances
        for a, b in slow_watershed(frames.p_fake[low:high], level, tolerance)
    }
    found = list(zip(spans.first.tolist(), spans.stop.tolist()))
    assert len(found) == len(set(found)) and set(found) == expected


def test_levels_score_contrast_and_list_each_span_once():
    frames = frames_of([[0, 0, 1, 1, 1, 1, 0, 0, 0], [0.2, 0.2, 0.6, 0.9, 0.2, 0.2]])
    spans = METHODS["multi_threshold"](frames, levels=[0.1, 0.3, 0.5, 0.7], context=1.0)
    assert spans.level[spans.first == 2].tolist() == [0.5]  # one span at four levels
    scores = dict(zip(zip(spans.first, spans.stop), spans.score))
    assert scores[2, 6] == 1.0 and scores[11, 13] == pytest.approx(0.75 - 0.2)
    # nothing around it
    assert scores[9, 15] == pytest.approx(np.mean([0.2, 0.2, 0.6, 0.9, 0.2, 0.2]))


def test_boundary_marks_find_both_ends():
    labels = np.array([[0, 0, 1, 1, 1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 0, 0, 1, 1, 1]])
    p = np.where(labels, 0.9, 0.1)
    frames = frames_of(p, boundary=np.where(boundary_labels(labels), 0.95, 0.02))
    found = proposals.propose(frames, "boundary_pairs", nms_sigma=0.0, debias_s=0.0)
    best = {
        (int(c), round(s / FRAME_S), round(e / FRAME_S))
        for c, s, e, score in zip(*found)
        if score > 0.7
    }
    assert best == {(0, 2, 6), (0, 8, 9), (1, 0, 2), (1, 7, 10)}


def tag_log_probs(fake, n_frames, strength=0.9):
    tags = encode_tags(fake, n_frames)
    return np.log(np.where(np.eye(4)[tags] > 0, strength, (1 - strength) / 3))


def span_scores(probs, spans):
    """sqrt(p_B(first) p_L(last)) times the mean of 1 - p_O; one frame: p_B at both ends."""
    scores = []
    for first, stop in spans:
        last = probs[stop - 1, 3 if stop - first > 1 else 1]
        scores.append(
            np.sqrt(probs[first, 1] * last) * np.mean([1 - p[0] for p in probs[first:stop]])
        )
    return scores


def test_certain_tags_score_one_for_every_length():
    tags = encode_tags([(0.04, 0.08), (0.12, 0.20), (0.24, 0.40)], 12)
    logs = np.log(np.clip(np.eye(4)[tags], 1e-9, 1))
    spans = by_viterbi(frames_of([1 - np.exp(logs[:, 0])], log_tags=[logs]))
    np.testing.assert_allclose(spans.score, 1, atol=1e-6)


def test_viterbi_segments_and_scores_are_those_clip_by_clip():
    rng = np.random.default_rng(5)
    logs = [np.log(rng.dirichlet([2, 1, 1, 1], n)) for n in (30, 1, 17, 30, 5)]
    logs.insert(2, np.empty((0, 4)))
    frames = frames_of([1 - np.exp(x[:, 0]) for x in logs], log_tags=logs)
    spans = by_viterbi(frames)
    at = 0
    for i, clip_logs in enumerate(logs):
        expected = decode_tags(viterbi(clip_logs)) if len(clip_logs) else np.empty((0, 2), int)
        mine = np.arange(at, at := at + len(expected))
        np.testing.assert_array_equal(spans.first[mine] - frames.offsets[i], expected[:, 0])
        np.testing.assert_array_equal(spans.stop[mine] - frames.offsets[i], expected[:, 1])
        np.testing.assert_allclose(spans.score[mine], span_scores(np.exp(clip_logs), expected))
    assert at == len(spans.first)


def test_tag_peaks_pair_up_and_hold_what_viterbi_finds():
    fake = [[0.4, 0.8], [1.2, 1.22]]
    logs = [tag_log_probs(fake, 50), tag_log_probs([], 20)]
    frames = frames_of([1 - np.exp(x[:, 0]) for x in logs], log_tags=logs)
    spans = by_boundaries(frames)
    found = set(zip(spans.first.tolist(), spans.stop.tolist()))
    assert {(10, 20), (30, 31)} <= found
    best = np.argsort(-spans.score)[:2]
    assert set(zip(spans.first[best].tolist(), spans.stop[best].tolist())) == {(10, 20), (30, 31)}


@pytest.mark.parametrize(
    ("kind", "method"), [(kind, method) for kind in KINDS for method in methods_of(kind)]
)
@pytest.mark.parametrize("at_least_one", [False, True])
def test_proposals_are_finite_ordered_few_and_inside_the_clip(kind, method, at_least_one):
    for seed in range(5):
        frames = random_frames(seed, **KINDS[kind])
        found = proposals.propose(
            frames, method, smooth_s=0.04 * seed, cap=7, at_least_one=at_least_one
        )
        assert all(np.isfinite(column).all() for column in found)
        assert (found.start_s >= 0).all() and (found.start_s < found.end_s).all()
        assert (found.end_s <= frames.durations_s[found.clip]).all()
        assert (found.score >= 0).all() and (found.score <= 1).all()
        assert (np.diff(found.clip) >= 0).all() and np.bincount(found.clip).max() <= 7
        assert (np.diff(found.score)[np.diff(found.clip) == 0] <= 0).all()
        if at_least_one:
            assert set(np.flatnonzero(np.diff(frames.offsets))) == set(found.clip)


@pytest.mark.parametrize("method", METHODS)
def test_a_clips_proposals_do_not_depend_on_the_other_clips(method):
    frames = random_frames(9, tags=True)
    together = proposals.propose(frames, method, at_least_one=True)
    for clip in range(0, len(frames.files), 3):
        alone = proposals.propose(frames.take(np.array([clip])), method, at_least_one=True)
        mine = together.take(together.clip == clip)
        for a, b in zip(alone[1:], mine[1:]):
            np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_hostile_clips(method):
    logs = [np.log(np.full((n, 4), 0.25)) for n in (0, 1, 1, 30, 30, 0)]
    clips = [[], [1], [0], np.ones(30), np.zeros(30), []]
    frames = frames_of(clips, log_tags=logs)
    found = proposals.propose(frames, method)
    assert all(np.isfinite(column).all() for column in found)
    assert (found.start_s < found.end_s).all()
    if method in ("threshold", "multi_threshold", "watershed"):
        assert found.clip.tolist() == [1, 3]  # one frame, and the whole clip
        np.testing.assert_allclose([found.start_s[1], found.end_s[1]], [0, 1.2])
    nothing = proposals.propose(
        frames_of([[], []], log_tags=[np.empty((0, 4))] * 2), method, at_least_one=True
    )
    assert len(nothing.clip) == 0


def test_the_run_around_the_top_frame_replaces_no_proposals():
    frames = frames_of([[0.1, 0.1, 0.3, 0.2, 0.1, 0.29, 0.0], [0, 0, 0], [0.9, 0.0]])
    found = proposals.propose(frames, at_least_one=True, debias_s=0.0)
    assert found.clip.tolist() == [0, 1, 2]
    assert found.start_s[0] == pytest.approx(1.75 * FRAME_S)
    assert found.end_s[0] == pytest.approx(4 * FRAME_S)
    assert found.score[0] == pytest.approx(0.25) and found.score[1] == 0
    assert (found.start_s[1], found.end_s[1]) == (0, pytest.approx(0.12))


def test_perfect_labels_of_100_000_segments():
    """Any-overlap labels: half a frame off each side brings four of five above IoU 0.9."""
    rng = np.random.default_rng(0)
    n, per_clip = 100_000, 5
    lengths = rng.lognormal(np.log(0.30), 0.44, n).reshape(-1, per_clip)
    gaps = rng.uniform(0.2, 1.0, lengths.shape)
    end = np.cumsum(lengths + gaps, axis=1)
    start = end - lengths
    n_frames = np.ceil(end[:, -1] / FRAME_S).astype(int) + 5
    offsets = np.append(0, np.cumsum(n_frames))
    steps = np.zeros(offsets[-1] + 1, int)
    first = np.floor(start / FRAME_S).astype(int) + offsets[:-1, None]
    stop = np.ceil(end / FRAME_S).astype(int) + offsets[:-1, None]
    np.add.at(steps, first.ravel(), 1)
    np.add.at(steps, stop.ravel(), -1)
    files = np.arange(len(n_frames)).astype(str).astype(object)
    frames = FrameScores(files, offsets, np.cumsum(steps)[:-1].astype(float), n_frames * FRAME_S)

    def share_found(method, **settings):
        found = proposals.propose(frames, method, **settings)
        by_time = np.lexsort((found.start_s, found.clip))
        assert len(by_time) == n  # one proposal a segment, so that they pair up in order
        low, high = found.start_s[by_time], found.end_s[by_time]
        s, e = start.ravel(), end.ravel()
        return np.mean(
            (np.minimum(high, e) - np.maximum(low, s)) / (np.maximum(high, e) - np.minimum(low, s))
            >= 0.9
        )

    assert 0.40 < share_found("threshold", debias_s=0.0) < 0.44
    for method in ("threshold", "multi_threshold"):
        assert share_found(method) >= 0.795


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("thresh", {}, "no method 'thresh'"),
        ("threshold", {"levels": [0.5]}, "no setting 'levels'"),
        ("threshold", {"threshold": "0.5"}, "a number from"),
        ("threshold", {"threshold": math.nan}, "a number from"),
        ("threshold", {"cap": 51}, "from 1 to 50"),
        ("threshold", {"cap": 2.5}, "a whole number"),
        ("threshold", {"at_least_one": 1}, "true or false"),
        ("multi_threshold", {"levels": []}, "a list of numbers"),
        ("multi_threshold", {"levels": [0.5, 2]}, "a list of numbers"),
        ("merge", {"platt": [1, 2]}, "pairs"),
        ("merge", {"platt": [[1.0], [1.0]]}, "pairs"),
        ("merge", {"platt": [[1, 2, 3], [1, 2, 3]]}, "pairs"),
        (["a"], {}, r"no method \['a'\]"),
    ],
)
def test_settings_that_do_not_exist_are_refused(method, settings, message):
    with pytest.raises(KlassifyError, match=message):
        proposals.complete_settings(method, settings)


def test_viterbi_without_tags_is_refused():
    with pytest.raises(KlassifyError, match="tags"):
        proposals.propose(frames_of([[0.5]]), "viterbi")


@pytest.mark.parametrize("p", [np.array([0.1, np.nan]), np.array([0.1, 1.1]), np.array([0.1])])
def test_impossible_frame_scores_are_refused(p):
    with pytest.raises(ValueError, match=r"p_fake|offsets"):
        FrameScores(np.array(["a"]), np.array([0, 2]), p, np.array([1.0]))


def as_candidates(rows):
    clip, start, end, score = zip(*rows)
    return proposals.Candidates(np.array(clip), np.array(start), np.array(end), np.array(score))


def test_merging_weighs_keeps_origins_and_decays_overlaps():
    audio = as_candidates([(0, 1.0, 2.0, 0.8), (1, 0.0, 1.0, 0.5)])
    video = as_candidates([(0, 1.0, 2.0, 0.9), (0, 3.0, 4.0, 0.4)])
    found, rows = proposals.merge([audio, video], weights=[1.0, 0.5], nms_sigma=0.5)
    assert rows.tolist() == [0, 3, 2, 1] and found.clip.tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(found.score, [0.8, 0.2, 0.45 * math.exp(-2), 0.5])
    alone, rows = proposals.merge([audio, video], weights=[1.0, 0.0])
    assert rows.tolist() == [0, 1]
    np.testing.assert_allclose(alone.score, audio.score)
    with pytest.raises(KlassifyError, match="as many weights"):
        proposals.merge([audio, video], weights=[1.0])


def test_platt_of_minus_one_and_zero_changes_nothing():
    part = as_candidates([(0, 0.0, 1.0, 0.7), (0, 2.0, 3.0, 0.2)])
    found, _ = proposals.merge(
        [part, part.take(np.array([], int))], platt=[[-1.0, 0.0], [-2.0, 1.0]]
    )
    np.testing.assert_allclose(found.score, [0.7, 0.2])


def test_random_proposals_have_the_true_lengths_and_stay_inside():
    rng = np.random.default_rng(0)
    durations, n_rows = np.array([5.0, 0.2, 9.0, 3.0]), np.array([2000, 10, 0, 2000])
    lengths = np.array([0.1, 0.3, 0.5])
    found = proposals.random_proposals(lengths, n_rows, durations, rng)
    assert np.bincount(found.clip, minlength=4).tolist() == n_rows.tolist()
    assert (found.start_s >= 0).all() and (found.end_s <= durations[found.clip]).all()
    long = (found.end_s - found.start_s)[found.clip != 1]
    np.testing.assert_allclose([np.mean(np.isclose(long, x)) for x in lengths], 1 / 3, atol=0.04)
    assert (np.diff(found.score)[np.diff(found.clip) == 0] <= 0).all()


def test_proposals_as_the_evaluator_takes_them():
    found = as_candidates([(2, 1.0, 2.0, 0.1), (0, 3.0, 4.0, 0.5), (2, 0.0, 1.0, 0.6)])
    given = found.select(np.array(["a", "b", "c"]))
    assert given.offsets.tolist() == [0, 1, 1, 3]
    np.testing.assert_allclose(given.rows, [[0.5, 3, 4], [0.6, 0, 1], [0.1, 1, 2]])


@pytest.mark.parametrize(
    ("hop_s", "offset_s"), [(0.04, 0.0), (0.02, 0.0), (0.02, 0.0025), (0.01, 0.0), (0.01, 0.0075)]
)
def test_segments_come_back_from_perfect_scores(hop_s, offset_s):
    rng = np.random.default_rng(5)
    duration = 4.011
    n_frames = math.ceil((duration - offset_s) / hop_s)
    start = rng.uniform(0.1, 3, 300)
    segments = np.stack([start, start + rng.uniform(2.1 * hop_s, 0.8, 300)], axis=1)

    def found(encode):
        p = [encode([one], n_frames, hop_s=hop_s, offset_s=offset_s) for one in segments]
        frames = frames_of(p, durations_s=[duration] * len(p), hop_s=hop_s, offset_s=offset_s)
        return proposals.propose(frames, nms_sigma=0.0, debias_s=0.02 * (encode is encode_labels))

    for encode, within_s in ((encode_labels, hop_s / 2), (covered_share, 0.09 * hop_s)):
        got = found(encode)
        np.testing.assert_array_equal(got.clip, np.arange(len(segments)))
        times = np.stack([got.start_s, got.end_s], axis=1)
        assert np.abs(times - segments).max() <= within_s + 1e-6


def test_spans_at_the_ends_of_a_clip_reach_them_on_any_grid():
    for hop_s, offset_s in ((0.02, 0.0025), (0.01, 0.0075)):
        frames = frames_of([[1, 1, 0, 1, 1]], durations_s=[5 * hop_s], hop_s=hop_s)
        frames = dataclasses.replace(frames, offset_s=offset_s)
        got = proposals.propose(frames, merge_s=0.0, nms_sigma=0.0, debias_s=0.0)
        np.testing.assert_allclose(got.start_s, [0, 3 * hop_s + offset_s])
        np.testing.assert_allclose(got.end_s, [2 * hop_s + offset_s, 5 * hop_s])


def test_settings_in_seconds_count_frames_of_the_grid():
    p = [0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0]
    for hop_s in (0.04, 0.02):
        frames = frames_of([p], hop_s=hop_s)
        got = proposals.propose(frames, merge_s=2 * hop_s, drop_s=2 * hop_s, debias_s=0.0)
        np.testing.assert_allclose([got.start_s[0], got.end_s[0]], [hop_s, 7 * hop_s])
        assert len(got.clip) == 1
        smoothed = proposals.propose(frames, smooth_s=3 * hop_s, threshold=0.6, debias_s=0.0)
        by_hand = proposals.propose(frames.smoothed(1), threshold=0.6, debias_s=0.0)
        np.testing.assert_array_equal(smoothed.start_s, by_hand.start_s)


def test_a_proposer_gives_what_each_choice_gives_alone():
    """In any order, also where a choice shares its spans with an earlier one."""
    rng = np.random.default_rng(5)
    frames = random_frames(3, tags=True)
    propose = proposals.proposer(frames)
    values = {
        "smooth_s": [0.0, 0.12, 0.2],
        "debias_s": [0.0, 0.02],
        "nms_sigma": [0.0, 0.5],
        "at_least_one": [False, True],
        "min_score": [0.001, 0.2],
        "cap": [3, 50],
    }
    for _ in range(40):
        method = str(rng.choice(["threshold", "multi_threshold", "boundary_pairs", "viterbi"]))
        settings = {name: options[rng.integers(len(options))] for name, options in values.items()}
        found = propose(method, **settings)
        for ours, alone in zip(found, proposals.propose(random_again(frames), method, **settings)):
            np.testing.assert_array_equal(ours, alone)


def random_again(frames):
    """The same scores, of which nothing has been computed yet."""
    return dataclasses.replace(frames, shared={})
