"""Say whether the challenge's server will score a submission as intended, else why not and where.

    klassify check submissions/demo/klassify/testA --list data_lists/demo/testA.tsv

Takes a submission.zip, a folder, a prediction.txt (Task 1) or a prediction.json (Task 2); archives
are not unpacked. It refuses what makes the official evaluator fail, and what the evaluator silently
scores as something else (submissions/README.md lists both). What the evaluator ignores is a
warning. --against names an older submission of the same split and says which answers changed, and
by how much. Shortcuts that `klassify audit` found in the data of the submitted systems are repeated
as warnings. Exits with 0 if the submission is accepted and 1 if it is refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from klassify.arguments import at_least_0
from klassify.errors import KlassifyError
from klassify.evaluation import shortcuts
from klassify.settings import file_hash
from klassify.submission import compare
from klassify.submission.check import check
from klassify.submission.manifest import read_manifest
from klassify.submission.verdict import MANIFEST, Listed


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", type=Path, help="submission.zip, its folder, prediction.txt or prediction.json")
    add("--list", type=Path, help="data list of the split (default: the manifest's)")
    add("--against", type=Path, metavar="OLD", help="also report differences from OLD")
    add(
        "--audit",
        type=Path,
        metavar="DIR",
        help="folder written by klassify audit (default: exp/<data>/audit)",
    )
    add("--limit", type=at_least_0, default=20, help="how many places to show per kind of problem")


def run(args: argparse.Namespace) -> int:
    """Run `klassify check`; 0 accepted, 1 refused."""
    if not args.path.exists():
        raise KlassifyError("This submission does not exist.", where=args.path)
    manifest = _manifest_beside(args.path, needed=args.list is None)
    list_path = args.list or manifest.get("list", {}).get("path")
    if not list_path:
        raise KlassifyError(
            "It is not known which clips need an answer.", where=args.path, fix="give --list"
        )
    listed = Listed.read(list_path)
    verdict = check(args.path, listed, limit=args.limit, keep=args.against is not None)
    if not args.list and manifest["made_with"]["list"] != file_hash(list_path):
        verdict.warnings.add("the list has changed since this was packaged", str(list_path))
    for folder in [args.audit] if args.audit else _audits_beside(manifest):
        for found in shortcuts.in_folder(folder):
            for text in found.warnings:
                verdict.warnings.add("shortcuts in the data of its systems", text)
    answers = ", ".join(f"{n} answers in {name}" for name, n in verdict.answers.items())
    said = "ACCEPTED" if verdict.accepted else "REFUSED"
    print(f"{said} {args.path}: {answers or 'no answers'}, for {list_path}")
    for key in ("rule", "notice"):
        if manifest.get(key):
            print(manifest[key])
    for notes, title in ((verdict.refusals, "problems"), (verdict.warnings, "warnings")):
        if notes.total:
            print(f"{notes.total} {title}:", *notes.lines(), sep="\n")
    if args.against:
        old = check(args.against, listed, limit=args.limit, keep=True)
        print(*compare.report(verdict, old, str(args.against)), sep="\n")
    return 0 if verdict.accepted else 1


def _audits_beside(manifest: dict[str, Any]) -> list[Path]:
    """The folders exp/<data>/audit of the systems that a manifest names, of those below here."""
    here = Path.cwd()
    systems = [Path(entry["path"]) for entry in manifest.get("systems", {}).values()]
    folders = dict.fromkeys(map(shortcuts.folder_of, systems))
    return [folder for folder in folders if folder.resolve().is_relative_to(here)]


def _manifest_beside(path: Path, *, needed: bool) -> dict[str, Any]:
    """The manifest of the folder, {} without one; a foreign one matters only if it is needed."""
    beside = (path if path.is_dir() else path.parent) / MANIFEST
    if not beside.exists():
        return {}
    try:
        return read_manifest(beside)
    except KlassifyError as error:
        if needed:
            raise KlassifyError(error.what, where=error.where, fix="give --list") from None
        return {}
