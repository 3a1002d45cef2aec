"""Files that are whole or absent, and a record of the settings that made them.

Every output is written under a temporary name beside its place, flushed to disk and renamed. The
settings that made a file travel inside it (score files, feature shards) or beside it (models), so
that a re-run can tell finished work from work done otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError, some

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO)
FULL_BELOW = 64 * 1024  # bytes
TEMPORARY = ".partial"  # in the name of every file that is still being written


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path; rename it to `path` if the block succeeds, remove it if it fails.

    A full disk, a folder that cannot be written and the like are KlassifyErrors.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error
    # the suffix stays last, since writers choose formats by it
    partial = path.with_name(f"{path.stem}{TEMPORARY}-{os.getpid()}-{uuid.uuid4().hex[:8]}{path.suffix}")
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
    except Exception as error:  # libraries say in ways of their own that the disk is full
        if _is_about_writing(error, partial) or _disk_is_full(path.parent):
            raise _cannot_write(path, error) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _is_about_writing(error: Exception, partial: Path) -> bool:
    if not isinstance(error, OSError):
        return False
    return error.errno in NO_ROOM or (error.errno in FORBIDDEN and error.filename in (None, str(partial)))


def _disk_is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < FULL_BELOW
    except OSError:
        return False


def _cannot_write(path: Path, error: Exception) -> KlassifyError:
    if getattr(error, "errno", None) in NO_ROOM or _disk_is_full(path.parent):
        reason, mend = "the disk is full", "make room, then give the same command: what is finished is kept"
    else:
        reason, mend = getattr(error, "strerror", None) or str(error), "give a folder that can be written"
    return KlassifyError(f"This file cannot be written: {reason}.", where=path, mend=mend)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text as a whole file."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write indented JSON as a whole file."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file; a missing or broken one is a KlassifyError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KlassifyError("This file does not exist.", where=path) from None
    except (ValueError, UnicodeDecodeError) as error:
        raise KlassifyError(f"This is not readable JSON: {error}.", where=path) from None


def canonical_json(settings: Mapping[str, Any]) -> str:
    """One line of JSON with sorted keys: equal settings give equal text."""
    return json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)


def settings_hash(settings: Mapping[str, Any]) -> str:
    """16 hex digits that stand for the settings."""
    return hashlib.sha256(canonical_json(settings).encode()).hexdigest()[:16]


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def already_done(
    path: str | os.PathLike,
    made_with: Mapping[str, Any] | None,
    wanted: Mapping[str, Any],
    *,
    force: bool = False,
) -> bool:
    """Whether `path` may be kept as it is.

    made_with: the settings recorded with the existing output, or None where there is none.
    Equal settings: True (skip). Others: KlassifyError that names the differences, unless `force`.
    """
    if made_with is None or force:
        return False
    # compare as JSON does, so that tuples equal lists and 1 equals "1" only where both are numbers
    made_with, wanted = (json.loads(canonical_json(side)) for side in (made_with, wanted))
    if made_with == wanted:
        return True
    keys = sorted(k for k in made_with.keys() | wanted.keys() if made_with.get(k) != wanted.get(k))
    differences = some(f"{k}: {made_with.get(k)!r} there, {wanted.get(k)!r} now" for k in keys)
    raise KlassifyError(
        f"This output was made with other inputs or settings ({differences}).",
        where=path,
        mend="run again with --force (make: force=1) to replace it, or write to another folder",
    )
