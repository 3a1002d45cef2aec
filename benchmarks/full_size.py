"""CPU time and peak memory of the steps after inference, at the size of AV-Deepfake1M++: the tables
of docs/full-size.md.

    python benchmarks/full_size.py DIR                        1/10 of val and testA
    python benchmarks/full_size.py DIR --sizes 0.1 1          and whole: 25 GB on disk, an hour
    python benchmarks/full_size.py DIR --steps tune check     only steps whose names begin so
    python benchmarks/full_size.py DIR --before CHECKOUT      beside another version of the package

Makes lists, score files and systems in DIR with the package's own writers (val: 77,326 clips and
18.4 million frames of each of six models; testA: 850,000 clips, which are copies of 17,000 with
names of their own), runs each step as a process of its own and prints CPU seconds (user and system,
so that other work on the machine matters little), peak memory, and by how much the CPU time grows
from the first size to the last. The scores are noise
around made-up labels: times are real, metrics mean nothing. With --before each step also runs in
that checkout, on the same inputs, and `output` says whether both wrote the same bytes. What was
measured is kept in DIR/measured.json and not measured again; --again measures anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from klassify.grid.frames import FRAME_S
from klassify.grid.ragged import row_numbers, row_offsets
from klassify.grid.segments import Truth
from klassify.lists import data_list
from klassify.metrics.frames import frame_labels
from klassify.scores.frame_file import BLOCK_CLIPS
from klassify.scores.score_file import Header, score_path, write_blocks
from klassify.settings import file_hash
from klassify.systems import base, system

HERE = Path(__file__).resolve().parent.parent
VAL, TEST = 77_326, 850_000  # clips
MADE_ANEW = 17_000  # clips of testA; the others are copies
CLIPS_PER_SOURCE = 4
TEST_ROWS = 25  # proposals per clip of each of the two inputs on testA
PS = [f"ps{ms}_{side}" for ms in (160, 320, 640) for side in ("real", "fake")]
TAGS = ["log_o", "log_b", "log_i", "log_l"]
# name: (modality, supervision, scale, columns of its frame scores or None)
MODELS = {
    "tcn": ("visual", "clip", "log_odds", None),
    "w2v_aasist": ("audio", "clip", "log_odds", None),
    "tcn_tags": ("visual", "segment", "log_odds", TAGS),
    "bam": ("audio", "segment", "log_odds", ["boundary"]),
    "ps": ("audio", "segment", "cosine", PS),
    "visual": ("visual", "segment", "log_odds", ["real", "fake"]),
    "ps_clip": ("audio", "clip", "cosine", PS),
    "visual_clip": ("visual", "clip", "log_odds", ["real", "fake"]),
}
COMPARED = [
    "tcn",
    "w2v_aasist",
    "tcn-platt",
    "w2v_aasist-platt",
    "maxout",
    "avg",
    "tcn_tags",
    "bam",
    "merged",
    "ps",
    "visual",
    "fused",
    "visual_clip",
    "fused_clip",
]


@dataclasses.dataclass(frozen=True)
class Step:
    """A command of `klassify`; makes: its output below the folder; needs: names of other steps."""

    name: str
    command: str
    makes: str
    needs: tuple[str, ...] = ()


def steps() -> list[Step]:
    """All steps, in an order in which each finds what it needs."""
    lists, val, test = "data_lists/full", "data_lists/full/val.tsv", "data_lists/full/testA.tsv"
    found = []

    def add(name: str, command: str, makes: str, *needs: str) -> str:
        found.append(Step(name, command, makes, needs))
        return name

    platt: dict[str, list[str]] = {"val": [], "testA": []}
    for model in ("tcn", "w2v_aasist"):
        fitted = add(
            f"calibrate {model}",
            f"calibrate {model} --out {model}-platt --labels {lists} --force",
            f"{model}-platt/system.yaml",
        )
        for split in ("val", "testA"):
            platt[split].append(
                add(
                    f"score {model}-platt {split}",
                    f"score {model}-platt --split {split} --force",
                    f"{model}-platt/scores/{split}.clips.tsv",
                    fitted,
                )
            )
    for name, rule in (("maxout", "max"), ("avg", "mean")):
        made = f"{name}/system.yaml"
        inputs = "tcn-platt w2v_aasist-platt"
        fuse = f"fuse {inputs} --rule {rule} --out {name} --force"
        joined = add(f"fuse {rule}", fuse, made, *platt["val"])
        for split in ("val", "testA"):
            command = f"score {name} --split {split} --force"
            made = f"{name}/scores/{split}.clips.tsv"
            add(f"score {name} {split}", command, made, joined, *platt[split])

    segments = {}
    how = "--method multi_threshold --force"
    for model in ("bam", "tcn_tags", "ps", "visual"):
        command = f"localise {model} --split val {how}"
        made = f"{model}/scores/val.segments.tsv"
        segments[model] = add(f"localise {model}", command, made)
    merge = "localise --merge bam tcn_tags --out merged"
    both = segments["bam"], segments["tcn_tags"]
    made = "merged/scores/{}.segments.tsv"
    segments["merged"] = add("localise merged", f"{merge} --split val", made.format("val"), *both)
    merged_test = add("localise merged testA", f"{merge} --split testA", made.format("testA"))

    fused = {}
    for name, inputs, supervision in (
        ("fused", "ps visual", "segment"),
        ("fused_clip", "ps_clip visual_clip", "clip"),
    ):
        fit = add(
            f"fuse linear by {supervision}",
            f"fuse {inputs} --rule linear --out {name} --labels {lists}"
            f" --supervision {supervision} --force",
            f"{name}/system.yaml",
        )
        command = f"score {name} --split val --force"
        fused[name] = add(f"score {name}", command, f"{name}/scores/val.clips.tsv", fit)
    segments["fused"] = add(
        "localise fused",
        f"localise fused --split val {how}",
        "fused/scores/val.segments.tsv",
        fused["fused"],
    )

    for name in ("tcn_tags", "bam", "ps", "merged"):
        needed = (segments[name],) if name == "merged" else ()
        command = f"tune {name} --labels {lists} --force"
        add(f"tune {name}", command, f"{name}/proposals.yaml", *needed)

    scored = [one.name for one in found if one.name.startswith("score") and "testA" not in one.name]
    options = f"--split val --labels {val} --subset all"
    nine = " ".join([*COMPARED[:6], "tcn_tags", "bam", "fused"])
    add("evaluate 1", f"evaluate {nine} {options} --out e1", "e1/val.tsv", *scored)
    three = "bam tcn_tags merged"
    needed = [segments[name] for name in three.split()]
    command = f"evaluate {three} --task 2 {options} --out e2"
    add("evaluate 2", command, "e2/val.task2.tsv", *needed)
    command = f"compare {' '.join(COMPARED)} {options} --out compared"
    add("compare", command, "compared/val/differences.tsv", *scored, *segments.values())

    given = f"--list {test}"
    tasks = "--task1 maxout --task2 merged"
    command = f"package {tasks} --split testA {given} --out packed --force"
    packed = add("package", command, "packed/submission.zip", "score maxout testA", merged_test)
    add("check", f"check packed {given}", "", packed)
    add("reproduce", "reproduce packed", "", packed)
    return found


class Corpus:
    """A labelled list of n made-up clips, and their frames of 40 ms."""

    def __init__(self, split: str, n_clips: int, seed: int):
        rng = self.rng = np.random.default_rng(seed)
        self.split, clip = split, np.arange(n_clips)
        source = clip // CLIPS_PER_SOURCE
        self.n_frames = np.clip(rng.lognormal(5.38, 0.43, n_clips), 60, 1500).astype(np.int64)
        self.kind = clip % CLIPS_PER_SOURCE  # as in data_list.TYPES
        n_segments = np.where(self.kind > 0, rng.choice(np.arange(1, 6), n_clips), 0)
        self.offsets = row_offsets(n_segments)
        owner = np.repeat(clip, n_segments)
        room = self.n_frames[owner] * FRAME_S / n_segments[owner]
        nth = np.arange(len(owner)) - self.offsets[owner]
        start = room * (nth + rng.uniform(0.05, 0.4, len(owner)))
        length = np.minimum(rng.lognormal(-1.2, 0.44, len(owner)), 0.5 * room)
        self.segments = np.round(np.stack([start, start + length], axis=1), 3)
        self.files = np.array(
            [
                f"id{s % 5000:05d}/{s:06d}/{data_list.TYPES[k]}.mp4"
                for s, k in zip(source, self.kind)
            ],
            dtype=object,
        )
        cells = [part.tolist() for part in np.split(self.segments, self.offsets[1:-1])]
        none = [[] for _ in clip]
        heard, seen = np.isin(self.kind, (1, 3)), np.isin(self.kind, (2, 3))
        self.heard, self.seen = heard, seen
        self.frame = pd.DataFrame(
            {
                "file": self.files,
                "n_frames": self.n_frames,
                "fps": 25.0,
                "n_samples": self.n_frames * 640,
                "duration": self.n_frames * FRAME_S,
                "modify_type": np.array(data_list.TYPES, object)[self.kind],
                "source": [f"s{number:06d}" for number in source],
                "fake_segments": cells,
                "audio_fake_segments": [a if b else c for a, b, c in zip(cells, heard, none)],
                "visual_fake_segments": [a if b else c for a, b, c in zip(cells, seen, none)],
                "audio_model": np.where(
                    heard, np.array(["vits", "yourtts"], object)[source % 2], ""
                ),
                "video_model": np.where(
                    seen, np.array(["talklip", "latentsync"], object)[clip % 2], ""
                ),
                "speaker": [f"speaker {number % 500}" for number in source],
            }
        )

    def fake_for(self, modality: str) -> np.ndarray:
        """(n,) bool: clips whose sound (or picture) is fake."""
        return self.heard if modality == "audio" else self.seen

    def blocks(self, modality: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Files, frame counts and frame labels of the modality, a block of clips at a time."""
        for first in range(0, len(self.files), BLOCK_CLIPS):
            clips = np.arange(first, min(first + BLOCK_CLIPS, len(self.files)))
            counts = self.n_frames[clips]
            there = self.fake_for(modality)[clips]
            offsets = row_offsets(np.where(there, np.diff(self.offsets)[clips], 0))
            segments = self.segments[row_numbers(self.offsets, clips[there])]
            truth = Truth(self.files[clips], offsets, segments)
            yield self.files[clips], counts, frame_labels(truth, counts, FRAME_S)


def make(folder: Path, share: float, wanted: Collection[tuple[str, str]]) -> None:
    """Systems, and lists and scores of `share` of the clips, of the (model, split) pairs wanted;
    nothing where they are complete.
    """
    for name, (modality, supervision, scale, _) in MODELS.items():
        base.write_system(folder / name, base.System(name, "model", modality, supervision, scale))
    for split, make_scores in (("val", _make_val), ("testA", _make_test)):
        todo = [name for name in MODELS if (name, split) in wanted]
        todo = [name for name in todo if not (folder / name / f"made-{split}").exists()]
        if todo:
            make_scores(folder, share, todo)
        for name in todo:
            (folder / name / f"made-{split}").touch()


def _make_val(folder: Path, share: float, names: Sequence[str]) -> None:
    val = Corpus("val", round(share * VAL), 1)
    data_list.write_list(folder / "data_lists/full/val.tsv", val.frame)
    for name in names:
        modality, supervision, scale, columns = MODELS[name]
        header = _header(folder, name, "val")
        _write_clips(folder, val, header)
        if columns is not None:
            # the two models of clip labels lack some clips, as those without a face or sound
            lacking = 0.01 if supervision == "clip" else 0.0
            tables = _frame_tables(val, modality, scale, columns, lacking)
            write_blocks(score_path(folder / name, "val", "frames"), tables, header)


def _make_test(folder: Path, share: float, names: Sequence[str]) -> None:
    n_clips = round(share * TEST)
    copies = max(1, n_clips // MADE_ANEW)
    test = Corpus("testA", n_clips // copies, 2)
    path = folder / "data_lists/full/testA.tsv"
    data_list.write_list(path, test.frame[["file", *data_list.MEASURED]])
    _repeat(path, copies)
    for name in names:
        modality, _, _, columns = MODELS[name]
        header = _header(folder, name, "testA")
        kind = "clips" if columns is None else "segments"
        path = score_path(folder / name, "testA", kind)
        if columns is None:
            _write_clips(folder, test, header)
        else:
            header = dataclasses.replace(header, kind=kind, scale="probability")
            write_blocks(path, _segment_tables(test, modality), header)
        _repeat(path, copies)


def _repeat(path: Path, copies: int) -> None:
    """Repeat the rows of a list or score file, the names of each copy in a folder of their own."""
    lines = path.read_bytes().splitlines(keepends=True)
    n_head = next(number for number, line in enumerate(lines) if not line.startswith(b"# ")) + 1
    rows = b"".join(lines[n_head:])
    with open(path, "wb") as handle:
        for line in lines[:n_head]:
            counted = line.startswith(b"# rows=")
            n_rows = copies * (len(lines) - n_head)
            handle.write(b"# rows=%012d\n" % n_rows if counted else line)
        for copy in range(copies):
            folder = b"copy%02d/" % copy
            handle.write(folder + rows[:-1].replace(b"\n", b"\n" + folder) + b"\n")


def _header(folder: Path, name: str, split: str) -> Header:
    settings = {"system": system.system_hash(folder / name)}
    _, supervision, scale, _ = MODELS[name]
    return Header(name, split, "frames", scale, supervision, settings)


def _write_clips(folder: Path, corpus: Corpus, header: Header) -> None:
    signal = corpus.fake_for(MODELS[header.system][0]).astype(float)
    score = corpus.rng.normal(2 * signal - 1, 1.2)
    score = np.tanh(score) if header.scale == "cosine" else score
    table = pd.DataFrame(
        {
            "file": corpus.files,
            "start": 0.0,
            "end": corpus.n_frames * FRAME_S,
            "score": score,
            "reason": "",
        }
    )
    path = score_path(folder / header.system, corpus.split, "clips")
    write_blocks(path, [table], dataclasses.replace(header, kind="clips"))


def _frame_tables(
    corpus: Corpus, modality: str, scale: str, columns: Sequence[str], lacking: float
) -> Iterator[pd.DataFrame]:
    rng = corpus.rng
    for files, counts, labels in corpus.blocks(modality):
        offsets = row_offsets(counts)
        owner = np.repeat(np.arange(len(counts)), counts)
        k = np.arange(len(owner)) - offsets[owner]
        log_odds = (4 * labels - 2 + 1.5 * _smooth_noise(rng, len(owner))).astype(np.float32)
        table = pd.DataFrame({"file": files[owner], "start": k * FRAME_S, "end": (k + 1) * FRAME_S})
        edge = np.diff(labels, prepend=0) * (k > 0) + labels * (k == 0)
        last = (np.diff(labels, append=0) < 0).astype(int)
        if columns == TAGS:
            marks = [labels == 0, edge > 0, (labels == 1) & (edge <= 0) & (last == 0), last == 1]
            logits = [4 * mark - 2 + 1.5 * _smooth_noise(rng, len(owner)) for mark in marks]
            logits = np.stack(logits, axis=1)
            logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
            real = logits[:, 0]
            table["score"] = np.log(np.maximum(-np.expm1(real), 1e-9)) - real
            table[TAGS] = logits.astype(np.float32)
        elif columns == ["boundary"]:
            mark = ((edge > 0) | (last == 1)).astype(float)
            table["score"] = log_odds
            boundary = 1 / (1 + np.exp(-(4 * mark - 2 + _smooth_noise(rng, len(owner)))))
            table["boundary"] = boundary.astype(np.float32)
        elif columns == ["real", "fake"]:
            half = (log_odds / 2).astype(np.float32)
            table["score"], table["real"], table["fake"] = half - -half, -half, half
        else:
            fakes = []
            for real, fake in zip(columns[::2], columns[1::2]):
                cosine = np.tanh(log_odds / 2 + 0.5 * _smooth_noise(rng, len(owner)))
                table[real], table[fake] = np.float32(-cosine / 2), np.float32(cosine / 2)
                fakes.append(table[fake].to_numpy(float) - table[real].to_numpy(float))
            table.insert(3, "score", fakes[0])
        if lacking:
            table = table[(rng.random(len(counts)) >= lacking)[owner]]
        yield table


def _smooth_noise(rng: np.random.Generator, n: int) -> np.ndarray:
    noise = rng.standard_normal(n + 2, dtype=np.float32)
    return (noise[:-2] + noise[1:-1] + noise[2:]) / np.float32(np.sqrt(3))


def _segment_tables(corpus: Corpus, modality: str) -> Iterator[pd.DataFrame]:
    """TEST_ROWS proposals of each clip, at random places."""
    rng = corpus.rng
    for files, counts, _ in corpus.blocks(modality):
        owner = np.repeat(np.arange(len(files)), TEST_ROWS)
        duration = counts[owner] * FRAME_S
        length = np.minimum(rng.lognormal(-1.2, 0.44, len(owner)), duration)
        start = rng.uniform(0, 1, len(owner)) * (duration - length)
        score = -np.sort(-rng.uniform(0.001, 1, (len(files), TEST_ROWS)), axis=1).ravel()
        yield pd.DataFrame(
            {
                "file": files[owner],
                "start": start,
                "end": start + length,
                "score": score,
                "modality": modality,
                "method": "multi_threshold",
            }
        )


def measured(step: Step, folder: Path, checkout: Path) -> dict[str, object]:
    """CPU seconds, wall seconds and peak memory in GiB of a step, and the hash of what it made."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    log = folder / "logs" / f"{step.name.replace(' ', '-')}.err"
    log.parent.mkdir(exist_ok=True)
    began = time.monotonic()
    with open(log, "w") as errors:
        command = [sys.executable, "-m", "klassify", *step.command.split()]
        child = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, used = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"klassify {step.command} failed:\n{log.read_text()}")
    made = folder / step.makes if step.makes else None
    return {
        "cpu": round(used.ru_utime + used.ru_stime, 1),
        "wall": round(time.monotonic() - began, 1),
        "peak": round(used.ru_maxrss / 2**20, 2),
        # read in pieces: the peak of the next child would count it
        "output": file_hash(made)[:12] if made else "",
        "lines": len(log.read_text().splitlines()),
    }


def run(args: argparse.Namespace) -> None:
    """Make the inputs, measure what is wanted and print the table after every step."""
    record = args.folder / "measured.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    everything = {step.name: step for step in steps()}
    wanted = [
        step
        for step in everything.values()
        if not args.steps or any(step.name.startswith(name) for name in args.steps)
    ]
    versions = {"before": args.before} if args.before else {}
    versions["now"] = HERE
    for size in args.sizes:
        folder = args.folder / f"{size:g}"
        folder.mkdir(parents=True, exist_ok=True)
        # the peak of a child counts what its parent holds as it starts
        spawn = multiprocessing.get_context("spawn")
        maker = spawn.Process(target=make, args=(folder, size, _inputs(wanted, everything)))
        maker.start()
        maker.join()
        if maker.exitcode:
            sys.exit("the inputs could not be made")
        for step in wanted:
            for version, checkout in versions.items():
                key = f"{size:g} {version} {step.name}"
                if key in known and not (args.again and version == "now"):
                    continue
                _prepare(step, folder, everything)
                known[key] = measured(step, folder, checkout.resolve())
                record.write_text(json.dumps(known, indent=1))
                print(f"{key}: {known[key]}", file=sys.stderr, flush=True)
    print(table(wanted, known, args.sizes, list(versions)))


def _inputs(wanted: Sequence[Step], everything: dict[str, Step]) -> set[tuple[str, str]]:
    """The (model, split) pairs that the steps, and those they need, read."""
    todo, found = list(wanted), set()
    while todo:
        step = todo.pop()
        split = "testA" if "testA" in step.command else "val"
        words = [word.removesuffix("-platt") for word in step.command.split()]
        found |= {(word, split) for word in words if word in MODELS}
        todo += [everything[name] for name in step.needs]
    return found


def _prepare(step: Step, folder: Path, everything: dict[str, Step]) -> None:
    for name in step.needs:
        needed = everything[name]
        if not (folder / needed.makes).exists():
            _prepare(needed, folder, everything)
            measured(needed, folder, HERE)


def table(
    wanted: Sequence[Step], known: dict[str, dict], sizes: Sequence[float], versions: Sequence[str]
) -> str:
    """What was measured as a Markdown table."""
    heads = [
        f"{size:g}: CPU s, GiB{' before' * (v == 'before')}" for size in sizes for v in versions
    ]
    rows = [["step", *heads, "growth", "output"]]
    for step in wanted:
        cells, cpu = [], []
        for size in sizes:
            runs = [known.get(f"{size:g} {version} {step.name}") for version in versions]
            cells += [f"{one['cpu']:.1f}, {one['peak']:.2f}" if one else "-" for one in runs]
            cpu.append(runs[-1]["cpu"] if runs[-1] else None)
            same = len({one["output"] for one in runs if one}) == 1
        growth = f"{cpu[-1] / cpu[0]:.1f}" if len(cpu) > 1 and all(cpu) else "-"
        output = "-" if len(versions) < 2 or not step.makes else "same" if same else "differs"
        rows.append([step.name, *cells, growth, output])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="for inputs, outputs and what was measured")
    add("--sizes", type=float, nargs="+", default=[0.1], help="shares of the full size (0.1)")
    add("--steps", nargs="+", metavar="NAME", help="only steps whose names begin so")
    add("--before", type=Path, metavar="CHECKOUT", help="another version of the package")
    add("--again", action="store_true", help="measure again what is known of this version")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
