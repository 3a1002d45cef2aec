"""The reader of prediction.json against the json module; test_check.py has what is refused."""

import io
import json
import resource

import numpy as np
import pandas as pd
import pytest

from klassify.errors import KlassifyError
from klassify.grid.segments import Proposals, Truth
from klassify.lists.records import truth_from_metadata
from klassify.submission.prediction_json import Block, iter_blocks, read_prediction_json

GOOD = '"a.mp4": [[0.9, 1, 2]]'
RUNS = (1, 7, 64, 1 << 18)
ONE = "[[0.9, 1, 2]]"


def read(tmp_path, text, run_bytes=1 << 18):
    path = tmp_path / "prediction.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_prediction_json(path, run_bytes)


def as_dict(proposals):
    parts = np.split(proposals.rows, proposals.offsets[1:-1])
    return {name: part.tolist() for name, part in zip(proposals.files, parts)}


def expected(text):
    with np.errstate(over="ignore"):
        clips = {
            name: np.float32([row[:3] for row in rows]) for name, rows in json.loads(text).items()
        }
    return {name: rows.tolist() for name, rows in clips.items()}


@pytest.mark.parametrize("run_bytes", RUNS)
@pytest.mark.parametrize(
    "text",
    [
        "{}",
        " \n{ }\t",
        "{" + GOOD + "}",
        '\r\n { "a.mp4" : [ [ 0.9 , 1 ,\t2 ] , [0,0,0] ] ,\n"b.mp4":[[0.5,1,2]] } \n',
        '{"a": [[1e-3, 1E2, -2.5e+1], [-0.0, 12, 18446744073709551615]], "b": [[5e-400, 1, 2]]}',
        '{"a": [[0.9, 1, 2, 7]], "b": [[0.9, 1, 2, 7, 8], [0.1, 3, 4, 7, 8]], "c": [[0.5, 1, 2]]}',
        '{"\\u0061\\"]], \\"x.mp4": X, "back\\\\": X, "sl\\/ash": X}'.replace("X", ONE),
        '{"é/中 true.mp4": X, "[[1, 2, 3]], ": X, ": [[null": X, "": X}'.replace("X", ONE),
        '{"a": [[0.1, 1, 2]], "b": [[0.2, 1, 2], [0.1, 3, 4]], "a": [[0.9, 5, 6], [0.8, 7, 8]]}',
        '{"a": [[1e39, 1, 2], [-1e39, 1, 2]]}',
    ],
    ids=range(10),
)
def test_reads_what_json_reads(text, run_bytes, tmp_path):
    assert as_dict(read(tmp_path, text, run_bytes)) == expected(text)


@pytest.mark.parametrize("run_bytes", (100, 1000, 1 << 18))
@pytest.mark.parametrize(
    "style", [{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}]
)
def test_reads_random_files(style, run_bytes, tmp_path):
    rng = np.random.default_rng(0)
    clips = {
        f"id{i}/é{rng.integers(9)}],[/{i}.mp4": (
            np.round(rng.normal(size=(rng.integers(1, 40), 3)), 4).tolist()
        )
        for i in range(200)
    }
    text = json.dumps(clips, **style)
    proposals = read(tmp_path, text, run_bytes)
    assert as_dict(proposals) == expected(text) and proposals.rows.dtype == np.float32
    found = []
    for block in iter_blocks(io.BytesIO(text.encode()), run_bytes):
        if isinstance(block, Block):
            rows = np.split(block.numbers, np.cumsum(block.counts)[:-1])
            block = zip(block.names, [row.tolist() for row in rows])
        found += block
    assert found == list(clips.items())


@pytest.mark.parametrize("run_bytes", (7, 1 << 18))
@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "[" + GOOD + "]", "x", "{", "}", "{,}", "{" + GOOD, "{" + GOOD + ",}"),
        *("{," + GOOD + "}", "{" + GOOD + "} x", "{" + GOOD + "}{}", "{" + GOOD + "}}"),
        *('{"a": [[0.9, 1, 2],]}', '{"a": [[0.9, 1, 2,]]}'),
        *('{"a": [[0.9, 1, 2]] "b": [[0.9, 1, 2]]}', '{"a": [[0.9, 1, 2]],, "b": [[0.9, 1, 2]]}'),
        *('{"a" [[0.9, 1, 2]]}', '{"a": [[0.9 1 2]]}', '{"a": [[.5, 1, 2]]}'),
        *('{"a": [[+5, 1, 2]]}', '{"a": [[05, 1, 2]]}', '{"a": [[1., 1, 2]]}'),
        *('{"a": [[0.9, 1, 2]', '{"a": [[0.9, 1, 2]]; "b": [[0.9, 1, 2]]}', "{'a': [[0.9, 1, 2]]}"),
        '{"a\tb": [[0.9, 1, 2]]}',
        "\ufeff{" + GOOD + "}",
        b'{"\xff": [[0.9, 1, 2]]}',
        *('{"a": [[0x1, 1, 2]]}', '{"a": [[0.9, 1, 2]], "a": []}', '{"a": [], "a": [[0.9, 1, 2]]}'),
        *('{"a": [[0.9, 1, 2]], "b"}', '{"a'),
        "{" + GOOD + ', "bad.mp4": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_broken_json_is_refused_wherever_it_is_cut(text, run_bytes, tmp_path):
    with pytest.raises(KlassifyError) as refusal:
        read(tmp_path, text, run_bytes)
    assert refusal.value.where == tmp_path / "prediction.json"


def test_a_fault_late_in_a_large_file_is_named(tmp_path):
    clips = [f'"v{i}.mp4": [[0.9, 1.0, 2.0], [0.8, 3.0, 4.0]]' for i in range(5000)]
    clips[4321] = '"v4321.mp4": []'
    with pytest.raises(KlassifyError, match="'v4321.mp4': an answer is an empty list"):
        read(tmp_path, "{" + ", ".join(clips) + "}", 4096)
    clips[4321] = '"v4321.mp4": [[0.9, 1.0, oops]]'
    with pytest.raises(KlassifyError, match="line 1, at .*oops"):
        read(tmp_path, "{" + ", ".join(clips) + "}", 4096)
    for run_bytes in (100, 1 << 20):
        with pytest.raises(KlassifyError, match="line 4322, at .*oops"):
            read(tmp_path, "{" + ",\n".join(clips) + "}", run_bytes)


def test_a_missing_file_is_a_mistake_of_the_user(tmp_path):
    with pytest.raises(KlassifyError, match="cannot be read"):
        read_prediction_json(tmp_path / "none.json")


def test_memory_stays_near_that_of_the_result(tmp_path):
    clip = "[" + ", ".join(["[0.1234, 12.34, 13.45]"] * 50) + "]"
    path = tmp_path / "prediction.json"
    path.write_text("{" + ", ".join(f'"{i:06d}.mp4": {clip}' for i in range(20_000)) + "}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(read_prediction_json(path).rows) == 1_000_000
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < 60  # 12 MB of rows, twice while they are joined; a tree of lists takes 290 MB


def test_from_rows_of_a_segments_file():
    clip = np.array([2, 0, 2, -1, 2])
    start = np.array([1.0, 2.0, 3.0, 0.0, 5.0])
    score = np.array([0.2, 0.9, 0.7, 1.0, 0.7])
    for most, wanted in ((None, [2.0, 3.0, 5.0, 1.0]), (2, [2.0, 3.0, 5.0])):
        found = Proposals.from_rows(["a", "empty", "b"], clip, score, start, start + 0.5, most)
        assert found.files.tolist() == ["a", "empty", "b"]
        assert found.offsets.tolist() == [0, 1, 1, len(wanted)]
        np.testing.assert_allclose(found.rows[:, 1], wanted)


def test_truth_from_lists_and_from_metadata(tmp_path):
    segments = [[[1.0, 2.0]], [], [[0.5, 0.9], [2, 3]]]
    frame = pd.DataFrame({"file": ["a", "b", "c"], "fake_segments": segments})
    path = tmp_path / "metadata.json"
    path.write_text(frame.to_json(orient="records"))
    for truth in (Truth.from_list(frame), truth_from_metadata(path)):
        assert truth.files.tolist() == ["a", "b", "c"] and truth.offsets.tolist() == [0, 1, 1, 3]
        np.testing.assert_array_equal(truth.segments, [[1, 2], [0.5, 0.9], [2, 3]])
    assert truth.take(np.array([2, 0])).segments.tolist() == [[0.5, 0.9], [2, 3], [1, 2]]
    with pytest.raises(KlassifyError, match="visual_fake_segments"):
        truth_from_metadata(path, "visual_fake_segments")
    for segments in ("[1.0, 2.0]", "[[1.0, 2.0, 3.0]]", "null", '[["1", "x"]]'):
        path.write_text(f'[{{"file": "a", "fake_segments": {segments}}}]')
        with pytest.raises(KlassifyError, match="fake_segments"):
            truth_from_metadata(path)
    path.write_text("[]")
    assert len(truth_from_metadata(path).files) == 0


def acceptable(text):
    """The rule: an object of non-empty lists of equally long rows of three or more numbers."""
    try:
        clips = json.loads(text, object_pairs_hook=list)
    except ValueError:
        return False
    if not text.lstrip().startswith("{"):
        return False
    for _, rows in clips:
        if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
            return False
        if len({len(row) for row in rows}) > 1 or len(rows[0]) < 3:
            return False
        numbers = [x for row in rows for x in row]
        if not all(type(x) in (int, float) and np.isfinite(x) for x in numbers):
            return False
    return True


def test_damaged_files_are_read_if_they_follow_the_rule(tmp_path):
    good = '{"a\\n.mp4": [[0.9, 1, 2], [0.5, 3.25, 4]], "é": [[1e-2, 0, 0]], "c": [[0.1, 5, 6, 7]]}'
    outcomes = {True: 0, False: 0}
    for seed in range(100):
        rng = np.random.default_rng(seed)
        text = list(good)
        for _ in range(rng.integers(1, 3)):
            at, new = rng.integers(len(text)), rng.choice(list('{}[],:" \\0159.-tn'))
            text[at : at + rng.integers(0, 2)] = [new] * rng.integers(0, 2)
        text = "".join(text)
        outcomes[acceptable(text)] += 1
        for run_bytes in (3, 20, 1 << 18):
            if acceptable(text):
                assert as_dict(read(tmp_path, text, run_bytes)) == expected(text), text
            else:
                with pytest.raises(KlassifyError):
                    read(tmp_path, text, run_bytes)
    assert min(outcomes.values()) > 15
