"""`klassify fuse --rule linear`: fit paper 2's linear layer on the frames of val_fit, or take
released weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from klassify.errors import KlassifyError, first_few
from klassify.grid.frames import FRAME_S
from klassify.grid.ragged import pooled
from klassify.grid.segments import Truth
from klassify.lists import subsets
from klassify.metrics.clips import roc_auc
from klassify.metrics.frames import frame_labels
from klassify.scores.frame_file import FrameFile
from klassify.settings import file_hash, settings_hash
from klassify.systems.align import HOLD_S
from klassify.systems.linear import (
    PAIR,
    RESOLUTIONS,
    Gathered,
    Rule,
    columns_of,
    gather,
    open_inputs,
    parameters_of,
)
from klassify.systems.system import (
    SYSTEM,
    System,
    derived_system,
    load_system,
    made_before,
    system_hash,
    write_system,
)

DEFAULTS = {
    "label": "union",
    "supervision": "segment",
    "solver": "exact",
    "epochs": 50,
    "seed": 0,
    "aggregate": "max",
    "scores_split": "val",
    "subset": "val_fit",
    "report": "val_report",
}
SEGMENTS = {
    "union": "fake_segments",
    "audio": "audio_fake_segments",
    "visual": "visual_fake_segments",
}


def run_linear(args: argparse.Namespace) -> int:
    """Run `klassify fuse --rule linear`."""
    options = _options(args)
    folders, sources = _inputs(args.inputs, options.scores_split)
    columns = [columns_of(source, _resolutions(args.resolutions)) for source in sources]
    hold_s = _hold(args)
    made_with = {
        "inputs": [system_hash(folder) for folder in folders],
        "columns": columns,
        "hold_s": hold_s,
        "aggregate": options.aggregate,
        "prior": args.prior,
    }
    if args.weights:
        made_with["weights"] = file_hash(_existing(args.weights))
    else:
        fit_on, report_on = (
            _Labelled(args.labels, name, options) for name in (options.subset, options.report)
        )
        _check_split(fit_on, report_on)
        _check_supervision(options.supervision, folders)
        scores, labels = (
            [file_hash(source.path) for source in sources],
            [fit_on.hash, report_on.hash],
        )
        made_with |= vars(options) | {"scores": scores, "labels": labels}
    if made_before(args.out, made_with, force=args.force):
        print(f"{args.out / SYSTEM} is up to date")
        return 0
    if args.weights:
        rule, more = _released(args.weights, columns, hold_s, options.aggregate), {"prior": 0.5}
        options.supervision = "segment"  # that is how the published fusion was trained
    else:
        rule, more = _fitted(sources, columns, hold_s, options, fit_on)
        more["report"] = _report(rule, sources, report_on, options.supervision)
    more |= {} if args.prior is None else {"prior": args.prior}
    parameters = parameters_of(rule, **more, made_with=made_with)
    system = derived_system(
        args.out, "fusion", folders, "log_odds", parameters, options.supervision
    )
    write_system(args.out, system)
    print(_told(system))
    return 0


def _options(args: argparse.Namespace) -> argparse.Namespace:
    """DEFAULTS where nothing else was given; what cannot go together is refused."""
    if bool(args.labels) == bool(args.weights):
        raise KlassifyError(
            "Give --labels to fit the fusion, or --weights for released ones; one of the two."
        )
    given = {name: getattr(args, name) for name in DEFAULTS if getattr(args, name) is not None}
    return argparse.Namespace(**DEFAULTS | given)


def _inputs(folders: Sequence[Path], split: str) -> tuple[list[Path], list[FrameFile]]:
    """The systems and their frame scores, those with real and fake logits first.

    So the picture rules the length of a clip, and released weights meet their columns.
    """
    pairs = list(zip(folders, open_inputs(folders, split)))
    pairs.sort(key=lambda pair: not set(PAIR) <= set(pair[1].columns))
    names = [source.header.system for _, source in pairs]
    if len(set(names)) < len(names):
        raise KlassifyError(f"The inputs need different names; given: {', '.join(names)}.")
    return [folder for folder, _ in pairs], [source for _, source in pairs]


def _resolutions(text: str | None) -> Sequence[int]:
    if text is None:
        return RESOLUTIONS
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise KlassifyError(f"--resolutions are numbers of milliseconds, not {text!r}.") from None


def _hold(args: argparse.Namespace) -> float | None:
    """`hold_s` of klassify.systems.align.aligned; the published fusion holds to the end of the
    clip.
    """
    if args.hold is None:
        return None if args.weights else HOLD_S
    if not args.hold >= 0:
        raise KlassifyError(f"--hold is a number of seconds, not {args.hold}.")
    return None if np.isinf(args.hold) else args.hold


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise KlassifyError(
            "This file does not exist.", where=path, fix="klassify import-checkpoint fusion ..."
        )
    return path


# ------------------------------------------------------------------------------ labels


class _Labelled:
    """A labelled subset: `files`, their clip labels (n,), and with segment supervision the fake
    `truth`.
    """

    def __init__(self, labels: Path, subset: str, options: argparse.Namespace):
        by_segment = options.supervision == "segment"
        frame = subsets.load_split(labels, subset, segments=by_segment)
        self.name, self.files, self.sources = (
            subset,
            frame["file"].tolist(),
            set(frame["source"]) - {""},
        )
        self.truth: Truth | None = None
        if by_segment:
            self.truth = Truth.from_list(frame, SEGMENTS[options.label])
            self.label = (np.diff(self.truth.offsets) > 0).astype(int)
            content = {
                "segments": np.round(self.truth.segments, 4).tolist(),
                "offsets": self.truth.offsets.tolist(),
            }
        else:
            self.label = subsets.label(
                frame, "video" if options.label == "union" else options.label
            )
            content = {"label": self.label.tolist()}
        self.hash = settings_hash({"files": self.files, **content})

    def of(self, found: Gathered, supervision: str) -> tuple[np.ndarray, np.ndarray | None, str]:
        """Labels of what was gathered of these clips: of frames (1 where any part is fake), None,
        "frame"; or of the clips that have frames, the offsets of these, "clip".
        """
        if supervision == "segment":
            return frame_labels(self.truth, found.counts, FRAME_S)[found.kept], None, "frame"
        there = np.diff(found.offsets) > 0
        return self.label[there], np.append(0, found.offsets[1:][there]), "clip"


def _check_split(fit_on: _Labelled, report_on: _Labelled) -> None:
    """No clip, and unless the subset says that it leaks no source, may lie on both sides."""
    both = set(fit_on.files) & set(report_on.files)
    sources = fit_on.sources & report_on.sources
    if both or (sources and "leaking" not in fit_on.name):
        what, names = ("clips", both) if both else ("sources", sources)
        raise KlassifyError(
            f"{len(names)} {what} lie in {fit_on.name} and in {report_on.name}:"
            f" {first_few(sorted(names))}.",
            fix="fit and report on parts that share no source, such as val_fit and val_report",
        )
    if sources:
        print(f"warning: {len(sources)} sources lie on both sides of the fit", file=sys.stderr)


def _check_supervision(supervision: str, folders: Sequence[Path]) -> None:
    if supervision == "clip":
        learned = [
            folder.name for folder in folders if load_system(folder).supervision == "segment"
        ]
        if learned:
            raise KlassifyError(
                f"{', '.join(learned)} learned from segment labels, so that no fusion of it is"
                " clip-supervised.",
                fix="train the inputs with supervision: clip, or fit with --supervision segment",
            )


# ------------------------------------------------------------------------------ fit and report


def _fitted(
    sources: Sequence[FrameFile],
    columns: list[list[str]],
    hold_s: float | None,
    options: argparse.Namespace,
    clips: _Labelled,
) -> tuple[Rule, dict[str, Any]]:
    """The fusion, and what to note of it: its prior, and `fit`, how it came about."""
    from klassify.models import linear_fusion

    found = gather(sources, columns, clips.files, hold_s)
    label, offsets, unit = clips.of(found, options.supervision)
    if len(np.unique(label)) < 2:
        raise KlassifyError(
            f"A fit needs real and fake {unit}s; {clips.name} has {len(label)} that all inputs have"
            f" scores for, {int(label.sum())} of them fake.",
            fix="fit on more clips, or check the labels",
        )
    settings = {name: getattr(options, name) for name in ("solver", "epochs", "seed")}
    fitted = linear_fusion.fit(found.values, label, offsets, **settings)
    rule = Rule(columns, fitted.weight, fitted.bias, found.means, hold_s, options.aggregate)
    record = {
        "label": options.label,
        "unit": unit,
        **settings,
        "loss": fitted.loss,
        "steps": fitted.steps,
    }
    counts = {
        "n_clips": int((np.diff(found.offsets) > 0).sum()),
        "n_frames": len(found.values),
        "n_frames_left_out": int((~found.kept).sum()),
    }
    return rule, {"prior": float(clips.label.mean()), "fit": record | counts}


def _report(
    rule: Rule, sources: Sequence[FrameFile], clips: _Labelled, supervision: str
) -> dict[str, Any]:
    """AUC of the fusion and of each input's own score on the frames (or clips) that all inputs
    speak about.
    """
    found = gather(sources, rule.columns, clips.files, rule.hold_s)
    own = gather(sources, [["score"]] * len(sources), clips.files, rule.hold_s)
    scores = {"fused": rule.log_odds(found.values)}
    scores |= {source.header.system: own.values[:, i] for i, source in enumerate(sources)}
    label, offsets, unit = clips.of(found, supervision)
    if offsets is not None:
        scores = {name: pooled(values, offsets, rule.aggregate) for name, values in scores.items()}
    auc = {name: roc_auc(label, values) for name, values in scores.items()}
    return {
        "subset": clips.name,
        "unit": unit,
        "n": len(label),
        "n_fake": int(label.sum()),
        "auc": {name: None if np.isnan(value) else round(value, 6) for name, value in auc.items()},
    }


def _released(path: Path, columns: list[list[str]], hold_s: float | None, aggregate: str) -> Rule:
    from klassify.models.linear_fusion import COLUMNS, LinearFusion
    from klassify.models.weights.load import load_weights

    if tuple(name for names in columns for name in names) != COLUMNS:
        raise KlassifyError(
            f"Released weights take the columns {', '.join(COLUMNS)}; these inputs have "
            f"{', '.join(name for names in columns for name in names)}.",
            where=path,
        )
    model = LinearFusion()
    load_weights(model, path)
    weight, bias = (value.detach().double().numpy() for value in (model.weight, model.bias))
    return Rule(columns, weight, bias, np.zeros(len(COLUMNS)), hold_s, aggregate)


def _told(system: System) -> str:
    given = system.parameters
    if "fit" not in given:
        return f"{system.name}: released weights, supervision {system.supervision}"
    fit, report = given["fit"], given["report"]
    auc = ", ".join(
        f"{name} {'-' if value is None else format(value, '.4f')}"
        for name, value in report["auc"].items()
    )
    return (
        f"{system.name}: {fit['solver']} fit on {fit['n_frames']} frames of {fit['n_clips']} clips,"
        f" {fit['unit']} labels ({fit['label']}), loss {fit['loss']:.4f}\n  {report['unit']} AUC on"
        f" {report['n']} {report['unit']}s of {report['subset']}: {auc}"
    )
