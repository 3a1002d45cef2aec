"""The linear fusion: its solvers, released weights, and `klassify fuse --rule linear`."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from commands import klassify
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from small_systems import write_model, write_table

from klassify.data.base import FrameData
from klassify.errors import KlassifyError
from klassify.evaluation.tables import read_table
from klassify.grid.frames import encode_labels
from klassify.lists import data_list, subsets
from klassify.models import linear_fusion
from klassify.models.linear_fusion import COLUMNS, LinearFusion
from klassify.prediction import predict
from klassify.scores.score_file import Header, read_header, read_scores, score_path, write_scores
from klassify.submission import package
from klassify.systems import base, linear, trained
from klassify.systems import system as systems_system
from klassify.systems.base import SYSTEM, System, write_system
from klassify.systems.scores import to_probability
from klassify.systems.system import load_system, system_hash

FRAME_S = 0.04
N_FRAMES = 50


def random_frames(n=3000, n_columns=8, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, n_columns)) * rng.uniform(0.05, 5, n_columns) + 2
    slope = rng.normal(size=n_columns) / x.std(axis=0)
    return x, (rng.random(n) < expit((x - x.mean(axis=0)) @ slope)).astype(int)


def test_exact_fit_finds_the_minimum():
    x, label = random_frames()
    fitted = linear_fusion.fit(x, label)
    weight, bias = torch.zeros(2, 8, dtype=torch.double), torch.zeros(2, dtype=torch.double)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    settings = {"max_iter": 1000, "tolerance_grad": 1e-12, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(parameters, **settings)

    def loss():
        optimizer.zero_grad()
        logits = torch.from_numpy(x) @ weight.T + bias
        value = torch.nn.functional.cross_entropy(logits, torch.from_numpy(label))
        value = value + 0.5e-6 * sum((p**2).sum() for p in parameters)
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(loss)
    found = float(loss().detach())
    assert found - 1e-8 < fitted.loss <= found + 1e-12
    np.testing.assert_allclose(fitted.weight, weight.detach(), atol=1e-3)
    np.testing.assert_allclose(fitted.bias, bias.detach(), atol=1e-3)


def test_exact_fit_handles_blocks_and_dependent_columns(monkeypatch):
    x, label = random_frames()
    fitted = linear_fusion.fit(x, label)
    monkeypatch.setattr(linear_fusion, "ROWS_AT_ONCE", 700)
    np.testing.assert_allclose(linear_fusion.fit(x, label).weight, fitted.weight, rtol=1e-9)
    more = np.column_stack([x, x[:, :2], np.full(len(x), 3.0)])
    # a shared weight has a smaller penalty
    assert fitted.loss - 2e-4 < linear_fusion.fit(more, label).loss <= fitted.loss
    separable = (x[:, 0] > 2).astype(int)
    fitted = linear_fusion.fit(x, separable)
    assert np.isfinite(fitted.weight).all() and fitted.loss < 0.05


@pytest.mark.parametrize("solver", ["one_cycle", "constant"])
def test_stepwise_fits_are_seeded_and_approach_the_minimum(solver):
    x, label = random_frames(800, 2)
    best = linear_fusion.fit(x, label).loss

    def fit(epochs, seed):
        return linear_fusion.fit(x, label, solver=solver, epochs=epochs, seed=seed)

    few, more = fit(2, 3), fit(40, 3)
    assert best < more.loss < few.loss
    np.testing.assert_array_equal(few.weight, fit(2, 3).weight)
    assert (fit(2, 4).weight != few.weight).any()


def test_one_cycle_is_adam_with_the_published_settings(monkeypatch):
    seen = {}
    adam, cycle = torch.optim.Adam, torch.optim.lr_scheduler.OneCycleLR

    def noted_adam(*args, **kw):
        seen.update(kw)
        return adam(*args, **kw)

    def noted_cycle(*args, **kw):
        seen.update(kw, max_lr=args[1])
        return cycle(*args, **kw)

    monkeypatch.setattr(torch.optim, "Adam", noted_adam)
    monkeypatch.setattr(torch.optim.lr_scheduler, "OneCycleLR", noted_cycle)
    fitted = linear_fusion.fit(*random_frames(100, 2), solver="one_cycle", epochs=2)
    assert seen == {"lr": 1e-4, "weight_decay": 1e-6, "max_lr": 1e-4, "total_steps": 2 * 7}
    assert fitted.steps == 14


def random_clips(seed=1, n_clips=80, n_frames=40):
    """A fifth of each fake clip's frames is high in column 1; column 0 is noise."""
    rng = np.random.default_rng(seed)
    label = np.arange(n_clips) % 2
    x = rng.normal(size=(n_clips, n_frames, 2))
    x[label == 1, :8, 1] += 3
    return x.reshape(-1, 2), label, np.arange(0, n_clips * n_frames + 1, n_frames)


def pooled_by_loop(z, offsets):
    tops = [np.sort(z[a:b])[::-1] for a, b in zip(offsets[:-1], offsets[1:])]
    return np.array([top[: max(int(0.1 * len(top)), 1)].mean() for top in tops])


@pytest.mark.parametrize("solver", linear_fusion.SOLVERS)
def test_clip_labels_find_the_informative_column(solver):
    x, label, offsets = random_clips()
    fitted = linear_fusion.fit(x, label, offsets, solver=solver, epochs=100)
    z = x @ (fitted.weight[1] - fitted.weight[0]) + fitted.bias[1] - fitted.bias[0]
    if solver == "exact":
        assert roc_auc_score(label, pooled_by_loop(z, offsets)) > 0.99
        assert abs(fitted.weight[1, 1]) > 5 * abs(fitted.weight[1, 0])
    arrays = {"frames": x, "label": label, "offsets": offsets}
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    state = {"weight": torch.from_numpy(fitted.weight), "bias": torch.from_numpy(fitted.bias)}
    model = LinearFusion(range(2)).double()
    model.load_state_dict(state)
    clips = pooled_by_loop(z, offsets)
    wanted = np.mean(np.logaddexp(0, clips) - label * clips)
    assert float(model.loss(batch).detach()) == pytest.approx(wanted, abs=1e-6)


def test_a_fit_needs_both_classes():
    for label in (np.zeros(5, int), np.ones(5, int), np.full(5, 2)):
        with pytest.raises(ValueError, match="both classes"):
            linear_fusion.fit(np.ones((5, 2)), label)


def make_list(path, n_sources):
    """Four versions of each source; audio fakes at 0.4-1.0 s, visual ones at 0.8-1.2 s."""
    spans = {"audio": [[0.4, 1.0]], "visual": [[0.8, 1.2]]}
    rows = []
    for source in range(n_sources):
        for kind in data_list.TYPES:
            own = {m: spans[m] if kind in (f"{m}_modified", "both_modified") else [] for m in spans}
            union = [[0.4, 1.2]] if kind == "both_modified" else own["audio"] + own["visual"]
            clip = (f"s{source}/{kind}.mp4", N_FRAMES, 2.0, kind, f"s{source}")
            rows.append((*clip, union, own["audio"], own["visual"]))
    columns = ["file", "n_frames", "duration", "modify_type", "source", *data_list.SEGMENTS]
    data_list.write_list(path, pd.DataFrame(rows, columns=columns))
    return data_list.read_list(path, segments=True)


def make_branch(folder, split, frame, modality, names, seed, **settings):
    """A branch with planted frames: 2 in its modality's fakes and -2 elsewhere, in noise of 1.5."""
    supervision, absent = settings.get("supervision", "segment"), settings.get("absent", ())
    n_frames = settings.get("n_frames", N_FRAMES)
    rng = np.random.default_rng(seed)
    scale = "log_odds" if names == ["real", "fake"] else "cosine"
    if not (folder / SYSTEM).exists():
        write_model(folder, modality, supervision, scale)
    settings = {"system": system_hash(folder), "list": split}
    tables, clips = [], []
    for row in frame.itertuples():
        if row.file not in absent:
            fake = encode_labels(getattr(row, f"{modality}_fake_segments"), n_frames)
            k = np.arange(n_frames)
            table = pd.DataFrame({"file": row.file, "start": k * FRAME_S, "end": (k + 1) * FRAME_S})
            values = np.tanh((4 * fake - 2 + rng.normal(0, 1.5, (len(names) // 2, n_frames))) / 3)
            size = 3 if scale == "log_odds" else 0.5
            for pair, value in zip(range(0, len(names), 2), values):
                table[names[pair]], table[names[pair + 1]] = -size * value, size * value
            tables.append(table.assign(score=table[names[1]] - table[names[0]]))
        best = np.nan if row.file in absent else tables[-1]["score"].max()
        clips.append((row.file, 0.0, 2.0, best, "no such stream" if row.file in absent else ""))
    columns = ["file", "start", "end", "score"]
    frames = pd.concat(tables) if tables else pd.DataFrame(columns=[*columns, *names])
    clips = pd.DataFrame(clips, columns=[*columns, "reason"])
    for kind, table in (("frames", frames), ("clips", clips)):
        write_table(folder, split, kind, table, scale, supervision, settings=settings)


PS = [f"ps{ms}_{side}" for ms in (160, 320, 640) for side in ("real", "fake")]


def frames_of(folder, split="testA"):
    return read_scores(score_path(folder, split, "frames")).table


@pytest.fixture(scope="module")
def exp(tmp_path_factory):
    """Branches trained on segments (visual, ps) and on clips (visual_clip, ps_clip)."""
    root = tmp_path_factory.mktemp("exp")
    for split, n_sources, seed in (("val", 12, 0), ("testA", 6, 10)):
        frame = make_list(root / "lists" / f"{split}.tsv", n_sources)
        audible, visible = frame["file"].iloc[[1, 2]].tolist(), frame["file"].iloc[[2, 4]].tolist()
        for end, supervision in (("", "segment"), ("_clip", "clip")):
            how = {"supervision": supervision, "absent": visible}
            visual = ("visual", ["real", "fake"], seed)
            make_branch(root / f"visual{end}", split, frame, *visual, **how)
            how = {"supervision": supervision, "absent": audible, "n_frames": 49}
            make_branch(root / f"ps{end}", split, frame, "audio", PS, seed + 1, **how)
    return root


@pytest.fixture(scope="module")
def fused(exp):
    command = ["fuse", exp / "ps", exp / "visual", "--rule", "linear", "--labels", exp / "lists"]
    assert klassify(*command, "--out", exp / "fused") == 0
    assert klassify(*command, "--out", exp / "fused") == 0  # up to date
    assert klassify("score", exp / "fused", "--split", "val,testA") == 0
    return exp / "fused"


def test_a_linear_fusion_records_its_fit(fused):
    system = load_system(fused)
    assert (system.kind, system.modality) == ("fusion", "both")
    assert (system.supervision, system.scale) == ("segment", "log_odds")
    assert system.inputs == ["../visual", "../ps"]  # the picture determines the length
    given = system.parameters
    assert given["columns"] == [["real", "fake"], PS]
    assert tuple(sum(given["columns"], [])) == COLUMNS
    shapes = [np.shape(given[name]) for name in ("weight", "bias", "means")]
    assert shapes == [(2, 8), (2,), (8,)]
    assert given["prior"] == 0.75 and given["fit"]["solver"] == "exact" and given["hold_s"] == 0.64
    auc = given["report"]["auc"]
    assert auc["fused"] > max(auc["visual"], auc["ps"])
    assert given["report"]["subset"] == "val_report"
    fit, report = (
        set(subsets.load_split(fused.parent / "lists", name)["source"])
        for name in ("val_fit", "val_report")
    )
    assert not fit & report


def test_silent_inputs_are_replaced_by_their_means(fused):
    given = load_system(fused).parameters
    weight, bias, means = (np.array(given[name]) for name in ("weight", "bias", "means"))
    tables = [frames_of(fused.parent / name) for name in ("visual", "ps")]
    clips = [dict(list(table.groupby("file"))) for table in tables]
    found = dict(list(frames_of(fused).groupby("file", sort=False)))
    listed = data_list.read_list(fused.parent / "lists/testA.tsv")["file"].tolist()
    with_frames = [file for file in listed if file in clips[0] or file in clips[1]]
    assert list(found) == with_frames != listed
    for file, rows in found.items():
        visual, audio = (part.get(file) for part in clips)
        assert len(rows) == len(audio if visual is None else visual)
        for k in range(len(rows)):
            values = means[:2] if visual is None else visual[["real", "fake"]].to_numpy()[k]
            rest = means[2:] if audio is None else audio[PS].to_numpy()[min(k, 48)]
            real, fake = weight @ np.concatenate([values, rest]) + bias
            np.testing.assert_allclose(
                rows[["real", "fake", "score"]].iloc[k], [real, fake, fake - real], atol=2e-6
            )


def test_clip_scores_are_the_highest_frames(fused):
    clips = read_scores(score_path(fused, "testA", "clips"))
    frames = read_scores(score_path(fused, "testA", "frames"))
    assert clips.header.settings == frames.header.settings and clips.header.supervision == "segment"
    listed = data_list.read_list(fused.parent / "lists/testA.tsv")["file"].tolist()
    assert clips.table["file"].tolist() == listed
    best = frames.table.groupby("file")["score"].max()
    for i, row in enumerate(clips.table.itertuples()):
        silent = {1: ["ps"], 2: ["visual", "ps"], 4: ["visual"]}.get(i, [])
        assert row.answered == 2 - len(silent)
        assert (row.reason or "") == "; ".join(f"{name}: no such stream" for name in silent)
        if row.answered:
            assert row.score == pytest.approx(best[row.file], rel=1e-8)
        else:
            assert np.isnan(row.score)


def test_scores_follow_their_inputs(exp, fused, capsys):
    before = score_path(fused, "val", "frames").stat().st_mtime_ns
    assert klassify("score", fused, "--split", "val") == 0
    assert score_path(fused, "val", "frames").stat().st_mtime_ns == before
    path = score_path(exp / "ps", "testA", "frames")
    kept, header = path.read_bytes(), read_header(path)
    table = read_scores(path).table.assign(ps160_fake=0.0)
    write_scores(
        path, table, Header(**(vars(header) | {"settings": header.settings | {"list": "another"}}))
    )
    assert klassify("score", fused, "--split", "testA") == 2
    assert "made with other inputs" in capsys.readouterr().err
    path.write_bytes(kept)
    assert klassify("score", fused, "--split", "testA") == 0
    assert klassify("score", fused, "--split", "testB") == 2
    assert "visual has no frame scores for testB" in capsys.readouterr().err


def test_a_fusion_answers_both_tasks_of_a_submission(exp, fused, tmp_path, capsys):
    labels = exp / "lists/testA.tsv"
    for name in ("fused", "visual", "ps"):
        assert klassify("tune", exp / name, "--labels", exp / "lists") == 0
        assert klassify("localise", exp / name, "--split", "testA") == 0
    how = ["--task", "2", "--split", "testA", "--labels", labels]
    how += ["--out", tmp_path, "--bootstrap", "50"]
    assert klassify("evaluate", *(exp / name for name in ("visual", "ps", "fused")), *how) == 0
    table = pd.read_csv(tmp_path / "testA.task2.tsv", sep="\t")
    rows = table[table["group"] == "all"].set_index("system")
    single = rows.loc[["visual", "ps"]]
    assert rows.loc["fused", "frame_auc"] > single["frame_auc"].max()
    assert (single["frame_gain_low"] > 0).all() and rows["n_no_frames"]["fused"] == 1
    assert (single["frame_auc_own"] > single["frame_auc"]).all()
    heads = pd.read_csv(tmp_path / "testA.heads.tsv", sep="\t")
    assert heads["head"].unique().tolist() == ["ps160", "ps320", "ps640"]
    assert "fused minus it" in capsys.readouterr().out
    (tmp_path / "submit.yaml").write_text("{task1: fused, task2: fused}")
    assert klassify("detector", exp, "--conf", tmp_path / "submit.yaml") == 0
    assert list(predict.load_detector(exp).systems) == ["visual", "ps", "fused"]
    out = tmp_path / "submission"
    pack = ["package", exp / "detector.yaml", "--split", "testA", "--list", labels, "--out", out]
    rule = package.SUPERVISION_RULES["segment"]
    assert klassify(*pack) == 0 and rule in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["rule"] == rule and manifest["task1"]["n_prior"] == 1
    answers = dict(line.split(";") for line in (out / "prediction.txt").read_text().splitlines())
    clips = read_scores(score_path(fused, "testA", "clips")).table.set_index("file")["score"]
    for file, score in clips.items():
        assert float(answers[file]) == pytest.approx(expit(score) if np.isfinite(score) else 0.75)


class TwoColumns(FrameData):
    """Stands in for the data class of a localiser."""

    modality, supervision = "audio", "clip"
    COLUMNS = ("real", "fake")

    def __init__(self):
        super().__init__("train", "val", "own", "mean")

    def settings(self, sources, split):
        return {"features": {}}

    def reader(self, sources, split):
        return None


@pytest.mark.parametrize(("options", "wanted"), [([], "max"), (["--aggregate", "top"], "top")])
def test_clip_scores_of_frames_keep_scale_and_reasons(exp, tmp_path, monkeypatch, options, wanted):
    folder, source = tmp_path / "ps", exp / "ps"
    write_system(folder, System("ps", "model", "audio", "segment", "cosine"))
    frames = frames_of(source)
    clips = read_scores(score_path(source, "testA", "clips")).table
    absent = clips.query("reason != ''")["file"].tolist()
    made = (frames, dict.fromkeys(absent, "no sound"))
    monkeypatch.setattr(trained, "load_model", lambda folder: (None, TwoColumns()))
    monkeypatch.setattr(trained, "load_data", lambda config: TwoColumns())
    monkeypatch.setattr("klassify.scores.inference.score_frames", lambda *args, **kw: made)
    command = ["score", folder, "--split", "testA", "--lists", exp / "lists"]
    command += ["--media", exp, "--features", exp]
    assert klassify(*command, *options) == 0
    clips = read_scores(score_path(folder, "testA", "clips"))
    assert clips.header.scale == "cosine" and clips.header.settings["aggregate"] == wanted
    assert read_header(score_path(folder, "testA", "frames")).scale == "cosine"
    for row in clips.table.itertuples():
        own = np.sort(frames.loc[frames["file"] == row.file, "score"])[::-1]
        if row.file in absent:
            assert np.isnan(row.score) and row.reason == "no sound"
        else:
            pooled = own[0] if wanted == "max" else own[:4].mean()
            assert row.score == pytest.approx(pooled, rel=1e-7)
    assert klassify(*command, "--aggregate", "noisy-or") == 2


def test_heads_are_evaluated_at_their_own_resolution(exp, tmp_path, capsys):
    labels = exp / "lists/testA.tsv"
    command = ["evaluate", exp / "ps", "--task", "2", "--split", "testA"]
    command += ["--labels", labels, "--bootstrap", "20", "--out", tmp_path]
    assert klassify(*command, "--columns", "ps640,ps160") == 0
    table = pd.read_csv(tmp_path / "testA.heads.tsv", sep="\t")
    assert table["head"].tolist() == ["ps640"] * 2 + ["ps160"] * 2
    assert table["label"].tolist() == ["own", "union"] * 2
    assert not (tmp_path / "testA.task2.tsv").exists()
    frames = dict(list(frames_of(exp / "ps").groupby("file")))
    for row in table.itertuples():
        scores, truth, step = [], [], row.resolution_ms // 40
        for clip in data_list.read_list(labels, segments=True).itertuples():
            if clip.file in frames:
                own = frames[clip.file]
                one = (own[f"{row.head}_fake"] - own[f"{row.head}_real"]).tolist()
                scores += [max(one[i : i + step]) for i in range(0, len(one), step)]
                spans = clip.audio_fake_segments if row.label == "own" else clip.fake_segments
                truth += encode_labels(spans, -(-len(one) // step), hop_s=step * FRAME_S).tolist()
        assert row.auc == pytest.approx(roc_auc_score(truth, scores), abs=1e-5)
        assert row.auc_low <= row.auc <= row.auc_high
    assert "ps640" in capsys.readouterr().out
    assert klassify(*command, "--columns", "ps40") == 2
    assert "ps has no heads ps40; it has: ps160, ps320, ps640" in capsys.readouterr().err


def test_clip_scores_of_any_scale_can_be_calibrated(exp, fused, tmp_path):
    labels = exp / "lists/val.tsv"
    how = ["--split", "val", "--labels", labels, "--out", tmp_path, "--bootstrap", "0"]
    platt = ["--out", exp / "ps_platt", "--labels", exp / "lists"]
    assert klassify("calibrate", exp / "ps", *platt) == 0
    assert klassify("score", exp / "ps_platt", "--split", "val") == 0
    assert klassify("evaluate", exp / "visual", exp / "ps", exp / "ps_platt", fused, *how) == 0
    table = read_table(tmp_path / "val.tsv", (), "klassify evaluate")
    table = table.set_index(["system", "label", "group"])
    ps, calibrated = (table.loc[(name, "own", "all")] for name in ("ps", "ps_platt"))
    assert np.isnan(ps["log_loss"]) and ps["auc"] > 0.9
    assert calibrated["log_loss"] < calibrated["log_loss_before"] < np.inf
    assert ps["auc"] == pytest.approx(calibrated["auc"], abs=0.1)
    assert np.isfinite(table.loc[("fused", "video", "all"), "log_loss"])


def test_clip_supervised_fusions_refuse_segment_inputs(exp, tmp_path, capsys):
    stripped = tmp_path / "lists"
    frame = data_list.read_list(exp / "lists/val.tsv")
    data_list.write_list(stripped / "val.tsv", frame)
    assert "fake_segments" not in (stripped / "val.tsv").read_text()
    common = ["--rule", "linear", "--labels", stripped, "--supervision", "clip"]
    inputs = [exp / "ps_clip", exp / "visual_clip"]
    assert klassify("fuse", *inputs, *common, "--out", exp / "fused_clip") == 0
    system = systems_system.load_system(exp / "fused_clip")
    assert system.supervision == "clip" and system.parameters["report"]["unit"] == "clip"
    assert system.parameters["report"]["auc"]["fused"] > 0.9
    assert klassify("score", exp / "fused_clip", "--split", "testA") == 0
    assert read_header(score_path(exp / "fused_clip", "testA", "clips")).supervision == "clip"
    pack = ["package", "--task1", exp / "fused_clip", "--split", "testA", "--sigmoid"]
    pack += ["--list", exp / "lists/testA.tsv"]
    assert klassify(*pack, "--out", tmp_path / "out") == 0
    assert "rule" not in json.loads((tmp_path / "out/manifest.json").read_text())
    capsys.readouterr()
    assert klassify("fuse", exp / "ps", exp / "visual_clip", *common, "--out", exp / "mixed") == 2
    assert "ps learned from segment labels" in capsys.readouterr().err
    again = ["--rule", "linear", "--labels", exp / "lists", "--out", exp / "on_segments"]
    assert klassify("fuse", *inputs, *again) == 0
    assert systems_system.load_system(exp / "on_segments").supervision == "segment"


def test_released_weights_need_all_columns(exp, tmp_path, capsys):
    from klassify.models.weights.safetensors_file import save_weights

    torch.manual_seed(0)
    model = LinearFusion()
    save_weights(model, tmp_path / "fusion.safetensors")
    command = ["--rule", "linear", "--weights", tmp_path / "fusion.safetensors"]
    inputs = [exp / "ps_clip", exp / "visual_clip"]
    assert klassify("fuse", *inputs, *command, "--out", exp / "released") == 0
    system = systems_system.load_system(exp / "released")
    assert system.supervision == "segment" and system.parameters["hold_s"] is None
    np.testing.assert_array_equal(system.parameters["means"], np.zeros(8))
    np.testing.assert_array_equal(np.float32(system.parameters["weight"]), model.weight.detach())
    assert klassify("fuse", exp / "visual_clip", *command, "--out", exp / "no") == 2
    assert "Released weights take the columns real, fake, ps160_real" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("inputs", "options", "columns"),
    [
        ("visual", "", [["real", "fake"]]),
        ("ps", "--resolutions 320", [PS[2:4]]),
        ("ps visual", "--resolutions 640,160 --label audio", [["real", "fake"], PS[4:] + PS[:2]]),
        ("fused ps", "--solver constant --epochs 1 --aggregate top", [["real", "fake"], PS]),
    ],
)
def test_ablations_keep_their_columns(exp, fused, inputs, options, columns):
    out = exp / f"ablation {inputs}"
    command = ["fuse", *(exp / name for name in inputs.split()), "--rule", "linear"]
    command += ["--labels", exp / "lists", *options.split(), "--out", out]
    assert klassify(*command) == 0
    assert systems_system.load_system(out).parameters["columns"] == columns
    assert klassify("score", out, "--split", "testA") == 0
    assert np.isfinite(frames_of(out)["score"]).all()


def test_splits_without_sound_or_any_input_are_scored(exp, fused, tmp_path):
    frame = data_list.read_list(exp / "lists/testA.tsv", segments=True)
    everything = frame["file"].tolist()
    for split, silent in (("mute", ["ps"]), ("nothing", ["ps", "visual"])):
        for name, names in (("visual", ["real", "fake"]), ("ps", PS)):
            absent = everything if name in silent else []
            modality = systems_system.load_system(exp / name).modality
            make_branch(exp / name, split, frame, modality, names, 5, absent=absent)
        assert klassify("score", fused, "--split", split) == 0
        clips = read_scores(score_path(fused, split, "clips")).table
        assert (clips["answered"] == 2 - len(silent)).all()
        assert clips["score"].notna().all() == (split == "mute")
        how = ["--split", split, "--method", "threshold", "--set", "at_least_one=true"]
        assert klassify("localise", fused, *how) == 0
        proposals = read_scores(score_path(fused, split, "segments")).table
        assert (len(proposals) > 0) == (split == "mute")
        pack = ["package", "--task1", fused, "--task2", fused, "--split", split]
        pack += ["--list", exp / "lists/testA.tsv"]
        assert klassify(*pack, "--out", tmp_path / split) == 0


FIT = "--rule linear --labels lists"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("ps visual --rule linear", "Give --labels to fit the fusion, or --weights"),
        (f"ps ps {FIT}", "different systems"),
        (f"ps {FIT} --resolutions 100", "no columns ps100_real"),
        (f"ps {FIT} --resolutions fine", "numbers of milliseconds"),
        (f"ps {FIT} --hold -1", "--hold is a number of seconds"),
        (f"ps {FIT} --report val", "clips are both in val_fit and in val"),
        ("ps --rule linear --weights nowhere", "No such file"),
        (f"ps {FIT} --scores-split train", "no frame scores for train"),
        ("ps visual --rule max --labels lists", "The rule max has no --labels"),
    ],
)
def test_impossible_linear_fusions_are_refused(exp, capsys, words, message):
    paths = ("ps", "visual", "lists", "nowhere")
    words = [exp / word if word in paths else word for word in words.split()]
    assert klassify("fuse", *words, "--out", exp / "refused") == 2
    assert message in capsys.readouterr().err and not (exp / "refused").exists()


def test_cosines_become_probabilities_linearly():
    score = np.array([-2.0, -1, -0.5, 0, 0.3, 1, 2])
    np.testing.assert_allclose(to_probability(score, "cosine"), [0, 0, 0.25, 0.5, 0.65, 1, 1])
    with pytest.raises(KlassifyError, match="distance"):
        to_probability(score, "distance")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"weight": "x"}, "incomplete"),
        ({"bias": [0, 0, 0]}, "do not fit"),
        ({"columns": 5}, "incom"),
    ],
)
def test_damaged_fusion_parameters_are_refused(changed, said):
    whole = {"rule": "linear", "columns": [["score"], ["score"]], "hold_s": 0.64}
    whole |= {"weight": [[0, 1], [1, 0]], "bias": [0, 0], "means": [0, 0], "aggregate": "max"}
    kind = ("fused", "fusion", "both", "segment", "log_odds")
    system = base.System(*kind, ["a", "b"], whole)
    assert linear.Rule.from_system(system).columns == [["score"], ["score"]]
    with pytest.raises(KlassifyError, match=said):
        linear.Rule.from_system(dataclasses.replace(system, parameters=whole | changed))
