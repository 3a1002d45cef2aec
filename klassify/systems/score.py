"""Score any system on a split: trained models from media or features, others from scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klassify.errors import KlassifyError
from klassify.files import read_json
from klassify.lists import subsets
from klassify.scores.chunks import Layout, Parts, parts_folder
from klassify.scores.score_file import Header
from klassify.settings import file_hash
from klassify.systems.base import System
from klassify.systems.experiment import SETTINGS
from klassify.systems.scores import answered
from klassify.systems.trained import Trained

if TYPE_CHECKING:
    import pandas as pd

    from klassify.data.base import Sources


def score(
    system: System,
    split: str,
    sources: Sources | None = None,
    *,
    shard: tuple[int, int] = (1, 1),
    aggregate: str | None = None,
    approximate: bool = False,
    batch_size: int = 16,
    workers: int = 0,
    device: str = "auto",
    precision: str | None = None,
    loaded: tuple | None = None,
    force: bool = False,
) -> str:
    """Score a split with a system unless nothing has changed; returns a line that says what is
    there or still missing.

    sources: of a trained model; derived systems need none. shard: (i, n), share i of n of the
    chunks, from 1. aggregate: windows or frames -> clip score, None for the system's own.
    precision: see klassify.models.devices.computing. loaded: (model, data) if already loaded.
    """
    if not isinstance(system, Trained):
        scores = system.derive(split, force=force)
        return _said(system.path(split, "clips"), int((~answered(scores)).sum()))
    from klassify.models.devices import computing, pick_device
    from klassify.scores import shards

    settled = {"aggregate": aggregate, "approximate": approximate, "precision": precision}
    parts = plan(system, split, sources, **settled)
    if not shards.is_done(parts, force=force):
        model, data = loaded or system.load()
        i, n = shard
        how = {"batch_size": batch_size, "workers": workers, "device": device}
        with computing(pick_device(device), precision):
            shards.score_share(parts, model, data, sources, i, n, approximate=approximate, **how)
        if not shards.finish(parts):
            return (
                f"{parts.folder}: shard {i}/{n} is done, {shards.missing_text(parts, n)}. The last"
                f" shard merges them, or `klassify merge {system.folder} --split {split}`"
            )
    return keep_clip_scores(system, parts, sources)


def sources_of(lists: Path | None, media: Path | None, features: Path | None) -> Sources | None:
    """What a trained model is scored from; None unless all three are given."""
    if not (lists and media and features):
        return None
    from klassify.data.base import Sources

    return Sources(lists, media, features)


def plan(
    system: Trained,
    split: str,
    sources: Sources | None,
    *,
    aggregate: str | None = None,
    approximate: bool = False,
    precision: str | None = None,
) -> Parts:
    """The chunks to score and the settings that the scores depend on, without loading the model.

    precision: recorded if it was asked for; the device's own, so that a list may be scored on
    several kinds of machines, is not.
    """
    from klassify.scores.clip_scores import check_how

    if system.scale == "none":
        raise KlassifyError(
            f"{system.name} has no scores: other systems use its output.", where=system.folder
        )
    if sources is None:
        raise KlassifyError(
            "A model is scored from its inputs: --lists, --media and --features are all needed.",
            fix="klassify score --help",
        )
    data = system.data()
    kind = "frames" if data.unit == "frame" else "windows"
    default = data.aggregate if kind == "windows" else "max"
    settings = {
        "system": system.hash,
        "list": file_hash(subsets.existing_list(sources.lists, split)),
        **data.settings(sources, split),
        **({"approximate": True} if approximate else {}),
        **({"precision": precision} if precision else {}),
    }
    _refuse_other_features(system, settings, split)
    if aggregate:
        check_how(kind, aggregate)
    grid = data.score_grid if kind == "frames" else {}
    header = Header(system.name, split, kind, system.scale, system.supervision, settings, **grid)
    layout = Layout.from_durations(sources.table(split)["duration"].to_numpy(float))
    return Parts(parts_folder(system.folder, split), header, layout, aggregate or default)


def _refuse_other_features(system: Trained, settings: Mapping[str, Any], split: str) -> None:
    """Features of another version than a model learned from give wrong scores."""
    record = system.folder / SETTINGS
    learned_from = read_json(record) if record.exists() else {}
    for name, features in settings.items():
        known = learned_from.get(name)
        if not (isinstance(features, Mapping) and isinstance(known, Mapping)):
            continue
        if known.get("hash") != features.get("hash"):
            raise KlassifyError(
                f"{system.name} was trained on embeddings of another state of"
                f" {features['system']} than those of {split}.",
                where=record,
                fix=f"make the embeddings of {split} again, or train {system.name} again",
            )
        old, new = known.get("version"), features.get("version")
        if None not in (old, new) and old != new:
            raise KlassifyError(
                f"{system.name} was trained on {features['kind']} features of version {old}, those"
                f" of {split} are of version {new}.",
                where=record,
                fix="make stage1 force=1, then make stage2 force=1",
            )


def keep_clip_scores(system: Trained, parts: Parts, sources: Sources) -> str:
    """Write the clip scores unless they are up to date; returns a line that says what is there."""
    from klassify.scores import clip_scores

    header, folder = parts.header, system.folder
    reasons = clip_scores.read_reasons(folder, header.split)

    def listed() -> pd.DataFrame:
        return system.data().listed(sources, header.split)

    clips = clip_scores.keep_or_write(folder, header, listed, reasons, parts.aggregate)
    path = clips if header.kind == "windows" else system.path(header.split, header.kind)
    return _said(path, len(reasons))


def _said(path: Path, n_unanswered: int) -> str:
    return f"{path}, {n_unanswered} clips without an answer" if n_unanswered else str(path)
