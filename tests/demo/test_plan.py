"""The demo's plan: each command once, after what it reads, equal trainings copied."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from places import copy_recipes

from klassify.demo import plan
from klassify.demo.plan import planned


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check out") / "copy"
    copy_recipes(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return planned(["klassify", "fused"], ["1"], {"data": "demo", "size": "default"}, 2)


def named(steps, *words):
    found = [step for step in steps if set(words) <= set(step.words)]
    assert found, words
    return found


def all_before(steps, step):
    found = set()
    for number in step.after:
        found |= {number} | all_before(steps, steps[number])
    return found


def test_each_command_is_there_once_and_none_names_testb(steps):
    words = [tuple(w for w in step.words if not w.isdigit()) for step in steps]
    assert len(set(words)) == len(words)
    assert not [step for step in steps if "testB" in " ".join(step.words)]
    assert [step.command for step in steps[:2]] == ["corpus", "lists"]
    last = steps[-1]
    assert last.command == "compare" and len(last.after) == len(steps) - 1
    assert {"exp/demo/klassify/maxout", "exp/demo/fused/spans", "--labels"} <= set(last.words)
    assert "exp/demo/klassify/evaluation" not in last.words


def test_a_step_waits_for_what_it_reads(steps):
    systems = "exp/demo/klassify"
    (maxout,) = named(steps, "score", f"{systems}/maxout", "testA")
    before = [steps[number].words for number in all_before(steps, maxout)]
    for inputs in ("tcn", "w2v_aasist"):
        assert any(w[:2] == ("score", f"{systems}/{inputs}") and "testA" in w for w in before)
    (merged,) = named(steps, "localise", f"{systems}/merged", "testA")
    before = [steps[number].words for number in all_before(steps, merged)]
    assert any(w[:2] == ("tune", f"{systems}/merged") for w in before)
    (sync,) = [s for s in named(steps, "train") if s.out == Path("exp/demo/fused/sync")]
    made = [steps[n].out for n in all_before(steps, sync)]
    assert Path("features/demo/embedding-audio_mil/train") in made


def test_faces_are_followed_once_for_features_and_crops(steps):
    made = [step for step in named(steps, "extract") if "--kind" not in step.words]
    assert [(step.recipe, "--lips" in step.words) for step in made] == [("klassify", True)] * 3
    (lips,) = [s for s in named(steps, "train") if s.out == Path("exp/demo/fused/splice_lips")]
    assert {step.number for step in made} <= lips.after


def test_a_corpus_seed_has_folders_of_its_own():
    assert plan.folder_name("default") == "demo"
    assert plan.folder_name("tiny", "3") == "demo-tiny-corpus-3"


def test_trainings_do_not_wait_for_one_another(steps):
    trained = [s for s in named(steps, "train") if s.recipe == "klassify"]
    for one, other in itertools.permutations(trained, 2):
        assert one.number not in all_before(steps, other)


def test_an_equal_training_of_another_recipe_is_copied(steps):
    like = {step.out.name: step.like for step in named(steps, "train") if step.recipe == "fused"}
    assert like["tcn"] == Path("exp/demo/klassify/tcn") and like["audio_mil"] is None
    first, copy = (named(steps, "train", f"exp/demo/{r}/tcn")[0] for r in ("klassify", "fused"))
    assert first.number in copy.after
    assert not [step for step in named(steps, "train") if step.recipe == "klassify" and step.like]


def test_the_longest_chain_is_the_most_urgent(steps):
    first = [step for step in steps if step.part == 0]
    longest = max(step.urgency for step in first)
    assert steps[0].urgency == longest > sum(step.seconds for step in first) / 3
    assert all(
        step.urgency
        >= step.seconds
        + max([o.urgency for o in first if step.number in o.after], default=0)
        - 1e-6
        for step in first
    )


def test_every_trained_system_has_an_estimate(steps):
    names = {Path(step.words[1]).stem for step in named(steps, "train")}
    assert names <= set(plan.TRAINING_SECONDS)


def test_several_seeds_end_with_the_mean_of_their_tables(tmp_path, monkeypatch):
    copy_recipes(tmp_path)
    monkeypatch.chdir(tmp_path)
    steps = planned(["klassify"], ["1", "2"], {"data": "demo", "size": "tiny"}, 2)
    (mean,) = named(steps, "evaluate", "--mean")
    top = "exp/demo-tiny/klassify"
    tables = [f"{top}/{part}evaluation/test{x}.tsv" for part in ("", "seed-2/") for x in "AB"]
    assert list(mean.words) == ["evaluate", "--mean", *tables, "--out", f"{top}/evaluation"]
    before = {steps[number].out for number in all_before(steps, mean)}
    assert {Path(f"{top}/evaluation"), Path(f"{top}/seed-2/evaluation")} <= before
