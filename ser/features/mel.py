"""Log-mel frames of 25 ms every 10 ms, batched; padding never changes a true frame.

Frame t covers samples [160 t, 160 t + 400): no centring, so a frame depends on its own samples alone. An utterance of
n samples has `frames(n)` = 1 + (n - 400) // 160 frames; a shorter one than 400 samples is padded to one frame.
"""

import torch
import torchaudio.functional as audio_functional
from torch import Tensor, nn

from shards.utterance import SAMPLE_RATE

WINDOW, HOP, FFT = 400, 160, 512


def frames(samples: Tensor) -> Tensor:
    """Number of frames of utterances of `samples` (B,) samples."""
    return 1 + torch.clamp(samples - WINDOW, min=0) // HOP


class LogMel(nn.Module):
    """Log mel-filterbank energies (natural log, floor 1e-10 of full scale power).

    Args:
        bands: Mel bands between `lowest` and `highest` Hz (HTK scale, triangular).
    """

    def __init__(self, bands: int = 64, lowest: float = 20.0, highest: float = 7600.0):
        super().__init__()
        self.bands = bands
        bank = audio_functional.melscale_fbanks(FFT // 2 + 1, lowest, highest, bands, SAMPLE_RATE)
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) waveform and (B,) lengths in samples -> (B, F, bands) frames, zero past (B,) frame lengths."""
        if waveform.shape[1] < WINDOW:
            waveform = nn.functional.pad(waveform, (0, WINDOW - waveform.shape[1]))
        pieces = waveform.unfold(1, WINDOW, HOP) * self.window
        power = torch.fft.rfft(pieces, FFT).abs().square()
        logs = torch.log(power @ self.bank + 1e-10)
        count = frames(lengths)
        inside = torch.arange(logs.shape[1], device=logs.device)[None, :] < count[:, None]
        return logs * inside.unsqueeze(-1), count
