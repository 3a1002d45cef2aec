"""What an output was made with: its settings, their hash, and whether it is up to date.

Also the checks of ranges that settings share: sizes, shares, weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from klassify.errors import KlassifyError, first_few


def key_and_value(word: str, example: str) -> tuple[str, Any]:
    """Key and YAML value of a word such as `a=0.3`, `a=[1, 2]`, `a=true`; else KlassifyError."""
    import yaml

    from klassify.untrusted import BoundedLoader

    key, equals, text = word.partition("=")
    if not (key and equals):
        raise KlassifyError(
            f"{word[:80]!r} is not written key=value.", fix=f"for instance {example}"
        )
    try:
        return key, yaml.load(text, BoundedLoader)
    # not YAML, an impossible date, too deep
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = getattr(error, "problem", None) or str(error)
        what = f"The value of {key} is not readable YAML: {reason}."
        raise KlassifyError(what, where=word[:80]) from None


def canonical_json(settings: Mapping[str, Any]) -> str:
    """One line of JSON with sorted keys: equal settings give equal text."""
    return json.dumps(
        settings, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str
    )


def settings_hash(settings: Mapping[str, Any]) -> str:
    """A hash of the settings, 16 hex digits."""
    return hashlib.sha256(canonical_json(settings).encode()).hexdigest()[:16]


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_hash_once(path: str | os.PathLike) -> str:
    """`file_hash`, which reads a file again only after its size, time or inode has changed.

    For weights and scores, which take seconds to read and are asked for in many places.
    """
    stat = os.stat(path)
    return _hash_of(os.fspath(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.cache
def _hash_of(path: str, size: int, mtime_ns: int, inode: int) -> str:
    return file_hash(path)


def already_done(
    path: str | os.PathLike,
    made_with: Mapping[str, Any] | None,
    wanted: Mapping[str, Any],
    *,
    force: bool = False,
) -> bool:
    """Whether the output `path` is up to date.

    made_with: the settings recorded with the existing output, or None where there is none.
    Equal settings: True (skip). Others: KlassifyError that names the differences, unless `force`.
    """
    if made_with is None or force:
        return False
    # compare as JSON does, so that tuples equal lists and 1 equals "1" only where both are numbers
    made_with, wanted = (json.loads(canonical_json(side)) for side in (made_with, wanted))
    if made_with == wanted:
        return True
    raise KlassifyError(
        "This output was made with other inputs or settings"
        f" ({differences(made_with, wanted, 'there', 'now')}).",
        where=path,
        fix="run again with --force (make: force=1) to replace it, or write to another folder",
    )


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], is_one: str, is_other: str
) -> str:
    """The settings in which two outputs differ: 'epochs: 3 there, 5 now' with their two words."""
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    pairs = (f"{key}: {one.get(key)!r} {is_one}, {other.get(key)!r} {is_other}" for key in keys)
    return first_few(pairs)


def check_sizes(least: int = 1, **sizes: int | Sequence[int]) -> None:
    """ValueError unless each size, or each item of a non-empty list, is at least `least`."""
    for name, value in sizes.items():
        each = [value] if isinstance(value, int) else list(value)
        if not each or min(each) < least:
            items = "" if isinstance(value, int) else "one or more of "
            raise ValueError(f"{name} is {items}at least {least}, not {value}")


def check_shares(**shares: float) -> None:
    """ValueError unless each is between 0 and 1."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is between 0 and 1, not {value}")


def check_weights(**weights: float | Sequence[float]) -> None:
    """ValueError unless each weight, or each item of a list, is 0 or more and finite."""
    for name, value in weights.items():
        each = [value] if isinstance(value, (int, float)) else list(value)
        if not all(0 <= one < float("inf") for one in each):
            raise ValueError(f"{name} is 0 or more, not {value}")
