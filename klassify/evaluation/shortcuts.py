"""Does the content tell real from fake without any model? Silence at the ends, levels, bandwidth,
repeated pictures and the container alone should not.

`audit` measures each trait (klassify.features.content) alone, and all together. Each AUC comes with
what chance gives: the labels are permuted many times, and 95 % of the permutations have no single
trait above it. Labels move between sources with as many clips, and within each source, so
that the originals stay together as in the data.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError
from klassify.evaluation import leaks
from klassify.evaluation.tables import aligned, number, with_interval, write_table
from klassify.files import read_json_mapping, write_json, write_text
from klassify.lists import subsets
from klassify.media import content
from klassify.metrics import clips

FOLDER = "audit"  # of the results, beside the recipes of a data set
WARN_ABOVE = leaks.WARN_ABOVE
CHANCE_LEVEL = 0.95
TOGETHER = "all together"
N_JOINT = 19  # permutations of the joint model: 1 in 20 audits has an AUC above all of them
WITHIN, WEAK, SHORTCUT = "within chance", "beyond chance, weak", "shortcut"
FALLS = "falls"
SEED = 0
AGAINST = ("video", "audio", "visual")
MEASURED = ("trait", "auc", "auc_low", "auc_high", "n")
COLUMNS = ["trait", "label", "auc", "auc_low", "auc_high", "chance", "n", "reading", "remedy"]
ENDS = ("", "_low", "_high")
SYSTEM_COLUMNS = [
    *("system", "change"),
    *(name + end for name in ("auc", "auc_after", "difference") for end in ENDS),
    *("n", "reading"),
]
TABLES = {"traits": COLUMNS, "systems": SYSTEM_COLUMNS}

# changes of the media that leave the fake alone: families of klassify.perturbation, their level
CHANGES = {
    "trim": "{:g} ms cut from both ends",
    "loudness": "loudness of {:g} LUFS",
    "reencode": "encoded again, CRF {:g}",
}
CHANGE_LEVEL = 3

# what removes a shortcut from training: an effect of klassify.augmentation.sets, or words
EFFECTS = {
    "silence_start_ms": "ends",
    "silence_end_ms": "ends",
    "noise_floor_db": "noise",
    "loudness_db": "loudness",
    "rolloff_hz": "low_pass",
    "bandwidth_hz": "low_pass",
    "dc_offset": "offset",
    "clipped_share": "clipping",
}
OTHERWISE = {
    "sound_jumps": "none: joints belong to edits; listen to some clips",
    "picture_jumps": "none: joints belong to edits; watch some clips",
    "first_repeated": "none: cut repeated pictures from the media",
    "last_repeated": "none: cut repeated pictures from the media",
    "frozen_share": "none: cut repeated pictures from the media",
    "duration_s": "none: train on windows of one length",
    "video_frames": "none: train on windows of one length",
    "audio_packets": "none: train on windows of one length",
}
ENCODING = "none: encode all clips again with equal settings"
JOINT = "none of its own: see the single traits"


@dataclasses.dataclass(frozen=True)
class Audit:
    """The audit of one list. traits: a row for each trait and one for all together; columns trait,
    label, auc, auc_low, auc_high, chance, n, reading, remedy. failed: clips that could not be
    decoded. systems: what `on_changed_media` gives, if it was measured.
    """

    split: str
    n_clips: int
    n_fake: int
    n_sources: int
    failed: int
    traits: pd.DataFrame
    systems: pd.DataFrame = dataclasses.field(
        default_factory=functools.partial(pd.DataFrame, columns=SYSTEM_COLUMNS)
    )

    @property
    def title(self) -> str:
        """What was audited, in words."""
        failed = f", {self.failed} without content" if self.failed else ""
        return (
            f"{self.split}: {self.n_clips} clips{failed}, {self.n_fake} of them fake, of"
            f" {self.n_sources} sources"
        )

    @property
    def warnings(self) -> list[str]:
        """One sentence for each shortcut, and for each change that costs a system accuracy."""
        found = [
            f"{self.split}: {row.trait} tells fake from real with AUC {row.auc:.3f} (chance:"
            f" {row.chance:.3f}). Remedy: {row.remedy}."
            for row in self.traits.itertuples()
            if row.reading == SHORTCUT
        ]
        return found + [
            f"{self.split}: the AUC of {row.system} falls from {row.auc:.3f} to"
            f" {row.auc_after:.3f}: {row.change}."
            for row in self.systems.itertuples()
            if row.reading == FALLS
        ]


def labels_of(split: str, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """The labels (n,) that traits are measured against, by name. KlassifyError for clips without
    one, or of one class alone.
    """
    labels = {
        against: subsets.label(frame, subsets.known_label(frame, against)) for against in AGAINST
    }
    if len(set(labels["video"])) < 2:
        raise KlassifyError(
            f"An audit needs real and fake clips; {split} has only one class.",
            where=frame.attrs.get("path"),
        )
    return labels


def audit(
    split: str,
    frame: pd.DataFrame,
    traits: Sequence[Mapping[str, Any]],
    *,
    n_bootstrap: int = 200,
    n_permuted: int = 200,
) -> Audit:
    """Measure how well traits tell the labels of a list.

    frame: the list; traits: of its clips in the same order, {} for one that could not be decoded.
    Sound is measured against the label of the sound, and pictures against that of the picture,
    where the list knows them. KlassifyError for clips without a label, of one class alone, or
    if none could be decoded.
    """
    labels = labels_of(split, frame)
    known = np.array([bool(one) for one in traits])
    if not known.any():
        raise KlassifyError(f"No clip of {split} could be decoded.")
    source = subsets.sources_of(frame)
    columns = _columns(traits)
    rows = []
    for name, values in columns.items():
        against = _against(name)
        for row in leaks.alone(name, values, labels[against], source, n_bootstrap):
            rows.append(dict(zip(MEASURED, row)) | {"label": against})
    alone = [(columns[row["trait"]], labels[row["label"]]) for row in rows]
    chance = _chance(alone, permutations(source, n_permuted), source)
    rows = [row | {"chance": chance} for row in sorted(rows, key=lambda row: -row["auc"])]
    rows += _together(columns[known], labels["video"][known], source[known], n_bootstrap)
    for row in rows:
        row["reading"] = _reading(row["auc"], row["chance"])
        row["remedy"] = remedy(row["trait"]) if row["reading"] == SHORTCUT else ""
    return Audit(
        split,
        n_clips=len(frame),
        n_fake=int(labels["video"].sum()),
        n_sources=len(set(source)),
        failed=int((~known).sum()),
        traits=pd.DataFrame(rows, columns=COLUMNS),
    )


def on_changed_media(robustness: pd.DataFrame) -> pd.DataFrame:
    """The AUC of systems before and after each of CHANGES, columns SYSTEM_COLUMNS.

    robustness: what klassify.evaluation.robustness.measure gives for them.
    """
    aucs = robustness[robustness["metric"] == "AUC"]
    rows = []
    for system, own in aucs.groupby("system", sort=False):
        clean = own[own["level"] == 0].iloc[0]
        for _, after in own[own["level"] > 0].iterrows():
            row = {"system": system}
            row["change"] = CHANGES[after["family"]].format(after["parameter"])
            row |= {f"auc{end}": clean[f"value{end}"] for end in ENDS}
            row |= {f"auc_after{end}": after[f"value{end}"] for end in ENDS}
            row |= {f"difference{end}": after[f"change{end}"] for end in ENDS}
            reading = FALLS if after["change_high"] < 0 else WITHIN
            rows.append(row | {"n": after["n"], "reading": reading})
    return pd.DataFrame(rows, columns=SYSTEM_COLUMNS)


def permutations(source: np.ndarray, n: int) -> np.ndarray:
    """(n, clips) indices that move labels between sources with as many clips, and within each."""
    place, size = np.unique(source, return_inverse=True, return_counts=True)[1:]
    in_order = np.split(np.argsort(place, kind="stable"), np.cumsum(size)[:-1])
    blocks = [
        np.array([clips for clips in in_order if len(clips) == length]) for length in set(size)
    ]
    rng = np.random.default_rng(SEED)
    moved = np.empty((n, len(source)), int)
    for row in moved:
        for block in blocks:
            row[block] = rng.permuted(block[rng.permutation(len(block))], axis=1)
    return moved


def remedy(trait: str) -> str:
    """What removes a shortcut: the augmentation, or words where there is none."""
    if trait in EFFECTS:
        return f"train with AudioAugment, set: shortcuts (its effect {EFFECTS[trait]})"
    return JOINT if trait == TOGETHER else OTHERWISE.get(trait, ENCODING)


def _columns(traits: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row for each clip; numbers are floats, texts objects, unknown ones missing."""
    names = [*content.SOUND, *content.PICTURE, *content.CONTAINER, *content.TEXTS]
    table = pd.DataFrame({name: [one.get(name) for one in traits] for name in names}, dtype=object)
    return table.astype(dict.fromkeys(names[: -len(content.TEXTS)], float))


def _against(trait: str) -> str:
    """The label that a trait is measured against."""
    if trait in content.SOUND:
        return "audio"
    return "visual" if trait in content.PICTURE else "video"


def _chance(
    alone: Sequence[tuple[pd.Series, np.ndarray]], moved: np.ndarray, source: np.ndarray
) -> float:
    """The AUC that no single trait exceeds in CHANCE_LEVEL of the permutations."""
    highest = np.full(len(moved), 0.5)
    for values, label in alone:
        permuted = label[moved]
        if values.dtype.kind == "f":
            aucs = _permuted_aucs(values.to_numpy(), permuted)
        else:
            texts = values.fillna("").to_numpy(object)
            aucs = np.array(
                [clips.roc_auc(one, leaks.share_of_fakes(texts, one, source)) for one in permuted]
            )
        highest = np.fmax(highest, np.fmax(aucs, 1 - aucs))
    return float(np.quantile(highest, CHANCE_LEVEL))


def _permuted_aucs(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AUC of values (n,), NaN for unknown, against each row of labels (p, n), by rank sums."""
    from scipy.stats import rankdata  # takes half a second

    known = ~np.isnan(values)
    labels, rank = labels[:, known], rankdata(values[known])
    n_fake = labels.sum(axis=1)
    n_real = labels.shape[1] - n_fake
    with np.errstate(divide="ignore", invalid="ignore"):
        return (labels @ rank - n_fake * (n_fake + 1) / 2) / (n_fake * n_real)


def _together(
    table: pd.DataFrame, label: np.ndarray, source: np.ndarray, n_bootstrap: int
) -> list[dict[str, Any]]:
    """The row of one model on all traits; no row where there are too few clips for it."""
    chosen = subsets.sample_of_sources(source, leaks.MOST_OPENED)
    table, label, source = table.iloc[chosen], label[chosen], source[chosen]
    table = table.loc[:, table.notna().any()].fillna(-1)
    repeats = leaks.REPEATS if len(chosen) <= 500 else 1
    try:
        scores = leaks.forest_scores(table, label, source, repeats)
        permuted = [
            leaks.leak_auc(table, label[moved], source, repeats=1)
            for moved in permutations(source, N_JOINT)
        ]
    except KlassifyError:
        return []
    rankings = [clips.Ranking(label, one) for one in scores]
    auc, drawn = clips.resampled(
        lambda weights: np.mean([one.auc_and_eer(weights)[0] for one in rankings], axis=0),
        source,
        n=n_bootstrap,
    )
    ends = clips.interval(drawn)
    row = dict(zip(MEASURED, (TOGETHER, float(auc), *ends, len(chosen))))
    return [row | {"label": "video", "chance": max(permuted)}]


def _reading(auc: float, chance: float) -> str:
    if not auc > chance:
        return WITHIN
    return SHORTCUT if auc > WARN_ABOVE else WEAK


def describe(found: Audit) -> str:
    """The tables, aligned, and what follows from them; intervals are 95 %, bootstrap by source."""
    rows = [["trait", "label", "AUC", "chance", "clips", "reading"]]
    for _, row in found.traits.iterrows():
        cells = [row["label"], with_interval(row, "auc", ".3f"), number(row["chance"], ".3f")]
        rows.append([row["trait"], *cells, str(row["n"]), row["reading"]])
    blocks = [found.title, aligned(rows)]
    if len(found.systems):
        rows = [["system", "change", "AUC", "after", "difference", "clips", "reading"]]
        for _, row in found.systems.iterrows():
            cells = [with_interval(row, name, ".3f") for name in ("auc", "auc_after")]
            cells.append(with_interval(row, "difference", "+.3f"))
            rows.append([row["system"], row["change"], *cells, str(row["n"]), row["reading"]])
        blocks.append(aligned(rows))
    nothing = "No shortcut was found."
    if (chance := found.traits["chance"].max()) > WARN_ABOVE:
        nothing += f" These are few clips: an AUC of up to {chance:.3f} may be chance."
    blocks.append("\n".join(found.warnings) or nothing)
    return "\n\n".join(blocks)


def write(folder: Path, found: Audit) -> None:
    """<folder>/<split>.json, which `read` takes, <split>.tsv of the traits, <split>-changed.tsv of
    the systems if they were measured, and <split>.txt.
    """
    changed = folder / f"{found.split}-changed.tsv"
    changed.unlink(missing_ok=True)  # of an earlier audit
    if len(found.systems):
        write_table(changed, found.systems)
    write_json(folder / f"{found.split}.json", dataclasses.asdict(found) | _records(found))
    write_table(folder / f"{found.split}.tsv", found.traits)
    write_text(folder / f"{found.split}.txt", describe(found) + "\n")


def read(path: Path) -> Audit:
    """What `write` wrote; KlassifyError for any other JSON."""
    content = read_json_mapping(path)
    try:
        tables = {name: pd.DataFrame(content.pop(name), columns=TABLES[name]) for name in TABLES}
        found = Audit(**content, **tables)
        if found.traits["auc"].isna().any():
            raise ValueError("a trait has no AUC")
    except (TypeError, ValueError, LookupError) as error:
        raise KlassifyError(
            f"This is not the result of an audit: {error}.",
            where=path,
            fix="make it again with klassify audit",
        ) from None
    return found


def folder_of(system: Path) -> Path:
    """Where the audits of a system's data are: exp/<data>/audit."""
    recipe = system.parent.parent if system.parent.name.startswith("seed-") else system.parent
    return recipe.parent / FOLDER


def in_folder(folder: Path) -> list[Audit]:
    """The audits in a folder, sorted by split; none if it does not exist."""
    return [read(path) for path in sorted(folder.glob("*.json"))]


def _records(found: Audit) -> dict[str, list[dict[str, Any]]]:
    """The tables as lists of rows, None for NaN."""
    tables = {name: getattr(found, name) for name in TABLES}
    return {
        name: table.astype(object).where(table.notna(), None).to_dict("records")
        for name, table in tables.items()
    }
