"""Make a linear fusion: fit paper 2's layer on frames of val_fit, or use released weights."""

from __future__ import annotations

import dataclasses
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
from klassify.lists.data_list import SEGMENTS_OF
from klassify.metrics.clips import roc_auc
from klassify.metrics.frames import frame_labels
from klassify.scores.frame_file import FrameFile
from klassify.settings import file_hash, settings_hash
from klassify.systems.align import HOLD_S
from klassify.systems.base import System, derived_system, made_before, write_system
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


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How a linear fusion is fitted, and on what.

    label: what counts as fake: `union`, `audio` or `visual`. supervision: fit on the labels of
    frames (`segment`) or of clips. epochs and seed: of the solvers one_cycle and constant.
    aggregate: frames -> clip. subset and report: clips of scores_split to fit on, and for the
    reported numbers.
    """

    label: str = "union"
    supervision: str = "segment"
    solver: str = "exact"
    epochs: int = 50
    seed: int = 0
    aggregate: str = "max"
    scores_split: str = "val"
    subset: str = "val_fit"
    report: str = "val_report"


def make_linear(
    out: Path,
    inputs: Sequence[System],
    options: FitOptions,
    *,
    labels: Path | None = None,
    weights: Path | None = None,
    hold_s: float | None = HOLD_S,
    resolutions: Sequence[int] = RESOLUTIONS,
    prior: float | None = None,
    force: bool = False,
) -> System | None:
    """Write a linear fusion, fitted on `labels` or with released `weights`; None if up to date.

    options: with weights, only scores_split and aggregate are used. hold_s: see
    klassify.systems.align.aligned. prior: probability of a clip that no input answers for; None:
    the share of fakes, or 0.5 with weights.
    """
    inputs, sources = _inputs(inputs, options.scores_split)
    columns = [columns_of(source, resolutions) for source in sources]
    made_with: dict[str, Any] = {
        "inputs": [system.hash for system in inputs],
        "columns": columns,
        "hold_s": hold_s,
        "aggregate": options.aggregate,
        "prior": prior,
    }
    if weights:
        made_with["weights"] = file_hash(weights)
    else:
        fit_on, report_on = (
            _Labelled(labels, name, options) for name in (options.subset, options.report)
        )
        _check_split(fit_on, report_on)
        _check_supervision(options.supervision, inputs)
        made_with |= dataclasses.asdict(options)
        made_with["scores"] = [file_hash(source.path) for source in sources]
        made_with["labels"] = [fit_on.hash, report_on.hash]
    if made_before(out, made_with, force=force):
        return None
    if weights:
        rule = _released(weights, columns, hold_s, options.aggregate)
        record, supervision = {"prior": 0.5}, "segment"  # what the published fusion learned from
    else:
        rule, record = _fitted(sources, columns, hold_s, options, fit_on)
        supervision = options.supervision
        record["report"] = _report(rule, sources, report_on, supervision)
    if prior is not None:
        record["prior"] = prior
    parameters = parameters_of(rule, **record, made_with=made_with)
    system = derived_system(out, "fusion", inputs, "log_odds", parameters, supervision)
    write_system(out, system)
    return system


def _inputs(systems: Sequence[System], split: str) -> tuple[list[System], list[FrameFile]]:
    """The systems and their frame scores, those with real and fake logits first.

    So the picture sets the length of a clip, and released weights meet their columns.
    """
    pairs = list(zip(systems, open_inputs(systems, split)))
    pairs.sort(key=lambda pair: not set(PAIR) <= set(pair[1].columns))
    names = [source.header.system for _, source in pairs]
    if len(set(names)) < len(names):
        raise KlassifyError(f"The inputs need different names; given: {', '.join(names)}.")
    return [system for system, _ in pairs], [source for _, source in pairs]


class _Labelled:
    """A labelled subset: `files`, clip `label` (n,), and with segment supervision the `truth`."""

    def __init__(self, labels: Path, subset: str, options: FitOptions):
        by_segment = options.supervision == "segment"
        against = "video" if options.label == "union" else options.label
        column = SEGMENTS_OF[against]
        frame = subsets.load_split(labels, subset, segments=[column] if by_segment else ())
        self.name, self.files = subset, frame["file"].tolist()
        self.sources = set(frame["source"]) - {""}
        if by_segment:
            truth = self.truth = Truth.from_list(frame, column)
            self.label = (np.diff(truth.offsets) > 0).astype(int)
            segments = np.round(truth.segments, 4).tolist()
            content = {"segments": segments, "offsets": truth.offsets.tolist()}
        else:
            self.label = subsets.label(frame, against)
            content = {"label": self.label.tolist()}
        self.hash = settings_hash({"files": self.files, **content})

    def labels_of(
        self, found: Gathered, supervision: str
    ) -> tuple[np.ndarray, np.ndarray | None, str]:
        """(labels, offsets, unit) of the gathered frames: of frames (1 where any part is fake),
        with offsets None; or with clip supervision of the clips that have frames.
        """
        if supervision == "segment":
            return frame_labels(self.truth, found.counts, FRAME_S)[found.kept], None, "frame"
        there = np.diff(found.offsets) > 0
        return self.label[there], np.append(0, found.offsets[1:][there]), "clip"


def _check_split(fit_on: _Labelled, report_on: _Labelled) -> None:
    """No clip may be in both parts, and no source unless the subset is called leaking."""
    both = set(fit_on.files) & set(report_on.files)
    sources = fit_on.sources & report_on.sources
    if both or (sources and "leaking" not in fit_on.name):
        what, names = ("clips", both) if both else ("sources", sources)
        raise KlassifyError(
            f"{len(names)} {what} are both in {fit_on.name} and in {report_on.name}:"
            f" {first_few(sorted(names))}.",
            fix="fit and report on parts that share no source, such as val_fit and val_report",
        )
    if sources:
        text = f"{len(sources)} sources are both in the fit and in the report"
        print(f"warning: {text}", file=sys.stderr)


def _check_supervision(supervision: str, inputs: Sequence[System]) -> None:
    learned = [system.folder.name for system in inputs if system.supervision == "segment"]
    if supervision == "clip" and learned:
        raise KlassifyError(
            f"{', '.join(learned)} learned from segment labels, so a fusion of it cannot be"
            " clip-supervised.",
            fix="train the inputs with supervision: clip, or fit with --supervision segment",
        )


def _fitted(
    sources: Sequence[FrameFile],
    columns: list[list[str]],
    hold_s: float | None,
    options: FitOptions,
    clips: _Labelled,
) -> tuple[Rule, dict[str, Any]]:
    """The fusion, and what is recorded with it: its prior, and `fit`."""
    from klassify.models import linear_fusion

    found = gather(sources, columns, clips.files, hold_s)
    label, offsets, unit = clips.labels_of(found, options.supervision)
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
        "n_clips": int((np.diff(found.offsets) > 0).sum()),
        "n_frames": len(found.values),
        "n_frames_left_out": int((~found.kept).sum()),
    }
    return rule, {"prior": float(clips.label.mean()), "fit": record}


def _report(
    rule: Rule, sources: Sequence[FrameFile], clips: _Labelled, supervision: str
) -> dict[str, Any]:
    """AUC of the fusion and of each input's score on the frames (or clips) that all inputs have."""
    found = gather(sources, rule.columns, clips.files, rule.hold_s)
    own = gather(sources, [["score"]] * len(sources), clips.files, rule.hold_s)
    scores = {"fused": rule.log_odds(found.values)}
    scores |= {source.header.system: own.values[:, i] for i, source in enumerate(sources)}
    label, offsets, unit = clips.labels_of(found, supervision)
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
