"""Fake segments in seconds <-> spans, labels, shares and tags of frames.

A segment is [start, end) in seconds. A span is [first, stop) in frames; frame k covers
[offset_s + k hop_s, offset_s + (k + 1) hop_s). A frame is labelled fake if any part of it is.

Tags (paper 1, section 4.2, after BILOU with its U for one-frame segments left out): O outside,
B begins a segment, I inside, L last. A segment of one frame is B, of two B L, of n B I ... I L.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FRAME_S = 0.04  # the hop of a grid that says nothing else, and of the pictures at 25 fps
O, B, I, L = range(4)
TAGS = "OBIL"  # the order of every tag axis
IGNORE = -100  # a frame whose tag is unknown; torch's losses skip it

# ALLOWED[a, b]: tag b may follow tag a. B may be followed by O or B, as it may be a whole segment.
ALLOWED = np.array(
    [
        # O  B  I  L
        [1, 1, 0, 0],  # O
        [1, 1, 1, 1],  # B
        [0, 0, 1, 1],  # I
        [1, 1, 0, 0],  # L
    ],
    dtype=bool,
)
FIRST = np.array([1, 1, 0, 0], dtype=bool)  # tags that may begin a clip
LAST = np.array([1, 1, 0, 1], dtype=bool)  # tags that may end it


def frame_spans(
    segments: Sequence[Sequence[float]],
    n_frames: int,
    *,
    hop_s: float = FRAME_S,
    offset_s: float = 0.0,
) -> np.ndarray:
    """Spans (n, 2) of the frames that each segment touches, ascending and apart.

    However short, a segment touches at least one frame; what lies beyond the clip is cut off.
    Segments that share a frame become one span, segments in neighbouring frames stay two.
    """
    seconds = np.asarray(segments, float).reshape(-1, 2)
    # binary fractions: 0.28 / 0.04 is 7.000000000000001, and its segment must not touch frame 7
    edges = np.round((seconds - offset_s) / hop_s, 6)
    first = np.floor(edges[:, 0]).astype(np.int64)
    stop = np.maximum(np.ceil(edges[:, 1]).astype(np.int64), first + 1)
    spans = np.stack([np.maximum(first, 0), np.minimum(stop, n_frames)], axis=1)
    spans = spans[spans[:, 0] < spans[:, 1]]
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    if not len(spans):
        return spans
    reach = np.maximum.accumulate(spans[:, 1])
    begins = np.append(True, spans[1:, 0] >= reach[:-1])
    return np.stack([spans[begins, 0], reach[np.append(begins[1:], True)]], axis=1)


def encode_labels(
    segments: Sequence[Sequence[float]],
    n_frames: int,
    *,
    hop_s: float = FRAME_S,
    offset_s: float = 0.0,
) -> np.ndarray:
    """Frame labels (n_frames,) int64: 1 where any part of the frame is fake."""
    labels = np.zeros(n_frames, np.int64)
    for first, stop in frame_spans(segments, n_frames, hop_s=hop_s, offset_s=offset_s):
        labels[first:stop] = 1
    return labels


def covered_share(
    segments: Sequence[Sequence[float]],
    n_frames: int,
    *,
    hop_s: float = FRAME_S,
    offset_s: float = 0.0,
) -> np.ndarray:
    """(n_frames,) float32 in [0, 1]: the share of each frame that lies in a segment.

    Frame t covers [offset_s + t hop_s, offset_s + (t + 1) hop_s). What several segments cover
    counts once.
    """
    edges = offset_s + hop_s * np.arange(n_frames + 1)
    covered, reach = np.zeros(n_frames + 1), -np.inf  # seconds covered before each edge
    for start, end in sorted(map(tuple, segments)):
        start = max(start, reach)
        if start < end:
            covered += np.clip(edges - start, 0, end - start)
            reach = end
    return np.clip(np.diff(covered) / hop_s, 0, 1).astype(np.float32)


def edge_targets(
    times_s: Sequence[float],
    n_frames: int,
    *,
    hop_s: float = FRAME_S,
    offset_s: float = 0.0,
    sigma_s: float = 0.01,
) -> np.ndarray:
    """(n_frames,) float32: a Gaussian of height 1 around the nearest time; 0 without any."""
    centres = offset_s + hop_s * (np.arange(n_frames) + 0.5)
    distance = np.abs(centres[:, None] - np.asarray(times_s, float)).min(axis=1, initial=np.inf)
    return np.exp(-0.5 * (distance / sigma_s) ** 2).astype(np.float32)


def pictures_at(n_frames: int, *, hop_s: float = FRAME_S, offset_s: float = 0.0) -> np.ndarray:
    """The number (n_frames,) of the 25 fps picture that is shown in the middle of each frame."""
    middle = offset_s + (np.arange(n_frames) + 0.5) * hop_s
    return np.floor(middle / FRAME_S).astype(np.int64)


def boundary_labels(labels: np.ndarray) -> np.ndarray:
    """Boundary labels (..., T) of frame labels (..., T; 1 = fake), as BAM derives them.

    At each change of label the frame on the fake side is marked: the first frame of a fake run
    unless the clip begins with it, and the last unless the clip ends with it.
    """
    fake = np.asarray(labels, bool)
    edge = fake[..., :1]
    before = np.concatenate([edge, fake[..., :-1]], axis=-1)
    after = np.concatenate([fake[..., 1:], fake[..., -1:]], axis=-1)
    return (fake & ~(before & after)).astype(np.int64)


def encode_tags(
    segments: Sequence[Sequence[float]],
    n_frames: int,
    *,
    hop_s: float = FRAME_S,
    offset_s: float = 0.0,
) -> np.ndarray:
    """Tags (n_frames,) int64 of the segments of a clip."""
    tags = np.full(n_frames, O, np.int64)
    for first, stop in frame_spans(segments, n_frames, hop_s=hop_s, offset_s=offset_s):
        tags[first:stop] = I
        tags[stop - 1] = L
        tags[first] = B  # after L, so that a single frame is B
    return tags


def decode_tags(tags: np.ndarray) -> np.ndarray:
    """Spans (n, 2) of tags (T,); ValueError unless they form whole segments."""
    tags = np.asarray(tags)
    if not len(tags):
        return np.empty((0, 2), np.int64)
    if not (FIRST[tags[0]] and LAST[tags[-1]] and ALLOWED[tags[:-1], tags[1:]].all()):
        raise ValueError(f"not whole segments: {''.join(TAGS[tag] for tag in tags)}")
    first = np.flatnonzero(tags == B)
    goes_on = np.isin(np.append(tags[1:], O)[first], (I, L))
    stop = first + 1
    stop[goes_on] = np.flatnonzero(tags == L) + 1  # each longer segment has exactly one L
    return np.stack([first, stop], axis=1)


def viterbi(log_probs: np.ndarray, lengths: Sequence[int] | None = None) -> np.ndarray:
    """The most probable sequence of whole segments, if frames are independent given their tags.

    log_probs: (T, 4) of one clip or (N, T, 4) of a batch; lengths: (N,) frames of each clip of a
    batch. Returns tags (T,) or (N, T); frames beyond a clip's length are O.
    """
    # finite, so that a probability of 0 does not exclude every sequence
    log_probs = np.maximum(np.asarray(log_probs, float), -1e9)
    if log_probs.ndim == 2:
        return viterbi(log_probs[None])[0]
    n, n_frames, _ = log_probs.shape
    if lengths is not None:  # padding is O, which may not follow I: I may not end a clip
        padding = np.arange(n_frames) >= np.asarray(lengths)[:, None]
        only_o = np.where(np.arange(4) == O, 0.0, -np.inf)
        log_probs = np.where(padding[..., None], only_o, log_probs)
    step = np.where(ALLOWED, 0.0, -np.inf)
    best = np.tile(np.where(FIRST, 0.0, -np.inf), (n, 1))  # up to the frame before, by next tag
    came_from = np.zeros((n, n_frames, 4), np.int8)
    for t in range(n_frames):
        if t:
            ways = best[:, :, None] + step
            came_from[:, t] = ways.argmax(axis=1)
            best = ways.max(axis=1)
        best = best + log_probs[:, t]
    tags = np.zeros((n, n_frames), np.int64)
    if n_frames:
        tags[:, -1] = np.where(LAST, best, -np.inf).argmax(axis=1)
    for t in range(n_frames - 1, 0, -1):
        tags[:, t - 1] = came_from[np.arange(n), t, tags[:, t]]
    return tags
