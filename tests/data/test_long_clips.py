"""Clips of any duration, with the models of the demo; the longest has eleven minutes."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from places import ROOT
from videos import sound, write_media

from klassify.data.base import Sources
from klassify.lists import data_list
from klassify.media import decoder
from klassify.scores import inference
from klassify.systems.experiment import load_experiment

CONF = ROOT / "recipes/klassify/conf/demo"
RATE = 16_000
CASES = [pytest.param(668.2, False, marks=pytest.mark.slow), (45.7, False), (45.7, True)]


def write_mp4(path: Path, duration_s: float) -> None:
    """Noise that swells and fades each ten seconds, as AAC."""
    wave = np.random.default_rng(1).normal(0, 0.1, round(duration_s * RATE))
    write_media(path, sound((wave * np.resize(np.hanning(10 * RATE), len(wave)))[None]))


@pytest.fixture(scope="module")
def sources(request, tmp_path_factory) -> Sources:
    """Their split `test` is one clip."""
    root = tmp_path_factory.mktemp("long")
    (root / "media/test").mkdir(parents=True)
    path = root / "media/test/long.mp4"
    write_mp4(path, request.param)
    wave = decoder.read_audio(path)
    assert abs(len(wave) / RATE - request.param) < 0.1
    row = {"file": "long.mp4", "n_samples": len(wave), "duration": len(wave) / RATE}
    data_list.write_list(root / "lists/test.tsv", pd.DataFrame([row]))
    return Sources(root / "lists", root / "media", root / "features")


def system(name):
    torch.manual_seed(0)
    experiment = load_experiment(CONF / f"{name}.yaml")
    return experiment.model.eval(), experiment.data


class Memory:
    """The peak of this process above its use before, in MB; 0 where the system cannot say."""

    def __init__(self):
        self.clear, self.used = Path("/proc/self/clear_refs"), 0.0

    @staticmethod
    def _read(which):
        status = Path("/proc/self/status").read_text()
        return int(re.search(rf"{which}:\s*(\d+) kB", status)[1]) / 1024

    def __enter__(self):
        if self.clear.exists():
            self.clear.write_text("5")  # the peak starts anew
            self.before = self._read("VmRSS")
        return self

    def __exit__(self, *error):
        if self.clear.exists():
            self.used = self._read("VmHWM") - self.before


@pytest.mark.parametrize(("sources", "approximate"), CASES, indirect=["sources"])
def test_the_detector_scores_a_clip_of_any_duration(sources, approximate):
    model, data = system("w2v_aasist")
    wave = data.reader(sources, "test").read("long.mp4")[:]
    with Memory() as memory:
        table, reasons = inference.score_clips(
            model, data, sources, "test", progress=False, approximate=approximate
        )
    assert not reasons and np.isfinite(table["score"]).all() and memory.used < 500
    assert len(table) == len(data.cut(wave)) >= len(wave) / RATE - 5
    assert len(wave) / RATE - table["end"].iloc[-1] < 0.02
    if not approximate:
        late = len(table) - 3
        part = wave[round(table["start"][late] * RATE) :][: data.window]
        with torch.no_grad():
            alone = model.score({"wave": torch.from_numpy(part)[None]})
        assert table["score"][late] == pytest.approx(float(alone), abs=1e-4)
    clips = inference.clip_table(table, sources.table("test"), reasons, "max")
    assert clips["score"].tolist() == [table["score"].max()]


@pytest.mark.parametrize(("sources", "approximate"), CASES, indirect=["sources"])
def test_the_localiser_scores_a_clip_of_any_duration(sources, approximate):
    model, data = system("bam")
    wave = data.reader(sources, "test").read("long.mp4")[:]
    with Memory() as memory:
        table, reasons = inference.score_frames(
            model, data, sources, "test", progress=False, approximate=approximate
        )
    assert not reasons and memory.used < 500
    assert np.isfinite(table[["score", "boundary"]]).all(axis=None)
    assert len(table) == -(-len(wave) // 640)
    assert table["end"].iloc[-1] == pytest.approx(len(wave) / RATE)
    if not approximate:
        first, middle = (len(table) // 100 - 2) * 50, 25  # frame 25 of a window between two others
        part = wave[(first - 50) * 640 :][: 200 * 640]  # the windows 50 frames before, and itself
        with torch.no_grad():
            pair = [
                model.frame_scores(torch.from_numpy(part[o * 640 :][:64_000])[None])["score"][0]
                for o in (0, 50)
            ]
        weights = np.minimum(np.arange(1, 101), np.arange(100, 0, -1))[[50 + middle, middle]]
        wanted = np.average([float(pair[0][50 + middle]), float(pair[1][middle])], weights=weights)
        assert table["score"][first + middle] == pytest.approx(wanted, abs=1e-4)
