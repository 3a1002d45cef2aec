"""The text of the batch scripts. Everything that a user gives is quoted, or refused if it contains
a line break.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from klassify.cluster.options import Options, one_line
from klassify.errors import KlassifyError

# options of sbatch that a job without a GPU must not have
OF_GPUS = re.compile(r"--(gres|tres|[a-z-]*gpu)")

ARRAY = """{head}
# {title}, cut into {n} shards, one per task. Files appear only when they are complete.
#   submitted with   sbatch --array=1-{first}{parallel} array.sh{beyond}
#   progress         klassify status {folder}
#   missing shards   klassify resume {folder}

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
#   progress        klassify status {folder}
#   submit again    klassify resume {folder}

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


def array_script(
    title: str,
    arguments: Sequence[str],
    options: Options,
    folder: Path,
    out: Path,
    pattern: str,
    name: str,
    cwd: str,
    width: int,
) -> str:
    """The script of an array of shards.

    arguments: of klassify, without --shard. folder: of the script, its record and logs. out: folder
    of a shard's files; pattern: their names, for a shell that knows $shard. width: largest index of
    an array.
    """
    n, first = options.shards, min(options.shards, width)
    beyond = "" if n <= width else f"    (shard {width + 1} is: sbatch --array=1 array.sh {width})"
    return ARRAY.format(
        head=head(name, folder / "logs/%A_%a.log", options, ["--ntasks=1", *gpus_of(options)]),
        title=title,
        n=n,
        first=first,
        parallel=f"%{options.max_parallel}" if options.max_parallel else "",
        beyond=beyond,
        folder=quoted(out),
        out=quoted(out),
        pattern=pattern,
        start=start(options, cwd),
        command=klassify(arguments),
        end=END.format(after=""),
    )


def job_script(
    title: str,
    arguments: Sequence[str],
    options: Options,
    folder: Path,
    out: Path,
    name: str,
    cwd: str,
) -> str:
    """The script of one job over nodes: one process per GPU, or one per node without GPUs."""
    tasks = [
        f"--nodes={options.nodes}",
        f"--ntasks-per-node={options.gpus or 1}",
        *gpus_of(options),
    ]
    return JOB.format(
        head=head(name, folder / "logs/%j.log", options, tasks),
        title=title,
        unit="GPU" if options.gpus else "node",
        folder=quoted(out),
        out=quoted(out),
        what=quoted(title),
        cpus=options.cpus,
        start=start(options, cwd),
        command=klassify(arguments),
        end=END.format(after=RETRY.format(restarts=options.max_restarts)),
    )


def merge_script(
    title: str, arguments: Sequence[str], options: Options, folder: Path, name: str, cwd: str
) -> str:
    """The script of the job that follows an array. It computes nothing, so it asks for no GPU and
    for an hour at most, or the time of a shard if that is shorter.
    """
    kept = tuple(text for text in options.sbatch if not OF_GPUS.match(text))
    time = options.time if options.limit_s < 3600 else "01:00:00"
    small = options.changed(time=time, cpus=1, gpus=0, grace=0, sbatch=kept)
    return MERGE.format(
        head=head(name, folder / "logs/merge-%j.log", small, ["--ntasks=1"]),
        title=title,
        cwd=quoted(cwd),
        modules=modules(options),
        command=klassify(arguments),
    )


def head(name: str, log: Path, options: Options, tasks: Sequence[str]) -> str:
    """The options of sbatch as lines of the script."""
    if "\\" in str(log):
        raise KlassifyError(
            "Slurm cannot write logs to a folder with a backslash in its name.", where=log.parent
        )
    # in the names of logs a percent sign starts a pattern; only the file name has one
    log = Path(str(log.parent).replace("%", "%%")) / log.name
    lines = [
        f"--job-name={name}",
        f"--output={log}",
        "--open-mode=append",
        "--requeue",
        f"--time={options.time}",
    ]
    lines += [f"--signal=B:USR1@{options.grace_s}"] if options.grace_s else []
    lines += [*tasks, f"--cpus-per-task={options.cpus}", *options.sbatch]
    shebang = "#!/bin/bash -l" if options.modules else "#!/bin/bash"  # a login shell knows `module`
    return "\n".join([shebang, *(f"#SBATCH {directive(line)}" for line in lines)])


def options_in(text: str) -> set[str]:
    """The long names of the options of sbatch that a script sets."""
    return set(re.findall(r'(?m)^#SBATCH "?--([a-z-]+)', text))


def gpus_of(options: Options) -> list[str]:
    """The option of sbatch for the GPUs of a node."""
    return [f"--gres=gpu:{options.gpus}"] if options.gpus else []


def start(options: Options, cwd: str) -> str:
    """What a task does before its work."""
    return START.format(
        cwd=quoted(cwd), modules=modules(options), cpus=options.cpus, restarts=options.max_restarts
    )


def modules(options: Options) -> str:
    """The lines that load the site's modules."""
    return "".join(f"\nmodule load {quoted(name)}" for name in options.modules)


def klassify(arguments: Sequence[str]) -> str:
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
