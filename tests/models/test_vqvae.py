"""The VQ-VAE matches the published one; loss, codebook and pixels match slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fill import load, make_input, make_state
from learning import learn
from places import GOLDENS

from klassify.models.vqvae import VQVAE, Codebook, decibels, from_unit, mean_square, to_unit

GOLDEN, EXPECTED = load(GOLDENS / "vqvae")
CASES = {case["id"]: case for case in GOLDEN["cases"]}
FULL_SIZE = [pytest.param(name, marks=[] if "H64" in name else pytest.mark.slow) for name in CASES]


@pytest.fixture(scope="module")
def published():
    model, state = VQVAE(), make_state(GOLDEN["models"]["main"])
    model.load_state_dict({key: torch.as_tensor(value) for key, value in state.items()})
    return model.eval()


@pytest.fixture
def small():
    torch.manual_seed(0)
    return VQVAE(dim=8, codes=16)


def images(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    grid = np.random.default_rng(seed).integers(0, 256, (n, height, width, 3))
    return torch.from_numpy(grid.astype(np.uint8))


@torch.no_grad()
@pytest.mark.parametrize("name", FULL_SIZE)
def test_vqvae_matches_the_published_one(published, name):
    keys = [key for key in EXPECTED if key.startswith(name)]
    expected = {key.removeprefix(f"{name}/"): EXPECTED[key] for key in keys}
    limits = GOLDEN["tolerance"]
    near = {"atol": limits["abs"], "rtol": limits["rel"]}
    frames = torch.from_numpy(make_input(CASES[name]["inputs"][0]))
    x = to_unit(frames)
    latents, codes = published.latents(x), published.encode(x)
    decoded, made = published.decode(codes), published.reconstruct(frames).numpy()
    assert (codes.numpy() != expected["codes"]).mean() <= limits["codes_mismatch_fraction"]
    assert list(decoded.shape) == CASES[name]["checks"]["decoder_shape"]
    np.testing.assert_allclose(latents[0, :8, :5, :5], expected["latent_corner"], **near)
    np.testing.assert_allclose(decoded[0, :, :8, :8], expected["decoder_corner"], **near)
    mean, deviation = decoded.mean(dim=(0, 2, 3)), decoded.std(dim=(0, 2, 3), correction=0)
    moments = torch.stack([mean, deviation], dim=1)
    np.testing.assert_allclose(moments, expected["decoder_mean_std"], **near)
    if "decoder" in expected:
        np.testing.assert_allclose(decoded, expected["decoder"], **near)
    levels = np.abs(made.astype(int) - expected["reconstruction_uint8"])
    assert levels.max() <= limits["uint8_levels"]
    assert (levels > 0).mean() <= limits["uint8_mismatch_fraction"]


def test_codes_start_uniform_as_published():
    fresh = Codebook(512, 256).embedding.weight
    assert fresh.abs().max() <= 1 / 512 and fresh.abs().max() > 0.9 / 512


def test_nearest_code_matches_brute_force():
    torch.manual_seed(2)
    book = Codebook(7, 3)
    book.embedding.weight.data = torch.randn(7, 3)
    book.embedding.weight.data[5] = book.embedding.weight.data[2]
    latents = torch.randn(2, 3, 4, 5)
    codes = book.nearest(latents)
    for b, i, j in np.ndindex(2, 4, 5):
        distances = [
            float((latents[b, :, i, j] - code).square().sum())
            for code in book.embedding.weight.data
        ]
        assert int(codes[b, i, j]) == int(np.argmin(distances))
    assert 5 not in codes and 2 in book.nearest(book.embedding.weight.data[2].view(1, 3, 1, 1))


def test_codes_do_not_depend_on_autocast(small):
    latents = torch.randn(2, 8, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = small.codebook.nearest(latents)
    assert torch.equal(rounded, small.codebook.nearest(latents))


def test_loss_is_the_sum_of_its_three_terms(small):
    small.eval()
    batch = {"frames": images(2, 16, 12)}
    x = to_unit(batch["frames"])
    latents = small.latents(x)
    chosen = small.codebook(small.codebook.nearest(latents))
    gap = (latents - chosen).square().mean()
    expected = (small.decoder(chosen) - x).square().mean() + gap + small.beta * gap
    torch.testing.assert_close(small.loss(batch), expected)


def test_gradients_pass_straight_through_the_codes(small):
    """Codes learn only from latents; the encoder from the commitment and the reconstruction."""
    small.eval()
    batch = {"frames": images(2, 16, 16)}
    small.loss(batch).backward()
    latents = small.latents(to_unit(batch["frames"])).detach()
    weight = small.codebook.embedding.weight.detach().clone().requires_grad_()
    chosen = F.embedding(small.codebook.nearest(latents), weight).permute(0, 3, 1, 2)
    (book,) = torch.autograd.grad(F.mse_loss(chosen, latents), weight)
    torch.testing.assert_close(small.codebook.embedding.weight.grad, book)

    point = chosen.detach().requires_grad_()
    error = F.mse_loss(small.decoder(point), to_unit(batch["frames"]))
    (through,) = torch.autograd.grad(error, point)
    through = through + 2 * small.beta * (latents - chosen.detach()) / latents.numel()
    last = small.encoder[0].weight
    (expected,) = torch.autograd.grad(small.latents(to_unit(batch["frames"])), last, through)
    torch.testing.assert_close(last.grad, expected)


def test_codes_move_only_in_training(small):
    small.reseed, batch = 1.0, {"frames": images(1, 16, 16)}
    before = small.codebook.embedding.weight.detach().clone()
    small.eval().loss(batch)
    small.reconstruct(batch["frames"])
    assert torch.equal(small.codebook.embedding.weight, before)
    small.train().loss(batch)
    assert not torch.equal(small.codebook.embedding.weight, before)


@pytest.mark.parametrize("height, width", [(16, 16), (17, 22), (4, 7), (31, 5)])
def test_reconstruction_keeps_shape_and_mode(small, height, width):
    frames = images(5, height, width)
    small.train()
    whole = small.reconstruct(frames)
    assert whole.shape == frames.shape and whole.dtype == torch.uint8 and not whole.requires_grad
    assert small.training and small.encoder[1].num_batches_tracked == 0
    parts = torch.cat([small.reconstruct(frames[i : i + 1]) for i in range(5)])
    assert (whole.int() - parts.int()).abs().max() <= 1
    assert torch.equal(small.reconstruct(frames, batch_size=5), whole)
    assert small.reconstruct(frames[:0]).shape == (0, height, width, 3)


def test_reconstructions_agree_in_all_precisions(small):
    frames = images(2, 16, 16)
    whole = small.reconstruct(frames).int()
    assert (small.double().reconstruct(frames).int() - whole).abs().max() <= 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (small.float().reconstruct(frames).int() - whole).abs().float().mean() < 8


def test_pixels_survive_the_way_to_floats_and_back():
    frames = torch.arange(256, dtype=torch.uint8).repeat(3, 1).T.reshape(1, 16, 16, 3)
    x = to_unit(frames)
    assert x.shape == (1, 3, 16, 16) and x.min() == -1 and x.max() == 1
    halves = from_unit(x + 1 / 255, (16, 16))  # half a level more truncates to the same
    assert torch.equal(halves[:, :15], frames[:, :15])
    doubled = from_unit(x, (32, 32))
    assert torch.equal(doubled[:, ::2, ::2], doubled[:, 1::2, 1::2])  # nearest neighbour


def psnr(frames, others):
    return decibels(mean_square(frames, others))


def test_psnr():
    frames = images(3, 8, 8)
    assert psnr(frames, frames) == math.inf
    black = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    grey = black + 51
    assert psnr(black, grey) == psnr(grey, black) == pytest.approx(20 * math.log10(5))


def test_vqvae_learns_to_reconstruct(small):
    shapes = torch.zeros(8, 16, 16, 3, dtype=torch.uint8)
    for i in range(8):
        shapes[i, i : i + 8, 4:12] = torch.tensor([30 * i, 200, 255 - 30 * i], dtype=torch.uint8)
    before = psnr(shapes, small.reconstruct(shapes))
    learn(small, {"frames": shapes}, steps=80, lr=5e-3)
    assert psnr(shapes, small.reconstruct(shapes)) > max(before + 5, 16)


def test_codes_move_as_a_boolean_index_says():
    """Trainings repeat those of earlier versions: the same draws in the same order."""
    for seed, probability in enumerate((0.0, 0.1, 0.5, 1.0)):
        torch.manual_seed(seed)
        book, latents = Codebook(16, 4), torch.randn(2, 4, 2, 3)
        codes = book.nearest(latents)
        wanted, rows = book.embedding.weight.detach().clone(), latents.permute(0, 2, 3, 1)
        state = torch.get_rng_state()
        moved = torch.bincount(codes.flatten(), minlength=16) == 0
        moved &= torch.rand(16) < probability
        wanted[moved] = rows.reshape(-1, 4)[torch.randint(12, (int(moved.sum()),))]
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        book.move_unused(codes, latents, probability)
        assert torch.equal(book.embedding.weight, wanted)
        assert torch.equal(torch.get_rng_state(), after)
