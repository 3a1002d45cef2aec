"""Launching without a cluster: scripts, status, resume, merge, with stand-ins for Slurm."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from commands import each_here, klassify, ran
from places import ROOT
from small_systems import make_system

from klassify import workers
from klassify.cluster import slurm, submit, work
from klassify.cluster.options import Options, added, without_launcher
from klassify.cluster.record import Record, Submission, read_record
from klassify.cluster.script import directive
from klassify.cluster.survey import survey
from klassify.errors import Interrupted, KlassifyError
from klassify.features import shards as features_shards
from klassify.features.mouth import kind
from klassify.models.weights.safetensors_file import save_weights
from klassify.parts import Place
from klassify.scores import chunks, shards
from klassify.systems import base
from klassify.systems.experiment import load_experiment, save_config
from klassify.training.ranks import explained

TCN = ROOT / "recipes/klassify/conf/demo/tcn.yaml"
SHARDS = 4

# notes its arguments, one per line, and gives job ids from 101 on
SBATCH = """#!/bin/bash
printf '%s\\n' --- "$@" >> "$PRETENDED_SLURM/submitted"
echo $((100 + $(grep -c -- --- "$PRETENDED_SLURM/submitted")))
"""
PRETENDED = {
    "sbatch": SBATCH,
    "squeue": '#!/bin/bash\ncat "$PRETENDED_SLURM/queue" 2> /dev/null || true\n',
    "sinfo": """#!/bin/bash
cd "$PRETENDED_SLURM"
echo "$@" >> asked-of-nodes
cat nodes 2> /dev/null || true
""",
    "scontrol": """#!/bin/bash
echo "$@" >> "$PRETENDED_SLURM/controlled"
echo "MaxArraySize            = 1001"
""",
    "scancel": '#!/bin/bash\necho "$@" >> "$PRETENDED_SLURM/cancelled"\n',
}


class Pretended:
    """Slurm's commands as small scripts: what was submitted, and what squeue prints."""

    def __init__(self, folder: Path):
        self.folder = folder

    def command(self, name: str, text: str) -> None:
        """Put a script in the place of a command."""
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(stat.S_IRWXU)

    def noted(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def submitted(self) -> list[list[str]]:
        blocks = "\n".join(self.noted("submitted")).split("---")[1:]
        return [block.strip("\n").splitlines() for block in blocks]

    def queue(self, *rows: str) -> None:
        """rows: id|array job|index|state|reason|time left|node|partition|name."""
        (self.folder / "queue").write_text("".join(f"{row}\n" for row in rows))


@pytest.fixture(autouse=True)
def without_workers(monkeypatch):
    monkeypatch.setattr(workers, "each", each_here)


@pytest.fixture
def pretended(tmp_path, monkeypatch) -> Pretended:
    found = Pretended(tmp_path / "slurm bin")
    found.folder.mkdir()
    for name, text in PRETENDED.items():
        found.command(name, text)
    monkeypatch.setenv("PATH", f"{found.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PRETENDED_SLURM", str(found.folder))
    slurm.largest_index.cache_clear()
    yield found
    slurm.largest_index.cache_clear()


@pytest.fixture
def no_slurm(monkeypatch, tmp_path):
    (tmp_path / "no bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "no bin"))
    slurm.largest_index.cache_clear()


class Extraction:
    """The audio of a small test split, extracted into a folder."""

    def __init__(self, data, out: Path):
        self.data, self.out = data, out

    def run(self, *more: object) -> int:
        inputs = ("--list", self.data.lists / "testA.tsv", "--root", self.data.media)
        return klassify("extract", "--kind", "audio", *inputs, "--out", self.out, *more)

    def launch(self, *more: object) -> int:
        return self.run("--launcher", "slurm", "--shards", SHARDS, *more)

    def shard(self, *numbers: int) -> None:
        for i in numbers:
            assert self.run("--jobs", 1, "--shard", f"{i}/{SHARDS}") == 0

    @property
    def folder(self) -> Path:
        return self.out / "slurm/extract"

    @property
    def record(self) -> Record:
        return read_record(self.folder / "job.json")

    def queued(self, index: int, state: str, reason: str = "None", job: int = 101) -> str:
        name = self.record.name
        return f"{job}_{index}|{job}|{index}|{state}|{reason}|1:00:00|n1|cpu|{name}"

    def merge_row(self, job: int) -> str:
        return f"{job}|{job}|N/A|PD|Dependency|1:00| |cpu|{self.record.merge_name}"

    def parts(self) -> list[str]:
        return sorted(path.name for path in self.out.glob("part-*"))


@pytest.fixture
def extraction(small_data, tmp_path) -> Extraction:
    return Extraction(small_data, tmp_path / "out")


def run_script(path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """A batch script as Slurm runs it: by a shell, with the variables of a task."""
    task = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "101", "SLURM_JOB_ID": "101"}
    return ran(["bash", path, *arguments], env=os.environ | task | variables)


def test_dry_run_shows_scripts_and_touches_nothing(extraction, pretended, capsys):
    options = "--max-parallel 2 --time 02:00:00 --sbatch-arg=--partition=cpu"
    assert extraction.launch("--dry-run", *options.split()) == 0
    text = capsys.readouterr().out
    for part in (
        "#SBATCH --time=02:00:00",
        "#SBATCH --partition=cpu",
        "--array=1-4%2",
        "--dependency=afterok:",
        "--kill-on-invalid-dep=yes",
        '--shard "$shard/4"',
    ):
        assert part in text
    assert not extraction.out.exists() and not pretended.submitted


def test_dry_run_needs_no_slurm(extraction, no_slurm, capsys):
    assert extraction.launch("--dry-run") == 0
    assert "sbatch --parsable --array=1-4" in capsys.readouterr().out
    assert extraction.launch() == 2
    assert "no sbatch" in capsys.readouterr().err


def test_scripts_run_shards_under_hostile_names(small_data, tmp_path, pretended, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / 'it\'s $(touch x) `touch x` "q" $HOME #1; touch x' / "train"
    extraction = Extraction(small_data, out)
    assert extraction.launch("--sbatch-arg=--comment=a b") == 0
    script, merge = extraction.folder / "array.sh", extraction.folder / "merge.sh"
    after = ["--dependency=afterok:101", "--kill-on-invalid-dep=yes"]
    assert pretended.submitted == [
        ["--parsable", "--array=1-4", str(script)],
        ["--parsable", *after, str(merge)],
    ]
    record = json.loads((extraction.folder / "job.json").read_text())
    assert record["submissions"] == [{"job": 101, "shards": "1-4", "offset": 0}]
    assert record["merge_job"] == 102
    done = run_script(script)
    assert done.returncode == 0, done.stderr
    assert work.ExtractWork(out, SHARDS).done() == {2}
    assert "shard 2/4: ended with status 0" in done.stdout
    assert run_script(script, "2").returncode == 0  # the offset of a second array
    assert work.ExtractWork(out, SHARDS).done() == {2, 4}
    assert extraction.launch("--module", "m/1; touch x") == 0
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert not (tmp_path / "x").exists()


@pytest.mark.long
@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Python 3.10 cannot leave the working directory out"
)
def test_scripts_run_no_code_of_the_working_folder(extraction, tmp_path, pretended, monkeypatch):
    marker = tmp_path / "marker"
    (tmp_path / "numpy.py").write_text(f"open({str(marker)!r}, 'w'); raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    assert extraction.launch("--shards", 1) == 0
    for script in ("array.sh", "merge.sh"):
        done = run_script(extraction.folder / script, SLURM_ARRAY_TASK_ID="1")
        assert done.returncode == 0, done.stderr
    assert not marker.exists()


def test_a_task_gives_up_after_its_restarts(extraction, pretended):
    assert extraction.launch("--max-restarts", 2) == 0
    done = run_script(extraction.folder / "array.sh", SLURM_RESTART_COUNT="3")
    assert done.returncode == 1 and "given up after 2 restarts" in done.stdout


def test_added_options_replace_those_that_set_the_same_thing():
    site = ("--mem-per-cpu=4G", "--qos=x", "--account=a")
    assert added(site, ["--mem=16G"]) == ("--qos=x", "--account=a", "--mem=16G")
    assert added(("--mem=1G",), ["--mem-per-gpu=2G"]) == ("--mem-per-gpu=2G",)
    assert added(site, ["--qos=y"]) == ("--mem-per-cpu=4G", "--account=a", "--qos=y")
    assert added(site, []) == site


@pytest.mark.parametrize("text", ["--partition=gpu", "--mem=4G", "--comment=a \"b\" 'c' \\ #d"])
def test_directives_are_one_word_to_sbatch(text):
    """Slurm's rules: a shell's quotes, a backslash escapes everywhere, # outside is a comment."""
    assert shlex.split(directive(text), comments=True) == [text]


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (["--sbatch-arg=--array=1-9"], "--array"),
        (["--sbatch-arg=--output=/tmp/x"], "--output"),
        (["--sbatch-arg=; rm -rf x"], "rm -rf"),
        (["--sbatch-arg=--comment=a\n#SBATCH --uid=0"], "comment"),
        (["--module=a\nrm x"], "control character"),
        (["--time", "soon"], "soon"),
        (["--time", "1", "--grace", "60"], "--grace"),
        (["--shard", "1/4"], "--shard"),
        (["--root", "/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_launched_is_refused_by_name(extraction, pretended, capsys, option, named):
    assert extraction.launch(*option) == 2
    assert named in capsys.readouterr().err and not pretended.submitted


@pytest.mark.parametrize(
    "option",
    [
        *("--dry-run", "--wait", "--shards 4", "--max-parallel 2", "--gpus 1", "--time 1"),
        *("--cpus 1", "--max-restarts 0", "--grace 0", "--sbatch-arg=--qos=x", "--module m"),
    ],
)
def test_options_of_the_launcher_are_refused_without_it(extraction, pretended, capsys, option):
    assert extraction.run("--force", *option.split()) == 2
    name = option.partition(" ")[0].partition("=")[0]
    assert f"{name} needs --launcher slurm" in capsys.readouterr().err
    assert not extraction.out.exists()


def test_a_dry_run_without_the_launcher_trains_nothing(small_data, tmp_path, capsys):
    out = tmp_path / "tcn"
    assert klassify("train", TCN, "--out", out, *small_data.arguments, "--force", "--dry-run") == 2
    assert "--dry-run" in capsys.readouterr().err and not out.exists()


def test_abbreviated_options_are_refused(extraction, pretended, capsys):
    with pytest.raises(SystemExit):
        extraction.launch("--forc")
    assert "--forc" in capsys.readouterr().err and not pretended.submitted


def test_lmm_features_are_checked_for_the_device_of_a_task(
    extraction, pretended, monkeypatch, capsys
):
    """The machine that submits has no GPU; on one, weights are float16 and not float32."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    seen = []
    monkeypatch.setattr(
        "klassify.commands.extract.parts_there",
        lambda out, settings, n: seen.append(settings["precision"]),
    )
    monkeypatch.setattr(
        "klassify.features.lmm.load.check_bits", lambda bits, device: seen.append(device.type)
    )
    asked = ("--launcher", "slurm", "--shards", 2, "--kind", "lmm", "--lmm", "tiny")
    for more in (
        *("", "--gpus 1", "--device cuda", "--sbatch-arg=--gres=gpu:a100:1"),
        *("--gpus 1 --load-in 4", "--gpus 1 --device cpu"),
    ):
        assert extraction.run(*asked, "--dry-run", *more.split()) == 0
    assert seen[::2] == ["cpu", "cuda", "cuda", "cuda", "cuda", "cpu"]
    assert seen[1::2][:4] == ["float32", "float16", "float16", "float16"] and seen[-1] == "float32"
    assert extraction.run(*asked, "--device", "cud") == 2
    assert "'cud'" in capsys.readouterr().err


def test_other_settings_are_refused_before_submitting(extraction, pretended, capsys):
    extraction.shard(1)
    assert extraction.launch("--chunk", 7) == 2
    assert "chunk" in capsys.readouterr().err and not pretended.submitted


def test_long_lists_of_shards_become_several_arrays(extraction, pretended):
    assert extraction.launch("--shards", 1024, "--max-parallel", 256) == 0
    first, second, merge = pretended.submitted
    assert first[1] == "--array=1-1000%250" and second[1] == "--array=1-24%6"
    assert second[-1] == "1000" and merge[1] == "--dependency=afterok:101:102"
    assert extraction.record.log_of(1003).name == "102_3.log"


def test_a_task_runs_the_command_without_the_launcher():
    argv = "--list a.tsv --launcher slurm --shards=8 --time 1 --force --sbatch-arg=--x=y --wait"
    assert without_launcher(argv.split()) == ["--list", "a.tsv"]
    argv = "c.yaml --nodes 2 a.b=1 --gpus=4"
    assert without_launcher(argv.split(), training=True) == ["c.yaml", "a.b=1"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("02:00:00", 7200), ("1-12", 129600), ("1-00:30", 88200)],
)
def test_time_limits_are_read_as_slurm_does(text, seconds):
    assert Options(time=text).limit_s == seconds
    assert Options(time=text).grace_s <= seconds / 2


def make_model(folder: Path) -> Path:
    """A system with random weights."""
    experiment = load_experiment(TCN, ["model.init_args.hidden=4"], seed=1)
    save_config(folder, experiment.resolved)
    save_weights(experiment.model, folder / "model.safetensors")
    base.write_system(folder, base.System(folder.name, "model", "visual", "clip", "log_odds"))
    return folder


@pytest.fixture
def model(tmp_path) -> Path:
    return make_model(tmp_path / "tcn")


@pytest.fixture
def scoring(model, small_data) -> list[object]:
    """The command that scores val with a model."""
    return ["score", model, "--split", "val", *small_data.arguments]


LAUNCHED = ("--launcher", "slurm", "--shards", 3)


def test_each_model_and_split_is_scored_by_an_array(
    small_data, tmp_path, pretended, monkeypatch, capsys
):
    monkeypatch.setattr(chunks, "CHUNK_CLIPS", 4)
    first, second = (make_model(tmp_path / name) for name in ("a", "b"))
    derived = make_system(tmp_path / "c", [0.1, 0.2, 0.3, 0.4], kind="calibrated", inputs=["../a"])
    asked = ["--split", "val,testA", *small_data.arguments, *LAUNCHED, "--gpus", 1]
    assert klassify("score", f"{first}/", second, *asked) == 0
    assert len(pretended.submitted) == 8  # an array and a merge job for each
    for model in (first, second):
        record = read_record(model / "slurm/score-testA/job.json")
        inputs = [*small_data.arguments, "--split", "testA"]
        assert record.arguments == ["score", str(model), *inputs, "--launcher", "local"]
        assert "#SBATCH --gres=gpu:1" in (record.folder / "array.sh").read_text()
        assert "gpu" not in (record.folder / "merge.sh").read_text()
    capsys.readouterr()
    assert klassify("status", tmp_path) == 1
    assert capsys.readouterr().out.count("missing      3  1-3") == 4
    assert klassify("score", first, derived, *asked) == 2
    assert "--wait" in capsys.readouterr().err


def test_a_short_list_makes_no_empty_shards_of_scores(scoring, pretended):
    assert klassify(*scoring, *LAUNCHED) == 0
    assert pretended.submitted[0][1] == "--array=1"


def test_the_first_command_of_the_page_times_a_hundred_clips(small_data, tmp_path):
    """With small data in place of the real one, and audio, since Face Mesh takes long."""
    page = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    block = page.partition("# 1. ")[2].partition("\n")[2].partition("# 2. ")[0]
    places = {
        "/tmp/": f"{tmp_path}/",
        "data_lists/avdeepfake1mpp": shlex.quote(str(small_data.lists)),
        "/data/AV-Deepfake1M++": shlex.quote(str(small_data.media)),
        "klassify extract": f"{sys.executable} -m klassify.cli extract --kind audio",
    }
    for written, here in places.items():
        assert written in block
        block = block.replace(written, here)
    done = ran(["bash", "-euc", block], cwd=ROOT)
    assert done.returncode == 0 and "shard 1/1 has" in done.stdout, done.stderr


def test_a_training_is_one_job_over_nodes(small_data, tmp_path, pretended, capsys):
    out = tmp_path / "tcn"
    asked = ["train", TCN, "train.epochs=2", "--out", out, *small_data.arguments]
    asked += ["--launcher", "slurm"]
    options = "--nodes 2 --gpus 4 --max-restarts 5 --time 1-00:00:00"
    assert klassify(*asked, *options.split()) == 0
    script = out / "slurm/train/job.sh"
    assert pretended.submitted == [["--parsable", str(script)]]
    text = script.read_text()
    for part in (
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gres=gpu:4",
        "srun --kill-on-bad-exit=1",
        "--nodes 2",
        "--devices 4",
        "train.epochs=2",
        '[ "$start" -gt 5 ]',
    ):
        assert part in text
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert klassify(*asked, "train.epoch=2") == 2  # a mistake is found before the queue
    assert "epoch" in capsys.readouterr().err and len(pretended.submitted) == 1


def test_force_replaces_only_what_slurm_has_taken(extraction, pretended, capsys):
    extraction.shard(1, 2, 3, 4)
    parts = extraction.parts()
    pretended.command("sbatch", "#!/bin/bash\necho 'invalid partition' >&2; exit 1\n")
    assert extraction.launch("--force") == 2
    assert "invalid partition" in capsys.readouterr().err and extraction.parts() == parts
    pretended.command("sbatch", SBATCH)
    pretended.command("squeue", "#!/bin/bash\necho 'Unable to contact slurm' >&2; exit 1\n")
    assert extraction.launch("--force") == 2
    assert extraction.parts() == parts and not pretended.submitted
    pretended.command("squeue", PRETENDED["squeue"])
    assert extraction.launch("--force") == 0
    assert pretended.submitted[0][:2] == ["--hold", "--parsable"] and not extraction.parts()
    assert pretended.noted("controlled")[-1] == "release 101"


def test_force_replaces_damaged_parts_and_other_shard_numbers(extraction, pretended, capsys):
    assert extraction.run("--jobs", 1) == 0 and extraction.launch() == 2
    assert "n: 1 there, 4 now" in capsys.readouterr().err
    assert extraction.launch("--force", "--dry-run") == 0 and extraction.parts()
    assert extraction.launch("--force") == 0 and not extraction.parts()
    extraction.shard(1, 2)
    next(extraction.out.glob("part-2-*.parquet")).write_bytes(b"PAR1")
    pretended.queue(extraction.queued(3, "R"))
    for more, said in (([], "are in the queue"), (["--chunk", 1], "Other work")):
        capsys.readouterr()
        assert extraction.launch("--force", *more) == 2
        assert said in capsys.readouterr().err
    pretended.queue()
    assert extraction.launch("--force") == 0 and not extraction.parts()


def test_force_replaces_parts_of_scores_of_mixed_settings(model, scoring, pretended, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_CLIPS", 4)
    assert klassify(*scoring, "--shard", "1/2") == 0
    write_other_settings(model)
    assert klassify(*scoring, "--launcher", "slurm", "--force") == 0
    assert len(pretended.submitted) == 2 and not (model / "scores/val.parts").exists()


@pytest.mark.parametrize(
    ("status", "again"), [(2, False), (Interrupted.status, True), (137, True), (0, False)]
)
def test_training_restarts_after_a_lost_rank_not_a_mistake(
    small_data, tmp_path, pretended, status, again
):
    out = tmp_path / "tcn"
    asked = ["train", TCN, "--out", out, *small_data.arguments, "--launcher", "slurm"]
    assert klassify(*asked) == 0
    pretended.command("srun", f"#!/bin/bash\nexit {status}\n")
    pretended.command("sleep", "#!/bin/bash\n")
    assert run_script(out / "slurm/train/job.sh").returncode == status
    assert ("requeue 101" in pretended.noted("controlled")) == again


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (
            explained(RuntimeError("[gloo/pair.cc:534] Connection closed by peer [10.0.0.2]:1.")),
            75,
            "last checkpoint",
        ),
        (KlassifyError("A mistake."), 2, "A mistake."),
    ],
)
def test_a_lost_connection_has_a_status_of_its_own(monkeypatch, capsys, error, status, said):
    def fail(args):
        raise error

    monkeypatch.setattr("klassify.commands.status.run", fail)
    assert klassify("status", "x") == status and said in capsys.readouterr().err


def test_a_job_that_cannot_be_released_is_named(extraction, pretended, capsys):
    extraction.shard(1, 2, 3, 4)
    fails = '[ "$1" = release ] && exit 1\necho MaxArraySize = 1001\n'
    pretended.command("scontrol", f"#!/bin/bash\n{fails}")
    assert extraction.launch("--force") == 2
    assert "scontrol release 101" in capsys.readouterr().err
    pretended.queue(*(extraction.queued(i, "PD", "JobHeldUser") for i in range(1, 5)))
    assert klassify("status", extraction.out) == 1
    text = capsys.readouterr().out
    assert "held         4  1-4" in text and "scontrol release 101_1," in text


def test_force_cancels_what_slurm_took_before_it_refused(extraction, pretended):
    """Two arrays, since indices are limited; the second one is refused."""
    extraction.shard(1)
    pretended.command("scontrol", "#!/bin/bash\necho 'MaxArraySize = 3'\n")
    once = '[ -e "$PRETENDED_SLURM/once" ] && exit 1\ntouch "$PRETENDED_SLURM/once"\n'
    pretended.command("sbatch", SBATCH + once)
    assert extraction.launch("--force") == 2
    assert len(pretended.submitted) == 2 and pretended.noted("cancelled") == ["101"]
    assert extraction.parts()


def test_other_work_on_a_folder_is_refused_while_it_is_queued(extraction, pretended, capsys):
    assert extraction.launch() == 0
    running = [extraction.queued(i, "R") for i in range(1, 5)]
    pretended.queue(*running, extraction.merge_row(102))
    assert extraction.launch() == 0 and extraction.launch("--time", "09:00:00") == 0
    capsys.readouterr()
    assert extraction.launch("--chunk", 1) == 2
    said = capsys.readouterr().err
    assert "--chunk 1" in said and "scancel --name=klassify-extract-out" in said
    assert len(pretended.submitted) == 2
    pretended.queue()
    assert extraction.launch("--chunk", 1) == 0


def test_a_finished_training_of_another_config_is_refused(small_data, tmp_path, pretended, capsys):
    out = tmp_path / "tcn"
    asked = ["train", TCN, "train.epochs=1", "--out", out, *small_data.arguments]
    assert klassify(*asked, "--accelerator", "cpu") == 0
    launched = ["--accelerator", "cpu", "--launcher", "slurm"]
    assert klassify(*asked, *launched) == 0 and not pretended.submitted
    for more, said in (("--seed 7", "seed: 1 there, 7 now"), ("--devices 4", "--gpus")):
        capsys.readouterr()
        assert klassify(*asked, *more.split(), *launched) == 2
        assert said in capsys.readouterr().err
    assert not pretended.submitted
    # --force clears the folder once Slurm has taken the job
    assert klassify(*asked, *launched, "--force") == 0
    assert len(pretended.submitted) == 1 and not (out / "training.json").exists()
    assert klassify("status", out) == 1


def test_finished_scores_are_aggregated_anew_without_a_job(model, scoring, pretended, capsys):
    launched = [*scoring, "--launcher", "slurm"]
    assert klassify(*scoring) == 0 and klassify(*launched) == 0
    assert klassify(*launched, "--aggregate", "max") == 0 and not pretended.submitted
    text = (model / "scores/val.clips.tsv").read_text()
    assert "# settings" in text and '"max"' in text
    assert klassify(*launched, "--approximate") == 2
    assert "approximate" in capsys.readouterr().err


def test_options_of_the_script_win_over_variables(extraction, pretended, monkeypatch):
    """Variables of other options are a site's defaults and stay."""
    dropped = ("SBATCH_TIMELIMIT", "SBATCH_JOB_NAME", "SBATCH_PARTITION", "SLURM_NTASKS")
    for name in (*dropped, "SBATCH_QOS", "SQUEUE_PARTITION", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "7")
    for name in ("sbatch", "squeue"):
        first, rest = PRETENDED[name].split("\n", 1)
        pretended.command(name, f'{first}\nenv > "$PRETENDED_SLURM/{name}-saw"\n{rest}')
    assert extraction.launch("--sbatch-arg=--partition=mine") == 0
    saw = pretended.noted("sbatch-saw")
    assert "SBATCH_QOS=7" in saw and not {f"{name}=7" for name in dropped} & set(saw)
    assert "SQUEUE_PARTITION=7" not in pretended.noted("squeue-saw")


def test_cpus_of_a_task_are_its_processes(extraction, pretended):
    script = extraction.folder / "array.sh"
    assert extraction.launch("--jobs", 3) == 0
    text = script.read_text()
    assert "--cpus-per-task=3" in text and text.count("--jobs") == 1 and "--jobs 3" in text
    assert klassify("resume", extraction.out, "--cpus", 5) == 0
    text = script.read_text()
    assert "--cpus-per-task=5" in text and "--jobs 5" in text and "--jobs 3" not in text


def while_waiting(monkeypatch, happens) -> None:
    """`happens` in place of every pause of a waiting command."""
    clock = types.SimpleNamespace(sleep=lambda _: happens(), monotonic=time.monotonic)
    monkeypatch.setattr(submit, "time", clock)


def test_waiting_ends_with_the_files_or_names_what_is_missing(
    extraction, small_data, tmp_path, pretended, monkeypatch, capsys
):
    while_waiting(monkeypatch, lambda: extraction.shard(1, 2, 3, 4))
    assert extraction.launch("--wait") == 0 and (extraction.out / "failures.tsv").exists()
    while_waiting(monkeypatch, lambda: None)
    assert Extraction(small_data, tmp_path / "other").launch("--wait") == 2
    assert "missing      4  1-4" in capsys.readouterr().err


def test_a_merge_job_that_can_never_start_is_not_waited_for(extraction, pretended, monkeypatch):
    failures = extraction.out / "failures.tsv"

    def done():
        extraction.shard(1, 2, 3, 4)
        pretended.queue(extraction.merge_row(102).replace("Dependency", "PartitionTimeLimit"))

    while_waiting(monkeypatch, done)
    assert extraction.launch("--wait") == 0 and failures.exists()
    assert pretended.noted("cancelled") == ["102"]
    failures.unlink()
    assert klassify("resume", extraction.out) == 0 and failures.exists()
    assert len(pretended.submitted) == 2


def test_strict_tasks_are_merged_and_waiting_gives_their_status(extraction, pretended, monkeypatch):
    """One clip of the split has no audio."""
    ends: list[int] = []

    def run_all():
        for i in range(1, SHARDS + 1):
            ends.append(extraction.run("--jobs", 1, "--strict", "--shard", f"{i}/{SHARDS}"))

    while_waiting(monkeypatch, run_all)
    assert extraction.launch("--strict", "--wait") == 1 and set(ends) == {0, 1}
    assert pretended.submitted[1][1] == "--dependency=afterany:101"
    assert (extraction.out / "failures.tsv").exists()
    assert extraction.launch("--strict", "--wait") == 1 and extraction.launch("--wait") == 0


@pytest.mark.long
def test_resume_here_continues_after_a_complete_strict_shard(extraction, pretended):
    assert extraction.launch("--strict") == 0
    extraction.shard(1, 3)  # the second has the clip without audio
    assert klassify("resume", extraction.out, "--here") == 0
    assert (extraction.out / "failures.tsv").exists()


def test_the_merge_job_asks_for_no_gpu_and_little_time(extraction, pretended):
    of_gpus = (
        *("--gpus-per-node=1", "--mem-per-gpu=4G", "--cpus-per-gpu=2", "--gpu-bind=none"),
        *("--ntasks-per-gpu=1", "--tres-per-task=gres/gpu:1", "--gres=gpu:1"),
        "--gres-flags=enforce-binding",
    )
    asked = [f"--sbatch-arg={option}" for option in (*of_gpus, "--partition=gpu", "--qos=x")]
    assert extraction.launch("--time", "00:20:00", *asked) == 0
    script = extraction.folder / "merge.sh"
    text = script.read_text()
    assert "--time=00:20:00" in text and "--partition=gpu" in text and "--qos=x" in text
    assert not any(option in text for option in of_gpus)
    assert klassify("resume", extraction.out, "--time", "1-00:00:00") == 0
    assert "--time=01:00:00" in script.read_text()


def test_waiting_reports_its_state_once_a_minute(extraction, pretended, monkeypatch, capsys):
    pauses = []

    def pause():
        pauses.append(1)
        pretended.queue(extraction.queued(1, "R"), extraction.queued(2, "PD", "JobHeldUser"))
        if len(pauses) == 3:
            extraction.shard(1, 2, 3, 4)

    while_waiting(monkeypatch, pause)
    monkeypatch.setattr(submit, "SAY_S", 0.0)
    assert extraction.launch("--wait") == 0
    said = capsys.readouterr().err
    assert "1 running, 1 held, 2 missing" in said and "fix:   scontrol release 101_2" in said


def test_the_time_left_follows_from_finished_shards(extraction, pretended, capsys):
    assert extraction.launch() == 0
    extraction.shard(1)
    log = extraction.folder / "logs/101_1.log"
    log.write_text("== shard 1/4: ended with status 0 after 90 s\n")
    waiting = [extraction.queued(i, "PD", "Priority") for i in (3, 4)]
    pretended.queue(extraction.queued(2, "R"), *waiting)
    capsys.readouterr()
    assert klassify("status", extraction.out) == 1
    text = capsys.readouterr().out
    assert "1:00:00 at most until" in text and "about 0:04:30 left, at 90 s per shard" in text


def write_other_settings(model: Path) -> None:
    """The second chunk of val as if it had been scored approximately."""
    parts = chunks.Parts.found(model, "val")
    settings = parts.header.settings | {"approximate": True}
    header = dataclasses.replace(parts.header, settings=settings)
    dataclasses.replace(parts, header=header).write(1, *parts.read(0))


def unmerged(scoring: list[object], monkeypatch, *numbers: int) -> None:
    """Shards of scores, of two, whose last process dies before it merges them."""
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "CHUNK_CLIPS", 4)
        patch.setattr(shards, "finish", lambda parts: False)
        for i in numbers:
            assert klassify(*scoring, "--shard", f"{i}/2") == 0


def test_scores_whose_last_process_died_are_merged(model, scoring, pretended, monkeypatch):
    unmerged(scoring, monkeypatch, 1)
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "CHUNK_CLIPS", 4)
        assert klassify("merge", model) == 2  # the other half is missing
    unmerged(scoring, monkeypatch, 2)
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "CHUNK_CLIPS", 4)
        assert klassify(*scoring, "--launcher", "slurm", "--shards", 2) == 0
    assert not pretended.submitted
    assert (model / "scores/val.clips.tsv").exists() and not (model / "scores/val.parts").exists()
    assert klassify("status", model) == 0 and klassify("merge", model) == 0
    assert klassify(*scoring, "--launcher", "slurm", "--force") == 0
    assert len(pretended.submitted) == 2 and not (model / "scores/val.windows.tsv").exists()


def test_status_reads_files_first_and_the_queue_second(extraction, pretended, capsys):
    assert extraction.launch() == 0
    extraction.shard(1)
    held = extraction.queued(4, "PD", "launch_failed_requeued_held")
    running = [extraction.queued(i, "R") for i in (1, 2)]
    pretended.queue(*running, extraction.queued(3, "PD", "Resources"), held)
    nodes = pretended.folder / "nodes"
    nodes.write_text("n[2-3]|drain|Duplicate jobid\nn1|alloc|none\n")
    states = survey(extraction.record).states
    assert [states[i][0] for i in range(1, 5)] == ["done", "running", "queued", "held"]
    capsys.readouterr()
    assert klassify("status", extraction.out) == 1
    text = capsys.readouterr().out
    for part in ("launch_failed_requeued_held", "scontrol release 101_4", "1:00:00"):
        assert part in text
    pretended.queue(held)
    assert klassify("status", extraction.out) == 1
    assert "scontrol update nodename=n[2-3] state=resume" in capsys.readouterr().out


def test_nodes_are_checked_only_if_a_task_waits_for_them(extraction, pretended, capsys):
    assert extraction.launch() == 0
    (pretended.folder / "nodes").write_text("old[1-9]|down*|bad DIMM, do not resume\n")
    for reason, looked in (
        ("Priority", False),
        ("QOSMaxJobsPerUserLimit", False),
        ("Resources", True),
        ("JobHeldUser", True),
        ("ReqNodeNotAvail, UnavailableNodes:n1", True),
    ):
        waiting = [extraction.queued(i, "PD", reason) for i in range(1, 5)]
        pretended.queue(*waiting, extraction.merge_row(102))
        capsys.readouterr()
        assert klassify("status", extraction.out) == 1
        assert ("nodename=old[1-9] state=resume" in capsys.readouterr().out) == looked, reason
    asked = pretended.noted("asked-of-nodes")
    assert len(asked) == 3 and all("--partition=cpu " in line for line in asked)


def test_a_shard_that_ends_while_status_looks_is_done(extraction, pretended, monkeypatch):
    """Its files do not exist at the first look, and it has left the queue at the second."""
    assert extraction.launch() == 0
    pretended.queue(*(extraction.queued(i, "R") for i in (2, 3, 4)))
    ask = slurm.queue

    def asked(names):
        extraction.shard(1)
        return ask(names)

    monkeypatch.setattr(slurm, "queue", asked)
    states = [survey(extraction.record).states[i][0] for i in range(1, 5)]
    assert states == ["done", "running", "running", "running"]


STEP_CANCELLED = "slurmstepd: error: *** STEP 101.0 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***\n"
JOB_CANCELLED = "slurmstepd: error: *** JOB 101 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO"
LOST = "klassify train: Another process failed.\n"


def ended(status: int) -> str:
    return f"== shard 2/4: ended with status {status} after 3 s\n"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (f"klassify extract: The list is broken.\n{ended(2)}", "The list is broken"),
        (f"{JOB_CANCELLED} TIME LIMIT ***\n", "time limit"),
        (f"{ended(143)}{JOB_CANCELLED} TIME LIMIT ***\n", "time limit"),
        (f"slurmstepd: error: Detected 1 oom-kill event(s)\n{ended(137)}", "memory"),
        (
            f"{LOST}{STEP_CANCELLED}{ended(75)}{JOB_CANCELLED} JOB REQUEUE ***\n",
            "status 75: klassify train: Another process failed.",
        ),
        (STEP_CANCELLED, "without a message"),
        ("== shard 2/4: given up after 3 restarts\n", "given up"),
        ("", "without a message"),
    ],
)
def test_what_failed_is_named_with_the_reason(extraction, pretended, capsys, log, reason):
    assert extraction.launch() == 0
    begin = "== shard 2/4: job 101_2, start 0, on n1, 2026-01-01T00:00:00Z\n"
    (extraction.folder / "logs/101_2.log").write_text(begin + log)
    found = survey(extraction.record)
    assert found.states[2][0] == "failed" and reason in found.states[2][1]
    assert found.of("missing") == [1, 3, 4]
    capsys.readouterr()
    assert klassify("status", extraction.out) == 1
    text = capsys.readouterr().out
    assert reason in text and f"klassify resume {extraction.out}" in text


def test_a_folder_has_one_name_however_it_is_written(
    extraction, tmp_path, pretended, monkeypatch, capsys
):
    assert extraction.launch() == 0
    (tmp_path / "link").symlink_to(extraction.out)
    running = [extraction.queued(i, "R") for i in range(1, 5)]
    pretended.queue(*running, extraction.merge_row(102))
    monkeypatch.chdir(extraction.out)
    for written in (".", "../out", tmp_path / "link"):
        capsys.readouterr()
        assert klassify("status", written) == 1
        text = capsys.readouterr().out
        assert "running      4  1-4" in text and "resume" not in text
        assert klassify("resume", written) == 0 and len(pretended.submitted) == 2


def test_splits_that_begin_alike_have_jobs_of_their_own(tmp_path):
    splits = [f"val_subset_of_the_hard_clips_of_2025_{letter}" for letter in "ab"]
    works = [work.ScoreWork(tmp_path, 2, split) for split in splits]
    one, two = (Record(each, [], "/", Options()).name for each in works)
    assert one != two


def test_resume_submits_what_is_neither_done_nor_queued(extraction, pretended):
    out, queued = extraction.out, extraction.queued
    options = "--max-parallel 3 --sbatch-arg=--mem=1G --sbatch-arg=--qos=x"
    assert extraction.launch(*options.split()) == 0
    extraction.shard(1)
    pretended.queue(queued(3, "R"), extraction.merge_row(102))
    assert klassify("resume", out, "--time", "09:00:00", "--sbatch-arg=--mem=2G") == 0
    array, merge = pretended.submitted[2:]
    assert array[1] == "--array=2,4%2" and merge[1] == "--dependency=afterok:103,afterany:101"
    assert pretended.noted("cancelled") == ["102"]
    text = (extraction.folder / "array.sh").read_text()
    for line in ("--time=09:00:00", "--qos=x", "--mem=2G"):
        assert f"#SBATCH {line}\n" in text
    assert "1G" not in text
    # again, with all of it in the queue
    all_of_it = [*(queued(i, "PD", "Priority", 103) for i in (2, 4)), queued(3, "R")]
    pretended.queue(*all_of_it, extraction.merge_row(104))
    assert klassify("resume", out) == 0 and len(pretended.submitted) == 4
    # a merge job that was lost
    pretended.queue(*all_of_it)
    assert klassify("resume", out) == 0
    assert [command[1] for command in pretended.submitted[4:]] == ["--dependency=afterany:101:103"]
    # when all is done, it is merged at once
    pretended.queue()
    extraction.shard(2, 3, 4)
    assert klassify("resume", out) == 0 and (out / "failures.tsv").exists()
    assert extraction.launch() == 0 and len(pretended.submitted) == 5


def test_resume_works_on_this_machine_without_slurm(
    extraction, tmp_path, pretended, monkeypatch, capsys
):
    assert extraction.launch() == 0
    extraction.shard(1, 2, 3)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert klassify("status", extraction.out) == 1
    assert "no squeue" in capsys.readouterr().out
    assert klassify("resume", extraction.out, "--here") == 0
    assert klassify("status", extraction.out) == 0
    assert (extraction.out / "failures.tsv").exists()


def test_shards_run_by_hand_are_found_in_folders_of_outputs(
    small_data, tmp_path, monkeypatch, capsys
):
    exp = tmp_path / "exp"
    model = make_model(exp / "seed-1/tcn")
    unmerged(["score", model, "--split", "val", *small_data.arguments], monkeypatch, 1, 2)
    assert klassify("status", exp, small_data.features) == 0
    text = capsys.readouterr().out
    assert f"{model}: score-val, 8 shards, run without --launcher" in text
    assert f"{small_data.features / 'mouth/val'}: extract, " in text
    assert klassify("merge", exp, "--split", "val") == 0
    assert (model / "scores/val.clips.tsv").exists()
    assert klassify("merge", exp, "--split", "testB") == 2


def test_status_shows_shards_by_hand_beside_those_of_jobs(
    model, scoring, pretended, monkeypatch, capsys
):
    unmerged(scoring, monkeypatch, 1, 2)
    assert klassify(*scoring[:3], "testA", *scoring[4:], "--launcher", "slurm") == 0
    begun = model / "scores/testA.parts"  # its first task has just begun
    begun.mkdir()
    assert klassify("status", model) == 1
    text = capsys.readouterr().out
    assert "score-testA, 1 shard\n  missing" in text
    assert "score-val, 8 shards, run without --launcher\n  done         8" in text
    assert klassify("merge", model) == 2
    assert "1 of 1 shards are missing" in capsys.readouterr().err
    shutil.rmtree(model / "slurm")
    assert klassify("merge", model, "--split", "val") == 0 and klassify("status", model) == 0
    begun.rmdir()
    assert klassify("merge", model, "--split", "val") == 0 and klassify("status", model) == 0
    assert klassify("merge", model, "--split", "testA") == 2


def test_parts_of_different_settings_are_refused_by_name(
    model, scoring, monkeypatch, capsys, no_slurm
):
    unmerged(scoring, monkeypatch, 1)
    write_other_settings(model)
    capsys.readouterr()
    assert klassify("merge", model) == 2 and klassify("status", model) == 1
    for text in capsys.readouterr():
        assert "approximate: " in text and "None" in text and "True" in text and "--force" in text


def test_scores_that_are_merged_while_status_looks_are_done(model, scoring, monkeypatch):
    unmerged(scoring, monkeypatch, 1, 2)
    found = chunks.Parts.found

    def late(folder, split):
        monkeypatch.setattr(chunks.Parts, "found", found)
        shards.merge(folder, split)
        return found(folder, split)

    monkeypatch.setattr(chunks.Parts, "found", late)
    assert work.ScoreWork(model, 2, "val").done() == {1, 2}
    assert not (model / "scores/val.parts").exists()


def test_status_looks_two_levels_down_and_past_bad_folders(small_data, tmp_path, pretended, capsys):
    exp = tmp_path / "exp"
    one, other = (Extraction(small_data, exp / name) for name in ("a", "seed-2/b"))
    assert one.launch() == 0 and other.launch() == 0
    one.shard(1, 2, 3, 4)
    assert klassify("merge", one.out) == 0
    capsys.readouterr()
    assert klassify("status", exp) == 1
    assert f"{other.out}: extract" in capsys.readouterr().out
    assert klassify("status", tmp_path / "none", one.out) == 2
    captured = capsys.readouterr()
    assert "does not exist" in captured.err and "done         4" in captured.out
    (tmp_path / "file").touch()
    assert klassify("status", tmp_path / "file") == 2
    assert "not a folder" in capsys.readouterr().err


def test_status_and_merge_of_shards_that_were_run_by_hand(extraction, tmp_path, no_slurm, capsys):
    extraction.shard(1, 3, 4)
    assert klassify("status", extraction.out) == 1
    assert "missing      1  2" in capsys.readouterr().out
    assert klassify("merge", extraction.out) == 2
    assert "1 of 4 shards are missing: 2" in capsys.readouterr().err
    extraction.shard(2)
    assert klassify("status", extraction.out) == 0 and klassify("resume", extraction.out) == 2
    capsys.readouterr()
    assert klassify("merge", extraction.out) == 0
    assert "12 clips in 4 shards" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert klassify("status", tmp_path) == 0 and klassify("status", tmp_path / "empty") == 2


@pytest.mark.parametrize(
    ("first", "second", "other_list", "said"),
    [
        (["a", "b"], ["b"], "x", "b (in part-1-of-2-0.parquet and part-2-of-2-0.parquet)"),
        (["a", "b"], ["c"], "y", "list: 'x' in the first, 'y' in the second"),
        (["a"], ["b"], "x", "3 clips, the shards 2"),
    ],
)
def test_merge_refuses_repeated_missing_and_foreign_clips(
    tmp_path, capsys, first, second, other_list, said
):
    for i, (files, name) in enumerate([(first, "x"), (second, other_list)], start=1):
        features = np.zeros((2, 8), np.float32), np.ones(2, bool)
        rows = [kind.MouthRow(file, 25.0, *features, "") for file in files]
        settings = {"kind": "mouth", "list": name, "clips": 3}
        features_shards.write_part(tmp_path, Place(i, 2, 0, 1), rows, settings, "inputs")
    assert klassify("merge", tmp_path) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("numbers", [[1], [1, 2, 3], [1, 3], [1, 2, 4, 6, 7, 8, 1000]])
def test_spans_of_shards_can_be_read_back(numbers):
    assert work.unspanned(work.spans(numbers)) == set(numbers)


def test_a_record_is_read_as_written_and_other_json_is_refused(tmp_path):
    extract = work.ExtractWork(tmp_path, 4)
    record = Record(extract, ["extract"], "/", Options(), [Submission(7, "1-4")])
    record.save()
    path = record.folder / "job.json"
    assert read_record(path) == record
    for content in ({}, json.loads(path.read_text()) | {"command": "evaluate"}):
        path.write_text(json.dumps(content))
        with pytest.raises(KlassifyError, match="not a record of submitted jobs .KeyError"):
            read_record(path)


def test_merging_a_training_says_whether_it_is_there(tmp_path):
    training = work.TrainWork(tmp_path, 1)
    with pytest.raises(KlassifyError, match="missing"):
        training.merge()
    (tmp_path / "training.json").touch()
    assert training.merge() == f"{tmp_path}: trained"


@pytest.mark.parametrize("recipe", ["klassify", "multibranch"])
def test_recipes_send_their_long_steps_to_the_cluster(recipe):
    site = "shards=8 gpus=2 nodes=3 partition=cpu gpu_partition=gpu account=a modules=cuda/12"
    stages = "--stage 1 --stop-stage 3 data=demo dry=1 launcher=slurm sbatch=--qos=long"
    command = [ROOT / f"recipes/{recipe}/run.sh", *stages.split(), *site.split()]
    done = ran(command, timeout=60)
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line[2:]) for line in done.stdout.splitlines() if line.startswith("+ ")]
    sent = [command for command in commands if "--launcher" in command]
    assert {command[1] for command in sent} == {"extract", "score", "train"}
    for command in sent:
        on_gpu = command[1] in ("train", "score") or "lmm" in command
        assert ("--sbatch-arg=--partition=gpu" in command) == on_gpu
        assert {"--sbatch-arg=--account=a", "--sbatch-arg=--qos=long", "cuda/12"} <= set(command)
    train = next(command for command in commands if command[1] == "train")
    assert train[train.index("--nodes") + 1] == "3" and train[train.index("--gpus") + 1] == "2"
    assert "--wait" in train
