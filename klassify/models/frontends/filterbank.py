"""A small front end without pretrained weights: filterbank energies and the peakedness of bands.

Vocoders leave two traces in short-time spectra: smeared harmonics and smoothed bands. Log energies
of narrow, linearly spaced bands show the first; the ratio of mean to geometric mean within a band
(its peakedness) the second. Three convolutions mix neighbouring frames and bands.

Axes: B clips, N samples at 16 kHz, T frames of 20 ms, K bands, D output features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.models.frontends.ssl import SAMPLE_RATE, FrontEnd
from klassify.settings import check_shares, check_sizes

FFT = 512
FLOOR = 1e-8  # added to the power, 80 dB below full scale, against log(0) of digital silence


class FilterbankFrontEnd(FrontEnd):
    """Waveform (B, N) -> (B, T, dim) with the frame rule of the pretrained front ends.

    Args:
        bands: linearly spaced triangular bands from 0 to 8 kHz, each an energy and a peakedness.
        width, kernels: channels and taps of the convolutions over time; taps are odd.
        dim: output features per frame.
        dropout: rate after each convolution.
    """

    def __init__(
        self,
        bands: int = 80,
        width: int = 128,
        kernels: tuple[int, ...] = (3, 3, 3),
        dim: int = 128,
        dropout: float = 0.1,
    ):
        super().__init__()
        check_sizes(width=width, dim=dim)
        check_sizes(2, bands=bands)
        check_shares(dropout=dropout)
        if bands >= FFT // 2:
            raise ValueError(f"bands must be less than {FFT // 2}, not {bands}")
        if any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
            # even kernels would change the number of frames
            raise ValueError(f"kernels must be odd, not {kernels}")
        self.dim = dim
        filters = triangular_filters(bands, FFT // 2 + 1)
        window = torch.hann_window(self.receptive_field_samples)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("averages", filters / filters.sum(dim=0), persistent=False)
        layers, channels = [nn.BatchNorm1d(2 * bands)], 2 * bands
        for kernel in kernels:
            layers += [
                nn.Conv1d(channels, width, kernel, padding=kernel // 2),
                nn.BatchNorm1d(width),
                nn.SELU(),
                nn.Dropout(dropout),
            ]
            channels = width
        self.mix = nn.Sequential(*layers, nn.Conv1d(channels, dim, 1))

    def spectral_features(self, wave: Tensor) -> Tensor:
        """(B, N) -> (B, T, 2 K): log energies and log peakedness, minus their means over the clip.

        Without the means, a recording's level and colour do not matter.
        """
        frames = wave.unfold(-1, self.receptive_field_samples, self.hop_samples) * self.window
        spectrum = torch.fft.rfft(frames.float(), FFT)
        power = spectrum.real**2 + spectrum.imag**2 + FLOOR
        energy = (power @ self.filters).log()
        peakedness = (power @ self.averages).log() - power.log() @ self.averages
        features = torch.cat([energy, peakedness], dim=-1)
        return features - features.mean(dim=1, keepdim=True)

    def forward(self, wave: Tensor) -> Tensor:
        """(B, N) -> (B, T, dim); a wave shorter than one frame is padded with zeros."""
        n_missing = self.receptive_field_samples - wave.shape[-1]
        if n_missing > 0:
            wave = F.pad(wave, (0, n_missing))
        return self.mix(self.spectral_features(wave).transpose(1, 2)).transpose(1, 2)


def triangular_filters(bands: int, bins: int) -> Tensor:
    """(bins, bands) weights of overlapping triangles, evenly spaced from 0 to SAMPLE_RATE / 2."""
    frequency = torch.linspace(0, SAMPLE_RATE / 2, bins)
    edges = torch.linspace(0, SAMPLE_RATE / 2, bands + 2)
    low, centre, high = (edges[i : i + bands] for i in range(3))
    rising = (frequency[:, None] - low) / (centre - low)
    falling = (high - frequency[:, None]) / (high - centre)
    return torch.minimum(rising, falling).clamp_min(0)
