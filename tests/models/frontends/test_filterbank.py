"""The small front end without pretrained weights."""

import torch

from klassify.models.frontends.filterbank import FilterbankFrontEnd, triangular_filters
from klassify.models.frontends.ssl import FrontEnd


def test_filterbank_follows_the_frame_rule():
    frontend = FilterbankFrontEnd().eval()
    for n_samples in (400, 719, 720, 6_400, 64_000, 64_256, 64_600):
        frames = frontend(torch.randn(2, n_samples))
        assert frames.shape == (2, FrontEnd().n_frames(n_samples), frontend.dim)


def test_filterbank_ignores_the_recording_s_level():
    frontend = FilterbankFrontEnd().eval()
    wave = torch.randn(1, 16_000)
    torch.testing.assert_close(frontend(wave), frontend(0.3 * wave), atol=1e-3, rtol=1e-3)
    assert frontend(torch.zeros(1, 16_000)).isfinite().all()
    assert frontend(torch.zeros(1, 7)).isfinite().all()  # shorter than a frame


def test_noise_is_less_peaked_than_a_tone():
    frontend = FilterbankFrontEnd(bands=40)
    time = torch.arange(16_000) / 16_000
    tone_then_noise = torch.cat([torch.sin(2 * torch.pi * 1_030 * time), torch.randn(16_000)])
    peakedness = frontend.spectral_features(tone_then_noise[None])[0, :, 40:]
    band = int(1_030 / 8_000 * 41)
    assert peakedness[:45, band].mean() > peakedness[55:, band].mean() + 1


def test_filters_cover_the_spectrum_evenly():
    filters = triangular_filters(40, 257)
    assert (filters >= 0).all() and (filters.sum(dim=0) > 0).all()
    inner = filters.sum(dim=1)[7:-7]
    torch.testing.assert_close(inner, torch.ones_like(inner), atol=1e-4, rtol=0)
