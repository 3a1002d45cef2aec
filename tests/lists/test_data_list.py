"""Data lists are written and read back whole, and refused with the wrong row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from metadata import plain

from klassify.errors import KlassifyError
from klassify.lists import data_list, subsets


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
    assert read["fps"].tolist() == frame["fps"].tolist()
    assert read["duration"].tolist() == frame["duration"].tolist()
    assert read["n_frames"].dtype == "Int64"
    assert read["n_frames"][0] == 100
    assert read["n_samples"].isna()[1]
    assert read["fake_segments"].tolist() == [[], [[0.1, 0.2]]]
    assert read["audio_fake_segments"][1] is None
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
    one = data_list.read_list(path, segments=["audio_fake_segments"])
    assert set(data_list.SEGMENTS) & set(one) == {"audio_fake_segments"}


def test_an_unlabelled_list_has_all_columns_and_no_labels(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("file\n000001.mp4\n000002.mp4\n")
    frame = data_list.read_list(path)
    assert frame.columns.tolist() == ["file", *data_list.MEASURED, *data_list.LABELS]
    assert frame["n_frames"].isna().all() and (frame["modify_type"] == "").all()
    with pytest.raises(KlassifyError, match="2 of 2 clips have no label") as error:
        subsets.label(frame[:2], "video")
    assert error.value.where == str(path) and "klassify lists" in error.value.fix
    labelled = tmp_path / "heldout" / "x_labels.tsv"
    data_list.write_list(labelled, frame.assign(modify_type="real"))
    with pytest.raises(KlassifyError) as error:
        subsets.label(frame, "video")
    assert error.value.fix == f"use {labelled}"


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
    *("[[1,2]", "1],[2", "[[0,1]],[[1,2]]", "[[0,1]", "5", "true", "null", '"x"', '{"a":1}'),
    *("[0,1]", "[[1]]", "[[]]", "[[0,1,2]]", "[[0,1,2],[3]]", "[[[0,1]]]", "[[0.1,null]]"),
    *('[["a","b"]]', '[["0","1"]]', "[[0,true]]", "[[2,1]]", "[[1,1]]", "[[-1,1]]", "[[0,1e999]]"),
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
