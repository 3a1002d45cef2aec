"""Will the server accept this submission? Checks of a zip and of its prediction file."""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from klassify.errors import KlassifyError
from klassify.submission.check_task1 import check_txt
from klassify.submission.check_task2 import check_json
from klassify.submission.manifest import read_manifest
from klassify.submission.verdict import JSON, MANIFEST, MAX_ROWS, TXT, ZIP, Listed, Verdict

MAX_BYTES = 2**32 - 1  # "less than 4GB"; the evaluator's parser counts in 32 bits
SLOW_BYTES = 2**30  # larger archives have hung on Codabench
# of a prediction.json: for so many rows a clip there is room, and it may have so many more bytes in
# any case
LEAST_JSON, CLIP_ROWS, ROW_BYTES = 2**24, 4 * MAX_ROWS, 96
CHECKS = {TXT: check_txt, JSON: check_json}


def _manifest_beside(path: Path, *, needed: bool) -> dict[str, Any]:
    """The manifest of the folder, {} without one; one that is not ours matters only where it is
    needed.
    """
    beside = (path if path.is_dir() else path.parent) / MANIFEST
    if not beside.exists():
        return {}
    try:
        return read_manifest(beside)
    except KlassifyError as error:
        if needed:
            raise KlassifyError(error.what, where=error.where, fix="give --list") from None
        return {}


def check(
    path: str | os.PathLike, listed: Listed, *, limit: int = 20, keep: bool = False
) -> Verdict:
    """Check a zip, a folder (its submission.zip, else its prediction files) or one prediction file.

    keep: hold the sound answers in the verdict, for klassify.submission.compare.
    """
    path, verdict = Path(path), Verdict(limit, keep=keep)
    if path.is_dir():
        inside = [path / name for name in (ZIP, TXT, JSON) if (path / name).is_file()]
        parts = inside[:1] if inside and inside[0].name == ZIP else inside
        if not parts:
            raise KlassifyError(f"This folder has no {ZIP}, {TXT} or {JSON}.", where=path)
    elif path.is_file():
        parts = [path]
    else:
        raise KlassifyError("There is no such file or folder.", where=path)
    for part in parts:
        if part.suffix == ".zip":
            _check_zip(part, listed, verdict)
        elif part.name in CHECKS:
            with open(part, "rb") as handle:
                _check_member(handle, part.name, part.stat().st_size, listed, verdict)
        else:
            verdict.refusals.add(f"the file must be named {TXT} or {JSON}", part.name)
    return verdict


# ------------------------------------------------------------------------------ the archive


def _check_zip(path: Path, listed: Listed, verdict: Verdict) -> None:
    refuse, size = verdict.refusals.add, path.stat().st_size
    if size > MAX_BYTES:
        refuse("the archive is not smaller than 4 GB", f"{path.name}: {size} bytes")
    elif size > SLOW_BYTES:
        verdict.warnings.add(
            "archives of more than 1 GB have hung on the server", f"{path.name}: {size} bytes"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if _member_is_sound(info, verdict)]
            for name in CHECKS:
                same = [info for info in members if info.filename == name]
                if len(same) > 1:
                    refuse("a name appears twice in the archive", name)
                elif same:
                    with archive.open(same[0]) as handle:
                        _check_member(handle, name, same[0].file_size, listed, verdict)
            if not members:
                refuse(f"the archive has neither {TXT} nor {JSON} at its top level", path.name)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError, ValueError) as error:
        refuse("the archive is not a readable zip", f"{path.name}: {error}")


def _member_is_sound(info: zipfile.ZipInfo, verdict: Verdict) -> bool:
    name, place = info.filename, repr(info.filename)
    unsafe = name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or ":" in name
    if unsafe or stat.S_ISLNK(info.external_attr >> 16):
        verdict.refusals.add("a member points outside the archive", place)
    elif re.split(r"[/\\]", name)[-1] in CHECKS and name not in CHECKS:
        verdict.refusals.add("the prediction is in a folder; it must lie at the top level", place)
    elif _is_of_macos(name):
        verdict.refusals.add(
            "macOS has added this to the archive; fix: zip -X new.zip prediction.*, or make it"
            " with klassify package",
            place,
        )
    elif name not in CHECKS:
        verdict.refusals.add(f"the archive may hold {TXT} and {JSON}, nothing else", place)
    elif info.flag_bits & 1:
        verdict.refusals.add("a member is encrypted", place)
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        verdict.refusals.add(
            "a member is neither stored nor deflated: not every server can unpack it", place
        )
    else:
        return True
    return False


def _is_of_macos(name: str) -> bool:
    """Whether the Finder puts such a file into archives: resource forks, folder settings."""
    first, last = name.split("/")[0], name.split("/")[-1]
    return first == "__MACOSX" or last == ".DS_Store" or last.startswith("._")


def _check_member(handle: BinaryIO, name: str, size: int, listed: Listed, verdict: Verdict) -> None:
    # a zip reads no further than its declared size, so this also stops one that would unpack to
    # terabytes
    names = sum(len(file.encode()) + 32 for file in listed.line)
    longest = 16 * names + 2**20
    if name == JSON:
        longest = min(MAX_BYTES, longest + LEAST_JSON + len(listed.line) * CLIP_ROWS * ROW_BYTES)
    if size > longest:
        verdict.refusals.add(
            "larger than any answer for this list", f"{name}: {size} bytes, limit {longest}"
        )
        return
    seen = CHECKS[name](handle, name, listed, verdict)
    if seen is None:  # unreadable from some place on
        return
    verdict.answers[name] = len(seen)
    for file, line in listed.line.items():
        if file not in seen:
            verdict.refusals.add(
                "a listed clip has no answer", f"{listed.name}:{line}: {file!r} is not in {name}"
            )
