"""Raw videos in, answers out: no metadata, no data set layout, CPU or GPU.

    klassify predict examples/clip.mp4
    klassify predict clip.mp4 --out answers/
    klassify predict folder/ 'more/*.mp4' --recipe all --video

For each file: the probability that it is fake (Task 1), a verdict, the segments that may be fake
(Task 2), a JSON file, a timeline (PNG) and, with --video, a copy with the segments marked.
--explain adds a line that says why, .explanation.json and .explanation.png (docs/explanations.md).
--runtime onnx uses onnxruntime for the systems that `klassify export` has exported, and names the
others.

The answer is that of a detector.yaml: the one of --detector; else of a recipe trained on real data;
else of one trained on the generated corpus; else of the small detector in the package, which was
trained on generated clips alone. --example answers about the package's own clip.

Answers already in --out, of the same file, detector and settings, are kept, so an interrupted run
resumes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from klassify.arguments import add_precision, at_least_1, between_0_and_1
from klassify.demo.recipes import RECIPES
from klassify.errors import KlassifyError
from klassify.files import check_output, readable, short_names, write_json
from klassify.media.container import MediaError
from klassify.media.flow import damage_limit, refusing_damage
from klassify.prediction.answer import Prediction
from klassify.prediction.packaged import EXAMPLE, trained_or_packaged
from klassify.prediction.predict import (
    avhubert_of,
    by_onnx,
    lmm_of,
    load_detector,
    needed_kinds,
    predict,
)
from klassify.prediction.videos import find_videos, output_names
from klassify.settings import settings_hash
from klassify.systems.detector import DetectorFile
from klassify.systems.operating import RATES


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("videos", nargs="*", metavar="VIDEO", help="files, folders (searched) or quoted globs")
    add("--example", action="store_true", help="the generated clip that is part of the package")
    add("--recipe", choices=(*RECIPES, "all"), default="klassify", help="default: klassify")
    add(
        "--detector",
        action="append",
        metavar="FOLDER",
        help="use this detector instead of --recipe: a folder, a detector.yaml, hf://owner/name",
    )
    add("--exp", type=Path, default=Path("exp"), help="folder of trained systems (default: exp)")
    add("--out", type=Path, default=Path("predictions"), help="folder for the answers")
    add("--video", action="store_true", help="also write a copy of each video with marks drawn in")
    add(
        "--min-score",
        type=float,
        default=0.15,
        help="lowest score of the segments to show (default 0.15)",
    )
    add(
        "--false-alarms",
        type=between_0_and_1,
        default=RATES[0],
        metavar="RATE",
        help="false-alarm rate of the verdict: 0.01 (default), 0.05, or one of detector.yaml",
    )
    add("--strict", action="store_true", help="refuse any damage (default: conceal up to 10 %%)")
    add("--explain", action="store_true", help="also say why: the contributions of each system")
    add("--no-timeline", action="store_true", help="write no PNG")
    add("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default)")
    add_precision(parser)
    add(
        "--runtime",
        choices=("torch", "onnx"),
        default="torch",
        help="onnx: use onnxruntime for systems with a model.onnx of `klassify export`",
    )
    add("--jobs", type=at_least_1, help="extraction processes (default: all CPUs)")
    add("--force", action="store_true", help="answer again even if --out has the answer already")
    lmm = parser.add_mutually_exclusive_group()
    lmm.add_argument(
        "--lmm", metavar="NAME", help="name or folder of the LMM (default: as in detector.yaml)"
    )
    lmm.add_argument(
        "--without-lmm", action="store_true", help="leave the LMM out; this changes answers"
    )
    add("--avhubert", metavar="FILE", help="AV-HuBERT's base_lrs3_iter4.pt, which AuViRe needs")


def run(args: argparse.Namespace) -> int:
    """Run `klassify predict`; 0: every answer rests on evidence, 1: some do not."""
    with refusing_damage(args.strict):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    if not (args.videos or args.example):
        raise KlassifyError("No video is named.", fix="give files or folders, or --example")
    check_output(args.out)
    paths = find_videos([*args.videos, *([str(EXAMPLE)] if args.example else [])])
    names = RECIPES if args.recipe == "all" else (args.recipe,)
    found = args.detector or [trained_or_packaged(args.exp, name) for name in names]
    # each once
    detectors = list({one.folder.resolve(): one for one in map(load_detector, found)}.values())
    for detector in detectors:
        if args.runtime == "onnx":
            print(_runtimes(detector), file=sys.stderr)
        # what cannot answer is refused before another takes its time
        kinds = needed_kinds(detector)
        if "lmm" in kinds and not args.without_lmm:
            lmm_of(detector, args.device, args.lmm)
        if "avhubert" in kinds:
            avhubert_of(detector, args.avhubert)
    stems, unanswered, told = output_names(paths), 0, set()
    for detector, name in zip(detectors, short_names([one.folder for one in detectors])):
        folder = args.out / name if len(detectors) > 1 else args.out
        names = ("device", "precision", "jobs", "lmm", "without_lmm", "avhubert")
        names = (*names, "false_alarms", "explain", "runtime")
        how = {name: getattr(args, name) for name in names}
        made_with = {path: _made_with(detector, path, args) for path in paths}
        names_of = dict(zip(paths, stems))
        done = {} if args.force else _answered_before(folder, names_of, made_with)
        unanswered += sum(not answered for answered in done.values())
        if done:
            print(f"{folder}: {len(done)} answers are kept; --force makes them again")
        todo = [path for path in paths if path not in done]
        with tqdm(total=len(paths), initial=len(done), unit="clip", disable=None) as bar:
            how["progress"] = lambda _, path, bar=bar: bar.set_description(readable(path.name))
            for path, prediction in zip(todo, predict(detector, todo, **how)):
                unanswered += not prediction.answered
                written, problem = _write(
                    folder / names_of[path], path, prediction, made_with[path], args
                )
                lines = [prediction.as_text(args.min_score), *problem]
                if prediction.notice and prediction.notice not in told:
                    lines.insert(0, prediction.notice)
                    told.add(prediction.notice)
                lines.append(f"  written: {', '.join(map(str, written))}")
                bar.write("\n".join(lines), file=sys.stdout)
                sys.stdout.flush()
                bar.update()
    return int(unanswered > 0)


def _runtimes(detector: DetectorFile) -> str:
    """Which systems each runtime answers for."""
    exported, others = by_onnx(detector)
    by_torch = f"; by torch, without an export: {', '.join(others)}" if others else ""
    return f"{readable(detector.folder)}: by onnxruntime: {', '.join(exported)}{by_torch}"


def _made_with(detector: DetectorFile, video: Path, args: argparse.Namespace) -> str:
    """A hash of what the files of an answer depend on."""
    of_models = ("lmm", "without_lmm", "precision", "avhubert")
    if args.runtime != "torch":
        of_models = (*of_models, "runtime")
    names = (*of_models, "explain", "no_timeline", "video", "min_score", "false_alarms")
    stat = video.stat()
    return settings_hash(
        {name: getattr(args, name) for name in names if name != "avhubert" or args.avhubert}
        | {"damage": damage_limit(), "answers": detector.answers, "systems": detector.systems}
        | {"points": detector.points}
        | {"file": readable(video), "bytes": stat.st_size, "modified": stat.st_mtime_ns}
    )


def _answered_before(
    folder: Path, stems: Mapping[Path, str], made_with: Mapping[Path, str]
) -> dict[Path, bool]:
    """The videos whose answers are there, each with whether it rests on evidence."""
    done = {}
    for path, stem in stems.items():
        try:
            answer = json.loads((folder / f"{stem}.json").read_bytes())
            if answer["made_with"] == made_with[path]:
                done[path] = bool(answer["answered"])
        except (OSError, ValueError, LookupError, TypeError):
            continue  # not there, or written by something else
    return done


def _write(
    stem: Path, video: Path, prediction: Prediction, made_with: str, args: argparse.Namespace
) -> tuple[list[Path], list[str]]:
    """Write the files of an answer, the JSON file last, so that it tells that all are there.

    Returns their paths and a line about what could not be made.
    """
    from klassify.explanation import picture as why
    from klassify.prediction import picture

    written, problem = [], []
    if prediction.explanation is not None:
        written.append(Path(f"{stem}.explanation.json"))
        write_json(written[0], prediction.explanation.as_json())
        if prediction.answered:
            written.append(Path(f"{stem}.explanation.png"))
            why.draw(prediction.explanation, written[1], video=video, notice=prediction.notice)
    try:
        if not args.no_timeline:
            picture.draw(video, prediction, Path(f"{stem}.png"))
            written.append(Path(f"{stem}.png"))
        if args.video:
            picture.mark(video, prediction, Path(f"{stem}.marked.mp4"), args.min_score)
            written.append(Path(f"{stem}.marked.mp4"))
    except MediaError as error:
        problem = [f"  not drawn: {error.what}"]
    written.insert(0, Path(f"{stem}.json"))
    write_json(written[0], prediction.as_json() | {"made_with": made_with})
    return written, problem
