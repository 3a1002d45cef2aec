"""Score files: which shares of a clip its score rests on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from loudest import make_system

from klassify import cli
from klassify.data.audio import AudioClips
from klassify.data.base import Sources
from klassify.errors import KlassifyError
from klassify.features.shards import FeatureStore
from klassify.scores.frame_file import FrameFile, frame_table
from klassify.scores.score_file import (
    Header,
    joined_shares,
    read_header,
    read_scores,
    score_path,
    write_scores,
)


@pytest.mark.parametrize("kind", ["windows", "frames"])
def test_clips_say_which_share_was_seen(tmp_path, small_data, kind):
    folder, path = make_system(tmp_path / "m", kind), tmp_path / "m/scores/testA.clips.tsv"
    how = ["score", str(folder), "--split", "testA", *small_data.arguments, "--device", "cpu"]
    assert cli.main(how) == 0
    table, store = read_scores(path).table, FeatureStore(small_data.features / "mouth/testA")
    assert table["seen"].tolist() == [store[file].valid.mean() for file in table["file"]]
    assert sorted(set(table["seen"])) == [0, 1] and "heard" not in table
    before = path.read_bytes()
    path.unlink()
    assert cli.main(how) == 0 and path.read_bytes() == before  # from the scores that are there


def test_the_share_heard_is_the_sound_of_the_list(small_data, tmp_path):
    table = pd.DataFrame({"file": list("abcd"), "fps": 25.0, "modify_type": "", "source": ""})
    table["n_frames"] = pd.array([100, 100, 100, None], "Int64")
    table["n_samples"] = pd.array([64_000, 16_000, 0, None], "Int64")
    table["duration"] = [4.0, 4.0, 4.0, np.nan]
    (tmp_path / "val.tsv").write_text(table.to_csv(sep="\t", index=False))
    listed = AudioClips().listed(Sources(tmp_path, tmp_path, tmp_path), "val")
    np.testing.assert_array_equal(listed["heard"], [1, 0.25, 0, np.nan])


def test_shares_of_several_systems_are_the_larger_ones(tmp_path):
    seen = pd.DataFrame({"file": ["a", "b", "c"], "seen": [0.5, np.nan, 0.0]})
    both = pd.DataFrame({"file": ["a", "b", "c"], "seen": [0.25, 1.0, 0.0], "heard": [1, 0, 0.5]})
    found = joined_shares([seen, both, both[["file"]]])
    assert {name: shares.tolist() for name, shares in found.items()} == {
        "seen": [0.5, 1.0, 0.0],
        "heard": [1.0, 0.0, 0.5],
    }
    assert joined_shares([both[["file"]]]) == {}


def test_an_unknown_share_is_an_empty_cell(tmp_path):
    path = score_path(tmp_path, "val", "clips")
    table = pd.DataFrame(
        {"file": ["a", "b"], "start": 0.0, "end": 1.0, "score": 1.0, "seen": [0.5, np.nan]}
    )
    write_scores(path, table, Header("m", "val", "clips", "log_odds", "clip"))
    assert path.read_text().splitlines()[-1].endswith("\t")
    pd.testing.assert_frame_equal(read_scores(path).table, table, check_dtype=False)


def frames_at(hop_s, offset_s):
    start = offset_s + hop_s * np.arange(3)
    return pd.DataFrame({"file": "a", "start": start, "end": start + hop_s, "score": 1.0})


@pytest.mark.parametrize(("hop_s", "offset_s"), [(0.02, 0.0), (0.02, 0.0025), (0.01, 0.0075)])
def test_frames_keep_their_grid(tmp_path, hop_s, offset_s):
    path = score_path(tmp_path, "val", "frames")
    header = Header("m", "val", "frames", "log_odds", "clip", hop_s=hop_s, offset_s=offset_s)
    write_scores(path, frames_at(hop_s, offset_s), header)
    source = FrameFile(path)
    assert source.header == read_header(path) == header
    assert len(source.read(["a"], ["score"]).values) == 3
    table = frame_table(source)
    assert (table.hop_s, table.offset_s) == (hop_s, offset_s)
    write_scores(path, frames_at(0.04, 0.0), header)
    with pytest.raises(KlassifyError, match=f"{1000 * hop_s:g} ms frame from {offset_s:g} s on"):
        FrameFile(path).read(["a"], ["score"])


def test_a_header_without_a_grid_means_40_ms(tmp_path):
    path = score_path(tmp_path, "val", "frames")
    header = Header("m", "val", "frames", "log_odds", "clip")
    assert "hop_s" not in header.as_lines()  # so that files are written as they always were
    write_scores(path, frames_at(0.04, 0.0), header)
    assert (read_header(path).hop_s, read_header(path).offset_s) == (0.04, 0.0)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("# kind=clips\n", "", "incomplete"),
        ("# settings={}", "# settings={", "incomplete"),
        ("# scale=probability", "# scale=loudness", "loudness"),
    ],
)
def test_a_damaged_header_is_refused_by_name(tmp_path, old, new, said):
    path = tmp_path / "testA.clips.tsv"
    clips = pd.DataFrame(
        {"file": ["a"], "start": [0.0], "end": [1.0], "score": [0.5], "reason": [""]}
    )
    write_scores(path, clips, Header("m", "testA", "clips", "probability", "clip", settings={}))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(KlassifyError, match=said) as error:
        read_header(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("hop_s", "offset_s"), [(0, 0), (1e-9, 0), (np.nan, 0), (0.02, 0.02)])
def test_a_grid_that_makes_no_sense_is_refused(hop_s, offset_s):
    with pytest.raises(KlassifyError, match="hop_s"):
        Header("m", "val", "frames", "log_odds", "clip", hop_s=hop_s, offset_s=offset_s)
