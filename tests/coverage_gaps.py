"""What the tests run of the package, folder by folder, and what they do not, with the reason.

    python -m tests.coverage_gaps coverage.json
        # as `make coverage` does; coverage.json is coverage.py's report

A gap is a function, or the top level of a module, of which no line runs, or at least GAP lines do
not. Each has a line in tests/not_covered.tsv: the place as a pattern,
`klassify/file.py:Class.function`, and why. A gap without a reason, or a reason without a gap, ends
with exit status 1.
"""

from __future__ import annotations

import collections
import fnmatch
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

REASONS = Path(__file__).with_name("not_covered.tsv")
GAP = 4


class Gap(NamedTuple):
    """A place, how many of its lines do not run, and of how many."""

    place: str
    missing: int
    lines: int


def gaps(report: dict[str, Any]) -> Iterator[Gap]:
    """The gaps of a coverage report, in the order of its files."""
    for file, content in report["files"].items():
        for name, part in content["functions"].items():
            summary = part["summary"]
            missing, lines = summary["missing_lines"], summary["num_statements"]
            if missing >= GAP or (missing and missing == lines):
                yield Gap(f"{file}:{name}" if name else file, missing, lines)


def folders(report: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """{folder: (lines that run, lines)}; the modules in klassify/ itself count as one."""
    found: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for file, content in report["files"].items():
        summary, folder = content["summary"], str(Path(file).parent)
        for key in (folder, "all"):
            found[key][0] += summary["covered_lines"]
            found[key][1] += summary["num_statements"]
    return {
        key: (run, lines)
        for key, (run, lines) in sorted(found.items(), key=lambda item: (item[0] == "all", item))
    }


def reasons(text: str) -> list[tuple[str, str]]:
    """(pattern, why) of each line."""
    rows = [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]
    bad = [row for row in rows if len(row) != 2 or not row[1].strip()]
    if bad:
        raise SystemExit(f"{REASONS}: a line is a place, a tab and the reason, not {bad[0]}")
    return [(pattern, why) for pattern, why in rows]


def explained(
    found: list[Gap], known: list[tuple[str, str]]
) -> tuple[dict[str, list[Gap]], list[Gap], list[str]]:
    """{reason: its gaps}, the gaps without one, and the patterns without a gap."""
    by_reason: dict[str, list[Gap]] = {}
    unknown, used = [], set()
    for gap in found:
        match = next(
            ((pattern, why) for pattern, why in known if fnmatch.fnmatchcase(gap.place, pattern)),
            None,
        )
        if match is None:
            unknown.append(gap)
            continue
        used.add(match[0])
        by_reason.setdefault(match[1], []).append(gap)
    return by_reason, unknown, [pattern for pattern, _ in known if pattern not in used]


def main(argv: list[str]) -> int:
    """Print the table and the gaps; 1 where one has no reason, or a reason no gap."""
    report = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    report["files"] = {
        file: part for file, part in report["files"].items() if file.startswith("klassify/")
    }
    for folder, (run, lines) in folders(report).items():
        print(f"{folder:<24} {run:>6} of {lines:>6} lines  {100 * run / max(lines, 1):5.1f} %")
    by_reason, unknown, stale = explained(
        list(gaps(report)), reasons(REASONS.read_text(encoding="utf-8"))
    )
    print(f"\nnot covered ({GAP} lines or more, or all), and why:")
    for why, found in sorted(by_reason.items()):
        print(f"  {why}")
        for gap in found:
            print(f"    {gap.place}: {gap.missing} of {gap.lines}")
    for gap in unknown:
        print(f"NO REASON  {gap.place}: {gap.missing} of {gap.lines} lines", file=sys.stderr)
    for pattern in stale:
        print(f"NO GAP     {pattern}", file=sys.stderr)
    return int(bool(unknown or stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
