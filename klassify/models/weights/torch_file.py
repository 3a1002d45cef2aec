"""Read files written by torch.save without running what they contain.

Such a file is a pickle, and unpickling may run any code. `read_torch_file` uses torch's restricted
unpickler (weights_only) alone, which knows tensors and plain containers; a class that it does not
know (usually a config object) becomes an inert Record. A file may still be made to take unlimited
time or memory, so a child process with limits reads it first. No option turns this off.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import os
import pickletools
import re
import resource
import signal
import sys
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from klassify.errors import KlassifyError, first_few, first_line

MAX_SECONDS = 15  # of processor time; real files take one or two
SPARE_MEMORY = 4 << 30  # bytes beyond the file's size
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # first pickle of a file by torch < 1.6
# Settings and training states are made of these modules of the standard library. A file that names
# others, or a function in HOSTILE, is hostile, though it could do no harm here.
HARMLESS = re.compile(
    r"(_codecs|_operator|abc|argparse|array|builtins|collections|copy|copyreg|dataclasses|datetime"
    r"|decimal|enum|fractions|functools|itertools|logging|math|numbers|operator|pathlib|random|re"
    r"|string|time|types|typing|uuid|weakref)\..*"
)
HOSTILE = re.compile(
    r"builtins\.(eval|exec|execfile|compile|open|__import__|input|breakpoint)"
    r"|types\.(CodeType|FunctionType)"
    r"|torch\.(serialization\.load|load|hub\.|jit\.|utils\.cpp_extension\.|package\.).*"
    r"|numpy\.load|joblib\.load|pandas\.read_pickle|pip\..*"
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
    """Stands for a subclass of dict: makes an OrderedDict, which torch's unpickler can fill."""

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
    if name.partition(".")[0] in sys.stdlib_module_names and not HARMLESS.fullmatch(name):
        return True
    return bool(HOSTILE.fullmatch(name))


def _named_in_pickle(handle: BinaryIO) -> Iterator[str]:
    """Full names of the classes and functions that one pickle asks for, without running it."""
    texts = ("", "")  # the last two strings, which STACK_GLOBAL of protocol 4 takes
    for operation, argument, _ in pickletools.genops(handle):
        if "UNICODE" in operation.name:
            texts = (texts[1], argument)
        if operation.name in ("GLOBAL", "INST"):
            module, name = argument.split(" ", 1)
        elif operation.name == "STACK_GLOBAL":
            module, name = texts
        else:
            continue
        # Python 2's names, which protocol 2 writes, become those of Python 3, as torch does
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        yield f"{module}.{name}"


def _named_in(path: Path, zipped: bool) -> set[str]:
    if not zipped:
        with open(path, "rb") as handle:  # magic, protocol, system, content, storage keys
            return {name for _ in range(5) for name in _named_in_pickle(handle)}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        by_name = {Path(member.filename).name: member for member in members}
        if "constants.pkl" in by_name:
            raise KlassifyError(
                "This is a TorchScript program, not a checkpoint.",
                fix="use the project's file of weights (a state dict)",
            )
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise KlassifyError(
                "This archive is compressed, which torch.save never does.",
                fix="download the original again",
            )
        with archive.open(by_name["data.pkl"]) as handle:
            return set(_named_in_pickle(handle))


def _load(path: Path, zipped: bool) -> Any:
    """The content of a torch file, with stand-ins for unknown classes; no limits."""
    names = _named_in(path, zipped)
    if hostile := sorted(filter(_is_hostile, names)):
        raise KlassifyError(
            f"This file is hostile: to be loaded it wants to call {first_few(hostile)}."
            " Nothing was called.",
            fix="delete it, and get the checkpoint from its authors",
        )
    with torch.serialization.safe_globals([(_stand_in(name), name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, hard))


def _attempt(path: Path, zipped: bool) -> tuple[str, str | None]:
    """Load within limits that this process keeps from now on: ("", None), or what failed and fix.

    For a forked process, in which the threads of torch's pool do not exist.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + path.stat().st_size + SPARE_MEMORY
    _limit(resource.RLIMIT_CPU, MAX_SECONDS)
    _limit(resource.RLIMIT_AS, memory)
    try:
        _load(path, zipped)
    except KlassifyError as error:
        return error.what, error.fix
    except Exception as error:  # a truncated or strange file may fail anywhere in there
        return (
            f"This checkpoint cannot be read as tensors and plain containers: {first_line(error)}.",
            "download it again; if that does not help, save its state dict alone with its own"
            " project",
        )
    return "", None


def _refuse_what_fails_in_a_child(path: Path, zipped: bool) -> None:
    """KlassifyError unless a child process can load the file within the limits."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the parent repeats those of the child
        child = os.fork()
        if child == 0:
            try:
                os.write(writer, json.dumps(_attempt(path, zipped)).encode())
            finally:
                os._exit(0)  # none of the parent's clean-up runs in the child
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    what, fix = json.loads(answer) if answer else ("", None)
    if not answer:
        ended_by = -os.waitstatus_to_exitcode(status)
        reason = f"took more than {MAX_SECONDS} s" if ended_by == signal.SIGXCPU else "crashed"
        what = f"This file is hostile or damaged: the process that read it {reason}."
        fix = "delete it, and get the checkpoint from its authors"
    if what:
        raise KlassifyError(what, where=path, fix=fix)


def read_torch_file(path: str | Path) -> Any:
    """The content of a file by torch.save, on the CPU, without running anything in it."""
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
        raise KlassifyError(" ".join(["This is not a torch checkpoint.", *hints]), where=path)
    _refuse_what_fails_in_a_child(path, zipped)
    return _load(path, zipped)
