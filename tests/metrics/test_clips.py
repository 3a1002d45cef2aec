"""Metrics against obvious references, scikit-learn and the official evaluator's results."""

import json

import numpy as np
import pytest
from places import GOLDENS
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from klassify.errors import KlassifyError
from klassify.metrics import clips

GOLDEN = json.loads((GOLDENS / "official_eval.json").read_text())


def slow_auc(label, score):
    pairs = [
        (f > r) + 0.5 * (f == r)
        for f, y in zip(score, label)
        if y
        for r, x in zip(score, label)
        if not x
    ]
    return np.mean(pairs)


def slow_eer(label, score):
    """Walk the thresholds and cross the two error rates by hand."""
    previous = (0.0, 1.0)
    for threshold in sorted(set(score)):
        miss, false_alarm = (
            np.mean(score[label == 1] <= threshold),
            np.mean(score[label == 0] > threshold),
        )
        if miss >= false_alarm:
            rise, fall = miss - previous[0], previous[1] - false_alarm
            return previous[0] + rise * (previous[1] - previous[0]) / (rise + fall)
        previous = (miss, false_alarm)


def cases(n_cases=60):
    for seed in range(n_cases):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 50))
        label = np.append(rng.integers(0, 2, n), [0, 1])
        score = rng.normal(size=n + 2) + label
        yield label, np.round(score, seed % 3)  # many ties, some, few


def test_auc_equals_slow_reference_and_sklearn():
    for label, score in cases():
        assert clips.roc_auc(label, score) == pytest.approx(slow_auc(label, score), abs=1e-12)
        assert clips.roc_auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-12)


def test_eer_equals_slow_reference():
    for label, score in cases():
        assert clips.eer(label, score) == pytest.approx(slow_eer(label, score), abs=1e-12)


def test_extremes():
    label = np.array([0, 0, 1, 1])
    assert clips.roc_auc(label, [0, 1, 2, 3]) == 1 and clips.eer(label, [0, 1, 2, 3]) == 0
    assert clips.roc_auc(label, [3, 2, 1, 0]) == 0 and clips.eer(label, [3, 2, 1, 0]) == 1
    assert clips.roc_auc(label, [5, 5, 5, 5]) == 0.5 and clips.eer(label, [5, 5, 5, 5]) == 0.5
    assert np.isnan(clips.roc_auc([1, 1], [0.1, 0.2])) and np.isnan(clips.eer([0], [0.1]))
    assert np.isnan(clips.roc_auc([], [])) and np.isnan(clips.log_loss([], []))
    with pytest.raises(ValueError, match="NaN"):
        clips.roc_auc(label, [0, 1, np.nan, 2])
    with pytest.raises(ValueError, match="shapes"):
        clips.roc_auc(label, [0, 1])


def test_perfect_audio_detector_against_the_video_label():
    """A check of Table 2's audio rows: 0.833 for equal types, 0.8317 for the training set's."""
    for counts, expected in (((1, 1, 1, 1), 5 / 6), ((297_389, 266_116, 269_901, 265_812), 0.8317)):
        counts = np.array(counts) // (1 if counts[0] == 1 else 100)
        video, audio = np.repeat([0, 1, 1, 1], counts), np.repeat([0, 1, 0, 1], counts)
        assert clips.roc_auc(video, audio) == pytest.approx(expected, abs=1e-4)
        assert clips.roc_auc(audio, audio) == 1


def test_weights_count_as_copies():
    for label, score in cases(20):
        copies = np.random.default_rng(len(label)).integers(0, 4, (5, len(label)))
        auc, eer = clips.Ranking(label, score).auc_and_eer(copies)
        for i, times in enumerate(copies):
            again = np.repeat(label, times), np.repeat(score, times)
            np.testing.assert_allclose(auc[i], clips.roc_auc(*again), atol=1e-12)
            np.testing.assert_allclose(eer[i], clips.eer(*again), atol=1e-12)


def test_error_rates_run_from_all_alarms_to_all_misses():
    label, score = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.5, 0.5, 0.7, 0.9])
    threshold, false_alarm, miss = clips.error_rates(label, score)
    assert threshold.tolist() == [-np.inf, 0.1, 0.5, 0.7, 0.9]
    np.testing.assert_allclose(false_alarm, [1, 0.5, 0, 0, 0])
    np.testing.assert_allclose(miss, [0, 0, 1 / 3, 2 / 3, 1])
    area = np.sum(-np.diff(false_alarm) * (1 - (miss[1:] + miss[:-1]) / 2))
    assert area == pytest.approx(clips.roc_auc(label, score))


def test_log_loss():
    label, probability = np.array([0, 1, 1, 0]), np.array([0.1, 0.8, 0.6, 0.4])
    assert clips.log_loss(label, probability) == pytest.approx(sklearn_log_loss(label, probability))
    assert clips.log_loss([1], [0.0]) == pytest.approx(-np.log(clips.PROBABILITY_FLOOR))  # finite


def test_reliability():
    probability = np.array([0.0, 0.04, 0.95, 1.0, 1.0])
    predicted, observed, count = clips.reliability(np.array([0, 1, 1, 1, 0]), probability)
    assert count.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    np.testing.assert_allclose(predicted[[0, 9]], [0.02, 2.95 / 3])
    np.testing.assert_allclose(observed[[0, 9]], [0.5, 2 / 3])
    assert np.isnan(observed[1:9]).all()


def test_bootstrap_draws_whole_sources_and_repeats_itself(monkeypatch):
    source = np.array(["a", "b", "b", "c", "c", "c", "d"])
    weights = clips.bootstrap(lambda w: w.T, source, n=200, seed=3)  # (clips, resamples)
    assert weights.shape == (7, 200)
    for name in "bcd":
        assert (weights[source == name] == weights[source == name][0]).all()
    one_each = weights[[0, 1, 3, 6]]
    assert (one_each.sum(axis=0) == 4).all() and one_each.mean() == pytest.approx(1)
    np.testing.assert_array_equal(weights, clips.bootstrap(lambda w: w.T, source, n=200, seed=3))
    assert (weights != clips.bootstrap(lambda w: w.T, source, n=200, seed=4)).any()
    monkeypatch.setattr(clips, "CHUNK_ELEMENTS", 20)  # in chunks of two resamples: the same draws
    np.testing.assert_array_equal(weights, clips.bootstrap(lambda w: w.T, source, n=200, seed=3))


def test_a_single_source_has_no_interval():
    ranking = clips.Ranking([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9])
    auc, drawn = clips.resampled(lambda w: ranking.auc_and_eer(w)[0], ["a"] * 4)
    assert auc == 0.75 and np.isnan(clips.interval(drawn)).all()


def test_interval_covers_and_knows_what_it_does_not_know():
    low, high = clips.interval(np.arange(1001.0))
    assert (low, high) == pytest.approx((25, 975))
    assert np.isnan(clips.interval(np.array([np.nan, np.nan, 1.0]))).all()
    assert clips.interval(np.array([np.nan, 1.0, 1.0])) == (1, 1)


def test_bootstrap_interval_of_the_auc_covers_the_truth():
    """95 % intervals over independent sources hold the true AUC (0.760) about 95 % of the time."""
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        label = np.tile([0, 1], 60)
        ranking = clips.Ranking(label, rng.normal(size=120) + label)
        samples = clips.bootstrap(
            lambda w, ranking=ranking: ranking.auc_and_eer(w)[0],
            np.repeat(np.arange(60), 2),
            n=200,
            seed=seed,
        )
        low, high = clips.interval(samples)
        covered += low <= 0.7602 <= high
    assert 51 <= covered <= 60


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_official_auc_equals_the_stored_results(case, tmp_path):
    (tmp_path / "prediction.txt").write_bytes(case["prediction_txt"].encode())
    (tmp_path / "metadata.json").write_text(json.dumps(case["metadata"]))
    expected = case["expected"]["auc"]
    for metadata in (case["metadata"], tmp_path / "metadata.json"):
        assert clips.official_auc(tmp_path / "prediction.txt", metadata) == pytest.approx(
            expected, abs=1e-6
        )


@pytest.mark.parametrize(
    "case", [c for c in GOLDEN["refused"] if "TXT" in c["reason"]], ids=lambda c: c["reason"]
)
def test_official_auc_refuses_what_the_evaluator_refuses(case, tmp_path):
    (tmp_path / "prediction.txt").write_text(case["prediction_txt"])
    with pytest.raises(KlassifyError):
        clips.official_auc(tmp_path / "prediction.txt", case["metadata"])


METADATA = [{"file": f"{i}.mp4", "fake_segments": [[0, 1]] if i >= 2 else []} for i in range(4)]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("0.mp4;0.1\n1.mp4;0.2\n2.mp4;0.3\n3.mp4;0.4\n", 1.0),
        # a missing score of a real clip ranks highest
        ("0.mp4;\n1.mp4;0.2\n2.mp4;0.3\n3.mp4;0.4\n", 0.5),
        ("0.mp4;0.9\n1.mp4;0.2\n2.mp4;0.3\n3.mp4;0.4\n0.mp4;0.1\n", 1.0),  # the last line wins
        ("0.mp4;38\n1.mp4;37\n2.mp4;39\n3.mp4;40\n", 0.5),  # the sigmoid of these is 1.0
        ("0.mp4; 0.1;x\n1.mp4; 0.2;x\n\n2.mp4; 0.3;x\n3.mp4; 0.4;x", 1.0),
    ],
)
def test_official_quirks(lines, expected, tmp_path):
    (tmp_path / "prediction.txt").write_text(lines)
    assert clips.official_auc(tmp_path / "prediction.txt", METADATA) == expected


@pytest.mark.parametrize(
    "lines", ["", "file;score\n0.mp4;0.1\n", "0.mp4\n1.mp4\n", "0;0.1\n1;0.2\n2;0.3\n3;0.4\n"]
)
def test_official_auc_needs_names_and_numbers(lines, tmp_path):
    (tmp_path / "prediction.txt").write_text(lines)
    with pytest.raises(KlassifyError):
        clips.official_auc(tmp_path / "prediction.txt", METADATA)
