"""The named methods that find fake spans in frame scores; klassify.localisation.proposals makes
proposals of them.

A method takes FrameScores and its own settings, all with defaults, and returns Spans in any number
and order. No method loops over clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from klassify.errors import KlassifyError
from klassify.grid.frames import B, I, L, O, decode_tags, viterbi
from klassify.grid.ragged import row_numbers, row_offsets
from klassify.localisation.frame_scores import FrameScores, merge_gaps, runs
from klassify.localisation.soft_nms import top_per_clip

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
VITERBI_FRAMES_AT_ONCE = 1 << 20


class Spans(NamedTuple):
    """Found, each (N,): frames [first, stop), score, and the level p_fake crosses at the edges."""

    first: np.ndarray
    stop: np.ndarray
    score: np.ndarray
    level: np.ndarray

    def take(self, index: np.ndarray) -> Spans:
        """Those at these places, in this order."""
        return Spans(*(column[index] for column in self))


def by_threshold(
    frames: FrameScores, *, threshold: float = 0.5, merge_s: float = 0.08, drop_s: float = 0.0
) -> Spans:
    """Runs of p_fake >= threshold: gaps up to merge_s closed, runs below drop_s dropped."""
    first, stop = _merged_runs(frames, threshold, merge_s)
    long = stop - first >= _n_frames(frames, drop_s)
    first, stop = first[long], stop[long]
    return Spans(first, stop, frames.mean(first, stop), np.full(len(first), threshold))


def by_levels(
    frames: FrameScores,
    *,
    levels: Sequence[float] = LEVELS,
    merge_s: float = 0.0,
    context: float = 1.0,
) -> Spans:
    """Runs above every level, each once; score: outer-inner contrast (AutoLoc, ECCV 2018)."""
    found = [(*_merged_runs(frames, level, merge_s), level) for level in levels]
    return _contrasted(frames, found, context)


def by_watershed(
    frames: FrameScores,
    *,
    levels: Sequence[float] = LEVELS,
    tolerances: Sequence[float] = (0.5, 0.7, 0.9),
    context: float = 1.0,
) -> Spans:
    """Temporal actionness grouping (Zhao et al., ICCV 2017): basins of 1 - p_fake flooded to
    several levels.

    A run above a level absorbs the runs after it as long as runs make up at least `tolerance` of
    the whole span. Each span once; score: outer-inner contrast.
    """
    found = []
    for level in levels:
        first, stop = runs(frames.p_fake >= level, frames)
        clip = frames.clip_of(first)
        for tolerance in tolerances:
            found.append((first, stop[_absorb(first, stop, clip, tolerance)], level))
    return _contrasted(frames, found, context)


def by_boundaries(
    frames: FrameScores, *, peaks: int = 10, floor: float = 0.05, max_s: float = 12.0
) -> Spans:
    """Pairs of a peak of "first fake frame" and a later peak of "last fake frame", at most max_s
    long.

    The `peaks` highest local maxima of each, from `floor` up (BSN, Lin et al., ECCV 2018). How
    likely a frame is the first comes from the tag B; without tags from the rise of p_fake, averaged
    with BAM's boundary where the frame before is real. With tags, the spans of the most probable
    sequence of tags are added.
    """
    opens, closes, alone = _end_probabilities(frames)
    start, end = (_peaks(frames, strength, peaks, floor) for strength in (opens, closes))
    start_clip = frames.clip_of(start)
    end_offsets = row_offsets(np.bincount(frames.clip_of(end), minlength=len(frames.files)))
    first = np.repeat(start, np.diff(end_offsets)[start_clip])
    last = end[row_numbers(end_offsets, start_clip)]
    fits = (last >= first) & (last - first < _n_frames(frames, max_s))
    if frames.log_tags is not None:
        fits &= last > first  # a segment of one frame has no L
    first, last = first[fits], last[fits]
    strength = opens[first] * closes[last]
    if frames.log_tags is None:
        return _paired(frames, first, last + 1, strength)
    parts = [
        _paired(frames, first, last + 1, strength),
        _paired(frames, start, start + 1, opens[start] * alone[start]),
        by_viterbi(frames),
    ]
    spans = Spans(*map(np.concatenate, zip(*parts)))
    return _distinct(spans, -spans.score)


def by_viterbi(frames: FrameScores) -> Spans:
    """The segments of the likeliest sequence of tags (paper 1, section 4.2), scored as pairs."""
    if frames.log_tags is None:
        raise KlassifyError(
            "The method viterbi needs frame scores with tags (log_o log_b log_i log_l)."
        )
    if "decoded" not in frames.shared:  # takes longest, and depends on no setting
        frames.shared["decoded"] = _decoded(frames)
    first, stop = frames.shared["decoded"]
    p_b, p_l = (np.exp(frames.log_tags[:, tag]) for tag in (B, L))
    last = np.where(stop - first == 1, p_b[first], p_l[stop - 1])
    return _paired(frames, first, stop, p_b[first] * last)


def _decoded(frames: FrameScores) -> np.ndarray:
    """The spans of the likeliest sequence of tags of each clip, (2, N) first and stop."""
    lengths = np.diff(frames.offsets)
    tags = np.full(len(frames.p_fake), O)
    by_length = np.argsort(lengths, kind="stable")
    by_length = by_length[lengths[by_length] > 0]
    # clips of similar length together; padded to the longest they hold about VITERBI_FRAMES_AT_ONCE
    parts = np.cumsum(lengths[by_length]) // VITERBI_FRAMES_AT_ONCE
    for part in np.split(by_length, np.flatnonzero(np.diff(parts)) + 1):
        if not len(part):
            continue
        column = np.arange(lengths[part].max())
        there = column < lengths[part, None]
        frame = np.where(there, frames.offsets[part, None] + column, 0)
        tags[frame[there]] = viterbi(frames.log_tags[frame], lengths[part])[there]
    return decode_tags(tags).T  # no segment crosses the end of its clip


METHODS = {
    "threshold": by_threshold,
    "multi_threshold": by_levels,
    "boundary_pairs": by_boundaries,
    "watershed": by_watershed,
    "viterbi": by_viterbi,
}


def highest_runs(frames: FrameScores, clips: np.ndarray) -> Spans:
    """For each of `clips`, the run above half of its highest frame's score, around it."""
    part = frames.take(clips)
    highest = np.maximum.reduceat(part.p_fake, part.offsets[:-1]) if len(clips) else np.empty(0)
    level = np.repeat(highest / 2, np.diff(part.offsets))
    first, stop = runs(part.p_fake >= level, part)
    top = np.flatnonzero(part.p_fake == 2 * level)
    top = top[np.unique(part.clip_of(top), return_index=True)[1]]  # the first one of each clip
    run = np.searchsorted(first, top, side="right") - 1
    moved = frames.offsets[clips] - part.offsets[:-1]
    mean = part.mean(first[run], stop[run])
    return Spans(first[run] + moved, stop[run] + moved, mean, highest / 2)


def _n_frames(frames: FrameScores, seconds: float) -> int:
    return round(seconds / frames.hop_s)


def _merged_runs(
    frames: FrameScores, level: float, merge_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Runs of p_fake >= level, with gaps of up to merge_s closed."""
    first, stop = runs(frames.p_fake >= level, frames)
    return merge_gaps(first, stop, frames.clip_of(first), _n_frames(frames, merge_s))


def _contrasted(
    frames: FrameScores, found: Sequence[tuple[np.ndarray, np.ndarray, float]], context: float
) -> Spans:
    """Spans found at several levels, each once, with mean inside - context * mean just outside."""
    first, stop = (np.concatenate([part[i] for part in found]) for i in (0, 1))
    level = np.concatenate([np.full(len(part[0]), part[2]) for part in found])
    # a sharp edge crosses one half exactly between two frames
    spans = _distinct(Spans(first, stop, np.zeros(len(first)), level), np.abs(level - 0.5))
    edges = (spans.first, spans.stop)
    score = frames.mean(*edges) - context * frames.outer_mean(*edges)
    return spans._replace(score=np.clip(score, 0, 1))


def _distinct(spans: Spans, cost: np.ndarray) -> Spans:
    """Each span once: of several equal ones, the one with the least cost (N,)."""
    spans = spans.take(np.argsort(cost, kind="stable"))
    place = spans.first * (spans.stop.max(initial=0) + 1) + spans.stop
    return spans.take(np.unique(place, return_index=True)[1])


def _absorb(first: np.ndarray, stop: np.ndarray, clip: np.ndarray, tolerance: float) -> np.ndarray:
    """For each run the last one that joins it: (R,) indices."""
    reach = np.arange(len(first))
    filled = np.append(0, np.cumsum(stop - first))
    growing = reach
    while len(growing):
        following = reach[growing] + 1
        inside = following < len(first)
        growing, following = growing[inside], following[inside]
        share = (filled[following + 1] - filled[growing]) / (stop[following] - first[growing])
        joins = (clip[following] == clip[growing]) & (share >= tolerance)
        growing = growing[joins]
        reach[growing] += 1
    return reach


def _end_probabilities(frames: FrameScores) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """How likely each frame is a segment's first, its last, and (tags) both."""
    # smoothing would hide the ends
    p = frames.p_fake if frames.unsmoothed is None else frames.unsmoothed
    if frames.log_tags is not None:
        probability = np.exp(frames.log_tags)
        goes_on = frames.following(probability[:, I] + probability[:, L], 0.0)
        begins = probability[:, B]
        return begins, probability[:, L], begins * np.clip(1 - goes_on, 0, 1)
    before, after = frames.previous(p, 0.0), frames.following(p, 0.0)
    rise, fall = np.maximum(p - before, 0), np.maximum(p - after, 0)
    if frames.boundary is None:
        return rise, fall, None
    # a run that begins or ends with its clip has no boundary mark there
    at_end = frames.following(np.zeros(len(p), bool), True)
    opens = np.where(frames.begins, p, frames.boundary * (1 - before))
    closes = np.where(at_end, p, frames.boundary * (1 - after))
    return (opens + rise) / 2, (closes + fall) / 2, None


def _peaks(frames: FrameScores, strength: np.ndarray, k: int, floor: float) -> np.ndarray:
    """The frames of the k highest local maxima of each clip that reach the floor, ascending."""
    highest = strength > frames.previous(strength, -1.0)
    highest &= strength >= frames.following(strength, -1.0)
    peak = np.flatnonzero(highest & (strength >= max(floor, 1e-9)))
    return np.sort(peak[top_per_clip(frames.clip_of(peak), strength[peak], k)])


def _paired(
    frames: FrameScores, first: np.ndarray, stop: np.ndarray, strength: np.ndarray
) -> Spans:
    """strength: product of both ends' probabilities; edges: where p_fake crosses half the mean."""
    mean = frames.mean(first, stop)
    return Spans(first, stop, np.clip(np.sqrt(strength) * mean, 0, 1), mean / 2)
