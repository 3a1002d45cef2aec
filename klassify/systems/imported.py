"""A released checkpoint as a system of its own."""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError
from klassify.files import read_json, write_json
from klassify.models.weights.load import WEIGHTS
from klassify.models.weights.published import KEY_MAPS
from klassify.settings import already_done, file_hash
from klassify.systems.experiment import (
    ENVIRONMENT,
    METRICS,
    STATE,
    Experiment,
    environment,
    load_experiment,
    save_config,
)

SOURCES = tuple(KEY_MAPS)
ARCHITECTURES = {  # of the released files
    "fairseq": "xlsr53",
    "transformers": "xlsr53",
    "wavlm": "wavlm-large",
    "ssl-anti-spoofing": "xlsr300m",
    "bam": "wavlm-large",
    "partialspoof": "large-robust",
    "aasist": "aasist",
}
# Settings that a released model was trained with and that its tensors do not tell: (attribute,
# value, override)
NORMALISED = "frontend.init_args.normalize_input"
TRAINED_WITH = {
    "ssl-anti-spoofing": ("frontend.normalize_input", False, f"{NORMALISED}=false"),
    "bam": ("frontend.normalize_input", True, f"{NORMALISED}=true"),
    "partialspoof": ("frontend.normalize_input", True, f"{NORMALISED}=true"),
    "visual": ("backbone.blocks.0.strided", True, "spatiotemporal.init_args.fc_grouping=strided"),
}
FROM_SEGMENTS = ("bam", "partialspoof", "visual")  # their authors trained them on segment labels
SETTINGS = "settings.json"


def _weights_of_folder(folder: Path) -> Path:
    from klassify.models.weights.load import locate_weights

    return locate_weights(str(folder))


def _hash(path: Path) -> str:
    """SHA-256 of a file; of an index, that of its shards' hashes."""
    from klassify.models.weights.load import INDEX, shards_of

    if not path.is_file():
        raise KlassifyError("This checkpoint does not exist.", where=path)
    if not path.name.endswith(INDEX):
        return file_hash(path)
    hashes = "".join(_hash(path.with_name(shard)) for shard in sorted(shards_of(path)))
    return hashlib.sha256(hashes.encode()).hexdigest()


def _architecture(args: argparse.Namespace) -> str | dict[str, Any] | None:
    text = args.architecture or ARCHITECTURES.get(args.source)
    if args.source not in ARCHITECTURES and args.architecture:
        raise KlassifyError(
            f"--architecture says nothing about {args.source}.", fix="give the sizes in a --config"
        )
    if not text or not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise KlassifyError(f"--architecture is not readable JSON: {error}.", where=text) from None


def released_model(source: str, architecture: Any) -> Any:
    """The model that a kind of file is for, in the size and with the settings of the released
    one.
    """
    if source in ("vqvae", "visual"):
        from klassify.models.spatiotemporal import SpatioTemporal
        from klassify.models.visual import Visual
        from klassify.models.vqvae import VQVAE

        return (
            VQVAE() if source == "vqvae" else Visual(SpatioTemporal(fc_grouping="strided"), VQVAE())
        )
    if source == "fusion":
        from klassify.models.linear_fusion import LinearFusion

        return LinearFusion()
    if source == "aasist":
        from klassify.models.raw_aasist import SIZES, RawAASIST

        if str(architecture) not in SIZES:
            raise KlassifyError(
                f"No AASIST is called {architecture!r}.", fix=f"choose one of {', '.join(SIZES)}"
            )
        return RawAASIST(architecture)
    from klassify.models.bam import BAM
    from klassify.models.frontends.ssl import SSLFrontEnd
    from klassify.models.partialspoof import PartialSpoof
    from klassify.models.w2v_aasist import W2VAASIST

    normalize_input = source in TRAINED_WITH and TRAINED_WITH[source][1]
    frontend = SSLFrontEnd(normalize_input=normalize_input, architecture=architecture)
    on_top = {"ssl-anti-spoofing": W2VAASIST, "bam": BAM, "partialspoof": PartialSpoof}
    return on_top[source](frontend) if source in on_top else frontend.model


def experiment_of(args: argparse.Namespace) -> Experiment:
    """The config's model and data; KlassifyError where TRAINED_WITH has another setting."""
    experiment = load_experiment(args.config, args.overrides)
    if args.source in TRAINED_WITH:
        path, value, override = TRAINED_WITH[args.source]
        set_to = functools.reduce(
            lambda part, name: getattr(part, name, value), path.split("."), experiment.model
        )
        if set_to != value:
            raise KlassifyError(
                f"The released {args.source} model was trained with {override}; this config has"
                " something else.",
                where=args.config,
                fix=f"give model.init_args.{override} behind the file",
            )
    return experiment


def _vqvae_of(model: Any, args: argparse.Namespace) -> Path | None:
    """The file of the VQ-VAE, which a visual model's own file lacks; None for other models."""
    if args.source != "visual":
        if args.vqvae:
            raise KlassifyError(
                f"--vqvae belongs to visual, not to {args.source}.", where=args.vqvae
            )
        return None
    from klassify.models.weights.load import weights_path

    if not hasattr(model, "vqvae"):
        raise KlassifyError("The config's model is not a visual model.", where=args.config)
    given = args.vqvae or model.vqvae_weights
    if not given:
        raise KlassifyError(
            "A released visual model comes without its VQ-VAE.",
            where=args.file,
            fix="give --vqvae vqvae.pt, or one that was trained here",
        )
    return weights_path(Path(given))


def _load(model: Any, args: argparse.Namespace, vqvae: Path | None) -> Any:
    """Put the published weights into the model; the ImportReport of what went where."""
    from klassify.models.weights.load import import_state, import_weights, read_checkpoint

    if not vqvae:
        return import_weights(model, args.file, args.source)
    import_weights(model.vqvae, vqvae, "vqvae")
    more = {f"vqvae.{key}": value for key, value in model.vqvae.state_dict().items()}
    return import_state(model, read_checkpoint(args.file), args.source, where=args.file, more=more)


def _save(model: Any, path: Path, origin: dict[str, str]) -> None:
    from klassify.models.weights.load import save_weights, speech_settings

    metadata = {**origin, "class_1": "fake"}
    if settings := speech_settings(model):
        metadata["settings"] = json.dumps(settings)
    save_weights(model, path, metadata)


def _imported_already(folder: Path, settings: dict[str, Any], force: bool) -> bool:
    """Whether the folder holds the same import, complete; others are refused unless `force`."""
    record, system = folder / SETTINGS, folder / "system.yaml"
    if folder.exists() and not folder.is_dir():
        raise KlassifyError("This is not a folder.", where=folder)
    if (
        not (force or record.exists() or system.exists())
        and folder.is_dir()
        and any(folder.iterdir())
    ):
        raise KlassifyError(
            "This folder is not a system, and it is not empty.",
            where=folder,
            fix="name another folder, or pass --force to put a system beside its files",
        )
    made_with = read_json(record) if record.exists() else {} if system.exists() else None
    return already_done(record, made_with, settings, force=force) and system.exists()


def _write_system(
    folder: Path, experiment: Experiment, source: str, origin: dict[str, str]
) -> None:
    """Write what a training leaves in its folder; system.yaml, which makes it a system, last."""
    from klassify.systems.system import System, write_system

    data = experiment.data
    for name in ("system.yaml", "training.json", STATE, METRICS, WEIGHTS):  # of an older system
        (folder / name).unlink(missing_ok=True)
    _remove_scores(folder / "scores")
    write_json(folder / SETTINGS, {"config": experiment.resolved, "imported": origin})
    save_config(folder, experiment.resolved)
    write_json(folder / ENVIRONMENT, environment())
    _save(experiment.model, folder / WEIGHTS, origin)
    supervision = "segment" if source in FROM_SEGMENTS else data.supervision
    name = folder.resolve().name
    write_system(
        folder,
        System(
            name, "model", data.modality, supervision, data.scale, parameters={"imported": origin}
        ),
    )


def _remove_scores(folder: Path) -> None:
    """Remove score files, their parts, and folders that are then empty; other files stay."""
    from klassify.scores.chunks import NAME
    from klassify.scores.score_file import KINDS, read_header

    for path in sorted(folder.rglob("*"), reverse=True):  # what a folder holds before the folder
        kind = next((ending for ending in KINDS.values() if path.name.endswith(ending)), None)
        with contextlib.suppress(KlassifyError, OSError):  # another file; a folder in use
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif NAME.fullmatch(path.name):
                path.unlink()
            elif kind and read_header(path):
                path.unlink()
                path.with_name(f"{path.name.removesuffix(kind)}.failures.tsv").unlink(
                    missing_ok=True
                )
    with contextlib.suppress(OSError):
        folder.rmdir()
