"""The published layouts of speech data sets, in small: protocols, labels and short clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

RESOLUTIONS = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
SETS = {"train": "T", "dev": "D", "eval": "E"}


def write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_sound(path: Path, seconds: float, fake: Sequence[Sequence[float]] = ()) -> None:
    """Noise at 16 kHz, loud within the fake segments."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).normal(0, 0.02, round(16_000 * seconds))
    for start, end in fake:
        noise[round(16_000 * start) : round(16_000 * end)] *= 10
    soundfile.write(path, np.clip(noise, -1, 1), 16_000)


def seglab(fake: Sequence[Sequence[float]], seconds: float, resolution_s: float) -> np.ndarray:
    """The labels of PartialSpoof, one character per frame: 0 where any part is spoofed."""
    frames = np.ones(round(seconds * 1000) // round(resolution_s * 1000), int)
    for k in range(len(frames)):
        begins, ends = k * resolution_s, (k + 1) * resolution_s
        if any(start < ends - 1e-6 and end > begins + 1e-6 for start, end in fake):
            frames[k] = 0
    return frames.astype(str)


# of each speaker: clips of 1.28 s by name, and their fake segments in seconds
def partialspoof_clips(initial: str, speaker: int) -> dict[str, list[list[float]]]:
    return {
        f"LA_{initial}_{speaker}000001": [],
        f"LA_{initial}_{speaker}000002": [],
        f"CON_{initial}_{speaker}000001": [[0.32, 0.64]],
        f"CON_{initial}_{speaker}000002": [[0.0, 0.16], [0.96, 1.12]],
    }


def partialspoof(root: Path, *, n_speakers: int = 1, sets: Sequence[str] = tuple(SETS)) -> Path:
    """`database/` with protocols, segment_labels and clips of 1.28 s, four of each speaker."""
    base, seconds = root / "database", 1.28
    for name in sets:
        clips, lines = {}, []
        for speaker in range(n_speakers):
            for clip, fake in partialspoof_clips(SETS[name], speaker).items():
                clips[clip] = fake
                kind = "CON spoof" if fake else "- bonafide"
                lines.append(f"LA_00{speaker:02d} {clip} - {kind}")
                write_sound(base / name / "con_wav" / f"{clip}.wav", seconds, fake)
        protocols = base / "protocols/PartialSpoof_LA_cm_protocols"
        write_lines(protocols / f"PartialSpoof.LA.cm.{name}.trl.txt", lines)
        (base / "segment_labels").mkdir(exist_ok=True)
        for resolution in RESOLUTIONS:
            labels = {clip: seglab(fake, seconds, resolution) for clip, fake in clips.items()}
            path = base / "segment_labels" / f"{name}_seglab_{resolution}.npy"
            np.save(path, labels, allow_pickle=True)
    return base


def llamapartialspoof(root: Path) -> None:
    """Both parts: the second has partial fakes only."""
    first = {
        "dev-clean_1272_128104_000001_000000": "2.0000 bonafide 0.0000-2.0000-bonafide",
        "dev01-cosyvoice-full_1272_128104_000001_000000": "2.2000 spoof 0.0000-2.2000-spoof",
        "dev01-xtts-partial-cf_84_121123_000005_000014": (
            "1.5000 spoof 0.0000-0.3800-bonafide 0.3800-0.9000-spoof 0.9000-1.5000-bonafide"
        ),
    }
    second = {
        "dev01-xtts-partial-cp_84_121123_000005_000014": (
            "1.5000 spoof 0.0000-0.4000-spoof 0.4000-1.5000-bonafide"
        )
    }
    for part, clips in (("a", first), ("b", second)):
        write_lines(root / f"label_R01TTS.0.{part}.txt", [f"{k} {v}" for k, v in clips.items()])
        for name, label in clips.items():
            write_sound(root / f"R01TTS.0.{part}" / f"{name}.wav", float(label.split()[0]))


def halftruth(root: Path) -> None:
    """HAD_train, HAD_dev and HAD_test, with the folders that their archives unpack to."""
    for name, folder in (("train", "train/conbine"), ("dev", "conbine"), ("test", "test")):
        lines = [
            f"HAD_{name}_real_00000001 0.00-2.00-T 1",
            f"HAD_{name}_fake_00000001 0.00-0.43-T/0.43-1.02-F/1.02-2.00-T 0",
            f"HAD_{name}_fake_00000002 0.00-2.00-F 0",
        ]
        write_lines(root / f"HAD_{name}/HAD_{name}_label.txt", lines)
        for line in lines:
            write_sound(root / f"HAD_{name}" / folder / f"{line.split()[0]}.wav", 2.0)


def asvspoof2019la(root: Path) -> None:
    """The folder LA, with a clip of the training set in FLAC and no other media."""
    write_sound(root / "LA/ASVspoof2019_LA_train/flac/LA_T_1138215.flac", 0.5)
    for name, letter in SETS.items():
        kind = "trn" if name == "train" else "trl"
        write_lines(
            root / f"LA/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.{name}.{kind}.txt",
            [
                f"LA_0079 LA_{letter}_1138215 - - bonafide",
                f"LA_0079 LA_{letter}_1271820 - A06 spoof",
            ],
        )


def asvspoof5(root: Path) -> None:
    """The protocols, separated by spaces, without the media."""
    names = {"train": "train", "dev": "dev.track_1", "eval": "eval.track_1"}
    for name, letter in SETS.items():
        write_lines(
            root / f"ASVspoof5.{names[name]}.tsv",
            [
                f"{letter}_4850 {letter}_0000000000 F - - - AC3 A05 spoof -",
                f"{letter}_4851 {letter}_0000000001 M C01 3 {letter}_0000000009 - bonafide"
                " bonafide -",
            ],
        )


def in_the_wild(root: Path) -> None:
    """`release_in_the_wild/` with meta.csv and two clips."""
    base = root / "release_in_the_wild"
    lines = ["file,speaker,label", "0.wav,Alec Guinness,spoof", "4.wav,Ada King,bona-fide"]
    write_lines(base / "meta.csv", lines)
    for name in ("0.wav", "4.wav"):
        write_sound(base / name, 1.0)
