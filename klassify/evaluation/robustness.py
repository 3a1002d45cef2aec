"""How systems fare on perturbed splits: their features and scores, and AUC and Score by family and
level against the clean clips.

All numbers of a system come from the same resamples of sources, so that the change from the clean
clips is paired.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify.data.base import Sources
from klassify.errors import KlassifyError, first_few
from klassify.evaluation.clips import load_scored
from klassify.evaluation.segments import load_localised
from klassify.evaluation.tables import aligned, number, with_ends, with_interval
from klassify.features import shards
from klassify.features.extract import Parts, Shard, extraction_settings, inputs_hash, parts_there
from klassify.features.kinds import KINDS
from klassify.grid.segments import Truth
from klassify.lists import subsets
from klassify.localisation.localise import choose, localise
from klassify.metrics import clips, segments
from klassify.perturbation.families import LEVELS, family_of
from klassify.perturbation.splits import Plan, Step
from klassify.progress import progress
from klassify.systems.base import System
from klassify.systems.embeddings import write_embeddings
from klassify.systems.merged import Merged
from klassify.systems.score import score
from klassify.systems.system import EMBEDDING
from klassify.systems.trained import Trained

EXTRACTED = ("mouth", "lips")  # kinds of features that need no model of their own
CLEAN = "clean"
ENDS = ("", "_low", "_high")  # of a column with an interval
COLUMNS = {"system", "metric", "family", "level"} | {
    name + end for name in ("value", "change") for end in ENDS
}


def require_clean_scores(systems: Sequence[System], split: str) -> None:
    """KlassifyError for a system without scores of the clean split."""
    for system in systems:
        kind = "segments" if isinstance(system, Merged) else "clips"
        if not system.path(split, kind).exists():
            raise KlassifyError(
                f"{system.name} has no scores of the clean clips, {split}.",
                where=system.folder,
                fix=system.score_command(split),
            )


def answer(
    systems: Sequence[System],
    plan: Plan,
    features: Path,
    *,
    clean_features: Path | None = None,
    jobs: int = 1,
    device: str = "auto",
) -> None:
    """Features of all derived splits, and the scores of all systems and their inputs on them.

    features: where those of derived splits are written. clean_features: those of the clean split,
    which serve where the picture is unchanged. KlassifyError for kinds of features that others
    must make.
    """
    every = itertools.chain.from_iterable(system.with_inputs() for system in systems)
    order = list({one.folder.resolve(): one for one in every}.values())  # inputs first, each once
    models = {one.folder: one.load() for one in order if isinstance(one, Trained)}
    kinds = {kind for _, data in models.values() for kind in data.feature_kinds}
    sources = Sources(plan.lists, plan.media, features)
    for kind in sorted(kinds):
        _provide(kind, plan, sources, clean_features, jobs)
    for step in progress(plan.steps, len(plan.steps), "score", unit="split"):
        for system in order:
            _score(system, plan.split, plan.split_of(step), sources, models, device)


def _provide(
    kind: str, plan: Plan, sources: Sources, clean_features: Path | None, jobs: int
) -> None:
    """The features of one kind of all derived splits, but for those that are there."""
    if kind.startswith(EMBEDDING):
        return
    clean = None if clean_features is None else clean_features / kind / plan.split
    lacking = []
    for step in plan.steps:
        split = plan.split_of(step)
        folder = sources.feature_folder(kind, split)
        unchanged = family_of(step.family).picture is None
        if unchanged and clean is not None and clean.is_dir() and not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(clean.resolve())
        if not folder.is_symlink():
            lacking.append(split)
    if kind in EXTRACTED:
        _extract(kind, plan, lacking, sources, jobs)
        return
    absent = [split for split in lacking if not sources.feature_folder(kind, split).is_dir()]
    if absent:
        raise KlassifyError(
            f"{len(absent)} splits have no {kind} features: {first_few(absent, 3)}.",
            where=sources.features,
            fix=f"klassify extract --kind {kind} with --list and --root of each of them",
        )


def _extract(kind: str, plan: Plan, splits: Sequence[str], sources: Sources, jobs: int) -> None:
    """As `klassify extract` on each split, but with one pool of processes for all."""
    made_by = KINDS[kind].extraction(jobs=jobs)
    settings = extraction_settings(made_by, plan.files, KINDS[kind].clips_per_file)
    gathered: dict[str, Parts] = {}
    for split in splits:
        shard = Shard(sources.feature_folder(kind, split), 1, 1, plan.files, settings)
        there = parts_there(shard.out, settings, 1)
        gathered[split] = Parts(shard, [place for place in shard.places if place not in there])
    clips = [(split, file) for split, parts in gathered.items() for file in parts.lacking]
    results = made_by.rows(sources.media, [[f"{split}/{file}" for split, file in clips]])
    for at, row in progress(results, len(clips), f"extract {kind}"):
        split, file = clips[at]
        shard = gathered[split].shard
        for place, rows in gathered[split].add(file, dataclasses.replace(row, file=file)):
            inputs = inputs_hash(shard.part(place), sources.media / split, made_by.inputs)
            shards.write_part(shard.out, place, rows, settings, inputs)


def _score(
    system: System,
    clean: str,
    split: str,
    sources: Sources,
    models: Mapping[Path, tuple[Any, Any]],
    device: str,
) -> None:
    if system.scale == "none":
        return
    if not isinstance(system, Merged):
        for encoder in system.input_systems if isinstance(system, Trained) else ():
            if not sources.feature_folder(f"{EMBEDDING}{encoder.name}", split).exists():
                model = models[encoder.folder][0]
                write_embeddings(encoder, model, sources, split, device=device)
        score(system, split, sources, device=device, loaded=models.get(system.folder))
    if isinstance(system, Merged) or system.path(clean, "segments").exists():
        localise(system, split, choose(system))


@dataclasses.dataclass(frozen=True)
class _Measured:
    """A system's number on one split: a statistic of clip weights (B, n) -> (B,)."""

    n_fake: int
    n_no_answer: int
    statistic: Callable[[np.ndarray], np.ndarray]


def measure(
    systems: Sequence[System], plan: Plan, *, n_bootstrap: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """One row per system, metric, family and level, after one of the clean clips (level 0).

    Columns: system, metric (AUC against the label of the system's own modality, or Score), family,
    level, parameter, n, n_fake, n_no_answer, value and change from the clean clips with their
    intervals. KlassifyError for systems without scores.
    """
    source, rows = subsets.sources_of(plan.frame), []
    frames = {Step(CLEAN, 0): (plan.split, plan.frame)}
    for step in plan.steps:
        split = plan.split_of(step)
        frames[step] = split, subsets.load_split(plan.lists, split, segments=True)
    for system in systems:
        for metric, (kind, read, most) in METRICS.items():
            if not system.path(plan.split, kind).exists() or not _has_truth(metric, plan.frame):
                continue
            measured = {step: read(system, *of) for step, of in frames.items()}

            def every(weights: np.ndarray, measured: dict = measured) -> np.ndarray:
                return np.stack([one.statistic(weights) for one in measured.values()])

            n = min(most, n_bootstrap)
            points, samples = clips.resampled(every, source, n=n, seed=seed)
            for at, (step, one) in enumerate(measured.items()):
                row = {"system": system.name, "metric": metric, **step._asdict()}
                own = family_of(step.family).value(step.level) if step.level else np.nan
                row["parameter"] = own
                row |= {"n": len(plan.frame), "n_fake": one.n_fake, "n_no_answer": one.n_no_answer}
                row |= with_ends("value", points[at], samples[at])
                change = points[at] - points[0], samples[at] - samples[0]
                rows.append(row | with_ends("change", *change))
    if not rows:
        names = ", ".join(system.name for system in systems)
        raise KlassifyError(f"There are no scores of {plan.split} by {names}.")
    return pd.DataFrame(rows)


def _has_truth(metric: str, frame: pd.DataFrame) -> bool:
    """Whether the list has what a metric is measured against."""
    if metric == "AUC":
        return True
    return frame["fake_segments"].notna().all() and bool(frame["fake_segments"].str.len().sum())


def _auc(system: System, split: str, frame: pd.DataFrame) -> _Measured:
    scored = load_scored(system, split, frame["file"].tolist())
    label = subsets.label(frame, subsets.known_label(frame, system.own_label))
    ranking = clips.Ranking(label, scored.score)
    n_no_answer = int((~scored.answered).sum())
    return _Measured(int(label.sum()), n_no_answer, lambda w: ranking.auc_and_eer(w)[0])


def _score_of(system: System, split: str, frame: pd.DataFrame) -> _Measured:
    found = load_localised(system, split, frame["file"].tolist())
    matches = segments.match(found.proposals, Truth.from_list(frame), "official")
    n_fake = int(frame["fake_segments"].str.len().gt(0).sum())
    n_empty = int((np.diff(found.proposals.offsets) == 0).sum())

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.array([one.score for one in matches.scores(weights)])

    return _Measured(n_fake, n_empty, statistic)


# kind of scores, reader, most resamples: one of Score costs a hundred times one of AUC
METRICS = {"AUC": ("clips", _auc, 10_000), "Score": ("segments", _score_of, 200)}


def by_family(table: pd.DataFrame) -> pd.DataFrame:
    """One row per system, metric and family: the clean value, that of each level, and the largest
    loss, all with their intervals. table: what `measure` returns.
    """
    rows: list[dict[str, Any]] = []
    for (system, metric), own in table.groupby(["system", "metric"], sort=False):
        is_clean = own["family"] == CLEAN
        clean = own[is_clean].iloc[0]
        for family, levels in own[~is_clean].groupby("family", sort=False):
            row = {"system": system, "metric": metric, "family": family}
            row |= {f"clean{end}": clean[f"value{end}"] for end in ENDS}
            value = levels.set_index("level")["value"].reindex(LEVELS)
            row |= {f"level {level}": value[level] for level in LEVELS}
            worst = levels.loc[levels["change"].fillna(np.inf).idxmin()]
            rows.append(row | {f"change{end}": worst[f"change{end}"] for end in ENDS})
    return pd.DataFrame(rows)


def describe(table: pd.DataFrame) -> str:
    """A table of `measure` as text: one line per family, one column per level."""
    blocks = []
    for (system, metric), families in by_family(table).groupby(["system", "metric"], sort=False):
        clean = with_interval(families.iloc[0], "clean")
        head = f"{metric} of {system}, clean: {clean}"
        lines = [[head, *(f"level {level}" for level in LEVELS), "largest loss"]]
        for _, row in families.iterrows():
            values = [number(row[f"level {level}"]) for level in LEVELS]
            lines.append([row["family"], *values, with_interval(row, "change", "+.4f")])
        blocks.append(aligned(lines))
    return "\n\n".join(blocks)
