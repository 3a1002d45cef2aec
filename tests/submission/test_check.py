"""The checker against the official evaluator's traps, hostile archives and goldens."""

import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from places import GOLDENS

from klassify.cli import main
from klassify.commands import check as check_command
from klassify.errors import KlassifyError
from klassify.evaluation import shortcuts
from klassify.submission import check, check_task2, prediction_json
from klassify.submission.prediction_json import read_prediction_json
from klassify.submission.verdict import JSON, MANIFEST, MAX_ROWS, TXT, ZIP, Listed, Verdict

GOLDEN = json.loads((GOLDENS / "official_eval.json").read_text(encoding="utf-8"))
FILES = ["000001.mp4", "000002.mp4", "sub/000003.mp4"]
GOOD_TXT = "000001.mp4;0.5\n000002.mp4;1e-9\nsub/000003.mp4;1\n"
GOOD_JSON = json.dumps({name: [[0.9, 0.5, 1.0], [0.1, 2.0, 2.5]] for name in FILES})
# accepted by the evaluator, but not what anybody means to hand in
REFUSED_HERE_ONLY = {"extra_files", "duplicate_lines"}


# how a listed name may be written otherwise
LIKE = [
    ("000002.mp4", "000002"),
    ("000002.mp4", "000002.avi"),
    ("000002.mp4", "testA/000002.mp4"),
    ("000002.mp4", '"000002.mp4"'),
    ("000002.mp4", " 000002.mp4"),
    ("sub/000003.mp4", "000003.mp4"),
]


def listed(files=FILES, durations=None):
    return Listed(list(files), "testA.tsv", durations, first_line=2)


def verdict_of(tmp_path, name, content, files=FILES, **options):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return check.check(path, listed(files), **options)


def make_zip(tmp_path, members, **options):
    path = tmp_path / "submission.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content, **options)
    return path


def text(notes):
    return "\n".join(notes.lines())


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_good_submission_is_accepted(tmp_path, end):
    path = make_zip(tmp_path, [(TXT, GOOD_TXT.rstrip("\n") + end), (JSON, GOOD_JSON)])
    verdict = check.check(path, listed())
    assert verdict.accepted and not verdict.warnings.total
    assert verdict.answers == {TXT: 3, JSON: 3}


@pytest.mark.parametrize(
    "content, kind, place",
    [
        ("000001.mp4;0.5\n000002.mp4;0.1\n", "no answer", "testA.tsv:4: 'sub/000003.mp4'"),
        (GOOD_TXT + "other.mp4;0.5\n", "not in the list", "prediction.txt:4: 'other.mp4'"),
        (
            GOOD_TXT + "000001.mp4;0.5\n",
            "answered twice",
            "prediction.txt:4: '000001.mp4', first in line 1",
        ),
        ("file;score\n" + GOOD_TXT, "header", "prediction.txt:1"),
        (GOOD_TXT.replace(";", ","), "separator", "prediction.txt:1"),
        (GOOD_TXT.replace(";", "\t"), "separator", "prediction.txt:1"),
        (GOOD_TXT.replace("1e-9", "nan"), "not finite", "prediction.txt:2: 'nan'"),
        (GOOD_TXT.replace("1e-9", "-inf"), "not finite", "prediction.txt:2"),
        (GOOD_TXT.replace("1e-9", "1e400"), "not finite", "prediction.txt:2"),
        (GOOD_TXT.replace("1e-9", ""), "empty", "prediction.txt:2: ''"),
        (GOOD_TXT.replace("1e-9", "1.0000001"), "outside [0, 1]", "prediction.txt:2"),
        (GOOD_TXT.replace("1e-9", "-0.1"), "outside [0, 1]", "prediction.txt:2"),
        (GOOD_TXT.replace("1e-9", "fake"), "not a number", "prediction.txt:2: 'fake'"),
        (GOOD_TXT.replace("1e-9", "0,5"), "not a number", "prediction.txt:2"),
        (GOOD_TXT.replace("1e-9", "1_0"), "not a number", "prediction.txt:2"),
        (GOOD_TXT.replace("1e-9", "0x1"), "not a number", "prediction.txt:2"),
        (GOOD_TXT.replace("1e-9", "\u0661"), "not a number", "prediction.txt:2"),
        *(
            (GOOD_TXT.replace(*names), "not in the list", f"the list has {names[0]!r}")
            for names in LIKE
        ),
        (GOOD_TXT.replace("1e-9", "0.1;x"), "more columns than the first", "prediction.txt:2"),
        ("\ufeff" + GOOD_TXT, "byte order mark", "prediction.txt:1"),
        (GOOD_TXT.encode("utf-16"), "byte order mark", "prediction.txt:1"),
        (GOOD_TXT.encode("utf-16-le"), "control characters", "prediction.txt:1"),
        (GOOD_TXT.encode() + b"\xff\xfe.mp4;0.5\n", "not UTF-8", "prediction.txt:4"),
        (GOOD_TXT.replace("\n", "\r"), "control characters", "prediction.txt:1"),
        (GOOD_TXT + "x" * 5000, "too long", "prediction.txt:4"),
        (GOOD_TXT.replace("000002", "00\x00002"), "control characters", "prediction.txt:2"),
        ("", "no answer", "testA.tsv:2"),
    ],
)
def test_each_trap_of_prediction_txt_is_refused_with_its_place(tmp_path, content, kind, place):
    said = text(verdict_of(tmp_path, TXT, content).refusals)
    assert kind in said and place in said, said


@pytest.mark.parametrize(
    "content, kind",
    [
        (GOOD_TXT.replace("\n", "\r\n"), "CR LF"),
        (GOOD_TXT.replace("\n", "\n\n"), "blank"),
        (GOOD_TXT.replace("\n", ";x\n"), "column after the score"),
        (GOOD_TXT.replace(";", "; "), "spaces"),
        ("".join(f"{name};0.5\n" for name in FILES), "same score"),
        ("000001.mp4;0\n000002.mp4;1\nsub/000003.mp4;1\n", "decimal point"),
    ],
)
def test_what_the_server_tolerates_is_a_warning(tmp_path, content, kind):
    verdict = verdict_of(tmp_path, TXT, content)
    assert verdict.accepted and kind in text(verdict.warnings)


def test_all_problems_are_counted_and_a_few_shown(tmp_path):
    files = [f"{i:06d}.mp4" for i in range(1000)]
    verdict = verdict_of(tmp_path, TXT, "".join(f"{f};2\n" for f in files[:700]), files, limit=3)
    assert verdict.refusals.total == 700 + 300
    shown = text(verdict.refusals)
    assert "prediction.txt:3:" in shown and "prediction.txt:4:" not in shown
    assert "... and 697 more" in shown and "... and 297 more" in shown


def rows(value):
    """A prediction.json whose second clip has this answer."""
    clips = {FILES[0]: [[0.5, 0, 1]], FILES[1]: "HERE", FILES[2]: [[0.5, 0, 1]]}
    return json.dumps(clips).replace('"HERE"', value)


BAD_ROWS = {
    "[]": "empty list",
    "{}": "empty list",
    "[[]]": "columns",
    "[[0.5, 0]]": "2 columns",
    "[[0.5, 0, 1], [0.4, 0]]": "2 and 3 columns",
    "[[0.5, 1, 2], [0.5, 1, 2, 3]]": "3 and 4 columns",
    "[[[0.5, 0, 1]]]": "columns",
    "[[NaN, 0, 1]]": "NaN",
    "[[0.5, 0, Infinity]]": "infinite",
    "[[0.5, 0, 1e999]]": "infinite",
    f"[[0.5, 0, {'9' * 400}]]": "64 bits",
    f"[[-{'9' * 5000}, 0, 1]]": "64 bits",
    "[[123456789012345678901234567890, 1, 2]]": "64 bits",
    "[[0.5, null, 1]]": "not a number",
    '[["0.9", 0, 1]]': "not a number",
    "[[true, 0, 1]]": "not a number",
    '[[0.5, 1, 2, "audio"]]': "not a number",
    "[[[0.5], [0], [1]]]": "not a number",
    f"[[0.5, 1, {'[' * 500}{']' * 500}]]": "not a number",
    "[0.5, 0, 1]": "not a list",
    '[{"score": 1}]': "1 columns",
    '{"a": 1}': "not a list",
    "null": "not a list",
    "0.5": "not a list",
    '"xyz"': "not a list",
    "[[0.5, 0, 1],]": "cannot read",
}


@pytest.mark.parametrize("value, kind", BAD_ROWS.items(), ids=[value[:30] for value in BAD_ROWS])
def test_what_aborts_the_evaluator_is_refused(tmp_path, value, kind):
    said = text(verdict_of(tmp_path, JSON, rows(value)).refusals)
    assert kind in said
    for run_bytes in (7, 1 << 18):
        with pytest.raises(KlassifyError) as refusal:
            read_prediction_json(tmp_path / JSON, run_bytes)
        assert kind in str(refusal.value)
        assert kind == "cannot read" or FILES[1] in refusal.value.what


@pytest.mark.parametrize(
    "content, kind",
    [
        (rows("[[0.5, 0, 1, 2, 3]]"), "5 columns"),
        (GOOD_JSON[:-1] + ",}", "cannot read"),
        (GOOD_JSON[:-1], "cannot read"),
        (GOOD_JSON + "}", "cannot read"),
        ("\ufeff" + GOOD_JSON, "cannot read"),
        (GOOD_JSON.encode("utf-16"), "cannot read"),
        ("[" + GOOD_JSON + "]", "cannot read"),
        ("", "cannot read"),
        ('{"a": ' + "[" * 100_000, "cannot read"),
        (b'{"\xff": [[1, 0, 1]]}', "cannot read"),
        ("{}", "no answer"),
        (GOOD_JSON.replace("000001.mp4", "000001"), "the list has '000001.mp4'"),
        (GOOD_JSON[:-1] + ', "000001.mp4": [[1, 0, 1]]}', "answered twice"),
        (GOOD_JSON[:-1] + ', "other.mp4": [[1, 0, 1]]}', "not in the list"),
    ],
)
def test_each_trap_of_prediction_json_is_refused(tmp_path, content, kind):
    assert kind in text(verdict_of(tmp_path, JSON, content).refusals)


@pytest.mark.parametrize(
    "value, kind",
    [
        ("[[0.5, 0, 1, 7]]", "fourth column"),
        ("[[0.1, 0, 1], [0.5, 2, 3]]", "not sorted"),
        ("[[1.5, 0, 1]]", "outside [0, 1]"),
        ("[[0.5, 1, 0]]", "reversed"),
        ("[[0.5, -1, 0]]", "outside the clip"),
        ("[[0.5, 1, 9]]", "outside the clip"),
        ("[[0.5, 0, 1], [0.4, 0, 1]]", "appears twice"),
        (json.dumps([[0.5, i, i + 1] for i in range(51)]), "more than 50"),
    ],
)
def test_proposals_that_only_cost_points_are_a_warning(tmp_path, value, kind):
    path = tmp_path / JSON
    path.write_text(rows(value))
    verdict = check.check(path, listed(durations=[100.0, 5.0, 100.0]))
    assert verdict.accepted and kind in text(verdict.warnings)


@pytest.mark.parametrize(
    "write, looks_like",
    [
        (lambda score, start, end: [start, end, score], "are they [start, end, score]?"),
        (lambda score, start, end: [score, end, start], "are they [score, end, start]?"),
        (lambda score, start, end: [score, start * 1000, end * 1000], "are they milliseconds?"),
        (lambda score, start, end: [score, start * 25, end * 25], "are they frames of 40 ms?"),
        (lambda score, start, end: [score, start * 16_000, end * 16_000], "samples at 16 kHz?"),
        (lambda score, start, end: [score, start, end - start], "or [score, start, duration]?"),
        (
            lambda score, start, end: [start * 1000, end * 1000, score],
            "are they [start, end, score] in milliseconds?",
        ),
        (lambda score, start, end: [score, start + 2e7, end + 2e7], "outside their clips; fix"),
    ],
)
def test_rows_in_another_order_or_unit_are_refused(tmp_path, write, looks_like):
    draw = np.random.default_rng(0)
    clips = {}
    for name in FILES:
        score = np.sort(draw.beta(0.5, 2, 20))[::-1].tolist()
        start, length = draw.uniform((0, 0.1), (9, 1), (20, 2)).T.tolist()
        clips[name] = [write(p, s, s + seconds) for p, s, seconds in zip(score, start, length)]
    clips["000002.mp4"] = [[0.0, 0.0, 0.0]]  # "nothing found" counts neither way
    path = tmp_path / JSON
    path.write_text(json.dumps(clips))
    said = text(check.check(path, listed(durations=[10.0, 10.0, 10.0])).refusals)
    assert looks_like in said and "fix: write [score, start, end], with times in seconds" in said
    assert f"prediction.json['000001.mp4']: {clips['000001.mp4'][0]}" in said


def test_rows_that_may_match_are_never_refused(tmp_path):
    """A few impossible ones among them, ends a little late, and clips of unknown length."""
    path = tmp_path / JSON
    path.write_text(json.dumps({name: [[0.9, 0, 4.4], [0.2, 3, 1]] for name in FILES}))
    for durations in ([4.0, 4.0, 4.0], None):
        assert check.check(path, listed(durations=durations)).accepted


def test_an_answer_without_any_segment_is_a_warning(tmp_path):
    content = json.dumps({name: [[0.0, 0.0, 0.0]] for name in FILES})
    assert "AP and AR will be 0" in text(verdict_of(tmp_path, JSON, content).warnings)


def test_placeholder_is_accepted_without_a_word(tmp_path):
    verdict = verdict_of(tmp_path, JSON, rows("[[0.0, 0.0, 0.0]]"))
    assert verdict.accepted and not verdict.warnings.total


@pytest.mark.parametrize(
    "members, kind",
    [
        ([("submission/prediction.txt", GOOD_TXT)], "top level"),
        ([("submission/", ""), ("submission/prediction.txt", GOOD_TXT)], "top level"),
        ([(TXT, GOOD_TXT), ("manifest.json", "{}")], "nothing else"),
        ([(TXT, GOOD_TXT), ("__MACOSX/", "")], "zip -X new.zip prediction.*"),
        ([(TXT, GOOD_TXT), ("__MACOSX/._prediction.txt", "")], "zip -X"),
        ([(TXT, GOOD_TXT), ("._prediction.txt", "")], "zip -X"),
        ([(TXT, GOOD_TXT), (".DS_Store", "")], "klassify package"),
        ([(TXT, GOOD_TXT), ("../prediction.json", GOOD_JSON)], "outside the archive"),
        ([(TXT, GOOD_TXT), ("/etc/passwd", "")], "outside the archive"),
        ([(TXT, GOOD_TXT), ("a\\..\\..\\b", "")], "outside the archive"),
        ([(TXT, GOOD_TXT), ("C:\\b", "")], "outside the archive"),
        ([("Prediction.txt", GOOD_TXT)], "nothing else"),
        ([], "neither"),
    ],
)
def test_archives_of_the_wrong_shape_are_refused(tmp_path, members, kind):
    verdict = check.check(make_zip(tmp_path, members), listed())
    assert not verdict.accepted and kind in text(verdict.refusals)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["submission.zip"], (
        "nothing may be extracted"
    )


def test_repeated_member_link_and_encryption_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = make_zip(tmp_path, [(TXT, GOOD_TXT), (TXT, GOOD_TXT)])
    assert "twice in the archive" in text(check.check(path, listed()).refusals)
    link = zipfile.ZipInfo(TXT)
    link.external_attr = 0o120777 << 16
    assert "outside" in text(
        check.check(make_zip(tmp_path, [(link, "/etc/passwd")]), listed()).refusals
    )
    stored = bytearray(make_zip(tmp_path, [(TXT, GOOD_TXT)]).read_bytes())
    stored[6] |= 1
    stored[stored.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(stored)
    assert "encrypted" in text(check.check(path, listed()).refusals)


def test_a_zip_bomb_is_refused_by_its_declared_size(tmp_path):
    path = make_zip(tmp_path, [(TXT, b"0" * 50_000_000)])
    assert "larger than any answer" in text(check.check(path, listed()).refusals)
    stored = bytearray(path.read_bytes())  # the same, with a small size declared in both headers
    for magic, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = stored.index(magic) + offset
        stored[at : at + 4] = struct.pack("<I", 100)
    path.write_bytes(stored)
    assert not check.check(path, listed()).accepted


def test_a_prediction_json_is_as_large_as_its_list_allows(tmp_path):
    row = b"[0.123456789012345678, 1.123456789012345678, 2.123456789012345678],"
    for n_rows, fits in ((4 * MAX_ROWS, True), (100_000, False)):
        names = [f"{k}.mp4".encode() for k in range(3)]
        body = b",".join(b'"%s": [%s[0, 0, 1]]' % (name, row * n_rows) for name in names)
        verdict = check.check(make_zip(tmp_path, [(JSON, b"{" + body + b"}")]), listed())
        assert ("larger than any answer" in text(verdict.refusals)) != fits
    whole = 850_000 * (1 + 50) * 40  # bytes of the challenge's own split
    sizes = listed([f"{k:06d}.mp4" for k in range(850_000)])
    verdict = Verdict()
    check._check_member(io.BytesIO(b"{}"), JSON, whole, sizes, verdict)
    assert "larger" not in text(verdict.refusals)


@pytest.mark.parametrize("name", ["other", "000001.mp4", "{}"])
def test_answers_that_no_clip_needs_have_an_end(tmp_path, monkeypatch, name):
    monkeypatch.setattr(check_task2, "MAX_STRAYS", 50)
    content = "{" + ",".join(f'"{name.format(k)}": [[0.5, 0, 1]]' for k in range(60)) + ', "b": []}'
    verdict = verdict_of(tmp_path, JSON, content)
    assert "was not read" in text(verdict.refusals)
    assert "empty list" not in text(verdict.refusals)


def test_broken_archives_are_refused(tmp_path):
    stored = make_zip(tmp_path, [(TXT, GOOD_TXT * 50)]).read_bytes()
    damaged = bytearray(stored)
    damaged[60] ^= 0xFF
    for content in (b"", b"not a zip", stored[: len(stored) // 2], bytes(damaged)):
        verdict = verdict_of(tmp_path, "submission.zip", content)
        assert "not a readable zip" in text(verdict.refusals)


def test_wrong_file_name_is_refused(tmp_path):
    assert "must be named" in text(verdict_of(tmp_path, "predictions.txt", GOOD_TXT).refusals)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_what_the_evaluator_accepted_is_accepted(tmp_path, case):
    """A golden: predictions that the published evaluator scored."""
    files = [entry["file"] for entry in case["metadata"]]
    txt = verdict_of(tmp_path, TXT, case["prediction_txt"], files)
    assert txt.accepted == (case["kind"] not in REFUSED_HERE_ONLY), text(txt.refusals)
    proposals = verdict_of(tmp_path, JSON, case["prediction_json"], files)
    assert proposals.accepted == (case["kind"] != "extra_files"), text(proposals.refusals)


@pytest.mark.parametrize("case", GOLDEN["refused"], ids=lambda case: case["reason"])
def test_what_the_evaluator_aborts_on_is_refused(tmp_path, case):
    """A golden: predictions on which the evaluator failed; the other task's file was sound."""
    files = [entry["file"] for entry in case["metadata"]]
    of_txt = "TXT" in case["reason"]
    assert verdict_of(tmp_path, TXT, case["prediction_txt"], files).accepted == (not of_txt)
    assert verdict_of(tmp_path, JSON, case["prediction_json"], files).accepted == of_txt


def test_command_exits_with_0_or_1_and_2_for_a_mistake(tmp_path, capsys):
    names = tmp_path / "testA_files.txt"
    names.write_text("\n".join(FILES) + "\n")
    (tmp_path / TXT).write_text(GOOD_TXT)
    command = ["check", str(tmp_path), "--list", str(names)]
    assert main(command) == 0 and "ACCEPTED" in capsys.readouterr().out
    (tmp_path / TXT).write_text(GOOD_TXT.replace("1e-9", "7"))
    assert main(command) == 1 and "prediction.txt:2: '7'" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "absent.zip"), "--list", str(names)]) == 2
    assert main(["check", str(tmp_path)]) == 2 and "--list" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"list": {"path": "/etc/passwd"}}'])
def test_a_foreign_manifest_matters_only_without_a_list(tmp_path, capsys, content):
    names = tmp_path / "testA_files.txt"
    names.write_text("\n".join(FILES) + "\n")
    (tmp_path / TXT).write_text(GOOD_TXT)
    (tmp_path / MANIFEST).write_text(content)
    assert main(["check", str(tmp_path), "--list", str(names)]) == 0
    assert main(["check", str(tmp_path)]) == 2
    assert "manifest.json" in (said := capsys.readouterr().err) and "give --list" in said


def test_shortcuts_in_the_data_are_warnings(tmp_path, capsys, monkeypatch):
    names = tmp_path / "testA_files.txt"
    names.write_text("\n".join(FILES) + "\n")
    (tmp_path / TXT).write_text(GOOD_TXT)
    row = ("dc_offset", "audio", 0.9, 0.8, 1.0, 0.6, 9, shortcuts.SHORTCUT, "none")
    traits = pd.DataFrame([row], columns=shortcuts.COLUMNS)
    shortcuts.write(tmp_path / "exp/demo/audit", shortcuts.Audit("val", 9, 5, 3, 0, traits))
    command = ["check", str(tmp_path), "--list", str(names)]
    assert main(command) == 0 and "dc_offset" not in capsys.readouterr().out
    assert main([*command, "--audit", str(tmp_path / "exp/demo/audit")]) == 0
    assert "val: dc_offset tells fake from real with AUC 0.900" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    manifest = {"systems": {"task1": {"path": "exp/demo/klassify/maxout"}}}
    assert check_command._audits_beside(manifest) == [Path("exp/demo/audit")]
    seed = {"systems": {"task1": {"path": "exp/demo/klassify/seed-2/maxout"}}}
    assert check_command._audits_beside(seed) == [Path("exp/demo/audit")]
    assert check_command._audits_beside({"systems": {"task1": {"path": "../x/y/z"}}}) == []


def test_no_places_are_shown_with_a_limit_of_0(tmp_path):
    verdict = verdict_of(tmp_path, TXT, "000001.mp4;2\n", limit=0)
    assert "1 x " in text(verdict.refusals) and "... and 1 more" in text(verdict.refusals)
    assert "prediction.txt:1" not in text(verdict.refusals)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_members_are_stored_or_deflated(tmp_path, method):
    path = tmp_path / ZIP
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(TXT, GOOD_TXT)
    data = bytearray(path.read_bytes())
    data[60:70] = bytes(10)  # damaged, which each method has an error of its own for
    path.write_bytes(data)
    assert "neither stored nor deflated" in text(check.check(path, listed()).refusals)


def test_the_fast_check_passes_only_what_the_slow_one_passes(monkeypatch):
    """Blocks of many clips against one clip at a time, with every kind of warning among them."""
    rng = np.random.default_rng(0)
    files, clips = [f"{i:03d}.mp4" for i in range(300)], {}
    for i, file in enumerate(files):
        n = int(rng.integers(1, 8))
        score = np.sort(rng.random(n))[::-1]
        start = np.round(rng.uniform(0, 8, n), 1)
        table = np.column_stack([score, start, start + rng.choice([0.5, 1.0], n)])
        faults = {
            10: lambda t: t[::-1],
            11: lambda t: t + [1, 0, 0],
            12: lambda t: t - [0, 9, 0],
            13: lambda t: np.repeat(t, 2, axis=0),
            14: lambda t: np.repeat(t, 51, axis=0),
            15: lambda t: t[:, [0, 2, 1]],
        }
        clips[file] = faults.get(i % 20, lambda t: t)(table).tolist()
    del clips[files[7]]
    clips["other.mp4"] = [[0.5, 1.0, 2.0]]
    found = []
    for parse in (prediction_json._parse, lambda text: None):
        monkeypatch.setattr(prediction_json, "_parse", parse)
        verdict = Verdict(1000, keep=True)
        handle = io.BytesIO(json.dumps(clips).encode())
        durations = Listed(files, "list", [9.0] * len(files))
        seen = check_task2.check_json(handle, JSON, durations, verdict)
        notes = [(dict(n.counts), dict(n.places)) for n in (verdict.refusals, verdict.warnings)]
        found.append((seen, notes, verdict.kept[JSON]))
    assert found[0] == found[1] and len(found[0][1][1][0]) == 5
