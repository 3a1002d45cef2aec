"""klassify localise: from frame scores to segments, and merged systems, through the files."""

import numpy as np
import pandas as pd
import pytest
import yaml
from commands import klassify
from small_systems import write_model, write_table

from klassify.errors import KlassifyError
from klassify.evaluation import segments
from klassify.localisation import frame_scores, localise, proposals
from klassify.scores import frame_file
from klassify.scores.score_file import Header, read_scores, score_path, write_blocks
from klassify.scores.segment_file import read_segments
from klassify.systems.system import load_system, system_hash

FRAME_S = 0.04


def frame_table(clips, **columns):
    """clips: {file: log-odds}; the last frame of each ends 10 ms early."""
    parts = []
    for file, score in clips.items():
        k = np.arange(len(score))
        end = np.minimum((k + 1) * FRAME_S, len(score) * FRAME_S - 0.01)
        columns_of = {"file": file, "start": k * FRAME_S, "end": end}
        parts.append(pd.DataFrame(columns_of | {"score": np.asarray(score, float)}))
    return pd.concat(parts, ignore_index=True).assign(**columns)


def some_clips(seed, n_clips=6):
    rng = np.random.default_rng(seed)
    return {
        f"id/{i}.mp4": np.repeat(rng.normal(0, 3, 12), 5) + rng.normal(0, 0.3, 60)
        for i in range(n_clips)
    }


def write_localiser(folder, table, modality="audio", split="val", group=1 << 20):
    """A localiser with these frame scores, `group` of them a row group of the file."""
    write_model(folder, modality, "segment")
    (folder / "model.safetensors").write_bytes(folder.name.encode())
    settings = {"system": system_hash(folder), "list": "l"}
    path = score_path(folder, split, "frames")
    blocks = [table[first : first + group] for first in range(0, max(len(table), 1), group)]
    write_blocks(
        path, blocks, Header(folder.name, split, "frames", "log_odds", "segment", settings)
    )
    return folder


@pytest.fixture
def bam(tmp_path):
    return write_localiser(tmp_path / "bam", frame_table(some_clips(1)))


@pytest.fixture
def tags(tmp_path):
    return write_localiser(tmp_path / "tags", frame_table(some_clips(2)), "visual")


def segments_of(folder, split="val"):
    return read_scores(score_path(folder, split, "segments"))


def test_frames_are_read_in_parts_of_whole_clips(tmp_path, monkeypatch):
    monkeypatch.setattr(
        frame_scores, "counted_blocks", lambda files, label: frame_file.blocks(files, 2)
    )
    clips = some_clips(3, 5)
    clips |= {"long.mp4": np.zeros(300), "short.mp4": np.ones(1), "last.mp4": np.ones(20)}
    folder = write_localiser(tmp_path / "bam", frame_table(clips, boundary=0.5), group=70)
    path = score_path(folder, "val", "frames")
    parts = list(frame_scores.read_frames(path))
    assert len(parts) > 3
    frames = frame_scores.FrameScores.joined(parts)
    assert frames.files.tolist() == list(clips)
    log_odds = np.concatenate(list(clips.values()))
    np.testing.assert_allclose(frames.p_fake, 1 / (1 + np.exp(-log_odds)))
    durations_s = [len(clip) * FRAME_S - 0.01 for clip in clips.values()]
    np.testing.assert_allclose(frames.durations_s, durations_s)
    assert (frames.boundary == 0.5).all() and frames.log_tags is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.drop(index=3), "0.mp4 are not one row for each 40 ms"),
        (lambda t: pd.concat([t, t.iloc[-1:]]), "not one row for each 40 ms"),
        (lambda t: t.assign(end=t["end"] * 2, start=t["start"] * 2), "not one row for each 40 ms"),
        (lambda t: t.assign(boundary=2.0), "boundary"),
        (
            lambda t: t.assign(proposed0_score=2.0, proposed0_start=0.0, proposed0_end=1.0),
            "proposed",
        ),
        (lambda t: t.assign(log_o=0.1, log_b=0.0, log_i=0.0, log_l=0.0), "log_tags"),
    ],
)
def test_rows_that_are_not_frames_are_refused(tmp_path, damage, message):
    table = damage(frame_table({"0.mp4": np.zeros(5), "1.mp4": np.zeros(4)}))
    folder = write_localiser(tmp_path / "bam", table)
    with pytest.raises(KlassifyError, match=message):
        list(frame_scores.read_frames(score_path(folder, "val", "frames")))


def test_a_clip_in_two_places_is_refused(tmp_path):
    clips = frame_table({"a": np.zeros(4), "b": np.zeros(4)})
    table = pd.concat([clips, clips.iloc[:4]], ignore_index=True)
    folder = write_localiser(tmp_path / "bam", table, group=4)
    with pytest.raises(KlassifyError, match="are not contiguous: a"):
        list(frame_scores.read_frames(score_path(folder, "val", "frames")))


def test_segments_are_those_of_propose_with_their_settings(bam, capsys):
    settings = ("--method", "multi_threshold", "--set", "nms_sigma=0.2")
    assert klassify("localise", bam, "--split", "val", *settings) == 0
    scores = segments_of(bam)
    (frames,) = frame_scores.read_frames(score_path(bam, "val", "frames"))
    found = proposals.propose(frames, "multi_threshold", nms_sigma=0.2)
    assert scores.table["file"].tolist() == frames.files[found.clip].tolist()
    columns = scores.table[["start", "end", "score"]]
    np.testing.assert_allclose(columns, np.stack(found[1:], axis=1), rtol=1e-8)
    assert set(scores.table["modality"]) == {"audio"}
    assert set(scores.table["method"]) == {"multi_threshold"}
    assert (scores.header.scale, scores.header.supervision) == ("probability", "segment")
    assert scores.header.settings["settings"]["nms_sigma"] == 0.2


def test_proposals_of_the_model_itself_become_segments(tmp_path):
    columns = dict.fromkeys(("proposed0_start", "proposed0_end", "proposed0_score"), 0.0)
    table = frame_table({"a.mp4": np.zeros(5), "b.mp4": np.zeros(4)}, **columns)
    for row, values in ((1, (0.03, 0.17, 0.4)), (2, (0.1, 0.9, 0.9)), (7, (0.0, 0.05, 0.7))):
        table.loc[row, list(columns)] = values
    folder = write_localiser(tmp_path / "own", table)
    assert klassify("localise", folder, "--split", "val", "--method", "proposed") == 0
    rows = segments_of(folder).table[["file", "start", "end", "score"]].to_numpy().tolist()
    decayed = 0.4 * np.exp(-((0.07 / 0.16) ** 2) / 0.5)
    wanted = [["a.mp4", 0.1, 0.19, 0.9], ["a.mp4", 0.03, 0.17, decayed], ["b.mp4", 0, 0.05, 0.7]]
    for row, expected in zip(rows, wanted, strict=True):
        assert row[0] == expected[0] and row[1:] == pytest.approx(expected[1:])


def test_repeats_are_skipped_and_other_settings_refused(bam, capsys):
    command = ["localise", bam, "--split", "val"]
    assert klassify(*command) == 0
    before = score_path(bam, "val", "segments").stat().st_mtime_ns
    assert klassify(*command) == 0 and "up to date" in capsys.readouterr().out
    assert score_path(bam, "val", "segments").stat().st_mtime_ns == before
    assert klassify(*command, "--set", "threshold=0.7") == 2
    assert "--force" in capsys.readouterr().err
    assert klassify(*command, "--set", "threshold=0.7", "--force") == 0


def test_tuned_settings_are_taken_up_and_can_be_overridden(bam, tmp_path):
    (bam / "proposals.yaml").write_text(
        "method: watershed\nsettings: {context: 0.5}\ntuned: {score: 0.3}\n"
    )
    system, default = load_system(bam), ("threshold", proposals.defaults("threshold"))
    chosen = localise.choose(system)
    assert chosen.method == "watershed" and chosen.settings["context"] == 0.5
    assert localise.choose(system, settings={"context": 0.0}).settings["context"] == 0.0
    assert localise.choose(system, method="threshold") == default
    other = tmp_path / "other.yaml"
    other.write_text("method: threshold\nsettings: {threshold: 0.25}\n")
    assert localise.choose(load_system(bam), other).settings["threshold"] == 0.25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: guess\n", "no method 'guess'"),
        ("method: threshold\nsettings: {colour: 3}\n", "no setting 'colour'"),
        ("method: threshold\ncolour: 3\n", "keys method"),
        ("- 3\n", "keys method"),
        ("method: threshold\nsettings: 3\n", "mappings"),
        ("method: [\n", "not readable YAML"),
        ("method: merge\n", "does not apply"),
    ],
)
def test_bad_proposal_settings_are_refused_with_their_file(bam, text, message):
    (bam / "proposals.yaml").write_text(text)
    with pytest.raises(KlassifyError, match=message) as error:
        localise.choose(load_system(bam))
    assert "proposals.yaml" in str(error.value)


@pytest.mark.parametrize(
    "word", ["threshold", "=3", "threshold=[", "threshold=2001-13-45", "threshold=" + "[" * 3000]
)
def test_words_that_are_not_settings_are_refused(bam, capsys, word):
    assert klassify("localise", bam, "--split", "val", "--set", word) == 2
    message = capsys.readouterr().err
    unreadable = "The value of threshold is not readable YAML"
    assert "not written key=value" in message or unreadable in message


def test_missing_and_stale_frames_are_refused_with_the_command(bam, capsys):
    assert klassify("localise", bam, "--split", "testA") == 2
    assert f"klassify score {bam} --split testA" in capsys.readouterr().err
    (bam / "model.safetensors").write_bytes(b"other weights")
    assert klassify("localise", bam, "--split", "val") == 2
    assert "has changed" in capsys.readouterr().err


def test_a_split_without_any_proposal_gives_an_empty_file(tmp_path):
    folder = write_localiser(tmp_path / "bam", frame_table({"a": np.full(9, -30.0)}))
    assert klassify("localise", folder, "--split", "val") == 0
    assert len(segments_of(folder).table) == 0


def merged(tmp_path, bam, tags):
    out = tmp_path / "merged"
    assert klassify("localise", bam, tags, "--split", "val") == 0
    assert klassify("localise", "--merge", bam, tags, "--out", out, "--split", "val") == 0
    return out


def test_a_merged_system_is_a_system_of_its_own(tmp_path, bam, tags, capsys):
    out = merged(tmp_path, bam, tags)
    system = load_system(out)
    assert (system.kind, system.modality, system.supervision) == ("fusion", "both", "segment")
    assert [one.folder for one in system.input_systems] == [bam, tags]
    table = segments_of(out).table
    assert set(table["modality"]) == {"audio", "visual"}
    parts = pd.concat([segments_of(folder).table for folder in (bam, tags)])
    assert len(table) <= len(parts) and table.groupby("file").size().max() <= 50
    first = table.groupby("file", sort=False)["score"].first()
    highest = parts.groupby("file")["score"].max()
    pd.testing.assert_series_equal(first.sort_index(), highest.sort_index())
    assert klassify("localise", out, "--split", "val") == 0
    assert "up to date" in capsys.readouterr().out


def test_weights_decide_and_zero_leaves_an_input_out(tmp_path, bam, tags):
    out = merged(tmp_path, bam, tags)
    settings = {"weights": [0.0, 1.0], "nms_sigma": 0}
    content = yaml.safe_dump({"method": "merge", "settings": settings})
    (out / "proposals.yaml").write_text(content)
    assert klassify("localise", out, "--split", "val", "--force") == 0
    mine, its = segments_of(out).table, segments_of(tags).table
    key = ["file", "start"]
    mine, its = (table.sort_values(key, ignore_index=True) for table in (mine, its))
    pd.testing.assert_frame_equal(mine, its)


def test_a_merged_system_asks_for_its_inputs_segments(tmp_path, bam, tags, capsys):
    out = tmp_path / "merged"
    assert klassify("localise", "--merge", bam, tags, "--out", out) == 0
    assert klassify("localise", out, "--split", "val") == 2
    assert f"klassify localise {bam} --split val" in capsys.readouterr().err
    with pytest.raises(KlassifyError, match="no clip scores"):
        load_system(out).derive("val")


def test_a_union_makes_one_proposal_of_what_both_propose(tmp_path, tags):
    """Of two systems with equal frames: half as many proposals, each with more support."""
    twin = write_localiser(tmp_path / "twin", frame_table(some_clips(2)), "audio")
    assert klassify("localise", twin, tags, "--split", "val", "--set", "nms_sigma=0") == 0
    out = tmp_path / "union"
    made = ("--merge", twin, tags, "--method", "union", "--out", out, "--split", "val")
    assert klassify("localise", *made, "--set", "nms_sigma=0") == 0
    assert load_system(out).method == "union"
    mine, its = segments_of(out).table, segments_of(tags).table
    key = ["file", "start", "end"]
    mine, its = (table.sort_values(key, ignore_index=True) for table in (mine, its))
    pd.testing.assert_frame_equal(mine[key], its[key])
    np.testing.assert_allclose(mine["score"], 1 - (1 - its["score"]) ** 2, atol=1e-8)
    assert klassify("localise", out, "--split", "val", "--method", "merge", "--force") == 0
    assert len(segments_of(out).table) > len(mine)


def test_what_cannot_be_merged_is_refused(tmp_path, bam, tags, capsys):
    for inputs, out in (([bam], tmp_path / "m"), ([bam, bam], tmp_path / "m"), ([bam, tags], bam)):
        assert klassify("localise", "--merge", *inputs, "--out", out) == 2
    assert klassify("localise", bam) == 2 and klassify("localise", "--merge", bam, tags) == 2
    assert klassify("localise", "--merge", bam, tags, "--out", tmp_path / "m") == 0
    (bam / "model.safetensors").write_bytes(b"other weights")
    assert klassify("localise", "--merge", bam, tags, "--out", tmp_path / "m") == 2
    assert "other inputs" in capsys.readouterr().err
    wrong = ("--out", tmp_path / "n", "--method", "threshold")
    assert klassify("localise", "--merge", bam, tags, *wrong) == 2
    assert "does not join proposals" in capsys.readouterr().err


def test_clips_of_unknown_source_count_as_sources_of_their_own(bam):
    assert klassify("localise", bam, "--split", "val") == 0
    files = list(some_clips(1))
    best = segments_of(bam).table.sort_values("score").groupby("file").tail(1).set_index("file")
    fake = [
        [[best.loc[file, "start"], best.loc[file, "end"] + k % 3]] for k, file in enumerate(files)
    ]
    frame = pd.DataFrame(
        {"file": files, "modify_type": "audio_modified", "duration": 2.4, "source": ""}
    )
    frame = frame.assign(
        fake_segments=fake, audio_fake_segments=fake, visual_fake_segments=[[]] * 6
    )
    found = [segments.load_localised(load_system(bam), "val", files)]
    named = frame.assign(source=frame["file"])
    unknown, known = (
        segments.measure_task2(found, one, versus="bam", n_bootstrap=30) for one in (frame, named)
    )
    pd.testing.assert_frame_equal(unknown, known)
    first = unknown.iloc[0]
    assert first["n_sources"] == 6 and first["Score_low"] < first["Score_high"]


def write_proposals(folder, table):
    write_table(folder, "val", "segments", table, "probability", "segment")
    return read_segments(score_path(folder, "val", "segments"))


def test_clips_that_one_input_lacks_are_answered_by_the_other(tmp_path):
    columns = {"start": 0.0, "end": 1.0, "score": 0.5, "modality": "audio", "method": "x"}
    inputs = [
        write_proposals(tmp_path / name, pd.DataFrame({"file": list(files), **columns}))
        for name, files in (("one", "ab"), ("two", "bc"))
    ]
    choice = localise.Choice("merge", proposals.defaults("merge"))
    tables = list(localise.merged_tables(None, "val", inputs, choice))
    assert not len(tables[0]) and pd.concat(tables[1:])["file"].tolist() == ["a", "b", "b", "c"]


@pytest.mark.parametrize("method", ["merge", "union"])
def test_blocks_of_clips_are_joined_like_all_at_once(method, tmp_path, monkeypatch):
    """Also where the rows of a clip are not together in the file, and clips are in two orders."""
    rng = np.random.default_rng(0)
    inputs, tables = [], []
    for number, name in enumerate(("one", "two")):
        start = rng.uniform(0, 9, 300).round(1)
        table = pd.DataFrame(
            {
                "file": [f"{i}.mp4" for i in rng.integers(0, 40, 300)],
                "start": start,
                "end": start + rng.choice([0.3, 0.5], 300),
                "score": rng.random(300).round(2),
                "modality": ("audio", "visual")[number],
                "method": rng.choice(["threshold", "viterbi"], 300),
            }
        )
        inputs.append(write_proposals(tmp_path / name, table))
        tables.append(read_scores(score_path(tmp_path / name, "val", "segments")).table)
    choice = localise.Choice(method, proposals.defaults(method))
    both = pd.concat(tables, ignore_index=True)
    files = pd.unique(both["file"])
    parts = [localise.candidates(table, files) for table in tables]
    found, rows = localise.join(parts, choice, None)
    expected = both.iloc[rows].assign(start=found.start_s, end=found.end_s, score=found.score)
    monkeypatch.setattr(localise, "CLIPS_AT_ONCE", 7)
    joined = pd.concat([*localise.merged_tables(None, "val", inputs, choice)][1:])
    pd.testing.assert_frame_equal(
        joined.reset_index(drop=True), expected.reset_index(drop=True), check_dtype=False
    )
