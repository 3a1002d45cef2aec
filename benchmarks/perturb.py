"""What perturbing a list costs beside scoring as many clips.

    python benchmarks/perturb.py exp/demo/klassify/maxout data_lists/demo/val.tsv media/demo \\
        features/demo --clips 4

Perturbs some clips by 20 families at 5 levels and scores a system on all splits, as `klassify
perturb` does, then extracts and scores the same derived clips as if they were any list. Prints CPU
seconds of all processes, which do not depend on what else the machine does, and their ratio.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
from pathlib import Path

from klassify.evaluation import robustness
from klassify.lists import data_list, subsets
from klassify.perturbation.families import FAMILIES
from klassify.perturbation.splits import Plan, make
from klassify.systems.system import load_systems


def cpu_seconds() -> float:
    """CPU time of this process and of those that have ended."""
    own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", type=Path)
    parser.add_argument("list", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("features", type=Path, help="of the clean clips")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--families", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    frame = data_list.read_list(args.list, segments=True)
    rows = subsets.sample_of_sources(subsets.sources_of(frame), args.clips)
    frame = frame.iloc[rows].reset_index(drop=True)
    names = spread(min(args.families, len(FAMILIES)))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        plan = Plan(out, args.list.stem, frame, names)
        steps = [cpu_seconds()]
        make(plan, subsets.media_folder(args.root, plan.split, plan.files), jobs=args.jobs)
        steps.append(cpu_seconds())
        for name, clean in (("linked", args.features), ("whole", None)):
            shutil.copytree(args.system.parent, out / name, ignore=shutil.ignore_patterns("scores"))
            systems = load_systems([out / name / args.system.name])
            how = {"clean_features": clean, "jobs": args.jobs, "device": "cpu"}
            robustness.answer(systems, plan, out / f"{name}-features", **how)
            steps.append(cpu_seconds())
        made, linked, whole = (after - before for before, after in zip(steps, steps[1:]))
    n = len(frame) * len(plan.steps)
    print(f"{len(frame)} clips, {len(names)} families, {len(plan.steps)} splits: {n} derived clips")
    for what, seconds in (
        ("perturbing", made),
        ("features and scores, clean features linked", linked),
        ("features and scores of as many clips", whole),
    ):
        print(f"{what:<45} {seconds:8.1f} s {1000 * seconds / n:8.1f} ms per clip")
    print(f"ratio {(made + linked) / whole:.2f}, at most 3")


def spread(n: int) -> list[str]:
    """n families, evenly from the table."""
    names = list(FAMILIES)
    return [names[i * len(names) // n] for i in range(n)]


if __name__ == "__main__":
    main()
