"""What the demo tells a person: where it is, each finished model, and at the end what it means."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from klassify.demo.plan import FIRST, Step
from klassify.evaluation.segments import RANDOM
from klassify.evaluation.tables import aligned, with_interval
from klassify.files import read_json_mapping

TITLES = {"klassify": "KLASSify", "multibranch": "multi-branch", "fused": "third recipe"}
STAGES = {0: "clips", 1: "features", 2: "training", 3: "test clips", 4: "test clips"}
# rows of the table: title, Task 1's system, Task 2's
ROWS = {
    "klassify": [
        ("picture alone", "tcn", "tcn_tags"),
        ("sound alone", "w2v_aasist", "bam"),
        ("both (KLASSify)", "maxout", "merged"),
    ],
    "multibranch": [
        ("multi-branch: picture", "visual_clip", "visual"),
        ("multi-branch: sound", "ps_clip", "ps"),
        ("multi-branch: both", "fused_clip", "fused"),
    ],
    "fused": [("third recipe: both", "stack", "spans")],
}
UNTRAINED = """\
The LMM of the multi-branch system is an untrained stand-in. Left out for their time: its picture
branch for Task 1, visual_clip, which stays at chance, and lips_mil, which adds nothing to the
third recipe."""
# what to read: in a checkout, and beside recipes that were copied out of an installed package
PAGES = "docs/first-hour.md; docs/your-data.md for videos of your own"
ELSEWHERE = "klassify lists --help for videos of your own; results: recipes/klassify/RESULTS.md"
QUIET_S = 60.0  # a log gets a line after so long without one


class Teller:
    """Prints the progress of the demo. folders: {recipe: folder of its systems}."""

    def __init__(self, steps: Sequence[Step], cores: int, folders: Mapping[str, Path]):
        self.steps, self.cores, self.folders = steps, cores, folders
        self.left = {step.number: step for step in steps}
        self.running: Sequence[Step] = ()
        self.stages = list(dict.fromkeys(map(stage_of, steps)))
        self.stage = ""
        self.began = self.spoke = time.monotonic()
        self.is_terminal = sys.stdout.isatty()

    @property
    def passed(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self.began

    def minutes_left(self) -> str:
        """An estimate of the time left, as text."""
        minutes = self._seconds_left() / 60
        return "less than a minute left" if minutes < 1 else f"about {minutes:.0f} min left"

    def _seconds_left(self) -> float:
        left = sum(step.seconds for step in self.left.values())
        done = sum(step.seconds for step in self.steps) - left
        passed = self.cores * self.passed
        # the first steps say little about this machine, and those of an earlier run nothing
        pace = max(passed / done, 0.5) if done > 0.1 * (done + left) else 1.0
        # but no more is done than what has begun
        begun = done + sum(step.seconds for step in self.running if step.number in self.left)
        pace = max(pace, passed / begun) if begun else pace
        return left * pace / self.cores

    def finished(self, step: Step) -> None:
        """Note a finished step; tell of a finished model, stage or table."""
        del self.left[step.number]
        if step.command == "train":
            self.say(f"trained {self._model(step)}")
        if step.recipe != FIRST or any(one.recipe == FIRST for one in self.left.values()):
            return
        if table := results({FIRST: self.folders[FIRST]}):
            self.say("KLASSify on testA, [95 % interval]:")
            print(f"{table}\n", flush=True)

    def waiting(self, running: Sequence[Step] = ()) -> None:
        """Show the stage and the time left: on one line of a terminal, in a log once a minute."""
        self.running = running
        stage = next(
            (name for name in self.stages if name in map(stage_of, self.left.values())), ""
        )
        if stage and stage != self.stage:
            self.stage = stage
            self.say(self._where())
        elif self.is_terminal and self.left:
            print(f"\r{self._line()}", end="", flush=True)
        elif time.monotonic() - self.spoke > QUIET_S and self.left:
            done = len(self.steps) - len(self.left)
            self.say(f"{self._where()}, {done} of {len(self.steps)} commands done")

    def say(self, text: str) -> None:
        """One line with the clock before it and the time left behind it."""
        self.spoke = time.monotonic()
        start = "\r" + " " * 78 + "\r" if self.is_terminal else ""
        print(f"{start}{in_minutes(self.passed):>6}  {text} ({self.minutes_left()})", flush=True)

    def _where(self) -> str:
        number = self.stages.index(self.stage) + 1
        return f"stage {number} of {len(self.stages)}: {self.stage}"

    def _line(self) -> str:
        # by time: a few of the commands take most of it
        filled = round(10 * self.passed / max(self.passed + self._seconds_left(), 1.0))
        bar = "#" * filled + "." * (10 - filled)
        line = f"{in_minutes(self.passed):>6}  [{bar}] {self.minutes_left()}; {self._where()}"
        return line[:78].ljust(78)

    def _model(self, step: Step) -> str:
        record = read_json_mapping(step.out / "training.json")
        measures = {"val_auc": "AUC on val", "val_psnr": "dB on val"}
        values = [f"{text} {record[key]:.2f}" for key, text in measures.items() if key in record]
        epochs = f"epoch {record['best_epoch']} of {record['epochs']}"
        name = step.out.relative_to(*step.out.parts[:2])
        like = f", equal to {step.like}" if step.like else ""
        return f"{name}: {', '.join([*values, epochs])}{like}"


def stage_of(step: Step) -> str:
    """The stage of the demo that a step belongs to, as a title."""
    if step.command == "compare":
        return "comparison"
    if step.stage == 0:
        return STAGES[0]
    return f"{TITLES[step.recipe]}: {STAGES[step.stage]}"


def in_minutes(seconds: float) -> str:
    """Minutes and seconds, as 8:05."""
    return "{:d}:{:02d}".format(*divmod(int(seconds), 60))


def results(folders: Mapping[str, Path], split: str = "testA") -> str:
    """AUC and Score of what each modality and both together reach, as a table; '' without results.

    folders: {recipe: folder of its systems}, as stage 4 left them.
    """
    rows, guesses = [["", "Task 1, AUC", "Task 2, Score"]], ""
    for recipe, folder in folders.items():
        found = measured(folder / "evaluation", split)
        for title, one, other in ROWS[recipe]:
            if one in found[0] or other in found[1]:
                rows.append([title, found[0].get(one, "-"), found[1].get(other, "-")])
        guesses = guesses or found[1].get(RANDOM, "")
    if len(rows) == 1:
        return ""
    return aligned([*rows, ["guessing", "0.50", guesses]])


def measured(folder: Path, split: str) -> tuple[dict[str, str], dict[str, str]]:
    """{system: AUC with its interval} and {system: Score with its interval} of an evaluation."""
    clips, segments = _table(folder / f"{split}.tsv"), _table(folder / f"{split}.task2.tsv")
    if len(clips):
        clips = clips[clips["label"].eq("video") & clips["group"].eq("all")]
    if len(segments):
        segments = segments[segments["group"].eq("all")]
    pairs = ((clips, "auc"), (segments, "Score"))
    found = [{row["system"]: _cell(row, key) for _, row in t.iterrows()} for t, key in pairs]
    return found[0], found[1]


def _cell(row: pd.Series, key: str) -> str:
    # rows beside those of systems have no interval
    return with_interval(row, key, ".2f") if f"{key}_low" in row else f"{row[key]:.2f}"


def gains(folder: Path, split: str = "testA") -> list[str]:
    """Sentences: whether both modalities together are better than each, by paired intervals."""
    said = []
    for name, singles, unit in (
        (f"{split}.tsv", {"tcn": "the picture", "w2v_aasist": "the sound"}, "AUC"),
        (f"{split}.task2.tsv", {"tcn_tags": "the picture", "bam": "the sound"}, "Score"),
    ):
        table = _table(folder / name)
        if not len(table):
            continue
        table = table[table["group"].eq("all")]
        if "label" in table:
            table = table[table["label"].eq("video")]
        for system, title in singles.items():
            for _, row in table[table["system"].eq(system)].iterrows():
                said.append(f"{unit} of both minus {title}: {_difference(row)}")
    return said


def _difference(row: Mapping[str, float]) -> str:
    low, high = row["gain_low"], row["gain_high"]
    shown = f"{row['gain']:+.2f} [{low:+.2f}, {high:+.2f}]"
    if low > 0:
        return f"{shown}, better"
    return f"{shown}, worse" if high < 0 else f"{shown}, not told apart by these clips"


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t") if path.exists() else pd.DataFrame()


def ending(
    folders: Mapping[str, Path], clips: int, sources: int, passed: float, paths: Mapping[str, str]
) -> str:
    """The last message: results, what they mean and do not, what to look at and to type next.

    folders: {recipe: folder of its systems}. clips, sources: of testA. passed: seconds. paths:
    `report`, `submission`, `logs`, and `predict`, a command.
    """
    lines = [
        f"Done in {in_minutes(passed)} min. testA: {clips} generated clips of {sources} sources.",
        "",
        results(folders),
        "",
        *(gains(folders[FIRST] / "evaluation") if FIRST in folders else []),
        "",
        "The faces are painted and the voices synthetic: the numbers show that the code learns,",
        "and nothing about real videos. [x, y]: 95 % intervals, bootstrap over sources of clips.",
        *([UNTRAINED] if "multibranch" in folders else []),
        "",
        f"  look at     {paths['report']} (open it in a browser)",
        f"  try         {paths['predict']}",
        f"  submission  {paths['submission']} (accepted by the checker; NOT FOR UPLOAD)",
        f"  logs        {paths['logs']}",
        f"  next        {PAGES if Path('docs/your-data.md').exists() else ELSEWHERE}",
    ]
    return "\n".join(lines)
