"""`klassify compare`: systems, answers, numbers against obvious ones, leaks, drift."""

from __future__ import annotations

import dataclasses
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from commands import ran
from places import copy_recipes
from scipy.stats import spearmanr
from two_recipes import make, video

from klassify.cli import main
from klassify.errors import KlassifyError
from klassify.evaluation import conditions, leaks
from klassify.grid.segments import Truth
from klassify.lists import data_list, subsets
from klassify.media import decoder
from klassify.metrics import clips, segments
from klassify.report import agreement, drift, entries, figures, sidebyside
from klassify.scores import clip_scores
from klassify.systems.detector import GENERATED_NOTICE


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    return make(tmp_path_factory.mktemp("two recipes"))


@pytest.fixture(scope="module")
def labels(recipes):
    return data_list.read_list(recipes.path("lists", "heldout", "testA_labels.tsv"), segments=True)


@pytest.fixture(scope="module")
def loaded(recipes, labels):
    found = entries.find([recipes.path("exp", name) for name in ("one", "two")])
    return {one.name: entries.load(one, "testA", labels["file"].tolist()) for one in found}


def test_recipes_give_all_their_systems_with_names_that_differ(loaded):
    assert set(loaded) == {"one/sound", "one/picture", "one/both", "one/spans", "two/frames"}
    assert loaded["one/both"].answers == ("task1",)
    assert loaded["two/frames"].answers == ("task1", "task2")
    answers = entries.answering(list(loaded.values()), "task1")
    assert [one.name for one in answers] == ["one/both", "two/frames"]


def test_system_folders_have_short_names_and_count_once(recipes):
    folder = recipes.path("exp", "one")
    found = entries.find([folder / "sound", folder / "both", folder])
    assert sorted(one.name for one in found) == ["both", "picture", "sound", "spans"]


def test_what_is_no_system_is_refused(recipes, capsys):
    assert main(["compare", str(recipes.path("lists")), "--split", "testA", "--out", "x"]) == 2
    assert "neither a system.yaml nor a detector.yaml" in capsys.readouterr().err


def test_split_without_scores_names_the_commands(recipes, tmp_path, monkeypatch, capsys):
    """Of all systems, inputs first, with the lists and features of their data."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(recipes.path("exp", "one"), "exp/mine/one")
    shutil.copytree(recipes.path("lists"), "data_lists/mine")
    assert main(["compare", "exp/mine/one", "--split", "val_extra", "--out", "x"]) == 2
    assert "--lists ... --media" in capsys.readouterr().err
    shutil.copy("data_lists/mine/val.tsv", "data_lists/mine/test.tsv")
    (tmp_path / "exp/mine/one/spans/proposals.yaml").touch()
    assert main(["compare", "exp/mine/one", "--split", "test", "--out", "x"]) == 2
    folders = " ".join(f"exp/mine/one/{name}" for name in ("sound", "picture", "both", "spans"))
    advice = f"klassify score {folders} --split test --lists data_lists/mine --media DIR"
    advice += " --features features/mine && klassify localise exp/mine/one/spans --split test"
    assert f"fix:   {advice} " in capsys.readouterr().err


def test_without_labels_a_system_with_clip_scores_is_needed(recipes, tmp_path, capsys):
    shutil.copytree(recipes.path("exp", "one/spans"), tmp_path / "spans")
    (tmp_path / "spans/scores/testA.clips.tsv").unlink(missing_ok=True)
    words = ["compare", str(tmp_path / "spans"), "--split", "testA", "--out", str(tmp_path)]
    assert main(words) == 2
    assert "None of these systems has clip scores for testA" in capsys.readouterr().err


def test_clips_that_scores_lack_are_named(recipes, labels, tmp_path, capsys):
    more = pd.concat([labels, labels[:1].assign(file="new.mp4")])
    data_list.write_list(tmp_path / "testA_labels.tsv", more)
    assert recipes.compare("--split", "testA", "--labels", str(tmp_path / "testA_labels.tsv")) == 2
    assert "new.mp4" in capsys.readouterr().err


def test_coverage_tells_answers_from_fallbacks_and_failures(loaded, labels):
    files = labels["file"].tolist()
    states = pd.concat([entries.coverage(one, "testA", files) for one in loaded.values()])
    rows = states[states["state"] != "answered"].set_index(["system", "task", "file"])
    assert rows.loc[("one/sound", "task1", files[3]), "state"] == "failed"
    assert rows.loc[("one/both", "task1", files[3]), "state"] == "fell back"
    assert "no audio" in rows.loc[("one/both", "task1", files[3]), "reason"]
    assert rows.loc[("one/spans", "task2", files[5]), "state"] == "failed"
    assert len(rows) == 3
    summary = entries.coverage_summary(states).set_index(["system", "task"])
    counts = summary.loc[("one/both", "task1"), ["n", "answered", "fell back", "failed"]]
    assert tuple(counts) == (32, 31, 1, 0)


def test_task1_differences_equal_a_bootstrap_written_out(loaded, labels):
    ours = [loaded["one/both"], loaded["two/frames"]]
    table, differences = sidebyside.task1_metrics(ours, labels, n_bootstrap=50, seed=3)
    label, source = subsets.label(labels, "video"), labels["source"].to_numpy()
    names, rng, samples = np.unique(source), np.random.default_rng(3), []
    for _ in range(50):
        drawn = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))
        rows = np.concatenate(
            [np.repeat(np.flatnonzero(source == name), n) for name, n in zip(names, drawn)]
        )
        a, b = (clips.roc_auc(label[rows], one.scored.score[rows]) for one in ours)
        samples.append(a - b)
    row = differences[differences["metric"] == "auc"].iloc[0]
    assert row["difference"] == pytest.approx(table["auc"][0] - table["auc"][1])
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(
        np.quantile(samples, [0.025, 0.975])
    )


def test_groups_of_fakes_hold_all_real_clips_and_equal_a_subset(loaded, labels):
    groups = conditions.clip_groups(labels)
    # one length, no video generator known
    assert set(groups) == {"fake type", "audio generator", "speaker"}
    ours = [loaded["one/both"], loaded["two/frames"]]
    table = sidebyside.task1_by_group(ours, labels, groups, versus="two/frames", n_bootstrap=20)
    chosen = labels["modify_type"].isin(["real", "audio_modified"]).to_numpy()
    want = clips.roc_auc(subsets.label(labels, "video")[chosen], ours[0].scored.score[chosen])
    row = table[(table["group"] == "audio_modified") & (table["system"] == "one/both")].iloc[0]
    assert row["value"] == pytest.approx(want) and row["n"] == chosen.sum()
    assert row["gain_low"] <= row["gain"] <= row["gain_high"]


def test_many_speakers_leave_a_group_of_others():
    frame = pd.DataFrame(
        {"modify_type": "real", "duration": 1.0, "speaker": [f"s{i}" for i in range(40)] + ["s3"]}
    )
    groups = conditions.clip_groups(frame)["speaker"]
    assert len(groups) == conditions.MAX_GROUPS and groups["29 others"].sum() == 29
    assert sum(mask.sum() for mask in groups.values()) == 41


def test_task2_by_group_equals_the_metric_on_weights(loaded, labels):
    ours = [loaded["one/spans"], loaded["two/frames"]]
    truth = Truth.from_list(labels)
    matches = {one.name: segments.match(one.localised.proposals, truth) for one in ours}
    groups = conditions.clip_groups(labels)
    table = sidebyside.task2_by_group(
        ours, labels, matches, groups, versus="two/frames", n_bootstrap=0
    )
    want = segments.by_modify_type(matches["one/spans"], labels["modify_type"])
    own = table[(table["system"] == "one/spans") & (table["kind"] == "fake type")].set_index(
        "group"
    )["value"]
    assert own.to_dict() == pytest.approx({kind: result.score for kind, result in want.items()})
    assert set(table.loc[table["kind"] == "segment length", "group"]) == {"0.32-0.64 s"}


def test_agreement_equals_scipy_with_ties(loaded):
    ours = [loaded["one/both"], loaded["two/frames"]]
    rounded = []
    for one in ours:
        scored = dataclasses.replace(one.scored, score=np.round(one.scored.score))
        rounded.append(dataclasses.replace(one, scored=scored))
    given = [
        agreement.Calibrated(one.name, one.scored.probability, None, "", one.scored.probability)
        for one in rounded
    ]
    row = agreement.agreement(rounded, given).iloc[0]
    expected = spearmanr(*(one.scored.score for one in rounded)).statistic
    assert row["rank_correlation"] == pytest.approx(expected)
    same = (given[0].probability > 0.5) == (given[1].probability > 0.5)
    assert row["equal_decisions"] == pytest.approx(same.mean())


def test_joining_never_looks_at_the_labels_it_is_measured_on(loaded, labels, recipes):
    fit = subsets.load_split(recipes.path("lists"), "val_fit")
    ours = [loaded["one/both"], loaded["two/frames"]]
    answers = [agreement.calibrated(one, "testA", labels["file"].tolist(), fit) for one in ours]
    joined = agreement.fused(answers, fit)
    p = np.stack([one.probability for one in answers])
    assert np.array_equal(joined["max"], p.max(axis=0))
    assert np.allclose(joined["mean"], p.mean(axis=0))
    table = agreement.fusion_gain(answers, labels, fit, n_bootstrap=20)
    turned = labels.assign(
        modify_type=np.where(labels["modify_type"] == "real", "both_modified", "real")
    )
    assert list(agreement.fusion_gain(answers, turned, fit, n_bootstrap=0)["versus"]) == list(
        table["versus"]
    )
    assert table.set_index("system").loc["mean of 2", "auc"] > 0.7


def test_without_labels_of_val_probabilities_stay_as_they_are(loaded, labels):
    given = agreement.calibrated(loaded["one/both"], "testA", labels["file"].tolist(), None)
    assert given.on_fit is None and np.array_equal(
        given.probability, loaded["one/both"].scored.probability
    )


def test_psi_by_hand():
    val = np.arange(100) / 100
    found = drift.population_stability(np.concatenate([val[:50], val[:50]]), val)
    p = np.r_[np.full(5, 20.5), np.full(5, 0.5)] / 105
    q = np.full(10, 10.5) / 105
    assert found.psi == pytest.approx(((p - q) * np.log(p / q)).sum())
    assert found.reading.startswith("a large shift")
    by_chance = pytest.approx(0.338, abs=1e-3)
    assert drift.population_stability(val, val) == (0, by_chance, "stable", 100, 100)
    assert np.isnan(drift.population_stability(np.zeros(0), val).psi)
    assert drift.population_stability(np.zeros(9), np.zeros(9)).psi == 0


def test_chance_of_psi_holds_nineteen_of_twenty():
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=200), rng.normal(size=400)) for _ in range(300)]
    found = [drift.population_stability(*pair) for pair in pairs]
    assert 0.90 <= np.mean([one.psi <= one.by_chance for one in found]) <= 0.99


def test_chance_of_psi_counts_sources():
    rng = np.random.default_rng(0)
    of_test, of_val = np.repeat(np.arange(25), 8), np.repeat(np.arange(25, 50), 8)
    held = {"clips": [], "sources": []}
    for _ in range(40):
        level = rng.normal(size=50)
        scores = [level[one] + rng.normal(scale=0.1, size=200) for one in (of_test, of_val)]
        clips_alone = drift.population_stability(*scores)
        by_source = drift.population_stability(*scores, (of_test, of_val))
        assert by_source.psi == clips_alone.psi
        for name, found in (("clips", clips_alone), ("sources", by_source)):
            held[name].append(found.psi <= found.by_chance)
    assert np.mean(held["clips"]) < 0.5 and np.mean(held["sources"]) >= 0.85


def clips_of(n_sources: int) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    is_fake = np.tile([0, 1], n_sources)
    source = np.repeat([f"s{i}" for i in range(n_sources)], 2)
    duration = np.repeat(np.random.default_rng(0).uniform(1, 9, n_sources), 2)
    return (
        pd.DataFrame({"file": [f"{i}.mp4" for i in range(2 * n_sources)], "duration": duration}),
        is_fake,
        source,
    )


@pytest.mark.long
def test_audit_finds_a_planted_leak_and_nothing_else():
    frame, is_fake, source = clips_of(60)
    table = leaks.audit(frame, is_fake, source, None, n_bootstrap=20).set_index("trait")
    assert not table["leaks"].any() and table.loc["duration", "auc"] == pytest.approx(0.5)
    table = leaks.audit(
        frame.assign(fps=25.0 - is_fake), is_fake, source, None, n_bootstrap=20
    ).set_index("trait")
    assert (
        table.loc["fps", "auc"] == 1 and table.loc["fps", "auc_low"] <= table.loc["fps", "auc_high"]
    )
    assert set(table.index[table["leaks"]]) == {
        "fps",
        "all together (random forest, folds by source)",
    }


def test_categories_are_judged_by_other_sources():
    _, is_fake, source = clips_of(40)
    # it tells the label within a source only
    own = np.array([f"{name}-{fake}" for name, fake in zip(source, is_fake)], object)
    assert clips.roc_auc(is_fake, leaks.share_of_fakes(own, is_fake, source)) == 0.5
    shared = np.where(is_fake == 1, "encoder B", "encoder A").astype(object)
    assert clips.roc_auc(is_fake, leaks.share_of_fakes(shared, is_fake, source)) == 1


def test_sample_takes_whole_sources():
    source = np.repeat(np.arange(100).astype(str), 4)
    rows = subsets.sample_of_sources(source, 50)
    assert len(rows) == 48 and (np.unique(source[rows], return_counts=True)[1] == 4).all()
    assert len(subsets.sample_of_sources(np.full(9, "one"), 3)) == 9


def test_command_with_labels_writes_every_table(recipes, capsys):
    labels = recipes.path("lists", "heldout", "testA_labels.tsv")
    assert recipes.compare("--split", "testA", "--labels", str(labels)) == 0
    out = recipes.path("out", "testA")
    there = {path.name for path in out.iterdir()}
    names = "coverage not-answered task1 task2 frames groups differences agreement joined drift"
    more = ("costs", "thresholds", "gaps", "rates-by-group", "leaks", "beside", "changes")
    tables = {f"{name}.tsv" for name in (*names.split(), *more)}
    assert there == tables | {"comparison.txt", "report.html"}
    assert (out / "comparison.txt").read_text() in capsys.readouterr().out
    differences = pd.read_csv(out / "differences.tsv", sep="\t")
    assert set(differences["task"]) == {"task1", "task2", "frames"}


def test_command_on_val_reports_val_report_alone(recipes, capsys):
    assert recipes.compare("--split", "val", "--labels", str(recipes.path("lists", "val.tsv"))) == 0
    assert "val (val_report): 16 clips" in capsys.readouterr().out


def test_command_without_labels_shows_drift_and_no_metric(tmp_path, capsys):
    shifted = make(tmp_path, test_shift=3.0)
    shutil.rmtree(shifted.path("lists"))
    assert shifted.compare("--split", "testA") == 0
    text = capsys.readouterr().out
    assert "a large shift" in text and "AUC" not in text
    page = shifted.path("out", "testA", "report.html").read_text()
    assert "Worst mistakes" not in page
    (warnings,) = re.findall('<details class="warning".*?</details>', page, re.DOTALL)
    assert "have moved far from those of val (4)" in warnings.partition("</summary>")[0]
    assert len(re.findall("<li>.*?: PSI", warnings)) == 4


def test_notice_of_generated_models_is_said_once(recipes, tmp_path, capsys):
    folders = [str(tmp_path / "exp" / "demo" / name) for name in ("one", "two")]
    shutil.copytree(recipes.path("exp"), tmp_path / "exp" / "demo")
    command = ["compare", *folders, "--split", "testA", "--out", str(tmp_path)]
    assert main(command) == 0
    page = (tmp_path / "testA" / "report.html").read_text()
    for text in (capsys.readouterr().out, page):
        assert text.count(GENERATED_NOTICE) == 1


def test_subset_needs_labels(recipes, capsys):
    assert recipes.compare("--split", "testA", "--subset", "val_fit") == 2
    assert "give --labels" in capsys.readouterr().err


def test_make_compare_takes_what_was_trained_of_every_recipe(tmp_path):
    copy_recipes(tmp_path)
    for name in ("klassify/maxout", "klassify/merged", "klassify/unreported", "multibranch/fused"):
        folder = tmp_path / "exp" / "demo" / name
        folder.mkdir(parents=True)
        (folder / "system.yaml").touch()
    (tmp_path / "data_lists" / "demo").mkdir(parents=True)
    command = ["bash", str(tmp_path / "recipes/klassify/run.sh"), "--compare", "data=demo", "dry=1"]
    done = ran(command, check=True)
    named = [
        f"exp/demo/{name}" for name in ("klassify/maxout", "klassify/merged", "multibranch/fused")
    ]
    assert (
        done.stdout == f"+ klassify compare {' '.join(named)} --split val --out exp/demo/compare\n"
    )
    done = ran([*command[:3], "data=lavdf"])
    assert done.returncode == 2 and "make stage2 recipe=klassify data=lavdf" in done.stderr


def test_localisers_or_clip_labels_alone_are_compared(recipes, labels, tmp_path, capsys):
    folder = recipes.path("exp", "one", "spans")
    bare = labels.drop(columns=[name for name in labels if name.endswith("fake_segments")])
    data_list.write_list(tmp_path / "heldout" / "testA_labels.tsv", bare)
    given = ["--labels", str(tmp_path / "heldout" / "testA_labels.tsv"), "--bootstrap", "0"]
    command = ["compare", str(folder), "--split", "testA", *given, "--out", str(tmp_path)]
    assert main(command) == 0
    assert "Task 2 is not measured" in capsys.readouterr().out
    assert main([*command, "--val", str(tmp_path / "other.tsv")]) == 2


@pytest.mark.parametrize("which", ["real", "one real", "one fake"])
def test_clips_of_one_class_have_an_answer(recipes, labels, tmp_path, capsys, which):
    real = labels["modify_type"] == "real"
    chosen = {"real": labels[real], "one real": labels[real][:1], "one fake": labels[~real][:1]}[
        which
    ]
    data_list.write_list(tmp_path / "testA.tsv", chosen)
    command = ["--split", "testA", "--labels", str(tmp_path / "testA.tsv"), "--out", str(tmp_path)]
    assert recipes.compare(*command) == 0
    assert f"{len(chosen)} clips" in capsys.readouterr().out
    page = (tmp_path / "testA/report.html").read_text()
    assert "Task 1: is the clip fake?" in page and 'data-figure="histogram"' in page
    assert "ROC." not in page


def test_no_clip_at_all_is_said(recipes, labels, tmp_path, capsys):
    data_list.write_list(tmp_path / "testA.tsv", labels[:0])
    command = ["--split", "testA", "--labels", str(tmp_path / "testA.tsv"), "--out", str(tmp_path)]
    assert recipes.compare(*command) == 2
    assert "no clip of testA to compare on" in capsys.readouterr().err


@pytest.mark.parametrize("ends", [(-1e308, 1e308), (1e17, 1e17), (0.0, 0.0), (-1.5, 2.5)])
def test_histograms_hold_scores_of_any_size(ends):
    score = np.array(ends * 5)
    groups = {"real": score == score[0], "val": score != score[0]}
    figure = figures.histogram(score, "log_odds", groups)
    assert all(sum(line["y"]) == pytest.approx(100, abs=0.01) for line in figure["lines"])


def test_reasons_with_quotes_are_read_as_they_were_written(recipes, labels, loaded):
    path = clip_scores.failures_path(recipes.path("exp", "one", "spans"), "testA")
    before = path.read_bytes() if path.exists() else None
    without = next(
        file for file in labels["file"] if file not in set(loaded["one/spans"].frames.files)
    )
    reason = 'it says "no"'
    pd.DataFrame({"file": [without], "stage": "score", "reason": reason}).to_csv(
        path, sep="\t", index=False
    )
    try:
        states = entries.coverage(loaded["one/spans"], "testA", labels["file"].tolist())
        assert states.loc[states["file"] == without, "reason"].tolist()[-1] == reason
        path.write_bytes(b"file\tstage\treason\n\xff\t1\t2\n")
        with pytest.raises(KlassifyError, match="damaged"):
            entries.coverage(loaded["one/spans"], "testA", labels["file"].tolist())
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def test_containers_are_opened_beside_this_process(tmp_path, monkeypatch):
    video(tmp_path / "a.mp4", np.random.default_rng(0))
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes().replace(b"avc1", b"xq7z"))
    monkeypatch.setattr(decoder, "opened", None)  # of this process
    found = leaks._opened(["a.mp4", "b.mp4", "missing.mp4"], tmp_path)
    assert found["width"].tolist()[:2] == [64, 0] and found.loc[2].isna().all()
    assert "unknown" in found.loc[1, "codecs"]
