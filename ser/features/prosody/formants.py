"""Formants: frequency and bandwidth of the first three resonances, by linear prediction of order 11 at 11 kHz.

All roots of all frames' polynomials are found together by Aberth's iteration (third order, no library call per frame).

eGeMAPS as openSMILE computes it has three oddities, kept by default because published figures contain them: the
band is cut at 3.4 kHz, only the first 224 samples of the frame are heard, and the polynomial's coefficients enter
with the wrong sign, so that its "formants" lie near the resonances but not on them. `textbook=True` uses the whole
band and frame, pre-emphasis and the right sign, and finds a known resonance to a few Hz.

Sources: Markel and Gray, "Linear Prediction of Speech", 1976; Aberth, Math. Comp. 27, 1973.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from ser.features.prosody.framing import RATE, SHORT, SHORT_FFT

RATE_LPC = 11_000
ORDER = 11
WANTED = 3
LOWEST, HIGHEST = 50.0, 5450.0
SIZE = 220  # 20 ms at 11 kHz
LEAD = (SHORT_FFT - SHORT) // 2  # the reference pads its frame on both sides
FIRST_ITERATIONS, MORE_ITERATIONS = 8, 24
PRE_EMPHASIS = 0.97
FARTHEST = 32.0  # no root of a frame of sound lies out there; keeps a wild step from overflowing


@lru_cache(maxsize=16)
def resampler(device: torch.device, textbook: bool) -> Tensor:
    """Band-limited resampling of a windowed frame from 16 to 11 kHz as one matrix: (320, 220)."""
    n = torch.arange(SHORT, dtype=torch.float64)[:, None]
    m = torch.arange(SIZE, dtype=torch.float64)[None] * RATE / RATE_LPC
    bins = SHORT_FFT * RATE_LPC // RATE // 2 if textbook else SIZE // 2
    delay = n - m if textbook else n + LEAD - m
    out = torch.full((SHORT, SIZE), 1.0 if textbook else 2.0, dtype=torch.float64)
    for k in range(1, bins):
        out += 2.0 * torch.cos(2.0 * math.pi * k / SHORT_FFT * delay)
    return (out / SHORT_FFT).float().to(device)


def lags(frame: Tensor, textbook: bool) -> Tensor:
    """Autocorrelation of the resampled frame.

    Args:
        frame: (N, 320) Hamming-windowed 20 ms frames.

    Returns:
        (N, 12) float64, lags 0-11.
    """
    if textbook:
        frame = torch.cat([frame[:, :1], frame[:, 1:] - PRE_EMPHASIS * frame[:, :-1]], dim=1)
    frame = (frame @ resampler(frame.device, textbook)).double()
    return torch.stack([(frame[:, : SIZE - k] * frame[:, k:]).sum(1) for k in range(ORDER + 1)], dim=1)


def predictor(r: Tensor) -> Tensor:
    """Linear predictor by the autocorrelation method (Levinson-Durbin).

    Args:
        r: (12, N) float64, lags first.

    Returns:
        (11, N): a_1..a_11 of A(z) = 1 + sum a_k z^-k; zeros for silence.
    """
    energy = r[0].clamp(min=1e-30)
    error = energy
    a = torch.zeros_like(r)
    a[0] = 1.0
    for i in range(1, ORDER + 1):
        k = -(a[:i] * r[1 : i + 1].flip(0)).sum(0) / error
        a[1 : i + 1] = a[1 : i + 1] + k * a[:i].flip(0)
        error = torch.maximum(error * (1.0 - k * k), 1e-12 * energy)
    return a[1:]


def roots(coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """All roots of z^n + c_1 z^(n-1) + ... + c_n.

    Args:
        coefficients: (n, N), c_1 first.

    Returns:
        Real and imaginary parts, each (n, N). Eight iterations for all; the one polynomial in fifty that has not settled
        by then is begun again in float64 with 24. Each polynomial is handled alone: its answer does not depend on its company.
    """
    n, size = len(coefficients), 2048 if coefficients.device.type == "cpu" else 1 << 16
    angle = (torch.arange(n, dtype=coefficients.dtype, device=coefficients.device) + 0.37) * (
        2.0 * math.pi / n
    )
    parts = []
    for c in coefficients.split(size, dim=1):
        radius = c[-1].abs().clamp(min=1e-12).pow(1.0 / n).clamp(0.3, 1.5)
        start = angle.cos()[:, None] * radius, angle.sin()[:, None] * radius
        parts.append(aberth(c.contiguous(), *start, FIRST_ITERATIONS))
    x, y, moved = (torch.cat(part, dim=-1) for part in zip(*parts))
    late = torch.nonzero(~(moved < 1e-4))[:, 0]
    late_x, late_y, _ = aberth(coefficients[:, late], x[:, late], y[:, late], MORE_ITERATIONS)
    x[:, late], y[:, late] = late_x, late_y
    return x, y


def aberth(c: Tensor, x: Tensor, y: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Aberth's iteration from x + iy, each (n, N): the new x, y and the largest last step (N,)."""
    moved = c.new_zeros(c.shape[1])
    for _ in range(iterations):
        pr, pi, dr, di = evaluate(c, x, y)
        sr, si = reciprocal_sum(x, y)
        # step = p / (p' - p s), which is 0 at a root
        dr, di = dr - pr * sr + pi * si, di - pi * sr - pr * si
        scale = torch.addcmul(dr * dr, di, di).clamp_(min=1e-30).reciprocal_()
        step_x = torch.addcmul(pr * dr, pi, di).mul_(scale)
        step_y = torch.addcmul(pi * dr, pr, di, value=-1.0).mul_(scale)
        x, y = (x - step_x).clamp_(-FARTHEST, FARTHEST), (y - step_y).clamp_(-FARTHEST, FARTHEST)
        moved = torch.maximum(step_x.abs_(), step_y.abs_()).amax(0)
    return x, y, moved


def evaluate(c: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Re p, Im p, Re p', Im p' of real polynomials at z = x + iy.

    Divides twice by (t - z)(t - conj z), which needs no complex arithmetic: p(z) = b_n - conj(z) b_(n-1) and
    p'(z) = b_(n-1) + 2iy q(z), with q the quotient.
    """
    n = len(c)
    twice, minus = 2.0 * x, -torch.addcmul(x * x, y, y)
    b2, b1 = torch.ones_like(x), twice + c[0]  # b_0, b_1
    d2, d1 = torch.zeros_like(x), torch.ones_like(x)  # d_-1, d_0
    for k in range(2, n + 1):
        if k < n:
            d2, d1 = d1, torch.addcmul(torch.addcmul(b1, twice, d1), minus, d2)
        b2, b1 = b1, torch.addcmul(torch.addcmul(c[k - 1], twice, b1), minus, b2)
    # now b1 = b_n, b2 = b_(n-1), d1 = d_(n-2), d2 = d_(n-3)
    quotient = torch.addcmul(d1, x, d2, value=-1.0)
    return (
        torch.addcmul(b1, x, b2, value=-1.0),
        y * b2,
        torch.addcmul(b2, y * y, d2, value=-2.0),
        (y * quotient).mul_(2.0),
    )


def reciprocal_sum(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of sum over j != i of 1 / (z_i - z_j), each (n, N), n odd; every pair is visited once."""
    n = len(x)
    xx, yy = torch.cat([x, x]), torch.cat([y, y])
    sr, si = torch.zeros_like(xx), torch.zeros_like(yy)
    for d in range(1, n // 2 + 1):
        dx, dy = x - xx[d : d + n], yy[d : d + n] - y
        inverse = torch.addcmul(dx * dx, dy, dy).clamp_(min=1e-20).reciprocal_()
        dx.mul_(inverse)
        dy.mul_(inverse)
        sr[:n] += dx
        sr[d : d + n] -= dx
        si[:n] += dy
        si[d : d + n] -= dy
    return sr[:n] + sr[n:], si[:n] + si[n:]


def resonances(autocorrelation: Tensor, textbook: bool) -> Tensor:
    """Frequencies and bandwidths of the three lowest resonances.

    Args:
        autocorrelation: (N, 12) from `lags`.

    Returns:
        (N, 6) float32 in Hz: three frequencies, three bandwidths, 0 where there are fewer.
    """
    a = predictor(autocorrelation.T.contiguous())
    x, y = roots((a if textbook else -a).float())
    hz = torch.atan2(y, x) * (RATE_LPC / (2.0 * math.pi))
    width = (x * x + y * y).clamp(min=1e-30).log().abs() * (RATE_LPC / (2.0 * math.pi))
    hz = torch.where((hz > LOWEST) & (hz < HIGHEST), hz, float("inf"))
    hz, order = torch.topk(hz, WANTED, dim=0, largest=False)
    heard = (autocorrelation[:, 0] > 0) & torch.isfinite(hz)
    return torch.cat([torch.where(heard, hz, 0.0), torch.where(heard, width.gather(0, order), 0.0)]).T
