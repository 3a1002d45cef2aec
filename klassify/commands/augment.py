"""Listen to the augmentations of training clips, the named sets of paper 1 (section 5.2).

    klassify augment clip.mp4 --set codecs --out heard

Writes the clip after each effect of the set alone, and three random draws as training makes them.

    set         probability  effect
    rtpg        0.3 each     room, time stretch, pitch shift, noise, in this order
    bp          0.3          one of band pass, band stop, low pass, high pass, low shelf,
                             high shelf, peaking
    codecs      0.3          one of htk, gsm, amr-nb, sph, vorbis, ogg, mp3, amb, wav
    all         as above     rtpg, then bp, then codecs
    shortcuts   0.3 to 1     offset, ends, low pass, noise, clipping, loudness, in this
                             order: what `klassify audit` measures
    rawboost3   1            RawBoost algorithm 3: stationary noise
    rawboost4   1            RawBoost algorithm 4: convolutive, impulsive and stationary noise
    rawboost5   1            RawBoost algorithm 5: convolutive and impulsive noise
    rawboost    1            one of rawboost3, rawboost4, rawboost5
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


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("clip", type=Path, help="a video or audio file")
    add("--set", required=True, choices=SETS, help="set of augmentations")
    add("--out", required=True, type=Path, help="folder for the WAV files")
    add("--draws", type=at_least_0, default=3, help="number of random draws (default 3)")
    add("--seed", type=at_least_0, default=0, help="random seed (default 0)")


def run(args: argparse.Namespace) -> int:
    """Write the clip, each effect of the set alone, and the random draws."""
    wave = isolated.call(decoder.read_audio, args.clip)
    if len(wave) < SHORTEST:
        raise KlassifyError(
            f"The clip has only {len(wave) / decoder.SAMPLE_RATE:.2f} s of sound;"
            f" augmentations need {SHORTEST / decoder.SAMPLE_RATE:.2f} s.",
            where=args.clip,
        )
    stem = f"{args.clip.stem}.{args.set}"
    _write(args.out / f"{args.clip.stem}.original.wav", wave, "original")
    for name in dict.fromkeys(name for _, names in SETS[args.set] for name in names):
        rng = np.random.default_rng([args.seed, *name.encode()])
        if name in codecs.FORMATS:
            for codec in codecs.legal(name):
                coded = codecs.round_trip(wave, codec, rng)
                _write(args.out / f"{stem}.{codec}.wav", coded, str(codec))
        else:
            _write(args.out / f"{stem}.{name}.wav", in_range(EFFECTS[name](wave, rng)), name)
    for draw in range(1, args.draws + 1):
        rng = np.random.default_rng([args.seed, draw])
        augmented, hits = AudioAugment(args.set).apply(wave, rng)
        _write(args.out / f"{stem}.draw-{draw}.wav", augmented, " + ".join(hits) or "no effect")
    return 0


def _write(path: Path, wave: np.ndarray, what: str) -> None:
    import soundfile

    from klassify.files import whole_file

    with whole_file(path) as partial:
        soundfile.write(partial, wave, decoder.SAMPLE_RATE, subtype="PCM_16")
    print(f"{path}: {what}")
