"""Metrics in TensorBoard and Weights & Biases: those of metrics.csv, also of a resumed training."""

from __future__ import annotations

import struct
import sys
import types
from pathlib import Path

import pandas as pd
import pytest

from klassify.errors import KlassifyError
from klassify.systems.experiment import TrainSettings, load_experiment
from klassify.training.loggers import RUN, WandbLogger, check_logger, logger_of

SETTINGS = {"train": {"lr": 0.01}, "seed": 1}
ROWS = [{"epoch": n, "train_loss": 1.0 / n, "lr": 0.1, "val_auc": 0.5 + n / 10} for n in (1, 2, 3)]


def logged(folder: Path) -> pd.DataFrame:
    """The scalars in the event files of a folder, one row per epoch; and there are settings."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    rows: dict[int, dict[str, float]] = {}
    tags = []
    (path,) = folder.iterdir()
    content, at = path.read_bytes(), 0
    while at < len(content):  # records: length, its checksum, an event, its checksum
        (size,) = struct.unpack("<Q", content[at : at + 8])
        event = event_pb2.Event.FromString(content[at + 12 : at + 12 + size])
        at += size + 16
        for value in event.summary.value:
            tags.append(value.tag)
            if value.WhichOneof("value") == "simple_value":
                rows.setdefault(event.step, {"epoch": event.step})[value.tag] = value.simple_value
            else:
                assert b"lr: 0.01" in value.tensor.SerializeToString()
    assert "settings/text_summary" in tags
    return pd.DataFrame(rows.values())


def test_tensorboard_has_all_epochs_of_a_resumed_training(tmp_path):
    pytest.importorskip("tensorboardX")
    first = logger_of("tensorboard", tmp_path, SETTINGS, {"history": []})
    for row in ROWS[:2]:  # the second is lost with the state
        first.log(row)
    again = logger_of("tensorboard", tmp_path, SETTINGS, {"history": ROWS[:1]})
    for row in ROWS[1:]:
        again.log(row)
    again.close()
    expected = pd.DataFrame(ROWS)
    found = logged(tmp_path / "tensorboard")[list(expected)]
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-6)


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package; gives the calls of init and of log."""
    runs, rows = [], []

    def init(**given):
        runs.append(given)
        log = lambda row, step: rows.append((step, row))  # noqa: E731
        return types.SimpleNamespace(log=log, finish=lambda: rows.append("finished"))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return runs, rows


def test_wandb_continues_the_run_of_the_state(tmp_path, wandb):
    runs, rows = wandb
    state = {"history": ROWS[:1]}
    WandbLogger(tmp_path / "demo/klassify/tcn", SETTINGS, state).log(ROWS[1])
    assert [row for _, row in rows] == ROWS[:2]  # a run that begins late has what was before
    state["history"] = ROWS[:2]
    again = logger_of("wandb", tmp_path / "demo/klassify/tcn", SETTINGS, state)
    again.log(ROWS[2])
    again.close()
    assert rows[2:] == [(3, ROWS[2]), "finished"]
    assert runs[0] == runs[1] and runs[0]["id"] == state[RUN] and runs[0]["resume"] == "allow"
    assert runs[0]["config"] == SETTINGS and runs[0]["group"] == "demo/klassify"


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_without_its_package_is_refused(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("lightning_fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning_fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    with pytest.raises(KlassifyError, match=f"needs the package {name}") as caught:
        check_logger(name)
    assert f"pip install 'klassify[{name}]'" in caught.value.fix
    check_logger("none")


def test_the_logger_is_not_part_of_a_system(tmp_path):
    (tmp_path / "tcn.yaml").write_text(
        "model: {class_path: klassify.models.tcn.TCN}\n"
        "data: {class_path: klassify.data.mouth.MouthFeatures}\n"
    )
    plain = load_experiment(tmp_path / "tcn.yaml")
    other = load_experiment(tmp_path / "tcn.yaml", ["train.logger=wandb"])
    assert plain.resolved == other.resolved and other.train.logger == "wandb"
    assert TrainSettings().logger == "none"
