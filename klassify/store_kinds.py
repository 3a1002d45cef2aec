"""What a feature shard can hold: for each kind its row, its columns, and how the two turn into each
other.

    mouth           8 mouth features a frame                      about 8 KB for a clip of 10 s
    lmm             what an LMM sees and says of every 200th frame   0.5 MB a sampled frame
    reconstruction  the VQ-VAE codes of every frame               at most 1.2 MB for a clip of 10 s

Audio is kept in another form: klassify.audio_file.

The settings in a shard's header name the kind (`kind`; mouth where they do not). Those of kind lmm
also say how wide the vectors are: `visual_dim` (1024), `textual_dim` (4096) and `new_tokens` (64).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from klassify.errors import KlassifyError

CHANNELS = 8
Columns = Mapping[str, pa.Array]


@dataclasses.dataclass(frozen=True)
class MouthRow:
    """One clip: features (T, 8) float32, valid (T,) bool, the file's own fps.

    A clip without usable features says why: `reason` in words, `stage` (path, decode, face,
    worker).
    """

    file: str
    fps: float
    features: np.ndarray
    valid: np.ndarray
    reason: str = ""
    stage: str = ""

    SCHEMA: ClassVar = pa.schema(
        [
            ("file", pa.string()),
            ("n_frames", pa.int32()),
            ("fps", pa.float64()),
            ("features", pa.list_(pa.float32())),
            ("valid", pa.list_(pa.bool_())),
            ("stage", pa.string()),
            ("reason", pa.string()),
        ]
    )
    ROWS_A_GROUP: ClassVar = 16  # what one random read decodes
    KEPT_GROUPS: ClassVar = 64  # decoded groups that a store holds
    SPLIT_BYTES: ClassVar = ("features.list.element",)

    @classmethod
    def failed(cls, file: str, stage: str, reason: str) -> MouthRow:
        """A clip that gave nothing at all."""
        empty = np.zeros((0, CHANNELS), np.float32), np.zeros(0, bool)
        return cls(file, 0.0, *empty, reason=reason, stage=stage)

    @classmethod
    def columns(cls, rows: Sequence[MouthRow], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The rows as columns of SCHEMA. Raises ValueError for shapes that do not fit and for
        NaN.
        """
        for row in rows:
            if (
                row.features.shape != (len(row.valid), CHANNELS)
                or not np.isfinite(row.features).all()
            ):
                raise ValueError(
                    f"{row.file}: features {row.features.shape} for {len(row.valid)} frames, or not"
                    " finite"
                )
        return {
            "n_frames": [len(row.valid) for row in rows],
            "features": ragged(
                [row.features.astype(np.float32).ravel() for row in rows], pa.float32()
            ),
            "valid": ragged([row.valid.astype(bool) for row in rows], pa.bool_()),
        }

    @classmethod
    def from_columns(cls, columns: Columns, i: int, settings: Mapping[str, Any]) -> MouthRow:
        """Row i of a row group."""
        features = values(columns, "features", i).reshape(-1, CHANNELS).copy()
        return cls(
            features=features, valid=values(columns, "valid", i).astype(bool), **common(columns, i)
        )


@dataclasses.dataclass(frozen=True)
class LMMRow:
    """What an LMM makes of the sampled frames of one clip (multi-branch paper, section 2.1).

    frames: (n,) int32, which frames of the 25 fps grid; n_frames: how many the clip has. visual:
    (n, 1024) float16, CLIP's pooled vector. textual: (n, 64, 4096) float16, the states of the last
    64 positions. texts: what the LMM wrote about each frame. The widths are those of the model that
    was used. A clip without features has n = 0, and `reason` in words with its `stage` (path,
    decode, features).
    """

    file: str
    fps: float
    n_frames: int
    frames: np.ndarray
    visual: np.ndarray
    textual: np.ndarray
    texts: Sequence[str]
    reason: str = ""
    stage: str = ""

    SCHEMA: ClassVar = pa.schema(
        [
            ("file", pa.string()),
            ("n_frames", pa.int32()),
            ("fps", pa.float64()),
            ("frames", pa.list_(pa.int32())),
            ("visual", pa.list_(pa.float16())),
            ("textual", pa.large_list(pa.float16())),
            ("texts", pa.list_(pa.string())),
            ("stage", pa.string()),
            ("reason", pa.string()),
        ]
    )
    ROWS_A_GROUP: ClassVar = 1
    KEPT_GROUPS: ClassVar = 16
    SPLIT_BYTES: ClassVar = ("visual.list.element", "textual.list.element")

    @classmethod
    def failed(cls, file: str, stage: str, reason: str) -> LMMRow:
        """A clip that gave nothing at all."""
        empty = np.zeros(0, np.int32), np.zeros((0, 0), np.float16), np.zeros((0, 0, 0), np.float16)
        return cls(file, 0.0, 0, *empty, texts=[], reason=reason, stage=stage)

    @staticmethod
    def dims(settings: Mapping[str, Any]) -> tuple[int, int, int]:
        """(visual_dim, new_tokens, textual_dim) of a shard, from its settings; ValueError where
        they lack one.
        """
        if missing := [
            name for name in ("visual_dim", "new_tokens", "textual_dim") if name not in settings
        ]:
            raise ValueError(f"settings of kind lmm lack {', '.join(missing)}")
        return settings["visual_dim"], settings["new_tokens"], settings["textual_dim"]

    @classmethod
    def columns(cls, rows: Sequence[LMMRow], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The rows as columns of SCHEMA. Raises ValueError for shapes that do not fit and for
        NaN.
        """
        width, positions, depth = cls.dims(settings)
        for row in rows:
            n = len(row.frames)
            shapes = (row.visual.shape, row.textual.shape, len(row.texts))
            if n and shapes != ((n, width), (n, positions, depth), n):
                raise ValueError(
                    f"{row.file}: visual, textual and texts are {shapes} for {n} sampled frames"
                )
            if not (np.isfinite(row.visual).all() and np.isfinite(row.textual).all()):
                raise ValueError(f"{row.file}: features that are not finite")
        return {
            "n_frames": [row.n_frames for row in rows],
            "frames": ragged([row.frames.astype(np.int32) for row in rows], pa.int32()),
            "visual": ragged([row.visual.astype(np.float16).ravel() for row in rows], pa.float16()),
            "textual": ragged(
                [row.textual.astype(np.float16).ravel() for row in rows], pa.float16(), large=True
            ),
            "texts": [list(row.texts) for row in rows],
        }

    @classmethod
    def from_columns(cls, columns: Columns, i: int, settings: Mapping[str, Any]) -> LMMRow:
        """Row i of a row group."""
        width, positions, depth = cls.dims(settings)
        frames = values(columns, "frames", i).copy()
        n = len(frames)
        return cls(
            n_frames=columns["n_frames"][i].as_py(),
            frames=frames,
            visual=values(columns, "visual", i).reshape(n, width).copy(),
            textual=values(columns, "textual", i).reshape(n, positions, depth).copy(),
            texts=columns["texts"][i].as_py(),
            **common(columns, i),
        )


@dataclasses.dataclass(frozen=True)
class ReconstructionRow:
    """The VQ-VAE codes of every frame of one clip: codes (T, h, w) uint16, T on the 25 fps grid.

    The decoder of the VQ-VAE that made them (`vqvae` in the settings) turns them into the
    reconstructed frames. A clip without codes has T = 0, and `reason` in words with its `stage`.
    """

    file: str
    fps: float
    codes: np.ndarray
    reason: str = ""
    stage: str = ""

    SCHEMA: ClassVar = pa.schema(
        [
            ("file", pa.string()),
            ("n_frames", pa.int32()),
            ("fps", pa.float64()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("codes", pa.large_list(pa.uint16())),
            ("stage", pa.string()),
            ("reason", pa.string()),
        ]
    )
    ROWS_A_GROUP: ClassVar = 1
    KEPT_GROUPS: ClassVar = 16
    SPLIT_BYTES: ClassVar = ()

    @classmethod
    def failed(cls, file: str, stage: str, reason: str) -> ReconstructionRow:
        """A clip that gave nothing at all."""
        return cls(file, 0.0, np.zeros((0, 0, 0), np.uint16), reason=reason, stage=stage)

    @classmethod
    def columns(
        cls, rows: Sequence[ReconstructionRow], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The rows as columns of SCHEMA. Raises ValueError for what is no (T, h, w) of uint16."""
        for row in rows:
            if row.codes.ndim != 3 or row.codes.dtype != np.uint16:
                raise ValueError(
                    f"{row.file}: codes are {row.codes.dtype} {row.codes.shape}, not uint16 (T,"
                    " h, w)"
                )
        return {
            "n_frames": [len(row.codes) for row in rows],
            "height": [row.codes.shape[1] for row in rows],
            "width": [row.codes.shape[2] for row in rows],
            "codes": ragged([row.codes.ravel() for row in rows], pa.uint16(), large=True),
        }

    @classmethod
    def from_columns(
        cls, columns: Columns, i: int, settings: Mapping[str, Any]
    ) -> ReconstructionRow:
        """Row i of a row group."""
        shape = [columns[name][i].as_py() for name in ("n_frames", "height", "width")]
        return cls(codes=values(columns, "codes", i).reshape(shape).copy(), **common(columns, i))


Row = MouthRow | LMMRow | ReconstructionRow
KINDS: dict[str, type[Row]] = {
    "mouth": MouthRow,
    "lmm": LMMRow,
    "reconstruction": ReconstructionRow,
}


def row_class(settings: Mapping[str, Any], where: object = None) -> type[Row]:
    """The row class of shards with these settings."""
    kind = settings.get("kind", "mouth")
    if kind not in KINDS:
        raise KlassifyError(
            f"There is no kind of features {kind!r}.", where=where, fix=f"known: {', '.join(KINDS)}"
        )
    return KINDS[kind]


def ragged(arrays: Sequence[np.ndarray], kind: pa.DataType, *, large: bool = False) -> pa.Array:
    """Arrays of different lengths as one list column."""
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays], dtype=np.int64)])
    joined = pa.array(np.concatenate(arrays) if arrays else [], kind)
    if large:
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), joined)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), joined)


def values(columns: Columns, name: str, i: int) -> np.ndarray:
    """Row i of a list column as a flat array."""
    return columns[name][i].values.to_numpy(zero_copy_only=False)


def common(columns: Columns, i: int) -> dict[str, Any]:
    """What every kind of row has."""
    return {name: columns[name][i].as_py() for name in ("file", "fps", "stage", "reason")}
