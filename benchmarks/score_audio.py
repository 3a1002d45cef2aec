"""How fast the audio models score, in what memory, and what the approximate mode costs in AUC.

    python benchmarks/score_audio.py speed
        [--systems w2v_aasist bam] [--seconds 9.6] [--clips 1] [--repeats 2]
                                            [--device auto] [--batch-size 16] [--threads 2]
    python benchmarks/score_audio.py memory [--systems w2v_aasist bam ps] [--seconds 15 30 60] \\
        [--threads 2]
    python benchmarks/score_audio.py hops [--seconds 9.6] [--repeats 2] [--threads 2]
    python benchmarks/score_audio.py auc SYSTEM_DIR ... --lists DIR --media DIR --features DIR \\
        [--split val]

`speed`: full-size models (24 layers of 1024; XLSR-53's or WavLM-Large's shape, random weights)
score synthetic clips in the windows of the recipes: naively, each window through the whole model;
as `klassify score` does, with the convolutional frames shared where that is exact; and
approximately, with one pass of the front end a clip. All in one run, in turn; best times. The
real-time factor is wall time over the clips' duration. `bam_shared` is BAM without the
normalisation of each window that forbids sharing. Fails if the shared scores differ from naive ones
by 1e-4.

`memory`: the peak of a process that builds a full-size model and scores one clip, one process for
each duration. Fails if a system's peaks differ by 5 % or reach 4 GB. Linux only.

`hops`: localisers on one full-size encoder (WavLM-Large's shape) with rows of 40, 20 and 10 ms: CPU
time, and its ratio to that of BAM at 40 ms.

`auc`: trained systems on a labelled split, exactly and approximately: AUC of clips, or of frames
for a localiser.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from bam import memory_gb
from torch import nn

from klassify.data.audio import AudioClips, AudioFrames
from klassify.data.base import Sources
from klassify.data.partialspoof import PartialSpoofFrames
from klassify.grid.frames import encode_labels
from klassify.metrics.clips import roc_auc
from klassify.models.devices import pick_device, return_freed_blocks
from klassify.scores.inference import clip_table, score_clips, score_frames

RATE = 16_000


class Synthetic:
    """Noise of `seconds` for any file name, in place of a reader of media."""

    def __init__(self, seconds: float):
        self.n_samples = round(seconds * RATE)

    def read(self, file: str) -> np.ndarray:
        rng = np.random.default_rng(int(file))
        return rng.normal(0, 0.1, self.n_samples).astype(np.float32)


class Naive(nn.Module):
    """A model that offers its scores alone, so that each window goes through all of it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def score(self, batch):
        return self.model.score(batch)

    def frame_scores(self, wave):
        return self.model.frame_scores(wave)


def full_size(system: str) -> tuple[nn.Module, AudioClips]:
    """A model of the recipes' size with random weights, and the data class of its recipe."""
    from klassify.models.bam import BAM
    from klassify.models.frontends.ssl import SSLFrontEnd
    from klassify.models.partialspoof import PartialSpoof
    from klassify.models.w2v_aasist import W2VAASIST

    torch.manual_seed(0)
    if system == "w2v_aasist":
        return (
            W2VAASIST(SSLFrontEnd(normalize_input=False, architecture="xlsr53")).eval(),
            AudioClips(),
        )
    if system == "ps":
        return (
            PartialSpoof(SSLFrontEnd(normalize_input=True, architecture="large-robust")).eval(),
            PartialSpoofFrames(),
        )
    return (
        BAM(SSLFrontEnd(normalize_input=system == "bam", architecture="wavlm-large")).eval(),
        AudioFrames(),
    )


def score(model: nn.Module, data: AudioClips, seconds: float, clips: int, **how) -> np.ndarray:
    """Scores of the windows, or of the frames, of synthetic clips."""
    data.reader = lambda sources, split: Synthetic(seconds)
    run = score_frames if hasattr(data, "COLUMNS") else score_clips
    nowhere = Sources(Path("lists"), Path("media"), Path("features"))
    table, reasons = run(
        model, data, nowhere, "test", files=[str(i) for i in range(clips)], progress=False, **how
    )
    assert not reasons, reasons
    return table["score"].to_numpy()


def compare_speed(system: str, args: argparse.Namespace) -> None:
    """Print the real-time factors of one system and their ratios to the naive one."""
    device = pick_device(args.device)
    model, data = full_size(system)
    model, audio_s = model.to(device), args.seconds * args.clips
    how = {"device": device, "batch_size": args.batch_size}
    forms = {
        "naive": (Naive(model), {}),
        "klassify score": (model, {}),
        "approximate": (model, {"approximate": True}),
    }
    if device.type == "cuda":
        score(model, data, args.seconds, 1, **how)
    times, scores = {name: [] for name in forms}, {}
    for _ in range(args.repeats):  # in turn, so that other load on the machine meets all of them
        for name, (form, more) in forms.items():
            start = np.array([time.perf_counter(), time.process_time()])
            scores[name] = score(form, data, args.seconds, args.clips, **how, **more)
            times[name].append(np.array([time.perf_counter(), time.process_time()]) - start)
    naive = np.min(times["naive"], axis=0)
    n_windows = len(data.cut(Synthetic(args.seconds).read("0")))
    print(
        f"{system}, {args.clips} clips of {args.seconds:g} s in {n_windows} windows each, {device}"
    )
    for name, several in times.items():
        (wall, cpu), change = np.min(several, axis=0), np.abs(scores[name] - scores["naive"]).max()
        line = (
            f"  {name:>14}: {wall:7.2f} s, real-time factor {wall / audio_s:6.3f},"
            f" {naive[0] / wall:.2f} times as fast"
        )
        if device.type == "cpu":
            line += f" ({cpu:.1f} s of CPU time, {naive[1] / cpu:.2f} times as fast)"
        print(f"{line}; scores differ by up to {change:.1e}", flush=True)
    if np.abs(scores["klassify score"] - scores["naive"]).max() > 1e-4:
        sys.exit("the scores are not those of windows on their own")


def compare_hops(args: argparse.Namespace) -> None:
    """Print what finer rows cost on the same encoder."""
    from klassify.data.audio_shares import AudioShares
    from klassify.models.audio_encoder import AudioFrameModel
    from klassify.models.bam import BAM
    from klassify.models.frontends.ssl import SSLFrontEnd
    from klassify.models.partialspoof import PartialSpoof

    torch.manual_seed(0)
    encoder = SSLFrontEnd(normalize_input=True, architecture="wavlm-large")
    ps, head = PartialSpoof(encoder), AudioFrameModel(encoder)
    crops = {"window": 32_000, "stride": 25_600}
    forms = {
        "BAM, 40 ms": (BAM(encoder), AudioFrames()),
        "BAM, 20 ms": (BAM(encoder, 0.02), AudioFrames(hop_s=0.02, **crops)),
        "PartialSpoof, 40 ms": (ps, PartialSpoofFrames()),
        "PartialSpoof, 20 ms": (ps, PartialSpoofFrames(hop_s=0.02)),
        "frame head, 20 ms": (head, AudioShares()),
        "frame head, 10 ms": (head, AudioShares(interleave=True)),
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(args.repeats):  # in turn, so that other load on the machine meets all of them
        for name, (model, data) in forms.items():
            start = time.process_time()
            score(model, data, args.seconds, 1, device="cpu")
            times[name].append(time.process_time() - start)
    base = min(times["BAM, 40 ms"])
    for name, several in times.items():
        cpu = min(several)
        print(
            f"  {name:>20}: {cpu:6.1f} s of CPU time, {cpu / base:.2f} of BAM at 40 ms", flush=True
        )


def measure_memory(system: str, seconds: float) -> dict[str, float]:
    """Memory with the model loaded and at its peak in GB, and the wall time of scoring one clip."""
    model, data = full_size(system)
    loaded, start, cpu_start = memory_gb("VmRSS"), time.perf_counter(), time.process_time()
    score(model, data, seconds, 1, device="cpu")
    cpu, wall = time.process_time() - cpu_start, time.perf_counter() - start
    return {"loaded": loaded, "peak": memory_gb("VmHWM"), "cpu": cpu, "wall": wall}


def compare_memory(system: str, args: argparse.Namespace) -> bool:
    """Measure each duration in a process of its own; whether memory is flat and under 4 GB."""
    peaks = []
    for seconds in args.seconds:
        command = [
            sys.executable,
            __file__,
            "clip",
            system,
            str(seconds),
            "--threads",
            str(args.threads),
        ]
        result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        peaks.append(result["peak"])
        print(
            f"{system}, {seconds:g} s of audio: peak {result['peak']:.2f} GB, of which the model "
            f"{result['loaded']:.2f} GB; {result['wall']:.0f} s, {result['cpu']:.0f} s of CPU time",
            flush=True,
        )
    spread = max(peaks) / min(peaks) - 1
    print(f"{system}: the peaks differ by {100 * spread:.1f} %")
    return spread < 0.05 and max(peaks) < 4


def compare_auc(folder: Path, args: argparse.Namespace) -> None:
    """Print the AUC of a trained system on a labelled split, exact and approximate, and the
    times.
    """
    from klassify.systems.trained import load_model

    model, data = load_model(folder)
    sources = Sources(args.lists, args.media, args.features)
    aucs, walls = [], []
    for approximate in (False, True):
        start = time.perf_counter()
        aucs.append(split_auc(model, data, sources, args.split, approximate))
        walls.append(time.perf_counter() - start)
    print(
        f"{folder}, {args.split}: AUC {aucs[0]:.4f} exact, {aucs[1]:.4f} approximate"
        f" ({aucs[1] - aucs[0]:+.4f}); {walls[0]:.1f} and {walls[1]:.1f} s, reading included"
    )


def split_auc(
    model: nn.Module, data: AudioClips, sources: Sources, split: str, approximate: bool
) -> float:
    """AUC of the clips of a split, or of its frames for a localiser."""
    how = {"progress": False, "approximate": approximate}
    if not hasattr(data, "COLUMNS"):
        table = sources.table(split)
        scored, reasons = score_clips(model, data, sources, split, **how)
        clips = clip_table(scored, table, reasons, data.aggregate)["score"].to_numpy(float)
        return roc_auc(data.labels(table)[np.isfinite(clips)], clips[np.isfinite(clips)])
    table = sources.table(split, segments=True)
    fake = dict(zip(table["file"], data.segments_of(table)))
    frames, _ = score_frames(model, data, sources, split, **how)
    labels = [
        encode_labels(fake[file], len(rows))
        for file, rows in frames.groupby("file", sort=False, observed=True)
    ]
    return roc_auc(np.concatenate(labels), frames["score"].to_numpy(float))


def configure() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    speed = commands.add_parser(
        "speed", help="real-time factors, and ratios to windows on their own"
    )
    speed.add_argument("--systems", nargs="+", default=["w2v_aasist", "bam"])
    speed.add_argument("--seconds", type=float, default=9.6, help="duration of a clip")
    speed.add_argument("--clips", type=int, default=1)
    speed.add_argument("--repeats", type=int, default=2)
    speed.add_argument("--batch-size", type=int, default=16)
    speed.add_argument("--device", default="auto")
    memory = commands.add_parser("memory", help="peak memory of scoring clips of several durations")
    memory.add_argument("--systems", nargs="+", default=["w2v_aasist", "bam", "ps"])
    memory.add_argument("--seconds", type=float, nargs="+", default=[15, 30, 60])
    clip = commands.add_parser("clip", help="one clip, as JSON; what `memory` runs")
    clip.add_argument("system")
    clip.add_argument("seconds", type=float)
    hops = commands.add_parser("hops", help="what rows of 20 and 10 ms cost")
    hops.add_argument("--seconds", type=float, default=9.6, help="duration of the clip")
    hops.add_argument("--repeats", type=int, default=2)
    auc = commands.add_parser("auc", help="AUC of trained systems, exact and approximate")
    auc.add_argument("folders", nargs="+", type=Path, metavar="SYSTEM_DIR")
    for name in ("lists", "media", "features"):
        auc.add_argument(f"--{name}", type=Path, required=True)
    auc.add_argument("--split", default="val")
    for command in (speed, memory, clip, hops, auc):
        command.add_argument("--threads", type=int, default=2)
    return parser


def main() -> None:
    args = configure().parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "speed":
        for system in args.systems:
            compare_speed(system, args)
    elif args.command == "memory":
        flat = [compare_memory(system, args) for system in args.systems]
        if not all(flat):
            sys.exit("memory is not flat, or not under 4 GB")
    elif args.command == "clip":
        return_freed_blocks()  # as `klassify score` does
        print(json.dumps(measure_memory(args.system, args.seconds)))
    elif args.command == "hops":
        compare_hops(args)
    else:
        for folder in args.folders:
            compare_auc(folder, args)


if __name__ == "__main__":
    main()
