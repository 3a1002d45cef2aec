"""Arrays of shards on a real Slurm give what a single run gives, whatever is killed meanwhile."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import slurm
from places import ROOT
from shards import SHARDS

from klassify import parts
from klassify.cluster.work import spans
from klassify.features import shards
from klassify.files import TEMPORARY

pytestmark = pytest.mark.slow


def contents(folder):
    """{name: bytes} of the parts."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}


def assert_whole(site, undisturbed) -> None:
    """Each shard has one valid file, the same as in an undisturbed run."""
    assert contents(site.out) == undisturbed
    assert f"{SHARDS}\n" in site.status() and "merge    done" in site.status()


def test_an_array_makes_the_rows_of_a_single_run(site, tmp_path):
    """Also where arrays are shorter than the list of shards, and with hostile names."""
    site.out = tmp_path / "it's $HOME #1 100%" / "train"
    single = tmp_path / "single"
    site.launch(
        "--max-parallel",
        4,
        "--sbatch-arg=--comment=a \"b\" 'c' $(touch x) \\ #d",
        shards=7,
        kind="mouth",
    )
    arrays = [row for row in site.cluster.queue() if row[4].startswith("klassify-extract-train")]
    # MaxArraySize is 7: two arrays, and the merge job
    assert len({row[0].split("_")[0] for row in arrays}) == 3
    site.finished(120)
    text = site.status()
    assert "done         7" in text and "merge    done" in text, text + site.logs()
    out, site.out = site.out, single
    site.extract(kind="mouth")
    apart, together = shards.FeatureStore(out), shards.FeatureStore(single)
    assert set(apart) == set(together) and len(together) == 8
    for file in together:
        assert np.array_equal(apart[file].features, together[file].features)
        assert np.array_equal(apart[file].valid, together[file].valid)
    assert not list((tmp_path.parent).rglob("x"))


def test_a_shard_of_a_killed_node_runs_again_to_one_file(site, undisturbed):
    site.hold()
    site.launch()
    site.begun(SHARDS)
    victim = next(row[3] for row in site.cluster.queue() if row[1] == "R")
    site.cluster.kill(victim)
    # on another node, the first one lives
    slurm.until(lambda: "start 1" in site.logs(), "a second run of the shard", 150)
    site.release()
    site.finished()
    assert site.logs().count("start 1, on") == 1
    twice = next(line for line in site.logs().splitlines() if "start 1" in line).split(":")[0]
    slurm.until(
        lambda: site.logs().count(f"{twice}: ended with status 0") == 2, "the end of both runs"
    )
    assert_whole(site, undisturbed)


def test_a_lost_node_costs_nothing_but_time(site, undisturbed):
    site.hold()
    site.launch()
    site.begun(SHARDS)
    victim = next(row[3] for row in site.cluster.queue() if row[1] == "R")
    stale = site.out / f"part-1-of-{SHARDS}-0{TEMPORARY}-999999-deadbeef0a1b2c3d.parquet"
    stale.write_bytes(b"half")
    os.utime(stale, (0, 0))  # a young one may belong to a process on another node
    site.cluster.lose_node(victim)
    slurm.until(lambda: "start 1" in site.logs(), "a second run of the shard", 150)
    site.release()
    site.finished()
    assert_whole(site, undisturbed)


def test_after_a_controller_restart_status_names_held_jobs(site):
    """Killed before it saved all: jobs are forgotten or start again, nodes drained, tasks held."""
    site.hold()
    site.launch(shards=6)
    site.begun(4)
    saved = site.cluster.folder / "state/job_state"
    slurm.until(lambda: str(site.out).encode() in saved.read_bytes(), "a saved state", 30)
    site.cluster.kill("slurmctld")
    assert "Slurm was not asked" in site.status()
    site.cluster.start_controller()
    slurm.until(
        lambda: [row[1] for row in site.cluster.queue()].count("R") == 4, "running tasks", 30
    )
    running = [row[0] for row in site.cluster.queue() if row[1] == "R"]
    site.cluster.run(
        ["scontrol", "update", "nodename=n[1-4]", "state=drain", "reason=Duplicate jobid"]
    )
    site.cluster.run(["scontrol", "requeuehold", ",".join(running)])
    slurm.until(lambda: not [row for row in site.cluster.queue() if row[1] != "PD"], "held tasks")
    site.release()
    text = site.status()
    # 1-4, unless the restart gave one's place to another
    held = {int(row.split("_")[1]) for row in running}
    queued = set(range(1, 7)) - held
    assert (
        f"held         4  {spans(held)}" in text and f"queued       2  {spans(queued)}" in text
    ), text
    fixes = [
        line.split("fix:")[1].split("#")[0].split() for line in text.splitlines() if "fix:" in line
    ]
    assert [fix[:2] for fix in fixes if fix[0] == "scontrol"] == [
        ["scontrol", "release"],
        ["scontrol", "update"],
    ]
    for fix in fixes:
        if fix[0] == "scontrol":
            site.cluster.run(fix)
    site.finished()
    site.klassify("merge", site.out)  # its job may be among the forgotten
    assert "done         6" in site.status()


def test_a_failed_shard_stops_the_merge_and_is_submitted_again(site, undisturbed):
    (site.gate / "fail").write_text(f"2/{SHARDS}")
    site.launch()
    site.finished()  # the merge job too, whose dependency will never be satisfied
    text = site.status()
    assert "done         2" in text and "failed       1  2" in text and "status 3" in text, text
    assert "klassify resume" in text and not (site.out / "failures.tsv").exists()
    refused = site.klassify("merge", site.out, check=2).stderr
    assert f"1 of {SHARDS} shards are missing: 2" in refused and f"--shard 2/{SHARDS}" in refused
    (site.gate / "fail").unlink()
    assert "submitted job" in (said := site.klassify("resume", site.out).stdout)
    assert "shards 2 of" in said
    assert "submitted job" not in site.klassify("resume", site.out).stdout  # it is in the queue
    site.finished()
    assert_whole(site, undisturbed)


def test_refused_jobs_cost_nothing_and_force_replaces_the_rest(site, undisturbed):
    site.launch("--wait")
    assert_whole(site, undisturbed)
    refused = site.launch("--force", "--sbatch-arg=--partition=nowhere", check=2).stderr
    assert "nowhere" in refused or "partition" in refused
    assert_whole(site, undisturbed)
    site.hold()
    site.launch("--force")
    site.begun(SHARDS)
    assert not contents(site.out)
    assert "--force would replace what they are making" in site.launch("--force", check=2).stderr
    assert "Other work" in site.launch("--chunk", 1, check=2).stderr
    site.release()
    site.finished()
    assert_whole(site, undisturbed)


def test_a_merge_job_that_was_cancelled_comes_back(site, undisturbed):
    site.hold()
    site.launch()
    site.begun(SHARDS)
    site.cluster.run(["scancel", f"--name={site.record().merge_name}"])
    slurm.until(lambda: "merge    not in the queue" in site.status(), "a lost merge job")
    assert "will merge them" in site.klassify("resume", site.out).stdout
    site.release()
    site.finished()
    assert_whole(site, undisturbed)


def test_a_task_near_its_time_limit_is_requeued_and_resumes(site):
    """Each file is followed by a pause, so that two minutes are too short; the second warning comes
    by hand.

    Slurm sends its warning up to half a minute early, and a busy machine may need that long to
    begin.
    """
    site.slow(8)
    site.launch("--chunk", 1, "--grace", 60, "--max-restarts", 1, "--time", "2", shards=1)
    slurm.until(
        lambda: "near its time limit, back into the queue" in site.logs(), "the warning", 100
    )
    slurm.until(lambda: "start 1, on" in site.logs(), "the second start", 60)
    first = len(parts.parts_in(site.out))
    assert 0 < first < 8
    slurm.until(lambda: len(parts.parts_in(site.out)) > first, "progress of the second start", 60)
    running = next(row[0] for row in site.cluster.queue() if row[1] == "R")
    site.cluster.run(["scancel", "--signal=USR1", "--batch", running])
    slurm.until(lambda: "not requeued (1 of 1 restarts)" in site.logs(), "the second warning")
    site.fast()
    site.finished()
    assert "done         1" in site.status() and f"{first} of 8 parts exist" in site.logs()


def test_scores_of_an_array_are_those_of_a_single_run(site, small_data, tmp_path):
    config = ROOT / "recipes/klassify/conf/demo/tcn.yaml"
    single, apart = tmp_path / "single" / "tcn", tmp_path / "apart" / "tcn"
    site.klassify("train", config, "--out", single, *small_data.arguments, "train.epochs=1")
    shutil.copytree(single, apart)
    site.klassify("score", single, "--split", "val", *small_data.arguments)
    asked = (
        "score",
        apart,
        "--split",
        "val",
        *small_data.arguments,
        *("--launcher", "slurm", "--shards", 2, "--wait"),
    )
    site.klassify(*asked)
    for name in ("val.windows.tsv", "val.clips.tsv"):
        assert (apart / "scores" / name).read_bytes() == (single / "scores" / name).read_bytes()
    assert "submitted" not in site.klassify(*asked).stdout
    # on nodes with GPUs: a task asks for one, and waits where there is none
    gpus = ("--force", "--gpus", 1, "--device", "cpu", "--sbatch-arg=--partition=gpu")
    site.klassify(*asked, *gpus)
    assert (apart / "scores/val.windows.tsv").read_bytes() == (
        single / "scores/val.windows.tsv"
    ).read_bytes()
    assert ", on n5," in site.logs_of(apart, "score-val")


@pytest.mark.parametrize(
    ("recipe", "kinds"),
    [("klassify", "mouth"), ("multibranch", "mouth lmm"), ("fused", "mouth lips")],
)
def test_recipes_send_stage_1(site, corpus, tmp_path, recipe, kinds):
    """As `make stage1 launcher=slurm` does, in a folder that looks like a checkout."""
    for name in ("recipes", "klassify", ".venv"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, there in (("data_lists", "lists"), ("media", "media")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "demo-tiny").symlink_to(corpus / there)
    arguments = (
        *("data=demo", "size=tiny", "split=val", "launcher=slurm", "shards=2", "time=00:05:00"),
        "audio=cache",
    )
    done = site.cluster.run(
        [
            "bash",
            "-c",
            'cd "$1" && bash "recipes/$2/run.sh" --stage 1 --stop-stage 1 "${@:3}"',
            "-",
            tmp_path,
            recipe,
            *arguments,
        ],
        env=site.environment,
    )
    kinds = [*kinds.split(), "audio"]
    assert done.stdout.count("submitted job") == len(kinds), done.stdout
    site.finished(120)
    for kind in kinds:
        assert "merge    done" in (
            text := site.status(tmp_path / f"features/demo-tiny/{kind}/val")
        ), text
        assert len(parts.parts_in(tmp_path / f"features/demo-tiny/{kind}/val")) == 2
