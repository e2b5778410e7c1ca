"""Jitter and shimmer: how much neighbouring periods differ in length and height.

From a voiced frame's neighbourhood (15 ms before its start) four periods are followed one after the other: each is the
lag, within 10 % of the pitch period, at which the waveform repeats itself best (normalised cross-correlation of one
period, parabola through its top). Time is measured in units of the pitch period, so every frame has the same shape and
all of them are followed at once.

Gives up: openSMILE follows one chain of periods through the whole voiced stretch; here each frame starts its own. Values
agree in size and rank (rank correlation 0.8), not period by period (Pearson 0.25 and 0.5): tests/bench/prosody.py.
"""

import torch
from torch import Tensor

from ser.features.prosody.framing import HOP, RATE

GRID = 64  # points per pitch period
SEARCH = 7  # points either side of the period: 10.9 %
PERIODS = 4
LEAD = 240  # samples before the frame's start
MIN_CORRELATION = 0.5
LARGEST = 6.0206  # dB; a factor of two between neighbouring periods is taken for a slip
ONSET_PERIODS = 2
POINTS = PERIODS * (GRID + SEARCH) + GRID + SEARCH + 1


def sample(audio: Tensor, row: Tensor, start: Tensor, period: Tensor) -> Tensor:
    """Waveform on the pitch-period grid by linear interpolation: (N, POINTS)."""
    at = start[:, None] + torch.arange(POINTS, device=audio.device) * (period / GRID)[:, None]
    at = at.clamp(max=audio.shape[1] - 2)
    low = at.floor()
    index = low.long() + row[:, None] * audio.shape[1]
    flat = audio.reshape(-1)
    return torch.lerp(flat[index], flat[index + 1], at - low)


def follow(wave: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lengths of consecutive periods.

    Args:
        wave: (N, POINTS).

    Returns:
        Length (N, 4) in grid points, correlation (N, 4), peak-to-peak height (N, 4), end of each pair (N, 4) in points.
    """
    count = wave.shape[0]
    position = torch.zeros(count, 1, dtype=torch.int64, device=wave.device)
    reach = torch.arange(2 * GRID + SEARCH, device=wave.device)
    lengths, scores, heights, ends = [], [], [], []
    for _ in range(PERIODS):
        piece = wave.gather(1, position + reach)
        own = piece[:, :GRID]
        product, energy = [], []
        for lag in range(
            GRID - SEARCH, GRID + SEARCH + 1
        ):  # one batched product is slower: it copies every window
            other = piece[:, lag : lag + GRID]
            product.append((own * other).sum(1))
            energy.append(other.square().sum(1))
        energy = torch.stack(energy, dim=1) * own.square().sum(1, keepdim=True)
        score = torch.stack(product, dim=1) / energy.clamp(min=1e-20).sqrt()
        best, at = score.max(1, keepdim=True)
        inner = at.clamp(1, 2 * SEARCH - 1)
        left, mid, right = (score.gather(1, inner + d) for d in (-1, 0, 1))
        bend = left - 2.0 * mid + right
        offset = torch.where(bend < -1e-9, 0.5 * (left - right) / bend.clamp(max=-1e-9), 0.0).clamp(-0.5, 0.5)
        lengths.append(at + GRID - SEARCH + torch.where(at == inner, offset, 0.0))
        scores.append(best)
        heights.append((own.amax(1) - own.amin(1))[:, None])
        ends.append(position + 2 * GRID + SEARCH)
        position = position + at + GRID - SEARCH
    found = (torch.cat(part, dim=1) for part in (lengths, scores, heights, ends))
    length, score, height, end = found
    return length, score, height, end


def onsets(f0: Tensor, row: Tensor, time: Tensor) -> Tensor:
    """Frame number at which each frame's voiced stretch began.

    Args:
        f0, row, time: (N,) of consecutive true frames, utterance after utterance.

    Returns:
        (N,) int64, meaningful where f0 > 0.
    """
    voiced = f0 > 0
    first = voiced & (time == 0)
    first[1:] |= voiced[1:] & ~voiced[:-1]
    place = torch.arange(len(f0), device=f0.device)
    began = torch.cummax(torch.where(first, place, 0), dim=0).values
    return time - (place - began)


def jitter_shimmer(
    audio: Tensor, lengths: Tensor, row: Tensor, time: Tensor, onset: Tensor, f0: Tensor
) -> Tensor:
    """Local jitter (relative) and local shimmer (dB) of voiced frames.

    Args:
        audio: (B, S) float32.
        lengths: (B,) true samples.
        row, time: (N,) utterance and frame number.
        onset: (N,) frame number at which this frame's voiced stretch began.
        f0: (N,) Hz, positive.

    Returns:
        (N, 2): mean absolute difference of neighbouring periods over their mean length; mean absolute level difference
        in dB. 0 where no two neighbouring periods could be followed.
    """
    period = RATE / f0
    start = torch.maximum(time * HOP - LEAD, onset * HOP).to(f0.dtype)
    heard = (
        time - onset
    ) * HOP >= ONSET_PERIODS * period  # a stretch's first frames have no two periods behind them
    length, score, height, end = follow(sample(audio, row, start, period))
    ends_at = start[:, None] + end * (period / GRID)[:, None]
    good = (score >= MIN_CORRELATION) & (ends_at <= lengths[row][:, None]) & (height > 1e-6) & heard[:, None]
    pair = good[:, 1:] & good[:, :-1]
    number = pair.sum(1).clamp(min=1)
    change = torch.where(pair, (length[:, 1:] - length[:, :-1]).abs(), 0.0).sum(1) / number
    mean = torch.where(pair, length[:, 1:] + length[:, :-1], 0.0).sum(1) / (2 * number)
    level = 20.0 * torch.log10(height.clamp(min=1e-6))
    shimmer = torch.where(pair, (level[:, 1:] - level[:, :-1]).abs().clamp(max=LARGEST), 0.0).sum(1) / number
    return torch.stack([change / mean.clamp(min=1.0), shimmer], dim=1)
