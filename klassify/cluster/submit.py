"""Write the scripts of a command, submit what is missing, wait for it."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence

from klassify.cluster import script, slurm, survey
from klassify.cluster.options import (
    Options,
    options_from,
    refuse_launcher_options,
    without_launcher,
)
from klassify.cluster.record import FILE, Record, Submission, read_record
from klassify.cluster.work import Work, spans, unspanned
from klassify.errors import KlassifyError
from klassify.files import locked, write_text

POLL_S = 10.0
SAY_S = 60.0
SETTLE_S = 5.0  # a file made on another node may show up later than its job leaves the queue


def submitted(
    args: argparse.Namespace, prepare: Callable[[list[str], Options], list[Record]]
) -> bool:
    """The hook of extract, score and train: True when the command went to the cluster.

    args.command_line holds the command as it was typed. prepare: refuses mistakes before anything
    is queued, and returns what is to be submitted; it gets the command's arguments without those of
    the launcher, and the latter as Options. False under `--launcher local`, which goes with none of
    the launcher's other options.
    """
    if getattr(args, "launcher", "local") == "local":
        refuse_launcher_options(args)
        return False
    argv = without_launcher(args.command_line[1:], training=not hasattr(args, "shards"))
    records = prepare(argv, options_from(args))
    for record in records:
        submit_missing(record, dry_run=args.dry_run, replace=args.force)
    if args.wait and not args.dry_run:
        for record in records:
            wait(record)
    return True


def record_of(work: Work, arguments: Sequence[str], options: Options) -> Record:
    """The record of a command that is sent from here."""
    return Record(work, [*arguments, "--launcher", "local"], os.getcwd(), options)


# ------------------------------------------------------------------------------ submitting


def submit_missing(record: Record, *, dry_run: bool = False, replace: bool = False) -> None:
    """Submit the shards that are neither done nor in the queue, and a merge job that waits for
    them.

    replace: submit all of them; what is there goes as soon as Slurm has taken the jobs, and not
    before.
    """
    if dry_run:
        _show_missing(record, replace)
        return
    with locked(record.folder):  # two commands at once would submit everything twice
        _take_over(record, replace)
        _submit(record, survey.survey(record, anew=replace), replace)


def _take_over(record: Record, replace: bool) -> None:
    """Know of the jobs that an earlier command submitted. One that makes something else must be
    over.
    """
    path = record.folder / FILE
    if not path.exists():
        return
    before = read_record(path)
    same = (before.work.n, before.arguments, before.cwd) == (
        record.work.n,
        record.arguments,
        record.cwd,
    )
    if not same and survey.survey(before, anew=replace).in_queue:
        raise KlassifyError(
            f"Other work on this folder is in the queue: {_differences(before, record)}.",
            where=record.work.folder,
            fix=f"wait for it, or end it: scancel --name={before.name}",
        )
    if before.work.n == record.work.n:
        record.submissions, record.merge_job = before.submissions, before.merge_job


def _differences(before: Record, now: Record) -> str:
    if before.work.n != now.work.n:
        return f"{before.work.n} shards, not {now.work.n}"
    there, here = ([*record.arguments, f"in {record.cwd}"] for record in (before, now))
    only = [
        " ".join(word for word in one if word not in other)
        for one, other in ((there, here), (here, there))
    ]
    return (
        f"{only[0] or 'nothing'} there, {only[1] or 'nothing'} now, of:"
        f" {shlex.join(before.arguments)}"
    )


def _submit(record: Record, found: survey.Survey, replace: bool) -> None:
    if replace and found.in_queue:
        raise KlassifyError(
            "It is in the queue: --force would replace what is being made.",
            where=record.work.folder,
            fix=f"scancel --name={record.name}",
        )
    if not replace and (found.is_done or found.in_queue):
        print(*survey.lines(found), sep="\n")
    todo = list(range(1, record.work.n + 1)) if replace else found.lacking
    if not todo and found.is_done:
        if found.merge_is_never or not (record.work.merged or found.merge_is_queued):
            _merge_here(record, found)
        return
    if not todo and (found.merge_is_queued or not found.merge):
        return
    if found.slurm and "no squeue" not in found.slurm:
        raise KlassifyError(f"Slurm does not answer: {found.slurm}.", fix="try again when it does")
    texts = scripts(record)
    (record.folder / "logs").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(record.folder / name, text)
    if record.merge_job and (found.merge_is_queued or found.merge_is_never):
        slurm.cancel(record.merge_job)  # it waits for jobs of which some have failed
    earlier = sorted(
        {sent.job for sent in record.submissions if found.in_queue & unspanned(sent.shards)}
    )
    jobs = _submit_arrays(
        record, todo, script.options_in(next(iter(texts.values()))), found, hold=replace
    )
    if "merge.sh" in texts:
        record.merge_job = slurm.submit(
            merge_command(record, jobs, earlier), script.options_in(texts["merge.sh"])
        )
        record.save()
        print(
            f"{record.work.folder}: {record.work.step}: job {record.merge_job} merges when they are"
            " done"
        )
    print(
        f"  scripts and logs: {record.folder}\n  see:  klassify status"
        f" {shlex.quote(str(record.work.folder))}"
    )


def _merge_here(record: Record, found: survey.Survey) -> None:
    """Do what the merge job would, which is gone or never begins."""
    if found.merge_is_never and record.merge_job:
        slurm.cancel(record.merge_job)
    print(f"{record.work.folder}: {record.work.merge()}")


def _submit_arrays(
    record: Record, todo: Sequence[int], options: set[str], found: survey.Survey, *, hold: bool
) -> list[int]:
    """The jobs of these shards. hold: what is there goes once all of them are taken, and only
    then do they begin.
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
            print(
                f"{record.work.folder}: {record.work.step}: submitted job {jobs[-1]},"
                f" {described(record, shards)}"
            )
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
    """What would be done: the state, scripts and commands."""
    _take_over(record, replace)
    found = survey.survey(record, anew=replace)
    if found.is_done or found.in_queue:
        print(*survey.lines(found), sep="\n")
    if found.in_queue and not found.lacking:
        print("nothing to submit: the rest is in the queue")
    everything = list(range(1, record.work.n + 1))
    show(record, scripts(record), everything if replace else found.lacking or everything)


def described(record: Record, shards: str) -> str:
    """What a job does, for a person."""
    if record.work.command == "train":
        return f"{record.options.nodes} node(s), {record.options.gpus or 'no'} GPU(s) each"
    return f"shards {shards} of {record.work.n}"


def scripts(record: Record) -> dict[str, str]:
    """{name: text} of the scripts."""
    work, folder, out = record.work, record.folder.resolve(), record.work.folder.resolve()
    command = record.command_line
    if work.command == "train":
        text = script.job_script(
            work.title, command, record.options, folder, out, record.name, record.cwd
        )
        return {"job.sh": text}
    merge = ["merge", str(out), *(["--split", work.split] if work.command == "score" else [])]
    array = script.array_script(
        work.title,
        command,
        record.options,
        folder,
        out,
        work.pattern,
        record.name,
        record.cwd,
        slurm.largest_index(),
    )
    return {
        "array.sh": array,
        "merge.sh": script.merge_script(
            work.title, merge, record.options, folder, record.merge_name, record.cwd
        ),
    }


def commands(
    record: Record, todo: Sequence[int], busy: int = 0
) -> list[tuple[list[str], str, int]]:
    """(sbatch command, shards, offset) for these shards: one array, or several where Slurm bounds
    its indices.

    busy: tasks in the queue, which --max-parallel bounds together with the new ones.
    """
    if record.work.command == "train":
        return [(["sbatch", "--parsable", str(record.folder / "job.sh")], "1", 0)]
    width, most = slurm.largest_index(), record.options.max_parallel
    blocks: dict[int, list[int]] = {}
    for shard in todo:
        blocks.setdefault((shard - 1) // width * width, []).append(shard)
    if most is not None and most < len(blocks):
        raise KlassifyError(
            f"{record.work.n} shards make {len(blocks)} arrays here, and each runs a task.",
            fix=f"give --max-parallel {len(blocks)} or more, or fewer --shards",
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
    """The merge job waits for jobs that succeed, requeued tasks included; Slurm drops it when one
    fails.

    earlier: arrays that still run, of which other tasks have failed.
    """
    groups = {"afterok": jobs, "afterany": earlier}
    if record.may_fail_whole:
        groups = {"afterany": [*jobs, *earlier]}
    after = ",".join(":".join(map(str, (name, *group))) for name, group in groups.items() if group)
    return [
        "sbatch",
        "--parsable",
        f"--dependency={after}",
        "--kill-on-invalid-dep=yes",
        str(record.folder / "merge.sh"),
    ]


def show(record: Record, texts: dict[str, str], todo: Sequence[int]) -> None:
    """Print scripts and commands."""
    for name, text in texts.items():
        print(f"# ---- {record.folder / name}\n{text}")
    print("# ---- what would be run")
    made = commands(record, todo)
    for command, _, _ in made:
        print(shlex.join(command))
    if "merge.sh" in texts:
        print(shlex.join(merge_command(record, [f"JOB{at}" for at in range(1, len(made) + 1)])))


# ------------------------------------------------------------------------------ waiting


def wait(record: Record) -> None:
    """Until it is done. KlassifyError when nothing is in the queue any more and something is
    missing.
    """
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
            counts = ", ".join(
                f"{len(found.of(state))} {state}" for state in survey.STATES if found.of(state)
            )
            fixes = "".join(f"\n  fix:   {fix}" for fix in found.fixes)
            print(
                f"{record.work.folder}: {record.work.step}: {counts}{fixes}",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(POLL_S)
