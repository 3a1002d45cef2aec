"""`klassify evaluate` from score files to tables, figures and metrics-<split>.json."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from klassify import cli
from klassify.errors import KlassifyError
from klassify.evaluation import clips, tables
from klassify.lists import data_list, subsets
from klassify.metrics import clips as metrics_clips
from klassify.scores.score_file import Header, score_path, write_scores
from klassify.systems import base, system


def make_list(path, n_sources=12):
    frame = pd.DataFrame(
        [
            (f"{source}/{kind}.mp4", kind, f"s{source}")
            for source in range(n_sources)
            for kind in data_list.TYPES
        ],
        columns=["file", "modify_type", "source"],
    )
    data_list.write_list(path, frame)
    return frame


def make_model(folder, frame, split, modality, gap=2.0, seed=0, missing=()):
    rng = np.random.default_rng(seed)
    base.write_system(folder, base.System(folder.name, "model", modality, "clip", "log_odds"))
    table = frame[["file"]].assign(start=0.0, end=4.0)
    table["score"] = rng.normal(size=len(frame)) + gap * subsets.label(frame, modality)
    table["reason"] = ""
    table.loc[list(missing), ["score", "reason"]] = [np.nan, "nothing to score"]
    header = Header(folder.name, split, "clips", "log_odds", "clip")
    write_scores(
        score_path(folder, split, "clips"), table.sample(frac=1, random_state=seed), header
    )
    return table


def klassify(*arguments):
    return cli.main([str(argument) for argument in arguments])


def evaluate(root, names, split, *rest):
    """`klassify evaluate` of these systems with the labels in root/lists."""
    systems = [root / name for name in names]
    labels = root / "lists" / f"{split}.tsv"
    return klassify("evaluate", *systems, "--split", split, "--labels", labels, *rest)


NAMES = ("audio", "audio_platt", "video", "video_platt", "avg", "maxout")


@pytest.fixture(scope="module")
def exp(tmp_path_factory):
    """Table 2's rows on a val of 12 sources, and on a testA."""
    root = tmp_path_factory.mktemp("demo")
    for split, seed in (("val", 0), ("testA", 10)):
        frame = make_list(root / "lists" / f"{split}.tsv")
        make_model(root / "audio", frame, split, "audio", seed=seed, missing=[0])
        make_model(root / "video", frame, split, "visual", gap=1.0, seed=seed + 1, missing=[0, 5])
    for name in ("audio", "video"):
        given = ("--out", root / f"{name}_platt", "--labels", root / "lists")
        assert klassify("calibrate", root / name, *given) == 0
    for out, rule, suffix in (("avg", "mean", ""), ("maxout", "max", "_platt")):
        inputs = [root / f"{name}{suffix}" for name in ("audio", "video")]
        assert klassify("fuse", *inputs, "--out", root / out, "--rule", rule) == 0
    for split in ("val", "testA"):
        for name in ("audio_platt", "video_platt", "avg", "maxout"):
            system.load_system(root / name).derive(split)
        given = ("--bootstrap", 100, "--out", root / "evaluation")
        assert evaluate(root, NAMES, split, *given) == 0
    return root


def read(exp, split):
    return pd.read_csv(exp / "evaluation" / f"{split}.tsv", sep="\t")


def test_every_system_label_and_group_has_a_row(exp):
    table = read(exp, "testA")
    assert len(table) == len(NAMES) * 2 * 4
    assert not table.duplicated(["system", "label", "group"]).any()
    overall = table[table["group"] == "all"].set_index(["system", "label"])
    assert (overall["n"] == 48).all() and (overall["n_sources"] == 12).all()
    assert overall.loc["audio", "n_fake"].to_dict() == {"video": 36, "own": 24}
    no_answer = overall["n_no_answer"].unstack()["video"]
    assert no_answer[list(NAMES)].tolist() == [1, 1, 2, 2, 1, 1]
    assert (table[table["group"] != "all"]["n"] == 24).all()
    for metric in clips.METRICS:
        known = table.dropna(subset=[f"{metric}_low"])
        assert (known[f"{metric}_low"] <= known[metric]).all()
        assert (known[metric] <= known[f"{metric}_high"]).all()


def test_numbers_equal_sklearn_on_the_joined_scores(exp):
    frame = data_list.read_list(exp / "lists" / "testA.tsv")
    table = read(exp, "testA").set_index(["system", "label", "group"])
    score = system.load_system(exp / "video").clip_scores("testA").table.set_index("file")["score"]
    score = score.reindex(frame["file"]).fillna(0.0).to_numpy()  # a model's prior: log-odds 0
    kind = frame["modify_type"].to_numpy()
    for against, name in (("video", "video"), ("own", "visual")):
        label = subsets.label(frame, name)
        cell = table.loc["video", against, "all"]
        assert cell["auc"] == pytest.approx(roc_auc_score(label, score), abs=1e-6)
        loss = metrics_clips.log_loss(label, expit(score))
        assert cell["log_loss"] == pytest.approx(loss, rel=1e-5)
        chosen = np.isin(kind, ["real", "both_modified"])
        auc = table.loc["video", against, "both_modified"]["auc"]
        assert auc == pytest.approx(roc_auc_score(label[chosen], score[chosen]), abs=1e-6)
    assert np.isnan(table.loc["video", "own", "audio_modified"]["auc"])  # no visual fake among them
    assert not np.isnan(table.loc["video", "own", "audio_modified"]["log_loss"])


def test_calibration_keeps_the_order_and_shows_log_loss_before(exp):
    table = read(exp, "testA").set_index(["system", "label", "group"])
    raw, platt = table.loc["audio", "own", "all"], table.loc["audio_platt", "own", "all"]
    assert platt["log_loss_before"] == pytest.approx(raw["log_loss"])
    assert np.isnan(raw["log_loss_before"])
    # one clip without an answer has another prior
    assert platt["auc"] == pytest.approx(raw["auc"], abs=0.03)


def test_gain_is_paired_with_the_named_system(exp):
    table = read(exp, "testA").set_index(["system", "label", "group"])
    for name in NAMES[:-1]:
        row = table.loc[name, "video", "all"]
        best = table.loc["maxout", "video", "all"]
        assert row["versus"] == "maxout" and row["gain"] == pytest.approx(
            best["auc"] - row["auc"], abs=2e-6
        )
        assert row["gain_low"] <= row["gain"] <= row["gain_high"]
    assert pd.isna(best["versus"]) and pd.isna(best["gain"])


def test_val_numbers_leave_out_the_clips_of_the_fit(exp):
    table = read(exp, "val")
    assert set(table["subset"]) == {"val_report"}
    report = subsets.load_split(exp / "lists", "val_report")
    assert (table[table["group"] == "all"]["n"] == len(report)).all() and len(report) < 48


@pytest.mark.parametrize("subset", ["all", "val"])
def test_all_of_val_is_evaluated_on_request_with_a_warning(exp, tmp_path, capsys, subset):
    make_model(tmp_path / "tcn", data_list.read_list(exp / "lists" / "val.tsv"), "val", "visual")
    rest = ("--subset", subset, "--bootstrap", 0, "--out", tmp_path / "out")
    assert evaluate(exp, [tmp_path / "tcn"], "val", *rest) == 0
    streams = capsys.readouterr()
    assert "val (all): 48 clips" in streams.out and "include val_fit" in streams.err


def test_metrics_json(exp):
    record = json.loads((exp / "audio_platt" / "metrics-val.json").read_text())
    table = read(exp, "val").set_index(["system", "label", "group"])
    assert record["subset"] == "val_report"
    assert record["bootstrap"] == {"n": 100, "seed": 0, "unit": "source"}
    for suffix, against in (("", "video"), ("_own", "own")):
        row = table.loc["audio_platt", against, "all"]
        for metric in (*clips.METRICS, "log_loss_before"):
            assert record[metric + suffix] == pytest.approx(row[metric], rel=1e-5)
    assert record["auc_own_by_type"]["visual_modified"] is None
    assert json.loads((exp / "maxout" / "metrics-val.json").read_text())["gain"] is None


def test_figures_and_text(exp):
    from matplotlib.image import imread

    for name in ("calibration", "scores"):
        image = imread(exp / "evaluation" / f"testA-{name}.png")[..., :3]
        assert min(image.shape[:2]) > 300 and 0.02 < (image < 0.9).any(axis=-1).mean() < 0.6
    text = (exp / "evaluation" / "testA.txt").read_text()
    assert "48 clips, 36 of them fake, of 12 sources" in text and "maxout minus it" in text
    assert not list((exp / "evaluation").glob("*.partial*"))


def test_evaluation_repeats_itself(exp, tmp_path):
    for out, n in (("one", 50), ("two", 50), ("none", 0)):
        rest = ("--bootstrap", n, "--out", tmp_path / out)
        assert evaluate(exp, ["audio", "maxout"], "testA", *rest) == 0
    one, two = ((tmp_path / out / "testA.tsv").read_bytes() for out in ("one", "two"))
    assert one == two
    assert pd.read_csv(tmp_path / "none" / "testA.tsv", sep="\t")["auc_low"].isna().all()


def test_inverted_scores_are_called_so(tmp_path, capsys):
    frame = make_list(tmp_path / "lists" / "testA.tsv")
    make_model(tmp_path / "upside_down", frame, "testA", "audio", gap=-2.0)
    rest = ("--out", tmp_path / "out", "--bootstrap", 100)
    assert evaluate(tmp_path, ["upside_down"], "testA", *rest) == 0
    assert "upside_down: scores look inverted" in capsys.readouterr().err
    assert json.loads((tmp_path / "upside_down" / "metrics-testA.json").read_text())["warnings"]


def test_labels_and_scores_must_cover_the_same_clips(exp, tmp_path, capsys):
    longer = make_list(tmp_path / "lists" / "testA.tsv", n_sources=13)
    arguments = (tmp_path, [exp / "audio"], "testA", "--out", tmp_path, "--bootstrap", 0)
    assert evaluate(*arguments) == 2
    assert "4 without a score (12/real.mp4" in capsys.readouterr().err
    data_list.write_list(tmp_path / "lists" / "testA.tsv", longer[:48].assign(modify_type=""))
    assert evaluate(*arguments) == 2
    assert "no label" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("audio --split testA", "Not given: --labels, --out"),
        ("--mean nowhere.tsv", "does not exist"),
        ("audio audio --split testA --labels lists/testA.tsv --out x", "different names"),
        ("audio --split testA --labels lists/testA.tsv --out x --versus y", "different names"),
        ("audio --split val --labels lists/val.tsv --out x --subset y", "no subset 'y'"),
        ("audio --split val --labels lists/testA.tsv --out x", "no subset 'val_report'"),
    ],
)
def test_refusals(exp, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(exp)
    assert klassify("evaluate", *arguments.split()) == 2
    assert message in capsys.readouterr().err and not (exp / "x").exists()


def test_a_clip_without_source_is_a_source_of_its_own(tmp_path):
    frame = make_list(tmp_path / "testA.tsv").assign(source="")
    make_model(tmp_path / "audio", frame, "testA", "audio")
    scored = clips.load_scored(
        system.load_system(tmp_path / "audio"), "testA", frame["file"].tolist()
    )
    table = clips.measure([scored], frame, versus="audio", n_bootstrap=20)
    assert (table[table["group"] == "all"]["n_sources"] == 48).all()


def test_mean_over_seeds_and_splits(exp, tmp_path, capsys):
    paths = []
    for split, value in (("testA", 0.7), ("testA", 0.8), ("testB", 0.5), ("testB", 0.6)):
        table = read(exp, "testA").assign(split=split, auc=value)
        paths.append(tmp_path / f"{len(paths)}.tsv")
        table.to_csv(paths[-1], sep="\t", index=False)
    means = tables.mean_over_tables([pd.read_csv(path, sep="\t") for path in paths])
    means = means.set_index(["system", "split", "label", "group"])["auc"]
    assert means["maxout", "testA", "video", "all"] == pytest.approx(0.75)
    assert means["maxout", "testB", "own", "all"] == pytest.approx(0.55)
    assert means["audio", "mean", "video", "all"] == pytest.approx(0.65)
    assert klassify("evaluate", "--mean", *paths) == 0
    text = capsys.readouterr().out
    for part in ("testB: AUC, own label", "0.7500  0.0707", "mean: AUC, video label"):
        assert part in text
    assert klassify("evaluate", "--mean", paths[0], paths[0]) == 2
    other = read(exp, "testA").query("system != 'avg'")
    with pytest.raises(KlassifyError, match="avg testA video all"):
        tables.mean_over_tables([read(exp, "testA"), other])
