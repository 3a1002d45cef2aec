"""FakeAVCeleb's table and folders in miniature, as a list that a system is scored on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from loudest import make_system
from metadata import faults_of, run_lists

from klassify import cli, parts
from klassify.corpus.encode import write_clip
from klassify.data import audio
from klassify.data.base import Sources
from klassify.errors import KlassifyError
from klassify.evaluation.results import labelled_list
from klassify.features import shards
from klassify.features.mouth.kind import MouthRow
from klassify.lists import data_list, fakeavceleb, subsets
from klassify.scores import score_file

HEADER = "source,target1,target2,method,category,type,race,gender,path,"
WHERE = "African,men"
REAL, AUDIO, VIDEO, BOTH = fakeavceleb.MODIFY_TYPES


def row(source, method, kind, file, race="African", *, folder=None, targets="-,-"):
    category = (
        "ABCD"[list(fakeavceleb.MODIFY_TYPES).index(kind)]
        if kind in fakeavceleb.MODIFY_TYPES
        else "A"
    )
    folder = f"FakeAVCeleb/{kind}/{race}/men/{source}" if folder is None else folder
    return f"{source},{targets},{method},{category},{kind},{race},men,{file},{folder}"


FAMILY = [
    row("id00076", "real", REAL, "00109.mp4"),
    row("id00076", "rtvc", AUDIO, "00109_fake.mp4"),
    row("id00076", "faceswap", VIDEO, "00109_id00166_faceswap.mp4", targets="id00166,-"),
    row("id00076", "faceswap-wav2lip", BOTH, "00109_10_id00476_wavtolip.mp4", targets="10,id00476"),
    row("id00032", "real", REAL, "00028 é.mp4", "Asian (South)"),
]


def table(root, rows, header=HEADER, encoding="utf-8"):
    path = root / "meta_data.csv"
    path.write_bytes(("\n".join([header, *rows]) + "\n").encode(encoding))
    return path


def make(root, *extra):
    assert run_lists(root, *extra, data="fakeavceleb") == 0
    return data_list.read_list(root / "lists/fakeavceleb.tsv", segments=True)


def test_control_characters_are_replaced_and_listed(tmp_path):
    table(tmp_path, [row("id1", "real", REAL, "a.mp4"), row("id1", '"rt\tvc"', VIDEO, "b.mp4")])
    assert make(tmp_path)["video_model"].tolist() == ["", "rt\ufffdvc"]
    assert faults_of(tmp_path, "fakeavceleb")[["row", "action"]].values.tolist() == [
        [3, "repaired"]
    ]


@pytest.fixture(scope="module")
def small_copy(tmp_path_factory):
    """The family on disk, 0.4 s at 25 fps with 0.4 s of sound; the last clip is missing."""
    root = tmp_path_factory.mktemp("FakeAVCeleb_v1.2")
    table(root, [*FAMILY, row("id00099", "real", REAL, "gone.mp4")])
    rng = np.random.default_rng(0)
    for line in FAMILY:
        cells = line.split(",")
        path = root / cells[-1].removeprefix("FakeAVCeleb/") / cells[-2]
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = [rng.integers(0, 255, (64, 64, 3), np.uint8)] * 10
        write_clip(path, frames, rng.normal(0, 0.1, 6400).astype(np.float32), 30, 48_000)
    return root


def test_the_table_becomes_a_list(tmp_path):
    table(tmp_path, FAMILY)
    frame = make(tmp_path)
    assert frame["file"][0] == "RealVideo-RealAudio/African/men/id00076/00109.mp4"
    assert frame["file"][4] == "RealVideo-RealAudio/Asian (South)/men/id00032/00028 é.mp4"
    assert frame["modify_type"].tolist() == [
        "real",
        "audio_modified",
        "visual_modified",
        "both_modified",
        "real",
    ]
    assert frame["source"].tolist() == ["id00076"] * 4 + ["id00032"]
    assert frame["speaker"].equals(frame["source"])
    assert frame["video_model"].tolist() == ["", "", "faceswap", "faceswap-wav2lip", ""]
    assert frame["audio_model"].tolist() == ["", "rtvc", "", "rtvc", ""]
    assert frame["race"].tolist() == ["African"] * 4 + ["Asian (South)"]
    assert set(frame["gender"]) == {"men"} and "language" not in frame
    assert frame[list(data_list.MEASURED)].isna().all(axis=None)
    # whole clips of unknown length
    assert frame["fake_segments"].tolist() == [[], None, None, None, []]
    assert frame["visual_fake_segments"].tolist() == [[], [], None, None, []]


def test_a_fake_voice_on_a_real_video_is_a_fake(tmp_path):
    table(tmp_path, FAMILY)
    frame = make(tmp_path)
    assert subsets.label(frame, "video").tolist() == [0, 1, 1, 1, 0]
    assert subsets.label(frame, "audio").tolist() == [0, 1, 0, 1, 0]
    assert subsets.label(frame, "visual").tolist() == [0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("header", "end"),
    [
        (HEADER, ""),
        ("source,target1,target2,method,category,type,race,gender,filename,path,", ","),
        ("\ufeff" + HEADER.title(), ",,"),
        (FAMILY[4], ""),  # no header at all
    ],
)
def test_the_variants_of_the_table_are_read_alike(tmp_path, header, end):
    rows = [line + end for line in FAMILY[: 4 if header == FAMILY[4] else 5]]
    table(tmp_path, rows, header)
    assert sorted(make(tmp_path)["file"]) == sorted(
        f"{line.split(',')[-1].removeprefix('FakeAVCeleb/')}/{line.split(',')[-2]}"
        for line in FAMILY
    )


@pytest.mark.parametrize("folder", ["FakeAVCeleb_v1.2/{}", "data/x/{}", "{}", None])
def test_the_folder_begins_at_the_type(tmp_path, folder):
    where = f"{REAL}/African/men/id1"
    line = f"id1,-,-,real,A,{REAL},{WHERE},a.mp4" + (
        "" if folder is None else f",{folder.format(where)}"
    )
    table(tmp_path, [line, f"id1,-,-,real,A,{REAL},{WHERE},FakeAVCeleb/{where}/b.mp4"])
    assert make(tmp_path)["file"].tolist() == [f"{where}/a.mp4", f"{where}/b.mp4"]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (FAMILY[0], "appeared before"),
        (row("id1", "real", "RealVideo", "a.mp4"), "unknown type 'RealVideo'"),
        ("id1,-,-,real", "it has 4 cells"),
        (
            row("id1", "wav2lip", VIDEO, "a.mp4", folder=f"FakeAVCeleb/{REAL}/African/men/id1"),
            "but it is in",
        ),
        (row("id1", "real", REAL, "a.mp4", folder=f"{REAL}/../../x"), "unsafe"),
        (row("id1", "real", REAL, '"a;b.mp4"'), "unsafe"),
        (row("id1", "real", REAL, "\x07.mp4"), "unsafe"),
    ],
)
def test_a_wrong_row_is_skipped_and_listed(tmp_path, bad, problem):
    table(tmp_path, [*FAMILY, bad])
    assert len(make(tmp_path)) == len(FAMILY)
    faults = faults_of(tmp_path, "fakeavceleb")
    assert faults["row"].tolist() == [7]
    assert faults["action"][0] == "skipped"
    assert problem in faults["problem"][0]


def test_joined_tables_blank_lines_and_a_missing_source(tmp_path):
    nameless = row("-", "real", REAL, "c.mp4", folder=f"{REAL}/African/men/id7")
    table(tmp_path, [*FAMILY[:2], "", HEADER, *FAMILY[2:], nameless])
    frame = make(tmp_path)
    assert len(frame) == 6 and frame["source"][5] == "id7"
    assert not (tmp_path / "lists/fakeavceleb.failures.tsv").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "begins with ''"),
        (b"file,label\na.mp4,1\n", "begins with 'file,label'"),
        (HEADER.encode(), "No entry"),
        (HEADER.encode() + b"\n\xff\xfe,", "is not UTF-8"),
    ],
)
def test_another_table_is_refused(tmp_path, text, message, capsys):
    (tmp_path / "meta_data.csv").write_bytes(text)
    assert run_lists(tmp_path, data="fakeavceleb") == 2 and message in capsys.readouterr().err


def test_a_folder_without_the_table_is_refused_with_the_way_out(tmp_path, capsys):
    assert run_lists(tmp_path, data="fakeavceleb") == 2
    assert "meta_data.csv" in capsys.readouterr().err


def test_probing_gives_lengths_and_whole_clips_as_segments(small_copy):
    frame = make(small_copy, "--probe", "missing", "--force")
    assert frame["n_frames"].tolist()[:5] == [10] * 5 and frame["fps"].tolist()[:5] == [25.0] * 5
    length = frame["duration"][1]
    assert 0.4 <= length < 0.6 and abs(frame["n_samples"][1] / 16_000 - 0.4) < 0.1
    assert frame["fake_segments"].tolist()[:5] == [[], *[[[0.0, length]]] * 3, []]
    assert frame["audio_fake_segments"].tolist()[:4] == [[], [[0.0, length]], [], [[0.0, length]]]
    assert frame["visual_fake_segments"].tolist()[:4] == [[], [], [[0.0, length]], [[0.0, length]]]
    faults = faults_of(small_copy, "fakeavceleb")
    assert faults[["row", "action"]].values.tolist() == [[7, "kept"]]
    assert "no such file" in faults["problem"][0]
    record = json.loads((small_copy / "lists/fakeavceleb.json").read_text())
    assert record["media"] == str(small_copy) and record["types"]["real"] == 3


def test_a_system_of_another_data_set_is_scored_here(small_copy, tmp_path):
    """Zero-shot: its scores lie with the system, under the list's name."""
    system = make_system(tmp_path / "exp/loudest")
    frame = make(small_copy, "--probe", "missing", "--force")
    features = np.ones((10, 8), np.float32)
    shard = [MouthRow(f, 25.0, features, np.ones(10, bool), "") for f in frame["file"][:5]]
    shard.append(MouthRow(frame["file"][5], 25.0, 0 * features, np.zeros(10, bool), "no face"))
    place = parts.Place(1, 1, 0, 1)
    shards.write_part(
        tmp_path / "features/mouth/fakeavceleb", place, shard, {"made": "small"}, "fakeavceleb"
    )
    sources = ["--lists", small_copy / "lists", "--media", small_copy]
    sources += ["--features", tmp_path / "features"]
    assert cli.main(["score", *map(str, (system, "--split", "fakeavceleb", *sources))]) == 0
    scored = score_file.read_scores(system / "scores/fakeavceleb.clips.tsv").table
    assert scored["score"].isna().tolist() == [False] * 5 + [True]
    labels = small_copy / "lists/fakeavceleb.tsv"
    arguments = ["--split", "fakeavceleb", "--labels", labels, "--out", tmp_path]
    assert cli.main(["evaluate", *map(str, (system, *arguments)), "--bootstrap", "10"]) == 0
    record = json.loads((system / "metrics-fakeavceleb.json").read_text())
    assert record["n"] == 6 and record["n_fake"] == 3 and record["n_no_answer"] == 1


def test_audio_is_found_below_the_root(small_copy):
    make(small_copy, "--probe", "missing", "--force")
    sources = Sources(small_copy / "lists", small_copy, small_copy)
    reader = audio.AudioClips().reader(sources, "fakeavceleb")
    assert len(reader.read(sources.table("fakeavceleb")["file"][0])) >= 6400
    with pytest.raises(KlassifyError):
        reader.read(sources.table("fakeavceleb")["file"][5])
    frame, subset = labelled_list(small_copy / "lists/fakeavceleb.tsv", "fakeavceleb", None)
    assert subset == "all" and len(frame) == 6
