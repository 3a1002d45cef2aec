"""CFPRF gives the published frames, proposals, targets and losses; clips do not know each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fill import load, make_input
from front_ends import Framed, Given
from learning import learn
from places import GOLDENS
from published import golden_state

from klassify.grid.frames import IGNORE
from klassify.models import cfprf
from klassify.models.cfprf import (
    CFPRF,
    ProposalRefinement,
    boundary_marks,
    contrastive_loss,
    corrections,
    fake_runs,
    frame_mse,
    matches,
    refined,
)

GOLDEN, EXPECTED = load(GOLDENS / "cfprf")
TOLERANCE = {"atol": GOLDEN["tolerance"]["abs"], "rtol": GOLDEN["tolerance"]["rel"]}
CLOSE = {"atol": GOLDEN["loss_tolerance"]["abs"], "rtol": GOLDEN["loss_tolerance"]["rel"]}


def cases(kind):
    chosen = [case for case in GOLDEN["cases"] if case["kind"] == kind]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case["id"])


def inputs_of(case):
    return torch.from_numpy(make_input(case["inputs"][0]))


def published(fdn="fdn"):
    """The golden's networks as one model; the classes are still those of the file: fake, real."""
    model = CFPRF(Given(), seq_len=120).eval()
    state = golden_state("cfprf", fdn)
    wanted = model.fdn.state_dict()
    model.fdn.load_state_dict({key: value for key, value in state.items() if key in wanted})
    unused = {key.split(".")[-2] for key in state if key not in wanted}
    assert unused == {"bn1", "first_bn1"}
    model.prn.load_state_dict(golden_state("cfprf", "prn"))
    return model


def attention_among_clips(self, z):
    """The published rule: frame t of each clip attends to frame t of all clips, and the softmax is
    over time.
    """
    q, k, v = self.qkv(z).chunk(3, dim=2)
    mixed = torch.zeros_like(v)
    for i in range(len(z)):
        for j in range(len(z)):
            scores = torch.stack([(q[i, t] * k[j, t]).sum() / 8 for t in range(z.shape[1])])
            mixed[i] += scores.softmax(0)[:, None] * v[j]
    return self.proj(mixed)


@cases("fdn")
@torch.no_grad()
def test_frames_match_the_published_ones(case, monkeypatch):
    model, features = published(case["model"]), inputs_of(case)
    corners = []
    model.fdn.encoder[-1].register_forward_hook(lambda *call: corners.append(call[2]))
    alone = model.fdn(features[:1])
    if len(features) > 1:
        together = model.fdn(features)
        torch.testing.assert_close(together.logit[:1], alone.logit, **TOLERANCE)
        monkeypatch.setattr(cfprf.PerFrameAttention, "forward", attention_among_clips)
    outputs = model.fdn(features)
    actual = {
        "seg_scores": outputs.logit,
        "boundary_scores": outputs.boundary,
        "embedding": outputs.embedding,
        "hidden": outputs.hidden,
        "encoder_corner": corners[0][0, :8, :8, :8],
    }
    for name, values in actual.items():
        wanted = EXPECTED[f"{case['id']}/{name}"]
        np.testing.assert_allclose(values.numpy(), wanted, **TOLERANCE, err_msg=name)
    if len(features) > 1:
        assert (outputs.logit[:1] - alone.logit).abs().max() > 0.05


@cases("prn")
@torch.no_grad()
def test_refinement_matches_the_published_one(case):
    model, hidden = published(), inputs_of(case)
    spans = [(clip, *span) for clip, rows in enumerate(case["proposals"]) for span in rows]
    logit, correction = model.prn([hidden[clip, first:stop] for clip, first, stop in spans])
    rows = torch.tensor([span[1:] for span in spans])
    ends = np.column_stack([logit.sigmoid().numpy(), refined(rows, correction).numpy()])
    for name, values in (
        ("verification", logit.sigmoid()[:, None].numpy()),
        ("regression", correction.numpy()),
        ("refined", ends),
    ):
        np.testing.assert_allclose(values, EXPECTED[f"{case['id']}/{name}"], **TOLERANCE)


@cases("pipeline")
@torch.no_grad()
def test_proposals_match_the_published_ones(case):
    """Also those on frames of 40 ms, whose scores are means of two."""
    model, pooled = published(), case["resolution_ms"] // 20
    model.refine_from = 2 * pooled
    outputs = model(inputs_of(case))
    scores = F.avg_pool1d(outputs.logit[0].T, pooled).T[: case["label_frames"]]
    name = case["id"]
    np.testing.assert_allclose(scores[:, 1], EXPECTED[f"{name}/scores"], **TOLERANCE)
    fake = (scores[:, 0] >= scores[:, 1]).repeat_interleave(pooled)
    coarse, proposed = model.proposals(fake, outputs.hidden[0])
    np.testing.assert_allclose(coarse * 0.02, EXPECTED[f"{name}/coarse"][:, 1:], atol=1e-5)
    kept = proposed[:, 0] > 0.5
    rows = proposed[kept] * torch.tensor([1, 0.02, 0.02])
    verified = np.column_stack([rows[:, 0], coarse[kept] * 0.02])
    np.testing.assert_allclose(verified, EXPECTED[f"{name}/verified"], atol=1e-5)
    wanted = EXPECTED[f"{name}/refined"]
    for ours, theirs in zip(rows.numpy(), wanted[np.argsort(wanted[:, 1], kind="stable")]):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert len(rows) == len(wanted)


def test_proposals_together_equal_each_alone():
    torch.manual_seed(0)
    model, hidden = ProposalRefinement().eval(), torch.randn(90, 128)
    regions = [hidden[first:stop] for first, stop in ((0, 1), (3, 60), (60, 67), (5, 90))]
    with torch.no_grad():
        together = model(regions)
        for i, region in enumerate(regions):
            for one, all_ in zip(model([region]), together):
                torch.testing.assert_close(all_[i], one[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", GOLDEN["losses"], ids=lambda case: case["id"])
def test_losses_match_the_published_ones(case):
    embedding, label, scores = (
        torch.from_numpy(EXPECTED[f"{case['id']}/{name}"])
        for name in ("embedding", "label", "scores")
    )
    label, wanted = 1 - label.long(), case["expected"]  # 1 = fake
    embedding = embedding[:, : label.shape[1]]
    np.testing.assert_allclose(contrastive_loss(embedding, label), wanted["contrastive"], **CLOSE)
    mse = frame_mse(scores.flip(1), label.flatten())
    np.testing.assert_allclose(mse, wanted["frame_mse"], **CLOSE)


def test_boundaries_and_runs_match_the_published_ones():
    for strings in GOLDEN["label_strings"]:
        fake = torch.tensor([character == "0" for character in strings["label"]])
        marks = "".join(str(int(mark)) for mark in boundary_marks(fake))
        assert marks == strings["boundary"], strings["label"]
        assert fake_runs(fake).tolist() == strings["fake_frames"]


@pytest.mark.parametrize("case", GOLDEN["matching"], ids=lambda case: str(case["ground_truth"]))
def test_targets_of_proposals_match_the_published_ones(case):
    spans, truth = (torch.tensor(case[name]) for name in ("proposals", "ground_truth"))
    best, hit = matches(spans, truth)
    assert hit.long().tolist() == case["positive"]
    assert truth[best].tolist() == case["matched"]
    target = corrections(spans, truth[best])
    np.testing.assert_allclose(target, case["regression_target"], rtol=1e-5)
    torch.testing.assert_close(refined(spans, target), truth[best].double(), atol=1e-4, rtol=1e-5)


def test_an_end_before_the_clip_leaves_the_proposal_as_it_was():
    spans = torch.tensor([[4, 8], [4, 8]])
    moved = refined(spans, torch.tensor([[-300.0, 0.0], [-150.0, 0.0]]))
    assert moved.tolist() == [[4, 8], [0, 2]]


def planted(n_clips, seed, n_frames=50):
    """Noise with a tone in one span of each clip but the last: a batch for `loss`."""
    rng = np.random.default_rng(seed)
    wave = rng.normal(0, 0.1, (n_clips, n_frames * 320 + 80))
    label = np.zeros((n_clips, n_frames), np.int64)
    for clip in range(n_clips - 1):
        first = rng.integers(1, n_frames - 16)
        label[clip, first : first + rng.integers(6, 15)] = 1
        heard = np.repeat(label[clip], 320)
        wave[clip, : len(heard)] += heard * np.sin(np.arange(len(heard)) * 0.4)
    return {"wave": torch.from_numpy(wave).float(), "frame_label": torch.from_numpy(label)}


@pytest.mark.slow
def test_cfprf_fits_a_planted_span():
    torch.manual_seed(0)
    model, batch = CFPRF(Framed(16), seq_len=32), planted(2, seed=0, n_frames=30)
    learn(model, batch, steps=12, lr=3e-3)
    outputs = model(batch["wave"])
    fake = outputs.logit[..., 1] >= outputs.logit[..., 0]
    assert (fake == batch["frame_label"].bool()).float().mean() > 0.9


def test_loss_ignores_padding_and_refinement_spares_the_frames():
    torch.manual_seed(0)
    model, batch = CFPRF(Framed(16), seq_len=64).eval(), planted(3, seed=0)
    batch["frame_label"][:, 40:] = IGNORE
    outputs, label = model(batch["wave"]), batch["frame_label"][:, :40]
    marks = torch.cat([boundary_marks(row == 1) for row in label]).long()
    wanted = (
        frame_mse(outputs.logit[:, :40].flatten(0, 1), label.flatten())
        + 0.3 * contrastive_loss(outputs.embedding[:, :40], label)
        + 0.15 * frame_mse(outputs.boundary[:, :40].flatten(0, 1), marks)
    )
    refinement = model._refinement_loss(outputs, batch["frame_label"])
    torch.testing.assert_close(model.loss(batch), wanted + refinement)
    refinement.backward()
    assert all(parameter.grad is None for parameter in model.fdn.parameters())
    assert all(parameter.grad is not None for parameter in model.prn.parameters())
