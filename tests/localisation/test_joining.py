"""Clusters of proposals and edge voting against slow code; the union's clip prior."""

import numpy as np
import pytest
from fill import load
from places import GOLDENS

from klassify.localisation import joining, proposals
from klassify.localisation.soft_nms import soft_nms


def random_proposals(rng, n=60, n_clips=4, n_systems=3):
    clip, system = rng.integers(0, n_clips, n), rng.integers(0, n_systems, n)
    start = rng.uniform(0, 2, n)
    return clip, start, start + rng.uniform(0.1, 1, n), rng.uniform(0.01, 1, n), system


def iou_of(a, b):
    shared = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
    return shared / (a[1] - a[0] + b[1] - b[0] - shared)


def slow_clusters(clip, start, end, score, system, edge, iou):
    """{row: (start, end, score)} of one cluster after another."""
    found = {}
    for one in set(clip.tolist()):
        left = [i for i in range(len(clip)) if clip[i] == one]
        left.sort(key=lambda i: (-score[i], start[i]))
        while left:
            first = left[0]
            members = [first]
            for other in set(system.tolist()) - {system[first]}:
                near = [
                    i
                    for i in left
                    if system[i] == other
                    and iou_of((start[i], end[i]), (start[first], end[first])) > iou
                ]
                members += near[:1]
            w = [score[i] * edge[system[i]] for i in members]
            found[first] = (
                np.average(start[members], weights=w),
                np.average(end[members], weights=w),
                1 - np.prod(1 - score[members]),
            )
            left = [i for i in left if i not in members]
    return found


@pytest.mark.parametrize("iou", [0.3, 0.6])
def test_clusters_equal_slow_code(iou):
    rng, edge = np.random.default_rng(0), np.array([1.0, 0.25, 0.5])
    columns = random_proposals(rng)
    rows, *found = joining.clusters(*columns, edge, iou=iou)
    expected = slow_clusters(*columns, edge, iou)
    assert set(rows.tolist()) == set(expected) and len(rows) < len(columns[0])
    for row, *values in zip(rows.tolist(), *found):
        np.testing.assert_allclose(values, expected[row], rtol=1e-6)


def test_nothing_to_join_stays_nothing():
    rows, *found = joining.clusters(*np.empty((5, 0)), np.ones(2), iou=0.5)
    assert len(rows) == 0 and all(len(column) == 0 for column in found)


def test_votes_equal_slow_code(monkeypatch):
    monkeypatch.setattr(joining, "PAIRS_AT_ONCE", 50)  # in several parts
    rng = np.random.default_rng(1)
    clip, start, end, score, _ = random_proposals(rng, 80)
    order = np.argsort(clip, kind="stable")
    voters = clip[order], start[order], end[order]
    kept = np.flatnonzero(rng.random(80) < 0.4)
    chosen = tuple(column[kept] for column in voters)
    found = joining.voted(chosen, voters, score[order], iou=0.5)
    for i, row in enumerate(kept):
        span = voters[1][row], voters[2][row]
        near = [
            j
            for j in range(80)
            if voters[0][j] == voters[0][row] and iou_of((voters[1][j], voters[2][j]), span) >= 0.5
        ]
        for values, column in zip(found, voters[1:]):
            expected = np.average(column[near], weights=score[order][near])
            assert values[i] == pytest.approx(expected)


def some_parts():
    audio = proposals.Candidates(*map(np.array, zip((0, 0.0, 1.0, 0.6), (1, 0.0, 1.0, 0.6))))
    video = proposals.Candidates(*map(np.array, zip((1, 2.0, 3.0, 0.5))))
    return [audio, video]


def test_a_clip_that_is_likely_fake_lifts_its_proposals():
    platt = [[-1.0, 0.0], [-1.0, 0.0]]
    log_odds = np.array([[-3.0, np.nan], [np.nan, 3.0]])
    settings = {"clip_platt": platt, "clip_share": 0.5}
    found, rows = proposals.union(some_parts(), log_odds, **settings)
    p = 1 / (1 + np.exp([3.0, -3.0]))
    score = dict(zip(rows.tolist(), found.score))
    np.testing.assert_allclose(score[0], np.sqrt(0.6 * p[0]))
    np.testing.assert_allclose([score[1], score[2]], np.sqrt(np.array([0.6, 0.5]) * p[1]))
    unknown, _ = proposals.union(some_parts(), np.full((2, 2), np.nan), **settings)
    np.testing.assert_allclose(unknown.score, np.sqrt([0.6, 0.6, 0.5]))


def test_a_union_that_joins_nothing_equals_merge():
    rng = np.random.default_rng(2)
    clip, start, end, score, system = random_proposals(rng)
    parts = [proposals.Candidates(clip, start, end, score).take(system == i) for i in range(3)]
    for settings in ({}, {"weights": [1.0, 0.5, 0.2], "platt": [[-1.0, 0.5]] * 3}):
        (merged, rows), (union, others) = (
            proposals.merge(parts, **settings),
            proposals.union(parts, join_iou=0.0, **settings),
        )
        np.testing.assert_array_equal(rows, others)
        for one, other in zip(merged, union):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "name", ["nms_soft_voting", "nms_soft_no_voting", "nms_soft_multiclass", "nms_hard"]
)
def test_nms_and_votes_equal_those_of_tridet(name):
    golden, expected = load(GOLDENS / "sgp")
    (case,) = [case for case in golden["cases"] if case["id"] == name]
    kinds = ("in_segments", "in_scores", "in_labels", "segments", "scores", "labels")
    segments, scores, labels, wanted, wanted_scores, wanted_labels = (
        expected[f"{name}/{kind}"] for kind in kinds
    )
    most, least = case["max_seg_num"], case["min_score"]
    clip = labels if case["multiclass"] else np.zeros(len(labels), int)
    order = np.argsort(clip, kind="stable")
    clip, (start, end), scores = clip[order], segments[order].T.astype(float), scores[order]
    how = {"sigma": case["sigma"], "cap": most, "min_score": least}
    if not case["use_soft_nms"]:  # scores above the threshold become 0
        how |= {"sigma": 1e-6, "t1": case["iou_threshold"], "t2": case["iou_threshold"]}
    taken, found = soft_nms(clip, start, end, scores.astype(float), **how)
    best = np.argsort(-found, kind="stable")[:most]
    taken, found = taken[best], found[best]
    np.testing.assert_allclose(found, wanted_scores, atol=1e-4, rtol=1e-4)
    if case["multiclass"]:
        np.testing.assert_array_equal(clip[taken], wanted_labels)
    edges = start[taken], end[taken]
    if case["voting_thresh"] and not case["multiclass"]:
        kept, voters = (clip[taken], *edges), (clip, start, end)
        edges = joining.voted(kept, voters, scores.astype(float), iou=case["voting_thresh"])
    np.testing.assert_allclose(np.stack(edges, axis=1), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("snap_s", [0.005, 0.01, 0.015])
def test_edges_near_a_video_frame_move_to_it(snap_s):
    rng = np.random.default_rng(4)
    clip, start, end, score, _ = random_proposals(rng)
    parts = [proposals.Candidates(clip, start, end, score)]
    plain, plain_rows = proposals.union(parts)
    snapped, rows = proposals.union(parts, snap_s=snap_s)
    expected = []
    for i, *edges, value in zip(*plain):
        latest = end[clip == i].max()
        near = [min(round(edge * 25) / 25, latest) for edge in edges]
        moved = [b if abs(a - b) <= snap_s else a for a, b in zip(edges, near)]
        expected.append([i, *moved, value])
    expected = np.array(expected)
    longer = expected[:, 1] < expected[:, 2]
    np.testing.assert_allclose(np.column_stack(snapped), expected[longer])
    np.testing.assert_array_equal(rows, plain_rows[longer])
    assert 0 < (snapped.start_s != plain.start_s[longer]).mean() < 1
