"""Every form in which people describe clips becomes one list, or is refused with advice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from klassify.cli import main
from klassify.errors import KlassifyError
from klassify.lists import data_list, datasets, subsets

ONE = [[0.872, 1.188]]
LENGTHS = {"video_frames": 102, "audio_frames": 65280}
ENTRIES = [
    {"file": "a.mp4", "modify_type": "real", "fake_segments": [], **LENGTHS},
    {
        "file": "b.mp4",
        "original": "a.mp4",
        "modify_type": "audio_modified",
        "fake_segments": ONE,
        "audio_fake_segments": ONE,
        "visual_fake_segments": [],
        **LENGTHS,
    },
]


def run_lists(root: Path, *extra: str) -> int:
    arguments = ["--data", "mine", "--root", str(root), "--out", str(root / "lists"), *extra]
    return main(["lists", *arguments])


def read(root: Path, name: str = "val"):
    return data_list.read_list(root / f"lists/{name}.tsv", segments=True)


def by_name(entries: list[dict]) -> dict[str, dict]:
    return {entry["file"]: {k: v for k, v in entry.items() if k != "file"} for entry in entries}


def table(entries: list[dict], delimiter: str) -> str:
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    rows = [[_cell(entry.get(name, "")) for name in names] for entry in entries]
    return "".join(delimiter.join(row) + "\n" for row in [names, *rows])


def _cell(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f'"{text}"' if "," in text else text


WITH_NAN = json.dumps(ENTRIES).replace('"real",', '"real", "original": NaN, "duration": -Infinity,')
FORMS = {
    "val_metadata.json": {
        "array": json.dumps(ENTRIES),
        "NaN": WITH_NAN,
        "JSON lines": "".join(json.dumps(entry) + "\n" for entry in ENTRIES),
        "JSON lines without the last newline": "\n".join(map(json.dumps, ENTRIES)),
        "objects in a row": "\n".join(json.dumps(entry, indent=1) for entry in ENTRIES),
        "by name": json.dumps(by_name(ENTRIES)),
        "by name, indented": json.dumps(by_name(ENTRIES), indent=2),
    },
    "val.json": {"array": json.dumps(ENTRIES)},
    "val_metadata.jsonl": {"JSON lines": "\r\n\r\n".join(map(json.dumps, ENTRIES))},
    "val.csv": {
        "comma": table(ENTRIES, ","),
        "semicolon": table(ENTRIES, ";"),
        "capitals": table([{k.title(): v for k, v in e.items()} for e in ENTRIES], ","),
    },
    "val.tsv": {"tab": table(ENTRIES, "\t")},
    "dev_metadata.json": {"dev": json.dumps(ENTRIES)},
    "Validation.csv": {"comma": table(ENTRIES, ",")},
    "metadata.json": {
        "all splits": json.dumps([entry | {"split": "dev"} for entry in ENTRIES]),
        "another split first": json.dumps(
            [ENTRIES[0] | {"split": "train"}, *(entry | {"split": "val"} for entry in ENTRIES)]
        ),
    },
    "metadata.csv": {"all splits": table([e | {"split": "valid"} for e in ENTRIES], ",")},
}
EACH = [(name, form) for name, forms in FORMS.items() for form in forms]


@pytest.mark.parametrize(("name", "form"), EACH)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_form_of_metadata_gives_the_same_list(tmp_path, name, form, encoding):
    (tmp_path / name).write_bytes(FORMS[name][form].encode(encoding))
    assert run_lists(tmp_path) == 0
    frame = read(tmp_path)
    assert frame["file"].tolist() == ["a.mp4", "b.mp4"]
    assert frame["modify_type"].tolist() == ["real", "audio_modified"]
    assert frame["source"].tolist() == ["a", "a"] and frame["duration"].tolist() == [4.08, 4.08]
    assert frame["fake_segments"].tolist() == [[], ONE]
    assert frame["audio_fake_segments"].tolist() == [[], ONE]
    assert not list((tmp_path / "lists").glob("*.failures.tsv"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_saved_by_other_programs_are_read(tmp_path, encoding):
    (tmp_path / "val_metadata.json").write_text(json.dumps(ENTRIES))
    assert run_lists(tmp_path) == 0
    before, path = read(tmp_path), tmp_path / "lists/val.tsv"
    path.write_bytes(path.read_text().encode(encoding))
    assert before.equals(read(tmp_path))
    (tmp_path / "testA_files.txt").write_bytes("é.mp4\r\nb.mp4\r\n".encode(encoding))
    assert run_lists(tmp_path, "--splits", "testA") == 0
    assert read(tmp_path, "testA")["file"].tolist() == ["é.mp4", "b.mp4"]


def test_texts_are_object_columns_under_every_pandas(tmp_path):
    (tmp_path / "val_metadata.json").write_text(json.dumps(ENTRIES))
    assert run_lists(tmp_path) == 0
    frame = data_list.read_list(tmp_path / "lists/val.tsv")
    assert {frame[name].dtype for name in ("file", "modify_type", "source")} == {np.dtype(object)}


REFUSED = {
    "object": ("val_metadata.json", '{"videos": [1, 2]}', "an object with videos as keys"),
    "name alone": ("val_metadata.json", '"a.mp4"', "it begins with"),
    "table": ("val_metadata.json", "file,label\na.mp4,fake\n", "it begins with b'file,label"),
    "truncated": ("val_metadata.json", json.dumps(ENTRIES)[:-30], "download it again: its end is"),
    "UTF-16": ("val_metadata.json", json.dumps(ENTRIES).encode("utf-16-le"), "as UTF-8"),
    "repr": ("val_metadata.json", str(ENTRIES), "write the file with json.dump"),
    "absolute": (
        "val_metadata.json",
        '[{"file": "/a.mp4", "label": "real"}]',
        "write names relative to the media folder",
    ),
    "no labels": ("val.csv", "name,kind\na.mp4,real\n", "'name, kind'"),
    "0 and 1": (
        "val.csv",
        "file,label\na.mp4,0\nb.mp4,1\n",
        "label 0 may mean real or fake: write the word",
    ),
    "split": (
        "metadata.json",
        json.dumps([entry | {"split": "../evil"} for entry in ENTRIES]),
        "'../evil' cannot be the name of a split",
    ),
}


@pytest.mark.parametrize(("name", "content", "told"), REFUSED.values(), ids=REFUSED)
def test_unreadable_metadata_is_refused_with_fitting_advice(tmp_path, capsys, name, content, told):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run_lists(tmp_path) == 2
    said = capsys.readouterr().err
    assert told in said
    if told.startswith(("an object", "it begins")):
        assert 'fix:   write [{"file": "a.mp4"' in said
    assert not (tmp_path / "evil.tsv").exists()


def test_names_with_backslashes_are_told_from_missing_media(tmp_path, capsys):
    (tmp_path / "val.csv").write_text("file,label\nreal\\a.mp4,real\n")
    assert run_lists(tmp_path, "--probe", "missing") == 2
    assert "write / instead of \\ in the names" in capsys.readouterr().err


def test_other_files_beside_the_metadata_describe_no_split(tmp_path):
    (tmp_path / "val.csv").write_text("file,label\na.mp4,real\n")
    for name in ("test_results.json", "test_notes.csv", "config.json", "results.tsv"):
        (tmp_path / name).write_text("{}")
    assert run_lists(tmp_path) == 0
    assert [path.name for path in (tmp_path / "lists").glob("*.tsv")] == ["val.tsv"]


def test_columns_that_are_not_read_are_named(tmp_path, capsys):
    (tmp_path / "val.csv").write_text("video,label,start,end\na.mp4,real,,\nb.mp4,fake,0.8,1.1\n")
    assert run_lists(tmp_path) == 0
    told = capsys.readouterr()
    assert "columns that are not read: start, end" in told.err
    assert "no segments, so for Task 1 alone" in told.out


@pytest.mark.parametrize("wrong", [[0.8, 1.2], [{"start": 0.8, "end": 1.2}], "[[0.8, 1.2]]"])
def test_segments_of_another_shape_are_refused_if_all_are(tmp_path, capsys, wrong):
    fakes = [ENTRIES[1] | {"file": f"{i}.mp4", "fake_segments": wrong} for i in range(3)]
    path = tmp_path / "val_metadata.json"
    path.write_text(json.dumps([ENTRIES[0], *fakes]))
    assert run_lists(tmp_path) == 2
    told = capsys.readouterr().err
    assert "of 3 of 3 fakes cannot be read" in told
    assert "write seconds as [[start, end], ...]" in told
    path.write_text(json.dumps([*ENTRIES, fakes[0]]))
    assert run_lists(tmp_path) == 0
    assert read(tmp_path)["fake_segments"].tolist() == [[], ONE, None]


def changed(entry: dict, **fields) -> list[dict]:
    return [ENTRIES[0], {k: v for k, v in (entry | fields).items() if v is not None}]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "audio_modified"),
        ({"visual_fake_segments": ONE}, "both_modified"),
        ({"visual_fake_segments": ONE, "audio_fake_segments": []}, "visual_modified"),
        ({"audio_fake_segments": None, "visual_fake_segments": None}, "fake"),
        ({"audio_fake_segments": []}, "fake"),
    ],
)
def test_a_plain_fake_is_of_the_modality_that_segments_tell(tmp_path, fields, kind):
    entries = changed(ENTRIES[1], modify_type="fake", **fields)
    (tmp_path / "val_metadata.json").write_text(json.dumps(entries))
    assert run_lists(tmp_path) == 0
    frame = read(tmp_path)
    assert frame["modify_type"].tolist() == ["real", kind]
    assert frame["fake_segments"].tolist() == [[], ONE]
    assert subsets.label(frame, "video").tolist() == [0, 1]
    if kind == "fake":
        for modality in ("audio", "visual"):
            with pytest.raises(KlassifyError, match=f"whether their {modality} part is") as error:
                subsets.label(frame, modality)
            assert "data.init_args.label=video" in error.value.fix


@pytest.mark.parametrize(
    ("times", "unit", "seconds"),
    [
        ([872, 1188], "milliseconds", "1.188"),
        ([21, 29], "frames", "1.16"),
        ([14000, 19000], "samples", "1.1875"),
    ],
)
def test_segments_in_another_unit_are_refused_by_its_name(tmp_path, capsys, times, unit, seconds):
    entries = changed(ENTRIES[1], fake_segments=[times], audio_fake_segments=[times])
    path = tmp_path / "val_metadata.json"
    path.write_text(json.dumps(entries))
    assert run_lists(tmp_path) == 2
    said = capsys.readouterr().err
    assert f"as if the times were {unit}" in said and "in a clip of 4.08 s" in said
    assert f"fix:   write seconds: {seconds} instead of {times[1]}" in said
    # a few clips with impossible times stay in the list, without segments
    path.write_text(json.dumps(ENTRIES + [entries[1] | {"file": "c.mp4"}]))
    assert run_lists(tmp_path) == 0
    assert read(tmp_path)["fake_segments"].tolist() == [[], ONE, None]


@pytest.mark.parametrize("extra", [(), ("--splits", "dev")])
def test_a_split_that_is_written_under_another_name_is_told(tmp_path, capsys, extra):
    (tmp_path / "dev_metadata.json").write_text(json.dumps(ENTRIES))
    assert run_lists(tmp_path, *extra) == 0
    assert "the split dev is written as val" in capsys.readouterr().out


def test_labels_of_a_test_split_are_held_out(tmp_path):
    (tmp_path / "test_metadata.json").write_text(json.dumps(ENTRIES))
    assert run_lists(tmp_path) == 0
    frame = read(tmp_path, "test")
    assert set(frame["modify_type"]) == {""} and frame["n_frames"].tolist() == [102, 102]
    labels = read(tmp_path, "heldout/test_labels")
    assert labels["modify_type"].tolist() == ["real", "audio_modified"]


def folders(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")


def test_folders_named_after_labels_give_clip_labels(tmp_path):
    for split in ("train", "dev", "test"):
        files = (
            *("real/a.mp4", "real/b/c.MOV", "fake/a.mp4", "visual_modified/d.webm", "real/._a.mp4"),
        )
        folders(tmp_path / split, *files)
    assert run_lists(tmp_path) == 0
    frame = read(tmp_path, "train")
    assert dict(zip(frame["file"], frame["modify_type"])) == {
        "real/a.mp4": "real",
        "real/b/c.MOV": "real",
        "fake/a.mp4": "fake",
        "visual_modified/d.webm": "visual_modified",
    }
    header = (tmp_path / "lists/train.tsv").read_text().partition("\n")[0]
    assert "fake_segments" not in header
    source = dict(zip(frame["file"], frame["source"]))
    assert source["fake/a.mp4"] == source["real/a.mp4"] != source["real/b/c.MOV"]
    assert set(read(tmp_path, "val")["file"]) == set(frame["file"])
    assert json.loads((tmp_path / "lists/val.json").read_text())["media"] == str(tmp_path / "dev")
    assert set(read(tmp_path, "heldout/test_labels")["file"]) == set(frame["file"])


def test_folders_may_be_written_with_capitals(tmp_path, capsys):
    for split in ("Train", "Validation", "TEST"):
        folders(tmp_path / split, "Real/a.mp4", "FAKE/a.mp4")
    assert run_lists(tmp_path) == 0
    assert "the split Validation is written as val" in capsys.readouterr().out
    for name in ("train", "val", "heldout/test_labels"):
        frame = read(tmp_path, name)
        assert dict(zip(frame["file"], frame["modify_type"])) == {
            "Real/a.mp4": "real",
            "FAKE/a.mp4": "fake",
        }
        assert frame["source"].nunique() == 1


def test_part_folders_are_one_split_each_folder_decides(tmp_path, capsys):
    """As DFDC is released: metadata.json in each part, and all of them say train."""
    for part in range(4):
        folder = f"dfdc_train_part_{part}"
        folders(tmp_path / folder, "a.mp4", "b.mp4")
        fake = {"label": "FAKE", "split": "train", "original": "a.mp4"}
        entries = {"a.mp4": {"label": "REAL", "split": "train", "original": None}, "b.mp4": fake}
        (tmp_path / folder / "metadata.json").write_text(json.dumps(entries))
    folders(tmp_path, "test_videos/c.mp4")
    assert run_lists(tmp_path) == 2
    assert len(read(tmp_path, "train")) == 8
    told = capsys.readouterr().err
    assert "without metadata.json, so not read: test_videos" in told
    assert f"move some of the parts to {tmp_path}/val, such as dfdc_train_part_3" in told
    (tmp_path / "val").mkdir()
    (tmp_path / "dfdc_train_part_3").rename(tmp_path / "val/dfdc_train_part_3")
    assert run_lists(tmp_path, "--force") == 0
    assert len(read(tmp_path, "train")) == 6
    frame = read(tmp_path)
    assert dict(zip(frame["file"], frame["modify_type"])) == {
        "dfdc_train_part_3/a.mp4": "real",
        "dfdc_train_part_3/b.mp4": "fake",
    }
    assert set(frame["source"]) == {"dfdc_train_part_3/a"}
    assert json.loads((tmp_path / "lists/val.json").read_text())["media"] == str(tmp_path / "val")


def test_only_training_folders_need_labels(tmp_path, capsys):
    folders(tmp_path, "test/a.mp4", "test/b/c.mp4")
    assert run_lists(tmp_path) == 0
    assert read(tmp_path, "test")["file"].tolist() == ["a.mp4", "b/c.mp4"]
    folders(tmp_path, "train/a.mp4")
    assert run_lists(tmp_path, "--force") == 2
    said = capsys.readouterr().err
    assert f"where: {tmp_path / 'train'}" in said and "SPLIT/real and SPLIT/fake" in said


@pytest.mark.parametrize("data", ["avdeepfake1mpp", "fakeavceleb", "mine"])
def test_a_folder_without_any_clips_says_what_it_must_hold(tmp_path, data, capsys):
    command = ["lists", "--data", data, "--root", str(tmp_path), "--out", str(tmp_path / "l")]
    assert main(command) == 2
    assert datasets.how_described(data) in capsys.readouterr().err


@pytest.mark.parametrize("name", ["lavfd", "fakavceleb", "avdepfake1m", "a/b", "", ".."])
def test_misspelt_names_of_data_sets_are_refused(name):
    with pytest.raises(KlassifyError, match="avdeepfake1mpp"):
        datasets.check_name(name)


@pytest.mark.parametrize("name", ["mine", "lavdf-small", "demo2", *datasets.known()])
def test_other_names_are_data_sets_of_ones_own(name):
    assert datasets.check_name(name) == name


def doubts(root: Path, capsys, **splits: list[dict]) -> list[str]:
    shutil.rmtree(root / "lists", ignore_errors=True)
    for split, entries in splits.items():
        (root / f"{split}_metadata.json").write_text(json.dumps(entries))
    assert run_lists(root) == 0
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]


def clips(first: int, *kinds: str, **fields) -> list[dict]:
    return [
        {"file": f"{i}.mp4", "modify_type": kind, "video_frames": 100 + i, "audio_frames": 99 + i}
        | fields
        for i, kind in enumerate(kinds, first)
    ]


def test_sound_lists_raise_no_doubts(tmp_path, capsys):
    kinds = ["real", "fake"] * 3
    splits = {name: clips(9 * i, *kinds) for i, name in enumerate(("train", "val", "test"))}
    assert not doubts(tmp_path, capsys, **splits)


def test_lists_of_one_class_or_one_value_are_doubted(tmp_path, capsys):
    (said,) = doubts(tmp_path, capsys, val=clips(0, "fake", "audio_modified"))
    assert said == "all 2 clips of val are fake: a detector needs both classes"
    constant = clips(0, *["real", "fake"] * 2, original="x.mp4", duration=4.0)
    assert doubts(tmp_path, capsys, val=constant) == [
        "source is x for all 4 clips of val",
        "duration is 4.0 for all 4 clips of val",
    ]


def test_splits_that_share_sources_are_doubted(tmp_path, capsys):
    kinds = ["real", "fake", "real"]
    said = doubts(
        tmp_path, capsys, train=clips(0, *kinds), val=clips(1, *kinds), test=clips(3, *kinds)
    )
    assert said == [
        "2 of 3 sources of val are in train too, such as 1: numbers on val are optimistic",
        "1 of 3 sources of test are in val too, such as 3: numbers on test are optimistic",
    ]
