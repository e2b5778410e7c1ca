"""Functionals inside a network: what an utterance's frames are like as a whole, beside what convolutions see in them.

On a few hundred utterances a convolution learns the training set before it learns the task; the mean, spread,
percentiles and restlessness of each feature carry most of what a small corpus can teach (the eGeMAPS idea: Eyben et al.
2016). What changes from one quarter of the utterance to the next is worth as much again: the course of pitch, loudness
and spectrum. All of it is computed from the very frames of the view, so it can be distilled and augmented like anything.

Guarantees: only true frames count, whatever lies behind them; a row of length 0 gives zeros; all values are within
`LIMIT` deviations of the training mean, so one odd utterance cannot dominate.
Gives up: gradients into the frames (they are given, not learned).
"""

import torch
from torch import Tensor, nn

from ser.features.functionals import cosines
from ser.models.pooling import frame_mask

PERCENTILES = (0.1, 0.5, 0.9)
PARTS = 4
KINDS = 3 + len(PERCENTILES) + 2 * PARTS
LIMIT = 5.0


class Functionals(nn.Module):
    """(B, T, F) frames and (B,) lengths -> (B, size), standardised.

    Of each feature: mean, deviation, percentiles, deviation of the slope, and of each quarter of the utterance the
    mean (less that of the whole) and the deviation.

    Args:
        features: F.
        cepstra: Turn log-mel bands into that many cepstral coefficients first; bands are too alike to be judged one by
            one.
        voiced: (decider, first): columns from `first` on mean something only in frames where column `decider` is not
            0 (F0 and all that needs a voice). Share and rate of voiced stretches join as two more values.
    """

    mean: Tensor
    deviation: Tensor
    table: Tensor

    def __init__(self, features: int, cepstra: int | None = None, voiced: tuple[int, int] | None = None):
        super().__init__()
        self.cepstra, self.voiced = cepstra, voiced
        if cepstra is not None:
            table = torch.from_numpy(cosines(features, cepstra)).float()
            self.register_buffer("table", table, persistent=False)
        self.size = KINDS * (cepstra or features) + (2 if voiced else 0)
        self.register_buffer("mean", torch.zeros(self.size))
        self.register_buffer("deviation", torch.ones(self.size))

    def fit(self, mean: Tensor, deviation: Tensor) -> None:
        """Set mean and deviation (size,) of `raw` over the training rows."""
        with torch.no_grad():
            self.mean.copy_(mean)
            self.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1.0))

    @torch.no_grad()
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        # In at least single precision, and in double for a model in double.
        raw = self.raw(x.to(torch.promote_types(x.dtype, self.mean.dtype)), lengths)
        value = ((raw - self.mean) / self.deviation).clamp(-LIMIT, LIMIT)
        return torch.where(lengths[:, None] > 0, value, 0.0).to(self.mean.dtype)

    @torch.no_grad()
    def raw(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The same before it is standardised, in single precision or that of the frames."""
        wide = torch.promote_types(x.dtype, torch.float32)
        if x.shape[1] == 0:
            return x.new_zeros(len(x), self.size, dtype=wide)
        inside = frame_mask(lengths, x.shape[1])
        x = torch.where(inside.unsqueeze(-1), x.to(wide), 0.0)
        spoken = inside
        if self.voiced is not None:
            spoken = inside & (x[..., self.voiced[0]] != 0)
        if self.cepstra is not None:
            x = x @ self.table.to(wide)
        mask = inside.unsqueeze(-1).expand(x.shape)
        if self.voiced is not None:
            column = torch.arange(x.shape[2], device=x.device)
            # the decider itself is only meaningful where it is not 0
            needs = (column >= self.voiced[1]) | (column == self.voiced[0])
            mask = torch.where(needs, spoken.unsqueeze(-1), mask)
        parts = _moments(x, mask) + _percentiles(x, mask) + _slope(x, mask) + _course(x, mask, lengths)
        if self.voiced is not None:
            count = inside.sum(1).clamp_min(1)
            begins = (spoken[:, 1:] & ~spoken[:, :-1]).sum(1)
            parts += [torch.stack([spoken.sum(1) / count, begins / count], 1)]
        return torch.cat(parts, 1)


def _moments(x: Tensor, mask: Tensor) -> list[Tensor]:
    count = mask.sum(1).clamp_min(1)
    mean = torch.where(mask, x, 0.0).sum(1) / count
    spread = torch.where(mask, x - mean[:, None], 0.0).square().sum(1) / count
    return [mean, spread.sqrt()]


def _percentiles(x: Tensor, mask: Tensor) -> list[Tensor]:
    """Each of `PERCENTILES`, linear between order statistics; 0 where no frame counts."""
    count = mask.sum(1)
    ordered = torch.where(mask, x, torch.inf).sort(1).values
    out = []
    for share in PERCENTILES:
        place = share * (count - 1).clamp_min(0)
        low = place.floor().long()
        high = torch.minimum(low + 1, (count - 1).clamp_min(0))
        a, b = (ordered.gather(1, i[:, None])[:, 0] for i in (low, high))
        out.append(torch.where(count > 0, a + (place - low) * (b - a), 0.0).nan_to_num(0.0, 0.0, 0.0))
    return out


def _slope(x: Tensor, mask: Tensor) -> list[Tensor]:
    """Deviation of the central difference, over frames whose two neighbours both count."""
    if x.shape[1] < 3:
        return [x.new_zeros(x.shape[0], x.shape[2])]
    return _moments((x[:, 2:] - x[:, :-2]) / 2, mask[:, 2:] & mask[:, :-2])[1:]


def _course(x: Tensor, mask: Tensor, lengths: Tensor) -> list[Tensor]:
    """Mean (less the whole's) and deviation in each of `PARTS` equal stretches of time; 0 where no frame counts."""
    rest = torch.where(mask, x - _moments(x, mask)[0][:, None], 0.0)
    place = torch.arange(x.shape[1], device=x.device) * PARTS // lengths.clamp_min(1)[:, None]
    # frames behind the end are masked, wherever they are counted
    member = torch.nn.functional.one_hot(place.clamp_max(PARTS - 1), PARTS).to(x.dtype).transpose(1, 2)
    count = (member @ mask.to(x.dtype)).clamp_min(1)
    mean = member @ rest / count
    own = torch.where(mask, rest - member.transpose(1, 2) @ mean, 0.0)
    return [mean.flatten(1), (member @ own.square() / count).sqrt().flatten(1)]
