"""What is tried: readers of the toolkit, each with sound files whose broken versions it gets."""

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

from klassify import cli
from klassify.corpus.encode import write_clip
from klassify.errors import KlassifyError
from klassify.features import audio_cache, parts
from klassify.features.audio_cache import AudioStore
from klassify.features.mouth import kind
from klassify.features.shards import FeatureStore, write_part
from klassify.lists import data_list
from klassify.localisation import frame_scores
from klassify.media import decoder, info
from klassify.media.container import MediaError
from klassify.scores import score_file
from klassify.scores.frame_file import FrameFile
from klassify.submission import check, verdict
from klassify.systems import system
from klassify.systems.detector import read_detector

FILES = ["a.mp4", "sub/b.mp4", "é c.mp4"]


@dataclasses.dataclass(frozen=True)
class Target:
    """sound: writes files into a folder and returns them; run: reads a broken one. text: how it is
    broken.

    together: the other files lie beside the broken one.
    """

    name: str
    sound: Callable[[Path], list[Path]]
    run: Callable[[Path], object]
    text: bool = False
    together: bool = False


# --------------------------------------------------------------------------------------------------
# media


def _clips(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    images = [np.full((48, 64, 3), 10 * k, np.uint8) for k in range(12)]
    wave = rng.normal(0, 0.1, 7680).astype(np.float32)
    write_clip(folder / "plain.mp4", images, wave, 30, 48_000)
    kinds = (
        ("slow.mp4", "libx264", 1, "yuv420p"),
        ("fast.mkv", "libx264", 240, "yuv420p"),
        ("deep.mp4", "libx264", Fraction(30000, 1001), "yuv420p10le"),
        ("old.avi", "mpeg4", 25, "yuv420p"),
    )
    for name, codec, rate, pixels in kinds:
        _silent(folder / name, images, codec, rate, pixels)
    _many_channels(folder / "sound.mkv")
    return [folder / "plain.mp4", *(folder / name for name, *_ in kinds), folder / "sound.mkv"]


def _silent(path: Path, images: list[np.ndarray], codec: str, rate, pixels: str) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pixels
        for image in images:
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
                )
            )
        container.mux(stream.encode())


def _many_channels(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=96_000, layout="7.1")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 8 * 9600), np.int16), format="s16", layout="7.1"
        )
        frame.sample_rate, frame.pts = 96_000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _decode(path: Path) -> None:
    info.probe(path)
    with contextlib.suppress(MediaError):
        decoder.read_audio(path)
    n = sum(1 for _ in decoder.iter_frames(path)) if path.name != "sound.mkv" else 0
    assert n <= decoder.GRID_FPS * decoder.MAX_SECONDS


# --------------------------------------------------------------------------------------------------
# text


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
    command = [
        "lists",
        "--data",
        "avdeepfake1mpp",
        "--root",
        str(path.parent),
        "--out",
        str(path.parent / "out"),
    ]
    _cli(*command, "--probe", "none")


def _cli(*arguments: str) -> None:
    """A command must end with a status, and with words to the user where it fails."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = cli.main(list(arguments))
    assert status in (0, 1, 2), status
    assert status != 2 or said.getvalue().strip(), "it failed without a word"


def _list(folder: Path) -> list[Path]:
    segments = ["[]", "[[0.1,0.5]]", "[[0.1,0.2],[0.4,0.8]]"]
    data_list.write_list(
        folder / "train.tsv",
        pd.DataFrame(
            {
                "file": FILES,
                "n_frames": 25,
                "fps": 25.0,
                "n_samples": 16000,
                "duration": 1.0,
                "modify_type": ["real", "audio_modified", "both_modified"],
                "source": ["a", "a", "b"],
                "fake_segments": segments,
                "audio_fake_segments": segments,
                "visual_fake_segments": segments,
            }
        ),
    )
    return [folder / "train.tsv"]


def _scores(folder: Path) -> list[Path]:
    header = score_file.Header("tcn", "val", "clips", "log_odds", "clip", {"list": "x"})
    table = pd.DataFrame(
        {
            "file": FILES,
            "start": 0.0,
            "end": 1.0,
            "score": [0.1, np.nan, 3.0],
            "reason": ["", "no face", ""],
        }
    )
    score_file.write_scores(folder / "val.clips.tsv", table, header)
    header = score_file.Header("bam", "val", "segments", "probability", "segment", {})
    table = pd.DataFrame(
        {
            "file": FILES,
            "start": 0.1,
            "end": 0.5,
            "score": 0.5,
            "modality": "audio",
            "method": "grouping",
        }
    )
    score_file.write_scores(folder / "val.segments.tsv", table, header)
    return [folder / "val.clips.tsv", folder / "val.segments.tsv"]


def _frame_scores(folder: Path) -> list[Path]:
    header = score_file.Header("bam", "val", "frames", "log_odds", "segment", {})
    starts = np.arange(50) * 0.04
    table = pd.DataFrame(
        {"file": FILES[0], "start": starts, "end": starts + 0.04, "score": np.linspace(-1, 1, 50)}
    )
    score_file.write_scores(folder / "val.frames.parquet", table, header)
    return [folder / "val.frames.parquet"]


def _read_frame_scores(path: Path) -> None:
    for read in (
        lambda: FrameFile(path).read(FILES, ["score"]),
        lambda: list(frame_scores.read_frames(path)),
    ):
        with contextlib.suppress(KlassifyError):  # one reader may see what another has no need of
            read()
    score_file.read_scores(path)


def _predictions(folder: Path) -> list[Path]:
    (folder / "prediction.txt").write_text(
        "".join(f"{name};0.5\n" for name in FILES), encoding="utf-8"
    )
    answers = {name: [[0.9, 0.1, 0.5], [0.2, 0.5, 0.8]] for name in FILES}
    (folder / "prediction.json").write_text(json.dumps(answers), encoding="utf-8")
    return [folder / "prediction.txt", folder / "prediction.json"]


def _archive(folder: Path) -> list[Path]:
    with zipfile.ZipFile(folder / "submission.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _predictions(folder):
            archive.write(path, path.name)
    return [folder / "submission.zip"]


def _check(path: Path) -> None:
    check.check(path, verdict.Listed(FILES, "val.tsv", None, first_line=2))


def _config(folder: Path) -> list[Path]:
    text = (
        "model:\n  class_path: klassify.models.tcn.TCN\n  init_args:\n    hidden: 8\ndata:\n "
        " class_path: klassify.data.mouth.MouthFeatures\n  init_args:\n    window: 16\n    stride:"
        " 8\ntrain:\n  epochs: 2\n  batch_size: 4\n  lr: 0.001\n"
    )
    (folder / "tcn.yaml").write_text(text, encoding="utf-8")
    return [folder / "tcn.yaml"]


def _load_config(path: Path) -> None:
    from klassify.systems.experiment import load_experiment

    load_experiment(path)


def _system(folder: Path) -> list[Path]:
    lines = (
        "name: maxout",
        "kind: fusion",
        "modality: both",
        "scale: probability",
        "supervision: clip",
        "inputs: [a, b]",
        "parameters: {rule: max}",
        "",
    )
    (folder / "system.yaml").write_text("\n".join(lines), encoding="utf-8")
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
        system.write_system(
            folder / name, system.System(name, "model", "visual", "clip", "log_odds")
        )


def _read_detector(path: Path) -> None:
    _systems(path.parent)
    read_detector(path)


# --------------------------------------------------------------------------------------------------
# binary


def _shard(folder: Path) -> list[Path]:
    rows = [
        kind.MouthRow(name, 25.0, np.ones((30, 8), np.float32), np.ones(30, bool)) for name in FILES
    ]
    write_part(folder / "mouth", parts.Place(1, 1, 0, 1), rows, {"made": "here"}, "x")
    return sorted((folder / "mouth").iterdir())


def _read_shard(path: Path) -> None:
    shards = FeatureStore(path.parent)
    for name in FILES:
        _ = shards[name]


def _audio_cache(folder: Path) -> list[Path]:
    rows = [audio_cache.AudioRow(name, np.arange(800, dtype="<i2")) for name in FILES]
    index = audio_cache.write_part(
        folder / "audio",
        parts.Place(1, 1, 0, 1),
        rows,
        {"kind": "audio", **audio_cache.FORMAT},
        "x",
    )
    return [index, audio_cache.sound_path(index)]


def _read_audio_cache(path: Path) -> None:
    cache = AudioStore(path.parent)
    for name in FILES:
        if (clip := cache.get(name)) is not None:
            _ = clip[:]


def _weights(folder: Path) -> list[Path]:
    import torch
    from safetensors.torch import save_file

    state = {"layer.weight": torch.ones(4, 3), "layer.bias": torch.zeros(4)}
    torch.save({"model": state, "epoch": 3}, folder / "weights.pt")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "weights.safetensors")
    return [folder / "weights.pt", folder / "old.pth", folder / "weights.safetensors"]


def _read_weights(path: Path) -> None:
    from klassify.models.weights.load import read_checkpoint, read_tensors

    read_tensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)


TARGETS = (
    Target("media", _clips, _decode),
    Target("metadata", _metadata, _make_lists, text=True),
    Target("list", _list, lambda path: data_list.read_list(path, segments=True), text=True),
    Target("scores", _scores, score_file.read_scores, text=True),
    Target("frame scores", _frame_scores, _read_frame_scores),
    Target("predictions", _predictions, _check, text=True),
    Target("archive", _archive, _check),
    Target("config", _config, _load_config, text=True),
    Target("system", _system, lambda path: system.read_fields(path.parent), text=True),
    Target("detector", _detector, _read_detector, text=True),
    Target("shard", _shard, _read_shard),
    Target("audio cache", _audio_cache, _read_audio_cache, together=True),
    Target("weights", _weights, _read_weights),
)
