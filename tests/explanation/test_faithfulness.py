"""The numbers of the checks, by hand; and what an explanation says of its times."""

import io
import json

import cv2
import numpy as np
import pytest

from klassify.explanation import picture
from klassify.explanation.axes import CELLS, Axis, pieces
from klassify.explanation.contributions import (
    FRAME_SCORES,
    Contribution,
    Explanation,
    SystemExplanation,
    span,
)
from klassify.explanation.faithfulness import inside_share, mean_by_source, on_axis


def over_time(values, hop_s=0.5, method="occlusion"):
    edges = np.arange(len(values) + 1) * hop_s
    return Contribution("time", method, "log_odds", np.array(values, float), edges)


def test_half_of_what_contributes_is_mostly():
    assert over_time([0, 1, 5, 1, 0, 0]).mostly() == (1.0, 1.5)
    assert over_time([0, 2, 2, 0, 0, -9]).mostly() == (0.5, 1.0)
    assert over_time([3, 0, 0, 3.0]).mostly() == (0.0, 0.5)
    assert over_time([1, 0, 0, 0, 0.9, 0.9]).mostly() == (2.0, 3.0)
    assert over_time([1, 1, 1, 1, 1]).mostly() is None
    assert over_time([0, -1]).mostly() is None


def test_a_short_interval_has_two_decimals():
    assert span(0.72, 1.04) == "0.7-1.0 s" and span(1.76, 1.84) == "1.76-1.84 s"


def test_frame_scores_count_as_probabilities():
    scores = over_time([-20, 4, np.nan, -20, -20], method=FRAME_SCORES)
    np.testing.assert_allclose(scores.weights(), [0, 0.982, 0, 0, 0], atol=1e-3)
    assert scores.mostly() == (0.5, 1.0)


def test_the_share_inside_true_segments():
    segments = np.array([[0.5, 1.0], [1.75, 2.0]])
    share, time = inside_share(over_time([1, 3, 0, 4]), segments)
    assert (share, time) == (pytest.approx(5 / 8), pytest.approx(0.75 / 2))
    share, time = inside_share(over_time([-1, -3]), segments)
    assert np.isnan(share)


def test_contributions_go_to_the_pieces_of_an_axis():
    axis = Axis("time", list, np.array([0, 0.75, 1.5]))
    np.testing.assert_allclose(on_axis(over_time([1, 4, 1]), axis), [2, 2])
    np.testing.assert_allclose(on_axis(over_time([1, np.nan, 4]), axis), [2 / 3, 8 / 3])
    picture = Contribution("picture", "occlusion", "log_odds", np.eye(2))
    cells = on_axis(picture, Axis("picture", list, names=("",) * CELLS**2)).reshape(CELLS, CELLS)
    assert cells[0, 0] == cells[-1, -1] == 1 and cells[0, -1] == cells[-1, 0] == 0


def test_pieces_cover_a_clip_of_any_length():
    for seconds in (0.01, 0.08, 1.0, 3.64, 100.0, 3600.0):
        edges = pieces(seconds)
        assert edges[0] == 0 and edges[-1] == pytest.approx(seconds, abs=1e-3)
        assert (np.diff(edges) > 0).all() and len(edges) <= 152


def test_means_have_intervals_over_sources():
    values, source = [1.0, 1.0, 3.0, np.nan], ["a", "a", "b", "c"]
    mean, low, high = mean_by_source(values, source)
    assert mean == pytest.approx(5 / 3) and (low, high) == (1.0, 3.0)
    assert np.isnan(mean_by_source([np.nan], ["a"])).all()


def test_an_explanation_is_plain_json_without_nan():
    system = SystemExplanation(
        "tcn", "model", "visual", "log_odds", np.nan, 0.25, (over_time([1, np.nan]),), "no face"
    )
    found = Explanation("a.mp4", "picture 0.25", {"tcn": system}).as_json()
    text = json.dumps(found, allow_nan=False)
    tcn = json.loads(text)["systems"]["tcn"]
    assert (tcn["score"], tcn["probability"], tcn["note"]) == (None, 0.25, "no face")
    contribution = {"over": "time", "method": "occlusion", "unit": "log_odds"}
    assert tcn["contributions"] == [contribution | {"edges": [0, 0.5, 1], "values": [1, None]}]


def test_the_picture_has_the_notice_below():
    system = SystemExplanation(
        "tcn", "model", "visual", "log_odds", 0.0, 0.5, (over_time([1, -1]),), ""
    )
    found, dark = Explanation("a.mp4", "picture 0.50", {"tcn": system}), []
    for notice in ("", "These answers mean nothing."):
        picture.draw(found, file := io.BytesIO(), notice=notice)
        image = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_GRAYSCALE)
        dark.append((image[-15:] < 128).sum())
    assert dark[1] > 2 * dark[0]  # beside the name of an axis
