"""`klassify audit`: planted shortcuts are found, others are not, and chance is what it says."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import soundfile

from klassify.cli import main
from klassify.errors import KlassifyError
from klassify.evaluation import leaks, robustness, shortcuts
from klassify.evaluation.shortcuts import SHORTCUT, TOGETHER
from klassify.features.kinds import KINDS
from klassify.lists import data_list
from klassify.media import content, decoder
from klassify.media.container import MediaError
from klassify.metrics import clips
from klassify.scores.score_file import Header, score_path, write_scores
from klassify.systems.base import System, write_system

QUICK = {"n_bootstrap": 20, "n_permuted": 100}


@pytest.fixture(autouse=True)
def one_forest(monkeypatch):
    """Folding the sources several ways only narrows an AUC."""
    monkeypatch.setattr(leaks, "REPEATS", 1)
    monkeypatch.setattr(shortcuts, "N_JOINT", 1)


def listed(n_sources: int, types=("real", "audio_modified")) -> pd.DataFrame:
    rows = [
        {"file": f"{source}-{kind}.wav", "modify_type": kind, "source": str(source)}
        for source in range(n_sources)
        for kind in types
    ]
    return pd.DataFrame(rows)


def audited(frame, **traits):
    rows = [dict(zip(traits, values)) for values in zip(*traits.values())]
    return shortcuts.audit("val", frame, rows, **QUICK).traits.set_index("trait")


def test_each_trait_is_measured_against_its_own_label():
    frame = listed(30, ("real", "audio_modified", "visual_modified"))
    heard = (frame["modify_type"] == "audio_modified").to_numpy(float)
    seen = (frame["modify_type"] == "visual_modified").to_numpy(float)
    either = np.where(heard + seen, "new", "old").astype(object)
    table = audited(frame, silence_start_ms=heard, frozen_share=-seen, codecs=either)
    assert table["label"].to_dict() == {
        "silence_start_ms": "audio",
        "frozen_share": "visual",
        "codecs": "video",
        TOGETHER: "video",
    }
    assert (table["auc"] > 0.95).all() and (table["reading"] == SHORTCUT).all()
    assert "effect ends" in table.loc["silence_start_ms", "remedy"]


def test_what_the_source_decides_is_no_shortcut():
    frame = listed(40)
    rng = np.random.default_rng(0)
    of_source = np.repeat(rng.normal(size=40), 2)
    table = audited(frame, loudness_db=of_source, duration_s=of_source, rolloff_hz=[None] * 80)
    assert list(table.index) == ["loudness_db", "duration_s", TOGETHER]
    assert not (table["reading"] == SHORTCUT).any() and (table["remedy"] == "").all()


def test_permutations_keep_how_many_fakes_sources_have():
    source = np.array(["a", "b", "b", "c", "c", "d", "d", "d"])
    is_fake = np.array([1, 1, 1, 0, 0, 0, 0, 1])
    moved = shortcuts.permutations(source, 200)
    assert all(sorted(row) == list(range(8)) for row in moved)
    permuted = is_fake[moved]
    pairs = {(row[1:3].sum(), row[3:5].sum()) for row in permuted}
    assert (permuted[:, 0] == 1).all() and pairs == {(2, 0), (0, 2)}
    assert {tuple(row[5:]) for row in permuted} == {(0, 0, 1), (0, 1, 0), (1, 0, 0)}


def test_aucs_by_rank_sums_equal_the_metric():
    rng = np.random.default_rng(1)
    values = rng.integers(0, 9, 60).astype(float)
    values[::7] = np.nan
    labels = rng.integers(0, 2, (5, 60))
    known = ~np.isnan(values)
    want = [clips.roc_auc(label[known], values[known]) for label in labels]
    np.testing.assert_allclose(shortcuts._permuted_aucs(values, labels), want)


def test_chance_is_exceeded_by_one_audit_in_twenty():
    rng = np.random.default_rng(2)
    source = np.repeat(np.arange(25).astype(str), 2)
    moved = shortcuts.permutations(source, 200)
    above = []
    for _ in range(300):
        label = rng.permuted(np.tile([0, 1], (25, 1)), axis=1).ravel()
        alone = [(pd.Series(rng.normal(size=50)), label) for _ in range(5)]
        aucs = [clips.roc_auc(label, values.to_numpy()) for values, _ in alone]
        highest = max(max(auc, 1 - auc) for auc in aucs)
        above.append(highest > shortcuts._chance(alone, moved, source))
    assert 0.02 <= np.mean(above) <= 0.09


def test_every_trait_has_a_remedy_that_exists():
    from klassify.augmentation.sets import SETS

    effects = {name for _, names in SETS["shortcuts"] for name in names}
    assert set(shortcuts.EFFECTS.values()) == effects
    names = (*content.SOUND, *content.PICTURE, *content.CONTAINER, *content.TEXTS)
    assert set(shortcuts.EFFECTS) | set(shortcuts.OTHERWISE) <= set(names)
    assert all(shortcuts.remedy(name) for name in (*names, TOGETHER))


def test_an_audit_without_systems_leaves_no_table_of_them(tmp_path):
    found = shortcuts.audit(
        "val", listed(3), [{"loudness_db": float(i)} for i in range(6)], **QUICK
    )
    row = ("one", "cut", *(0.9, 0.8, 1.0), *(0.7, 0.6, 0.8), *(-0.2, -0.3, -0.1), 6)
    systems = pd.DataFrame([(*row, shortcuts.FALLS)], columns=shortcuts.SYSTEM_COLUMNS)
    shortcuts.write(tmp_path, dataclasses.replace(found, systems=systems))
    assert len(shortcuts.read(tmp_path / "val.json").systems) == 1
    shortcuts.write(tmp_path, found)
    assert shortcuts.read(tmp_path / "val.json").systems.empty
    assert {path.name for path in tmp_path.iterdir()} == {"val.json", "val.tsv", "val.txt"}
    said = (tmp_path / "val.txt").read_text()
    assert "No shortcut was found. These are few clips: an AUC of up to" in said


@pytest.mark.parametrize("kind", ["real", ""])
def test_a_list_without_both_classes_is_refused(kind):
    frame = listed(3).assign(modify_type=kind)
    with pytest.raises(KlassifyError, match="one class|no label"):
        shortcuts.audit("val", frame, [{}] * 6, **QUICK)


def test_a_list_of_clips_without_content_is_refused():
    with pytest.raises(KlassifyError, match="could be decoded"):
        shortcuts.audit("val", listed(3), [{}] * 6, **QUICK)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """12 real sounds and 12 fakes that start with 20 to 40 ms of near silence; one is damaged."""
    root = tmp_path_factory.mktemp("planted")
    frame, rng = listed(12), np.random.default_rng(0)
    for file, kind in zip(frame["file"], frame["modify_type"]):
        wave = rng.normal(0, rng.uniform(0.05, 0.2), 8000)
        if kind != "real":
            wave[: rng.integers(320, 640)] *= 0.0001
        soundfile.write(root / file, wave, 16_000)
    (root / frame["file"][0]).write_bytes(b"no sound")
    data_list.write_list(root / "val.tsv", frame)
    return root


def audit(root, *arguments):
    few = ("--bootstrap", "20", "--permutations", "50", "--jobs", "1")
    return main(["audit", str(root / "val.tsv"), "--out", str(root / "audit"), *few, *arguments])


def test_planted_leading_silence_is_found(planted, capsys, monkeypatch):
    assert audit(planted, "--root", str(planted)) == 0
    said = capsys.readouterr()
    assert "24 clips, 1 without content" in said.out
    (warning,) = [line for line in said.err.splitlines() if "silence_start_ms" in line]
    assert warning.startswith("warning: shortcut: val: ") and "effect ends" in warning
    found = shortcuts.read(planted / "audit" / "val.json")
    table = found.traits.set_index("trait")
    assert table.loc["silence_start_ms", "auc"] > 0.9
    assert set(table.index[table["reading"] == SHORTCUT]) == {"silence_start_ms", TOGETHER}
    assert found.failed == 1 and shortcuts.in_folder(planted / "audit")[0].title == found.title
    written = pd.read_csv(planted / "audit" / "val.tsv", sep="\t")
    assert list(written["trait"]) == list(found.traits["trait"])
    # repeated, and read from shards, without decoding anything
    before = (planted / "audit" / "val.json").read_text()
    monkeypatch.setattr(KINDS["content"].row_class, "failed", None)
    assert audit(planted, "--root", str(planted)) == 0
    assert audit(planted, "--features", str(planted / "audit")) == 0
    assert (planted / "audit" / "val.json").read_text() == before


def write_ear(folder, split, files, media):
    """Scores of a system that rests on leading silence, from the media themselves."""
    silences = []
    for file in files:
        try:
            traits = content.sound_traits(decoder.read_audio(media / file))
            silences.append(min(traits["silence_start_ms"], 100) / 100)
        except MediaError:
            silences.append(0.0)
    table = pd.DataFrame({"file": files, "start": 0.0, "end": 0.5, "score": silences})
    header = Header("ear", split, "clips", "probability", "clip")
    write_scores(score_path(folder, split, "clips"), table.assign(reason=""), header)


@pytest.mark.long
def test_cutting_both_ends_takes_a_shortcut_away(planted, capsys, monkeypatch):
    ear, system = planted / "ear", System("ear", "model", "audio", "clip", "probability")
    write_system(ear, system)
    command = ("--root", str(planted), "--systems", str(ear))
    assert audit(planted, *command) == 2
    assert "no scores of the clean clips, val" in capsys.readouterr().err
    assert audit(planted, *command[2:]) == 2 and "give --root" in capsys.readouterr().err
    files = data_list.read_list(planted / "val.tsv")["file"].tolist()
    write_ear(ear, "val", files, planted)

    def answer(systems, plan, features, **how):
        for split in map(plan.split_of, plan.steps):
            write_ear(ear, split, files, plan.media / split)

    monkeypatch.setattr(robustness, "answer", answer)
    assert audit(planted, *command, "--trim") == 0
    fall = "val: the AUC of ear falls from 1.000 to 0.500: 200 ms cut from both ends."
    assert fall in capsys.readouterr().err
    assert len(shortcuts.read(planted / "audit" / "val.json").systems) == 1
    assert audit(planted, *command) == 0
    assert f"warning: shortcut: {fall}" in capsys.readouterr().err
    found = shortcuts.read(planted / "audit" / "val.json")
    assert fall in found.warnings and "encoded again, CRF 28" in shortcuts.describe(found)
    table = found.systems.set_index("change")
    # AAC fills silence with what follows, so that encoding costs the system something too
    assert list(table["reading"])[:2] == [shortcuts.FALLS, shortcuts.WITHIN]
    assert (table["auc"] == 1).all() and (table["n"] == 24).all()
    assert table.loc["loudness of -23 LUFS", "difference"] == 0


def test_without_media_the_content_must_be_there(planted, capsys):
    assert audit(planted, "--features", str(planted / "absent")) == 2
    assert "no features of the kind content of val" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"traits": [{"trait": "x"}]}, {"split": None, "more": 1}])
def test_other_json_is_refused(tmp_path, change):
    found = shortcuts.Audit("val", 2, 1, 1, 0, pd.DataFrame(columns=shortcuts.COLUMNS))
    shortcuts.write(tmp_path, found)
    path = tmp_path / "val.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(KlassifyError, match="not the result of an audit"):
        shortcuts.read(path)
