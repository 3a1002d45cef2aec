"""Launching without a cluster: scripts and their quoting, status, resume and merge, against a
pretended Slurm.
"""

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
from places import ROOT
from small_systems import make_system

from klassify import cli
from klassify.cluster import slurm, submit, work
from klassify.cluster.options import Options, added, without_launcher
from klassify.cluster.record import Record, Submission, read_record
from klassify.cluster.script import directive
from klassify.cluster.survey import survey
from klassify.errors import Interrupted, KlassifyError
from klassify.features import shards as features_shards
from klassify.features.mouth import kind
from klassify.features.parts import Place, parts_in
from klassify.models.weights.load import save_weights
from klassify.scores import chunks, shards
from klassify.systems import system
from klassify.systems.experiment import load_experiment, save_config
from klassify.training.ranks import explained

TCN = ROOT / "recipes/klassify/conf/demo/tcn.yaml"
SHARDS = 4

# notes its arguments, one a line, and gives job ids from 101 on
SBATCH = """#!/bin/bash
printf '%s\\n' --- "$@" >> "$PRETENDED_SLURM/submitted"
echo $((100 + $(grep -c -- --- "$PRETENDED_SLURM/submitted")))
"""
PRETENDED = {
    "sbatch": SBATCH,
    "squeue": '#!/bin/bash\ncat "$PRETENDED_SLURM/queue" 2> /dev/null || true\n',
    "sinfo": (
        '#!/bin/bash\ncd "$PRETENDED_SLURM"; echo "$@" >> asked-of-nodes\ncat nodes 2> /dev/null ||'
        " true\n"
    ),
    "scontrol": (
        '#!/bin/bash\necho "$@" >> "$PRETENDED_SLURM/controlled"\necho "MaxArraySize            ='
        ' 1001"\n'
    ),
    "scancel": '#!/bin/bash\necho "$@" >> "$PRETENDED_SLURM/cancelled"\n',
}


class Pretended:
    """What was submitted, and what squeue shall say."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def submitted(self) -> list[list[str]]:
        path = self.folder / "submitted"
        if not path.exists():
            return []
        return [block.splitlines() for block in path.read_text().split("---\n")[1:]]

    def queue(self, *rows: str) -> None:
        """rows: id|array job|index|state|reason|time left|node|partition|name."""
        (self.folder / "queue").write_text("".join(f"{row}\n" for row in rows))


@pytest.fixture
def pretended(tmp_path, monkeypatch) -> Pretended:
    folder = tmp_path / "slurm bin"
    folder.mkdir()
    for name, text in PRETENDED.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PRETENDED_SLURM", str(folder))
    slurm.largest_index.cache_clear()
    yield Pretended(folder)
    slurm.largest_index.cache_clear()


@pytest.fixture
def no_slurm(monkeypatch, tmp_path):
    (tmp_path / "no bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "no bin"))
    slurm.largest_index.cache_clear()


def extract(small_data, out: Path, *more: str) -> int:
    return cli.main(
        [
            "extract",
            "--kind",
            "audio",
            "--list",
            str(small_data.lists / "testA.tsv"),
            "--root",
            str(small_data.media),
            "--out",
            str(out),
            *more,
        ]
    )


def launch(small_data, out: Path, *more: str) -> int:
    return extract(small_data, out, "--launcher", "slurm", "--shards", str(SHARDS), *more)


def shard(small_data, out: Path, *numbers: int) -> None:
    for i in numbers:
        assert extract(small_data, out, "--jobs", "1", "--shard", f"{i}/{SHARDS}") == 0


def queued(out: Path, index: int, state: str, reason: str = "None", job: int = 101) -> str:
    name = read_record(out / "slurm/extract/job.json").name
    return f"{job}_{index}|{job}|{index}|{state}|{reason}|1:00:00|n1|cpu|{name}"


def merge_row(out: Path, job: int) -> str:
    return (
        f"{job}|{job}|N/A|PD|Dependency|1:00| "
        f" |cpu|{read_record(out / 'slurm/extract/job.json').merge_name}"
    )


# ------------------------------------------------------------------------------ scripts


def test_dry_run_shows_scripts_and_commands_and_touches_nothing(
    small_data, tmp_path, pretended, capsys
):
    out = tmp_path / "out"
    assert (
        launch(
            small_data,
            out,
            "--dry-run",
            "--max-parallel",
            "2",
            "--time",
            "02:00:00",
            "--sbatch-arg=--partition=cpu",
        )
        == 0
    )
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
    assert not out.exists() and not pretended.submitted


def test_dry_run_needs_no_slurm(small_data, tmp_path, no_slurm, capsys):
    assert launch(small_data, tmp_path / "out", "--dry-run") == 0
    assert "sbatch --parsable --array=1-4" in capsys.readouterr().out
    assert launch(small_data, tmp_path / "out") == 2
    assert "no sbatch" in capsys.readouterr().err


def test_array_and_merge_job_are_submitted_with_lists(small_data, tmp_path, pretended):
    out = tmp_path / "it's $HOME #1; touch x" / "train"
    assert launch(small_data, out, "--sbatch-arg=--comment=a b", "--module", "m/1; touch y") == 0
    array, merge = pretended.submitted
    assert array == ["--parsable", "--array=1-4", str(out / "slurm/extract/array.sh")]
    assert merge == [
        "--parsable",
        "--dependency=afterok:101",
        "--kill-on-invalid-dep=yes",
        str(out / "slurm/extract/merge.sh"),
    ]
    record = json.loads((out / "slurm/extract/job.json").read_text())
    assert (
        record["submissions"] == [{"job": 101, "shards": "1-4", "offset": 0}]
        and record["merge_job"] == 102
    )


def test_the_script_runs_the_shard_under_hostile_names(
    small_data, tmp_path, pretended, monkeypatch
):
    """As Slurm would: the text itself, in a shell, with the variables of a task."""
    out = tmp_path / 'it\'s $(touch x) `touch x` "q" #1; touch x' / "train"
    assert launch(small_data, out) == 0
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "101"}
    script = out / "slurm/extract/array.sh"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    done = subprocess.run(
        ["bash", script], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (
        work.ExtractWork(out, SHARDS).done() == {2}
        and "shard 2/4: ended with status 0" in done.stdout
    )
    shifted = subprocess.run(
        ["bash", script, "2"], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert shifted.returncode == 0 and work.ExtractWork(out, SHARDS).done() == {2, 4}
    assert not (tmp_path / "x").exists() and not (ROOT / "x").exists() and not Path("x").exists()


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Python 3.10 cannot leave the working directory out"
)
def test_scripts_run_no_code_of_the_folder_that_the_command_was_given_in(
    small_data, tmp_path, pretended, monkeypatch
):
    (tmp_path / "numpy.py").write_text(
        f"open({str(tmp_path / 'marker')!r}, 'w'); raise SystemExit(3)"
    )
    monkeypatch.chdir(tmp_path)
    assert launch(small_data, tmp_path / "out", "--shards", "1") == 0
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "101"}
    environment.pop("PYTHONSAFEPATH", None)
    for script in ("array.sh", "merge.sh"):
        done = subprocess.run(
            ["bash", tmp_path / "out/slurm/extract" / script], capture_output=True, env=environment
        )
        assert done.returncode == 0, done.stderr.decode()
    assert not (tmp_path / "marker").exists()


def test_the_script_gives_up_after_the_restarts(small_data, tmp_path, pretended):
    out = tmp_path / "out"
    assert launch(small_data, out, "--max-restarts", "2") == 0
    environment = os.environ | {
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_ARRAY_JOB_ID": "101",
        "SLURM_RESTART_COUNT": "3",
    }
    done = subprocess.run(
        ["bash", out / "slurm/extract/array.sh"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1 and "given up after 2 restarts" in done.stdout


def test_options_that_are_added_replace_those_of_the_same_thing():
    site = ("--mem-per-cpu=4G", "--qos=x", "--account=a")
    assert added(site, ["--mem=16G"]) == ("--qos=x", "--account=a", "--mem=16G")
    assert added(("--mem=1G",), ["--mem-per-gpu=2G"]) == ("--mem-per-gpu=2G",)
    assert (
        added(site, ["--qos=y"]) == ("--mem-per-cpu=4G", "--account=a", "--qos=y")
        and added(site, []) == site
    )


@pytest.mark.parametrize("text", ["--partition=gpu", "--mem=4G", "--comment=a \"b\" 'c' \\ #d"])
def test_directives_are_one_word_to_sbatch(text):
    """Slurm's rule: quotes as in a shell, a backslash escapes everywhere, # starts a comment
    outside quotes.
    """
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
def test_what_cannot_be_launched_is_refused_by_name(
    small_data, tmp_path, pretended, capsys, option, named
):
    assert launch(small_data, tmp_path / "out", *option) == 2
    assert named in capsys.readouterr().err and not pretended.submitted


@pytest.mark.parametrize(
    "option",
    [
        ["--dry-run"],
        ["--wait"],
        ["--shards", "4"],
        ["--max-parallel", "2"],
        ["--gpus", "1"],
        ["--time", "1"],
        ["--cpus", "1"],
        ["--max-restarts", "0"],
        ["--grace", "0"],
        ["--sbatch-arg=--qos=x"],
        ["--module", "m"],
    ],
    ids=lambda words: words[0],
)
def test_an_option_of_the_launcher_is_refused_without_it(
    small_data, tmp_path, pretended, capsys, option
):
    out = tmp_path / "out"
    assert extract(small_data, out, "--force", *option) == 2
    assert (
        f"{option[0].partition('=')[0]} goes with --launcher slurm" in capsys.readouterr().err
        and not out.exists()
    )


def test_a_dry_run_without_the_launcher_trains_nothing(small_data, tmp_path, capsys):
    asked = [
        "train",
        str(TCN),
        "--out",
        str(tmp_path / "tcn"),
        *small_data.arguments,
        "--force",
        "--dry-run",
    ]
    assert cli.main(asked) == 2
    assert "--dry-run" in capsys.readouterr().err and not (tmp_path / "tcn").exists()


def test_lmm_features_are_checked_for_the_device_of_a_task(
    small_data, tmp_path, pretended, monkeypatch, capsys
):
    """The machine that submits has no GPU, on which weights are float16 and not float32."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out, seen = tmp_path / "out", []
    monkeypatch.setattr(
        "klassify.commands.extract.parts_there",
        lambda out, settings, n: seen.append(settings["precision"]),
    )
    monkeypatch.setattr(
        "klassify.features.lmm.load.check_bits", lambda bits, device: seen.append(device.type)
    )
    asked = ("--launcher", "slurm", "--shards", "2", "--kind", "lmm", "--lmm", "tiny")
    for more in (
        [],
        ["--gpus", "1"],
        ["--device", "cuda"],
        ["--sbatch-arg=--gres=gpu:a100:1"],
        ["--gpus", "1", "--load-in", "4"],
        ["--gpus", "1", "--device", "cpu"],
    ):
        assert extract(small_data, out, *asked, "--dry-run", *more) == 0
    assert seen[::2] == ["cpu", "cuda", "cuda", "cuda", "cuda", "cpu"]
    assert seen[1::2][:4] == ["float32", "float16", "float16", "float16"] and seen[-1] == "float32"
    assert (
        extract(small_data, out, *asked, "--device", "cud") == 2
        and "'cud'" in capsys.readouterr().err
    )


def test_other_settings_are_refused_before_anything_is_submitted(
    small_data, tmp_path, pretended, capsys
):
    shard(small_data, tmp_path / "out", 1)
    assert launch(small_data, tmp_path / "out", "--chunk", "7") == 2
    assert "chunk" in capsys.readouterr().err and not pretended.submitted


def test_long_lists_of_shards_become_several_arrays(small_data, tmp_path, pretended, monkeypatch):
    assert (
        extract(
            small_data,
            tmp_path / "out",
            "--launcher",
            "slurm",
            "--shards",
            "1024",
            "--max-parallel",
            "256",
        )
        == 0
    )
    first, second, merge = pretended.submitted
    assert (
        first[1] == "--array=1-1000%250" and second[1] == "--array=1-24%6" and second[-1] == "1000"
    )
    assert merge[1] == "--dependency=afterok:101:102"
    assert read_record(tmp_path / "out/slurm/extract/job.json").log_of(1003).name == "102_3.log"


def test_a_task_runs_the_command_without_the_launcher():
    argv = [
        "--list",
        "a.tsv",
        "--launcher",
        "slurm",
        "--shards=8",
        "--time",
        "1",
        "--force",
        "--sbatch-arg=--x=y",
        "--wait",
    ]
    assert without_launcher(argv) == ["--list", "a.tsv"]
    assert without_launcher(["c.yaml", "--nodes", "2", "a.b=1", "--gpus=4"], training=True) == [
        "c.yaml",
        "a.b=1",
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("02:00:00", 7200), ("1-12", 129600), ("1-00:30", 88200)],
)
def test_time_limits_are_read_as_slurm_does(text, seconds):
    assert Options(time=text).limit_s == seconds
    assert Options(time=text).grace_s <= seconds / 2


def make_model(folder: Path) -> Path:
    """A system that was never trained."""
    experiment = load_experiment(TCN, ["model.init_args.hidden=4"], seed=1)
    save_config(folder, experiment.resolved)
    save_weights(experiment.model, folder / "model.safetensors")
    system.write_system(folder, system.System(folder.name, "model", "visual", "clip", "log_odds"))
    return folder


def test_each_model_and_split_is_scored_by_an_array(
    small_data, tmp_path, pretended, monkeypatch, capsys
):
    monkeypatch.setattr(chunks, "CHUNK_CLIPS", 4)
    first, second = (make_model(tmp_path / name) for name in ("a", "b"))
    derived = make_system(tmp_path / "c", [0.1, 0.2, 0.3, 0.4], kind="calibrated", inputs=["../a"])
    asked = [
        "--split",
        "val,testA",
        *small_data.arguments,
        "--launcher",
        "slurm",
        "--shards",
        "3",
        "--gpus",
        "1",
    ]
    assert cli.main(["score", str(first), str(second), *asked]) == 0
    assert len(pretended.submitted) == 8  # an array and a merge job for each
    record = read_record(second / "slurm/score-testA/job.json")
    assert record.arguments == [
        "score",
        str(second),
        *small_data.arguments,
        "--split",
        "testA",
        "--launcher",
        "local",
    ]
    assert "#SBATCH --gres=gpu:1" in (record.folder / "array.sh").read_text()
    assert "gpu" not in (record.folder / "merge.sh").read_text()
    capsys.readouterr()
    assert cli.main(["status", str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("missing      3  1-3") == 4
    assert cli.main(["score", str(first), str(derived), *asked]) == 2
    assert "--wait" in capsys.readouterr().err


def test_folders_of_systems_may_end_with_a_slash(small_data, tmp_path, pretended):
    models = [make_model(tmp_path / name) for name in "ab"]
    asked = ["--split", "val", *small_data.arguments, "--launcher", "slurm", "--shards", "3"]
    assert cli.main(["score", *(f"{model}/" for model in models), *asked]) == 0
    for model in models:
        arguments = read_record(model / "slurm/score-val/job.json").arguments
        assert arguments == [
            "score",
            str(model),
            *small_data.arguments,
            "--split",
            "val",
            "--launcher",
            "local",
        ]


def test_the_beginning_of_an_option_is_none(small_data, tmp_path, pretended, capsys):
    with pytest.raises(SystemExit):
        launch(small_data, tmp_path / "out", "--forc")
    assert "--forc" in capsys.readouterr().err and not pretended.submitted


def test_the_first_command_of_the_page_times_a_hundred_clips(small_data, tmp_path):
    """With small data for the real one, and its audio, since Face Mesh takes long."""
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
    done = subprocess.run(
        ["bash", "-euc", block], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0 and "shard 1/1 has" in done.stdout, done.stderr


def test_a_training_is_one_job_over_nodes(small_data, tmp_path, pretended, capsys):
    config, out = ROOT / "recipes/klassify/conf/demo/tcn.yaml", tmp_path / "tcn"
    asked = [
        "train",
        str(config),
        "train.epochs=2",
        "--out",
        str(out),
        *small_data.arguments,
        "--launcher",
        "slurm",
    ]
    assert (
        cli.main(
            [*asked, "--nodes", "2", "--gpus", "4", "--max-restarts", "5", "--time", "1-00:00:00"]
        )
        == 0
    )
    assert pretended.submitted == [["--parsable", str(out / "slurm/train/job.sh")]]
    text = (out / "slurm/train/job.sh").read_text()
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
    assert subprocess.run(["bash", "-n", out / "slurm/train/job.sh"]).returncode == 0
    assert cli.main([*asked, "train.epoch=2"]) == 2  # a mistake is found before the queue
    assert "epoch" in capsys.readouterr().err and len(pretended.submitted) == 1


# ------------------------------------------------------------------------------ nothing lost,
# nothing mixed


def test_force_replaces_only_what_slurm_has_taken(small_data, tmp_path, pretended, capsys):
    out = tmp_path / "out"
    shard(small_data, out, 1, 2, 3, 4)
    parts = sorted(path.name for path in out.glob("part-*"))
    (pretended.folder / "sbatch").write_text("#!/bin/bash\necho 'invalid partition' >&2; exit 1\n")
    assert launch(small_data, out, "--force") == 2
    assert "invalid partition" in capsys.readouterr().err
    assert sorted(path.name for path in out.glob("part-*")) == parts
    (pretended.folder / "sbatch").write_text(SBATCH)
    (pretended.folder / "squeue").write_text(
        "#!/bin/bash\necho 'Unable to contact slurm controller' >&2; exit 1\n"
    )
    assert launch(small_data, out, "--force") == 2
    assert sorted(path.name for path in out.glob("part-*")) == parts and not pretended.submitted
    (pretended.folder / "squeue").write_text(PRETENDED["squeue"])
    assert launch(small_data, out, "--force") == 0
    assert pretended.submitted[0][:2] == ["--hold", "--parsable"] and not list(out.glob("part-*"))
    assert (pretended.folder / "controlled").read_text().splitlines()[-1] == "release 101"


def test_force_is_the_cure_of_parts_of_another_number_and_of_damaged_ones(
    small_data, tmp_path, pretended, capsys
):
    out = tmp_path / "out"
    assert extract(small_data, out, "--jobs", "1") == 0 and launch(small_data, out) == 2
    assert "n: 1 there, 4 now" in capsys.readouterr().err
    assert launch(small_data, out, "--force", "--dry-run") == 0 and parts_in(out)
    assert launch(small_data, out, "--force") == 0 and not parts_in(out)
    shard(small_data, out, 1, 2)
    next(out.glob("part-2-*.parquet")).write_bytes(b"PAR1")
    pretended.queue(queued(out, 3, "R"))
    capsys.readouterr()
    assert (
        launch(small_data, out, "--force") == 2 and "It is in the queue" in capsys.readouterr().err
    )
    assert (
        launch(small_data, out, "--force", "--chunk", "1") == 2
        and "Other work" in capsys.readouterr().err
    )
    pretended.queue()
    assert launch(small_data, out, "--force") == 0 and not parts_in(out)


def test_force_replaces_parts_of_scores_of_mixed_settings(
    small_data, tmp_path, pretended, monkeypatch, capsys
):
    monkeypatch.setattr(chunks, "CHUNK_CLIPS", 4)
    model = make_model(tmp_path / "tcn")
    asked = ["score", str(model), "--split", "val", *small_data.arguments]
    assert cli.main([*asked, "--shard", "1/2"]) == 0
    made = next((model / "scores/val.parts").glob("chunk-*"))
    shutil.copy(made, made.with_name(f"{made.stem[:-16]}{'0' * 16}.parquet"))
    assert cli.main([*asked, "--launcher", "slurm", "--force"]) == 0
    assert len(pretended.submitted) == 2 and not (model / "scores/val.parts").exists()


@pytest.mark.parametrize(
    ("status", "again"), [(2, False), (Interrupted.status, True), (137, True), (0, False)]
)
def test_a_training_that_lost_a_rank_is_started_again_and_a_mistake_is_not(
    small_data, tmp_path, pretended, status, again
):
    out = tmp_path / "tcn"
    assert (
        cli.main(
            ["train", str(TCN), "--out", str(out), *small_data.arguments, "--launcher", "slurm"]
        )
        == 0
    )
    for name, text in (("srun", f"exit {status}"), ("sleep", "exit 0")):
        (pretended.folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (pretended.folder / name).chmod(stat.S_IRWXU)
    job = subprocess.run(
        ["bash", out / "slurm/train/job.sh"], env=os.environ | {"SLURM_JOB_ID": "101"}, check=False
    )
    asked = pretended.folder / "controlled"
    assert (
        job.returncode == status
        and ("requeue 101" in (asked.read_text() if asked.exists() else "")) == again
    )


def test_a_lost_connection_has_a_status_of_its_own(monkeypatch, capsys):
    error = explained(
        RuntimeError("[../gloo/pair.cc:534] Connection closed by peer [10.0.0.2]:1. More")
    )
    monkeypatch.setattr("klassify.commands.status.run", lambda args: (_ for _ in ()).throw(error))
    assert cli.main(["status", "x"]) == 75 and "last checkpoint" in capsys.readouterr().err
    monkeypatch.setattr(
        "klassify.commands.status.run",
        lambda args: (_ for _ in ()).throw(KlassifyError("A mistake.")),
    )
    assert cli.main(["status", "x"]) == 2


def test_a_job_that_cannot_be_released_is_named(small_data, tmp_path, pretended, capsys):
    out = tmp_path / "out"
    shard(small_data, out, 1, 2, 3, 4)
    (pretended.folder / "scontrol").write_text(
        '#!/bin/bash\n[ "$1" = release ] && exit 1\necho MaxArraySize = 1001\n'
    )
    assert launch(small_data, out, "--force") == 2
    assert "fix:   scontrol release 101" in capsys.readouterr().err
    pretended.queue(*(queued(out, i, "PD", "JobHeldUser") for i in range(1, 5)))
    assert cli.main(["status", str(out)]) == 1
    assert (
        "held         4  1-4" in (text := capsys.readouterr().out)
        and "scontrol release 101_1," in text
    )


def test_force_gives_back_what_slurm_took_before_it_refused(
    small_data, tmp_path, pretended, capsys
):
    """Two arrays, since the indices are bounded; the second one is refused."""
    out = tmp_path / "out"
    shard(small_data, out, 1)
    (pretended.folder / "scontrol").write_text("#!/bin/bash\necho 'MaxArraySize = 3'\n")
    once = '[ -e "$PRETENDED_SLURM/once" ] && exit 1\ntouch "$PRETENDED_SLURM/once"\n'
    (pretended.folder / "sbatch").write_text(SBATCH + once)
    assert launch(small_data, out, "--force") == 2
    assert len(pretended.submitted) == 2 and (
        pretended.folder / "cancelled"
    ).read_text().split() == ["101"]
    assert list(out.glob("part-1-*"))


def test_other_work_on_the_same_folder_is_refused_while_it_is_in_the_queue(
    small_data, tmp_path, pretended, capsys
):
    out = tmp_path / "out"
    assert launch(small_data, out) == 0
    pretended.queue(*(queued(out, i, "R") for i in range(1, 5)), merge_row(out, 102))
    assert launch(small_data, out) == 0 and launch(small_data, out, "--time", "09:00:00") == 0
    capsys.readouterr()
    assert launch(small_data, out, "--chunk", "1") == 2
    said = capsys.readouterr().err
    assert (
        "--chunk 1" in said
        and "scancel --name=klassify-extract-out" in said
        and len(pretended.submitted) == 2
    )
    pretended.queue()
    assert launch(small_data, out, "--chunk", "1") == 0


def test_a_finished_training_of_another_config_is_refused(small_data, tmp_path, pretended, capsys):
    out = tmp_path / "tcn"
    asked = ["train", str(TCN), "train.epochs=1", "--out", str(out), *small_data.arguments]
    assert cli.main([*asked, "--accelerator", "cpu"]) == 0
    launched = ["--accelerator", "cpu", "--launcher", "slurm"]
    assert cli.main([*asked, *launched]) == 0 and not pretended.submitted
    capsys.readouterr()
    assert cli.main([*asked, "--seed", "7", *launched]) == 2
    assert "seed: 1 there, 7 now" in capsys.readouterr().err
    assert cli.main([*asked, "--devices", "4", *launched]) == 2
    assert "--gpus" in capsys.readouterr().err and not pretended.submitted


def test_scores_of_other_settings_are_refused_and_another_aggregation_is_made_at_once(
    small_data, tmp_path, pretended, capsys
):
    model = make_model(tmp_path / "tcn")
    asked = ["score", str(model), "--split", "val", *small_data.arguments]
    assert cli.main(asked) == 0
    launched = [*asked, "--launcher", "slurm"]
    assert (
        cli.main(launched) == 0
        and cli.main([*launched, "--aggregate", "max"]) == 0
        and not pretended.submitted
    )
    assert (
        "# settings" in (text := (model / "scores/val.clips.tsv").read_text()) and '"max"' in text
    )
    capsys.readouterr()
    assert cli.main([*launched, "--approximate"]) == 2
    assert "approximate" in capsys.readouterr().err


def test_a_short_list_makes_no_empty_shards_of_scores(small_data, tmp_path, pretended):
    model = make_model(tmp_path / "tcn")
    asked = [
        "score",
        str(model),
        "--split",
        "val",
        *small_data.arguments,
        "--launcher",
        "slurm",
        "--shards",
        "3",
    ]
    assert cli.main(asked) == 0
    assert pretended.submitted[0][1] == "--array=1"


def test_options_count_whatever_variables_say_and_others_are_a_sites_defaults(
    small_data, tmp_path, pretended, monkeypatch
):
    variables = (
        "SBATCH_TIMELIMIT",
        "SBATCH_JOB_NAME",
        "SBATCH_PARTITION",
        "SBATCH_QOS",
        "SQUEUE_PARTITION",
    )
    for name in (*variables, "SLURM_JOB_ID", "SLURM_NTASKS"):
        monkeypatch.setenv(name, "7")
    for name in ("sbatch", "squeue"):
        text = PRETENDED[name].replace(
            "#!/bin/bash\n", f'#!/bin/bash\nenv > "$PRETENDED_SLURM/{name}-saw"\n'
        )
        (pretended.folder / name).write_text(text)
    assert launch(small_data, tmp_path / "out", "--sbatch-arg=--partition=mine") == 0
    saw = {name: (pretended.folder / f"{name}-saw").read_text() for name in ("sbatch", "squeue")}
    assert "SBATCH_QOS=7" in saw["sbatch"] and "SLURM_NTASKS" not in saw["sbatch"]
    assert not any(
        name in saw["sbatch"]
        for name in ("SBATCH_TIMELIMIT", "SBATCH_JOB_NAME", "SBATCH_PARTITION")
    )
    assert "SQUEUE_PARTITION" not in saw["squeue"]


def test_cpus_of_a_task_are_its_processes(small_data, tmp_path, pretended):
    out = tmp_path / "out"
    assert launch(small_data, out, "--jobs", "3") == 0
    text = (out / "slurm/extract/array.sh").read_text()
    assert "--cpus-per-task=3" in text and text.count("--jobs") == 1 and "--jobs 3" in text
    assert cli.main(["resume", str(out), "--cpus", "5"]) == 0
    text = (out / "slurm/extract/array.sh").read_text()
    assert "--cpus-per-task=5" in text and "--jobs 5" in text and "--jobs 3" not in text


def test_status_goes_on_after_a_folder_that_is_none(small_data, tmp_path, pretended, capsys):
    out = tmp_path / "out"
    shard(small_data, out, 1, 2, 3, 4)
    capsys.readouterr()
    assert cli.main(["status", str(tmp_path / "none"), str(out)]) == 2
    captured = capsys.readouterr()
    assert "does not exist" in captured.err and "done         4" in captured.out
    (tmp_path / "file").touch()
    assert (
        cli.main(["status", str(tmp_path / "file")]) == 2 and "no folder" in capsys.readouterr().err
    )


# ------------------------------------------------------------------------------ waiting and merging


def while_waiting(monkeypatch, happens) -> None:
    """`happens` instead of every pause of a waiting command."""
    clock = types.SimpleNamespace(sleep=lambda _: happens(), monotonic=time.monotonic)
    monkeypatch.setattr(submit, "time", clock)


def test_waiting_ends_with_the_files_or_with_what_is_missing(
    small_data, tmp_path, pretended, monkeypatch, capsys
):
    out = tmp_path / "out"
    while_waiting(monkeypatch, lambda: shard(small_data, out, 1, 2, 3, 4))
    assert launch(small_data, out, "--wait") == 0 and (out / "failures.tsv").exists()
    while_waiting(monkeypatch, lambda: None)
    assert launch(small_data, tmp_path / "other", "--wait") == 2
    assert "missing      4  1-4" in capsys.readouterr().err


def test_a_merge_job_that_can_never_begin_is_not_waited_for(
    small_data, tmp_path, pretended, monkeypatch, capsys
):
    out = tmp_path / "out"

    def done():
        shard(small_data, out, 1, 2, 3, 4)
        pretended.queue(merge_row(out, 102).replace("Dependency", "PartitionTimeLimit"))

    while_waiting(monkeypatch, done)
    assert launch(small_data, out, "--wait") == 0 and (out / "failures.tsv").exists()
    assert (pretended.folder / "cancelled").read_text().split() == ["102"]
    (out / "failures.tsv").unlink()
    assert (
        cli.main(["resume", str(out)]) == 0
        and (out / "failures.tsv").exists()
        and len(pretended.submitted) == 2
    )


def test_strict_tasks_that_fail_are_merged_and_who_waits_gets_their_status(
    small_data, tmp_path, pretended, monkeypatch
):
    """One clip of the split has no audio."""
    out = tmp_path / "out"
    arguments = ["--jobs", "1", "--strict"]
    numbers = range(1, SHARDS + 1)
    ends: list[int] = []
    while_waiting(
        monkeypatch,
        lambda: ends.extend(
            extract(small_data, out, *arguments, "--shard", f"{i}/{SHARDS}") for i in numbers
        ),
    )
    assert launch(small_data, out, "--strict", "--wait") == 1 and set(ends) == {0, 1}
    assert (
        pretended.submitted[1][1] == "--dependency=afterany:101" and (out / "failures.tsv").exists()
    )
    assert (
        launch(small_data, out, "--strict", "--wait") == 1
        and launch(small_data, out, "--wait") == 0
    )


def test_resume_here_goes_on_after_a_strict_shard_whose_files_are_whole(
    small_data, tmp_path, pretended
):
    out = tmp_path / "out"
    assert launch(small_data, out, "--strict") == 0
    shard(small_data, out, 1, 3)  # the second has the clip without audio
    assert cli.main(["resume", str(out), "--here"]) == 0 and (out / "failures.tsv").exists()


def test_the_merge_job_asks_for_no_more_than_a_task_and_for_no_gpu(small_data, tmp_path, pretended):
    out = tmp_path / "out"
    of_gpus = (
        "--gpus-per-node=1",
        "--mem-per-gpu=4G",
        "--cpus-per-gpu=2",
        "--gpu-bind=none",
        "--ntasks-per-gpu=1",
        "--tres-per-task=gres/gpu:1",
        "--gres=gpu:1",
        "--gres-flags=enforce-binding",
    )
    asked = [f"--sbatch-arg={option}" for option in (*of_gpus, "--partition=gpu", "--qos=x")]
    assert launch(small_data, out, "--time", "00:20:00", *asked) == 0
    text = (out / "slurm/extract/merge.sh").read_text()
    assert "--time=00:20:00" in text and "--partition=gpu" in text and "--qos=x" in text
    assert not any(option in text for option in of_gpus)
    assert cli.main(["resume", str(out), "--time", "1-00:00:00"]) == 0
    assert "--time=01:00:00" in (out / "slurm/extract/merge.sh").read_text()


def test_waiting_says_once_a_minute_where_it_stands(
    small_data, tmp_path, pretended, monkeypatch, capsys
):
    out, pauses = tmp_path / "out", []

    def pause():
        pauses.append(1)
        pretended.queue(queued(out, 1, "R"), queued(out, 2, "PD", "JobHeldUser"))
        if len(pauses) == 3:
            shard(small_data, out, 1, 2, 3, 4)

    while_waiting(monkeypatch, pause)
    monkeypatch.setattr(submit, "SAY_S", 0.0)
    assert launch(small_data, out, "--wait") == 0
    said = capsys.readouterr().err
    assert "1 running, 1 held, 2 missing" in said and "fix:   scontrol release 101_2" in said


def test_the_time_left_follows_from_shards_that_are_done(small_data, tmp_path, pretended, capsys):
    out = tmp_path / "out"
    assert launch(small_data, out) == 0
    shard(small_data, out, 1)
    (out / "slurm/extract/logs/101_1.log").write_text(
        "== shard 1/4: ended with status 0 after 90 s\n"
    )
    pretended.queue(
        queued(out, 2, "R"), queued(out, 3, "PD", "Priority"), queued(out, 4, "PD", "Priority")
    )
    capsys.readouterr()
    assert cli.main(["status", str(out)]) == 1
    text = capsys.readouterr().out
    assert "1:00:00 at most to the limit" in text and "about 0:04:30 left, at 90 s a shard" in text


def test_scores_whose_last_process_died_before_it_joined_them_are_merged(
    small_data, tmp_path, pretended, monkeypatch, capsys
):
    model = make_model(tmp_path / "tcn")
    asked = ["score", str(model), "--split", "val", *small_data.arguments]
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "CHUNK_CLIPS", 4)
        patch.setattr(shards, "finish", lambda parts: False)
        assert cli.main([*asked, "--shard", "1/2"]) == 0
        assert cli.main(["merge", str(model)]) == 2  # its other half is missing
        assert cli.main([*asked, "--shard", "2/2"]) == 0
        assert (
            cli.main([*asked, "--launcher", "slurm", "--shards", "2"]) == 0
            and not pretended.submitted
        )
    assert (model / "scores/val.clips.tsv").exists() and not (model / "scores/val.parts").exists()
    capsys.readouterr()
    assert (
        cli.main(["status", str(model)]) == 0 and cli.main(["merge", str(model)]) == 0
    )  # the score file tells it
    assert cli.main([*asked, "--launcher", "slurm", "--force"]) == 0
    assert len(pretended.submitted) == 2 and not (model / "scores/val.windows.tsv").exists()


def test_force_of_a_training_clears_its_folder_once_it_is_taken(
    small_data, tmp_path, pretended, capsys
):
    out = tmp_path / "tcn"
    asked = [
        "train",
        str(TCN),
        "train.epochs=1",
        "--out",
        str(out),
        *small_data.arguments,
        "--accelerator",
        "cpu",
    ]
    assert cli.main(asked) == 0 and cli.main([*asked, "--launcher", "slurm", "--force"]) == 0
    assert len(pretended.submitted) == 1 and not (out / "training.json").exists()
    assert cli.main(["status", str(out)]) == 1


# ------------------------------------------------------------------------------ status and resume


def test_status_reads_files_first_and_the_queue_second(small_data, tmp_path, pretended, capsys):
    out = tmp_path / "out"
    assert launch(small_data, out) == 0
    shard(small_data, out, 1)
    pretended.queue(
        queued(out, 1, "R"),
        queued(out, 2, "R"),
        queued(out, 3, "PD", "Resources"),
        queued(out, 4, "PD", "launch_failed_requeued_held"),
    )
    (pretended.folder / "nodes").write_text("n[2-3]|drain|Duplicate jobid\nn1|alloc|none\n")
    states = survey(read_record(out / "slurm/extract/job.json")).states
    assert [states[i][0] for i in range(1, 5)] == ["done", "running", "queued", "held"]
    capsys.readouterr()
    assert cli.main(["status", str(out)]) == 1
    text = capsys.readouterr().out
    assert (
        "launch_failed_requeued_held" in text
        and "scontrol release 101_4" in text
        and "1:00:00" in text
    )
    pretended.queue(queued(out, 4, "PD", "launch_failed_requeued_held"))
    assert cli.main(["status", str(out)]) == 1
    assert "scontrol update nodename=n[2-3] state=resume" in capsys.readouterr().out


def test_nodes_are_looked_at_only_where_a_task_waits_for_them(
    small_data, tmp_path, pretended, capsys
):
    out = tmp_path / "out"
    assert launch(small_data, out) == 0
    (pretended.folder / "nodes").write_text("old[1-9]|down*|bad DIMM, do not resume\n")
    for reason, looked in (
        ("Priority", False),
        ("QOSMaxJobsPerUserLimit", False),
        ("Resources", True),
        ("JobHeldUser", True),
        ("ReqNodeNotAvail, UnavailableNodes:n1", True),
    ):
        pretended.queue(*(queued(out, i, "PD", reason) for i in range(1, 5)), merge_row(out, 102))
        capsys.readouterr()
        assert cli.main(["status", str(out)]) == 1
        assert ("nodename=old[1-9] state=resume" in capsys.readouterr().out) == looked, reason
    asked = (pretended.folder / "asked-of-nodes").read_text().splitlines()
    assert len(asked) == 3 and all("--partition=cpu " in line for line in asked)


def test_a_shard_that_ends_while_status_looks_is_done(small_data, tmp_path, pretended, monkeypatch):
    """Its files were not there at the first look, and it has left the queue at the second."""
    out = tmp_path / "out"
    assert launch(small_data, out) == 0
    pretended.queue(*(queued(out, i, "R") for i in (2, 3, 4)))
    record, ask = read_record(out / "slurm/extract/job.json"), slurm.queue

    def asked(names):
        shard(small_data, out, 1)
        return ask(names)

    monkeypatch.setattr(slurm, "queue", asked)
    assert [survey(record).states[i][0] for i in range(1, 5)] == [
        "done",
        "running",
        "running",
        "running",
    ]


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "klassify extract: The list is broken.\n== shard 2/4: ended with status 2 after 3 s\n",
            "The list is broken",
        ),
        (
            (
                "slurmstepd: error: *** JOB 101 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME"
                " LIMIT ***\n"
            ),
            "time limit",
        ),
        (
            (
                "slurmstepd: error: Detected 1 oom-kill event(s)\n== shard 2/4: ended with status"
                " 137 after 3 s\n"
            ),
            "memory",
        ),
        (
            (
                "klassify train: Another process failed.\nslurmstepd: error: *** STEP 101.0 ON n1"
                " CANCELLED AT 2026-01-01T00:00:00 ***\n== shard 2/4: ended with status 75 after 3"
                " s\nslurmstepd: error: *** JOB 101 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO"
                " JOB REQUEUE ***\n"
            ),
            "status 75: klassify train: Another process failed.",
        ),
        (
            "slurmstepd: error: *** STEP 101.0 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***\n",
            "without a word",
        ),
        (
            (
                "== shard 2/4: ended with status 143 after 3 s\nslurmstepd: error: *** JOB 101 ON"
                " n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***\n"
            ),
            "time limit",
        ),
        ("== shard 2/4: given up after 3 restarts\n", "given up"),
        ("", "without a word"),
    ],
)
def test_what_failed_is_named_with_the_reason(small_data, tmp_path, pretended, capsys, log, reason):
    out = tmp_path / "out"
    assert launch(small_data, out) == 0
    begin = "== shard 2/4: job 101_2, start 0, on n1, 2026-01-01T00:00:00Z\n"
    (out / "slurm/extract/logs/101_2.log").write_text(begin + log)
    found = survey(read_record(out / "slurm/extract/job.json"))
    assert found.states[2][0] == "failed" and reason in found.states[2][1]
    assert found.of("missing") == [1, 3, 4]
    capsys.readouterr()
    assert cli.main(["status", str(out)]) == 1
    assert reason in (text := capsys.readouterr().out) and f"klassify resume {out}" in text


def test_a_folder_has_one_name_however_it_is_written(
    small_data, tmp_path, pretended, monkeypatch, capsys
):
    out, link = tmp_path / "out", tmp_path / "link"
    assert launch(small_data, out) == 0
    link.symlink_to(out)
    pretended.queue(*(queued(out, i, "R") for i in range(1, 5)), merge_row(out, 102))
    monkeypatch.chdir(out)
    for written in (".", "../out", str(link)):
        capsys.readouterr()
        assert cli.main(["status", written]) == 1
        assert "running      4  1-4" in (text := capsys.readouterr().out) and "resume" not in text
        assert cli.main(["resume", written]) == 0 and len(pretended.submitted) == 2


def test_splits_that_begin_alike_have_jobs_of_their_own(tmp_path):
    splits = (f"val_subset_of_the_hard_clips_of_2025_{letter}" for letter in "ab")
    one, two = (
        Record(work.ScoreWork(tmp_path, 2, split), [], "/", Options()).name for split in splits
    )
    assert one != two


def test_resume_submits_what_is_neither_done_nor_queued(small_data, tmp_path, pretended):
    out = tmp_path / "out"
    assert (
        launch(
            small_data, out, "--max-parallel", "3", "--sbatch-arg=--mem=1G", "--sbatch-arg=--qos=x"
        )
        == 0
    )
    shard(small_data, out, 1)
    pretended.queue(queued(out, 3, "R"), merge_row(out, 102))
    assert cli.main(["resume", str(out), "--time", "09:00:00", "--sbatch-arg=--mem=2G"]) == 0
    array, merge = pretended.submitted[2:]
    assert array[1] == "--array=2,4%2" and merge[1] == "--dependency=afterok:103,afterany:101"
    assert (pretended.folder / "cancelled").read_text().split() == ["102"]
    text = (out / "slurm/extract/array.sh").read_text()
    assert (
        all(f"#SBATCH {line}\n" in text for line in ("--time=09:00:00", "--qos=x", "--mem=2G"))
        and "1G" not in text
    )
    # once more, with all of it in the queue
    all_of_it = [*(queued(out, i, "PD", "Priority", 103) for i in (2, 4)), queued(out, 3, "R")]
    pretended.queue(*all_of_it, merge_row(out, 104))
    assert cli.main(["resume", str(out)]) == 0 and len(pretended.submitted) == 4
    # a merge job that was lost
    pretended.queue(*all_of_it)
    assert cli.main(["resume", str(out)]) == 0
    assert [command[1] for command in pretended.submitted[4:]] == ["--dependency=afterany:101:103"]
    # and when all is done: merged at once
    pretended.queue()
    shard(small_data, out, 2, 3, 4)
    assert cli.main(["resume", str(out)]) == 0 and (out / "failures.tsv").exists()
    assert launch(small_data, out) == 0 and len(pretended.submitted) == 5


def test_resume_works_on_this_machine_without_slurm(
    small_data, tmp_path, pretended, monkeypatch, capsys
):
    out = tmp_path / "out"
    assert launch(small_data, out) == 0
    shard(small_data, out, 1, 2, 3)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["status", str(out)]) == 1
    assert "no squeue" in capsys.readouterr().out
    assert cli.main(["resume", str(out), "--here"]) == 0
    assert cli.main(["status", str(out)]) == 0
    assert (out / "failures.tsv").exists()


def unjoined(model: Path, asked: list[str], monkeypatch, *numbers: int) -> None:
    """Score shards of two whose last process does not join them."""
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "CHUNK_CLIPS", 4)
        patch.setattr(shards, "finish", lambda parts: False)
        for i in numbers:
            assert cli.main([*asked, "--shard", f"{i}/2"]) == 0


def test_status_and_merge_find_shards_run_by_hand_in_folders_of_outputs(
    small_data, tmp_path, monkeypatch, capsys
):
    out = make_model(tmp_path / "exp/seed-1/tcn")
    unjoined(out, ["score", str(out), "--split", "val", *small_data.arguments], monkeypatch, 1, 2)
    assert cli.main(["status", str(tmp_path / "exp"), str(small_data.features)]) == 0
    text = capsys.readouterr().out
    assert f"{out}: score-val, 8 shards, run without --launcher" in text
    assert f"{small_data.features / 'mouth/val'}: extract, " in text
    assert cli.main(["merge", str(tmp_path / "exp"), "--split", "val"]) == 0
    assert (out / "scores/val.clips.tsv").exists()
    assert cli.main(["merge", str(tmp_path / "exp"), "--split", "testB"]) == 2


def test_status_tells_of_shards_run_by_hand_beside_what_was_launched(
    small_data, tmp_path, pretended, monkeypatch, capsys
):
    out = make_model(tmp_path / "tcn")
    asked = ["score", str(out), "--split", "val", *small_data.arguments]
    unjoined(out, asked, monkeypatch, 1, 2)
    assert cli.main([*asked[:3], "testA", *asked[4:], "--launcher", "slurm"]) == 0
    (out / "scores/testA.parts").mkdir()  # whose first task has just begun
    assert cli.main(["status", str(out)]) == 1
    text = capsys.readouterr().out
    assert (
        "score-testA, 1 shard\n  missing" in text
        and "score-val, 8 shards, run without --launcher\n  done         8" in text
    )
    assert (
        cli.main(["merge", str(out)]) == 2
        and "1 of 1 shards are missing" in capsys.readouterr().err
    )
    shutil.rmtree(out / "slurm")
    for folder in (out / "scores/testA.parts", None):
        assert (
            cli.main(["merge", str(out), "--split", "val"]) == 0
            and cli.main(["status", str(out)]) == 0
        )
        if folder:
            folder.rmdir()
    assert cli.main(["merge", str(out), "--split", "testA"]) == 2


def test_parts_of_different_settings_are_told_by_their_differences(
    small_data, tmp_path, monkeypatch, capsys, no_slurm
):
    model = make_model(tmp_path / "tcn")
    asked = ["score", str(model), "--split", "val", *small_data.arguments]
    unjoined(model, asked, monkeypatch, 1)
    parts = chunks.Parts.found(model, "val")
    header = dataclasses.replace(
        parts.header, settings=parts.header.settings | {"approximate": True}
    )
    dataclasses.replace(parts, header=header).write(0, *parts.read(0))
    capsys.readouterr()
    assert cli.main(["merge", str(model)]) == 2 and cli.main(["status", str(model)]) == 1
    captured = capsys.readouterr()
    for text in captured:
        assert "(approximate: " in text and "None" in text and "True" in text and "--force" in text


def test_scores_that_are_joined_while_somebody_looks_are_done(small_data, tmp_path, monkeypatch):
    model = make_model(tmp_path / "tcn")
    unjoined(
        model, ["score", str(model), "--split", "val", *small_data.arguments], monkeypatch, 1, 2
    )
    found = chunks.Parts.found

    def late(folder, split):
        monkeypatch.setattr(chunks.Parts, "found", found)
        shards.merge(folder, split)
        return found(folder, split)

    monkeypatch.setattr(chunks.Parts, "found", late)
    assert work.ScoreWork(model, 2, "val").done() == {1, 2}
    assert not (model / "scores/val.parts").exists()


def test_status_of_a_folder_tells_of_all_levels_below_it(small_data, tmp_path, pretended, capsys):
    for out in (tmp_path / "exp/a", tmp_path / "exp/seed-2/b"):
        assert launch(small_data, out) == 0
    shard(small_data, tmp_path / "exp/a", 1, 2, 3, 4)
    assert cli.main(["merge", str(tmp_path / "exp/a")]) == 0
    capsys.readouterr()
    assert cli.main(["status", str(tmp_path / "exp")]) == 1
    assert f"{tmp_path}/exp/seed-2/b: extract" in capsys.readouterr().out


def test_status_of_shards_that_were_run_by_hand(small_data, tmp_path, no_slurm, capsys):
    out = tmp_path / "out"
    shard(small_data, out, 1, 3, 4)
    assert cli.main(["status", str(out)]) == 1
    assert "missing      1  2" in capsys.readouterr().out
    shard(small_data, out, 2)
    assert cli.main(["status", str(out)]) == 0
    assert cli.main(["resume", str(out)]) == 2
    (tmp_path / "empty").mkdir()
    assert (
        cli.main(["status", str(tmp_path)]) == 0
        and cli.main(["status", str(tmp_path / "empty")]) == 2
    )


# ------------------------------------------------------------------------------ merge


def test_merge_names_gaps_duplicates_and_other_settings(small_data, tmp_path, capsys):
    out = tmp_path / "out"
    shard(small_data, out, 1, 3, 4)
    assert cli.main(["merge", str(out)]) == 2
    assert "1 of 4 shards are missing: 2" in capsys.readouterr().err
    shard(small_data, out, 2)
    assert cli.main(["merge", str(out)]) == 0
    assert "12 clips in 4 shards" in capsys.readouterr().out


def mouth_part(folder: Path, place: Place, files: list[str], settings: dict) -> None:
    rows = [
        kind.MouthRow(file, 25.0, np.zeros((2, 8), np.float32), np.ones(2, bool), "")
        for file in files
    ]
    features_shards.write_part(folder, place, rows, settings, "inputs")


def test_merge_refuses_a_clip_that_stands_twice_and_parts_of_other_settings(tmp_path, capsys):
    settings = {"kind": "mouth", "list": "x", "clips": 3}
    mouth_part(tmp_path / "twice", Place(1, 2, 0, 1), ["a", "b"], settings)
    mouth_part(tmp_path / "twice", Place(2, 2, 0, 1), ["b"], settings)
    assert cli.main(["merge", str(tmp_path / "twice")]) == 2
    assert "b (in part-1-of-2-0.parquet and part-2-of-2-0.parquet)" in capsys.readouterr().err
    mouth_part(tmp_path / "other", Place(1, 2, 0, 1), ["a", "b"], settings)
    mouth_part(tmp_path / "other", Place(2, 2, 0, 1), ["c"], settings | {"list": "y"})
    assert cli.main(["merge", str(tmp_path / "other")]) == 2
    assert "list: 'x' and 'y'" in capsys.readouterr().err
    mouth_part(tmp_path / "short", Place(1, 1, 0, 1), ["a", "b"], settings)
    assert cli.main(["merge", str(tmp_path / "short")]) == 2
    assert "3 clips, the shards 2" in capsys.readouterr().err


@pytest.mark.parametrize("numbers", [[1], [1, 2, 3], [1, 3], [1, 2, 4, 6, 7, 8, 1000]])
def test_spans_of_shards_go_there_and_back(numbers):
    assert work.unspanned(work.spans(numbers)) == set(numbers)


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / "slurm/extract").mkdir(parents=True)
    (tmp_path / "slurm/extract/job.json").write_text("{}")
    with pytest.raises(KlassifyError, match="no record"):
        read_record(tmp_path / "slurm/extract/job.json")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("arguments", [1], "arguments are texts"),
        ("cwd", 3, "arguments are texts"),
        ("merge_job", "7", "numbers"),
        ("shards", 0, "0 shards"),
        ("shards", 10**9, "1000000000 shards"),
        ("shards", 3, "shards '1-4' of 3"),
        ("submissions", [{"job": 2**31, "shards": "1-4"}], "jobs and shards are numbers"),
        ("submissions", [{"job": 7, "shards": "1-4 ; x"}], "shards '1-4 ; x' of 4"),
    ],
)
def test_a_record_from_elsewhere_is_checked(tmp_path, key, value, said):
    record = Record(
        work.ExtractWork(tmp_path, 4), ["extract"], "/", Options(), [Submission(7, "1-4")]
    )
    record.save()
    path = record.folder / "job.json"
    assert read_record(path) == record
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(KlassifyError, match="no record of a launch") as caught:
        read_record(path)
    assert said in str(caught.value)


def test_merging_a_training_says_whether_it_is_there(tmp_path):
    training = work.TrainWork(tmp_path, 1)
    with pytest.raises(KlassifyError, match="missing"):
        training.merge()
    (tmp_path / "training.json").touch()
    assert training.merge() == f"{tmp_path}: trained"


@pytest.mark.parametrize("recipe", ["klassify", "multibranch"])
def test_recipes_send_their_long_steps_to_the_cluster(recipe):
    site = [
        "launcher=slurm",
        "shards=8",
        "gpus=2",
        "nodes=3",
        "partition=cpu",
        "gpu_partition=gpu",
        "account=a",
    ]
    done = subprocess.run(
        [
            str(ROOT / f"recipes/{recipe}/run.sh"),
            "--stage",
            "1",
            "--stop-stage",
            "3",
            "data=demo",
            "dry=1",
            *site,
            "modules=cuda/12",
            "sbatch=--qos=long",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line[2:]) for line in done.stdout.splitlines() if line.startswith("+ ")]
    sent = {command[1] for command in commands if "--launcher" in command}
    assert sent == {"extract", "score", "train"}
    for command in commands:
        on_gpu = command[1] in ("train", "score") or "lmm" in command
        if "--launcher" in command:
            assert ("--sbatch-arg=--partition=gpu" in command) == on_gpu
            assert {"--sbatch-arg=--account=a", "--sbatch-arg=--qos=long", "cuda/12"} <= set(
                command
            )
    train = next(command for command in commands if command[1] == "train")
    assert (
        train[train.index("--nodes") + 1] == "3"
        and train[train.index("--gpus") + 1] == "2"
        and "--wait" in train
    )
