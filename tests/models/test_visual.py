"""The visual model: published numbers, absent LMM features, a frozen VQ-VAE, and its losses."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fill import load, make_input, make_state
from places import GOLDENS, ROOT
from torch import nn
from visual_model import SMALL, small

from klassify import cli
from klassify.augmentation import frames as augmentation_frames
from klassify.errors import KlassifyError
from klassify.models.spatiotemporal import SpatioTemporal
from klassify.models.visual import Visual, gabor_filters_, pool_top
from klassify.models.vqvae import VQVAE
from klassify.models.weights.load import load_weights
from klassify.models.weights.safetensors_file import save_weights
from klassify.systems.base import System, write_system


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(1)


def frames_of(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)


def batch_of(
    n_clips: int = 2, n_frames: int = 5, starts=((0, 1, 2), (0, 2, 2)), size: int = 32
) -> dict:
    draws = [
        augmentation_frames.draw(np.random.default_rng(i), size - 32, None) for i in range(n_clips)
    ]
    return {
        "frames": frames_of(n_clips, n_frames, size, size),
        "starts": torch.tensor(starts),
        "label": torch.tensor([[0, 1, 1], [0, 0, 1]]),
    } | {name: torch.stack([draw[name] for draw in draws]) for name in augmentation_frames.DRAWS}


class Sized(nn.Module):
    """As much of a spatio-temporal model as the head needs."""

    dim, size, window = 768, 224, 10


def test_head_matches_the_published_one():
    description, expected = load(str(GOLDENS / "mmdet_head"))
    model = Visual(Sized(), nn.Identity())
    state = make_state(description["models"]["main"])
    state = {key: torch.from_numpy(value) for key, value in state.items()}
    assert set(model.state_dict()) == set(state)
    model.load_state_dict(state)
    tolerance = {"atol": description["tolerance"]["abs"], "rtol": description["tolerance"]["rel"]}
    for case in description["cases"]:
        st_tokens, visual, textual = (torch.from_numpy(make_input(spec)) for spec in case["inputs"])
        with torch.no_grad():
            logits = model(st_tokens, visual, textual)
            _, weights = model.fuse(st_tokens, model.lmm_tokens(visual, textual))
        np.testing.assert_allclose(logits, expected[f"{case['id']}/logits"], **tolerance)
        np.testing.assert_allclose(weights, expected[f"{case['id']}/token_weights"], **tolerance)


def test_windows_without_lmm_features_use_only_fc_tokens():
    model, st_tokens = small().eval(), torch.randn(3, 3, 16)
    visual, textual = torch.randn(3, 1, 5).half(), torch.randn(3, 4, 7).half()
    alone, complete = model(st_tokens, None, None), model(st_tokens, visual, textual)
    mixed = model(st_tokens, visual, textual, torch.tensor([True, False, True]))
    torch.testing.assert_close(mixed[1], alone[1])
    torch.testing.assert_close(mixed[[0, 2]], complete[[0, 2]])
    assert not torch.allclose(alone, complete)


def test_absent_lmm_features_get_no_gradient():
    model, st_tokens = small(), torch.randn(2, 3, 16)
    visual, textual = torch.randn(2, 1, 5), torch.randn(2, 4, 7)
    model(st_tokens, visual, textual, torch.tensor([False, False])).sum().backward()
    assert not model.mm_proj.weight.grad.any() and not model.clip_proj.weight.grad.any()


def test_a_model_without_lmm_branch_ignores_lmm_features():
    model, st_tokens = small(lmm_dims=None), torch.randn(2, 3, 16)
    assert not any(key.startswith(("clip_proj", "mm_proj")) for key in model.state_dict())
    given = model(st_tokens, torch.randn(2, 1, 5), torch.randn(2, 4, 7), torch.tensor([True, True]))
    torch.testing.assert_close(given, model(st_tokens, None, None))


def test_the_vqvae_never_changes_in_training():
    model = small().train()
    assert not model.vqvae.training and not any(p.requires_grad for p in model.vqvae.parameters())
    before = {key: value.clone() for key, value in model.vqvae.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        model.loss(batch_of()).backward()
        optimizer.step()
    for key, value in model.vqvae.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_vqvae_weights_are_loaded_and_saved_with_the_model(tmp_path):
    trained = VQVAE(dim=4, codes=8)
    save_weights(trained, tmp_path / "model.safetensors")
    for source in (tmp_path, tmp_path / "model.safetensors"):
        model = small(vqvae_weights=str(source))
        with pytest.raises(KlassifyError, match="random weights"):
            model.reconstruct(frames_of(1, 32, 32))
        model.load_pretrained()
        frames = frames_of(2, 32, 32)
        assert torch.equal(model.reconstruct(frames), trained.reconstruct(frames))
    save_weights(model, tmp_path / "visual.safetensors")
    (tmp_path / "model.safetensors").unlink()
    again = small(vqvae_weights=str(tmp_path))  # the file is gone, but the system is complete
    load_weights(again, tmp_path / "visual.safetensors")
    assert torch.equal(again.reconstruct(frames), trained.reconstruct(frames))


def test_weights_of_another_vqvae_are_refused(tmp_path):
    save_weights(VQVAE(dim=8, codes=8), tmp_path / "model.safetensors")
    with pytest.raises(KlassifyError, match="do not fit"):
        small(vqvae_weights=str(tmp_path)).load_pretrained()


def test_frozen_stems_come_from_a_trained_model(tmp_path):
    backbone = SpatioTemporal(**{**SMALL, "window": 1})
    trained = Visual(backbone, VQVAE(dim=4, codes=8), lmm_dims=None, heads=2)
    save_weights(trained, tmp_path / "model.safetensors")
    model = small(stems=str(tmp_path), freeze_stems=True)
    with pytest.raises(KlassifyError, match="random weights"):
        model.reconstruct(frames_of(1, 32, 32))
    model.load_pretrained()
    model.train().loss(batch_of()).backward()
    parts = {"backbone.patch_embed.": model.backbone.patch_embed, "vqvae.": model.vqvae}
    for prefix, part in parts.items():
        assert not part.training and all(parameter.grad is None for parameter in part.parameters())
        for name, value in part.state_dict().items():
            assert torch.equal(value, trained.state_dict()[prefix + name]), name
    assert model.head.weight.grad is not None


def test_gabor_filters_have_all_scales_in_both_stems():
    patch_embed = small(gabor=True).backbone.patch_embed
    for backbone in (patch_embed.rgb_backbone, patch_embed.recons_backbone):
        assert torch.equal(backbone.stem.conv.weight, backbone.freq_stem.conv.weight)
    weight = torch.empty(400, 3, 7, 7)
    gabor_filters_(weight)
    assert torch.isfinite(weight).all()
    torch.testing.assert_close(weight.mean(dim=(2, 3)), torch.zeros(400, 3), atol=1e-5, rtol=0)
    spectrum = torch.fft.rfft2(weight.mean(dim=1), s=(32, 32)).abs().flatten(1)
    across, down = torch.meshgrid(torch.fft.fftfreq(32), torch.fft.rfftfreq(32), indexing="ij")
    peaks = torch.hypot(across, down).flatten()[spectrum.argmax(dim=1)]
    low, middle, high = ((peaks < 0.15), (peaks >= 0.15) & (peaks < 0.3), peaks >= 0.3)
    assert min(part.float().mean() for part in (low, middle, high)) > 0.15


def test_pixels_are_normalised_as_for_imagenet():
    grey = torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)
    wanted = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(small().pixels(grey)[0, :, 0, 0], wanted, rtol=1e-5)


def test_loss_is_the_cross_entropy_of_every_window():
    model, batch = small().eval(), batch_of()
    batch |= {"visual": torch.randn(2, 3, 1, 5), "textual": torch.randn(2, 3, 4, 7)}
    batch["lmm_valid"] = torch.tensor([True, False])
    losses = []
    for clip in range(2):
        for k, start in enumerate(batch["starts"][clip].tolist()):
            window = batch["frames"][clip, start : start + 3]
            pair = (model.pixels(part)[None] for part in (window, model.reconstruct(window)))
            st_tokens = model.backbone(*pair)
            lmm = [None, None]
            if clip == 0:
                lmm = [batch[name][clip, k][None] for name in ("visual", "textual")]
            losses.append(F.cross_entropy(model(st_tokens, *lmm), batch["label"][clip, k][None]))
    torch.testing.assert_close(model.loss(batch), torch.stack(losses).mean())


def test_clip_loss_uses_only_the_clip_label():
    model, batch = small(lmm_dims=None).eval(), batch_of()
    log_odds = []
    for clip in range(2):
        one = {key: value[clip : clip + 1] for key, value in batch.items()}
        logits = model(model.backbone.windows(model._window_tokens(one)), None, None)
        log_odds.append((logits[:, 1] - logits[:, 0]).max())  # a tenth of three windows is one
    batch["label"] = torch.tensor([1, 0])
    wanted = F.binary_cross_entropy_with_logits(torch.stack(log_odds), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(model.loss(batch), wanted)


@pytest.mark.parametrize(("n", "kept"), [(1, 1), (9, 1), (10, 1), (20, 2), (39, 3)])
def test_pooling_takes_the_highest_tenth(n, kept):
    values = torch.randn(4, n)
    torch.testing.assert_close(pool_top(values), values.sort(dim=1).values[:, -kept:].mean(dim=1))


def test_reconstructions_come_from_codes_or_are_kept():
    model, batch = small().eval(), batch_of()
    plain = model.loss(batch)
    from klassify.models.vqvae import to_unit

    codes = model.vqvae.encode(to_unit(batch["frames"].flatten(0, 1))).unflatten(0, (2, 5))
    torch.testing.assert_close(model.loss(batch | {"codes": codes}), plain)
    numbered = batch | {"frame_id": torch.arange(10).view(2, 5).tolist()}
    torch.testing.assert_close(model.loss(numbered), plain)
    calls = []
    model.vqvae.reconstruct = lambda frames: calls.append(len(frames))
    torch.testing.assert_close(model.loss(numbered), plain)
    assert not calls


def test_a_shared_frame_passes_the_stems_once():
    model, seen = small().eval(), []
    model.backbone.patch_embed.register_forward_pre_hook(
        lambda _, inputs: seen.append(len(inputs[0]))
    )
    model.loss(batch_of())
    assert seen == [10]  # 2 clips of 5 frames, for 6 windows of 3


def test_one_draw_for_frames_and_reconstruction():
    frames = frames_of(2, 4, 40, 40)
    flip = augmentation_frames.FrameAugment(0, 0, 1)
    draws = [augmentation_frames.draw(np.random.default_rng(i), 8, flip) for i in range(2)]
    stacked = {
        name: torch.stack([draw[name] for draw in draws]) for name in augmentation_frames.DRAWS
    }
    cut = augmentation_frames.apply(frames, stacked, 32)
    for clip in range(2):
        top, left = stacked["crop"][clip].tolist()
        wanted = frames[clip, :, top : top + 32, left : left + 32].flip(2)
        assert torch.equal(cut[clip], wanted)


def test_draws_have_the_published_frequencies():
    augment = augmentation_frames.FrameAugment()
    draws = [augmentation_frames.draw(np.random.default_rng(i), 16, augment) for i in range(2000)]
    blurred = np.array([draw["blur_sigma"].item() for draw in draws])
    quality = np.array([draw["jpeg_quality"].item() for draw in draws])
    assert abs((blurred > 0).mean() - 0.1) < 0.03 and blurred.max() <= 3
    assert abs((quality > 0).mean() - 0.1) < 0.03 and set(quality) == {0, 30, 100}
    assert abs(np.mean([draw["flip"].item() for draw in draws]) - 0.5) < 0.05
    crops = np.stack([draw["crop"] for draw in draws])
    assert crops.min() == 0 and crops.max() == 16


def test_blur_and_jpeg_change_every_frame_and_spare_the_others():
    frames = frames_of(3, 2, 32, 32)
    draws = {
        "blur_sigma": torch.tensor([2.0, 0.0, 0.0]),
        "jpeg_quality": torch.tensor([0, 30, 0]),
        "flip": torch.zeros(3, dtype=torch.bool),
        "crop": torch.zeros(3, 2, dtype=torch.long),
    }
    degraded = augmentation_frames.apply(frames, draws, 32)
    assert torch.equal(degraded[2], frames[2])
    assert degraded[0].float().std() < 0.5 * frames[0].float().std()
    assert all((degraded[i, k] != frames[i, k]).any() for i in (0, 1) for k in range(2))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads"):
        Visual(SpatioTemporal(**SMALL), VQVAE(dim=4, codes=8), heads=5)


@pytest.mark.parametrize("start", ["stems", "init"])
def test_clip_models_do_not_start_from_segment_weights(start, small_data, tmp_path, capsys):
    weights = tmp_path / "stems" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"never read")
    given = [f"model.init_args.stems={weights.parent}"] if start == "stems" else []
    options = ["--init", str(weights)] if start == "init" else []
    config = ROOT / "recipes/multibranch/conf/demo/visual_clip.yaml"
    given += ["data.init_args.lmm=false", "model.init_args.lmm_dims=null"]
    options += ["--out", str(tmp_path / "out"), *small_data.arguments]
    command = ["train", str(config), *given, *options]
    write_system(weights.parent, System("stems", "model", "visual", "segment", "log_odds"))
    assert cli.main(command) == 2 and "trained on segment labels" in capsys.readouterr().err
    write_system(weights.parent, System("stems", "model", "visual", "clip", "log_odds"))
    # refused too, but only because the file holds no weights
    assert cli.main(command) == 2 and "segment labels" not in capsys.readouterr().err


def test_frames_degraded_in_torch_look_like_those_of_opencv():
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (50, 40))
    image = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    clip = torch.from_numpy(np.stack([image, image[::-1]]))[None]
    for sigma, quality, most in ((0, 0, 0), (0.4, 0, 0.1), (2.9, 0, 0.2), (0, 100, 1), (1, 30, 2)):
        draws = torch.tensor([float(sigma)]), torch.tensor([quality])
        found = augmentation_frames.degrade(clip, *draws)
        wanted = augmentation_frames.apply(clip, draws_of(*draws), 40)
        away = (found[:, :, :, :40].int() - wanted.int()).abs().float()
        changed = (clip[:, :, :, :40].int() - wanted.int()).abs().float()
        assert away.mean() <= most and away.mean() <= changed.mean() / 4


def draws_of(sigma, quality):
    place = {"flip": torch.tensor([False]), "crop": torch.zeros(1, 2, dtype=torch.long)}
    return {"blur_sigma": sigma, "jpeg_quality": quality, **place}
