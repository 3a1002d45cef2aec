"""Time and memory from prediction.json to the Task 2 Score, beside the published evaluator.

    python benchmarks/evaluate.py [--clips 77326] [--proposals 50 100] [--repeat 3] [--large]
    pip install --no-deps --target DIR avdeepfake1m==0.0.4
    python benchmarks/evaluate.py --published DIR

Writes predictions and metadata of the size of AV-Deepfake1M++'s val split (--large: of testA,
850,586 clips of 50 proposals, 1.2 GB on disk), evaluates each in fresh processes and prints the
best wall time, processor time and peak memory, and the ratios. The published package (licence CC
BY-NC) is not part of this project: only its compiled `_evaluation` module is loaded, from the
folder that you give.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LARGE = (850_586, 50)


def make(folder: Path, n_clips: int, n_proposals: int) -> None:
    """prediction.json and metadata.json: lognormal segments of 0.30 s, a third of the proposals
    near one.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    row = "[" + ", ".join(["[%.4f, %.2f, %.2f]"] * n_proposals) + "]"
    with (
        open(folder / "prediction.json", "w") as predictions,
        open(folder / "metadata.json", "w") as metadata,
    ):
        for index in range(n_clips):
            duration = rng.uniform(3, 16)
            n_segments = int(rng.choice(6, p=[0.26, 0.4, 0.2, 0.08, 0.04, 0.02]))
            start = np.round(rng.uniform(0, duration - 1, n_segments), 2)
            segments = np.stack(
                [start, np.round(start + rng.lognormal(-1.2, 0.44, n_segments) + 0.02, 2)], axis=1
            )
            begin = rng.uniform(0, duration, n_proposals)
            spans = np.stack([begin, begin + rng.lognormal(-1.2, 0.44, n_proposals)], axis=1)
            near = (rng.random(n_proposals) < 0.3) & (n_segments > 0)
            if near.any():
                which = rng.integers(0, n_segments, near.sum())
                spans[near] = segments[which] + rng.normal(0, 0.05, (near.sum(), 2))
            score = np.sort(rng.random(n_proposals))[::-1]
            name = f"id{index % 5000:05d}/{index:06d}/fake.mp4"
            rows = row % tuple(np.column_stack([score, spans]).ravel().tolist())
            predictions.write(("{" if index == 0 else ", ") + f'"{name}": {rows}')
            entry = {
                "file": name,
                "original": None,
                "split": "val",
                "audio_model": "vits",
                "video_model": "talklip",
                "modify_type": "both_modified" if n_segments else "real",
                "fake_segments": segments.tolist(),
                "audio_fake_segments": segments.tolist(),
                "visual_fake_segments": segments.tolist(),
                "video_frames": int(duration * 25),
                "audio_frames": int(duration * 16_000),
            }
            metadata.write(("[" if index == 0 else ", ") + json.dumps(entry))
        predictions.write("}")
        metadata.write("]")


def ours(folder: Path) -> dict:
    """The ten numbers, and the seconds of each step."""
    started = time.perf_counter()
    from klassify.lists.records import truth_from_metadata
    from klassify.metrics.segments import score_task2
    from klassify.submission.prediction_json import read_prediction_json

    times = [started, time.perf_counter()]
    proposals = read_prediction_json(folder / "prediction.json")
    times.append(time.perf_counter())
    truth = truth_from_metadata(folder / "metadata.json")
    times.append(time.perf_counter())
    result = score_task2(proposals, truth)
    times.append(time.perf_counter())
    steps = {
        name: end - begin
        for name, begin, end in zip(("import", "json", "truth", "score"), times, times[1:])
    }
    return {"numbers": [*result.ap.tolist(), *result.ar.tolist(), result.score], "steps": steps}


def published(folder: Path, package: Path) -> dict:
    """The ten numbers of the published evaluator."""
    module = next(package.rglob("_evaluation*.so"))
    spec = importlib.util.spec_from_file_location("_evaluation", module)
    evaluation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(evaluation)
    counts, ious = [50, 30, 20, 10, 5], [round(0.5 + 0.05 * i, 2) for i in range(10)]
    files = [str(folder / "prediction.json"), str(folder / "metadata.json")]
    result = evaluation.ap_ar_1d(
        *files, "file", "fake_segments", 1.0, [0.5, 0.75, 0.9, 0.95], counts, ious
    )
    ap, ar = list(result["ap"].values()), [result["ar"][count] for count in counts]
    return {"numbers": [*ap, *ar, sum(ap) / 8 + sum(ar) / 10], "steps": {}}


def in_fresh_process(task: str, *arguments: object) -> dict:
    """Run this file as a worker; returns what it printed, with its wall time."""
    command = [sys.executable, __file__, "--worker", task, *map(str, arguments)]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return {"wall": wall, **json.loads(done.stdout or "{}")}


def work(task: str, arguments: list[str]) -> None:
    """What a worker does: one task, its result and costs printed as JSON."""
    folder = Path(arguments[0])
    if task == "make":
        make(folder, *map(int, arguments[1:]))
        return
    result = ours(folder) if task == "ours" else published(folder, Path(arguments[1]))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps({**result, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss / 1e6})
    )


def compare(
    n_clips: int, n_proposals: int, repeat: int, package: Path | None, scratch: str | None
) -> None:
    """Make one data set, run both evaluators in turn, print the best of each."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        in_fresh_process("make", folder, n_clips, n_proposals)
        megabytes = (folder / "prediction.json").stat().st_size / 1e6
        print(f"{n_clips} clips x {n_proposals} proposals, {megabytes:.0f} MB")
        runs = {"ours": [], "published": []}
        for _ in range(repeat):
            runs["ours"].append(in_fresh_process("ours", folder))
            if package:
                runs["published"].append(in_fresh_process("published", folder, package))
    best = {}
    for side, results in runs.items():
        if results:
            best[side] = {
                key: min(result[key] for result in results) for key in ("wall", "cpu", "peak")
            }
            print(
                f"  {side:<10}"
                + "{wall:8.2f} s wall {cpu:8.2f} s cpu {peak:8.3f} GB peak".format(**best[side])
            )
    steps = min(runs["ours"], key=lambda result: result["wall"])["steps"]
    print("  our steps " + "  ".join(f"{name} {seconds:.2f} s" for name, seconds in steps.items()))
    if package:
        ratios = [best["ours"][key] / best["published"][key] for key in ("wall", "cpu", "peak")]
        print("  ratio     {:8.2f}   wall {:8.2f}   cpu {:8.2f}    peak".format(*ratios))
        pairs = zip(runs["ours"][0]["numbers"], runs["published"][0]["numbers"])
        print(f"  largest difference of AP, AR and Score: {max(abs(a - b) for a, b in pairs):.1e}")


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        return work(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=77_326, help="clips (%(default)s: val)")
    parser.add_argument(
        "--proposals", type=int, nargs="*", default=[50, 100], help="proposals per clip (50 100)"
    )
    parser.add_argument(
        "--repeat", type=int, default=3, help="runs of each, the best counts (%(default)s)"
    )
    parser.add_argument(
        "--large", action="store_true", help="also 850,586 clips of 50 proposals, once"
    )
    parser.add_argument("--published", type=Path, help="folder with the package avdeepfake1m 0.0.4")
    parser.add_argument("--folder", help="where to write the data (the system's temporary folder)")
    arguments = parser.parse_args()
    if arguments.published and not list(arguments.published.rglob("_evaluation*.so")):
        parser.error(
            f"{arguments.published} holds no compiled _evaluation module for this platform"
        )
    for n_proposals in arguments.proposals:
        compare(
            arguments.clips, n_proposals, arguments.repeat, arguments.published, arguments.folder
        )
    if arguments.large:
        compare(*LARGE, 1, arguments.published, arguments.folder)


if __name__ == "__main__":
    main()
