"""From a fresh checkout to stage 4 on the released layout of each data set, by the advice of the
messages alone.

Stage 0 is real; the other commands only leave the files that the recipes look for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ran
from places import ROOT, copy_recipes
from released import RELEASED, touch
from tiny_demo import tiny_klassify  # noqa: F401  (a fixture)

from klassify.lists import datasets
from klassify.lists.data_list import read_list

STAND_IN = """#!{python}
import os, sys, pathlib
words = sys.argv[1:]
command = words[0]
with open("commands.txt", "a") as handle:
    handle.write(" ".join(words) + "\\n")
if command == "lists":
    os.environ["PYTHONPATH"] = {root!r}
    os.execv(sys.executable, [sys.executable, "-m", "klassify.cli", *words])
options = {{word: words[i + 1] for i, word in enumerate(words[:-1]) if word.startswith("--")}}
out = options.get("--system", options.get("--out"))
systems = [word for word in words[1:] if word.startswith("exp/") and word not in options.values()]
made = {{
    "extract": [f"{{one}}/part-1-of-1.parquet" for one in (out, options.get("--lips")) if one],
    "train": [f"{{out}}/system.yaml"],
    "import-checkpoint": [f"{{out}}/system.yaml"],
    "calibrate": [f"{{out}}/system.yaml"],
    "fuse": [f"{{out}}/system.yaml"],
    "localise": [f"{{out}}/system.yaml"] if "--merge" in words else [],
    "score": [f"{{system}}/scores/{{options.get('--split')}}.clips.tsv" for system in systems],
    "detector": [f"{{words[1]}}/detector.yaml"],
}}
for path in map(pathlib.Path, made.get(command, [])):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
"""


REAL = """#!{python}
import sys
sys.path.insert(0, {root!r})
from klassify.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Checkout:
    """A fresh checkout whose `klassify` is a stand-in, beside the folders of data sets."""

    def __init__(self, folder: Path, script: str = STAND_IN):
        self.folder = folder / "check out"
        copy_recipes(self.folder)
        for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.folder)
        (self.folder / ".venv/bin").mkdir(parents=True)
        stand_in = self.folder / ".venv/bin/klassify"
        plain = " -S" if script == STAND_IN else ""  # starts faster
        stand_in.write_text(script.format(python=f"{sys.executable}{plain}", root=str(ROOT)))
        stand_in.chmod(0o755)
        (self.folder / ".venv/installed").touch()
        self.roots: dict[str, Path] = {}

    def add(self, data: str) -> Path:
        """Lay out a data set as released; returns its root."""
        root = (
            self.folder / "media/demo-tiny" if data == "demo" else self.folder.parent / f"a {data}"
        )
        root.mkdir(parents=True)
        RELEASED[data](root)
        self.roots[data] = root
        return root

    def shell(self, command: str) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        return ran(["bash", "-c", command], cwd=self.folder, env=environment, timeout=600)

    def follow(self, command: str, depth: int = 0) -> list[str]:
        """Run a command, and on the way all that its messages advise; returns the commands run."""
        assert depth < 6, f"advice that leads nowhere: {command}"
        done, followed = self.shell(command), []
        for _ in range(6):
            if done.returncode == 0:
                return [*followed, command]
            assert "Traceback" not in done.stderr, done.stderr
            advice = re.search(r"^  fix:   (.*)", done.stderr, flags=re.MULTILINE)
            assert advice, done.stdout + done.stderr
            assert advice[1] not in followed, f"advice that does nothing: {advice[1]}"
            followed += self.carry_out(advice[1], done.stderr, depth)
            done = self.shell(command)
        raise AssertionError(f"no end to the advice for {command}: {followed}")

    def carry_out(self, advice: str, said: str, depth: int) -> list[str]:
        if advice.startswith("download it"):
            path = self.folder / re.search(r"^(\S+) is missing", said, re.MULTILINE)[1]
            path.parent.mkdir(exist_ok=True)
            path.touch()
            return [advice]
        # what a person fills in: the folder of the data set that the advice is about
        data = re.search(r"data=(\S+)(?= root=DIR|[^&]*$)", advice)[1]
        return self.follow(advice.replace("root=DIR", f"root='{self.roots.get(data)}'"), depth + 1)

    def commands(self, name: str) -> list[str]:
        lines = (self.folder / "commands.txt").read_text().splitlines()
        return [line for line in lines if line.split()[0] == name]


FAST = [("klassify", "lavdf")]
LOCALISER = {"klassify": "bam", "multibranch": "visual", "fused": "tcn_tags"}
SLOW = [(r, d) for d in RELEASED for r in LOCALISER if (r, d) not in FAST]


@pytest.mark.parametrize(
    ("recipe", "data"), [*FAST, *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)]
)
def test_advice_alone_leads_to_the_last_stage(tmp_path, data, recipe):
    checkout = Checkout(tmp_path)
    root = checkout.add(data)
    more = "size=tiny" if data == "demo" else f"root='{root}'"
    if data == "fakeavceleb":
        checkout.add("avdeepfake1mpp")
    for stage in ("stage3", "stage4"):
        checkout.follow(f"make {stage} recipe={recipe} data={data} {more}")
    known = datasets.known().get(data)
    splits = known["splits"].split(",") if known else ["train", "val", "test"]
    folder = checkout.folder / "data_lists" / ("demo-tiny" if data == "demo" else data)
    for split in splits:
        assert len(read_list(folder / f"{split}.tsv"))
    assert not [path for path in folder.glob("*.failures.tsv") if "unsafe" in path.read_text()]
    if data == "fakeavceleb":
        return
    trained = {Path(line.split()[1]).stem for line in checkout.commands("train")}
    assert LOCALISER[recipe] in trained or data == "folders-of-mine"
    for split in splits[2:]:
        assert any(f"/{split}.tsv" in line for line in checkout.commands("package"))
    evaluated = "".join(checkout.commands("evaluate"))
    for split in splits[1:]:
        labelled = split == "val" or (folder / f"heldout/{split}_labels.tsv").exists()
        assert (f"--split {split} " in evaluated) == labelled
    assert ("--task 2" in evaluated) == (data != "folders-of-mine")


@pytest.mark.parametrize(
    "recipe",
    [
        "klassify",
        *(pytest.param(name, marks=pytest.mark.slow) for name in LOCALISER if name != "klassify"),
    ],
)
def test_clip_labels_alone_train_the_systems_of_task_1(tmp_path, recipe):
    checkout = Checkout(tmp_path)
    root = checkout.add("folders-of-mine")
    variables = f"recipe={recipe} data=folders-of-mine root='{root}'"
    checkout.follow(f"make stage3 {variables}")
    trained = {Path(line.split()[1]).stem: line for line in checkout.commands("train")}
    expected = {
        "klassify": {"tcn", "w2v_aasist_codecs"},
        "multibranch": {"vqvae", "ps_clip", "visual_clip"},
        "fused": {
            "tcn",
            "w2v_aasist",
            "audio_mil",
            "lips_mil",
            "splice_audio",
            "splice_lips",
            "sync",
        },
    }
    assert set(trained) == expected[recipe]
    for name, line in trained.items():
        assert ("data.init_args.label=video" in line) == (name != "vqvae")
    assert all("--label video" in line for line in checkout.commands("calibrate"))
    (detector,) = checkout.commands("detector")
    assert "--task 1" in detector
    assert not checkout.commands("localise") and not checkout.commands("tune")
    refused = checkout.shell(f"make stage2 {variables} system={LOCALISER[recipe]}")
    assert refused.returncode == 2 and "learns from segments" in refused.stderr


def test_an_undescribed_split_stops_with_what_to_write(tmp_path):
    checkout = Checkout(tmp_path)
    root = checkout.add("tables-of-mine")
    (root / "dev.csv").unlink()
    shutil.rmtree(root / "dev")
    variables = f"data=tables-of-mine root='{root}'"
    done = checkout.shell(f"make stage0 {variables}")
    assert done.returncode == 2 and "Training needs val too" in done.stderr
    done = checkout.shell(f"make stage2 {variables}")
    advice = re.search(r"^  fix:   (make .*)", done.stderr, flags=re.MULTILINE)[1]
    done = checkout.shell(advice)
    assert done.returncode == 2 and "Nothing describes the split 'val'" in done.stderr
    assert "write SPLIT.csv with the columns file,label" in done.stderr


@pytest.mark.slow
def test_own_clips_in_label_folders_are_trained_on_and_answered(tmp_path, tiny_klassify):  # noqa: F811
    """The clips of the tiny corpus as somebody's own, with every command real."""
    checkout, root = Checkout(tmp_path, REAL), tmp_path / "my clips"
    corpus = tiny_klassify / "data_lists/demo-tiny"
    lists = {"train": "train", "dev": "val", "test": "heldout/testA_labels"}
    for split, name in lists.items():
        for clip in read_list(corpus / f"{name}.tsv").itertuples():
            media = tiny_klassify / "media/demo-tiny" / Path(name).name.removesuffix("_labels")
            label = "real" if clip.modify_type == "real" else "fake"
            touch(root / split / label, [clip.file])
            shutil.copy(media / clip.file, root / split / label / clip.file)
    variables = f"data=mine root='{root}' conf=demo jobs=2"
    for stage in ("stage3", "stage4"):
        checkout.roots["mine"] = root
        checkout.follow(f"make {stage} {variables}")
    table = (checkout.folder / "exp/mine/klassify/evaluation/test.txt").read_text()
    assert "\nmaxout " in table and "\nbam" not in table
    assert (checkout.folder / "submissions/mine/klassify/test/prediction.txt").exists()
    clip = next((root / "test/fake").rglob("*.mp4"))
    done = checkout.shell(f".venv/bin/klassify predict '{clip}'")
    assert done.returncode == 0 and "probability of fake" in done.stdout
    assert "finds no segments" in done.stdout
