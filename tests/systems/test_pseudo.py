"""Pseudo-labels: confident clips without labels, as many fake as real, and a record of them."""

from __future__ import annotations

import pytest
from small_systems import make_list, make_system

from klassify import cli
from klassify.lists.data_list import read_list, write_list
from klassify.lists.pseudo import read_pseudo


@pytest.fixture
def pseudo(tmp_path):
    lists = tmp_path / "lists"
    make_list(lists / "testA.tsv")
    files = sorted(read_list(lists / "testA.tsv")["file"])

    def run(scores, *more, supervision="clip"):
        system = tmp_path / "tcn"
        make_system(system, [scores[file] for file in files], supervision=supervision)
        out = tmp_path / "pseudo.tsv"
        how = ["--split", "testA", "--lists", str(lists), "--out", str(out)]
        status = cli.main(["pseudo", str(system), *how, *more])
        return status, out

    return run, lists, files


def test_equal_numbers_of_the_most_confident_clips(pseudo):
    run, _, files = pseudo
    scores = dict(zip(files, (0.995, 0.99, 0.01, float("nan"))))
    status, out = run(scores, "--transductive")
    assert status == 0
    table, record = read_pseudo(out)
    assert dict(zip(table["file"], table["modify_type"])) == {
        files[0]: "audio_modified",
        files[2]: "real",
    }
    assert (record.split, record.modality, record.supervision) == ("testA", "audio", "clip")
    assert (record.fake_from, record.real_to, record.n_clips) == (0.98, 0.02, 4)


def test_test_splits_and_labels_and_one_class_are_refused(pseudo, capsys):
    run, lists, files = pseudo
    scores = dict(zip(files, (0.995, 0.99, 0.5, 0.5)))
    assert run(scores)[0] == 2 and "--transductive" in capsys.readouterr().err
    assert run(scores, "--transductive")[0] == 2
    assert "2 of 4 clips" in (said := capsys.readouterr().err) and "0 one of 0.02" in said
    assert run(scores, "--transductive", "--real-to", "0.99")[0] == 2
    frame = read_list(lists / "testA.tsv")
    write_list(lists / "testA.tsv", frame.assign(modify_type=["real", "", "", ""]))
    assert run(scores, "--transductive")[0] == 2 and "1 of 4 clips" in capsys.readouterr().err
