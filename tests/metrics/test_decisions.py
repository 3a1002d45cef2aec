"""Thresholds, costs and Cllr against obvious code, scikit-learn and simulations."""

import itertools

import numpy as np
import pytest
from scipy.stats import beta
from sklearn.metrics import log_loss, roc_auc_score

from klassify.metrics import clips, decisions
from klassify.metrics.decisions import Cost


def cases(n_cases=60):
    for seed in range(n_cases):
        rng = np.random.default_rng(seed)
        label = np.append(rng.integers(0, 2, int(rng.integers(2, 50))), [0, 1])
        score = rng.normal(size=len(label)) + label
        yield label, np.round(score, seed % 3)  # many ties, some, few


def rates_by_hand(label, score, threshold):
    return np.mean(score[label == 0] > threshold), np.mean(score[label == 1] <= threshold)


def candidates(score):
    """A threshold below all scores, and one above each of them."""
    distinct = np.unique(score)
    return [distinct[0] - 1, *(distinct[:-1] + distinct[1:]) / 2, distinct[-1]]


def test_lowest_cost_equals_trying_every_threshold():
    for number, (label, score) in enumerate(cases()):
        cost = [Cost(), Cost(0.5, 1, 1), Cost(0.3, 1, 7)][number % 3]
        found, threshold = decisions.min_cost(clips.Ranking(label, score), cost)
        rates = [rates_by_hand(label, score, at) for at in candidates(score)]
        weighed = [
            cost.prior * cost.miss * miss + (1 - cost.prior) * cost.false_alarm * alarm
            for alarm, miss in rates
        ]
        blind = min(cost.prior * cost.miss, (1 - cost.prior) * cost.false_alarm)
        assert found == pytest.approx(min(weighed) / blind) and found <= 1
        again = cost.of(*rates_by_hand(label, score, threshold))
        assert again == pytest.approx(found)  # the threshold has the cost that it is said to have


def test_default_cost_is_that_of_asvspoof_5():
    """Its plan: normalised DCF = 1.9 P(bona fide refused) + P(spoof accepted)."""
    assert Cost().of(1.0, 0.0) == pytest.approx(1.9) and Cost().of(0.0, 1.0) == 1
    assert Cost().threshold == pytest.approx(np.log(1.9))


def test_threshold_at_equal_errors_has_the_equal_error_rate():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 500)
    score = rng.normal(label, 1)
    threshold = decisions.eer_threshold(clips.Ranking(label, score))
    alarms, misses = rates_by_hand(label, score, threshold)
    assert alarms == pytest.approx(misses, abs=2 / 500)
    assert alarms == pytest.approx(clips.eer(label, score), abs=2 / 500)
    apart = decisions.eer_threshold(clips.Ranking([0, 0, 1, 1], [1.0, 2.0, 4.0, 5.0]))
    assert apart == 3  # in the middle of the gap
    weights = np.array([[1, 1, 0, 0], [1, 1, 1, 1]])  # no fake clip in the first resample
    found = decisions.eer_threshold(clips.Ranking([0, 0, 1, 1], [1.0, 2.0, 4.0, 5.0]), weights)
    np.testing.assert_array_equal(found, [np.nan, 3])


def slow_tail(score, rate):
    """By conformal p-values: the lowest score that is not itself surprising enough."""
    surprising = [
        at for at in np.unique(score) if (1 + np.sum(score > at)) / (len(score) + 1) <= rate + 1e-9
    ]
    return min(surprising, default=np.nan)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_tail_threshold_equals_conformal_p_values(rate):
    for label, score in cases(40):
        copies = np.tile(score, 1 + len(label) % 4)
        found, expected = decisions.tail_threshold(copies, rate), slow_tail(copies, rate)
        assert found == expected or (np.isnan(found) and np.isnan(expected))


def test_tail_threshold_needs_enough_clips():
    score = np.arange(99.0)
    assert decisions.tail_threshold(score, 0.01) == 98
    assert np.isnan(decisions.tail_threshold(score[:98], 0.01))
    assert np.isnan(decisions.tail_threshold(np.zeros(0), 0.5))
    weights = np.stack([np.full(99, 1.0), np.full(99, 0.5)])  # pairs of clips of one source
    found = decisions.tail_threshold(score, 0.01, weights)
    assert found[0] == 98 and np.isnan(found[1])


@pytest.mark.parametrize("n", [99, 150, 400])
def test_new_clips_exceed_a_tail_threshold_as_promised(n):
    rng = np.random.default_rng(n)
    fitted = [decisions.tail_threshold(rng.uniform(size=n), 0.01) for _ in range(4000)]
    assert 0.004 < 1 - np.mean(fitted) <= 0.0104  # the share of new scores above, 1 - threshold


def test_copies_of_clips_do_not_make_a_threshold_bolder():
    rng = np.random.default_rng(0)
    score = rng.uniform(size=120)
    copies, weights = np.repeat(score, 4), np.full(480, 0.25)
    assert decisions.tail_threshold(copies, 0.01, weights) == decisions.tail_threshold(score, 0.01)


def test_thresholds_of_weights_are_those_of_copies():
    cost = Cost(0.3, 2, 1)
    for label, score in cases(20):
        times = np.random.default_rng(len(label)).integers(1, 4, (3, len(label)))
        ranking = clips.Ranking(label, score)
        found, at = decisions.min_cost(ranking, cost, times)
        equal = decisions.eer_threshold(ranking, times)
        tail = decisions.tail_threshold(score, 0.2, times)
        for i, each in enumerate(times):
            again = clips.Ranking(np.repeat(label, each), np.repeat(score, each))
            np.testing.assert_allclose(decisions.min_cost(again, cost), (found[i], at[i]))
            np.testing.assert_allclose(decisions.eer_threshold(again), equal[i])
            expected = decisions.tail_threshold(np.repeat(score, each), 0.2)
            np.testing.assert_allclose(expected, tail[i])


def test_cllr_is_the_balanced_log_loss_in_bits():
    for label, score in cases(30):
        weight = np.where(label == 1, 0.5 / label.sum(), 0.5 / (1 - label).sum())
        probability = 1 / (1 + np.exp(-score))
        expected = log_loss(label, probability, sample_weight=weight) / np.log(2)
        assert decisions.cllr(label, score) == pytest.approx(expected)
    assert decisions.cllr(np.array([0, 1]), np.zeros(2)) == 1
    assert np.isnan(decisions.cllr(np.array([1, 1]), np.zeros(2)))


def pooled(label, score):
    """Isotonic probabilities by merging neighbours that are out of order."""
    blocks = [[label[score == at].sum(), (score == at).sum()] for at in np.unique(score)]
    at = 0
    while at + 1 < len(blocks):
        (a, n), (b, m) = blocks[at], blocks[at + 1]
        if a / n > b / m:
            blocks[at : at + 2] = [[a + b, n + m]]
            at = max(at - 1, 0)
        else:
            at += 1
    size = [n for _, n in blocks]
    order = np.argsort(score, kind="stable")
    probability = np.empty(len(score))
    probability[order] = np.repeat([a / n for a, n in blocks], size)
    return probability


def test_min_cllr_equals_pooling_by_hand():
    for label, score in cases(40):
        p, base = pooled(label, score), label.mean()
        with np.errstate(divide="ignore"):
            ratio = p / (1 - p) * (1 - base) / base
            bits = np.where(label == 1, np.log2(1 + 1 / ratio), np.log2(1 + ratio))
        expected = (bits[label == 1].mean() + bits[label == 0].mean()) / 2
        assert decisions.min_cllr(label, score) == pytest.approx(expected, abs=1e-9)
        assert decisions.min_cllr(label, score) <= decisions.cllr(label, score) + 1e-9
    assert decisions.min_cllr([0, 0, 1], [0.1, 0.2, 0.3]) == 0
    assert np.isnan(decisions.min_cllr([1, 1], [0.1, 0.2]))


def test_actual_cost_of_calibrated_scores_is_near_the_lowest():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 20_000)
    llr = 2 * rng.normal(2 * label - 1, 1)  # exact LLRs of two Gaussians
    cost = Cost(0.2, 3, 1)
    lowest, at = decisions.min_cost(clips.Ranking(label, llr), cost)
    assert decisions.actual_cost(label, llr, cost) == pytest.approx(lowest, abs=0.01)
    assert at == pytest.approx(cost.threshold, abs=0.3)
    shifted = decisions.actual_cost(label, llr + 3, cost)
    assert shifted == pytest.approx(cost.of(*rates_by_hand(label, llr + 3, cost.threshold)))
    assert shifted > lowest + 0.1
    assert decisions.min_cllr(label, llr) == pytest.approx(decisions.cllr(label, llr), abs=0.01)


def test_interval_of_independent_clips_is_clopper_pearsons():
    error = np.arange(40) < 6
    share, ends = decisions.rate_with_interval(error, np.arange(40))
    assert share == 0.15
    assert ends == pytest.approx((beta.ppf(0.025, 6, 35), beta.ppf(0.975, 7, 34)))
    share, ends = decisions.rate_with_interval(np.zeros(80, bool), np.arange(80) // 4)
    assert (share, ends.low) == (0, 0) and ends.high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert decisions.rate_with_interval(np.ones(5, bool), np.arange(5))[1].high == 1
    assert decisions.rate_with_interval(np.ones(3, bool), ["a"] * 3) == (1, (0, 1))
    assert np.isnan(decisions.rate_with_interval(np.zeros(0, bool), [])[0])


@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_intervals_of_dependent_clips_hold_the_rate(rate):
    """40 sources of five clips, whose clips mostly err together."""
    rng, source, held = np.random.default_rng(0), np.repeat(np.arange(40), 5), 0
    for _ in range(400):
        together = np.repeat(rng.random(40) < rate, 5)
        error = np.where(rng.random(200) < 0.7, together, rng.random(200) < rate)
        _, (low, high) = decisions.rate_with_interval(error, source)
        held += low <= rate <= high
    assert held >= 0.93 * 400


def slow_tandem(kind, audio, visual):
    """Every pair of thresholds."""
    best = 1.0
    thresholds = [[-np.inf, *np.unique(score)] for score in (audio, visual)]
    for a, v in itertools.product(*thresholds):
        accepted = (audio <= a) & (visual <= v)
        errors = [
            np.mean(~accepted[kind == "real"]),
            np.mean(accepted[kind == "audio_modified"]),
            np.mean(accepted[kind == "visual_modified"]),
        ]
        best = min(best, max(errors))
    return best


def tandem_scores(seed, n=60, gap=1.5):
    rng = np.random.default_rng(seed)
    kind = np.array(["real", "audio_modified", "visual_modified", "both_modified"])[
        np.append(rng.integers(0, 4, n), [0, 1, 2])
    ]
    heard = np.isin(kind, ["audio_modified", "both_modified"])
    seen = np.isin(kind, ["visual_modified", "both_modified"])
    return kind, *(np.round(rng.normal(gap * part, 1), 1) for part in (heard, seen))


def test_tandem_eer_equals_trying_every_pair():
    for seed in range(8):
        kind, audio, visual = tandem_scores(seed)
        found = decisions.Tandem(kind, audio, visual).eer()
        assert found == pytest.approx(slow_tandem(kind, audio, visual))
        order = decisions.Tandem(kind, np.exp(audio), visual**3).eer()
        assert order == pytest.approx(found)


def test_tandem_eer_of_a_perfect_part_is_the_eer_of_the_other():
    kind, audio, _ = tandem_scores(0, 3000)
    seen = np.isin(kind, ["visual_modified", "both_modified"])
    found = decisions.Tandem(kind, audio, seen.astype(float)).eer()
    of_audio = np.isin(kind, ["real", "audio_modified"])
    expected = clips.eer((kind == "audio_modified")[of_audio], audio[of_audio])
    assert found == pytest.approx(expected, abs=0.01)
    times = np.random.default_rng(1).integers(0, 3, len(kind))
    copies = [np.repeat(values, times) for values in (kind, audio, seen)]
    again = decisions.Tandem(*copies).eer()
    assert decisions.Tandem(kind, audio, seen).eer(times.astype(float)) == pytest.approx(again)


def test_tandem_eer_needs_all_three_kinds():
    kind, audio, visual = tandem_scores(0)
    rest = kind != "visual_modified"
    assert np.isnan(decisions.Tandem(kind[rest], audio[rest], visual[rest]).eer())


def test_many_scores_are_ranked_by_few_thresholds():
    kind, audio, visual = tandem_scores(3, 2000)
    audio, visual = (x + np.random.default_rng(0).normal(0, 0.02, len(x)) for x in (audio, visual))
    tandem = decisions.Tandem(kind, audio, visual)
    assert max(tandem.shape) <= decisions.GRID + 1
    rounded = slow_tandem(kind, np.round(4 * audio), np.round(4 * visual))
    assert tandem.eer() == pytest.approx(rounded, abs=0.02)
    label = (kind != "real").astype(int)
    assert roc_auc_score(label, audio + visual) > 0.7  # the made-up scores are worth ranking
