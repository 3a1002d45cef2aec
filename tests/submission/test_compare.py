"""Two submissions side by side: counts and overlaps by hand, hostile archives."""

import io
import json
import zipfile

import numpy as np
import pytest
from scipy.stats import spearmanr

from klassify.cli import main
from klassify.submission import check
from klassify.submission.compare import compare_task1, compare_task2, report
from klassify.submission.verdict import JSON, TXT, Listed, Verdict

FILES = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
LISTED = Listed(FILES, "testA.tsv", [10.0] * 4, first_line=2)


def make_zip(path, task1=None, task2=None, **extra):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if task1 is not None:
            archive.writestr(TXT, "".join(f"{name};{score}\n" for name, score in task1.items()))
        if task2 is not None:
            archive.writestr(JSON, json.dumps(task2))
        for name, content in extra.items():
            archive.writestr(name, content)
    return path


def answers(tmp_path, **tasks):
    """What a package holds, as the checker reads it back: ({file: score}, {file: Answer})."""
    verdict = check.check(make_zip(tmp_path / "x.zip", **tasks), LISTED, keep=True)
    return [verdict.kept.get(name, {}) for name in (TXT, JSON)]


def lines(tmp_path, new, old):
    verdicts = [check.check(path, LISTED, keep=True) for path in (new, old)]
    return "\n".join(report(*verdicts, "old"))


def test_task1_counts_ranks_and_moves_against_the_obvious():
    rng = np.random.default_rng(0)
    old = {f"{i}.mp4": float(x) for i, x in enumerate(rng.random(200).round(2))}  # with ties
    new = {
        name: score if i % 3 else min(score + 0.01 * (i % 7), 1.0)
        for i, (name, score) in enumerate(old.items())
    }
    shuffled = dict(sorted(new.items(), reverse=True)) | {"extra.mp4": 0.5}
    change = compare_task1(shuffled, old | {"gone.mp4": 0.1})
    assert set(change.files) == set(old)
    assert change.n_changed == sum(new[name] != old[name] for name in old)
    names = list(old)
    expected = spearmanr([old[name] for name in names], [new[name] for name in names]).statistic
    assert change.spearman == pytest.approx(expected, abs=1e-12)
    moves = [abs(change.new[i] - change.old[i]) for i in change.moves(5)]
    assert moves == sorted((abs(new[name] - old[name]) for name in names), reverse=True)[:5]


def test_rank_correlation_ignores_monotonic_transforms():
    old = {f"{i}.mp4": i / 10 for i in range(10)}
    cubes = {name: score**3 for name, score in old.items()}
    turned = {name: 1 - score for name, score in old.items()}
    assert compare_task1(cubes, old).spearman == pytest.approx(1)
    assert compare_task1(turned, old).spearman == pytest.approx(-1)
    assert np.isnan(compare_task1(dict.fromkeys(old, 0.5), old).spearman)
    same = compare_task1(old, old)
    assert same.n_changed == 0 and len(same.moves(5)) == 0


def test_task2_counts_what_changed_and_the_overlap_of_the_best(tmp_path):
    none = [[0.0, 0.0, 0.0]]
    old = {
        "a.mp4": [[0.9, 1, 2], [0.5, 3, 4]],
        "b.mp4": [[0.8, 0, 2]],
        "c.mp4": [[0.7, 0, 1]],
        "d.mp4": none,
    }
    new = {
        "a.mp4": [[0.2, 5, 6], [0.95, 1.5, 2.5]],  # the best is the second: 1/3 of the hull
        "b.mp4": [[0.7, 0, 2]],  # only its score
        "c.mp4": none,
        "d.mp4": none,
    }
    change = compare_task2(answers(tmp_path, task2=new)[1], answers(tmp_path, task2=old)[1])
    assert change.n_changed == 3 and change.n_found == 2 and change.n_moved == 1
    assert change.n_lost == 1 and change.n_gained == 0
    assert change.mean_iou == pytest.approx((1 / 3 + 1 + 0) / 3)
    back = compare_task2(answers(tmp_path, task2=old)[1], answers(tmp_path, task2=new)[1])
    assert back.n_gained == 1 and back.mean_iou == pytest.approx(change.mean_iou)
    nothing = answers(tmp_path, task2=dict.fromkeys(FILES, none))[1]
    assert np.isnan(compare_task2(nothing, nothing).mean_iou)
    assert compare_task2({}, nothing).n_clips == 0


def test_the_report_names_missing_and_extra_clips_and_tasks(tmp_path):
    task1 = dict(zip(FILES, (0.1, 0.2, 0.3, 0.4)))
    old = make_zip(
        tmp_path / "old.zip", {**task1, "z.mp4": 0.5}, {name: [[0.5, 0, 1]] for name in FILES}
    )
    new = make_zip(tmp_path / "new.zip", {"a.mp4": 0.9, "b.mp4": 0.2})
    said = lines(tmp_path, new, old)
    assert "3 clips without an answer now: 'c.mp4', 'd.mp4', 'z.mp4'" in said
    assert "1 of 2 answers changed" in said and "'a.mp4': 0.1 -> 0.9, rank 2 -> 1" in said
    assert "only the old one has answers" in said
    assert "refused (1 problems)" in said and "not in the list" in said


HALVES = dict.fromkeys(FILES, 0.5)
ODD_ROWS = {"a.mp4": [], "b.mp4": "x", "c.mp4": [[0.5, 2, 1]], "d.mp4": [[0.5, 1, 1]]}
HOSTILE = {
    "bomb": {TXT: b"0" * 5_000_000},  # more than any answer
    "truncated": {"task1": HALVES},
    "nested": {JSON: '{"a.mp4": ' + "[" * 100_000},
    "outside": {"task1": HALVES, "../evil.txt": "x"},
    "odd rows": {"task2": ODD_ROWS},
}


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("as_new", [True, False])
def test_a_hostile_archive_is_refused_on_either_side(tmp_path, hostile, as_new, capsys):
    bad = make_zip(tmp_path / "bad.zip", **HOSTILE[hostile])
    if hostile == "truncated":
        bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    good = make_zip(
        tmp_path / "good.zip", dict.fromkeys(FILES, 0.5), {name: [[0.5, 1, 2]] for name in FILES}
    )
    names = tmp_path / "testA_files.txt"
    names.write_text("\n".join(FILES) + "\n")
    new, old = (bad, good) if as_new else (good, bad)
    status = main(["check", str(new), "--against", str(old), "--list", str(names)])
    said = capsys.readouterr().out
    assert status == int(as_new) and f"compared with {old}" in said
    assert as_new or "which is refused" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.zip", "good.zip", "testA_files.txt"]


def test_the_last_answer_of_a_name_counts_as_on_the_server(tmp_path):
    verdict = Verdict(keep=True)
    check.CHECKS[TXT](io.BytesIO(b"a.mp4;0.1\na.mp4;0.9\nb.mp4;nan\n"), TXT, LISTED, verdict)
    assert verdict.kept == {TXT: {"a.mp4": 0.9}}
    plain = Verdict()
    check.CHECKS[TXT](io.BytesIO(b"a.mp4;0.1\n"), TXT, LISTED, plain)
    assert plain.kept is None
