"""Score files: which shares of a clip its score rests on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from loudest import make_system

from klassify import cli
from klassify.data.audio import AudioClips
from klassify.data.base import Sources
from klassify.features.shards import FeatureStore
from klassify.scores.score_file import Header, joined_shares, read_scores, score_path, write_scores


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
