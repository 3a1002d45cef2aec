"""The list of what the tests do not run: its form, and that gaps in it are noticed."""

from __future__ import annotations

import json
import re

import coverage_gaps
import pytest
from places import ROOT
from test_house import modules


def function(missing: int, lines: int) -> dict:
    return {
        "summary": {
            "missing_lines": missing,
            "num_statements": lines,
            "covered_lines": lines - missing,
        }
    }


REPORT = {
    "files": {
        "klassify/a.py": {
            "functions": {"": function(0, 5), "one": function(3, 9), "two": function(4, 9)},
            **function(7, 23),
        },
        "klassify/x/b.py": {
            "functions": {"": function(1, 1), "C.all": function(2, 2)},
            **function(3, 3),
        },
    }
}


def test_gaps_without_a_reason_and_reasons_without_a_gap_fail(tmp_path, monkeypatch, capsys):
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    monkeypatch.setattr(coverage_gaps, "REASONS", tmp_path / "reasons.tsv")
    for text, status, said in (
        ("klassify/a.py:two\tneeds a GPU\nklassify/x/*\tneeds a GPU\n", 0, ""),
        ("klassify/x/*\tneeds a GPU\n", 1, "NO REASON  klassify/a.py:two: 4 of 9"),
        ("klassify/*\tneeds a GPU\nklassify/y.py\tgone\n", 1, "NO GAP     klassify/y.py"),
    ):
        (tmp_path / "reasons.tsv").write_text(text)
        assert coverage_gaps.main([str(tmp_path / "report.json")]) == status
        captured = capsys.readouterr()
        assert said in captured.err and "needs a GPU" in captured.out
    (tmp_path / "reasons.tsv").write_text("klassify/a.py:two no tab\n")
    with pytest.raises(SystemExit, match="a tab and the reason"):
        coverage_gaps.main([str(tmp_path / "report.json")])


def test_reasons_name_what_is_there():
    files = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in modules().values()
    }
    for pattern, _ in coverage_gaps.reasons(coverage_gaps.REASONS.read_text(encoding="utf-8")):
        file, _, name = pattern.rstrip("*").partition(":")
        last = name.rpartition(".")[2].rstrip("*")
        assert file in files
        assert not last or re.search(rf"\b(def|class) {re.escape(last)}", files[file])
