"""Join systems at the score level: max-out of calibrated probabilities, their mean, or a linear
layer over frames.

    klassify fuse exp/demo/klassify/{w2v_aasist-platt,tcn-platt} --out exp/demo/klassify/maxout \\
        --rule max
    klassify fuse exp/demo/multibranch/{ps,visual} --out exp/demo/multibranch/fused --rule linear \
        --labels data_lists/demo

`max` is paper 1's decision (section 4.1): a clip is as fake as its more suspicious modality. It
wants calibrated probabilities, else the louder system wins. `mean` also takes log-odds, through a
sigmoid: Table 2's AVG row. A clip that one input has no answer for is answered by the others; one
that no input answers gets the prior: `--prior`, or what the rule makes of the inputs' base rates in
calibration (0.5 where there is none). The column `answered` counts the inputs that answered,
`reason` says why others did not.

`linear` is paper 2's fusion (section 2.2): on the 40 ms grid, the visual logits and PartialSpoof's
cosines at 160, 320 and 640 ms go through a linear layer. It is fitted on the frames of val_fit,
whose sources val_report does not share, and reported on val_report; one input alone is an ablation.
The challenge's Task 1 forbids segment labels: `--supervision clip` fits on clip labels, and takes
only inputs that did so too. `--weights` takes released ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.arguments import at_least_0, at_least_1, between_0_and_1
from klassify.errors import KlassifyError
from klassify.systems.fused import LINEAR, LINEAR_OPTIONS, RULES, _check_scale, default_prior
from klassify.systems.system import (
    SYSTEM,
    derived_system,
    load_system,
    made_before,
    system_hash,
    write_system,
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `klassify fuse`."""
    parser.add_argument(
        "inputs", nargs="+", type=Path, metavar="SYSTEM_DIR", help="the systems to join"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the fusion")
    parser.add_argument("--rule", choices=(*RULES, LINEAR), required=True)
    parser.add_argument(
        "--prior", type=between_0_and_1, help="probability of a clip that no input answers for"
    )
    parser.add_argument("--force", action="store_true", help="replace a fusion of something else")
    configure_linear(parser.add_argument_group(f"--rule {LINEAR}"))


def configure_linear(group: argparse._ArgumentGroup) -> None:
    """Arguments of `klassify fuse --rule linear`."""
    group.add_argument(
        "--labels", type=Path, help="folder of the data lists, such as data_lists/demo"
    )
    group.add_argument(
        "--label", choices=("union", "audio", "visual"), help="what counts as fake (default union)"
    )
    group.add_argument(
        "--supervision",
        choices=("segment", "clip"),
        help="fit on frames' labels (default) or clips'",
    )
    group.add_argument(
        "--solver", choices=("exact", "one_cycle", "constant"), help="see docs (default exact)"
    )
    group.add_argument("--epochs", type=at_least_1, help="of one_cycle and constant (default 50)")
    group.add_argument("--seed", type=at_least_0, help="of one_cycle and constant (default 0)")
    group.add_argument(
        "--weights", type=Path, metavar="FILE.safetensors", help="released weights instead of a fit"
    )
    group.add_argument(
        "--resolutions", metavar="MS,...", help="of PartialSpoof's cosines (default 160,320,640)"
    )
    group.add_argument(
        "--hold",
        type=float,
        metavar="S",
        help=(
            "seconds for which the last frame of an input that "
            "ends early counts, then it is silent (default 0.64; inf with --weights)"
        ),
    )
    group.add_argument(
        "--aggregate",
        choices=("max", "top"),
        help="frames -> clip: the highest (default), or the mean of the highest tenth",
    )
    group.add_argument("--scores-split", help="split whose scores are used (default val)")
    group.add_argument("--subset", help="clips of it to fit on (default val_fit)")
    group.add_argument("--report", help="clips of it for the printed numbers (default val_report)")


def run(args: argparse.Namespace) -> int:
    """Run `klassify fuse`."""
    folders = [path.resolve() for path in args.inputs]
    at_least = 1 if args.rule == LINEAR else 2
    if len(set(folders)) < max(at_least, len(folders)) or args.out.resolve() in folders:
        few = "two or more different systems" if at_least == 2 else "different systems"
        raise KlassifyError(f"A fusion joins {few} in a folder of its own.", where=args.out)
    if args.rule == LINEAR:
        from klassify.systems.linear_fit import run_linear

        return run_linear(args)
    given = [
        f"--{name.replace('_', '-')}" for name in LINEAR_OPTIONS if getattr(args, name) is not None
    ]
    if given:
        raise KlassifyError(
            f"The rule {args.rule} has no {', '.join(given)}.", fix=f"--rule {LINEAR}"
        )
    inputs = [load_system(folder) for folder in args.inputs]
    for system in inputs:
        _check_scale(args.rule, system.name, system.scale)
    prior = default_prior(args.rule, inputs) if args.prior is None else args.prior
    made_with = {
        "inputs": [system_hash(folder) for folder in args.inputs],
        "rule": args.rule,
        "prior": prior,
    }
    if made_before(args.out, made_with, force=args.force):
        print(f"{args.out / SYSTEM} is up to date")
        return 0
    parameters = {"rule": args.rule, "prior": prior, "made_with": made_with}
    system = derived_system(args.out, "fusion", args.inputs, "probability", parameters)
    write_system(args.out, system)
    print(f"{system.name}: {args.rule} of {', '.join(s.name for s in inputs)}, prior {prior:.4g}")
    return 0
