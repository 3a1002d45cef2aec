"""`klassify import-checkpoint`: a published file becomes safetensors, or a whole system."""

import argparse
import json
import os
import re
import shlex

import numpy as np
import pandas as pd
import published
import pytest
import torch
import yaml
from fill import fill, load, make_input
from places import ROOT
from published import GOLDENS, TINY, TINY_WAVLM
from scipy.special import logit

from klassify import cli
from klassify.commands import import_checkpoint
from klassify.errors import KlassifyError
from klassify.features.avhubert import AVHubertRow
from klassify.features.shards import write_part
from klassify.localisation.soft_nms import soft_nms
from klassify.models import auvire
from klassify.models.bam import BAM
from klassify.models.frontends.ssl import SSLFrontEnd
from klassify.models.weights.load import import_weights, load_weights
from klassify.models.weights.published import KEY_MAPS
from klassify.models.weights.safetensors_file import read_tensors, save_weights, write_tensors
from klassify.parts import Place
from klassify.scores.score_file import read_scores, score_path
from klassify.systems.experiment import load_experiment
from klassify.systems.imported import ARCHITECTURES, SOURCES, released_experiment, released_model
from klassify.systems.system import load_system
from klassify.systems.trained import load_model

STREAMS = ("video", "audio")
PAGE = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")


def run(*words):
    return cli.main(["import-checkpoint", *map(str, words)])


def refusal(capsys, *words):
    """What the command says when it refuses."""
    assert run(*words) == 2
    return capsys.readouterr().err


def write_config(path, model, data, train):
    """A config; model and data: (class_path below klassify, init_args)."""
    parts = {
        name: {"class_path": f"klassify.{path}", "init_args": arguments}
        for name, (path, arguments) in {"model": model, "data": data}.items()
    }
    path.write_text(yaml.safe_dump(parts | {"train": train}))
    return path


def bam_config(path, normalize_input=True):
    """A BAM as small as the goldens are, and its data."""
    settings = {"normalize_input": normalize_input, "architecture": TINY_WAVLM}
    frontend = {
        "class_path": "klassify.models.frontends.ssl.SSLFrontEnd",
        "init_args": settings | {"source": "/gone.pt"},
    }
    model = ("models.bam.BAM", {"frontend": frontend})
    data = ("data.audio.AudioFrames", {"window": 16_000, "stride": 6_400})
    return write_config(path, model, data, {"epochs": 1, "batch_size": 2})


def documented():
    """The commands of the page on checkpoints, parsed."""
    parser = argparse.ArgumentParser()
    import_checkpoint.configure(parser)
    commands = re.findall(r"^klassify import-checkpoint ([a-z].*)", PAGE, flags=re.MULTILINE)
    return [parser.parse_args(shlex.split(words)) for words in commands]


def test_the_page_on_checkpoints_has_every_source():
    cells = [line.split("|")[3] for line in PAGE.splitlines() if line.count("|") == 7]
    rows = {name for cell in cells for name in re.findall(r"`([a-z][\w-]*)`", cell)}
    assert rows == {args.source for args in documented()} == set(SOURCES) == set(KEY_MAPS)
    assert set(ARCHITECTURES) <= set(KEY_MAPS)


@pytest.mark.parametrize(
    "args", [args for args in documented() if args.config], ids=lambda args: args.source
)
def test_our_configs_read_released_weights_as_their_authors_do(args):
    """Full-size models on the meta device."""
    args.config = ROOT / args.config
    with torch.device("meta"):
        ours = released_experiment(args.source, args.config, args.overrides).model
        released = released_model(args.source, ARCHITECTURES.get(args.source))
    shapes = [
        {key: value.shape for key, value in model.state_dict().items()}
        for model in (ours, released)
    ]
    assert shapes[0] == shapes[1]


def test_a_fairseq_file_becomes_a_source_for_the_front_end(tmp_path, capsys):
    golden, expected = load(GOLDENS / "ssl_wav2vec2")
    torch.save({"model": published.golden_state("ssl_wav2vec2"), "cfg": None}, tmp_path / "tiny.pt")
    out = tmp_path / "tiny.safetensors"
    words = ("fairseq", tmp_path / "tiny.pt", "--out", out, "--architecture", json.dumps(TINY))
    assert not run(*words)
    told = capsys.readouterr().out
    for part in ("69 tensors of a fairseq file", "quantizer.vars", "final_proj.bias"):
        assert part in told
    _, metadata = read_tensors(out)
    assert metadata["source"] == "fairseq" and len(metadata["sha256"]) == 64

    frontend = SSLFrontEnd(False, TINY, source=str(out)).eval()
    frontend.load_pretrained()
    case = golden["cases"][0]
    with torch.no_grad():
        last = frontend(torch.from_numpy(make_input(case["inputs"][0])))
    np.testing.assert_allclose(last.numpy(), expected[f"{case['id']}/last"], atol=1e-4, rtol=1e-4)


def test_a_wavlm_file_is_taken_under_both_names(tmp_path):
    file, sizes = tmp_path / "WavLM.pt", ("--architecture", json.dumps(TINY_WAVLM))
    torch.save({"model": published.golden_state("ssl_wavlm"), "cfg": {"dropout": 0.0}}, file)
    outs = [tmp_path / f"{source}.safetensors" for source in ("wavlm", "fairseq")]
    for out in outs:
        assert not run(out.stem, file, "--out", out, *sizes)
    one, other = (read_tensors(out)[0] for out in outs)
    assert all(torch.equal(one[key], other[key]) for key in one | other)


@pytest.mark.parametrize(
    "source, state, size",
    [
        ("aasist", published.raw_aasist_state, 229),
        ("fusion", lambda: published.lightning(published.golden_state("linear_fusion"), ""), 2),
        ("vqvae", lambda: published.golden_state("vqvae"), 75),
    ],
)
def test_models_without_a_speech_model_need_no_settings(tmp_path, capsys, source, state, size):
    file, out = tmp_path / "released.pth", tmp_path / "out" / "ours.safetensors"
    torch.save(state(), file)
    assert not run(source, file, "--out", out)
    assert re.search(rf"{size} tensors of an? {source} file", capsys.readouterr().out)
    load_weights(released_model(source, "aasist"), out)


def test_the_small_aasist_by_name(tmp_path, capsys):
    model = released_model("aasist", "aasist-l")
    assert sum(parameter.numel() for parameter in model.parameters()) == 85_306
    torch.save(model.state_dict(), tmp_path / "AASIST-L.pth")
    out = tmp_path / "light.safetensors"
    assert not run("aasist", tmp_path / "AASIST-L.pth", "--out", out, "--architecture", "aasist-l")
    assert "of another shape" in refusal(capsys, "aasist", tmp_path / "AASIST-L.pth", "--out", out)


SMALL_ST = {
    "size": 32,
    "window": 2,
    "dim": 24,
    "depth": 1,
    "heads": 3,
    "mlp_ratio": 2,
    "stem_width": 8,
    "channels": [16, 32, 48],
    "layers": [1, 1, 1],
    "fc_grouping": "strided",
}


@pytest.fixture
def visual(tmp_path):
    """(config, model, published file, file of its VQ-VAE), small and filled as the goldens are."""
    parts = {
        "spatiotemporal": ("spatiotemporal.SpatioTemporal", SMALL_ST),
        "vqvae": ("vqvae.VQVAE", {"dim": 8, "codes": 16}),
    }
    arguments = {
        name: {"class_path": f"klassify.models.{path}", "init_args": values}
        for name, (path, values) in parts.items()
    }
    config = write_config(
        tmp_path / "visual.yaml",
        ("models.visual.Visual", arguments | {"lmm_dims": [6, 10]}),
        ("data.visual.VisualWindows", {"size": 32, "window": 2}),
        {},
    )
    model = load_experiment(config).model
    filled = published.tensors(
        {key: fill(key, value.shape, 5) for key, value in model.state_dict().items()}
    )
    model.load_state_dict(filled)
    own = {key: value for key, value in filled.items() if not key.startswith("vqvae.")}
    torch.save(published.mm_det(own), tmp_path / "mm.pth")
    torch.save(model.vqvae.state_dict(), tmp_path / "vqvae.pt")
    return config, model.eval(), tmp_path / "mm.pth", tmp_path / "vqvae.pt"


def test_mm_det_and_its_vqvae_become_one_system(tmp_path, capsys, visual):
    config, model, file, vqvae = visual
    folder = tmp_path / "exp" / "visual"
    assert not run("visual", file, "--vqvae", vqvae, "--config", config, "--system", folder)
    told = capsys.readouterr().out
    assert "left out" in told and "mm_encoder.model.lm_head.weight" in told
    system = load_system(folder)
    assert (system.kind, system.modality, system.supervision) == ("model", "visual", "segment")
    assert system.parameters["imported"].keys() == {"source", "file", "sha256", "vqvae_sha256"}
    imported, _ = load_model(folder)
    frames = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        for one in (imported, model):
            tokens = one.backbone(*(part[None] for part in one.scored_pair(frames)))
            lmm = torch.ones(1, 1, 6), torch.ones(1, 64, 10)
            torch.testing.assert_close(one(tokens, *lmm), model(tokens, *lmm))
        torch.testing.assert_close(imported.reconstruct(frames), model.reconstruct(frames))


def test_the_vqvae_may_be_ours_or_named_in_the_config(tmp_path, capsys, visual):
    config, model, file, _ = visual
    trained = tmp_path / "exp" / "vqvae" / "model.safetensors"
    save_weights(model.vqvae, trained)
    out = tmp_path / "visual.safetensors"
    assert not run("visual", file, "--config", config, "--vqvae", trained.parent, "--out", out)
    named, other = f"model.init_args.vqvae_weights={trained}", tmp_path / "named.safetensors"
    assert not run("visual", file, named, "--config", config, "--out", other)
    for path in (out, other):
        state = read_tensors(path)[0]
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_a_visual_model_needs_its_vqvae_and_its_grouping(tmp_path, capsys, visual):
    config, _, file, vqvae = visual
    out = ("--out", tmp_path / "out.safetensors", "--config", config)
    assert "--vqvae vqvae.pt" in refusal(capsys, "visual", file, *out)
    grouping = "model.init_args.spatiotemporal.init_args.fc_grouping"
    for words, told in (
        (("visual", file, "--vqvae", file), "this is a visual file, not a vqvae file"),
        (("visual", vqvae, "--vqvae", vqvae), "this is a vqvae file, not a visual file"),
        (("visual", file, f"{grouping}=frame", "--vqvae", vqvae), f"{grouping}=strided"),
    ):
        assert told in refusal(capsys, *words, *out)
    assert "belongs to visual" in refusal(capsys, "vqvae", vqvae, "--vqvae", vqvae, *out[:2])
    assert "belongs to cfprf" in refusal(capsys, "vqvae", vqvae, "--prn", vqvae, *out[:2])


@pytest.fixture
def aasist(tmp_path):
    """AASIST.pth and a config that cuts short windows for it."""
    torch.save(published.raw_aasist_state(), tmp_path / "AASIST.pth")
    arguments = {"window": 16_000, "train_split": "train", "val_split": "val"}
    model, data = ("models.raw_aasist.RawAASIST", {}), ("data.audio.AudioClips", arguments)
    train = {"epochs": 1, "batch_size": 4}
    return tmp_path / "AASIST.pth", write_config(tmp_path / "aasist.yaml", model, data, train)


@pytest.fixture
def few_clips(tmp_path, small_data):
    """Arguments of the small data set with the four clips of its second original alone."""
    for path in small_data.lists.iterdir():
        header, *rows = path.read_text().splitlines(keepends=True)
        (tmp_path / "lists").mkdir(exist_ok=True)
        (tmp_path / "lists" / path.name).write_text(header + "".join(rows[4:8]))
    return ["--lists", str(tmp_path / "lists"), *small_data.arguments[2:]]


def test_an_imported_system_scores_without_any_training(tmp_path, aasist, few_clips, capsys):
    file, config = aasist
    folder = tmp_path / "exp" / "aasist"
    words = ("aasist", file, "--config", config, "--system", folder)
    assert not run(*words)
    order = "put into the order real, fake: out_layer.weight, out_layer.bias"
    assert order in capsys.readouterr().out
    kept = ["config.yaml", "env.json", "model.safetensors", "settings.json", "system.yaml"]
    assert sorted(os.listdir(folder)) == kept
    assert not cli.main(["score", str(folder), "--split", "testA", *few_clips, "--device", "cpu"])
    clips = read_scores(score_path(folder, "testA", "clips")).table
    assert len(clips) == 4 and np.isfinite(clips["score"]).all()

    before = (folder / "system.yaml").stat().st_mtime_ns
    assert not run(*words) and "already imported" in capsys.readouterr().out
    assert (folder / "system.yaml").stat().st_mtime_ns == before
    assert "made with other inputs" in refusal(capsys, *words[:2], "train.epochs=2", *words[2:])
    assert not run(*words[:2], "train.epochs=2", *words[2:], "--force")
    assert not (folder / "scores").exists()
    (folder / "settings.json").unlink()  # as in the folder of a fusion
    assert "made with other inputs" in refusal(capsys, *words)


def test_a_folder_of_something_else_keeps_all_that_it_has(tmp_path, aasist, capsys):
    file, config = aasist
    folder = tmp_path / "mine"
    notes, others = folder / "scores/football/2026.txt", folder / "scores/val.clips.tsv"
    notes.parent.mkdir(parents=True)
    notes.write_text("3:1")
    others.write_text("file\tscore\n")
    words = ("aasist", file, "--config", config, "--system", folder)
    assert "not a system, and it is not empty" in refusal(capsys, *words)
    assert sorted(os.listdir(folder)) == ["scores"]
    assert not run(*words, "--force")
    assert notes.read_text() == "3:1" and others.exists()
    assert "A file is where a folder is needed" in refusal(capsys, *words[:-1], file)


@pytest.mark.long
def test_a_training_starts_from_imported_weights(tmp_path, aasist, few_clips, capsys):
    file, config = aasist
    assert not run("aasist", file, "--out", tmp_path / "aasist.safetensors")
    words = ["train", str(config), "--out", str(tmp_path / "exp"), *few_clips]
    words += ["--accelerator", "cpu", "--fast-dev-run"]
    assert not cli.main([*words, "--init", str(tmp_path / "aasist.safetensors")])
    assert cli.main([*words, "--init", str(file)]) == 2
    assert "klassify import-checkpoint" in capsys.readouterr().err


def test_a_localiser_becomes_a_system_with_the_same_answers(tmp_path, monkeypatch):
    published.bam_file(tmp_path / "model.ckpt", monkeypatch)
    config, folder = bam_config(tmp_path / "bam.yaml"), tmp_path / "exp" / "bam"
    assert not run("bam", tmp_path / "model.ckpt", "--config", config, "--system", folder)
    assert load_system(folder).supervision == "segment"
    by_hand = BAM(SSLFrontEnd(True, TINY_WAVLM)).eval()
    import_weights(by_hand, tmp_path / "model.ckpt")
    model, data = load_model(folder)
    wave = torch.from_numpy(fill("input:wave", (1, 6_400), 1))
    with torch.no_grad():
        torch.testing.assert_close(model.score({"wave": wave}), by_hand.score({"wave": wave}))
    state, _ = read_tensors(folder / "model.safetensors")
    write_tensors(dict(list(state.items())[1:]), folder / "model.safetensors")  # another model's
    with pytest.raises(KlassifyError, match="These weights do not fit the model: of .* 1 missing"):
        load_model(folder)


def cfprf_config(path):
    """A CFPRF on a tiny speech model, and clips in windows of 2.4 s."""
    settings = {"normalize_input": False, "architecture": TINY}
    frontend = {"class_path": "klassify.models.frontends.ssl.SSLFrontEnd", "init_args": settings}
    model = ("models.cfprf.CFPRF", {"frontend": frontend, "seq_len": 120})
    data = ("data.cfprf.CFPRFFrames", {"window": 120, "stride": 60, "crop": 50})
    return write_config(path, model, data, {})


@pytest.mark.long
def test_both_files_of_cfprf_become_one_localiser(tmp_path, few_clips, capsys):
    fdn, prn = published.cfprf_files(tmp_path)
    config, folder = cfprf_config(tmp_path / "cfprf.yaml"), tmp_path / "exp" / "cfprf"
    words = ("cfprf", fdn, "--config", config, "--system", folder)
    assert "give --prn 2PRN_LAVDF.pth" in refusal(capsys, *words)
    assert not run(*words, "--prn", prn)
    assert "real, fake: fdn.seg_fc.weight, fdn.seg_fc.bias" in capsys.readouterr().out
    system = load_system(folder)
    assert (system.modality, system.supervision) == ("audio", "segment")
    imported = system.parameters["imported"]
    assert imported.keys() == {"source", "file", "sha256", "prn_sha256"}
    model, _ = load_model(folder)
    state = torch.load(fdn, weights_only=True)
    torch.testing.assert_close(model.fdn.seg_fc.weight, state["seg_fc.weight"].flip(0))

    split = ["--split", "testA"]
    assert not cli.main(["score", str(folder), *split, *few_clips, "--device", "cpu"])
    frames = read_scores(score_path(folder, "testA", "frames")).table
    found = frames[frames["proposed0_score"] > 0.5]
    assert not cli.main(["localise", str(folder), *split])
    segments = read_scores(score_path(folder, "testA", "segments"))
    assert segments.header.settings["method"] == "proposed"
    kept = found[found["proposed0_start"] < found["proposed0_end"]]
    columns = ["proposed0_score", "proposed0_start"]
    wanted = kept.sort_values(["file", columns[0]], ascending=[True, False])
    assert len(wanted) > 4
    rows = segments.table.sort_values(["file", "score"], ascending=[True, False])
    np.testing.assert_allclose(rows[["score", "start"]], wanted[columns], atol=1e-6)


def test_auvire_becomes_a_localiser_of_both_modalities(tmp_path, small_data, capsys):
    """Clips of three lengths: shorter than a window, just as long, and longer."""
    sizes = {"d_model": 24, "length": 32}
    factors = {"length": 32, "stride": 16, "factors": [1, 2]}
    model, data = ("models.auvire.AuViRe", sizes), ("data.auvire.AuViReFrames", factors)
    config = write_config(tmp_path / "auvire.yaml", model, data, {})
    state = published.golden_state("auvire", "small_av1m")
    optimizer, _ = published.trained()
    file, folder = tmp_path / "auvire.pth", tmp_path / "exp" / "auvire"
    torch.save({"optimizer": optimizer.state_dict(), "model": state}, file)
    assert not run("auvire", file, "--config", config, "--system", folder)
    told = capsys.readouterr().out
    assert "80 tensors of an auvire file" in told and "AV-HuBERT" in told
    system = load_system(folder)
    assert (system.modality, system.supervision) == ("both", "segment")

    files = pd.read_csv(small_data.lists / "testA.tsv", sep="\t")["file"].tolist()
    rng, rows = np.random.default_rng(0), []
    for i, name in enumerate(files):
        streams = rng.normal(size=(2, (20, 32, 75)[i % 3], 768)).astype(np.float16)
        rows.append(AVHubertRow(name, 25.0, *streams))
    rows[0] = AVHubertRow.failed(files[0], "face", "no face")
    place = (small_data.features / "avhubert" / "testA", Place(1, 1, 0, 1))
    write_part(*place, rows, {"kind": "avhubert", "version": 1}, "x")
    split = ["--split", "testA"]
    words = ["score", str(folder), *split, *small_data.arguments, "--device", "cpu"]
    assert not cli.main(words)
    clips = read_scores(score_path(folder, "testA", "clips")).table
    assert clips["reason"][0] == "no face" and clips["score"][1:].notna().all()
    assert not cli.main(["localise", str(folder), *split])
    segments = read_scores(score_path(folder, "testA", "segments"))
    assert segments.header.settings["settings"]["nms_t2"] == 0.4123
    model, data = load_model(folder)
    for file, row in zip(files[1:], rows[1:]):
        if len(row.video) == 32:  # as the published code does it
            (window,) = data.cut({name: torch.tensor(getattr(row, name)) for name in STREAMS})
            with torch.no_grad():
                levels = model(*(window.inputs[name].float()[None] for name in STREAMS)).levels
            found = torch.cat(auvire.proposals(levels, model.factors), dim=1)[0].double().numpy()
            score, start, end = found.T
            start, end = np.maximum(start, 0) / 25, np.minimum(end, 32) / 25
            nms = {"sigma": 0.7234, "t1": 0.1968, "t2": 0.4123}
            taken, value = soft_nms(np.zeros(len(score), int), start, end, score, cap=101, **nms)
            wanted = np.stack([start[taken], end[taken], value], axis=1)
            wanted = wanted[wanted[:, 0] < wanted[:, 1]][:50]
            ours = segments.table[segments.table["file"] == file][["start", "end", "score"]]
            np.testing.assert_allclose(ours, wanted, atol=1e-5)
            highest = clips.set_index("file")["score"][file]
            assert highest == pytest.approx(logit(score.max()), abs=1e-4)


def test_mistakes_are_refused_with_their_fix(tmp_path, capsys):
    file, out = tmp_path / "tiny.pt", ("--out", tmp_path / "out.safetensors")
    torch.save({"model": published.golden_state("ssl_wav2vec2")}, file)
    config, system = bam_config(tmp_path / "bam.yaml"), ("--system", tmp_path / "exp")
    for words, told in (
        (("fairseq", file, "--out", file), "must be a .safetensors file"),
        (("fairseq", file, *out, "--architecture", "{hidden"), "not readable JSON"),
        (("fairseq", file, *out, "--architecture", "xlsr54"), "architecture 'xlsr54'"),
        (("aasist", file, *out, "--architecture", "xlsr53"), "Unknown AASIST 'xlsr53'"),
        (("aasist", file, *out, "--architecture", "{}"), "Unknown AASIST"),
        (("auvire", file, *out, "--architecture", "xlsr53"), "Unknown AuViRe 'xlsr53'"),
        (("vqvae", file, *out, "--architecture", "xlsr53"), "does not apply to vqvae"),
        (("vqvae", file, *out), "not a vqvae file"),
        (("vqvae", tmp_path / "absent.pt", *out), "does not exist"),
        (("vqvae", file, "a=b", *out), "give --config"),
        (("bam", file, *system), "give --config"),
        (("fusion", file, *system), "klassify fuse"),
        (("fairseq", file, *out, "--config", config), "takes no config"),
        (
            ("bam", file, *out, "--config", config, "--architecture", "xlsr53"),
            "has an architecture already",
        ),
        (("visual", file, *out, "--config", config), "not a visual model"),
    ):
        assert told in refusal(capsys, *words)
    assert not out[1].exists() and not system[1].exists()


def test_a_setting_that_would_harm_the_weights_is_refused(tmp_path, monkeypatch, capsys):
    published.bam_file(tmp_path / "model.ckpt", monkeypatch)
    config = bam_config(tmp_path / "bam.yaml", normalize_input=False)
    words = ("bam", tmp_path / "model.ckpt", "--config", config, "--system", tmp_path / "exp")
    told = refusal(capsys, *words)
    assert "add model.init_args.frontend.init_args.normalize_input=true" in told
    assert not (tmp_path / "exp").exists()


def test_a_hostile_file_is_refused(tmp_path, capsys):
    marker = tmp_path / "was_run"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    state = published.golden_state("linear_fusion")
    file, out = tmp_path / "fusion.ckpt", tmp_path / "out.safetensors"
    torch.save(published.lightning(state, hyper_parameters={"config": Attack()}), file)
    told = refusal(capsys, "fusion", file, "--out", out)
    assert "hostile" in told and "Nothing was called" in told
    assert not marker.exists() and not out.exists()
