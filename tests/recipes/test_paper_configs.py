"""conf/paper of all recipes: inheritance, the sets of augmentations, and two batches of every
system.

The pretrained weights are not there in tests: overrides put a random front end of fewer layers in
their place. The fast form is narrow too; the slow one has the published widths.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from commands import klassify
from places import ROOT, configs
from small_data import SmallData, make_split
from videos import noise, write_lossless

from klassify import parts
from klassify.augmentation import sets
from klassify.errors import KlassifyError
from klassify.features import shards
from klassify.features.avhubert import AVHubertRow
from klassify.features.embedding import EmbeddingRow
from klassify.features.lmm.kind import LMMRow
from klassify.features.mouth.kind import MouthRow
from klassify.lists import data_list
from klassify.models.frontends.ssl import ARCHITECTURES
from klassify.systems import imported
from klassify.systems.experiment import load_experiment

AUDIO = ROOT / "recipes/klassify/conf/paper"
N_FRAMES = 14


def name_of(path: Path) -> str:
    return "/".join(path.parts[-4:-3] + path.parts[-1:])


@pytest.mark.parametrize("set", ["rtpg", "bp", "codecs", "all"])
def test_augmented_rows_differ_only_in_their_set(set):
    with torch.device("meta"):
        plain, row = (load_experiment(AUDIO / f"w2v_aasist{end}.yaml") for end in ("", f"_{set}"))
    assert row.data.augment.stages == list(sets.SETS[set])
    assert {p for p, _ in row.data.augment.stages} == {0.3}
    assert plain.data.augment is None
    row.resolved["data"]["init_args"]["augment"] = None
    assert row.resolved == plain.resolved


def test_rows_of_the_tcn_differ_in_features_alone():
    rows = [load_experiment(AUDIO / f"{name}.yaml") for name in ("tcn_12", "tcn_123", "tcn")]
    assert [len(row.data.channels) for row in rows] == [4, 6, 16]
    for row in rows:
        assert row.resolved["model"]["init_args"].pop("in_channels") == len(row.data.channels)
        del row.resolved["data"]["init_args"]["groups"]
    assert rows[0].resolved == rows[1].resolved == rows[2].resolved


def test_systems_that_differ_in_weights_alone():
    with torch.device("meta"):
        for one, other in (
            ("bam", "bam_wavlm"),
            ("w2v_aasist_baseline_1", "w2v_aasist_baseline_2"),
        ):
            assert (
                load_experiment(AUDIO / f"{one}.yaml").resolved
                == load_experiment(AUDIO / f"{other}.yaml").resolved
            )


@pytest.mark.parametrize("number", [1, 2])
def test_baselines_read_released_weights_as_their_authors_do(number):
    config = AUDIO / f"w2v_aasist_baseline_{number}.yaml"
    with torch.device("meta"):
        ours = imported.released_experiment("ssl-anti-spoofing", config).model
        released = imported.released_model("ssl-anti-spoofing", "xlsr300m")
    shapes = [
        {key: value.shape for key, value in model.state_dict().items()}
        for model in (ours, released)
    ]
    assert shapes[0] == shapes[1]
    assert ours.frontend.normalize_input is released.frontend.normalize_input is False


def write(folder: Path, **configs: dict) -> Path:
    for name, content in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder


TCN = {
    "model": {"class_path": "klassify.models.tcn.TCN", "init_args": {"in_channels": 4}},
    "data": {"class_path": "klassify.data.mouth.MouthFeatures", "init_args": {"groups": [1, 2]}},
    "train": {"epochs": 3, "lr": 0.5},
}


def test_a_config_changes_its_base_key_by_key(tmp_path):
    change = {"base": "tcn.yaml", "train": {"lr": 0.25}, "data": {"init_args": {"window": 128}}}
    write(tmp_path, tcn=TCN, row=change, grandchild={"base": "row.yaml", "train": {"epochs": 7}})
    experiment = load_experiment(tmp_path / "grandchild.yaml", ["train.patience=2"])
    assert (experiment.train.epochs, experiment.train.lr, experiment.train.patience) == (7, 0.25, 2)
    assert experiment.data.window == 128 and len(experiment.data.channels) == 4
    assert set(experiment.resolved) == {"model", "data", "train"}


def test_arguments_do_not_outlive_their_class(tmp_path):
    row = {"base": "tcn.yaml", "data": {"class_path": "klassify.data.audio.AudioClips"}}
    write(tmp_path, tcn=TCN, row=row)
    assert load_experiment(tmp_path / "row.yaml").data.modality == "audio"  # which knows no groups


@pytest.mark.parametrize(
    ("base", "named"),
    [
        ("../tcn.yaml", "same folder"),
        ("/tcn.yaml", "same folder"),
        ("", "same folder"),
        (3, "same folder"),
        ([], "same folder"),
        ("row.yaml", "own base"),
        ("gone.yaml", "gone.yaml"),
        ("loop.yaml", "own base"),
    ],
)
def test_bases_that_cannot_be_are_refused(tmp_path, base, named):
    write(tmp_path, row={**TCN, "base": base}, loop={"base": "row.yaml"})
    with pytest.raises(KlassifyError, match=named):
        load_experiment(tmp_path / "row.yaml")


def test_unknown_keys_of_a_base_are_refused(tmp_path):
    write(tmp_path, tcn=TCN | {"trane": {"lr": 1}}, row={"base": "tcn.yaml"})
    with pytest.raises(KlassifyError, match="trane"):
        load_experiment(tmp_path / "row.yaml")


@dataclasses.dataclass(frozen=True)
class TwoKinds:
    sound: SmallData
    pictures: SmallData


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TwoKinds:
    """One original in four versions a split: sounds with mouth features, videos with LMM ones."""
    root = tmp_path_factory.mktemp("paper")
    places = []
    for kind in ("sound", "pictures"):
        folder = root / kind
        places.append(SmallData(folder / "lists", folder / "media", folder / "features"))
        for number, split in enumerate(("train", "val")):
            if kind == "sound":
                make_split(folder, split, 1, seed=number)
                make_features(places[-1], split)
            else:
                make_pictures(folder, split, seed=number)
    return TwoKinds(*places)


def make_features(data: SmallData, split: str) -> None:
    """AV-HuBERT features and embeddings of noise for each clip of a list."""
    rng = np.random.default_rng(0)
    files = data_list.read_list(data.lists / f"{split}.tsv")["file"]
    rows = [AVHubertRow(f, 25.0, *rng.normal(size=(2, 20, 768)).astype(np.float16)) for f in files]
    write_shard(data.features / "avhubert" / split, rows, {"kind": "avhubert"})
    rates = {"audio_frames": 50, "audio_mil": 50, "lips_frames": 25, "lips_mil": 25}
    for encoder, rate in rates.items():
        settings = {"kind": "embedding", "hop_s": 1 / rate, "offset_s": 0.0, "dim": 128}
        rows = [
            EmbeddingRow(f, rate, rng.normal(size=(rate, 128)), np.ones(rate, bool)) for f in files
        ]
        write_shard(data.features / f"embedding-{encoder}" / split, rows, settings)


def write_shard(folder: Path, rows: list, settings: dict) -> None:
    shards.write_part(folder, parts.Place(1, 1, 0, 1), rows, settings, "inputs")


def make_pictures(root: Path, split: str, seed: int) -> None:
    """A real and a fake video of noise, with a face in each frame and LMM features of the published
    sizes.
    """
    rng = np.random.default_rng(seed)
    rows, shard, mouths = [], [], []
    (root / "media" / split).mkdir(parents=True)
    for index, fake in enumerate(("[]", "[[0.2,0.4]]")):
        file = f"{split} {index}.mkv"
        write_lossless(
            root / "media" / split / file, noise(N_FRAMES, 64, 64, seed=10 * seed + index)
        )
        row = {"file": file, "n_frames": N_FRAMES, "fps": 25.0, "n_samples": 0, "source": file}
        row |= {"duration": N_FRAMES / 25, "modify_type": "visual_modified" if index else "real"}
        row |= {"fake_segments": fake, "audio_fake_segments": "[]", "visual_fake_segments": fake}
        rows.append(row)
        mouths.append(MouthRow(file, 25.0, np.zeros((N_FRAMES, 8)), np.ones(N_FRAMES, bool)))
        visual, textual = rng.normal(size=(1, 1024)), rng.normal(size=(1, 64, 4096))
        vectors = (visual.astype(np.float16), textual.astype(np.float16))
        shard.append(LMMRow(file, 25.0, N_FRAMES, np.zeros(1, np.int32), *vectors, ["text"]))
    data_list.write_list(root / "lists" / f"{split}.tsv", pd.DataFrame(rows))
    settings = {"kind": "lmm", "visual_dim": 1024, "textual_dim": 4096, "new_tokens": 64}
    write_shard(root / "features" / "lmm" / split, shard, settings)
    write_shard(root / "features" / "mouth" / split, mouths, {"kind": "mouth", "version": 3})


SPEECH = ("w2v_aasist", "bam", "ps", "cfprf", "audio_frames", "audio_mil", "splice_audio")


def overrides(path: Path, *, narrow: bool) -> list[str]:
    """What makes a config quick without pretrained weights: few layers, few short windows."""
    given = {
        "data.init_args.train_split": "train",
        "data.init_args.val_split": "val",
        "train.batch_size": 2,
    }
    name = path.stem
    if name.startswith(SPEECH):
        given |= speech_model(path, 128 if name.startswith("ps") else 64, narrow=narrow)
        # what has no bf16 emulates it slowly
        given["train.precision"] = "bf16-mixed" if narrow else "32-true"
    if name.startswith(("w2v_aasist", "bam")):
        given |= {"data.init_args.window": 16_000, "data.init_args.stride": 6_400}
    if name.startswith(("audio_frames", "splice_audio")):
        given |= {"data.init_args.window": 50, "data.init_args.stride": 25}
    if name == "audio_mil":
        given |= {"data.init_args.window": 16_000, "data.init_args.stride": 8_000}
    if name == "av_spans" and narrow:
        given["model.init_args.dim"] = 16
    if "lips" in name:
        given |= {
            "model.init_args.encoder.init_args.architecture": {
                "name": "raven-large",
                "layers": 7,
                **({"channels": [4, 4, 8], "dim": 16, "heads": 2, "hidden": 32} if narrow else {}),
            },
            "model.init_args.encoder.init_args.source": None,
            "data.init_args.window": 25,
            "data.init_args.stride": 25,
        }
    if name == "cfprf":
        given["data.init_args.crop"] = 25
    if name.startswith("auvire") and narrow:
        given["model.init_args.d_model"] = 8
    if name.startswith("bam") and narrow:
        given["model.init_args.local_channels"] = 4
    if name.startswith(("visual", "vqvae")):
        given |= {"data.init_args.size": 32} | (
            {"data.init_args.crop": 16} if name == "vqvae" else {}
        )
    if name.startswith("visual"):
        shape = {"size": 32, "depth": 1 if narrow else 2, "layers": [1, 1, 1], "pretrained": None}
        shape |= (
            {"dim": 24, "heads": 3, "channels": [16, 32, 48], "stem_width": 8} if narrow else {}
        )
        given |= {
            f"model.init_args.spatiotemporal.init_args.{key}": value for key, value in shape.items()
        }
        given |= {"model.init_args.vqvae.init_args.dim": 8} if narrow else {}
    if name == "visual_clip" and not narrow:
        given["data.init_args.windows_per_clip"] = 2
    if name == "vqvae" and narrow:
        given["model.init_args.dim"] = 8
    return [f"{key}={json.dumps(value)}" for key, value in given.items()]


def speech_model(path: Path, width: int, *, narrow: bool) -> dict:
    """Two layers of the front end that a config names, with random weights."""
    with torch.device("meta"):
        init_args = load_experiment(path).resolved["model"]["init_args"]["frontend"]["init_args"]
    shape = ARCHITECTURES[init_args["architecture"]] | {"num_hidden_layers": 2}
    if narrow:
        shape |= {
            "hidden_size": width,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "conv_dim": [16] * 7,
        }
    at = "model.init_args.frontend.init_args."
    return {f"{at}architecture": shape, f"{at}source": None}


def fast_dev_run(path: Path, data: TwoKinds, out: Path, *, narrow: bool) -> None:
    sources = data.pictures if path.stem.startswith(("visual", "vqvae")) else data.sound
    more = overrides(path, narrow=narrow)
    command = ["train", path, *more, "--out", out, *sources.arguments, "--accelerator", "cpu"]
    assert klassify(*command, "--fast-dev-run") == 0
    assert not out.exists()


# as bam, w2v_aasist_baseline_1 and w2v_aasist_all but for the weights, or fewer augmentations
SAME = (
    "bam_wavlm",
    "w2v_aasist_baseline_2",
    *(f"w2v_aasist_{a}" for a in ("rtpg", "bp", "codecs")),
)
NARROW = [path for path in configs("paper") if path.stem not in SAME]


@pytest.mark.parametrize("path", NARROW, ids=name_of)
def test_two_batches_of_a_narrow_form(path, data, tmp_path, capsys):
    fast_dev_run(path, data, tmp_path / "out", narrow=True)
    assert "two batches" in capsys.readouterr().out


# as wide as another config, whose data, labels, schedule or frozen layers differ
AS_WIDE = (
    *("fused/w2v_aasist.yaml", "klassify/w2v_aasist_all.yaml", "fused/auvire_lavdf.yaml"),
    *("fused/splice_audio.yaml", "fused/splice_lips.yaml", "multibranch/visual_constant.yaml"),
    *("multibranch/ps_step.yaml", "multibranch/ps_clip.yaml"),
)
# the narrow form of a TCN is the published one
WIDE = [path for path in NARROW if name_of(path) not in AS_WIDE and not path.stem.startswith("tcn")]


@pytest.mark.slow
@pytest.mark.parametrize("path", WIDE, ids=name_of)
def test_two_batches_at_the_published_width(path, data, tmp_path, capsys):
    fast_dev_run(path, data, tmp_path / "out", narrow=False)
    assert "two batches" in capsys.readouterr().out
