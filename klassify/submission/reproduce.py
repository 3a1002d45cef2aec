"""Make a package again from its manifest and compare it byte by byte."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError
from klassify.lists import data_list
from klassify.scores.score_file import score_path
from klassify.settings import file_hash, file_hash_once
from klassify.submission import check, compare, ledger
from klassify.submission.manifest import TASKS, entries, inside
from klassify.submission.package import build
from klassify.submission.verdict import MANIFEST, ZIP, Listed
from klassify.systems.system import load_systems, system_hash


def locate(submission: str, ledger_path: str | os.PathLike) -> tuple[Path, Path | None]:
    """(manifest, the package itself or None) of an id of the ledger or a package's folder."""
    if not submission.strip():
        raise KlassifyError(
            "No submission is named.",
            fix="make reproduce submission=ID; `klassify ledger` lists the ids",
        )
    folder = Path(submission)
    if (folder / MANIFEST).is_file():
        return folder / MANIFEST, folder / ZIP if (folder / ZIP).is_file() else None
    if folder.is_dir():
        raise KlassifyError(f"This folder has no {MANIFEST}.", where=folder)
    row = ledger.read_ledger(ledger_path, must_exist=True).row(submission)
    path = ledger.manifest_path(ledger_path, row["id"])
    if not path.is_file():
        raise KlassifyError(
            f"The manifest of {row['id']} is missing.", where=path, fix="give the package's folder"
        )
    stored = Path(ledger_path).parent / row["folder"] / ZIP
    # the folder may hold a later package by now
    return path, stored if stored.is_file() and file_hash(stored).startswith(row["id"]) else None


def reproduce(
    manifest: Mapping[str, Any],
    stored: Path | None = None,
    *,
    allow: Sequence[Path] = (),
    where: object = None,
) -> list[str]:
    """Lines that say what differs from a read manifest, and why; [] if nothing does.

    stored: the zip that was handed in, if it still exists; tells which answers differ.
    KlassifyError for a path of the manifest that leaves the working directory and `allow`.
    """
    split, settings = manifest["split"], manifest["made_with"]
    described = {task: manifest["systems"][task] for task in TASKS if task in manifest["systems"]}
    list_path = inside(manifest["list"]["path"], allow, where=where)
    for entry in chain.from_iterable(map(entries, described.values())):
        inside(entry["path"], allow, where=where)
    tasks = {task: Path(entry["path"]) for task, entry in described.items()}
    lines = list(dict.fromkeys(_changed_inputs(manifest, list_path, tasks)))
    if stored and (hash_now := file_hash(stored)) != manifest["zip_sha256"]:
        lines.append(
            f"  {stored} is not the package that the manifest describes: its sha256 is {hash_now}"
        )
        stored = None
    with tempfile.TemporaryDirectory(prefix="klassify-") as name:
        folder = Path(name)
        options = {name: settings[name] for name in ("prior", "sigmoid")}
        try:
            systems = dict(zip(tasks, load_systems(tasks.values())))
            frame = data_list.read_list(list_path)
            made = build(folder, list_path, frame, split, systems, **options)
        except KlassifyError as error:
            return [*lines, f"  it cannot be made again: {error}"]
        if made["zip_sha256"] == manifest["zip_sha256"]:
            return [*lines, "  the bytes of the package are the same nevertheless"] if lines else []
        lines += _changed_output(manifest, made, explained=bool(lines))
        if stored:
            listed = Listed.from_table(frame, list_path.name)
            new, old = (check.check(path, listed, keep=True) for path in (folder / ZIP, stored))
            lines += [f"  {line}" for line in compare.report(new, old, str(stored))]
    return lines


def _changed_inputs(
    manifest: Mapping[str, Any], list_path: Path, tasks: Mapping[str, Path]
) -> Iterator[str]:
    """A line for every input that has changed; what others are computed from comes first."""
    settings, split = manifest["made_with"], manifest["split"]
    yield from _differs(f"the list {list_path}", settings["list"], file_hash, list_path)
    for task, top in tasks.items():
        kind = TASKS[task][1]
        *below, _ = entries(manifest["systems"][task])
        parts = [
            (Path(entry["path"]), entry["hash"], entry.get(f"{kind}_sha256")) for entry in below
        ]
        parts.append((top, settings[f"{task}_system"], settings[f"{task}_scores"]))
        for folder, system, scores in parts:
            yield from _differs(f"the system {folder}", system, system_hash, folder)
            path = score_path(folder, split, kind)
            if scores is not None:
                yield from _differs(f"the scores {path}", scores, file_hash_once, path)


def _differs(what: str, was: str, hash_of: Callable[[Path], str], path: Path) -> Iterator[str]:
    try:
        now = hash_of(path)
    except FileNotFoundError:
        yield f"  gone: {what}, hash {was} then"
    except (KlassifyError, OSError) as error:
        yield f"  not readable: {what}: {error}"
    else:
        if now != was:
            yield f"  changed: {what}, hash {was} then, {now} now"


def _changed_output(
    manifest: Mapping[str, Any], made: Mapping[str, Any], *, explained: bool
) -> Iterator[str]:
    """Which member is different, and, if no input explains it, what else could be the cause."""
    before = manifest.get("files", {})
    changed = [name for name, now in made["files"].items() if before.get(name) not in (None, now)]
    for name in changed:
        yield f"  {name} differs: sha256 {before[name]} then, {made['files'][name]} now"
    yield f"  {ZIP} differs: sha256 {manifest['zip_sha256']} then, {made['zip_sha256']} now"
    if before and not changed:
        yield "  the answers are the same, the archive is not: another zlib compresses differently"
    if not explained:
        yield "  no input has changed; this has to come from the code or its libraries:"
        for key in ("commit", "dirty", "versions"):
            was, now = manifest.get(key), made[key]
            if was != now:
                yield f"    {key}: {json.dumps(was)} then, {json.dumps(now)} now"
