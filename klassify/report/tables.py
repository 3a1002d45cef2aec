"""The tables of the page: which columns they have, how a cell reads, and what a column sorts by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from klassify.evaluation.crosstest import by_split, splits_of
from klassify.evaluation.tables import number
from klassify.lists.data_list import KINDS
from klassify.metrics import segments
from klassify.perturbation.families import LEVELS
from klassify.report.comparison import Comparison
from klassify.report.entries import Entry
from klassify.report.summary import METRIC_NAME, TITLE, contributions, described, guessing

NAMES = {"auc": "AUC", "eer": "EER", "log_loss": "log-loss", "frame_auc": "frame AUC"}
COUNT = "d"


class Cell(NamedTuple):
    """text, with an interval in small below; key: what a number sorts by, None for text."""

    text: str
    key: str | None = None
    small: str = ""


class Row(NamedTuple):
    """A line of a table. strong: it stands out, as a recipe's answer does."""

    cells: list[Cell]
    strong: bool = False


class Column(NamedTuple):
    """A column of a table. name: where its values are; form: how a number is written, or a function
    that makes a text of a value; help: shown over its title.
    """

    title: str
    name: str = ""
    form: str | Callable[[Any], str] = str
    help: str = ""

    @property
    def numeric(self) -> bool:
        """Whether it is right-aligned and sorted as numbers."""
        return isinstance(self.form, str)

    def cell(self, row: pd.Series) -> Cell:
        """A row's value, with its interval where it has one."""
        content = row[self.name]
        if not self.numeric:
            return Cell(self.form(content))
        if self.form == COUNT:
            return Cell(str(int(content)), str(int(content)))
        low, high = row.get(f"{self.name}_low", np.nan), row.get(f"{self.name}_high", np.nan)
        small = "" if pd.isna(low) else f"[{number(low, self.form)}, {number(high, self.form)}]"
        return Cell(number(content, self.form), repr(float(content)), small)


class Table(NamedTuple):
    """A table of the page: its columns, and one cell for each in every row. folded: only the strong
    rows show at first.
    """

    head: list[Column]
    rows: list[Row]
    folded: bool = False


SYSTEM = Column("system", "system", help="folder of the system; see Systems and words")
PAIR = [Column("A", "a", help="a system"), Column("B", "b", help="the system A is compared with")]
AUC = Column("AUC", "auc", ".4f", "how well scores rank fakes above reals: 0.5 guessing, 1 perfect")
EER = Column("EER", "eer", ".3f", "error rate where false alarms and misses are equally frequent")
LOG_LOSS = Column("log-loss", "log_loss", ".4f", "of the probabilities, nats; lower is better")
SCORE = Column("Score", "Score", ".4f", "the challenge's Task 2 measure: half AP, half AR")
AP = "average precision of proposals that overlap a true segment by at least {}"
AR = "share of the true segments that the best {} proposals of a clip find"
FRAME_AUC = Column("frame AUC", "frame_auc", ".4f", "AUC of single frames, fake or not")


def _known(text: Any) -> str:
    return "-" if pd.isna(text) else str(text)


def _group(name: str) -> str:
    return name.replace("_", " ") if name in KINDS else name


def _metric_name(name: str) -> str:
    return NAMES.get(name, name.replace("_", " "))


def _by_threshold(name: str) -> Column:
    kind, number = name.split("@")
    return Column(name, name, ".3f", (AP if kind == "AP" else AR).format(number))


TABLES = {
    "coverage": [
        SYSTEM,
        Column("task", "task", lambda task: task[-1], "1: clips, 2: segments"),
        Column("answered", "answered", COUNT, "clips with evidence for every input"),
        Column("fell back", "fell back", COUNT, "clips for which only some inputs had evidence"),
        Column("failed", "failed", COUNT, "clips answered by a prior, or without a proposal"),
        Column("seen", "seen", ".1%", "mean share of frames with a face, or a picture"),
        Column("heard", "heard", ".1%", "mean share of a clip that has sound"),
        Column("commonest reasons", "reasons", help="why clips have no answer, and how many"),
    ],
    "task1": [
        SYSTEM,
        Column("hears or sees", "modality", help="sound (audio), picture (visual), or both"),
        Column(
            "labels of",
            "supervision",
            help="what its training labels say; segments must not be used for Task 1",
        ),
        AUC,
        EER,
        LOG_LOSS,
        Column("calibrated loss", "log_loss_calibrated", ".4f", "after Platt scaling on val_fit"),
        Column("own AUC", "auc_own", ".4f", "AUC against the label of the system's own modality"),
        Column("no answer", "n_no_answer", COUNT, "clips that are answered by a prior"),
    ],
    "costs": [
        SYSTEM,
        Column("min DCF", "min_dcf", ".3f", "lowest cost of errors with any threshold"),
        Column("actual DCF", "act_dcf", ".3f", "with the threshold that its probabilities imply"),
        Column("Cllr", "cllr", ".3f", "bits; 0 is perfect, 1 says nothing"),
        Column("min Cllr", "min_cllr", ".3f", "after the best monotone calibration (PAV)"),
        Column("t-EER", "t_eer", ".3f", "sound and picture with a threshold each"),
    ],
    "task2": [SYSTEM, SCORE, *map(_by_threshold, segments.METRICS[:-1])],
    "frames": [
        SYSTEM,
        FRAME_AUC,
        Column("EER", "frame_eer", ".3f", "equal error rate of frames"),
        Column("own AUC", "frame_auc_own", ".4f", "frame AUC against the own modality's label"),
        Column("AUC, 400 ms", "seg_auc", ".4f", "AUC of stretches of 400 ms"),
        Column("mean AUC in a clip", "clip_auc", ".4f", "mean of the clips' own frame AUCs"),
        Column("clips without", "n_no_frames", COUNT, "clips without frame scores"),
    ],
    "differences": [
        *PAIR,
        Column("metric", "metric", lambda metric: NAMES.get(metric, metric), "what is compared"),
        Column("A minus B", "difference", "+.4f", "above 0: A has the higher value"),
    ],
    "agreement": [
        *PAIR,
        Column("rank correlation", "rank_correlation", ".3f", "Spearman's, of the clip scores"),
        Column("equal decisions", "equal_decisions", ".1%", "share of clips decided alike"),
    ],
    "joined": [
        SYSTEM,
        AUC,
        EER,
        LOG_LOSS,
        Column("gain", "gain", "+.4f", "AUC over the answer that is best alone on val_fit"),
    ],
    "drift": [
        SYSTEM,
        Column("PSI", "psi", ".3f", "population stability index: how far scores have moved"),
        Column("by chance", "by_chance", ".3f", "what 95 % of equal splits stay below"),
        Column("reading", "reading", help="the index in words"),
    ],
    "thresholds": [
        SYSTEM,
        Column("at", "point", help="operating point: what the thresholds were chosen for"),
        Column("reading", "reading", help="whether the rates of val_fit hold here"),
        Column("false alarms", "false_alarms", ".1%", "real clips called fake"),
        Column("on val_fit", "val_false_alarms", ".1%", "false alarms where they were fitted"),
        Column("misses", "misses", ".1%", "fakes called real"),
        Column("on val_fit", "val_misses", ".1%", "misses where they were fitted"),
        Column("real as F / ? / R", "real_as", _known, "called fake, cannot tell, called real"),
        Column("fakes as F / ? / R", "fake_as", _known, "called fake, cannot tell, called real"),
        Column("cannot tell", "unsure", ".1%", "share of all clips between the thresholds"),
        Column("fake above", "fake_above", ".4g", "score of the system, from val_fit"),
        Column("real below", "real_below", ".4g", "score of the system, from val_fit"),
    ],
    "gaps": [
        SYSTEM,
        Column("groups by", "kind", help="what the groups differ in"),
        Column("of", "metric", _metric_name, "AUC, or the share of clips with this error"),
        Column("highest", "highest", _group, "group with the highest value"),
        Column("value", "highest_value", ".3f", "of the group with the highest value"),
        Column("lowest", "lowest", _group, "group with the lowest value"),
        Column("value", "lowest_value", ".3f", "of the group with the lowest value"),
        Column("gap", "gap", ".3f", "between these two groups"),
        Column("by chance", "by_chance", ".3f", "95 % of random groups have a smaller gap"),
        Column("reading", "reading", help="the gap beside what chance gives"),
    ],
    "rates-by-group": [
        SYSTEM,
        Column("groups by", "kind", help="what the groups differ in"),
        Column("group", "group", help="groups of fakes hold all real clips too"),
        Column("clips", "n", COUNT, "clips in the group"),
        Column("fakes", "n_fake", COUNT, "fake clips in the group"),
        AUC,
        Column("false alarms", "false_alarms", ".1%", "real clips called fake"),
        Column("misses", "misses", ".1%", "fakes called real"),
        Column("at", "point", help="operating point: what the thresholds were chosen for"),
    ],
    "leaks": [
        Column("property", "trait", help="of the file, not of its content"),
        Column("AUC", "auc", ".3f", "of this property alone, in the better direction"),
        Column("clips", "n", COUNT, "clips whose property is known"),
        Column("reading", "leaks", lambda leaks: "leak" if leaks else "-", "whether it leaks"),
    ],
    "shortcuts": [
        Column("property", "trait", help="of what is heard or seen"),
        Column("split", "split", help="that was audited"),
        Column("label", "label", help="of the clip, its sound or its picture"),
        Column("AUC", "auc", ".3f", "of this property alone, in the better direction"),
        Column("chance", "chance", ".3f", "95 % of permuted labels stay below"),
        Column("clips", "n", COUNT, "clips whose property is known"),
        Column("reading", "reading", help="whether it is a shortcut"),
        Column("remedy", "remedy", help="the augmentation set that removes it"),
    ],
    "robustness": [
        SYSTEM,
        Column("metric", "metric", help="AUC against the system's own label, or Score"),
        Column("family", "family", help="of perturbations"),
        Column("clean", "clean", ".4f", "of the clean clips"),
        *(Column(f"{n}", f"level {n}", ".4f", f"level {n} of 5") for n in LEVELS),
        Column("largest loss", "change", "+.4f", "at the worst level, minus clean"),
    ],
    "changes": [
        SYSTEM,
        Column("metric", "metric", help="AUC of Task 1, Score of Task 2"),
        Column("before", "before", ".4f", "in the last comparison in the same folder"),
        Column("now", "now", ".4f", "in this one"),
        Column("change", "change", "+.4f", "now minus before"),
    ],
    "changed_media": [
        SYSTEM,
        Column("split", "split", help="that was audited"),
        Column("change", "change", help="of the media"),
        Column("AUC", "auc", ".3f", "against the label of its own modality, before the change"),
        Column("after", "auc_after", ".3f", "AUC after the change"),
        Column("difference", "difference", "+.3f", "after minus before"),
        Column("clips", "n", COUNT, "clips of the split"),
        Column("reading", "reading", help="falls: the whole interval is below 0"),
    ],
}


def of(result: Comparison) -> dict[str, Table | None]:
    """All tables of the page; None for one without rows."""
    answers = {
        "task1": {one.name for one in result.answers1},
        "task2": {one.name for one in result.answers2},
    }
    made: dict[str, Table | None] = {"headline": headline(result)}
    for name, columns in TABLES.items():
        rows = []
        for _, row in result.tables.get(name, pd.DataFrame()).iterrows():
            task = row.get("task") if name == "coverage" else TASK_OF.get(name, "task1")
            is_answer = row.get("system") in answers[task]
            rows.append(Row([column.cell(row) for column in columns], is_answer))
        n_answers = sum(row.strong for row in rows)
        folded = name in FOLDED and 0 < n_answers < len(rows)
        made[name] = Table(columns, rows, folded) if rows else None
    made["modalities"] = modalities(result)
    made["crosstest"] = _crosstest(result)
    if made["task2"] and "beside" in result.tables:
        for _, row in result.tables["beside"].iterrows():
            made["task2"].rows.append(Row([column.cell(row) for column in TABLES["task2"]]))
    made["systems"] = Table(ABOUT, [Row([Cell(one.name), *_about(one)]) for one in result.entries])
    return made


def _crosstest(result: Comparison) -> Table | None:
    """Systems and metrics in rows, data sets in columns; the answers of both tasks stand out."""
    if "crosstest" not in result.tables:
        return None
    found = result.tables["crosstest"]
    splits = [Column(name, name, ".4f", "tested on these clips") for name in splits_of(found)]
    columns = [SYSTEM, Column("metric", "metric", help="of klassify evaluate"), *splits]
    answers = {one.system.name for one in (*result.answers1, *result.answers2)}
    rows = [
        Row([column.cell(row) for column in columns], row["system"] in answers)
        for _, row in by_split(found).iterrows()
    ]
    return Table(columns, rows)


TASK_OF = {"task2": "task2", "frames": "task2"}  # of the tables that are not of Task 1
FOLDED = ("costs", "gaps", "thresholds", "drift")

ABOUT = [
    SYSTEM,
    Column("what it is", help="its model, or what it is computed from"),
    Column("hears or sees", help="sound (audio), picture (visual), or both"),
    Column(
        "labels of",
        help="clip, segment, self (own edits of real clips) or pseudo (answers of other systems):"
        " the strongest of all parts",
    ),
]


def _about(entry: Entry) -> list[Cell]:
    system = entry.system
    return [Cell(described(entry)), Cell(system.modality), Cell(system.supervision)]


def modalities(result: Comparison) -> Table | None:
    """Picture alone, sound alone, both and the gain of both, a line each; a column for each recipe
    and task."""
    table = contributions(result)
    if table.empty:
        return None
    columns = list(dict.fromkeys(zip(table["recipe"], table["task"])))
    value, gain = Column("", "value", ".3f"), Column("", "gain", "+.3f")
    by_place = table.set_index(["recipe", "task", "kind"])
    rows = []
    for kind in dict.fromkeys(table["kind"]):
        cells = []
        for place in columns:
            row = by_place.loc[(*place, kind)]
            cell = value.cell(row)
            cells.append(cell._replace(small=f"{cell.small}\n{row['system']}".strip()))
        rows.append(Row([Cell(kind), *cells], kind == "both"))
    both = [gain.cell(by_place.loc[(*place, "both")]) for place in columns]
    rows.append(Row([Cell("gain of both"), *both]))
    chances = [guessing(result, task) for _, task in columns]
    rows.append(Row([Cell("guessing"), *(Cell(number(one, ".3f"), repr(one)) for one in chances)]))
    recipes = {recipe for recipe, _ in columns}
    heads = [
        Column(
            f"{TITLE[task]} {METRIC_NAME[task]}" + (f", {recipe}" if len(recipes) > 1 else ""),
            form=".3f",
            help={"task1": AUC, "task2": SCORE}[task].help,
        )
        for recipe, task in columns
    ]
    return Table([Column(""), *heads], rows)


# of the lists of clips; the answers' columns have their names as heads
CLIPS = {
    "clip": Column("clip", help="name of the clip; its row opens"),
    "type": Column("it is", help="what the list says of it"),
    "answer": Column(
        "name of an answer",
        help="probability of fake, calibrated on val_fit; below it the system's own, as it is"
        " submitted",
    ),
    "loss": Column("loss", help="log-loss of the worst answer, nats"),
    "spread": Column("apart", help="largest difference between the answers"),
}


def words() -> list[tuple[str, str]]:
    """(head, meanings) of every column of the page, in alphabetical order."""
    found: dict[str, dict[str, None]] = {}
    for columns in (*TABLES.values(), ABOUT, CLIPS.values()):
        for column in columns:
            found.setdefault(column.title, {})[column.help] = None
    pairs = [(title, "; or ".join(meanings)) for title, meanings in found.items()]
    return sorted(pairs, key=lambda pair: pair[0].lower())


HEADLINE = {
    "Task 1 by": {"task1": [AUC, EER, LOG_LOSS]},
    "Task 2 by": {
        "task2": [SCORE, _by_threshold("AP@0.5"), _by_threshold("AR@50")],
        "frames": [FRAME_AUC],
    },
}
NOTHING = Cell("-", "NaN")


def headline(result: Comparison) -> Table:
    """One column per recipe: its answers to both tasks. It stays narrow enough for a phone."""
    answers = {"Task 1 by": result.answers1, "Task 2 by": result.answers2}
    recipes = dict.fromkeys(one.system.folder.parent for some in answers.values() for one in some)
    rows = []
    for title, tables in HEADLINE.items():
        by_recipe = {one.system.folder.parent: one.name for one in answers[title]}
        names = [by_recipe.get(folder) for folder in recipes]
        if by_recipe:
            rows.append(Row([Cell(title), *(Cell(name or "-", "NaN") for name in names)], True))
        for table, columns in tables.items():
            if table in result.tables:
                measured = {row["system"]: row for _, row in result.tables[table].iterrows()}
                for column in columns:
                    cells = [
                        column.cell(measured[name]) if name in measured else NOTHING
                        for name in names
                    ]
                    rows.append(Row([Cell(column.title), *cells]))
    of_recipe = "the systems of this recipe that answer, and their results"
    heads = [Column(result.recipes[folder], form=".4f", help=of_recipe) for folder in recipes]
    return Table([Column(""), *heads], rows)
