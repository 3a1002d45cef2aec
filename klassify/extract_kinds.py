"""The kinds of features that `klassify extract` makes: their arguments, settings, inputs and
extractors.

Mouth features and audio use a crew of worker processes, one clip each. The other kinds run one
model on one device in this process; several GPUs take a shard (`--shard i/n`) each.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from klassify import audio_file, media, workers
from klassify.arguments import at_least_1
from klassify.audio_file import AudioRow
from klassify.errors import KlassifyError
from klassify.features import face, mouth
from klassify.features.clip import ClipExtractor, attempt, extract_clip
from klassify.files import file_hash
from klassify.store_kinds import LMMRow, MouthRow, ReconstructionRow

# clips a file: a file stays below a few hundred MB
CHUNKS = {"mouth": 2000, "audio": 500, "lmm": 200, "reconstruction": 200}
OWN_ARGUMENTS = {"landmarks": "mouth", "lmm": "lmm", "clip": "lmm", "vqvae": "reconstruction"}

CLIP_LIMIT_S = 1800.0  # an hour of video, the longest that is decoded, takes ten minutes
Numbered = Iterator[tuple[int, Any]]  # place in the list; a row of the kind, or workers.Died


@dataclasses.dataclass(frozen=True)
class Extraction:
    """How one kind of features is made.

    settings: what the features depend on. inputs(root, file): the paths whose sizes stand for the
    input of a clip. rows(root, parts): the rows of all clips of the parts, numbered through, in any
    order; what is heavy is loaded only then. row_class: the class of its rows. write_part:
    what writes its shards, where store.write_part does not.
    """

    kind: str
    settings: dict[str, Any]
    inputs: Callable[[Path, str], list[Path]]
    rows: Callable[[Path, Sequence[Sequence[str]]], Numbered]
    row_class: type
    write_part: Callable[..., Path] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that belong to single kinds."""
    group = parser.add_argument_group("--kind mouth")
    group.add_argument(
        "--landmarks",
        type=Path,
        metavar="DIR",
        help="read <DIR>/<file>.npz instead of running Face Mesh",
    )
    group.add_argument(
        "--refine",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Face Mesh with refined lips and irises",
    )
    group = parser.add_argument_group("--kind lmm")
    models = "a folder, a hub id, or `tiny`, which is untrained"
    group.add_argument("--lmm", metavar="MODEL", help=f"LLaVA-1.5: {models}")
    group.add_argument(
        "--clip",
        metavar="MODEL",
        help=f"CLIP-L/14-336 instead of the LMM's own vision tower: {models}",
    )
    group.add_argument(
        "--interval",
        type=at_least_1,
        default=200,
        help="every how many frames (default: %(default)s)",
    )
    group.add_argument(
        "--load-in",
        type=int,
        choices=(16, 8, 4),
        default=16,
        help="bits a weight (on CPU always 32)",
    )
    group.add_argument(
        "--download", action="store_true", help="fetch a hub id that is not on this machine"
    )
    group = parser.add_argument_group("--kind reconstruction")
    group.add_argument(
        "--vqvae",
        type=Path,
        metavar="SYSTEM",
        help="folder of a trained VQ-VAE, or a safetensors file",
    )
    group.add_argument(
        "--size",
        type=at_least_1,
        default=224,
        help="pixels a side of a frame (default: %(default)s)",
    )
    group = parser.add_argument_group("--kind lmm and reconstruction")
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)"
    )
    group.add_argument("--batch", type=at_least_1, help="frames a batch (default: 8 and 64)")


def extraction(
    args: argparse.Namespace,
    device: str | None = None,
    load_vqvae: Callable[[Path], Any] | None = None,
) -> Extraction:
    """The extraction that the arguments ask for; KlassifyError for those that do not fit together.

    device: of another machine, on which it will run, `cuda` or `cpu`; None: one of this machine, as
    --device says. load_vqvae: loads the model of --vqvae once rows are made.
    """
    for name, kind in OWN_ARGUMENTS.items():
        if kind != args.kind and getattr(args, name) is not None:
            raise KlassifyError(f"--{name} belongs to --kind {kind}, not to --kind {args.kind}.")
    kinds = {
        "mouth": mouth_extraction,
        "audio": audio_extraction,
        "lmm": functools.partial(lmm_extraction, elsewhere=device),
        "reconstruction": functools.partial(reconstruction_extraction, load=load_vqvae),
    }
    return kinds[args.kind](args)


def mouth_extraction(args: argparse.Namespace) -> Extraction:
    """8 mouth features a frame, from Face Mesh or precomputed landmarks."""
    settings = {
        "version": mouth.VERSION,
        "fps": media.GRID_FPS,
        "max_gap_frames": face.MAX_GAP_FRAMES,
        **face.source_settings(args.landmarks, refine=args.refine),
    }

    def inputs(root: Path, file: str) -> list[Path]:
        if args.landmarks is None:
            return [root / file]
        return [root / file, args.landmarks / PurePosixPath(file).with_suffix(".npz")]

    def rows(root: Path, parts: Sequence[Sequence[str]]) -> Numbered:
        setup = functools.partial(ClipExtractor, root, args.landmarks, args.refine)
        files = (file for part in parts for file in part)
        yield from workers.each(
            extract_clip, files, setup, jobs=args.jobs or n_cpus(), limit_s=CLIP_LIMIT_S
        )

    return Extraction("mouth", settings, inputs, rows, MouthRow)


def audio_extraction(args: argparse.Namespace) -> Extraction:
    """The audio of every clip, for the cache. No more than one part of it (500 clips, 150 MB) is
    in memory.
    """

    def rows(root: Path, parts: Sequence[Sequence[str]]) -> Numbered:
        files = (file for part in parts for file in part)
        setup = functools.partial(Path, root)
        yield from workers.each(
            extract_audio, files, setup, jobs=args.jobs or n_cpus(), limit_s=CLIP_LIMIT_S
        )

    return Extraction(
        "audio", dict(audio_file.FORMAT), media_only, rows, AudioRow, audio_file.write_part
    )


def extract_audio(root: Path, file: str) -> AudioRow:
    """The audio of one clip; whatever is wrong with it is said in the row and raises nothing."""

    def decoded(path: Path) -> AudioRow:
        samples = audio_file.to_int16(media.read_audio(path))
        return (
            AudioRow(file, samples)
            if len(samples)
            else AudioRow.failed(file, "audio", audio_file.NO_AUDIO)
        )

    return attempt(AudioRow, root, file, decoded)


def lmm_extraction(args: argparse.Namespace, elsewhere: str | None = None) -> Extraction:
    """What an LMM sees and says of every 200th frame. elsewhere: see extraction()."""
    if args.lmm is None:
        raise KlassifyError(
            "--kind lmm needs --lmm MODEL.",
            fix="a folder or hub id of LLaVA-1.5, or `tiny` for a trial without sense",
        )
    import torch

    from klassify.features import lmm, lmm_model
    from klassify.scoring.inference import pick_device

    device = torch.device(elsewhere) if elsewhere else pick_device(args.device)
    bits = 32 if device.type == "cpu" and args.load_in == 16 else args.load_in
    source = lmm_model.LMMSource(args.lmm, args.clip, bits, args.download)
    lmm_model.check_bits(bits, device)
    settings = {
        "version": lmm.VERSION,
        "fps": media.GRID_FPS,
        "interval": args.interval,
        **source.settings(),
    }
    settings |= {"new_tokens": lmm.NEW_TOKENS, "prompt": lmm.PROMPT}

    def extractor(root: Path) -> Any:
        from klassify.features.lmm_clips import LMMExtractor

        models = lmm.LMM(*lmm_model.load(source, device))
        return LMMExtractor(root, models, args.interval, args.batch or 8)

    threads = (
        1 if source.untrained else args.jobs
    )  # the tiny one gains nothing, and gives the same bytes everywhere
    rows = functools.partial(in_process, extractor, threads)
    return Extraction("lmm", settings, media_only, rows, LMMRow)


def reconstruction_extraction(
    args: argparse.Namespace, load: Callable[[Path], Any] | None = None
) -> Extraction:
    """The VQ-VAE codes of every frame. load: see extraction()."""
    if args.vqvae is None:
        raise KlassifyError(
            "--kind reconstruction needs --vqvae SYSTEM.", fix="train one: conf/<set>/vqvae.yaml"
        )
    from klassify.checkpoints import weights_path
    from klassify.features import reconstruction
    from klassify.scoring.inference import pick_device

    reconstruction.check_size(args.size)
    weights = weights_path(args.vqvae)
    if not weights.is_file():
        raise KlassifyError("This VQ-VAE has no weights.", where=weights, fix="train it first")
    settings = {
        "fps": media.GRID_FPS,
        "size": args.size,
        "vqvae": args.vqvae.name,
        "weights": file_hash(weights)[:16],
    }

    def extractor(root: Path) -> Any:
        model = load(args.vqvae).to(pick_device(args.device))
        return reconstruction.ReconstructionExtractor(root, model, args.size, args.batch or 64)

    rows = functools.partial(in_process, extractor, args.jobs)
    return Extraction("reconstruction", settings, media_only, rows, ReconstructionRow)


def media_only(root: Path, file: str) -> list[Path]:
    """The input of a clip is its file."""
    return [root / file]


def in_process(
    make: Callable[[Path], Any], threads: int | None, root: Path, parts: Sequence[Sequence[str]]
) -> Numbered:
    """Rows from one extractor in this process. No batch spans two parts: a resumed run equals a
    whole one.
    """
    if not any(parts):
        return
    import torch

    if threads:
        torch.set_num_threads(threads)
    extractor = make(root)
    first = 0
    for part in parts:
        numbers = {file: first + i for i, file in enumerate(part)}
        yield from ((numbers[row.file], row) for row in extractor.rows(part))
        first += len(part)


def n_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
