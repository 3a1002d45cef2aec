"""Loaders: what torch is asked for, workers that stay, and tables without Python objects."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from klassify.data.base import Window
from klassify.data.loading import Loader, Rows, Texts, Together, arguments, to_device
from klassify.data.mouth import MouthFeatures, MouthTags
from klassify.models.tcn import TCN, TaggingTCN
from klassify.scores import clip_loader
from klassify.scores.inference import by_shape, frames_by_shape, score_clips, score_frames


def test_a_gpu_gets_pinned_batches_and_workers_stay():
    on_gpu, on_cpu = (arguments(3, torch.device(name)) for name in ("cuda", "cpu"))
    assert on_gpu["pin_memory"] and not on_cpu["pin_memory"]
    for asked in (on_gpu, on_cpu):
        assert asked["num_workers"] == 3 and asked["persistent_workers"]
        assert asked["prefetch_factor"] >= 2
    assert set(arguments(0, None)) == {"num_workers", "pin_memory", "generator"}
    loader = Loader(Squares(), list, workers=2, device=torch.device("cuda"))._loader
    assert loader.pin_memory and loader.persistent_workers


def test_tensors_are_copied_without_waiting(monkeypatch):
    asked, plain = [], torch.Tensor.to

    def noted(self, *args, **how):
        asked.append(how)
        return plain(self, *args, **how)

    monkeypatch.setattr(torch.Tensor, "to", noted)
    batch = to_device({"wave": torch.ones(2), "frame_id": [[1, 2]]}, "cpu")
    assert batch["frame_id"] == [[1, 2]] and asked == [{"non_blocking": True}]


class Squares(Dataset):
    def __getitem__(self, key):
        return key**2, os.getpid()


@pytest.mark.parametrize("workers", [0, 2])
def test_lists_come_in_order_from_the_same_workers(workers):
    loader, pids = Loader(Squares(), list, workers=workers), set()
    for first in (0, 100):
        lists = [range(first + i, first + i + 3) for i in range(0, 12, 3)]
        batches = list(loader(iter(lists)))
        assert [value for batch in batches for value, _ in batch] == [
            number**2 for number in range(first, first + 12)
        ]
        pids |= {pid for batch in batches for _, pid in batch}
    assert len(pids) == max(workers, 1) and (os.getpid() in pids) == (workers == 0)


def test_packed_tables_equal_lists():
    texts = ["a/é b.mp4", "", "字.wav"]
    cells = [[[0.5, 1.25], [2, 3]], None, [[1.0, 1.0]]]
    arrays = [np.array(cell or [], float).reshape(-1, 2) for cell in cells]
    table = Together((Texts(texts), Together((Rows(cells), [1, 0, 1]))))
    for one in (table, pickle.loads(pickle.dumps(table))):
        assert len(one) == 3
        for (text, (array, label)), *wanted in zip(one, texts, arrays, [1, 0, 1]):
            assert (text, label) == (wanted[0], wanted[2]) and np.array_equal(array, wanted[1])


def test_windows_survive_packing():
    def window(start, n):
        inputs = {"x": torch.randn(n, 3), "valid": torch.ones(n, dtype=torch.bool)}
        return Window(start, start + n, inputs)

    clips = [("a", [window(0.0, 4), window(2.0, 4)], ""), ("b", [], "no face")]
    clips += [("c", [window(0.0, 2)], ""), ("d", [None], "")]
    sent = clip_loader.packed(clips)
    assert len(sent.tensors) == 4
    for (file, cut, reason), (again, other, same) in zip(clips, clip_loader.unpacked(sent)):
        assert (file, reason, len(cut)) == (again, same, len(other))
        for one, two in zip(cut, other):
            if one is None:
                assert two is None
                continue
            assert (one.start_s, one.end_s) == (two.start_s, two.end_s)
            assert all(torch.equal(one.inputs[name], two.inputs[name]) for name in one.inputs)


def test_scores_are_the_same_with_workers(small_data, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(clip_loader, "CLIPS_TIMED", 3)
    monkeypatch.setattr(clip_loader, "SENDING_S", 0)
    monkeypatch.setattr(clip_loader, "STARTING_S", 0)
    model, data = TCN(hidden=8), MouthFeatures(window=32, stride=16)
    sources = small_data.sources
    how = {"progress": False, "device": "cpu"}
    wanted, silent = score_clips(model, data, sources, "testA", **how)
    loader = clip_loader.ClipLoader(data, sources, "testA", workers=2)
    for _ in range(2):
        found, reasons = score_clips(model, data, sources, "testA", workers=loader, **how)
        assert found.equals(wanted) and reasons == silent and "no face" in silent.values()


def test_workers_start_only_where_they_pay(small_data, monkeypatch):
    sources = small_data.sources
    files = sources.table("testA")["file"].tolist()
    sent, unpacked = [], clip_loader.unpacked
    monkeypatch.setattr(clip_loader, "CLIPS_TIMED", 3)
    monkeypatch.setattr(clip_loader, "unpacked", lambda one: sent.append(one) or unpacked(one))

    def are_started(clip_s: float, n_clips: int | None) -> bool:
        sent.clear()
        monkeypatch.setattr(clip_loader.statistics, "median", lambda took: clip_s)
        loader = clip_loader.ClipLoader(MouthFeatures(), sources, "testA", 1, n_clips)
        assert [file for file, _, _ in loader(files)] == files
        return bool(sent)

    assert not are_started(0.001, 1_000_000)  # sending takes as long as reading
    assert not are_started(0.1, None)  # over before a worker has started
    assert are_started(0.1, 1_000_000)


def test_frames_of_mixed_lengths_share_batches(small_data):
    torch.manual_seed(0)
    model, data = TaggingTCN(hidden=8).eval(), MouthTags(window=48, stride=24)
    sources = small_data.sources
    how = {"progress": False, "device": "cpu"}
    wanted, silent = score_frames(model, data, sources, "testA", **how)
    sizes, outputs = [], data.outputs

    def noted(model, batch):
        sizes.append(batch["features"].shape[:2])
        return outputs(model, batch)

    data.outputs, reasons = noted, {}
    clips = clip_loader.ClipLoader(data, sources, "testA")(sources.table("testA")["file"].tolist())
    with torch.inference_mode():
        found = frames_by_shape(model, data, clips, 6, torch.device("cpu"), reasons)
    assert reasons == silent and [file for file, _ in found] == list(wanted["file"].unique())
    rows = np.concatenate([rows for _, rows in found])
    np.testing.assert_allclose(rows, wanted.iloc[:, 1:].to_numpy(float), atol=1e-5)
    assert max(size for size, _ in sizes) == 6 and len({length for _, length in sizes}) > 1


def test_rare_shapes_do_not_wait_for_ever():
    def clip(number, n):
        return str(number), [Window(0.0, 1.0, {"x": torch.zeros(n)})] * 2, ""

    clips, reasons = [clip(i, 5 if i % 2 else 100 + i) for i in range(60)], {}
    clips.insert(3, ("none", [], "no face"))
    groups = list(by_shape(clips, 4, reasons))
    assert reasons == {"none": "no face"}
    places = [(one.file, one.place) for group in groups for one in group]
    assert sorted(places) == sorted((str(i), place) for i in range(60) for place in (0, 1))
    for group in groups:
        assert len({one.window.inputs["x"].shape for one in group}) == 1 and len(group) <= 4
    early = [one.file for group in groups[: len(groups) // 2] for one in group]
    assert "0" in early
