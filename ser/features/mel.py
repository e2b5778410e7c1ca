"""Log-mel spectrogram: 25 ms Hann windows every 10 ms at 16 kHz, in batches.

Guarantees: frame t covers samples 160 t to 160 t + 399 and nothing else, so padding never changes a true frame; the
number of frames is `frames(samples)`; digital silence is finite. Uses torch.stft and torchaudio's filterbank, so it runs
on CPU or GPU and exports.
"""

import math

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor, nn

from shards.errors import UserError
from shards.utterance import SAMPLE_RATE

WINDOW = 400  # 25 ms
HOP = 160  # 10 ms
FFT = 512
MARGIN = (FFT - WINDOW) // 2  # torch.stft centres a short window in its FFT frame
FLOOR = 1e-10


def frames(samples: int) -> int:
    """Number of frames of an utterance: 1 + floor((samples - 400) / 160), at least 1 if there is a sample at all."""
    return 0 if samples <= 0 else 1 + max(0, samples - WINDOW) // HOP


class LogMel(nn.Module):
    """Natural logarithm of mel band power.

    Args:
        bands: Number of bands.
        low, high: Outer edges in Hz.
        floor: Power below which a band counts as silent; raise it where digital silence would stand out from the
            quiet of a room (synthetic speech), lower it for recordings at a very low level.

    Raises:
        UserError: bands that the FFT cannot fill or edges outside 0 to 8000 Hz.
    """

    bank: Tensor
    window: Tensor

    def __init__(self, bands: int = 64, low: float = 20.0, high: float = 8_000.0, floor: float = FLOOR):
        super().__init__()
        if not 0.0 <= low < high <= SAMPLE_RATE / 2:
            raise UserError(f"mel edges {low} to {high} Hz do not lie inside 0 to 8000 Hz", where="mel")
        bank = AF.melscale_fbanks(FFT // 2 + 1, low, high, bands, SAMPLE_RATE, norm=None, mel_scale="htk")
        if bands < 1 or bool((bank.amax(0) == 0).any()):
            raise UserError(
                f"{bands} mel bands leave some without a single FFT bin",
                where="mel",
                hint="use 8 to 80 bands",
            )
        self.bands, self.floor = bands, floor
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel frames of a batch.

        Args:
            waveform: (B, T) float32, full scale 1.
            lengths: (B,) true samples; what lies beyond is ignored.

        Returns:
            Frames (B, F, bands) float32, log(floor) beyond each utterance's end; frame counts (B,) int64.
        """
        lengths = lengths.to(device=waveform.device, dtype=torch.int64).clamp(max=waveform.shape[1])
        counts = torch.where(lengths > 0, 1 + (lengths - WINDOW).clamp(min=0) // HOP, 0)
        width = max(1, frames(waveform.shape[1]))
        beyond = torch.arange(waveform.shape[1], device=waveform.device)[None] >= lengths[:, None]
        waveform = waveform.float().masked_fill(beyond, 0.0)
        size = (width - 1) * HOP + WINDOW
        waveform = F.pad(waveform, (MARGIN, max(0, size - waveform.shape[1]) + MARGIN))
        spectrum = torch.stft(
            waveform[:, : size + 2 * MARGIN],
            FFT,
            hop_length=HOP,
            win_length=WINDOW,
            window=self.window,
            center=False,
            return_complex=True,
        )
        power = (spectrum.real.square() + spectrum.imag.square()).transpose(1, 2)
        logarithm = torch.log((power @ self.bank).clamp(min=self.floor))
        width = int(counts.max()) if len(counts) else 0
        true = torch.arange(logarithm.shape[1], device=waveform.device)[None] < counts[:, None]
        return logarithm.masked_fill(~true[..., None], math.log(self.floor))[:, :width], counts
