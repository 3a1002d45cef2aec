"""From the windows of clips to what a model scores: samples, or the front end's features of them.

Overlapping windows of a clip have samples in common. What of the work on them is common too:

- A convolutional extractor with layer norm on unchanged samples (Wav2Vec-AASIST's): each frame
  depends on its own 400 samples. A window then takes the frames of the samples it has in common
  with the window before, and only the rest is computed, so that each frame of a clip is computed
  once. The transformer still sees whole windows: scores are those of windows on their own, up to
  rounding.
- With samples normalised in each window (BAM's published setting, `normalize_input: true`) or with
  group norm (wav2vec 2.0 base) every frame depends on the whole window: nothing is shared. Nor is
  it between windows that do not start a multiple of 320 samples apart (strides of the data classes
  should be such multiples).
- With `approximate` the whole front end runs once over a clip (in spans of 30 s if it is longer)
  and the windows are cut out of its features. Frames then know of what lies outside their window:
  other scores, for a fraction of the time. benchmarks/score_audio.py shows by how much the AUC
  moves.

A model takes part by two methods: `heard(wave)` gives the samples that its front end hears of a
window, and its scores can be had from batch["features"] in place of batch["wave"].
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from klassify.data.base import ClipData
from klassify.data.loading import to_device
from klassify.errors import KlassifyError
from klassify.media.decoder import SAMPLE_RATE

SPAN_S = 30.0  # of the approximate mode: attention over longer spans takes too much memory


class WindowInputs:
    """Makes the batches that a model scores, on the device, of windows [(file, window), ...].

    Windows come clip by clip, in order. With `approximate`, a call takes one span of one clip (see
    `spans`). KlassifyError if the model has no approximate scoring.
    """

    def __init__(
        self, model: nn.Module, data: ClipData, device: torch.device, approximate: bool = False
    ):
        self.model, self.data, self.device, self.approximate = model, data, device, approximate
        takes_features = hasattr(model, "heard")
        if approximate and not takes_features:
            raise KlassifyError(
                f"{type(model).__name__} has no approximate scoring: it is for Wav2Vec-AASIST and"
                " BAM.",
                fix="score without it",
            )
        shares = takes_features and not approximate and model.frontend.shares_frames
        self.shared = SharedFrames(model.frontend, device) if shares else None

    def __call__(self, cut: Sequence[tuple[str, object]]) -> dict[str, Tensor]:
        """The batch of these windows; "features" (B, T, D) alone where the front end's work is
        shared.
        """
        batch = self.data.collate([window.inputs for _, window in cut])
        if not self.approximate and self.shared is None:
            return to_device(batch, self.device)
        starts = [round(window.start_s * SAMPLE_RATE) for _, window in cut]
        if self.approximate:
            return {"features": self._one_pass(batch["wave"], starts)}
        local = self.shared([file for file, _ in cut], starts, self.model.heard(batch["wave"]))
        return {"features": self.model.frontend.context(local)}

    def _one_pass(self, waves: Tensor, starts: list[int]) -> Tensor:
        """(W, N) windows of one clip -> (W, T, D), slices of the features of all they cover."""
        first, size, frontend = starts[0], waves.shape[1], self.model.frontend
        joined = waves.new_zeros(starts[-1] - first + size)
        for start, wave in zip(starts, waves):
            joined[start - first : start - first + size] = wave
        features = frontend(self.model.heard(joined[None]).to(self.device))[0]
        n_frames = frontend.n_frames(self.model.heard(waves[:1]).shape[1])
        offsets = [round((start - first) / frontend.hop_samples) for start in starts]
        return torch.stack([features[offset : offset + n_frames] for offset in offsets])


def spans(cut: Sequence, longest_s: float = SPAN_S) -> Iterator[list]:
    """The windows of a clip in runs that cover at most `longest_s` (or one window); runs overlap
    as windows do. A second pass over the clip begins another run.
    """
    span: list = []
    for window in cut:
        again = span and window.start_s < span[-1].start_s
        if span and (again or window.end_s - span[0].start_s > longest_s):
            yield span
            span = []
        span.append(window)
    if span:
        yield span


@dataclasses.dataclass
class _Heard:
    """A window: its clip, its first sample, samples (N,), and frames (T, C) once made."""

    file: str
    start: int
    wave: Tensor
    n_known: int = 0  # frames in common with the window before
    n_skipped: int = 0  # frames by which it starts later than that
    frames: Tensor | None = None


class SharedFrames:
    """Local features of the windows of clips, computed once for the samples that neighbouring
    windows share.

    frontend: with `local_features`, each frame of which depends on its own samples alone. Equal
    samples at the distance of the starts are what is shared, whatever a clip's ends are padded
    with.
    """

    def __init__(self, frontend: nn.Module, device: torch.device):
        self.frontend, self.device = frontend, device
        self.last: _Heard | None = None

    def __call__(self, files: Sequence[str], starts: Sequence[int], waves: Tensor) -> Tensor:
        """Local features (B, T, C) of the windows (B, N), on the device."""
        heard = [_Heard(*window) for window in zip(files, starts, waves)]
        before = [self.last, *heard[:-1]]
        for window, other in zip(heard, before):
            self._compare(window, other)
        new = self._extract(
            [window.wave[window.n_known * self.frontend.hop_samples :] for window in heard]
        )
        for window, other, frames in zip(heard, before, new):
            window.frames = frames
            if window.n_known:
                kept = other.frames[window.n_skipped : window.n_skipped + window.n_known]
                window.frames = torch.cat([kept, frames])
        self.last = heard[-1]
        return torch.stack([window.frames for window in heard])

    def _compare(self, window: _Heard, other: _Heard | None) -> None:
        """Find the frames that `window` has in common with the window before."""
        if other is None or other.file != window.file:
            return
        skipped, off_grid = divmod(window.start - other.start, self.frontend.hop_samples)
        n_common = len(other.wave) - (window.start - other.start)
        if skipped < 1 or off_grid or n_common < 1:
            return
        differs = window.wave[:n_common] != other.wave[-n_common:]
        n_equal = int(differs.to(torch.uint8).argmax()) if differs.any() else n_common
        window.n_known, window.n_skipped = self.frontend.n_frames(n_equal), skipped

    def _extract(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Local features of waves of several lengths; those of one length run together."""
        by_length = defaultdict(list)
        for index, wave in enumerate(waves):
            by_length[len(wave)].append(index)
        frames: list[Tensor] = [torch.empty(0)] * len(waves)
        for indices in by_length.values():
            stacked = torch.stack([waves[index] for index in indices]).to(self.device)
            for index, row in zip(indices, self.frontend.local_features(stacked)):
                frames[index] = row
        return frames
