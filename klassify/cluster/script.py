"""The text of the batch scripts. What a user gives is quoted, or refused for a line break."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence

from klassify.cluster import slurm
from klassify.cluster.options import Options, one_line
from klassify.cluster.record import Record
from klassify.errors import KlassifyError

# options of sbatch that a job without a GPU must not have
OF_GPUS = re.compile(r"--(gres|tres|[a-z-]*gpu)")

ARRAY = """{head}
# {title}, cut into {n} shards, one per task. Files appear only when they are complete.
#   submitted with   sbatch --array=1-{first}{parallel} array.sh{beyond}
#   progress         klassify status {out}
#   missing shards   klassify resume {out}

shard=$((SLURM_ARRAY_TASK_ID + ${{1:-0}}))
what="shard $shard/{n}"
job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
progress=(find {out} -name "{pattern}")
{start}
{command} \\
  --shard "$shard/{n}" &
{end}
"""

JOB = """{head}
# {title}: one job, one process per {unit}. A restart resumes from the last checkpoint.
#   progress        klassify status {out}
#   submit again    klassify resume {out}

what={what}
job=$SLURM_JOB_ID
progress=(find {out}/checkpoints -name 'last.pt')
{start}
# each process reads its rank from Slurm; if one dies, the others end and the job restarts
srun --kill-on-bad-exit=1 --cpus-per-task={cpus} {command} &
{end}
"""

START = """cd {cwd} || exit 1{modules}
export OMP_NUM_THREADS={cpus} TOKENIZERS_PARALLELISM=false PYTHONSAFEPATH=1
start=${{SLURM_RESTART_COUNT:-0}}
echo "== $what: job $job, start $start, on ${{SLURMD_NODENAME:-$(hostname)}}, $(date -u +%FT%TZ)"
if [ "$start" -gt {restarts} ]; then
  echo "== $what: given up after {restarts} restarts"
  exit 1
fi
began=$(date +%s) warned=

# near the time limit: requeue, if this start saved something that the next can resume from
again() {{
  warned=1
  saved=$("${{progress[@]}}" -newermt "@$began" -print -quit)
  if [ "$start" -lt {restarts} ] && [ -n "$saved" ]; then
    echo "== $what: near its time limit, back into the queue"
    scontrol requeue "$job"
  else
    echo "== $what: near its time limit, not requeued ($start of {restarts} restarts)"
  fi
}}
trap again USR1
"""

END = """wait $!
status=$?
if [ -n "$warned" ]; then  # the signal ended the first wait, not the work
  wait $!
  status=$?
fi
echo "== $what: ended with status $status after $(($(date +%s) - began)) s"
{after}exit "$status\""""

# when one process of a training dies, the others would wait for it for ever; checkpoints are
# complete, so all of them start again
RETRY = """if [ "$status" -ne 0 ] && [ "$status" -ne 2 ] && [ "$start" -lt {restarts} ]; then
  echo "== $what: back into the queue"
  scontrol requeue "$job" && sleep 60
fi
"""

MERGE = """{head}
# When all shards of {title} are done: checks them for gaps, duplicates and other settings.

cd {cwd} || exit 1{modules}
export PYTHONSAFEPATH=1
{command}
"""


def scripts(record: Record) -> dict[str, str]:
    """{name: text} of the scripts: array.sh and merge.sh, or job.sh of a training."""
    if record.work.command == "train":
        return {"job.sh": _job(record)}
    return {"array.sh": _array(record), "merge.sh": _merge(record)}


def _array(record: Record) -> str:
    """The script of an array of shards."""
    options, work, width = record.options, record.work, slurm.largest_index()
    beyond = f"    (shard {width + 1} is: sbatch --array=1 array.sh {width})"
    out = quoted(work.folder.resolve())
    return ARRAY.format(
        head=_head(record, record.name, "%A_%a.log", options, ["--ntasks=1", *_gpus(options)]),
        title=work.title,
        n=work.n,
        first=min(work.n, width),
        parallel=f"%{options.max_parallel}" if options.max_parallel else "",
        beyond="" if work.n <= width else beyond,
        out=out,
        pattern=work.pattern,
        start=_start(record),
        command=_klassify(record.command_line),
        end=END.format(after=""),
    )


def _job(record: Record) -> str:
    """The script of one job over nodes: one process per GPU, or one per node without GPUs."""
    options, title = record.options, record.work.title
    tasks = [f"--nodes={options.nodes}", f"--ntasks-per-node={options.gpus or 1}", *_gpus(options)]
    return JOB.format(
        head=_head(record, record.name, "%j.log", options, tasks),
        title=title,
        unit="GPU" if options.gpus else "node",
        out=quoted(record.work.folder.resolve()),
        what=quoted(title),
        cpus=options.cpus,
        start=_start(record),
        command=_klassify(record.command_line),
        end=END.format(after=RETRY.format(restarts=options.max_restarts)),
    )


def _merge(record: Record) -> str:
    """The script of the job that follows an array. It computes nothing, so it asks for no GPU and
    for an hour at most, or the time of a shard if that is shorter.
    """
    options, work = record.options, record.work
    kept = tuple(text for text in options.sbatch if not OF_GPUS.match(text))
    time = options.time if options.limit_s < 3600 else "01:00:00"
    small = options.changed(time=time, cpus=1, gpus=0, grace=0, sbatch=kept)
    split = ["--split", work.split] if work.split else []
    return MERGE.format(
        head=_head(record, record.merge_name, "merge-%j.log", small, ["--ntasks=1"]),
        title=work.title,
        cwd=quoted(record.cwd),
        modules=_modules(options),
        command=_klassify(["merge", str(work.folder.resolve()), *split]),
    )


def _head(record: Record, name: str, log: str, options: Options, tasks: Sequence[str]) -> str:
    """The options of sbatch as lines of the script."""
    folder = str(record.folder.resolve() / "logs")
    if "\\" in folder:
        raise KlassifyError(
            "Slurm cannot write logs to a folder with a backslash in its name.", where=folder
        )
    folder = folder.replace("%", "%%")  # in the names of logs a percent sign starts a pattern
    lines = [f"--job-name={name}", f"--output={folder}/{log}", "--open-mode=append", "--requeue"]
    lines.append(f"--time={options.time}")
    if options.grace_s:
        lines.append(f"--signal=B:USR1@{options.grace_s}")
    lines += [*tasks, f"--cpus-per-task={options.cpus}", *options.sbatch]
    shebang = "#!/bin/bash -l" if options.modules else "#!/bin/bash"  # a login shell knows `module`
    return "\n".join([shebang, *(f"#SBATCH {directive(line)}" for line in lines)])


def options_in(text: str) -> set[str]:
    """The long names of the options of sbatch that a script sets."""
    return set(re.findall(r'(?m)^#SBATCH "?--([a-z-]+)', text))


def _gpus(options: Options) -> list[str]:
    return [f"--gres=gpu:{options.gpus}"] if options.gpus else []


def _start(record: Record) -> str:
    """What a task does before its work."""
    options = record.options
    return START.format(
        cwd=quoted(record.cwd),
        modules=_modules(options),
        cpus=options.cpus,
        restarts=options.max_restarts,
    )


def _modules(options: Options) -> str:
    return "".join(f"\nmodule load {quoted(name)}" for name in options.modules)


def _klassify(arguments: Sequence[str]) -> str:
    """A command line of this very installation, one option per line.

    -m puts the working directory first on sys.path; the scripts set PYTHONSAFEPATH so that code
    that happens to lie there is not run (Python 3.10 does not know this variable).
    """
    words = [quoted(sys.executable), "-m", "klassify.cli", *map(quoted, arguments)]
    wrapped = (f" \\\n  {word}" if word.startswith("--") else f" {word}" for word in words[4:])
    return " ".join(words[:4]) + "".join(wrapped)


def quoted(text: object) -> str:
    """`text` as one word for a shell."""
    return shlex.quote(one_line(str(text), "a path or an argument"))


def directive(text: str) -> str:
    """`text` as one word of an #SBATCH line, which has its own rules of quoting."""
    if re.fullmatch(r"[\w./:=,@%+-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
