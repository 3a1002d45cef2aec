"""Frame-level metrics against slow, obvious references."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from klassify.errors import KlassifyError
from klassify.evaluation import frames as evaluation_frames
from klassify.grid.frames import encode_labels
from klassify.grid.ragged import FrameTable, row_offsets
from klassify.grid.segments import Truth
from klassify.metrics import frames as frame_module
from klassify.metrics.clips import bootstrap, eer
from klassify.metrics.frames import frame_labels, frame_metrics, mean_clip_auc, resample


def random_split(seed, n_clips=30):
    """Truth with touching, overlapping, outside and empty segments, and coarse frame scores."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 60, n_clips)
    cells = []
    for count in counts:
        start = np.round(rng.uniform(-0.1, count * 0.04 + 0.2, rng.integers(0, 4)), 2)
        cells.append(
            np.stack(
                [start, start + rng.choice([0.0, 0.02, 0.08, 0.4, 9.0], len(start))], 1
            ).tolist()
        )
    files = [f"{i}.mp4" for i in range(n_clips)]
    scores = np.round(rng.normal(size=counts.sum()), 1)
    return (
        FrameTable(np.array(files, object), row_offsets(counts), scores),
        Truth.from_cells(files, cells),
        cells,
    )


@pytest.mark.parametrize("hop_s", [0.02, 0.04, 0.16, 0.64])
def test_labels_equal_those_of_each_clip_alone(hop_s):
    for seed in range(10):
        frames, truth, cells = random_split(seed)
        counts = np.diff(frames.offsets)
        wanted = [encode_labels(cell, n, hop_s=hop_s) for cell, n in zip(cells, counts)]
        np.testing.assert_array_equal(frame_labels(truth, counts, hop_s), np.concatenate(wanted))


@pytest.mark.parametrize("resolution_ms", [20, 40, 80, 320])
def test_pooled_metrics_equal_frame_by_frame_work(resolution_ms):
    frames, truth, cells = random_split(1)
    scores, labels = [], []
    for clip, cell in zip(np.split(frames.scores, frames.offsets[1:-1]), cells):
        step = resolution_ms // 40
        new = (
            np.repeat(clip, 2)
            if not step
            else [max(clip[i : i + step]) for i in range(0, len(clip), step)]
        )
        scores += list(new)
        labels += list(encode_labels(cell, len(new), hop_s=resolution_ms / 1000))
    result = frame_metrics(frames, truth, (resolution_ms,))
    assert result.auc[resolution_ms] == pytest.approx(roc_auc_score(labels, scores))
    assert result.eer[resolution_ms] == pytest.approx(eer(np.array(labels), np.array(scores)))


def test_the_mean_over_clips(monkeypatch):
    monkeypatch.setattr(frame_module, "CLIPS_AT_ONCE", 3)
    frames, truth, cells = random_split(2)
    counts = np.diff(frames.offsets)
    labels = frame_labels(truth, counts, 0.04)
    aucs = [
        roc_auc_score(label, score)
        for label, score in zip(
            np.split(labels, frames.offsets[1:-1]), np.split(frames.scores, frames.offsets[1:-1])
        )
        if 0 < label.sum() < len(label)
    ]
    assert frame_metrics(frames, truth).clip_auc == pytest.approx(np.mean(aucs))
    assert np.isnan(mean_clip_auc(np.zeros(5, int), np.arange(5.0), np.array([2, 3])))


def test_joined_by_name_and_clips_without_frames_are_counted():
    frames, truth, _ = random_split(3)
    fewer = FrameTable(frames.files[1:][::-1], *reversed_clips(frames))
    result = frame_metrics(fewer, truth)
    assert (result.n_clips, result.n_without) == (29, 1)
    rest = truth.take(np.arange(1, 30))
    assert result == frame_metrics(fewer, rest)._replace(n_without=1)


def reversed_clips(frames):
    clips = np.split(frames.scores, frames.offsets[1:-1])[1:][::-1]
    return row_offsets(np.array([len(clip) for clip in clips])), np.concatenate(clips)


def test_no_frames_and_no_such_resolution():
    frames, truth, _ = random_split(4)
    nothing = FrameTable(np.array([], object), np.array([0]), np.array([]))
    result = frame_metrics(nothing, truth)
    assert result.n_without == 30 and np.isnan(result.auc[40]) and np.isnan(result.clip_auc)
    with pytest.raises(KlassifyError, match="50 ms"):
        resample(frames.scores, np.diff(frames.offsets), 50)


def test_the_auc_bootstrap_is_that_of_repeated_frames():
    from klassify.evaluation.frames import bootstrap_auc
    from klassify.metrics.frames import labelled_frames

    frames, truth, _ = random_split(5)
    source = np.array([f"s{i // 3}" for i in range(30)])
    parts = [labelled_frames(frames, truth, ms) for ms in (40, 400)]
    found = bootstrap_auc(parts, source, n=20, seed=1)
    clip_of = [np.repeat(part.clips, part.counts) for part in parts]

    def slow(weights):
        aucs = []
        for part, clip in zip(parts, clip_of):
            aucs.append(
                [
                    roc_auc_score(part.labels, part.scores, sample_weight=row[clip])
                    for row in weights
                ]
            )
        return np.array(aucs)

    np.testing.assert_allclose(found, bootstrap(slow, source, n=20, seed=1), atol=1e-9)


def test_many_different_scores_are_binned_without_harm(monkeypatch):
    from klassify.evaluation.frames import bootstrap_auc
    from klassify.metrics.frames import labelled_frames

    frames, truth, _ = random_split(6, n_clips=200)
    frames = dataclasses.replace(
        frames, scores=frames.scores + np.random.default_rng(0).normal(size=len(frames.scores))
    )
    part = labelled_frames(frames, truth, 40)
    source = np.arange(200).astype(str)
    assert len(np.unique(part.scores)) > 2000
    binned = bootstrap_auc([part], source, n=30)
    monkeypatch.setattr(evaluation_frames, "BINS", 10**6)
    exact = bootstrap_auc([part], source, n=30)
    assert 0 < np.abs(binned - exact).max() < 1e-3


def test_systems_are_compared_on_the_clips_that_both_have():
    from klassify.evaluation.frames import frame_columns

    frames, truth, cells = random_split(7, n_clips=60)
    listed = pd.DataFrame(
        {"file": truth.files, "source": [f"s{i // 2}" for i in range(60)], "fake_segments": cells}
    )
    fewer = frames.take(set(frames.files[:40]))
    louder = dataclasses.replace(fewer, scores=fewer.scores * 2 + 1)
    tables = {"all": frames, "some": louder, "none": None}
    found = frame_columns(
        tables, dict.fromkeys(tables, "both"), listed, versus="all", n_bootstrap=10
    )
    assert found["none"] == {} and "frame_gain" not in found["all"]
    assert (
        found["some"]["frame_gain"]
        == 0
        == found["some"]["frame_gain_low"]
        == found["some"]["frame_gain_high"]
    )
    assert found["some"]["n_no_frames"] == 20 and found["all"]["n_no_frames"] == 0
    assert found["all"]["frame_auc"] != found["some"]["frame_auc"]
    alone = frame_columns({"some": louder}, {"some": "both"}, listed, versus="some", n_bootstrap=0)
    assert np.isnan(alone["some"]["frame_auc_low"])
    assert alone["some"]["frame_auc"] == found["some"]["frame_auc"]


@pytest.mark.parametrize("grid", [(0.02, 0.0), (0.02, 0.0025), (0.01, 0.0075), (0.01, 0.0)])
@pytest.mark.parametrize("resolution_ms", [20, 40, 400])
def test_frames_of_other_hops_are_pooled_alike(grid, resolution_ms):
    rng = np.random.default_rng(6)
    (hop_s, offset_s), counts = grid, np.array([7, 0, 1, 300, 0])
    scores = rng.normal(size=counts.sum())
    found, new = resample(scores, counts, resolution_ms, hop_s, offset_s)
    wanted = []
    for clip in np.split(scores, np.cumsum(counts)[:-1]):
        cells = {}
        for k, score in enumerate(clip):
            cell = round(1e6 * (offset_s + k * hop_s)) // (1000 * resolution_ms)
            cells[cell] = max(score, cells.get(cell, -np.inf))
        assert list(cells) == list(range(len(cells)))
        wanted.append(list(cells.values()))
    assert new.tolist() == [len(clip) for clip in wanted]
    np.testing.assert_array_equal(found, np.concatenate(wanted))
