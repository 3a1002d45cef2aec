"""A small front end that needs no pretrained weights: filterbank energies and how peaked each band
is.

Vocoders leave two traces in short-time spectra: smeared harmonics and smoothed bands. Log energies
of narrow, linearly spaced bands show the one; the ratio of mean to geometric mean within a band
(its peakedness) the other. Three convolutions mix neighbouring frames and bands.

Axes: B clips, N samples at 16 kHz, T frames of 20 ms, K bands, D output features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.models.frontends.ssl import SAMPLE_RATE, FrontEnd
from klassify.settings import check_shares, check_sizes

FFT = 512
FLOOR = 1e-8  # of the power: 80 dB below full scale, so that digital silence has no log of zero


class FilterbankFrontEnd(FrontEnd):
    """Waveform (B, N) -> (B, T, dim) with the frame rule of the pretrained front ends.

    Args:
        bands: linearly spaced triangular bands from 0 to 8 kHz; each gives an energy and a
        peakedness. width, kernels: of the convolutions over time. dim: output features a frame.
        dropout: after each convolution.
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
            raise ValueError(f"{bands} bands are more than the {FFT // 2} steps of a spectrum hold")
        if any(
            kernel < 1 or kernel % 2 == 0 for kernel in kernels
        ):  # else they would change the number of frames
            raise ValueError(f"kernels are odd, not {kernels}")
        self.dim = dim
        filters = triangular_filters(bands, FFT // 2 + 1)
        self.register_buffer(
            "window", torch.hann_window(self.receptive_field_samples), persistent=False
        )
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
        """(B, N) -> (B, T, 2 K): log energies and log peakedness, each with the clip's mean taken
        off.

        Without the mean a recording's level and colour are gone, and what changes within it is
        left.
        """
        frames = wave.unfold(-1, self.receptive_field_samples, self.hop_samples) * self.window
        spectrum = torch.fft.rfft(frames.float(), FFT)
        power = spectrum.real**2 + spectrum.imag**2 + FLOOR
        energy = (power @ self.filters).log()
        peakedness = (power @ self.averages).log() - power.log() @ self.averages
        features = torch.cat([energy, peakedness], dim=-1)
        return features - features.mean(dim=1, keepdim=True)

    def forward(self, wave: Tensor) -> Tensor:
        """(B, N) -> (B, T, dim); zeros follow a wave of less than one frame."""
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
