"""How long `klassify lists` takes on metadata of the size of AV-Deepfake1M++'s train split.

    python benchmarks/lists.py [--clips 1100000] [--folder DIR]

Writes synthetic metadata in the official schema (names, models and segment statistics like the real
ones), makes the list and reads it, each in a fresh process, and prints times and peak memory. No
media is opened.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orjson

NAMES = {
    "real": "real.mp4",
    "audio_modified": "real_video_fake_audio.mp4",
    "visual_modified": "fake_video_real_audio.mp4",
    "both_modified": "fake_video_fake_audio_p1.mp4",
}


def write_metadata(path: Path, n_clips: int, seed: int = 0) -> None:
    """A JSON list of `n_clips` entries: four types of each original, 1-5 segments of about 0.33
    s.
    """
    rng = np.random.default_rng(seed)
    with open(path, "wb") as handle:
        handle.write(b"[")
        for index in range(n_clips):
            kind, utterance = list(NAMES)[index % 4], index // 4
            folder = (
                f"vox_celeb_2/id{utterance % 2606:05d}/{utterance:011x}/{utterance % 99999:05d}"
            )
            n_frames = int(rng.integers(60, 480))
            starts = np.sort(rng.uniform(0, n_frames / 25 - 1, rng.integers(1, 6)))
            segments = (
                []
                if kind == "real"
                else [[round(s, 2), round(s + 0.33, 2)] for s in starts.tolist()]
            )
            entry = {
                "file": f"{folder}/{NAMES[kind]}",
                "original": None if kind == "real" else f"{folder}/real.mp4",
                "split": "train",
                "modify_type": kind,
                "audio_model": "yourtts" if "audio" in kind else None,
                "video_model": "Talklip" if "visual" in kind else None,
                "fake_segments": segments,
                "audio_fake_segments": (
                    segments if kind in ("audio_modified", "both_modified") else []
                ),
                "visual_fake_segments": (
                    segments if kind in ("visual_modified", "both_modified") else []
                ),
                "video_frames": n_frames,
                "audio_frames": n_frames * 640,
            }
            handle.write((b",\n " if index else b"\n ") + orjson.dumps(entry))
        handle.write(b"\n]\n")


def measured(name: str, *command: object) -> None:
    """Run a command in a fresh process; print its wall and CPU time and its peak memory."""
    start = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{name} failed")
    wall, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    print(f"{name}: {wall:.1f} s wall, {cpu:.1f} s cpu, peak {usage.ru_maxrss / 2**20:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=1_100_000)
    parser.add_argument(
        "--folder", type=Path, help="keep the files here instead of in a temporary folder"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        metadata, out = folder / "train_metadata.json", folder / "lists"
        write_metadata(metadata, args.clips)
        print(f"{args.clips} clips, {metadata.stat().st_size / 1e6:.0f} MB of metadata", flush=True)
        command = "import sys; from klassify.cli import main; sys.exit(main(sys.argv[1:]))"
        where = ("--splits", "train", "--root", folder, "--out", out, "--force")
        measured(
            "klassify lists",
            sys.executable,
            "-c",
            command,
            "lists",
            "--data",
            "avdeepfake1mpp",
            *where,
        )
        for name, options in (("read_list", ""), ("read_list with segments", ", segments=True")):
            read = (
                "from klassify.lists import data_list;"
                f" data_list.read_list({str(out / 'train.tsv')!r}{options})"
            )
            measured(name, sys.executable, "-c", read)


if __name__ == "__main__":
    main()
