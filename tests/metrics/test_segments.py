"""Task 2 metrics against the official evaluator's stored results and slow, obvious references."""

import json

import numpy as np
import pandas as pd
import pytest
from places import GOLDENS

from klassify.errors import KlassifyError
from klassify.grid.ragged import row_offsets
from klassify.grid.segments import Proposals, Truth
from klassify.lists.records import truth_from_metadata
from klassify.metrics import matching
from klassify.metrics.clips import interval
from klassify.metrics.segments import (
    METRICS,
    bootstrap_task2,
    by_length,
    by_modality,
    by_modify_type,
    grid_ceiling,
    match,
    score_task2,
)
from klassify.submission.prediction_json import read_prediction_json

GOLDEN = json.loads((GOLDENS / "official_eval.json").read_text())
CASES = range(300)


def build(clips):
    """Proposals and truth of clips, each a pair (rows, segments)."""
    files = [f"v{i}.mp4" for i in range(len(clips))]
    rows = np.array([row for clip, _ in clips for row in clip], np.float32).reshape(-1, 3)
    offsets = row_offsets(np.array([len(clip) for clip, _ in clips]))
    proposals = Proposals(np.array(files, object), offsets, rows)
    return proposals, Truth.from_cells(files, [segments for _, segments in clips])


def numbers(result):
    return list(result.named().values())


def random_clips(seed, ties=True):
    """2-100 clips, 0-5 segments, 1-120 proposals: unsorted, quantised, repeated, near misses."""
    rng = np.random.default_rng(seed)
    clips = []
    for _ in range(rng.integers(2, 101 if seed % 5 == 0 else 16)):
        n_segments, n_rows = rng.integers(0, 6), int(rng.integers(1, 121 if seed % 3 == 0 else 16))
        start = np.round(rng.uniform(0, 10, n_segments), 2)
        end = np.round(start + rng.choice([0.0, 0.3, 1.5], n_segments, p=[0.05, 0.55, 0.4]), 2)
        rows = np.empty((n_rows, 3))
        rows[:, 0] = np.round(rng.random(n_rows), 1 if ties and rng.random() < 0.3 else 6)
        rows[:, 1] = rng.uniform(0, 10, n_rows)
        rows[:, 2] = rows[:, 1] + rng.normal(0.5, 0.3, n_rows)  # some end before they start
        if n_segments:
            near, which = rng.random(n_rows) < 0.6, rng.integers(0, n_segments, n_rows)
            jitter = rng.choice([0.0, 0.01, 0.1], (n_rows, 1)) * rng.normal(size=(n_rows, 2))
            rows[near, 1:] = (np.stack([start, end], 1)[which] + np.round(jitter, 2))[near]
        if rng.random() < 0.7:
            rows = rows[np.argsort(-rows[:, 0], kind="stable")]
        if ties and rng.random() < 0.2:
            rows = np.repeat(rows, 2, axis=0)
        clips.append((rows.tolist(), np.stack([start, end], axis=1).tolist()))
    clips.append(([[0.5, 1.0, 2.0]], [[1.0, 2.0]]))
    return clips


def iou_table(rows, segments):
    """Overlaps, rows x segments."""
    table = np.full((len(rows), len(segments)), np.nan)
    for s, (other_start, other_end) in enumerate(np.float32(segments)):
        start, end = np.float32(rows)[:, 1:].T
        shared = np.maximum(0, np.minimum(end, other_end) - np.maximum(start, other_start))
        hull = np.maximum(end, other_end) - np.minimum(start, other_start)
        table[hull > 0, s] = shared[hull > 0] / hull[hull > 0]
    return table


def slow_average_precision(ranked, n_segments, first_step):
    """ranked: right or wrong, best first."""
    found, precision, recall = 0, [], []
    for rank, is_right in enumerate(ranked, start=1):
        found += is_right
        precision.append(found / rank)
        recall.append(found / n_segments)
    area = recall[0] * max(precision) if first_step else 0.0
    for i in range(1, len(ranked)):
        if ranked[i]:
            area += (recall[i] - recall[i - 1]) * max(precision[i:])
    return area


def slow_official(clips):
    """The published rules, one clip, one segment, one row at a time."""
    tables = [(rows, iou_table(rows, segments).T.tolist()) for rows, segments in clips]
    n_segments = sum(len(segments) for _, segments in clips)
    ap, ar = [], []
    for threshold in np.float32(matching.AP_IOUS).tolist():
        scored = []
        for rows, ious in tables:
            right = [False] * len(rows)
            for of_segment in ious:
                for i, iou in enumerate(of_segment):
                    if not right[i] and iou > threshold:
                        right[i] = True
                        break
            scored += [(np.float32(row[0]), is_right) for row, is_right in zip(rows, right)]
        ranked = sorted(scored, key=lambda pair: -pair[0])
        right = [is_right for _, is_right in ranked]
        ap.append(slow_average_precision(right, n_segments, first_step=False))
    for count in matching.AR_COUNTS:
        recalled = sum(
            any(iou > threshold for iou in of_segment[:count])
            for _, ious in tables
            for of_segment in ious
            for threshold in np.float32(matching.AR_IOUS).tolist()
        )
        ar.append(recalled / n_segments / len(matching.AR_IOUS))
    return np.array(ap), np.array(ar)


def slow_textbook_hits(ious, threshold):
    """For each row, best score first: whether it takes a segment. ious: rows x segments."""
    free, hits = set(range(len(ious[0]))), []
    for of_row in ious:
        near = [(of_row[s], -s) for s in free if of_row[s] >= threshold]
        hits.append(bool(near))
        if near:
            free.remove(-max(near)[1])
    return hits


def slow_textbook(clips):
    clips = [
        (sorted(rows, key=lambda row: -np.float32(row[0])), segments) for rows, segments in clips
    ]
    tables = [(rows, iou_table(rows, segments).tolist()) for rows, segments in clips]
    n_segments = sum(len(segments) for _, segments in clips)
    ap, found = [], np.zeros(len(matching.AR_COUNTS))
    for threshold in np.float32(matching.AR_IOUS).tolist():
        scored = []
        for rows, ious in tables:
            hits = slow_textbook_hits(ious, threshold)
            found += [sum(hits[:count]) for count in matching.AR_COUNTS]
            scored += [(np.float32(row[0]), hit) for row, hit in zip(rows, hits)]
        if threshold in np.float32(matching.AP_IOUS).tolist():
            ranked = [hit for _, hit in sorted(scored, key=lambda pair: -pair[0])]
            ap.append(slow_average_precision(ranked, n_segments, first_step=True))
    return np.array(ap), found / n_segments / len(matching.AR_IOUS)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_equals_the_stored_results_of_the_official_evaluator(case, tmp_path):
    path, metadata = tmp_path / "prediction.json", tmp_path / "metadata.json"
    path.write_text(case["prediction_json"])
    metadata.write_text(json.dumps(case["metadata"]))
    result = score_task2(read_prediction_json(path), truth_from_metadata(metadata))
    wanted = np.array(case["expected"]["ap"], float), np.array(case["expected"]["ar"], float)
    np.testing.assert_allclose(result.ap, wanted[0], atol=1e-6, rtol=0)
    np.testing.assert_allclose(result.ar, wanted[1], atol=1e-6, rtol=0)
    score = wanted[0].sum() / 8 + wanted[1].sum() / 10
    np.testing.assert_allclose(result.score, score, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "block", [CASES[i : i + 50] for i in CASES[::50]], ids=lambda b: f"{b[0]}-{b[-1]}"
)
@pytest.mark.parametrize("mode, slow", [("official", slow_official), ("textbook", slow_textbook)])
def test_equals_the_slow_reference(mode, slow, block, monkeypatch):
    for seed in block:
        clips = random_clips(seed)
        monkeypatch.setattr(matching, "PAIRS_AT_ONCE", (1, 100, 500_000)[seed % 3])
        result = score_task2(*build(clips), mode)
        ap, ar = slow(clips)
        np.testing.assert_allclose(result.ap, ap, atol=1e-6, rtol=0, err_msg=f"seed {seed}")
        np.testing.assert_allclose(result.ar, ar, atol=1e-6, rtol=0, err_msg=f"seed {seed}")


SORTED = [
    ([[0.9, 1.0, 2.0], [0.3, 5.0, 5.4]], [[1.0, 2.0]]),
    ([[0.7, 3.0, 3.5]], [[3.0, 3.5], [6.0, 7.0]]),
]


def test_a_perfect_answer_lacks_its_first_step_only_officially():
    for n in (1, 2, 40):
        data = build([([[0.9 - i / 100, 1.0, 2.0]], [[1.0, 2.0]]) for i in range(n)])
        np.testing.assert_allclose(score_task2(*data).ap, (n - 1) / n, atol=1e-6)
        textbook = score_task2(*data, "textbook")
        np.testing.assert_allclose([*textbook.ap, *textbook.ar, textbook.score], 1.0)


def test_clips_that_are_not_in_the_truth_change_nothing():
    for seed in range(10):
        clips = random_clips(seed)
        proposals, truth = build(clips)
        kept = truth.take(np.arange(0, len(clips), 2))
        assert score_task2(proposals, kept).named() == score_task2(*build(clips[::2])).named()


def test_the_order_of_clips_in_the_predictions_does_not_matter():
    proposals, truth = build(random_clips(7))
    shuffled = proposals.take(np.random.default_rng(0).permutation(len(proposals.files)))
    assert score_task2(shuffled, truth).named() == score_task2(proposals, truth).named()


def test_no_proposals_count_like_the_placeholder():
    clips = random_clips(3)
    clips[0] = ([], [[1.0, 2.0]])
    without = numbers(score_task2(*build(clips)))
    clips[0] = ([[0, 0, 0]], [[1.0, 2.0]])
    np.testing.assert_allclose(without, numbers(score_task2(*build(clips))), atol=1e-6)


def test_an_overlap_of_one_half_counts_in_the_textbook_only():
    data = build([([[0.9, 9, 9]], []), ([[0.8, 0.0, 1.0]], [[0.0, 2.0]])])
    official, textbook = score_task2(*data), score_task2(*data, "textbook")
    assert official.ap[0] == 0 and official.ar[0] == 0
    assert textbook.ap[0] == 0.5 and textbook.ar[0] == 0.1


def test_official_recall_matches_one_proposal_to_two_segments():
    rows = [[0.1 * i, 9.0, 9.1] for i in range(1, 6)] + [[0.9, 1.0, 2.0]]
    data = build([(rows, [[1.0, 2.0], [1.0, 2.0]])])
    assert score_task2(*data).ar.tolist() == [1, 1, 1, 1, 0]
    assert score_task2(*data, "textbook").ar.tolist() == [0.5] * 5


def test_no_fake_segment_at_all():
    data = build([([[0.9, 1.0, 2.0]], [])])
    assert np.isnan(score_task2(*data).ap).all() and (score_task2(*data).ar == 0).all()
    assert np.isnan(score_task2(*data, "textbook").score)


def test_mistakes_are_named():
    proposals, truth = build(SORTED)
    with pytest.raises(KlassifyError, match="1 of 2 clips have no entry: v1.mp4"):
        score_task2(proposals.take(np.array([0])), truth)
    with pytest.raises(KlassifyError, match="official, textbook"):
        score_task2(proposals, truth, "coco")
    with pytest.raises(KlassifyError, match="no labelled clips"):
        score_task2(proposals, truth.take(np.array([], int)))


def test_ranking_equals_a_stable_sort_of_any_floats():
    rng = np.random.default_rng(0)
    score = rng.choice(np.float32([0.0, -0.0, -1.5, 2.5, 1e-40, -1e-40, np.inf, -np.inf, 0.3]), 500)
    chosen = [rng.permutation(500)[:50], np.array([], int)]
    order, ranks = matching.rank_by_score(score, chosen)
    wanted = np.argsort(-score, kind="stable")
    np.testing.assert_array_equal(order, wanted)
    np.testing.assert_array_equal(wanted[ranks[0]], chosen[0])


def test_a_kind_of_fake_is_scored_beside_all_real_clips():
    clips = [clip for seed in range(3) for clip in random_clips(seed)]
    kinds = np.resize(["audio_modified", "both_modified"], len(clips)).astype(object)
    kinds[[not segments for _, segments in clips]] = "real"
    results = by_modify_type(match(*build(clips)), kinds)
    assert set(results) == {"audio_modified", "both_modified"}
    for kind, result in results.items():
        chosen = [clip for clip, k in zip(clips, kinds) if k in ("real", kind)]
        wanted = numbers(score_task2(*build(chosen)))
        np.testing.assert_allclose(numbers(result), wanted, atol=2e-7)


def test_length_groups_ignore_hits_on_other_segments():
    clips = [
        ([[0.9, 0.0, 0.1]], [[0.0, 0.1]]),
        ([[0.8, 1.0, 1.16], [0.7, 5.0, 6.0]], [[1.0, 1.16], [5.0, 6.0]]),
    ]
    results = by_length(match(*build(clips), "textbook"))
    assert [result.n_segments for result in results.values()] == [1, 1, 0, 1]
    assert list(results) == ["0-0.16 s", "0.16-0.32 s", "0.32-0.64 s", "0.64-inf s"]
    for result in (results["0-0.16 s"], results["0.16-0.32 s"], results["0.64-inf s"]):
        np.testing.assert_allclose(numbers(result), 1.0)
    clips[0][0].append([0.95, 30.0, 31.0])  # a false alarm counts for every length
    assert by_length(match(*build(clips), "textbook"))["0.64-inf s"].ap[0] == 0.5


def test_modalities_are_scored_against_their_own_segments():
    proposals, _ = build([([[0.9, 1.0, 2.0], [0.5, 4.0, 5.0]], []), ([[0.1, 0, 0]], [])])
    frame = pd.DataFrame(
        {
            "file": proposals.files,
            "audio_fake_segments": [[[1.0, 2.0]], []],
            "visual_fake_segments": [[[4.0, 5.0]], []],
        }
    )
    results = by_modality(proposals, frame, "textbook")
    assert results["audio segments"].ap[0] == 1.0 and results["visual segments"].ap[0] == 0.5
    frame.loc[1, "audio_fake_segments"] = None  # unknown
    assert list(by_modality(proposals, frame, "textbook")) == ["visual segments"]
    frame["visual_fake_segments"] = [[], []]
    assert by_modality(proposals, frame) == {}


def test_resampling_is_paired_by_source_and_repeatable():
    clips = [clip for seed in (1, 2, 4) for clip in random_clips(seed)]
    proposals, truth = build(clips)
    matches = match(proposals, truth)
    source = [str(i // 4) for i in range(len(clips))]
    samples = bootstrap_task2({"one": matches, "same": matches}, source, n=40, seed=3)
    assert samples["one"].shape == (len(METRICS), 40)
    np.testing.assert_array_equal(samples["one"], samples["same"])
    again = bootstrap_task2({"one": matches}, source, n=40, seed=3)["one"]
    np.testing.assert_array_equal(again, samples["one"])
    low, high = interval(samples["one"][-1])
    assert low < matches.score().score < high
    alone = bootstrap_task2({"one": matches}, ["all"] * len(clips), n=3)["one"]
    assert np.isnan(alone).all()  # one source says nothing about others


def test_the_ceiling_of_a_grid():
    truth = build([([], [[0.40, 0.80]]), ([], [[1.01, 1.38]]), ([], [])])[1]
    # [1.01, 1.38] becomes [1.0, 1.4]: overlap 0.925
    np.testing.assert_allclose(grid_ceiling(truth, 0.04, "textbook").ap, [1.0, 1.0, 1.0, 0.5])
    fine = grid_ceiling(truth, 0.01, "textbook")
    np.testing.assert_allclose([*fine.ap, *fine.ar], 1.0)
    # [0.25, 1.0] 0.533 and [1.0, 1.5] 0.74
    np.testing.assert_allclose(grid_ceiling(truth, 0.25, "textbook").ap, [1.0, 0.0, 0.0, 0.0])


def slow_weighted(matches, weights, among):
    """AP and AR by one pass over all ranked proposals, each counting as often as its clip."""
    ranked = matches.ranked_clip
    weight = np.asarray(weights, float)
    n_segments = float((weight[matches.clip_of] * among).sum())
    ap = []
    for hits in matches.hits:
        segment_at = dict(zip(hits.rank.tolist(), hits.segment.tolist()))
        steps, claimed, found = [], 0.0, 0.0
        for rank, clip in enumerate(ranked):
            segment = segment_at.get(rank)
            if segment is not None and not among[segment]:
                continue
            claimed += weight[clip]
            if segment is not None and weight[clip]:
                found += weight[clip]
                steps.append((weight[clip], found / claimed, claimed == weight[clip]))
        area = 0.0
        for i, (gain, _, leads) in enumerate(steps):
            left_out = min(1.0, gain) if leads and matches.mode == "official" else 0.0
            area += (gain - left_out) * max(precision for _, precision, _ in steps[i:])
        ap.append(area / n_segments)
    ar = (weight[matches.clip_of] * among) @ matches.levels / (10 * n_segments)
    return [*ap, *ar]


@pytest.mark.parametrize("mode", ["official", "textbook"])
@pytest.mark.parametrize("seed", [0, 5, 7])
def test_many_weightings_equal_a_pass_over_all_proposals(mode, seed):
    rng = np.random.default_rng(seed)
    matches = match(*build(random_clips(seed)), mode)
    weights = rng.integers(0, 4, (6, len(matches.truth.files))).astype(float)
    for among in (np.ones(len(matches.clip_of), bool), rng.random(len(matches.clip_of)) < 0.6):
        defined = [one for one in weights if one[matches.clip_of] @ among]
        for one, found in zip(defined, matches.scores(np.array(defined), among)):
            expected = slow_weighted(matches, one, among)
            np.testing.assert_allclose(numbers(found)[:-1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["official", "textbook"])
def test_leaving_clips_out_equals_giving_them_no_weight(mode):
    rng = np.random.default_rng(1)
    matches = match(*build(random_clips(5)), mode)
    kept = rng.random(len(matches.truth.files)) < 0.5
    weights = rng.integers(0, 3, (5, len(kept))).astype(float)
    some, all_clips = matches.of_clips(kept).scores(weights), matches.scores(weights * kept)
    for one, other in zip(some, all_clips):
        np.testing.assert_allclose(numbers(one), numbers(other), rtol=1e-12)
    whole = matches.of_clips(np.ones(len(kept), bool))
    assert numbers(whole.score()) == numbers(matches.score())
