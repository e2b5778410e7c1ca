"""The network over frame features that the prosodic teacher and the small student share.

Guarantees: padding never changes a true frame (every convolution sees zeros behind an utterance's end, whether it is
padded or alone; norms act inside a frame; the mixers see true frames only). Time is shortened first, so most of the
work runs at the low rate.

Gives up: no positions are added for the transformer; order reaches it through the convolutions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser.models.config import FrameConfig
from ser.models.pooling import POOLING, frame_mask, masked


class TimeConv(nn.Module):
    """Convolution over time on (B, T, C) with "same" borders: ceil(T / stride) frames come out."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """x + pointwise(activation(conv(norm(x)))), the norm inside each frame."""

    def __init__(self, width: int, dropout: float, activation: str):
        super().__init__()
        self.activation = getattr(F, activation)
        self.norm = nn.LayerNorm(width)
        self.conv = TimeConv(width, width, 3)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        # Frames are finite in here, so a product (cheaper than `masked`) clears the padding.
        return x + self.dropout(self.out(self.activation(self.conv(self.norm(x) * mask.unsqueeze(-1)))))


class Attention(nn.Module):
    """A pre-norm transformer layer over true frames."""

    def __init__(self, size: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.norm, self.qkv, self.out = nn.LayerNorm(size), nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.feed = nn.Sequential(
            nn.LayerNorm(size),
            nn.Linear(size, 2 * size),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(2 * size, size),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows, frames, size = x.shape
        q, k, v = self.qkv(self.norm(x)).view(rows, frames, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # A row of length 0 attends to its padding, or softmax would have nothing to sum.
        seen = (mask | ~mask.any(1, keepdim=True))[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, seen, dropout_p=self.rate if self.training else 0.0)
        x = x + self.dropout(self.out(y.transpose(1, 2).reshape(rows, frames, size)))
        return x + self.dropout(self.feed(x))


class Recurrent(nn.Module):
    """A GRU over time, one way or both ways; the backward one starts at each row's last true frame.

    Rows are turned round by index instead of packed: a packed sequence needs lengths on the CPU and does not export.
    """

    def __init__(self, size: int, hidden: int, both: bool):
        super().__init__()
        self.ahead = nn.GRU(size, hidden, batch_first=True)
        self.back = nn.GRU(size, hidden, batch_first=True) if both else None
        self.size = hidden * (2 if both else 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = masked(x, mask)
        y = self.ahead(x)[0]
        if self.back is None:
            return y
        steps = torch.arange(x.shape[1], device=x.device)[None, :]
        turned = (mask.sum(1, keepdim=True) - 1 - steps).clamp_min(0).unsqueeze(-1)
        z = self.back(x.gather(1, turned.expand(-1, -1, x.shape[2])))[0]
        return torch.cat([y, z.gather(1, turned.expand(-1, -1, z.shape[2]))], -1)


class Normalise(nn.Module):
    """Frame features to comparable size; see `FrameConfig.normalise`. (B, T, F) and mask (B, T) -> (B, T, F)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, mode: str):
        super().__init__()
        self.mode = mode
        if mode in ("fitted", "level"):
            self.register_buffer("mean", torch.zeros(channels))
            self.register_buffer("deviation", torch.ones(channels))

    def fit(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the training data's mean and deviation (F,); a constant feature (deviation 0) is only centred."""
        with torch.no_grad():
            self.mean.copy_(torch.as_tensor(mean))
            deviation = torch.as_tensor(deviation)
            self.deviation.copy_(torch.where(deviation > 1e-8, deviation, torch.ones_like(deviation)))

    def fitted(self, x: Tensor, mask: Tensor) -> Tensor:
        """The training data's mean and deviation taken out, where this mode has them."""
        return masked((x - self.mean) / self.deviation if self.mode in ("fitted", "level") else x, mask)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.fitted(x, mask)
        if self.mode in ("utterance", "level"):
            mean, deviation = statistics(x, mask)
            if self.mode == "level":
                deviation = deviation.mean(1, keepdim=True)
            x = masked((x - mean.unsqueeze(1)) / deviation.unsqueeze(1), mask)
        return x


def statistics(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, F) of each feature over an utterance's true frames (B, T, F)."""
    count = mask.sum(1, keepdim=True).clamp_min(1)
    mean = masked(x, mask).sum(1) / count
    square = masked(x - mean.unsqueeze(1), mask).square().sum(1) / count
    return mean, (square + 1e-5).sqrt()


class FrameNetwork(nn.Module):
    """Front convolutions, residual blocks, mixer, pooling: (B, T, F) and lengths (B,) -> (B, size)."""

    def __init__(self, config: FrameConfig):
        super().__init__()
        width = config.width
        self.skip, self.strides = config.skip, config.strides
        self.activation = getattr(F, config.activation)
        self.normalise = Normalise(config.inputs_size, config.normalise)
        kernels = [config.kernel] + [3] * (len(config.strides) - 1)
        sizes = [config.inputs_size] + [width] * (len(config.strides) - 1)
        self.front = nn.ModuleList(
            TimeConv(i, width, k, s) for i, k, s in zip(sizes, kernels, config.strides)
        )
        self.front_norms = nn.ModuleList(
            nn.LayerNorm(width) if config.front_norm else nn.Identity() for _ in config.strides
        )
        self.blocks = nn.ModuleList(
            Block(width, config.dropout, config.activation) for _ in range(config.blocks)
        )
        # The residual sum grows with its blocks and is normalised behind them; without blocks there is none.
        self.norm = nn.LayerNorm(width) if config.blocks else nn.Identity()
        size = config.channels
        self.mixer = nn.ModuleList()
        for _ in range(config.mixer_layers if config.mixer != "none" else 0):
            if config.mixer == "transformer":
                self.mixer.append(Attention(size, config.heads, config.dropout))
            else:
                layer = Recurrent(size, width, both=config.mixer == "bigru")
                self.mixer.append(layer)
                size = layer.size
        pool = POOLING[config.pooling](size)
        self.pool, self.statistics = pool, config.statistics
        # Channels of a frame before pooling.
        self.mixed = size
        self.size = pool.size + (2 * config.inputs_size if config.statistics else 0)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x, mask, about = self.hidden(x, lengths)
        return torch.cat([self.pool(x, mask), *about], -1)

    def hidden(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """What is pooled: (B, T', mixed) frames with their mask (B, T'), and the utterance's statistics if asked for."""
        if x.shape[1] == 0:
            x = x.new_zeros(x.shape[0], 1, x.shape[2])
        mask = frame_mask(lengths, x.shape[1])
        # Features far from zero lose their detail in half precision: cast once they are centred.
        dtype = next(self.front.parameters()).dtype
        wide = x.to(torch.promote_types(dtype, torch.float32))
        about = statistics(self.normalise.fitted(wide, mask), mask) if self.statistics else ()
        x = self.normalise(wide, mask).to(dtype)
        features = x
        for conv, norm, stride in zip(self.front, self.front_norms, self.strides):
            x = self.activation(norm(conv(x)))
            lengths = (lengths + stride - 1) // stride
            mask = frame_mask(lengths, x.shape[1])
            x = x * mask.unsqueeze(-1)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        if self.skip:
            x = torch.cat([x, features], -1)
        for layer in self.mixer:
            x = layer(x, mask)
        return x, mask, tuple(part.to(dtype) for part in about)
