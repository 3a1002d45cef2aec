"""Scoring in shards: the same bytes in any order, no clip twice, other settings refused."""

from __future__ import annotations

import collections
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from loudest import LOG, make_system

from klassify import cli, progress
from klassify.data.base import Sources
from klassify.data.mouth import MouthFeatures
from klassify.errors import KlassifyError
from klassify.files import write_json
from klassify.scores import chunks, clip_scores, inference, shards
from klassify.scores.score_file import (
    Header,
    read_blocks,
    read_header,
    read_scores,
    score_path,
    write_scores,
)
from klassify.systems.base import derived_system, write_system
from klassify.systems.system import load_system


def score(folder: Path, data, *options: str, split: str = "testA") -> int:
    return cli.main(
        ["score", str(folder), "--split", split, *data.arguments, "--device", "cpu", *options]
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "scores").iterdir()}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Five clips per chunk: the twelve of testA are three; the first has one without a face."""
    monkeypatch.setattr(chunks, "CHUNK_CLIPS", 5)


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Counts how often each window was seen by the model."""
    log = tmp_path / "calls"
    monkeypatch.setenv(LOG, str(log))
    return lambda: collections.Counter(log.read_text().split() if log.exists() else [])


@pytest.mark.parametrize(
    ("kind", "order"),
    [("windows", ("3/3", "1/3", "2/3")), ("frames", ("4/4", "3/4", "2/4", "1/4"))],
)
def test_shards_in_any_order_end_in_the_files_of_one_run(tmp_path, small_data, capsys, kind, order):
    whole, shared = make_system(tmp_path / "a/m", kind), make_system(tmp_path / "b/m", kind)
    assert score(whole, small_data) == 0
    scored = {"windows": "testA.windows.tsv", "frames": "testA.frames.parquet"}[kind]
    assert sorted(contents(whole)) == sorted([scored, "testA.clips.tsv", "testA.failures.tsv"])
    assert capsys.readouterr().out.endswith(", 1 clips without an answer\n")
    for shard in order:
        assert score(shared, small_data, "--shard", shard) == 0
        said = capsys.readouterr().out
        done = score_path(shared, "testA", kind).exists()
        assert ("are missing" in said and "klassify merge" in said) != done
        assert done or not list(shared.glob("scores/testA.*.tsv"))
    assert done and contents(shared) == contents(whole)
    assert score(shared, small_data, "--shard", order[0]) == 0 and contents(shared) == contents(
        whole
    )


def test_the_layout_covers_each_clip_once_for_any_shards(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_CLIPS", 256)
    for n_clips, mean_s, size in (
        (0, 9.0, 142),
        (1, 1.0, 256),
        (700, 5.0, 256),
        (7, 660.0, 1),
        (1000, 10.0, 128),
    ):
        durations = np.full(n_clips, mean_s)
        layout = chunks.Layout.from_durations(durations)
        assert n_clips == 0 or layout.size == size
        for n in (1, 2, 3, 50):
            shares = [k for i in range(1, n + 1) for k in layout.share(i, n)]
            assert sorted(shares) == list(range(layout.n_chunks))
        clips = [place for k in range(layout.n_chunks) for place in range(n_clips)[layout.clips(k)]]
        assert clips == list(range(n_clips))
    assert chunks.Layout.from_durations(np.array([np.nan, np.nan])).size == 256
    assert chunks.Layout.from_durations(np.array([1e9, np.nan])).size == 1


@pytest.mark.parametrize("kind", ["windows", "frames"])
def test_chunks_do_not_change_scores(tmp_path, small_data, monkeypatch, kind):
    tables = []
    for size in (1, 5, 256):
        monkeypatch.setattr(chunks, "CHUNK_CLIPS", size)
        assert score(make_system(tmp_path / f"m{size}", kind), small_data) == 0
        tables.append(read_scores(score_path(tmp_path / f"m{size}", "testA", kind)).table)
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)


def test_lists_without_clips_or_answers_have_whole_files(tmp_path, small_data):
    """Of the first list, nothing is left; of the other, the clip without a face."""
    names = pd.read_csv(small_data.lists / "testA.tsv", sep="\t", dtype=str, keep_default_na=False)
    for kind in ("windows", "frames"):
        for rows in (names[:0], names[2:3]):
            root = tmp_path / f"{kind}{len(rows)}"
            (root / "lists").mkdir(parents=True)
            rows.to_csv(root / "lists/testA.tsv", sep="\t", index=False)
            folder = make_system(root / "m", kind)
            arguments = [
                "--lists",
                str(root / "lists"),
                *small_data.arguments[2:],
                "--device",
                "cpu",
            ]
            assert cli.main(["score", str(folder), "--split", "testA", *arguments]) == 0
            assert len(read_scores(score_path(folder, "testA", kind)).table) == 0
            clips = read_scores(score_path(folder, "testA", "clips")).table
            assert clips["reason"].tolist() == ["no face"] * len(rows)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_a_chunk_of_unknown_lengths_is_joined_with_the_others(tmp_path, small_data):
    names = pd.read_csv(small_data.lists / "testA.tsv", sep="\t", dtype=str, keep_default_na=False)
    names.loc[:4, "duration"] = ""  # all of the first chunk
    (tmp_path / "lists").mkdir()
    names.to_csv(tmp_path / "lists/testA.tsv", sep="\t", index=False)
    folder = make_system(tmp_path / "m")
    arguments = ["--lists", str(tmp_path / "lists"), *small_data.arguments[2:], "--device", "cpu"]
    assert cli.main(["score", str(folder), "--split", "testA", *arguments]) == 0
    assert len(read_scores(score_path(folder, "testA", "clips")).table) == len(names)


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_after_a_stop_between_chunks_no_clip_is_scored_twice(
    tmp_path, small_data, calls, monkeypatch, stop_at
):
    folder, make, made = make_system(tmp_path / "m"), inference.score_clips, []

    def stopping(*args, **kw):
        if len(made) + 1 == stop_at:
            raise KeyboardInterrupt
        made.append(kw["files"])
        return make(*args, **kw)

    with monkeypatch.context() as patch:
        patch.setattr(inference, "score_clips", stopping)
        assert score(folder, small_data) == 130
    assert len(list((folder / "scores/testA.parts").iterdir())) == stop_at - 1
    assert not score_path(folder, "testA", "windows").exists()
    assert score(folder, small_data) == 0
    other = make_system(tmp_path / "other/m")
    seen = calls()
    assert score(other, small_data) == 0
    assert contents(other) == contents(folder)
    # as many as one run makes
    assert calls() == {window: 2 * count for window, count in seen.items()}


def test_shards_that_finish_together_change_nothing(tmp_path, small_data, monkeypatch):
    """Two processes join the same parts, one overtaken in every place: the same bytes."""
    whole = make_system(tmp_path / "a/m")
    assert score(whole, small_data) == 0
    for place in [
        "chunks.Parts.read",
        "shards.write_blocks",
        "shards.write_failures",
        "shutil.rmtree",
    ]:
        folder = make_system(tmp_path / place / "m")
        with monkeypatch.context() as patch:
            patch.setattr(shards, "join", lambda parts: None)
            # 2: of the clip scores, which are not there yet
            assert score(folder, small_data) in (0, 2)
        ready = tmp_path / place / "parts"
        shutil.copytree(folder / "scores/testA.parts", ready)
        overtaken = []
        with monkeypatch.context() as patch:
            overtake(patch, place, lambda folder=folder: shards.merge(folder, "testA"), overtaken)
            shards.merge(folder, "testA")
        assert overtaken and contents(folder) == contents(whole)
        # as if it had been killed before it removed them
        shutil.copytree(ready, folder / "scores/testA.parts")
        shards.merge(folder, "testA")
        assert contents(folder) == contents(whole)
        assert shards.merge(folder, "testA") == score_path(folder, "testA", "windows")


def overtake(patch, place: str, other, overtaken: list) -> None:
    """Let `other` run to its end at the first call of a function that joining uses."""
    module, _, name = place.rpartition(".")
    owner = {"chunks.Parts": chunks.Parts, "shards": shards, "shutil": shutil}[module]
    real = getattr(owner, name)

    def overtaking(*args, **kw):
        if not overtaken:
            overtaken.append(place)
            other()
        return real(*args, **kw)

    patch.setattr(owner, name, overtaking)


def test_a_shard_stops_when_another_process_has_done_its_chunks(
    tmp_path, small_data, monkeypatch, calls
):
    """The same shard started twice by mistake: the slower one leaves no parts of its own behind."""
    folder, make, started = make_system(tmp_path / "m"), inference.score_clips, []

    def overtaken(*args, **kw):
        if not started:
            started.append(kw["files"])
            assert score(folder, small_data) == 0
        return make(*args, **kw)

    monkeypatch.setattr(inference, "score_clips", overtaken)
    assert score(folder, small_data) == 0
    assert sorted(contents(folder)) == [
        "testA.clips.tsv",
        "testA.failures.tsv",
        "testA.windows.tsv",
    ]


def test_parts_made_with_other_settings_are_refused_or_replaced(
    tmp_path, small_data, calls, capsys
):
    folder, other = make_system(tmp_path / "m"), make_system(tmp_path / "other", weight=2.0)
    assert score(folder, small_data, "--shard", "1/2") == 0
    parts = folder / "scores/testA.parts"
    before = {path.name for path in parts.iterdir()}
    shutil.copy(other / "model.safetensors", folder)
    assert score(folder, small_data, "--shard", "2/2") == 2
    assert (
        "system: " in capsys.readouterr().err and {path.name for path in parts.iterdir()} == before
    )
    assert score(folder, small_data, "--shard", "2/2", "--force") == 0
    assert {path.name for path in parts.iterdir()} == {"part-2-of-3-0.parquet"}
    # which keeps what the other shard did
    assert score(folder, small_data, "--shard", "1/2", "--force") == 0
    assert (
        not parts.exists() and read_header(score_path(folder, "testA", "clips")).settings["system"]
    )
    assert load_system(folder).clip_scores("testA").table["score"].notna().sum() == 11


def test_features_of_another_version_are_refused(tmp_path, small_data, calls, capsys):
    folder = make_system(tmp_path / "m")
    sources = Sources(small_data.lists, small_data.media, small_data.features)
    made_with = load_system(folder).data().settings(sources, "testA")["features"]
    older = made_with | {"version": made_with["version"] - 1}
    write_json(folder / "settings.json", {"features": older})
    assert score(folder, small_data) == 2 and not calls()
    assert f"of version {older['version']}, those of testA are of" in capsys.readouterr().err
    write_json(folder / "settings.json", {"features": made_with})
    assert score(folder, small_data) == 0


def test_forced_scores_are_made_again_and_a_forced_run_goes_on(tmp_path, small_data, calls):
    folder = make_system(tmp_path / "m")
    assert score(folder, small_data) == 0
    first, before = calls(), contents(folder)
    assert score(folder, small_data) == 0 and calls() == first
    assert score(folder, small_data, "--shard", "1/3", "--force") == 0
    # the old scores stand until the new ones do
    assert {name: before[name] for name in before} == {
        name: (folder / "scores" / name).read_bytes() for name in before
    }
    assert score(folder, small_data, "--force") == 0
    assert calls() == first + first and contents(folder) == before


def test_what_approximate_scoring_began_is_not_finished_exactly(
    tmp_path, small_data, monkeypatch, capsys
):
    folder, real, asked = make_system(tmp_path / "m"), inference.score_clips, []

    def noted(*args, approximate, **kw):
        asked.append(approximate)
        return real(*args, **kw)

    monkeypatch.setattr(inference, "score_clips", noted)
    assert score(folder, small_data, "--shard", "1/3", "--approximate") == 0
    assert score(folder, small_data) == 2 and "approximate: True there" in capsys.readouterr().err
    assert score(folder, small_data, "--approximate") == 0 and asked == [True] * 3
    assert read_header(score_path(folder, "testA", "clips")).settings["approximate"] is True
    assert score(folder, small_data, "--force") == 0 and asked == [True] * 3 + [False] * 3
    assert "approximate" not in read_header(score_path(folder, "testA", "clips")).settings


def test_derived_systems_have_no_shards(tmp_path, small_data, capsys):
    folder, platt = make_system(tmp_path / "m"), tmp_path / "platt"
    parameters = {"a": -1.0, "b": 0.0, "input": "log_odds", "base_rate": 0.5}
    write_system(
        platt, derived_system(platt, "calibrated", [load_system(folder)], "probability", parameters)
    )
    command = [
        "score",
        str(folder),
        str(platt),
        "--split",
        "testA,val",
        *small_data.arguments,
        "--device",
        "cpu",
    ]
    assert cli.main([*command, "--shard", "1/2"]) == 2
    assert "platt is derived" in capsys.readouterr().err and not (folder / "scores").exists()
    assert cli.main(command) == 0
    for system in (folder, platt):
        assert all(score_path(system, split, "clips").exists() for split in ("testA", "val"))


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_shard_that_is_none_is_refused(tmp_path, small_data, capsys, shard):
    folder = make_system(tmp_path / "m")
    assert score(folder, small_data, "--shard", shard) == 2
    assert shard in capsys.readouterr().err and not (folder / "scores").exists()


def test_an_unknown_aggregation_is_refused_before_scoring(tmp_path, small_data, calls):
    assert score(make_system(tmp_path / "m"), small_data, "--aggregate", "median") == 2
    assert score(make_system(tmp_path / "n", "frames"), small_data, "--aggregate", "topk") == 2
    assert not calls()


def test_what_is_missing_is_named(tmp_path, small_data, capsys):
    folder = make_system(tmp_path / "m")
    with pytest.raises(KlassifyError, match="no parts"):
        shards.merge(folder, "testA")
    assert score(folder, small_data, "--shard", "2/3") == 0
    assert "2 of 3 chunks are missing (--shard 1/3, 3/3)" in capsys.readouterr().out
    with pytest.raises(KlassifyError, match="2 of 3 chunks are missing"):
        shards.merge(folder, "testA")
    assert score(folder, small_data) == 0


def test_a_damaged_part_is_named(tmp_path, small_data, capsys):
    folder = make_system(tmp_path / "m")
    assert score(folder, small_data, "--shard", "1/2") == 0
    part = next(
        path for path in (folder / "scores/testA.parts").iterdir() if "part-3-of" in path.name
    )
    part.write_bytes(part.read_bytes()[:-9])
    assert score(folder, small_data, "--shard", "2/2") == 2
    said = capsys.readouterr().err
    assert str(part) in said and "remove it" in said
    part.unlink()
    assert score(folder, small_data) == 0


def test_the_log_tells_how_many_clips_of_the_shard_are_done(
    tmp_path, small_data, capsys, monkeypatch
):
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    folder = make_system(tmp_path / "m")
    assert score(folder, small_data, "--shard", "1/2") == 0
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("score testA: ")
    ]
    assert [line.split(" clips")[0] for line in lines] == [
        f"score testA: {n} of 7" for n in range(1, 8)
    ]
    assert score(folder, small_data) == 0
    said = capsys.readouterr().err
    assert (
        "2 of 3 chunks are there" in said
        and "score testA: 8 of 12 clips" in said
        and " 7 of 12" not in said
    )


@pytest.mark.parametrize("how", ["max", "mean", "topk", "noisy-or"])
@pytest.mark.parametrize("rows", [1, 3, 7, 1000])
def test_clip_scores_do_not_depend_on_the_blocks(tmp_path, monkeypatch, how, rows):
    rng = np.random.default_rng(4)
    counts = rng.integers(1, 9, 30)
    files = [f"é {i}.mp4" for i in range(30)]
    table = pd.DataFrame(
        {
            "file": np.repeat(files, counts),
            "start": 0.0,
            "end": 1.0,
            "score": rng.normal(0, 3, counts.sum()),
        }
    )
    header = Header("m", "val", "windows", "log_odds", "clip", {"made": "so"})
    write_scores(score_path(tmp_path, "val", "windows"), table, header)
    clips = pd.DataFrame({"file": [*files[::-1], "mute"], "duration": 2.0})
    monkeypatch.setattr(clip_scores, "BLOCK_ROWS", rows)
    path = clip_scores.write_clip_scores(tmp_path, header, clips, {"mute": "no audio"}, how)
    kept = read_scores(score_path(tmp_path, "val", "windows")).table
    wanted = inference.clip_table(kept, clips, {"mute": "no audio"}, how)
    pd.testing.assert_frame_equal(read_scores(path).table, wanted, rtol=1e-8, check_dtype=False)
    assert sum(map(len, read_blocks(score_path(tmp_path, "val", "windows"), rows))) == len(table)


def test_windows_of_a_clip_that_do_not_lie_together_are_refused(tmp_path):
    header = Header("m", "val", "windows", "log_odds", "clip", {})
    table = pd.DataFrame({"file": ["a", "b", "a"], "start": 0.0, "end": 1.0, "score": 1.0})
    write_scores(score_path(tmp_path, "val", "windows"), table, header)
    clips = pd.DataFrame({"file": ["a", "b"], "duration": 1.0})
    for rows in (1, 2):
        with (
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(KlassifyError, match="are not contiguous: a"),
        ):
            patch.setattr(clip_scores, "BLOCK_ROWS", rows)
            clip_scores.write_clip_scores(tmp_path, header, clips, {}, "max")


def test_scoring_keeps_no_clip_and_opens_a_store_once(tmp_path, small_data, monkeypatch):
    opened, real = [], MouthFeatures.reader
    monkeypatch.setattr(
        MouthFeatures, "reader", lambda self, *args: opened.append(args) or real(self, *args)
    )
    assert score(make_system(tmp_path / "m"), small_data) == 0
    assert len(opened) == 1
