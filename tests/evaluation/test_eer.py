"""EERs of clips, frames and time, from frame scores of a small benchmark."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from klassify import cli
from klassify.evaluation.eer import measure_eer
from klassify.grid.ragged import FrameTable, row_offsets
from klassify.lists import data_list
from klassify.metrics.clips import Ranking, bootstrap, eer
from klassify.scores.score_file import Header, score_path, write_scores
from klassify.systems.base import System, write_system

HOP_S = 0.16
N_FRAMES = 8


@pytest.fixture(scope="module")
def benchmark():
    """40 clips of 1.28 s of 8 speakers, every other one with a fake part, and noisy scores."""
    rng = np.random.default_rng(0)
    files = [f"{i}.wav" for i in range(40)]
    cells = [[[0.3, 0.7]] if i % 2 else [] for i in range(40)]
    frame = pd.DataFrame(
        {
            "file": files,
            "n_frames": 0,
            "fps": 0.0,
            "n_samples": 20480,
            "duration": 1.28,
            "modify_type": ["audio_modified" if cell else "real" for cell in cells],
            "source": [f"s{i // 5}" for i in range(40)],
            "fake_segments": cells,
            "audio_fake_segments": cells,
            "visual_fake_segments": [[]] * 40,
        }
    )
    scores = rng.normal(size=(40, N_FRAMES))
    scores[1::2, 1:5] += 1.5
    offsets = row_offsets(np.full(40, N_FRAMES))
    return frame, FrameTable(np.array(files, object), offsets, scores.ravel(), HOP_S)


def test_each_measure_equals_its_definition(benchmark):
    frame, table = benchmark
    found = measure_eer({"bam": table}, frame, n_bootstrap=50).set_index("measure")
    scores = table.scores.reshape(40, N_FRAMES)
    is_fake = np.arange(40) % 2
    assert found["eer"]["utterance"] == pytest.approx(eer(is_fake, scores.max(axis=1)))
    labels = np.zeros((40, N_FRAMES), int)
    labels[1::2, 1:5] = 1  # 0.3 to 0.7 s touch frames 1 to 4
    assert found["eer"]["160 ms"] == pytest.approx(eer(labels.ravel(), scores.ravel()))
    seconds = np.zeros((40, N_FRAMES))
    seconds[1::2, 1:5] = [0.02, 0.16, 0.16, 0.06]
    both = Ranking(np.repeat([0, 1], 320), np.tile(scores.ravel(), 2))
    weights = np.concatenate([0.16 - seconds.ravel(), seconds.ravel()])
    assert found["eer"]["range"] == pytest.approx(both.auc_and_eer(weights)[1])
    assert found["n"].tolist() == pytest.approx(
        [40, 2560, 1280, 640, 320, 160, 80, 40 * 1.28 / 3600]
    )
    assert (found["eer_low"] < found["eer"]).all() and (found["eer"] < found["eer_high"]).all()


def test_intervals_are_those_of_resampled_sources(benchmark):
    frame, table = benchmark
    found = measure_eer({"bam": table}, frame, n_bootstrap=40, seed=3).set_index("measure")
    labels = np.zeros((40, N_FRAMES), int)
    labels[1::2, 1:5] = 1

    def slow(weights):
        ranking = Ranking(labels.ravel(), table.scores)
        return np.array([ranking.auc_and_eer(np.repeat(row, N_FRAMES))[1] for row in weights])

    drawn = bootstrap(slow, frame["source"].to_numpy(str), n=40, seed=3)
    wanted = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose(found.loc["160 ms", ["eer_low", "eer_high"]].astype(float), wanted)


def test_clips_whose_segments_are_unknown_are_left_out(benchmark):
    frame, table = benchmark
    frame = frame.assign(fake_segments=[None, *frame["fake_segments"][1:]])
    found = measure_eer({"bam": table}, frame, n_bootstrap=0).set_index("measure")
    assert found["n"]["utterance"] == 39


def test_evaluate_prints_percent_with_intervals(benchmark, tmp_path, capsys):
    frame, table = benchmark
    labels = tmp_path / "lists/heldout/test_labels.tsv"
    data_list.write_list(labels, frame)
    folders = [tmp_path / "bam", tmp_path / "louder"]
    for folder, scores in zip(folders, (table.scores, 2 * table.scores)):
        write_system(folder, System(folder.name, "model", "audio", "segment", "log_odds"))
        rows = dataclasses.replace(table, scores=scores)
        start = np.tile(HOP_S * np.arange(N_FRAMES), 40)
        columns = {"file": np.repeat(rows.files, N_FRAMES), "start": start, "end": start + HOP_S}
        header = Header(folder.name, "test", "frames", "log_odds", "segment", {}, HOP_S)
        write_scores(
            score_path(folder, "test", "frames"), pd.DataFrame(columns).assign(score=scores), header
        )
    given = [*folders, "--task", 2, "--eer", "--split", "test", "--labels", labels]
    assert cli.main([*map(str, ["evaluate", *given, "--out", tmp_path / "evaluation"])]) == 0
    said = capsys.readouterr().out
    written = pd.read_csv(tmp_path / "evaluation/test.eer.tsv", sep="\t")
    assert (tmp_path / "evaluation/test.eer.txt").read_text() == said
    assert "test (all): clips, frames and time, 8 sources" in said
    value = 100 * written.set_index(["system", "measure"]).loc[("bam", "range"), "eer"]
    assert f"{value:.2f} [" in said and len(written) == 16
    assert cli.main([*map(str, ["evaluate", *folders, "--eer", *given[4:], "--out", "x"])]) == 2
