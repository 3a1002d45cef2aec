"""manifest.json of a submission: what made it, hash by hash, enough to make it again.

A manifest may come from anybody: `read_manifest` checks every field that is used, and `inside`
every path.
"""

from __future__ import annotations

import json
import os
import platform
import re
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError
from klassify.files import read_json, read_json_mapping
from klassify.scores.score_file import strongest
from klassify.settings import file_hash, file_hash_once
from klassify.submission import verdict
from klassify.systems.base import System

# task: the file that answers it, the scores that the file is made of
TASKS = {"task1": (verdict.TXT, "clips"), "task2": (verdict.JSON, "segments")}
# results of the evaluation on val: key -> file beside the system, name in it
LOCAL_SCORES = {
    "val_auc": ("metrics-val.json", "auc"),
    "val_score": ("metrics-val.task2.json", "Score"),
}
MAX_BYTES, MAX_SYSTEMS = 1 << 24, 1000  # a real one has some kB and a few dozen systems
HASH, HEX = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{16}")
NAME = re.compile(r"(?!\.)[^/\\]{1,200}")


def describe(system: System, split: str) -> dict[str, Any]:
    """A system for the manifest: what it is, hashes, its results on val if it was evaluated, its
    inputs likewise. KlassifyError for more than MAX_SYSTEMS inputs, counted wherever they are used.
    """
    count: dict[Path, int] = {}
    for one in system.with_inputs():
        count[one.folder] = 1 + sum(count[given.folder] for given in one.input_systems)
    if count[system.folder] > MAX_SYSTEMS:
        raise KlassifyError(
            f"A manifest names at most {MAX_SYSTEMS} inputs of inputs of a system.",
            where=system.folder,
        )
    return _described(system, split)


def _described(system: System, split: str) -> dict[str, Any]:
    names = ("name", "kind", "modality", "supervision", "scale")
    entry = {name: getattr(system, name) for name in names}
    entry |= {"path": str(system.folder), "hash": system.hash}
    for _, kind in TASKS.values():
        scores = system.path(split, kind)
        if scores.exists():
            entry[f"{kind}_sha256"] = file_hash_once(scores)
    for key, (name, metric) in LOCAL_SCORES.items():
        if (system.folder / name).exists():
            entry[key] = read_json_mapping(system.folder / name).get(metric)
    return entry | {"inputs": [_described(one, split) for one in system.input_systems]}


def supervision(system: System) -> str:
    """The strongest supervision of the system and of anything that it is computed from."""
    return strongest(one.supervision for one in system.with_inputs())


def made_with(
    list_path: Path, split: str, tasks: Mapping[str, System], *, prior: float | None, sigmoid: bool
) -> dict[str, Any]:
    """What decides a package's bytes: settings, hashes of list, systems and scores."""
    wanted = {"split": split, "list": file_hash(list_path), "prior": prior, "sigmoid": sigmoid}
    for task, system in tasks.items():
        kind = TASKS[task][1]
        scores = system.path(split, kind)
        if not scores.exists():
            what = f"{system.folder.name} has no {kind} scores for {split}."
            raise KlassifyError(what, where=scores, fix=system.score_command(split))
        wanted |= {f"{task}_system": system.hash, f"{task}_scores": file_hash_once(scores)}
    return wanted


def provenance() -> dict[str, Any]:
    """commit, dirty (None outside a checkout), versions that could change a package's bytes."""
    import numpy
    import pandas

    from klassify.systems.experiment import git_commit

    commit = git_commit()
    sha = re.match(r"[0-9a-f]*", commit).group() or None
    versions = {
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "pandas": pandas.__version__,
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
    }
    return {"commit": sha, "dirty": commit != sha if sha else None, "versions": versions}


def refuse_unreadable(
    list_path: Path, split: str, tasks: Mapping[str, System], wanted: Mapping[str, Any]
) -> None:
    """KlassifyError if such a manifest would be refused when read. wanted: see made_with."""
    draft = {
        "split": split,
        "list": {"path": str(list_path)},
        "zip_sha256": "0" * 64,
        "systems": {task: describe(system, split) for task, system in tasks.items()},
        "made_with": dict(wanted),
    }
    if problem := _problem(draft):
        raise KlassifyError(
            f"No manifest can say what this is made of: {problem}.", where=list_path
        )


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """Read a manifest.json and check its fields; KlassifyError names the first wrong one."""
    path = Path(path)
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise KlassifyError(
            f"This is not a manifest: it is larger than {MAX_BYTES >> 20} MB.", where=path
        )
    try:
        manifest = read_json(path)
    except (RecursionError, OSError) as error:
        raise KlassifyError(f"This manifest cannot be read: {error}.", where=path) from None
    if problem := _problem(manifest):
        raise KlassifyError(f"This is not a manifest of a submission: {problem}.", where=path)
    return manifest


def entries(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A described system and everything that it is computed from, inputs before users."""
    found, stack = [], [entry]
    while stack:
        found.append(stack.pop())
        stack += found[-1]["inputs"]
    return reversed(found)


def inside(path: str, allowed: Sequence[Path], *, where: object) -> Path:
    """A path of a manifest; it leads into the working directory or `allowed`, links followed."""
    homes = [Path.cwd(), *(folder.resolve() for folder in allowed)]
    if any(Path(path).resolve().is_relative_to(home) for home in homes):
        return Path(path)
    raise KlassifyError(
        f"The manifest names {path!r}, which is outside the working directory {Path.cwd()}.",
        where=where,
        fix=(
            "run this from the folder the package was made in, or --allow the folder if you trust"
            " the manifest"
        ),
    )


def _problem(manifest: Any) -> str:
    """What is wrong with a manifest's fields, or ''."""
    if not isinstance(manifest, dict):
        return "it is not a mapping"
    if not (_matches(NAME, manifest.get("split")) and is_text(manifest["split"])):
        return f"split is {_short(manifest.get('split'))}"
    listed = manifest.get("list")
    if not isinstance(listed, dict) or not is_text(listed.get("path")):
        return "list has no path that is text"
    if not _matches(HASH, manifest.get("zip_sha256")):
        return "zip_sha256 is not a hash"
    tasks = manifest.get("systems")
    if not isinstance(tasks, dict) or not tasks or not tasks.keys() <= TASKS.keys():
        return f"systems are not those of {' and '.join(TASKS)}"
    for task, entry in tasks.items():
        if problem := _system_problem(entry):
            return f"the system of {task} {problem}"
    return _settings_problem(manifest, tasks)


def _settings_problem(manifest: dict[str, Any], tasks: dict[str, Any]) -> str:
    settings, files = manifest.get("made_with"), manifest.get("files", {})
    if not isinstance(settings, dict):
        return "made_with is missing"
    hashes = {"list": HASH}
    for task in tasks:
        hashes |= {f"{task}_system": HEX, f"{task}_scores": HASH}
    for key, pattern in hashes.items():
        if not _matches(pattern, settings.get(key)):
            return f"made_with has no hash {key}"
    prior = settings.get("prior")
    if prior is not None and not (type(prior) in (int, float) and 0 <= prior <= 1):
        return f"prior is {_short(prior)}"
    if settings.get("sigmoid") not in (True, False) or settings.get("split") != manifest["split"]:
        return "made_with has no sigmoid, or another split"
    if not isinstance(files, dict) or not all(_matches(HASH, value) for value in files.values()):
        return "files are not hashes"
    texts = (manifest.get(key) for key in ("made", "rule", "notice", "commit"))
    if not all(text is None or is_text(text) for text in texts):
        return "made, rule, notice or commit is not text"
    return ""


def _system_problem(entry: Any) -> str:
    """What is wrong with a described system or its inputs, or ''."""
    stack, count = [entry], 0
    while stack:
        one, count = stack.pop(), count + 1
        if not isinstance(one, dict) or not all(is_text(one.get(key)) for key in ("name", "path")):
            return "has no name or path that is text"
        if not _matches(HEX, one.get("hash")) or not isinstance(one.get("inputs"), list):
            return f"{_short(one['name'])} has no hash or no inputs"
        if not all(_is_local_score(one.get(key)) for key in LOCAL_SCORES):
            return f"{_short(one['name'])} has impossible results on val"
        if count > MAX_SYSTEMS:
            return f"has more than {MAX_SYSTEMS} inputs"
        stack += one["inputs"]
    return ""


def _matches(pattern: re.Pattern, value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def is_text(value: Any) -> bool:
    """Whether this is text of any script without control characters, which a terminal may obey, and
    without lone surrogates, which UTF-8 cannot hold.
    """
    return isinstance(value, str) and not any(
        unicodedata.category(letter) in ("Cc", "Cs") for letter in value
    )


def _is_local_score(value: Any) -> bool:
    """Whether this is unknown, NaN, or a number that an AUC or a Score can be."""
    return value is None or (type(value) in (int, float) and not abs(value) > 1)


def _short(value: Any) -> str:
    return json.dumps(value)[:80]
