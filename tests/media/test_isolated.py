"""Decoding in another process: the same answers, and what becomes of crashes and hangs."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from commands import ran

from klassify.corpus.encode import write_clip
from klassify.errors import KlassifyError
from klassify.media import decoder, flow, isolated, square_frames
from klassify.media.container import MediaError


@pytest.fixture(autouse=True)
def no_processes_left():
    yield
    isolated.close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("clips") / "é.mp4"
    images = list(rng.integers(0, 255, (50, 64, 64, 3), np.uint8))
    write_clip(path, images, rng.normal(0, 0.1, 32000).astype(np.float32), 30, 48_000)
    return path


def idle():
    return isolated._idle.get(os.getpid(), [])


def test_the_same_answers_as_here(clip):
    assert np.array_equal(isolated.call(decoder.read_audio, clip), decoder.read_audio(clip))
    assert isolated.call(square_frames.n_frames, clip) == square_frames.n_frames(clip)
    picked = isolated.call(square_frames.pick_frames, clip, np.array([0, 3, 9]), size=64)
    assert np.array_equal(picked, square_frames.pick_frames(clip, [0, 3, 9], size=64))
    blocks = list(isolated.stream(square_frames.iter_frames, clip, size=64, chunk=16))
    here = list(square_frames.iter_frames(clip, size=64, chunk=16))
    assert len(blocks) == len(here) and all(map(np.array_equal, blocks, here))
    assert len(idle()) == 1  # one process served all of them


def test_errors_are_those_of_the_function(tmp_path, clip):
    bad = tmp_path / "é\n.mp4"
    bad.write_bytes(b"no media")
    with pytest.raises(MediaError) as here:
        decoder.read_audio(bad)
    with pytest.raises(MediaError) as there:
        isolated.call(decoder.read_audio, bad)
    assert (there.value.what, str(there.value.where)) == (here.value.what, str(here.value.where))
    with pytest.raises(MediaError, match="Cannot decode: TypeError"):
        isolated.call(square_frames.read_frames, clip, wrong=1)
    assert len(idle()) == 1


def test_a_stream_that_is_left_early_leaves_the_process_ready(clip):
    stream = isolated.stream(square_frames.iter_frames, clip, size=32, chunk=4)
    first = list(itertools.islice(stream, 2))
    stream.close()
    assert [len(block) for block in first] == [4, 4] and len(idle()) == 1
    assert isolated.call(square_frames.n_frames, clip) == square_frames.n_frames(clip)


def test_damage_behind_the_frames_used_is_not_an_error(clip, tmp_path):
    """The function itself would not have read so far."""
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[: -(clip.stat().st_size // 3)])
    with pytest.raises(MediaError):
        list(isolated.stream(square_frames.iter_frames, cut, size=32, chunk=1))
    for n in range(1, 50):  # whatever the number of the first block that cannot be read
        stream = isolated.stream(square_frames.iter_frames, cut, size=32, chunk=1)
        try:
            for _ in range(n):
                next(stream)
        except MediaError:
            break
        stream.close()
    assert 1 < n < 49 and isolated.call(square_frames.n_frames, clip) and len(idle()) == 1


def test_the_allowed_damage_is_sent_with_each_request(clip, tmp_path):
    damaged = tmp_path / "damaged.mp4"
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packet = [p for p in container.demux(container.streams.video[0]) if p.size][30]
    half = packet.size // 2
    data[packet.pos + half : packet.pos + packet.size] = bytes(packet.size - half)
    damaged.write_bytes(data)
    counted = isolated.call(decoder.count_frames, damaged)
    assert sum(1 for _ in isolated.stream(decoder.iter_frames, damaged)) == counted
    with flow.refusing_damage(), pytest.raises(MediaError, match="damaged or truncated"):
        list(isolated.stream(decoder.iter_frames, damaged))
    assert flow.damage_limit() == flow.DAMAGE_LIMIT and len(idle()) == 1


def test_two_streams_at_once(clip):
    one = isolated.stream(square_frames.iter_frames, clip, size=32, chunk=8)
    two = isolated.stream(square_frames.iter_frames, clip, size=32, chunk=8)
    assert all(np.array_equal(a, b) for a, b in zip(one, two))


def test_a_crash_is_tried_again_and_then_costs_the_clip(clip, monkeypatch):
    ask = isolated._Process.ask

    def crash_first(times):
        left = iter([True] * times)

        def asking(self, *request):
            if next(left, False):
                self.popen.send_signal(signal.SIGSEGV)
                self.popen.wait()
            ask(self, *request)

        monkeypatch.setattr(isolated._Process, "ask", asking)

    crash_first(1)
    assert isolated.call(square_frames.n_frames, clip) == square_frames.n_frames(clip)
    crash_first(1)
    blocks = isolated.stream(square_frames.iter_frames, clip, size=32)
    assert sum(map(len, blocks)) == square_frames.n_frames(clip)
    crash_first(2)
    with pytest.raises(MediaError, match="The decoder crashed: SIGSEGV"):
        isolated.call(square_frames.n_frames, clip)
    monkeypatch.undo()  # and the next clip goes on
    assert isolated.call(square_frames.n_frames, clip) == square_frames.n_frames(clip)


def test_a_crash_in_the_middle_of_a_stream(clip):
    stream = isolated.stream(square_frames.iter_frames, clip, size=224, chunk=4)
    next(stream)
    (child,) = decoders()
    os.kill(child, signal.SIGKILL)
    with pytest.raises(MediaError, match="crashed"):
        list(stream)


def test_a_hang_ends_after_the_limit(clip, monkeypatch):
    isolated.call(square_frames.n_frames, clip)
    monkeypatch.setattr(isolated, "SILENCE_S", 0.6)
    os.kill(decoders()[0], signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(MediaError, match="no answer for 1 s"):
        isolated.call(decoder.read_audio, clip)
    assert time.monotonic() - start < 30
    assert idle() == [] and decoders() == []


def test_a_forked_process_has_a_decoder_of_its_own(clip):
    isolated.call(square_frames.n_frames, clip)
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        assert pool.apply(_pid_and_frames, (clip,)) == (False, square_frames.n_frames(clip))
    assert isolated.call(square_frames.n_frames, clip) == square_frames.n_frames(clip)


def _pid_and_frames(clip):
    before = os.getpid() in isolated._idle
    return before, isolated.call(square_frames.n_frames, clip)


@pytest.mark.parametrize("name", ["av", "json", "numpy"])
def test_code_beside_the_videos_is_not_run(clip, tmp_path, monkeypatch, name):
    (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    assert isolated.call(square_frames.n_frames, clip) == square_frames.n_frames(clip)
    assert not (tmp_path / "marker").exists()


def test_the_child_has_the_parents_pythonpath_and_package(clip, tmp_path, monkeypatch):
    (tmp_path / "klassify").mkdir()
    (tmp_path / "klassify/__init__.py").write_text("raise SystemExit")  # another one
    (tmp_path / "cv2.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w'); raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(KlassifyError, match="does not start"):
        isolated.call(square_frames.n_frames, clip)
    assert (tmp_path / "marker").exists()
    (tmp_path / "cv2.py").unlink()
    assert isolated.call(square_frames.n_frames, clip) == square_frames.n_frames(clip)


def test_the_process_ends_with_the_one_that_asked(clip):
    script = (
        "import sys, os\nfrom klassify.media import isolated, square_frames\n"
        "isolated.call(square_frames.n_frames, sys.argv[1])\n"
        "print(isolated._idle[os.getpid()][0].popen.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = ran([sys.executable, "-c", script, str(clip)])
    child = int(done.stdout)
    for _ in range(100):
        if not running(child):
            return
        time.sleep(0.1)
    raise AssertionError("the decoder outlives its parent")


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def decoders():
    """Processes that decode for this one."""
    with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
        pids = [int(pid) for pid in file.read().split() if running(pid)]
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
    return [pid for pid, command in commands.items() if b"klassify.media.isolated" in command]
