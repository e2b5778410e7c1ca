"""Frames: how many there are, where they start, and how a ragged batch becomes a flat list of true frames.

Every descriptor is computed on a flat list that holds the true frames of all utterances and nothing else, so padding
costs nothing and cannot leak into an answer. Frame t of an utterance starts at sample 160 t for both window lengths
(20 ms and 60 ms), as openSMILE's GeMAPS configuration has it: their centres lie 20 ms apart.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from shards.errors import UserError

RATE = 16_000
HOP = 160
SHORT = 320  # 20 ms: loudness, spectral balance, cepstrum, formants
LONG = 960  # 60 ms: pitch and everything that hangs on it
SHORT_FFT, LONG_FFT = 512, 1024


def frames(samples: int) -> int:
    """Number of frames of an utterance: 1 + floor((samples - 960) / 160), at least 1 if there is a sample at all."""
    return 0 if samples <= 0 else 1 + max(0, samples - LONG) // HOP


@dataclass(frozen=True)
class Layout:
    """A ragged batch as flat frames.

    Attributes:
        audio: (B, S) float32, zero beyond each utterance's end, long enough for every frame plus one.
        lengths: (B,) int64 samples.
        counts: (B,) int64 true frames.
        width: max of counts.
        row, time: (N,) int64, utterance and frame number of each entry of the *extended* list, which has
            counts + 1 frames per utterance: the running mean over three frames looks one frame ahead.
        inside: (N,) bool, false for that one extra frame.
    """

    audio: Tensor
    lengths: Tensor
    counts: Tensor
    width: int
    row: Tensor
    time: Tensor
    inside: Tensor

    def gather(self, row: Tensor, time: Tensor, size: int) -> Tensor:
        """Frames of `size` samples: (len(row), size), a copy."""
        b, s = self.audio.shape
        view = self.audio.as_strided((b, (s - size) // HOP + 1, size), (s, HOP, 1))
        return view[row, time]

    def scatter(self, values: Tensor, row: Tensor, time: Tensor) -> Tensor:
        """Flat values (N, D) back to (B, width + 1, D), zero elsewhere."""
        out = values.new_zeros(self.lengths.shape[0], self.width + 1, values.shape[1])
        out[row, time] = values
        return out


def layout(waveform: Tensor, lengths: Tensor) -> Layout:
    """Masks what lies beyond each end and lists the true frames.

    Args:
        waveform: (B, T) at 16 kHz, about [-1, 1].
        lengths: (B,) true samples, 0 <= length <= T.
    """
    if waveform.ndim != 2 or lengths.shape != waveform.shape[:1]:
        raise UserError(
            f"prosody needs waveform (B, T) and lengths (B,), got {tuple(waveform.shape)} and {tuple(lengths.shape)}",
            hint="add the batch axis: waveform[None], torch.tensor([len(waveform)])",
        )
    waveform = waveform.float()
    lengths = lengths.to(device=waveform.device, dtype=torch.int64).clamp(max=waveform.shape[1])
    counts = torch.where(lengths > 0, 1 + (lengths - LONG).clamp(min=0) // HOP, 0)
    width = int(counts.max()) if len(counts) else 0
    size = width * HOP + LONG
    audio = F.pad(waveform, (0, max(0, size - waveform.shape[1])))
    beyond = torch.arange(audio.shape[1], device=audio.device)[None] >= lengths[:, None]
    audio = audio.masked_fill(beyond, 0.0).contiguous()
    step = torch.arange(width + 1, device=audio.device)
    row, time = torch.nonzero((step[None] <= counts[:, None]) & (counts[:, None] > 0), as_tuple=True)
    return Layout(audio, lengths, counts, width, row, time, time < counts[row])


def chunks(total: int, device: torch.device) -> list[slice]:
    """Slices small enough for a CPU's second-level cache, large enough to hide the cost of a call."""
    size = 512 if device.type == "cpu" else 1 << 16
    return [slice(a, min(a + size, total)) for a in range(0, total, size)]


@lru_cache(maxsize=8)
def hamming(device: torch.device) -> Tensor:
    """Symmetric Hamming window, (320,)."""
    return torch.hamming_window(SHORT, periodic=False, dtype=torch.float64).float().to(device)


@lru_cache(maxsize=8)
def gauss(device: torch.device) -> Tensor:
    """Gaussian window of standard deviation 0.4 half-lengths, (960,)."""
    half = (LONG - 1) / 2
    n = torch.arange(LONG, dtype=torch.float64)
    return torch.exp(-0.5 * ((n - half) / (0.4 * half)) ** 2).float().to(device)


def power_of(spectrum: Tensor) -> Tensor:
    """|spectrum|^2 of a complex tensor."""
    return spectrum.real.square() + spectrum.imag.square()


def mel(hz: float) -> float:
    """HTK mel scale: 1127 ln(1 + f / 700)."""
    return 1127.0 * math.log(1.0 + hz / 700.0)
