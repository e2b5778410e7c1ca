"""Masks and pooling over time.

Guarantees: frames behind an utterance's length never reach the result, whatever they hold (nan included); a row of
length 0 pools to zeros, with finite gradients.
"""

import torch
from torch import Tensor, nn


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """(B, T) bool, True on the first `lengths` of `frames` frames."""
    return torch.arange(frames, device=lengths.device)[None, :] < lengths[:, None]


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """x (B, T, C) with zeros where the mask (B, T) is False."""
    return torch.where(mask.unsqueeze(-1), x, 0.0)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over true frames: (B, T, C), (B, T) -> (B, C). Half precision is summed in float32."""
    wide = masked(x, mask).to(torch.promote_types(x.dtype, torch.float32))
    count = mask.sum(1, keepdim=True).clamp_min(1)
    return (wide.sum(1) / count).to(x.dtype)


def last_frame(x: Tensor, mask: Tensor) -> Tensor:
    """The last true frame of each row: (B, T, C) -> (B, C)."""
    last = (mask.sum(1) - 1).clamp_min(0)[:, None, None]
    return masked(x, mask).gather(1, last.expand(-1, 1, x.shape[2])).squeeze(1)


class Mean(nn.Module):
    """Masked mean; output size equals the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.size = channels

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return masked_mean(x, mask)


class MeanMax(nn.Module):
    """Mean and maximum over true frames, side by side; a maximum keeps what is heard once, such as one word."""

    def __init__(self, channels: int):
        super().__init__()
        self.size = 2 * channels

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        highest = x.masked_fill(~mask.unsqueeze(-1), torch.finfo(x.dtype).min).amax(1)
        highest = torch.where(mask.any(1, keepdim=True), highest, 0.0)
        return torch.cat([masked_mean(x, mask), highest], -1)


class Last(nn.Module):
    """The last true frame."""

    def __init__(self, channels: int):
        super().__init__()
        self.size = channels

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return last_frame(x, mask)


class First(nn.Module):
    """The first frame, a text encoder's [CLS]."""

    def __init__(self, channels: int):
        super().__init__()
        self.size = channels

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return masked(x, mask)[:, 0]


class AttentiveStatistics(nn.Module):
    """Attention-weighted mean and standard deviation (Okabe, Koshinaka, Shinoda 2018, equations 1-4)."""

    def __init__(self, channels: int, hidden: int | None = None):
        super().__init__()
        hidden = hidden or min(channels, 128)
        self.score = nn.Sequential(nn.Linear(channels, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.size = 2 * channels

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = masked(x, mask)
        wide = torch.promote_types(x.dtype, torch.float32)
        # A large finite number instead of -inf: a row of length 0 gets even weights over zeros, not nan.
        score = self.score(x).squeeze(-1).to(wide).masked_fill(~mask, -1e9)
        weight = score.softmax(1).unsqueeze(-1)
        frames = x.to(wide)
        mean = (weight * frames).sum(1)
        variance = (weight * (frames - mean.unsqueeze(1)).square()).sum(1)
        # The floor keeps the root's gradient finite where all frames are equal.
        return torch.cat([mean, variance.clamp_min(1e-7).sqrt()], -1).to(x.dtype)


POOLING = {"mean": Mean, "mean_max": MeanMax, "attentive": AttentiveStatistics, "last": Last, "cls": First}
