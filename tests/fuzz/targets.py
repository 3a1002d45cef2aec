"""Readers of untrusted files, each with intact files whose broken versions it gets."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from videos import gray, picture, sound, write_media

from klassify import cli
from klassify.corpus.encode import write_clip
from klassify.lists import data_list
from klassify.media import decoder, info
from klassify.media.container import MediaError
from klassify.submission import check, verdict
from klassify.systems import base, system
from klassify.systems.detector import read_detector

FILES = ["a.mp4", "sub/b.mp4", "é c.mp4"]


@dataclasses.dataclass(frozen=True)
class Target:
    """sound: writes files and returns them; run: reads a broken one. text: how it is broken."""

    name: str
    sound: Callable[[Path], list[Path]]
    run: Callable[[Path], object]
    text: bool = False


def _clips(folder: Path) -> list[Path]:
    images = gray(range(0, 120, 10))
    wave = np.random.default_rng(0).normal(0, 0.1, 7680).astype(np.float32)
    write_clip(folder / "plain.mp4", images, wave, 30, 48_000)
    many = sound(np.zeros((8, 9600)), rate=96_000, codec="pcm_s16le", layout="7.1")
    tracks = {
        "slow.mp4": picture(images, codec="libx264", rate=1),
        "fast.mkv": picture(images, codec="libx264", rate=240),
        "deep.mp4": picture(
            images, codec="libx264", rate=Fraction(30000, 1001), pixels="yuv420p10le"
        ),
        "old.avi": picture(images),
        "sound.mkv": many,
    }
    return [folder / "plain.mp4", *(write_media(folder / n, track) for n, track in tracks.items())]


def _decode(path: Path) -> None:
    info.probe(path)
    with contextlib.suppress(MediaError):
        decoder.read_audio(path)
    n = sum(1 for _ in decoder.iter_frames(path)) if path.name != "sound.mkv" else 0
    assert n <= decoder.GRID_FPS * decoder.MAX_SECONDS


def _metadata(folder: Path) -> list[Path]:
    rows = [
        {
            "file": name,
            "original": None if k == 0 else FILES[0],
            "split": "train",
            "modify_type": "real" if k == 0 else "both_modified",
            "audio_model": "a",
            "video_model": "v",
            "fake_segments": [[0.1, 0.52]] * (k > 0),
            "audio_fake_segments": [[0.1, 0.5]] * (k > 0),
            "visual_fake_segments": [[0.12, 0.52]] * (k > 0),
            "video_frames": 25,
            "audio_frames": 16000,
        }
        for k, name in enumerate(FILES)
    ]
    (folder / "train_metadata.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (folder / "val_files.txt").write_text("\n".join(FILES) + "\n", encoding="utf-8")
    return [folder / "train_metadata.json", folder / "val_files.txt"]


def _make_lists(path: Path) -> None:
    folders = ["--root", str(path.parent), "--out", str(path.parent / "out")]
    _cli("lists", "--data", "avdeepfake1mpp", *folders, "--probe", "none")


def _cli(*arguments: str) -> None:
    """A command must end with a status, and with words to the user where it fails."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = cli.main(list(arguments))
    assert status in (0, 1, 2), status
    assert status != 2 or said.getvalue().strip(), "it failed without a word"


def _list(folder: Path) -> list[Path]:
    segments = ["[]", "[[0.1,0.5]]", "[[0.1,0.2],[0.4,0.8]]"]
    lengths = {"n_frames": 25, "fps": 25.0, "n_samples": 16000, "duration": 1.0}
    kinds = {"modify_type": ["real", "audio_modified", "both_modified"], "source": list("aab")}
    columns = ("fake_segments", "audio_fake_segments", "visual_fake_segments")
    table = pd.DataFrame({"file": FILES, **lengths, **kinds, **dict.fromkeys(columns, segments)})
    data_list.write_list(folder / "train.tsv", table)
    return [folder / "train.tsv"]


def _predictions(folder: Path) -> list[Path]:
    text, answers = folder / "prediction.txt", folder / "prediction.json"
    text.write_text("".join(f"{name};0.5\n" for name in FILES), encoding="utf-8")
    segments = [[0.9, 0.1, 0.5], [0.2, 0.5, 0.8]]
    answers.write_text(json.dumps(dict.fromkeys(FILES, segments)), encoding="utf-8")
    return [text, answers]


def _archive(folder: Path) -> list[Path]:
    with zipfile.ZipFile(folder / "submission.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _predictions(folder):
            archive.write(path, path.name)
    return [folder / "submission.zip"]


def _check(path: Path) -> None:
    check.check(path, verdict.Listed(FILES, "val.tsv", None, first_line=2))


CONFIG = """
model:
  class_path: klassify.models.tcn.TCN
  init_args: {hidden: 8}
data:
  class_path: klassify.data.mouth.MouthFeatures
  init_args: {window: 16, stride: 8}
train: {epochs: 2, batch_size: 4, lr: 0.001}
"""


def _config(folder: Path) -> list[Path]:
    (folder / "tcn.yaml").write_text(CONFIG, encoding="utf-8")
    return [folder / "tcn.yaml"]


def _load_config(path: Path) -> None:
    from klassify.systems.experiment import load_experiment

    load_experiment(path)


SYSTEM = """
name: maxout
kind: fusion
modality: both
scale: probability
supervision: clip
inputs: [a, b]
parameters: {rule: max}
"""


def _system(folder: Path) -> list[Path]:
    (folder / "system.yaml").write_text(SYSTEM, encoding="utf-8")
    return [folder / "system.yaml"]


def _detector(folder: Path) -> list[Path]:
    _systems(folder)
    graph = {"tcn": [], "maxout": ["tcn"], "sub/merged": ["tcn"]}
    entry = {"kind": "model", "modality": "visual", "supervision": "clip"}
    entries = {
        name: entry | {"inputs": inputs, "hash": system.system_hash(folder / name)}
        for name, inputs in graph.items()
    }
    content = {"answers": {"task1": "maxout", "task2": "sub/merged"}, "systems": entries}
    (folder / "detector.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return [folder / "detector.yaml"]


def _systems(folder: Path) -> None:
    for name in ("tcn", "maxout", "sub/merged"):
        base.write_system(folder / name, base.System(name, "model", "visual", "clip", "log_odds"))


def _read_detector(path: Path) -> None:
    _systems(path.parent)
    read_detector(path)


def _weights(folder: Path) -> list[Path]:
    import torch
    from safetensors.torch import save_file

    state = {"layer.weight": torch.ones(4, 3), "layer.bias": torch.zeros(4)}
    torch.save({"model": state, "epoch": 3}, folder / "weights.pt")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "weights.safetensors")
    return [folder / "weights.pt", folder / "old.pth", folder / "weights.safetensors"]


def _read_weights(path: Path) -> None:
    from klassify.models.weights.checkpoint import read_checkpoint
    from klassify.models.weights.safetensors_file import read_tensors

    read_tensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)


TARGETS = (
    Target("media", _clips, _decode),
    Target("metadata", _metadata, _make_lists, text=True),
    Target("list", _list, lambda path: data_list.read_list(path, segments=True), text=True),
    Target("predictions", _predictions, _check, text=True),
    Target("archive", _archive, _check),
    Target("config", _config, _load_config, text=True),
    Target("system", _system, lambda path: base.read_fields(path.parent), text=True),
    Target("detector", _detector, _read_detector, text=True),
    Target("weights", _weights, _read_weights),
)
