"""Decode in a process beside this one: a crash or a hang of a native decoder costs one clip, not
the run.

    wave = call(media.read_audio, path)
    for block in stream(frames.iter_frames, path, size=224, chunk=64): ...

Same results and errors as the functions themselves. A decoder that dies is tried once more in a
fresh process; then, or after SILENCE_S seconds without an answer, the clip is a MediaError and the
next one gets another process. The processes start when they are needed, wait for more, and end with
this one. Extraction workers, which are such processes already, call the functions directly.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import inspect
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from klassify.errors import KlassifyError
from klassify.media import decoder
from klassify.media.decoder import MediaError, MediaInfo

SILENCE_S = 120.0  # no sound clip keeps a decoder busy for so long between two answers
START_S = 60.0
ATTEMPTS = 2
MODULE = "klassify.media.isolated"
ALLOWED = (
    "klassify.media.decoder",
    "klassify.media.container",
    "klassify.media.square_frames",
)  # modules whose functions run there
LENGTH = struct.Struct("<I")
# -c and -m put the working directory first on sys.path, where an av.py may lie beside the videos;
# -P is of 3.11. The package is that of the process that asks, wherever it was found.
START = """import sys
if sys.path[:1] == [""]:
    del sys.path[0]
import importlib.util, os
start = os.path.join(sys.argv[2], "__init__.py")
spec = importlib.util.spec_from_file_location(
    sys.argv[1].split(".")[0], start, submodule_search_locations=sys.argv[2:]
)
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])
importlib.import_module(sys.argv[1]).main()
"""


class _Died(Exception):
    """The process ended without an answer; the reason."""


class _Silent(Exception):
    """No answer in time."""


def call(function: Callable[..., Any], path: str | os.PathLike, *args: Any, **named: Any) -> Any:
    """function(path, ...) in another process: an array, or what JSON can hold. Raises
    MediaError.
    """
    for attempt in range(ATTEMPTS):
        with _borrowed(path, last=attempt + 1 == ATTEMPTS) as process:
            process.ask(function, path, args, named)
            return process.answer()
    raise AssertionError("the last attempt returns or raises")


def probe(path: str | os.PathLike) -> MediaInfo:
    """What the container says (media.probe), read in another process. Raises MediaError."""
    return MediaInfo(**call(decoder.probe, path))


def measure(path: str | os.PathLike) -> MediaInfo:
    """The same, measured where headers are wrong (media.measure). Raises MediaError."""
    return MediaInfo(**call(decoder.measure, path))


def stream(
    function: Callable[..., Iterator], path: str | os.PathLike, *args: Any, **named: Any
) -> Iterator:
    """The items of function(path, ...), arrays, made in another process, one ahead of what is asked
    for.

    Raises MediaError. A process that dies after the first item is not replaced: what was yielded is
    used.
    """
    for attempt in range(ATTEMPTS):
        given = False
        with _borrowed(path, last=attempt + 1 == ATTEMPTS) as process:
            process.ask(function, path, args, named)
            while (item := process.answer()) is not None:
                process.send({"next": True})
                given = True
                try:
                    yield item
                except GeneratorExit:
                    process.stop_stream()
                    return
            return
        if given:
            raise MediaError("The decoder crashed.", where=path)


@contextlib.contextmanager
def _borrowed(path: str | os.PathLike, *, last: bool) -> Iterator[_Process]:
    """A process for one clip; it serves later ones unless it died or was silent."""
    idle = _idle.setdefault(os.getpid(), [])  # a forked process must not talk to its parent's
    process = idle.pop() if idle else _Process()
    try:
        yield process
    except MediaError:  # its answer
        idle.append(process)
        raise
    except _Silent:
        process.end()
        raise MediaError(f"The decoder gave no answer for {SILENCE_S:.0f} s.", where=path) from None
    except _Died as death:
        process.end()
        if last:
            raise MediaError(f"The decoder crashed: {death}.", where=path) from None
    except BaseException:  # interrupted in the middle of an answer
        process.end()
        raise
    else:
        idle.append(process)


class _Process:
    """One decoding process and the pipe to it."""

    def __init__(self) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", START, MODULE, str(Path(decoder.__file__).resolve().parents[1])],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.poll = select.poll()
        self.poll.register(self.popen.stdout, select.POLLIN | select.POLLHUP)
        try:
            self.answer(START_S)
        except (_Died, _Silent) as error:
            self.end()
            raise KlassifyError(
                f"The decoding process does not start: {error or 'no answer'}.",
                fix=f"see what it says: {sys.executable} -m {MODULE}",
            ) from None

    def ask(self, function: Callable, path: str | os.PathLike, args: tuple, named: dict) -> None:
        if function.__module__ not in ALLOWED:
            raise ValueError(
                f"functions of {function.__module__} do not run in the decoding process"
            )
        self.send(
            {
                "call": [function.__module__, function.__name__],
                "args": [os.fspath(path), *args],
                "named": named,
                "damage": decoder.damage_limit(),
            }
        )

    def send(self, message: dict[str, Any]) -> None:
        try:
            _write(self.popen.stdin, message)
        except OSError:
            raise _Died(self._cause()) from None

    def stop_stream(self) -> None:
        """End a stream whose next item was asked for already."""
        with contextlib.suppress(MediaError):  # of an item that nobody wants any more
            if self.answer() is not None:
                self.send({"next": False})
                self.answer()

    def answer(self, within_s: float | None = None) -> Any:
        """The next answer: an array, what JSON can hold, or None at the end of a stream."""
        deadline = time.monotonic() + (SILENCE_S if within_s is None else within_s)
        (length,) = LENGTH.unpack(self._read(LENGTH.size, deadline))
        message = json.loads(bytes(self._read(length, deadline)))
        if "error" in message:
            raise MediaError(message["error"], where=message["where"])
        if "dtype" in message:
            array = np.empty(message["shape"], message["dtype"])
            self._read_into(
                memoryview(array.reshape(-1)).cast("B") if array.size else memoryview(b""), deadline
            )
            return array
        return message["value"]

    def _read(self, n: int, deadline: float) -> bytearray:
        block = bytearray(n)
        self._read_into(memoryview(block), deadline)
        return block

    def _read_into(self, view: memoryview, deadline: float) -> None:
        done = 0
        while done < len(view):
            if not self.poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise _Silent
            if not (n := self.popen.stdout.readinto(view[done:])):
                raise _Died(self._cause())
            done += n

    def _cause(self) -> str:
        try:
            code = self.popen.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        if code < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-code).name
        return f"status {code}"

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()
        self.popen.stdin.close()
        self.popen.stdout.close()


_idle: dict[int, list[_Process]] = {}


@atexit.register
def close() -> None:
    """End the processes that wait for work."""
    for process in _idle.pop(os.getpid(), []):
        process.end()


def _write(pipe: BinaryIO, message: dict[str, Any], array: np.ndarray | None = None) -> None:
    text = json.dumps(message, default=_plain).encode()
    blocks = [memoryview(LENGTH.pack(len(text)) + text)]
    if array is not None and array.size:
        blocks.append(memoryview(np.ascontiguousarray(array).reshape(-1)).cast("B"))
    for block in blocks:
        while len(block):
            block = block[pipe.write(block) :]


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, and paths, as JSON knows them."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else os.fspath(value)


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the pipe ends. A MediaError is an answer; whatever else is raised ends the
    process.
    """
    import importlib

    _write(answers, {"value": "ready"})
    while (request := _request(requests)) is not None:
        os.environ[decoder.DAMAGE_VARIABLE] = str(request["damage"])
        module, name = request["call"]
        function = getattr(importlib.import_module(module), name)
        try:
            if inspect.isgeneratorfunction(function):
                _serve_stream(function(*request["args"], **request["named"]), requests, answers)
            else:
                _answer(answers, function(*request["args"], **request["named"]))
        except KlassifyError as error:
            _write(
                answers,
                {"error": error.what, "where": None if error.where is None else str(error.where)},
            )
        except (
            ArithmeticError,
            LookupError,
            MemoryError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            # native libraries raise what they like
            _write(
                answers,
                {
                    "error": f"Cannot decode: {type(error).__name__}: {error}",
                    "where": request["args"][0],
                },
            )


def _serve_stream(items: Iterator, requests: BinaryIO, answers: BinaryIO) -> None:
    with contextlib.closing(items):
        for item in items:
            _answer(answers, item)
            if not (_request(requests) or {}).get("next"):
                break
    _answer(answers, None)


def _answer(answers: BinaryIO, value: Any) -> None:
    if isinstance(value, np.ndarray):
        _write(answers, {"dtype": value.dtype.str, "shape": value.shape}, value)
    else:
        _write(
            answers,
            {"value": dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value},
        )


def _request(requests: BinaryIO) -> dict[str, Any] | None:
    head = requests.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    return json.loads(requests.read(*LENGTH.unpack(head)))


def main() -> None:
    """Answer the requests on standard input until it ends."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the process that asks decides what an interruption means
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints must not reach the pipe
    with contextlib.suppress(BrokenPipeError):
        _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
