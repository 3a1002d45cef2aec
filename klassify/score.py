"""Run a system on a split and write its score files.

    klassify score exp/demo/klassify/tcn --split val,testA --lists data_lists/demo --media media/demo --features features/demo

A trained model writes `scores/<split>.windows.tsv` (kept, so that another aggregation is a cheap
re-run) and `scores/<split>.clips.tsv`; a calibrated or fused system derives its clip scores from those
of its inputs. Every clip of the list gets exactly one row; one that cannot be scored has an empty score
with the reason, and stands in `scores/<split>.failures.tsv` too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from klassify import lists, systems
from klassify.errors import KlassifyError
from klassify.files import already_done, file_hash, whole_file
from klassify.scorefile import Header, read_header, read_scores, score_path, write_scores

NO_DATA = "Give --lists, --media and --features: a model is scored from its inputs."


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("systems", nargs="+", type=Path, metavar="SYSTEM_DIR", help="folders with a system.yaml")
    parser.add_argument("--split", required=True, help="splits or named subsets, with commas between")
    parser.add_argument("--lists", type=Path, help="folder of the data lists, such as data_lists/demo")
    parser.add_argument("--media", type=Path, help="folder of the media, one folder a split")
    parser.add_argument("--features", type=Path, help="folder of the features, such as features/demo")
    parser.add_argument("--aggregate", help="window scores -> clip score (default: the system's own)")
    parser.add_argument("--batch-size", type=int, default=16, help="windows a forward pass (default 16)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read inputs (default 0: none)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default)")
    parser.add_argument("--force", action="store_true", help="replace scores made with other settings")


def run(args: argparse.Namespace) -> int:
    for folder in args.systems:
        system = systems.load_system(folder)
        for split in args.split.split(","):
            if system.kind == "model":
                n_failed = _score_model(folder, system, split, args)
            else:
                scores = systems.derive_scores(folder, split, force=args.force)
                n_failed = int(scores.table["score"].isna().sum())
            note = f", {n_failed} without an answer of their own" if n_failed else ""
            print(f"{score_path(folder, split, 'clips')}{note}")
    return 0


def _score_model(folder: Path, system: systems.System, split: str, args: argparse.Namespace) -> int:
    if not (args.lists and args.media and args.features):
        raise KlassifyError(NO_DATA, where=folder)
    from klassify.datasets import Sources

    sources = Sources(args.lists, args.media, args.features)
    model, data = systems.load_model(folder)
    windows_path, clips_path = (score_path(folder, split, kind) for kind in ("windows", "clips"))
    settings = {
        "system": systems.system_hash(folder),
        "list": file_hash(lists.list_path(sources.lists, split)),
        **data.settings(sources, split),
    }
    common = {"system": system.name, "split": split, "scale": "log_odds", "supervision": system.supervision}
    table = sources.table(split)
    if not (clips_path.exists() and already_done(windows_path, _made_with(windows_path), settings, force=args.force)):
        scored, reasons = score_clips(
            model, data, sources, split, batch_size=args.batch_size, workers=args.workers, device=args.device
        )
        write_scores(windows_path, scored, Header(kind="windows", settings=settings, **common))
        _write_failures(clips_path.with_name(f"{split}.failures.tsv"), reasons)
        clips_path.unlink(missing_ok=True)  # they belong to the windows before
    aggregate = args.aggregate or data.aggregate
    clip_settings = settings | {"aggregate": aggregate}
    if clips_path.exists() and _made_with(clips_path) == clip_settings:
        return int(read_scores(clips_path).table["score"].isna().sum())
    reasons = _read_failures(clips_path.with_name(f"{split}.failures.tsv"))
    clips = clip_table(read_scores(windows_path).table, table, reasons, aggregate)
    write_scores(clips_path, clips, Header(kind="clips", settings=clip_settings, **common))
    return len(reasons)


def _made_with(path: Path) -> dict[str, Any] | None:
    return dict(read_header(path).settings) if path.exists() else None


def pick_device(name: str):
    """The torch device of a name; `auto` takes the GPU where there is one."""
    import torch

    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def score_clips(
    model, data, sources, split: str, *, batch_size: int = 16, workers: int = 0, device="auto", progress: bool = True
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Score every clip of a split in windows.

    model: a module with `score(batch) -> (B,)` log-odds of fake; data: a datasets.ClipData.
    Returns the window table (file, start, end, score) and {file: reason} of the clips without an answer.
    """
    import torch
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from klassify.datasets import ClipWindows, batches

    device = pick_device(device) if isinstance(device, str) else device
    files = sources.table(split)["file"].tolist()
    loader = DataLoader(ClipWindows(data, sources, split, files), batch_size=None, num_workers=workers)
    bar = tqdm(loader, desc=f"score {split}", unit="clip", disable=not (progress and sys.stderr.isatty()))
    rows: list[tuple[str, float, float, float]] = []
    reasons: dict[str, str] = {}
    model = model.to(device).eval()
    with torch.inference_mode():
        for cut, failed in batches(bar, batch_size):
            reasons.update(failed)
            if not cut:
                continue
            batch = data.collate([window.inputs for _, window in cut])
            scores = model.score({key: value.to(device) for key, value in batch.items()}).float().cpu().tolist()
            for (file, window), score in zip(cut, scores):
                rows.append((file, window.start_s, window.end_s, score))
    return _finite(pd.DataFrame(rows, columns=["file", "start", "end", "score"]), reasons)


def _finite(table: pd.DataFrame, reasons: dict[str, str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """A clip with a window whose score is no finite number has no answer: NaN must never be ranked."""
    bad = set(table.loc[~table["score"].abs().lt(float("inf")), "file"])
    reasons = reasons | {file: "the model gave no finite score" for file in bad}
    return table[~table["file"].isin(bad)].reset_index(drop=True), reasons


def clip_table(
    scored: pd.DataFrame, table: pd.DataFrame, reasons: Mapping[str, str], aggregate: str
) -> pd.DataFrame:
    """One row for each clip of the list, in its order: file start end score reason."""
    from klassify.windows import aggregate_by_clip

    scores: dict[str, float] = {}
    if len(scored):
        scores = aggregate_by_clip(scored["file"].to_numpy(), scored["score"].to_numpy(float), aggregate)
    clips = pd.DataFrame({"file": table["file"], "start": 0.0, "end": table["duration"].fillna(0.0).to_numpy(float)})
    clips["score"] = clips["file"].map(scores).astype(float)
    clips["reason"] = clips["file"].map(dict(reasons)).fillna("")
    lost = clips.loc[clips["score"].isna() & clips["reason"].eq(""), "file"]
    if len(lost):
        raise KlassifyError(f"{len(lost)} clips have neither a score nor a reason, first {lost.iloc[0]}.")
    return clips


def _write_failures(path: Path, reasons: Mapping[str, str]) -> None:
    rows = pd.DataFrame(sorted(reasons.items()), columns=["file", "reason"])
    rows.insert(1, "stage", "score")
    with whole_file(path) as partial:
        rows.to_csv(partial, sep="\t", index=False, lineterminator="\n")


def _read_failures(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    rows = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    return dict(zip(rows["file"], rows["reason"]))

