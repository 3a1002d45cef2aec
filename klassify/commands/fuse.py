"""Join systems: maximum, mean or a regression of clip scores, or a linear layer over frames.

    klassify fuse exp/demo/klassify/{w2v_aasist-platt,tcn-platt} --out exp/demo/klassify/maxout \\
        --rule max
    klassify fuse exp/demo/multibranch/{ps,visual} --out exp/demo/multibranch/fused \\
        --rule linear --labels data_lists/demo
    klassify fuse exp/demo/fused/{audio_mil,lips_mil} --out exp/demo/fused/stack \\
        --rule stack --labels data_lists/demo

`max` is the rule of paper 1 (section 4.1): a clip is as fake as its more suspicious modality. It
needs calibrated probabilities; otherwise the input with the larger scores dominates. `mean` also
takes log-odds, through a sigmoid: the AVG row of Table 2. If an input has no answer for a clip, the
others answer. If none has, the clip gets the prior: `--prior`, else the rule applied to the base
rates of the inputs' calibrations (0.5 without one). The column `answered` counts the inputs that
answered; `reason` says why others did not.

`linear` is the fusion of paper 2 (section 2.2): on the 40 ms grid, the visual logits and
PartialSpoof's cosines at 160, 320 and 640 ms go through a linear layer. It is fitted on the frames
of val_fit and reported on val_report, which share no source; with one input it is an ablation. Task
1 of the challenge forbids segment labels: `--supervision clip` fits on clip labels, and takes only
inputs trained on clip labels. `--weights` uses released weights.

`stack` is a logistic regression over the inputs' log-odds, fitted on val_fit (--subset). It answers
only where it beats max-out of the best calibrated input of sound and of the picture on val_report
(--report) by a paired bootstrap over sources; otherwise it is that max-out.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from klassify.arguments import at_least_0, at_least_1, between_0_and_1
from klassify.errors import KlassifyError
from klassify.systems import linear, stack
from klassify.systems.align import HOLD_S
from klassify.systems.base import SYSTEM, System
from klassify.systems.fused import RULES, check_inputs, fuse
from klassify.systems.linear_fit import FitOptions, make_linear
from klassify.systems.stack import make_stack
from klassify.systems.system import load_systems

# of --rule linear alone
FIT_OPTIONS = tuple(field.name for field in dataclasses.fields(FitOptions))
LINEAR_OPTIONS = ("labels", "weights", "resolutions", "hold", *FIT_OPTIONS)
STACK_OPTIONS = ("labels", "scores_split", "subset", "report")


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="SYSTEM_DIR", help="the systems to join")
    add("--out", type=Path, required=True, help="folder of the fusion")
    add("--rule", choices=(*RULES, linear.RULE, stack.RULE), required=True, help="see above")
    add(
        "--prior",
        type=between_0_and_1,
        help="probability of a clip without an answer from any input",
    )
    add("--force", action="store_true", help="replace a fusion made from other inputs")
    configure_linear(
        parser.add_argument_group("--rule linear; labels and subsets: also --rule stack")
    )


def configure_linear(group: argparse._ArgumentGroup) -> None:
    """Arguments of `klassify fuse --rule linear`."""
    add = group.add_argument
    add("--labels", type=Path, help="folder of the data lists, such as data_lists/demo")
    add("--label", choices=("union", "audio", "visual"), help="what counts as fake (default union)")
    add("--supervision", choices=("segment", "clip"), help="labels of frames (default) or clips")
    add(
        "--solver",
        choices=("exact", "one_cycle", "constant"),
        help="exact minimum (default) or steps as published",
    )
    add(
        "--epochs",
        type=at_least_1,
        help="epochs of the solvers one_cycle and constant (default 50)",
    )
    add(
        "--seed",
        type=at_least_0,
        help="random seed of the solvers one_cycle and constant (default 0)",
    )
    add(
        "--weights", type=Path, metavar="FILE.safetensors", help="released weights instead of a fit"
    )
    add(
        "--resolutions",
        metavar="MS,...",
        help="resolutions of PartialSpoof's cosines in ms (default 160,320,640)",
    )
    add(
        "--hold",
        type=float,
        metavar="S",
        help=(
            "seconds for which the last frame of an input that "
            "ends early is repeated (default 0.64; inf with --weights)"
        ),
    )
    add(
        "--aggregate",
        choices=("max", "top"),
        help="clip score: the highest frame (default), or the mean of the highest tenth",
    )
    add("--scores-split", help="split whose scores are used (default val)")
    add("--subset", help="clips of that split to fit on (default val_fit)")
    add("--report", help="clips for the printed numbers (default val_report)")


def run(args: argparse.Namespace) -> int:
    check_inputs(args.out, args.inputs, 1 if args.rule == linear.RULE else 2)
    inputs = load_systems(args.inputs)
    if args.rule == linear.RULE:
        system = _linear(args, inputs)
    elif args.rule == stack.RULE:
        system = _stack(args, inputs)
    else:
        _refuse_options(args, LINEAR_OPTIONS)
        system = fuse(args.out, inputs, args.rule, prior=args.prior, force=args.force)
    if system is None:
        print(f"{args.out / SYSTEM} is up to date")
    elif args.rule == linear.RULE:
        print(_summary(system))
    elif args.rule == stack.RULE:
        print(_stack_summary(system))
    else:
        names = ", ".join(one.name for one in inputs)
        print(f"{system.name}: {args.rule} of {names}, prior {system.prior:.4g}")
    return 0


def _refuse_options(args: argparse.Namespace, names: Sequence[str]) -> None:
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    if given:
        raise KlassifyError(
            f"The rule {args.rule} has no {', '.join(given)}.", fix=f"--rule {linear.RULE}"
        )


def _linear(args: argparse.Namespace, inputs: Sequence[System]) -> System | None:
    if bool(args.labels) == bool(args.weights):
        raise KlassifyError(
            "Give --labels to fit the fusion, or --weights for released ones; one of the two."
        )
    given = {name: getattr(args, name) for name in FIT_OPTIONS}
    options = FitOptions(**{name: value for name, value in given.items() if value is not None})
    return make_linear(
        args.out,
        inputs,
        options,
        labels=args.labels,
        weights=args.weights,
        hold_s=_hold(args),
        resolutions=_resolutions(args.resolutions),
        prior=args.prior,
        force=args.force,
    )


def _stack(args: argparse.Namespace, inputs: Sequence[System]) -> System | None:
    _refuse_options(args, [name for name in LINEAR_OPTIONS if name not in STACK_OPTIONS])
    if args.labels is None:
        raise KlassifyError("Give --labels to fit the stack.")
    given = {name: getattr(args, name) for name in STACK_OPTIONS[1:]}
    chosen = {name: value for name, value in given.items() if value is not None}
    return make_stack(args.out, inputs, args.labels, prior=args.prior, force=args.force, **chosen)


def _resolutions(text: str | None) -> Sequence[int]:
    if text is None:
        return linear.RESOLUTIONS
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise KlassifyError(f"--resolutions are numbers of milliseconds, not {text!r}.") from None


def _hold(args: argparse.Namespace) -> float | None:
    """hold_s of klassify.systems.align.aligned; the published fusion holds to the clip's end."""
    if args.hold is None:
        return None if args.weights else HOLD_S
    if not args.hold >= 0:
        raise KlassifyError(f"--hold is a number of seconds, not {args.hold}.")
    return None if np.isinf(args.hold) else args.hold


def _summary(system: System) -> str:
    given = system.parameters
    if "fit" not in given:
        return f"{system.name}: released weights, supervision {system.supervision}"
    fit, report = given["fit"], given["report"]
    auc = ", ".join(
        f"{name} {'-' if value is None else format(value, '.4f')}"
        for name, value in report["auc"].items()
    )
    return (
        f"{system.name}: {fit['solver']} fit on {fit['n_frames']} frames of {fit['n_clips']} clips,"
        f" {fit['unit']} labels ({fit['label']}), loss {fit['loss']:.4f}\n  {report['unit']} AUC on"
        f" {report['n']} {report['unit']}s of {report['subset']}: {auc}"
    )


def _stack_summary(system: System) -> str:
    report = system.parameters["report"]
    chosen = {
        stack.RULE: "the stack answers",
        stack.MAX_OUT: "the gain is not certain: max-out answers",
    }
    return (
        f"{system.name}: AUC {report['auc']:.4f} on {report['n']} clips of {report['subset']},"
        f" max-out {report['auc_max']:.4f}; gain {report['gain']:+.4f}"
        f" ({report['gain_low']:+.4f} to {report['gain_high']:+.4f});"
        f" {chosen[system.parameters['chosen']]}"
    )
