"""Pitch by subharmonic summation, and the smoothest path through its candidates.

Per frame: 60 ms Gaussian window, magnitude spectrum, peaks kept and the rest removed, smoothed, resampled to an octave
scale, weighted by hearing, and 15 compressed copies shifted by log2(n) added up (Hermes, "Measurement of pitch by
subharmonic summation", JASA 83(1), 1988). The six highest peaks of the sum are candidates; a candidate's voicing is
1 - mean / peak. A path through candidates and "unvoiced" is then found by dynamic programming (Viterbi) over the whole
utterance. Its costs are this project's own, fitted once on 68 utterances to agree with openSMILE's decisions.

Gives up: openSMILE decides with 0.4 s of look-ahead, this with all of it; about one frame in 125 is voiced differently.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ser.features.prosody.framing import LONG_FFT, RATE

BIN = RATE / LONG_FFT  # 15.625 Hz
BINS = LONG_FFT // 2 + 1
LOWEST, HIGHEST = 25.0, RATE / 2
PER_OCTAVE = (BINS - 1) / math.log2(HIGHEST / LOWEST)
HARMONICS, COMPRESSION = 15, 0.85
CANDIDATES = 6
BLOCKS, REACH = (0, 256, 384, 448), 14  # octave points per block; bins that a spline reaches beyond it
F0_RANGE = (55.0, 1000.0)
SHIFTS = tuple(int(PER_OCTAVE * math.log2(n) + 0.4) for n in range(1, HARMONICS + 1))
SILENCE = 1e-3  # RMS of the windowed frame below which nothing is voiced
# Path costs, fitted: `voicing` times (1 - voicing) for a voiced frame; `threshold` for a voiced one below 0.695 or an
# unvoiced one above it; `octave` per octave of movement; `begin` and `end` of a voiced stretch; `high` per 400 Hz above 400;
# `low` per 40 Hz below 90; `unvoiced` for any unvoiced frame.
WEIGHTS = {
    "voicing": 2.579,
    "threshold": 3.736,
    "octave": 0.835,
    "begin": 2.594,
    "end": 2.078,
    "high": 0.027,
    "low": 0.293,
    "unvoiced": 0.208,
}
THRESHOLD, STEEPNESS = 0.6948, 28.6
NEVER = 1e6


@lru_cache(maxsize=8)
def octave_scale(device: torch.device) -> tuple[tuple[slice, Tensor], ...]:
    """Natural cubic spline from 513 linear bins to 513 octave-scale points, times the hearing weight.

    A spline's influence falls by 3.7 per bin, so blocks of points need few bins each: (bins, matrix) per block.
    """
    from scipy.interpolate import CubicSpline  # slow to import, and needed once

    hz = np.arange(BINS) * BIN
    hz[0] = BIN / 2  # log2(0) has no place on the scale
    points = LOWEST * 2.0 ** (np.arange(BINS) / PER_OCTAVE)
    spline = CubicSpline(np.log2(hz), np.eye(BINS), bc_type="natural")(np.log2(points))
    weight = 0.5 + np.arctan(2.99415 * np.log2(points / LOWEST) - 1.0382) / np.pi
    matrix = torch.from_numpy((spline * weight[:, None]).T.astype(np.float32)).to(device)
    blocks = []
    for first, last in zip(BLOCKS, (*BLOCKS[1:], BINS)):
        low = max(0, int(points[first] / BIN) - REACH)
        high = min(BINS, int(points[last - 1] / BIN) + REACH + 2)
        blocks.append((slice(low, high), matrix[low:high, first:last].contiguous()))
    return tuple(blocks)


def only_peaks(magnitude: Tensor) -> Tensor:
    """Keeps each local maximum and two bins either side of it, then smooths by (1/4, 1/2, 1/4): (N, 513) -> same."""
    inner = (magnitude[:, 1:-1] > magnitude[:, :-2]) & (magnitude[:, 1:-1] > magnitude[:, 2:])
    n = magnitude.shape[0]
    peak = torch.zeros(n, BINS + 4, dtype=torch.float32, device=magnitude.device)
    peak[:, 3:-3] = inner
    peak[:, 2] = magnitude[:, 0] > magnitude[:, 1]
    near = peak[:, :-4] + peak[:, 1:-3]
    near += peak[:, 2:-2]
    near += peak[:, 3:-1]
    near += peak[:, 4:]
    kept = torch.zeros(n, BINS + 2, dtype=magnitude.dtype, device=magnitude.device)
    torch.mul(magnitude, near > 0, out=kept[:, 1:-1])
    smooth = kept[:, :-2] + kept[:, 2:]
    smooth.mul_(0.25).add_(kept[:, 1:-1], alpha=0.5)
    smooth[:, -1] = kept[:, -2]
    return smooth


def candidates(magnitude: Tensor) -> tuple[Tensor, Tensor]:
    """Pitch candidates of each frame.

    Args:
        magnitude: (N, 513) magnitude spectrum of the 60 ms frames.

    Returns:
        Frequencies (N, 6) in Hz, 0 where there is no candidate, and voicing (N, 6) in [0, 1); best first.
    """
    peaks = only_peaks(magnitude)
    octave = torch.cat([peaks[:, bins] @ matrix for bins, matrix in octave_scale(magnitude.device)], dim=1)
    total = octave.clamp_(min=0.0).clone()
    for harmonic in range(1, HARMONICS):
        shift = SHIFTS[harmonic]
        total[:, : BINS - shift].add_(octave[:, shift:], alpha=COMPRESSION**harmonic)
    centre = total[:, 1:-1]
    peak = (centre > total[:, :-2]) & (centre >= total[:, 2:])
    height, at = torch.topk(centre * peak, CANDIDATES, dim=1)
    left, right = total.gather(1, at), total.gather(1, at + 2)
    bend = left - 2.0 * height + right
    offset = torch.where(bend < 0, 0.5 * (left - right) / bend.clamp(max=-1e-20), 0.0)
    top = height - 0.25 * (left - right) * offset
    hz = LOWEST * torch.exp2((at + 1 + offset) / PER_OCTAVE)
    valid = (height > 0) & (hz >= F0_RANGE[0]) & (hz <= F0_RANGE[1])
    voicing = 1.0 - total.mean(1, keepdim=True) / top.clamp(min=1e-20)
    hz, voicing = torch.where(valid, hz, 0.0), torch.where(valid, voicing, 0.0).clamp(min=0.0)
    order = torch.argsort(voicing, dim=1, descending=True, stable=True)
    return hz.gather(1, order), voicing.gather(1, order)


def local_costs(hz: Tensor, voicing: Tensor) -> Tensor:
    """Cost of each state: (..., 6) candidates -> (..., 7), the last one is "unvoiced"."""
    w = WEIGHTS
    stray = w["high"] * (hz - 400.0).clamp(min=0.0) / 400.0 + w["low"] * (90.0 - hz).clamp(min=0.0) / 40.0
    below = ((THRESHOLD - voicing) * STEEPNESS).clamp(0.0, 1.0)
    voiced = w["voicing"] * (1.0 - voicing) + w["threshold"] * below + stray
    above = ((voicing[..., :1] - THRESHOLD) * STEEPNESS).clamp(0.0, 1.0)
    unvoiced = w["threshold"] * above + w["unvoiced"]
    return torch.cat([torch.where(hz > 0, voiced, NEVER), unvoiced], dim=-1)


def step_costs(hz: Tensor) -> Tensor:
    """Cost of moving from each state of frame t to each of frame t + 1: (T, B, 6) -> (T - 1, B, 7, 7)."""
    octave = torch.log2(hz.clamp(min=1.0))
    t, b, c = hz.shape
    out = hz.new_zeros(max(t - 1, 0), b, c + 1, c + 1)
    out[..., :c, :c] = WEIGHTS["octave"] * (octave[:-1, :, :, None] - octave[1:, :, None, :]).abs()
    out[..., :c, c] = WEIGHTS["end"]
    out[..., c, :c] = WEIGHTS["begin"]
    return out


def best_path(hz: Tensor, voicing: Tensor, counts: Tensor) -> Tensor:
    """F0 along the cheapest path.

    Args:
        hz, voicing: (B, T, 6) candidates.
        counts: (B,) true frames; what lies beyond is left out of the path.

    Returns:
        (B, T) F0 in Hz, 0 where unvoiced.
    """
    b, t, c = hz.shape
    if b == 0 or t == 0:
        return hz.new_zeros(b, t)
    hz, voicing = hz.transpose(0, 1).contiguous(), voicing.transpose(0, 1)
    true = torch.arange(t, device=hz.device)[:, None] < counts[None]
    local = local_costs(hz, voicing).masked_fill(~true[..., None], 0.0)
    step = step_costs(hz)
    stay = torch.full((c + 1, c + 1), NEVER, device=hz.device).fill_diagonal_(0.0)
    step = torch.where(true[1:, :, None, None], step, stay)
    step += local[1:, :, None, :]
    cost = local[0]
    came = torch.empty(t, b, c + 1, dtype=torch.int64, device=hz.device)
    for k in range(t - 1):
        cost, came[k + 1] = torch.min(cost[:, :, None] + step[k], dim=1)
    states = torch.empty(t, b, 1, dtype=torch.int64, device=hz.device)
    states[t - 1] = cost.argmin(1, keepdim=True)
    for k in range(t - 1, 0, -1):
        torch.gather(came[k], 1, states[k], out=states[k - 1])
    path = torch.cat([hz, hz.new_zeros(t, b, 1)], dim=2).gather(2, states)[..., 0]
    return path.masked_fill(~true, 0.0).transpose(0, 1)
