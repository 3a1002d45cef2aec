"""Decodes in a child process: a crash or a hang of a native decoder costs one clip, not the run.

    wave = call(decoder.read_audio, path)
    for block in stream(square_frames.iter_frames, path, size=224, chunk=64): ...

Results and errors are those of the functions themselves. A decoder that dies is tried once more in
a fresh process; if that dies too, or gives no answer for SILENCE_S seconds, the clip is a
MediaError and the next one gets another process. The processes start when they are needed, wait for
more work, and end with this one. Extraction workers, which are such processes already, call the
functions directly.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import importlib
import inspect
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from klassify.errors import KlassifyError
from klassify.media import flow, info
from klassify.media.container import MediaError

SILENCE_S = 120.0  # no undamaged clip keeps a decoder busy for so long between two answers
START_S = 60.0
ATTEMPTS = 2
MODULE = "klassify.media.isolated"
# -c and -m put the working directory first on sys.path, where an av.py may lie beside the videos
# (-P needs Python 3.11). The package is that of the calling process, wherever it was found.
START = """import sys
if sys.path[:1] == [""]:
    del sys.path[0]
import importlib.util, os
name, folder, pipe = sys.argv[1:]
start = os.path.join(folder, "__init__.py")
spec = importlib.util.spec_from_file_location(
    name.split(".")[0], start, submodule_search_locations=[folder]
)
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])
importlib.import_module(name).serve(int(pipe))
"""


class _Died(Exception):
    """The process ended without an answer; the reason."""


class _Silent(Exception):
    """No answer in time."""


def call(function: Callable[..., Any], path: str | os.PathLike, *args: Any, **named: Any) -> Any:
    """function(path, ...) in another process: an array, or what JSON can hold. Raises MediaError.

    function: one of klassify.media.
    """
    for attempt in range(ATTEMPTS):
        with _borrowed(path, last=attempt + 1 == ATTEMPTS) as process:
            process.ask(function, path, args, named)
            return process.answer()
    raise AssertionError("the last attempt returns or raises")


def probe(path: str | os.PathLike) -> info.MediaInfo:
    """info.probe in another process. Raises MediaError."""
    return info.MediaInfo(**call(info.probe, path))


def measure(path: str | os.PathLike) -> info.MediaInfo:
    """info.measure in another process. Raises MediaError."""
    return info.MediaInfo(**call(info.measure, path))


def stream(
    function: Callable[..., Iterator], path: str | os.PathLike, *args: Any, **named: Any
) -> Iterator:
    """The arrays that function(path, ...) yields in another process, which works one ahead.

    Raises MediaError. A process that dies after the first item is not replaced, since what was
    yielded has been used.
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
    idle = _idle.setdefault(os.getpid(), [])  # a forked process must not use its parent's
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
    """One decoding process and the pipe to it.

    Messages are JSON; an array follows the one that gives its type and shape.
    """

    def __init__(self) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        package = Path(__file__).resolve().parents[1]
        with theirs:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", START, MODULE, str(package), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # for what a library prints
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        try:
            self.answer(START_S)
        except (_Died, _Silent) as error:
            self.end()
            raise KlassifyError(
                f"The decoding process does not start: {error or 'no answer'}.",
                fix=f'see why: {sys.executable} -c "import {MODULE}"',
            ) from None

    def ask(self, function: Callable, path: str | os.PathLike, args: tuple, named: dict) -> None:
        """Request a call of a function of klassify.media."""
        self.send(
            {
                "call": [function.__module__, function.__name__],
                "args": [os.fspath(path), *args],
                "named": named,
                "damage": flow.damage_limit(),
            }
        )

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; _Died if nobody is there to read it."""
        try:
            _send(self.pipe, message)
        except OSError:
            raise _Died(self._cause()) from None

    def stop_stream(self) -> None:
        """End a stream whose next item was requested already."""
        with contextlib.suppress(MediaError):  # of an item that is not used
            if self.answer() is not None:
                self.send({"next": False})
                self.answer()

    def answer(self, within_s: float | None = None) -> Any:
        """The next answer: an array, what JSON can hold, or None at the end of a stream."""
        if not self.pipe.poll(SILENCE_S if within_s is None else within_s):
            raise _Silent
        try:
            message = json.loads(self.pipe.recv_bytes())
            if "dtype" in message:
                array = np.empty(message["shape"], message["dtype"])
                if array.size:
                    self.pipe.recv_bytes_into(array.reshape(-1))
                return array
        except (OSError, EOFError):
            raise _Died(self._cause()) from None
        if "error" in message:
            raise MediaError(message["error"], where=message["where"])
        return message["value"]

    def _cause(self) -> str:
        try:
            code = self.popen.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        return signal.Signals(-code).name if code < 0 else f"status {code}"

    def end(self) -> None:
        """Kill the process."""
        self.popen.kill()
        self.popen.wait()
        self.pipe.close()


_idle: dict[int, list[_Process]] = {}


@atexit.register
def close() -> None:
    """End the processes that wait for work."""
    for process in _idle.pop(os.getpid(), []):
        process.end()


def _send(pipe: Connection, message: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(message, default=_plain).encode())


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, and paths, as JSON knows them."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else os.fspath(value)


def _answer(pipe: Connection, value: Any) -> None:
    if not isinstance(value, np.ndarray):
        plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
        _send(pipe, {"value": plain})
        return
    _send(pipe, {"dtype": value.dtype.str, "shape": value.shape})
    if value.size:
        pipe.send_bytes(np.ascontiguousarray(value).reshape(-1))


def serve(file_descriptor: int) -> None:
    """Answer the requests of a pipe until it ends; runs in the child process.

    A MediaError is an answer, and so is whatever else a native library raises.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interruption means
    pipe = Connection(file_descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _answer(pipe, "ready")
        while True:
            request = json.loads(pipe.recv_bytes())
            os.environ[flow.DAMAGE_VARIABLE] = str(request["damage"])
            module, name = request["call"]
            function = getattr(importlib.import_module(module), name)
            try:
                result = function(*request["args"], **request["named"])
                if inspect.isgenerator(result):
                    _serve_stream(result, pipe)
                else:
                    _answer(pipe, result)
            except KlassifyError as error:
                _send(pipe, {"error": error.what, "where": error.where})
            except (
                ArithmeticError,
                LookupError,
                MemoryError,
                RuntimeError,
                TypeError,
                ValueError,
            ) as e:
                what = f"Cannot decode: {type(e).__name__}: {e}"
                _send(pipe, {"error": what, "where": request["args"][0]})


def _serve_stream(items: Iterator, pipe: Connection) -> None:
    with contextlib.closing(items):
        for item in items:
            _answer(pipe, item)
            if not json.loads(pipe.recv_bytes())["next"]:
                break
    _answer(pipe, None)
