"""Feature shards: what goes in comes out, and what does not belong together is refused."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from klassify import parts
from klassify.errors import KlassifyError
from klassify.features import shards
from klassify.features.avhubert import AVHubertRow
from klassify.features.lips import LipsRow
from klassify.features.lmm.kind import LMMRow
from klassify.features.mouth.kind import MouthRow
from klassify.features.reconstruction import ReconstructionRow
from klassify.features.shards import FeatureStore
from klassify.parts import Place

SETTINGS = {"kind": "mouth", "version": 1}


def rows(n: int, seed: int = 0, name: str = "id") -> list[MouthRow]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        length = int(rng.integers(0, 60))
        valid = rng.random(length) < 0.8
        features = rng.normal(size=(length, 8)).astype(np.float32) * valid[:, None]
        boxes = rng.uniform(0, 100, (length, 4)).astype(np.float32) if i % 3 else None
        why = ("", "") if length else ("no frames", "decode")
        made.append(MouthRow(f"{name}{i}/é {i}.mp4", 25.0 + i, features, valid, *why, boxes))
    return made


def write(folder, place: Place, clips, settings=SETTINGS):
    return shards.write_part(folder, place, clips, settings, "inputs")


def assert_same(wanted: Any, found: Any) -> None:
    """Equal rows; one without frames may come back with the widths of its kind."""
    for field in dataclasses.fields(wanted):
        a, b = getattr(wanted, field.name), getattr(found, field.name)
        if not isinstance(a, np.ndarray):
            assert a == b
            continue
        assert a.dtype == b.dtype and len(a) == len(b) and (a.shape == b.shape or not a.size)
        np.testing.assert_array_equal(a.ravel(), b.ravel())


LMM_SETTINGS = {"kind": "lmm", "visual_dim": 6, "textual_dim": 5, "new_tokens": 64}


def lmm_rows(n: int) -> list[LMMRow]:
    """Clips with 0 to 3 sampled frames; those with none failed."""
    rng = np.random.default_rng(3)
    made = []
    for i in range(n):
        k = i % 4
        if k == 0:
            made.append(LMMRow.failed(f"{i}.mp4", "decode", "no frames"))
            continue
        arrays = (rng.normal(size=(k, *width)).astype(np.float16) for width in ((6,), (64, 5)))
        frames, texts = np.arange(k, dtype=np.int32) * 200, [f"It is é {j}.\t\n" for j in range(k)]
        made.append(LMMRow(f"{i}.mp4", 29.97, 200 * k, frames, *arrays, texts))
    return made


def small_rows(kind: Any, *arrays: Callable) -> list[Any]:
    """Clips of four lengths, given what makes each array of a length, and one that failed."""
    made = [kind(f"{n}", 25.0, *(array(n) for array in arrays)) for n in (5, 1, 2, 40)]
    return [made[0], kind.failed("bad", "decode", "no frames"), *made[1:]]


def noise(*width: int, dtype: type = np.float16) -> Callable:
    rng = np.random.default_rng(0)
    return lambda n: rng.integers(0, 512, (n, *width)).astype(dtype)


def jpegs(n: int) -> list[bytes]:
    """Stand-ins for crops; every third frame has none."""
    return [b"" if k % 3 == 1 else b"jpeg" * k for k in range(1, n + 1)]


KINDS = {
    "mouth": (SETTINGS, rows(100)),
    "lmm": (LMM_SETTINGS, lmm_rows(23)),
    "reconstruction": (
        {"kind": "reconstruction"},
        small_rows(ReconstructionRow, noise(7, 5, dtype=np.uint16)),
    ),
    "lips": (
        {"kind": "lips"},
        small_rows(LipsRow, jpegs, lambda n: np.array([jpeg != b"" for jpeg in jpegs(n)])),
    ),
    "avhubert": ({"kind": "avhubert"}, small_rows(AVHubertRow, noise(6), noise(6))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_each_kind_come_back_in_any_order(tmp_path, kind):
    settings, clips = KINDS[kind]
    write(tmp_path, Place(1, 2, 0, 1), clips[:3], settings)
    write(tmp_path, Place(2, 2, 0, 1), clips[3:], settings)
    store = FeatureStore(tmp_path)
    assert store.files == [clip.file for clip in clips] == list(store)
    assert (store.settings, store.row_class) == (settings, type(clips[0]))
    assert store.reasons == {clip.file: clip.reason for clip in clips if clip.reason}
    for i in np.random.default_rng(1).permutation(len(clips)):
        assert_same(clips[i], store[clips[i].file])


@pytest.mark.parametrize("kind, name", [("mouth", "features"), ("lmm", "textual")])
def test_rows_can_be_written_to(tmp_path, kind, name):
    settings, clips = KINDS[kind]
    write(tmp_path, Place(1, 1, 0, 1), clips, settings)
    store, first = FeatureStore(tmp_path), next(clip for clip in clips if not clip.reason)
    getattr(store[first.file], name)[:] = 7
    assert_same(first, store[first.file])


@pytest.mark.parametrize(
    "kind, change, complaint",
    [
        ("mouth", {"features": np.full((3, 8), np.nan, np.float32)}, "not finite"),
        ("mouth", {"features": np.zeros((2, 8), np.float32)}, r"\(2, 8\) for 3 frames"),
        ("lmm", {"visual": np.zeros((1, 5), np.float16)}, "for 1 sampled"),
        ("lmm", {"textual": np.zeros((1, 63, 5), np.float16)}, "for 1 sampled"),
        ("lmm", {"texts": []}, "for 1 sampled"),
        ("lmm", {"textual": np.full((1, 64, 5), np.nan, np.float16)}, "not finite"),
        ("lmm", {"visual": np.full((1, 6), np.inf, np.float16)}, "not finite"),
        ("reconstruction", {"codes": np.zeros((5, 7, 5), int)}, "uint16"),
        ("lips", {"crops": [b""] * 5}, "crops"),
        ("avhubert", {"audio": np.zeros((3, 6), np.float16)}, "5: video"),
    ],
)
def test_rows_that_do_not_fit_are_not_written(tmp_path, kind, change, complaint):
    settings, clips = KINDS[kind]
    good = clips[1 if kind == "lmm" else 0]
    if kind == "mouth":
        good = dataclasses.replace(clips[1], valid=np.ones(3, bool))
    with pytest.raises(ValueError, match=complaint):
        write(tmp_path, Place(1, 1, 0, 1), [dataclasses.replace(good, **change)], settings)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def two_shards(tmp_path):
    """100 clips in three parts of two shards."""
    clips = rows(100)
    write(tmp_path, Place(1, 2, 0, 2), clips[:40])
    write(tmp_path, Place(1, 2, 1, 2), clips[40:50])
    write(tmp_path, Place(2, 2, 0, 1), clips[50:])
    return tmp_path, clips


def test_a_column_that_was_added_later_may_be_missing(tmp_path):
    clips = rows(20)
    path = write(tmp_path, Place(1, 1, 0, 1), clips)
    table = pq.read_table(path).drop_columns("boxes")
    pq.write_table(table, path, row_group_size=MouthRow.ROWS_A_GROUP)
    features = FeatureStore(tmp_path)
    for clip in clips:
        assert_same(dataclasses.replace(clip, boxes=None), features[clip.file])


def test_a_store_travels_to_a_data_loaders_worker(two_shards):
    folder, clips = two_shards
    features = FeatureStore(folder)
    features[clips[3].file]
    assert_same(clips[60], pickle.loads(pickle.dumps(features))[clips[60].file])


@pytest.fixture
def read(monkeypatch):
    """The groups that are read from parts; None stands for the names."""
    groups, original = [], parts.read_part

    def noted(*args, **kwargs):
        groups.append(kwargs.get("group"))
        return original(*args, **kwargs)

    for module in (parts, shards):
        monkeypatch.setattr(module, "read_part", noted)
    return groups


def test_few_rows_are_decoded_and_few_are_kept(two_shards, read):
    folder, clips = two_shards
    features = FeatureStore(folder)
    assert read == [None] * 3  # the names of three parts
    for clip in clips[:16]:
        features[clip.file]
    assert read[3:] == [0]


def test_equal_rows_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, Place(1, 1, 0, 1), rows(30))
    a, b = (next((tmp_path / name).iterdir()).read_bytes() for name in ("a", "b"))
    assert a == b


def test_unknown_clips_and_empty_folders_are_named(two_shards, tmp_path):
    features = FeatureStore(two_shards[0])
    assert "x.mp4" not in features
    with pytest.raises(KlassifyError, match="for x.mp4"):
        features["x.mp4"]
    (tmp_path / "empty").mkdir()
    for name in ("empty", "none"):
        with pytest.raises(KlassifyError, match="no feature shards(.|\n)*klassify extract"):
            FeatureStore(tmp_path / name)


def test_missing_parts_are_named(two_shards):
    folder, clips = two_shards
    (folder / "part-1-of-2-1.parquet").unlink()
    with pytest.raises(KlassifyError, match="part-1-of-2-1.parquet"):
        FeatureStore(folder)
    assert len(FeatureStore(folder, incomplete=True)) == 90
    (folder / "part-2-of-2-0.parquet").unlink()
    with pytest.raises(KlassifyError, match=r"part-2-of-2-\*"):
        FeatureStore(folder)


@pytest.mark.parametrize(
    "place, first, name, version, told",
    [
        (Place(3, 3, 0, 1), 50, "other", 1, r"numbers of shards(.|\n)*part-3-of-3-0"),
        (Place(2, 2, 0, 1), 50, "id", 2, r"settings(.|\n)*part-2-of-2-0(.|\n)*version: 1 in"),
        (Place(2, 2, 0, 1), 45, "id", 1, "5 clips appear twice: id45"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    two_shards, place, first, name, version, told
):
    write(two_shards[0], place, rows(100, name=name)[first:], {**SETTINGS, "version": version})
    with pytest.raises(KlassifyError, match=told):
        FeatureStore(two_shards[0])


def test_half_written_files_are_not_seen(two_shards):
    folder, _ = two_shards
    (folder / "part-2-of-2-1.partial-99-abc.parquet").write_bytes(b"PAR1 half")
    assert len(FeatureStore(folder)) == 100


def test_broken_and_foreign_files_are_named(two_shards, tmp_path):
    folder, _ = two_shards
    path = folder / "part-2-of-2-0.parquet"
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-9], b"text" * 100):
        path.write_bytes(content)
        with pytest.raises(KlassifyError, match="not a whole Parquet file(.|\n)*part-2-of-2-0"):
            FeatureStore(folder)

    pq.write_table(pa.table({"file": ["a"]}), path)
    with pytest.raises(KlassifyError, match="not a part of ours"):
        FeatureStore(folder)
    path.write_bytes((folder / "part-1-of-2-0.parquet").read_bytes())
    with pytest.raises(KlassifyError, match="was written as part-1-of-2-0"):
        FeatureStore(folder)


def test_damage_inside_a_shard_is_named(two_shards):
    folder, clips = two_shards
    path = folder / "part-2-of-2-0.parquet"
    data = bytearray(path.read_bytes())
    data[20 : len(data) // 2] = bytes(len(data) // 2 - 20)
    path.write_bytes(data)
    with pytest.raises(KlassifyError, match="part-2-of-2-0"):
        features = FeatureStore(folder)
        for clip in clips[50:]:
            features[clip.file]


@pytest.mark.parametrize("name", ["file", "reason"])
def test_texts_that_have_become_bytes_are_named(two_shards, name):
    folder, _ = two_shards
    path = folder / "part-2-of-2-0.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index(name)
    pq.write_table(table.set_column(at, name, table[name].cast(pa.binary())), path)
    with pytest.raises(KlassifyError, match=f"{name} holds binary, not text"):
        parts.read_rows(path)


def test_empty_part(tmp_path):
    write(tmp_path, Place(1, 1, 0, 1), [])
    assert len(FeatureStore(tmp_path)) == 0


def test_one_lmm_clip_is_decoded_for_one_look_up(tmp_path, read):
    write(tmp_path, Place(1, 1, 0, 1), lmm_rows(40), LMM_SETTINGS)
    features = FeatureStore(tmp_path)
    features["17.mp4"], features["17.mp4"], features["5.mp4"]
    assert read[1:] == [17, 5]
    for i in range(40):
        features[f"{i}.mp4"]
    assert features._group.cache_info().currsize == LMMRow.KEPT_GROUPS


def test_kinds_do_not_mix_and_unknown_ones_are_named(tmp_path):
    write(tmp_path, Place(1, 2, 0, 1), lmm_rows(3), LMM_SETTINGS)
    write(tmp_path, Place(2, 2, 0, 1), rows(3))
    with pytest.raises(KlassifyError, match="kind: 'lmm' in the first, 'mouth' in the second"):
        FeatureStore(tmp_path)
    with pytest.raises(KlassifyError, match="no kind of features 'ears'"):
        write(tmp_path, Place(1, 1, 0, 1), [], {"kind": "ears"})
    with pytest.raises(ValueError, match="visual_dim"):
        write(tmp_path, Place(1, 1, 0, 1), lmm_rows(2), {"kind": "lmm"})
