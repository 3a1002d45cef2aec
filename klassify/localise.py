"""Frame scores -> proposals of a split, `scores/<split>.segments.tsv`.

    klassify localise exp/demo/klassify/bam --split val,testA
    klassify localise --merge exp/demo/klassify/{bam,tcn_tags} --out exp/demo/klassify/merged \\
        --split val,testA

A localiser's frame scores stay as they are, so that another method or setting is a re-run of
seconds. Method and settings are those of the system's proposals.yaml, which `klassify tune` writes,
else the defaults; `--proposals`, `--method` and `--set` say otherwise. `--merge` makes a system of
its own: the union of its inputs' proposals, weighted and thinned by soft-NMS, for any split that
they have been localised on; from then on `klassify localise exp/demo/klassify/merged --split ...`
does.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from klassify import proposals, systems
from klassify.arguments import key_and_value
from klassify.errors import KlassifyError
from klassify.files import already_done, read_yaml, refuse_cut, settings_hash
from klassify.framescores import read_frames
from klassify.scorefile import (
    Header,
    ScoreFile,
    made_with,
    read_header,
    read_scores,
    score_path,
    write_blocks,
)

PROPOSALS = "proposals.yaml"
MERGE = "merge"
COLUMNS = ["file", "start", "end", "score", "modality", "method"]


class Choice(NamedTuple):
    """How proposals are made: a method of proposals.METHODS or MERGE, and all its settings."""

    method: str
    settings: dict[str, Any]


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `klassify localise`."""
    parser.add_argument(
        "systems", nargs="*", type=Path, metavar="SYSTEM_DIR", help="folders with a system.yaml"
    )
    parser.add_argument("--split", help="scored splits, with commas between")
    parser.add_argument(
        "--merge", nargs="+", type=Path, metavar="SYSTEM_DIR", help="make a system that joins these"
    )
    parser.add_argument("--out", type=Path, help="folder of the system that --merge makes")
    parser.add_argument(
        "--proposals",
        type=Path,
        metavar="FILE.yaml",
        help="method and settings, instead of the system's",
    )
    parser.add_argument(
        "--method",
        choices=proposals.METHODS,
        help=f"default: the tuned one, else {proposals.DEFAULT}",
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the method"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace proposals made with other settings"
    )


def run(args: argparse.Namespace) -> int:
    """Run `klassify localise`."""
    folders = list(args.systems)
    if bool(args.merge) != bool(args.out):
        raise KlassifyError(
            "--merge names the systems to join and --out the folder of the result: give both."
        )
    if not (args.merge or (folders and args.split)):
        raise KlassifyError(
            "Nothing to do.", fix="give SYSTEM_DIR and --split, or --merge and --out"
        )
    if args.merge:
        made = write_merged(args.out, args.merge, force=args.force)
        print(f"{args.out / systems.SYSTEM}{'' if made else ' is up to date'}")
        folders.append(args.out)
    for folder in folders:
        choice = choose(folder, args.proposals, args.method, parse_settings(args.set))
        for split in args.split.split(",") if args.split else ():
            made = localise(folder, split, choice, force=args.force)
            print(f"{score_path(folder, split, 'segments')}{'' if made else ' is up to date'}")
    return 0


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """{key: value} of words `key=value`, the values in YAML: 0.3, [0.3, 0.5], true."""
    return dict(key_and_value(word, "threshold=0.3") for word in words)


# ------------------------------------------------------------------------------ method and settings


def choose(
    folder: Path,
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
    own = folder / PROPOSALS
    path = file or (own if own.exists() else None)
    merges = is_merged(systems.load_system(folder))
    chosen = read_choice(path) if path else Choice(MERGE if merges else proposals.DEFAULT, {})
    if method and method != chosen.method:
        chosen = Choice(method, {})
    if merges != (chosen.method == MERGE):
        raise KlassifyError(
            f"{folder.name} {'merges proposals of others' if merges else 'has frame scores'}; "
            f"the method {chosen.method} does not apply to it.",
            where=path,
        )
    settings = chosen.settings | (settings or {})
    return Choice(chosen.method, proposals.complete_settings(chosen.method, settings, where=path))


def read_choice(path: str | os.PathLike) -> Choice:
    """Method and settings of a proposals.yaml; what `klassify tune` notes beside them is left
    aside.
    """
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


# ------------------------------------------------------------------------------ proposals of a
# split


def localise(folder: Path, split: str, choice: Choice, *, force: bool = False) -> bool:
    """Write a system's proposals for a split; False where they are there already, made of the
    same.
    """
    system = systems.load_system(folder)
    path = score_path(folder, split, "segments")
    settings = {
        "system": systems.system_hash(folder),
        "method": choice.method,
        "settings": choice.settings,
    }
    if is_merged(system):
        inputs = [
            segment_scores(input_folder, split) for input_folder in systems.input_folders(folder)
        ]
        settings["inputs"] = [
            f"{scores.header.system} {settings_hash(scores.header.settings)}" for scores in inputs
        ]
    else:
        settings["frames"] = settings_hash(read_header(systems.frames_path(folder, split)).settings)
    if already_done(path, made_with(path), settings, force=force):
        return False
    if is_merged(system):
        tables = [merged_table(inputs, choice.settings)]
    else:
        tables = proposal_tables(systems.frames_path(folder, split), system.modality, choice)
    write_blocks(
        path,
        tables,
        Header(system.name, split, "segments", "probability", system.supervision, settings),
    )
    return True


def segment_scores(folder: Path, split: str) -> ScoreFile:
    """A system's proposals; missing ones, or ones of an older state of it, are refused with the
    command.
    """
    path, command = (
        score_path(folder, split, "segments"),
        f"klassify localise {folder} --split {split}",
    )
    if not path.exists():
        raise KlassifyError(f"{folder.name} has no proposals for {split}.", where=path, fix=command)
    systems.refuse_older(folder, path, command)
    return read_scores(path)


def proposal_tables(path: Path, modality: str, choice: Choice) -> Iterator[pd.DataFrame]:
    """The proposals of a frames score file, a part of it at a time, after a table without rows."""
    yield pd.DataFrame({name: [] for name in COLUMNS})
    for frames in read_frames(path):
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


# ------------------------------------------------------------------------------ merged systems


def is_merged(system: systems.System) -> bool:
    """Whether a system joins the proposals of others."""
    return system.parameters.get("rule") == systems.PROPOSALS_RULE


def write_merged(out: Path, inputs: Sequence[Path], *, force: bool = False) -> bool:
    """Write the system.yaml of a system that joins proposals; False where it is there already."""
    folders = [path.resolve() for path in inputs]
    if len(set(folders)) < max(len(folders), 2) or out.resolve() in folders:
        raise KlassifyError(
            "A merged system joins two or more different systems in a folder of its own.", where=out
        )
    made_of = {"inputs": [systems.system_hash(folder) for folder in inputs]}
    if systems.made_before(out, made_of, force=force):
        return False
    parameters = {"rule": systems.PROPOSALS_RULE, "made_with": made_of}
    systems.write_system(
        out, systems.derived_system(out, "fusion", inputs, "probability", parameters)
    )
    return True


def merged_table(inputs: Sequence[ScoreFile], settings: dict[str, Any]) -> pd.DataFrame:
    """The proposals of several systems joined; each row keeps its modality and method."""
    tables = pd.concat([scores.table for scores in inputs], ignore_index=True)
    files = pd.unique(tables["file"])
    found, rows = proposals.merge(
        [candidates(scores.table, files) for scores in inputs], **settings
    )
    return tables.iloc[rows].assign(score=found.score).reset_index(drop=True)[COLUMNS]


def candidates(table: pd.DataFrame, files: Sequence[str]) -> proposals.Candidates:
    """The rows of a segments score file that belong to `files`, with the clips' places among
    these.
    """
    clip = pd.Index(files).get_indexer(table["file"])
    there = clip >= 0
    columns = (table[name].to_numpy(float)[there] for name in ("start", "end", "score"))
    return proposals.Candidates(np.asarray(clip)[there], *columns)
