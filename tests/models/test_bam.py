"""BAM matches the published back end and losses; fast forms match slow ones; long clips."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fill import load, make_input, make_state
from learning import learn
from places import GOLDENS
from torch import nn

from klassify.data.audio import AudioFrames
from klassify.grid import windows
from klassify.grid.frames import IGNORE, boundary_labels
from klassify.models import bam
from klassify.models.bam import (
    BAM,
    BoundaryAwareAttention,
    FrameAttention,
    boundary_loss,
    frame_loss,
)
from klassify.models.frontends.ssl import FrontEnd, normalise_waveform
from klassify.scores.inference import clip_frames

GOLDEN, EXPECTED = load(GOLDENS / "bam")
FORWARD = [case for case in GOLDEN["cases"] if case["kind"] == "forward"]
LOSSES = [case for case in GOLDEN["cases"] if case["kind"] == "loss"]
SECOND_NAME = "intra_layer.resnet.downsample.weight"  # of layer4's shortcut, in published files
RATE = 16_000


class Framed(FrontEnd):
    """A linear layer on each 400 samples of the normalised wave, and a convolution over frames."""

    dim = 32

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(400, self.dim)
        self.context = nn.Conv1d(self.dim, self.dim, 5, padding=2)

    def forward(self, wave):
        frames = torch.relu(self.proj(normalise_waveform(wave).unfold(1, 400, 320)))
        return torch.relu(self.context(frames.transpose(1, 2))).transpose(1, 2)


def small_bam(seed=0, **settings):
    """A model of about 10,000 parameters, whose batch norm has seen a batch."""
    torch.manual_seed(seed)
    model = BAM(Framed(), **{"local_channels": 2, **settings})
    with torch.no_grad():
        model.train()(torch.randn(4, 16_000))
    return model.eval()


@pytest.fixture(scope="module")
def published():
    """{golden model: state dict in our polarity}, without the second name of a tensor."""
    states = {}
    for name, model in GOLDEN["models"].items():
        state = {key: torch.as_tensor(value) for key, value in make_state(model).items()}
        second = state.pop(SECOND_NAME)
        assert torch.equal(second, state["intra_layer.resnet.layer4.0.downsample.weight"])
        for key in ("out_layer.weight", "out_layer.bias"):
            state[key] = state[key].flip(0)
        states[name] = state
    return states


@pytest.mark.parametrize("case", FORWARD, ids=lambda case: case["id"])
def test_back_end_matches_the_published_one(published, case):
    size, pool = GOLDEN["models"][case["model"]]["config"], round(case["resolution"] / 0.02)
    sizes = size["embed_dim"], pool, size["gap_layers"], size["local_channels"]
    with torch.device("meta"):  # the weights are replaced
        model = BoundaryAwareAttention(*sizes)
    model.eval().load_state_dict(published[case["model"]], assign=True)
    with torch.inference_mode():
        logits, boundary = model(torch.from_numpy(make_input(case["inputs"][0])))
    tolerance = {"atol": GOLDEN["tolerance"]["abs"], "rtol": GOLDEN["tolerance"]["rel"]}
    np.testing.assert_allclose(logits, EXPECTED[f"{case['id']}/logits"][..., ::-1], **tolerance)
    np.testing.assert_allclose(boundary, EXPECTED[f"{case['id']}/boundary"], **tolerance)


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: f"{case['id']}-{case['variant']}")
def test_losses_match_the_published_ones(case):
    names = ("probability", "target", "logits", "mask", "labels")
    probability, target, logits, mask, label = (
        torch.from_numpy(EXPECTED[f"{case['id']}/{name}"]) for name in names
    )
    valid, label = mask.bool(), label.long()
    actual = {
        "balanced_bce": boundary_loss(probability, target, valid),
        "masked_ce": frame_loss(logits, label.masked_fill(~valid, IGNORE)),
        "unmasked_ce": frame_loss(logits, label),
    }
    tolerance = {"atol": GOLDEN["loss_tolerance"]["abs"], "rtol": GOLDEN["loss_tolerance"]["rel"]}
    for name, wanted in case["expected"].items():
        np.testing.assert_allclose(actual[name], wanted, **tolerance, err_msg=name)


def plain_pair_scores(x, proj, weight):
    return (torch.tanh(proj(x[:, :, None] * x[:, None])) @ weight).squeeze(3)


@pytest.mark.parametrize("at_once", [1, 100, bam.PAIRS_AT_ONCE])
@pytest.mark.parametrize("n_frames", [1, 2, 3, 24, 37])
def test_pair_scores_match_the_plain_form_and_its_gradient(n_frames, at_once):
    torch.manual_seed(n_frames)
    x = torch.randn(3, n_frames, 24, requires_grad=True)
    weight = torch.randn(16, 1, requires_grad=True)
    proj, direction = nn.Linear(24, 16), torch.randn(3, n_frames, n_frames)
    leaves = [x, weight, proj.weight, proj.bias]
    plain, fast = plain_pair_scores(x, proj, weight), bam.pair_scores(x, proj, weight, at_once)
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=0)
    ours, theirs = (
        torch.autograd.grad((scores * direction).sum(), leaves) for scores in (fast, plain)
    )
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def same_side(boundary):
    """The mask by its definition, pair by pair."""
    n_frames = len(boundary)
    mask = np.eye(n_frames, dtype=bool)
    for j in range(n_frames):
        for k in range(j + 1, n_frames):
            mask[j, k] = mask[k, j] = not any(boundary[j : k + 1])
    return mask


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_same_side_mask_matches_its_definition(density):
    boundary = np.random.default_rng(3).random((5, 23)) < density
    wanted = np.stack([same_side(row) for row in boundary])
    np.testing.assert_array_equal(bam.same_side_mask(torch.from_numpy(boundary)), wanted)


def test_masked_pairs_have_the_score_0():
    torch.manual_seed(0)
    layer, x = FrameAttention(6, 6).eval(), torch.randn(1, 4, 6)
    nobody = torch.zeros(1, 4, 4, dtype=torch.bool)
    attended = x.mean(dim=1, keepdim=True)  # all scores 0: the same weight for each frame
    projected = layer.proj_with_att(attended) + layer.proj_without_att(x)
    wanted = F.selu(layer.bn(projected.flatten(0, 1)))
    torch.testing.assert_close(layer(x, nobody), wanted.view_as(x))


@pytest.mark.parametrize("dim", [3, 33, 80])
def test_back_end_takes_front_ends_of_any_size(dim):
    logits, boundary = BoundaryAwareAttention(dim, pool=2, local_channels=1)(torch.randn(2, 6, dim))
    assert (logits.shape, boundary.shape) == ((2, 3, 2), (2, 3))


def test_losses_are_zero_if_no_frame_counts():
    boundary = torch.full((2, 5), 0.5, requires_grad=True)
    logits = torch.zeros(2, 5, 2, requires_grad=True)
    nothing = torch.zeros(2, 5, dtype=torch.long)
    loss = boundary_loss(boundary, nothing, nothing == 0) + frame_loss(logits, nothing + IGNORE)
    loss.backward()
    assert loss == 0 and not boundary.grad.any() and not logits.grad.any()


def touched(model):
    """The parts of the model that got a gradient."""
    parts = {**dict(model.backend.named_children()), "frontend": model.frontend}
    graded = {name: [p.grad is not None for p in part.parameters()] for name, part in parts.items()}
    return {name for name, grads in graded.items() if any(grads)}


def test_boundary_branch_learns_only_from_the_boundary_loss():
    frames, boundaries = small_bam(), small_bam()
    wave = torch.randn(2, RATE)
    frames(wave)[0].square().sum().backward()
    boundaries(wave)[1].square().sum().backward()
    assert touched(frames) == {"frontend", "att_pool", "gap_layers", "boundary_proj", "out_layer"}
    branch = {"inter_layer", "intra_layer", "b_output_layer"}
    assert touched(boundaries) == {"frontend", "att_pool"} | branch


def test_loss_ignores_padding_and_weighs_the_boundary_loss():
    model, batch = small_bam(boundary_weight=0.25), planted(2, seed=1)
    batch["frame_label"][1, 20:], batch["boundary_label"][1, 20:] = IGNORE, 0
    logits, boundary = model(batch["wave"])
    label, valid = batch["frame_label"], batch["frame_label"] != IGNORE
    log_probs = logits.log_softmax(2)[valid]
    cross_entropy = -log_probs.gather(1, label[valid][:, None]).mean()
    edges = boundary_loss(boundary, batch["boundary_label"], valid)
    torch.testing.assert_close(model.loss(batch), cross_entropy + 0.25 * edges)


def planted(n_clips, seed, n_frames=50):
    """Noise with a tone in one span of each clip: a batch for `loss`."""
    rng = np.random.default_rng(seed)
    wave = rng.normal(0, 0.1, (n_clips, n_frames * 640))
    label = np.zeros((n_clips, n_frames), np.int64)
    for clip, row in enumerate(label):
        first = rng.integers(1, n_frames - 16)
        row[first : first + rng.integers(6, 15)] = 1
        wave[clip] += 0.2 * np.repeat(row, 640) * np.sin(np.arange(n_frames * 640) * 0.4)
    edges = torch.from_numpy(boundary_labels(label)).float()
    return {
        "wave": torch.from_numpy(wave).float(),
        "frame_label": torch.from_numpy(label),
        "boundary_label": edges,
    }


@pytest.mark.long
def test_bam_learns_a_planted_span():
    torch.manual_seed(0)
    model = BAM(Framed(), local_channels=2)
    learn(model, lambda step: planted(8, seed=step), steps=80, lr=3e-3)
    unseen = planted(16, seed=10_000)
    with torch.inference_mode():
        scores = model.eval().frame_scores(unseen["wave"])
    assert ((scores["score"] > 0) == unseen["frame_label"].bool()).float().mean() > 0.97
    edges = unseen["boundary_label"].bool()
    assert scores["boundary"][edges].mean() > scores["boundary"][~edges].mean() + 0.5


def test_score_is_the_highest_of_its_frames():
    model, wave = small_bam(), torch.randn(3, RATE)
    with torch.inference_mode():
        logits = model(wave)[0]
        odds = logits.softmax(2)
        wanted = (odds[..., 1] / odds[..., 0]).log().amax(1)
        torch.testing.assert_close(model.score({"wave": wave}), wanted)


@pytest.mark.parametrize("front_end_frames", [1, 2, 3, 4, 8, 32])
def test_number_of_frames_at_every_resolution(front_end_frames):
    model = small_bam(resolution_s=0.02 * front_end_frames)
    assert model.backend.att_pool.pool == front_end_frames
    for n_samples in (1, 9_999, 64_000):
        n_frames = int(np.ceil(n_samples / (320 * front_end_frames)))
        logits, boundary = model(torch.randn(2, n_samples))
        assert (logits.shape, boundary.shape) == ((2, n_frames, 2), (2, n_frames))


@pytest.mark.parametrize("resolution_s", [0.0, 0.01, 0.05])
def test_resolutions_off_the_20_ms_grid_are_refused(resolution_s):
    with pytest.raises(ValueError, match="multiple of 0.02 s"):
        BAM(Framed(), resolution_s=resolution_s)


def test_padding_precedes_the_front_end_s_normalisation():
    model, heard = small_bam(), []
    model.frontend.register_forward_pre_hook(lambda module, inputs: heard.append(inputs[0]))
    wave = torch.randn(1, 1_000)
    model(wave)
    torch.testing.assert_close(heard[0], F.pad(wave, (0, 280 + 256)), atol=0, rtol=0)


def test_trains_under_bfloat16_autocast():
    model = small_bam().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(planted(2, seed=0))
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)


def whole(model, wave):
    """Scores of one forward pass over a clip."""
    with torch.inference_mode():
        scores = model.frame_scores(wave[None])
    return {key: value[0].double().numpy() for key, value in scores.items()}


def score_long(model: BAM, wave: torch.Tensor, batch_size: int = 2) -> dict[str, np.ndarray]:
    """A clip of any length, scored in windows as by `klassify score`."""
    data = AudioFrames()
    rows = clip_frames(model, data, data.cut(wave.numpy()), batch_size=batch_size)
    return dict(zip(("start", "end", "score", "boundary"), rows.T))


@pytest.mark.parametrize("n_samples", [1, 640, 23_456, 63_990, 64_000])
def test_a_short_clip_is_one_forward_pass(n_samples):
    model, wave = small_bam(), torch.randn(n_samples)
    scores, wanted = score_long(model, wave), whole(model, wave)
    for key in ("score", "boundary"):
        np.testing.assert_allclose(scores[key], wanted[key], atol=1e-5)
    assert len(scores["start"]) == int(np.ceil(n_samples / 640))
    assert scores["end"][-1] == pytest.approx(n_samples / RATE)
    np.testing.assert_allclose(scores["start"], 0.04 * np.arange(len(scores["start"])))
    np.testing.assert_array_equal(scores["end"][:-1], scores["start"][1:])


def test_windows_of_long_clips_are_averaged_by_triangles():
    model, wave = small_bam(), torch.randn(int(9.61 * RATE))
    starts = windows.cut(241, size=100, hop=50)
    assert starts.tolist() == [0, 50, 100, 141]
    padded = F.pad(wave, (0, 241 * 640 - len(wave)))
    weight = np.minimum(np.arange(1, 101), np.arange(100, 0, -1))
    total, mass = np.zeros(241), np.zeros(241)
    for start in starts:
        scores = whole(model, padded[start * 640 : (start + 100) * 640])["score"]
        total[start : start + 100] += weight * scores
        mass[start : start + 100] += weight
    np.testing.assert_allclose(score_long(model, wave)["score"], total / mass, atol=1e-5)


def test_shares_of_frames_are_soft_targets():
    torch.manual_seed(3)
    logits = torch.randn(2, 9, 2)
    label = torch.randint(0, 2, (2, 9))
    hard = label.float().masked_fill(
        torch.tensor([[False] * 9, [False] * 6 + [True] * 3]), torch.nan
    )
    ignored = label.masked_fill(hard.isnan(), IGNORE)
    torch.testing.assert_close(frame_loss(logits, hard), frame_loss(logits, ignored))
    share = torch.rand(2, 9)
    p = logits.softmax(dim=-1)
    wanted = -(share * p[..., 1].log() + (1 - share) * p[..., 0].log()).mean()
    torch.testing.assert_close(frame_loss(logits, share), wanted)
    nothing = torch.full((2, 9), torch.nan)
    assert frame_loss(logits, nothing) == 0


def test_a_model_of_20_ms_learns_from_shares():
    data = AudioFrames(window=6400, stride=3200, hop_s=0.02, offset_s=0.0025, targets="share")
    wave = np.random.default_rng(0).normal(0, 0.1, 5000).astype(np.float32)
    example = data.example(wave, (np.array([[0.1, 0.207]]), 1), np.random.default_rng(1))
    model = small_bam(resolution_s=0.02)
    data.check_model(model)
    loss = model.loss({key: value[None] for key, value in example.items()})
    loss.backward()
    assert torch.isfinite(loss)
    rows = clip_frames(model, data, data.cut(wave))
    np.testing.assert_allclose(rows[:, 0], 0.0025 + 0.02 * np.arange(16))


@pytest.mark.parametrize("ratio", [0.3, 5.0, 100.0])
def test_boundary_loss_equals_a_plain_selection(ratio):
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.4, 1.0):
        boundary = torch.from_numpy(rng.uniform(0.01, 0.99, (3, 40))).float().requires_grad_()
        label = torch.from_numpy(rng.random((3, 40)) < share).float()
        valid = torch.from_numpy(rng.random((3, 40)) < 0.8)
        found = boundary_loss(boundary, label, valid, ratio)
        loss = F.binary_cross_entropy(boundary, label, reduction="none") * valid
        count = int(label.sum())
        hardest = loss[label == 0].sort(descending=True).values[: int(count * ratio)]
        wanted = (loss[label == 1].sum() + hardest.sum()) / max(count + len(hardest), 1)
        torch.testing.assert_close(found, wanted)
        gradients = [torch.autograd.grad(one, boundary)[0] for one in (found, wanted)]
        torch.testing.assert_close(*gradients)
