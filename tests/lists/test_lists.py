"""Data lists: the schema, the subsets, and official metadata of every kind with every fault we
know of.
"""

import argparse
import hashlib
import json
import math
import os

import numpy as np
import pandas as pd
import pytest

from klassify.cli import main
from klassify.commands import lists
from klassify.errors import KlassifyError
from klassify.lists import data_list, official, records, subsets
from klassify.lists.make import _probe_all
from klassify.media import info, isolated
from klassify.media.container import MediaError


def entry(file, modify_type="real", segments=(), **fields):
    """A metadata entry in the schema of AV-Deepfake1M++."""
    segments = [list(s) for s in segments]
    return {
        "file": file,
        "original": None,
        "split": "train",
        "modify_type": modify_type,
        "audio_model": None,
        "video_model": None,
        "fake_segments": segments,
        "audio_fake_segments": (
            segments if modify_type in ("audio_modified", "both_modified") else []
        ),
        "visual_fake_segments": (
            segments if modify_type in ("visual_modified", "both_modified") else []
        ),
        "video_frames": 100,
        "audio_frames": 64000,
    } | fields


def family(folder, **fields):
    """A real clip and the three fakes made of it."""
    real, one = f"{folder}/real.mp4", [[1.0, 1.5]]
    return [
        entry(real, **fields),
        entry(
            f"{folder}/real_video_fake_audio.mp4", "audio_modified", one, original=real, **fields
        ),
        entry(
            f"{folder}/fake_video_real_audio.mp4", "visual_modified", one, original=real, **fields
        ),
        entry(f"{folder}/fake_video_fake_audio.mp4", "both_modified", one, original=real, **fields),
    ]


def run_lists(root, *extra, out="lists"):
    return main(
        [
            "lists",
            "--data",
            "avdeepfake1mpp",
            "--root",
            str(root),
            "--out",
            str(root / out),
            *map(str, extra),
        ]
    )


def make(root, entries, split="train", *extra):
    """Write metadata, make the list, and return it with its faults."""
    (root / f"{split}_metadata.json").write_text(json.dumps(entries))
    assert run_lists(root, "--splits", split, *extra) == 0
    path = root / "lists" / f"{split}.failures.tsv"
    faults = pd.read_csv(path, sep="\t", keep_default_na=False) if path.exists() else None
    return data_list.read_list(root / "lists" / f"{split}.tsv", segments=True), faults


# ------------------------------------------------------------------------------ reading and writing


def plain(files, **columns):
    return pd.DataFrame({"file": list(files), **columns})


def test_a_list_reads_back_as_it_was_written(tmp_path):
    frame = plain(
        ["a.mp4", "über/b c.mp4"],
        n_frames=pd.array([100, None], dtype="Int64"),
        fps=[25.0, 30000 / 1001],
        n_samples=[64000, np.nan],
        duration=[4.0, 1 / 3],
        modify_type=["real", "both_modified"],
        source=["s", ""],
        fake_segments=[[], [[0.1, 0.2]]],
        audio_fake_segments=[[], None],
        visual_fake_segments=[[], [[0.1, 0.2]]],
        speaker=["id1", ""],
    )
    path = tmp_path / "x.tsv"
    data_list.write_list(path, frame)
    read = data_list.read_list(path, segments=True)
    assert (
        read["fps"].tolist() == frame["fps"].tolist()
        and read["duration"].tolist() == frame["duration"].tolist()
    )
    assert (
        read["n_frames"].dtype == "Int64"
        and read["n_frames"][0] == 100
        and read["n_samples"].isna()[1]
    )
    assert (
        read["fake_segments"].tolist() == [[], [[0.1, 0.2]]]
        and read["audio_fake_segments"][1] is None
    )
    assert read["speaker"].tolist() == ["id1", ""] and read["file"][1] == "über/b c.mp4"
    first = path.read_bytes()
    data_list.write_list(path, read)
    assert path.read_bytes() == first


UNREADABLE = {
    "n_frames": 100.5,
    "n_samples": 1e300,
    "fps": np.inf,
    "duration": -1.0,
    "modify_type": "faked",
    "source": "a\tb",
    "speaker": "a\nb",
    "audio_model": "a\rb",
    "dataset": "\udce9",
    "fake_segments": [[2.0, 1.0]],
    "audio_fake_segments": "[[1,\n2]]",
    "visual_fake_segments": "5",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_could_not_be_read_again_is_not_written(tmp_path, name):
    frame = plain(["a.mp4", "b.mp4"], **{name: [None, UNREADABLE[name]]})
    with pytest.raises(KlassifyError, match=rf"1 of 2 rows are wrong: .*{name}.*row 2 \('b.mp4'\)"):
        data_list.write_list(tmp_path / "x.tsv", frame)
    assert not list(tmp_path.iterdir())


def test_a_line_longer_than_a_block_of_the_reader_is_read(tmp_path):
    many = [[i / 100, (i + 1) / 100] for i in range(200_000)]
    data_list.write_list(tmp_path / "x.tsv", plain(["a.mp4", "b.mp4"], fake_segments=[[], many]))
    assert (tmp_path / "x.tsv").stat().st_size > 3 << 20
    assert data_list.read_list(tmp_path / "x.tsv", segments=True)["fake_segments"].tolist() == [
        [],
        many,
    ]


def test_segments_are_not_even_read_unless_asked_for(tmp_path):
    path = tmp_path / "x.tsv"
    frame = plain(["a.mp4"], modify_type="audio_modified", source="a")
    data_list.write_list(
        path, frame.assign(**{name: [[[0.5, 1.0]]] for name in data_list.SEGMENTS})
    )
    with_segments = data_list.read_list(path)
    data_list.write_list(path, frame)
    pd.testing.assert_frame_equal(with_segments, data_list.read_list(path))
    assert not set(data_list.SEGMENTS) & set(with_segments)


def test_an_unlabelled_list_has_all_columns_and_no_labels(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("file\n000001.mp4\n000002.mp4\n")
    frame = data_list.read_list(path)
    assert frame.columns.tolist() == ["file", *data_list.MEASURED, *data_list.LABELS]
    assert frame["n_frames"].isna().all() and (frame["modify_type"] == "").all()
    with pytest.raises(KlassifyError, match="no label"):
        subsets.label(frame, "video")


@pytest.mark.parametrize(
    "text, message",
    [
        ("name\na.mp4\n", "not a data list"),
        ("file\na.mp4\na.mp4\n", r"row 2 \('a.mp4'\)"),
        ("file\n../a.mp4\n", "unsafe"),
        ("file\n/a.mp4\n", "unsafe"),
        ("file\nb/../../a.mp4\n", "unsafe"),
        ("file\na;b.mp4\n", "unsafe"),
        ("file\tn_frames\na.mp4\tmany\n", "n_frames is not a possible number"),
        ("file\tn_frames\na.mp4\t1.5\n", "n_frames is not a possible number"),
        ("file\tn_frames\na.mp4\t-1\n", "n_frames is not a possible number"),
        ("file\tduration\na.mp4\tnan\n", "duration is not a possible number"),
        ("file\tmodify_type\na.mp4\tfaked\n", "modify_type is none of"),
        ("file\ta\nb\tc\td\te\n", "cannot be parsed.*Expected 2 columns"),
        ("file\ta\tb\nc\td\n", "cannot be parsed.*Expected 3 columns"),
        ("file\tfile\nc\td\n", "column appear once"),
        ("", "not a data list"),
        ("file\n\udcff.mp4\n", "cannot be parsed"),
    ],
)
def test_a_broken_list_is_refused_with_the_row(tmp_path, text, message):
    path = tmp_path / "x.tsv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(KlassifyError, match=message):
        data_list.read_list(path, segments=True)


WRONG_SEGMENTS = (
    "[[1,2]",
    "1],[2",
    "[[0,1]],[[1,2]]",
    "[[0,1]",
    "5",
    "true",
    "null",
    '"x"',
    '{"a":1}',
    "[0,1]",
    "[[1]]",
    "[[]]",
    "[[0,1,2]]",
    "[[0,1,2],[3]]",
    "[[[0,1]]]",
    "[[0.1,null]]",
    '[["a","b"]]',
    '[["0","1"]]',
    "[[0,true]]",
    "[[2,1]]",
    "[[1,1]]",
    "[[-1,1]]",
    "[[0,1e999]]",
    "[[0,NaN]]",
)


@pytest.mark.parametrize("cell", WRONG_SEGMENTS)
def test_a_cell_without_a_segment_list_is_refused_by_place(tmp_path, cell):
    path = tmp_path / "x.tsv"
    path.write_text(
        f"file\tvisual_fake_segments\na.mp4\t\nb.mp4\t[]\nc.mp4\t{cell}\nd.mp4\t[[0, 0.5]]\n"
    )
    with pytest.raises(
        KlassifyError,
        match=r"^1 of 4 rows are wrong: visual_fake_segments is not a list .* row 3 \('c.mp4'\)",
    ):
        data_list.read_list(path, segments=True)
    assert len(data_list.read_list(path)) == 4  # Task 1 may not depend on segments


def test_segments_that_are_sound_only_together_are_refused(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("file\tfake_segments\na.mp4\t[[0,1]\nb.mp4\t[1,2]]\nc.mp4\t[],[]\n")
    with pytest.raises(KlassifyError, match="3 of 3 rows"):
        data_list.read_list(path, segments=True)


def test_labels_follow_the_modality():
    frame = pd.DataFrame({"file": list("abcd"), "modify_type": data_list.TYPES})
    assert subsets.label(frame, "video").tolist() == [0, 1, 1, 1]
    assert subsets.label(frame, "audio").tolist() == [0, 1, 0, 1]
    assert subsets.label(frame, "visual").tolist() == [0, 0, 1, 1]
    with pytest.raises(KlassifyError, match="lips"):
        subsets.label(frame, "lips")


# ------------------------------------------------------------------------------ subsets


def val_list(folder, n_sources, clips_each=4):
    files = [f"{s:03d}/{c}.mp4" for s in range(n_sources) for c in range(clips_each)]
    frame = plain(files, modify_type="real", source=[f.split("/")[0] for f in files])
    data_list.write_list(folder / "val.tsv", frame)
    return frame


@pytest.mark.parametrize("n_sources", [4, 5, 7, 8, 10, 11, 33])
def test_val_is_split_by_source_by_rank_of_the_hash(tmp_path, n_sources):
    val_list(tmp_path, n_sources)
    fit, report = (subsets.load_split(tmp_path, name) for name in ("val_fit", "val_report"))
    ranked = sorted(
        (f"{s:03d}" for s in range(n_sources)), key=lambda s: hashlib.sha256(s.encode()).hexdigest()
    )
    assert set(fit["source"]) == set(ranked[: max(3, math.ceil(n_sources * 4 / 10))])
    assert (
        not set(fit["source"]) & set(report["source"]) and len(fit) + len(report) == 4 * n_sources
    )


def test_too_few_sources_are_a_clear_error(tmp_path):
    val_list(tmp_path, 3)
    with pytest.raises(KlassifyError, match="3 sources"):
        subsets.load_split(tmp_path, "val_report")


def test_the_leaking_split_shares_sources_and_says_so(tmp_path):
    val_list(tmp_path, 20)
    fit, report = (
        subsets.load_split(tmp_path, f"val_{part}_leaking") for part in ("fit", "report")
    )
    assert len(fit) == 32 and len(report) == 48 and set(fit["source"]) & set(report["source"])
    assert "LEAKING" in subsets.SUBSETS["val_fit_leaking"][1]


def test_length_subsets_keep_bounds_without_unknown_lengths(tmp_path):
    frame = plain(
        list("abcde"), n_frames=[255, 256, 257, 150, None], duration=[10.0, 6.0, 5.999, 6.001, None]
    )
    data_list.write_list(tmp_path / "train.tsv", frame)
    kept = {
        name: "".join(subsets.load_split(tmp_path, name)["file"])
        for name in ("train_video", "train_audio", "train_bam")
    }
    assert kept == {"train_video": "abd", "train_audio": "c", "train_bam": "bc"}
    data_list.write_list(tmp_path / "train.tsv", frame[["file"]])
    with pytest.raises(KlassifyError, match="--probe missing"):
        subsets.load_split(tmp_path, "train_video")


def test_an_unknown_split_is_refused_by_name(tmp_path):
    val_list(tmp_path, 5)
    with pytest.raises(KlassifyError, match="'testZ'.*val_report"):
        subsets.load_split(tmp_path, "testZ")


# ------------------------------------------------------------------------------ official metadata


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
            entry(
                "v/fake.mp4", "audio_modified", [[1, 2]], original="v/real.mp4"
            ),  # whose real is not listed
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


BAD_NAMES = [
    "a\nb.mp4",
    "a\tb.mp4",
    "../a.mp4",
    "x/../../a.mp4",
    "/abs.mp4",
    "C:\\a.mp4",
    "a;b.mp4",
    "",
    "a\x00.mp4",
    " a.mp4",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_unsafe_names_are_skipped_and_listed(tmp_path, name):
    frame, faults = make(tmp_path, [entry("good.mp4"), entry(name)])
    assert frame["file"].tolist() == ["good.mp4"]
    assert faults[["row", "problem", "action"]].values.tolist() == [
        [2, "unsafe file name", "skipped"]
    ]


@pytest.mark.parametrize(
    "bad",
    [entry("x.mp4", "deepfaked"), entry("x.mp4", None), {"no": "file"}, entry(7), "text", None],
)
def test_entries_without_label_or_name_are_skipped_and_listed(tmp_path, bad):
    frame, faults = make(tmp_path, [entry("a.mp4"), bad, entry("b.mp4")])
    assert frame["file"].tolist() == ["a.mp4", "b.mp4"]
    assert faults[["row", "action"]].values.tolist() == [[2, "skipped"]]


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


def test_a_repeated_clip_is_listed_once(tmp_path):
    frame, faults = make(
        tmp_path, [entry("a.mp4"), entry("b.mp4"), entry("a.mp4", "audio_modified", [[1, 2]])]
    )
    assert frame["file"].tolist() == ["a.mp4", "b.mp4"] and frame["modify_type"][0] == "real"
    assert faults[["row", "file", "action"]].values.tolist() == [[3, "a.mp4", "skipped"]]


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
    assert (
        frame["file"].tolist() == ["a.mp4", "x.mp4"]
        and frame["modify_type"][1] == bad["modify_type"]
    )
    assert frame.loc[1, list(data_list.SEGMENTS)].tolist() == [None] * 3
    assert (
        faults["row"].tolist() == [2]
        and faults["action"][0] == "segments dropped"
        and problem in faults["problem"][0]
    )


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


def test_lavdf_fields_and_its_one_file_for_all_splits(tmp_path):
    def lavdf(file, split, periods=(), audio=False, video=False):
        return {
            "file": file,
            "n_fakes": len(periods),
            "fake_periods": list(periods),
            "duration": 4.096,
            "original": None,
            "modify_video": video,
            "modify_audio": audio,
            "split": split,
            "video_frames": 102,
            "audio_frames": 65536,
        }

    one = [[1.0, 1.5]]
    (tmp_path / "metadata.json").write_text(
        json.dumps(
            [
                lavdf("train/000001.mp4", "train"),
                lavdf("dev/000002.mp4", "dev", one, audio=True),
                lavdf("train/000003.mp4", "train", one, video=True),
                lavdf("train/000004.mp4", "train", one, True, True),
            ]
        )
    )
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "000001.mp4").touch()
    for split in ("train", "val"):
        assert (
            main(
                [
                    "lists",
                    "--data",
                    "lavdf",
                    "--root",
                    str(tmp_path),
                    "--out",
                    str(tmp_path / "l"),
                    "--splits",
                    split,
                ]
            )
            == 0
        )
    train = subsets.load_split(tmp_path / "l", "train", segments=True)
    assert train["modify_type"].tolist() == ["real", "visual_modified", "both_modified"]
    assert train["visual_fake_segments"].tolist() == [[], one, one] and train[
        "audio_fake_segments"
    ].tolist() == [[], [], one]
    assert train["duration"].tolist() == [4.096] * 3
    assert subsets.load_split(tmp_path / "l", "val")["file"].tolist() == ["dev/000002.mp4"]
    assert json.loads((tmp_path / "l" / "train.json").read_text())["media"] == str(tmp_path)


@pytest.mark.parametrize("folder", ["train", "train/train", "train_metadata"])
def test_sidecars_are_read_where_there_is_no_common_metadata(tmp_path, folder):
    for one in family("id00012/u/00001"):
        path = tmp_path / folder / one["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(one))
    (tmp_path / folder / "broken.json").write_text("{")
    assert run_lists(tmp_path, "--splits", "train") == 0
    frame = subsets.load_split(tmp_path / "lists", "train")
    assert (
        len(frame) == 4
        and set(frame["source"]) == {"id00012/u/00001/real"}
        and set(frame["speaker"]) == {"id00012"}
    )
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
    assert (
        set(faults["action"]) == {"skipped"}
        and run_lists(tmp_path, "--splits", "train", "--strict") == 1
    )


@pytest.mark.parametrize(
    "name", ["train_metadata.json", "train_files.txt", "heldout/testA_metadata.json"]
)
def test_a_pipe_in_place_of_metadata_is_refused(tmp_path, name, capsys):
    (tmp_path / "heldout").mkdir()
    (tmp_path / "testA_files.txt").write_text("a.mp4\n")
    os.mkfifo(tmp_path / name)
    assert run_lists(tmp_path) == 2 and "klassify lists: " in capsys.readouterr().err


def test_a_pipe_is_no_data_list(tmp_path):
    os.mkfifo(tmp_path / "x.tsv")
    with pytest.raises(KlassifyError, match="not a regular file"):
        data_list.read_list(tmp_path / "x.tsv")
    with pytest.raises(KlassifyError, match="not a regular file"):
        official.read_names(tmp_path / "x.tsv")


@pytest.mark.parametrize("folder", ["train", "train/train", "."])
def test_media_are_found_where_the_archive_was_unpacked(tmp_path, folder):
    media = tmp_path / folder / "id1"
    media.mkdir(parents=True)
    (media / "a.mp4").touch()
    found = subsets.media_folder(tmp_path, "train", ["id1/a.mp4", "id1/b.mp4"])
    assert found == tmp_path / folder
    assert subsets.media_folder(tmp_path, "train") == found
    with pytest.raises(KlassifyError, match="None of"):
        subsets.media_folder(tmp_path, "train", ["id2/a.mp4"])


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


@pytest.mark.parametrize("text", ["a.mp4\na.mp4\n", "../a.mp4\n", "\n", "a;b.mp4\n", "\xff"])
def test_a_file_list_is_taken_whole_or_refused(tmp_path, text, capsys):
    """Every listed file needs an answer, so none may be left out in silence."""
    (tmp_path / "testA_files.txt").write_bytes(text.encode("latin-1"))
    assert run_lists(tmp_path) == 2 and "testA_files.txt" in capsys.readouterr().err


def test_a_name_that_is_no_utf8_is_refused_with_its_line(tmp_path, capsys):
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


# ------------------------------------------------------------------------------ media and re-runs


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
    assert (
        len(frame) == 4
        and frame["n_frames"].tolist()[:2] == [100, 120]
        and frame["duration"][1] == 5.0
    )
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
    assert run_lists(tmp_path) == 2 and "hash" in capsys.readouterr().err
    assert run_lists(tmp_path, "--force") == 0
    assert subsets.load_split(tmp_path / "lists", "train")["file"][0] == "b/real.mp4"


@pytest.mark.parametrize("record", ["[]", "[1]", "1", "{}", '{"made_with": {}, "faults": [1]}'])
def test_a_record_without_a_list_is_refused_unless_forced(tmp_path, record, capsys):
    make(tmp_path, family("a"))
    (tmp_path / "lists/train.json").write_text(record)
    assert run_lists(tmp_path) == 2 and "lists/train.json" in capsys.readouterr().err
    assert run_lists(tmp_path, "--force") == 0 and run_lists(tmp_path) == 0


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
    assert run_lists(tmp_path) == 0
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
    assert run_lists(tmp_path, "--strict") == 1
    make(tmp_path, [entry("a.mp4")], "train", "--force")
    assert (
        not (tmp_path / "lists" / "train.failures.tsv").exists()
        and run_lists(tmp_path, "--strict") == 0
    )


@pytest.mark.parametrize("split", ["testZ", "../train", "val_fit", ""])
def test_splits_that_are_not_there_are_refused(tmp_path, split, capsys):
    (tmp_path / "train_metadata.json").write_text(json.dumps(family("a")))
    assert run_lists(tmp_path, f"--splits={split}x" if split == "" else f"--splits={split}") == 2
    assert "klassify lists" in capsys.readouterr().err
