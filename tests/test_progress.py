"""What long work says on a terminal and in a log."""

from __future__ import annotations

from klassify import progress


def test_a_log_has_a_line_a_minute_with_what_is_left(monkeypatch, capsys):
    now = iter([0.0, 30.0, 60.0, 90.0, 130.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    units = progress.progress(iter("abcd"), 4, "tune bam", unit="trial")
    assert list(units) == list("abcd")
    assert capsys.readouterr().err.splitlines() == [
        "tune bam: 2 of 4 trials, 0.0 a second, 1 min left",
        "tune bam: 4 of 4 trials, 0.0 a second, 0 min left",
    ]


def test_what_is_left_is_not_said_of_an_unknown_total(monkeypatch, capsys):
    now = iter([0.0, 30.0, 60.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    assert list(progress.progress(iter("ab"), None, "fit", unit="step")) == ["a", "b"]
    assert capsys.readouterr().err == "fit: 2 steps, 0.0 a second\n"


def test_a_terminal_shows_a_bar_of_long_work_alone(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress.progress(range(3), 3, "score val")) == [0, 1, 2]
    assert "score val" not in capsys.readouterr().err
    monkeypatch.setattr(progress, "SHORT_S", 0.0)
    assert list(progress.progress(range(3), 3, "score val")) == [0, 1, 2]
    assert "score val: 100%" in capsys.readouterr().err
