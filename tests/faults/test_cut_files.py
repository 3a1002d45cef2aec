"""Files that end too early, as a broken copy leaves them: whatever reads them says so and names
them.

Our own files are whole or absent (klassify.files), but copies between machines are not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from commands import klassify

from klassify import failures
from klassify.errors import KlassifyError
from klassify.failures import Failure
from klassify.features import audio_cache
from klassify.features.audio_cache import AudioStore
from klassify.features.mouth.kind import MouthRow
from klassify.features.shards import FeatureStore, write_part
from klassify.files import read_json, write_json, write_text
from klassify.lists import data_list
from klassify.localisation import localise
from klassify.localisation.frame_scores import read_frames
from klassify.models.weights.checkpoint import read_checkpoint
from klassify.models.weights.safetensors_file import read_tensors, write_tensors
from klassify.parts import Place
from klassify.prediction import predict
from klassify.scores import score_file
from klassify.scores.chunks import Layout, Parts
from klassify.scores.frame_file import FrameFile
from klassify.submission import ledger, manifest, package
from klassify.systems.base import System, write_system
from klassify.systems.system import load_system
from klassify.training.ranks import Ranks
from klassify.training.state import load, save

FILES = ["a/é.mp4", "b.mp4", "c.mp4"]
CUTS = 300  # of each kind
FEWER = {"published weights": 30}  # each is read in a process of its own
PLACE = Place(1, 1, 0, 1)


class Kind(NamedTuple):
    """write: makes and returns the file. read: all that there is to read of it."""

    name: str
    write: Callable[[Path], Path]
    read: Callable[[Path], object]


def _header(kind: str) -> score_file.Header:
    return score_file.Header("s", "testA", kind, "probability", "clip", {"list": "x"})


def _scores(folder: Path, kind: str) -> Path:
    table = pd.DataFrame({"file": FILES, "start": 0.0, "end": 4.0, "score": [0.125, 0.25, 0.5]})
    extra = {"segments": {"modality": "audio", "method": "threshold"}, "clips": {"reason": ""}}
    path = score_file.score_path(folder, "testA", kind)
    score_file.write_scores(path, table.assign(**extra.get(kind, {})), _header(kind))
    return path


def _frames(folder: Path) -> Path:
    k = np.tile(np.arange(50), len(FILES))
    table = pd.DataFrame(
        {"file": np.repeat(FILES, 50), "start": k * 0.04, "end": (k + 1) * 0.04, "score": 0.5}
    )
    path = score_file.score_path(folder, "testA", "frames")
    score_file.write_blocks(path, [table[:50], table[50:]], _header("frames"))
    return path


def _read_frames(path: Path) -> None:
    FrameFile(path).read(FILES, ["score"])


def _read_part_of_scores(path: Path) -> None:
    Parts.found(path.parents[2], "testA").read(0)


def _part_of_scores(folder: Path) -> Path:
    parts = Parts(folder / "scores/testA.parts", _header("windows"), Layout(3, 3), "max")
    rows = pd.DataFrame({"file": FILES, "start": 0.0, "end": 4.0, "score": 0.5})
    parts.write(0, rows, pd.DataFrame({"file": FILES, "duration": 4.0, "reason": ""}))
    return parts.path(0)


def _failures(folder: Path) -> Path:
    return failures.write_failures(
        folder / "testA.failures.tsv",
        [Failure("a.mp4", "score", "no audio"), Failure("b.mp4", "score", "no face")],
    )


def _shard(folder: Path) -> Path:
    rows = [MouthRow(file, 25.0, np.ones((40, 8), np.float32), np.ones(40, bool)) for file in FILES]
    return write_part(folder, PLACE, rows, {"made": "here"}, "inputs")


def _read_shard(path: Path) -> None:
    shards = FeatureStore(path.parent)
    assert [shards[file].features.shape for file in shards] == [(40, 8)] * 3


def _audio(folder: Path) -> Path:
    rows = [audio_cache.AudioRow(file, np.arange(3200, dtype="<i2")) for file in FILES]
    return audio_cache.write_part(
        folder, PLACE, rows, {"kind": "audio", **audio_cache.FORMAT}, "inputs"
    )


def _read_audio(path: Path) -> None:
    cache = AudioStore(path.parent)
    assert [len(cache.get(file)[:]) for file in FILES] == [3200] * 3


def _list(folder: Path) -> Path:
    table = pd.DataFrame(
        {"file": FILES, "n_frames": 100, "fps": 25.0, "duration": 4.125, "modify_type": "real"}
    )
    data_list.write_list(folder / "val.tsv", table)
    return folder / "val.tsv"


def _weights(folder: Path) -> Path:
    state = {"weight": torch.ones(40, 30), "bias": torch.zeros(40)}
    write_tensors(state, folder / "model.safetensors")
    return folder / "model.safetensors"


def _torch_file(folder: Path) -> Path:
    folder.mkdir()
    torch.save({"model": {"weight": torch.ones(40, 30)}}, folder / "published.pt")
    return folder / "published.pt"


def _state(folder: Path) -> Path:
    state = {"epoch": 1, "batch": 2, "failed": {}}
    save(folder / "last.pt", state, {"model": torch.nn.Linear(30, 40)}, Ranks())
    return folder / "last.pt"


def _read_state(path: Path) -> None:
    load(path, {"model": torch.nn.Linear(30, 40)}, Ranks())


def _system(folder: Path, name: str = "s") -> Path:
    write_system(folder / name, System(name, "model", "audio", "clip", "probability"))
    return folder / name / "system.yaml"


def _proposals(folder: Path) -> Path:
    write_text(folder / "proposals.yaml", "method: threshold\nsettings: {threshold: 0.625}\n")
    return folder / "proposals.yaml"


def _detector(folder: Path) -> Path:
    _system(folder, "s")
    _system(folder, "t")
    write_text(folder / "submit.yaml", "task1: s\ntask2: t\n")
    assert klassify("detector", folder, "--conf", folder / "submit.yaml") == 0
    return folder / "detector.yaml"


def _package(folder: Path) -> Path:
    system = _system(folder).parent
    _scores(system, "clips")
    package.package(
        folder / "submissions/x", _list(folder), "testA", {"task1": load_system(system)}
    )
    return folder / "submissions/x"


def _record(folder: Path) -> Path:
    write_json(folder / "settings.json", {"config": {"train": {"epochs": 3}}, "seed": 1})
    return folder / "settings.json"


KINDS = (
    Kind("clip scores", lambda folder: _scores(folder, "clips"), score_file.read_scores),
    Kind("segments", lambda folder: _scores(folder, "segments"), score_file.read_scores),
    Kind(
        "windows",
        lambda folder: _scores(folder, "windows"),
        lambda path: list(score_file.read_blocks(path, 2)),
    ),
    Kind("frame scores", _frames, score_file.read_scores),
    Kind("frame scores by name", _frames, _read_frames),
    Kind("frame scores in parts", _frames, lambda path: list(read_frames(path))),
    Kind("score part", _part_of_scores, _read_part_of_scores),
    Kind("failures", _failures, failures.read_failures),
    Kind("feature shard", _shard, _read_shard),
    Kind("audio index", _audio, _read_audio),
    Kind("audio samples", lambda folder: audio_cache.sound_path(_audio(folder)), _read_audio),
    Kind("list", _list, data_list.read_list),
    Kind("weights", _weights, read_tensors),
    Kind("published weights", _torch_file, read_checkpoint),
    Kind("training state", _state, _read_state),
    Kind("system", _system, lambda path: load_system(path.parent)),
    Kind("proposals", _proposals, localise.read_proposals),
    Kind("detector", _detector, predict.load_detector),
    Kind("manifest", lambda folder: _package(folder) / "manifest.json", manifest.read_manifest),
    Kind("record", _record, read_json),
)
# cut where a line ends, these are shorter files of the same kind; what uses them compares hashes or
# names of clips
BY_LINES = ("failures", "list", "system", "proposals")
# the end of JSON is its bracket, not the end of the line
NO_MORE_THAN_SPACE = ("manifest", "record")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_file_that_is_cut_off_is_named(kind: Kind, tmp_path):
    path = kind.write(tmp_path / "made")
    content = path.read_bytes()
    kind.read(path)
    rng = random.Random(kind.name)
    sizes = {rng.randrange(len(content)) for _ in range(FEWER.get(kind.name, CUTS))}
    for size in sorted(sizes | {0, 1, len(content) // 2, len(content) - 1}):
        if kind.name in BY_LINES and content[:size].endswith(b"\n"):
            continue
        if kind.name in NO_MORE_THAN_SPACE and not content[size:].strip():
            continue
        path.write_bytes(content[:size])
        with pytest.raises(KlassifyError) as caught:
            kind.read(path)
        assert path.stem in str(caught.value.where), f"cut at {size}: {caught.value}"


def test_scores_that_lost_rows_are_counted(tmp_path):
    path = _scores(tmp_path, "segments")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(KlassifyError, match="2 rows; its header says 3"):
        score_file.read_scores(path)
    path.write_text("".join(line for line in lines if not line.startswith("# rows=")))
    assert len(score_file.read_scores(path).table) == 3


def test_a_truncated_ledger_is_refused_or_loses_last_cells(tmp_path):
    """People edit it, so that a last line without its end is allowed; no other row ever changes."""
    book = _package(tmp_path).parent / "ledger.tsv"
    text = book.read_bytes()
    whole = ledger.read_ledger(book)
    for size in range(0, len(text), 7):
        book.write_bytes(text[:size])
        try:
            found = ledger.read_ledger(book)
        except KlassifyError as error:
            assert "ledger.tsv" in str(error.where)
        else:
            assert found.rows.keys() <= whole.rows.keys()


@pytest.mark.parametrize("name", ["submission.zip", "prediction.txt"])
def test_a_package_that_is_cut_off_is_made_again_or_refused(name, tmp_path, capsys):
    folder = _package(tmp_path)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    assert klassify("check", folder / name, "--list", tmp_path / "val.tsv") != 0
    assert name in capsys.readouterr().out


def test_the_command_line_says_it_in_words(tmp_path, capsys):
    system = _system(tmp_path).parent
    scores = _scores(system, "clips")
    command = ["package", "--task1", system, "--split", "testA", "--list", _list(tmp_path), "--out"]
    assert klassify(*command, tmp_path / "out") == 0
    scores.write_bytes(scores.read_bytes()[:-3])
    assert klassify(*command, tmp_path / "other") == 2
    said = capsys.readouterr().err
    assert "truncated" in said and f"where: {scores}" in said and "fix:" in said
    assert not list((tmp_path / "other").glob("*"))
