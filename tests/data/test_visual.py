"""Windows of frames: labels in step with pictures, scores equal to a naive path."""

from __future__ import annotations

import copy
import dataclasses
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from videos import noise, write_lossless
from visual_model import small

from klassify import parts
from klassify.data.base import Sources
from klassify.data.visual import UNSEEN, LMMFeatures, VisualClip, VisualWindows
from klassify.features import shards
from klassify.features.lmm import kind
from klassify.features.mouth.kind import MouthRow
from klassify.lists import data_list
from klassify.media import isolated, square_frames
from klassify.media.container import MediaError
from klassify.scores.inference import clip_frames, score_frames
from klassify.training.validation import validate

WINDOW = 3
PLAIN = {"size": 32, "window": WINDOW, "lmm": False, "blur": 0, "jpeg": 0, "flip": 0}
PLAIN["faces"] = False
MOUTH = {"faces": True, "face_part": (0.5, 0.75, 1.0)}


def data_of(**arguments) -> VisualWindows:
    return VisualWindows(**(PLAIN | arguments))


def clip_of(n_frames: int, lmm: LMMFeatures | None = None, side: int = 32) -> VisualClip:
    held = noise(n_frames, side, side)
    held[:, 0, 0, 0] = np.arange(n_frames)  # each frame tells its number
    return VisualClip(Path("clip"), n_frames, side, lmm=lmm, held=held)


def features(n: int, every: int = 200) -> LMMFeatures:
    rng = np.random.default_rng(n)
    visual, textual = rng.normal(size=(n, 5)), rng.normal(size=(n, 4, 7))
    return LMMFeatures(every * np.arange(n), visual.astype(np.float16), textual.astype(np.float16))


@pytest.mark.parametrize(
    "arguments", [{}, {"windows_per_clip": 4}, {"windows_per_clip": 4, "span": 9}]
)
@pytest.mark.parametrize("fake_windows", [None, 0.5])
def test_windows_carry_the_labels_of_their_own_frames(arguments, fake_windows):
    data, clip = data_of(fake_windows=fake_windows, **arguments), clip_of(40)
    fake = np.array([[0.4, 0.6]])
    seen = set()
    for seed in range(40):
        example = data.example(clip, (fake, 1), np.random.default_rng(seed))
        for start, label in zip(example["starts"].tolist(), example["label"].tolist()):
            numbers = example["frames"][start : start + WINDOW, 0, 0, 0].tolist()
            assert numbers == list(range(numbers[0], numbers[0] + WINDOW))
            assert label == any(10 <= number < 15 for number in numbers)
            seen.add(label)
    assert seen == {0, 1}


def test_a_share_of_the_windows_is_fake():
    data, fake = data_of(windows_per_clip=8, fake_windows=0.75), np.array([[0.4, 0.44]])
    labels = [
        data.example(clip_of(200), (fake, 1), np.random.default_rng(i))["label"] for i in range(50)
    ]
    assert abs(torch.stack(labels).float().mean() - 0.75) < 0.08
    none = data.example(clip_of(200), (np.zeros((0, 2)), 0), np.random.default_rng(0))["label"]
    assert not none.any()


def test_a_clip_shorter_than_a_window_repeats_its_last_frame():
    for arguments in ({}, {"span": 6, "windows_per_clip": 2}):
        example = data_of(**arguments).example(
            clip_of(2), (np.array([[0.0, 0.04]]), 1), np.random.default_rng(0)
        )
        assert example["frames"][:3, 0, 0, 0].tolist() == [0, 1, 1]
        assert example["label"].tolist() == [1] * len(example["starts"])


def test_clip_supervision_knows_no_segments(tmp_path):
    data = data_of(supervision="clip", windows_per_clip=5)
    table = pd.DataFrame({"file": ["a", "b"], "modify_type": ["real", "both_modified"]})
    targets = data.targets(table)  # a table without segment columns
    assert list(targets) == [(None, 0), (None, 1)]
    example = data.example(clip_of(20), targets[1], np.random.default_rng(0))
    assert example["label"].item() == 1 and example["frames"].shape[0] == 5 * WINDOW


def test_collate_marks_clips_without_lmm_features():
    data = data_of(windows_per_clip=2)
    rng = np.random.default_rng(0)
    none = np.zeros((0, 2))
    items = [data.example(clip_of(20, lmm), (none, 0), rng) for lmm in (features(1), None)]
    batch = data.collate(items)
    assert batch["lmm_valid"].tolist() == [True, False]
    assert batch["visual"].shape == (2, 2, 1, 5) and batch["textual"].shape == (2, 2, 4, 7)
    assert not batch["visual"][1].any()
    assert torch.isfinite(small().loss(batch))
    assert "visual" not in data.collate(items[1:])


def test_examples_depend_on_their_random_numbers_alone():
    data = data_of(size=24, frame_size=32, blur=0.5, jpeg=0.5, flip=0.5, windows_per_clip=3)
    one, two = (
        data.example(clip_of(30), (np.zeros((0, 2)), 0), np.random.default_rng(7)) for _ in range(2)
    )
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("rule", ["nearest", "floor"])
def test_lmm_features_are_those_of_a_loop(rule):
    starts = np.arange(1000)
    for sampled in ([0, 200, 400, 600, 800], [0], [0, 200, 203, 900]):
        wanted = [max(i for i, frame in enumerate(sampled) if frame <= start) for start in starts]
        if rule == "nearest":
            distances = [[abs(frame - (start + 5)) for frame in sampled] for start in starts]
            wanted = [distance.index(min(distance)) for distance in distances]
        lmm = LMMFeatures(np.array(sampled), np.empty(0), np.empty(0))
        found = data_of(window=10, lmm_index=rule)._sampled(starts, lmm)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "arguments",
    [
        {"frame_size": 16},
        {"face_part": (0.5, 0.75, 1.0)},
        {"span": 2},
        {"stride": 0},
        {"reconstruction": True, **MOUTH},
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments):
    with pytest.raises(ValueError):
        data_of(**arguments)


def test_data_and_model_agree_on_sizes():
    data_of().check_model(small())
    with pytest.raises(ValueError, match="window=4, and the model window=3"):
        data_of(window=4).check_model(small())


def naive_rows(model, clip: VisualClip, data: VisualWindows) -> np.ndarray:
    """Every window by itself, from its pixels to its frames."""
    pictures = torch.from_numpy(clip.frames(0, max(clip.n_frames, WINDOW)))
    logits = []
    starts = list(range(0, len(pictures) - WINDOW + 1, data.stride))
    for start in starts:
        window = pictures[start : start + WINDOW]
        pair = (model.pixels(part)[None] for part in (window, model.reconstruct(window)))
        lmm = [None, None]
        if clip.lmm is not None:
            at = int(np.abs(clip.lmm.frames - (start + WINDOW // 2)).argmin())
            lmm = clip.lmm.at(np.array([at])).values()
        logits.append(model(model.backbone(*pair), *lmm)[0].numpy())
    rows = []
    for k in range(clip.n_frames):
        passed = [i for i, start in enumerate(starts) if start + WINDOW // 2 <= k]
        rows.append(logits[passed[-1] if passed else 0])
    return np.array(rows)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("n_frames", [1, 2, 3, 4, 11, 40])
@torch.no_grad()
def test_scores_equal_the_naive_path(stride, n_frames):
    model, data = small().double().eval(), data_of(stride=stride)
    clip = clip_of(n_frames, features(4, every=20))
    rows = clip_frames(model, data, data.cut(clip), batch_size=5)
    np.testing.assert_allclose(rows[:, 3:], naive_rows(model, clip, data), atol=1e-9)
    np.testing.assert_allclose(rows[:, 2], rows[:, 4] - rows[:, 3])
    np.testing.assert_allclose(rows[:, 0], 0.04 * np.arange(n_frames))
    np.testing.assert_allclose(rows[:, 1], 0.04 * np.arange(1, n_frames + 1))


@torch.no_grad()
def test_stems_and_projections_run_once():
    model, passed, sampled = small().eval(), [], []
    model.backbone.patch_embed.register_forward_pre_hook(
        lambda _, inputs: passed.append(len(inputs[0]))
    )
    model.mm_proj.register_forward_pre_hook(lambda _, inputs: sampled.append(len(inputs[0])))
    data = data_of()
    clip_frames(model, data, data.cut(clip_of(70, features(4, every=20))), batch_size=5)
    assert sum(passed) == 70 and sampled == [4]


def test_interpolation_between_window_centres():
    data = data_of(stride=4, interpolate=True)
    filled = data.fill(np.array([[0.0, 4.0], [4.0, 0.0]]), np.array([0, 4]), 8)
    assert filled[:, 0].tolist() == [0, 0, 1, 2, 3, 4, 4, 4]


@torch.no_grad()
def test_larger_frames_are_scored_in_their_middle():
    model, data = small().eval(), data_of(frame_size=40)
    clip = clip_of(6, side=40)
    model.vqvae.reconstruct = lambda frames: frames  # else the borders of the reconstruction differ
    rows = clip_frames(model, data, [clip], batch_size=4)
    middle = VisualClip(Path("clip"), 6, 32, held=clip.held[:, 4:36, 4:36])
    wanted = clip_frames(model, data_of(), [middle], batch_size=4)
    np.testing.assert_allclose(rows, wanted, atol=1e-5)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Sources:
    """Four clips of noise with a face, the last damaged, LMM features but for one; one faceless."""
    root = tmp_path_factory.mktemp("pictures")
    rows, shard, mouths = [], [], []
    for index in range(4):
        file = f"{index}.mkv"
        (root / "media" / "val").mkdir(parents=True, exist_ok=True)
        write_lossless(root / "media" / "val" / file, noise(20, 48, 64, seed=index))
        fake = "[[0.2,0.4]]" if index % 2 else "[]"
        row = {"file": file, "n_frames": 20, "duration": 0.8, "source": str(index)}
        row["modify_type"] = "visual_modified" if index % 2 else "real"
        row |= {"fake_segments": fake, "audio_fake_segments": "[]", "visual_fake_segments": fake}
        rows.append(row)
        lmm = features(1)
        shard.append(kind.LMMRow(file, 25.0, 20, lmm.frames, lmm.visual, lmm.textual, ["text"]))
        seen, box = np.arange(20) != 7, np.array([16, 0, 48, 32], np.float32)
        found = np.zeros((20, 8), np.float32), seen, "", "", box * seen[:, None]
        mouths.append(MouthRow(file, 25.0, *found))
    mouths.append(MouthRow("4.mkv", 25.0, *found[:1], np.zeros(20, bool), "no face", "face"))
    rows.append(rows[0] | {"file": "4.mkv"})
    shard.append(dataclasses.replace(shard[0], file="4.mkv"))
    shard[2] = kind.LMMRow.failed("2.mkv", "features", "out of memory")
    damaged = root / "media" / "val" / "3.mkv"
    damaged.write_bytes(damaged.read_bytes()[:200])
    data_list.write_list(root / "lists" / "val.tsv", pd.DataFrame(rows))
    settings = {"kind": "lmm", "visual_dim": 5, "textual_dim": 7, "new_tokens": 4}
    for name, found, how in (("lmm", shard, settings), ("mouth", mouths, {"kind": "mouth"})):
        folder = root / "features" / name / "val"
        shards.write_part(folder, parts.Place(1, 1, 0, 1), found, how, "val")
    return Sources(root / "lists", root / "media", root / "features")


def test_score_frames_of_a_split(sources):
    data = data_of(lmm=True, frame_size=48, **MOUTH, keep_in_memory=False)
    table, reasons = score_frames(small(), data, sources, "val", progress=False, batch_size=4)
    assert table.columns.tolist() == ["file", "start", "end", "score", "real", "fake"]
    assert table.groupby("file").size().to_dict() == {"0.mkv": 20, "1.mkv": 20, "2.mkv": 20}
    assert list(reasons) == ["3.mkv", "4.mkv"] and reasons["4.mkv"] == "no face"


def test_a_frame_without_a_face_is_not_fake(sources):
    model, plain = small(), data_of(frame_size=48)
    faces = data_of(frame_size=48, faces=True)
    wanted, _ = score_frames(model, plain, sources, "val", progress=False)
    table, _ = score_frames(model, faces, sources, "val", progress=False)
    unseen = table["start"].round(2) == 0.28
    assert unseen.sum() == 3
    assert (table.loc[unseen, ["real", "fake", "score"]] == [*UNSEEN, UNSEEN[1] - UNSEEN[0]]).all(
        axis=None
    )
    rest = table[~unseen].merge(wanted, on=["file", "start"])
    np.testing.assert_array_equal(rest["score_x"], rest["score_y"])


def test_training_windows_hold_a_face():
    data = data_of(windows_per_clip=8)
    clip = dataclasses.replace(clip_of(40), seen=np.arange(40) // 5 == 3)
    starts = {
        frame
        for seed in range(20)
        for frame in data.example(clip, (np.zeros((0, 2)), 0), np.random.default_rng(seed))[
            "frames"
        ][::WINDOW, 0, 0, 0].tolist()
    }
    assert starts == set(range(13, 20))


def test_frames_are_cut_at_the_face(sources):
    data = data_of(frame_size=32, faces=True, face_part=(0.5, 0.75, 0.5))
    clip = data.reader(sources, "val").read("0.mkv")
    whole = isolated.call(square_frames.read_frames, clip.path, size=48)
    # the picture is 64 x 48, its centre square begins 8 pixels from the left
    wanted = [square_frames.square(frame[16:32, 16:32], 32) for frame in whole]
    np.testing.assert_array_equal(clip.frames(0, 20), wanted)
    np.testing.assert_array_equal(clip.frames(5, 4), wanted[5:9])
    np.testing.assert_array_equal(np.concatenate([block for block, _ in clip.blocks()]), wanted)


def test_damage_found_while_scoring_is_a_reason(sources, monkeypatch):
    def broken(function, path, **how):
        yield next(square_frames.iter_frames(path, **how))
        raise MediaError("The file is damaged.", where=path)

    monkeypatch.setattr(isolated, "stream", broken)
    data = data_of(frame_size=48, **MOUTH)
    table, reasons = score_frames(small(), data, sources, "val", progress=False)
    assert table.empty and reasons["0.mkv"] == "The file is damaged."


def test_kept_frames_give_the_same_scores(sources):
    model = small()
    arguments = {"lmm": True, "frame_size": 48, **MOUTH}
    plain, kept = (data_of(keep_in_memory=keep, **arguments) for keep in (False, True))
    wanted, _ = score_frames(model, plain, sources, "val", progress=False)
    for _ in range(2):
        table, _ = score_frames(model, kept, sources, "val", progress=False)
        pd.testing.assert_frame_equal(table, wanted)
    assert len(kept.kept) == 3


def test_a_clip_without_lmm_features_is_read(sources):
    data = data_of(lmm=True, frame_size=48, **MOUTH)
    reader = data.reader(sources, "val")
    assert reader.read("2.mkv").lmm is None and reader.read("0.mkv").lmm is not None


def test_validation_is_coarser_and_plain(sources, monkeypatch):
    data = data_of(frame_size=48, **MOUTH, val_split="val", val_stride=9)
    row = validate(small(), data, sources, batch_size=2, workers=0, device=torch.device("cpu"))
    assert set(row) == {"val_loss", "val_auc"} and np.isfinite(list(row.values())).all()
    assert data.stride == 1 and data.augment is not None  # the data class itself is as before


def test_validation_with_clip_labels_reads_no_segments(sources):
    data = data_of(frame_size=48, **MOUTH, val_split="val", supervision="clip", windows_per_clip=3)
    asked = []

    def table(split: str, *, segments: bool = False) -> pd.DataFrame:
        asked.append(segments)
        return sources.table(split, segments=segments)

    watched = types.SimpleNamespace(
        **{name: getattr(sources, name) for name in ("lists", "media", "features")},
        readers={},
        table=table,
        media_folder=sources.media_folder,
        feature_folder=sources.feature_folder,
    )
    row = validate(small(), data, watched, batch_size=2, workers=0, device=torch.device("cpu"))
    assert set(row) == {"val_loss", "val_auc"} and not any(asked)


def test_memory_does_not_grow_with_the_clip():
    """A block and a window's frames are alive at a time, whatever the clip's length."""
    model, data, alive = small(lmm_dims=None).eval(), data_of(), []

    class Endless(VisualClip):
        def blocks(self):
            for _ in range(30):
                block = noise(8, 32, 32)
                alive.append(block.nbytes)
                yield block, None

    clip = Endless(Path("clip"), 240, 32)
    rows = clip_frames(model, data, [clip], batch_size=4)
    assert len(rows) == 240 and max(alive) == 8 * 32 * 32 * 3


def test_kept_reconstructions_are_never_those_of_another_clip(sources):
    """Training and validation have separate readers, and the model keeps reconstructions."""
    data = data_of(frame_size=48, **MOUTH, keep_in_memory=True)
    model, none = small().eval(), np.zeros((0, 2))
    for file in ("0.mkv", "1.mkv", "0.mkv", "2.mkv"):
        clip = data.reader(sources, "val").read(file)
        batch = data.collate([data.example(clip, (none, 0), np.random.default_rng(1))])
        wanted = model.reconstruct(batch["frames"].flatten(0, 1)).view_as(batch["frames"])
        assert torch.equal(model._reconstructed(batch), wanted), file


def test_frame_ids_fit_and_differ():
    ids = [VisualClip(Path(name), 9, 32).frame_ids(np.arange(9)) for name in "abcdef"]
    ids = np.concatenate(ids)
    assert ids.dtype == np.int64 and len(set(ids.tolist())) == 54 and ids.min() >= 0


def test_copies_share_what_is_kept():
    data = data_of(keep_in_memory=True)
    assert copy.copy(data).kept is data.kept
