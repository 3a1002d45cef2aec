"""Official metadata of every kind, with every fault that we know of, becomes a list."""

from __future__ import annotations

import json
import os

import pandas as pd
import pytest
import released
from metadata import entry, family, make, run_lists

from klassify.errors import KlassifyError
from klassify.lists import data_list, official, records, subsets


def test_official_metadata_becomes_a_list(tmp_path):
    entries = family("vox_celeb_2/id01358/_1nATum8x78/00030", audio_model="yourtts")
    frame, faults = make(tmp_path, entries)
    assert faults is None and frame["file"].tolist() == [e["file"] for e in entries]
    assert frame["duration"].tolist() == [4.0] * 4 and frame["n_samples"].tolist() == [64000] * 4
    assert set(frame["source"]) == {"vox_celeb_2/id01358/_1nATum8x78/00030/real"}
    assert frame["audio_fake_segments"].tolist() == [[], [[1.0, 1.5]], [], [[1.0, 1.5]]]
    assert set(frame["speaker"]) == {"id01358"} and set(frame["dataset"]) == {"vox_celeb_2"}
    record = json.loads((tmp_path / "lists" / "train.json").read_text())
    assert record["clips"] == 4 and record["types"]["real"] == 1 and record["media"] is None


def test_both_spellings_of_both_modified_are_read(tmp_path):
    one = [[1.0, 1.5]]
    frame, faults = make(
        tmp_path,
        [
            entry("a.mp4", "both_modified", one),
            entry("b.mp4", "both-modified", one, audio_fake_segments=one, visual_fake_segments=one),
        ],
    )
    assert faults is None and set(frame["modify_type"]) == {"both_modified"}
    assert frame["audio_fake_segments"].tolist() == [one, one]


def test_clips_of_one_original_share_a_source(tmp_path):
    upstream = "VoxCeleb2/dev/mp4/id1/x/1.mp4"
    frame, _ = make(
        tmp_path,
        [
            entry("u/real.mp4", original=upstream),
            entry("u/real_p1.mp4", original="u/real.mp4"),  # a perturbed part of it
            entry("u/fake_p1.mp4", "audio_modified", [[1, 2]], original="u/real_p1.mp4"),
            entry("u/fake.mp4", "audio_modified", [[1, 2]], original="train/u/real.mp4"),
            # whose real is not listed
            entry("v/fake.mp4", "audio_modified", [[1, 2]], original="v/real.mp4"),
            entry("w.v1/alone.mp4"),
            entry("x/self.mp4", original="x/self.mp4"),
            entry("y/1.mp4", original="y/2.mp4"),
            entry("y/2.mp4", original="y/1.mp4"),
        ],
    )
    source = dict(zip(frame["file"], frame["source"]))
    assert {source[f"u/{name}.mp4"] for name in ("real", "real_p1", "fake", "fake_p1")} == {
        upstream[:-4]
    }
    assert source["v/fake.mp4"] == "v/real" and source["w.v1/alone.mp4"] == "w.v1/alone"
    assert source["x/self.mp4"] == "x/self" and source["y/1.mp4"] in ("y/1", "y/2")


UNSAFE = (
    *("a\nb.mp4", "a\tb.mp4", "../a.mp4", "x/../../a.mp4", "/abs.mp4", "C:\\a.mp4", "a;b.mp4", ""),
    *("a\x00.mp4", " a.mp4"),
)
REPEATED = entry("a.mp4", "audio_modified", [[1, 2]])
NAMELESS = [entry("x.mp4", "deepfaked"), entry("x.mp4", None), {"no": "file"}, entry(7), "x", None]


@pytest.mark.parametrize(
    "bad, problem",
    [*((entry(name), "unsafe file name") for name in UNSAFE), *((one, "") for one in NAMELESS)]
    + [(REPEATED, "appeared before")],
)
def test_entries_that_are_not_clips_are_skipped_and_listed(tmp_path, bad, problem):
    frame, faults = make(tmp_path, [entry("a.mp4"), bad, entry("b.mp4")])
    assert frame["file"].tolist() == ["a.mp4", "b.mp4"] and frame["modify_type"][0] == "real"
    assert faults[["row", "action"]].values.tolist() == [[2, "skipped"]]
    assert problem in faults["problem"][0]


@pytest.mark.parametrize(
    "key, value",
    [
        ("video_frames", 100.5),
        ("video_frames", 1e300),
        ("video_frames", 99999999999999999999999),
        ("video_frames", -1),
        ("audio_frames", 0.25),
        ("audio_frames", "many"),
        ("audio_frames", [1]),
        ("fps", 0),
        ("fps", 1e-320),
        ("fps", 1e300),
        ("duration", -1),
        ("duration", "nan"),
    ],
)
def test_numbers_that_no_clip_can_have_are_emptied_and_listed(tmp_path, key, value):
    frame, faults = make(tmp_path, [entry("a.mp4"), entry("b.mp4", **{key: value})])
    unknown, _ = make(tmp_path, [entry("a.mp4"), entry("b.mp4", **{key: None})], "val")
    pd.testing.assert_frame_equal(frame, unknown)
    assert faults[["row", "file", "action"]].values.tolist() == [[2, "b.mp4", "repaired"]]
    assert faults["problem"][0].startswith(f"{key} cannot be ")


@pytest.mark.parametrize("key", ["original", "speaker", "dataset", "audio_model", "video_model"])
@pytest.mark.parametrize("character", ["\t", "\n", "\r", "\x00", "\x1b"])
def test_control_characters_in_texts_are_replaced_and_listed(tmp_path, key, character):
    fakes = [
        entry(f"{name}.mp4", "audio_modified", [[1, 2]], **{key: f"x{character}y"}) for name in "ab"
    ]
    frame, faults = make(tmp_path, [*fakes, entry("c.mp4")])
    assert frame["source" if key == "original" else key].tolist()[:2] == ["x\ufffdy"] * 2
    assert faults[["row", "file", "action"]].values.tolist() == [
        [1, "a.mp4", "repaired"],
        [2, "b.mp4", "repaired"],
    ]
    assert set(faults["problem"]) == {f"control characters in {key}: replaced"}


@pytest.mark.parametrize(
    "bad, problem",
    [
        (entry("x.mp4", "audio_modified", [[2.0, 1.0]]), "[2, 1]"),
        (entry("x.mp4", "audio_modified", [[1.0, 1.0]]), "[1, 1]"),
        (entry("x.mp4", "audio_modified", [[-0.1, 1.0]]), "[-0.1, 1]"),
        (entry("x.mp4", "audio_modified", [[3.0, 4.3]]), "in a clip of 4 s"),
        (entry("x.mp4", "audio_modified", [[1.0, 2.0, 3.0]]), "not a list of [start, end]"),
        (entry("x.mp4", "audio_modified", [[1.0, "2"]]), "not a list of [start, end]"),
        (
            entry("x.mp4", "audio_modified", [[1.0, 2.0]], fake_segments="1-2"),
            "not a list of [start, end]",
        ),
        (entry("x.mp4", "real", fake_segments=""), "not a list of [start, end]"),
        (
            entry("x.mp4", "audio_modified", [[1, 2]], audio_fake_segments=[[2.5, 3]]),
            "outside fake_segments",
        ),
        (entry("x.mp4", "real", [[1.0, 2.0]]), "modify_type is real"),
        (entry("x.mp4", "visual_modified", []), "modify_type is visual_modified"),
    ],
)
def test_impossible_segments_are_dropped_and_the_clip_stays(tmp_path, bad, problem):
    """Task 1 learns from modify_type alone: what it gets may not depend on segments."""
    frame, faults = make(tmp_path, [entry("a.mp4"), bad])
    assert frame["file"].tolist() == ["a.mp4", "x.mp4"]
    assert frame["modify_type"][1] == bad["modify_type"]
    assert frame.loc[1, list(data_list.SEGMENTS)].tolist() == [None] * 3
    assert faults["row"].tolist() == [2]
    assert faults["action"][0] == "segments dropped"
    assert problem in faults["problem"][0]


def test_the_task_1_view_is_the_same_without_any_segments(tmp_path):
    entries = family("a") + [
        entry("x.mp4", "audio_modified", [[2.0, 1.0]]),
        entry("y.mp4", "real", [[1, 2]]),
    ]
    stripped = [{k: v for k, v in e.items() if "segments" not in k} for e in entries]
    views = []
    for name, version in (("with", entries), ("without", stripped)):
        (tmp_path / name).mkdir()
        make(tmp_path / name, version)
        views.append(subsets.load_split(tmp_path / name / "lists", "train"))
    pd.testing.assert_frame_equal(*views)


def test_segments_in_tolerance_and_unmerged_unions_are_kept(tmp_path):
    union = [[0.5, 1.0], [0.8, 1.4], [3.0, 4.15]]
    good = entry(
        "a.mp4",
        "both_modified",
        union,
        audio_fake_segments=[[0.8, 1.4]],
        visual_fake_segments=[[0.5, 1.0], [3.0, 4.15]],
    )
    frame, faults = make(tmp_path, [good])
    assert faults is None and frame["fake_segments"][0] == union


def test_segments_of_the_untouched_modality_are_emptied(tmp_path):
    """AV-Deepfake1M repeats a segment in the other modality's list of some thousand clips."""
    frame, faults = make(
        tmp_path, [entry("a.mp4", "audio_modified", [[1, 2]], visual_fake_segments=[[1, 2]])]
    )
    assert frame["visual_fake_segments"][0] == [] and frame["audio_fake_segments"][0] == [[1, 2]]
    assert faults["action"].tolist() == ["repaired"]


def test_lavdf_has_flags_and_one_file_for_all_splits(tmp_path):
    released.lav_df(tmp_path)
    for split in ("train", "val"):
        assert run_lists(tmp_path, "--splits", split, data="lavdf") == 0
    train = subsets.load_split(tmp_path / "lists", "train", segments=True)[:3]
    assert train["modify_type"].tolist() == ["real", "audio_modified", "both_modified"]
    assert train["audio_fake_segments"].tolist() == [[], released.ONE, released.ONE]
    assert train["visual_fake_segments"].tolist() == [[], [], released.ONE]
    assert train["duration"].tolist() == [4.224] * 3 and train["source"].nunique() == 1
    assert subsets.load_split(tmp_path / "lists", "val")["file"][0].startswith("dev/")
    assert json.loads((tmp_path / "lists/train.json").read_text())["media"] == str(tmp_path)


@pytest.mark.parametrize("folder", ["train", "train/train", "train_metadata"])
def test_sidecars_are_read_where_there_is_no_common_metadata(tmp_path, folder):
    for one in family("id00012/u/00001"):
        path = tmp_path / folder / one["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(one))
    (tmp_path / folder / "broken.json").write_text("{")
    assert run_lists(tmp_path, "--splits", "train") == 0
    frame = subsets.load_split(tmp_path / "lists", "train")
    assert len(frame) == 4
    assert set(frame["source"]) == {"id00012/u/00001/real"}
    assert set(frame["speaker"]) == {"id00012"}
    assert "broken.mp4" in (tmp_path / "lists" / "train.failures.tsv").read_text()


def test_sidecars_that_cannot_be_read_are_skipped_and_listed(tmp_path):
    folder = tmp_path / "train_metadata"
    (folder / "folder.json").mkdir(parents=True)
    os.mkfifo(folder / "pipe.json")
    (folder / "loop.json").symlink_to("loop.json")
    (folder / "nowhere.json").symlink_to("gone")
    for name in (b"good.json", b"caf\xe9.json", b"named\xe9.json"):
        one = entry("named.mp4") if name.startswith(b"named") else {"modify_type": "real"}
        (folder / os.fsdecode(name)).write_text(json.dumps(one))
    assert run_lists(tmp_path, "--splits", "train") == 0
    assert subsets.load_split(tmp_path / "lists", "train")["file"].tolist() == [
        "good.mp4",
        "named.mp4",
    ]
    faults = pd.read_csv(tmp_path / "lists" / "train.failures.tsv", sep="\t")
    irregular = "its JSON is not a regular file"
    assert dict(zip(faults["file"], faults["problem"])) == {
        "caf\ufffd.mp4": "unsafe file name",
        "folder.mp4": irregular,
        "loop.mp4": irregular,
        "nowhere.mp4": irregular,
        "pipe.mp4": irregular,
    }
    assert set(faults["action"]) == {"skipped"}
    assert run_lists(tmp_path, "--splits", "train", "--strict") == 1


@pytest.mark.parametrize(
    "name", ["train_metadata.json", "train_files.txt", "heldout/testA_metadata.json"]
)
def test_a_pipe_in_place_of_metadata_is_refused(tmp_path, name, capsys):
    (tmp_path / "heldout").mkdir()
    (tmp_path / "testA_files.txt").write_text("a.mp4\n")
    os.mkfifo(tmp_path / name)
    assert run_lists(tmp_path) == 2 and "klassify lists: " in capsys.readouterr().err


def test_a_pipe_is_not_a_data_list(tmp_path):
    os.mkfifo(tmp_path / "x.tsv")
    with pytest.raises(KlassifyError, match="not a regular file"):
        data_list.read_list(tmp_path / "x.tsv")
    with pytest.raises(KlassifyError, match="not a regular file"):
        official.read_names(tmp_path / "x.tsv")


@pytest.mark.parametrize("text", ["a.mp4\na.mp4\n", "../a.mp4\n", "\n", "a;b.mp4\n", "\xff"])
def test_a_file_list_is_taken_whole_or_refused(tmp_path, text, capsys):
    """Every listed file needs an answer, so none may be left out in silence."""
    (tmp_path / "testA_files.txt").write_bytes(text.encode("latin-1"))
    assert run_lists(tmp_path) == 2 and "testA_files.txt" in capsys.readouterr().err


def test_a_name_that_is_not_utf8_is_refused_with_its_line(tmp_path, capsys):
    (tmp_path / "testA_files.txt").write_bytes("a.mp4\r\né.mp4\r\n".encode() + b"caf\xe9.mp4\r\n")
    assert run_lists(tmp_path) == 2
    said = capsys.readouterr().err
    assert "testA_files.txt:3" in said and r"caf\xe9.mp4" in said


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "empty"),
        ("{}", "an object with no as keys"),
        ("[{]", "not valid JSON"),
        ('[{"file": "a"}', "not valid JSON"),
        ("[]", "No entry"),
        ('[{"file": "a.mp4"}]', "unknown modify_type"),
        ('[{"a": NaN}]', "no file name"),
    ],
)
def test_metadata_that_cannot_be_used_is_refused(tmp_path, text, message, capsys):
    (tmp_path / "train_metadata.json").write_text(text)
    assert run_lists(tmp_path) == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("indent", [None, 2])
def test_metadata_is_cut_anywhere_and_read_whole(tmp_path, indent):
    entries = [
        entry(f"a}},{{b/{i}.mp4", nested=[{"x": 1}, {"y": [2]}], note='"}, {"') for i in range(60)
    ]
    path = tmp_path / "m.json"
    path.write_text(json.dumps(entries, indent=indent))
    for block in (10, 333, 1 << 20):
        blocks = list(records.iter_records(path, block))
        assert [record for records in blocks for record in records] == entries
    assert len(list(records.iter_records(path, 333))) > 10


def test_json_errors_name_the_line(tmp_path):
    path = tmp_path / "m.json"
    text = json.dumps([entry(f"{i}.mp4") for i in range(50)], indent=1).replace(
        '"40.mp4"', "40.mp4"
    )
    path.write_text(text)
    line = text[: text.index(" 40.mp4")].count("\n") + 1
    for block in (100, 1 << 20):
        with pytest.raises(KlassifyError, match=rf"m.json:{line}\b"):
            list(records.iter_records(path, block))
