"""The spatio-temporal branch: published numbers, slow references, sharing and pretrained start."""

from __future__ import annotations

import gc
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fill import fill, load, make_input, make_state
from places import GOLDENS
from safetensors.torch import save_file
from torch import Tensor, nn

from klassify.errors import KlassifyError
from klassify.models import resnetv2
from klassify.models.spatiotemporal import SpatioTemporal, sliding

SMALL = {
    "size": 48,
    "window": 4,
    "dim": 24,
    "depth": 3,
    "heads": 3,
    "mlp_ratio": 2,
    "stem_width": 8,
    "channels": (16, 32, 48),
    "layers": (2, 1, 2),
}
GROUPINGS = ("frame", "strided")
KINDS = ("bias", "weight")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(1)


def filled(model: nn.Module, seed: int = 1) -> nn.Module:
    """The model with weights like those of the goldens, in evaluation mode."""
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    state = {key: torch.as_tensor(fill(key, shape, seed)) for key, shape in shapes.items()}
    model.load_state_dict(state)
    return model.eval()


def clip(n_frames: int, size: int = 48, seed: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(n_frames, 3, size, size, generator=generator)
    return frames, frames + 0.3 * torch.randn(n_frames, 3, size, size, generator=generator)


def test_full_size_has_the_published_tensors():
    description, _ = load(str(GOLDENS / "iafa_vit"))
    with torch.device("meta"):
        model = SpatioTemporal()
    state = model.state_dict().items()
    ours = [[key, list(v.shape), str(v.dtype).removeprefix("torch.")] for key, v in state]
    assert ours == description["models"]["W10"]["state"]


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1, 2], ids=["W2", "W3", "W10"])
def test_windows_match_the_published_ones(index: int):
    description, expected = load(str(GOLDENS / "iafa_vit"))
    case = description["cases"][index]
    published = description["models"][case["model"]]
    model = SpatioTemporal(window=published["config"]["window_size"], fc_grouping="strided")
    state = make_state(published)
    model.load_state_dict({key: torch.as_tensor(value) for key, value in state.items()})
    seen = {}
    for name in ("rgb_backbone", "recons_backbone"):
        module = getattr(model.patch_embed, name)
        module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out))
    with torch.no_grad():
        frames, reconstructed = (torch.from_numpy(make_input(spec)) for spec in case["inputs"])
        tokens = model.eval().frame_tokens(frames[0], reconstructed[0])
        actual = model.windows(tokens[None])

    def close(name: str, value: Tensor, tolerance: dict[str, float]) -> None:
        wanted = expected[f"{case['id']}/{name}"]
        near = {"atol": tolerance["abs"], "rtol": tolerance["rel"]}
        np.testing.assert_allclose(value.numpy(), wanted, **near, err_msg=name)

    close("fc_tokens", actual, description["tolerance"])
    # float32 and float64 runs of a stem differ by up to 3e-4 in these corners
    corner = {"abs": 5e-4, "rel": 1e-4}
    for name, value in seen.items():
        per_frame = value.double().flatten(1)
        statistics = torch.stack([per_frame.mean(1), per_frame.std(1, correction=0)], 1)
        close(f"{name}_mean_std", statistics, description["stem_tolerance"])
        close(f"{name}_corner", value[0, :8, :5, :5], corner)
    tokens = tokens.flatten(0, 1).double()
    statistics = torch.stack([tokens.mean(), tokens.std(correction=0)])
    close("patch_tokens_mean_std", statistics, description["stem_tolerance"])
    close("patch_tokens_corner", tokens[:5, :5], description["stem_tolerance"])


def test_constants_that_the_golden_cannot_see():
    model = SpatioTemporal(**SMALL)
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 4 * SMALL["depth"] + 1
    assert {norm.eps for norm in norms} == {1e-6}
    assert {module.eps for module in model.modules() if isinstance(module, nn.GroupNorm)} == {1e-5}
    groups = {8: 4, 16: 8, 32: 16, 48: 16, 64: 32, 192: 32, 1024: 32, 1: 1}
    assert groups == {channels: resnetv2.group_norm(channels).num_groups for channels in groups}


@pytest.mark.parametrize(
    "size, kernel, stride", [(8, 7, 2), (9, 7, 2), (8, 3, 2), (7, 3, 1), (7, 1, 2)]
)
def test_standardised_convolution_pixel_by_pixel(size: int, kernel: int, stride: int):
    conv = resnetv2.StdConv2d(2, 3, kernel, stride).double()
    x = torch.randn(1, 2, size, size, dtype=torch.float64)
    weight = conv.weight.detach().clone()
    for index in range(3):
        one = conv.weight[index].detach()
        weight[index] = (one - one.mean()) / math.sqrt(((one - one.mean()) ** 2).mean() + 1e-8)
    out = -(-size // stride)
    before = max((out - 1) * stride + kernel - size, 0) // 2
    wanted = torch.zeros(1, 3, out, out, dtype=torch.float64)
    for channel, row, column in np.ndindex(3, out, out):
        for i, j in np.ndindex(kernel, kernel):
            y, z = row * stride + i - before, column * stride + j - before
            if 0 <= y < size and 0 <= z < size:
                wanted[0, channel, row, column] += (weight[channel, :, i, j] * x[0, :, y, z]).sum()
    torch.testing.assert_close(conv(x).detach(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel, sigma", [(3, 0.8), (5, 1.3), (7, 1.8)])
def test_blur_pixel_by_pixel(kernel: int, sigma: float):
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64)
    half = kernel // 2

    def mirrored(index: int, size: int) -> int:
        return -index if index < 0 else 2 * (size - 1) - index if index >= size else index

    wanted, total = torch.zeros_like(x), 0.0
    for i, j in np.ndindex(kernel, kernel):
        weight = math.exp(-((i - half) ** 2 + (j - half) ** 2) / (2 * sigma**2))
        total += weight
        for row, column in np.ndindex(8, 9):
            y, z = mirrored(row + i - half, 8), mirrored(column + j - half, 9)
            wanted[..., row, column] += weight * x[..., y, z]
    blurred = resnetv2.gaussian_blur(x, kernel)
    torch.testing.assert_close(blurred, wanted / total, rtol=0, atol=1e-12)


def attention_by_loops(state: dict[str, Tensor], x: Tensor, heads: int) -> Tensor:
    """(n, D) -> (n, D), one head and one query at a time."""
    dim = x.shape[1]
    q, k, v = (x @ state["qkv.weight"].T + state["qkv.bias"]).split(dim, dim=1)
    out, width = torch.zeros_like(x), dim // heads
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for index in range(len(x)):
            scores = torch.stack([(q[index, part] * other[part]).sum() for other in k])
            weights = torch.exp(scores / math.sqrt(width))
            out[index, part] = (weights / weights.sum()) @ v[:, part]
    return out @ state["proj.weight"].T + state["proj.bias"]


def block_by_loops(
    block: nn.Module, fc: Tensor, patches: Tensor, heads: int, grouping: str
) -> tuple[Tensor, Tensor]:
    """One window: FC tokens (W, D) and patches (W * P, D)."""

    def part(name: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(name + "."): value
            for key, value in block.state_dict().items()
            if key.startswith(name + ".")
        }

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(1, keepdim=True) + 1e-6)
        return scaled * part(name)["weight"] + part(name)["bias"]

    def mlp(x: Tensor, name: str) -> Tensor:
        w = part(name)
        hidden = x @ w["fc1.weight"].T + w["fc1.bias"]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        return hidden @ w["fc2.weight"].T + w["fc2.bias"]

    patches = patches + attention_by_loops(part("attn"), norm(patches, "norm1"), heads)
    patches = patches + mlp(norm(patches, "norm2"), "mlp")
    fc, patches, window = fc.clone(), patches.clone(), len(fc)
    for group in range(window):
        if grouping == "strided":
            members = list(range(group, len(patches), window))
        else:
            members = list(range(len(patches)))[group * len(patches) // window :]
            members = members[: len(patches) // window]
        x = torch.cat([fc[group : group + 1], patches[members]])
        x = x + attention_by_loops(part("temporal_attn"), norm(x, "temporal_norm1"), heads)
        x = x + mlp(norm(x, "temporal_norm2"), "temporal_mlp")
        fc[group], patches[members] = x[0], x[1:]
    return fc, patches


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_windows_by_loops(grouping: str):
    model = filled(SpatioTemporal(**SMALL, fc_grouping=grouping)).double()
    tokens = torch.randn(2, 4, 9, 24, dtype=torch.float64)
    with torch.no_grad():
        actual = model.windows(tokens)
        for index, one in enumerate(tokens):
            fc = (model.fc_token + model.temporal_pos_embed + model.time_embed)[0]
            positioned = one + model.window_pos_embed[0, 1:] + model.time_embed[0, :, None]
            patches = positioned.flatten(0, 1)
            for block in model.blocks:
                fc, patches = block_by_loops(block, fc, patches, 3, grouping)
            wanted = F.layer_norm(fc, (24,), model.norm.weight, model.norm.bias, 1e-6)
            torch.testing.assert_close(actual[index], wanted, rtol=0, atol=1e-9)


def naive(
    model: SpatioTemporal, frames: Tensor, reconstructed: Tensor, stride: int
) -> tuple[list[int], Tensor]:
    """Every window by itself, with all of the last block."""
    starts = list(range(0, len(frames) - model.window + 1, stride))
    tokens = []
    for start in starts:
        part = slice(start, start + model.window)
        fc, patches = model.positioned(model.frame_tokens(frames[part], reconstructed[part])[None])
        for block in model.blocks:
            fc, patches = block(fc, patches)
        tokens.append(model.norm(fc))
    return starts, torch.cat(tokens)


def chunks(frames: Tensor, reconstructed: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(frames.split(size), reconstructed.split(size)))


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize(
    "stride, chunk, at_once", [(1, 5, 4), (2, 3, 1), (3, 1, 2), (1, 100, 3), (5, 2, 4), (4, 4, 4)]
)
def test_sharing_changes_nothing_and_runs_each_frame_once(
    grouping: str, stride: int, chunk: int, at_once: int
):
    model = filled(SpatioTemporal(**SMALL, fc_grouping=grouping))
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        model.to(dtype)
        frames, reconstructed = (part.to(dtype) for part in clip(14))
        with torch.no_grad():
            starts, wanted = naive(model, frames, reconstructed, stride)
        counted: list[int] = []

        def count(module: nn.Module, inputs: tuple[Tensor], counted: list[int] = counted) -> None:
            counted.append(len(inputs[0]))

        stems = (model.patch_embed.rgb_backbone, model.patch_embed.recons_backbone)
        hooks = [stem.register_forward_pre_hook(count) for stem in stems]
        results = list(sliding(model, chunks(frames, reconstructed, chunk), stride, at_once))
        for hook in hooks:
            hook.remove()
        assert sum(counted) == 2 * 14
        assert torch.cat([first for first, _ in results]).tolist() == starts
        assert max(len(first) for first, _ in results) <= at_once
        tokens = torch.cat([tokens for _, tokens in results])
        torch.testing.assert_close(tokens, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_the_last_block_computes_only_fc_tokens(grouping: str):
    model = filled(SpatioTemporal(**SMALL, fc_grouping=grouping))
    rows = []
    for block in model.blocks:
        block.temporal_mlp.register_forward_pre_hook(
            lambda _, inputs: rows.append(inputs[0].numel() // 24)
        )
    with torch.no_grad():
        model.windows(torch.randn(2, 4, 9, 24))
    assert rows == [2 * 4 * 10, 2 * 4 * 10, 2 * 4]


@pytest.mark.parametrize("n_frames", [1, 3])
def test_short_clip_repeats_its_last_frame(n_frames: int):
    model = filled(SpatioTemporal(**SMALL))
    frames, reconstructed = clip(n_frames)
    ((starts, tokens),) = sliding(model, chunks(frames, reconstructed, 2))
    repeated = [min(index, n_frames - 1) for index in range(4)]
    padded = [part[repeated][None] for part in (frames, reconstructed)]
    with torch.no_grad():
        torch.testing.assert_close(tokens, model(*padded), rtol=0, atol=1e-5)
    assert starts.tolist() == [0]


def test_no_frames_give_no_windows():
    model = filled(SpatioTemporal(**SMALL))
    assert list(sliding(model, [])) == []
    assert list(sliding(model, [clip(0)])) == []


def test_memory_does_not_grow_with_the_clip():
    model = filled(SpatioTemporal(**SMALL))

    def longest() -> int:
        """Frames in the largest tensor of patch tokens that is alive."""
        alive = [thing for thing in gc.get_objects() if type(thing) is Tensor]
        return max(len(tensor) for tensor in alive if tensor.shape[1:] == (9, 24))

    stream = (clip(2, seed=seed) for seed in range(12))
    assert max(longest() for _ in sliding(model, stream, stride=1)) <= SMALL["window"] - 1 + 2


def test_the_small_size_trains():
    model = SpatioTemporal(
        size=112, dim=192, depth=4, heads=3, stem_width=16, channels=(32, 64, 128), layers=(1, 1, 2)
    )
    assert model.n_patches == 49
    frames, reconstructed = (part[None] for part in clip(10, size=112))
    tokens = model(frames, reconstructed)
    assert tokens.shape == (1, 10, 192)
    (tokens * torch.randn_like(tokens)).sum().backward()  # a plain sum of normed tokens is constant
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"cls_token", "pos_embed"}


def test_the_shortened_last_block_has_the_full_gradients():
    model = filled(SpatioTemporal(**SMALL)).double()
    tokens = torch.randn(1, 4, 9, 24, dtype=torch.float64, requires_grad=True)
    target = torch.randn(1, 4, 24, dtype=torch.float64)
    fc, patches = model.positioned(tokens)
    for block in model.blocks:
        fc, patches = block(fc, patches)
    (wanted,) = torch.autograd.grad((model.norm(fc) * target).sum(), tokens)
    (actual,) = torch.autograd.grad((model.windows(tokens) * target).sum(), tokens)
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name, value", [("heads", 5), ("layers", (1, 1)), ("size", 8)])
def test_sizes_that_do_not_fit_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        SpatioTemporal(**{**SMALL, name: value})


def test_windows_are_not_computed_in_training_mode():
    with pytest.raises(ValueError, match="eval"):
        next(sliding(SpatioTemporal(**SMALL), [clip(4)]))


def hybrid_vit(side: int = 3, depth: int = 3) -> dict[str, Tensor]:
    """A file as timm names it, of the small model's sizes, filled from a seed."""
    model = SpatioTemporal(**{**SMALL, "size": 16 * side, "depth": depth})
    shapes = {"cls_token": (1, 1, 24), "pos_embed": (1, 1 + side**2, 24)}
    shapes |= {"head.weight": (7, 24), "head.bias": (7,)}
    shapes |= {"pre_logits.fc.weight": (24, 24), "pre_logits.fc.bias": (24,)}
    for key, value in model.state_dict().items():
        if key.startswith(("patch_embed.rgb_backbone.stem.", "patch_embed.rgb_backbone.stages.")):
            shapes[key.replace("rgb_backbone", "backbone")] = value.shape
        elif key.startswith(("patch_embed.proj.", "norm.", "blocks.")) and "temporal" not in key:
            shapes[key] = value.shape
    return {key: torch.from_numpy(fill(key, shape, 77)) for key, shape in shapes.items()}


def test_pretrained_tensors_reach_all_their_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    theirs = hybrid_vit()
    torch.save(theirs, tmp_path / "vit.pth")
    save_file(theirs, tmp_path / "vit.safetensors")
    for path in (tmp_path / "vit.pth", tmp_path / "vit.safetensors"):
        model = SpatioTemporal(**SMALL, pretrained=str(path))
        before = {key: value.clone() for key, value in model.state_dict().items()}
        report = model.load_pretrained()
        after = model.state_dict()
        places = 0
        for key, value in after.items():
            theirs_key = re.sub(
                r"freq_(?=stem\.)|(rgb|recons)_(?=backbone)|temporal_|window_", "", key
            )
            theirs_key = theirs_key.replace("fc_token", "cls_token")
            if key == "temporal_pos_embed":
                wanted = theirs["pos_embed"][:, :1].expand(1, 4, 24)
            elif key in report.lacking:
                assert torch.equal(value, before[key]), key
                continue
            else:
                wanted = theirs[theirs_key].expand_as(value)
            assert torch.equal(value, wanted), key
            places += 1
        assert report.loaded == places == len(after) - len(report.lacking)
        unused = [f"{part}.{kind}" for part in ("head", "pre_logits.fc") for kind in KINDS]
        assert sorted(report.left_out) == unused
        own = ("time_embed", "patch_embed.transition.", "freq_stage.", "stems_transition_conv_1x1.")
        assert all(any(name in key for name in own) for key in report.lacking)
        assert all(any(name in key for key in report.lacking) for name in own)
        assert "hybrid ViT" in capsys.readouterr().out


def test_positions_of_another_size_are_interpolated(tmp_path: Path):
    theirs = hybrid_vit(side=6)
    ramp = torch.arange(6.0)[:, None].expand(6, 6).reshape(1, 36, 1).expand(1, 36, 24)
    theirs["pos_embed"] = torch.cat([theirs["pos_embed"][:, :1], ramp], dim=1)
    torch.save(theirs, tmp_path / "vit.pth")
    model = SpatioTemporal(**SMALL)
    report = model.load_pretrained(tmp_path / "vit.pth")
    assert "6 x 6 to 3 x 3" in str(report)
    rows = model.window_pos_embed[0, 1:].detach().view(3, 3, 24)
    assert (rows.diff(dim=0) > 1.5).all() and rows.diff(dim=1).abs().max() < 1e-5
    torch.testing.assert_close(rows[1], torch.full((3, 24), 2.5), rtol=0, atol=1e-5)
    assert torch.equal(model.temporal_pos_embed[0, 2], theirs["pos_embed"][0, 0])


def broken(change: str) -> dict[str, Tensor]:
    theirs = hybrid_vit(depth=4 if change == "depth" else 3)
    if change == "missing":
        del theirs["patch_embed.backbone.stem.conv.weight"]
    if change == "shape":
        theirs["norm.weight"] = torch.ones(25)
    if change == "unexpected":
        theirs["blocks.0.temporal_attn.qkv.weight"] = torch.ones(72, 24)
    if change == "token":
        theirs["cls_token"] = torch.ones(24)
    if change == "no square":
        theirs["pos_embed"] = torch.ones(1, 12, 24)
    return theirs


@pytest.mark.parametrize(
    "change, told",
    [
        ("missing", "freq_stem"),
        ("shape", r"norm.weight \[25\]"),
        ("unexpected", "temporal_attn"),
        ("depth", r"blocks\.3"),
        ("token", "class token"),
        ("no square", r"pos_embed \[1, 12, 24\]"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, change: str, told: str):
    torch.save(broken(change), tmp_path / "vit.pth")
    model = SpatioTemporal(**SMALL)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(KlassifyError, match=told):
        model.load_pretrained(tmp_path / "vit.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_model_refuses_to_run_before_its_file_is_loaded():
    model = SpatioTemporal(**SMALL, pretrained="nowhere.pth")
    with pytest.raises(KlassifyError, match="random weights"):
        model.frame_tokens(*clip(1))
    with pytest.raises(KlassifyError, match="does not exist"):
        model.load_pretrained()
    filled(model).frame_tokens(*clip(1))
    assert SpatioTemporal(**SMALL).load_pretrained() is None
