"""Raw videos in, answers out: no metadata, no data set layout, CPU or GPU.

    klassify predict examples/clip.mp4
    klassify predict clip.mp4 --out answers/
    klassify predict folder/ 'more/*.mp4' --recipe all --video

For each file: the probability that it is fake (Task 1's answer), a verdict, the segments that may
be fake (Task 2's), a JSON file, a timeline (PNG) and, with --video, a copy with the marks drawn in.
--runtime onnx answers by onnxruntime for the systems that `klassify export` has exported, and names
the others. --explain says why, in a line, .explanation.json and .explanation.png
(docs/explanations.md). What runs is the detector.yaml of a recipe: that of --detector, else the
first that was trained, on a real data set before the generated corpus, else a small one of the
recipe klassify that is part of the package and has learned from generated clips alone. --example
answers about the package's own clip.

Answers that --out has already, of the same file, detector and settings, are kept: a run that was
stopped continues.
"""

from __future__ import annotations

import argparse
import collections
import glob
import itertools
import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

import klassify
from klassify.arguments import add_precision, at_least_1, between_0_and_1
from klassify.demo.recipes import RECIPES
from klassify.errors import KlassifyError, first_few
from klassify.files import readable, short_names, write_json
from klassify.lists import datasets
from klassify.media.container import MediaError, media_below
from klassify.media.flow import damage_limit, refusing_damage
from klassify.prediction.answer import Prediction
from klassify.prediction.predict import (
    avhubert_of,
    by_onnx,
    lmm_of,
    load_detector,
    needed_kinds,
    predict,
)
from klassify.settings import settings_hash
from klassify.systems.detector import DETECTOR, DetectorFile, on_generated_corpus
from klassify.systems.operating import RATES

DEMOS = ("demo-large", "demo", "demo-small", "demo-tiny")
PACKAGED = Path(klassify.__file__).parent / "detectors/demo"
EXAMPLE = PACKAGED / "clip.mp4"
SHOWN_SEGMENTS = 5
# bytes, of the 255 of a name: a number, suffixes and what is half written need some
LONGEST_STEM = 180


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
    add("--min-score", type=float, default=0.15, help="of segments to show (default 0.15)")
    add(
        "--false-alarms",
        type=between_0_and_1,
        default=RATES[0],
        metavar="RATE",
        help="rate of the verdict: 0.01 (default), 0.05, or as in detector.yaml",
    )
    add("--strict", action="store_true", help="refuse any damage (default: conceal up to 10 %%)")
    add("--explain", action="store_true", help="also write why: contributions of each system")
    add("--no-timeline", action="store_true", help="write no PNG")
    add("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default)")
    add_precision(parser)
    add(
        "--runtime",
        choices=("torch", "onnx"),
        default="torch",
        help="onnx: by onnxruntime where `klassify export` has written model.onnx",
    )
    add("--jobs", type=at_least_1, help="extraction processes (default: all CPUs)")
    add("--force", action="store_true", help="answer again what --out has answers of already")
    lmm = parser.add_mutually_exclusive_group()
    lmm.add_argument(
        "--lmm", metavar="NAME", help="name or folder of the LMM (default: as in detector.yaml)"
    )
    lmm.add_argument(
        "--without-lmm", action="store_true", help="leave the LMM out, which changes answers"
    )
    add("--avhubert", metavar="FILE", help="AV-HuBERT's base_lrs3_iter4.pt, which AuViRe needs")


def run(args: argparse.Namespace) -> int:
    """Run `klassify predict`; 0: every answer rests on evidence, 1: some do not."""
    with refusing_damage(args.strict):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    if not (args.videos or args.example):
        raise KlassifyError("No video is named.", fix="give files or folders, or --example")
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
        folder.mkdir(parents=True, exist_ok=True)  # where that fails, before any work
        with tqdm(total=len(paths), initial=len(done), unit="clip", disable=None) as bar:
            how["progress"] = lambda _, path, bar=bar: bar.set_description(readable(path.name))
            for path, prediction in zip(todo, predict(detector, todo, **how)):
                unanswered += not prediction.answered
                written, problem = _write(
                    folder / names_of[path], path, prediction, made_with[path], args
                )
                lines = [describe(prediction, args.min_score), *problem]
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


def find_videos(given: Iterable[str]) -> list[Path]:
    """The files that the arguments name, expanded, each once; KlassifyError for none."""
    found: dict[Path, None] = {}
    for text in given:
        path = Path(text)
        if path.is_dir():
            here, passed = media_below(path)
            if passed:
                names = first_few(readable(other.relative_to(path)) for other in passed)
                print(
                    f"{readable(path)}: {len(passed)} files that are not media, by their names, are"
                    f" passed over: {names}; name one to have it read",
                    file=sys.stderr,
                )
        elif path.is_file():
            here = [path]
        else:
            here = sorted(
                Path(name) for name in glob.glob(text, recursive=True) if os.path.isfile(name)
            )
        if not here:
            what = "There is no video or sound here."
            raise KlassifyError(what, where=text, fix="give files, folders or quoted globs")
        found |= dict.fromkeys(here)
    return list(found)


def trained_or_packaged(exp: Path, recipe: str) -> Path:
    """The detector.yaml that find_detector finds, else that of the package."""
    try:
        return find_detector(exp, recipe)
    except KlassifyError:
        if not (path := PACKAGED / recipe / DETECTOR).exists():
            raise
        return path


def find_detector(exp: Path, recipe: str) -> Path:
    """The detector.yaml of a recipe, of a real data set before the generated corpus."""
    others = sorted(path.name for path in exp.iterdir() if path.is_dir()) if exp.is_dir() else []
    names = (*datasets.known(), *others)
    real = [name for name in names if not on_generated_corpus(exp / name / recipe)]
    for name in dict.fromkeys((*real, *DEMOS, *others)):
        if (path := exp / name / recipe / DETECTOR).exists():
            return path
    raise KlassifyError(
        f"No detector of the recipe {recipe} was trained yet.",
        where=exp,
        fix=(
            f"make demo recipe={recipe} (some minutes), or train on your data: make stage2"
            f" recipe={recipe}"
        ),
    )


def describe(prediction: Prediction, min_score: float) -> str:
    """A few lines for a terminal, with the best segments of at least `min_score`."""
    if prediction.answered:
        lines = [f"{prediction.file}: probability of fake {prediction.probability:.3f}"]
    else:
        why = _own_reasons(prediction.reasons) or "no system has an answer"
        lines = [f"{prediction.file}: no evidence ({why}); prior {prediction.probability:.3f}"]
    verdict = prediction.verdict
    if verdict.answer:
        lines.append(f"  {verdict.answer} at {verdict.at} ({verdict.note})")
    elif prediction.answered:
        lines.append(f"  no verdict{f' at {verdict.at}' if verdict.at else ''}: {verdict.note}")
    decided = f"; decided by {prediction.decided}" if prediction.decided else ""
    lines.append(f"  {prediction.evidence}{decided}")
    if prediction.explanation is not None and prediction.answered:
        lines.append(f"  why: {prediction.explanation.sentence}")
    likely = prediction.segments[prediction.segments["score"] >= min_score].head(SHOWN_SEGMENTS)
    lines += [
        f"  {row.start:8.2f} s to {row.end:8.2f} s  score {row.score:.3f}  {row.modality}"
        for row in likely.itertuples()
    ]
    if not len(likely):
        lines.append(f"  no segment with a score of {min_score:g} or more")
    lines += [f"  {note}" for note in prediction.notes]
    return "\n".join(lines)


def _own_reasons(reasons: Mapping[str, str]) -> str:
    """Each reason once, without those of fusions, which name their inputs and repeat theirs."""
    named = tuple(f"{name}: " for name in reasons)
    own = sorted({reason for reason in reasons.values() if not reason.startswith(named)})
    return first_few(reason.removesuffix(".") for reason in own)


def output_names(paths: Sequence[Path]) -> list[str]:
    """The stems of the files' answers, in order: each file's own stem as text, cut where it is too
    long for a name.

    Stems that are equal, or differ only in case, get numbers.
    """
    stems = [readable(path.stem if path.stem.strip(".") else "video") for path in paths]
    stems = [stem.encode()[:LONGEST_STEM].decode(errors="ignore") for stem in stems]
    count = collections.Counter(map(_key, stems))
    taken = {key for key, n in count.items() if n == 1}
    numbers: dict[str, Iterator[int]] = collections.defaultdict(lambda: itertools.count(1))
    for place, stem in enumerate(stems):
        key = _key(stem)
        if count[key] > 1:
            tried = (f"{stem}-{number}" for number in numbers[key])
            stems[place] = next(name for name in tried if _key(name) not in taken)
            taken.add(_key(stems[place]))
    return stems


def _key(name: str) -> str:
    """Equal for names that some file systems take for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


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
        written += [Path(f"{stem}.explanation.json"), Path(f"{stem}.explanation.png")]
        write_json(written[0], prediction.explanation.as_json())
        why.draw(prediction.explanation, written[1], video=video)
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
