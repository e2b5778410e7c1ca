"""The 25 low-level descriptors of eGeMAPSv02 every 10 ms, in batches, on CPU or GPU, in plain torch.

Guarantees: openSMILE's order and names; a frame's values do not depend on padding or on the rest of the batch; every
value is finite for any finite input, silence and a single sample included. Nothing of openSMILE is used or needed: its
licence forbids commercial use, this is the project's own code. tests/bench/prosody.py measures agreement and speed.

Gives up: the last frame of openSMILE's output (it has one more, made of its smoother's flush), its int16 rounding, and
exact agreement where its own answer hangs on a tie or on a running state (pitch path, jitter, shimmer).

Where the shipped eGeMAPSv02 differs from its paper (slopes, formants, HNR, H1) the default follows what it ships, so that
values are comparable with published ones; `textbook=True` follows the paper. The modules say what differs.
"""

import torch
from torch import Tensor

from ser.features.prosody import formants, framing, harmonics, pitch, spectral, voice
from ser.features.prosody.framing import HOP, RATE, frames

__all__ = ["HOP", "NAMES", "RATE", "extract", "frames"]

NAMES = (
    "Loudness",
    "alphaRatio",
    "hammarbergIndex",
    "slope0-500",
    "slope500-1500",
    "spectralFlux",
    "mfcc1",
    "mfcc2",
    "mfcc3",
    "mfcc4",
    "F0semitoneFrom27.5Hz",
    "jitterLocal",
    "shimmerLocaldB",
    "HNRdBACF",
    "logRelF0-H1-H2",
    "logRelF0-H1-A3",
    "F1frequency",
    "F1bandwidth",
    "F1amplitudeLogRelF0",
    "F2frequency",
    "F2bandwidth",
    "F2amplitudeLogRelF0",
    "F3frequency",
    "F3bandwidth",
    "F3amplitudeLogRelF0",
)
SPECTRAL = 10  # the first ten are smoothed over all frames, the others over voiced (non-zero) ones


@torch.no_grad()
def extract(waveform: Tensor, lengths: Tensor, *, textbook: bool = False) -> tuple[Tensor, Tensor]:
    """The 25 descriptors of a batch.

    Args:
        waveform: (B, T) float, 16 kHz, full scale 1.
        lengths: (B,) true samples; what lies beyond is ignored.
        textbook: Follow the GeMAPS paper where the shipped configuration does not.

    Returns:
        Frames (B, F, 25) float32 on the waveform's device, columns as NAMES, zero beyond each end; frame counts (B,)
        int64, `frames(length)` each. Unvoiced frames have 0 in F0, jitter, shimmer, HNR, H1-H2 and H1-A3, and -201 in
        the formants' amplitudes, as in eGeMAPS.

    Raises:
        UserError: shapes that are not (B, T) and (B,).
    """
    plan = framing.layout(waveform, lengths)
    if plan.width == 0:
        return plan.audio.new_zeros(len(plan.lengths), 0, len(NAMES)), plan.counts
    short = plan.scatter(_short(plan, textbook), plan.row, plan.time)
    row, time = plan.row[plan.inside], plan.time[plan.inside]
    magnitude, power_mean, hz, voicing = _long(plan, row, time)
    table = plan.scatter(torch.cat([hz, voicing], dim=1), row, time)[:, :-1]
    candidates, strength = table.split(pitch.CANDIDATES, dim=2)
    f0 = pitch.best_path(candidates, strength, plan.counts)[row, time]
    f0 = torch.where(power_mean > pitch.SILENCE**2, f0, 0.0)
    voiced = _voiced(plan, magnitude, row, time, f0, short[row, time, SPECTRAL : SPECTRAL + 3], textbook)
    return _smooth(plan, short, plan.scatter(voiced, row, time)), plan.counts


def _short(plan: framing.Layout, textbook: bool) -> Tensor:
    """20 ms descriptors of the extended frame list: (N, 16) = 10 spectral, 3 formant frequencies, 3 bandwidths."""
    device = plan.audio.device
    window, out, linear, last = framing.hamming(device), [], [], None
    for part in framing.chunks(len(plan.row), device):
        row, time = plan.row[part], plan.time[part]
        frame = plan.gather(row, time, framing.SHORT) * window
        power = framing.power_of(torch.fft.rfft(frame, n=framing.SHORT_FFT))
        magnitude = power.sqrt()
        heard = magnitude[:, :160]
        before = torch.cat([heard[:1] if last is None else last, heard[:-1]])
        before = torch.where(time[:, None] == 0, heard, before)
        last = heard[-1:]
        out.append(spectral.balance(power, magnitude, before, textbook))
        linear.append(formants.lags(frame, textbook))
    return torch.cat([torch.cat(out), formants.resonances(torch.cat(linear), textbook)], dim=1)


def _long(plan: framing.Layout, row: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """60 ms magnitudes (N, 513), mean power of the windowed frame (N,), pitch candidates and voicing (N, 6)."""
    device = plan.audio.device
    window, out = framing.gauss(device), []
    for part in framing.chunks(len(row), device):
        frame = plan.gather(row[part], time[part], framing.LONG) * window
        magnitude = framing.power_of(torch.fft.rfft(frame, n=framing.LONG_FFT)).sqrt()
        out.append((magnitude, frame.square().mean(1), *pitch.candidates(magnitude)))
    magnitude, power, hz, voicing = (torch.cat(column) for column in zip(*out))
    return magnitude, power, hz, voicing


def _voiced(
    plan, magnitude: Tensor, row: Tensor, time: Tensor, f0: Tensor, formant: Tensor, textbook
) -> Tensor:
    """Descriptors that need a pitch: (N, 9), with eGeMAPS's fillers where there is none."""
    out = f0.new_zeros(len(f0), 9)
    out[:, 6:] = harmonics.ABSENT
    onset = voice.onsets(f0, row, time)
    chosen = torch.nonzero(f0 > 0)[:, 0]
    for part in framing.chunks(len(chosen), f0.device):
        at = chosen[part]
        hz, spectrum = f0[at], magnitude[at]
        tone = 12.0 * torch.log2(hz / 27.5)
        shake = voice.jitter_shimmer(plan.audio, plan.lengths, row[at], time[at], onset[at], hz)
        ratio = harmonics.noise_ratio(spectrum.square(), hz, textbook)
        level = harmonics.levels(spectrum, hz, formant[at], textbook)
        out[at] = torch.cat([tone[:, None], shake, ratio[:, None], level], dim=1)
    return out


def _smooth(plan: framing.Layout, short: Tensor, voiced: Tensor) -> Tensor:
    """Running means over three frames and the final order: (B, F, 25).

    Spectral descriptors: over all three (the first frame stands in for its missing neighbour; the frame after the last
    exists in the audio). The rest: over the non-zero ones among the three, 0 where the frame itself is 0.
    """
    spectral_mean = _three(short[..., :SPECTRAL]) / 3.0
    frequency, width = short[..., SPECTRAL : SPECTRAL + 3], short[..., SPECTRAL + 3 :]
    order = [voiced[..., :6]]
    for n in range(3):
        order += [frequency[..., n : n + 1], width[..., n : n + 1], voiced[..., 6 + n : 7 + n]]
    rest = torch.cat(order, dim=2)
    present = (rest != 0).to(rest.dtype)
    rest_mean = _three(rest) / _three(present).clamp(min=1.0) * present[:, :-1]
    true = torch.arange(plan.width, device=short.device)[None] < plan.counts[:, None]
    return torch.cat([spectral_mean, rest_mean], dim=2) * true[..., None]


def _three(values: Tensor) -> Tensor:
    """Sum over frame and both neighbours, (B, F + 1, D) -> (B, F, D)."""
    before = torch.cat([values[:, :1], values[:, :-2]], dim=1)
    return before + values[:, :-1] + values[:, 1:]
