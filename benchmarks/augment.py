"""How fast a core augments, by set, beside the time that the audio model needs to train on the same
clips.

    python benchmarks/augment.py [--clips 60] [--device cpu|cuda|none] [--batch 14] \\
        [--step-seconds S] [--effects]

Speech-like noise of 64,600 samples (4 s), CPU time of this one process. `as trained` draws as the
set does (each stage with p = 0.3, RawBoost always); `each effect` makes every stage hit. The model
is Wav2Vec-AASIST at full size (XLSR-53's shape, random weights): forward, backward and Adam step,
on a GPU in bf16 (wall time), on a CPU in float32 (CPU time of one clip, times the batch; takes 8
GB). --step-seconds gives a time measured elsewhere instead. `cores` is how many cores augment as
fast as the model trains.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from scipy.signal import lfilter

from klassify.augmentation.sets import EFFECTS, SETS, AudioAugment

SAMPLES, RATE = 64_600, 16_000


def speech_like(rng: np.random.Generator) -> np.ndarray:
    """Noise with the slope of speech, in syllables of a quarter of a second; peak 0.5."""
    noise = lfilter([1.0], [1.0, -0.9], rng.normal(size=SAMPLES))
    wave = noise * (0.1 + np.abs(np.sin(2 * np.pi * 2 * np.arange(SAMPLES) / RATE)))
    return (0.5 * wave / np.abs(wave).max()).astype(np.float32)


def cpu_seconds(function, n: int) -> float:
    """CPU time of a call, the mean of `n` on different clips with different draws, after one
    that loads.
    """
    waves = [speech_like(np.random.default_rng(seed)) for seed in range(8)]
    function(waves[0], np.random.default_rng(0))
    start = time.process_time()
    for seed in range(n):
        function(waves[seed % len(waves)], np.random.default_rng(seed))
    return (time.process_time() - start) / n


def step_seconds(device: str, batch: int) -> float:
    """Time of a training step of Wav2Vec-AASIST, the better of two after the first."""
    from klassify.models.frontends.ssl import SSLFrontEnd
    from klassify.models.w2v_aasist import W2VAASIST

    torch.manual_seed(0)
    on_gpu = device == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    size = batch if on_gpu else 1
    model = W2VAASIST(SSLFrontEnd(normalize_input=False, architecture="xlsr53")).to(device).train()
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-6)
    inputs = {"wave": 0.1 * torch.randn(size, SAMPLES), "label": torch.arange(size) % 2}
    inputs = {key: value.to(device) for key, value in inputs.items()}
    times = []
    for _ in range(3):
        start = clock()
        with torch.autocast(device, torch.bfloat16, enabled=on_gpu):
            loss = model.loss(inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times[1:]) * batch / size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=60, help="clips a set (default 60)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda", "none"), default="none", help="where the model trains"
    )
    parser.add_argument(
        "--batch", type=int, default=14, help="clips a training step (default 14, the recipe's)"
    )
    parser.add_argument(
        "--step-seconds", type=float, help="time of a training step, measured elsewhere"
    )
    parser.add_argument("--effects", action="store_true", help="every effect by itself, too")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "there is no GPU that torch can use; --step-seconds takes a time from elsewhere"
        )
    step = args.step_seconds
    if step is None and args.device != "none":
        step = step_seconds(args.device, args.batch)
    if step is not None:
        print(
            f"a training step of {args.batch} clips: {step:.2f} s, {args.batch / step:.1f} clips a"
            " second"
        )
    print(
        f"{'set':>10}  as trained: ms a clip  clips/s a core{'  cores' if step else ''}   each"
        " effect: ms a clip"
    )
    for name in SETS:
        trained, each = (cpu_seconds(AudioAugment(name, p), args.clips) for p in (None, 1.0))
        cores = f"  {trained * args.batch / step:5.2f}" if step else ""
        print(
            f"{name:>10}  {1e3 * trained:21.1f}  {1 / trained:14.0f}{cores}   {1e3 * each:22.1f}",
            flush=True,
        )
    if args.effects:
        for name, effect in EFFECTS.items():
            print(f"{name:>12}  {1e3 * cpu_seconds(effect, args.clips):6.1f} ms a clip", flush=True)


if __name__ == "__main__":
    main()
