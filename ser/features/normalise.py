"""Mean and standard deviation of frame features, and applying them.

Guarantees: the fit is a sum, so it does not depend on batching or padding beyond float64 rounding, and partial fits of
several workers merge exactly; a column that never moves is centred, not blown up. Whoever fits on a set of speakers owns
the exposure that comes with it: nothing here knows whose frames it saw.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shards.errors import UserError


@dataclass
class Moments:
    """Running sums per column, float64, about a fixed origin (the first batch's mean, against cancellation)."""

    count: int
    origin: Tensor
    total: Tensor
    squares: Tensor

    @classmethod
    def empty(cls, columns: int) -> "Moments":
        """No frames yet."""
        zero = torch.zeros(columns, dtype=torch.float64)
        return cls(0, zero, zero.clone(), zero.clone())

    def add(self, frames: Tensor, lengths: Tensor) -> "Moments":
        """Adds a batch's true frames: (B, F, D) and (B,) counts. Returns self."""
        chosen = frames[valid(frames, lengths)].double().cpu()
        if not len(chosen):
            return self
        if self.count == 0:
            self.origin = chosen.mean(0)
        shifted = chosen - self.origin
        self.count += len(chosen)
        self.total += shifted.sum(0)
        self.squares += shifted.square().sum(0)
        return self

    def merge(self, other: "Moments") -> "Moments":
        """Sum of two fits about this one's origin (the other's, if this one is empty)."""
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        shift = other.origin - self.origin
        total = self.total + other.total + other.count * shift
        squares = self.squares + other.squares + 2.0 * shift * other.total + other.count * shift.square()
        return Moments(self.count + other.count, self.origin, total, squares)

    def normaliser(self, floor: float = 1e-5) -> "Normaliser":
        """Mean and standard deviation (population), float32.

        Raises:
            UserError: no frame was added.
        """
        if self.count == 0:
            raise UserError(
                "normalisation was fitted on no frames", hint="check that the fold's train set has audio"
            )
        offset = self.total / self.count
        deviation = (self.squares / self.count - offset.square()).clamp(min=0.0).sqrt()
        deviation = torch.where(deviation < floor, 1.0, deviation)
        return Normaliser((self.origin + offset).float(), deviation.float())


@dataclass(frozen=True)
class Normaliser:
    """(x - mean) / deviation per column."""

    mean: Tensor
    deviation: Tensor

    def __call__(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Normalised frames (B, F, D), zero beyond each end."""
        out = (frames - self.mean.to(frames.device)) / self.deviation.to(frames.device)
        return out * valid(frames, lengths)[..., None]


def valid(frames: Tensor, lengths: Tensor) -> Tensor:
    """(B, F) true where a frame lies inside its utterance."""
    return torch.arange(frames.shape[1], device=frames.device)[None] < lengths.to(frames.device)[:, None]
