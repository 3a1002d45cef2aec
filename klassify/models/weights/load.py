"""Weights into models: our own, strictly, and published ones by the names of
klassify.models.weights.published.

The model gets every tensor that it has, in our order of classes (1 = fake); what it does not need
is left out, and the report names it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from klassify.errors import KlassifyError, first_few
from klassify.models.weights.checkpoint import known_settings, read_published
from klassify.models.weights.published import (
    KEY_MAPS,
    NOTHING,
    SETTINGS,
    SPEECH_MODELS,
    KeyMap,
    detect_source,
)
from klassify.models.weights.safetensors_file import read_tensors

SHOWN = 20  # names of a kind in a message
# where a file has the model several times, such as averaged over training beside it
PREFERRED = ("model_state_dict", "model_weight", "state_dict", "model")
# of torch itself, also within names; the last three of a model that was saved whole
TORCH_WRAPPERS = re.compile(
    r"(^|(?<=\.))(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module"
    r"|_modules|_parameters|_buffers)\."
)


def load_weights(model: nn.Module, path: str | Path, below: str = "") -> dict[str, str]:
    """Load a file written by save_weights into the same model, strictly; returns its metadata.

    below: the prefix of a part of a larger model, such as "vqvae.", to load that part alone.
    """
    state, metadata = read_tensors(path)
    state = {
        key.removeprefix(below): value for key, value in state.items() if key.startswith(below)
    }
    _load_strictly(model, state, where=path)
    return metadata


def misfits(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], optional: str = NOTHING
) -> str:
    """Names in `state` that are missing (except `optional`), unexpected or of another shape than in
    `wanted`, as text; "" where it fits.
    """
    complaints = {
        "missing": [key for key in wanted if key not in state and not re.fullmatch(optional, key)],
        "unexpected": [key for key in state if key not in wanted],
        "of another shape": [
            f"{key} {list(value.shape)} there, {list(wanted[key].shape)} in the model"
            for key, value in state.items()
            if key in wanted and value.shape != wanted[key].shape
        ],
    }
    return "; ".join(
        f"{len(keys)} {kind} ({first_few(keys, SHOWN)})"
        for kind, keys in complaints.items()
        if keys
    )


def _load_strictly(
    model: nn.Module, state: Mapping[str, Tensor], where: object, optional: str = NOTHING
) -> list[str]:
    """Load `state`, or KlassifyError with all misfits; returns the missing `optional` names."""
    wanted = model.state_dict()
    if told := misfits(state, wanted, optional):
        raise KlassifyError(
            f"These weights do not fit the model: of {len(wanted)} tensors, {told}.",
            where=where,
            fix=(
                "use the settings that the file was made with (config.yaml in its folder, or those"
                " of its project)"
            ),
        )
    absent = [key for key in wanted if key not in state]
    model.load_state_dict(state, strict=not absent)
    return absent


def speech_settings(model: nn.Module) -> dict[str, Any]:
    """SETTINGS of the speech model in a model; {} where there is none."""
    configs = (module.config for module in model.modules() if hasattr(module, "config"))
    config = next(configs, None)
    return known_settings({name: getattr(config, name, None) for name in SETTINGS})


def _refuse_other_settings(model: nn.Module, theirs: Mapping[str, Any], where: object) -> None:
    """KlassifyError where a file was trained with other settings than the model's."""
    ours = speech_settings(model)
    theirs = {name: value for name, value in theirs.items() if name in ours}
    other = [
        f"{name} {value!r} there, {ours[name]!r} here"
        for name, value in theirs.items()
        if value != ours[name]
    ]
    if not other:
        return
    settings = {**ours, **theirs}
    family = settings.pop("model_type")
    fix = f"set the architecture to '{json.dumps({'family': family, **settings})}'"
    if family not in ("wav2vec2", "wavlm"):
        fix = "use a file of a wav2vec 2.0 or WavLM model"
    raise KlassifyError(
        f"These weights were trained with other settings: {'; '.join(other)}.", where=where, fix=fix
    )


def _refuse_not_finite(state: Mapping[str, Tensor], where: object) -> None:
    for name, tensor in state.items():
        if tensor.is_meta or not tensor.is_floating_point():
            continue
        plain = tensor.float() if tensor.element_size() < 2 else tensor  # 8 bits have no isfinite
        if not torch.isfinite(plain).all():
            raise KlassifyError(
                f"{name} in this file has values that are NaN or infinite.",
                where=where,
                fix="download it again, or use an earlier checkpoint of its training",
            )


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What an import did: the kind of file, the number of tensors loaded, their names left out, our
    optional names that the file lacked, our names put into our order of classes, the wrapper that
    was stripped from their names, the licence of the weights, and whether the file does not say
    its SETTINGS, so that they could not be compared.
    """

    source: str
    loaded: int
    left_out: list[str]
    lacking: list[str]
    reordered: Sequence[str] = ()
    stripped: str = ""
    licence: str = ""
    unchecked: bool = False

    def __str__(self) -> str:
        article = "an" if self.source[0] in "aeio" else "a"
        text = f"{self.loaded} tensors of {article} {self.source} file"
        if self.stripped:
            text += f"; stripped from their names: {self.stripped}"
        if self.reordered:
            text += f"; put into the order real, fake: {summary(self.reordered)}"
        if self.left_out:
            text += f"; left out because the model does not use them: {summary(self.left_out)}"
        if self.lacking:
            text += f"; not in the file, so left as initialised: {summary(self.lacking)}"
        if self.unchecked:
            text += "; without config.json, so its heads, norms and strides were not checked"
        if self.licence:
            text += f"; licence of the weights: {self.licence}"
        return text


def summary(keys: Sequence[str]) -> str:
    """A few names in full; of many, how many there are under each first part."""
    if len(keys) <= SHOWN:
        return ", ".join(keys)
    return ", ".join(
        f"{start}.* ({n})" for start, n in Counter(key.partition(".")[0] for key in keys).items()
    )


def unwrapped(
    state: Mapping[str, Tensor], key_map: KeyMap, wanted: Collection[str] = (), where: object = None
) -> dict[str, str]:
    """{name below the model's wrapper: name in `state`}; names without a wrapper stay.

    Where several wrappers hold such a model, the one with most of the names that are `wanted` here
    is taken. KlassifyError where several fit equally well.
    """
    names = _plain_names(state)
    plain = {name: state[original] for name, original in names.items()}
    fits = {
        wrapper: sum(
            key_map.rename(name.removeprefix(wrapper)) in wanted
            for name in names
            if name.startswith(wrapper)
        )
        for wrapper in key_map.wrappers(plain) or [""]
    }
    best = [wrapper for wrapper in fits if fits[wrapper] == max(fits.values())]
    for container in PREFERRED:
        best = [wrapper for wrapper in best if wrapper.startswith(f"{container}.")] or best
    if len(best) > 1:
        raise KlassifyError(
            f"This file holds the model {len(best)} times, below {first_few(best)}.",
            where=where,
            fix="save the state dict of one of them alone, with its own project",
        )
    return {
        name.removeprefix(best[0]): original
        for name, original in names.items()
        if name.startswith(best[0])
    }


def _plain_names(state: Iterable[str]) -> dict[str, str]:
    """{name without torch's own wrappers: name}."""
    state = list(state)
    plain = {TORCH_WRAPPERS.sub("", name): name for name in state}
    return plain if len(plain) == len(state) else {name: name for name in state}


def _stripped(names: Mapping[str, str]) -> str:
    """What {name below the wrapper: name in the file} lack, each wrapper once."""
    found = {}
    for name, original in names.items():
        if original.endswith(name):
            found[original.removesuffix(name)] = None
        else:  # a wrapper within the name
            found |= {f"{match[2]}.": None for match in TORCH_WRAPPERS.finditer(original)}
    return ", ".join(filter(None, found))


def _module(name: str) -> str:
    """The module of a tensor, with # for each number."""
    parts = ["#" if part.isdigit() else part for part in name.split(".")]
    return ".".join(parts[:-1])


def _modules(names: Iterable[str]) -> set[str]:
    """The modules of tensors, and those around them that lie in numbered layers."""
    modules = {_module(name) for name in names}
    for module in list(modules):
        while "#" in (module := module.rpartition(".")[0]):
            modules.add(module)
    return modules


def import_state(
    model: nn.Module,
    theirs: Mapping[str, Tensor],
    source: str,
    where: object = None,
    more: Mapping[str, Tensor] = {},
) -> ImportReport:
    """Load a published state dict, wrapped or not, into a model of ours, class 1 = fake.

    What the model needs and is missing is a KlassifyError. Heads and the like, which the model does
    not need, are left out; but one more bias or layer within a module that the model has is a
    KlassifyError too, since it changes what is computed. source: a name in KEY_MAPS. more: tensors
    under our names that such a file does not have.
    """
    key_map, wanted = KEY_MAPS[source], model.state_dict()
    if not key_map.wrappers({name: theirs[key] for name, key in _plain_names(theirs).items()}):
        found = _detected(theirs, where)
        raise KlassifyError(
            f"By its names this is a {found} file, not a {source} file.", where=where
        )
    names = unwrapped(theirs, key_map, wanted, where)
    try:
        converted = key_map.convert({name: theirs[key] for name, key in names.items()})
    except KlassifyError as error:
        raise KlassifyError(error.what, where=where) from None
    modules = _modules(wanted)
    ours = {
        ours: tensor
        for ours, (name, tensor) in converted.items()
        if ours in wanted or ("." in name and _module(ours) in modules)
    }
    _refuse_not_finite(ours, where)
    given = {**ours, **more}
    if any(name not in given and not re.fullmatch(key_map.optional, name) for name in wanted):
        # the message names all others too: what is missing may be there under another name
        given |= {name: tensor for name, (_, tensor) in converted.items()}
    lacking = _load_strictly(model, given, where=where, optional=key_map.optional)
    used = {converted[name][0]: names[converted[name][0]] for name in ours}
    inside = set(names.values())
    return ImportReport(
        source,
        loaded=len(ours),
        left_out=[
            *(name for name in names if name not in used),
            *(key for key in theirs if key not in inside),
        ],
        lacking=lacking,
        reordered=[name for name in ours if key_map.order_of(name)],
        stripped=_stripped(used),
        licence=key_map.licence,
    )


def _detected(state: Mapping[str, Tensor], where: object) -> str:
    names = _plain_names(state)
    return detect_source({name: state[key] for name, key in names.items()}, where=where)


def import_weights(model: nn.Module, path: str | Path, source: str | None = None) -> ImportReport:
    """Load a published file into a model of ours; see import_state.

    source None: the names tell. The settings of a speech model must be those of the file.
    """
    tensors, settings = read_published(path)
    source = source or _detected(tensors, path)
    if source in SPEECH_MODELS:
        _refuse_other_settings(model, settings, path)
    report = import_state(model, tensors, source, where=path)
    return dataclasses.replace(report, unchecked=source in SPEECH_MODELS and not settings)
