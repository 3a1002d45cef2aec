"""Files that are complete or absent: written under a temporary name, flushed and renamed."""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError
from klassify.untrusted import refuse_irregular

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO)
IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR)
FULL_BELOW = 64 * 1024  # bytes
MAKE_ROOM = "make room, then give the same command: what is finished is kept"
TEMPORARY = ".partial"  # in the name of every file that is still being written
# a process id means nothing on another host
HERE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
LEFT = re.compile(rf"{re.escape(TEMPORARY)}-(\d+)-([0-9a-f]{{8}})[0-9a-f]{{8}}(?:\.\w+)?$")
LEFT_S = 86_400.0  # a file that a process on another host has not touched for so long


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path; rename it to `path` if the block succeeds, remove it if it fails.

    A full disk, a folder that cannot be written and the like are KlassifyErrors. What processes
    that were killed left half written in the folder is removed.
    """
    path = Path(path)
    # the suffix stays last, since writers choose formats by it
    partial = path.with_name(
        f"{path.stem}{TEMPORARY}-{os.getpid()}-{HERE}{uuid.uuid4().hex[:8]}{path.suffix}"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        partial.touch(exist_ok=False)  # fails clearly here, not within a library
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield partial
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
    except KlassifyError:
        raise
    except Exception as error:  # each library reports a full disk in its own way
        if _is_about_writing(error, partial) or _disk_is_full(path.parent):
            raise _cannot_write(path, error) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what processes that are gone left half written in a folder."""
    for name in os.listdir(folder):
        if TEMPORARY in name and (match := LEFT.search(name)):
            with contextlib.suppress(OSError):  # another process was faster
                if _is_abandoned(folder / name, int(match[1]), match[2]):
                    (folder / name).unlink()


def _is_abandoned(path: Path, process: int, host: str) -> bool:
    if host != HERE:
        return time.time() - path.stat().st_mtime > LEFT_S
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it lives, and is another user's
        pass
    return False


def _is_about_writing(error: Exception, partial: Path) -> bool:
    if not isinstance(error, OSError):
        return False
    return error.errno in NO_ROOM or (
        error.errno in FORBIDDEN and error.filename in (None, str(partial))
    )


def _disk_is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < FULL_BELOW
    except OSError:
        return False


def _cannot_write(path: Path, error: Exception) -> KlassifyError:
    if getattr(error, "errno", None) in NO_ROOM or _disk_is_full(path.parent):
        return KlassifyError(
            "This file cannot be written: the disk is full.", where=path, fix=MAKE_ROOM
        )
    reason = getattr(error, "strerror", None) or str(error)
    if getattr(error, "errno", None) in IN_THE_WAY:
        reason = "a file is where its folder should be"
    fix = "give a folder that can be written"
    return KlassifyError(f"This file cannot be written: {reason}.", where=path, fix=fix)


def explained(error: OSError) -> KlassifyError:
    """An error of the system about a file, with its fix."""
    fixes = dict.fromkeys(NO_ROOM, MAKE_ROOM) | {errno.EROFS: "give a folder that can be written"}
    fixes |= dict.fromkeys(
        (errno.EACCES, errno.EPERM), "change its permissions, or give another file or folder"
    )
    if error.errno in IN_THE_WAY:
        what = "A file is where a folder is needed."
        fix = "name another folder, or move the file"
        return KlassifyError(what, where=error.filename, fix=fix)
    return KlassifyError(f"{error.strerror}.", where=error.filename, fix=fixes.get(error.errno))


def similar(path: str | os.PathLike) -> str | None:
    """'did you mean lists/val.tsv?' for a missing file, if one with a similar path exists."""
    path = Path(path)
    wrong = next((one for one in (*reversed(path.parents), path) if not one.exists()), None)
    if wrong is None or not wrong.parent.is_dir():
        return None
    for name in difflib.get_close_matches(wrong.name, os.listdir(wrong.parent), cutoff=0.75):
        found = wrong.parent / name / path.relative_to(wrong)
        if found.exists():
            return f"did you mean {found}?"
    return None


def check_output(folder: str | os.PathLike) -> None:
    """Refuse an output folder before the work: a file, or a folder that cannot be written."""
    folder = Path(folder)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    fix = "name a folder that can be written with --out"
    if not there.is_dir():
        raise KlassifyError("This is a file; the output needs a folder.", where=there, fix=fix)
    if not os.access(there, os.W_OK | os.X_OK):
        read_only = os.statvfs(there).f_flag & os.ST_RDONLY
        why = os.strerror(errno.EROFS if read_only else errno.EACCES)
        raise KlassifyError(f"This folder cannot be written: {why}.", where=there, fix=fix)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text as a whole file."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def readable(name: str | os.PathLike) -> str:
    r"""A file's name as UTF-8 text; other bytes become escapes such as \xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def short_names(folders: Sequence[str | os.PathLike]) -> list[str]:
    """Folders as paths below their parents' common one: `klassify`, or `demo/klassify`."""
    resolved = [Path(folder).resolve() for folder in folders]
    top = os.path.commonpath([folder.parent for folder in resolved])
    return [os.path.relpath(folder, top) for folder in resolved]


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write indented JSON as a whole file."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file; a missing or broken one is a KlassifyError that names it."""
    refuse_irregular(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KlassifyError("This file does not exist.", where=path) from None
    except (ValueError, RecursionError) as error:
        raise KlassifyError(f"This is not readable JSON: {error}.", where=path) from None


def read_json_mapping(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON file that holds a mapping of names; KlassifyError for anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        what = "This JSON is not a mapping of names to values."
        raise KlassifyError(what, where=path, fix="make it again, or remove it")
    return content


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[None]:
    """One process at a time for what `path` names; the lock goes with the process that holds it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as handle:
        with contextlib.suppress(OSError):  # a network drive may know no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def read_yaml(path: str | os.PathLike) -> Any:
    """Read a YAML file, "" as None; one that cannot be read is a KlassifyError, a missing one a
    FileNotFoundError.
    """
    import yaml

    from klassify.untrusted import BoundedLoader

    refuse_irregular(path)
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), BoundedLoader)
    # not UTF-8, an impossible date, too deep
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise KlassifyError(f"This is not readable YAML: {error}.", where=path) from None
