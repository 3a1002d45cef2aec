"""A released checkpoint as a system of its own."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from klassify.errors import KlassifyError
from klassify.files import read_json, write_json, write_text
from klassify.models.weights import WEIGHTS
from klassify.models.weights.checkpoint import (
    INDEX,
    locate_weights,
    read_checkpoint,
    shards_of,
    weights_path,
)
from klassify.models.weights.load import ImportReport, import_state, import_weights, speech_settings
from klassify.models.weights.published import KEY_MAPS, LIPS
from klassify.models.weights.safetensors_file import save_weights
from klassify.settings import already_done, file_hash
from klassify.systems.base import SYSTEM, System, write_system
from klassify.systems.experiment import (
    ENVIRONMENT,
    METRICS,
    SETTINGS,
    STATE,
    Experiment,
    environment,
    load_experiment,
    save_config,
)
from klassify.systems.scores import PROPOSALS

SOURCES = tuple(KEY_MAPS)
ARCHITECTURES = {  # of the released files
    "fairseq": "xlsr53",
    "transformers": "xlsr53",
    "wavlm": "wavlm-large",
    "ssl-anti-spoofing": "xlsr300m",
    "bam": "wavlm-large",
    "partialspoof": "large-robust",
    "aasist": "aasist",
    "cfprf": "xlsr300m",
    "auvire": "av-deepfake1m",
    "av-hubert": "av-hubert-base",
    "raven": "raven-large",
}
# Settings that a released model was trained with and that its tensors do not show:
# (attribute, value, override)
NORMALISED = "frontend.init_args.normalize_input"
TRAINED_WITH = {
    "ssl-anti-spoofing": ("frontend.normalize_input", False, f"{NORMALISED}=false"),
    "bam": ("frontend.normalize_input", True, f"{NORMALISED}=true"),
    "partialspoof": ("frontend.normalize_input", True, f"{NORMALISED}=true"),
    "cfprf": ("frontend.normalize_input", False, f"{NORMALISED}=false"),
    "visual": ("backbone.blocks.0.strided", True, "spatiotemporal.init_args.fc_grouping=strided"),
}
# their authors trained them on segment labels
FROM_SEGMENTS = ("bam", "partialspoof", "cfprf", "visual", "auvire")
# how their authors make proposals of what the model says
PROPOSED_WITH: dict[str, dict[str, Any]] = {
    "cfprf": {"nms_sigma": 0.0, "min_score": 0.5},
    "auvire": {"nms_sigma": 0.7234, "nms_t1": 0.1968, "nms_t2": 0.4123, "min_score": 0.0},
}
# {source: (option that names it, a published name, what it is)} of a file that the first one lacks
SECOND_FILES = {
    "visual": ("--vqvae", "vqvae.pt", "VQ-VAE"),
    "cfprf": ("--prn", "2PRN_LAVDF.pth", "proposal refinement network"),
}


def _hash(path: Path) -> str:
    """SHA-256 of a file; of an index, that of its shards' hashes."""
    if not path.is_file():
        raise KlassifyError("This checkpoint does not exist.", where=path)
    if not path.name.endswith(INDEX):
        return file_hash(path)
    hashes = "".join(_hash(path.with_name(shard)) for shard in sorted(shards_of(path)))
    return hashlib.sha256(hashes.encode()).hexdigest()


def read_architecture(source: str, text: str | None) -> str | dict[str, Any] | None:
    """The name or the settings of a released model's architecture. text: a name, or JSON of the
    settings that differ from the large model's; None: the released one's.
    """
    if text and source not in ARCHITECTURES:
        raise KlassifyError(
            f"--architecture does not apply to {source}.", fix="give the sizes in a --config"
        )
    text = text or ARCHITECTURES.get(source)
    if not text or not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise KlassifyError(f"--architecture is not readable JSON: {error}.", where=text) from None


def released_model(source: str, architecture: Any) -> Any:
    """The model that takes a kind of file, with the size and settings of the released one."""
    if source in ("vqvae", "visual"):
        from klassify.models.spatiotemporal import SpatioTemporal
        from klassify.models.visual import Visual
        from klassify.models.vqvae import VQVAE

        if source == "vqvae":
            return VQVAE()
        return Visual(SpatioTemporal(fc_grouping="strided"), VQVAE())
    if source == "fusion":
        from klassify.models.linear_fusion import LinearFusion

        return LinearFusion()
    if source == "aasist":
        from klassify.models.raw_aasist import SIZES, RawAASIST

        if str(architecture) not in SIZES:
            raise KlassifyError(
                f"Unknown AASIST {architecture!r}.", fix=f"choose one of {', '.join(SIZES)}"
            )
        return RawAASIST(architecture)
    if source == "auvire":
        from klassify.models.auvire import RELEASED, AuViRe

        if str(architecture) not in RELEASED:
            raise KlassifyError(
                f"Unknown AuViRe {architecture!r}.", fix=f"choose one of {', '.join(RELEASED)}"
            )
        return AuViRe(**RELEASED[architecture])
    if source in LIPS:
        from klassify.models.lip_encoder import LipEncoder

        return LipEncoder(architecture)
    from klassify.models.bam import BAM
    from klassify.models.cfprf import CFPRF
    from klassify.models.frontends.ssl import SSLFrontEnd
    from klassify.models.partialspoof import PartialSpoof
    from klassify.models.w2v_aasist import W2VAASIST

    normalize_input = source in TRAINED_WITH and TRAINED_WITH[source][1]
    frontend = SSLFrontEnd(normalize_input=normalize_input, architecture=architecture)
    on_top = {
        "ssl-anti-spoofing": W2VAASIST,
        "bam": BAM,
        "partialspoof": PartialSpoof,
        "cfprf": CFPRF,
    }
    return on_top[source](frontend) if source in on_top else frontend.model


def released_experiment(source: str, config: Path, overrides: Sequence[str] = ()) -> Experiment:
    """A config's model and data, checked to have the settings of the released model."""
    experiment = load_experiment(config, overrides)
    model = experiment.model
    if source == "visual" and not hasattr(model, "vqvae"):
        raise KlassifyError("The config's model is not a visual model.", where=config)
    if source in TRAINED_WITH:
        path, value, override = TRAINED_WITH[source]
        found = model
        for name in path.split("."):
            found = getattr(found, name, value)
        if found != value:
            raise KlassifyError(
                f"The released {source} model was trained with {override}; this config differs.",
                where=config,
                fix=f"add model.init_args.{override} after the file",
            )
    return experiment


class Released:
    """A released checkpoint, and the model of this package that takes its weights.

    second: the file of SECOND_FILES that `file` lacks; that of a VQ-VAE may be a system folder.
    """

    def __init__(self, source: str, file: Path, model: Any, *, second: Path | None = None):
        self.source, self.model, self.second = source, model, None
        self.file = locate_weights(str(file)) if file.is_dir() else file
        if source in SECOND_FILES:
            option, name, what = SECOND_FILES[source]
            second = second or getattr(model, "vqvae_weights", None)
            if not second:
                raise KlassifyError(
                    f"A released {source} model comes without its {what}.",
                    where=file,
                    fix=f"give {option} {name}"
                    + (", or one that was trained here" if source == "visual" else ""),
                )
            self.second = weights_path(Path(second))
        self.origin = {"source": source, "file": self.file.name, "sha256": _hash(self.file)}
        if self.second:
            self.origin[f"{option.strip('-')}_sha256"] = _hash(self.second)

    def load(self) -> ImportReport:
        """Put the weights into the model; returns what went where."""
        if not self.second:
            return import_weights(self.model, self.file, self.source)
        state, more = read_checkpoint(self.file), {}
        if self.source == "visual":
            vqvae = self.model.vqvae
            import_weights(vqvae, self.second, "vqvae")
            more = {f"vqvae.{key}": value for key, value in vqvae.state_dict().items()}
        else:
            state |= read_checkpoint(self.second)
        return import_state(self.model, state, self.source, where=self.file, more=more)

    def save(self, path: Path) -> None:
        """Write the model's weights as safetensors."""
        metadata = {**self.origin, "class_1": "fake"}
        if settings := speech_settings(self.model):
            metadata["settings"] = json.dumps(settings)
        save_weights(self.model, path, metadata)

    def write_system(
        self, folder: Path, experiment: Experiment, *, force: bool = False
    ) -> ImportReport | None:
        """Load the weights and write a system folder like that of a training; None if it holds
        this import already. KlassifyError if it holds anything else, unless `force`.
        """
        settings = {"config": experiment.resolved, "imported": self.origin}
        if not force and _is_imported(folder, settings):
            return None
        report = self.load()
        if (folder / SYSTEM).exists() or (folder / SETTINGS).exists():
            shutil.rmtree(folder / "scores", ignore_errors=True)
        for name in (SYSTEM, "training.json", STATE, METRICS, WEIGHTS):  # of an older system
            (folder / name).unlink(missing_ok=True)
        write_json(folder / SETTINGS, settings)
        save_config(folder, experiment.resolved)
        write_json(folder / ENVIRONMENT, environment())
        self.save(folder / WEIGHTS)
        if self.source in PROPOSED_WITH:
            choice = {"method": "proposed", "settings": PROPOSED_WITH[self.source]}
            write_text(folder / PROPOSALS, yaml.safe_dump(choice, sort_keys=False))
        data = experiment.data
        supervision = "segment" if self.source in FROM_SEGMENTS else data.supervision
        system = System(
            folder.resolve().name,
            "model",
            data.modality,
            supervision,
            data.scale,
            parameters={"imported": self.origin},
        )
        write_system(folder, system)  # last: it makes the folder a system
        return report


def _is_imported(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds this import, complete; KlassifyError if it holds anything else."""
    record, system = folder / SETTINGS, folder / SYSTEM
    if not (record.exists() or system.exists()) and folder.is_dir() and any(folder.iterdir()):
        raise KlassifyError(
            "This folder is not a system, and it is not empty.",
            where=folder,
            fix="name another folder, or pass --force to put a system beside its files",
        )
    made_with = read_json(record) if record.exists() else {} if system.exists() else None
    return already_done(record, made_with, settings) and system.exists()
