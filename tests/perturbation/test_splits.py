"""Derived splits: media, lists, shards, resuming, and clips that cannot be decoded."""

import numpy as np
import pandas as pd
import pytest
from videos import noise, tone

from klassify.cli import main
from klassify.cluster.work import PerturbWork, found_works
from klassify.corpus.encode import write_clip
from klassify.errors import KlassifyError
from klassify.failures import read_failures
from klassify.lists import data_list, subsets
from klassify.parts import parts_in
from klassify.perturbation.clip import Clip, perturb
from klassify.perturbation.splits import Plan, Step, _answers, make
from klassify.workers import Died

FILES = ["a.mp4", "b/c.mp4", "broken.mp4"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A media folder with two clips and one that is not media, and their list."""
    root = tmp_path_factory.mktemp("media")
    (root / "b").mkdir()
    for number, file in enumerate(FILES[:2]):
        wave = tone(16_000, 1.2)[0].astype(np.float32) * 0.3
        write_clip(root / file, list(noise(30, 48, 64, seed=number)), wave, 30, 48_000)
    (root / "broken.mp4").write_bytes(b"not media")
    frame = pd.DataFrame({"file": FILES, "n_frames": 30, "fps": 25.0, "n_samples": 19_200})
    frame = frame.assign(duration=1.2, modify_type="audio_modified", source=FILES)
    for name in data_list.SEGMENTS:
        segments = [] if name.startswith("visual") else [[0.6, 1.0]]
        frame[name] = pd.Series([segments] * len(FILES), dtype=object)
    data_list.write_list(root / "val.tsv", frame)
    return root, data_list.read_list(root / "val.tsv", segments=True)


def plan_of(corpus, out, **options):
    return Plan(out, "val", corpus[1], ("trim", "noise"), levels=(1, 3), chunk=2, **options)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The splits that one process makes."""
    plan = plan_of(corpus, tmp_path_factory.mktemp("whole"))
    assert make(plan, corpus[0])
    return plan


def content(plan):
    """{name: bytes} of the derived media and lists."""
    paths = [*plan.media.rglob("*.mp4"), *plan.lists.glob("*.tsv")]
    return {str(path.relative_to(plan.out)): path.read_bytes() for path in paths}


def test_each_step_is_a_split_with_moved_labels(whole):
    trimmed = subsets.load_split(whole.lists, "val-trim-3", segments=True)
    assert trimmed["file"].tolist() == FILES
    assert trimmed["fake_segments"].iloc[0] == [[0.4, 0.8]]
    assert trimmed["duration"].iloc[0] == pytest.approx(0.8, abs=0.07)
    noisy = subsets.load_split(whole.lists, "val-noise-1", segments=True)
    assert noisy["fake_segments"].tolist() == [[[0.6, 1.0]]] * 3
    folder = subsets.media_folder(whole.media, "val-noise-1", FILES)
    assert (folder / "b/c.mp4").exists()


def test_a_broken_clip_keeps_its_row_and_is_listed(whole):
    failures = read_failures(whole.parts / "failures.tsv")
    assert {failure.file for failure in failures} == {"broken.mp4"}
    assert len(failures) == len(whole.steps) and failures[0].stage == "trim-1: decode"
    row = subsets.load_split(whole.lists, "val-trim-3").iloc[2]
    assert row["duration"] == 1.2


def test_shards_give_the_same_as_the_whole(whole, corpus, tmp_path):
    plan = plan_of(corpus, tmp_path)
    assert not make(plan, corpus[0], shard=(2, 2))
    assert PerturbWork(plan.parts, 2).done() == {2}
    assert make(plan, corpus[0], shard=(1, 2))
    assert content(plan) == content(whole)
    (found,) = found_works(tmp_path)
    assert isinstance(found, PerturbWork) and found.done() == {1, 2}
    assert "4 failures" in found.merge()


def test_a_repeated_run_makes_only_what_is_missing(whole, corpus):
    before = content(whole)
    media = whole.media / "val-trim-3/a.mp4"
    kept = whole.media / "val-noise-3/a.mp4"
    times = media.stat().st_mtime_ns, kept.stat().st_mtime_ns
    for path in parts_in(whole.parts / "trim-3"):
        path.unlink()
    assert make(whole, corpus[0])
    assert media.stat().st_mtime_ns > times[0] and kept.stat().st_mtime_ns == times[1]
    assert content(whole) == before


def test_neither_order_nor_other_clips_matter(whole, corpus, tmp_path):
    perturb(Clip(corpus[0] / "b/c.mp4", "b/c.mp4"), "noise", 3, tmp_path / "alone.mp4")
    among_others = whole.media / "val-noise-3/b/c.mp4"
    assert among_others.read_bytes() == (tmp_path / "alone.mp4").read_bytes()
    perturb(Clip(corpus[0] / "b/c.mp4", "other"), "noise", 3, tmp_path / "other.mp4")
    assert among_others.read_bytes() != (tmp_path / "other.mp4").read_bytes()


def test_another_seed_is_refused_in_the_same_folder(whole, corpus):
    with pytest.raises(KlassifyError, match="seed: 0 there, 5 now"):
        make(plan_of(corpus, whole.out, seed=5), corpus[0])


def test_a_crash_costs_a_clip_one_family_alone():
    def each(tasks, limit_s):
        for number, (_, steps) in enumerate(tasks):
            crashes = any(step.family == "h265" for step in steps)
            yield number, Died("SIGABRT") if crashes else {step: {"reason": ""} for step in steps}

    steps = [Step(family, level) for family in ("trim", "h265", "noise") for level in (1, 2)]
    found = dict(_answers([("a.mp4", steps), ("b.mp4", steps[:2])], each))
    failed = {step for step, row in found[0].items() if row["reason"]}
    assert list(found[0]) == steps and failed == {Step("h265", 1), Step("h265", 2)}
    assert list(found[1]) == steps[:2]


def test_sound_alone_has_no_families_of_the_picture(tmp_path, capsys):
    lengths = {"n_frames": 0, "fps": 0.0, "n_samples": 16_000, "duration": 1.0}
    sound = pd.DataFrame({"file": ["a.wav"], **lengths, "modify_type": "real", "source": "a"})
    data_list.write_list(tmp_path / "val.tsv", sound)
    command = ["perturb", "--list", str(tmp_path / "val.tsv"), "--root", str(tmp_path)]
    command += ["--out", str(tmp_path / "perturbed"), "--levels", "1", "--status"]
    assert main([*command, "--families", "noise,blur,jpeg"]) == 2
    assert "blur, jpeg would change nothing" in capsys.readouterr().err
    assert main(command) == 1
    told = capsys.readouterr().out
    assert "mp3-1" in told and "reencode-1" in told and "blur-1" not in told
