"""Read files written by torch.save without running what they contain.

Such a file is a pickle, and unpickling may run any code. `read_torch_file` goes through torch's
restricted unpickler alone, which knows tensors and plain containers; a class that it does not know
(a config object, mostly) becomes an inert Record. There is no flag to trust a file.
"""

from __future__ import annotations

import argparse
import collections
import functools
import pickletools
import re
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from klassify.errors import KlassifyError, first_few, first_line

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # first pickle of a file by torch < 1.6
# Of the standard library, what settings and training states are made of. A checkpoint has no use
# for the rest of it, nor for HOSTILE: a file that names such things is hostile, though it could do
# no harm here.
HARMLESS_MODULES = {
    "_codecs",
    "_operator",
    "abc",
    "argparse",
    "array",
    "builtins",
    "collections",
    "copy",
    "copyreg",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "functools",
    "itertools",
    "logging",
    "math",
    "numbers",
    "operator",
    "pathlib",
    "random",
    "re",
    "string",
    "time",
    "types",
    "typing",
    "uuid",
    "weakref",
}
HOSTILE = re.compile(
    r"builtins\.(eval|exec|execfile|compile|open|__import__|input|breakpoint)|types\.(CodeType|FunctionType)"
    r"|torch\.(serialization\.load|load|hub\.|jit\.|utils\.cpp_extension\.|package\.).*|numpy\.load|joblib\.load|pandas\.read_pickle|pip\..*"
)
MAX_PICKLE = (
    64 << 20
)  # bytes; it describes tensors, which lie elsewhere, and real ones take some hundred kB
MAX_WORK, MAX_DEPTH = (
    1 << 20,
    64,
)  # values that the steps of a pickle take up: so many, and each so often
MAX_INFLATED = (
    20  # times the file's size: torch stores members, and deflated weights shrink by little
)
TAR_MAGIC = (257, b"ustar")
NOT_A_CHECKPOINT = {
    b"<": "It is a web page: the download stopped at a page that asks for confirmation.",
    b"version https://git-lfs": (
        "It is a Git LFS pointer: fetch the file itself with `git lfs pull`."
    ),
    b"\x1f\x8b": "It is a gzip archive: unpack it and name the checkpoint inside.",
}


class Record:
    """Stands for an object of an unknown class: it keeps arguments and state, and does nothing."""

    qualified_name = ""

    def __new__(cls, *arguments: Any):
        """A record of what the object was made from."""
        record = super().__new__(cls)
        record.arguments, record.state = arguments, None
        return record

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<record of {self.qualified_name}>"


class _PlainDict:
    """Stands for a subclass of dict: makes an OrderedDict, which torch's unpickler is willing to
    fill.
    """

    def __new__(cls, *_arguments: Any):
        return collections.OrderedDict()


def _plain_list(items: Any = (), *_maxlen: Any) -> list:
    return list(items)


PLAIN = {"argparse.Namespace": argparse.Namespace, "collections.deque": _plain_list}
DICTIONARIES = re.compile(
    r"collections\.defaultdict|.*\.(AttributeDict|AttrDict|EasyDict)|addict\..*|munch\..*"
)


@functools.cache
def _stand_in(name: str) -> Any:
    if DICTIONARIES.fullmatch(name):
        return type("Dictionary", (_PlainDict,), {})
    return PLAIN.get(name) or type("Record", (Record,), {"qualified_name": name})


def _is_hostile(name: str) -> bool:
    module = name.partition(".")[0]
    return bool(HOSTILE.fullmatch(name)) or (
        module in sys.stdlib_module_names and module not in HARMLESS_MODULES
    )


class _Work:
    """Counts the values that the steps of one pickle take up, each with all that it holds.

    A tuple of a tuple twice, sixty-fold, is a few bytes, and its hash as the key of a dictionary
    takes for ever.
    """

    _MARK = [0]
    _FILL = {
        "APPEND",
        "APPENDS",
        "SETITEM",
        "SETITEMS",
        "ADDITEMS",
        "BUILD",
    }  # what lies below grows by what is taken

    def __init__(self) -> None:
        self.done, self.steps = 0, 0
        self.stack: list[list[int]] = []  # [size] of each value, which grows with a container
        self.memo: dict[Any, list[int]] = {}

    def add(self, operation: Any, argument: Any) -> None:
        """Count one step; KlassifyError where they are too many."""
        name, stack = operation.name, self.stack
        if name == "MARK":
            stack.append(self._MARK)
        elif name.endswith("PUT") or name == "MEMOIZE":
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = (
                stack[-1] if stack else [1]
            )
        elif name.endswith("GET"):
            stack.append(self.memo.get(argument, [1]))
        elif name == "DUP":
            stack.append(stack[-1] if stack else [1])
        else:
            self._take(operation)

    def _take(self, operation: Any) -> None:
        stack, needs = self.stack, operation.stack_before
        size = 1
        if pickletools.markobject in needs:
            while stack and (top := stack.pop()) is not self._MARK:
                size += top[0]
        else:
            for _ in needs[operation.name in self._FILL :]:
                size += stack.pop()[0] if stack else 1
        self.done, self.steps = self.done + size, self.steps + 1
        if self.done > MAX_WORK + MAX_DEPTH * self.steps:
            raise KlassifyError(
                "This file is hostile: a few bytes of it stand for values without end.",
                fix="delete it, and get the checkpoint from its authors",
            )
        if operation.name not in self._FILL:
            stack += [[size] for _ in operation.stack_after]
        elif stack:
            stack[-1][0] += size


def _named_in_pickle(handle: BinaryIO) -> Iterator[str]:
    """Full names, old and new, of the classes and functions that one pickle asks for, without
    running it.
    """
    texts = collections.deque(
        ("", ""), maxlen=2
    )  # the last two strings: what STACK_GLOBAL of protocol 4 takes
    work = _Work()
    for operation, argument, _ in pickletools.genops(handle):
        work.add(operation, argument)
        if isinstance(argument, str) and "UNICODE" in operation.name:
            texts.append(argument)
        if operation.name in ("GLOBAL", "INST"):
            module, name = argument.split(" ", 1)
        elif operation.name == "STACK_GLOBAL":
            module, name = texts
        else:
            continue
        yield f"{module}.{name}"
        # pickle protocol 2 has Python 2's names, not all of which torch knows
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        yield f"{module}.{name}"


def _refuse_inflated(archive: zipfile.ZipFile, path: Path) -> None:
    """KlassifyError for members that are far larger than the file, or a pickle that is larger
    than any.
    """
    pickles = [info for info in archive.infolist() if info.filename.endswith(".pkl")]
    if any(info.file_size > MAX_PICKLE for info in pickles):
        raise _too_large(path)
    claimed, size = sum(info.file_size for info in archive.infolist()), path.stat().st_size
    if claimed > MAX_INFLATED * size:
        raise KlassifyError(
            f"The tensors of this file of {size} bytes would be {claimed} bytes large.",
            where=path,
            fix="save it again: torch stores tensors as they are",
        )


def _too_large(path: Path) -> KlassifyError:
    return KlassifyError(
        f"The description of this file's tensors is larger than {MAX_PICKLE >> 20} MB.",
        where=path,
        fix="save its state dict alone with its own project",
    )


class _Bounded:
    """The pickles at the beginning of a file, MAX_PICKLE bytes at the most; a KlassifyError
    further on.
    """

    def __init__(self, handle: BinaryIO, path: Path):
        self.handle, self.path, self.left = handle, path, MAX_PICKLE

    def read(self, size: int) -> bytes:
        """As of a file."""
        return self._counted(self.handle.read(min(size, self.left + 1)))

    def readline(self) -> bytes:
        """As of a file."""
        return self._counted(self.handle.readline(self.left + 1))

    def _counted(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise _too_large(self.path)
        return data


def _named_in(path: Path, zipped: bool) -> set[str]:
    if not zipped:
        with open(path, "rb") as handle:  # magic, protocol, system, content, storage keys
            bounded = _Bounded(handle, path)
            return {name for _ in range(5) for name in _named_in_pickle(bounded)}
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        if any(Path(member).name == "constants.pkl" for member in members):
            raise KlassifyError(
                "This is a TorchScript program, not a checkpoint.",
                where=path,
                fix="use the project's file of weights (a state dict)",
            )
        _refuse_inflated(archive, path)
        content = next(member for member in members if Path(member).name == "data.pkl")
        with archive.open(content) as handle:
            return set(_named_in_pickle(handle))


def read_torch_file(path: str | Path) -> Any:
    """The content of a file written by torch.save, on the CPU, without running anything that it
    contains.
    """
    path = Path(path)
    if not path.is_file():
        raise KlassifyError("This checkpoint does not exist.", where=path)
    with open(path, "rb") as handle:
        head = handle.read(TAR_MAGIC[0] + len(TAR_MAGIC[1]))
    zipped = head.startswith(b"PK\x03\x04")
    if not zipped and not head.startswith(LEGACY_MAGIC):
        hints = [
            hint for start, hint in NOT_A_CHECKPOINT.items() if head.lstrip().startswith(start)
        ]
        if head[TAR_MAGIC[0] :] == TAR_MAGIC[1]:
            hints.append("It is a tar archive: unpack it and name the checkpoint inside.")
        raise KlassifyError(" ".join(["This is no torch checkpoint.", *hints]), where=path)
    try:
        names = _named_in(path, zipped)
        if hostile := sorted(filter(_is_hostile, names)):
            raise KlassifyError(
                f"This file is hostile: to be loaded it wants to call {first_few(hostile)}. Nothing"
                " was called.",
                where=path,
                fix="delete it, and get the checkpoint from its authors",
            )
        with torch.serialization.safe_globals([(_stand_in(name), name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except KlassifyError as error:
        raise KlassifyError(error.what, where=path, fix=error.fix) from None
    except Exception as error:  # a torn or strange file may fail anywhere in there
        reason = first_line(error)
        raise KlassifyError(
            f"This checkpoint cannot be read as tensors and plain containers: {reason}.",
            where=path,
            fix=(
                "download it again; if that does not help, save its state dict alone with its own"
                " project"
            ),
        ) from None
