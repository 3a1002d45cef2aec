"""Write the scripts of a command, submit what is missing, wait for it."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence

from klassify.cluster import script, slurm, survey
from klassify.cluster.options import Launch, Options
from klassify.cluster.record import FILE, Record, Submission, read_record
from klassify.cluster.work import Work, spans, unspanned
from klassify.errors import KlassifyError
from klassify.files import locked, write_text

POLL_S = 10.0
SAY_S = 60.0
SETTLE_S = 5.0  # a file made on another node may appear after its job has left the queue


def submitted(launch: Launch | None, prepare: Callable[[list[str], Options], list[Record]]) -> bool:
    """Send a command to the cluster; False where it is to run here.

    prepare: refuses mistakes before anything is queued and returns what is to be submitted. It gets
    the command's arguments without those of the launcher, and the options for Slurm.
    """
    if launch is None:
        return False
    records = prepare(launch.arguments, launch.options)
    for record in records:
        submit_missing(record, dry_run=launch.dry_run, replace=launch.replace)
    if launch.wait and not launch.dry_run:
        for record in records:
            wait(record)
    return True


def record_of(work: Work, arguments: Sequence[str], options: Options) -> Record:
    """The record of a command that is sent from here."""
    return Record(work, [*arguments, "--launcher", "local"], os.getcwd(), options)


def submit_missing(record: Record, *, dry_run: bool = False, replace: bool = False) -> None:
    """Submit the shards that are neither done nor in the queue, and a job that merges them.

    replace: submit all of them; existing results are removed once Slurm has accepted the jobs.
    """
    if dry_run:
        _show_missing(record, replace)
        return
    with locked(record.folder):  # two commands at once would submit everything twice
        _take_over(record, replace)
        _submit(record, survey.survey(record, anew=replace), replace)


def _take_over(record: Record, replace: bool) -> None:
    """Take over the jobs of an earlier command; KlassifyError if other work is still queued."""
    path = record.folder / FILE
    if not path.exists():
        return
    before = read_record(path)
    before_it = before.work.n, before.arguments, before.cwd
    changed = before_it != (record.work.n, record.arguments, record.cwd)
    if changed and survey.survey(before, anew=replace).in_queue:
        raise KlassifyError(
            f"Other work on this folder is in the queue: {_differences(before, record)}.",
            where=record.work.folder,
            fix=f"wait for it, or cancel it: scancel --name={before.name}",
        )
    if before.work.n == record.work.n:
        record.submissions, record.merge_job = before.submissions, before.merge_job


def _differences(before: Record, now: Record) -> str:
    if before.work.n != now.work.n:
        return f"{before.work.n} shards, not {now.work.n}"
    there, here = ([*record.arguments, f"in {record.cwd}"] for record in (before, now))
    only_there = " ".join(word for word in there if word not in here) or "nothing"
    only_here = " ".join(word for word in here if word not in there) or "nothing"
    return f"{only_there} there, {only_here} now, of: {shlex.join(before.arguments)}"


def _submit(record: Record, found: survey.Survey, replace: bool) -> None:
    if replace and found.in_queue:
        what = "These jobs are in the queue; --force would replace what they are making."
        raise KlassifyError(what, where=record.work.folder, fix=f"scancel --name={record.name}")
    if not replace and (found.is_done or found.in_queue):
        print(*survey.lines(found), sep="\n")
    todo = sorted(record.work.every) if replace else found.lacking
    if not todo and found.is_done:
        if found.merge_is_never or not (record.work.merged or found.merge_is_queued):
            _merge_here(record, found)
        return
    if not todo and (found.merge_is_queued or not found.merge):
        return
    if found.slurm and "no squeue" not in found.slurm:
        raise KlassifyError(f"Slurm does not answer: {found.slurm}.", fix="try again when it does")
    texts = script.scripts(record)
    (record.folder / "logs").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(record.folder / name, text)
    if record.merge_job and (found.merge_is_queued or found.merge_is_never):
        slurm.cancel(record.merge_job)  # it depends on jobs that have failed
    earlier = sorted(
        {sent.job for sent in record.submissions if found.in_queue & unspanned(sent.shards)}
    )
    options = script.options_in(next(iter(texts.values())))
    jobs = _submit_arrays(record, todo, options, found, hold=replace)
    if "merge.sh" in texts:
        merge, options = merge_command(record, jobs, earlier), script.options_in(texts["merge.sh"])
        record.merge_job = slurm.submit(merge, options)
        record.save()
        print(f"{record.work.folder}: {record.work.step}: job {record.merge_job} will merge them")
    print(f"  scripts and logs: {record.folder}")
    print(f"  progress: klassify status {shlex.quote(str(record.work.folder))}")


def _merge_here(record: Record, found: survey.Survey) -> None:
    """Merge in place of the merge job, which is gone or can never start."""
    if found.merge_is_never and record.merge_job:
        slurm.cancel(record.merge_job)
    print(f"{record.work.folder}: {record.work.merge()}")


def _submit_arrays(
    record: Record, todo: Sequence[int], options: set[str], found: survey.Survey, *, hold: bool
) -> list[int]:
    """Submit these shards; returns their jobs.

    hold: existing results are removed once all jobs are accepted, and only then may they start.
    """
    jobs: list[int] = []
    try:
        for command, shards, offset in commands(record, todo, busy=len(found.in_queue)):
            if hold:
                command.insert(1, "--hold")
            jobs.append(slurm.submit(command, options))
            record.submissions.append(Submission(jobs[-1], shards, offset))
            if not hold:
                record.save()
            said = f"submitted job {jobs[-1]}, {_described(record, shards)}"
            print(f"{record.work.folder}: {record.work.step}: {said}")
    except KlassifyError:
        for job in jobs if hold else ():
            slurm.cancel(job)
        raise
    if hold:
        record.work.clear()
        record.save()
        for job in jobs:
            slurm.release(job)
    return jobs


def _show_missing(record: Record, replace: bool) -> None:
    """Print the state, the scripts and the commands."""
    _take_over(record, replace)
    found = survey.survey(record, anew=replace)
    if found.is_done or found.in_queue:
        print(*survey.lines(found), sep="\n")
    if found.in_queue and not found.lacking:
        print("nothing to submit: all other shards are in the queue")
    for name, text in (texts := script.scripts(record)).items():
        print(f"# ---- {record.folder / name}\n{text}")
    print("# ---- commands")
    everything = sorted(record.work.every)
    made = commands(record, everything if replace else found.lacking or everything)
    for command, _, _ in made:
        print(shlex.join(command))
    if "merge.sh" in texts:
        print(shlex.join(merge_command(record, [f"JOB{at}" for at in range(1, len(made) + 1)])))


def _described(record: Record, shards: str) -> str:
    """What a job does, in words."""
    if record.work.command == "train":
        return f"{record.options.nodes} node(s), {record.options.gpus or 'no'} GPU(s) each"
    return f"shards {shards} of {record.work.n}"


def commands(
    record: Record, todo: Sequence[int], busy: int = 0
) -> list[tuple[list[str], str, int]]:
    """(sbatch command, shards, offset) for these shards: one array, or several if Slurm's largest
    index is smaller.

    busy: tasks in the queue; --max-parallel limits them together with the new ones.
    """
    if record.work.command == "train":
        return [(["sbatch", "--parsable", str(record.folder / "job.sh")], "1", 0)]
    width, most = slurm.largest_index(), record.options.max_parallel
    blocks: dict[int, list[int]] = {}
    for shard in todo:
        blocks.setdefault((shard - 1) // width * width, []).append(shard)
    if most is not None and most < len(blocks):
        raise KlassifyError(
            f"{record.work.n} shards make {len(blocks)} arrays here; each runs at least one task.",
            fix=f"use --max-parallel {len(blocks)} or more, or fewer --shards",
        )
    most = None if most is None else max(most - busy, len(blocks))
    made = []
    for offset, shards in blocks.items():
        array = spans([shard - offset for shard in shards])
        array += f"%{max(1, most * len(shards) // len(todo))}" if most is not None else ""
        command = ["sbatch", "--parsable", f"--array={array}", str(record.folder / "array.sh")]
        made.append((command + ([str(offset)] if offset else []), spans(shards), offset))
    return made


def merge_command(
    record: Record, jobs: Sequence[object], earlier: Sequence[object] = ()
) -> list[str]:
    """The sbatch command of the merge job. It starts when all jobs have succeeded, after any
    requeues; Slurm drops it when one fails.

    earlier: arrays that are still running although some of their tasks have failed.
    """
    groups = {"afterok": jobs, "afterany": earlier}
    if record.may_fail_whole:
        groups = {"afterany": [*jobs, *earlier]}
    after = ",".join(":".join(map(str, (name, *group))) for name, group in groups.items() if group)
    options = ["--parsable", f"--dependency={after}", "--kill-on-invalid-dep=yes"]
    return ["sbatch", *options, str(record.folder / "merge.sh")]


def wait(record: Record) -> None:
    """Wait until it is done; KlassifyError if the queue is empty and shards are missing."""
    said = time.monotonic()
    while True:
        found = survey.survey(record)
        if found.is_done and not found.merge_is_queued:
            _merge_here(record, found)
            return
        if not found.in_queue and not found.slurm:
            time.sleep(SETTLE_S)
            found = survey.survey(record)
            if not found.in_queue and not found.is_done:
                raise KlassifyError("\n".join(survey.lines(found)), where=record.work.folder)
        if time.monotonic() - said >= SAY_S:
            said = time.monotonic()
            counts = [
                f"{len(found.of(state))} {state}" for state in survey.STATES if found.of(state)
            ]
            fixes = [f"\n  fix:   {fix}" for fix in found.fixes]
            state = f"{', '.join(counts)}{''.join(fixes)}"
            print(f"{record.work.folder}: {record.work.step}: {state}", file=sys.stderr, flush=True)
        time.sleep(POLL_S)
