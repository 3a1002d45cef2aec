"""What the demo runs: the commands that the recipes print with dry=1, and which waits for which."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from klassify.corpus.plan import SIZES, SPLITS
from klassify.errors import KlassifyError

# the recipe whose table comes first
FIRST = "klassify"
# CPU seconds at size=default, for the order of work and the time left: of commands (`extract`: of
# all splits), of trainings
SECONDS = {
    "corpus": 170.0,
    "extract": 150.0,
    "extract lmm": 10.0,
    "extract lips": 230.0,
    "extract embedding": 5.0,
    "score": 2.0,
    "score visual": 32.0,
    "tune": 1.0,
    "evaluate": 1.0,
    "compare": 11.0,
}
TRAINING_SECONDS = {
    "tcn": 25.0,
    "w2v_aasist": 70.0,
    "tcn_tags": 45.0,
    "bam": 135.0,
    "vqvae": 55.0,
    "stems": 145.0,
    "ps": 100.0,
    "ps_clip": 98.0,
    "visual": 65.0,
    "audio_mil": 50.0,
    "splice_audio": 20.0,
    "splice_lips": 82.0,
    "sync": 31.0,
    "audio_frames": 54.0,
    "lips_frames": 75.0,
    "av_spans": 78.0,
}
OTHER_SECONDS = 0.5
# what these commands change besides --out: the systems that they name
CHANGES_SYSTEMS = ("score", "tune", "localise")
STAGE = re.compile(r"== stage (\d):")


@dataclasses.dataclass
class Step:
    """One command. words: after `klassify`. after: the numbers of the steps that it waits for.

    cores: how many it keeps busy. seconds: of CPU time, estimated. like: the folder of an equal
    training of another recipe, which is copied. part: 0 for the first recipe, 1 for the others.
    """

    number: int
    words: tuple[str, ...]
    recipe: str
    stage: int
    part: int
    after: set[int]
    cores: int
    seconds: float = 0.0
    like: Path | None = None
    urgency: float = 0.0

    @property
    def command(self) -> str:
        """The name of the command."""
        return self.words[0]

    @property
    def out(self) -> Path | None:
        """The folder that --out names."""
        return Path(found) if (found := _option(self.words, "--out")) else None


def folder_name(size: str, corpus_seed: str = "0") -> str:
    """The name of the demo's folders below exp/, media/ and the others."""
    corpus = "" if corpus_seed == "0" else f"-corpus-{corpus_seed}"
    return f"{'demo' if size == 'default' else f'demo-{size}'}{corpus}"


def splits_of(size: str) -> list[str]:
    """The splits that a corpus of this size has."""
    return [split for split, count in zip(SPLITS, SIZES[size].originals) if count]


def commands_of(
    recipe: str, stages: tuple[int, int], variables: Mapping[str, str]
) -> list[tuple[int, tuple[str, ...]]]:
    """(stage, words) of each klassify command of a recipe's stages, in the working directory.

    KlassifyError with the recipe's own message for variables that it refuses.
    """
    given = [f"{name}={value}" for name, value in variables.items()]
    first, last = map(str, stages)
    script = f"recipes/{recipe}/run.sh"
    command = ["bash", script, "--stage", first, "--stop-stage", last, "--wait", *given, "dry=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        what, _, fix = done.stderr.strip().partition("\n  fix:   ")
        raise KlassifyError(what or f"{script} cannot be read.", fix=fix or None)
    found, stage = [], stages[0]
    for line in done.stdout.splitlines():
        if match := STAGE.match(line):
            stage = int(match[1])
        elif line.startswith("+ klassify "):
            found.append((stage, tuple(shlex.split(line[2:])[1:])))
    return found


def planned(
    recipes: Sequence[str], seeds: Sequence[str], variables: Mapping[str, str], cores: int
) -> list[Step]:
    """All steps of the demo, each once, in an order in which they could run one after another.

    variables: of the recipes, with `data` and `size`. cores: processes at a time.
    """
    splits = splits_of(variables["size"])
    tests = [split for split in splits if split.startswith("test")]
    plan = _Plan(SIZES[variables["size"]].originals, SIZES["default"].originals)
    for recipe in recipes:
        part = int(len(recipes) > 1 and recipe != recipes[0])
        # beside other work each command gets one core
        jobs = {"jobs": "1" if part else str(cores)}
        for seed in seeds:
            made = variables | jobs | {"seed": seed}
            # the fewest commands: features once, val as part of stage 4
            plan.add(recipe, part, commands_of(recipe, (0, 1), made | {"split": ",".join(splits)}))
            plan.add(recipe, part, commands_of(recipe, (2, 2), made))
            plan.add(recipe, part, commands_of(recipe, (3, 3), made | {"split": ",".join(tests)}))
            plan.add(
                recipe,
                part,
                commands_of(recipe, (4, 4), made | {"split": ",".join(["val", *tests])}),
            )
        if len(seeds) > 1:
            plan.add_mean(recipe, part, tests)
    plan.add("", 1, [(5, plan.comparison(variables, seeds[0]))])
    plan.steps[-1].after = {step.number for step in plan.steps[:-1]}
    plan.rank()
    return plan.steps


def _is_system(word: str) -> bool:
    path = PurePosixPath(word)
    return path.parts[:1] == ("exp",) and len(path.parts) > 3


class _Plan:
    def __init__(self, clips: Sequence[int], usual: Sequence[int]):
        self.steps: list[Step] = []
        self.known: set[tuple[str, ...]] = set()
        self.trainings: dict[tuple[str, ...], Step] = {}
        self.inputs: dict[str, list[str]] = {}
        self.share = sum(clips) / sum(usual)
        self.part = {split: count / sum(clips) for split, count in zip(SPLITS, clips)}

    def add(self, recipe: str, part: int, commands: Iterable[tuple[int, tuple[str, ...]]]) -> None:
        """Add commands that are not planned yet."""
        for stage, words in commands:
            for one in self._each(words):
                key = _without(one, "--jobs")
                if key not in self.known and not self._joined(one):
                    self.known.add(key)
                    self._append(recipe, stage, part, one)

    def _joined(self, words: tuple[str, ...]) -> bool:
        """Whether a planned extraction now makes the mouth crops too that this one makes."""
        if "--lips" not in words:
            return False
        plain = _without(_without(words, "--lips"), "--jobs")
        for step in self.steps:
            if _without(step.words, "--jobs") == plain:
                step.words = (*step.words, "--lips", _option(words, "--lips"))
                step.seconds = self._seconds(step.words)
                return True
        return False

    def _append(self, recipe: str, stage: int, part: int, words: tuple[str, ...]) -> None:
        cores = int(_option(words, "--jobs") or 1)
        step = Step(len(self.steps), words, recipe, stage, part, self._needed(words), cores)
        step.seconds = self._seconds(words)
        if like := self._like(step):
            step.like, step.seconds = like.out, OTHER_SECONDS
            step.after.add(like.number)
        self.steps.append(step)
        if step.out and words[0] in ("calibrate", "fuse", "localise"):
            out = str(step.out)
            self.inputs[out] = [word for word in words[1:] if _is_system(word) and word != out]

    def _seconds(self, words: Sequence[str]) -> float:
        command = words[0]
        if command == "train":
            return self.share * TRAINING_SECONDS.get(Path(words[1]).stem, 60.0)
        if command == "extract":
            kind = "lips" if "--lips" in words else _option(words, "--kind")
            of_all = SECONDS[f"extract {kind}" if kind else command]
            return self.share * self.part[Path(_option(words, "--list")).stem] * of_all
        names = [Path(word).name for word in words[1:] if _is_system(word)]
        if command == "score":
            # what is computed from scores takes no time
            kind = f"score {names[0]}" if len(names) == 1 else "derived"
            return self.share * SECONDS.get(kind, SECONDS["score"])
        return self.share * SECONDS.get(command, OTHER_SECONDS)

    def _each(self, words: tuple[str, ...]) -> list[tuple[str, ...]]:
        """A command for each of the models that one command would score."""
        systems = [word for word in words if _is_system(word)]
        trained = {str(step.out) for step in self.steps if step.command == "train"}
        if words[0] != "score" or not trained.issuperset(systems):
            return [words]
        rest = [word for word in words[1:] if not _is_system(word)]
        return [("score", system, *rest) for system in systems]

    def add_mean(self, recipe: str, part: int, tests: Sequence[str]) -> None:
        """The mean over training seeds, of the tables of each."""
        folders = {
            step.out
            for step in self.steps
            if step.recipe == recipe and step.command == "evaluate" and step.out
        }
        tables = [str(folder / f"{split}.tsv") for folder in sorted(folders) for split in tests]
        top = str(min(folders, key=lambda folder: len(folder.parts)))
        self.add(recipe, part, [(4, ("evaluate", "--mean", *sorted(tables), "--out", top))])

    def comparison(self, variables: Mapping[str, str], seed: str) -> tuple[str, ...]:
        """The command that compares the systems that are evaluated on testA, of one seed."""
        name = folder_name(variables["size"], variables.get("corpus_seed", "0"))
        below = "" if seed == "1" else f"/seed-{seed}"
        top = PurePosixPath("exp", name)
        systems = [
            word
            for step in self.steps
            if step.command == "evaluate" and "testA" in step.words
            for word in step.words
            if _is_system(word) and word != str(step.out)
            if PurePosixPath(word).parent == top / f"{step.recipe}{below}"
        ]
        lists = f"data_lists/{name}"
        labels = ("--labels", f"{lists}/heldout/testA_labels.tsv", "--val", f"{lists}/val.tsv")
        media = ("--media", variables.get("root") or f"media/{name}")
        inputs = (*labels, *media, "--features", f"features/{name}")
        out = ("--out", f"exp/{name}/compare{below}")
        return ("compare", *dict.fromkeys(systems), "--split", "testA", *inputs, *out)

    def _needed(self, words: Sequence[str]) -> set[int]:
        paths = _paths([*words, *self._inputs_of(words)])
        return {
            step.number
            for step in self.steps
            if any(_overlap(path, other) for path in paths for other in _written(step.words))
        }

    def _inputs_of(self, words: Sequence[str]) -> list[str]:
        """The systems that the named ones are computed from, and theirs."""
        found = [name for word in words for name in self.inputs.get(word, [])]
        return [*found, *self._inputs_of(found)] if found else []

    def _like(self, step: Step) -> Step | None:
        """A planned training of the same config on the same inputs; else None."""
        if step.command != "train" or step.out is None:
            return None
        config = Path(step.words[1]).read_text(encoding="utf-8")
        if "\nbase:" in f"\n{config}":
            return None  # another file of the same folder counts too
        same = (config, step.out.name, *_without(step.words, "--out")[2:])
        first = self.trainings.setdefault(same, step)
        return None if first is step else first

    def rank(self) -> None:
        """Urgency: the CPU time of the longest chain of steps that begins with this one."""
        for step in reversed(self.steps):
            step.urgency += step.seconds
            for number in step.after:
                other = self.steps[number]
                if other.part == step.part:
                    other.urgency = max(other.urgency, step.urgency)


def _option(words: Sequence[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


def _without(words: tuple[str, ...], name: str) -> tuple[str, ...]:
    at = words.index(name) if name in words else len(words)
    return (*words[:at], *words[at + 2 :])


def _paths(words: Sequence[str]) -> list[tuple[str, ...]]:
    """The paths that a command names, as parts; of a detector.yaml the folder."""
    found = []
    for word in words[1:]:
        path = PurePosixPath(word.rpartition("=")[2])
        if len(path.parts) > 1:
            found.append((path.parent if path.name == "detector.yaml" else path).parts)
    return found


def _written(words: Sequence[str]) -> list[tuple[str, ...]]:
    """The folders that a command changes, as parts."""
    written = []
    if out := _option(words, "--out"):
        written += [PurePosixPath(path).parts for path in (out, _option(words, "--lips")) if path]
    elif words[0] in CHANGES_SYSTEMS:
        written += [PurePosixPath(word).parts for word in words[1:] if _is_system(word)]
    elif words[0] == "detector":
        written.append(PurePosixPath(words[1], "detector.yaml").parts)
    return written


def _overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]
