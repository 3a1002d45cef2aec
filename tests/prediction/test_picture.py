"""The copy of a video with the marks drawn in, and the picture of an answer: of odd videos too."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest

from klassify.corpus.encode import write_clip
from klassify.media import decoder
from klassify.media.container import MediaError
from klassify.prediction import picture
from klassify.prediction.answer import Prediction


def answer(segments: list[list]) -> Prediction:
    table = pd.DataFrame(segments, columns=["start", "end", "score", "modality", "method"])
    frames = {
        "s": pd.DataFrame({"start": [0.0, 0.04], "end": [0.04, 0.08], "probability": [0.2, 0.9]})
    }
    return Prediction("clip.mp4", 0.7, True, {}, table, frames, "d", "")


def clip(folder, height: int, width: int, n_frames: int = 20):
    images = [np.full((height, width, 3), 40, np.uint8)] * n_frames
    write_clip(folder / "clip.mp4", images, np.zeros(640 * n_frames, np.float32), 30, 48_000)
    return folder / "clip.mp4"


def test_marks_lie_where_the_segments_are(tmp_path):
    video, marked = clip(tmp_path, 64, 96), tmp_path / "marked.mp4"
    picture.mark(
        video,
        answer([[0.2, 0.4, 0.9, "audio", "threshold"], [0.0, 0.8, 0.05, "visual", "x"]]),
        marked,
        0.15,
    )
    frames = list(decoder.iter_frames(marked))
    red = [int(frame[0, 48, 0]) - int(frame[0, 48, 2]) > 60 for frame in frames]  # of the border
    assert len(frames) == 20 and red == [5 <= k < 10 for k in range(20)]


def test_a_marked_copy_carries_the_notice(tmp_path):
    video, marked = clip(tmp_path, 64, 96, 3), tmp_path / "marked.mp4"
    warned = dataclasses.replace(answer([]), notice="These answers mean nothing.")
    picture.mark(video, warned, marked, 0.15)
    frame = next(iter(decoder.iter_frames(marked)))
    below = frame[64:]
    assert frame.shape[1] == 96 and len(below) == 2 * picture.LINE_PIXELS  # lines of 13 letters
    assert below.max() > 150 and frame[:60].max() < 60


@pytest.mark.parametrize("shape", [(2, 2), (8, 300)])
def test_a_picture_too_small_to_draw_in_is_said(tmp_path, shape):
    with pytest.raises(MediaError, match="too small to draw in"):
        picture.mark(clip(tmp_path, *shape), answer([]), tmp_path / "marked.mp4", 0.15)
    assert not (tmp_path / "marked.mp4").exists()


def test_an_answer_without_segments_is_drawn(tmp_path):
    picture.draw(clip(tmp_path, 32, 32), answer([]), tmp_path / "clip.png", np.array([[0.1, 0.3]]))
    assert (tmp_path / "clip.png").read_bytes().startswith(b"\x89PNG")


def test_a_name_that_no_font_has_is_drawn_without_warnings(tmp_path):
    video = clip(tmp_path, 32, 32).rename(tmp_path / "日本.mp4")
    named = dataclasses.replace(answer([]), file=str(video))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        picture.draw(video, named, tmp_path / "clip.png")


def test_a_file_without_picture_and_sound_is_not_drawn(tmp_path):
    (tmp_path / "notes.mp4").write_text("no video")
    with pytest.raises(MediaError, match="neither picture nor sound"):
        picture.draw(tmp_path / "notes.mp4", answer([]), tmp_path / "notes.png")
    assert not (tmp_path / "notes.png").exists()


@pytest.mark.parametrize("shape", [(36, 64), (64, 64), (128, 32)])
def test_thumbnails_keep_their_aspect(shape, monkeypatch, tmp_path):
    drawn = []

    def imshow(panel, image, extent, **how):
        place = panel.get_window_extent()
        left, right, low, high = extent
        width = (right - left) / panel.get_xlim()[1] * place.width
        drawn.append(((high - low) * place.height / width, image.shape[0] / image.shape[1]))

    monkeypatch.setattr("matplotlib.axes.Axes.imshow", imshow)
    picture.draw(clip(tmp_path, *shape, n_frames=30), answer([]), tmp_path / "clip.png")
    assert len(drawn) == 12
    assert all(got == pytest.approx(own, rel=0.02) for got, own in drawn)
