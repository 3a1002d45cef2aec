"""klassify tune: the search, its guard against chance, its files."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from commands import klassify
from small_systems import write_model, write_table

from klassify.errors import KlassifyError
from klassify.grid.segments import Truth
from klassify.lists import data_list, subsets
from klassify.localisation import localise, proposals, tune
from klassify.localisation.frame_scores import FrameScores
from klassify.metrics import segments
from klassify.scores.score_file import read_scores, score_path
from klassify.systems import system

FRAME_S = 0.04
N_CLIPS = 24


def make_split(root):
    """A val list of real clips and clips with two fake segments, audio and visual ones apart."""
    rng, rows = np.random.default_rng(0), []
    for i in range(N_CLIPS):
        starts = np.array([0.5, 2.0]) + rng.uniform(0, 0.8, 2)
        lengths = rng.uniform(0.2, 0.5, 2)
        fake = np.stack([starts, starts + lengths], axis=1).round(3).tolist()
        kind = ["real", "audio_modified", "visual_modified"][i % 3]
        row = {"file": f"{i}.mp4", "modify_type": kind, "source": f"s{i // 3}"}
        row["fake_segments"] = fake if kind != "real" else []
        for own in ("audio", "visual"):
            row[f"{own}_fake_segments"] = fake if kind == f"{own}_modified" else []
        rows.append(row)
    lengths = {"n_frames": 100, "fps": 25.0, "n_samples": 64000, "duration": 4.0}
    frame = pd.DataFrame(rows).assign(**lengths)
    data_list.write_list(root / "val.tsv", frame)
    return frame


def write_localiser(folder, frame, modality, offset=0.0, noise=1.0, hop_s=FRAME_S):
    """Log-odds of +-2 with noise, moved by `offset`, so that 0.5 is the wrong threshold."""
    rng, tables = np.random.default_rng(1), []
    for file, fake in zip(frame["file"], frame[f"{modality}_fake_segments"]):
        k = np.arange(round(4 / hop_s))
        label = np.zeros(len(k))
        for start, end in fake:
            label[int(start / hop_s) : int(np.ceil(end / hop_s))] = 1
        score = 4 * label - 2 + offset + noise * rng.normal(size=len(k))
        times = {"start": k * hop_s, "end": (k + 1) * hop_s}
        tables.append(pd.DataFrame({"file": file, **times, "score": score}))
    write_model(folder, modality, "segment")
    how = {"supervision": "segment", "settings": {"system": system.system_hash(folder)}}
    frames = pd.concat(tables, ignore_index=True)
    write_table(folder, "val", "frames", frames, **how, hop_s=hop_s)
    return folder


@pytest.fixture
def data(tmp_path):
    frame = make_split(tmp_path / "lists")
    bam = write_localiser(tmp_path / "bam", frame, "audio", offset=1.5)
    tags = write_localiser(tmp_path / "tags", frame, "visual")
    return tmp_path / "lists", bam, tags


def small_grid(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        "threshold: {threshold: [0.5, 0.8, 0.9]}\nmulti_threshold: {context: [1.0, 0.5]}\n"
    )
    return path


def test_tuning_finds_the_threshold_that_localise_then_uses(data, tmp_path, capsys):
    labels, bam, _ = data
    command = ["tune", bam, "--labels", labels, "--grid", small_grid(tmp_path)]
    assert klassify(*command) == 0
    content = localise.read_proposals(bam / "proposals.yaml")
    table = pd.read_csv(bam / "tuning.tsv", sep="\t", quoting=3)
    chosen = table["Score"][table["chosen"] == 1].item()
    assert table["Score"].max() - chosen <= 0.003
    assert chosen > table["Score"][0] + 0.05  # the defaults come first
    assert content["tuned"]["score"] == pytest.approx(chosen, abs=1e-6)
    assert content["method"] == "multi_threshold" or content["settings"]["threshold"] in (0.8, 0.9)
    assert localise.choose(system.load_system(bam)) == (content["method"], content["settings"])
    assert klassify("localise", bam, "--split", "val") == 0


def test_the_same_again_is_skipped_and_other_inputs_are_refused(data, tmp_path, capsys):
    labels, bam, _ = data
    command = ["tune", bam, "--labels", labels, "--grid", small_grid(tmp_path)]
    assert klassify(*command) == 0
    before = (bam / "proposals.yaml").read_bytes()
    assert klassify(*command) == 0 and "up to date" in capsys.readouterr().out
    assert klassify(*command, "--segments", "own") == 2
    assert "segments: 'union' there" in capsys.readouterr().err
    assert (bam / "proposals.yaml").read_bytes() == before
    assert klassify(*command, "--segments", "own", "--force") == 0
    (bam / "proposals.yaml").write_text("method: threshold\n")  # written by hand: not to be lost
    assert klassify(*command) == 2


def test_own_segments_are_those_of_the_modality(data):
    labels, _, _ = data
    union, own = (tune.read_truth(labels, "val_fit", modality) for modality in ("both", "audio"))
    assert len(union.segments) > len(own.segments) > 0
    np.testing.assert_array_equal(union.files, own.files)


def test_a_merged_system_tunes_its_weights(data, tmp_path, capsys):
    labels, bam, tags = data
    out = tmp_path / "merged"
    assert klassify("localise", bam, tags, "--split", "val") == 0
    assert klassify("localise", "--merge", bam, tags, "--out", out) == 0
    assert klassify("tune", out, "--labels", labels) == 0
    content = localise.read_proposals(out / "proposals.yaml")
    assert content["method"] == "merge"
    table = pd.read_csv(out / "tuning.tsv", sep="\t", quoting=3)
    assert len(table) > 10 and table["Score"][table["chosen"] == 1].item() >= table["Score"][0]
    assert klassify("localise", out, "--split", "val") == 0


def write_clips(folder, frame):
    """Clip scores that rise with the number of fake segments of the own modality."""
    own = "audio" if folder.name == "bam" else "visual"
    noise = 0.3 * np.random.default_rng(3).normal(size=N_CLIPS)
    score = frame[f"{own}_fake_segments"].str.len() + noise
    table = frame[["file"]].assign(start=0.0, end=4.0, score=score.to_numpy(float))
    settings = {"system": system.system_hash(folder)}
    write_table(folder, "val", "clips", table, supervision="segment", settings=settings)


@pytest.mark.parametrize("with_clips", [False, True])
def test_a_union_tunes_its_clip_prior_where_clips_are_scored(data, tmp_path, with_clips):
    labels, bam, tags = data
    if with_clips:
        for folder in (bam, tags):
            write_clips(folder, data_list.read_list(labels / "val.tsv", segments=True))
    out = tmp_path / "union"
    assert klassify("localise", bam, tags, "--split", "val") == 0
    assert klassify("localise", "--merge", bam, tags, "--method", "union", "--out", out) == 0
    assert klassify("tune", out, "--labels", labels) == 0
    content = localise.read_proposals(out / "proposals.yaml")
    assert content["method"] == "union"
    assert (content["settings"]["clip_platt"] is not None) == with_clips
    table = pd.read_csv(out / "tuning.tsv", sep="	", quoting=3)
    assert table["Score"][table["chosen"] == 1].item() >= table["Score"][0]
    assert klassify("localise", out, "--split", "val") == 0


def test_a_localiser_of_20_ms_is_tuned_joined_and_measured(data, tmp_path):
    labels, _, tags = data
    frame = subsets.load_split(labels, "val", segments=True)
    fine = write_localiser(tmp_path / "fine", frame, "audio", noise=0.1, hop_s=0.02)
    assert klassify("tune", fine, "--labels", labels, "--segments", "own") == 0
    table = pd.read_csv(fine / "tuning.tsv", sep="\t", quoting=3)
    tried = {json.loads(settings)["debias_s"] for settings in table["settings"]}
    assert tried == {0.01, 0.005, 0.0}
    assert klassify("localise", fine, tags, "--split", "val") == 0
    merged = tmp_path / "merged"
    assert klassify("localise", "--merge", fine, tags, "--out", merged, "--split", "val") == 0
    best = read_scores(score_path(fine, "val", "segments")).table.groupby("file").head(2)
    for _, row in frame[frame["audio_fake_segments"].str.len() > 0].iterrows():
        mine = best[best["file"] == row["file"]].sort_values("start")[["start", "end"]]
        np.testing.assert_allclose(mine, sorted(row["audio_fake_segments"]), atol=0.02)
    out = tmp_path / "evaluation"
    measure = ["--task", 2, "--split", "val", "--bootstrap", 5, "--out", out]
    assert klassify("evaluate", fine, tags, *measure, "--labels", labels / "val.tsv") == 0
    text = (out / "val.task2.txt").read_text()
    assert "perfect on the 40 ms grid" in text and "perfect on the 20 ms grid" in text


def test_the_default_grid_only_holds_settings_that_exist():
    for method, axes in {**tune.GRID, "merge": tune.MERGE_GRID, "union": tune.UNION_GRID}.items():
        for name, values in axes.items():
            assert proposals.defaults(method)[name] == values[0], (method, name)
            for value in values:
                proposals.complete_settings(method, {name: value})


def trials_of(score):
    return lambda choice: tune.Trial(choice, {"Score": score(choice)}, 1)


def test_ties_and_small_gains_keep_the_simpler_defaults():
    grid = {"threshold": {"threshold": [0.5, 0.6]}, "watershed": {"context": [1.0, 0.0]}}
    best, trials = tune.search(trials_of(lambda choice: 0.4), grid)
    assert best is trials[0] and len(trials) == 4
    assert best.choice.settings == proposals.defaults("threshold")
    gain = trials_of(lambda choice: 0.4 + 0.002 * (choice.method == "watershed"))
    assert tune.search(gain, grid)[0].choice.method == "threshold"
    gain = trials_of(lambda choice: 0.4 + 0.01 * (choice.method == "watershed"))
    assert tune.search(gain, grid)[0].choice.method == "watershed"


def test_search_finds_separable_optima_and_repeats_nothing():
    grid = {
        "threshold": {"threshold": [0.5, 0.3, 0.7], "merge_s": [0.08, 0.0], "nms_sigma": [0.5, 0.1]}
    }
    seen = []

    def evaluate(choice):
        s = choice.settings
        seen.append(str(s))
        score = (s["threshold"] == 0.7) + (s["merge_s"] == 0.0) / 2
        return tune.Trial(choice, {"Score": score}, 1)

    best, trials = tune.search(evaluate, grid)
    assert (best.choice.settings["threshold"], best.choice.settings["merge_s"]) == (0.7, 0.0)
    assert best.choice.settings["nms_sigma"] == 0.5
    assert len(seen) == len(set(seen)) == len(trials)


def test_of_many_clips_only_the_finalists_are_measured_on_all(data, tmp_path, monkeypatch):
    labels, bam, _ = data
    command = ["tune", bam, "--labels", labels, "--grid", small_grid(tmp_path), "--force"]
    monkeypatch.setattr(tune, "SAMPLE_CLIPS", 6)
    assert klassify(*command) == 0
    table = pd.read_csv(bam / "tuning.tsv", sep="\t", quoting=3)
    n_clips = len(subsets.load_split(labels, "val_fit"))
    finalists = table[table["clips"] == n_clips]
    assert finalists.index.tolist() == list(range(len(finalists))) and len(finalists) <= 3
    assert (table["clips"][len(finalists) :] == 6).all() and len(table) > len(finalists) + 3
    assert finalists["chosen"].sum() == table["chosen"].sum() == 1
    choice = localise.choose(system.load_system(bam))
    truth = tune.read_truth(labels, "val_fit", "both")
    frames = tune.read_clips(score_path(bam, "val", "frames"), truth)
    found = proposals.propose(frames, choice.method, **choice.settings)
    place = pd.Index(truth.files).get_indexer(frames.files)
    found = found._replace(clip=place[found.clip])
    score = segments.score_task2(found.select(truth.files), truth).score
    chosen = finalists["Score"][finalists["chosen"] == 1].item()
    assert chosen == pytest.approx(score, abs=1e-6)


def test_own_proposals_of_a_model_are_tuned_beside_the_methods():
    """They are exact, where frames say nothing, on a grid of 20 ms."""
    truth = Truth.from_cells(["a", "b"], [[[0.51, 0.97]], [[1.03, 1.25]]])
    proposed = np.zeros((200, 1, 3))
    for row, (start, end) in ((20, truth.segments[0]), (150, truth.segments[1])):
        proposed[row] = 0.9, start, end
    frames = FrameScores(
        truth.files,
        np.array([0, 100, 200]),
        np.full(200, 0.4),
        np.array([2.0, 2.0]),
        proposed=proposed,
        hop_s=0.02,
    )
    best, trials = tune.tune_frames(frames, truth)
    assert best.choice.method == "proposed"
    assert {trial.choice.method for trial in trials} == set(proposals.NAMES) - {"viterbi"}


def test_a_default_off_the_grid_starts_at_the_first_value():
    grid = {"threshold": {"threshold": [0.7, 0.9]}}
    best, trials = tune.search(trials_of(lambda choice: 0.0), grid)
    assert best.choice.settings["threshold"] == 0.7 and len(trials) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3\n", "A grid is"),
        ("threshold: {threshold: 0.5}\n", "a list of values"),
        ("threshold: {colour: [1]}\n", "no setting"),
        ("guess: {}\n", "no method"),
        ("threshold: {threshold: [2]}\n", "a number from"),
        ("a: [\n", "YAML"),
    ],
)
def test_a_bad_grid_is_refused(tmp_path, text, message):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(KlassifyError, match=message):
        tune.read_grid(path)


def test_nothing_to_find_is_refused(tmp_path):
    frame = make_split(tmp_path)
    for name in ("fake_segments", "audio_fake_segments", "visual_fake_segments"):
        frame[name] = [[] for _ in range(len(frame))]
    data_list.write_list(tmp_path / "val.tsv", frame)
    with pytest.raises(KlassifyError, match="nothing to tune on"):
        tune.read_truth(tmp_path, "val_fit", "both")


def test_platt_makes_of_scores_the_share_of_hits():
    rng = np.random.default_rng(2)
    n = 4000
    truth = Truth.from_cells([str(i) for i in range(n)], [[[1.0, 2.0]]] * n)
    score = rng.uniform(0.05, 0.95, n)
    hit = rng.random(n) < score**2
    start = np.where(hit, 1.0, 3.0)
    part = proposals.Candidates(np.arange(n), start, start + 1, score)
    ((a, b),) = tune.fit_platt([part], truth)
    p = proposals.calibrated(score, a, b)
    for low in (0.1, 0.4, 0.7):
        these = (score >= low) & (score < low + 0.2)
        assert p[these].mean() == pytest.approx(hit[these].mean(), abs=0.06)
    assert tune.fit_platt([part._replace(score=1 - score)], truth) is None  # upside down
    assert tune.fit_platt([part, part.take(np.array([], int))], truth) is None


def test_the_written_choice_reads_back_equal(tmp_path):
    platt = {"platt": [[-1.25, 0.5], [-2.0, 0.125]]}
    choice = localise.Choice("merge", proposals.defaults("merge") | platt)
    trial = tune.Trial(choice, dict.fromkeys(segments.METRICS, 0.5), 1)
    tune._write(tmp_path / "proposals.yaml", trial, [trial], {"split": "val"})
    assert localise.read_choice(tmp_path / "proposals.yaml") == choice
    stored = yaml.safe_load((tmp_path / "proposals.yaml").read_text())
    assert stored["tuned"]["made_with"] == {"split": "val"}
