"""Extraction end to end on small files: shards, failures, resume, status."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import contents, klassify, ran
from places import ROOT
from safetensors.torch import save_file
from videos import picture, write_media

from klassify import cli, workers
from klassify.errors import KlassifyError
from klassify.failures import read_failures
from klassify.features import extract, reconstruction
from klassify.features.base import in_workers_together
from klassify.features.lips import LipsExtractor
from klassify.features.mouth import channels
from klassify.features.mouth.kind import ClipExtractor, MouthRow, too_little
from klassify.features.shards import FeatureStore
from klassify.files import HERE, TEMPORARY
from klassify.media import square_frames
from klassify.models.vqvae import VQVAE
from klassify.models.weights import WEIGHTS
from klassify.models.weights.safetensors_file import save_weights
from klassify.parts import parts_in, read_rows
from klassify.systems.experiment import load_experiment, save_config

pytestmark = pytest.mark.usefixtures("without_workers")

SIZE, N_FRAMES = 96, 8


def landmarks(rng: np.random.Generator, n: int = N_FRAMES) -> np.ndarray:
    """A mouth, a face oval and eyes in the middle of the frame, with some motion."""
    points = np.zeros((n, 478, 2))
    turn = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    points[:, channels.FACE_OVAL] = 48 + 36 * np.column_stack([np.sin(turn), np.cos(turn)])
    points[:, channels.LIPS] = [48, 64] + 10 * np.column_stack([np.cos(turn), np.sin(turn)])[
        np.arange(40) % 36
    ]
    points[:, channels.EYES] = [[34, 40], [62, 40]]
    return (points + rng.normal(0, 0.3, points.shape)).astype(np.float32)


def write_video(path: Path, rng: np.random.Generator, n: int = N_FRAMES) -> None:
    cells = rng.integers(0, 256, (n, SIZE // 8, SIZE // 8, 3)).astype(np.uint8)
    write_media(path, picture(cells.repeat(8, 1).repeat(8, 2), codec="libx264"))


BROKEN = {
    "text.mp4": "decode",
    "empty.mp4": "decode",
    "missing.mp4": "decode",
    "noface.mp4": "face",
    "length.mp4": "landmarks",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A list of 11 clips, of which five have something wrong."""
    folder = tmp_path_factory.mktemp("media and landmarks")
    rng = np.random.default_rng(0)
    (folder / "media" / "id 1").mkdir(parents=True)
    (folder / "landmarks" / "id 1").mkdir(parents=True)
    files = [f"id 1/é{i}.mp4" for i in range(6)] + list(BROKEN)
    for file in files:
        path = folder / "media" / file
        points = landmarks(rng)
        if file == "text.mp4":
            path.write_text("no video\n" * 100)
        elif file == "empty.mp4":
            path.touch()
        elif file != "missing.mp4":
            write_video(path, rng, N_FRAMES + (file == "length.mp4"))
        if file == "noface.mp4":
            points[:] = np.nan
        np.savez(folder / "landmarks" / Path(file).with_suffix(".npz"), landmarks=points)
    order = rng.permutation(len(files))
    (folder / "list.tsv").write_text("\n".join(["file", *(files[i] for i in order)]) + "\n")
    return folder


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    given = ["--list", data / "list.tsv", "--root", data / "media", "--out", out]
    given += ["--landmarks", data / "landmarks", "--chunk", 4, "--jobs", 1]
    return ["extract", *map(str, given), *more]


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """The shards of one uninterrupted run."""
    out = tmp_path_factory.mktemp("out") / "train"
    assert cli.main(arguments(data, out)) == 0
    return out


def test_every_clip_has_one_row_and_failures_are_named(data, made):
    assert sorted(contents(made)) == ["failures-1-of-1.tsv"] + [
        f"part-1-of-1-{k}.parquet" for k in range(3)
    ]
    features = FeatureStore(made)
    listed = (data / "list.tsv").read_text().splitlines()[1:]
    assert features.files == listed
    assert set(features.reasons) == set(BROKEN)
    for file in listed:
        row = features[file]
        assert np.isfinite(row.features).all()
        if file not in BROKEN:
            assert row.valid.all() and row.features.shape == (N_FRAMES, 8) and row.fps == 25
            assert (row.features[3:] > 0).all() and not row.reason
    no_face = features["noface.mp4"].valid
    assert no_face.shape == (N_FRAMES,) and not no_face.any()
    assert (made / "failures-1-of-1.tsv").read_text().startswith("file\tstage\treason\n")
    listed = read_failures(made / "failures-1-of-1.tsv")
    assert {failure.file: failure.stage for failure in listed} == BROKEN
    reasons = {failure.file: failure.reason for failure in listed}
    assert reasons["noface.mp4"] == "no face" and "empty" in reasons["empty.mp4"]
    assert "No such file" in reasons["missing.mp4"] and "9" in reasons["length.mp4"]


def test_a_finished_run_is_skipped_and_strict_tells(data, made, capsys):
    before = contents(made)
    stamps = {path: path.stat().st_mtime_ns for path in made.glob("*.parquet")}
    assert cli.main(arguments(data, made)) == 0
    assert cli.main(arguments(data, made, "--strict")) == 1
    assert "11 clips, 5 without features (3 decode, 1 face, 1 landmarks" in capsys.readouterr().out
    assert contents(made) == before
    assert stamps == {path: path.stat().st_mtime_ns for path in made.glob("*.parquet")}


def test_missing_parts_are_made_again_to_the_byte(data, made):
    before = contents(made)
    (made / "part-1-of-1-1.parquet").unlink()
    (made / "failures-1-of-1.tsv").unlink()
    dead = ran([sys.executable, "-c", "import os; print(os.getpid())"])
    stale = f"part-1-of-1-1{TEMPORARY}-{dead.stdout.strip()}-{HERE}0a1b2c3d.parquet"
    (made / stale).write_bytes(b"half")
    assert cli.main(arguments(data, made)) == 0
    assert contents(made) == before


@pytest.mark.parametrize("n", [3, 13])
def test_shards_together_are_the_single_run(data, made, tmp_path, n):
    for i in range(1, n + 1) if n == 3 else (1, 5, 13):
        assert cli.main(arguments(data, tmp_path, "--shard", f"{i}/{n}")) == 0
    if n == 13:  # more shards than clips: the last one is an empty part
        assert len(read_rows(tmp_path / "part-13-of-13-0.parquet")) == 0
        return
    whole, parts = FeatureStore(made), FeatureStore(tmp_path)
    assert set(parts.files) == set(whole.files) and parts.reasons == whole.reasons
    for file in whole:
        np.testing.assert_array_equal(parts[file].features, whole[file].features)
        np.testing.assert_array_equal(parts[file].valid, whole[file].valid)


def test_status_names_what_is_missing(data, made, tmp_path, capsys):
    assert cli.main(arguments(data, made, "--status")) == 0
    assert "11 of 11 clips, 3 of 3 parts" in capsys.readouterr().out
    assert cli.main(arguments(data, tmp_path / "none", "--status")) == 1
    assert "0 of 11 clips" in capsys.readouterr().out
    assert cli.main(arguments(data, tmp_path, "--shard", "2/3")) == 0
    capsys.readouterr()
    assert cli.main(arguments(data, tmp_path, "--status")) == 1
    out = capsys.readouterr().out
    assert "4 of 11 clips, 1 of 3 parts" in out
    assert "--shard 1/3: part-1-of-3-0.parquet" in out and "--shard 3/3" in out
    assert "--shard 2/3" not in out
    assert cli.main(arguments(data, tmp_path, "--status", "--shard", "2/3")) == 0


def test_other_settings_lists_and_cuttings_are_refused(data, made, tmp_path, capsys):
    before = contents(made)
    for more, named in (
        (["--chunk", "5"], "chunk: 4 there, 5 now"),
        (["--shard", "1/2"], "n: 1 there, 2 now"),
        (["--list", str(tmp_path / "other.tsv")], "clips: 11 there, 1 now"),
    ):
        (tmp_path / "other.tsv").write_text("file\nid 1/é1.mp4\n")
        assert cli.main(arguments(data, made, *more)) == 2
        error = capsys.readouterr().err
        assert named in error and "--force" in error
    assert contents(made) == before


def test_changed_media_are_noticed_and_force_redoes(data, tmp_path, capsys):
    media = tmp_path / "media"
    media.mkdir()
    write_video(media / "a.mp4", np.random.default_rng(1))
    (tmp_path / "list.tsv").write_text("file\na.mp4\n")
    command = ["extract", "--list", tmp_path / "list.tsv", "--root", media]
    command += ["--out", tmp_path / "out", "--jobs", 1, "--landmarks", tmp_path]
    np.savez(tmp_path / "a.npz", landmarks=landmarks(np.random.default_rng(2)))
    assert klassify(*command, "--shard", "1/2") == 0
    (media / "a.mp4").write_text("broken since")
    assert klassify(*command, "--shard", "1/2") == 2
    assert "media:" in capsys.readouterr().err
    assert klassify(*command, "--force") == 0  # another number of shards replaces the old one
    assert parts_in(tmp_path / "out") == [tmp_path / "out" / "part-1-of-1-0.parquet"]
    assert FeatureStore(tmp_path / "out").reasons["a.mp4"].startswith("Cannot decode")


def test_crops_made_with_the_features_equal_those_made_alone(data, made, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert cli.main(arguments(data, alone, "--kind", "lips")) == 0
    command = arguments(data, together / "mouth", "--lips", str(together / "lips"))
    assert cli.main(command) == 0
    assert contents(together / "mouth") == contents(made)
    assert contents(together / "lips") == contents(alone)
    (together / "lips/part-1-of-1-1.parquet").unlink()  # what one lacks, the other has
    assert cli.main([*command, "--status"]) == 1
    assert cli.main(command) == 0 and contents(together / "lips") == contents(alone)
    assert cli.main([*command, "--status"]) == 0
    assert klassify("extract", *command[1:], "--kind", "audio") == 2


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2", "1/3/5"])
def test_impossible_shards_are_refused(shard):
    with pytest.raises(KlassifyError, match="1 <= I <= N"):
        extract.parse_shard(shard)


def test_wrong_media_folders_are_refused_at_once(data, tmp_path, capsys):
    for root in (tmp_path, tmp_path / "none"):
        assert cli.main(arguments(data, tmp_path / "out", "--root", str(root))) == 2
        assert "--root" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_shard_of_missing_clips_alone_is_one_of_failures(data, tmp_path):
    """Refused, it would leave an array of shards without an end."""
    (tmp_path / "list.tsv").write_text("file\nid 1/é0.mp4\ngone.mp4\nid 1/é1.mp4\nlost.mp4\n")
    command = arguments(data, tmp_path / "out", "--shard", "2/2")
    command[command.index("--list") + 1] = str(tmp_path / "list.tsv")
    assert cli.main(command) == 0
    failures = (tmp_path / "out/failures-2-of-2.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in failures[1:]] == ["gone.mp4", "lost.mp4"]


@pytest.mark.parametrize(
    "n_frames, n_seen, share, answered",
    [(8, 4, 0.1, True), (8, 3, 0.1, False), (8, 1, 0.0, True), (8, 6, 0.8, False)],
)
def test_a_face_in_too_few_frames_is_not_evidence(tmp_path, n_frames, n_seen, share, answered):
    rng = np.random.default_rng(0)
    write_video(tmp_path / "a.mp4", rng, n_frames)
    points = landmarks(rng, n_frames)
    points[n_seen:] = np.nan
    np.savez(tmp_path / "a.npz", landmarks=points)
    row = ClipExtractor(tmp_path, tmp_path, min_face_share=share)("a.mp4")
    assert int(row.valid.sum()) == (n_seen if answered else 0)
    assert row.features.any() == answered and row.stage == ("" if answered else "face")
    assert answered or row.reason.startswith(f"a face in {n_seen} of {n_frames} frames")
    crops = LipsExtractor(tmp_path, tmp_path, min_face_share=share)("a.mp4")
    assert (crops.reason, crops.stage) == (row.reason, row.stage)
    assert [bool(crop) for crop in crops.crops] == crops.valid.tolist() == row.valid.tolist()


@pytest.mark.parametrize(
    "n, n_seen, answered",
    [(3485, 45, False), (350, 15, False), (350, 35, True), (100, 24, False), (100, 25, True)],
)
def test_a_share_of_the_frames_and_a_second_are_needed(n, n_seen, answered):
    assert (too_little(np.arange(n) < n_seen, 0.1) == "") == answered


def test_the_least_share_of_faces_is_a_setting(data, tmp_path):
    more = ("--min-face-share", "0.3")
    assert cli.main(arguments(data, tmp_path / "a", *more)) == 0
    assert FeatureStore(tmp_path / "a").settings["min_face_share"] == 0.3
    with pytest.raises(SystemExit):
        cli.main(arguments(data, tmp_path / "b", "--min-face-share", "2"))


def test_names_that_lead_out_of_the_media_folder_are_failures(data, tmp_path):
    extractor = ClipExtractor(data / "media", data / "landmarks")
    for file in ("../list.tsv", "/etc/passwd"):
        row = extractor(file)
        assert (row.file, row.stage, len(row.valid)) == (file, "path", 0)
        assert "leads out" in row.reason


@pytest.mark.parametrize("kind", ["mouth", "lips", "audio"])
def test_an_impossible_file_name_fails_like_a_missing_file(data, tmp_path, kind):
    (tmp_path / "list.tsv").write_text(f"file\n{'x' * 300}.mp4\nid 1/é0.mp4\n")
    command = ["extract", "--list", tmp_path / "list.tsv", "--jobs", 1, "--kind", kind]
    command += ["--landmarks", data / "landmarks"] if kind != "audio" else []
    assert klassify(*command, "--root", data / "media", "--out", tmp_path / "out") == 0
    failures = (tmp_path / "out" / "failures-1-of-1.tsv").read_text().splitlines()
    assert failures[1].startswith("x" * 300 + ".mp4\tdecode\t")


def test_a_defect_in_one_clip_costs_that_clip(data, monkeypatch):
    extractor = ClipExtractor(data / "media", data / "landmarks")
    good = "id 1/é0.mp4"
    features = channels.mouth_features
    monkeypatch.setattr(channels, "mouth_features", lambda tracked: 1 / 0)
    row = extractor(good)
    assert (row.stage, row.reason) == ("features", "ZeroDivisionError: division by zero")
    monkeypatch.setattr(channels, "mouth_features", features)
    assert extractor(good).valid.all()


def lmm_arguments(data: Path, out: Path, *more: str) -> list[str]:
    given = ["--list", data / "list.tsv", "--root", data / "media", "--out", out]
    kind = "--kind lmm --lmm tiny --interval 3 --chunk 4 --device cpu"
    return ["extract", *kind.split(), *map(str, given), *more]


@pytest.fixture(scope="module")
def written(data, tmp_path_factory):
    """Shards of kind lmm of one uninterrupted run."""
    out = tmp_path_factory.mktemp("lmm") / "train"
    assert cli.main(lmm_arguments(data, out)) == 0
    return out


def test_lmm_rows_and_failures(data, written, capsys):
    features = FeatureStore(written)
    settings = features.settings
    assert settings["kind"] == "lmm" and settings["lmm"] == "tiny" and settings["untrained"] is True
    assert settings["prompt"].endswith("###Assistant:") and settings["precision"] == "float32"
    assert (settings["interval"], settings["new_tokens"], settings["visual_dim"]) == (3, 64, 32)
    assert cli.main(lmm_arguments(data, written)) == 0
    assert "random weights (tiny): these features mean nothing" in capsys.readouterr().out
    listed = (data / "list.tsv").read_text().splitlines()[1:]
    broken = {file for file, stage in BROKEN.items() if stage == "decode"}  # without landmarks
    assert features.files == listed and set(features.reasons) == broken
    for file in listed:
        row, n = features[file], 0 if file in broken else 3
        assert row.visual.shape == (n, 32) and row.textual.shape == (n, 64, 64)
        assert row.visual.dtype == row.textual.dtype == np.float16
        assert row.frames.tolist() == [0, 3, 6][:n] and len(row.texts) == n and all(row.texts)
        if file in broken:
            assert row.stage == "decode"
        else:
            assert row.n_frames == N_FRAMES + (file == "length.mp4") and row.fps == 25
    good = [features[file] for file in listed if file not in broken]
    assert len({row.textual.tobytes() for row in good}) == len(good)
    assert {failure.file for failure in read_failures(written / "failures-1-of-1.tsv")} == broken


@pytest.fixture(scope="module")
def vqvae(tmp_path_factory):
    """A small VQ-VAE as a file of weights and as a system's folder."""
    folder = tmp_path_factory.mktemp("vqvae system")
    torch.manual_seed(0)
    model = VQVAE(dim=8, codes=16).eval()
    torch.nn.init.normal_(model.codebook.embedding.weight)
    conf = ROOT / "recipes/multibranch/conf/demo/vqvae.yaml"
    overrides = ["model.init_args.dim=8", "model.init_args.codes=16"]
    save_config(folder, load_experiment(conf, overrides).resolved)
    save_weights(model, folder / WEIGHTS)
    return folder, model


def test_reconstructions_are_those_of_the_vqvae(data, vqvae, tmp_path):
    folder, model = vqvae
    kind = "--kind reconstruction --device cpu --batch 5 --jobs 1"
    command = ["extract", *kind.split(), "--size", SIZE, "--list", data / "list.tsv"]
    command += ["--root", data / "media"]
    assert klassify(*command, "--vqvae", folder, "--out", tmp_path / "a") == 0
    weights = folder / "model.safetensors"
    assert klassify(*command, "--vqvae", weights, "--out", tmp_path / "b") == 0
    features, others = FeatureStore(tmp_path / "a"), FeatureStore(tmp_path / "b")
    assert set(features.reasons) == {file for file, stage in BROKEN.items() if stage == "decode"}
    for file in features:
        codes = features[file].codes
        np.testing.assert_array_equal(codes, others[file].codes)
        if file in features.reasons:
            assert codes.shape == (0, 0, 0)
            continue
        read = torch.from_numpy(square_frames.read_frames(data / "media" / file, size=SIZE))
        assert codes.shape == (len(read), SIZE // 4, SIZE // 4)
        assert codes.dtype == np.uint16 and codes.max() < 16
        wanted, indices = model.reconstruct(read), torch.from_numpy(codes.astype(np.int64))
        assert torch.equal(model.frames_of(indices), wanted)
        assert torch.equal(model.frames_of(indices[2:4]), wanted[2:4])


def test_a_repeated_frame_is_encoded_once(vqvae):
    _, model = vqvae
    extractor = reconstruction.ReconstructionExtractor(Path(), model, SIZE)
    frames = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    block = frames[[0, 0, 1, 2, 2, 2, 0]]
    seen = []
    with model.encoder.register_forward_hook(lambda _, given, made: seen.append(len(given[0]))):
        codes = extractor.codes(block)
    assert seen == [4] and codes.dtype == np.uint16
    alone = [extractor.codes(block[k : k + 1]) for k in range(7)]
    np.testing.assert_array_equal(codes, np.concatenate(alone))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--audio", "--landmarks", "x"], "belongs to --kind mouth"),
        (["--kind", "lmm"], "needs --lmm"),
        (["--lmm", "tiny"], "--lmm belongs to --kind lmm"),
        (["--kind", "lmm", "--lmm", "tiny", "--vqvae", "x"], "--vqvae belongs to"),
        (["--kind", "lmm", "--lmm", "none"], "does not exist"),
        (["--kind", "reconstruction"], "needs --vqvae"),
        (["--kind", "reconstruction", "--vqvae", "x"], "no weights"),
        (["--kind", "reconstruction", "--vqvae", "x", "--size", "226"], "multiple of 4"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(data, tmp_path, capsys, arguments, complaint):
    base = ["--list", data / "list.tsv", "--root", data / "media", "--out", tmp_path / "out"]
    assert klassify("extract", *base, "--device", "cpu", *arguments) == 2
    assert complaint in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_system_that_is_not_a_vqvae_is_refused(data, tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(KlassifyError, match="no codebook"):
        reconstruction.load_vqvae(tmp_path / "model.safetensors")


def test_clips_of_a_process_that_died_are_taken_one_by_one(monkeypatch):
    def each(function, tasks, setup, **_):
        for number, task in enumerate(tasks):
            broken = "c" in task
            yield number, workers.Died("it broke") if broken else function(setup(), task)

    monkeypatch.setattr(workers, "each", each)
    asked = []

    def extract(_, files):
        asked.append(files)
        return [file.upper() for file in files]

    given = MouthRow, extract, lambda root: None, 1, 2
    rows = dict(in_workers_together(*given, Path(), [["a", "b", "c"], ["d"]]))
    assert asked == [["a", "b"], ["d"]]  # no group spans two parts
    assert [rows[0], rows[1], rows[3]] == ["A", "B", "D"] and rows[2].reason == "it broke"
    asked.clear()
    rows = dict(in_workers_together(*given, Path(), [["c", "a"]]))
    assert asked == [["a"]] and rows[0].stage == "worker" and rows[1] == "A"
