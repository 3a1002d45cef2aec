"""A corpus of genuine clips: plausible fakes with exact edges, and nothing else that tells them."""

from __future__ import annotations

import collections

import av
import numpy as np
import pytest

from klassify.cli import main
from klassify.corpus import real_clips
from klassify.corpus.encode import write_clip
from klassify.corpus.footage import Piece
from klassify.corpus.metadata import read_entries
from klassify.corpus.people import Source, find_sources, splits_of
from klassify.corpus.plan import DIFFICULTIES, SIZES, SPLITS, generator, originals
from klassify.corpus.take import record
from klassify.errors import KlassifyError
from klassify.failures import read_failures
from klassify.files import read_json
from klassify.media import decoder


@pytest.fixture(scope="module")
def talking():
    """(frames, wave) of four speakers, 2.5 s each."""
    firsts = {original.speaker: original for original in reversed(originals(SIZES["tiny"], 3))}
    takes = [record(firsts[number], 3, DIFFICULTIES["easy"]) for number in range(4)]
    return [
        (
            [np.clip(take.grain.on(picture, k), 0, 255) for k, picture in enumerate(take.frames)],
            take.room.record(take.dry),
        )
        for take in takes
    ]


@pytest.fixture(scope="module")
def folder(talking, tmp_path_factory):
    """Clips of five people: one without sound, one without a face, one too short, one damaged."""
    root = tmp_path_factory.mktemp("genuine")
    pictures = [[picture.astype(np.uint8) for picture in frames] for frames, _ in talking]
    waves = [wave for _, wave in talking]
    grey = [np.full((224, 224, 3), 90, np.uint8)] * len(pictures[3])
    clips = {
        "anna/one": (pictures[0], waves[0]),
        "ben/one": (pictures[1], waves[1]),
        "cleo/silent": (pictures[2], None),
        "dora/dark": (grey, waves[3]),
        "dora/short": (pictures[3][:30], waves[3][: 30 * 640]),
        "emil/one": (pictures[3], waves[3]),
    }
    for name, (frames, wave) in clips.items():
        path = root / f"{name}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_clip(path, frames, wave, crf=20, audio_bit_rate=64_000)
    (root / "emil/broken.mp4").write_bytes(b"no video")
    return root


@pytest.fixture(scope="module")
def real_corpus(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus") / "real"
    words = ["corpus", "--from", folder, "--out", out, "--licence", "CC0"]
    assert main([str(word) for word in words]) == 0
    return out


def decoded(real_corpus, entry):
    path = real_corpus / entry["split"] / entry["file"]
    frames = np.stack(list(decoder.iter_frames(path))).astype(int)
    return frames, decoder.read_audio(path) if entry["audio_frames"] else None


def test_layout_and_origin(real_corpus, folder):
    entries = read_entries(real_corpus)
    on_disk = {str(path.relative_to(real_corpus)) for path in real_corpus.rglob("*.mp4")}
    assert on_disk == {f"{entry['split']}/{entry['file']}" for entry in entries}
    splits = collections.defaultdict(set)
    for entry in entries:
        splits[entry["speaker"]].add(entry["split"])
        assert entry["licence"] == "CC0" and (folder / entry["source"]).is_file()
        assert entry["source"].startswith(entry["speaker"])
    assert all(len(split) == 1 for split in splits.values())
    assert {split for only in splits.values() for split in only} == set(SPLITS)
    for split in ("testA", "testB"):
        names = (real_corpus / f"{split}_files.txt").read_text()
        assert names and not any(word in names for word in ("real", "fake", "anna", "ben"))


def test_every_piece_has_two_real_and_three_fake_versions(real_corpus):
    pieces = collections.defaultdict(list)
    for entry in read_entries(real_corpus):
        pieces[entry["source"]].append(entry["modify_type"])
    both = ["audio_modified", "both_modified", "real", "real", "visual_modified"]
    assert sorted(pieces["anna/one.mp4"]) == sorted(pieces["ben/one.mp4"]) == both
    assert sorted(pieces["cleo/silent.mp4"]) == ["real"] * 2 + ["visual_modified"] * 3
    assert sorted(pieces["dora/dark.mp4"]) == ["audio_modified"] * 3 + ["real"] * 2
    names = ("anna/one", "ben/one", "cleo/silent", "dora/dark", "emil/one")
    assert set(pieces) == {f"{name}.mp4" for name in names}


def test_unusable_clips_are_named_with_the_reason(real_corpus):
    failures = {
        (one.file, one.stage): one.reason for one in read_failures(real_corpus / "failures.tsv")
    }
    assert "2 s" in failures["dora/short.mp4", "decode"]
    assert failures["emil/broken.mp4", "decode"]
    assert "no sound" in failures["cleo/silent.mp4", "sound"]
    assert "a face in 0 of" in failures["dora/dark.mp4", "face"]


def test_versions_of_a_piece_have_the_same_length_and_coding(real_corpus):
    traits = collections.defaultdict(set)
    for entry in read_entries(real_corpus):
        path = real_corpus / entry["split"] / entry["file"]
        with av.open(str(path)) as container:
            streams = [
                (stream.type, stream.codec_context.name, stream.duration, stream.metadata.get("x"))
                for stream in container.streams
            ]
        n_edits = len(entry["audio_edits"]), len(entry["visual_edits"])
        if entry["file"].rsplit("_", 1)[-1] in ("1.mp4", "2.mp4"):
            n_edits = None  # of further draws of spans
        lengths = entry["video_frames"], entry["audio_frames"]
        if entry["split"] in ("train", "val"):
            traits[entry["original"]].add((tuple(streams), lengths, n_edits))
    for found in traits.values():
        assert len({one[:2] for one in found}) == 1
        assert len({one[2] for one in found} - {None}) == 1


def test_segments_are_where_the_clip_differs_from_its_real_twin(real_corpus):
    entries = read_entries(real_corpus)
    twins = {entry["file"]: decoded(real_corpus, entry) for entry in entries if is_twin(entry)}
    checked = 0
    for entry in entries:
        twin = next(one for one in entries if one["file"] == entry["original"])
        same = [edit[:2] for edit in entry["visual_edits"]] == [e[:2] for e in twin["visual_edits"]]
        if entry["modify_type"] == "real" or not same:
            continue
        frames, wave = decoded(real_corpus, entry)
        there, sound = twins[entry["original"]]
        if entry["visual_fake_segments"]:
            apart = np.sort(np.abs(frames - there).reshape(len(frames), -1))[:, -1500:].mean(axis=1)
            inside, outside = apart_in(apart, entry["visual_fake_segments"], 25)
            assert inside > 1.5 * outside
            checked += 1
        if entry["audio_fake_segments"]:
            n = min(len(wave), len(sound))
            apart = np.abs(wave[:n] - sound[:n])
            edited = [edit[:2] for edit in entry["audio_edits"]]
            inside, _ = apart_in(apart, entry["audio_fake_segments"], 16_000)
            _, outside = apart_in(apart, edited, 16_000)
            assert inside > 5 * outside
            checked += 1
    assert checked >= 6


def is_twin(entry):
    return entry["file"] == entry["original"]


def apart_in(values, segments, rate):
    inside = np.zeros(len(values), bool)
    for start, end in segments:
        inside[round(start * rate) : round(end * rate)] = True
    return values[inside].mean(), values[~inside].mean()


def test_a_second_run_changes_nothing_other_seeds_are_refused(real_corpus, folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in real_corpus.rglob("*") if path.is_file()}
    words = ["corpus", "--from", str(folder), "--out", str(real_corpus), "--licence", "CC0"]
    assert main(words) == 0 and "already complete" in capsys.readouterr().err
    assert before == {
        path: path.stat().st_mtime_ns for path in real_corpus.rglob("*") if path.is_file()
    }
    assert main([*words, "--seed", "1"]) == 2 and "seed" in capsys.readouterr().err
    assert main([*words, "--size", "tiny"]) == 2
    assert "without --from" in capsys.readouterr().err


def test_an_interrupted_run_goes_on(real_corpus, folder, tmp_path, monkeypatch):
    from klassify.corpus import build

    calls = []
    make = build._make_pieces

    def stopping(mesh, task, **how):
        calls.append(task[0].file)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return make(mesh, task, **how)

    def here(function, tasks, setup, *, jobs):
        mesh = setup()
        yield from ((number, function(mesh, task)) for number, task in enumerate(tasks))

    monkeypatch.setattr(build, "_make_pieces", stopping)
    monkeypatch.setattr(build.workers, "each", here)
    table = tmp_path / "people.tsv"
    table.write_text("file\tperson\ncleo/silent.mp4\ta\ndora/dark.mp4\tb\nemil/broken.mp4\tc\n")
    with table.open("a") as handle:
        handle.write("dora/short.mp4\td\n")
    arguments = (folder, tmp_path / "out", 0)
    with pytest.raises(KeyboardInterrupt):
        build.build_from(*arguments, people=table)
    build.build_from(*arguments, people=table)
    assert calls.count("cleo/silent.mp4") == 1 and len(calls) == 5
    assert read_json(tmp_path / "out/corpus.json")["clips"] == 10


def test_stage_0_reads_it_and_its_labels(real_corpus, tmp_path):
    out = tmp_path / "lists"
    words = ["lists", "--data", "real", "--root", str(real_corpus), "--out", str(out)]
    assert main([*words, "--splits", "train,testA"]) == 0
    assert (out / "heldout/testA_labels.tsv").exists()
    header, *rows = (out / "train.tsv").read_text().splitlines()
    assert "fake_segments" in header and len(rows) == len(read_entries(real_corpus, ("train",)))


def test_container_and_loudness_do_not_tell_fakes():
    """Over many pieces: sound edits keep the loudness, and the number of edits is the same."""
    rng = np.random.default_rng(0)
    time = np.arange(48_000) / 16_000
    louder, counts = [], []
    for number in range(12):
        syllables = np.clip(np.sin(2 * np.pi * (2 + number / 8) * time), 0, 1)
        voice = sum(np.sin(2 * np.pi * (110 + 9 * number) * k * time) / k for k in range(1, 12))
        wave = (0.1 * voice * syllables + 0.001 * rng.standard_normal(48_000)).astype(np.float32)
        piece = Piece(0, 0, np.zeros((75, 2, 2, 3)), None, np.zeros(75, bool), "", wave, wave[:0])
        spans = real_clips._draw(piece, generator(0, number)).sound
        for how in ("disturb", "fake"):
            kinds = real_clips._kinds("train", rng)[0]
            edited, done = real_clips._sound(piece, spans, how, kinds, generator(1, number))
            louder.append((how, np.log(edited.std() / wave.std())))
            counts.append((number, len(done)))
    gap = [np.mean([value for kind, value in louder if kind == how]) for how in ("disturb", "fake")]
    assert abs(gap[0] - gap[1]) < 0.05 and max(abs(value) for _, value in louder) < 0.3
    assert len(set(counts)) == 12


def test_people_come_from_table_folder_or_name(tmp_path):
    for name in ("x/y/1.mp4", "eve_1.mp4", "eve_2.mp4", "tom.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = {source.file: source.person for source in find_sources(tmp_path)}
    assert found == {"x/y/1.mp4": "x", "eve_1.mp4": "eve", "eve_2.mp4": "eve", "tom.mp4": "tom"}
    table = tmp_path / "people.tsv"
    table.write_text("file\tperson\tlicence\tfrom\neve_1.mp4\te\tCC BY\t-\ntom.mp4\tt\t\t-\n")
    listed = find_sources(tmp_path, table, "CC0")
    assert listed == [Source("eve_1.mp4", "e", "CC BY"), Source("tom.mp4", "t", "CC0")]
    for text, problem in (
        ("file\teve_1.mp4\n", "no rows"),
        ("file\tperson\neve_1.mp4\n", "Row 2 has no file or no person"),
        ("file\tperson\nnone.mp4\ta\n", "1 of 1 files are not in"),
        ("file\tperson\ntom.mp4\ta\ntom.mp4\ta\n", "more than once: tom.mp4"),
    ):
        table.write_text(text)
        with pytest.raises(KlassifyError, match=problem):
            find_sources(tmp_path, table)


@pytest.mark.parametrize("n", [4, 5, 12, 40, 300])
def test_each_person_is_in_one_split(n):
    people = [f"p{number}" for number in range(n)]
    heard = people[: n // 2]
    splits = splits_of(people * 2, heard, seed=0)
    counts = collections.Counter(splits.values())
    assert set(splits) == set(people) and set(counts) == set(SPLITS)
    assert counts["val"] >= min(4, n // 3) and counts["train"] >= counts["val"]
    assert splits == splits_of(people[::-1], heard, seed=0) != splits_of(people, heard, seed=1)
    with_sound = collections.Counter(splits[person] for person in heard)
    for split, count in counts.items():
        assert abs(with_sound[split] - count / 2) <= 1.5


def test_three_people_are_too_few():
    with pytest.raises(KlassifyError, match="3 people"):
        splits_of(["a", "b", "c"], [], seed=0)
