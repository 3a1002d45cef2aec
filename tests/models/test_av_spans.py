"""AVSpans: its published size, missing modalities, padding, and planted spans that it finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from learning import learn

from klassify.data.av_embeddings import AVEmbeddings, Stream
from klassify.models.av_spans import AVSpans
from klassify.models.frame_head import balanced_cross_entropy
from klassify.models.pyramid import expected_bin
from klassify.models.span_loss import assign, distance_loss, overlaps


def small(**changed):
    torch.manual_seed(0)
    settings = {"dim": 16, "levels": 4, "stem": 1, "hidden": 2, "drop_path": 0.0, "noise": 0.0}
    return AVSpans(8, 8, **{**settings, **changed})


def clip_of(fake, n_frames=100, seed=0, streams=("audio", "visual")):
    """Noise in two streams; the first dimension is 3 in fake frames, in shares at its edges."""
    rng = np.random.default_rng(seed)
    clip = {}
    for name, hop_s, offset_s in (("audio", 0.02, 0.0025), ("visual", 0.04, 0.0)):
        n = n_frames // 2 if name == "visual" else n_frames
        values = rng.normal(0, 0.3, (n, 8)).astype(np.float16)
        edges = offset_s + hop_s * np.arange(n + 1)
        for start, end in fake:
            values[:, 0] += (3 * np.diff(np.clip(edges, start, end)) / hop_s).astype(np.float16)
        there = n if name in streams else 0
        clip[name] = Stream(values[:there], np.ones(there, bool))
    return clip


def batch_of(clips, fakes, data=None):
    data = data or AVEmbeddings(window=100, stride=50, warp=0.0)
    targets = [(np.array(fake, float).reshape(-1, 2),) * 2 for fake in fakes]
    items = [
        data.example(clip, (one, (one, other)), np.random.default_rng(seed))
        for seed, (clip, (one, other)) in enumerate(zip(clips, targets))
    ]
    return data.collate(items)


def test_published_size():
    assert sum(parameter.numel() for parameter in AVSpans().parameters()) == 6_655_784


def test_points_lie_in_the_middle_of_what_they_read():
    points = small().points(13)
    assert points.time[:13].tolist() == [t + 0.5 for t in range(13)]
    assert points.time[13:20].tolist() == [2 * t + 0.5 for t in range(7)]
    assert points.high[points.stride == 8].isinf().all()
    assert points.low[points.stride == 1].eq(0).all()


@pytest.mark.parametrize("residuals", [False, True])
def test_padding_changes_no_proposal(residuals):
    model = small(residuals=residuals).eval()
    long, short = clip_of([], 100, 1), clip_of([], 60, 2)
    both, alone = batch_of([long, short], [[], []]), batch_of([short], [[]])
    with torch.no_grad():
        spans, wanted = model.spans(both)[1], model.spans(alone)[0]
    first_there, first = 0, 0
    for level in range(4):
        n_there, n = -(-100 // 2**level), -(-60 // 2**level)
        found = spans[first_there : first_there + n_there]
        torch.testing.assert_close(found[:n], wanted[first : first + n], atol=2e-3, rtol=2e-3)
        assert not found[n:, 2].any()
        first_there, first = first_there + n_there, first + n


@pytest.mark.parametrize("missing", ["audio", "visual"])
def test_values_of_a_missing_stream_change_nothing(missing):
    model = small(residuals=True).eval()
    batch = batch_of([clip_of([[0.5, 0.9]])], [[[0.5, 0.9]]])
    batch[f"{missing}_valid"][:] = False
    other = batch | {missing: torch.randn_like(batch[missing])}
    with torch.no_grad():
        torch.testing.assert_close(model.spans(batch), model.spans(other))


def test_modality_dropout_never_takes_both():
    model = small(modality_dropout=0.4)
    batch = batch_of([clip_of([])] * 200, [[]] * 200)
    torch.manual_seed(0)
    left = model._without_modalities(batch)
    audio, visual = (left[f"{name}_valid"].any(dim=1) for name in ("audio", "visual"))
    assert (audio | visual).all()
    assert 50 < int((~audio).sum()) < 110 and 50 < int((~visual).sum()) < 110
    assert batch["audio_valid"].all()


def test_loss_terms_of_a_perfect_answer_are_small():
    """Logits that say exactly what the targets are."""
    fake = [[0.5031, 0.811]]
    batch = batch_of([clip_of(fake), clip_of([])], [fake, []])
    model = small().eval()
    outputs = model(batch)
    points = model.points(100)
    owner = assign(points, batch["segments"], outputs.mask)
    sure = torch.where(owner[..., None] >= 0, 20.0, -20.0).expand(-1, -1, 3)
    start, end = batch["segments"][0, 0]
    wanted = torch.stack([points.time - start, end - points.time]) / points.stride
    bins = torch.arange(outputs.left.shape[-1])
    shares = [(1 - (bins - one[:, None]).abs()).clamp(min=1e-9) for one in wanted]
    peaks = [share.log().expand(2, -1, -1) for share in shares]
    perfect = outputs._replace(
        logit=sure, quality=torch.full_like(outputs.quality, 20.0), left=peaks[0], right=peaks[1]
    )
    terms, before = model.loss_terms(perfect, batch), model.loss_terms(outputs, batch)
    for name in ("classes", "overlap", "quality", "clip"):
        assert float(terms[name].detach()) < 1e-3
    assert terms["distances"] < before["distances"] / 3


@pytest.mark.long
def test_planted_spans_are_found_to_a_few_milliseconds():
    rng = np.random.default_rng(0)
    fakes = []
    for number in range(24):
        start = rng.uniform(0.1, 1.4)
        fakes.append([[start, start + rng.uniform(0.15, 0.5)]] if number % 4 else [])
    clips = [clip_of(fake, seed=seed) for seed, fake in enumerate(fakes)]
    model, batch = small(), batch_of(clips, fakes)
    losses = learn(model.train(), batch, steps=60, lr=4e-3, kind=torch.optim.AdamW)
    assert losses[-1] < losses[0] / 3
    data = AVEmbeddings(window=100, stride=50)
    model.eval()
    errors = []
    for fake, clip in zip(fakes, clips):
        (window,) = data.cut(clip)
        with torch.no_grad():
            outputs = data.outputs(model, data.collate([window.inputs]))
        rows = data.join(outputs, np.array([0]), 100)
        proposed = rows[:, 1:].reshape(-1, 3)
        best = proposed[proposed[:, 0].argmax()]
        if fake:
            errors.append(np.abs(best[1:] - fake[0]))
        else:
            assert best[0] < 0.5
    assert np.median(errors) < 0.01


def terms_of_positives(outputs, points, owner, batch):
    """The terms that only positive points have, computed on these points alone."""
    clip, point = (owner >= 0).nonzero(as_tuple=True)
    wanted = batch["segments"][clip, owner[clip, point]]
    wanted = (wanted - points.time[point, None]) * torch.tensor([-1.0, 1.0])
    wanted = wanted / points.stride[point, None]
    logits = outputs.left[clip, point], outputs.right[clip, point]
    iou, overlap = overlaps(torch.stack([expected_bin(one) for one in logits], dim=-1), wanted)
    distances = sum(distance_loss(one, wanted[:, i]).sum() for i, one in enumerate(logits))
    quality = F.binary_cross_entropy_with_logits(outputs.quality[clip, point], iou.detach())
    count = max(len(clip), 1)
    quality = quality if len(clip) else torch.zeros(())
    return {"overlap": overlap.sum() / count, "distances": distances / count, "quality": quality}


@pytest.mark.parametrize("fakes", [[[[0.4, 0.9], [1.2, 1.25]], [[0.1, 1.9]], []], [[], [], []]])
def test_terms_equal_those_of_the_positive_points_alone(fakes):
    clips = [clip_of(fake, n_frames=100 - 20 * i, seed=i) for i, fake in enumerate(fakes)]
    model, batch = small(residuals=True).eval(), batch_of(clips, fakes)
    outputs, points = model(batch), model.points(100)
    owner = assign(points, batch["segments"], outputs.mask)
    found = model.loss_terms(outputs, batch)
    wanted = terms_of_positives(outputs, points, owner, batch)
    edges = 0.0
    for i, logit in enumerate((outputs.start, outputs.end)):
        at = batch["segments"][:, None, :, i]
        away = (points.time[:, None] - at).abs().nan_to_num(torch.inf)
        nearest = F.pad(away, (0, 1), value=torch.inf).amin(dim=2)
        target = torch.exp(-0.5 * (nearest / (points.stride / 2)) ** 2)
        inside = logit[outputs.mask], target[outputs.mask]
        edges = edges + balanced_cross_entropy(*inside, torch.tensor(True))
    for name, term in (wanted | {"edges": edges}).items():
        torch.testing.assert_close(found[name], term)
        if term.requires_grad and float(term.detach()):
            weight = model.offsets.out.weight if name != "quality" else model.classes.out.weight
            weight = model.edges.out.weight if name == "edges" else weight
            gradients = [
                torch.autograd.grad(one, weight, retain_graph=True)[0]
                for one in (found[name], term)
            ]
            torch.testing.assert_close(*gradients)
