"""What is made of real clips: frames with a face, sound and picture in step, motion at any rate.

    python benchmarks/real_inputs.py clips [--seconds 10]
    python benchmarks/real_inputs.py clips --rates

The first prints for each clip the frames with a face, the median width of the face, and how far
sound and picture are at most from the file's own time stamps, as PyAV alone reads them. --rates
prints for clips of other rates than 25 fps how features at a long step between two pictures of the
25 fps grid compare with those at a short one. The grid is laid from several starts, so that each
picture is at either.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from klassify.features.mouth import channels, face
from klassify.features.mouth.kind import too_little
from klassify.media import decoder
from klassify.media.container import MediaError

FULL = 16_000  # samples that are compared at a time
COMPARED = [name for name in channels.FEATURES if name not in ("blur", "mar")]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of clips")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each clip's picture")
    parser.add_argument("--rates", action="store_true", help="compare long and short steps")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    mesh = face.FaceMesh()
    paths = sorted(path for path in args.folder.iterdir() if path.is_file())
    if args.rates:
        compare_rates(mesh, paths, args.seconds)
        return
    for path in paths:
        print(f"{path.name:<30} {seen_in(mesh, path, args.seconds)}; {apart(path)}", flush=True)


def tracked(mesh: face.FaceMesh, path: Path, seconds: float) -> Iterator[face.Seen]:
    """The first seconds of a clip with the landmarks of its face."""
    shown = itertools.takewhile(lambda one: one[0] < seconds, decoder.pictures(path))
    return face.fill_gaps(mesh.track(path.name, shown))


def seen_in(mesh: face.FaceMesh, path: Path, seconds: float) -> str:
    """How many frames have a face, and how wide it is."""
    try:
        _, valid, boxes = channels.mouth_features(tracked(mesh, path, seconds))
    except MediaError as error:
        return error.what
    reason = too_little(valid, 0.1)
    width = f", {np.median(boxes[valid][:, 2] - boxes[valid][:, 0]):.0f} px" if valid.any() else ""
    return f"{valid.sum()} of {len(valid)} frames{width}{f' ({reason})' if reason else ''}"


def apart(path: Path) -> str:
    """How far the sound, in each second that is not silent, and the pictures are from their
    stamps.
    """
    with av.open(str(path)) as container:
        best = [container.streams.best(kind) for kind in ("audio", "video")]
        blocks: list[av.AudioFrame] = []
        times: list[float] = []
        for packet in container.demux([stream for stream in best if stream is not None]):
            with contextlib.suppress(av.error.FFmpegError):  # damage
                for frame in packet.decode():
                    if isinstance(frame, av.AudioFrame):
                        blocks.append(frame)
                    elif frame.pts is not None:
                        times.append(float(frame.pts * frame.time_base))
    times.sort()
    zero = min(times[:1] + [float(block.pts * block.time_base) for block in blocks[:1]])
    found = []
    if blocks:
        lags = list(lags_ms(decoder.read_audio(path), laid(blocks, zero)))
        found.append(f"sound {max(lags):.1f} ms in {len(lags)} s" if lags else "silence")
    if times:
        starts = [start for start, _, _ in decoder.pictures(path)]
        late = [abs(start - time + zero) for start, time in zip(starts, times)]
        found.append(f"picture {1000 * max(late):.1f} ms")
    return ", ".join(found)


def laid(blocks: list[av.AudioFrame], zero: float) -> np.ndarray:
    """Decoded sound at 16 kHz, each block at its own time stamp."""
    wave = np.zeros(0)
    for block in blocks:
        samples = block.to_ndarray().astype(float)
        samples = samples.reshape(-1, block.layout.nb_channels).mean(axis=1)
        if block.format.is_planar:
            samples = block.to_ndarray().astype(float).mean(axis=0)
        n = round(len(samples) / block.sample_rate * decoder.SAMPLE_RATE)
        at = np.arange(n) * block.sample_rate / decoder.SAMPLE_RATE
        first = max(0, round((float(block.pts * block.time_base) - zero) * decoder.SAMPLE_RATE))
        wave = np.pad(wave, (0, max(0, first + n - len(wave))))
        wave[first : first + n] = np.interp(at, np.arange(len(samples)), samples)
    return wave


def lags_ms(ours: np.ndarray, theirs: np.ndarray) -> Iterator[float]:
    """By how much the best correlation of each second is off."""
    for first in range(0, min(len(ours), len(theirs)) - FULL + 1, FULL):
        a, b = (np.fft.rfft(wave[first : first + FULL], 2 * FULL) for wave in (ours, theirs))
        match = np.fft.irfft(a * b.conj())
        if match.max() > 0:
            lag = int(match.argmax())
            yield min(lag, 2 * FULL - lag) / decoder.SAMPLE_RATE * 1000


def compare_rates(mesh: face.FaceMesh, paths: list[Path], seconds: float) -> None:
    """Print the ratios of each clip of another steady rate, and their geometric means by rate."""
    by_rate = defaultdict(list)
    for path in paths:
        seen = list(tracked(mesh, path, seconds))
        steps = np.diff([one.start for one in seen])
        if not len(steps) or any(one.landmarks is None or one.cut for one in seen):
            continue
        rate = 1 / np.median(steps)
        if np.ptp(steps) < 0.004 and abs(rate - decoder.GRID_FPS) > 0.1:
            ratios = step_ratios(seen, round(rate))
            by_rate[round(rate)].append(ratios)
            print(f"{path.name:<30} {rate:5.2f} fps  {told(ratios)}", flush=True)
    for rate, ratios in sorted(by_rate.items()):
        mean = np.exp(np.log(ratios).mean(axis=0))
        print(f"{rate} fps, geometric mean of {len(ratios)} clips: {told(mean)}")


def step_ratios(seen: list[face.Seen], rate: int) -> np.ndarray:
    """Mean features at long steps over those at short ones."""
    columns = [channels.FEATURES.index(name) for name in COMPARED]
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    for first in range(Fraction(rate, decoder.GRID_FPS).numerator):
        zero = seen[first].start
        part = [one._replace(start=one.start - zero, stop=one.stop - zero) for one in seen[first:]]
        features, valid, _ = channels.mouth_features(iter(part))
        cells = list(decoder.on_grid((one.start, one.stop, k) for k, one in enumerate(part)))
        steps = np.diff(cells)[5:-5]
        for step in set(steps):
            found[step].append(features[6:-5][(steps == step) & valid[6:-5]][:, columns])
    short, long = (np.concatenate(found[step]).mean(axis=0) for step in sorted(found)[:2])
    return long / short


def told(ratios: np.ndarray) -> str:
    return ", ".join(f"{name} {ratio:.2f}" for name, ratio in zip(COMPARED, ratios))


if __name__ == "__main__":
    main()
