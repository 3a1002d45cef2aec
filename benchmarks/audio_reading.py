"""How fast a random 4 s crop for training is read from the audio cache, against the mp4 that it was
made of.

    python benchmarks/audio_reading.py media/demo/train [--clips 40] [--rounds 5] \\
        [--min-ratio 10] [--indexed N]

Both sides run in this process, by turns, on the same clips and crops, with the reader that training
uses; the crops are compared to the bit. `warm`: the file lies in the page cache. `cold`: it was
dropped from there before (what is below, such as a virtual disk's host, may still hold it). Clips
that are looped to 10 s (the mean of AV-Deepfake1M++ is 9.6 s) and 60 s show what their length does:
an mp4 is decoded whole. `map`: the same crop of the cache's file through a memory map. --indexed N
also opens a cache of N clips of 9.6 s, whose files are sparse, and looks clips up. Exits with 1 if
clips of 10 s are below --min-ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pickle
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from klassify import cli, parts
from klassify.data.audio import AudioReader
from klassify.data.base import Sources
from klassify.features import audio_cache
from klassify.parts import Place

CHUNK, WINDOW = 500, 64_600


def main() -> int:
    """Print the figures; 1 where the cache is not --min-ratio times faster."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of .mp4 clips, searched through")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--min-ratio", type=float, default=10.0)
    parser.add_argument(
        "--indexed",
        type=int,
        metavar="N",
        help="also open a cache of so many clips, such as 1100000",
    )
    args = parser.parse_args()
    clips = sorted(args.folder.rglob("*.mp4"))[: args.clips]
    if not clips:
        parser.error(f"no .mp4 below {args.folder}; `klassify corpus` makes some")
    print(f"a crop of 4 s for training, median over {len(clips)} clips, {args.rounds} rounds:")
    print("                             mp4       cache   ratio   mp4 CPU  cache CPU       map")
    ratios = {}
    for title, seconds in (("as they are", 0), ("looped to 10 s", 10), ("looped to 60 s", 60)):
        with tempfile.TemporaryDirectory() as folder:
            sources = make(Path(folder), clips if not seconds else clips[:5], seconds)
            for cold in (False, True):
                ratios[seconds, cold] = compare(
                    f"{title}, {'cold' if cold else 'warm'}", sources, args.rounds, cold
                )
    if args.indexed:
        with tempfile.TemporaryDirectory() as folder:
            index(Path(folder), args.indexed)
    return int(min(ratios[10, False], ratios[10, True]) < args.min_ratio)


def make(folder: Path, clips: list[Path], seconds: float) -> Sources:
    """A data set of these clips, looped to at least `seconds`, and its audio cache."""
    sources = Sources(folder / "lists", folder / "media", folder / "features")
    (folder / "media/train").mkdir(parents=True)
    (folder / "lists").mkdir()
    names = [f"{number}.mp4" for number in range(len(clips))]
    for name, clip in zip(names, clips):
        if seconds:
            loop(clip, folder / "media/train" / name, seconds)
        else:
            (folder / "media/train" / name).symlink_to(clip.absolute())
    listed = sources.lists / "train.tsv"
    listed.write_text("\n".join(["file", *names]) + "\n")
    arguments = [
        "--list",
        listed,
        "--root",
        folder / "media/train",
        "--out",
        sources.feature_folder("audio", "train"),
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        status = cli.main(
            ["extract", "--kind", "audio", *map(str, arguments), "--jobs", "1", "--strict"]
        )
    if status:
        sys.exit(status)
    return sources


def loop(clip: Path, out: Path, seconds: float) -> None:
    """Repeat a clip's packets, video and audio, until they last long enough."""
    with av.open(str(clip)) as source, av.open(str(out), "w") as container:
        streams = {
            stream.index: container.add_stream_from_template(stream) for stream in source.streams
        }
        packets = [packet for packet in source.demux() if packet.size]
        stamps = [(packet.stream.index, packet.pts, packet.dts) for packet in packets]
        ends = {
            index: max(p.dts + p.duration for p in packets if p.stream.index == index)
            for index in streams
        }
        starts = {index: min(dts for i, _, dts in stamps if i == index) for index in streams}
        length = max(
            float(p.duration * p.time_base) * sum(i == p.stream.index for i, *_ in stamps)
            for p in packets
        )
        for turn in range(int(np.ceil(seconds / length))):
            for packet, (i, pts, dts) in zip(packets, stamps):
                shift = turn * (ends[i] - starts[i])
                packet.pts, packet.dts, packet.stream = pts + shift, dts + shift, streams[i]
                container.mux(packet)


class Mapped:
    """The clips of a cache through memory maps of its files."""

    def __init__(self, cache: audio_cache.AudioStore, sounds: list[Path]):
        self.cache = cache
        self.maps = [
            np.memmap(path, audio_cache.SAMPLE, "r", audio_cache.HEAD_BYTES) for path in sounds
        ]

    def read(self, file: str) -> np.ndarray:
        """The int16 samples of a clip."""
        clip = self.cache.get(file)
        return self.maps[clip.part][clip.start : clip.start + len(clip)]


def compare(title: str, sources: Sources, rounds: int, cold: bool) -> float:
    """Print the times of both sides and return their ratio, in wall or CPU time, whichever is
    lower.
    """
    readers: dict[str, AudioReader | Mapped] = {}
    for side in ("media", "cache"):
        os.environ[audio_cache.VARIABLE] = side
        readers[side] = AudioReader(sources, "train")
    files, folder = sources.table("train")["file"].tolist(), sources.media_folder("train")
    sounds = [
        audio_cache.sound_path(path)
        for path in parts.parts_in(sources.feature_folder("audio", "train"))
    ]
    readers["map"] = Mapped(readers["cache"].cache, sounds)
    rng = np.random.default_rng(0)
    spent: dict[str, list[tuple[float, float]]] = {side: [] for side in readers}
    for turn in range(-1, rounds):  # the first one warms up
        for file in rng.permutation(files):
            crops, start = {}, rng.integers(max(len(readers["cache"].read(file)) - WINDOW, 0) + 1)
            # who comes later finds the CPU's caches warm
            for side in rng.permutation(list(readers)):
                for path in [folder / file, *sounds] if cold else []:
                    drop(path)
                crops[side], times = timed(readers[side], file, start)
                if turn >= 0:
                    spent[side].append(times)
            if not all(np.array_equal(crops["media"], crop) for crop in crops.values()):
                sys.exit(f"{file}: the crops differ")
    (mp4, mp4_cpu), (cache, cache_cpu), (mapped, _) = (
        1e3 * np.median(times, axis=0) for times in spent.values()
    )
    print(f"  {title:<22} {mp4:7.2f} ms  {cache:7.3f} ms  {mp4 / cache:5.0f}x", end="")
    print(f"  {mp4_cpu:6.2f} ms  {cache_cpu:6.3f} ms  {mapped:7.3f} ms", flush=True)
    return min(mp4 / cache, mp4_cpu / cache_cpu)


def timed(
    reader: AudioReader | Mapped, file: str, start: int
) -> tuple[np.ndarray, tuple[float, float]]:
    """A crop, and the wall and CPU seconds that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    crop = reader.read(file)[start : start + WINDOW]
    crop = audio_cache.to_float(crop) if crop.dtype == audio_cache.SAMPLE else crop
    return crop, (time.perf_counter() - wall, time.process_time() - cpu)


def drop(path: Path) -> None:
    """Let the page cache forget a file."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def index(folder: Path, n_clips: int) -> None:
    """Print what a cache of many clips takes to open and hold."""
    rng = np.random.default_rng(0)
    files = [
        f"vox_celeb_2/id{i % 2606:05d}/{i:011x}/{i % 99999:05d}/fake_video_real_audio.mp4"
        for i in range(n_clips)
    ]
    n_parts = -(-n_clips // CHUNK)
    settings = {"kind": "audio", **audio_cache.FORMAT}
    for k in range(n_parts):
        place, part = Place(1, 1, k, n_parts), files[k * CHUNK : (k + 1) * CHUNK]
        columns = {"file": part, "n_samples": rng.integers(40_000, 267_200, len(part))}
        columns |= {name: [""] * len(part) for name in ("stage", "reason")}
        columns["n_heard"] = columns["n_samples"]
        path = audio_cache.write_index(
            folder / place.name, place, columns, settings, "", f"{k:032x}"
        )
        with open(audio_cache.sound_path(path), "wb") as handle:
            handle.write(audio_cache.head(f"{k:032x}"))
            handle.truncate(audio_cache.HEAD_BYTES + 2 * int(columns["n_samples"].sum()))
    stats = [path.stat() for path in folder.iterdir()]
    claimed, used = (
        sum(stat.st_size for stat in stats) / 1e9,
        sum(512 * stat.st_blocks for stat in stats) / 1e9,
    )
    print(
        f"{n_clips} clips in {n_parts} parts, {claimed:.0f} GB ({used:.2f} GB on disk, since these"
        " are sparse):"
    )
    before, start = resident(), time.perf_counter()
    cache = audio_cache.AudioStore(folder)
    print(f"  opened in {time.perf_counter() - start:.1f} s, {resident() - before:.0f} MiB")
    print(
        f"  {len(pickle.dumps(cache)) / 2**20:.0f} MiB go to a worker process that is spawned,"
        " nothing to a forked one"
    )
    chosen, start = [files[i] for i in rng.integers(n_clips, size=20_000)], time.perf_counter()
    found = [cache.get(file) for file in chosen]
    print(f"  found in {1e6 * (time.perf_counter() - start) / len(chosen):.1f} us a clip")
    start = time.perf_counter()
    for clip in found:
        clip[:WINDOW]
    print(
        f"  {len(found)} crops from random parts:"
        f" {1e6 * (time.perf_counter() - start) / len(found):.0f} us each"
    )
    print(f"  then: {resident() - before:.0f} MiB, {len(os.listdir('/proc/self/fd'))} files open")


def resident() -> float:
    """MiB that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    sys.exit(main())
