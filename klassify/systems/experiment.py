"""A system's experiment folder: its resolved config, its environment, its seeds.

A system's YAML has three keys: `model` and `data` (a class path with its `init_args`) and `train`
(see TrainSettings). It is parsed against the typed signatures of those classes, so that an unknown
or mistyped key is refused by name before any data is read. The resolved config, with every default
written out, is saved as `config.yaml` in the system's folder and can be fed back.

A fourth key, `base: w2v_aasist.yaml`, names a config in the same folder that this one changes:
mappings are merged key by key, everything else is replaced, and so are the `init_args` of another
`class_path`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import itertools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import yaml

from klassify.errors import KlassifyError
from klassify.files import read_yaml, similar, write_text
from klassify.settings import check_shares, check_sizes, check_weights, key_and_value

CONFIG = "config.yaml"
ENVIRONMENT = "env.json"
METRICS = "metrics.csv"
SETTINGS = "settings.json"  # everything that trained weights depend on
STATE = "checkpoints/last.pt"
# what jsonargparse says after a problem: the other types that an argument may have
END_OF_PROBLEM = re.compile(r"- Expected a <class 'NoneType'>|Given value type: ")
REPORTED_PACKAGES = (
    *("klassify", "torch", "torchaudio", "transformers", "mediapipe", "av", "numpy"),
    "scikit-learn",
)


@dataclasses.dataclass
class TrainSettings:
    """How one model is trained.

    Args:
        epochs: at most this many passes over the training clips.
        max_updates: stop at the end of the epoch that reaches so many updates; 0: no limit.
        repeats: how often each clip is drawn in an epoch, each time another example of it.
        by_source: share of the epochs, the first ones, in which clips of the same source follow one
            another, fakes beside the clip that they were made from.
        validate_from: share of the epochs after which validation begins; the models of earlier
            epochs are not candidates for the best.
        patience: stop after this many epochs in a row without a better validation metric.
        monitor: `auc` of the validation clips against the model's own label, or `loss`, which a
            model without scores needs.
        batch_size: clips per step and process (one for each device).
        accumulate: steps whose gradients are averaged into one update.
        pseudo: a list of pseudo-labels (`klassify pseudo`) whose clips are trained on too.
        min_seconds, max_seconds: clips that the list says are shorter or longer are not trained
            on; 0: no limit.
        optimizer, lr, weight_decay: as in torch.optim.
        encoder_lr: another learning rate for the pretrained encoder of a model that has one (its
            `encoder_layers`); 0: `lr`.
        layer_decay: factor of the encoder's learning rate from each layer to the one before it.
        schedule: `constant`, `cosine` to zero over `epochs`, `one_cycle` with maximum `lr`, or
            `step`: every `step_epochs` epochs the learning rate is multiplied by `step_factor`.
        warmup: share of the updates in which the learning rate rises from zero; not for
            `one_cycle`, which does so itself.
        clip_norm: largest gradient norm; 0 leaves gradients unchanged.
        precision: `32-true`; `tf32`, in which CUDA GPUs multiply; or automatic casts, `bf16-mixed`
            or `16-mixed`, and TF32 for the rest. Validation is in TF32 on CUDA GPUs, in float32
            elsewhere.
        compile: let torch compile the loss. If that fails, training says so and goes on without.
        log_every: look at the loss every so many steps, whether it is a number and, once a minute,
            to print it. A GPU is waited for then, and in no other step.
        checkpoint_steps: besides each epoch's end, save the state every so many steps; 0: never.
        logger: also log the metrics of metrics.csv, with the settings of the run, to `tensorboard`
            or `wandb` (Weights & Biases; extras of these names). Not recorded in config.yaml.
        find_unused_parameters: with several devices, look in each step for parameters that take no
            part in it. Slower; needed where a trained parameter is not used in every step, which
            an error then says.
    """

    epochs: int = 100
    max_updates: int = 0
    repeats: int = 1
    by_source: float = 0.0
    validate_from: float = 0.0
    patience: int = 10
    monitor: Literal["auc", "loss"] = "auc"
    batch_size: int = 32
    accumulate: int = 1
    pseudo: str = ""
    min_seconds: float = 0.0
    max_seconds: float = 0.0
    optimizer: Literal["adam", "adamw"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-2
    encoder_lr: float = 0.0
    layer_decay: float = 1.0
    schedule: Literal["constant", "cosine", "one_cycle", "step"] = "cosine"
    step_epochs: int = 10
    step_factor: float = 0.5
    warmup: float = 0.0
    clip_norm: float = 0.0
    precision: Literal["32-true", "tf32", "bf16-mixed", "16-mixed"] = "32-true"
    compile: bool = False
    log_every: int = 50
    checkpoint_steps: int = 0
    logger: Literal["none", "tensorboard", "wandb"] = "none"
    find_unused_parameters: bool = False

    def __post_init__(self) -> None:
        for least, names in (
            (1, ("epochs", "repeats", "batch_size", "accumulate", "step_epochs", "log_every")),
            (0, ("max_updates", "patience", "checkpoint_steps")),
        ):
            check_sizes(least, **{name: getattr(self, name) for name in names})
        numbers = (
            "min_seconds",
            "max_seconds",
            "lr",
            "weight_decay",
            "step_factor",
            "clip_norm",
            "encoder_lr",
        )
        check_weights(**{name: getattr(self, name) for name in numbers})
        shares = {"layer_decay": self.layer_decay, "warmup": self.warmup}
        shares |= {"by_source": self.by_source, "validate_from": self.validate_from}
        check_shares(**shares)
        if self.validate_from == 1:
            raise ValueError("validate_from is less than 1: without validation there is no best")


@dataclasses.dataclass
class Experiment:
    """A parsed config: the classes built, and the plain values they were built from."""

    model: Any  # torch.nn.Module
    data: Any  # klassify.data.base.ClipData
    train: TrainSettings
    resolved: dict[str, Any]


def _parser(*, whole: bool = True) -> Any:
    from jsonargparse import ArgumentParser
    from torch import nn

    from klassify.data.base import ClipData

    parser = ArgumentParser(exit_on_error=False)
    if whole:
        parser.add_subclass_arguments(nn.Module, "model", required=True)
    parser.add_subclass_arguments(ClipData, "data", required=True)
    if whole:
        parser.add_class_arguments(TrainSettings, "train")
    return parser


def load_experiment(
    config: str | os.PathLike, overrides: Sequence[str] = (), *, seed: int = 0
) -> Experiment:
    """Parse a system's YAML with `key=value` overrides and build its model (seeded) and data.

    Raises KlassifyError that names the key for anything unknown or of the wrong type.
    """
    path = Path(config)
    content = _read_yaml(path)
    for item in overrides:
        _override(content, *key_and_value(item, "train.epochs=3"))
    parser = _parser()
    with _valid(path):
        namespace = parser.parse_object(content)
        resolved = json.loads(parser.dump(namespace, format="json", skip_none=False))
        del resolved["train"]["logger"]  # which says nothing about the system
        seed_everything(seed)
        built = parser.instantiate_classes(namespace)
        built.data.check_model(built.model)
    return Experiment(built.model, built.data, built.train, resolved)


def load_data(config: str | os.PathLike) -> Any:
    """The ClipData of a system's YAML, all of which is parsed; the model is not built. Raises
    KlassifyError.
    """
    from jsonargparse import Namespace

    path = Path(config)
    content = _read_yaml(path)
    with _valid(path):
        data = _parser().parse_object(content).data
        return _parser(whole=False).instantiate_classes(Namespace(data=data)).data


@contextlib.contextmanager
def _valid(path: Path) -> Iterator[None]:
    """What an invalid config raises becomes a KlassifyError."""
    from jsonargparse import ArgumentError

    try:
        yield
    except (ArgumentError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        # RuntimeError: torch's, of impossible sizes
        what, fix = _briefly(str(error))
        raise KlassifyError(f"The config is not valid: {what}", where=path, fix=fix) from None


def _briefly(text: str) -> tuple[str, str | None]:
    """The innermost problem of a message of jsonargparse, and the argument that may be meant."""
    _, _, problem = text.rpartition("Problem with given class_path ")
    lines = itertools.takewhile(lambda line: not END_OF_PROBLEM.search(line), problem.splitlines())
    what = " ".join(line.strip() for line in lines)
    what = re.sub(r"<class '([\w.]+)'>", r"\1", what)
    unknown = re.search(r"[Oo]ption '(\w+)'", what)
    if unknown is None:
        return what, None
    at = re.match(r"'([\w.]+)\.(\w+)': ", what)
    takes = vars(sys.modules[at[1]])[at[2]] if at else TrainSettings
    close = difflib.get_close_matches(unknown[1], inspect.signature(takes).parameters, n=1)
    return what, f"did you mean {close[0]}?" if close else None


def _read_yaml(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A config's content laid over that of its base. below: the configs that name this one."""
    if not path.is_file():
        what = "This system config does not exist."
        raise KlassifyError(what, where=path, fix=similar(path))
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise KlassifyError(
            "A system config is a mapping with the keys model, data and train.", where=path
        )
    if "base" not in content:
        return content
    base = content.pop("base")
    if not isinstance(base, str) or not re.fullmatch(r"[\w.-]+\.yaml", base):
        raise KlassifyError(
            f"base: {base!r} is not the name of a YAML file in the same folder.", where=path
        )
    if path.with_name(base) in (path, *below):
        raise KlassifyError("This config is its own base.", where=path)
    return _merged(_read_yaml(path.with_name(base), (path, *below)), content)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` laid over `base`; another class_path replaces the arguments too."""
    if changes.get("class_path", base.get("class_path")) != base.get("class_path"):
        return changes
    both = {
        key: _merged(base[key], value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | changes | both


def _override(content: dict[str, Any], keys: str, value: Any) -> None:
    """Set the value at a dotted key, as train.epochs to 3."""
    *path, last = keys.split(".")
    for key in path:
        content = content.setdefault(key, {})
        if not isinstance(content, dict):
            raise KlassifyError(f"{keys!r} sets a key of {key!r}, which is a value, not a mapping.")
    content[last] = value


def dump_config(resolved: dict[str, Any]) -> str:
    """The resolved config as YAML text."""
    return yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)


def save_config(folder: Path, resolved: dict[str, Any]) -> None:
    """Write config.yaml, from which the system can be built again."""
    write_text(folder / CONFIG, dump_config(resolved))


def seed_everything(seed: int) -> None:
    """Seed Python's and torch's generators; those of numpy are made from (seed, epoch, clip)."""
    import random

    import torch

    random.seed(seed)
    torch.manual_seed(seed)


def git_commit() -> str:
    """The commit of this package's checkout, '+changes' if it is dirty; '' elsewhere."""
    here = str(Path(__file__).resolve().parent)
    options = ["describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    try:
        commit = subprocess.run(
            ["git", "-C", here, *options], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit.stdout.strip()


def environment() -> dict[str, Any]:
    """What a run depends on besides its config: versions, platform, commit, command line."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "versions": versions,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "commit": git_commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
