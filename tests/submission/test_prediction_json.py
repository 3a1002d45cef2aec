"""The reader of prediction.json against the json module, and every input that the evaluator
aborts on.
"""

import json
import resource

import numpy as np
import pandas as pd
import pytest

from klassify.errors import KlassifyError
from klassify.grid.segments import Proposals, Truth
from klassify.lists.records import truth_from_metadata
from klassify.submission.prediction_json import read_prediction_json

GOOD = '"a.mp4": [[0.9, 1, 2]]'
CHUNKS = (1, 7, 64, 1 << 18)


def read(tmp_path, text, chunk_bytes=1 << 18):
    path = tmp_path / "prediction.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_prediction_json(path, chunk_bytes)


def as_dict(proposals):
    parts = np.split(proposals.rows, proposals.offsets[1:-1])
    return {name: part.tolist() for name, part in zip(proposals.files, parts)}


def expected(text):
    with np.errstate(over="ignore"):
        return {
            name: np.float32([row[:3] for row in rows]).tolist()
            for name, rows in json.loads(text).items()
        }


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize(
    "text",
    [
        "{}",
        " \n{ }\t",
        "{" + GOOD + "}",
        '\r\n { "a.mp4" : [ [ 0.9 , 1 ,\t2 ] , [0,0,0] ] ,\n"b.mp4":[[0.5,1,2]] } \n',
        (
            '{"a.mp4": [[1e-3, 1E2, -2.5e+1], [-0.0, 12, 18446744073709551615]], "b": [[5e-400, 1,'
            " 2]]}"
        ),
        (
            '{"a.mp4": [[0.9, 1, 2, 7]], "b.mp4": [[0.9, 1, 2, 7, 8], [0.1, 3, 4, 7, 8]], "c":'
            " [[0.5, 1, 2]]}"
        ),
        (
            '{"\\u0061\\"]], \\"x.mp4": [[0.9, 1, 2]], "back\\\\": [[0.8, 1, 2]], "sl\\/ash":'
            " [[0.7, 1, 2]]}"
        ),
        (
            '{"é/中 true.mp4": [[0.9, 1, 2]], "[[1, 2, 3]], ": [[0.8, 1, 2]], ": [[null": [[0.7, 1,'
            ' 2]], "": [[0.6, 1, 2]]}'
        ),
        '{"a": [[0.1, 1, 2]], "b": [[0.2, 1, 2], [0.1, 3, 4]], "a": [[0.9, 5, 6], [0.8, 7, 8]]}',
    ],
    ids=range(9),
)
def test_reads_what_json_reads(text, chunk_bytes, tmp_path):
    assert as_dict(read(tmp_path, text, chunk_bytes)) == expected(text)


@pytest.mark.parametrize("chunk_bytes", (100, 1000, 1 << 18))
@pytest.mark.parametrize(
    "style", [{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}]
)
def test_reads_random_files(style, chunk_bytes, tmp_path):
    rng = np.random.default_rng(0)
    clips = {
        f"id{i}/é{rng.integers(9)}/{i}.mp4": (
            np.round(rng.normal(size=(rng.integers(1, 40), 3)), 4).tolist()
        )
        for i in range(200)
    }
    read_back = read(tmp_path, json.dumps(clips, **style), chunk_bytes)
    assert as_dict(read_back) == {name: np.float32(rows).tolist() for name, rows in clips.items()}
    assert read_back.rows.dtype == np.float32


def test_numbers_beyond_float32_are_infinite(tmp_path):
    assert read(tmp_path, '{"a": [[1e39, 1, 2], [-1e39, 1, 2]]}').rows[:, 0].tolist() == [
        np.inf,
        -np.inf,
    ]


BAD_CLIPS = {
    "[]": "empty list",
    "[[]]": "0 columns",
    "[[0.9, 1]]": "2 columns",
    "[[0.9, 1, 2], [0.5, 1]]": "ragged",
    "[[0.5, 1, 2], [0.5, 1, 2, 3]]": "ragged",
    "[[], [0.5, 1, 2]]": "ragged",
    "[[NaN, 1, 2]]": "NaN",
    "[[Infinity, 1, 2]]": "infinite",
    "[[1e400, 1, 2]]": "infinite",
    "[[null, 1, 2]]": "null",
    '[["0.9", 1, 2]]': '"0.9"',
    "[[true, 1, 2]]": "true",
    '[[0.5, 1, 2, "audio"]]': '"audio"',
    "[[0.5, 1, 2, null]]": "null",
    "[0.9, 1, 2]": "row that is not a list",
    "[[[0.9, 1, 2]]]": "columns",
    "[[[0], [1], [2]]]": "where a number belongs",
    '[{"score": 1}]': "row that is not a list",
    "null": "no list",
    "0.5": "no list",
    '"x"': "no list",
    '"xyz"': "no list",
    "{}": "no list",
    "[[123456789012345678901234567890, 1, 2]]": "64 bits",
    f"[[{'9' * 400}, 1, 2]]": "64 bits",
    f"[[0.5, -{'9' * 5000}, 2]]": "64 bits",
    f"[[0.5, 1, {'[' * 500}{']' * 500}]]": "list",
}


@pytest.mark.parametrize("chunk_bytes", (7, 1 << 18))
@pytest.mark.parametrize("clip, why", BAD_CLIPS.items(), ids=[clip[:40] for clip in BAD_CLIPS])
def test_what_aborts_the_evaluator_is_refused_by_name(clip, why, chunk_bytes, tmp_path):
    with pytest.raises(KlassifyError) as refusal:
        read(tmp_path, "{" + GOOD + f', "bad.mp4": {clip}, "z.mp4": [[0.1, 1, 2]]}}', chunk_bytes)
    assert "prediction.json" in str(refusal.value)
    if "Text stands where" in str(
        refusal.value
    ):  # a cut of the smallest chunks, just before a quoted value
        assert chunk_bytes == 7 and '"' in clip
    else:
        assert why in str(refusal.value) and "bad.mp4" in str(refusal.value)


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" + GOOD + "]",
        "x",
        "{",
        "}",
        "{,}",
        "{" + GOOD,
        "{" + GOOD + ",}",
        "{," + GOOD + "}",
        "{" + GOOD + "} x",
        "{" + GOOD + "}{}",
        "{" + GOOD + "}}",
        '{"a": [[0.9, 1, 2],]}',
        '{"a": [[0.9, 1, 2,]]}',
        '{"a": [[0.9, 1, 2]] "b": [[0.9, 1, 2]]}',
        '{"a": [[0.9, 1, 2]],, "b": [[0.9, 1, 2]]}',
        '{"a" [[0.9, 1, 2]]}',
        '{"a": [[0.9 1 2]]}',
        '{"a": [[.5, 1, 2]]}',
        '{"a": [[+5, 1, 2]]}',
        '{"a": [[05, 1, 2]]}',
        '{"a": [[1., 1, 2]]}',
        '{"a": [[0.9, 1, 2]',
        '{"a": [[0.9, 1, 2]]; "b": [[0.9, 1, 2]]}',
        "{'a': [[0.9, 1, 2]]}",
        '{"a\tb": [[0.9, 1, 2]]}',
        "\ufeff{" + GOOD + "}",
        b'{"\xff": [[0.9, 1, 2]]}',
        '{"a": [[0x1, 1, 2]]}',
        '{"a": [[0.9, 1, 2]], "a": []}',
        '{"a": [], "a": [[0.9, 1, 2]]}',
        '{"a": [[0.9, 1, 2]], "b"}',
        '{"a',
    ],
)
def test_broken_json_is_refused_wherever_it_is_cut(text, chunk_bytes, tmp_path):
    with pytest.raises(KlassifyError) as refusal:
        read(tmp_path, text, chunk_bytes)
    assert refusal.value.where is not None


def test_lists_without_end_are_refused_with_their_place(tmp_path):
    with pytest.raises(KlassifyError, match="without end") as refusal:
        read(tmp_path, "{" + GOOD + ', "bad.mp4": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert "prediction.json: behind byte 1" in str(refusal.value)


def test_a_fault_late_in_a_large_file_is_named(tmp_path):
    clips = [f'"v{i}.mp4": [[0.9, 1.0, 2.0], [0.8, 3.0, 4.0]]' for i in range(5000)]
    clips[4321] = '"v4321.mp4": []'
    with pytest.raises(KlassifyError, match="'v4321.mp4' has an empty list") as refusal:
        read(tmp_path, "{" + ", ".join(clips) + "}", 4096)
    assert "[[0, 0, 0]]" in str(refusal.value)
    clips[4321] = '"v4321.mp4": [[0.9, 1.0, oops]]'
    with pytest.raises(KlassifyError, match="oops") as refusal:
        read(tmp_path, "{" + ", ".join(clips) + "}", 4096)
    text = "{" + ", ".join(clips) + "}"
    assert f"byte {text.index('oops')}" in str(refusal.value)


def test_a_missing_file_is_a_mistake_of_the_user(tmp_path):
    with pytest.raises(KlassifyError, match="cannot be read"):
        read_prediction_json(tmp_path / "none.json")


def test_memory_stays_near_that_of_the_result(tmp_path):
    clip = "[" + ", ".join(["[0.1234, 12.34, 13.45]"] * 50) + "]"
    text = "{" + ", ".join(f'"{i:06d}.mp4": {clip}' for i in range(20_000)) + "}"
    path = tmp_path / "prediction.json"
    path.write_text(text)
    del text
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(read_prediction_json(path).rows) == 1_000_000
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < 60  # 12 MB of rows, twice while they are joined; a tree of lists takes 290 MB


def test_from_a_segments_table():
    table = pd.DataFrame(
        {
            "file": ["b", "a", "b", "x", "b"],
            "start": [1.0, 2.0, 3.0, 0.0, 5.0],
            "end": [1.5, 2.5, 3.5, 1.0, 5.5],
            "score": [0.2, 0.9, 0.7, 1.0, 0.7],
            "method": "threshold",
        }
    )
    proposals = Proposals.from_table(table, ["a", "empty", "b"])
    assert proposals.files.tolist() == ["a", "empty", "b"] and proposals.offsets.tolist() == [
        0,
        1,
        1,
        4,
    ]
    np.testing.assert_allclose(proposals.rows[:, 1], [2.0, 3.0, 5.0, 1.0])


def test_truth_from_lists_and_from_metadata(tmp_path):
    frame = pd.DataFrame(
        {"file": ["a", "b", "c"], "fake_segments": [[[1.0, 2.0]], [], [[0.5, 0.9], [2, 3]]]}
    )
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
    """The rule in plain words: an object of non-empty lists of equally long rows of three
    numbers or more.
    """
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


def test_damaged_files_are_accepted_only_if_still_valid(tmp_path):
    good = (
        '{"a\\n.mp4": [[0.9, 1, 2], [0.5, 3.25, 4]], "é.mp4": [[1e-2, 0, 0]], "c": [[0.1, 5, 6,'
        " 7]]}"
    )
    outcomes = {True: 0, False: 0}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        text = list(good)
        for _ in range(rng.integers(1, 3)):
            at, new = rng.integers(len(text)), rng.choice(list('{}[],:" \\0159.-tn'))
            text[at : at + rng.integers(0, 2)] = [new] * rng.integers(0, 2)
        text = "".join(text)
        outcomes[acceptable(text)] += 1
        for chunk_bytes in (3, 20, 1 << 18):
            if acceptable(text):
                assert as_dict(read(tmp_path, text, chunk_bytes)) == expected(text), text
            else:
                with pytest.raises(KlassifyError):
                    read(tmp_path, text, chunk_bytes)
    assert min(outcomes.values()) > 30
