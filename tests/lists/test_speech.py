"""Speech data sets whose layouts are built in small, as lists."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import speech_corpora
from metadata import faults_of, run_lists

from klassify.errors import KlassifyError
from klassify.lists import data_list, partialspoof


def listed(root, split, heldout=False):
    name = f"heldout/{split}_labels" if heldout else split
    return data_list.read_list(root / f"lists/{name}.tsv", segments=True)


@pytest.fixture(scope="module")
def small_partialspoof(tmp_path_factory):
    root = tmp_path_factory.mktemp("PartialSpoof")
    speech_corpora.partialspoof(root)
    assert run_lists(root, "--probe", "missing", data="partialspoof") == 0
    return root


def test_partialspoof_gives_three_splits_with_segments(small_partialspoof):
    train = listed(small_partialspoof, "train")
    assert train["file"].tolist() == [
        "database/train/con_wav/LA_T_0000001.wav",
        "database/train/con_wav/LA_T_0000002.wav",
        "database/train/con_wav/CON_T_0000001.wav",
        "database/train/con_wav/CON_T_0000002.wav",
    ]
    assert train["modify_type"].tolist() == ["real"] * 2 + ["audio_modified"] * 2
    assert train["fake_segments"].tolist() == [[], [], [[0.32, 0.64]], [[0.0, 0.16], [0.96, 1.12]]]
    assert train["audio_fake_segments"].equals(train["fake_segments"])
    assert train["visual_fake_segments"].tolist() == [[]] * 4
    assert train["source"].tolist() == train["speaker"].tolist() == ["LA_0000"] * 4
    assert len(listed(small_partialspoof, "val")) == 4


def test_lengths_of_sound_without_picture_are_measured(small_partialspoof):
    train = listed(small_partialspoof, "train")
    assert train["n_samples"].tolist() == [20480] * 4 and train["duration"].tolist() == [1.28] * 4
    assert train["n_frames"].tolist() == [0] * 4 and train["fps"].tolist() == [0.0] * 4
    assert faults_of(small_partialspoof, "train") is None


def test_labels_of_the_evaluation_set_are_kept_apart(small_partialspoof):
    assert (listed(small_partialspoof, "test")["modify_type"] == "").all()
    labels = listed(small_partialspoof, "test", heldout=True)
    assert labels["fake_segments"].tolist()[2] == [[0.32, 0.64]]


def test_labels_of_coarser_frames_are_compared(tmp_path, capsys):
    base = speech_corpora.partialspoof(tmp_path, sets=["dev"])
    path = base / "segment_labels/dev_seglab_0.16.npy"
    labels = np.load(path, allow_pickle=True).item()
    labels["CON_D_0000001"][0] = "0"
    np.save(path, labels, allow_pickle=True)
    assert run_lists(base, data="partialspoof") == 0
    said = capsys.readouterr().out
    assert "dev_seglab_0.16.npy: 1 of 32 frames differ from the segments" in said
    assert "dev_seglab_0.64.npy: 0 of 8 frames differ" in said


def test_exact_times_are_taken_where_they_are_known(tmp_path):
    base = speech_corpora.partialspoof(tmp_path, sets=["dev"])
    speech_corpora.write_lines(
        base / "dev" / partialspoof.TIMES,
        [
            "SPEAKER CON_D_0000001 1 0.3217 0.31250 <NA> <NA> spoof <NA> <NA>",
            "SPEAKER CON_D_0000001 1 0.6342 0.6 <NA> <NA> bonafide <NA> <NA>",
        ],
    )
    assert run_lists(base, data="partialspoof") == 0
    val = listed(base, "val").set_index("file")["fake_segments"]
    assert val["dev/con_wav/CON_D_0000001.wav"] == [[0.3217, 0.6342]]
    assert val["dev/con_wav/CON_D_0000002.wav"] is None


def test_partialspoof_without_segment_labels_is_refused(tmp_path, capsys):
    base = speech_corpora.partialspoof(tmp_path, sets=["dev"])
    for path in (base / "segment_labels").iterdir():
        path.unlink()
    assert run_lists(base, data="partialspoof") == 2
    assert "unpack database_segment_labels_v1.2.tar.gz" in capsys.readouterr().err


class Hostile:
    """Calls a function when it is unpickled."""

    def __reduce__(self):
        return print, ("called",)


def test_segment_labels_run_no_code(tmp_path, capsys):
    path = tmp_path / "dev_seglab_0.02.npy"
    np.save(path, np.array({"LA_D_1": Hostile()}, object), allow_pickle=True)
    with pytest.raises(KlassifyError, match="builtins.print"):
        partialspoof.read_labels(path)
    path.write_bytes(pickle.dumps({"LA_D_1": [1]}))
    with pytest.raises(KlassifyError, match="cannot be read"):
        partialspoof.read_labels(path)
    assert "called" not in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [str, np.int64, np.float32, object])
def test_segment_labels_may_be_strings_or_numbers(tmp_path, dtype):
    path = tmp_path / "dev_seglab_0.02.npy"
    np.save(path, {"LA_D_1": np.array([1, 0, 0, 1]).astype(dtype)}, allow_pickle=True)
    assert partialspoof.read_labels(path)["LA_D_1"].tolist() == [False, True, True, False]


def test_llamapartialspoof_joins_its_two_parts(tmp_path):
    speech_corpora.llamapartialspoof(tmp_path)
    assert run_lists(tmp_path, data="llamapartialspoof") == 0
    frame = listed(tmp_path, "llamapartialspoof")
    assert frame["file"].tolist()[::3] == [
        "R01TTS.0.a/dev-clean_1272_128104_000001_000000.wav",
        "R01TTS.0.b/dev01-xtts-partial-cp_84_121123_000005_000014.wav",
    ]
    assert frame["duration"].tolist() == [2.0, 2.2, 1.5, 1.5]
    assert frame["fake_segments"].tolist() == [[], [[0, 2.2]], [[0.38, 0.9]], [[0, 0.4]]]
    assert frame["source"].nunique() == 2 and frame["source"][0] == frame["source"][1]
    assert frame["speaker"].tolist() == ["1272", "1272", "84", "84"]
    assert frame["audio_model"].tolist() == ["", "cosyvoice", "xtts", "xtts"]


def test_halftruth_is_found_where_archives_unpack_to(tmp_path):
    speech_corpora.halftruth(tmp_path)
    assert run_lists(tmp_path, "--probe", "missing", data="halftruth") == 0
    train, val = listed(tmp_path, "train"), listed(tmp_path, "val")
    assert train["file"][0] == "HAD_train/train/conbine/HAD_train_real_00000001.wav"
    assert val["file"][0] == "HAD_dev/conbine/HAD_dev_real_00000001.wav"
    assert listed(tmp_path, "test")["file"][0] == "HAD_test/test/HAD_test_real_00000001.wav"
    assert train["fake_segments"].tolist() == [[], [[0.43, 1.02]], [[0.0, 2.0]]]
    assert train["source"].nunique() == 3 and faults_of(tmp_path, "train") is None


@pytest.mark.parametrize(
    ("data", "build", "split", "file"),
    [
        (
            "asvspoof2019la",
            speech_corpora.asvspoof2019la,
            "train",
            "LA/ASVspoof2019_LA_train/flac/LA_T_1271820.flac",
        ),
        ("asvspoof5", speech_corpora.asvspoof5, "val", "flac_D/D_0000000000.flac"),
        ("inthewild", speech_corpora.in_the_wild, "inthewild", "release_in_the_wild/0.wav"),
    ],
)
def test_data_of_whole_fakes_have_clip_labels_alone(tmp_path, data, build, split, file):
    build(tmp_path)
    assert run_lists(tmp_path, data=data) == 0
    frame = data_list.read_list(tmp_path / f"lists/{split}.tsv")
    header = (tmp_path / f"lists/{split}.tsv").read_text().split("\n")[0]
    assert "fake_segments" not in header
    fake = frame[frame["modify_type"] == "audio_modified"]
    assert len(frame) == 2 and fake["file"].tolist() == [file]
    assert (frame["source"] == frame["speaker"]).all() and frame["n_frames"].tolist() == [0, 0]
    assert frame["gender"].tolist() == (["F", "M"] if data == "asvspoof5" else ["", ""])


def test_lengths_of_flac_are_measured(tmp_path):
    speech_corpora.asvspoof2019la(tmp_path)
    given = ("--probe", "missing", "--splits", "train")
    assert run_lists(tmp_path, *given, data="asvspoof2019la") == 0
    frame = data_list.read_list(tmp_path / "lists/train.tsv")
    assert frame["n_samples"][0] == 8000 and frame["duration"][0] == 0.5
    assert faults_of(tmp_path, "train")["problem"].str.startswith("no such file").tolist() == [True]


def test_lines_that_are_wrong_are_skipped_and_listed(tmp_path):
    speech_corpora.halftruth(tmp_path)
    path = tmp_path / "HAD_dev/HAD_dev_label.txt"
    lines = ["HAD_dev_a 0.00-x-F 0", "HAD_dev_b 0.00-1.00-Q 0", "HAD_dev_c", "HAD_dev_d 0-1-T 0"]
    lines.append("/HAD_dev_e 0-1-T 1")
    path.write_text(path.read_text() + "\n".join(lines) + "\n")
    assert run_lists(tmp_path, "--splits", "val", data="halftruth") == 0
    faults = faults_of(tmp_path, "val")
    assert faults["action"].tolist() == ["skipped"] * 3 + ["segments dropped", "skipped"]
    assert faults["row"].tolist() == [4, 5, 6, 7, 8] and len(listed(tmp_path, "val")) == 4


def test_a_root_without_protocols_is_refused(tmp_path, capsys):
    assert run_lists(tmp_path, data="asvspoof5") == 2
    assert "give the folder that holds ASVspoof5.train.tsv" in capsys.readouterr().err
