"""The audio cache: equal to decoding, reads only what is asked for, refuses foreign files."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from commands import contents, klassify
from torch.utils.data import DataLoader
from videos import sound, write_media

from klassify import cli
from klassify.data.audio import AudioClips, AudioFrames, AudioReader
from klassify.data.base import ClipWindows, Examples, NoAnswer, Sources
from klassify.data.partialspoof import PartialSpoofFrames
from klassify.errors import KlassifyError
from klassify.failures import read_failures
from klassify.features import audio_cache, shards
from klassify.features.audio_cache import (
    FORMAT,
    HEAD_BYTES,
    SAMPLE,
    AudioRow,
    AudioStore,
    quantised,
    to_float,
    to_int16,
)
from klassify.media import decoder, isolated
from klassify.parts import Place, read_header

pytestmark = pytest.mark.usefixtures("without_workers")

SETTINGS = {"kind": "audio", **FORMAT}
# c: stereo
SECONDS = {"a/é 1.mp4": 5.2, "b.mp4": 0.04, "c.mp4": 2.5}
SECONDS |= {"long.mp4": 25.0, "d.mp4": 4.1, "e.mp4": 9.6}
BAM = """
model:
  class_path: klassify.models.bam.BAM
  init_args:
    frontend:
      class_path: klassify.models.frontends.filterbank.FilterbankFrontEnd
      init_args: {dim: 16}
    local_channels: 2
data:
  class_path: klassify.data.audio.AudioFrames
  init_args: {train_split: train}
train: {epochs: 1, batch_size: 8}
"""


def write_aac(path: Path, seconds: float, channels: int = 1, rate: int = 44_100) -> None:
    """Speech-like noise as AAC in an mp4."""
    rng = np.random.default_rng(round(100 * seconds))
    wave = 0.2 * rng.normal(size=(channels, round(seconds * rate)))
    write_media(path, sound(wave, rate=rate, layout="mono" if channels == 1 else "stereo"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six sound clips in AAC, one wav, one without audio, one of text and one not there."""
    root = tmp_path_factory.mktemp("audio split=train")
    folder = root / "media" / "train"
    (folder / "a").mkdir(parents=True)
    for file, seconds in SECONDS.items():
        write_aac(folder / file, seconds, channels=1 + (file == "c.mp4"))
    soundfile.write(folder / "f.wav", np.random.default_rng(1).uniform(-1, 1, 70_001), 16_000)
    soundfile.write(folder / "none.wav", np.zeros(0), 16_000)
    (folder / "text.mp4").write_text("no media\n" * 100)
    files = [*SECONDS, "f.wav", "none.wav", "text.mp4", "missing.mp4"]
    (root / "lists").mkdir()
    rows = [f"{file}\t{'real' if i % 2 else 'audio_modified'}\t[]" for i, file in enumerate(files)]
    text = "\n".join(["file\tmodify_type\taudio_fake_segments", *rows]) + "\n"
    (root / "lists" / "train.tsv").write_text(
        text.replace("audio_modified\t[]", "audio_modified\t[[0.1,0.7]]")
    )
    return root


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    given = ["--list", data / "lists/train.tsv", "--root", data / "media/train", "--out", out]
    given += ["--chunk", 3, "--jobs", 1, *(more or ("--audio",))]
    return ["extract", *map(str, given)]


@pytest.fixture(scope="module")
def made(data) -> Path:
    """The cache of one uninterrupted run, where a data class looks for it."""
    out = data / "features" / "audio" / "train"
    assert cli.main(arguments(data, out)) == 0
    return out


@pytest.fixture
def both(data, made) -> tuple[Sources, Sources]:
    """The same data without and with the cache; with it there are no media."""
    folders = data / "lists", data / "media", data / "features"
    return Sources(*folders[:2], data / "none"), Sources(folders[0], data / "no media", folders[2])


def test_samples_round_to_the_nearest_step_and_back_exactly():
    wave = np.random.default_rng(0).uniform(-1, 0.999, 10_000).astype(np.float32)
    assert np.abs(quantised(wave) - wave).max() <= 2**-16
    everything = np.arange(-(2**15), 2**15).astype(SAMPLE)
    np.testing.assert_array_equal(to_int16(to_float(everything)), everything)
    assert to_float(everything).dtype == np.float32
    assert to_int16(np.array([-1.0, 1.0, 0.0], np.float32)).tolist() == [-(2**15), 2**15 - 1, 0]


def test_any_span_is_that_of_the_decoded_clip(data, made):
    cache, rng = AudioStore(made), np.random.default_rng(0)
    for file in [*SECONDS, "f.wav"]:
        clip, wave = cache.get(file), quantised(decoder.read_audio(data / "media/train" / file))
        assert len(clip) == len(wave) > 0
        for _ in range(30):
            start, stop = rng.integers(-10, len(wave) + 10, 2)
            np.testing.assert_array_equal(clip[start:stop], wave[start:stop])
        for span in (slice(None), slice(5), slice(-7, None), slice(9, 3), slice(len(wave), None)):
            assert clip[span].dtype == np.float32
            np.testing.assert_array_equal(clip[span], wave[span])
    with pytest.raises(ValueError, match="gaps"):
        cache.get("f.wav")[::2]


def test_a_crop_reads_no_byte_more_than_itself(made, monkeypatch):
    reads, original = [], os.preadv
    monkeypatch.setattr(
        os,
        "preadv",
        lambda fd, into, at: reads.append((at, len(into[0]))) or original(fd, into, at),
    )
    clip = AudioStore(made).get("long.mp4")
    assert not reads
    clip[200_000:264_600]
    assert reads == [(HEAD_BYTES + 2 * (clip.start + 200_000), 2 * 64_600)]


def test_a_read_that_comes_in_pieces_is_put_together(made, monkeypatch):
    whole, original = AudioStore(made).get("e.mp4")[:], os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: original(fd, [into[0][:999]], at))
    np.testing.assert_array_equal(AudioStore(made).get("e.mp4")[:], whole)


@pytest.mark.parametrize("data_class", [AudioClips, AudioFrames, PartialSpoofFrames])
def test_examples_and_windows_are_the_same_with_and_without_it(data_class, both):
    reading = data_class(train_split="train")
    plain, cached = (Examples(reading, sources, "train", seed=3) for sources in both)
    answers = 0
    for epoch in range(3):
        for index in range(len(plain)):
            one, other = plain[epoch, index], cached[epoch, index]
            if isinstance(one, tuple):
                assert one == other
                continue
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one)
            answers += 1
    assert answers == 3 * 7
    files = list(plain.files)
    plain, cached = (ClipWindows(reading, sources, "train") for sources in both)
    for file in files:
        (_, one, reason), (_, other, same) = plain[file], cached[file]
        assert reason == same and len(one) == len(other) and bool(reason) == (not one)
        for a, b in zip(one, other):
            assert (a.start_s, a.end_s) == (b.start_s, b.end_s)
            assert torch.equal(a.inputs["wave"], b.inputs["wave"]), file


def test_training_and_scores_do_not_tell_which_it_was(small_data, tmp_path, monkeypatch, capsys):
    (tmp_path / "bam.yaml").write_text(BAM)
    sources = Sources(small_data.lists, small_data.media, tmp_path / "features")
    for split in ("train", "val"):
        given = ["--list", small_data.lists / f"{split}.tsv", "--root", small_data.media / split]
        out = sources.feature_folder("audio", split)
        assert klassify("extract", "--kind", "audio", *given, "--out", out, "--jobs", 1) == 0
    assert "1 without features (1 audio" in capsys.readouterr().out
    folders = ["--lists", sources.lists, "--media", sources.media, "--features", sources.features]
    opened, call = [], isolated.call

    def noted(function, path):
        opened.append(path)
        return call(function, path)

    monkeypatch.setattr(isolated, "call", noted)
    for side in ("cache", "media"):
        monkeypatch.setenv(audio_cache.VARIABLE, side)
        train = ["train", tmp_path / "bam.yaml", "--out", tmp_path / side / "bam", *folders]
        assert klassify(*train, "--accelerator", "cpu") == 0
        assert bool(opened) == (side == "media")
    cached, decoded = tmp_path / "cache" / "bam", tmp_path / "media" / "bam"
    for name in ("model.safetensors", "settings.json", "config.yaml"):
        assert (cached / name).read_bytes() == (decoded / name).read_bytes()
    score = ["score", cached, "--split", "val", *folders, "--device", "cpu"]
    assert klassify(*score) == 0  # from the media
    frames = cached / "scores" / "val.frames.parquet"
    before, stamp = frames.read_bytes(), frames.stat().st_mtime_ns
    monkeypatch.delenv(audio_cache.VARIABLE)
    assert klassify(*score) == 0 and frames.stat().st_mtime_ns == stamp  # nothing to be done again
    assert klassify(*score, "--force") == 0  # from the cache
    assert frames.read_bytes() == before


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_worker_processes_read_it(both, start):
    plain, cached = (
        Examples(AudioClips(train_split="train"), sources, "train", seed=1) for sources in both
    )
    cached.reader.read("e.mp4")[:10]  # a file that is open before the workers start
    keys = [[(epoch, i) for i in range(7)] for epoch in range(4)]
    loader = DataLoader(
        cached,
        batch_sampler=keys,
        collate_fn=cached.collate,
        num_workers=2,
        multiprocessing_context=multiprocessing.get_context(start),
    )
    for batch_keys, (batch, failed) in zip(keys, loader, strict=True):
        expected = plain.collate([plain[key] for key in batch_keys])[0]["wave"]
        assert torch.equal(batch["wave"], expected) and not failed


def test_failures_are_those_of_decoding(both):
    plain, cached = (AudioReader(sources, "train") for sources in both)
    for file, kind in (
        ("none.wav", NoAnswer),
        ("text.mp4", KlassifyError),
        ("missing.mp4", KlassifyError),
    ):
        with pytest.raises(kind) as decoding:
            plain.read(file)
        with pytest.raises(kind) as reading:
            cached.read(file)
        assert str(decoding.value).splitlines()[0] == str(reading.value).splitlines()[0]


def test_clips_kept_in_memory_are_read_once(both, monkeypatch):
    reader = AudioReader(both[1], "train", keep_in_memory=True)
    first = reader.read("e.mp4")
    monkeypatch.setattr(os, "preadv", None)
    assert isinstance(first, np.ndarray) and reader.read("e.mp4") is first


def test_the_environment_chooses_what_is_read(data, both, monkeypatch, tmp_path):
    plain, cached = both
    monkeypatch.setenv(audio_cache.VARIABLE, "media")
    with pytest.raises(KlassifyError, match="does not exist"):  # there are no media
        AudioReader(cached, "train")
    monkeypatch.setenv(audio_cache.VARIABLE, "cache")
    with pytest.raises(KlassifyError, match="There is no audio cache"):
        AudioReader(plain, "train")
    with pytest.raises(KlassifyError, match=r"new\.mp4 is not in the audio cache"):
        AudioReader(cached, "train").read("new.mp4")
    monkeypatch.setenv(audio_cache.VARIABLE, "always")
    with pytest.raises(KlassifyError, match="not one of auto, media, cache"):
        AudioReader(cached, "train")


def test_clips_that_it_lacks_are_decoded(data, made, tmp_path, capsys):
    sources = Sources(data / "lists", data / "media", tmp_path)
    folder = sources.feature_folder("audio", "train")
    assert cli.main(arguments(data, folder, "--audio", "--shard", "1/2")) == 0
    reader, whole = AudioReader(sources, "train"), AudioStore(made)
    assert "lacks 1 parts" in capsys.readouterr().err
    kinds = set()
    for file in SECONDS:
        clip = reader.read(file)
        kinds.add(type(clip))
        np.testing.assert_array_equal(clip[:], whole.get(file)[:])
    assert kinds == {np.ndarray, audio_cache.CachedClip}


def test_each_clip_is_there_or_named(data, made, tmp_path, capsys):
    names = [f"part-1-of-1-{k}.{end}" for k in range(4) for end in ("parquet", "pcm")]
    assert sorted(contents(made)) == ["failures-1-of-1.tsv", *sorted(names)]
    failures = read_failures(made / "failures-1-of-1.tsv")
    stages = {"none.wav": "audio", "text.mp4": "decode", "missing.mp4": "decode"}
    assert {failure.file: failure.stage for failure in failures} == stages
    assert [one.reason for one in failures if one.file == "none.wav"] == ["no audio"]
    cache = AudioStore(made)
    assert len(cache) == 10 and not cache.missing
    assert cache.get("other.mp4") is None and len(cache.get("none.wav")) == 0
    settings = read_header(made / "part-1-of-1-0.parquet").settings
    assert FORMAT.items() <= settings.items() and settings["clips"] == 10
    first_line = b"klassify audio 1: 16000 Hz, mono, int16"
    assert (made / "part-1-of-1-0.pcm").read_bytes().startswith(first_line)
    assert cli.main(arguments(data, made, "--audio", "--status")) == 0
    assert "10 of 10 clips, 4 of 4 parts" in capsys.readouterr().out
    assert cli.main(arguments(data, made, "--audio", "--strict")) == 1
    assert cli.main(arguments(data, tmp_path, "--kind", "audio")) == 0  # the same as --audio
    assert contents(tmp_path) == contents(made)


def test_force_replaces_all_parts_with_their_sound(data, made, tmp_path, capsys):
    assert cli.main(arguments(data, tmp_path, "--audio", "--shard", "1/2")) == 0
    assert cli.main(arguments(data, tmp_path, "--kind", "mouth")) == 2
    assert "kind: 'audio' there, 'mouth' now" in capsys.readouterr().err
    assert cli.main(arguments(data, tmp_path, "--audio", "--force")) == 0
    left = contents(tmp_path)
    left.pop("failures-1-of-2.tsv")
    assert left == contents(made)


def rows(n: int = 5) -> list[AudioRow]:
    rng = np.random.default_rng(n)
    return [AudioRow(f"{n}/{i}", rng.integers(-99, 99, 100 * i).astype(SAMPLE)) for i in range(n)]


@pytest.fixture
def two_parts(tmp_path) -> Path:
    for k in range(2):
        audio_cache.write_part(tmp_path, Place(1, 1, k, 2), rows(5 + k), SETTINGS, "")
    assert len(AudioStore(tmp_path)) == 11
    return tmp_path


def rewritten(path: Path, columns: dict[str, list]) -> None:
    """Another index beside the same samples, whose digest it knows."""
    digest = audio_cache.sound_path(path).read_bytes()[:HEAD_BYTES].split()[-1].decode()
    texts = {"stage": [""] * 5, "reason": [""] * 5}
    columns = texts | {"n_heard": columns["n_samples"]} | columns
    audio_cache.write_index(path, Place(1, 1, 0, 2), columns, SETTINGS, "", digest)


def test_gaps_are_not_heard_where_the_cache_tells(tmp_path):
    sound = np.ones(16_000, SAMPLE)
    heard = [AudioRow("a", sound, gaps=[(0, 4000), (8000, 12_000)]), AudioRow("b", sound)]
    place, folder = Place(1, 1, 0, 1), tmp_path / "audio/val"
    path = audio_cache.write_part(folder, place, heard, SETTINGS, "")
    table = pd.DataFrame({"file": ["a", "b", "c"], "n_samples": 16_000, "duration": 2.0})
    sources = Sources(tmp_path, tmp_path, tmp_path)
    shares = [AudioClips().shares(sources, "val", table).tolist()]
    columns = pq.read_table(path).drop_columns("n_heard")
    pq.write_table(columns, path)  # as older caches are
    assert len(AudioStore(folder)) == 2
    shares.append(AudioClips().shares(sources, "val", table).tolist())
    assert shares == [[0.25, 0.5, 0.5], [0.5, 0.5, 0.5]]


def test_a_part_without_its_sound_is_not_taken_for_done(two_parts):
    path = two_parts / "part-1-of-1-0.parquet"
    read_header(path)
    os.truncate(two_parts / "part-1-of-1-0.pcm", 64)
    with pytest.raises(KlassifyError, match="has 64 bytes, its index"):
        read_header(path)
    (two_parts / "part-1-of-1-0.pcm").unlink()
    with pytest.raises(KlassifyError, match="is missing"):
        read_header(path)
    path.unlink()
    read_header(two_parts / "part-1-of-1-1.parquet")


def test_samples_that_do_not_belong_to_the_index_are_refused(two_parts):
    sound, other = two_parts / "part-1-of-1-0.pcm", two_parts / "part-1-of-1-1.pcm"
    whole = sound.read_bytes()
    for content, complaint in (
        (whole[:-2], "1998|bytes, its index"),
        (whole + b"00", "bytes, its index"),
        (b"", "bytes, its index"),
        (b"x" * len(whole), "not those of the index"),
        (other.read_bytes()[:HEAD_BYTES] + whole[HEAD_BYTES:], "not those of the index"),
    ):
        sound.write_bytes(content)
        with pytest.raises(KlassifyError, match=complaint) as error:
            AudioStore(two_parts)
        said = str(error.value)
        assert "part-1-of-1-0.pcm" in said and "extract --kind audio" in said
    sound.unlink()
    with pytest.raises(KlassifyError, match="is missing"):
        AudioStore(two_parts)


def test_a_hostile_index_is_refused(two_parts):
    path, names = two_parts / "part-1-of-1-0.parquet", [f"5/{i}" for i in range(5)]
    good = [0, 100, 200, 300, 400]
    rewritten(path, {"file": names, "n_samples": good})
    assert len(AudioStore(two_parts).get("5/4")) == 400
    for columns, complaint in (
        ({"file": names, "n_samples": [0, 100, 200, 300, 2**31 - 1]}, "its index says"),
        ({"file": names, "n_samples": [0, 100, -200, 700, 400]}, "lengths below 0"),
        ({"file": names, "n_samples": [0, 100, None, 500, 400]}, "lengths below 0|damaged"),
        ({"file": [*names[:4], None], "n_samples": good}, "damaged"),
        ({"file": [*names[:4], "5/0"], "n_samples": good}, "appear twice"),
        ({"file": [*names[:4], "6/3"], "n_samples": good}, "1 clips appear twice"),
    ):
        rewritten(path, columns)
        with pytest.raises(KlassifyError, match=complaint):
            AudioStore(two_parts)
    path.write_bytes(b"PAR1" * 50)
    with pytest.raises(KlassifyError, match="not a whole Parquet file"):
        AudioStore(two_parts)


def test_another_format_and_another_kind_are_refused(tmp_path):
    for change, complaint in (
        ({"rate": 8000}, "rate: 8000 there, 16000 wanted"),
        ({"version": 2}, "version: 2"),
    ):
        audio_cache.write_part(tmp_path, Place(1, 1, 0, 1), rows(), SETTINGS | change, "")
        with pytest.raises(KlassifyError, match=complaint):
            AudioStore(tmp_path)
    shards.write_part(tmp_path, Place(1, 1, 0, 1), [], {"kind": "mouth"}, "")
    with pytest.raises(KlassifyError, match="kind: 'mouth' there, 'audio' wanted"):
        AudioStore(tmp_path)
    floats = [AudioRow("a", np.zeros(3, np.float32))]
    with pytest.raises(ValueError, match="float32"):
        audio_cache.write_part(tmp_path, Place(1, 1, 0, 1), floats, SETTINGS, "")


def test_a_file_that_shrinks_while_read_costs_only_its_clips(two_parts):
    cache = AudioStore(two_parts)
    os.truncate(two_parts / "part-1-of-1-1.pcm", 500)
    with pytest.raises(KlassifyError, match="ends within a clip"):
        cache.get("6/5")[:]
    assert len(cache.get("5/4")[:]) == 400


def test_names_of_equal_keys_in_part_are_told_apart(two_parts, monkeypatch):
    original = audio_cache._keys
    monkeypatch.setattr(
        audio_cache, "_keys", lambda files: original(files) & np.array([1, 2**64 - 1], np.uint64)
    )
    cache = AudioStore(two_parts)
    for n in (5, 6):
        for row in rows(n):
            np.testing.assert_array_equal(cache.get(row.file)[:], to_float(row.samples))
    assert all(cache.get(f"other {i}") is None for i in range(20))


def test_many_parts_take_few_files_and_little_memory(tmp_path):
    n_parts = audio_cache.OPEN_PARTS + 30
    for k in range(n_parts):
        part = [dataclasses.replace(row, file=f"{k}/{row.file}") for row in rows(20)]
        audio_cache.write_part(tmp_path, Place(1, 1, k, n_parts), part, SETTINGS, "")
    cache = AudioStore(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for k in range(n_parts):
        np.testing.assert_array_equal(cache.get(f"{k}/20/7")[:], to_float(rows(20)[7].samples))
    assert len(os.listdir("/proc/self/fd")) == before + audio_cache.OPEN_PARTS
    assert len(pickle.dumps(cache)) < 40 * len(cache) + 200 * n_parts
    again = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(again.get("3/20/7")[5:9], cache.get("3/20/7")[5:9])
    cache._sound.cache_clear()
    again._sound.cache_clear()
    assert len(os.listdir("/proc/self/fd")) == before
