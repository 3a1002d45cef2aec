"""Several processes train like one, with the same losses and metrics, and all end if one fails."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import ran
from safetensors.torch import load_file
from together import HERE, command, in_threads, write_config
from torch.nn.parallel import DistributedDataParallel

from klassify import cli, parts
from klassify.data import mouth
from klassify.data.base import ClipWindows, Examples
from klassify.data.mouth import MouthFeatures, MouthTags
from klassify.errors import Interrupted, KlassifyError
from klassify.lists import subsets
from klassify.models.tcn import TaggingTCN
from klassify.models.w2v_aasist import AASIST
from klassify.training import ranks
from klassify.training.trainer import Loss
from klassify.training.validation import validate

ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
KLASSIFY = [sys.executable, "-m", "klassify"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
TORCHRUN += ["--standalone", "-m", "klassify"]


def run(arguments):
    return ran(arguments, env=ENV, timeout=300)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def two_ranks(config, small_data, tmp_path_factory):
    """A training by torchrun on two processes; of 25 clips, the last step has none for one."""
    out = tmp_path_factory.mktemp("ranks") / "two"
    done = run([*TORCHRUN, *command(config, out, small_data, "train.batch_size=4")])
    assert done.returncode == 0, done.stderr
    return out, done.stderr


def test_two_ranks_learn_what_one_process_learns(config, small_data, two_ranks, tmp_path):
    out, said = two_ranks
    assert sum(subsets.load_split(small_data.lists, "train")["duration"] >= 2.15) % 8 == 1
    assert cli.main(command(config, tmp_path / "one", small_data, "train.batch_size=8")) == 0
    one, two = (pd.read_csv(folder / "metrics.csv") for folder in (tmp_path / "one", out))
    assert len(two) == 3 and one["val_auc"].max() > 0.8
    np.testing.assert_allclose(one, two, rtol=1e-5)
    weights = load_file(tmp_path / "one/model.safetensors")
    others = load_file(out / "model.safetensors")
    for name in weights:
        torch.testing.assert_close(others[name], weights[name], rtol=1e-4, atol=1e-5)
    assert (out / "failures.tsv").read_text() == (tmp_path / "one/failures.tsv").read_text()
    assert said.count("epoch 3 ") == 1 and "2 processes, 16 clips per update" in said
    assert "7 clips left out by train.min_seconds=2.15" in said


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_training_resumes(
    config, small_data, two_ranks, tmp_path
):
    whole, out = two_ranks[0], tmp_path / "killed"
    training = command(config, out, small_data, "train.batch_size=4")
    arguments = [*KLASSIFY, *training, "--devices", "2"]
    process = subprocess.Popen(arguments, env=ENV, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    state = out / "checkpoints/last.pt"
    while not state.exists() and time.monotonic() < deadline and process.poll() is None:
        os.sched_yield()
    (other,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(other), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    # it ends by itself, or Fabric kills it
    assert process.returncode in (Interrupted.status, -signal.SIGKILL)
    assert "Another process of this training failed" in said and "Traceback" not in said
    assert not (out / "training.json").exists()
    done = run(arguments)
    assert done.returncode == 0 and "resuming after epoch" in done.stderr
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, out))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (whole / "metrics.csv").read_text() == (out / "metrics.csv").read_text()


def test_a_training_of_two_ranks_is_not_continued_by_one(config, small_data, two_ranks, capsys):
    assert cli.main(command(config, two_ranks[0], small_data, "train.batch_size=4")) == 2
    assert "ranks: 2 there, None now" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["clips", "frames"])
def test_ranks_validate_as_one_process_does(small_data, kind):
    from plain_model import Plain

    torch.manual_seed(3)
    sources = small_data.sources
    if kind == "clips":
        model, data = Plain(), MouthFeatures(val_split="val")
    else:
        model, data = TaggingTCN(hidden=8), MouthTags(val_split="val")
    how = {"batch_size": 4, "workers": 0, "device": torch.device("cpu")}
    alone = validate(model.eval(), data, sources, **how)

    def by(rank):
        return validate(copy.deepcopy(model), data, sources, ranks=rank, **how)

    for found in in_threads(by):
        assert found["val_auc"] == alone["val_auc"]
        assert found["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-6)


def test_other_ranks_do_not_read_the_shards_again(small_data, monkeypatch):
    sources = small_data.sources
    data = MouthFeatures(train_split="train", val_split="val")
    examples = Examples(data, sources, "train", seed=1)
    sources.readers["val"] = data.reader(sources, "val")
    handed = pickle.dumps((examples, sources))

    def refuse(*_, **__):
        raise AssertionError("scanned again")

    monkeypatch.setattr(parts, "read_header", refuse)
    monkeypatch.setattr(subsets, "load_split", refuse)
    others, their_sources = pickle.loads(handed)
    for key, value in examples[2, 5].items():
        assert torch.equal(others[2, 5][key], value)
    file, cut, reason = ClipWindows(data, their_sources, "val")["val_0/é real.wav"]
    assert cut and not reason


def test_clips_outside_the_length_limits_are_left_out(small_data):
    sources = small_data.sources
    table = subsets.load_split(small_data.lists, "train")
    data = MouthFeatures(train_split="train")
    examples = Examples(data, sources, "train", seed=1, min_s=2.0, max_s=3.0)
    kept = table[table["duration"].between(2.0, 3.0)]
    assert list(examples.files) == kept["file"].tolist()
    assert examples.left_out == len(table) - len(kept) > 0
    longest = [examples.seconds[index] for index in examples.longest(4)]
    assert longest == sorted(kept["duration"], reverse=True)[:4]


@pytest.fixture
def one_process_group(tmp_path):
    meet = f"file://{tmp_path}/meet"
    torch.distributed.init_process_group("gloo", init_method=meet, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("bn1_trained", [False, True])
def test_unused_norms_of_aasist_are_frozen(one_process_group, bn1_trained):
    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backend = AASIST(12, bands=24, channels=(4, 8), graph_dims=(8, 4))

        def loss(self, batch):
            return self.backend(batch["x"]).logsumexp(dim=1).mean()

    model = Classifier()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or (bn1_trained and ".bn1." in name))
    wrapped, batch = DistributedDataParallel(Loss(model)), {"x": torch.randn(2, 40, 12)}
    wrapped(batch).backward()
    if not bn1_trained:
        wrapped(batch).backward()
        return
    with pytest.raises(RuntimeError) as raised:
        wrapped(batch).backward()
    assert "find_unused_parameters=true" in ranks.explained(raised.value).fix


def test_low_precision_applies_to_the_loss(config, small_data, tmp_path, monkeypatch):
    import plain_model

    found, score = set(), plain_model.Plain.score

    def watched(self, batch):
        found.add(self.inner(batch["features"]).dtype)
        return score(self, batch).float()

    monkeypatch.setattr(plain_model.Plain, "score", watched)
    settings = ["train.precision=bf16-mixed", "train.epochs=1"]
    assert cli.main(command(config, tmp_path / "out", small_data, *settings)) == 0
    assert found == {torch.bfloat16, torch.float32}  # in training, and in validation


def test_an_unreadable_batch_keeps_the_training_in_step(config, small_data, tmp_path, monkeypatch):
    """Every second batch has one clip, which fails: it runs another clip, which does not count."""
    read = mouth._MouthReader.read

    def failing(self, file):
        if file.endswith("é real.wav") and file.startswith("train"):
            raise KlassifyError("This clip is broken.")
        return read(self, file)

    monkeypatch.setattr(mouth._MouthReader, "read", failing)
    settings = ["train.batch_size=1", "train.epochs=1"]
    assert cli.main(command(config, tmp_path / "out", small_data, *settings)) == 0
    assert (tmp_path / "out/failures.tsv").read_text().count("This clip is broken.") > 1
