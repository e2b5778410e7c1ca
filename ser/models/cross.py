"""Cross-attended fusion: frames and tokens of each modality attend to those of the others (after Tsai et al. 2019).

Guarantees: a modality that is missing in a row, or left out by modality dropout, reaches no other modality of that row,
whatever it holds; padding reaches nobody. Every modality also attends to one learned token, so that a row of a single
modality has something to attend to.

Differs from Tsai et al. (MulT): one attention a modality over all others together instead of one a pair.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser.models.config import CrossConfig
from ser.models.pooling import masked, masked_mean


class Attend(nn.Module):
    """Pre-norm attention of queries (B, T, C) over keys (B, S, C) that are not masked (B, S), then feed-forward."""

    def __init__(self, size: int, heads: int, widen: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.query_norm, self.key_norm, self.norm = (nn.LayerNorm(size) for _ in range(3))
        self.query, self.keys, self.out = (
            nn.Linear(size, size),
            nn.Linear(size, 2 * size),
            nn.Linear(size, size),
        )
        self.forth, self.back = nn.Linear(size, widen * size), nn.Linear(widen * size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, others: Tensor, mask: Tensor) -> Tensor:
        q = self._split(self.query(self.query_norm(x)))
        k, v = (self._split(part) for part in self.keys(self.key_norm(others)).chunk(2, -1))
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = x + self.dropout(self.out(heard.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.back(F.gelu(self.forth(self.norm(x)))))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class CrossAttended(nn.Module):
    """Sequences of N modalities -> N vectors (B, size).

    Args:
        widths: Channels of each modality.
        size: C, common to all after a linear map.
    """

    def __init__(self, widths: list[int], size: int, config: CrossConfig, dropout: float):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(n, size) for n in widths)
        self.kinds = nn.Parameter(0.02 * torch.randn(len(widths), size))
        self.nobody = nn.Parameter(0.02 * torch.randn(size))
        self.layers = nn.ModuleList(
            nn.ModuleList(Attend(size, config.heads, config.widen, dropout) for _ in widths)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(size)

    def forward(self, sequences: list[Tensor], masks: list[Tensor], present: Tensor) -> list[Tensor]:
        """sequences of (B, T_m, width_m), masks of (B, T_m), present (N, B) -> N vectors (B, size), zeros where absent."""
        masks = [mask & here.unsqueeze(1) for mask, here in zip(masks, present)]
        states = [
            masked(layer(masked(x, mask)) + kind, mask)
            for layer, x, mask, kind in zip(self.maps, sequences, masks, self.kinds)
        ]
        rows = states[0].shape[0]
        nobody = self.nobody.expand(rows, 1, -1)
        always = torch.ones(rows, 1, dtype=torch.bool, device=nobody.device)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            states = [
                masked(
                    attend(
                        state,
                        torch.cat([nobody, *(s for n, s in enumerate(states) if n != m)], 1),
                        torch.cat([always, *(k for n, k in enumerate(masks) if n != m)], 1),
                    ),
                    masks[m],
                )
                for m, (attend, state) in enumerate(zip(layer, states))
            ]
        pooled = (masked_mean(self.norm(state), mask) for state, mask in zip(states, masks))
        return [torch.where(here.unsqueeze(-1), x, 0.0) for x, here in zip(pooled, present)]
