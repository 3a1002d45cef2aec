"""Feature shards: what goes in comes out, and what does not belong together is refused."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from klassify import parts
from klassify.errors import KlassifyError
from klassify.features import shards
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
        made.append(
            MouthRow(
                f"{name}{i}/é {i}.mp4",
                25.0 + i,
                features,
                valid,
                "" if length else "no frames",
                "" if length else "decode",
                boxes,
            )
        )
    return made


def write(folder, place: Place, clips, settings=SETTINGS):
    return shards.write_part(folder, place, clips, settings, "inputs")


def assert_same(a: MouthRow, b: MouthRow) -> None:
    assert (a.file, a.fps, a.reason, a.stage) == (b.file, b.fps, b.reason, b.stage)
    np.testing.assert_array_equal(a.features, b.features)
    np.testing.assert_array_equal(a.valid, b.valid)
    assert (a.boxes is None) == (b.boxes is None)
    if a.boxes is not None:
        np.testing.assert_array_equal(a.boxes, b.boxes)
    assert b.features.dtype == np.float32 and b.features.shape[1:] == (8,) and b.valid.dtype == bool


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


def test_round_trip_in_any_order(two_shards):
    folder, clips = two_shards
    features = FeatureStore(folder)
    assert len(features) == 100 and features.files == [clip.file for clip in clips] == list(
        features
    )
    assert features.settings == SETTINGS
    for i in np.random.default_rng(1).permutation(100):
        assert_same(clips[i], features[clips[i].file])
    assert features.reasons == {clip.file: "no frames" for clip in clips if clip.reason}


def test_rows_can_be_written_to(two_shards):
    folder, clips = two_shards
    features = FeatureStore(folder)
    first = next(clip.file for clip in clips if len(clip.valid))
    features[first].features[:] = 7
    assert_same(next(clip for clip in clips if clip.file == first), features[first])


def test_a_store_travels_to_a_data_loaders_worker(two_shards):
    folder, clips = two_shards
    features = FeatureStore(folder)
    features[clips[3].file]
    assert_same(clips[60], pickle.loads(pickle.dumps(features))[clips[60].file])


def test_few_rows_are_decoded_and_few_are_kept(two_shards, monkeypatch):
    folder, clips = two_shards
    read = []
    original = parts.read_part
    for module in (parts, shards):
        monkeypatch.setattr(
            module,
            "read_part",
            lambda *args, **kwargs: read.append(kwargs.get("group")) or original(*args, **kwargs),
        )
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


def test_unknown_clips_are_named(two_shards):
    features = FeatureStore(two_shards[0])
    assert "x.mp4" not in features
    with pytest.raises(KlassifyError, match="for x.mp4"):
        features["x.mp4"]


def test_an_empty_folder_says_what_to_do(tmp_path):
    with pytest.raises(KlassifyError, match="klassify extract"):
        FeatureStore(tmp_path)
    with pytest.raises(KlassifyError, match="no feature shards"):
        FeatureStore(tmp_path / "none")


def test_missing_parts_are_named(two_shards):
    folder, clips = two_shards
    (folder / "part-1-of-2-1.parquet").unlink()
    with pytest.raises(KlassifyError, match="part-1-of-2-1.parquet"):
        FeatureStore(folder)
    assert len(FeatureStore(folder, incomplete=True)) == 90
    (folder / "part-2-of-2-0.parquet").unlink()
    with pytest.raises(KlassifyError, match=r"part-2-of-2-\*"):
        FeatureStore(folder)


def test_two_numbers_of_shards_are_refused(two_shards):
    folder, _ = two_shards
    write(folder, Place(3, 3, 0, 1), rows(5, name="other"))
    with pytest.raises(KlassifyError, match=r"numbers of shards(.|\n)*part-3-of-3-0"):
        FeatureStore(folder)


def test_shards_of_two_settings_are_refused_by_difference(two_shards):
    folder, clips = two_shards
    write(folder, Place(2, 2, 0, 1), clips[50:], {**SETTINGS, "version": 2})
    with pytest.raises(KlassifyError, match=r"settings(.|\n)*part-2-of-2-0(.|\n)*version: 1 in"):
        FeatureStore(folder)


def test_a_clip_that_stands_twice_is_refused(two_shards):
    folder, clips = two_shards
    write(folder, Place(2, 2, 0, 1), clips[45:])
    with pytest.raises(KlassifyError, match=r"5 clips appear twice: id45"):
        FeatureStore(folder)


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


def test_no_number_that_is_none_is_written(tmp_path):
    bad = dataclasses.replace(
        rows(5)[1], features=np.full((3, 8), np.nan, np.float32), valid=np.ones(3, bool)
    )
    with pytest.raises(ValueError, match="not finite"):
        write(tmp_path, Place(1, 1, 0, 1), [bad])
    short = dataclasses.replace(bad, features=np.zeros((2, 8), np.float32))
    with pytest.raises(ValueError, match=r"\(2, 8\) for 3 frames"):
        write(tmp_path, Place(1, 1, 0, 1), [short])
    assert not list(tmp_path.iterdir())


def test_empty_part(tmp_path):
    write(tmp_path, Place(1, 1, 0, 1), [])
    assert len(FeatureStore(tmp_path)) == 0


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
        visual, textual = (
            rng.normal(size=(k, 6)).astype(np.float16),
            rng.normal(size=(k, 64, 5)).astype(np.float16),
        )
        texts = [f"It is é real, {j}.\t\n" for j in range(k)]
        made.append(
            LMMRow(
                f"{i}.mp4",
                29.97,
                200 * k,
                np.arange(k, dtype=np.int32) * 200,
                visual,
                textual,
                texts,
            )
        )
    return made


def assert_same_lmm(a: LMMRow, b: LMMRow) -> None:
    assert (a.file, a.fps, a.n_frames, a.texts, a.reason, a.stage) == (
        b.file,
        b.fps,
        b.n_frames,
        b.texts,
        b.reason,
        b.stage,
    )
    assert b.visual.shape == (len(a.frames), 6) and b.textual.shape == (len(a.frames), 64, 5)
    for name in ("frames", "visual", "textual"):
        mine, other = getattr(a, name), getattr(b, name)
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine.ravel(), other.ravel())


def test_lmm_rows_come_back_in_any_order(tmp_path):
    clips = lmm_rows(23)
    write(tmp_path, Place(1, 2, 0, 1), clips[:9], LMM_SETTINGS)
    write(tmp_path, Place(2, 2, 0, 1), clips[9:], LMM_SETTINGS)
    features = FeatureStore(tmp_path)
    assert features.row_class is LMMRow and set(features.reasons) == {
        clip.file for clip in clips if clip.reason
    }
    for i in np.random.default_rng(1).permutation(23):
        assert_same_lmm(clips[i], features[clips[i].file])
    features[clips[1].file].textual[:] = 7  # a row may be written to
    assert_same_lmm(clips[1], pickle.loads(pickle.dumps(features))[clips[1].file])


def test_one_lmm_clip_is_decoded_for_one_look_up(tmp_path, monkeypatch):
    write(tmp_path, Place(1, 1, 0, 1), lmm_rows(40), LMM_SETTINGS)
    features = FeatureStore(tmp_path)
    read = []
    original = parts.read_part
    monkeypatch.setattr(
        shards,
        "read_part",
        lambda *args, **kwargs: read.append(kwargs["group"]) or original(*args, **kwargs),
    )
    features["17.mp4"], features["17.mp4"], features["5.mp4"]
    assert read == [17, 5]
    for i in range(40):
        features[f"{i}.mp4"]
    assert features._group.cache_info().currsize == LMMRow.KEPT_GROUPS


def test_lmm_rows_that_do_not_fit_are_not_written(tmp_path):
    good = lmm_rows(2)[1]
    for change, complaint in (
        ({"visual": good.visual[:, :5]}, "for 1 sampled"),
        ({"textual": good.textual[:, :63]}, "for 1 sampled"),
        ({"texts": []}, "for 1 sampled"),
        ({"textual": good.textual * np.float16(np.nan)}, "not finite"),
        ({"visual": good.visual + np.float16(np.inf)}, "not finite"),
    ):
        with pytest.raises(ValueError, match=complaint):
            write(tmp_path, Place(1, 1, 0, 1), [dataclasses.replace(good, **change)], LMM_SETTINGS)
    with pytest.raises(ValueError, match="visual_dim"):
        write(tmp_path, Place(1, 1, 0, 1), [good], {"kind": "lmm"})
    assert not list(tmp_path.iterdir())


def test_reconstruction_rows_come_back(tmp_path):
    rng = np.random.default_rng(0)
    clips = [
        ReconstructionRow(f"{n}", 25.0, rng.integers(0, 512, (n, 7, 5)).astype(np.uint16))
        for n in (3, 1, 40)
    ]
    clips.insert(1, ReconstructionRow.failed("bad", "decode", "no frames"))
    write(tmp_path, Place(1, 1, 0, 1), clips, {"kind": "reconstruction"})
    features = FeatureStore(tmp_path)
    for clip in clips:
        row = features[clip.file]
        assert (row.codes.shape, row.codes.dtype, row.stage) == (
            clip.codes.shape,
            np.uint16,
            clip.stage,
        )
        np.testing.assert_array_equal(row.codes, clip.codes)
    with pytest.raises(ValueError, match="uint16"):
        bad = dataclasses.replace(clips[0], codes=clips[0].codes.astype(int))
        write(tmp_path, Place(1, 1, 0, 1), [bad], {"kind": "reconstruction"})


def test_kinds_do_not_mix_and_unknown_ones_are_named(tmp_path):
    write(tmp_path, Place(1, 2, 0, 1), lmm_rows(3), LMM_SETTINGS)
    write(tmp_path, Place(2, 2, 0, 1), rows(3))
    with pytest.raises(KlassifyError, match="kind: 'lmm' in the first, 'mouth' in the second"):
        FeatureStore(tmp_path)
    with pytest.raises(KlassifyError, match="no kind of features 'ears'"):
        write(tmp_path, Place(1, 1, 0, 1), [], {"kind": "ears"})
