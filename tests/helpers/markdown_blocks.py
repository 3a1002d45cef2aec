"""Code blocks of Markdown pages, and the commands that a shell would run of them, without running
any.

A shell block is read by bash itself: every program that it may name is a stub which writes its
arguments down, so that continuation lines, braces, comments, here-documents and variables mean what
they mean to a user. A program that is not in STUBS or REAL ends the block with "command not found".
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path

# what pages may tell a user to run
STUBS = (
    *("klassify", "make", "python", "python3", "pip", "git", "docker", "ssh", "scp", "rsync"),
    *("curl", "tar", "unzip", "apt-get", "sbatch", "srun", "squeue", "torchrun", "nvidia-smi"),
    *("nohup", "tail", "head", "du", "df", "nproc", "jupyter", "xdg-open", "sha256sum", "diff"),
    *("less", "tmux", "parallel", "sudo", "accelerate", "watch", "scancel", "sacct"),
)
# harmless in an empty folder
REAL = ("cat", "mkdir", "printf", "sort", "sed", "grep", "find", "seq", "ls", "wc", "id")
SHELLS = ("sh", "bash", "console")
NAMED = re.compile(r"`([\w./-]+)`:")
COMMAND = re.compile(r" *(klassify|make) ")
RECORD = """#!/bin/bash
printf -v words '%s\\x1f' "${0##*/}" "$@"
printf '%s\\x1e' "$words" >> "$RECORD"  # one write: blocks start several at once
"""


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block. line: of its first line of code; file: what stands in a line `file`: above
    it, or "".
    """

    page: Path
    line: int
    language: str
    text: str
    file: str

    def __str__(self) -> str:
        return f"{self.page.parent.name}/{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, and those indented by four spaces (language ""), in order."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        first = number + 1
        if lines[number].startswith("```"):
            end = next((i for i in range(first, len(lines)) if lines[i].startswith("```")), None)
            assert end is not None, f"{page}:{first} a fence is left open"
            language, code = lines[number][3:].strip(), lines[first:end]
            named = (
                NAMED.fullmatch(lines[number - 2]) if number > 1 and not lines[number - 1] else None
            )
            found.append(
                Block(page, first + 1, language, "\n".join(code) + "\n", named[1] if named else "")
            )
            number = end + 1
        elif lines[number].startswith("    ") and (number == 0 or not lines[number - 1]):
            end = next(
                (i for i in range(first, len(lines)) if not lines[i].startswith("    ")), len(lines)
            )
            found.append(
                Block(page, first, "", "\n".join(line[4:] for line in lines[number:end]) + "\n", "")
            )
            number = end
        else:
            number += 1
    return found


def shell_text(block: Block) -> str:
    """What of a block is for a shell: all of `sh`; without a language, lines of our commands."""
    if block.language:
        return block.text if block.language in SHELLS else ""
    kept, goes_on = [], False
    for line in block.text.splitlines():
        if goes_on or COMMAND.match(line):
            kept.append(line)
            goes_on = line.endswith("\\")
    return "".join(line + "\n" for line in kept)


def programs(folder: Path, **scripts: str) -> Path:
    """A folder of stubs to be the whole PATH; scripts: texts of those that do something else."""
    folder.mkdir(parents=True)
    for name in {*STUBS, *scripts}:
        (folder / name).write_text(scripts.get(name, RECORD))
        (folder / name).chmod(0o755)
    for name in REAL:
        (folder / name).symlink_to(shutil.which(name))
    return folder


def run_block(block: Block, path: Path, record: Path, cwd: Path) -> list[list[str]]:
    """Run a block with only the programs of `path`; returns the recorded commands."""
    environment = {
        name: os.environ[name] for name in ("HOME", "LANG", "OMP_NUM_THREADS") if name in os.environ
    }
    record.write_text("")
    done = subprocess.run(
        ["/bin/bash", "-euc", "cd() { :; }\n" + shell_text(block)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        env=environment | {"PATH": str(path), "RECORD": str(record), "root": "/data"},
    )
    assert done.returncode == 0, (
        f"{block}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    )
    return [command.split("\x1f")[:-1] for command in record.read_text().split("\x1e")[:-1]]


def own_part(words: list[str]) -> list[str]:
    """The klassify or make command within another one (`srun klassify ...`), or []."""
    if words[0] == "docker":
        return []
    for number, word in enumerate(words):
        if word in ("klassify", "make"):
            return words[number:]
        if word == "klassify.cli" and words[number - 1] == "-m":
            return ["klassify", *words[number + 1 :]]
    return []
