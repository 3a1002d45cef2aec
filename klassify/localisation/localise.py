"""Frame scores -> proposals of a split; merging the proposals of several systems."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError
from klassify.files import read_yaml
from klassify.localisation import proposals
from klassify.localisation.frame_scores import read_frames
from klassify.progress import Count
from klassify.scores.score_file import Header, is_current, read_header, write_blocks
from klassify.scores.segment_file import TEXTS, Segments, read_segments, rows_of_clips
from klassify.settings import key_and_value, settings_hash
from klassify.systems import merged
from klassify.systems.base import System, derived_system, made_before, made_from, write_system
from klassify.systems.fused import check_inputs
from klassify.systems.merged import Merged
from klassify.systems.scores import PROPOSALS, answered, as_probability
from klassify.systems.system import load_systems
from klassify.untrusted import refuse_cut

COLUMNS = ["file", "start", "end", "score", "modality", "method"]
CLIPS_AT_ONCE = 1 << 14


class Choice(NamedTuple):
    """How proposals are made: a method of METHODS or JOINING, and all its settings."""

    method: str
    settings: dict[str, Any]


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """{key: value} of words `key=value`, the values in YAML: 0.3, [0.3, 0.5], true."""
    return dict(key_and_value(word, "threshold=0.3") for word in words)


def choose(
    system: System,
    file: Path | None = None,
    method: str | None = None,
    settings: dict[str, Any] | None = None,
) -> Choice:
    """What a system makes proposals with: `settings` over those of `file`, else of its
    proposals.yaml.

    Another `method` than the file's takes nothing from the file. Raises KlassifyError for settings
    that the method does not have, and for a method that merges where there is nothing to merge, or
    the reverse.
    """
    own = system.folder / PROPOSALS
    path = file or (own if own.exists() else None)
    merges = isinstance(system, Merged)
    default = system.method if merges else proposals.DEFAULT
    chosen = read_choice(path) if path else Choice(default, {})
    if method and method != chosen.method:
        chosen = Choice(method, {})
    if merges != (chosen.method in proposals.JOINING):
        raise KlassifyError(
            f"{system.folder.name}"
            f" {'merges proposals of others' if merges else 'has frame scores'};"
            f" the method {chosen.method} does not apply to it.",
            where=path,
        )
    settings = chosen.settings | (settings or {})
    return Choice(chosen.method, proposals.complete_settings(chosen.method, settings, where=path))


def read_choice(path: str | os.PathLike) -> Choice:
    """Method and settings of a proposals.yaml, without the notes of `klassify tune`."""
    content = read_proposals(path)
    return Choice(content["method"], dict(content.get("settings") or {}))


def read_proposals(path: str | os.PathLike) -> dict[str, Any]:
    """A proposals.yaml: `method`, `settings`, and `tuned` where it was tuned."""
    try:
        content = read_yaml(path)
        refuse_cut(path)
    except FileNotFoundError:
        raise KlassifyError("This file does not exist.", where=path, fix="klassify tune") from None
    known = {"method", "settings", "tuned"}
    if not isinstance(content, dict) or "method" not in content or set(content) - known:
        raise KlassifyError(
            f"Proposal settings have the keys {', '.join(sorted(known))}.", where=path
        )
    if any(not isinstance(content.get(key) or {}, dict) for key in ("settings", "tuned")):
        raise KlassifyError("`settings` and `tuned` are mappings.", where=path)
    return content


def localise(system: System, split: str, choice: Choice, *, force: bool = False) -> bool:
    """Write a system's proposals for a split; False where the same are there already."""
    path = system.path(split, "segments")
    settings = {"system": system.hash, "method": choice.method, "settings": choice.settings}
    if isinstance(system, Merged):
        inputs = [one.segments_path(split) for one in system.input_systems]
        settings["inputs"] = [made_from(read_header(path)) for path in inputs]
        if choice.settings.get("clip_share"):
            settings["clips"] = [
                made_from(one.clip_scores(split).header) for one in system.input_systems
            ]
    else:
        frames = system.frames_path(split)
        settings["frames"] = settings_hash(read_header(frames).settings)
    if is_current(path, settings, force=force):
        return False
    if isinstance(system, Merged):
        tables = merged_tables(system, split, [read_segments(one) for one in inputs], choice)
    else:
        tables = proposal_tables(frames, system.modality, choice)
    write_blocks(
        path,
        tables,
        Header(system.name, split, "segments", "probability", system.supervision, settings),
    )
    return True


def proposal_tables(path: Path, modality: str, choice: Choice) -> Iterator[pd.DataFrame]:
    """The proposals of a frames score file, a part of it at a time, after a table without rows."""
    yield pd.DataFrame({name: [] for name in COLUMNS})
    for frames in read_frames(path, label="localise"):
        found = proposals.propose(frames, choice.method, **choice.settings)
        yield pd.DataFrame(
            {
                "file": frames.files[found.clip],
                "start": found.start_s,
                "end": found.end_s,
                "score": found.score,
                "modality": modality,
                "method": choice.method,
            }
        )


def write_merged(
    out: Path, folders: Sequence[Path], method: str = "merge", *, force: bool = False
) -> bool:
    """Write the system.yaml of a system that joins proposals; False where it is there already.

    method: of proposals.JOINING.
    """
    check_inputs(out, folders)
    if method not in proposals.JOINING:
        what = f"The method {method} does not join proposals."
        raise KlassifyError(what, where=out, fix=f"--method {' or '.join(proposals.JOINING)}")
    inputs = load_systems(folders)
    made_of = {"inputs": [system.hash for system in inputs]}
    how = {} if method == "merge" else {"method": method}
    if made_before(out, made_of | how, force=force):
        return False
    parameters = {"rule": merged.RULE, **how, "made_with": made_of | how}
    write_system(out, derived_system(out, "fusion", inputs, "probability", parameters))
    return True


def merged_tables(
    system: Merged, split: str, inputs: Sequence[Segments], choice: Choice
) -> Iterator[pd.DataFrame]:
    """The proposals of several systems joined, a block of clips at a time, after a table without
    rows; each row keeps its modality and method.
    """
    yield pd.DataFrame({name: [] for name in COLUMNS})
    files = pd.unique(np.concatenate([one.files for one in inputs]))
    place = pd.Index(files)
    clips = [place.get_indexer(one.files).astype(np.int32)[one.clip] for one in inputs]
    rows_of = [rows_of_clips(clip, len(files)) for clip in clips]
    known = clip_log_odds(system, split, files) if choice.settings.get("clip_share") else None
    with Count(f"join {split}", len(files)) as count:
        for first in range(0, len(files), CLIPS_AT_ONCE):
            stop = min(first + CLIPS_AT_ONCE, len(files))
            rows = [of_block(first, stop) for of_block in rows_of]
            parts = [
                proposals.Candidates(clip[some] - first, *one.numbers(some))
                for one, clip, some in zip(inputs, clips, rows)
            ]
            found, taken = join(parts, choice, None if known is None else known[:, first:stop])
            columns = {"file": files[first + found.clip]}
            columns |= {"start": found.start_s, "end": found.end_s, "score": found.score}
            for name in TEXTS:
                given = [one.texts_of(name, some) for one, some in zip(inputs, rows)]
                columns[name] = np.concatenate(given)[taken]
            yield pd.DataFrame(columns)
            count.add(stop - first)


def join(
    parts: Sequence[proposals.Candidates], choice: Choice, clip_log_odds: np.ndarray | None
) -> tuple[proposals.Candidates, np.ndarray]:
    """Proposals joined by a method of proposals.JOINING, and the row of each.

    clip_log_odds: (parts, clips), which the method `union` can use.
    """
    known = (clip_log_odds,) if choice.method == "union" else ()
    return proposals.JOINING[choice.method](parts, *known, **choice.settings)


def clip_log_odds(system: System, split: str, files: Sequence[str]) -> np.ndarray:
    """(inputs, files) log-odds of an input that a clip is fake, NaN where it has no answer."""
    rows = []
    for one in system.input_systems:
        scores = one.clip_scores(split)
        probability = np.where(answered(scores), as_probability(scores), np.nan)
        known = dict(zip(scores.table["file"], proposals.log_odds(probability)))
        rows.append([known.get(file, np.nan) for file in files])
    return np.array(rows, float)


def candidates(table: pd.DataFrame, files: Sequence[str]) -> proposals.Candidates:
    """The rows of `files` in a segments score file, with the clips' places among these."""
    clip = pd.Index(files).get_indexer(table["file"])
    there = clip >= 0
    columns = (table[name].to_numpy(float)[there] for name in ("start", "end", "score"))
    return proposals.Candidates(np.asarray(clip)[there], *columns)
