"""Synthetic speech with known answers."""

import numpy as np
import torch
from scipy.signal import lfilter

RATE = 16_000


def harmonic(f0: float, seconds: float = 1.0, tilt: float = 0.8, top: float = 4000.0) -> np.ndarray:
    """Equal-phase harmonics of f0 whose amplitudes fall by `tilt` from one to the next."""
    t = np.arange(int(seconds * RATE)) / RATE
    wave = sum(tilt**k * np.sin(2 * np.pi * f0 * (k + 1) * t + k) for k in range(int(top / f0)))
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)


def pulses(periods: np.ndarray, heights: np.ndarray, resonances: list[tuple[float, float]]) -> np.ndarray:
    """Band-limited pulses at the given periods (samples) through resonators (frequency, bandwidth)."""
    places = 40.0 + np.cumsum(periods)
    wave, reach = np.zeros(int(places[-1]) + 200), np.arange(-32, 33)
    for place, height in zip(places, heights):
        k = round(place) + reach
        wave[k] += height * np.sinc(k - place) * np.hanning(67)[1:-1]
    for frequency, bandwidth in resonances:
        r = np.exp(-np.pi * bandwidth / RATE)
        wave = lfilter([1.0], [1.0, -2.0 * r * np.cos(2.0 * np.pi * frequency / RATE), r * r], wave)
    return (0.5 * wave / np.abs(wave).max()).astype(np.float32)


def speech_like(seed: int, seconds: float) -> np.ndarray:
    """Voiced stretches of gliding pitch, noise and pauses."""
    rng = np.random.default_rng(seed)
    parts, left = [], int(seconds * RATE)
    while left > 0:
        size = int(rng.integers(1500, 6000))
        kind = rng.integers(0, 3)
        if kind == 0:
            f0 = rng.uniform(90, 300) * (1 + rng.uniform(-0.2, 0.2) * np.linspace(0, 1, size))
            phase = np.cumsum(f0) / RATE
            part = sum(0.8**k * np.sin(2 * np.pi * (k + 1) * phase + k) for k in range(12)) * 0.05
        else:
            part = rng.normal(0, 0.02 if kind == 1 else 0.0005, size)
        parts.append(part)
        left -= size
    wave = np.concatenate(parts)[: int(seconds * RATE)]
    return (wave + rng.normal(0, 1e-4, len(wave))).astype(np.float32)


def batch(waves: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded with loud noise, which must not matter, and true lengths."""
    lengths = torch.tensor([len(w) for w in waves])
    out = torch.from_numpy(np.random.default_rng(9).normal(0, 0.5, (len(waves), int(lengths.max())))).float()
    for row, wave in enumerate(waves):
        out[row, : len(wave)] = torch.from_numpy(wave)
    return out, lengths


def alone(wave: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of one, unpadded."""
    return torch.from_numpy(wave)[None], torch.tensor([len(wave)])
