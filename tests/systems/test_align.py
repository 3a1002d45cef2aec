"""Frames of several systems against slow, obvious loops; frame files read by name."""

import numpy as np
import pandas as pd
import pytest

from klassify.errors import KlassifyError
from klassify.grid import ragged
from klassify.scores import frame_file
from klassify.scores.frame_file import FrameFile
from klassify.scores.score_file import Header, write_blocks
from klassify.systems import align

FRAME_S = 0.04


def frame_table(clips, columns=("real", "fake"), cut_s=0.01):
    """clips: {file: values (T, C)}; score = last minus first column; ends `cut_s` early."""
    names = ["file", "start", "end", "score", *columns]
    parts = [pd.DataFrame({name: [] for name in names})]
    for file, values in clips.items():
        k = np.arange(len(values))
        end = np.minimum((k + 1) * FRAME_S, len(values) * FRAME_S - cut_s)
        score = values[:, -1] - values[:, 0]
        table = pd.DataFrame({"file": file, "start": k * FRAME_S, "end": end, "score": score})
        parts.append(table.assign(**{name: values[:, i] for i, name in enumerate(columns)}))
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def write(path, clips, columns=("real", "fake"), rows_a_part=None):
    table = frame_table(clips, columns)
    size = rows_a_part or max(len(table), 1)
    parts = [table.iloc[i : i + size] for i in range(0, max(len(table), 1), size)]
    header = Header(path.name.split(".")[0], "val", "frames", "log_odds", "segment")
    write_blocks(path, parts, header)
    return FrameFile(path)


def random_clips(seed, files, n_columns, longest=60):
    rng = np.random.default_rng(seed)
    return {file: rng.normal(size=(int(rng.integers(1, longest)), n_columns)) for file in files}


def test_frame_files_are_read_by_name_in_any_order(tmp_path):
    files = [f"id/{i} é.mp4" for i in range(12)]
    clips = random_clips(0, files, 2)
    source = write(tmp_path / "visual.parquet", clips, rows_a_part=17)
    assert source.files.tolist() == files
    for wanted in (files, files[::-1], [files[3], "absent.mp4", files[0]], [], ["absent.mp4"]):
        rows = source.read(wanted, ["fake", "real"])
        for i, file in enumerate(wanted):
            own = rows.values[rows.offsets[i] : rows.offsets[i + 1]]
            np.testing.assert_allclose(own, clips.get(file, np.empty((0, 2)))[:, ::-1])
            if file in clips:
                assert rows.ends_s[i] == pytest.approx(len(clips[file]) * FRAME_S - 0.01)
            else:
                assert np.isnan(rows.ends_s[i])


def test_hostile_frame_files_are_refused(tmp_path):
    clips = {"a": np.ones((3, 2)), "b": np.ones((2, 2))}
    header = Header("v", "val", "frames", "log_odds", "segment")
    table = frame_table(clips)
    write_blocks(tmp_path / "twice.parquet", [table, table.iloc[:3]], header)
    with pytest.raises(KlassifyError, match="are not contiguous: a"):
        FrameFile(tmp_path / "twice.parquet")
    write_blocks(tmp_path / "gap.parquet", [table.drop(index=1)], header)
    with pytest.raises(KlassifyError, match="of a are not one row for each 40 ms"):
        FrameFile(tmp_path / "gap.parquet").read(["b", "a"], ["real"])
    write_blocks(tmp_path / "nan.parquet", [table.assign(real=np.nan)], header)
    with pytest.raises(KlassifyError, match="no finite numbers"):
        FrameFile(tmp_path / "nan.parquet").read(["b"], ["real"])
    with pytest.raises(KlassifyError, match="no columns ps160_real"):
        FrameFile(tmp_path / "nan.parquet").read(["b"], ["ps160_real"])
    with pytest.raises(KlassifyError, match="does not exist"):
        FrameFile(tmp_path / "absent.parquet")


def test_clip_scores_are_those_of_a_loop():
    rng = np.random.default_rng(2)
    counts = np.array([3, 0, 25, 1, 10, 40])
    offsets = np.append(0, np.cumsum(counts))
    scores = np.round(rng.normal(size=offsets[-1]), 1)
    for how in ragged.POOLS:
        found = ragged.pooled(scores, offsets, how)
        for i, count in enumerate(counts):
            own = np.sort(scores[offsets[i] : offsets[i + 1]])[::-1]
            top = own[: 1 if how == "max" else max(int(0.1 * count), 1)]
            np.testing.assert_allclose(found[i], top.mean() if count else np.nan)
    with pytest.raises(KlassifyError, match="unknown pooling 'mean'"):
        ragged.pooled(scores, offsets, "mean")


def slowly_aligned(inputs, file, hold_s):
    """inputs: [{file: (T, C)}, ...]; the frames of one clip, frame by frame."""
    there = [clips[file] for clips in inputs if file in clips]
    rows = []
    for k in range(len(there[0]) if there else 0):
        row = []
        for clips in inputs:
            n_columns = next(iter(clips.values())).shape[1]
            own = clips.get(file)
            if own is None or (hold_s is not None and (k - len(own) + 1) * FRAME_S > hold_s + 1e-9):
                row += [np.nan] * n_columns
            else:
                row += own[min(k, len(own) - 1)].tolist()
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("hold_s", [0.0, 0.04, 0.64, None])
def test_aligned_frames_are_those_of_a_loop(tmp_path, hold_s):
    files = [f"{i}.mp4" for i in range(40)]
    visual, audio = random_clips(3, files[4:], 2), random_clips(4, files[:36:2] + files[37:], 6)
    audio_columns = [f"ps{ms}_{side}" for ms in (160, 320, 640) for side in ("real", "fake")]
    sources = [
        write(tmp_path / "visual.parquet", visual, rows_a_part=50),
        write(tmp_path / "ps.parquet", dict(reversed(audio.items())), audio_columns),
    ]
    columns = [["real", "fake"], audio_columns]
    found = align.aligned(sources, columns, [*files, "absent"], hold_s=hold_s)
    start, end = found.frame_times()
    for i, file in enumerate([*files, "absent"]):
        mine = slice(found.offsets[i], found.offsets[i + 1])
        wanted = slowly_aligned([visual, audio], file, hold_s)
        np.testing.assert_allclose(found.values[mine], wanted.reshape(-1, 8))
        assert found.present[i].tolist() == [file in visual, file in audio]
        if len(wanted):
            np.testing.assert_allclose(start[mine], np.arange(len(wanted)) * FRAME_S)
            np.testing.assert_allclose(end[mine][-1], len(wanted) * FRAME_S - 0.01)
    again = align.aligned(sources, columns, files[::-1], hold_s=hold_s)
    np.testing.assert_array_equal(again.counts, found.counts[:-1][::-1])


def test_blocks_do_not_change_the_result(tmp_path):
    clips = random_clips(5, [f"{i}" for i in range(9)], 2)
    source = write(tmp_path / "visual.parquet", clips)
    whole = align.aligned([source], [["real", "fake"]], list(clips))
    parts = [
        align.aligned([source], [["real", "fake"]], block)
        for block in frame_file.blocks(list(clips), 4)
    ]
    np.testing.assert_array_equal(np.concatenate([part.values for part in parts]), whole.values)


@pytest.mark.parametrize(("hop_s", "offset_s"), [(0.02, 0.0), (0.02, 0.0025), (0.01, 0.0075)])
def test_other_grids_are_averaged_over_40_ms(hop_s, offset_s):
    rng = np.random.default_rng(8)
    counts = np.array([9, 0, 1, 250, 0])
    values = rng.normal(size=(counts.sum(), 2))
    ends_s = np.where(counts > 0, offset_s + counts * hop_s - 0.003, np.nan)
    rows = frame_file.Rows(ragged.row_offsets(counts), ends_s, values)
    found = align.on_40_ms(rows, hop_s, offset_s)
    for i, clip in enumerate(np.split(values, rows.offsets[1:-1])):
        mine = found.values[found.offsets[i] : found.offsets[i + 1]]
        assert len(mine) == (np.ceil(ends_s[i] / FRAME_S) if len(clip) else 0)
        for k, value in enumerate(mine):  # at 0.1 ms
            times = k * FRAME_S + (np.arange(400) + 0.5) / 10_000
            row = np.clip(np.floor((times - offset_s) / hop_s + 1e-9), 0, len(clip) - 1)
            np.testing.assert_allclose(value, clip[row.astype(int)].mean(axis=0), atol=1e-9)


def test_systems_of_two_hops_on_one_timeline(tmp_path):
    clips = random_clips(9, ["a", "b"], 2)
    coarse = write(tmp_path / "coarse.parquet", clips)
    fine = {name: np.repeat(values, 2, axis=0) for name, values in clips.items()}
    table = frame_table(fine).assign(start=lambda t: t["start"] / 2, end=lambda t: t["end"] / 2)
    header = Header("fine", "val", "frames", "log_odds", "segment", hop_s=FRAME_S / 2)
    write_blocks(tmp_path / "fine.parquet", [table], header)
    both = [coarse, FrameFile(tmp_path / "fine.parquet")]
    values = align.aligned(both, [["real", "fake"]] * 2, ["b", "a"]).values
    np.testing.assert_allclose(values[:, :2], values[:, 2:])
