"""One folder of small nasty clips through the real commands: each ends as features and a score, or
with a reason.

The explicit counterpart of the random campaign (tests/fuzz). Clips of eleven minutes are in
test_long_clips.py.
"""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from commands import ran
from faults.scenarios import TCN
from painted_face import painted
from places import ROOT
from videos import picture, sound, write_media

from klassify import parts
from klassify.corpus.encode import write_clip
from klassify.lists import data_list
from klassify.models.weights.safetensors_file import save_weights
from klassify.scores.score_file import read_scores, score_path
from klassify.systems import base
from klassify.systems.experiment import load_experiment, save_config

RATE = 16_000
FACE = painted()[0]
MEMORY_KB = 3_000_000  # of the largest process

GOOD = ""  # features, without a reason
ANY = "|.+"  # what a decoder makes of damaged pictures and sound is its own affair
NO_VIDEO, NO_AUDIO, NO_FACE = "There is no video stream", "no audio", "no face"
SILENT = "the sound is digital silence"
BROKEN = "damaged or missing|Cannot decode"
SIZE, FOREIGN = "empty or beyond", "not read; playlists"


@dataclasses.dataclass(frozen=True)
class Clip:
    """write(path, bytes of a sound mp4). mouth, audio: a pattern of the reason, or GOOD."""

    name: str
    write: Callable[[Path, bytes], object]
    mouth: str = GOOD
    audio: str = GOOD


def noise(seconds: float, channels: int = 1, rate: int = RATE) -> np.ndarray:
    shape = (channels, round(seconds * rate))
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


def made(*, n=10, size=(224, 224), wave=None, turn=0, codec="libx264", **of_picture):
    """A writer of n pictures of a face, and a wave (channels, n) or a sound track."""

    def write(path: Path, _: bytes) -> None:
        face = np.rot90(cv2.resize(FACE, size), -turn // 90)
        images = [face + np.uint8(k) for k in range(n or 0)]
        tracks = [] if n is None else [picture(images, codec=codec, turn=turn, **of_picture)]
        if wave is not None:
            tracks.append(wave if callable(wave) else sound(wave))
        write_media(path, *tracks)

    return write


def copied(path: Path, sound: bytes) -> None:
    path.write_bytes(sound)


def text(words: str) -> Callable[[Path, bytes], object]:
    """A writer of a text in which {folder} stands for the clip's folder."""
    return lambda path, _: path.write_text(words.format(folder=path.parent))


def cut(stop: int) -> Callable[[Path, bytes], object]:
    return lambda path, sound: path.write_bytes(sound[:stop])


def flipped(after: bytes, first: int, count: int) -> Callable[[Path, bytes], None]:
    """One bit of each of `count` bytes, from the first byte behind a word on."""

    def write(path: Path, sound: bytes) -> None:
        data = bytearray(sound)
        at = data.index(after) + len(after) + first
        for k in range(at, min(at + count, len(data))):
            data[k] ^= 1 << k % 8
        path.write_bytes(data)

    return write


def huge_boxes(path: Path, sound: bytes) -> None:
    """The headers of an mp4, though not of its H.264, claim 65535 x 65535 pixels."""
    data = bytearray(sound)
    at = data.index(b"avc1", data.index(b"stsd")) + 28
    data[at : at + 4] = b"\xff" * 4
    at = data.index(b"tkhd") + 80
    data[at : at + 8] = b"\xff\xff\0\0" * 2
    path.write_bytes(data)


def huge_h264(side: int) -> Callable[[Path, bytes], object]:
    """A bare H.264 stream whose sequence header claims side x side pixels."""

    def golomb(value: int) -> str:
        digits = f"{value + 1:b}"
        return "0" * (len(digits) - 1) + digits

    def unit(kind: int, bits: str) -> bytes:
        bits += "0" * (-len(bits) % 8)
        body = int(bits, 2).to_bytes(len(bits) // 8, "big")
        body = re.sub(rb"\0\0(?=[\0-\3])", lambda _: b"\0\0\3", body)
        return b"\0\0\0\1" + bytes([kind]) + body

    header = f"{66:08b}{0:08b}{40:08b}" + golomb(0) * 2 + golomb(2) + golomb(1)
    sequence = header + "0" + golomb(side // 16 - 1) * 2 + "110001"
    picture = golomb(0) * 2 + "00" + golomb(0) * 3 + "000" + golomb(0) * 3 + "0001"
    slice_ = golomb(0) + golomb(7) + golomb(0) + "0000" + golomb(0) + "001" + "1" * 400
    stream = (unit(0x67, sequence) + unit(0x68, picture) + unit(0x65, slice_)) * 3
    return lambda path, _: path.write_bytes(stream)


def twice(path: Path, sound: bytes) -> None:
    """A transport stream, then itself: its times go backwards in the middle."""
    made(wave=noise(0.4), n=30)(path, sound)
    path.write_bytes(path.read_bytes() * 2)


def with_nan(wave: np.ndarray) -> np.ndarray:
    wave[0, 3000] = np.nan
    return wave


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"

CLIPS = [
    Clip("sound.mp4", copied),
    # damaged
    Clip("flip brand.mp4", flipped(b"ftyp", 0, 4)),
    Clip("flip index.mp4", flipped(b"moo", 0, 1), BROKEN, BROKEN),
    Clip("flip tables.mp4", flipped(b"stsd", 0, 60), f"{BROKEN}|{NO_VIDEO}|unknown", ANY),
    Clip("flip one bit.mp4", flipped(b"mdat", 900, 1), ANY, ANY),
    Clip("flip pictures.mp4", flipped(b"mdat", 50, 4000), ANY, ANY),
    Clip("cut at 1.mp4", cut(1), BROKEN, BROKEN),
    Clip("cut at 8.mp4", cut(8), BROKEN, BROKEN),
    Clip("cut at 100.mp4", cut(100), f"{BROKEN}|{NO_VIDEO}", f"{BROKEN}|{NO_AUDIO}"),
    Clip("cut at 3000.mp4", cut(3000), BROKEN, BROKEN),
    Clip("cut at the end.mp4", cut(-1), audio=BROKEN),
    # no clips at all
    Clip("empty.mp4", text(""), "empty", "empty"),
    Clip("text.mp4", text("hello\n" * 200), BROKEN, BROKEN),
    Clip("folder.mp4", lambda path, _: path.mkdir(), "not a regular file", "not a regular file"),
    Clip(
        "dangling.mp4",
        lambda path, _: path.symlink_to("nowhere.mp4"),
        "No such file",
        "No such file",
    ),
    Clip("missing.mp4", lambda path, _: None, "No such file", "No such file"),
    Clip("pipe.mp4", lambda path, _: os.mkfifo(path), "not a regular file", "not a regular file"),
    Clip(
        "zero.mp4",
        lambda path, _: path.symlink_to("/dev/zero"),
        "not a regular file",
        "not a regular file",
    ),
    Clip("concat.mp4", text("ffconcat version 1.0\nfile sound.mp4\n"), FOREIGN, FOREIGN),
    Clip("beside.m3u8", text(HLS.format("sound.mp4")), FOREIGN, FOREIGN),
    Clip("absolute.m3u8", text(HLS.format("{folder}/sound.mp4")), FOREIGN, FOREIGN),
    Clip("playlist.mp4", text(HLS.format("sound.mp4")), BROKEN, BROKEN),
    # streams
    Clip("no frames.mp4", made(n=0, wave=noise(0.4)), f"{NO_VIDEO}|no frames|{SIZE}"),
    Clip("audio only.mp4", made(n=None, wave=noise(0.4)), NO_VIDEO),
    Clip("video only.mp4", made(), audio=NO_AUDIO),
    Clip("silent.mp4", made(wave=np.zeros((1, 8000), np.float32)), audio=SILENT),
    Clip("audio longer.mp4", made(wave=noise(3.4))),
    Clip("audio shorter.mp4", made(n=80, wave=noise(0.2))),
    # sizes
    Clip("1x1.mp4", made(size=(1, 1), pixels="yuv444p"), NO_FACE, NO_AUDIO),
    Clip("16x2000.mp4", made(size=(16, 2000), n=3), NO_FACE, NO_AUDIO),
    Clip("huge boxes.mp4", huge_boxes),  # what the H.264 says counts
    Clip("huge.h264", huge_h264(100_000), SIZE, f"{NO_AUDIO}|{SIZE}"),
    Clip("large.h264", huge_h264(16_000), SIZE, f"{NO_AUDIO}|{SIZE}"),
    # times
    Clip("1 fps.mp4", made(n=3, rate=1), audio=NO_AUDIO),
    Clip("240 fps.mp4", made(n=48, rate=240), audio=NO_AUDIO),
    Clip(
        "slides.mkv", made(n=3, times_ms=[0, 10_000, 20_000], rate=Fraction(1, 10)), audio=NO_AUDIO
    ),
    Clip("variable.mkv", made(n=6, times_ms=[0, 10, 20, 300, 310, 900]), audio=NO_AUDIO),
    Clip("backwards.ts", twice, ANY, ANY),
    Clip(
        "at one hour.mkv",
        made(
            times_ms=[3_600_000 + 40 * k for k in range(10)], wave=sound(noise(0.4), start_s=3600)
        ),
    ),
    Clip(
        "gap.mkv", made(n=3, times_ms=[0, 40, 3_590_000]), "One picture stays for 3590 s", NO_AUDIO
    ),
    Clip(
        "gap of years.mkv",
        made(n=3, times_ms=[0, 40, 63_072_000_000]),
        "stamped 63072000 s",
        NO_AUDIO,
    ),
    # pictures
    Clip("turned.mp4", made(turn=90), audio=NO_AUDIO),
    Clip("10 bits.mp4", made(pixels="yuv420p10le"), audio=NO_AUDIO),
    Clip("444.mp4", made(pixels="yuv444p"), audio=NO_AUDIO),
    Clip("grey.mp4", made(pixels="gray"), audio=NO_AUDIO),
    # sound
    Clip("8 channels.mkv", made(wave=sound(noise(0.4, 8), layout="7.1", codec="pcm_s16le"))),
    Clip("96 kHz.mp4", made(wave=sound(noise(0.4, rate=96_000), rate=96_000))),
    Clip(
        "nan.mkv",
        made(wave=sound(with_nan(noise(0.4)), codec="pcm_f32le")),
        audio="not finite numbers",
    ),
    Clip("loud.mkv", made(wave=sound(1e30 * noise(0.4), codec="pcm_f32le"))),
    # names; those with a double quote or a semicolon are refused by the list
    *(
        Clip(name, copied)
        for name in (
            "two  spaces.mp4",
            "quo'te.mp4",
            "-rf.mp4",
            "%d.mp4",
            "%s%n.mp4",
            "#hash.mp4",
            "no suffix",
            "café.mp4",
            "cafe\u0301.mp4",
            "\u4f60\u597d.mp4",
            "emoji\U0001f600.mp4",
            "\u202egpj.mp4",
            "sub/folder/a.mp4",
            "sub/a.mp4",
            "a*?[b].mp4",
            "$(id).mp4",
            "L" * 200 + ".mp4",
        )
    ),
    Clip(
        "img%d.png",
        lambda path, _: path.write_bytes(cv2.imencode(".png", FACE)[1].tobytes()),
        FOREIGN,
        FOREIGN,
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Media, their list of names, and an untrained system."""
    root = tmp_path_factory.mktemp("hostile")
    write_clip(
        root / "sound.mp4", [FACE + np.uint8(k) for k in range(10)], noise(0.4)[0], 30, 48_000
    )
    sound = (root / "sound.mp4").read_bytes()
    for clip in CLIPS:
        path = root / "media/testA" / clip.name
        path.parent.mkdir(parents=True, exist_ok=True)
        clip.write(path, sound)
    (root / "media/testA_files.txt").write_text(
        "".join(f"{clip.name}\n" for clip in CLIPS), encoding="utf-8"
    )
    (root / "tcn.yaml").write_text(TCN)
    experiment = load_experiment(root / "tcn.yaml", seed=1)
    save_config(root / "exp/tcn", experiment.resolved)
    save_weights(experiment.model, root / "exp/tcn/model.safetensors")
    base.write_system(root / "exp/tcn", base.System("tcn", "model", "visual", "clip", "log_odds"))
    return root


def klassify(folder: Path, *arguments: str) -> None:
    """A command that must end well, without a traceback."""
    command = [sys.executable, "-m", "klassify", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = ran(command, cwd=folder, timeout=600, env=environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    stats = {path: path.lstat() for path in folder.rglob("*")}
    return {
        str(path.relative_to(folder)): (stat.st_size, stat.st_mtime_ns)
        for path, stat in stats.items()
    }


def outcomes(folder: Path, kind: str) -> dict[str, str]:
    """{file: reason} of all rows of a kind, one for each clip."""
    paths = parts.parts_in(folder / f"features/{kind}/testA")
    rows = [row for path in paths for row in parts.read_rows(path)]
    assert sorted(row["file"] for row in rows) == sorted(clip.name for clip in CLIPS)
    return {row["file"]: row["reason"] for row in rows}


def wrong(reasons: dict[str, str], kind: str) -> list[str]:
    """Clips that ended otherwise than the table says."""
    found = []
    for clip in CLIPS:
        want, reason = getattr(clip, kind), reasons[clip.name]
        if not (reason == "" if want == GOOD else re.search(want, reason)):
            found.append(f"{clip.name}: {reason!r}, not {want!r}")
    return found


def test_each_clip_of_a_hostile_folder_ends_with_an_answer(folder):
    before = snapshot(folder)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of earlier tests
    at = ["--list", "lists/testA.tsv", "--root", "media", "--jobs", "2"]
    made_of = ["--data", "avdeepfake1mpp", "--root", "media"]
    klassify(folder, "lists", *made_of, "--out", "lists", "--probe", "all")
    klassify(folder, "extract", *at, "--out", "features/mouth/testA")
    klassify(folder, "extract", "--kind", "audio", *at, "--out", "features/audio/testA")
    sources = ["--lists", "lists", "--media", "media", "--features", "features"]
    klassify(folder, "score", "exp/tcn", "--split", "testA", *sources, "--device", "cpu")

    listed = data_list.read_list(folder / "lists/testA.tsv").set_index("file")
    assert list(listed.index) == [clip.name for clip in CLIPS]
    late = listed.loc["at one hour.mkv"]
    assert late["duration"] == pytest.approx(0.4, abs=0.1)
    assert late["n_samples"] == pytest.approx(6400, abs=1600)
    problems = pd.read_csv(folder / "lists/testA.failures.tsv", sep="\t", quoting=3)["file"]
    assert {"text.mp4", "missing.mp4", "pipe.mp4", "concat.mp4"} <= set(problems)

    reasons = {kind: outcomes(folder, kind) for kind in ("mouth", "audio")}
    for kind, of_clip in reasons.items():
        assert not wrong(of_clip, kind)
        (path,) = (folder / f"features/{kind}/testA").glob("failures-*.tsv")
        told = path.read_text(encoding="utf-8")
        assert all(name in told for name, reason in of_clip.items() if reason)

    scores = read_scores(score_path(folder / "exp/tcn", "testA", "clips")).table.set_index("file")
    assert list(scores.index) == list(listed.index)
    assert np.isfinite(scores["score"]).equals(scores["reason"] == "")
    without = {name for name, reason in reasons["mouth"].items() if reason}
    assert set(scores.index[scores["reason"] != ""]) == without

    after = snapshot(folder)
    news = {name for name in after if after[name] != before.get(name)}
    assert all(name.startswith(("lists", "features", "exp")) for name in news)
    assert set(before) <= set(after)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(memory, MEMORY_KB)
