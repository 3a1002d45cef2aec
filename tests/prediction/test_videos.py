"""The videos that a user names."""

from __future__ import annotations

import pytest

from klassify.errors import KlassifyError
from klassify.prediction.videos import find_videos


@pytest.mark.parametrize(
    ("given", "what", "fix"),
    [
        ("https://example.org/a.mp4", "This is a web address", "download it"),
        ("interveiw.mp4", "This file does not exist", "did you mean interview.mp4?"),
        ("nothing-alike", "This file does not exist", "give files"),
        ("*.mov", "There is no video or sound here", "quoted globs"),
        ("empty.mp4", "There is no video or sound here", "give files"),
    ],
)
def test_an_argument_without_a_video_says_why(tmp_path, monkeypatch, given, what, fix):
    (tmp_path / "interview.mp4").touch()
    (tmp_path / "empty.mp4").mkdir()  # a folder with a video's name
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KlassifyError, match=what) as caught:
        find_videos([given])
    assert caught.value.where == given
    assert fix in caught.value.fix
