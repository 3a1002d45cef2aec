"""Augmentations of training clips, in the named sets of paper 1 (section 5.2); hear what one does
to a clip.

    klassify augment clip.mp4 --set codecs --out heard

Writes the clip after each effect of the set by itself, and three draws as training makes them.

| set | each clip, with probability | |
|---|---|---|
| rtpg | room, time stretch, pitch shift, noise | each of the four with 0.3, in this order |
| bp | band pass or stop, low or high pass, low or high shelf, peaking | one of them, with 0.3 |
| codecs | htk, gsm, amr-nb, sph, vorbis, ogg, mp3, amb or wav | one of them, with 0.3 |
| all | rtpg, then bp, then codecs | as above |
| rawboost3, rawboost4, rawboost5 | that algorithm of RawBoost (see rawboost.py) | always |
| rawboost | one of the three | always |
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from klassify.arguments import at_least_0
from klassify.augmentation import codecs
from klassify.augmentation.rawboost import in_range
from klassify.augmentation.sets import EFFECTS, SETS, SHORTEST, AudioAugment
from klassify.errors import KlassifyError
from klassify.media import decoder, isolated

# ------------------------------------------------------------------------------ the command


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `klassify augment`."""
    parser.add_argument("clip", type=Path, help="a video or audio file")
    parser.add_argument("--set", required=True, choices=SETS, help="which augmentations")
    parser.add_argument("--out", required=True, type=Path, help="folder of the WAV files")
    parser.add_argument(
        "--draws", type=at_least_0, default=3, help="how many draws as in training (default 3)"
    )
    parser.add_argument(
        "--seed", type=at_least_0, default=0, help="of everything random (default 0)"
    )


def run(args: argparse.Namespace) -> int:
    """Run `klassify augment`."""
    wave = isolated.call(decoder.read_audio, args.clip)
    if len(wave) < SHORTEST:
        raise KlassifyError(
            f"There are only {len(wave) / decoder.SAMPLE_RATE:.2f} s of sound to hear.",
            where=args.clip,
        )
    stem = f"{args.clip.stem}.{args.set}"
    _write(args.out / f"{args.clip.stem}.original.wav", wave, "as it is")
    for name in dict.fromkeys(name for _, names in SETS[args.set] for name in names):
        rng = np.random.default_rng([args.seed, *name.encode()])
        if name in codecs.FORMATS:
            for codec in codecs.legal(name):
                _write(
                    args.out / f"{stem}.{codec}.wav",
                    codecs.round_trip(wave, codec, rng),
                    str(codec),
                )
        else:
            _write(args.out / f"{stem}.{name}.wav", in_range(EFFECTS[name](wave, rng)), name)
    for draw in range(1, args.draws + 1):
        augmented, hits = AudioAugment(args.set).apply(
            wave, np.random.default_rng([args.seed, draw])
        )
        _write(
            args.out / f"{stem}.draw-{draw}.wav", augmented, " + ".join(hits) or "not hit this time"
        )
    return 0


def _write(path: Path, wave: np.ndarray, what: str) -> None:
    import soundfile

    from klassify.files import whole_file

    with whole_file(path) as partial:
        soundfile.write(partial, wave, decoder.SAMPLE_RATE, subtype="PCM_16")
    print(f"{path}: {what}")
