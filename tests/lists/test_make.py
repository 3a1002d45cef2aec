"""Lists are made once, their media measured, and their faults recorded."""

from __future__ import annotations

import argparse
import json

import pytest
from metadata import entry, family, make, run_lists

from klassify.commands import lists
from klassify.lists import data_list, subsets
from klassify.lists.make import _probe_all
from klassify.media import info, isolated
from klassify.media.container import MediaError

TRAIN = ("--splits", "train")


@pytest.fixture
def probed(monkeypatch):

    def probe(path):
        if path.stat().st_size == 0:
            raise MediaError("This file is empty.", where=path)
        return info.MediaInfo(120, 24.0, 64, 64, 80_000, 5.0, True, True)

    monkeypatch.setattr(isolated, "probe", probe)


def test_probing_names_missing_files_and_keeps_every_clip(tmp_path, probed):
    (tmp_path / "train").mkdir()
    for name, content in (("a.mp4", b"x"), ("b.mp4", b"x"), ("empty.mp4", b"")):
        (tmp_path / "train" / name).write_bytes(content)
    entries = [
        entry("a.mp4"),
        entry("b.mp4", video_frames=None),
        entry("empty.mp4", audio_frames=None),
        entry("gone.mp4"),
    ]
    frame, faults = make(tmp_path, entries, "train", "--probe", "missing")
    assert len(frame) == 4
    assert frame["n_frames"].tolist()[:2] == [100, 120]
    assert frame["duration"][1] == 5.0
    assert faults[["row", "file", "action"]].values.tolist() == [
        [3, "empty.mp4", "kept"],
        [4, "gone.mp4", "kept"],
    ]
    frame, _ = make(tmp_path, entries, "train", "--probe", "all", "--force")
    assert frame["n_frames"].tolist() == [120, 120, 100, 100] and frame["fps"][0] == 24.0


@pytest.mark.parametrize("probe", ["none", "missing", "all"])
def test_an_impossible_file_name_is_kept_like_a_missing_file(tmp_path, probed, probe):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.mp4").write_bytes(b"x")
    long = "x" * 300 + ".mp4"
    frame, faults = make(tmp_path, [entry(long), entry("a.mp4")], "train", "--probe", probe)
    assert frame["file"].tolist() == [long, "a.mp4"]
    assert (
        faults is None
        if probe == "none"
        else faults[["row", "action"]].values.tolist() == [[1, "kept"]]
    )


def test_an_impossible_header_is_a_fault_and_the_clip_stays(tmp_path, monkeypatch):

    claim = info.MediaInfo(-5, 25.0, 64, 64, 10**17, 4.0, True, True)
    monkeypatch.setattr(isolated, "probe", lambda path: claim)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.mp4").write_bytes(b"x")
    frame, faults = make(
        tmp_path, [entry("a.mp4", video_frames=None)], "train", "--probe", "missing"
    )
    assert frame["n_frames"].isna().all() and faults["action"].tolist() == ["kept"]
    assert (
        faults["problem"][0] == "Its header claims n_frames of -5, n_samples of 100000000000000000."
    )


def test_probing_in_processes_gives_what_one_process_gives(tmp_path):
    paths = [tmp_path / f"{i}.mp4" for i in range(70)]
    for path in paths:
        path.write_bytes(b"no media")
    one, two = (dict(_probe_all(paths, jobs)) for jobs in (1, 2))
    assert one == two and all(isinstance(result, str) for result in one.values())


def test_a_list_is_made_once_and_other_inputs_are_refused(tmp_path, capsys):
    make(tmp_path, family("a"))
    written = (tmp_path / "lists" / "train.tsv").stat().st_mtime_ns
    make(tmp_path, family("a"))
    assert (tmp_path / "lists" / "train.tsv").stat().st_mtime_ns == written
    (tmp_path / "train_metadata.json").write_text(json.dumps(family("b")))
    assert run_lists(tmp_path, *TRAIN) == 2 and "hash" in capsys.readouterr().err
    assert run_lists(tmp_path, *TRAIN, "--force") == 0
    assert subsets.load_split(tmp_path / "lists", "train")["file"][0] == "b/real.mp4"


@pytest.mark.parametrize("record", ["[]", "[1]", "1", "{}", '{"made_with": {}, "faults": [1]}'])
def test_a_record_without_a_list_is_refused_unless_forced(tmp_path, record, capsys):
    make(tmp_path, family("a"))
    (tmp_path / "lists/train.json").write_text(record)
    assert run_lists(tmp_path, *TRAIN) == 2 and "lists/train.json" in capsys.readouterr().err
    assert run_lists(tmp_path, *TRAIN, "--force") == 0 and run_lists(tmp_path, *TRAIN) == 0


def test_a_list_that_was_replaced_has_no_record_of_another(tmp_path, monkeypatch):
    make(tmp_path, family("a"))

    def killed(path, table):
        data_list.write_list(path, table)
        raise KeyboardInterrupt

    monkeypatch.setattr("klassify.lists.make.write_list", killed)
    (tmp_path / "train_metadata.json").write_text(json.dumps(family("b")))
    with pytest.raises(KeyboardInterrupt):
        lists.run(_arguments(tmp_path, "--force"))
    monkeypatch.undo()
    (tmp_path / "train_metadata.json").write_text(json.dumps(family("a")))
    assert run_lists(tmp_path, *TRAIN) == 0
    assert subsets.load_split(tmp_path / "lists", "train")["file"][0] == "a/real.mp4"


def _arguments(root, *extra):
    parser = argparse.ArgumentParser()
    lists.configure(parser)
    return parser.parse_args(
        ["--data=avdeepfake1mpp", f"--root={root}", f"--out={root / 'lists'}", *extra]
    )


def test_strict_exits_with_1_and_stale_faults_go(tmp_path):
    make(tmp_path, [entry("a.mp4"), entry("a.mp4")])
    assert (tmp_path / "lists" / "train.failures.tsv").exists()
    assert run_lists(tmp_path, *TRAIN, "--strict") == 1
    make(tmp_path, [entry("a.mp4")], "train", "--force")
    assert not (tmp_path / "lists" / "train.failures.tsv").exists()
    assert run_lists(tmp_path, *TRAIN, "--strict") == 0


def test_heldout_labels_lie_apart_from_the_unlabelled_list(tmp_path):
    (tmp_path / "testA_files.txt").write_bytes(b"b.mp4\r\n\r\na.mp4\n")
    (tmp_path / "heldout").mkdir()
    (tmp_path / "heldout" / "testA_metadata.json").write_text(
        json.dumps([entry("a.mp4"), entry("b.mp4")])
    )
    assert run_lists(tmp_path) == 0
    frame = subsets.load_split(tmp_path / "lists", "testA")
    assert frame["file"].tolist() == ["b.mp4", "a.mp4"] and (frame["modify_type"] == "").all()
    labels = data_list.read_list(tmp_path / "lists" / "heldout" / "testA_labels.tsv")
    assert labels["modify_type"].tolist() == ["real", "real"]


@pytest.mark.parametrize("split", ["testZ", "../train", "val_fit", ""])
def test_splits_that_are_not_there_are_refused(tmp_path, split, capsys):
    (tmp_path / "train_metadata.json").write_text(json.dumps(family("a")))
    assert run_lists(tmp_path, f"--splits={split}x" if split == "" else f"--splits={split}") == 2
    assert "klassify lists" in capsys.readouterr().err
