"""Harmonics of voiced frames: harmonics-to-noise ratio, H1-H2, H1-A3 and the level of each formant.

A harmonic is the spectral peak nearest to a multiple of F0. A formant's amplitude is the highest harmonic within 20 % of
the formant's frequency, in dB relative to F0's own. The reference counts harmonics from 0, so its "H1" is the one at
2 F0; kept by default, `textbook=True` counts as the GeMAPS paper does (H1 at F0).

Source: Eyben et al., IEEE T-AC 7(2), 2016, section 3; Boersma, IFA Proceedings 17, 1993 (HNR from autocorrelation).
"""

from functools import lru_cache

import torch
from torch import Tensor

from ser.features.prosody.framing import LONG_FFT, RATE, gauss, power_of

BIN = RATE / LONG_FFT
BINS = LONG_FFT // 2 + 1
COUNT = 100
WITHIN = 0.2
ABSENT = -201.0  # dB, what eGeMAPS writes where there is no voice
FAR = 4 * BINS
TOP = 440  # bins that matter: the third formant's range ends at 6540 Hz


@lru_cache(maxsize=8)
def taper(device: torch.device) -> Tensor:
    """Autocorrelation of the 60 ms window, 1 at lag 0: (513,)."""
    spectrum = torch.fft.rfft(gauss(torch.device("cpu")).double(), n=2 * LONG_FFT)
    correlation = torch.fft.irfft(power_of(spectrum))[:BINS]
    return (correlation / correlation[0]).float().to(device)


def noise_ratio(power: Tensor, f0: Tensor, textbook: bool) -> Tensor:
    """Harmonics-to-noise ratio in dB from the autocorrelation at one period.

    Args:
        power: (N, 513) power spectrum of the 60 ms frames.
        f0: (N,) Hz.

    Returns:
        (N,) 10 log10(r / (1 - r)), r the highest autocorrelation within 3 samples of the period, relative to lag 0.
        The window's taper lowers r, so a clean voice of 100 Hz reads 6 dB; `textbook=True` divides it out (Boersma).
    """
    correlation = torch.fft.irfft(power, n=LONG_FFT, dim=1)
    period = torch.round(RATE / f0).long()
    lags = (period[:, None] + torch.arange(-3, 4, device=f0.device)).clamp(1, BINS - 1)
    peak = correlation.gather(1, lags)
    if textbook:
        peak = peak / taper(f0.device)[lags]
    peak = peak.amax(1) / correlation[:, 0].clamp(min=1e-20)
    peak = peak.clamp(1e-4, 1.0 - 1e-6)
    return 10.0 * torch.log10(peak / (1.0 - peak))


def peaks(magnitude: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Local maxima and, for every bin, the nearest one on either side.

    Returns:
        Interpolated height (N, K) and frequency in bins (N, K), meaningful at peaks; index of the nearest peak at or
        below (N, K), -FAR if none; at or above, FAR if none.
    """
    left, centre, right = magnitude[:, :-2], magnitude[:, 1:-1], magnitude[:, 2:]
    bend = (left - 2.0 * centre + right).clamp(max=-1e-20)
    offset = (0.5 * (left - right) / bend).clamp(-0.5, 0.5)
    height = magnitude.clone()
    height[:, 1:-1] -= 0.25 * (left - right) * offset
    index = torch.arange(magnitude.shape[1], device=magnitude.device, dtype=magnitude.dtype).expand_as(
        magnitude
    )
    where = index.clone()
    where[:, 1:-1] += offset
    is_peak = torch.zeros_like(magnitude, dtype=torch.bool)
    is_peak[:, 1:-1] = (centre >= left) & (centre >= right)
    below = torch.cummax(torch.where(is_peak, index, -FAR), dim=1).values
    above = torch.cummax(torch.where(is_peak, -index, -FAR).flip(1), dim=1).values.flip(1).neg()
    return height, where, below, above


def harmonics(magnitude: Tensor, f0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first 100 harmonics of each frame.

    Args:
        magnitude: (N, K), the lowest bins.
        f0: (N,) Hz.

    Returns:
        Level in dB (N, 100), frequency in Hz (N, 100), inside the spectrum (N, 100) bool.
    """
    height, where, below, above = peaks(magnitude)
    spacing = f0[:, None] / BIN
    at = spacing * torch.arange(1, COUNT + 1, device=f0.device)
    last = magnitude.shape[1] - 2
    inside = at <= last
    bounded = at.clamp(max=last)
    low, high = below.gather(1, bounded.floor().long()), above.gather(1, bounded.ceil().long())
    nearest = torch.where(bounded - low <= high - bounded, low, high)
    found = (nearest - bounded).abs() <= 0.5 * spacing
    bin_ = torch.where(found, nearest, bounded.round()).long().clamp(0, last + 1)
    raw = magnitude.gather(1, bin_)
    level = torch.where(found, height.gather(1, bin_), raw)
    level = torch.cat([raw[:, :1], level[:, 1:]], dim=1)  # F0's own peak is not interpolated
    hz = torch.where(found, where.gather(1, bin_), bin_.to(f0.dtype)) * BIN
    return 20.0 * torch.log10(level.clamp(min=1e-10)), hz, inside


def levels(magnitude: Tensor, f0: Tensor, formant: Tensor, textbook: bool) -> Tensor:
    """H1-H2, H1-A3 and the amplitudes of formants 1-3.

    Args:
        magnitude: (N, 513) of voiced frames.
        f0: (N,) Hz, all positive.
        formant: (N, 3) Hz.

    Returns:
        (N, 5) in dB.
    """
    level, hz, inside = harmonics(magnitude[:, :TOP], f0)
    relative = level - level[:, :1]
    first = 0 if textbook else 1
    amplitude = []
    for n in range(formant.shape[1]):
        centre = formant[:, n : n + 1]
        near = inside & (hz >= (1.0 - WITHIN) * centre) & (hz <= (1.0 + WITHIN) * centre)
        best = torch.where(near, relative, -1e6).amax(1)
        amplitude.append(torch.where(near.any(1), best, 0.0))
    differences = [relative[:, first] - relative[:, first + 1], relative[:, first] - amplitude[-1]]
    return torch.stack(differences + amplitude, dim=1)
