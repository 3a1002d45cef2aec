"""SGP blocks, trident decoding, assignment and losses match TriDet's; padding changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fill import load, make_input, make_state
from places import GOLDENS
from torch import nn

from klassify.models.pyramid import (
    AffineDropPath,
    ChannelNorm,
    SGPBlock,
    Tower,
    bin_logits,
    expected_bin,
    halved,
)
from klassify.models.span_loss import Points, assign, focal, overlaps

GOLDEN, EXPECTED = load(GOLDENS / "sgp")
CASES = {case["id"]: case for case in GOLDEN["cases"]}
NEAR = {"atol": GOLDEN["tolerance"]["abs"], "rtol": GOLDEN["tolerance"]["rel"]}


def state_of(name):
    state = make_state(GOLDEN["models"][name])
    return {key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}


def input_of(case):
    x = torch.from_numpy(make_input(case["inputs"][0]))
    mask = torch.arange(x.shape[2]) < torch.tensor(case["lengths"])[:, None]
    return x * mask[:, None], mask[:, None]


def expected(case, name):
    return torch.from_numpy(EXPECTED[f"{case}/{name}"])


def block(config, dim, **changed):
    """An SGPBlock with the settings of a golden."""
    return SGPBlock(
        dim,
        kernel=config.get("kernel_size", 1),
        large=config["large_kernel"],
        stride=config.get("n_ds_stride", 1),
        pool=config.get("downsample_type", "max"),
        hidden=config.get("n_hidden"),
        drop_path=config.get("path_pdrop"),
        **{"masked": False, **changed},
    )


@pytest.mark.parametrize("name", ["block_k1", "block_k3_down", "block_k1_avg"])
def test_block_equals_the_published_one(name):
    config = GOLDEN["models"][name]["config"]
    model = block(config, config["n_embd"]).eval()
    model.load_state_dict(state_of(name))
    with torch.no_grad():
        out, mask = model(*input_of(CASES[name]))
    torch.testing.assert_close(out, expected(name, "out"), **NEAR)
    np.testing.assert_array_equal(mask[:, 0].numpy(), EXPECTED[f"{name}/mask"])


class TinyTriDet(nn.Module):
    """The golden's network from our parts; loads its published state."""

    def __init__(self, config, state):
        super().__init__()
        dim = config["embd_dim"]
        sgp = {"kernel_size": 1, "large_kernel": 11, "n_hidden": config["sgp_mlp_dim"]}
        self.embed = Tower(config["input_dim"], dim, 1)  # its last convolution is not used
        self.stem = nn.ModuleList(block(sgp, dim) for _ in range(config["backbone_arch"][1]))
        down = sgp | {"n_ds_stride": 2, "path_pdrop": 0.1}
        levels = config["backbone_arch"][2]
        self.branch = nn.ModuleList(block(down, dim) for _ in range(levels))
        self.norms = nn.ModuleList(ChannelNorm(dim) for _ in range(levels + 1))
        bins = config["num_bins"]
        outs = {"cls": 1, "start": 1, "end": 1, "reg": 2 * (bins + 1)}
        self.heads = nn.ModuleDict({key: Tower(dim, dim, n) for key, n in outs.items()})
        self.scales = [state[f"reg_head.scale.{i}.scale"] for i in range(levels + 1)]
        own = {k: v for k, v in self.state_dict().items() if k.startswith("embed.out")}
        kept = {self.renamed(k): v for k, v in state.items() if ".scale." not in k}
        self.load_state_dict(own | kept)

    def renamed(self, key):
        for old, new in (
            ("backbone.embd_norm.", "embed.norms."),
            ("backbone.embd.", "embed.convs."),
            ("backbone.", ""),
            ("neck.fpn_norms.", "norms."),
            (".cls_head.conv.", ".out."),
            (".offset_head.conv.", ".out."),
            (".head.", ".convs."),
            (".norm.", ".norms."),
            (".conv.", "."),
        ):
            key = key.replace(old, new)
        return "heads." + key.replace("_head", "") if "_head" in key else key

    def forward(self, x, mask):
        for conv, norm in zip(self.embed.convs, self.embed.norms):
            x = F.relu(norm(conv(x) * mask))
        for one in self.stem:
            x, mask = one(x, mask)
        levels = [(x, mask)]
        for one in self.branch:
            levels.append(one(*levels[-1]))
        features = [norm(x) for norm, (x, _) in zip(self.norms, levels)]
        masks = [mask for _, mask in levels]
        heads = {
            name: [head(x, mask) for x, mask in zip(features, masks)]
            for name, head in self.heads.items()
        }
        heads["reg"] = [F.relu(x * scale) for x, scale in zip(heads["reg"], self.scales)]
        return features, masks, heads


@pytest.fixture(scope="module")
def tridet():
    """Levels of the golden's network: features, masks, heads."""
    model = GOLDEN["models"]["tridet"]
    case = CASES["T64_B2"]
    network = TinyTriDet(model["config"], state_of("tridet")).eval()
    with torch.no_grad():
        return network(*input_of(case))


def decoded(heads):
    """Distances (B, P, 2) in strides, of all levels."""
    parts = []
    for start, end, reg in zip(heads["start"], heads["end"], heads["reg"]):
        bins = reg.shape[1] // 2
        left, right = reg[:, :bins].flip(1), reg[:, bins:]  # published from the furthest bin on
        logits = bin_logits(start[:, 0], end[:, 0], left.mT, right.mT)
        parts.append(torch.stack([expected_bin(one) for one in logits], dim=-1))
    return torch.cat(parts, dim=1)


def points_of():
    config, columns = GOLDEN["models"]["tridet"]["config"], []
    for level, (low, high) in enumerate(config["regression_range"]):
        stride = 2**level
        time = torch.arange(64 // stride) * float(stride)
        columns.append([time, *(torch.full_like(time, value) for value in (stride, low, high))])
    return Points(*(torch.cat(column) for column in zip(*columns)))


def padded(segments):
    size = max(map(len, segments))
    out = torch.full((len(segments), size, 2), torch.nan)
    for row, rows in zip(out, segments):
        row[: len(rows)] = torch.tensor(rows)
    return out


def test_network_of_our_parts_equals_the_published_one(tridet):
    features, _, heads = tridet
    named = {"class_logits": "cls", "start_logits": "start", "end_logits": "end", "bins": "reg"}
    for level in range(4):
        torch.testing.assert_close(features[level], expected("T64_B2", f"features_{level}"), **NEAR)
        for key, name in named.items():
            wanted = expected("T64_B2", f"{key}_{level}")
            torch.testing.assert_close(heads[name][level], wanted, **NEAR)


def test_trident_decoding_equals_the_published_one(tridet):
    _, masks, heads = tridet
    distances, points = decoded(heads), points_of()
    scores = torch.cat([x[:, 0] for x in heads["cls"]], dim=1).sigmoid()
    scores = scores * torch.cat([mask[:, 0] for mask in masks], dim=1)
    reach = distances * points.stride[:, None]
    segments = torch.stack([points.time - reach[..., 0], points.time + reach[..., 1]], dim=-1)
    for clip in range(2):
        wanted = expected("T64_B2", f"offsets_{clip}")[:, 0]
        torch.testing.assert_close(distances[clip], wanted, **NEAR)
        wanted = expected("T64_B2", f"segments_{clip}")[:, 0]
        torch.testing.assert_close(segments[clip], wanted, **NEAR)
        wanted = expected("T64_B2", f"scores_{clip}")[:, 0]
        torch.testing.assert_close(scores[clip], wanted, **NEAR)


def test_assignment_and_losses_equal_the_published_ones(tridet):
    _, masks, heads = tridet
    case, points = CASES["T64_B2"], points_of()
    segments = padded(case["segments"])
    mask = torch.cat([mask[:, 0] for mask in masks], dim=1)
    owner = assign(points, segments, torch.ones_like(mask), all_found=False)
    positive = owner >= 0
    wanted = expected("T64_B2", "target_classes")[..., 0] > 0
    assert torch.equal(positive, wanted)
    mine = segments.gather(1, owner.clamp(min=0)[..., None].expand(-1, -1, 2))
    distances = torch.stack([points.time - mine[..., 0], mine[..., 1] - points.time], dim=-1)
    distances = (distances / points.stride[:, None]) * positive[..., None]
    torch.testing.assert_close(distances, expected("T64_B2", "target_offsets"), **NEAR)

    positive &= mask
    iou, loss = overlaps(decoded(heads)[positive], distances[positive])
    norm = 0.9 * GOLDEN["models"]["tridet"]["config"]["init_loss_norm"] + 0.1 * positive.sum()
    near = {"atol": GOLDEN["loss_tolerance"]["abs"], "rtol": GOLDEN["loss_tolerance"]["rel"]}
    torch.testing.assert_close(loss.sum() / norm, expected("T64_B2", "reg_loss"), **near)
    logits = torch.cat([x[:, 0] for x in heads["cls"]], dim=1)
    each = focal(logits, positive.float())
    each[positive] *= iou**0.2
    torch.testing.assert_close(each[mask].sum() / norm, expected("T64_B2", "cls_loss"), **near)


def random_batch(n_frames=(24, 17), dim=16):
    x = torch.randn(len(n_frames), dim, max(n_frames))
    mask = torch.arange(max(n_frames)) < torch.tensor(n_frames)[:, None]
    return x * mask[:, None], mask[:, None]


@pytest.mark.parametrize("stride", [1, 2])
def test_padding_changes_no_clip(stride):
    torch.manual_seed(0)
    model = SGPBlock(16, stride=stride, drop_path=0.1, start=1.0).eval()
    x, mask = random_batch()
    x = x - 3  # so that zeros are not the lowest values
    both, both_mask = model(torch.where(mask, x, 9.0), mask)
    for clip, n in enumerate((24, 17)):
        alone, _ = model(x[clip : clip + 1, :, :n], mask[clip : clip + 1, :, :n])
        kept = both[clip, :, : alone.shape[2]]
        torch.testing.assert_close(kept, alone[0], atol=1e-5, rtol=1e-5)
        assert both_mask[clip].sum() == alone.shape[2]
        assert not both[clip, :, alone.shape[2] :].any()


def test_halving_takes_the_highest_valid_neighbour():
    x, mask = random_batch((9, 6))
    x = x - 3
    found, small = halved(x, mask)
    for clip, n in enumerate((9, 6)):
        for t in range(5):
            near = [x[clip, :, k] for k in (2 * t - 1, 2 * t, 2 * t + 1) if 0 <= k < n]
            assert bool(small[clip, 0, t]) == (2 * t < n)
            wanted = torch.stack(near).amax(dim=0) if 2 * t < n else torch.zeros(16)
            assert torch.equal(found[clip, :, t], wanted)


def test_dropped_branches_keep_the_mean():
    torch.manual_seed(0)
    path = AffineDropPath(4, drop=0.25, start=0.5).train()
    out = path(torch.ones(4000, 4, 1))
    assert out.unique().tolist() == [0.0, pytest.approx(0.5 / 0.75)]
    assert float(out.mean().detach()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(path.eval()(torch.ones(2, 4, 1)), torch.full((2, 4, 1), 0.5))


def test_bin_logits_equal_a_loop():
    torch.manual_seed(0)
    start, end = torch.randn(2, 2, 6)
    left, right = torch.randn(2, 2, 6, 4)
    found = bin_logits(start, end, left, right)
    for clip in range(2):
        for t in range(6):
            for b in range(4):
                before = start[clip, t - b] if t >= b else 0.0
                behind = end[clip, t + b] if t + b < 6 else 0.0
                assert found[0][clip, t, b] == before + left[clip, t, b]
                assert found[1][clip, t, b] == behind + right[clip, t, b]
