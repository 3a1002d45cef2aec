"""Will the server accept this submission? Checks of a zip and of its prediction file."""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from klassify.errors import KlassifyError
from klassify.submission.check_task1 import check_txt
from klassify.submission.check_task2 import check_json
from klassify.submission.verdict import JSON, MAX_ROWS, TXT, ZIP, Listed, Verdict

MAX_BYTES = 2**32 - 1  # "less than 4GB"; the evaluator's parser counts in 32 bits
SLOW_BYTES = 2**30  # larger archives have hung on Codabench
# A prediction.json may have these bytes in any case, and these rows per clip of these bytes.
LEAST_JSON, CLIP_ROWS, ROW_BYTES = 2**24, 4 * MAX_ROWS, 96
CHECKS = {TXT: check_txt, JSON: check_json}


def check(
    path: str | os.PathLike, listed: Listed, *, limit: int = 20, keep: bool = False
) -> Verdict:
    """Check a zip, a folder (its submission.zip, else its prediction files) or one prediction file.

    keep: hold the sound answers in the verdict, for klassify.submission.compare.
    """
    path, verdict = Path(path), Verdict(limit, keep=keep)
    parts = [path]
    if path.is_dir():
        parts = [path / name for name in (ZIP, *CHECKS) if (path / name).is_file()]
        if not parts:
            raise KlassifyError(f"This folder has no {ZIP}, {TXT} or {JSON}.", where=path)
        if parts[0].name == ZIP:
            del parts[1:]
    elif not path.is_file():
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


def _check_zip(path: Path, listed: Listed, verdict: Verdict) -> None:
    refuse, size = verdict.refusals.add, path.stat().st_size
    place = f"{path.name}: {size} bytes"
    if size > MAX_BYTES:
        refuse("the archive is not smaller than 4 GB", place)
    elif size > SLOW_BYTES:
        verdict.warnings.add("archives of more than 1 GB have hung on the server", place)
    try:
        with zipfile.ZipFile(path) as archive:
            members: dict[str, zipfile.ZipInfo] = {}
            for info in archive.infolist():
                if problem := _member_problem(info):
                    refuse(problem, repr(info.filename))
                elif info.filename in members:
                    refuse("a name appears twice in the archive", info.filename)
                else:
                    members[info.filename] = info
            for name in CHECKS:
                if info := members.get(name):
                    with archive.open(info) as handle:
                        _check_member(handle, name, info.file_size, listed, verdict)
            if not members:
                refuse(f"the archive has neither {TXT} nor {JSON} at its top level", path.name)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError, ValueError) as error:
        refuse("the archive is not a readable zip", f"{path.name}: {error}")


def _member_problem(info: zipfile.ZipInfo) -> str:
    """Why a member of an archive is refused, or ''."""
    name, parts = info.filename, re.split(r"[/\\]", info.filename)
    unsafe = name.startswith(("/", "\\")) or ".." in parts or ":" in name
    if unsafe or stat.S_ISLNK(info.external_attr >> 16):
        return "a member points outside the archive"
    if parts[-1] in CHECKS and name not in CHECKS:
        return "the prediction is in a folder; it must be at the top level"
    if parts[0] == "__MACOSX" or parts[-1] == ".DS_Store" or parts[-1].startswith("._"):
        return (
            "macOS has added this to the archive; fix: zip -X new.zip prediction.*, or make it with"
            " klassify package"
        )
    if name not in CHECKS:
        return f"the archive may hold {TXT} and {JSON}, nothing else"
    if info.flag_bits & 1:
        return "a member is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "a member is neither stored nor deflated: not every server can unpack it"
    return ""


def _check_member(handle: BinaryIO, name: str, size: int, listed: Listed, verdict: Verdict) -> None:
    refuse = verdict.refusals.add
    # zipfile reads no more than the declared size, so this also stops one that would unpack to
    # terabytes
    longest = 16 * sum(len(file.encode()) + 32 for file in listed.line) + 2**20
    if name == JSON:
        longest = min(MAX_BYTES, longest + LEAST_JSON + len(listed.line) * CLIP_ROWS * ROW_BYTES)
    if size > longest:
        refuse("larger than any answer for this list", f"{name}: {size} bytes, limit {longest}")
        return
    seen = CHECKS[name](handle, name, listed, verdict)
    if seen is None:  # unreadable
        return
    verdict.answers[name] = len(seen)
    for file, line in listed.line.items():
        if file not in seen:
            place = f"{listed.name}:{line}: {file!r} is not in {name}"
            refuse("a listed clip has no answer", place)
