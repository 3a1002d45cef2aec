"""What the demo tells: tables and differences from evaluations, the last message."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from places import ROOT, copy_recipes

from klassify.demo import told
from klassify.demo.plan import Step


@pytest.fixture
def folders(tmp_path):
    folder = tmp_path / "exp/demo/klassify/evaluation"
    folder.mkdir(parents=True)
    rows = [
        ("tcn", "video", "all", 0.75, 0.69, 0.79, 0.07, 0.02, 0.13),
        ("tcn", "own", "all", 0.95, 0.9, 1.0, 0.1, 0.0, 0.2),
        ("w2v_aasist", "video", "all", 0.69, 0.65, 0.74, 0.12, -0.01, 0.16),
        ("w2v_aasist", "video", "real", 0.5, 0.5, 0.5, 0.0, 0.0, 0.0),
        ("maxout", "video", "all", 0.82, 0.77, 0.87, None, None, None),
    ]
    gains = ["gain", "gain_low", "gain_high"]
    names = ["system", "label", "group", "auc", "auc_low", "auc_high", *gains]
    pd.DataFrame(rows, columns=names).to_csv(folder / "testA.tsv", sep="\t", index=False)
    rows = [
        ("tcn_tags", "all", 0.31, 0.26, 0.37, 0.1, 0.05, 0.15),
        ("bam", "all", 0.26, 0.21, 0.33, -0.3, -0.4, -0.2),
        ("merged", "all", 0.41, 0.36, 0.46, None, None, None),
        ("random", "all", 0.17, None, None, None, None, None),
    ]
    names = ["system", "group", "Score", "Score_low", "Score_high", *gains]
    pd.DataFrame(rows, columns=names).to_csv(folder / "testA.task2.tsv", sep="\t", index=False)
    return {"klassify": folder.parent, "multibranch": tmp_path / "none"}


def test_the_table_has_each_modality_both_and_guessing(folders):
    lines = told.results(folders).splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == [
        *("picture alone", "sound alone", "both (KLASSify)", "guessing")
    ]
    assert lines[2].split()[2:5] == ["0.75", "[0.69,", "0.79]"]
    assert lines[4].endswith("0.41 [0.36, 0.46]")
    assert lines[5].split() == ["guessing", "0.50", "0.17"]
    assert told.results({"fused": folders["multibranch"]}) == ""


def test_differences_are_judged_by_their_intervals(folders):
    said = told.gains(folders["klassify"] / "evaluation")
    assert said == [
        "AUC of both minus the picture: +0.07 [+0.02, +0.13], better",
        "AUC of both minus the sound: +0.12 [-0.01, +0.16], not told apart by these clips",
        "Score of both minus the picture: +0.10 [+0.05, +0.15], better",
        "Score of both minus the sound: -0.30 [-0.40, -0.20], worse",
    ]


def test_the_last_message_says_what_to_do_next(folders):
    paths = {name: f"<{name}>" for name in ("report", "submission", "logs", "predict")}
    text = told.ending(folders, 96, 24, 485.0, paths)
    assert text.startswith("Done in 8:05 min. testA: 96 generated clips of 24 sources.")
    assert all(path in text for path in paths.values())
    assert "nothing about real videos" in text and "NOT FOR UPLOAD" in text
    assert "untrained stand-in" in text and "Left out" in text


def test_each_line_has_the_clock_the_stage_and_what_is_left(capsys, monkeypatch):
    clips = Step(0, ("corpus",), "klassify", 0, 0, set(), 2, 60.0)
    models = Step(1, ("ledger",), "klassify", 2, 0, {0}, 1, 240.0)
    teller = told.Teller([clips, models], 2, {})
    monkeypatch.setattr(teller, "began", teller.began - 125)
    teller.waiting([clips])
    monkeypatch.setattr(teller, "spoke", teller.spoke - 61)
    teller.waiting([clips])
    teller.finished(clips)
    monkeypatch.setattr(teller, "began", teller.began + 125 - 30)
    teller.waiting([models])
    # 250 CPU seconds have not finished 60: at best 240 more take 4.2 times as long
    assert capsys.readouterr().out.splitlines() == [
        "  2:05  stage 1 of 2: clips (about 10 min left)",
        "  2:05  stage 1 of 2: clips, 0 of 2 commands done (about 10 min left)",
        "  0:30  stage 2 of 2: KLASSify: training (about 2 min left)",
    ]
    line = "  0:30  [##........] about 2 min left; stage 2 of 2: KLASSify: training"
    assert teller._line() == line.ljust(78)


def test_the_longest_line_of_a_terminal_keeps_stage_and_time():
    steps = [Step(n, ("ledger",), "multibranch", n, 0, set(), 1, 3600.0) for n in range(4)]
    teller = told.Teller(steps, 1, {})
    teller.stage = teller.stages[-1]
    assert "] about 240 min left; stage 4 of 4: multi-branch: test" in teller._line()


def test_the_pages_to_read_next_exist(folders, monkeypatch, tmp_path):
    paths = dict.fromkeys(("report", "submission", "logs", "predict"), "")
    monkeypatch.chdir(ROOT)
    last = told.ending(folders, 96, 24, 485.0, paths).splitlines()[-1]
    named = re.findall(r"docs/[a-z-]+[.]md", last)
    assert named and all((ROOT / name).exists() for name in named)
    copy_recipes(tmp_path / "copied")
    monkeypatch.chdir(tmp_path / "copied")
    last = told.ending(folders, 96, 24, 485.0, paths).splitlines()[-1]
    assert "docs/" not in last and Path(re.search(r"recipes/\S+", last)[0]).exists()
