"""Descriptors of the 20 ms spectrum: loudness, spectral balance, slopes, flux, MFCC 1-4.

All are functions of the power spectrum of one Hamming-windowed frame (flux: of two). They follow eGeMAPSv02 as openSMILE
computes it, to float32 accuracy. One oddity is kept because published numbers contain it: the slopes' regression counts
one bin too few, so a slope falls by `LEVEL_LAW` per dB of level. `textbook=True` gives the ordinary regression.

Sources: Eyben et al., "The Geneva Minimalistic Acoustic Parameter Set", IEEE T-AC 7(2), 2016 (definitions);
Hermansky, JASA 87(4), 1990 (equal-loudness curve, cubic-root law); the HTK Book (mel cepstrum, lifter).
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from ser.features.prosody.framing import RATE, SHORT_FFT, mel

BANDS = 26
BIN = RATE / SHORT_FFT  # 31.25 Hz
FLOOR = 1e-14  # power; digital silence is -140 dB
BAND_FLOOR = 1e-9  # power of a mel band before compression
SAMPLE_SCALE = 32_767.0  # MFCC see 16-bit samples, as in HTK
SLOPE_BANDS = ((0, 16), (16, 48))  # bins of 0-500 and 500-1500 Hz, both ends included


@lru_cache(maxsize=8)
def filterbank(device: torch.device) -> Tensor:
    """Triangles of equal width on the mel scale, 20-8000 Hz, slopes straight in mel: (257, 26)."""
    edges = torch.linspace(mel(20.0), mel(8000.0), BANDS + 2, dtype=torch.float64)
    at = torch.tensor([mel(k * BIN) for k in range(SHORT_FFT // 2 + 1)], dtype=torch.float64)[:, None]
    rise = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    bank = torch.minimum(rise, fall).clamp(min=0.0)
    bank[:2] = 0.0  # the reference leaves out the first bin above 20 Hz
    return bank.float().to(device)


@lru_cache(maxsize=8)
def equal_loudness(device: torch.device) -> Tensor:
    """Equal-loudness weight of each band's centre to the power 0.33: (26,)."""
    edges = torch.linspace(mel(20.0), mel(8000.0), BANDS + 2, dtype=torch.float64)
    w = 2.0 * math.pi * 700.0 * (torch.exp(edges[1:-1] / 1127.0) - 1.0)
    curve = (w**2 + 56.8e6) * w**4 / ((w**2 + 6.3e6) ** 2 * (w**2 + 0.38e9) * (w**7 + 1.7e31)) * 1e32
    return (curve**0.33).float().to(device)


@lru_cache(maxsize=8)
def cosine(device: torch.device) -> Tensor:
    """DCT-II rows 1-4 with sine lifter 22: (26, 4)."""
    k = torch.arange(1, 5, dtype=torch.float64)
    n = torch.arange(BANDS, dtype=torch.float64)[:, None] + 0.5
    lifter = 1.0 + 11.0 * torch.sin(math.pi * k / 22.0)
    return (math.sqrt(2.0 / BANDS) * torch.cos(math.pi * k * n / BANDS) * lifter).float().to(device)


def slope_weights(first: int, last: int, textbook: bool) -> Tensor:
    """Weights that turn dB values of bins first..last into a slope in dB/Hz: (last - first + 1,), float64.

    The regression of y on x is (n Sxy - Sx Sy) / (n Sxx - Sx^2); the reference takes n one short, and so depends on
    where x begins.
    """
    x = torch.arange(first, last + 1, dtype=torch.float64)
    n = len(x) if textbook else len(x) - 1
    return (n * x - x.sum()) / (n * (x * x).sum() - x.sum() ** 2) / BIN


LEVEL_LAW = tuple(
    float(slope_weights(a, b, False).sum()) for a, b in SLOPE_BANDS
)  # slope change per dB of level


@lru_cache(maxsize=16)
def slopes(device: torch.device, textbook: bool) -> Tensor:
    """Both slopes as one matrix on the dB values of bins 0-48: (49, 2)."""
    out = torch.zeros(SLOPE_BANDS[-1][1] + 1, len(SLOPE_BANDS), dtype=torch.float64)
    for column, (first, last) in enumerate(SLOPE_BANDS):
        out[first : last + 1, column] = slope_weights(first, last, textbook)
    return out.float().to(device)


def balance(power: Tensor, magnitude: Tensor, before: Tensor, textbook: bool) -> Tensor:
    """Ten descriptors of the short spectrum.

    Args:
        power, magnitude: (N, 257) of the frames.
        before: (N, 160) magnitudes of bins 0-159 of each frame's predecessor (the frame itself where there is none).
        textbook: Ordinary least squares for the slopes.

    Returns:
        (N, 10): loudness, alpha ratio, Hammarberg index, slope 0-500, slope 500-1500, flux, MFCC 1-4.
    """
    device = power.device
    bands = power @ filterbank(device)
    loudness = (bands.clamp(min=BAND_FLOOR).pow(0.33) * equal_loudness(device)).mean(1)
    low, high = power[:, :32].sum(1), power[:, 32:161].sum(1)
    alpha = 10.0 * torch.log10(high.clamp(min=FLOOR) / low.clamp(min=FLOOR))
    peaks = power[:, :64].amax(1).clamp(min=FLOOR) / power[:, 64:161].amax(1).clamp(min=FLOOR)
    decibel = 10.0 * torch.log10(power[:, : SLOPE_BANDS[-1][1] + 1].clamp(min=FLOOR))
    flux = (magnitude[:, :160] - before).square().mean(1).sqrt()
    cepstrum = torch.log((bands * SAMPLE_SCALE**2).clamp(min=1e-8)) @ cosine(device)
    front = torch.stack([loudness, alpha, 10.0 * torch.log10(peaks)], dim=1)
    return torch.cat([front, decibel @ slopes(device, textbook), flux[:, None], cepstrum], dim=1)
