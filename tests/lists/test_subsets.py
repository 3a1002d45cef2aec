"""Named subsets, labels and media folders."""

from __future__ import annotations

import hashlib
import math

import pandas as pd
import pytest
from metadata import plain

from klassify.errors import KlassifyError
from klassify.lists import data_list, subsets


def val_list(folder, n_sources, clips_each=4):
    files = [f"{s:03d}/{c}.mp4" for s in range(n_sources) for c in range(clips_each)]
    frame = plain(files, modify_type="real", source=[f.split("/")[0] for f in files])
    data_list.write_list(folder / "val.tsv", frame)
    return frame


@pytest.mark.parametrize("n_sources", [4, 5, 7, 8, 10, 11, 33])
def test_val_is_split_by_source_by_rank_of_the_hash(tmp_path, n_sources):
    val_list(tmp_path, n_sources)
    fit, report = (subsets.load_split(tmp_path, name) for name in ("val_fit", "val_report"))
    ranked = sorted(
        (f"{s:03d}" for s in range(n_sources)), key=lambda s: hashlib.sha256(s.encode()).hexdigest()
    )
    assert set(fit["source"]) == set(ranked[: max(3, math.ceil(n_sources * 4 / 10))])
    assert not set(fit["source"]) & set(report["source"])
    assert len(fit) + len(report) == 4 * n_sources


def test_too_few_sources_are_a_clear_error(tmp_path):
    val_list(tmp_path, 3)
    with pytest.raises(KlassifyError, match="3 sources"):
        subsets.load_split(tmp_path, "val_report")


def test_the_leaking_split_shares_sources_and_says_so(tmp_path):
    val_list(tmp_path, 20)
    fit, report = (
        subsets.load_split(tmp_path, f"val_{part}_leaking") for part in ("fit", "report")
    )
    assert len(fit) == 32 and len(report) == 48 and set(fit["source"]) & set(report["source"])
    assert "LEAKING" in subsets.SUBSETS["val_fit_leaking"][1]


def test_length_subsets_keep_bounds_without_unknown_lengths(tmp_path):
    frame = plain(
        list("abcde"), n_frames=[255, 256, 257, 150, None], duration=[10.0, 6.0, 5.999, 6.001, None]
    )
    data_list.write_list(tmp_path / "train.tsv", frame)
    kept = {
        name: "".join(subsets.load_split(tmp_path, name)["file"])
        for name in ("train_video", "train_audio", "train_bam")
    }
    assert kept == {"train_video": "abd", "train_audio": "c", "train_bam": "bc"}
    data_list.write_list(tmp_path / "train.tsv", frame[["file"]])
    with pytest.raises(KlassifyError, match="--probe missing"):
        subsets.load_split(tmp_path, "train_video")


def test_folds_are_halves_by_source(tmp_path):
    files = [f"{source}/{take}" for source in range(60) for take in range(3)]
    frame = plain(files, source=[f"s{file.split('/')[0]}" for file in files])
    data_list.write_list(tmp_path / "train.tsv", frame)
    one, two = (subsets.load_split(tmp_path, f"train_fold{k}") for k in (1, 2))
    assert sorted([*one["file"], *two["file"]]) == sorted(files)
    assert not set(one["source"]) & set(two["source"])
    assert 20 < one["source"].nunique() < 40


def test_an_unknown_split_is_refused_by_name(tmp_path):
    val_list(tmp_path, 5)
    with pytest.raises(KlassifyError, match="'testZ'.*val_report"):
        subsets.load_split(tmp_path, "testZ")


def test_labels_follow_the_modality():
    frame = pd.DataFrame({"file": list("abcd"), "modify_type": data_list.TYPES})
    assert subsets.label(frame, "video").tolist() == [0, 1, 1, 1]
    assert subsets.label(frame, "audio").tolist() == [0, 1, 0, 1]
    assert subsets.label(frame, "visual").tolist() == [0, 0, 1, 1]
    with pytest.raises(KlassifyError, match="lips"):
        subsets.label(frame, "lips")


@pytest.mark.parametrize("folder", ["train", "train/train", "."])
def test_media_are_found_where_the_archive_was_unpacked(tmp_path, folder):
    media = tmp_path / folder / "id1"
    media.mkdir(parents=True)
    (media / "a.mp4").touch()
    found = subsets.media_folder(tmp_path, "train", ["id1/a.mp4", "id1/b.mp4"])
    assert found == tmp_path / folder
    assert subsets.media_folder(tmp_path, "train") == found
    with pytest.raises(KlassifyError, match="None of"):
        subsets.media_folder(tmp_path, "train", ["id2/a.mp4"])


def test_a_plain_fake_leaves_only_the_label_of_the_video():
    known = pd.DataFrame({"file": list("ab"), "modify_type": ["real", "audio_modified"]})
    plain_fake = known.assign(modify_type=["real", "fake"])
    assert subsets.known_label(known, "audio") == "audio"
    assert subsets.segment_column(known, "audio") == "audio_fake_segments"
    assert subsets.segment_column(known, "video") == "fake_segments"
    assert subsets.known_label(plain_fake, "audio") == "video"
    assert subsets.segment_column(plain_fake, "audio") == "fake_segments"


@pytest.mark.parametrize(
    ("split", "own"),
    [("testA", "testA"), ("demo-large-testA", "testA"), ("testA-mp3-3", "testA-mp3-3")],
)
def test_a_split_of_other_data_is_told_from_a_derived_one(split, own):
    assert subsets.own_split(split) == own
