"""Parquet files of a few bytes that stand for gigabytes, and honest ones that repeat themselves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from klassify import untrusted
from klassify.errors import KlassifyError
from klassify.features import shards
from klassify.features.mouth.kind import MouthRow
from klassify.features.shards import FeatureStore
from klassify.localisation.frame_scores import read_frames
from klassify.parts import Place
from klassify.scores.frame_file import FrameFile
from klassify.scores.score_file import Header, read_scores, write_blocks

HEADER = Header("bam", "testA", "frames", "probability", "segment")
READERS = {
    "whole": read_scores,
    "by groups": lambda path: list(read_frames(path)),
    "by names": lambda path: FrameFile(path).read(["a.mp4"], ["score"]),
}


@pytest.mark.parametrize("reader", READERS)
def test_endless_frame_scores_are_refused_before_reading(tmp_path, monkeypatch, reader):
    n, path = 3_000_000, tmp_path / "testA.frames.parquet"
    column = pa.array(np.zeros(n))
    name = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), ["a.mp4"])
    table = pa.table({"file": name, "start": column, "end": column, "score": column})
    pq.write_table(
        table.replace_schema_metadata(HEADER.as_lines()), path, compression="zstd", row_group_size=n
    )
    assert path.stat().st_size * 1000 < n * 32
    monkeypatch.setattr(untrusted, "ALWAYS_READ", 1 << 25)
    for name in ("read", "read_row_group"):
        monkeypatch.setattr(pq.ParquetFile, name, None)
    with pytest.raises(KlassifyError, match="claim to unpack to 0.1 GB") as error:
        READERS[reader](path)
    assert error.value.where == path and "make the scores again" in error.value.fix


@pytest.mark.parametrize("reader", READERS)
def test_a_corpus_of_scores_that_never_change_is_read(tmp_path, monkeypatch, reader):
    monkeypatch.setattr(untrusted, "ALWAYS_READ", 0)

    def block(first: int) -> pd.DataFrame:
        k = np.arange(250)
        clip = pd.DataFrame(
            {"start": k * 0.04, "end": (k + 1) * 0.04, "score": 0.5, "boundary": 0.5}
        )
        return pd.concat(
            [clip.assign(file=f"{first + i:06d}.mp4") for i in range(400)], ignore_index=True
        )

    blocks = [block(first).sort_index(axis=1) for first in (0, 400)]
    blocks[0].loc[:249, "file"] = "a.mp4"
    path = tmp_path / "testA.frames.parquet"
    write_blocks(path, blocks, HEADER)
    READERS[reader](path)


def test_features_without_end_are_refused(tmp_path, monkeypatch):
    n = 500_000
    row = MouthRow("a.mp4", 25.0, np.zeros((n, 8), np.float32), np.ones(n, bool))
    shards.write_part(tmp_path, Place(1, 1, 0, 1), [row], {"kind": "mouth"}, inputs="")
    assert FeatureStore(tmp_path)["a.mp4"].features.shape == (n, 8)  # 17 MB
    monkeypatch.setattr(untrusted, "ALWAYS_READ", 1 << 20)
    with pytest.raises(KlassifyError, match="claim to unpack") as error:
        FeatureStore(tmp_path)["a.mp4"]
    assert error.value.fix == "remove it and give the same command again"
