"""Write the scripts of a command, submit what is missing, wait for it."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence

from klassify.errors import KlassifyError
from klassify.files import write_text
from klassify.launch import script, slurm, survey
from klassify.launch.options import Options, options_from, without_launcher
from klassify.launch.record import FILE, Record, Submission, read_record
from klassify.launch.work import Work, spans, unspanned

POLL_S = 10.0
SAY_S = 60.0
SETTLE_S = 5.0  # a file made on another node may show up later than its job leaves the queue


def submitted(args: argparse.Namespace, prepare: Callable[[list[str], Options], list[Record]]) -> bool:
    """The hook of extract, score and train: True when the command went to the cluster.

    args.command_line holds the command as it was typed. prepare: refuses mistakes before anything is queued, and
    returns what is to be submitted; it gets the command's arguments without those of the launcher, and the latter
    as Options. False under `--launcher local`.
    """
    if getattr(args, "launcher", "local") == "local":
        return False
    argv = without_launcher(args.command_line[1:], training=not hasattr(args, "shards"))
    records = prepare(argv, options_from(args))
    for record in records:
        if args.force and not args.dry_run:
            _clear(record)
        submit_missing(record, dry_run=args.dry_run)
    if args.wait and not args.dry_run:
        for record in records:
            wait(record)
    return True


def record_of(work: Work, arguments: Sequence[str], options: Options) -> Record:
    """A new record, which knows of the jobs that an earlier one submitted."""
    record = Record(work, [*arguments, "--launcher", "local"], os.getcwd(), options)
    path = record.folder / FILE
    if path.exists():
        before = read_record(path)
        if before.work.n == work.n:
            record.submissions, record.merge_job = before.submissions, before.merge_job
        elif survey.survey(before).in_queue:
            raise KlassifyError(f"{before.work.n} shards of it are in the queue, not {work.n}.", where=work.folder,
                                mend=f"scancel --name={before.name}, or leave --shards at {before.work.n}")  # fmt: skip
    return record


def _clear(record: Record) -> None:
    if survey.survey(record).in_queue:
        raise KlassifyError("It is in the queue: --force would replace what is being made.", where=record.work.folder,
                            mend=f"scancel --name={record.name}")  # fmt: skip
    record.work.clear()


# ------------------------------------------------------------------------------ submitting


def submit_missing(record: Record, *, dry_run: bool = False) -> None:
    """Submit the shards that are neither done nor in the queue, and a merge job that waits for them."""
    found = survey.survey(record)
    for line in survey.lines(found) if found.is_done or found.in_queue else ():
        print(line)
    todo = found.lacking
    if dry_run and not todo and not found.is_done:
        print("nothing to submit: the rest is in the queue")
    if not todo and not dry_run:
        return
    if found.slurm and not dry_run and "no squeue" not in found.slurm:
        raise KlassifyError(f"Slurm does not answer: {found.slurm}.", mend="try again when it does")
    texts = scripts(record)
    todo = todo or list(range(1, record.work.n + 1))
    if dry_run:
        show(record, texts, todo)
        return
    (record.folder / "logs").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(record.folder / name, text)
    if record.merge_job and "job" in found.merge:
        slurm.cancel(record.merge_job)  # it waits for jobs of which some have failed
    earlier = sorted({submission.job for submission in record.submissions if found.in_queue & _shards(submission)})
    jobs = []
    for command, shards, offset in commands(record, todo):
        job = slurm.submit(command)
        record.submissions.append(Submission(job, shards, offset))
        jobs.append(job)
        record.save()
        print(f"{record.work.folder}: {record.work.step}: submitted job {job}, {described(record, shards)}")
    if "merge.sh" in texts:
        record.merge_job = slurm.submit(merge_command(record, jobs, earlier))
        record.save()
        print(f"{record.work.folder}: {record.work.step}: job {record.merge_job} merges when they are done")
    print(f"  scripts and logs: {record.folder}\n  see:  klassify status {shlex.quote(str(record.work.folder))}")


def described(record: Record, shards: str) -> str:
    """What a job does, for a person."""
    if record.work.command == "train":
        return f"{record.options.nodes} node(s), {record.options.gpus or 'no'} GPU(s) each"
    return f"shards {shards} of {record.work.n}"


def _shards(submission: Submission) -> set[int]:
    return set(unspanned(submission.shards))


def scripts(record: Record) -> dict[str, str]:
    """{name: text} of the scripts."""
    work, folder, out = record.work, record.folder.resolve(), record.work.folder.resolve()
    if work.command == "train":
        return {
            "job.sh": script.job_script(
                work.title, record.arguments, record.options, folder, out, record.name, record.cwd
            )
        }
    merge = ["merge", str(out), *(["--split", work.split] if work.command == "score" else [])]
    array = script.array_script(work.title, record.arguments, record.options, folder, out, work.pattern, record.name,
                                record.cwd, slurm.largest_index())  # fmt: skip
    return {
        "array.sh": array,
        "merge.sh": script.merge_script(work.title, merge, record.options, folder, record.merge_name, record.cwd),
    }


def commands(record: Record, todo: Sequence[int]) -> list[tuple[list[str], str, int]]:
    """(sbatch command, shards, offset) for these shards: one array, or several where Slurm bounds its indices."""
    if record.work.command == "train":
        return [(["sbatch", "--parsable", str(record.folder / "job.sh")], "1", 0)]
    width, most = slurm.largest_index(), record.options.max_parallel
    blocks: dict[int, list[int]] = {}
    for shard in todo:
        blocks.setdefault((shard - 1) // width * width, []).append(shard)
    if most is not None and most < len(blocks):
        raise KlassifyError(f"{record.work.n} shards make {len(blocks)} arrays here, and each runs a task.",
                            mend=f"give --max-parallel {len(blocks)} or more, or fewer --shards")  # fmt: skip
    made = []
    for offset, shards in blocks.items():
        array = spans([shard - offset for shard in shards])
        array += f"%{max(1, most * len(shards) // len(todo))}" if most is not None else ""
        command = ["sbatch", "--parsable", f"--array={array}", str(record.folder / "array.sh")]
        made.append((command + ([str(offset)] if offset else []), spans(shards), offset))
    return made


def merge_command(record: Record, jobs: Sequence[object], earlier: Sequence[object] = ()) -> list[str]:
    """The merge job waits for jobs that succeed, requeued tasks included; Slurm drops it when one fails.

    earlier: arrays that still run, of which other tasks have failed.
    """
    groups = {"afterok": jobs, "afterany": earlier}
    after = ",".join(":".join(map(str, (name, *group))) for name, group in groups.items() if group)
    after = f"--dependency={after}"
    return ["sbatch", "--parsable", after, "--kill-on-invalid-dep=yes", str(record.folder / "merge.sh")]


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
    """Until it is done. KlassifyError when nothing is in the queue any more and something is missing."""
    said = time.monotonic()
    while True:
        found = survey.survey(record)
        if found.is_done and not found.merge.startswith(("job", "running")):
            print(f"{record.work.folder}: {record.work.merge()}")
            return
        if not found.in_queue and not found.slurm:
            time.sleep(SETTLE_S)
            found = survey.survey(record)
            if not found.in_queue and not found.is_done:
                raise KlassifyError("\n".join(survey.lines(found)), where=record.work.folder)
        if time.monotonic() - said >= SAY_S:
            said = time.monotonic()
            counts = ", ".join(f"{len(found.of(state))} {state}" for state in survey.STATES if found.of(state))
            mends = "".join(f"\n  mend:  {mend}" for mend in found.mends)
            print(f"{record.work.folder}: {record.work.step}: {counts}{mends}", file=sys.stderr, flush=True)
        time.sleep(POLL_S)
